"""Tables, front, selection and their report -> the pictures of report.html, as PNG files.

`draw` makes all of them; each has a function of its own, which takes a path and draws one picture
into it. Those of the classes are in class_pictures.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cluster.intervals import Interval, wilson
from serve_app.decide.cost import Prices
from serve_app.decide.policy import ALWAYS_CLOUD, ALWAYS_EDGE, BASELINES, RouterPolicy
from serve_app.model.reliability import reliability
from tune.certificate.certify import Certificate
from tune.objective import Curve, FrontPoint, Shape, curve, evaluate, kept
from tune.replay import Table
from tune.reporting.canvas import CERTIFIED_COLOUR, CLOUD, EDGE, QUIET, canvas, dress, save
from tune.reporting.class_pictures import draw_class_coverage, draw_class_routes
from tune.reporting.metrics import oracle
from tune.reporting.models import ReleaseReport
from tune.reporting.report import CERTIFIED, MAX_PROBABILITY
from tune.select import Selection

_MARKERS: Final = {
    "always_edge": "s", "always_cloud": "D", "random": "x", "published_five_factor": "P",
    MAX_PROBABILITY: "v",
}  # fmt: skip
# The risk is shown up to this many times the limit, from a small part of it on: beyond these there
# is nothing to choose.
_RISKS_SHOWN: Final = (0.05, 4.0)
_NEAR: Final = 3.0  # times the certified policy's cloud share


def draw(
    folder: Path,
    *,
    tune: Table,
    certify: Table,
    test: Table,
    front: Sequence[FrontPoint],
    selection: Selection,
    prices: Prices,
    report: ReleaseReport,
) -> dict[str, Path]:
    """Draws all pictures into the folder; returns caption -> file, in the order of the page."""
    policy, certificate = selection.policy, selection.certificate
    files = [
        folder / f"{name}.png"
        for name in (
            "accuracy_cost", "risk_coverage", "coverage_per_class", "routes_per_class",
            "baselines", "reliability", "pareto",
        )
    ]  # fmt: skip
    draw_accuracy_cost(files[0], policy, test, prices, report)
    draw_risk_coverage(files[1], (tune, certify, test), selection, report)
    draw_class_coverage(files[2], policy, test)
    draw_class_routes(files[3], policy, test)
    draw_baselines(files[4], report)
    draw_reliability(files[5], test)
    draw_pareto(files[6], front, tune, prices, policy)
    captions = _captions(tune.split, test.split, certificate)
    return dict(zip(captions, files, strict=True))


def _captions(tune: str, test: str, certificate: Certificate) -> tuple[str, ...]:
    sure = f"{certificate.confidence:.0%} confidence, assuming {certificate.assumes}"
    return (
        f"Accuracy against cost on the split {test!r}: every threshold of the certified policy's "
        "score, with a pointwise 95% Wilson band; the certified points, which were certified on "
        f"other rows ({sure}; each by itself); the baselines; a random mix of edge and cloud, "
        "both of which pay the edge; and the hindsight bound, which escalates only where it helps "
        "and has to know the true labels. The band is of one rule: two rules on the same rows can "
        "differ for certain though their bands overlap.",
        "Risk against edge share on three splits, with what is guaranteed "
        f"({sure}), and the most that a threshold chosen in hindsight would keep",
        f"Edge share of each predicted class on the split {test!r}, with 95% Wilson intervals",
        f"Where the messages of each true class went on the split {test!r}, and who was right",
        f"Accuracy on the split {test!r} with 95% Wilson intervals",
        f"Reliability of the edge's confidence on the split {test!r}",
        f"The sweep on the split {tune!r}: every policy that no other beats, the baselines, and "
        "the certified policy. Chosen on these rows, so kinder than the pictures above.",
    )


# ---- accuracy against cost ------------------------------------------------------------------


def draw_accuracy_cost(
    path: Path, policy: RouterPolicy, table: Table, prices: Prices, report: ReleaseReport
) -> None:
    """The score's curve with its band, between the random mix and the hindsight bound; on the left
    whole, on the right near the certified policy."""
    figure = Figure(figsize=(9.6, 5.4), dpi=120, layout="constrained")
    whole, near = figure.subplots(1, 2, sharey=True)
    for axes in (whole, near):
        dress(axes, "cost per message, USD", "")
        _hindsight_line(axes, table, prices)
        _mix_line(axes, table, prices)
        _score_band(axes, policy, table, prices)
        _certified_points(axes, report)
        _baseline_points(axes, report)
        _cloud_share_axis(axes, prices)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    whole.set_ylabel(f"accuracy on {table.split!r}")
    whole.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    wide = min(1.0, max(_NEAR * (1.0 - report.edge_share), 0.05))
    near.set_xlim(prices.per_message(-0.04 * wide), prices.per_message(wide))
    save(figure, whole, path, columns=4)


def _score_band(axes: Axes, policy: RouterPolicy, table: Table, prices: Prices) -> None:
    found = curve(Shape.of(policy), table)
    cost = found.cost_usd(prices)
    low, high = wilson(found.right, found.known)
    axes.fill_between(cost, low, high, color=EDGE, alpha=0.13, linewidth=0, label="its 95% band")
    axes.plot(cost, found.accuracy, color=EDGE, label="the certified policy's score")


def _hindsight_line(axes: Axes, table: Table, prices: Prices) -> None:
    best = oracle(table.edge_right, table.cloud_right, table.pinned, int(table.known.sum()))
    cost = [prices.per_message(float(share)) for share in best.cloud_share]
    axes.plot(cost, best.accuracy, color=QUIET, linestyle=":", label="hindsight bound")


def _mix_line(axes: Axes, table: Table, prices: Prices) -> None:
    ends = [evaluate(policy, table, prices) for policy in (ALWAYS_EDGE, ALWAYS_CLOUD)]
    axes.plot(
        [end.cost_usd for end in ends], [end.accuracy for end in ends],
        color=QUIET, linestyle="--", linewidth=1, label="random mix of edge and cloud",
    )  # fmt: skip


def _baseline_points(axes: Axes, report: ReleaseReport) -> None:
    for name, found in report.baselines.items():
        axes.scatter(
            found.per_message_usd, found.accuracy, marker=_MARKERS[name], color="#343a40",
            s=36, zorder=6, label=name,
        )  # fmt: skip
    axes.scatter(
        report.cost.cloud_only_usd, report.accuracy.cloud, marker="o", facecolor="none",
        edgecolor=CLOUD, s=48, zorder=6, label="cloud alone, no edge run",
    )  # fmt: skip


def _certified_points(axes: Axes, report: ReleaseReport) -> None:
    others: dict[tuple[float, float], list[str]] = {}
    for point in report.alternatives:
        place = (point.figures.per_message_usd, point.figures.accuracy)
        others.setdefault(place, []).append(f"{100 * point.certified.risk:g}%")
    for place, risks in others.items():
        axes.annotate(
            ", ".join(risks), place, xytext=(-4, 8), textcoords="offset points", ha="left",
            fontsize="x-small", color=CERTIFIED_COLOUR, annotation_clip=True,
        )  # fmt: skip
    if others:
        cost, accuracy = zip(*others, strict=True)
        axes.scatter(
            cost, accuracy, marker="o", facecolor="white", edgecolor=CERTIFIED_COLOUR, s=34,
            zorder=4, label="certified at other risks",
        )  # fmt: skip
    axes.scatter(
        report.cost.per_message_usd, report.accuracy.cascade,
        marker="*", s=190, color=CERTIFIED_COLOUR, zorder=5, label="certified policy",
    )  # fmt: skip


def _cloud_share_axis(axes: Axes, prices: Prices) -> None:
    # Any: matplotlib's stubs let text be plotted too.
    exchange: Any = (
        lambda cost: (cost - prices.edge_usd) / prices.cloud_usd,
        prices.per_message,
    )
    top = axes.secondary_xaxis("top", functions=exchange)
    top.set_xlabel("cloud share", fontsize="small")
    top.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def draw_pareto(
    path: Path,
    front: Sequence[FrontPoint],
    table: Table,
    prices: Prices,
    certified: RouterPolicy | None = None,
) -> None:
    """Accuracy against cost per message on the sweep's rows, baselines beside the front."""
    figure, axes = canvas("cost per message, USD", f"accuracy on {table.split!r}")
    axes.plot(
        [point.outcome.cost_usd for point in front],
        [point.outcome.accuracy for point in front],
        color=EDGE, marker=".", label="Pareto front of the sweep",
    )  # fmt: skip
    for policy in BASELINES:
        outcome = evaluate(policy, table, prices)
        axes.scatter(
            outcome.cost_usd, outcome.accuracy, marker=_MARKERS[policy.name], color=QUIET,
            label=policy.name,
        )  # fmt: skip
    if certified is not None:
        outcome = evaluate(certified, table, prices)
        axes.scatter(
            outcome.cost_usd, outcome.accuracy,
            marker="*", s=180, color=CERTIFIED_COLOUR, zorder=3, label="certified policy",
        )  # fmt: skip
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    save(figure, axes, path, columns=3)


