"""Stage 3: an encoder and the `train` split -> where fine-tuning starts, and at which rate.

A rate that was chosen on one data set does not carry over to another. So a linear probe of the
encoder makes the first head (probe.py), and a few candidates, plain recipes among them, race
against each other in short fits on the user's own rows: successive
halving (Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization") on Ray Tune, its rungs in step, so that the same rows and seed make the same choice.
They are judged on a tenth of
`train`, held out by content hash: by accuracy, and of those within one standard error of the best
by calibrated log-loss. The fit that follows learns from that tenth too.
"""

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import ceil, sqrt
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812 - the field's own name for it

from cluster.bundles import TOKENIZER
from cluster.errors import ConfigError, TrainingError
from cluster.files import new_folder, read_json, write_json
from cluster.progress import Report, relayed, silent
from cluster.settings import Settings
from cluster.tracking import log_stage
from serve_app.classifier import softmax
from serve_app.text import TextTokenizer
from train_jobs import probe
from train_jobs.calibrate import fit_temperature
from train_jobs.data import Dataset, load_dataset
from train_jobs.encoders import (
    load_classifier,
    max_tokens,
    new_head,
    parts_of,
    save_tokenizer,
    without_dropout,
)
from train_jobs.resume import NoBoard, Stage
from train_jobs.training import (
    Batch,
    Compute,
    Fit,
    Loss,
    TokenRows,
    features_of,
    fit_resources,
    forward,
    give_back_memory,
    holdout,
    peak_memory_mb,
    predict,
    seed_everything,
    set_threads,
    train,
)

RECIPE: Final = "recipe.json"
_START: Final = "start"
_TIMED_STEPS: Final = 3
_NEVER_S: Final = 1e9
_FIRST_SHARE: Final = 1 / 3  # of the short fit, after which most candidates are out
_KEPT: Final = 3  # one in so many goes on
_LEAST_KEPT: Final = 2
_RETRIES: Final = 2  # a trial only ever dies with its worker
_TUNE_ENV: Final = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # nobody reads CSV or TensorBoard logs of a trial
    "RAY_TUNE_CALLBACKS": "ray.tune.logger.JsonLoggerCallback",  # Tune would import all of MLflow
}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to fine-tune.

    `head` is where it starts: a linear probe of the encoder, or random weights, as plain
    fine-tuning does. `smoothing` is the share of each label that is spread over all classes
    (Szegedy et al. 2016, "Rethinking the Inception Architecture"). `epochs` None: as many as
    `FinetuneConfig` gives.
    """

    learning_rate: float
    head: Literal["probe", "new"] = "probe"
    smoothing: float = 0.1
    batch_size: int = 64
    epochs: float | None = None

    @property
    def fits(self) -> int:
        """How many are made and averaged; from random heads they do not lie near each other."""
        return 2 if self.head == "probe" else 1

    @property
    def name(self) -> str:
        return f"{'plain' if self.head == 'new' else 'probed'}, {self.learning_rate:g}"


def plain(learning_rate: float) -> Candidate:
    """What everybody would try first."""
    return Candidate(
        learning_rate=learning_rate, head="new", smoothing=0.0, batch_size=32, epochs=3.0
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How the cloud model is fitted, and what competes for it.

    `epochs` None: 2, or as many as `min_steps` take, 20 at most: few rows make few steps, and few
    steps can end on a plateau (Mosbach et al., "On the Stability of Fine-tuning BERT", 2021).
    A `learning_rate` that is given is not raced for. `minutes` bounds race and fit together.
    """

    learning_rate: float | None = None
    epochs: float | None = None
    min_steps: int = 200
    batch_size: int = 64
    minutes: float | None = None
    candidates: tuple[Candidate, ...] = (
        Candidate(learning_rate=2e-4),  # the default
        Candidate(learning_rate=4e-4),
        Candidate(learning_rate=5e-5),
        plain(3e-4),
        plain(1e-4),
        plain(5e-5),
    )
    race_epochs: float = 0.5
    race_steps: tuple[int, int] = (45, 120)  # at least, at most: a short race flatters low rates

    def fit(self, candidate: Candidate, rows: int, workers: int = 1) -> Fit:
        """The whole fit of a candidate, on so many rows."""
        fit = Fit(epochs=1.0, learning_rate=candidate.learning_rate,
                  batch_size=candidate.batch_size)  # fmt: skip
        enough = ceil(self.min_steps / fit.steps_of_epoch(rows, workers))
        epochs = candidate.epochs or self.epochs
        return replace(fit, epochs=epochs or float(max(_EPOCHS, min(enough, _MOST_EPOCHS))))

    def race(self, candidate: Candidate, rows: int) -> Fit:
        """The short fit that it races in; its rate falls to zero as the whole fit's does."""
        fit = self.fit(candidate, rows)
        each = fit.steps_of_epoch(rows)
        least, most = self.race_steps
        steps = min(max(self.race_epochs * each, least), most, fit.epochs * each)
        return replace(fit, epochs=steps / each)


