"""Metrics of routing by their names in the literature; pure.

In: columns over the same rows: a score (high: the edge can be trusted) and what each model did.
Out: one number, or a curve. O(n log n): one sort and cumulative sums.

Rows of equal score cannot be told apart by a threshold. Areas take the mean over every order of
them; coverages and call shares count only what a threshold can do. A message that must stay at the
edge whatever its score has the score +inf, and one that must leave it -inf: no threshold keeps it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

from cluster.intervals import Interval

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]

# ---- of a score -----------------------------------------------------------------------------


class GapCurve(NamedTuple):
    """Of every threshold, from all at the edge to all in the cloud.

    `recovered` is the performance gap recovered (PGR): 0 is the edge's accuracy, 1 the cloud's. A
    cascade that is right more often than the cloud lies above 1.
    """

    cloud_share: Floats
    recovered: Floats


def aurc(score: Floats, failed: Bools) -> float:
    """Area under the risk-coverage curve: selective risk, averaged over the coverages 1/n ... 1.

    Selective risk is the share of failures among the messages kept. Geifman and El-Yaniv 2017,
    "Selective classification for deep neural networks" (the curve); Geifman, Uziel and El-Yaniv
    2019, "Bias-reduced uncertainty estimation for deep neural classifiers" (the area).
    """
    order, ends = _runs(-score, failed)
    expected = _spread(failed[order].astype(np.float64), ends)
    return float((np.cumsum(expected) / np.arange(1, score.size + 1)).mean())


def excess_aurc(score: Floats, failed: Bools) -> float:
    """AURC beyond that of the best order there is, in which all failures come last; 0 is perfect.

    E-AURC of Geifman, Uziel and El-Yaniv 2019, with the best area counted, not approximated.
    """
    return aurc(score, failed) - aurc(-failed.astype(np.float64), failed)


def auroc(score: Floats, agrees: Bools) -> float | None:
    """Chance that a message on which the edge agrees has the higher score; ties count half.

    None if all rows agree or none does: there is no pair to compare.
    """
    _check(score, agrees)
    agreeing = int(agrees.sum())
    others = score.size - agreeing
    if not agreeing or not others:
        return None
    below = stats.rankdata(score)[agrees].sum() - agreeing * (agreeing + 1) / 2
    return float(below / (agreeing * others))


def hindsight_coverage(score: Floats, differs: Bools, risk: float) -> float:
    """The most that any threshold keeps at the edge with a risk of at most `risk` on these rows.

    Risk is the share of all messages answered at the edge otherwise than by the cloud. The
    threshold has seen the answers: an upper bound for a rule that has not.
    """
    return hindsight_coverage_within(score, differs, differs, differs.size, risk=risk)


def hindsight_coverage_within(
    score: Floats,
    differs: Bools,
    lost: npt.NDArray[Any],
    labelled: int,
    *,
    risk: float | None = None,
    agreement: float | None = None,
    accuracy_loss: float | None = None,
) -> float:
    """The same for all the limits given, at once; 0 if no threshold keeps them.

    Args:
        lost: 1 where only the cloud is right, -1 where only the edge is, else 0.
        labelled: rows with a true label, over which accuracy is lost; at least one.
        agreement: among the messages kept; 1 of none kept.
    """
    kept, failures = _thresholds(score, differs)
    _, losses = _thresholds(score, lost)
    within = np.ones(kept.size, np.bool_)
    if risk is not None:
        within &= failures / score.size <= risk
    if agreement is not None:
        within &= np.append(1.0, (kept[1:] - failures[1:]) / kept[1:]) >= agreement
    if accuracy_loss is not None:
        within &= losses / labelled <= accuracy_loss
    return float(kept[within].max(initial=0) / score.size)


def gap_curve(score: Floats, edge_right: Bools, cloud_right: Bools) -> GapCurve | None:
    """PGR at the cloud share of every threshold; Ong et al. 2024, "RouteLLM", arXiv:2406.18665.

    PGR = (accuracy - edge's) / (cloud's - edge's). None if the cloud is right no more often than
    the edge: there is no gap to recover. Rows without a true label are right nowhere, and so count
    as calls only.
    """
    gain = cloud_right.astype(np.int64) - edge_right
    gap = int(gain.sum())
    order, ends = _runs(score, gain)
    if gap <= 0:
        return None
    recovered = np.append(0, np.cumsum(gain[order])[ends]) / gap
    return GapCurve(np.append(0, ends + 1) / score.size, recovered)


def apgr(score: Floats, edge_right: Bools, cloud_right: Bools) -> float | None:
    """Average performance gap recovered: PGR, averaged over all cloud shares; a random router: 0.5.

    RouteLLM approximates the mean by ten shares; here it is exact. None: see `gap_curve`.
    """
    found = gap_curve(score, edge_right, cloud_right)
    return None if found is None else float(np.trapezoid(found.recovered, found.cloud_share))


def cpt(score: Floats, edge_right: Bools, cloud_right: Bools, gap: float) -> float | None:
    """Call-performance threshold: the smallest cloud share with a PGR of at least `gap`.

    RouteLLM's CPT(50%) is `gap=0.5`; a price list makes a cost per message of the share. None: see
    `gap_curve`. Raises ValueError for a `gap` outside 0 ... 1, which need not be reached.
    """
    if not 0 <= gap <= 1:
        raise ValueError(f"The share of the gap is {gap}; it must lie between 0 and 1.")
    found = gap_curve(score, edge_right, cloud_right)
    return None if found is None else float(found.cloud_share[np.argmax(found.recovered >= gap)])


def _thresholds(score: Floats, failed: npt.NDArray[Any]) -> tuple[Ints, Ints]:
    """Rows kept and failures among them at every threshold, the one that keeps nothing first."""
    order, ends = _runs(-score, failed)
    ends = ends[score[order[ends]] > -np.inf]
    return np.append(0, ends + 1), np.append(0, np.cumsum(failed[order].astype(np.int64))[ends])


def _runs(key: Floats, column: npt.NDArray[Any]) -> tuple[Ints, Ints]:
    """The order that sorts by key, and where in it each run of equal keys ends."""
    _check(key, column)
    order = np.argsort(key, kind="stable")
    rising = key[order]
    return order, np.flatnonzero(np.append(rising[1:] != rising[:-1], True))


def _check(key: Floats, column: npt.NDArray[Any]) -> None:
    """Raises ValueError for columns of no or different rows, and for NaN, which has no place."""
    if key.ndim != 1 or key.shape != column.shape or not key.size or np.isnan(key).any():
        raise ValueError(
            f"A score and columns of the same rows are needed, some at least and none of them NaN; "
            f"got the shapes {key.shape} and {column.shape}."
        )


def _spread(values: Floats, ends: Ints) -> Floats:
    """Sorted values, each replaced by the mean of its run."""
    sizes = np.diff(ends, prepend=-1)
    sums = np.diff(np.cumsum(values)[ends], prepend=0.0)
    return np.repeat(sums / sizes, sizes)


# ---- of the rows alone ----------------------------------------------------------------------


class OraclePoint(NamedTuple):
    """The best accuracy that any routing of the rows has within each cloud share. Corners only."""

    cloud_share: Floats
    accuracy: Floats


def oracle(edge_right: Bools, cloud_right: Bools, pinned: Bools, labelled: int) -> OraclePoint:
    """Escalates only where it helps, and nothing that is pinned: no score can lie above it.

    It has seen the true labels. Once all that only the cloud gets right is escalated, more money
    buys nothing.

    Args:
        labelled: rows with a true label, over which accuracy is taken; at least one.
    """
    helped = int((cloud_right & ~edge_right & ~pinned).sum())
    right = int(edge_right.sum()) + np.array([0, helped, helped])
    share = np.array([0.0, helped / pinned.size, 1.0 - float(pinned.mean())])
    return OraclePoint(share, right / labelled)


# ---- intervals ------------------------------------------------------------------------------


def bootstrap(
    metrics: Callable[..., Mapping[str, float | None]], *columns: npt.NDArray[Any],
    draws: int = 200, seed: int = 0,
) -> dict[str, Interval | None]:  # fmt: skip
    """95% percentile intervals of every metric over rows drawn again, with replacement.

    Efron, Annals of Statistics 7 (1979). Draws without a value are left out, and None is the answer
    if these are more than a twentieth.

    Args:
        metrics: the columns -> the metrics by name.
    """
    dice = np.random.default_rng(seed)
    rows = columns[0].size
    found: list[Mapping[str, float | None]] = []
    for _ in range(draws):
        # In the old order, so that columns that were sorted stay so: sorting them again is cheap.
        drawn = np.sort(dice.integers(0, rows, rows))
        found.append(metrics(*(column[drawn] for column in columns)))
    return {name: _middle([one[name] for one in found]) for name in found[0]}


def _middle(values: list[float | None]) -> Interval | None:
    known = [value for value in values if value is not None]
    if len(known) < 0.95 * len(values):
        return None
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)
