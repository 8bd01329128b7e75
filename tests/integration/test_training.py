"""The whole training path on a real local Ray, with an encoder small enough for a test."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from safetensors.torch import load_file

from cluster.bundles import load_bundle
from cluster.connect import connected
from cluster.errors import TrainingError
from cluster.files import read_json
from cluster.progress import silent
from cluster.registry import fetch_bundle
from cluster.settings import Settings, load_settings
from cluster.tracking import EXPERIMENT, client
from serve_app.model.classifier import OnnxClassifier
from serve_app.model.cpu import has_all
from tests.support.encoders import make_tiny_bert
from train_jobs import dapt, distill, finetune, recipe
from train_jobs.compress import PARITY, Variant
from train_jobs.data import Dataset, build, load_dataset
from train_jobs.gate import GateLimits
from train_jobs.pipeline import RUN, PipelineConfig, PipelineResult, configure, run
from train_jobs.samples.generator import write_csv
from train_jobs.student.quantize import RECIPES
from train_jobs.training.candidates import Candidate, FinetuneConfig
from train_jobs.training.checkpoints import HISTORY
from train_jobs.training.on_ray import Compute, Loop, Trained, fit_on_ray

# Five Ray stages stand behind the first test.
pytestmark = pytest.mark.timeout(600)

ROWS = 1200
# A random encoder of this size wants a higher rate than a pre-trained one.
RATES = (
    Candidate(learning_rate=5e-4, batch_size=16),
    Candidate(learning_rate=0.5, batch_size=16),
    Candidate(learning_rate=2e-3, batch_size=16, head="new"),
)
# A random encoder of this size learns less than words alone tell.
WIDE = GateLimits(
    min_accuracy_kept=0.5, max_calibration_error=0.5, max_size_ratio=2.0, max_latency_ratio=10.0,
    min_gain_over_words=-1, min_gain_over_largest_class=-1, max_edge_gain=1,
    max_classes_never_found=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A home of its own, and a local Ray that is always shut down."""
    found = load_settings(tmp_path_factory.mktemp("training") / "home")
    with connected(found, num_cpus=2):
        yield found
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    folder = tmp_path_factory.mktemp("input")
    write_csv(folder / "messages.csv", ROWS, seed=1)
    given = configure(
        data=folder / "messages.csv", base=str(make_tiny_bert(folder / "encoder")),
        epochs=8, dapt_epochs=2, student_layers=2,
    )  # fmt: skip
    # A random encoder of this size wants a higher rate, and more steps, than a pre-trained one.
    return replace(
        given,
        dapt=replace(given.dapt, learning_rate=1e-3),
        finetune=replace(given.finetune, candidates=RATES, batch_size=16),
        distill=replace(given.distill, learning_rate=2e-3, batch_size=16),
        compress=replace(given.compress, min_agreement=0.7),  # it is unsure of its answers
        limits=WIDE,
    )


@pytest.fixture(scope="module")
def result(settings: Settings, config: PipelineConfig) -> PipelineResult:
    return run(config, settings)


def test_both_bundles_load_and_reproduce_their_golden_rows(result: PipelineResult) -> None:
    for bundle in (result.edge, result.cloud):
        again = OnnxClassifier.load(bundle.path, bundle.sha256)
        assert len(bundle.golden()) == 8
        again.check_golden(bundle.golden())
        assert again.labels == ("negative", "neutral", "positive")
        assert bundle.manifest.max_tokens == 128


def test_the_fingerprint_of_the_data_travels(result: PipelineResult) -> None:
    for bundle in (result.edge, result.cloud):
        assert bundle.manifest.dataset.fingerprint == result.dataset.fingerprint
        assert bundle.manifest.dataset.rows == dict(result.dataset.rows)
        assert bundle.manifest.metrics["calibration_error"].split == "tune"
        assert bundle.manifest.metrics["accuracy"].rows == result.dataset.rows["tune"]


