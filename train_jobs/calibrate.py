"""Stage 7: the final ONNX model and the `calibration` split -> a temperature.

Temperature scaling (Guo et al. 2017) on the outputs of the model that is deployed: quantization
moves logits. Calibration error is reported before and after on `tune`, where nothing was fitted.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from cluster.bundles import Metric
from cluster.settings import Settings
from cluster.tracking import log_stage
from serve_app.model.classifier import softmax
from serve_app.model.reliability import Reliability, reliability
from train_jobs.compress import Compressed
from train_jobs.data import Dataset

_LOG_BOUNDS = (-3.0, 3.0)  # temperatures from 0.05 to 20


@dataclass(frozen=True)
class Calibrated:
    """The temperature, and what it did to the expected calibration error."""

    temperature: float
    before: Metric
    after: Metric
    accuracy: Metric
    diagram: Path


def fit_temperature(logits: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """The temperature with the least negative log-likelihood of labels (n,) under logits."""
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        likelihood = softmax(logits, float(np.exp(log_temperature)))[rows, labels]
        return -float(np.log(np.maximum(likelihood, 1e-12)).mean())

    found = minimize_scalar(loss, bounds=_LOG_BOUNDS, method="bounded")
    return float(np.exp(found.x))


def _judge(logits: NDArray[Any], labels: NDArray[np.int64], temperature: float) -> Reliability:
    probabilities = softmax(logits, temperature)
    return reliability(probabilities.max(-1), probabilities.argmax(-1) == labels)


def _draw(before: Reliability, after: Reliability, title: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1)
    for found, name in ((before, "before"), (after, "after")):
        label = f"{name}: calibration error {found.error:.3f}"
        axes.plot(found.confidence, found.accuracy, marker="o", label=label)
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")
    axes.set_title(title)
    axes.legend()
    figure.savefig(path, dpi=120)


def run(
    compressed: Compressed,
    dataset: Dataset,
    role: str,
    *,
    settings: Settings,
    variant: str | None = None,
) -> Calibrated:
    """Fits on `calibration`, judges on `tune`.

    Args:
        variant: the artifact for CPUs without the best one's flags; None is the best one.
    """
    scorer = compressed.open(variant)
    texts, labels = dataset.labelled("calibration")
    temperature = fit_temperature(scorer.logits(texts), np.array(labels))
    judged_texts, judged = dataset.labelled("tune")
    logits, truth = scorer.logits(judged_texts), np.array(judged)
    before, after = _judge(logits, truth, 1.0), _judge(logits, truth, temperature)
    diagram = compressed.path / (f"reliability-{variant}.png" if variant else "reliability.png")
    _draw(before, after, f"{role} on the tune split", diagram)

    def metric(value: float) -> Metric:
        return Metric(value=value, split="tune", rows=len(judged))

    accuracy = float((logits.argmax(-1) == truth).mean())
    stage = f"calibrate-{role}" + ("-anywhere" if variant else "")
    log_stage(
        settings, stage, params={"temperature": temperature},
        metrics={"ece_before": before.error, "ece_after": after.error}, files=[diagram],
        tags={"dataset": dataset.fingerprint},
    )  # fmt: skip
    return Calibrated(
        temperature, metric(before.error), metric(after.error), metric(accuracy), diagram
    )