_EPOCHS: Final = 2
_MOST_EPOCHS: Final = 20


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What a candidate reached on the held-out rows. `share` of its short fit was run."""

    name: str
    share: float
    accuracy: float
    log_loss: float  # calibrated: at the temperature that these rows ask for
    seconds: float


@dataclass(frozen=True)
class Recipe:
    """The chosen candidate, and what it was chosen from. `start` is a classifier to begin with."""

    chosen: Candidate
    tried: tuple[Tried, ...]
    rows: int  # held out
    start: Path
    figures: Mapping[str, float]

    def summary(self) -> dict[str, Any]:
        """For model cards and run files."""
        return {
            "chosen": asdict(self.chosen),
            "rows": self.rows,
            "tried": [asdict(item) for item in self.tried],
            "figures": dict(self.figures),
        }


def load(folder: Path) -> Recipe:
    """What `run` left in a folder."""
    made = read_json(folder / RECIPE)
    tried = tuple(Tried(**item) for item in made["tried"])
    return Recipe(Candidate(**made["chosen"]), tried, made["rows"], folder / _START,
                  made["figures"])  # fmt: skip


# ---- judging ------------------------------------------------------------------------------------


def judged(logits: NDArray[Any], labels: NDArray[np.int64]) -> dict[str, float]:
    """Accuracy and calibrated log-loss of logits (n, classes) against labels (n,).

    A fit that diverged says nothing of any class.
    """
    logits = np.nan_to_num(logits, posinf=0.0, neginf=0.0)
    temperature = fit_temperature(logits, labels)
    said = softmax(logits, temperature)[np.arange(len(labels)), labels]
    return {
        "accuracy": float((logits.argmax(-1) == labels).mean()),
        "log_loss": float(-np.log(np.maximum(said, 1e-12)).mean()),
    }


def best_of(tried: Sequence[Tried], rows: int, default: str) -> Tried:
    """Of those within one standard error of the best accuracy, the default, or the least log-loss.

    A short fit flatters low rates: on Banking77 60 steps at 5e-5 end 0.4 points above as many at
    2e-4, and 120 steps 0.4 points below (docs/training.md). So the default, whose rate was found
    on whole fits, has to be beaten by more than chance. A candidate that was stopped early is out,
    unless none came to the end.
    """
    furthest = max(item.share for item in tried)
    ended = [item for item in tried if item.share == furthest]
    best = max(item.accuracy for item in ended)
    error = sqrt(best * (1 - best) / rows)
    return min(
        (item for item in ended if item.accuracy >= best - error),
        key=lambda item: (item.name != default, item.log_loss, item.name),
    )


# ---- on the workers -----------------------------------------------------------------------------


def label_loss(model: Any, smoothing: float) -> Loss:
    """Cross-entropy on `labels`, smoothed."""

    def loss(batch: Batch) -> torch.Tensor:
        logits = forward(model, batch).logits.float()
        return F.cross_entropy(logits, batch["labels"].to(logits.device), label_smoothing=smoothing)

    return loss


def made_ready(start: str, labels: Sequence[str], candidate: Candidate) -> Any:
    """A classifier as the candidate begins with it.

    Word embeddings are half of all weights, and a few thousand messages teach them little, so they
    stay as they are.
    """
    model = load_classifier(start, labels)
    if candidate.head == "new":
        new_head(model)
    else:
        without_dropout(model, only_attention=True)
    model.get_input_embeddings().weight.requires_grad = False
    return model


def token_rows(dataset: Dataset, source: str) -> tuple[TokenRows, list[str]]:
    """The `train` split as an encoder reads it, and its keys."""
    tokenizer = TextTokenizer.from_file(Path(source) / TOKENIZER, max_tokens(source))
    texts, labels = dataset.labelled("train")
    keys = [row.key for row in dataset.read("train")]
    return TokenRows(tokenizer.encode(texts), {"labels": np.array(labels)}), keys


def _probed(
    encoder: str, dataset_path: str, folder: str, config: FinetuneConfig, seed: int, board: Any
) -> dict[str, float]:
    """Writes `race` and `start`, classifiers whose heads are probes on the fitted and on all rows.

    Returns: how good the first is on the held-out rows, and what a step of a fit takes.
    """
    set_threads()
    seed_everything(seed)
    dataset = load_dataset(Path(dataset_path))
    rows, keys = token_rows(dataset, encoder)
    labels = rows.columns["labels"]
    model = load_classifier(encoder, dataset.labels)
    board.put.remote(0, 3, "features")
    features = features_of(model, rows.ids)
    fitted, held = holdout(keys)
    activation = parts_of(model, 1).pooled_activation
    found: dict[str, float] = {}
    for name, which in (("race", fitted), (_START, list(range(len(keys))))):
        board.put.remote(1 if name == "race" else 2, 3, "probe")
        made = probe.fit(features[which], labels[which], len(dataset.labels), activation)
        made.put_into(model)
        model.save_pretrained(Path(folder) / name)
        save_tokenizer(encoder, Path(folder) / name)
        if name == "race":
            found = judged(made.logits(features[held]), labels[held])
    step_s = 0.0
    if config.minutes is not None:
        step_s = _step_s(str(Path(folder) / _START), dataset.labels, rows, config, seed)
    return {**found, "rows": float(len(held)), "step_s": step_s,
            "peak_memory_mb": peak_memory_mb()}  # fmt: skip


def _step_s(
    start: str, labels: Sequence[str], rows: TokenRows, config: FinetuneConfig, seed: int
) -> float:
    """Seconds of a step, on all CPUs: the median of a few."""
    candidate = config.candidates[0]
    model = made_ready(start, labels, candidate)
    took: list[float] = []
    last = time.monotonic()

    def watch(step: int) -> None:
        nonlocal last
        took.append(time.monotonic() - last)
        last = time.monotonic()

    steps = Fit(epochs=1.0, learning_rate=0.0, batch_size=candidate.batch_size)
    few = replace(steps, epochs=_TIMED_STEPS / steps.steps_of_epoch(len(rows)))
    loss = label_loss(model, candidate.smoothing)
    train(model, rows, few, loss, stage=Stage(NoBoard(), _NEVER_S), seed=seed,
          pad=model.config.pad_token_id, watch=watch)  # fmt: skip
    return float(np.median(took))


def _trial(
    given: dict[str, Any], *, start: str, dataset_path: str, config: FinetuneConfig, seed: int,
    board: Any,
) -> None:  # fmt: skip
    """One candidate's short fit, or its first share; judged at the end. Runs on a Ray worker."""
    from ray.tune import report

    begun, point = time.monotonic(), given["point"]
    give_back_memory()  # of the trial before, whose model refers to itself
    set_threads()
    seed_everything(seed)
    candidate = config.candidates[point["candidate"]]
    dataset = load_dataset(Path(dataset_path))
    rows, keys = token_rows(dataset, start)
    fitted, held = holdout(keys)
    model = made_ready(start, dataset.labels, candidate)
    pad = model.config.pad_token_id
    part = rows.only(fitted)
    board.put.remote(point["done"], point["of"], f"race: {candidate.name}")
    loss = label_loss(model, candidate.smoothing)
    train(model, part, config.race(candidate, len(part)), loss,
          stage=Stage(NoBoard(), _NEVER_S), seed=seed, pad=pad, share=point["share"])  # fmt: skip
    logits = predict(model, [rows.ids[i] for i in held], pad, lambda output: output.logits)
    report({**judged(logits, rows.columns["labels"][held]), "share": point["share"],
            "seconds": time.monotonic() - begun, "peak_memory_mb": peak_memory_mb()})  # fmt: skip


