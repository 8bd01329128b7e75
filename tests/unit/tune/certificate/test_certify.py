"""The certificate: a fixed order, all limits at once, and promises that are kept when simulated."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cluster.errors import CertifyError, DataError
from serve_app.decide.cost import Prices
from serve_app.decide.policy import BundlePins
from serve_app.decide.scores import MaxProbability
from tests.support.tables import toy_table
from tune.certificate.bounds import (
    agreement_lower_bound,
    allowed_failures,
    best_risk,
    level,
    loss_upper_bound,
    upper_bound,
)
from tune.certificate.certify import (
    Certificate,
    alternatives,
    certificate,
    certify,
    fixed_sequence,
    policy_sha256,
    require_rows,
    start_of,
)
from tune.certificate.counts import counts
from tune.certificate.limits import KINDS, Limits, observed, passes
from tune.objective import Shape, curve, kept
from tune.replay import Floats, Table

NOW = "2026-01-01T00:00:00+00:00"
CONFIDENCE = 0.95
PRICES = Prices(edge_usd=0.001, cloud_usd=0.01)
SHAPE = Shape(score=MaxProbability())
unhurried = settings(deadline=None)


def thresholds_of(table: Table) -> Floats:
    return curve(SHAPE, table).thresholds


TUNE = toy_table(800, seed=4)
THRESHOLDS = thresholds_of(TUNE)


def run(table: Table, start: int = 0, **limits: float) -> tuple[int, int]:
    return certify(SHAPE, THRESHOLDS, table, Limits(**limits), CONFIDENCE, PRICES, start)


# ---- the sequence -------------------------------------------------------------------------------


def test_testing_stops_at_the_first_policy_that_fails() -> None:
    """What comes after a failure is never looked at."""
    assert fixed_sequence(np.array([True, True, False, True])) == 1
    assert fixed_sequence(np.array([True, True])) == 1
    assert fixed_sequence(np.array([False, True])) == -1


@given(st.integers(0, 100), st.sampled_from([0.05, 0.08, 0.12]), st.integers(0, 700))
@unhurried
def test_the_last_of_the_unbroken_run_is_named(seed: int, risk: float, start: int) -> None:
    table = toy_table(600, seed, "certify")
    passed = passes(Limits(risk=risk), counts(SHAPE, THRESHOLDS, table), PRICES, CONFIDENCE)
    expected = start + fixed_sequence(passed[start:])
    if expected < start:
        with pytest.raises(CertifyError):
            run(table, start, risk=risk)
    else:
        last, tested = run(table, start, risk=risk)
        assert last == expected
        failing = 1 if last + 1 < THRESHOLDS.size else 0
        assert tested == last - start + 1 + failing


def test_the_last_of_the_sequence_can_pass() -> None:
    table = toy_table(400, split="certify")
    table = replace(table, edge_label=table.cloud_label)
    last, tested = run(table, risk=0.01)
    assert last == tested - 1 == THRESHOLDS.size - 1


def test_a_sequence_of_one_policy() -> None:
    table = toy_table(1000, split="certify", pinned_share=0.0)
    one = np.array([1.5])
    assert certify(SHAPE, one, table, Limits(risk=0.01), CONFIDENCE, PRICES) == (0, 1)


def test_where_few_kept_rows_are_safe_testing_starts_with_the_strictest() -> None:
    seen = counts(SHAPE, THRESHOLDS, TUNE)
    for limits in ({"risk": 0.01}, {"accuracy_loss": 0.01}, {"risk": 0.1, "accuracy_loss": 0.1}):
        assert start_of(Limits(**limits), seen, PRICES, CONFIDENCE) == 0


@pytest.mark.parametrize("limits", [{"agreement": 0.9}, {"risk": 0.1, "cloud_share": 0.6}])
def test_elsewhere_it_starts_where_tune_proves_most(limits: dict[str, float]) -> None:
    """The strictest policy keeps nothing, of which no agreement and no cloud share is proven."""
    seen = counts(SHAPE, THRESHOLDS, TUNE)
    start = start_of(Limits(**limits), seen, PRICES, CONFIDENCE)
    assert 0 < start < THRESHOLDS.size - 1
    table = toy_table(2000, 8, "certify")
    with pytest.raises(CertifyError, match="first one tested"):
        run(table, 0, **limits)
    last, tested = run(table, start, **limits)
    assert start <= last == start + tested - 2


# ---- what is written down -----------------------------------------------------------------------


def made(table: Table, threshold: float, limits: Limits, **more: Any) -> Certificate:
    policy = SHAPE.policy("p", threshold)
    return certificate(policy, table, limits, CONFIDENCE, PRICES, NOW, **more)


def test_a_certificate_says_what_was_seen_and_on_what() -> None:
    table = toy_table(1500, seed=3, split="certify")
    last, tested = run(table, risk=0.08)
    threshold = float(THRESHOLDS[last])
    found = made(table, threshold, Limits(risk=0.08), position=last, tested=tested,
                 sequence_length=THRESHOLDS.size)  # fmt: skip
    policy = SHAPE.policy("p", threshold)
    edge = kept(policy, table)
    promise = found.promises["risk"]
    assert promise.failures == (edge & table.differs).sum()
    assert (promise.limit, promise.rows) == (0.08, 1500)
    assert promise.observed == promise.failures / 1500 < promise.bound <= 0.08
    assert found.edge_share == edge.mean() > 0.3
    assert found.policy_sha256 == policy_sha256(policy)
    assert found.bundles == BundlePins(edge="e" * 64, cloud="c" * 64)
    assert (found.rows, found.split, found.reference) == (1500, "certify", "the cloud's answer")
    assert (found.tested, found.sequence_length) == (found.position + 2, THRESHOLDS.size)
    one_more = counts(SHAPE, THRESHOLDS[last + 1 : last + 2], table)
    assert upper_bound(int(one_more.failures[0]), 1500, CONFIDENCE) > 0.08


def test_every_promise_has_what_was_counted_and_its_own_exact_bound() -> None:
    table = toy_table(900, seed=3, split="certify", unknown_share=0.4)
    limits = Limits(risk=0.1, agreement=0.8, accuracy_loss=0.1, cloud_share=0.6, cost_usd=0.008)
    found = made(table, 0.8, limits)
    seen = counts(SHAPE, np.array([0.8]), table)
    away, failed, kept_rows = int(seen.escalated[0]), int(seen.failures[0]), int(seen.kept[0])
    lost, won, labelled = int(seen.losses[0]), int(seen.gains[0]), seen.labelled
    assert labelled < 900
    assert list(found.promises) == list(KINDS)
    expected = {
        "risk": (failed, 900, upper_bound(failed, 900, CONFIDENCE)),
        "agreement": (failed, kept_rows, agreement_lower_bound(failed, kept_rows, CONFIDENCE)),
        "accuracy_loss": (lost, labelled, loss_upper_bound(lost, won, labelled, CONFIDENCE)),
        "cloud_share": (away, 900, upper_bound(away, 900, CONFIDENCE)),
        "cost_usd": (away, 900, PRICES.per_message(upper_bound(away, 900, CONFIDENCE))),
    }
    for kind, promise in found.promises.items():
        assert (promise.failures, promise.rows, promise.bound) == expected[kind]
        assert promise.observed == observed(kind, seen, PRICES)[0]
        assert promise.limit == limits.stated[kind]


def test_a_certificate_comes_back_from_its_file() -> None:
    found = made(toy_table(900, split="certify"), 0.8, Limits(risk=0.1, cloud_share=0.6))
    assert Certificate.model_validate_json(found.model_dump_json()) == found


def test_alternatives_are_the_same_sequence_at_other_risks() -> None:
    table = toy_table(1500, seed=3, split="certify")
    found = alternatives((0.12, 0.0001, 0.08, 0.06), SHAPE, THRESHOLDS, table, CONFIDENCE)
    assert [one.risk for one in found] == [0.06, 0.08, 0.12]  # 0.0001 takes 30,000 rows
    shares = [one.edge_share for one in found]
    assert shares == sorted(shares)
    for one in found:
        assert one.threshold == THRESHOLDS[run(table, risk=one.risk)[0]]
        assert one.upper_bound <= one.risk
        assert one.edge_share == kept(SHAPE.policy("p", one.threshold), table).mean()


# ---- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "said"),
    [({"risk": 0.01}, ("a risk of 1.00%", "299", f"{best_risk(120, 0.95):.2%}")),
     ({"risk": 0.2, "agreement": 0.99}, ("a disagreement of 1.00%", "299")),
     ({"risk": 0.2, "cloud_share": 0.02}, ("a cloud share of 2.00%", "149"))],
)  # fmt: skip
def test_too_few_rows_says_how_many_are_needed_and_what_they_could_do(
    limits: dict[str, float], said: tuple[str, ...]
) -> None:
    with pytest.raises(CertifyError) as caught:
        require_rows(120, "certify", Limits(**limits), CONFIDENCE)
    for part in ("120 rows", "95%", *said):
        assert part in str(caught.value)


@pytest.mark.parametrize("limits", [{"risk": 0.03}, {"accuracy_loss": 0.0001}])
def test_enough_rows_and_limits_that_rows_alone_cannot_rule_out(limits: dict[str, float]) -> None:
    require_rows(120, "certify", Limits(**limits), CONFIDENCE)


def test_no_rows_can_certify_nothing() -> None:
    with pytest.raises(DataError, match="has no rows"):
        run(toy_table(0, split="certify"), risk=0.1)


def test_the_accuracy_lost_needs_labels() -> None:
    table = toy_table(500, split="certify", unknown_share=1.0)
    with pytest.raises(CertifyError, match=r"none of the 500 rows .* or --max-risk"):
        run(table, risk=0.1, accuracy_loss=0.1)
    run(table, risk=0.1)


def test_a_hopeless_edge_is_told_so_limit_by_limit() -> None:
    table = toy_table(1000, split="certify", pinned_share=0.0)
    everything = np.array([0.0])
    limits = Limits(risk=0.01, cloud_share=0.2)
    with pytest.raises(CertifyError, match="first one tested fails") as caught:
        certify(SHAPE, everything, table, limits, CONFIDENCE, PRICES)
    failures = int(table.differs.sum())
    bound = upper_bound(failures, 1000, CONFIDENCE)
    assert f"--max-risk 0.01: {failures} of 1000 rows, {failures / 1000:.4g} seen, {bound:.4g}" in (
        str(caught.value)
    )
    assert "--max-cloud-share 0.2: 0 of 1000 rows" in str(caught.value)
    assert "personal data" not in str(caught.value)


def test_pinned_messages_alone_can_make_a_risk_impossible() -> None:
    """They stay at the edge whatever the threshold, so no policy can do better than they do."""
    stuck = toy_table(1500, seed=2, split="certify", pinned_share=0.9)
    count = int((stuck.pinned & stuck.differs).sum())
    with pytest.raises(CertifyError, match=rf"{count} of the failures are messages with personal"):
        run(stuck, risk=0.02)


def test_nothing_kept_is_no_agreement() -> None:
    table = toy_table(500, split="certify", pinned_share=0.0)
    with pytest.raises(CertifyError, match=r"0 of 0 rows, 0 seen, 0 can be guaranteed"):
        certify(SHAPE, np.array([2.0]), table, Limits(agreement=0.5), CONFIDENCE, PRICES)


def test_a_policy_of_other_bundles_is_refused() -> None:
    policy = SHAPE.policy("p", 0.5, bundles=BundlePins(edge="e" * 64, cloud="x" * 64))
    with pytest.raises(CertifyError, match="pinned to the bundles"):
        certificate(policy, toy_table(900), Limits(risk=0.1), CONFIDENCE, PRICES, NOW)


# ---- is it true? --------------------------------------------------------------------------------


def too_many(broken: int, draws: int) -> bool:
    """More broken promises than 5% allows would have a chance of one in a thousand."""
    return broken > stats.binom.ppf(0.999, draws, level(CONFIDENCE))


@pytest.mark.parametrize(
    "limits",
    [
        {"risk": 0.07},
        {"agreement": 0.92},
        {"risk": 0.07, "agreement": 0.9},
        {"risk": 0.07, "cloud_share": 0.5},
        {"risk": 0.06, "cloud_share": 0.325},  # no policy keeps both: whatever is named breaks one
    ],
)
def test_promises_are_kept_all_at_once_where_naive_tuning_breaks_them(
    limits: dict[str, float],
) -> None:
    """300 draws of 800 rows from 6,000, of which every threshold's figures are known.

    Naive: the most permissive threshold whose figures on the draw are within all limits.
    """
    draws, rows, wanted = 300, 800, Limits(**limits)
    everyone = toy_table(6000, seed=3, split="certify")
    truth = counts(SHAPE, THRESHOLDS, everyone)
    bad = ~within(wanted, truth)
    start = start_of(wanted, counts(SHAPE, THRESHOLDS, TUNE), PRICES, CONFIDENCE)
    dice = np.random.default_rng(7)
    broken = broken_naively = 0
    for _ in range(draws):
        table = everyone.of(dice.integers(0, everyone.rows, rows))
        seen = np.flatnonzero(within(wanted, counts(SHAPE, THRESHOLDS, table)))
        broken_naively += bool(seen.size) and bool(bad[seen[-1]])
        try:
            last, _ = run(table, start, **limits)
        except CertifyError:
            continue
        broken += bool(bad[last])
    assert bad.all() == (limits == {"risk": 0.06, "cloud_share": 0.325})
    assert not too_many(broken, draws)
    assert broken_naively > 0.3 * draws


def within(limits: Limits, seen: Any) -> Any:
    """Whether the figures themselves are within the limits, without any bound."""
    found = [
        observed(kind, seen, PRICES) > limit
        if kind == "agreement"
        else observed(kind, seen, PRICES) < limit
        for kind, limit in limits.stated.items()
    ]
    return np.all(found, axis=0)


def test_a_promise_is_not_kept_by_promising_nothing() -> None:
    table = toy_table(3000, 9, "certify")
    share = counts(SHAPE, THRESHOLDS[[run(table, risk=0.07)[0]]], table).kept[0] / 3000
    hindsight = counts(SHAPE, THRESHOLDS, table)
    allowed = hindsight.failures <= 0.07 * 3000
    assert allowed_failures(3000, 0.07, CONFIDENCE) < 0.07 * 3000
    assert 0.8 < share / (hindsight.kept[allowed].max() / 3000) < 1.0
