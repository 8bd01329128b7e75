"""The certificate: exact bounds, a fixed order, and a promise that is kept when simulated."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cluster.errors import CertifyError
from serve_app.policy import ALWAYS_EDGE, BundlePins, RouterPolicy
from serve_app.scores import MaxProbability
from tests.tables import toy_table
from tune.certify import (
    allowed_failures,
    best_risk,
    certify,
    fixed_sequence,
    min_rows,
    p_value,
    policy_sha256,
    upper_bound,
)
from tune.objective import Shape, curve, kept
from tune.replay import Table

NOW = "2026-01-01T00:00:00+00:00"
risks = st.floats(0.002, 0.3)
confidences = st.sampled_from([0.8, 0.9, 0.95, 0.99])


def by_confidence(table: Table, steps: int = 200) -> list[RouterPolicy]:
    found = curve(Shape(score=MaxProbability()), table)
    places = np.linspace(0, found.thresholds.size - 1, steps).round().astype(int)
    return [
        RouterPolicy(name="p", score=MaxProbability(), threshold=float(found.thresholds[i]))
        for i in places
    ]


@pytest.mark.parametrize(("risk", "rows"), [(0.02, 149), (0.01, 299), (0.005, 598)])
def test_rows_needed_at_95_percent(risk: float, rows: int) -> None:
    assert min_rows(risk, 0.95) == rows


@given(risks, confidences)
def test_min_rows_is_the_fewest(risk: float, confidence: float) -> None:
    rows = min_rows(risk, confidence)
    assert allowed_failures(rows, risk, confidence) >= 0
    assert allowed_failures(rows - 1, risk, confidence) == -1
    assert best_risk(rows, confidence) <= risk * (1 + 1e-9)


@given(st.integers(1, 3000), st.integers(0, 3000), confidences)
def test_upper_bound_is_where_so_few_failures_become_too_unlikely(
    rows: int, failures: int, confidence: float
) -> None:
    failures = min(failures, rows)
    bound = upper_bound(failures, rows, confidence)
    if failures == rows:
        assert bound == 1.0
    else:
        assert stats.binom.cdf(failures, rows, bound) == pytest.approx(1 - confidence, rel=1e-6)


@given(st.integers(1, 2000), risks, confidences)
def test_the_test_passes_exactly_where_the_bound_reaches_the_target(
    rows: int, risk: float, confidence: float
) -> None:
    allowed = allowed_failures(rows, risk, confidence)
    slack = 1e-9
    if allowed >= 0:
        assert upper_bound(allowed, rows, confidence) <= risk + slack
        assert p_value(allowed, rows, risk) <= 1 - confidence + slack
    assert upper_bound(allowed + 1, rows, confidence) > risk - slack


def test_testing_stops_at_the_first_policy_that_fails() -> None:
    # 1,000 rows, 1%, 95%: four failures pass. What comes after a failure is never looked at.
    assert allowed_failures(1000, 0.01, 0.95) == 4
    assert fixed_sequence([0, 2, 4, 5, 0], 1000, 0.01, 0.95) == 3
    assert fixed_sequence([5, 0, 0], 1000, 0.01, 0.95) == 0
    assert fixed_sequence([], 1000, 0.01, 0.95) == 0


def test_a_certificate_says_what_was_seen_and_on_what() -> None:
    table = toy_table(1500, seed=3, split="certify")
    sequence = by_confidence(toy_table(1500, seed=4))
    found = certify(sequence, table, 0.08, 0.95, NOW)
    policy = sequence[found.position]
    edge = kept(policy, table)
    assert found.failures == (edge & table.differs).sum()
    assert found.edge_share == edge.mean() > 0.3
    assert found.observed_risk == found.failures / 1500
    assert found.observed_risk < found.upper_bound <= 0.08 == found.risk
    assert found.policy_sha256 == policy_sha256(policy)
    assert found.bundles == BundlePins(edge="e" * 64, cloud="c" * 64)
    assert (found.rows, found.split, found.reference) == (1500, "certify", "the cloud's answer")
    assert (found.tested, found.sequence_length) == (found.position + 2, 200)
    one_more = sequence[found.position + 1]
    failures = int((kept(one_more, table) & table.differs).sum())
    assert upper_bound(failures, 1500, 0.95) > 0.08


def test_the_last_of_the_sequence_can_pass() -> None:
    table = toy_table(400, split="certify")
    table = replace(table, edge_label=table.cloud_label)
    found = certify([ALWAYS_EDGE], table, 0.01, 0.95, NOW)
    assert (found.failures, found.edge_share, found.tested, found.position) == (0, 1.0, 1, 0)


def test_too_few_rows_says_how_many_are_needed_and_what_they_could_do() -> None:
    table = toy_table(120, split="certify")
    with pytest.raises(CertifyError) as caught:
        certify(by_confidence(table), table, 0.01, 0.95, NOW)
    message = str(caught.value)
    for part in ("120 rows", "1.00%", "95%", "299", f"{best_risk(120, 0.95):.2%}"):
        assert part in message
    assert best_risk(120, 0.95) == pytest.approx(1 - 0.05 ** (1 / 120))


def test_no_rows_can_certify_nothing() -> None:
    with pytest.raises(CertifyError, match="0 rows"):
        certify([ALWAYS_EDGE], toy_table(0, split="certify"), 0.01, 0.95, NOW)


def test_a_hopeless_edge_is_told_so() -> None:
    table = toy_table(1000, split="certify")
    with pytest.raises(CertifyError, match="most conservative one fails on") as caught:
        certify([ALWAYS_EDGE], table, 0.01, 0.95, NOW)
    failures = int(table.differs.sum())
    assert f"{failures} of 1000" in str(caught.value)
    assert f"{upper_bound(failures, 1000, 0.95):.2%}" in str(caught.value)


@pytest.mark.parametrize(("risk", "confidence"), [(0.0, 0.95), (1.0, 0.95), (0.01, 1.0), (-1, 0.5)])
def test_impossible_targets_are_refused(risk: float, confidence: float) -> None:
    with pytest.raises(CertifyError, match="between 0 and 1"):
        certify([ALWAYS_EDGE], toy_table(1000), risk, confidence, NOW)


def test_an_empty_sequence_is_refused() -> None:
    with pytest.raises(CertifyError, match="empty"):
        certify([], toy_table(1000), 0.01, 0.95, NOW)


def test_a_policy_of_other_bundles_is_refused() -> None:
    policy = ALWAYS_EDGE.model_copy(update={"bundles": BundlePins(edge="e" * 64, cloud="x" * 64)})
    with pytest.raises(CertifyError, match="pinned to the bundles"):
        certify([policy], toy_table(1000), 0.01, 0.95, NOW)


def test_the_promise_holds_where_naive_tuning_breaks_it() -> None:
    """600 draws of 1,000 rows from a population whose risk at every threshold is known.

    An edge keeps the share s most trusted messages; the s-th one fails with chance 0.1 s**2, so
    the risk of keeping s is 0.1 s**3 / 3. Naive: the largest s whose observed risk is at most 1%.
    """
    draws, rows, risk, confidence = 600, 1000, 0.01, 0.95
    dice = np.random.default_rng(7)
    place = np.sort(dice.random((draws, rows)), axis=1)
    fails = dice.random((draws, rows)) < 0.1 * place**2
    grid = np.linspace(0.0, 1.0, 401)
    true_risk = 0.1 * grid**3 / 3
    total = np.concatenate([np.zeros((draws, 1), int), fails.cumsum(axis=1)], axis=1)
    kept_rows = np.array([np.searchsorted(row, grid) for row in place])
    failures = np.take_along_axis(total, kept_rows, axis=1)

    ours = np.array([fixed_sequence(row, rows, risk, confidence) - 1 for row in failures])
    naive = grid.size - 1 - (failures <= risk * rows)[:, ::-1].argmax(axis=1)
    broken = int((true_risk[ours] >= risk).sum())
    broken_naively = int((true_risk[naive] >= risk).sum())
    # More broken promises than 5% allows would have a chance of one in a thousand.
    assert stats.binomtest(broken, draws, 0.05, alternative="greater").pvalue > 0.001
    assert broken_naively / draws > 0.3
    # Not by being useless: it keeps most of what a perfect oracle could keep.
    oracle = grid[true_risk < risk][-1]
    assert grid[ours].mean() > 0.65 * oracle
