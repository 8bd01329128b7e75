"""Stages 1 to 8 in a row: a file of labelled messages -> a registered edge and cloud bundle.

    python -m train_jobs.pipeline --data messages.csv --text-column text --label-column label

No logic of its own: each stage is a file beside this one. Results stand under <home>/runs/<id>.
"""

import argparse
import json
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Final

from cluster.bundles import Finished, GoldenRow, ModelBundle, Role, warnings_of, write_bundle
from cluster.connect import connected
from cluster.errors import ConfigError, FirstlineError
from cluster.files import write_json
from cluster.progress import Report, stage
from cluster.settings import Settings, load_settings
from cluster.tracking import check_store
from serve_app.guard.config import BUILT_IN, read_guard
from serve_app.model.classifier import OnnxClassifier
from train_jobs import calibrate, card, compress, dapt, data, distill, finetune, gate, recipe
from train_jobs.compress import CompressConfig
from train_jobs.dapt import DaptConfig
from train_jobs.data import DataConfig
from train_jobs.distill import DistillConfig
from train_jobs.gate import GateLimits, read_limits
from train_jobs.training.candidates import FinetuneConfig
from train_jobs.training.encoders import check_base
from train_jobs.training.on_ray import Compute, Trained
from train_jobs.training.trainer import holdout

