"""One build of the pipeline, measured: its cloud model and the edge model made for it.

    python -c "$(cat tests/bench/teacher_build.py)" '{"data": "train.csv", ...}'

`make bench-teacher` calls these functions for our own build. For an earlier one it gives this very
text to an interpreter that stands in that build's tree, so the same lines measure both. Only names
that both builds have may be used here.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import train_jobs
from cluster.bundles import ModelBundle
from cluster.connect import connected
from cluster.settings import Settings, load_settings
from train_jobs.data import Dataset, build
from train_jobs.pipeline import PipelineConfig, cloud_of, configure, edge_of

try:
    from serve_app.model.classifier import OnnxClassifier
except ImportError:  # a build from before there were packages
    from serve_app.classifier import OnnxClassifier  # type: ignore[import-not-found,no-redef]

CLOUD: Final = "cloud"  # the folder of the trained model below a build's
_PEAK: Final = "peak_memory_mb"
_NOT_TRAINING: Final = frozenset({"data", "compress", "calibrate", "gate"})


def config_of(how: Mapping[str, str | None]) -> PipelineConfig:
    """The pipeline's configuration of what was asked: files, columns and base, as words."""
    return configure(
        data=Path(str(how["data"])),
        text_column=str(how["text"]),
        label_column=str(how["label"]),
        test=Path(how["test"]) if how["test"] else None,
        base=str(how["base"]),
    )


def training_s(stages_s: Mapping[str, float]) -> float:
    """Seconds of the stages that train, whatever they are called."""
    return sum(spent for name, spent in stages_s.items() if name not in _NOT_TRAINING)


def peak(*stages: Mapping[str, float]) -> dict[str, float]:
    """The largest memory of a training worker that any stage reports, or nothing."""
    found = [figures[_PEAK] for figures in stages if _PEAK in figures]
    return {_PEAK: max(found)} if found else {}


def accuracy_of(bundle: ModelBundle, dataset: Dataset) -> float:
    """Accuracy on `test` of a bundle as it is shipped."""
    texts, numbers = dataset.labelled("test")
    answers = OnnxClassifier.of(bundle).predict(texts)
    pairs = zip(answers, numbers, strict=True)
    return sum(answer.label == dataset.labels[number] for answer, number in pairs) / len(texts)


def cloud(
    config: PipelineConfig, dataset: Dataset, out: Path, settings: Settings
) -> dict[str, float]:
    """Trains a cloud model under `out`."""
    stages_s: dict[str, float] = {}
    with connected(settings):
        adapted, side = cloud_of(config, dataset, out, settings, stages_s)
    return {
        "accuracy": accuracy_of(side.bundle, dataset),
        "training_s": training_s(stages_s),
        **peak(adapted.figures, side.trained.figures),
        **{f"{name}_s": spent for name, spent in stages_s.items()},
    }


def edge(
    config: PipelineConfig, dataset: Dataset, out: Path, settings: Settings
) -> dict[str, float]:
    """Trains an edge model for the cloud model under `out`."""
    stages_s: dict[str, float] = {}
    with connected(settings):
        side = edge_of(config, dataset, out / CLOUD, out / "student", settings, stages_s)
    return {
        "accuracy": accuracy_of(side.bundle, dataset),
        "training_s": training_s(stages_s),
        **peak(side.trained.figures),
        **{f"{name}_s": spent for name, spent in stages_s.items()},
    }


def whole(given: Mapping[str, Any]) -> dict[str, float]:
    """The build in whose tree this runs, on data that must fall into the same splits as ours."""
    home = Path(train_jobs.__file__).resolve().parents[1]
    if home != Path.cwd():
        raise SystemExit(f"The build in {Path.cwd()} was to be measured; {home} was imported.")
    settings = load_settings().model_copy(update={"seed": given["seed"]})
    config = config_of(given["how"])
    dataset = build(config.data, settings)
    if dataset.fingerprint != given["fingerprint"]:
        raise SystemExit(
            f"{home} makes the dataset {dataset.fingerprint} of {config.data.data}; "
            f"{given['fingerprint']} was expected. Builds can be compared on one split only: give "
            "a --before that splits alike, or leave it out with --without-before."
        )
    out = Path(given["out"])
    large = cloud(config, dataset, out, settings)
    small = edge(config, dataset, out, settings)
    return {
        **small,
        **large,
        "edge_accuracy": small["accuracy"],
        "training_s": large["training_s"] + small["training_s"],
    }


if __name__ == "__main__":
    print(json.dumps(whole(json.loads(sys.argv[1]))))
