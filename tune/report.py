"""Tables, front and selection -> report.json, report.html and the pictures.

All figures come from the `test` table, which nothing was fitted, chosen or certified on; the
certificate speaks of its own split. Every rate carries its 95% Wilson interval. The permanent
baselines stand beside the cascade, and `max_probability` too: confidence alone, its threshold set
on `tune` to the same edge share as the certified policy, so that equal costs are compared.
"""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from pydantic import BaseModel, ConfigDict
from scipy import stats

from cluster.files import write_json, write_text
from serve_app.calibration import reliability
from serve_app.cost import Prices
from serve_app.policy import BASELINES, RouterPolicy
from serve_app.scores import MaxProbability
from tune.certify import Certificate
from tune.objective import FrontPoint, Shape, curve, evaluate
from tune.replay import Table
from tune.select import Selection

INTERVAL_CONFIDENCE: Final = 0.95
MAX_PROBABILITY: Final = "max_probability"
_EDGE, _CLOUD, _CERTIFIED, _QUIET = "#0a7d5a", "#3b5bdb", "#d9480f", "#868e96"
_TEMPLATE: Final = "report.html"

Interval: TypeAlias = tuple[float, float]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PerTier(_Frozen):
    """Bytes that have to be shipped to run each tier."""

    edge: int
    cloud: int


class Latency(_Frozen):
    """End to end over HTTP; None if the release was never served."""

    p50: float | None = None
    p95: float | None = None


class Measured(_Frozen):
    """What others measured: the bundles' sizes, the traffic, the stages' times."""

    release: str | None
    size_bytes: PerTier
    latency_ms: Latency = Latency()
    stages_s: dict[str, float]


class Accuracy(_Frozen):
    edge: float
    cloud: float
    cascade: float


class AccuracyIntervals(_Frozen):
    edge: Interval
    cloud: Interval
    cascade: Interval


class Intervals(_Frozen):
    """95% Wilson intervals of the rates of the same name."""

    accuracy: AccuracyIntervals
    edge_share: Interval
    risk: Interval


class Cost(_Frozen):
    """An escalated message pays for both tiers; cloud-only runs no edge."""

    per_message_usd: float
    cloud_only_usd: float
    savings_vs_cloud_only: float


class PolicyFigures(_Frozen):
    """What one rule does to the reported split."""

    accuracy: float
    accuracy_interval: Interval
    edge_share: float
    risk: float
    risk_interval: Interval
    per_message_usd: float
    savings_vs_cloud_only: float


class Report(_Frozen):
    """report.json. `risk` is the observed one on `split`; the guaranteed one is certificate.risk"""

    version: int = 1
    release: str | None
    created_at: str
    split: str
    rows: int
    accuracy: Accuracy
    edge_share: float
    risk: float
    certificate: Certificate
    cost: Cost
    size_bytes: PerTier
    latency_ms: Latency
    stages_s: dict[str, float]
    intervals: Intervals
    baselines: dict[str, PolicyFigures]
    edge_calibration_error: float
    policy: RouterPolicy


