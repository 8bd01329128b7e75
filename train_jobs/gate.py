"""Stage 8: an edge and a cloud bundle -> refused with a table, or registered.

Judged on `tune`, on which neither model was fitted, nor its variant or temperature chosen. A pair
is compared with what costs nothing as well: with words alone (words.py), with one answer for all,
and with each other. A user may accept what these find; it stays with the release as a warning.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.bundles import ModelBundle, with_warnings
from cluster.errors import BundleError, ConfigError, GateError
from cluster.intervals import Z95
from cluster.registry import register_bundle
from cluster.releases import store_bundle
from cluster.settings import Settings
from serve_app.contracts import Prediction
from serve_app.model.classifier import OnnxClassifier
from serve_app.model.cpu import has_all
from train_jobs import words
from train_jobs.card import CARD, warned
from train_jobs.compress import Compressed
from train_jobs.data import Dataset

Ints = NDArray[np.int64]

_INVARIANCE_ROWS: Final = 200
_JUDGED_ROWS: Final = 5  # a class with fewer on `tune` may be missed by chance
_SHOWN_CLASSES: Final = 5


class GateLimits(BaseModel):
    """What a pair must reach: the edge against its cloud, and both against what costs nothing.

    Shares and ratios. The gains must be above their limits, all others may just meet them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_accuracy_kept: float = 0.95
    max_calibration_error: float = 0.10
    max_size_ratio: float = 0.15
    max_latency_ratio: float = 0.60
    max_company_changes: int = 0
    min_gain_over_words: float = 0.0  # cloud, in accuracy
    min_gain_over_largest_class: float = 0.0  # cloud, lower end of the 95% interval
    max_edge_gain: float = 0.0  # edge over cloud, lower end of the 95% interval
    max_classes_never_found: int = 0  # of either model


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
    """One row of the gate's table. `warning` is what is wrong, if a user may accept it."""

    name: str
    found: float
    limit: float
    ok: bool
    warning: str | None = None

    def __str__(self) -> str:
        return (
            f"{'ok  ' if self.ok else 'FAIL'} {self.name:<44} {self.found:>9.4f}  "
            f"limit {self.limit:g}"
        )


@dataclass(frozen=True)
class Passed:
    """What the gate let through: the bundles as they were registered, and every check."""

    checks: list[Check]
    edge: ModelBundle
    cloud: ModelBundle