def test_a_model_learns_something(result: PipelineResult) -> None:
    """From a random encoder and 700 messages, more than the third that guessing gives."""
    assert result.cloud.manifest.metrics["accuracy"].value > 0.45
    assert result.edge.manifest.metrics["accuracy"].value > 0.45
    assert result.edge.size_bytes < result.cloud.size_bytes


def test_the_recipe_that_learns_wins_the_race(result: PipelineResult, settings: Settings) -> None:
    """A rate that destroys is left behind; what was tried stands in bundle and card."""
    found = recipe.load(result.cloud.path.parent / "recipe")
    assert found.chosen == RATES[0]
    assert {one.name for one in found.tried} == {"probe alone", *(one.name for one in RATES)}
    assert all(0 < one.share <= 1 for one in found.tried[1:])
    assert result.cloud.manifest.recipe["recipe"]["chosen"]["learning_rate"] == 5e-4
    said = (result.cloud.path / "MODEL_CARD.md").read_text()
    assert all(one.name in said for one in found.tried)


def test_adapting_to_the_domain_lowers_perplexity(result: PipelineResult) -> None:
    figures = result.figures["dapt"]
    assert figures["new_head"] == 0.0
    assert figures["judged_rows"] == result.dataset.rows["tune"]
    assert 1 < figures["perplexity_after"] < figures["perplexity_before"]


@pytest.mark.parametrize(
    ("role", "names"),
    [("edge", {"fp32", *(r.name for r in RECIPES if has_all(r.needs))}), ("cloud", {"fp32"})],
)
def test_the_parity_report_has_every_variant_and_none_minds_its_company(
    result: PipelineResult, role: str, names: set[str]
) -> None:
    bundle = result.edge if role == "edge" else result.cloud
    report = read_json(bundle.path / PARITY)
    variants = [Variant.model_validate(item) for item in report["variants"]]
    assert {variant.name for variant in variants} == names
    assert report["best"] in names
    for variant in variants:
        assert variant.company_changes == 0
        assert variant.rows == result.dataset.rows["calibration"]
        assert 0 < variant.p50_ms <= variant.p95_ms
    fp32 = next(variant for variant in variants if variant.name == "fp32")
    assert (fp32.label_flips_share, fp32.logit_error_mean) == (0.0, 0.0)
    assert all(variant.size_bytes <= fp32.size_bytes for variant in variants)


def test_the_pair_is_registered_and_can_be_taken_up(
    result: PipelineResult, settings: Settings
) -> None:
    assert load_bundle(fetch_bundle(settings, "edge"), result.edge.sha256)
    assert load_bundle(fetch_bundle(settings, "cloud"), result.cloud.sha256)
    last = read_json(settings.home / RUN)
    assert last["edge"]["sha256"] == result.edge.sha256
    assert load_dataset(Path(last["dataset"])) == result.dataset
    stages = {"data", "dapt", "recipe", "finetune", "distill", "compress", "calibrate", "gate"}
    assert set(last["stages_s"]) == stages


@pytest.mark.parametrize(
    ("stage", "param", "metric", "picture"),
    [
        ("dapt", "masked_share", "perplexity_after", "dapt-curves.png"),
        ("recipe", "chosen", "probe_accuracy", "recipe.json"),
        ("finetune", "min_steps", "validation_accuracy", "finetune-curves.png"),
        ("distill", "temperature", "teacher_agreement", "distill-curves.png"),
        ("compress", "best", "p50_ms", "parity.png"),
        ("calibrate-edge", "temperature", "ece_after", "reliability.png"),
        ("calibrate-cloud", "temperature", "ece_before", "reliability.png"),
    ],
)
def test_every_stage_is_in_mlflow(
    result: PipelineResult,
    settings: Settings,
    stage: str,
    param: str,
    metric: str,
    picture: str,
) -> None:
    mlflow = client(settings)
    experiment = mlflow.get_experiment_by_name(EXPERIMENT).experiment_id
    found = mlflow.search_runs([experiment], f"tags.stage = '{stage}'")
    assert len(found) == (2 if stage == "compress" else 1)
    for item in found:
        assert item.info.status == "FINISHED"
        assert param in item.data.params
        assert metric in item.data.metrics
        assert item.data.tags["dataset"] == result.dataset.fingerprint
        files = {artifact.path for artifact in mlflow.list_artifacts(item.info.run_id)}
        assert picture in files
    if stage in {"dapt", "finetune", "distill"}:
        curve = mlflow.get_metric_history(found[0].info.run_id, "loss")
        assert len({point.step for point in curve}) >= 2


