"""Stage 3: an encoder and the `train` split -> where fine-tuning starts, and at which rate.

A rate that was chosen on one data set does not carry over to another. So a linear probe of the
encoder makes the first head (train_jobs/training/probe.py), and a few candidates, plain recipes
among them, race against each other in short fits on the user's own rows: successive halving
(Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization") on Ray Tune, its rungs in step, so that the same rows and seed make the same choice.
They are judged on a tenth of `train`, held out by content hash: by accuracy, and of those within
one standard error of the best by calibrated log-loss. The fit that follows learns from that tenth
too.
"""

import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cluster.errors import ConfigError, TrainingError
from cluster.files import new_folder, read_json, write_json
from cluster.progress import Report, relayed, silent
from cluster.ray_private.environment import tuning
from cluster.settings import Settings
from cluster.tracking import log_stage
from serve_app.model.classifier import softmax
from train_jobs.calibrate import fit_temperature
from train_jobs.data import Dataset, load_dataset
from train_jobs.training import probe
from train_jobs.training.candidates import (
    Candidate,
    FinetuneConfig,
    Tried,
    best_of,
    label_loss,
    made_ready,
    token_rows,
)
from train_jobs.training.checkpoints import NoBoard, Stage
from train_jobs.training.encoders import load_classifier, parts_of, save_tokenizer
from train_jobs.training.on_ray import WORKER_ENV, Compute, fit_resources
from train_jobs.training.trainer import (
    Fit,
    TokenRows,
    features_of,
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


# ---- on the workers -----------------------------------------------------------------------------


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
        task: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, runtime_env={"env_vars": WORKER_ENV})(
            _probed
        )
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

    from train_jobs.training.rungs import Rungs

    storage, name = settings.home / "ray", f"recipe-{uuid.uuid4().hex[:8]}"
    rungs = Rungs(candidates, max(_LEAST_KEPT, ceil(candidates / _KEPT)), _FIRST_SHARE)
    try:
        with tuning():
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
