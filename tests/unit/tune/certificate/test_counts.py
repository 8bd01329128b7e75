"""Counting many thresholds at once equals counting each policy by itself."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import DataError
from serve_app.decide.cost import Prices
from serve_app.decide.policy import RouterPolicy
from serve_app.decide.scores import MaxProbability
from tests.support.strategies import SHAPES
from tests.support.tables import toy_table
from tune.certificate.counts import Counter, PolicyCounts, counts
from tune.objective import Shape, evaluate, kept, trusts
from tune.replay import Ints, Table

BY_CONFIDENCE = Shape(score=MaxProbability())
unhurried = settings(deadline=None)


def policy(shape: Shape, threshold: float) -> RouterPolicy:
    return shape.policy("one", threshold)


def naive(shape: Shape, threshold: float, table: Table, weights: Ints) -> tuple[int, ...]:
    """Of one policy, row by row: (kept, failures, losses, gains)."""
    edge = kept(policy(shape, threshold), table)
    lost = edge & table.cloud_right & ~table.edge_right
    won = edge & table.edge_right & ~table.cloud_right
    return tuple(int(weights[which].sum()) for which in (edge, edge & table.differs, lost, won))


@st.composite
def thresholds_of(draw: Any, shape: Shape, table: Table) -> list[float]:
    """Some that rows stand on exactly, as ties do, and some anywhere."""
    there = st.sampled_from(trusts(shape, table).tolist())
    found: list[float] = draw(st.lists(there | st.floats(-10, 10), min_size=1, max_size=5))
    return found


@given(st.data(), SHAPES, st.integers(0, 50), st.sampled_from([None, 3]), st.booleans())
@unhurried
def test_counts_are_those_of_each_policy_by_itself(
    data: Any, shape: Shape, seed: int, distinct: int | None, weighted: bool
) -> None:
    table = toy_table(60, seed, unknown_share=0.3, pinned_share=0.2, distinct=distinct)
    thresholds = np.array(data.draw(thresholds_of(shape, table)))
    weights = np.random.default_rng(seed).integers(0, 4, table.rows) if weighted else None
    each = np.ones(table.rows, np.int64) if weights is None else weights
    found = Counter(shape, table).of(thresholds, weights)
    columns = zip(found.kept, found.failures, found.losses, found.gains, strict=True)
    for threshold, seen in zip(thresholds.tolist(), columns, strict=True):
        assert tuple(map(int, seen)) == naive(shape, threshold, table, each)
    assert (found.rows, found.labelled) == (each.sum(), each[table.known].sum())


def test_counts_agree_with_the_outcome_of_a_policy() -> None:
    table = toy_table(300)
    found = counts(BY_CONFIDENCE, np.array([0.9]), table)
    made = evaluate(policy(BY_CONFIDENCE, 0.9), table, Prices())
    assert found.kept[0] / 300 == made.edge_share
    assert found.failures[0] / 300 == made.risk
    assert found.escalated[0] / 300 == pytest.approx(made.cloud_share)
    lost = table.cloud_right.mean() - made.accuracy
    assert (found.losses - found.gains)[0] / 300 == pytest.approx(lost)


def test_weights_count_rows_as_if_they_were_there_so_often() -> None:
    table = toy_table(100, unknown_share=0.2)
    weights = np.random.default_rng(0).multinomial(100, np.full(100, 0.01))
    thresholds = np.linspace(1.0, 0.0, 9)
    repeated = counts(BY_CONFIDENCE, thresholds, table.of(np.repeat(np.arange(100), weights)))
    found = Counter(BY_CONFIDENCE, table).of(thresholds, weights)
    for name in ("kept", "failures", "losses", "gains"):
        np.testing.assert_array_equal(getattr(found, name), getattr(repeated, name))
    assert (found.rows, found.labelled) == (repeated.rows, repeated.labelled)


def test_a_held_out_column_takes_the_place_of_the_score() -> None:
    table = toy_table(100, pinned_share=0.0)
    column = -table.signals["confidence"]
    found = Counter(BY_CONFIDENCE, table, column).of(np.array([-0.8]))
    assert found.kept[0] == (table.signals["confidence"] <= 0.8).sum()


def test_another_number_of_rows_has_the_same_shares() -> None:
    kept, failures, losses, gains = (np.array([n]) for n in (50, 5, 3, 1))
    one = PolicyCounts(kept, failures, losses, gains, rows=100, labelled=80)
    twice = one.scaled(200)
    assert (twice.kept[0], twice.failures[0], twice.losses[0], twice.gains[0]) == (100, 10, 6, 2)
    assert (twice.rows, twice.labelled) == (200, 160)
    third = one.scaled(33)
    assert (third.kept[0], third.failures[0], third.rows, third.labelled) == (16, 2, 33, 26)


def test_some_of_the_policies() -> None:
    found = counts(BY_CONFIDENCE, np.array([1.0, 0.9, 0.5]), toy_table(100))
    some = found.of(np.array([2, 0]))
    np.testing.assert_array_equal(some.kept, found.kept[[2, 0]])
    np.testing.assert_array_equal(some.failures, found.failures[[2, 0]])
    assert some.rows == 100


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="has no rows"):
        counts(BY_CONFIDENCE, np.array([0.5]), toy_table(0))