# ---- quality ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What is right on `tune` and what was answered: label numbers (n,), in step.

    `largest` is the class with the most rows of `train`.
    """

    labels: Sequence[str]
    truth: Ints
    edge: Ints
    cloud: Ints
    words: Ints
    largest: int

    def accuracy(self, answers: Ints | int) -> float:
        return float(np.mean(answers == self.truth))

    def gain(self, ours: Ints, theirs: Ints | int) -> tuple[float, float]:
        """The 95% interval of what `ours` has more of accuracy than `theirs`."""
        right, other = ours == self.truth, theirs == self.truth
        return paired_interval(int((right & ~other).sum()), int((other & ~right).sum()), len(right))

    def never_found(self, answers: Ints) -> dict[str, int]:
        """The classes that were never answered rightly, with their rows; none of a few rows."""
        rows = Counter(self.truth.tolist())
        found = Counter(self.truth[answers == self.truth].tolist())
        return {
            self.labels[i]: rows[i]
            for i in sorted(rows)
            if rows[i] >= _JUDGED_ROWS and not found[i]
        }


def paired_interval(first_only: int, second_only: int, rows: int) -> tuple[float, float]:
    """The 95% interval of the difference of two accuracies on the same rows, within -1 and 1.

    Wald's with a half added to each of the four counts (Agresti and Min 2005, "Simple improved
    confidence intervals for comparing matched proportions", Statistics in Medicine 24).

    Args:
        first_only, second_only: rows that only the first, or only the second, has right.
        rows: all of them.
    """
    total, difference = rows + 2, first_only - second_only
    spread = (first_only + second_only + 1 - difference**2 / total) ** 0.5
    low, high = ((difference + sign * Z95 * spread) / total for sign in (-1, 1))
    return max(-1.0, low), min(1.0, high)


def quality(judged: Judged, limits: GateLimits) -> list[Check]:
    """The pair against words alone, against one answer for all, against each other, by class."""
    return [
        _over_words(judged, limits.min_gain_over_words),
        _over_largest_class(judged, limits.min_gain_over_largest_class),
        _edge_over_cloud(judged, limits.max_edge_gain),
        _classes_found("cloud", judged, judged.cloud, limits.max_classes_never_found),
        _classes_found("edge", judged, judged.edge, limits.max_classes_never_found),
    ]


def _of_quality(name: str, found: float, limit: float, ok: bool, warning: str) -> Check:
    return Check(name, found, limit, ok, None if ok else warning)


def _over_words(judged: Judged, limit: float) -> Check:
    cloud, alone = judged.accuracy(judged.cloud), judged.accuracy(judged.words)
    return _of_quality(
        "accuracy over words alone (cloud, tune)", cloud - alone, limit, cloud - alone > limit,
        f"The cloud model ({cloud:.1%}) is not better than TF-IDF with logistic regression "
        f"({alone:.1%}){_by(limit)} on {len(judged.truth):,} rows of tune.",
    )  # fmt: skip


def _over_largest_class(judged: Judged, limit: float) -> Check:
    low, high = judged.gain(judged.cloud, judged.largest)
    return _of_quality(
        "accuracy over largest class (cloud, 95% low)", low, limit, low > limit,
        f"The cloud model ({judged.accuracy(judged.cloud):.1%}) is not significantly better than "
        f"always answering {judged.labels[judged.largest]!r} "
        f"({judged.accuracy(judged.largest):.1%}){_by(limit)} on {len(judged.truth):,} rows of "
        f"tune ({_points(low, high)}): the labels may not depend on the texts.",
    )  # fmt: skip


def _edge_over_cloud(judged: Judged, limit: float) -> Check:
    low, high = judged.gain(judged.edge, judged.cloud)
    return _of_quality(
        "accuracy over the cloud's (edge, 95% low)", low, limit, low <= limit,
        f"The edge model ({judged.accuracy(judged.edge):.1%}) is significantly better than its "
        f"cloud model ({judged.accuracy(judged.cloud):.1%}){_by(limit)} on "
        f"{len(judged.truth):,} rows of tune ({_points(low, high)}): its teacher was "
        "under-trained.",
    )  # fmt: skip


def _classes_found(role: str, judged: Judged, answers: Ints, limit: int) -> Check:
    missed = judged.never_found(answers)
    named = [f"{label!r} (0 of {rows})" for label, rows in missed.items()]
    left = len(named) - _SHOWN_CLASSES
    return _of_quality(
        f"classes never found ({role}, tune)", len(missed), limit, len(missed) <= limit,
        f"The {role} model never finds {', '.join(named[:_SHOWN_CLASSES])}"
        f"{f' and {left} more' if left > 0 else ''} on {len(judged.truth):,} rows of tune.",
    )  # fmt: skip


def _by(limit: float) -> str:
    return f" by more than {limit:.1%}" if limit else ""


def _points(low: float, high: float) -> str:
    return f"95% interval of the difference {100 * low:+.1f} to {100 * high:+.1f} points"


# ---- the models ---------------------------------------------------------------------------------


def _company_changes(
    model: OnnxClassifier, texts: Sequence[str], together: Sequence[Prediction]
) -> int:
    """Messages whose prediction differs in any bit from that when they were asked with others."""
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
    *,
    seed: int,
) -> list[Check]:
    """Every limit, met or not."""
    texts, truth = dataset.labelled("tune")
    models = [OnnxClassifier.of(bundle) for bundle in (edge, cloud)]
    answers = [model.predict(texts) for model in models]
    judged = _judged(dataset, texts, truth, answers[0], answers[1], seed)
    kept = judged.accuracy(judged.edge) / max(judged.accuracy(judged.cloud), 1e-9)
    error = edge.manifest.metrics["calibration_error"].value
    size = edge.size_bytes / cloud.size_bytes
    changes = sum(
        _company_changes(model, texts[:_INVARIANCE_ROWS], together[:_INVARIANCE_ROWS])
        for model, together in zip(models, answers, strict=True)
    )
    golden = sum(not _golden_ok(bundle) for bundle in (edge, cloud))
    return [
        Check("accuracy kept (edge/cloud, tune)", kept, limits.min_accuracy_kept,
              kept >= limits.min_accuracy_kept),
        *quality(judged, limits),
        Check("calibration error (edge, tune)", error, limits.max_calibration_error,
              error <= limits.max_calibration_error),
        Check("size (edge/cloud)", size, limits.max_size_ratio, size <= limits.max_size_ratio),
        Check("latency, one message (edge/cloud)", latency_ratio, limits.max_latency_ratio,
              latency_ratio <= limits.max_latency_ratio),
        Check("answers changed by company", changes, limits.max_company_changes,
              changes <= limits.max_company_changes),
        Check("bundles with wrong golden outputs", golden, 0, golden == 0),
    ]  # fmt: skip


def _judged(
    dataset: Dataset,
    texts: Sequence[str],
    truth: Sequence[int],
    edge: Sequence[Prediction],
    cloud: Sequence[Prediction],
    seed: int,
) -> Judged:
    index = {label: number for number, label in enumerate(dataset.labels)}
    train_texts, train_labels = dataset.labelled("train")
    counts = Counter(train_labels)

    def numbers(answers: Sequence[Prediction]) -> Ints:
        return np.array([index[answer.label] for answer in answers], np.int64)

    return Judged(
        labels=dataset.labels,
        truth=np.array(truth, np.int64),
        edge=numbers(edge),
        cloud=numbers(cloud),
        words=words.answers(train_texts, train_labels, texts, seed=seed),
        largest=min(counts, key=lambda label: (-counts[label], label)),
    )


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
    accept: bool = False,
) -> Passed:
    """Registers both bundles, or neither.

    Args:
        accept: what fails and can be accepted becomes a warning in both bundles, which are then
            other bundles, beside those given.

    Raises:
        GateError: with the table of what was checked.
    """
    checks = check(edge, cloud, ratio, dataset, limits, seed=settings.seed)
    failed = [item for item in checks if not item.ok]
    if any(item.warning is None or not accept for item in failed):
        raise GateError(_refusal(checks, accept))
    warnings = tuple(item.warning for item in failed if item.warning)
    if warnings:
        edge, cloud = (_with_warnings(bundle, warnings) for bundle in (edge, cloud))
    for bundle in (cloud, edge):
        register_bundle(settings, store_bundle(settings, bundle))
    return Passed(checks, edge, cloud)


def _with_warnings(bundle: ModelBundle, warnings: tuple[str, ...]) -> ModelBundle:
    card = bundle.path / CARD
    said = {CARD: warned(card.read_text(encoding="utf-8"), warnings)} if card.is_file() else {}
    target = bundle.path.with_name(f"{bundle.path.name}-accepted")
    return with_warnings(bundle, target, warnings, texts=said)


def _refusal(checks: Sequence[Check], accept: bool) -> str:
    """The table, what is wrong in words, and what to do about it."""
    failed = [item for item in checks if not item.ok]
    warnings = [item.warning for item in failed if item.warning]
    lines = ["The gate refused this pair; nothing was registered."]
    lines += [f"  {item}" for item in checks]
    lines += warnings
    if len(warnings) < len(failed):
        lines.append(
            "Train longer, use a larger student (--student-layers), or state other limits "
            "(--limits)."
        )
    if warnings:
        lines.append(
            "Give more labelled rows or better labels, or train longer"
            + ("." if accept else "; or take the pair as it is with --accept: each of these "
               "sentences then stays with the release as a warning.")
        )  # fmt: skip
    return "\n".join(lines)