_GOLDEN_ROWS: Final = 8
RUN: Final = "run.json"


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """The configuration of every stage; the defaults are one recipe for any data."""

    data: DataConfig
    dapt: DaptConfig = field(default_factory=DaptConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    compress: CompressConfig = field(default_factory=CompressConfig)
    limits: GateLimits = field(default_factory=GateLimits)
    accept: bool = False  # what the gate finds of poor quality, as warnings
    compute: Compute = field(default_factory=Compute)


@dataclass(frozen=True)
class PipelineResult:
    """What came out, and how long each stage took."""

    dataset: data.Dataset
    edge: ModelBundle
    cloud: ModelBundle
    checks: list[gate.Check]
    figures: dict[str, dict[str, float]]
    stages_s: dict[str, float]

    def summary(self) -> dict[str, Any]:
        return {
            "dataset": str(self.dataset.path),
            "rows": dict(self.dataset.rows),
            "notes": dict(self.dataset.notes),
            "edge": {"path": str(self.edge.path), "sha256": self.edge.sha256},
            "cloud": {"path": str(self.cloud.path), "sha256": self.cloud.sha256},
            "gate": [asdict(check) for check in self.checks],
            "warnings": list(warnings_of(self.edge.manifest, self.cloud.manifest)),
            "figures": self.figures,
            "stages_s": self.stages_s,
        }


@contextmanager
def timed(name: str, stages_s: dict[str, float], side: str = "") -> Iterator[Report]:
    """A stage with its progress shown and its seconds added up."""
    start = time.monotonic()
    with stage(f"{name} {side}".strip()) as report:
        yield report
    stages_s[name] = round(stages_s.get(name, 0.0) + time.monotonic() - start, 1)


@dataclass(frozen=True)
class Side:
    """One of a pair: trained, compressed, calibrated, bundled; not yet judged."""

    trained: Trained
    compressed: compress.Compressed
    bundle: ModelBundle


def _golden_texts(dataset: data.Dataset) -> list[str]:
    """A few messages that travel with both bundles: none in which personal data was found."""
    rows = [row.message for row in dataset.read("calibration") if not row.message.pii]
    return [message.text for message in rows[:_GOLDEN_ROWS]]


def _bundle(
    role: Role,
    compressed: compress.Compressed,
    calibrated: calibrate.Calibrated,
    anywhere: calibrate.Calibrated | None,
    dataset: data.Dataset,
    recipe: dict[str, Any],
    target: Path,
) -> ModelBundle:
    def golden(variant: str | None, temperature: float) -> list[GoldenRow]:
        model = OnnxClassifier(compressed.open(variant), dataset.labels, temperature, "unfinished")
        return model.golden_rows(_golden_texts(dataset))

    second = None
    if compressed.choice.anywhere and anywhere:
        second = Finished(
            compressed.model(compressed.choice.anywhere),
            anywhere.temperature,
            golden(compressed.choice.anywhere, anywhere.temperature),
        )
    return write_bundle(
        target,
        role=role,
        model=compressed.model(),
        tokenizer=compressed.tokenizer,
        labels=dataset.labels,
        temperature=calibrated.temperature,
        max_tokens=compressed.max_tokens,
        dataset=dataset.ref,
        metrics={
            "accuracy": calibrated.accuracy,
            "calibration_error": calibrated.after,
            "calibration_error_before": calibrated.before,
        },
        recipe=recipe,
        golden=golden(None, calibrated.temperature),
        needs=compressed.chosen.needs,
        anywhere=second,
        extras=[compressed.path / compress.PARITY, compressed.path / "parity.png",
                calibrated.diagram,
                card.write(role, compressed, calibrated, anywhere, dataset, recipe),
                *([dataset.guard] if dataset.guard else [])],
    )  # fmt: skip


def _side(
    role: Role,
    config: PipelineConfig,
    dataset: data.Dataset,
    trained: Trained,
    recipe: dict[str, Any],
    settings: Settings,
    stages_s: dict[str, float],
) -> Side:
    """Compresses, calibrates and bundles, beside the folder of the trained model."""
    out = trained.path.parent
    with timed("compress", stages_s, role) as report:
        made = compress.run(config.compress, dataset, trained.path, out / f"{role}-onnx",
                            quantized=role == "edge", settings=settings, report=report)  # fmt: skip
    with timed("calibrate", stages_s, role):
        heat = calibrate.run(made, dataset, role, settings=settings)
        second = None
        if made.choice.anywhere:
            second = calibrate.run(
                made, dataset, role, settings=settings, variant=made.choice.anywhere
            )
        recipe = {**recipe, "variant": made.choice.best}
        bundle = _bundle(role, made, heat, second, dataset, recipe, out / f"{role}-bundle")
    return Side(trained, made, bundle)


def cloud_of(
    config: PipelineConfig,
    dataset: data.Dataset,
    out: Path,
    settings: Settings,
    stages_s: dict[str, float],
) -> tuple[Trained, Side]:
    """The adapted encoder and the cloud side, under `out`."""
    common: dict[str, Any] = {"settings": settings, "compute": config.compute}
    with timed("dapt", stages_s) as report:
        adapted = dapt.run(config.dapt, dataset, out / "dapt", report=report, **common)
    with timed("recipe", stages_s) as report:
        found = recipe.run(
            config.finetune, dataset, adapted.path, out / "recipe", report=report, **common
        )
    with timed("finetune", stages_s) as report:
        tuned = finetune.run(
            config.finetune, found, dataset, out / "cloud", report=report, **common
        )
    made = _options(config, "dapt", "finetune") | {"recipe": found.summary()}
    return adapted, _side("cloud", config, dataset, tuned, made, settings, stages_s)


def edge_of(
    config: PipelineConfig,
    dataset: data.Dataset,
    teacher: Path,
    out: Path,
    settings: Settings,
    stages_s: dict[str, float],
) -> Side:
    """The edge side for a given cloud model: a student of its own, under `out`."""
    with timed("distill", stages_s) as report:
        student = distill.run(config.distill, dataset, teacher, out / "edge", settings=settings,
                              compute=config.compute, report=report)  # fmt: skip
    made = _options(config, "dapt", "distill")
    return _side("edge", config, dataset, student, made, settings, stages_s)


def _options(config: PipelineConfig, *stages: str) -> dict[str, Any]:
    return {name: asdict(getattr(config, name)) for name in stages}


def run(config: PipelineConfig, settings: Settings) -> PipelineResult:
    """Runs every stage; registers the pair, or nothing. What can be refused is, before Ray starts.

    Raises:
        FirstlineError: any stage's refusal.
    """
    check_store(settings)  # away, it would be found out after the first stage
    source = check_base(config.dapt.base)
    distill.check_shape(config.distill, source)
    stages_s: dict[str, float] = {}
    with timed("data", stages_s) as report:
        dataset = data.build(config.data, settings, report)
        holdout([row.key for row in dataset.read("train")])
        distill.check_vocabulary(config.distill, source, dataset)
    with connected(settings):
        return _trained(config, dataset, stages_s, settings)


def _trained(
    config: PipelineConfig,
    dataset: data.Dataset,
    stages_s: dict[str, float],
    settings: Settings,
) -> PipelineResult:
    out = settings.home / "runs" / uuid.uuid4().hex[:8]
    adapted, cloud = cloud_of(config, dataset, out, settings, stages_s)
    edge = edge_of(config, dataset, cloud.trained.path, out, settings, stages_s)
    with timed("gate", stages_s):
        ratio = gate.latency_ratio(edge.compressed, cloud.compressed)
        passed = gate.run(
            edge.bundle, cloud.bundle, ratio, dataset, config.limits,
            settings=settings, accept=config.accept,
        )  # fmt: skip
    figures = {"dapt": adapted, "finetune": cloud.trained, "distill": edge.trained}
    result = PipelineResult(
        dataset, passed.edge, passed.cloud, passed.checks,
        {name: dict(made.figures) for name, made in figures.items()}, stages_s,
    )  # fmt: skip
    write_json(out / RUN, result.summary())
    # What `firstline tune` takes up: the newest pair, its dataset and its times.
    write_json(settings.home / RUN, result.summary())
    return result


def parse(arguments: list[str] | None = None) -> PipelineConfig:
    """Command-line words -> the configuration."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--test", type=Path)
    parser.add_argument("--unlabelled", type=Path, nargs="*", default=[])
    parser.add_argument("--base", default="minilm", help="hub id, local folder, or minilm")
    parser.add_argument("--epochs", type=float, help="of fine-tuning and distillation, at most")
    parser.add_argument("--dapt-epochs", type=float)
    parser.add_argument("--minutes", type=float, help="of recipe and fine-tuning, at most")
    parser.add_argument("--student-layers", type=int)
    parser.add_argument("--certify-share", type=float, help="of the rows not in the test split")
    parser.add_argument("--limits", type=Path, help="JSON of the gate's limits")
    parser.add_argument("--accept", action="store_true", help="a poor pair, with warnings")
    parser.add_argument("--guard", type=Path, help="guard.json of the site")
    parser.add_argument("--num-workers", type=int, default=1)
    given = parser.parse_args(arguments)
    return configure(**vars(given))


def configure(
    *,
    data: Path,
    text_column: str = "text",
    label_column: str = "label",
    test: Path | None = None,
    unlabelled: list[Path] | None = None,
    base: str = "minilm",
    epochs: float | None = None,
    dapt_epochs: float | None = None,
    minutes: float | None = None,
    student_layers: int | None = None,
    certify_share: float | None = None,
    limits: Path | None = None,
    accept: bool = False,
    num_workers: int = 1,
    guard: Path | None = None,
) -> PipelineConfig:
    """The few options that users set -> the configuration; None leaves a default."""
    if num_workers < 1:
        raise ConfigError(f"--num-workers is {num_workers}; one at least is needed.")
    for name, value in (
        ("--epochs", epochs), ("--dapt-epochs", dapt_epochs), ("--minutes", minutes)
    ):  # fmt: skip
        if value is not None and not 0 < value < inf:
            raise ConfigError(f"{name} is {value}; a number above zero is needed, such as 3.")
    if certify_share is not None and not 0 < certify_share <= 0.5:
        raise ConfigError(f"--certify-share is {certify_share}; between 0 and 0.5 is needed.")

    def given(**options: Any) -> dict[str, Any]:
        return {name: value for name, value in options.items() if value is not None}

    return PipelineConfig(
        data=DataConfig(
            data=data,
            text_column=text_column,
            label_column=label_column,
            test=test,
            unlabelled=tuple(unlabelled or ()),
            guard=read_guard(guard) if guard else BUILT_IN,
            **given(certify_share=certify_share),
        ),
        dapt=DaptConfig(base=base, **given(epochs=dapt_epochs)),
        finetune=FinetuneConfig(**given(epochs=epochs, minutes=minutes)),
        distill=DistillConfig(**given(epochs=epochs, layers=student_layers)),
        limits=read_limits(limits) if limits else GateLimits(),
        accept=accept,
        compute=Compute(num_workers=num_workers),
    )


def main() -> None:
    try:
        settings = load_settings()
        result = run(parse(), settings)
    except FirstlineError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None
    json.dump(result.summary(), sys.stdout, indent=2)


if __name__ == "__main__":
    main()
