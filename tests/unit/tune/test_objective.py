"""The objective: the fast path is the slow path, and both are decide()."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import DataError
from serve_app.contracts import Route
from serve_app.decide.cost import Prices
from serve_app.decide.policy import ALWAYS_CLOUD, ALWAYS_EDGE, BASELINES, RANDOM, Rules, decide
from serve_app.decide.scores import Margin, MaxProbability, Weighted
from tests.support.strategies import SHAPES
from tests.support.tables import LABELS, row_of, toy_table
from tune.objective import PolicyOutcome, Shape, curve, evaluate, front, kept, pareto, trusts
from tune.replay import Table
from tune.sweep.space import (
    BUDGET,
    BUDGETS,
    FLOORS,
    SCORER,
    WEIGHTED,
    WEIGHTS,
    Space,
    rules_of,
    simplicity,
    weights_of,
)

PRICES = Prices()
tables = st.builds(
    toy_table,
    rows=st.integers(1, 60),
    seed=st.integers(0, 10_000),
    pinned_share=st.sampled_from([0.0, 0.2, 1.0]),
    unknown_share=st.sampled_from([0.0, 0.3]),
    distinct=st.sampled_from([None, 1, 3]),
)


def comparable(outcome: PolicyOutcome) -> PolicyOutcome:
    """NaN, the accuracy of rows without labels, is not equal to itself."""
    return replace(outcome, accuracy=-1.0) if np.isnan(outcome.accuracy) else outcome


@given(tables, SHAPES)
@settings(max_examples=120, deadline=None)
def test_every_threshold_of_the_fast_path_equals_the_slow_path(table: Table, shape: Shape) -> None:
    found = curve(shape, table)
    for i, threshold in enumerate(found.thresholds):
        slow = evaluate(shape.policy("p", float(threshold)), table, PRICES)
        fast = found.outcome(i, PRICES)
        assert comparable(fast) == comparable(slow)
        assert fast.cost_usd == found.cost_usd(PRICES)[i]
        assert fast.risk == found.risk[i]
        assert fast.edge_share == found.edge_share[i]


@given(tables, SHAPES, st.floats(-3, 3))
@settings(max_examples=80, deadline=None)
def test_the_fast_path_misses_no_policy(table: Table, shape: Shape, threshold: float) -> None:
    """Any threshold whatever does to the rows what one of the listed thresholds does."""
    found = curve(shape, table)
    outcome = evaluate(shape.policy("p", threshold), table, PRICES)
    listed = [comparable(found.outcome(i, PRICES)) for i in range(found.thresholds.size)]
    assert comparable(outcome) in listed


@given(tables, SHAPES)
@settings(max_examples=80, deadline=None)
def test_thresholds_fall_and_every_step_keeps_more(table: Table, shape: Shape) -> None:
    found = curve(shape, table)
    assert (np.diff(found.thresholds) < 0).all()
    assert (np.diff(found.edge) > 0).all()
    assert (np.diff(found.failures) >= 0).all()
    stays = np.isin(table.edge_label, [LABELS.index(c) for c in shape.rules.never_escalate])
    assert found.edge[0] == (table.pinned | stays).sum()


@given(tables, SHAPES, st.floats(-1, 1))
@settings(max_examples=80, deadline=None)
def test_a_table_decides_as_the_service_does(table: Table, shape: Shape, threshold: float) -> None:
    policy = shape.policy("p", threshold)
    edge = kept(policy, table)
    for i in range(table.rows):
        message, prediction, values = row_of(table, i)
        assert (decide(message, prediction, policy, values).route is Route.EDGE) == edge[i]


def test_figures_by_hand() -> None:
    table = toy_table(4, pinned_share=0.0)
    table = replace(
        table,
        true_label=np.array([0, 1, 2, 0]),
        edge_label=np.array([0, 1, 0, 1]),
        cloud_label=np.array([0, 2, 2, 1]),
        pinned=np.array([False, False, False, True]),
        signals={**table.signals, "confidence": np.array([0.9, 0.8, 0.7, 0.1])},
    )
    shape = Shape(score=MaxProbability())
    outcome = evaluate(shape.policy("p", 0.8), table, PRICES)
    # Rows 0 and 1 are trusted, row 3 is pinned, row 2 is escalated; only row 1 differs of those.
    assert outcome == PolicyOutcome(
        accuracy=0.75, cost_usd=0.001 + 0.25 * 0.0136, edge_share=0.75, cloud_share=0.25, risk=0.25
    )
    # Row 0 says label 0: kept by its class, and row 1 needs more than it has.
    strict = Shape(
        score=MaxProbability(),
        class_margins={LABELS[1]: 0.01},
        rules=Rules(never_escalate=LABELS[:1]),
    )
    assert kept(strict.policy("p", 0.8), table).tolist() == [True, False, True, True]
    assert curve(strict, table).edge.tolist() == [3, 4]


def test_baselines_are_what_they_are_called() -> None:
    table = toy_table(4000, pinned_share=0.0)
    edge = evaluate(ALWAYS_EDGE, table, PRICES)
    cloud = evaluate(ALWAYS_CLOUD, table, PRICES)
    assert (edge.edge_share, cloud.edge_share) == (1.0, 0.0)
    assert edge.accuracy == table.edge_right.mean()
    assert cloud.accuracy == table.cloud_right.mean()
    assert (cloud.risk, edge.risk) == (0.0, table.differs.mean())
    # The edge ran first, so escalating everything costs more than the cloud alone.
    assert cloud.cost_usd > PRICES.cloud_usd
    assert abs(evaluate(RANDOM, table, PRICES).edge_share - 0.5) < 0.03


def test_pinned_messages_stay_at_the_edge_under_every_policy() -> None:
    table = toy_table(500, pinned_share=0.3)
    for policy in BASELINES:
        assert kept(policy, table)[table.pinned].all()


def test_rows_without_a_label_count_for_cost_and_risk_only() -> None:
    table = toy_table(1000, unknown_share=0.5)
    outcome = evaluate(ALWAYS_EDGE, table, PRICES)
    assert outcome.accuracy == table.edge_right[table.known].mean()
    assert outcome.risk == table.differs.mean()


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        evaluate(ALWAYS_EDGE, toy_table(0), PRICES)
    with pytest.raises(DataError, match="no rows"):
        curve(Shape(score=MaxProbability()), toy_table(0))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30))
def test_pareto_keeps_exactly_what_nothing_dominates(points: list[tuple[int, int]]) -> None:
    cost = np.array([c for c, _ in points], float)
    value = np.array([v for _, v in points], float)
    best = pareto(cost, value)
    found = list(zip(cost[best], value[best], strict=True))
    undominated = {
        (c, v)
        for c, v in points
        if not any((c2 <= c and v2 >= v) and (c2 < c or v2 > v) for c2, v2 in points)
    }
    assert set(found) == undominated
    assert len(found) == len(undominated)
    assert found == sorted(found)


def test_the_front_of_no_points_is_empty() -> None:
    assert front([]) == []


@given(tables, SHAPES, st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_a_column_in_place_of_the_score_is_only_that(table: Table, shape: Shape, seed: int) -> None:
    """Its own column changes nothing; another one decides as a score of that column would."""
    own, same = curve(shape, table), curve(shape, table, trusts(shape, table))
    np.testing.assert_array_equal(own.thresholds, same.thresholds)
    np.testing.assert_array_equal(own.failures, same.failures)
    column = np.random.default_rng(seed).random(table.rows).round(1)
    margin = Shape(score=Margin(), min_confidence=shape.min_confidence, rules=shape.rules)
    swapped = replace(table, signals={**table.signals, "margin": column})
    found, wanted = curve(shape, table, column), curve(margin, swapped)
    np.testing.assert_array_equal(found.thresholds, wanted.thresholds)
    np.testing.assert_array_equal(found.edge, wanted.edge)


def test_a_column_of_other_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="9 rows"):
        curve(Shape(score=MaxProbability()), toy_table(9), np.zeros(8))


def test_without_labels_agreement_with_the_cloud_is_what_counts() -> None:
    labelled, traffic = toy_table(200), toy_table(200, unknown_share=1.1)
    shape = Shape(score=MaxProbability())
    found = curve(shape, labelled)
    np.testing.assert_array_equal(found.value, found.accuracy)
    found = curve(shape, traffic)
    np.testing.assert_array_equal(found.value, 1.0 - found.risk)
    assert found.value[0] == 1.0 - traffic.differs[traffic.pinned].sum() / 200


def test_the_fast_path_is_fast() -> None:
    """The target is 100,000 policies a second on 2 cores; one core alone does many times that."""
    table = toy_table(2000)
    weights = weights_of({name: (r.low + r.high) / 2 + 0.11 for name, r in WEIGHTS.items()})
    shapes = [Shape(score=Weighted(weights=weights), min_confidence=floor) for floor in FLOORS]
    curve(shapes[0], table)
    start = time.perf_counter()
    policies = sum(curve(shape, table).thresholds.size for shape in shapes)
    assert policies / (time.perf_counter() - start) > 100_000


# ---- the space ----------------------------------------------------------------------------------

FAR = toy_table(500)
FAR = replace(FAR, signals={**FAR.signals, "distance": 4.0 * FAR.signals["distance"]})
SPACE = Space.of(["margin", "logistic-1"], FAR)


class Fake:
    """An Optuna trial that takes what it is given, or else the last choice and the upper end."""

    def __init__(self, **given: Any) -> None:
        self.given, self.asked = given, dict[str, Any]()

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.asked[name] = self.given.get(name, choices[-1])
        assert self.asked[name] in choices
        return self.asked[name]

    def suggest_float(self, name: str, low: float, high: float, *, step: float) -> float:
        self.asked[name] = self.given.get(name, high)
        assert low <= self.asked[name] <= high
        assert step > 0
        return float(self.asked[name])


def test_weights_are_asked_for_only_where_they_are_used() -> None:
    plain, weighted = Fake(scorer="margin"), Fake(scorer=WEIGHTED)
    SPACE(plain)
    SPACE(weighted)
    assert set(plain.asked) == {SCORER, "escalation_words", "max_words", "max_distance", BUDGET}
    assert set(weighted.asked) - set(plain.asked) == set(WEIGHTS)
    assert weighted.asked[BUDGET] == BUDGETS.high


def test_a_rule_that_no_row_breaks_is_no_choice() -> None:
    table = toy_table(300)
    quiet = {"escalation": np.zeros(300), "words": np.full(300, 0.5), "distance": np.zeros(300)}
    space = Space.of(["margin"], replace(table, signals={**table.signals, **quiet}))
    assert space.rules == {
        "escalation_words": (False,), "max_words": (None, 20), "max_distance": (None,),
    }  # fmt: skip
    trial = Fake()
    space(trial)
    assert "max_distance" not in trial.asked
    assert "escalation_words" not in trial.asked


def test_every_start_lies_in_the_space_and_has_no_rule() -> None:
    for start in SPACE.starts:
        trial = Fake(**start)
        SPACE(trial)
        assert trial.asked == start
        assert rules_of(start, Rules()) == Rules()
    assert [start[SCORER] for start in SPACE.starts][:2] == ["margin", "logistic-1"]
    assert {"confidence": 1.0} in [weights_of(start) for start in SPACE.starts]


def test_a_users_rules_hold_on_top_and_the_stricter_limit_counts() -> None:
    fixed = Rules(never_escalate=LABELS[:1], max_words=50, max_distance=2.0)
    found = rules_of({"escalation_words": True, "max_words": 60, "max_distance": 1.5}, fixed)
    assert found == fixed.model_copy(update={"escalation_words": True, "max_distance": 1.5})
    assert rules_of({"max_words": None}, fixed) == fixed
    assert rules_of({"escalation_words": False}, Rules(escalation_words=True)).escalation_words


def test_of_equals_the_simplest_comes_first() -> None:
    points: list[dict[str, Any]] = [
        {SCORER: "margin"},
        {SCORER: WEIGHTED, "confidence": 1.0, "margin": 0.0},
        {SCORER: WEIGHTED, "confidence": 1.0, "margin": 0.5},
        {SCORER: "margin", "max_words": 20, "escalation_words": False},
        {SCORER: "margin", "max_words": 20, "escalation_words": True},
    ]
    assert sorted((points[i] for i in (3, 1, 4, 0, 2)), key=simplicity) == points
