"""Stage 7: an edge and a cloud bundle -> refused with a table, or registered.

Judged on `tune`, on which neither model was fitted, nor its variant or temperature chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.bundles import ModelBundle
from cluster.errors import BundleError, ConfigError, GateError
from cluster.registry import register_bundle
from cluster.releases import store_bundle
from cluster.settings import Settings
from serve_app.classifier import OnnxClassifier
from serve_app.cpu import has_all
from train_jobs.compress import Compressed
from train_jobs.data import Dataset

_INVARIANCE_ROWS = 200


class GateLimits(BaseModel):
    """What an edge bundle must reach against its cloud bundle. Shares and ratios."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_accuracy_kept: float = 0.95
    max_calibration_error: float = 0.10
    max_size_ratio: float = 0.15
    max_latency_ratio: float = 0.60
    max_company_changes: int = 0


def read_limits(file: Path) -> GateLimits:
    """Limits that a user states, as JSON; what is left out keeps its default.

    Raises:
        ConfigError: no such file, not JSON, an unknown limit.
    """
    try:
        return GateLimits.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"There is no file {file} with limits for the gate.") from None
    except ValidationError as error:
        known = ", ".join(GateLimits.model_fields)
        raise ConfigError(f"{file} cannot be used: {error}\nKnown limits: {known}.") from None


@dataclass(frozen=True)
class Check:
    """One row of the gate's table."""

    name: str
    found: float
    limit: float
    ok: bool

    def __str__(self) -> str:
        return (
            f"{'ok  ' if self.ok else 'FAIL'} {self.name:<42} {self.found:>9.4f}  "
            f"limit {self.limit:g}"
        )


def _company_changes(model: OnnxClassifier, texts: Sequence[str]) -> int:
    """Messages whose prediction differs in any bit when they are asked with others."""
    together = model.predict(texts)
    return sum(model.predict([text])[0] != seen for text, seen in zip(texts, together, strict=True))


def _golden_ok(bundle: ModelBundle) -> bool:
    """Of the model files that this CPU computes as meant."""
    try:
        for item in bundle.artifacts:
            if has_all(item.needs):
                model = OnnxClassifier.of(bundle, artifact=item.model)
                model.check_golden(bundle.golden(item.model))
    except BundleError:
        return False
    return True


def check(
    edge: ModelBundle,
    cloud: ModelBundle,
    latency_ratio: float,
    dataset: Dataset,
    limits: GateLimits,
) -> list[Check]:
    """Every limit, met or not."""
    texts, labels = dataset.labelled("tune")
    names = np.array([dataset.labels[label] for label in labels])

    def accuracy(bundle: ModelBundle) -> float:
        answers = OnnxClassifier.of(bundle).predict(texts)
        return float((np.array([answer.label for answer in answers]) == names).mean())

    kept = accuracy(edge) / max(accuracy(cloud), 1e-9)
    error = edge.manifest.metrics["calibration_error"].value
    size = edge.size_bytes / cloud.size_bytes
    changes = sum(
        _company_changes(OnnxClassifier.of(bundle), texts[:_INVARIANCE_ROWS])
        for bundle in (edge, cloud)
    )
    golden = sum(not _golden_ok(bundle) for bundle in (edge, cloud))
    return [
        Check("accuracy kept (edge/cloud, tune)", kept, limits.min_accuracy_kept,
              kept >= limits.min_accuracy_kept),
        Check("calibration error (edge, tune)", error, limits.max_calibration_error,
              error <= limits.max_calibration_error),
        Check("size (edge/cloud)", size, limits.max_size_ratio, size <= limits.max_size_ratio),
        Check("latency, one message (edge/cloud)", latency_ratio, limits.max_latency_ratio,
              latency_ratio <= limits.max_latency_ratio),
        Check("answers changed by company", changes, limits.max_company_changes,
              changes <= limits.max_company_changes),
        Check("bundles with wrong golden outputs", golden, 0, golden == 0),
    ]  # fmt: skip


def latency_ratio(edge: Compressed, cloud: Compressed) -> float:
    """p50 of one message, edge over cloud, as the parity reports measured them."""
    return edge.chosen.p50_ms / cloud.chosen.p50_ms


def run(
    edge: ModelBundle,
    cloud: ModelBundle,
    ratio: float,
    dataset: Dataset,
    limits: GateLimits,
    *,
    settings: Settings,
) -> list[Check]:
    """Registers both bundles, or neither.

    Raises:
        GateError: with the table of what was checked.
    """
    checks = check(edge, cloud, ratio, dataset, limits)
    if not all(item.ok for item in checks):
        table = "\n".join(f"  {item}" for item in checks)
        raise GateError(
            f"The gate refused this pair; nothing was registered.\n{table}\n"
            "Train longer, use a larger student (--student-layers), or state other limits "
            "(--limits)."
        )
    for bundle in (cloud, edge):
        register_bundle(settings, store_bundle(settings, bundle))
    return checks