def test_nothing_is_left_of_the_workers(result: PipelineResult, settings: Settings) -> None:
    """Ray Train's own checkpoints are taken over, not kept twice; scratch folders are gone."""
    assert list((settings.home / "ray").iterdir()) == []
    assert not [path for path in settings.home.rglob(".*") if path.is_dir()]


def test_a_given_rate_is_not_raced_for_and_starts_from_the_same_head(
    settings: Settings, config: PipelineConfig, result: PipelineResult, tmp_path: Path
) -> None:
    """The same rows and seed make the same probe, to the last bit."""
    made = result.cloud.path.parent
    given = replace(config.finetune, learning_rate=1e-3)
    found = recipe.run(
        given, result.dataset, made / "dapt", tmp_path / "recipe", settings=settings,
        compute=Compute(),
    )  # fmt: skip
    assert [one.name for one in found.tried] == ["probe alone"]
    assert found.chosen.learning_rate == given.learning_rate
    _assert_equal(_weights(found.start), _weights(made / "recipe" / "start"))


def test_fine_tuning_moves_every_layer(result: PipelineResult) -> None:
    made = result.cloud.path.parent
    before, after = _weights(made / "recipe" / "start"), _weights(made / "cloud")
    for layer in range(4):
        name = f"bert.encoder.layer.{layer}.output.dense.weight"
        assert not torch.equal(before[name], after[name])


# ---- workers die --------------------------------------------------------------------------------


@contextmanager
def _one_worker_killed(settings: Settings) -> Iterator[None]:
    """SIGKILL to one of our workers as soon as a checkpoint of theirs is registered."""
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.01):
            if list((settings.home / "ray").glob("*/checkpoint_manager_snapshot.json")):
                ours = psutil.Process().children(recursive=True)
                workers = [p for p in ours if "RayTrainWorker" in " ".join(p.cmdline())]
                killed.append(workers[-1].pid)
                workers[-1].kill()
                return

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert killed, "no checkpoint was registered"


def _history(folder: Path) -> list[dict[str, float]]:
    """What a stage logged, without the times, which are another run's."""
    rows: list[dict[str, float]] = read_json(folder / HISTORY)["history"]
    return [
        {name: value for name, value in row.items() if not name.endswith(("time", "per_second"))}
        for row in rows
    ]


def _run_stage(
    stage: str,
    config: PipelineConfig,
    dataset: Dataset,
    made: Path,
    out: Path,
    settings: Settings,
    compute: Compute,
) -> Trained:
    """One stage of the pipeline on what its earlier stages have made."""
    common: dict[str, Any] = {"settings": settings, "compute": compute}
    if stage == "dapt":
        return dapt.run(config.dapt, dataset, out, **common)
    if stage == "finetune":
        found = recipe.load(made / "recipe")
        return finetune.run(config.finetune, found, dataset, out, **common)
    return distill.run(config.distill, dataset, made / "cloud", out, **common)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def _assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def _assert_same(ours: Path, theirs: Path) -> None:
    """The same weights to the last bit, and the same figures on the way to them."""
    assert _history(ours) == _history(theirs)
    _assert_equal(_weights(ours), _weights(theirs))


