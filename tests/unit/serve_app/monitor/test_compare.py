"""Intervals against published figures, SciPy and simulation; and what is said of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from serve_app.monitor.compare import (
    Moments,
    ReleaseCounts,
    compare,
    newcombe,
    t_quantile,
    welch,
)
from serve_app.monitor.stats import Comparison, Verdict

counts = st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize(
    ("found", "low", "high"),
    [  # Newcombe (1998), Table II, method 10
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((6, 7, 2, 7), 0.0582, 0.8062),
        ((5, 56, 0, 29), -0.0381, 0.1926),
        ((0, 10, 0, 20), -0.1611, 0.2775),
        ((10, 10, 0, 20), 0.6791, 1.0000),
    ],
)
def test_newcombes_own_examples(found: tuple[int, int, int, int], low: float, high: float) -> None:
    assert newcombe(*found) == pytest.approx((low, high), abs=5e-5)


@given(counts, counts)
def test_a_difference_of_shares_is_inside_and_mirrored(
    one: tuple[int, int], other: tuple[int, int]
) -> None:
    low, high = newcombe(*one, *other)
    difference = one[0] / one[1] - other[0] / other[1]
    assert -1 - 1e-9 <= low <= difference + 1e-12
    assert difference - 1e-12 <= high <= 1 + 1e-9
    assert newcombe(*other, *one) == pytest.approx((-high, -low), abs=1e-12)


def test_newcombe_covers_in_95_of_100() -> None:
    rng = np.random.default_rng(1)
    hits = rng.binomial([[150], [400]], [[0.97], [0.93]], (2, 2000))
    spans = [newcombe(int(a), 150, int(b), 400) for a, b in hits.T]
    covered = np.mean([low <= 0.04 <= high for low, high in spans])
    assert 0.93 <= covered <= 0.98


@pytest.mark.parametrize("freedom", [8, 12.5, 30, 200, 1e6])
def test_students_t(freedom: float) -> None:
    assert t_quantile(freedom) == pytest.approx(scipy_stats.t.ppf(0.975, freedom), rel=1e-3)


def sample(values: np.typing.NDArray[np.float64]) -> Moments:
    return Moments(count=len(values), mean=float(values.mean()), variance=float(values.var(ddof=1)))


@given(st.integers(0, 1000), st.integers(30, 200), st.integers(30, 200))
def test_welch_equals_scipys(seed: int, size: int, other_size: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.exponential(3.0, size), rng.normal(5, 2, other_size)
    expected = scipy_stats.ttest_ind(one, other, equal_var=False).confidence_interval()
    assert welch(sample(one), sample(other)) == pytest.approx(tuple(expected), abs=1e-3)


def test_two_constants_differ_by_what_they_differ() -> None:
    one, other = (Moments(count=50, mean=mean, variance=0.0) for mean in (3.0, 1.0))
    assert welch(one, other) == (2.0, 2.0)


# ---- what is made of them

PLAIN = ReleaseCounts(
    release="old",
    messages=1000,
    kept=800,
    degraded=0,
    labelled=0,
    correct=0,
    cost_usd=Moments(count=1000, mean=0.003, variance=1e-6),
    latency_ms=Moments(count=1000, mean=10.0, variance=25.0),
)


def against(champion: ReleaseCounts = PLAIN, **changes: object) -> Comparison:
    return compare(champion, replace(PLAIN, release="new", **changes), 0.0, 60.0)  # type: ignore[arg-type]


def test_without_labels_it_cannot_be_told_and_says_how_many_it_takes() -> None:
    found = against()
    assert found.verdict is Verdict.UNDECIDED
    assert found.accuracy.value is None
    # Two shares of one half, one point apart, at 80% power: 2 * 0.5 * 7.849 / 0.01^2, for each.
    assert found.more_labels == pytest.approx(2 * 39_244, abs=4)
    assert "cannot be told from 0 and 0 labels" in found.summary
    assert str(found.more_labels) in found.summary


def test_the_better_release_is_named_with_its_interval() -> None:
    champion = replace(PLAIN, labelled=1000, correct=850)
    found = against(champion, labelled=400, correct=380)
    assert (found.verdict, found.more_labels) == (Verdict.BETTER, None)
    assert found.accuracy.value == pytest.approx(0.10)
    low, high = newcombe(380, 400, 850, 1000)
    assert (found.accuracy.low, found.accuracy.high) == (low, high)
    assert found.summary == (
        f"new is right more often than old, by 10.0 points "
        f"(95%: {100 * low:+.1f} to {100 * high:+.1f})."
    )
    swapped = against(replace(PLAIN, labelled=400, correct=380), labelled=1000, correct=850)
    assert swapped.verdict is Verdict.WORSE
    assert swapped.summary.startswith("new is right less often than old, by 10.0 points")


def test_the_labels_asked_for_are_enough_in_four_of_five() -> None:
    """A simulation: 90% against 95%, with as many labels as the first 100 of each ask for."""
    champion = replace(PLAIN, labelled=100, correct=90)
    more = against(champion, labelled=100, correct=95).more_labels
    assert more is not None
    each = 100 + math.ceil(more / 2)
    rng = np.random.default_rng(5)
    old, new = rng.binomial(each, [[0.90], [0.95]], (2, 1000))
    told = [newcombe(int(b), each, int(a), each)[0] > 0 for a, b in zip(old, new, strict=True)]
    assert 0.75 <= np.mean(told) <= 0.95


@given(counts, counts)
def test_either_a_verdict_or_a_number_of_labels(
    one: tuple[int, int], other: tuple[int, int]
) -> None:
    champion = replace(PLAIN, correct=one[0], labelled=one[1])
    found = against(champion, correct=other[0], labelled=other[1])
    assert (found.verdict is Verdict.UNDECIDED) == (found.more_labels is not None)
    assert found.more_labels is None or found.more_labels >= 1


def test_what_stands_out_besides_is_said() -> None:
    found = against(
        kept=900,
        degraded=50,
        cost_usd=Moments(count=900, mean=0.002, variance=1e-6),
        latency_ms=Moments(count=900, mean=12.0, variance=25.0),
    )
    assert "It costs $0.00100 less per message." in found.summary
    assert "It takes 2.0 ms more on average." in found.summary
    assert "Its rule keeps 10.0 points more at the edge." in found.summary
    assert "5.0 points more of its answers are degraded." in found.summary
    assert against().summary.count(".") == 2, "nothing else differs"


def test_few_messages_say_nothing_of_means() -> None:
    found = against(latency_ms=Moments(count=29, mean=500.0, variance=1.0))
    assert (found.latency_ms.value, found.latency_ms.stands_out) == (None, False)
    assert found.challenger.latency_mean_ms == 500.0
