"""Bounds: exact where arithmetic can say so, and kept in thousands of draws where it cannot."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from serve_app.decide.cost import Prices
from tests.support.bounds import lower_bound
from tune.certificate.bounds import (
    FailureCounts,
    agreement_lower_bound,
    allowed_failures,
    best_risk,
    class_counts,
    level,
    loss_counts,
    loss_p_value,
    loss_upper_bound,
    min_rows,
    p_value,
    per_class,
    rows_needed,
    share_bound_of_any,
    upper_bound,
)
from tune.replay import Floats

risks = st.floats(0.002, 0.3)
confidences = st.sampled_from([0.8, 0.9, 0.95, 0.99])
seeds = st.integers(0, 2**32 - 1)
counts = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
unhurried = settings(deadline=None)  # a busy machine is not a slow function
PRICES = Prices(edge_usd=0.001, cloud_usd=0.01)


def within_level(broken: int, draws: int, confidence: float) -> bool:
    """More broken promises than the level allows would have a chance of one in a thousand."""
    return broken <= stats.binom.ppf(0.999, draws, level(confidence))


def table_of(bound: Callable[[int], float], rows: int) -> Floats:
    """A bound of every number of failures, to look draws up in."""
    return np.array([bound(failures) for failures in range(rows + 1)])


# ---- a: risk ------------------------------------------------------------------------------------


@given(counts, confidences)
@unhurried
def test_bounds_are_those_of_scipy(counted: tuple[int, int], confidence: float) -> None:
    failures, rows = counted
    test = stats.binomtest(failures, rows, alternative="less")
    exact = test.proportion_ci(confidence, method="exact")
    assert upper_bound(failures, rows, confidence) == pytest.approx(exact.high, rel=1e-9)
    test = stats.binomtest(failures, rows, alternative="greater")
    exact = test.proportion_ci(confidence, method="exact")
    assert lower_bound(failures, rows, confidence) == pytest.approx(exact.low, rel=1e-6, abs=1e-12)


@given(counts, risks)
@unhurried
def test_the_p_value_is_that_of_scipy(counted: tuple[int, int], risk: float) -> None:
    exact = stats.binomtest(*counted, risk, alternative="less").pvalue
    assert p_value(*counted, risk) == pytest.approx(exact, rel=1e-9, abs=1e-300)


@given(counts, confidences)
@unhurried
def test_more_failures_or_more_confidence_make_a_higher_bound(
    counted: tuple[int, int], confidence: float
) -> None:
    failures, rows = counted
    bound = upper_bound(failures, rows, confidence)
    assert failures / rows < bound or failures == rows
    assert upper_bound(failures, rows, confidence + 0.005) >= bound
    assert upper_bound(failures, rows + 1, confidence) < bound or failures == rows
    if failures < rows:
        assert upper_bound(failures + 1, rows, confidence) > bound


def test_no_rows_say_nothing_and_all_failures_the_worst() -> None:
    assert (lower_bound(0, 0, 0.95), upper_bound(0, 0, 0.95)) == (0.0, 1.0)
    assert (p_value(0, 0, 0.01), best_risk(0, 0.95)) == (1.0, 1.0)
    assert allowed_failures(0, 0.01, 0.95) == -1
    assert upper_bound(7, 7, 0.95) == 1.0
    assert lower_bound(0, 7, 0.95) == 0.0
    assert lower_bound(7, 7, 0.95) == pytest.approx(0.05 ** (1 / 7))


@given(st.integers(1, 2000), risks, confidences)
@unhurried
def test_the_test_passes_exactly_where_the_bound_reaches_the_target(
    rows: int, risk: float, confidence: float
) -> None:
    allowed = allowed_failures(rows, risk, confidence)
    if allowed >= 0:
        assert upper_bound(allowed, rows, confidence) <= risk + 1e-9
        assert p_value(allowed, rows, risk) <= level(confidence)
    assert upper_bound(allowed + 1, rows, confidence) > risk - 1e-9
    assert p_value(allowed + 1, rows, risk) > level(confidence)


@given(risks, confidences)
@unhurried
def test_min_rows_is_the_fewest(risk: float, confidence: float) -> None:
    rows = min_rows(risk, confidence)
    assert allowed_failures(rows, risk, confidence) >= 0
    assert allowed_failures(rows - 1, risk, confidence) == -1
    assert best_risk(rows, confidence) <= risk * (1 + 1e-9)


@pytest.mark.parametrize(("risk", "rows"), [(0.02, 149), (0.01, 299), (0.005, 598)])
def test_min_rows_at_95_percent(risk: float, rows: int) -> None:
    assert min_rows(risk, 0.95) == rows


@pytest.mark.parametrize("risk", [0.004, 0.01, 0.05, 0.3])
@pytest.mark.parametrize("rows", [100, 1000])
def test_the_risk_is_rarely_outside_its_bounds(risk: float, rows: int) -> None:
    failures = np.random.default_rng(1).binomial(rows, risk, 20_000)
    above = table_of(lambda k: upper_bound(k, rows, 0.95), rows)[failures]
    below = table_of(lambda k: lower_bound(k, rows, 0.95), rows)[failures]
    assert within_level(int((above < risk).sum()), 20_000, 0.95)
    assert within_level(int((below > risk).sum()), 20_000, 0.95)


# ---- b: agreement -------------------------------------------------------------------------------


def test_agreement_holds_however_many_rows_are_kept() -> None:
    """How many are kept is chance, from a few to half more than expected."""
    draws, rows, keep, differ = 20_000, 400, 0.3, 0.04
    dice = np.random.default_rng(2)
    kept = dice.binomial(rows, keep, draws)
    failures = dice.binomial(kept, differ)
    bounds = {
        pair: agreement_lower_bound(*pair, 0.95)
        for pair in set(zip(failures.tolist(), kept.tolist(), strict=True))
    }
    found = np.array([bounds[int(f), int(k)] for f, k in zip(failures, kept, strict=True)])
    assert within_level(int((found > 1 - differ).sum()), draws, 0.95)
    assert (found > 1 - differ).mean() > 0.01


@given(counts, confidences)
@unhurried
def test_the_bound_and_the_test_of_agreement_say_the_same(
    counted: tuple[int, int], confidence: float
) -> None:
    bound = agreement_lower_bound(*counted, confidence)
    assume(bound > 0.001)
    assert p_value(*counted, level(bound - 1e-6)) <= level(confidence)
    assert p_value(*counted, level(min(1.0, bound + 1e-6))) >= level(confidence) * (1 - 1e-6)


def test_nothing_kept_agrees_on_nothing() -> None:
    assert agreement_lower_bound(0, 0, 0.95) == 0.0


# ---- c: accuracy lost ---------------------------------------------------------------------------

paired = st.integers(1, 300).flatmap(
    lambda n: st.tuples(st.integers(0, n), st.integers(0, n), st.just(n))
).filter(lambda counted: counted[0] + counted[1] <= counted[2])  # fmt: skip


def test_only_kept_messages_lose_or_gain() -> None:
    kept = np.array([True, True, True, True, True, False, False])
    edge_right = np.array([False, True, True, False, False, False, True])
    cloud_right = np.array([True, False, True, False, True, True, False])
    assert loss_counts(kept, edge_right, cloud_right) == (2, 1)


def trinomial_cdf(difference: int, rows: int, loss: float, gain: float) -> float:
    """P(losses - gains <= difference), one pair of counts at a time."""
    law = stats.multinomial(rows, [loss, gain, 1 - loss - gain])
    return math.fsum(
        law.pmf([losses, gains, rows - losses - gains])
        for losses in range(rows + 1)
        for gains in range(rows + 1 - losses)
        if losses - gains <= difference
    )


@pytest.mark.parametrize(
    ("losses", "gains", "rows", "loss"), [(0, 0, 30, 0.1), (2, 3, 25, 0.2), (1, 4, 20, -0.1)]
)
def test_the_p_value_is_the_largest_chance_over_what_is_not_known(
    losses: int, gains: int, rows: int, loss: float
) -> None:
    """Against a search over how often only one is right; ours may be larger, by little."""
    highest = upper_bound(losses + gains, rows, 0.995)
    shares = np.linspace(abs(loss), highest, 200)
    largest = max(
        trinomial_cdf(losses - gains, rows, (q + loss) / 2, (q - loss) / 2) for q in shares
    )
    p = loss_p_value(losses, gains, rows, loss, 0.95)
    assert largest + 0.005 <= p <= 1.15 * largest + 0.005


@pytest.mark.parametrize(
    ("rows", "loss", "gain"),
    [(300, 0.01, 0.01), (1000, 0.01, 0.002), (60, 0.3, 0.1), (200, 0.02, 0.0), (80, 0.05, 0.2)],
)
def test_the_accuracy_lost_is_rarely_above_its_bound(rows: int, loss: float, gain: float) -> None:
    shares = (loss, gain, 1 - loss - gain)
    drawn = np.random.default_rng(3).multinomial(rows, shares, 5000)[:, :2]
    pairs, times = np.unique(drawn, axis=0, return_counts=True)
    for confidence in (0.95, 0.8):
        # The p-value of the truth is small exactly where the bound is below it.
        p_values = [
            loss_p_value(lost, won, rows, loss - gain, confidence) for lost, won in pairs.tolist()
        ]
        broken = times[np.array(p_values) <= level(confidence)].sum()
        assert within_level(int(broken), 5000, confidence)
        assert broken > 0 or confidence > 0.9


@given(paired, confidences, st.floats(-0.9, 0.9))
@settings(unhurried, max_examples=40)
def test_the_bound_and_the_test_of_the_loss_say_the_same(
    counted: tuple[int, int, int], confidence: float, loss: float
) -> None:
    losses, gains, rows = counted
    bound = loss_upper_bound(*counted, confidence)
    assert (losses - gains) / rows < bound <= 1.0 or bound == losses / rows == 1.0
    p = loss_p_value(*counted, loss, confidence)
    assert 0.0 < p <= 1.0
    assert (p <= level(confidence)) == (loss >= bound) or abs(loss - bound) < 1e-5
    assert loss_p_value(*counted, loss + 0.05, confidence) <= p + 1e-8


@given(paired, confidences)
@settings(unhurried, max_examples=40)
def test_more_losses_or_fewer_gains_make_a_higher_bound(
    counted: tuple[int, int, int], confidence: float
) -> None:
    losses, gains, rows = counted
    # The cells of the search are not the same for other counts, and each is a bound of its own.
    slack = 0.02 / math.sqrt(rows)
    bound = loss_upper_bound(*counted, confidence)
    if losses + gains < rows:
        assert loss_upper_bound(losses + 1, gains, rows, confidence) >= bound - slack
    if gains:
        assert loss_upper_bound(losses + 1, gains - 1, rows, confidence) >= bound - slack
    assert bound >= upper_bound(losses, rows, confidence) - upper_bound(gains, rows, confidence)


def test_the_loss_of_no_rows_and_of_rows_all_alike() -> None:
    assert (loss_upper_bound(0, 0, 0, 0.95), loss_p_value(0, 0, 0, 0.1, 0.95)) == (1.0, 1.0)
    assert loss_upper_bound(200, 0, 200, 0.95) == 1.0
    assert loss_p_value(200, 0, 200, 0.99, 0.95) > 0.05
    assert loss_upper_bound(0, 200, 200, 0.95) < -0.95
    assert 0.0 < loss_upper_bound(0, 0, 1000, 0.95) < 0.005
    assert loss_p_value(0, 0, 1000, 0.99, 0.95) == pytest.approx(0.005)


def test_the_bound_is_tighter_than_two_binomials_at_half_the_level_each() -> None:
    """tests/bench/losses.py has the whole comparison."""
    for losses, gains, rows in ((10, 5, 1000), (20, 10, 2000), (60, 30, 3000)):
        two = upper_bound(losses, rows, 0.975) - lower_bound(gains, rows, 0.975)
        seen = (losses - gains) / rows
        assert loss_upper_bound(losses, gains, rows, 0.95) - seen < 0.88 * (two - seen)


# ---- d: cloud share -----------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [50, 1000])
def test_the_cloud_share_of_the_luckiest_threshold_is_rarely_above_its_bound(rows: int) -> None:
    """The threshold is the one of all whose cloud share is most underrated by the rows."""
    place = np.sort(np.random.default_rng(6).random((4000, rows)), axis=1)
    # Just above the i-th lowest score, the edge keeps rows - i: as many as it will at any share.
    luckiest = (place - np.arange(rows) / rows).max(axis=1)
    margin = share_bound_of_any(0, rows, 0.95)
    assert within_level(int((luckiest > margin).sum()), 4000, 0.95)
    assert (luckiest > margin).mean() > 0.02
    assert share_bound_of_any(rows, rows, 0.95) == share_bound_of_any(0, 0, 0.95) == 1.0
    assert share_bound_of_any(rows // 5, rows, 0.95) > upper_bound(rows // 5, rows, 0.95)


# ---- e: per class -------------------------------------------------------------------------------


def test_a_class_is_counted_among_the_rows_that_are_asked_for() -> None:
    predicted = np.array([0, 0, 1, 1, 1, 3])
    failed = np.array([True, False, True, True, False, False])
    kept = np.array([True, True, False, True, True, False])
    every = np.ones(6, np.bool_)
    labels = ("a", "b", "c", "d")
    of_all = {"a": (1, 2), "b": (2, 3), "c": (0, 0), "d": (0, 1)}
    assert class_counts(predicted, every, failed, labels) == of_all
    of_kept = {"a": (1, 2), "b": (1, 2), "c": (0, 0), "d": (0, 0)}
    assert class_counts(predicted, kept, failed, labels) == of_kept


def test_classes_are_tested_in_order_of_evidence_and_the_rest_is_bounded() -> None:
    found = per_class(
        {
            "clean": FailureCounts(0, 320),
            "fair": FailureCounts(8, 320),
            "poor": FailureCounts(30, 320),
            "rare": FailureCounts(0, 20),
        },
        risk=0.05,
        confidence=0.95,
    )
    # "fair" fails at 0.05 / 3, and passes at 0.05 / 2 because "clean" passed before it.
    assert 0.05 / 3 < p_value(8, 320, 0.05) <= 0.05 / 2
    clean, fair, poor = found.classes
    assert (clean.certified, fair.certified, poor.certified) == (True, True, False)
    assert clean.upper_bound == fair.upper_bound == 0.05
    assert poor.upper_bound == upper_bound(30, 320, 0.95) > 0.05
    assert (found.too_few, found.rows_needed) == (("rare",), min_rows(0.05, 1 - 0.05 / 4))


def test_one_class_is_tested_as_if_it_were_all() -> None:
    (only,) = per_class({"a": FailureCounts(8, 1500)}, 0.01, 0.95).classes
    assert only.certified == (allowed_failures(1500, 0.01, 0.95) >= 8)


def test_classes_without_rows_are_too_few_and_no_class_is_no_error() -> None:
    found = per_class({"a": FailureCounts(0, 0), "b": FailureCounts(0, 58)}, 0.05, 0.95)
    assert (found.classes, found.too_few, found.rows_needed) == ((), ("a", "b"), 59)
    assert per_class({}, 0.05, 0.95).classes == ()


@given(st.lists(counts, max_size=12), risks, confidences)
@unhurried
def test_per_class_names_every_class_once_and_agrees_with_its_own_bounds(
    counted: list[tuple[int, int]], risk: float, confidence: float
) -> None:
    given_counts = {str(i): FailureCounts(*pair) for i, pair in enumerate(counted)}
    found = per_class(given_counts, risk, confidence)
    named = [one.label for one in found.classes] + list(found.too_few)
    assert sorted(named) == sorted(given_counts)
    assert all(given_counts[name].rows < found.rows_needed for name in found.too_few)
    for one in found.classes:
        assert one.rows >= min_rows(risk, 1 - level(confidence) / len(found.classes))
        assert one.upper_bound == risk if one.certified else one.upper_bound > risk
        if p_value(one.failures, one.rows, risk) <= level(confidence) / len(found.classes):
            assert one.certified


def test_all_statements_about_classes_hold_at_once() -> None:
    """The worst case: classes exactly at the target, beside some far below and some above it."""
    true_risks = {"a": 0.05, "b": 0.05, "c": 0.05, "d": 0.005, "e": 0.01, "f": 0.12, "g": 0.05}
    broken, certified = simulate_classes(true_risks, rows=2000, risk=0.05, draws=2000)
    assert within_level(broken, 2000, 0.95)
    assert broken > 20
    assert certified > 1.9  # of the two that are far below


def simulate_classes(
    true_risks: Mapping[str, float], rows: int, risk: float, draws: int
) -> tuple[int, float]:
    """(draws with any false statement, classes certified per draw); sizes of classes vary."""
    dice = np.random.default_rng(8)
    truth = np.array(list(true_risks.values()))
    sizes = dice.multinomial(rows, np.full(truth.size, 1 / truth.size), draws)
    failures = dice.binomial(sizes, truth)
    broken, certified = 0, 0
    for row_failures, row_sizes in zip(failures.tolist(), sizes.tolist(), strict=True):
        pairs = zip(true_risks, row_failures, row_sizes, strict=True)
        found = per_class({name: FailureCounts(f, n) for name, f, n in pairs}, risk, 0.95)
        broken += any(
            true_risks[one.label] >= risk
            if one.certified
            else true_risks[one.label] > one.upper_bound
            for one in found.classes
        )
        certified += sum(one.certified for one in found.classes)
    return broken, certified / draws


def test_testing_in_order_certifies_more_classes_than_testing_all_alike() -> None:
    failures = np.random.default_rng(9).binomial(500, 0.02, (100, 20)).tolist()
    ordered = alike = 0
    for drawn in failures:
        found = per_class({str(i): FailureCounts(f, 500) for i, f in enumerate(drawn)}, 0.05, 0.95)
        ordered += sum(one.certified for one in found.classes)
        alike += sum(p_value(f, 500, 0.05) <= 0.05 / 20 for f in drawn)
    assert ordered / 2000 > 0.9 > 0.75 > alike / 2000


# ---- f: rows needed -----------------------------------------------------------------------------


@pytest.mark.parametrize("chance", [0.5, 0.9])
@pytest.mark.parametrize(
    ("risk", "confidence", "expected"), [(0.05, 0.95, 0.02), (0.1, 0.9, 0.05), (0.2, 0.8, 0.12)]
)
def test_rows_needed_is_the_fewest_of_all(
    risk: float, confidence: float, expected: float, chance: float
) -> None:
    def passes(rows: int) -> bool:
        allowed = allowed_failures(rows, risk, confidence)
        return allowed >= 0 and p_value(allowed, rows, expected) >= chance

    rows = rows_needed(risk, confidence, expected, chance)
    assert rows == next(n for n in range(1, 3000) if passes(n))


@given(risks, confidences, st.floats(0.0, 0.8))
@unhurried
def test_rows_needed_grow_with_the_chance_and_with_the_risk_expected(
    risk: float, confidence: float, part: float
) -> None:
    rows = rows_needed(risk, confidence, part * risk)
    assert rows >= min_rows(risk, confidence)
    assert rows_needed(risk, confidence, part * risk, 0.9) >= rows
    assert rows_needed(risk, confidence, (part + 0.05) * risk) >= rows


def test_rows_needed_without_failures_or_hope() -> None:
    assert rows_needed(0.01, 0.95, 0.0) == rows_needed(0.01, 0.95, 0.0, 0.9) == 299
    assert rows_needed(0.01, 0.95, 0.01) == math.inf
    assert rows_needed(0.01, 0.95, 0.02) == math.inf
    assert rows_needed(0.01, 0.95, 0.0099) > 100_000