@pytest.mark.parametrize(
    ("stage", "folder"),
    [
        ("dapt", "dapt"),
        ("finetune", "cloud"),
        pytest.param("distill", "edge", marks=pytest.mark.long),
    ],
)
def test_a_stage_whose_worker_is_killed_ends_as_if_nothing_had_happened(
    stage: str,
    folder: str,
    settings: Settings,
    config: PipelineConfig,
    result: PipelineResult,
    tmp_path: Path,
) -> None:
    made, compute = result.cloud.path.parent, Compute(checkpoint_every_s=0)
    with _one_worker_killed(settings):
        ours = _run_stage(stage, config, result.dataset, made, tmp_path / "out", settings, compute)
    figures, theirs = dict(ours.figures), dict(result.figures[stage])
    assert figures.pop("resumed_at_step") > 0
    assert figures.pop("peak_memory_mb") > 0 < theirs.pop("peak_memory_mb")
    assert figures == theirs
    _assert_same(ours.path, made / folder)
    assert not list(ours.path.glob("*.pt")), "the result is the model, not a checkpoint"


@pytest.mark.long
def test_two_workers_one_of_which_is_killed_end_as_if_nothing_had_happened(
    settings: Settings, config: PipelineConfig, result: PipelineResult, tmp_path: Path
) -> None:
    made = result.cloud.path.parent
    compute = Compute(num_workers=2, checkpoint_every_s=0)

    def trained(name: str) -> Trained:
        return _run_stage(
            "finetune", config, result.dataset, made, tmp_path / name, settings, compute
        )

    theirs = trained("undisturbed")
    with _one_worker_killed(settings):
        ours = trained("killed")
    others = ("resumed_at_step", "peak_memory_mb")
    assert {**theirs.figures, **{name: ours.figures[name] for name in others}} == ours.figures
    _assert_same(ours.path, theirs.path)


def _run_loop(loop: Loop, out: Path, settings: Settings, dataset: Dataset, **inputs: str) -> None:
    fit_on_ray(
        loop, "finetune", FinetuneConfig(), dataset, out,
        settings=settings, compute=Compute(max_failures=1), report=silent, **inputs,
    )  # fmt: skip


def test_a_loop_whose_workers_always_die_is_given_up(
    settings: Settings, config: PipelineConfig, tmp_path: Path
) -> None:
    dataset = build(config.data, settings)

    def loop(config: dict[str, Any]) -> None:
        with Path(config["tries"]).open("a") as file:
            file.write("x")
        time.sleep(3)  # a worker that dies while Ray Train still starts it is not replaced
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(TrainingError, match="'finetune' failed"):
        _run_loop(loop, tmp_path / "out", settings, dataset, tries=str(tmp_path / "tries"))
    assert (tmp_path / "tries").read_text() == "xx"
    assert [path.name for path in tmp_path.iterdir()] == ["tries"]
    assert list((settings.home / "ray").iterdir()) == []


def test_what_a_loop_raises_is_not_tried_again(
    settings: Settings, config: PipelineConfig, tmp_path: Path
) -> None:
    dataset = build(config.data, settings)

    def loop(config: dict[str, Any]) -> None:
        with Path(config["tries"]).open("a") as file:
            file.write("x")
        raise ValueError("three classes, and four labels")

    with pytest.raises(TrainingError, match="ValueError: three classes, and four labels"):
        _run_loop(loop, tmp_path / "out", settings, dataset, tries=str(tmp_path / "tries"))
    assert (tmp_path / "tries").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["tries"]


@pytest.mark.long
def test_two_workers_train_as_one_does(
    settings: Settings, config: PipelineConfig, result: PipelineResult
) -> None:
    """The same code on two processes; the gradients are averaged, so the model is another one."""
    twice = run(replace(config, compute=Compute(num_workers=2)), settings)
    ours, theirs = (r.cloud.manifest.metrics["accuracy"].value for r in (twice, result))
    assert ours > 0.45
    assert abs(ours - theirs) < 0.15
