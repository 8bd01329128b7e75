"""(a policy, a table) -> two pictures of its classes, as PNG files.

`draw_class_coverage`  the edge share of each class that the edge predicts
`draw_class_routes`    where the messages of each true class went, and who was right
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from cluster.intervals import wilson
from serve_app.decide.policy import RouterPolicy
from tune.objective import kept
from tune.replay import Bools, Floats, Ints, Table
from tune.reporting.canvas import (
    CERTIFIED_COLOUR,
    CLOUD,
    CLOUD_PALE,
    EDGE,
    EDGE_PALE,
    QUIET,
    canvas,
    save,
)

MAX_CLASSES: Final = 30  # more bars than this cannot be read
_LABEL_CHARACTERS: Final = 32


def draw_class_coverage(path: Path, policy: RouterPolicy, table: Table) -> None:
    """The edge share of each predicted class: the lowest and the highest, if there are many."""
    at_edge = kept(policy, table)
    rows = np.bincount(table.edge_label, minlength=len(table.labels))
    stayed = np.bincount(table.edge_label[at_edge], minlength=len(table.labels))
    shown, left_out = _extremes(stayed / np.maximum(1, rows), rows)
    figure, axes = canvas("edge share of the class, as the edge predicts it", "", _height(shown))
    place = np.arange(len(shown))
    share = stayed[shown] / rows[shown]
    low, high = wilson(stayed[shown], rows[shown])
    axes.barh(
        place, share, color=EDGE_PALE, xerr=np.stack([share - low, high - share]),
        error_kw={"ecolor": QUIET, "capsize": 2, "linewidth": 1},
    )  # fmt: skip
    axes.axvline(
        float(at_edge.mean()), color=CERTIFIED_COLOUR, linestyle="--",
        label=f"all messages: {at_edge.mean():.1%}",
    )  # fmt: skip
    if left_out:
        middle = MAX_CLASSES // 2 - 0.5
        axes.axhline(middle, color=QUIET, linewidth=1, linestyle=":")
        axes.set_title(f"the {MAX_CLASSES // 2} lowest and highest; {left_out} between not shown",
                       fontsize="small", color=QUIET)  # fmt: skip
    axes.set_yticks(place, [_named(table, i, int(rows[i])) for i in shown], fontsize="small")
    _from_the_top(axes, len(shown))
    save(figure, axes, path)


def _extremes(share: Floats, rows: Ints) -> tuple[Ints, int]:
    """Classes with rows by their share, lowest first, without the middle ones; how many these are.

    Of equal shares the class with more rows is the more extreme one.
    """
    used = np.flatnonzero(rows)
    by_share = used[np.lexsort((-rows[used], share[used]))]
    if by_share.size <= MAX_CLASSES:
        return by_share, 0
    half = MAX_CLASSES // 2
    from_top = used[np.lexsort((-rows[used], -share[used]))]
    lowest = by_share[:half]
    highest = from_top[~np.isin(from_top, lowest)][:half][::-1]
    return np.append(lowest, highest), by_share.size - MAX_CLASSES


def draw_class_routes(path: Path, policy: RouterPolicy, table: Table) -> None:
    """Of each true class: answered at the edge or in the cloud, right or wrong."""
    at_edge, known = kept(policy, table), table.known
    parts = (
        ("edge, right", at_edge & table.edge_right, EDGE, ""),
        ("edge, wrong", at_edge & known & ~table.edge_right, EDGE_PALE, "////"),
        ("cloud, wrong", ~at_edge & known & ~table.cloud_right, CLOUD_PALE, "////"),
        ("cloud, right", ~at_edge & table.cloud_right, CLOUD, ""),
    )
    counts = np.stack([_per_class(which, table) for _, which, _, _ in parts])
    names, columns, title = _largest(counts, table)
    figure, axes = canvas("share of the class's messages", "", _height(names))
    left = np.zeros(len(names))
    for (label, _, colour, hatch), row in zip(parts, columns / columns.sum(axis=0), strict=True):
        axes.barh(
            range(len(names)), row, left=left, color=colour, hatch=hatch, edgecolor="white",
            linewidth=0.4, label=label,
        )  # fmt: skip
        left += row
    axes.set_title(title, fontsize="small", color=QUIET)
    axes.set_yticks(range(len(names)), names, fontsize="small")
    _from_the_top(axes, len(names))
    save(figure, axes, path, columns=4)


def _per_class(which: Bools, table: Table) -> Ints:
    return np.bincount(table.true_label[which], minlength=len(table.labels))


def _largest(counts: Ints, table: Table) -> tuple[list[str], Ints, str]:
    """(4, classes) -> the names and columns to draw: all together, the largest, all others."""
    rows, wrong = counts.sum(axis=0), counts[1] + counts[2]
    used = np.flatnonzero(rows)
    ranked = used[np.lexsort((-wrong[used], -rows[used]))]
    shown, rest = ranked[:MAX_CLASSES], ranked[MAX_CLASSES:]
    names = [f"all classes ({rows.sum()})", *(_named(table, i, int(rows[i])) for i in shown)]
    columns = [counts.sum(axis=1), *(counts[:, i] for i in shown)]
    if not rest.size:
        return names, np.stack(columns, axis=1), ""
    names.append(f"the {rest.size} other classes ({rows[rest].sum()})")
    columns.append(counts[:, rest].sum(axis=1))
    title = f"the {shown.size} largest classes; of equal ones those with more wrong answers"
    return names, np.stack(columns, axis=1), title


def _named(table: Table, i: int, rows: int) -> str:
    name = table.labels[i]
    short = name if len(name) <= _LABEL_CHARACTERS else name[: _LABEL_CHARACTERS - 1] + "…"
    return f"{short} ({rows})"


def _from_the_top(axes: Axes, bars: int) -> None:
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(bars - 0.4, -0.6)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))


def _height(bars: Sequence[object] | Ints) -> float:
    return 1.5 + 0.24 * max(6, len(bars))