def wilson(count: int, of: int) -> Interval:
    """The 95% Wilson score interval of a share."""
    found = stats.binomtest(count, of).proportion_ci(INTERVAL_CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def max_probability(policy: RouterPolicy, tune: Table, prices: Prices) -> RouterPolicy:
    """Confidence alone, at the edge share on `tune` that comes nearest to the policy's."""
    shape = Shape(score=MaxProbability())
    found = curve(shape, tune)
    wanted = evaluate(policy, tune, prices).edge_share
    nearest = int(np.abs(found.edge_share - wanted).argmin())
    return shape.policy(MAX_PROBABILITY, float(found.thresholds[nearest]))


def build_report(
    *,
    tune: Table,
    test: Table,
    selection: Selection,
    prices: Prices,
    measured: Measured,
    created_at: str,
) -> Report:
    """All figures of a release.

    Raises:
        DataError: the test table is empty, or has no true labels.
    """
    test.require_labels()
    policy = selection.policy
    ours = _figures(policy, test, prices)
    known = int(test.known.sum())
    edge, cloud = int(test.edge_right.sum()), int(test.cloud_right.sum())
    said = test.signals["confidence"][test.known]
    rivals = (*BASELINES, max_probability(policy, tune, prices))
    return Report(
        release=measured.release,
        created_at=created_at,
        split=test.split,
        rows=test.rows,
        accuracy=Accuracy(edge=edge / known, cloud=cloud / known, cascade=ours.accuracy),
        edge_share=ours.edge_share,
        risk=ours.risk,
        certificate=selection.certificate,
        cost=Cost(
            per_message_usd=ours.per_message_usd,
            cloud_only_usd=prices.cloud_usd,
            savings_vs_cloud_only=ours.savings_vs_cloud_only,
        ),
        size_bytes=measured.size_bytes,
        latency_ms=measured.latency_ms,
        stages_s=measured.stages_s,
        intervals=Intervals(
            accuracy=AccuracyIntervals(
                edge=wilson(edge, known), cloud=wilson(cloud, known), cascade=ours.accuracy_interval
            ),
            edge_share=wilson(round(ours.edge_share * test.rows), test.rows),
            risk=ours.risk_interval,
        ),
        baselines={rival.name: _figures(rival, test, prices) for rival in rivals},
        edge_calibration_error=reliability(said, test.edge_right[test.known]).error,
        policy=policy,
    )


def _figures(policy: RouterPolicy, table: Table, prices: Prices) -> PolicyFigures:
    outcome = evaluate(policy, table, prices)
    known = int(table.known.sum())
    return PolicyFigures(
        accuracy=outcome.accuracy,
        accuracy_interval=wilson(round(outcome.accuracy * known), known),
        edge_share=outcome.edge_share,
        risk=outcome.risk,
        risk_interval=wilson(round(outcome.risk * table.rows), table.rows),
        per_message_usd=outcome.cost_usd,
        savings_vs_cloud_only=prices.savings(outcome.cost_usd),
    )


def draw(
    folder: Path,
    *,
    tune: Table,
    certify: Table,
    test: Table,
    front: Sequence[FrontPoint],
    selection: Selection,
    prices: Prices,
    report: Report,
) -> dict[str, Path]:
    """Draws all pictures into the folder; returns caption -> file, in the order of the page."""
    pareto = folder / "pareto.png"
    risk = folder / "risk_coverage.png"
    rivals = folder / "baselines.png"
    diagram = folder / "reliability.png"
    draw_pareto(pareto, front, tune, prices, selection.policy)
    _draw_risk(risk, (tune, certify, test), selection)
    _draw_baselines(rivals, report)
    _draw_reliability(diagram, test)
    return {
        f"Accuracy against cost on the split {tune.split!r}: every policy that no other beats, "
        "the baselines, and the certified policy": pareto,
        f"Risk against edge share on three splits; the guarantee is {report.certificate.risk:.2%}"
        f" at {report.certificate.confidence:.0%} confidence": risk,
        f"Accuracy on the split {test.split!r} with 95% intervals": rivals,
        f"Reliability of the edge's confidence on the split {test.split!r}": diagram,
    }


def draw_pareto(
    path: Path,
    front: Sequence[FrontPoint],
    table: Table,
    prices: Prices,
    certified: RouterPolicy | None = None,
) -> None:
    """Accuracy against cost per message, baselines beside the front."""
    figure, axes = _canvas("cost per message, USD", f"accuracy of the cascade on {table.split!r}")
    axes.plot(
        [point.outcome.cost_usd for point in front],
        [point.outcome.accuracy for point in front],
        color=_EDGE, marker=".", label="Pareto front of the sweep",
    )  # fmt: skip
    for policy, marker in zip(BASELINES, "sDxP", strict=True):
        outcome = evaluate(policy, table, prices)
        axes.scatter(
            outcome.cost_usd, outcome.accuracy, marker=marker, color=_QUIET, label=policy.name
        )
    if certified is not None:
        outcome = evaluate(certified, table, prices)
        axes.scatter(
            outcome.cost_usd, outcome.accuracy,
            marker="*", s=180, color=_CERTIFIED, zorder=3, label="certified policy",
        )  # fmt: skip
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    _save(figure, axes, path)


def _draw_risk(path: Path, tables: Sequence[Table], selection: Selection) -> None:
    figure, axes = _canvas(
        "edge share (coverage)", "risk: answered otherwise than by the cloud, of all"
    )
    policy, certificate = selection.policy, selection.certificate
    for table, colour in zip(tables, (_QUIET, _EDGE, _CLOUD), strict=True):
        found = curve(Shape.of(policy), table)
        axes.plot(found.edge_share, found.risk, color=colour, label=f"{table.split} rows")
    axes.axhline(certificate.risk, color=_CERTIFIED, linestyle="--", label="guaranteed")
    axes.errorbar(
        [certificate.edge_share], [certificate.observed_risk],
        yerr=[[0.0], [certificate.upper_bound - certificate.observed_risk]],
        marker="*", markersize=13, capsize=4, color=_CERTIFIED, label="certified, with its bound",
    )  # fmt: skip
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    _save(figure, axes, path)


def _draw_baselines(path: Path, report: Report) -> None:
    figure, axes = _canvas(f"accuracy on {report.split!r}, 95% interval", "")
    rows: list[tuple[str, float, Interval]] = [
        (f"{name} ({found.edge_share:.0%} edge)", found.accuracy, found.accuracy_interval)
        for name, found in report.baselines.items()
    ]
    ours = f"certified ({report.edge_share:.0%} edge)"
    rows.append((ours, report.accuracy.cascade, report.intervals.accuracy.cascade))
    for place, (name, value, (low, high)) in enumerate(rows):
        axes.errorbar(
            [value], [place], xerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
            marker="o", capsize=4, color=_CERTIFIED if name == ours else _QUIET,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    _save(figure, axes, path, legend=False)


def _draw_reliability(path: Path, table: Table) -> None:
    found = reliability(table.signals["confidence"][table.known], table.edge_right[table.known])
    figure, axes = _canvas("confidence of the edge", "accuracy of the edge")
    axes.plot([0, 1], [0, 1], color=_QUIET, linestyle="--", label="perfectly calibrated")
    axes.scatter(
        found.confidence, found.accuracy, s=20 + 400 * found.count / max(1, found.count.sum()),
        color=_EDGE, alpha=0.8, label=f"edge (calibration error {found.error:.3f})",
    )  # fmt: skip
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    _save(figure, axes, path)


def _canvas(x: str, y: str) -> tuple[Figure, Axes]:
    # No pyplot: it keeps figures in a global, and picks a screen where there is one.
    figure = Figure(figsize=(7.0, 4.4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, axes: Axes, path: Path, *, legend: bool = True) -> None:
    if legend:
        axes.legend(frameon=False, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def write(folder: Path, report: Report, pictures: Mapping[str, Path]) -> tuple[Path, Path]:
    """Writes report.json and report.html, and returns their paths."""
    data, page = folder / "report.json", folder / "report.html"
    write_json(data, report.model_dump(mode="json"))
    write_text(page, render_html(report, pictures))
    return data, page


def render_html(report: Report, pictures: Mapping[str, Path]) -> str:
    """One page that needs nothing else: the pictures (caption -> PNG) are inside it."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_FILTERS)
    images = {
        caption: base64.b64encode(path.read_bytes()).decode("ascii")
        for caption, path in pictures.items()
    }
    return environment.get_template(_TEMPLATE).render(report=report, images=images)


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}%"


def _interval(found: Interval) -> str:
    return f"{100 * found[0]:.1f} to {100 * found[1]:.1f}%"


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


_FILTERS: Final[Mapping[str, Any]] = {
    "percent": _percent,
    "interval": _interval,
    "megabytes": _megabytes,
}
