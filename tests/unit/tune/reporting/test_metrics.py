"""The metrics: each against its definition, spelled out row by row."""

from itertools import pairwise, permutations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tune.reporting.metrics import (
    Bools,
    Floats,
    apgr,
    aurc,
    auroc,
    bootstrap,
    cpt,
    excess_aurc,
    gap_curve,
    hindsight_coverage,
    hindsight_coverage_within,
    oracle,
)

unhurried = settings(deadline=None)  # a busy machine is not a slow function
scores = st.sampled_from([-1.5, 0.0, 0.25, 0.5, 1.0, np.inf]) | st.floats(-2, 2)


@st.composite
def columns(draw: st.DrawFn, most: int = 30, wide: int = 2) -> tuple[Any, ...]:
    """A score, often with ties, and boolean columns of the same rows."""
    rows = draw(st.integers(1, most))
    score = draw(st.lists(scores, min_size=rows, max_size=rows))
    flags = [draw(st.lists(st.booleans(), min_size=rows, max_size=rows)) for _ in range(wide)]
    return np.array(score, np.float64), *(np.array(flag, np.bool_) for flag in flags)


def thresholds(score: Floats) -> list[float]:
    """Every one that tells two rows apart, and one that keeps nothing."""
    return [float("nan"), *sorted(set(score.tolist()))]


@unhurried
@given(columns(most=6, wide=1))
def test_aurc_is_the_mean_over_every_order_that_the_score_allows(data: tuple[Any, ...]) -> None:
    score, failed = data
    areas = []
    for order in permutations(range(score.size)):
        if all(a >= b for a, b in pairwise(score[list(order)])):
            kept = failed[list(order)]
            areas.append(np.mean([kept[:k].mean() for k in range(1, score.size + 1)]))
    assert aurc(score, failed) == pytest.approx(np.mean(areas))


@unhurried
@given(columns(most=6, wide=1))
def test_no_order_beats_the_one_that_excess_aurc_compares_with(data: tuple[Any, ...]) -> None:
    score, failed = data
    every = [aurc(np.array(order, float), failed) for order in permutations(range(score.size))]
    assert excess_aurc(score, failed) == pytest.approx(aurc(score, failed) - min(every))


@given(columns(wide=1))
def test_auroc_is_the_share_of_pairs_in_order(data: tuple[Any, ...]) -> None:
    score, agrees = data
    pairs = [(a > b) + 0.5 * (a == b) for a in score[agrees] for b in score[~agrees]]
    assert auroc(score, agrees) == (pytest.approx(np.mean(pairs)) if pairs else None)


@given(columns(wide=1), st.floats(0, 1))
def test_no_threshold_covers_more_at_the_risk_than_hindsight(
    data: tuple[Any, ...], risk: float
) -> None:
    score, differs = data
    kept = [score >= threshold for threshold in thresholds(score)]
    fine = [rows.mean() for rows in kept if (rows & differs).sum() / score.size <= risk]
    assert hindsight_coverage(score, differs, risk) == max(fine)


@given(columns(wide=1), st.floats(0, 1))
def test_no_threshold_covers_more_at_the_agreement_than_hindsight(
    data: tuple[Any, ...], agreement: float
) -> None:
    score, differs = data
    kept = [score >= threshold for threshold in thresholds(score)]
    fine = [rows.mean() for rows in kept if not rows.any() or (~differs)[rows].mean() >= agreement]
    found = hindsight_coverage_within(score, differs, differs, score.size, agreement=agreement)
    assert found == max(fine)


@given(columns(wide=3), st.floats(0, 1), st.floats(0, 1), st.floats(-0.5, 1))
def test_several_limits_hold_at_once_in_hindsight(
    data: tuple[Any, ...], risk: float, agreement: float, loss: float
) -> None:
    score, differs, edge_right, cloud_right = data
    lost = cloud_right.astype(int) - edge_right
    fine = [0.0]
    for rows in (score >= threshold for threshold in thresholds(score)):
        agreed = not rows.any() or (~differs)[rows].mean() >= agreement
        if agreed and (rows & differs).mean() <= risk and (rows * lost).sum() / score.size <= loss:
            fine.append(rows.mean())
    found = hindsight_coverage_within(
        score, differs, lost, score.size, risk=risk, agreement=agreement, accuracy_loss=loss
    )
    assert found == max(fine)


def test_no_threshold_keeps_what_a_rule_sends_away() -> None:
    score = np.array([np.inf, 0.5, -np.inf, -np.inf])
    assert hindsight_coverage(score, np.zeros(4, np.bool_), 0.5) == 0.5


def cascade(score: Floats, edge_right: Bools, cloud_right: Bools) -> list[tuple[float, float]]:
    """(cloud share, PGR) of every threshold by RouteLLM's definition, cheapest first."""
    weak, strong = edge_right.mean(), cloud_right.mean()
    points = []
    for threshold in thresholds(score):
        edge = score >= threshold
        accuracy = np.where(edge, edge_right, cloud_right).mean()
        points.append((float(1 - edge.mean()), float((accuracy - weak) / (strong - weak))))
    return sorted(points)


@given(columns())
def test_the_gap_recovered_is_that_of_every_threshold(data: tuple[Any, ...]) -> None:
    score, edge_right, cloud_right = data
    found = gap_curve(score, edge_right, cloud_right)
    if cloud_right.sum() <= edge_right.sum():
        assert found is None
        assert apgr(score, edge_right, cloud_right) is None
        assert cpt(score, edge_right, cloud_right, 0.5) is None
        return
    assert found is not None
    expected = cascade(score, edge_right, cloud_right)
    np.testing.assert_allclose(np.column_stack(found), expected, atol=1e-9)
    for gap in (0.0, 0.5, 0.8, 0.95, 1.0):
        enough = [share for share, recovered in expected if recovered >= gap - 1e-9]
        assert cpt(score, edge_right, cloud_right, gap) == pytest.approx(min(enough))