# ---- on the driver ------------------------------------------------------------------------------


def run(
    config: FinetuneConfig,
    dataset: Dataset,
    encoder: Path,
    out: Path,
    *,
    settings: Settings,
    compute: Compute,
    report: Report = silent,
) -> Recipe:
    """Makes the first head, and races for the rate; `out/start` is where the fit begins.

    Raises:
        ConfigError: the budget of minutes is too short for one fit.
        TrainingError: every trial failed.
    """
    import ray

    cpus, gpus = fit_resources(compute)
    with new_folder(out) as folder, relayed(report) as board:
        task: Any = ray.remote(num_cpus=cpus, num_gpus=gpus)(_probed)
        first: dict[str, float] = ray.get(
            task.remote(str(encoder), str(dataset.path), str(folder), config, settings.seed, board)
        )
        tried: tuple[Tried, ...] = (
            Tried(name="probe alone", share=0.0, accuracy=first["accuracy"],
                  log_loss=first["log_loss"], seconds=0.0),
        )  # fmt: skip
        left_s = budget_s(config, dataset.rows["train"], first["step_s"])
        peak = 0.0
        if config.learning_rate is None and left_s > 0:
            found, peak = _race(config, dataset, folder / "race", left_s, gpus, settings, board)
            tried += found
        shutil.rmtree(folder / "race")
        figures = {
            "probe_accuracy": first["accuracy"],
            "probe_log_loss": first["log_loss"],
            "validation_rows": first["rows"],
            "peak_memory_mb": max(peak, first["peak_memory_mb"]),
        }
        rows = int(first["rows"])
        recipe = Recipe(_chosen(config, tried[1:], rows), tried, rows, out / _START, figures)
        write_json(folder / RECIPE, recipe.summary())
    log_stage(
        settings, "recipe",
        params={"chosen": recipe.chosen.name, "budget_minutes": config.minutes},
        metrics=figures, files=[out / RECIPE], tags={"dataset": dataset.fingerprint},
    )  # fmt: skip
    return recipe