# ---- risk against coverage ------------------------------------------------------------------


def draw_risk_coverage(
    path: Path, tables: Sequence[Table], selection: Selection, report: ReleaseReport
) -> None:
    """The risk of every threshold on tune, certify and test, cut off far above the guarantee."""
    figure, axes = canvas("edge share (coverage)", "risk: differs from the cloud, of all")
    certificate = selection.certificate
    curves = [curve(Shape.of(selection.policy), table) for table in tables]
    for table, found, colour in zip(tables, curves, (QUIET, EDGE, CLOUD), strict=True):
        axes.plot(found.edge_share, found.risk, color=colour, label=f"{table.split} rows")
    _guarantee(axes, certificate)
    _, certify_on, test = tables
    seen = float((kept(selection.policy, certify_on) & certify_on.differs).mean())
    _certified_risk(axes, certificate, seen)
    coverage = report.scores[CERTIFIED].hindsight_coverage.value
    risk = float(np.interp(coverage, curves[2].edge_share, curves[2].risk))
    axes.scatter(
        coverage, risk, marker="o", s=60, facecolor="none", edgecolor=CLOUD, linewidth=1.6,
        zorder=4, label=f"best threshold in hindsight, {test.split}",
    )  # fmt: skip
    _frame(axes, curves, _scale(certificate, seen))
    save(figure, axes, path, columns=3)