@unhurried
@given(columns(most=6))
def test_apgr_is_the_mean_over_the_shares_and_every_order_of_ties(data: tuple[Any, ...]) -> None:
    score, *right = data
    edge_right, cloud_right = sorted(right, key=np.sum)  # the better of the two is the cloud
    gap = int(cloud_right.sum()) - int(edge_right.sum())
    assume(gap > 0)
    areas = []
    for order in permutations(range(score.size)):
        if all(a <= b for a, b in pairwise(score[list(order)])):
            gain = (cloud_right.astype(int) - edge_right)[list(order)]
            recovered = np.append(0, np.cumsum(gain)) / gap
            areas.append(np.mean((recovered[1:] + recovered[:-1]) / 2))
    assert apgr(score, edge_right, cloud_right) == pytest.approx(np.mean(areas))


def test_figures_by_hand() -> None:
    score = np.array([0.9, 0.8, 0.7, 0.6])
    failed = np.array([False, True, False, True])
    assert aurc(score, failed) == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)
    assert excess_aurc(score, failed) == pytest.approx(
        (1 / 2 + 1 / 3 + 1 / 2) / 4 - (1 / 3 + 1 / 2) / 4
    )
    assert auroc(score, ~failed) == 0.75
    assert hindsight_coverage(score, failed, 0.25) == 0.75
    assert hindsight_coverage(score, failed, 0.24) == 0.25
    assert hindsight_coverage_within(score, failed, failed, 4, agreement=0.6) == 0.75
    # The cloud mends both failures of the edge: the last row first, then it is of no use, then of.
    right = np.ones(4, np.bool_)
    assert apgr(score, ~failed, right) == pytest.approx((0.25 + 0.5 + 0.75 + 1.0) / 4)
    assert [cpt(score, ~failed, right, gap) for gap in (0.5, 0.8)] == [0.25, 0.75]


def test_a_score_that_says_nothing_is_the_random_router() -> None:
    """One run of ties: risk is the edge's at every coverage, the gap is recovered in proportion."""
    dice = np.random.default_rng(0)
    nothing, failed = np.zeros(1000), dice.random(1000) < 0.2
    right = np.ones(1000, np.bool_)
    assert aurc(nothing, failed) == pytest.approx(failed.mean())
    assert auroc(nothing, ~failed) == 0.5
    assert apgr(nothing, ~failed, right) == 0.5
    assert cpt(nothing, ~failed, right, 0.5) == 1.0
    assert hindsight_coverage(nothing, failed, 0.1) == 0.0


def test_rows_without_a_true_label_count_as_calls_only() -> None:
    """A table has them as right nowhere: the gap is the same, its shares are of all messages."""
    score = np.array([0.1, 0.2, 0.3, 0.4])
    edge_right = np.array([False, False, True, False])
    cloud_right = np.array([False, True, True, False])
    found = gap_curve(score, edge_right, cloud_right)
    assert found is not None
    assert found.recovered.tolist() == [0, 0, 1, 1, 1]
    assert cpt(score, edge_right, cloud_right, 0.8) == 0.5


def test_a_cascade_may_be_better_than_the_cloud() -> None:
    score = np.array([0.1, 0.2, 0.9])
    found = gap_curve(score, np.array([False, False, True]), np.array([True, True, False]))
    assert found is not None
    assert found.recovered.max() == 2.0


def test_columns_that_do_not_fit_are_refused() -> None:
    for score in (np.array([]), np.array([0.1, np.nan]), np.array([0.1, 0.2, 0.3])):
        with pytest.raises(ValueError, match="same rows"):
            aurc(score, np.zeros(min(score.size, 2), np.bool_))
    with pytest.raises(ValueError, match="between 0 and 1"):
        cpt(np.zeros(1), np.zeros(1, np.bool_), np.ones(1, np.bool_), 80)


@unhurried
@given(columns(most=8, wide=3))
def test_no_routing_beats_the_oracle(data: tuple[Any, ...]) -> None:
    _, edge_right, cloud_right, pinned = data
    free = np.flatnonzero(~pinned)
    found = oracle(edge_right, cloud_right, pinned, pinned.size)
    best: dict[int, float] = {}
    for sent in product([False, True], repeat=free.size):
        cloud = np.zeros(pinned.size, np.bool_)
        cloud[free] = sent
        right = np.where(cloud, cloud_right, edge_right).mean()
        best[sum(sent)] = max(best.get(sum(sent), 0.0), right)
    shares = np.arange(free.size + 1) / pinned.size
    within = np.maximum.accumulate([best[calls] for calls in range(free.size + 1)])
    np.testing.assert_allclose(np.interp(shares, found.cloud_share, found.accuracy), within)


def test_bootstrap_of_a_share_is_about_its_normal_interval() -> None:
    hits = np.arange(2000) < 400
    found = bootstrap(lambda column: {"share": float(column.mean())}, hits, draws=1000)["share"]
    assert found is not None
    half = 1.96 * (0.2 * 0.8 / 2000) ** 0.5
    assert found == pytest.approx((0.2 - half, 0.2 + half), abs=0.003)


def test_bootstrap_keeps_rows_together_and_says_where_there_is_no_value() -> None:
    left, right = np.arange(50.0), -np.arange(50.0)
    found = bootstrap(
        lambda a, b: {
            "sum": float((a + b).sum()),
            "one row in three draws": float(a.max()) if 49.0 in a else None,
        },
        left, right,
    )  # fmt: skip
    assert found == {"sum": (0.0, 0.0), "one row in three draws": None}