def budget_s(config: FinetuneConfig, rows: int, step_s: float) -> float:
    """Seconds that are left for the race once the fit has its share; infinite without a budget.

    Raises:
        ConfigError: not even the fit fits in.
    """
    if config.minutes is None:
        return float("inf")
    candidate = config.candidates[0]
    fit_s = candidate.fits * config.fit(candidate, rows).steps(rows) * step_s
    if fit_s > config.minutes * 60:
        raise ConfigError(
            f"A budget of {config.minutes:g} minutes is too short: a whole fit on {rows:,} rows "
            f"takes about {fit_s / 60:.1f} minutes here. Give --minutes {ceil(fit_s / 60) + 1} or "
            "more, or fewer --epochs."
        )
    return config.minutes * 60 - fit_s


def _chosen(config: FinetuneConfig, tried: Sequence[Tried], rows: int) -> Candidate:
    if config.learning_rate is not None:
        return Candidate(learning_rate=config.learning_rate, batch_size=config.batch_size)
    if not tried:  # the budget had no room for a race
        return config.candidates[0]
    name = best_of(tried, rows, config.candidates[0].name).name
    return next(one for one in config.candidates if one.name == name)


def _race(
    config: FinetuneConfig,
    dataset: Dataset,
    start: Path,
    left_s: float,
    gpus: int,
    settings: Settings,
    board: Any,
) -> tuple[tuple[Tried, ...], float]:
    """Every candidate's last word, in their order, and the peak memory of a trial in MB.

    A candidate that did not come to the end of its first share in time is not among them.

    Raises:
        TrainingError: a trial failed.
    """
    trial = partial(_trial, start=str(start), dataset_path=str(dataset.path), config=config,
                    seed=settings.seed, board=board)  # fmt: skip
    found: dict[int, dict[str, float]] = {}
    for point, figures in _run_trials(trial, len(config.candidates), left_s, gpus, settings):
        if point["share"] > found.get(point["candidate"], {"share": 0.0})["share"]:
            found[point["candidate"]] = figures
    tried = tuple(
        Tried(
            name=config.candidates[number].name,
            **{key: float(found[number][key]) for key in ("share", "accuracy", "log_loss",
                                                          "seconds")},
        )
        for number in sorted(found)
    )  # fmt: skip
    return tried, max((one["peak_memory_mb"] for one in found.values()), default=0.0)


def _run_trials(
    trial: Callable[[dict[str, Any]], None],
    candidates: int,
    left_s: float,
    gpus: int,
    settings: Settings,
) -> list[tuple[dict[str, Any], dict[str, float]]]:
    """What was to be tried and the figures of it, of each trial that ended in time."""
    from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner, with_resources

    from train_jobs.rungs import Rungs

    storage, name = settings.home / "ray", f"recipe-{uuid.uuid4().hex[:8]}"
    rungs = Rungs(candidates, max(_LEAST_KEPT, ceil(candidates / _KEPT)), _FIRST_SHARE)
    try:
        with _quiet():
            results = Tuner(
                with_resources(trial, {"cpu": 1, "gpu": gpus}),
                tune_config=TuneConfig(
                    search_alg=rungs,
                    num_samples=-1,
                    time_budget_s=None if left_s == float("inf") else left_s,
                    reuse_actors=True,
                    trial_dirname_creator=_folder_name,
                ),
                run_config=RunConfig(
                    name=name,
                    storage_path=str(storage),
                    verbose=0,
                    failure_config=FailureConfig(max_failures=_RETRIES),
                ),
            ).fit()
    finally:
        shutil.rmtree(storage / name, ignore_errors=True)
    if results.num_errors:
        raise TrainingError(f"A trial of the race for a recipe failed: {results.errors[0]}")
    every = [results[i] for i in range(len(results))]
    return [
        (one.config["point"], dict(one.metrics))
        for one in every
        if one.config and one.metrics and "accuracy" in one.metrics
    ]


def _folder_name(trial: Any) -> str:
    return f"trial-{trial.trial_id}"


@contextmanager
def _quiet() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _TUNE_ENV}
    os.environ.update(_TUNE_ENV)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