def _frame(axes: Axes, curves: Sequence[Curve], scale: float) -> None:
    """Cuts off coverages at which nothing fails yet, and risks far above the one that matters."""
    low, high = (part * scale for part in _RISKS_SHOWN)
    starts = [float(found.edge_share[int((found.risk > low).argmax())]) for found in curves]
    most = max(float(found.risk.max()) for found in curves)
    axes.set_xlim(max(0.0, min(starts) - 0.1), 1.01)
    axes.set_ylim(0.0, min(1.05 * max(most, scale), high) or 1.0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))


def _guarantee(axes: Axes, certificate: Certificate) -> None:
    """A risk is a level; an agreement allows more risk, the more messages stay at the edge."""
    label = "guaranteed below, if messages are exchangeable"
    promised = certificate.promises
    if "risk" in promised:
        axes.axhline(promised["risk"].limit, color=CERTIFIED_COLOUR, linestyle="--", label=label)
    elif "agreement" in promised:
        most = 1.0 - promised["agreement"].limit
        axes.plot([0.0, 1.0], [0.0, most], color=CERTIFIED_COLOUR, linestyle="--", label=label)


def _certified_risk(axes: Axes, certificate: Certificate, seen: float) -> None:
    bound = certificate.promises["risk"].bound if "risk" in certificate.promises else seen
    axes.errorbar(
        [certificate.edge_share], [seen], yerr=[[0.0], [max(0.0, bound - seen)]],
        marker="*", markersize=13, capsize=4, color=CERTIFIED_COLOUR, linestyle="none",
        label="certified policy, with its bound" if bound > seen else "certified policy",
    )  # fmt: skip


def _scale(certificate: Certificate, seen: float) -> float:
    """The risk that matters: what is guaranteed, or what was seen where no risk is."""
    promised = certificate.promises
    limits = [promised["risk"].limit] if "risk" in promised else []
    if "agreement" in promised:
        limits.append(1.0 - promised["agreement"].limit)
    return max([*limits, seen])


# ---- baselines and reliability --------------------------------------------------------------


def draw_baselines(path: Path, report: ReleaseReport) -> None:
    """The accuracy of every rule with its interval."""
    figure, axes = canvas(f"accuracy on {report.split!r}, 95% interval", "", height=3.2)
    rows: list[tuple[str, float, Interval]] = [
        (f"{name} ({found.edge_share:.0%} edge)", found.accuracy, found.accuracy_interval)
        for name, found in report.baselines.items()
    ]
    ours = f"{CERTIFIED} ({report.edge_share:.0%} edge)"
    rows.append((ours, report.accuracy.cascade, report.intervals.accuracy.cascade))
    for place, (name, value, (low, high)) in enumerate(rows):
        axes.errorbar(
            [value], [place], xerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
            marker="o", capsize=4, color=CERTIFIED_COLOUR if name == ours else QUIET,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    save(figure, axes, path)


def draw_reliability(path: Path, table: Table) -> None:
    """What the edge claims against how often it is right."""
    found = reliability(table.signals["confidence"][table.known], table.edge_right[table.known])
    figure, axes = canvas("confidence of the edge", "accuracy of the edge")
    axes.plot([0, 1], [0, 1], color=QUIET, linestyle="--", label="perfectly calibrated")
    axes.scatter(
        found.confidence, found.accuracy, s=20 + 400 * found.count / max(1, found.count.sum()),
        color=EDGE, alpha=0.8, label=f"edge (calibration error {found.error:.3f})",
    )  # fmt: skip
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    save(figure, axes, path, columns=2)
