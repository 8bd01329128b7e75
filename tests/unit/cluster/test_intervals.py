"""The interval of a share, against published figures and SciPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cluster.intervals import wilson

counts = st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def test_wilson_as_published() -> None:
    # Newcombe (1998), table I: 15 of 148 has the score interval 0.0624 to 0.1605.
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    # R: prop.test(8, 10, correct = FALSE)
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)


@given(counts)
def test_wilson_is_scipys(counted: tuple[int, int]) -> None:
    hits, rows = counted
    found = stats.binomtest(hits, rows).proportion_ci(0.95, method="wilson")
    low, high = wilson(hits, rows)
    assert (low, high) == pytest.approx((found.low, found.high), abs=1e-12)
    assert 0 <= low <= hits / rows <= high <= 1
    mirrored = wilson(rows - hits, rows)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)


@given(st.lists(counts, min_size=1))
def test_columns_have_the_intervals_of_their_rows(counted: list[tuple[int, int]]) -> None:
    hits, rows = (np.array(column) for column in zip(*counted, strict=True))
    found = np.stack(wilson(hits, rows), axis=1).tolist()
    assert [tuple(one) for one in found] == [wilson(*one) for one in counted]


def test_wilson_of_no_rows_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
