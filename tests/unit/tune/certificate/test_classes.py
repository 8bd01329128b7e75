"""Per class: what is kept shrinks only, and what is certified of a class is true of it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cluster.errors import CertifyError
from serve_app.decide.cost import Prices
from serve_app.decide.policy import RouterPolicy, Rules
from serve_app.decide.scores import MaxProbability, Weighted
from tests.support.tables import LABELS, toy_table
from tune.certificate.bounds import ClassBound, allowed_failures, level
from tune.certificate.certify import certify
from tune.certificate.classes import PerClass, per_class
from tune.certificate.counts import Counter
from tune.certificate.limits import Limits
from tune.objective import Shape, curve, kept
from tune.replay import Floats, Table

CONFIDENCE = 0.95
BY_CONFIDENCE = Shape(score=MaxProbability())
unhurried = settings(deadline=None)


def named(found: PerClass) -> dict[str, ClassBound]:
    return {bound.label: bound for bound in found.bounds.classes}


def of_class(table: Table, name: str) -> Any:
    return table.edge_label == table.labels.index(name)


def with_one_bad_class(table: Table, differs: float = 0.4) -> Table:
    """The edge is all but right, except where it answers 'negative'."""
    dice = np.random.default_rng(5)
    chance = np.where(of_class(table, "negative"), differs, 0.005)
    other = (table.edge_label + 1) % len(LABELS)
    cloud = np.where(dice.random(table.rows) < chance, other, table.edge_label)
    return replace(table, cloud_label=cloud, pinned=np.zeros(table.rows, np.bool_))


@given(
    seed=st.integers(0, 200),
    risk=st.sampled_from([0.03, 0.06, 0.12, 0.3]),
    place=st.floats(0, 1),
    scale=st.sampled_from([1e-6, 1.0, 1e8]),
    margin=st.sampled_from([0.0, 0.07, -0.3]),
    distinct=st.sampled_from([None, 20]),
    kept_class=st.sampled_from([(), ("neutral",)]),
    strict=st.booleans(),
)
@unhurried
def test_the_result_keeps_a_part_and_certified_classes_allow_their_failures(
    seed: int, risk: float, place: float, scale: float, margin: float, distinct: int | None,
    kept_class: tuple[str, ...], strict: bool,
) -> None:  # fmt: skip
    """Whatever the unit of the score: rounding may send a row away, and never keep one more."""
    table = toy_table(400, seed, "certify", distinct=distinct)
    shape = Shape(
        score=Weighted(weights={"confidence": scale}),
        class_margins={"positive": margin * scale},
        rules=Rules(never_escalate=kept_class),
    )
    thresholds = curve(shape, toy_table(400, seed + 1, distinct=distinct)).thresholds
    policy = shape.policy("p", float(thresholds[round(place * (thresholds.size - 1))]))
    found = per_class(policy, thresholds, table, risk, CONFIDENCE, strict)
    before, after = kept(policy, table), kept(found.applied(policy), table)
    assert not (after & ~before).any()
    assert not set(found.escalated) & set(kept_class)
    at = level(CONFIDENCE) / max(1, len(found.bounds.classes))
    for name, bound in named(found).items():
        rows = of_class(table, name)
        failures = int((after & rows & table.differs).sum())
        assert failures <= bound.failures
        assert bound.rows == rows.sum()
        if bound.certified:
            assert bound.failures <= allowed_failures(bound.rows, risk, 1 - at)
        elif name not in kept_class:
            assert not (after & rows & ~table.pinned).any()
    assert {*named(found), *found.bounds.too_few} == set(LABELS)


@given(
    low=st.floats(0, 1), more=st.floats(0.001, 1), margin=st.floats(-1, 1),
    scale=st.sampled_from([1e-3, 1.0, 1e9]),
)  # fmt: skip
@settings(deadline=None, max_examples=300)
def test_a_row_just_below_the_threshold_of_its_class_is_sent_away(
    low: float, more: float, margin: float, scale: float
) -> None:
    """threshold + (start - threshold) may round to a little less than the start."""
    now, threshold, start = margin * scale, low * scale, (low + more) * scale
    shape = Shape(score=Weighted(weights={"energy": 1.0}), class_margins={"negative": now})
    table = toy_table(300, 1, "certify", pinned_share=0.0)
    bad = np.arange(300) % 3 == 0
    below = just_below(start, now)
    table = replace(
        table, edge_label=np.zeros(300, np.int64), cloud_label=bad.astype(np.int64),
        signals={**table.signals, "energy": np.where(bad, below, start + now + 0.5 * scale)},
    )  # fmt: skip
    policy = shape.policy("p", threshold)
    found = per_class(policy, np.array([start, threshold]), table, 0.05, CONFIDENCE, False)
    assert kept(policy, table).all()
    np.testing.assert_array_equal(kept(found.applied(policy), table), ~bad)


def just_below(start: float, margin: float) -> float:
    """A score that, less the margin, just does not reach the start.

    In steps of the larger number: where the two cancel, the score's own would take a day.
    """
    step = float(np.spacing(abs(start) + abs(margin)))
    score = start + margin
    while score - margin >= start:
        score -= step
    return score


def test_only_the_class_that_fails_needs_more_trust() -> None:
    table = with_one_bad_class(toy_table(3000, 1, "certify"))
    doubt = np.where(of_class(table, "negative") & table.differs, 0.5, 0.9)
    table = replace(table, signals={**table.signals, "confidence": doubt})
    policy = BY_CONFIDENCE.policy("p", 0.4)
    found = per_class(policy, np.array([1.0, 0.9, 0.6, 0.4]), table, 0.05, CONFIDENCE, False)
    assert found.escalated == ()
    assert found.margins == {"negative": pytest.approx(0.2)}
    after = kept(found.applied(policy), table)
    np.testing.assert_array_equal(after, doubt >= 0.6)
    assert all(bound.certified for bound in found.bounds.classes)


def test_a_class_that_no_threshold_saves_goes_to_the_cloud() -> None:
    """Its most trusted rows fail already; what is said of it is still bounded."""
    table = with_one_bad_class(toy_table(3000, 1, "certify"))
    policy = BY_CONFIDENCE.policy("p", 0.4)
    found = per_class(policy, np.array([0.5, 0.4]), table, 0.05, CONFIDENCE, False)
    assert found.escalated == ("negative",)
    bound = named(found)["negative"]
    assert not bound.certified
    assert bound.upper_bound > 0.35
    after = kept(found.applied(policy), table)
    assert not after[of_class(table, "negative")].any()
    assert after[~of_class(table, "negative")].any()


def test_a_class_that_the_user_keeps_stays_and_is_said_to_fail() -> None:
    table = with_one_bad_class(toy_table(3000, 1, "certify"))
    policy = RouterPolicy(
        name="p", score=MaxProbability(), threshold=0.4, rules=Rules(never_escalate=("negative",))
    )
    found = per_class(policy, np.array([1.1, 0.4]), table, 0.05, CONFIDENCE, True)
    assert (found.escalated, found.margins) == ((), {})
    assert not named(found)["negative"].certified
    assert kept(found.applied(policy), table)[of_class(table, "negative")].all()


def few_of(table: Table, name: str, rows: int) -> Table:
    """The table with so many rows of a class."""
    surplus = np.flatnonzero(of_class(table, name))[rows:]
    return table.of(np.setdiff1d(np.arange(table.rows), surplus))


@pytest.mark.parametrize("strict", [False, True])
def test_a_class_with_too_few_rows_is_named_and_escalated_only_on_demand(strict: bool) -> None:
    table = few_of(with_one_bad_class(toy_table(2000, 1, "certify"), 0.0), "neutral", 20)
    policy = BY_CONFIDENCE.policy("p", 0.4)
    found = per_class(policy, np.array([1.1, 0.4]), table, 0.05, CONFIDENCE, strict)
    assert found.bounds.too_few == ("neutral",)
    assert found.bounds.rows_needed > 20
    assert found.escalated == (("neutral",) if strict else ())
    assert kept(found.applied(policy), table)[of_class(table, "neutral")].any() != strict


def test_with_hardly_any_rows_nothing_is_said_of_any_class() -> None:
    table = toy_table(9, 1, "certify")
    found = per_class(BY_CONFIDENCE.policy("p", 0.4), np.array([0.4]), table, 0.05, 0.95, False)
    assert found.bounds.classes == ()
    assert set(found.bounds.too_few) == set(LABELS)


def test_one_class_alone_is_tested_at_the_whole_level() -> None:
    table = toy_table(59, 1, "certify", pinned_share=0.0)
    table = replace(table, edge_label=np.zeros_like(table.edge_label))
    table = replace(table, cloud_label=table.edge_label)
    found = per_class(BY_CONFIDENCE.policy("p", 0.0), np.array([0.0]), table, 0.05, 0.95, False)
    assert named(found) == {"negative": ClassBound("negative", 0, 59, True, 0.05)}


def test_margins_add_to_those_of_the_policy() -> None:
    table = with_one_bad_class(toy_table(3000, 1, "certify"))
    doubt = np.where(of_class(table, "negative") & table.differs, 0.5, 0.9)
    table = replace(table, signals={**table.signals, "confidence": doubt})
    shape = Shape(score=MaxProbability(), class_margins={"negative": -0.2, "neutral": 0.1})
    policy = shape.policy("p", 0.4)
    found = per_class(policy, np.array([1.0, 0.9, 0.4]), table, 0.05, CONFIDENCE, False)
    assert found.margins == {"negative": pytest.approx(0.3), "neutral": 0.1}
    again = found.applied(policy)
    assert again.class_margins == found.margins
    assert not (kept(again, table) & of_class(table, "negative") & (doubt < 0.9)).any()


def naive_breaks(table: Table, thresholds: Floats, truth: Table, risk: float) -> bool:
    """Of each class the lowest threshold whose failures are within the risk; is one too low?"""
    for name in LABELS:
        part, whole = (each.of(of_class(each, name)) for each in (table, truth))
        within = Counter(BY_CONFIDENCE, part).of(thresholds).failures <= risk * part.rows
        lowest = thresholds[np.flatnonzero(within)[-1:]]
        seen = Counter(BY_CONFIDENCE, whole).of(lowest)
        if (seen.failures > risk * whole.rows).any():
            return True
    return False


def test_promises_per_class_are_kept_all_at_once() -> None:
    """300 draws of 1,200 rows from 6,000, whose risk per class is known.

    A draw breaks the promise if any statement in it is false: a certified class whose risk is the
    target or more, or a class whose risk is above its bound.
    """
    draws, rows, risk = 300, 1200, 0.08
    everyone = toy_table(6000, 3, "certify")
    thresholds = curve(BY_CONFIDENCE, toy_table(300, 4)).thresholds
    dice = np.random.default_rng(0)
    broken, naive, made = 0, 0, 0
    for _ in range(draws):
        table = everyone.of(dice.integers(0, everyone.rows, rows))
        naive += naive_breaks(table, thresholds, everyone, risk)
        try:
            last, _ = certify(
                BY_CONFIDENCE, thresholds, table, Limits(risk=risk), CONFIDENCE, Prices()
            )
        except CertifyError:
            continue
        policy = BY_CONFIDENCE.policy("p", float(thresholds[last]))
        found = per_class(policy, thresholds, table, risk, CONFIDENCE, False)
        edge = kept(found.applied(policy), everyone)
        made += sum(bound.certified for bound in named(found).values())
        broken += any(
            (edge & everyone.differs)[of_class(everyone, name)].mean() >= bound.upper_bound
            for name, bound in named(found).items()
        )
    assert broken <= stats.binom.ppf(0.999, draws, level(CONFIDENCE))
    assert naive > draws / 2
    assert made > 2 * draws  # not by certifying nothing
