"""The choice: made on tune, certified on certify, never the other way round."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cluster.bundles import MODEL_ANY
from cluster.errors import CertifyError
from serve_app.cost import Prices
from serve_app.policy import RouterPolicy
from serve_app.scores import Weighted
from tests.tables import toy_table
from tune.certify import allowed_failures, certify, policy_sha256
from tune.objective import FrontPoint, Shape, curve, evaluate
from tune.replay import Table
from tune.select import MAX_STEPS, select

NOW = "2026-01-01T00:00:00+00:00"
GOOD = Weighted(weights={"confidence": 1.0})
USELESS = Weighted(weights={"length": 1.0})


def point(score: Weighted, table: Table, floor: float = 0.0) -> FrontPoint:
    policy = RouterPolicy(name="found", score=score, threshold=0.5, min_confidence=floor)
    return FrontPoint(policy=policy, outcome=evaluate(policy, table, Prices()))


@pytest.fixture
def tune() -> Table:
    return toy_table(1500, seed=1)


@pytest.fixture
def certify_on() -> Table:
    return toy_table(1500, seed=2, split="certify")


def test_the_shape_that_keeps_most_at_the_edge_is_certified(tune: Table, certify_on: Table) -> None:
    candidates = [point(USELESS, tune), point(GOOD, tune), point(GOOD, tune, 0.9)]
    found = select(candidates, tune, certify_on, 0.08, 0.95, NOW)
    assert found.policy.score == GOOD
    assert found.sequence.candidates == 3
    assert found.certificate.policy_sha256 == policy_sha256(found.policy)
    assert found.certificate.upper_bound <= 0.08
    assert found.certificate.split == "certify"
    assert found.certificate.edge_share > 0.3


def test_the_policy_ships_with_its_pins_split_target_and_date(
    tune: Table, certify_on: Table
) -> None:
    policy = select([point(GOOD, tune)], tune, certify_on, 0.08, 0.95, NOW).policy
    assert policy.bundles is not None
    assert (policy.bundles.edge, policy.bundles.cloud) == (tune.edge_sha256, tune.cloud_sha256)
    assert policy.tuned_on == "tune@ffffffff"
    assert (policy.target_risk, policy.created_at) == (0.08, NOW)


def test_policy_and_certificate_name_the_artifact_that_scored_the_rows(
    tune: Table, certify_on: Table
) -> None:
    any_tune = replace(tune, edge_artifact=MODEL_ANY)
    any_certify = replace(certify_on, edge_artifact=MODEL_ANY)
    found = select([point(GOOD, tune)], any_tune, any_certify, 0.08, 0.95, NOW)
    assert found.policy.bundles == found.certificate.bundles == any_tune.pins
    assert found.certificate.bundles.edge_artifact == MODEL_ANY
    with pytest.raises(
        CertifyError, match=r"edge e+ \(model-any\.onnx\).* by edge e+ \(model\.onn"
    ):
        certify([found.policy], certify_on, 0.08, 0.95, NOW)


def test_thresholds_come_from_tune_alone(tune: Table, certify_on: Table) -> None:
    """The certify rows may only say where to stop in a sequence that they did not shape."""
    other = toy_table(1500, seed=99, split="certify")
    ours = select([point(GOOD, tune)], tune, certify_on, 0.08, 0.95, NOW)
    theirs = select([point(GOOD, tune)], tune, other, 0.08, 0.95, NOW)
    assert ours.sequence == theirs.sequence
    assert ours.policy.threshold in curve(Shape(score=GOOD), tune).thresholds


def test_the_aim_is_what_the_certificate_can_afford(tune: Table, certify_on: Table) -> None:
    found = select([point(GOOD, tune)], tune, certify_on, 0.05, 0.95, NOW)
    assert found.sequence.tune_risk_aimed_at == allowed_failures(1500, 0.05, 0.95) / 1500 < 0.05
    kept = curve(Shape(score=GOOD), tune)
    within = kept.edge_share[kept.risk <= found.sequence.tune_risk_aimed_at]
    assert found.sequence.tune_edge_share == within.max()


def test_the_sequence_runs_from_conservative_to_permissive(tune: Table, certify_on: Table) -> None:
    found = select([point(GOOD, tune)], tune, certify_on, 0.08, 0.95, NOW)
    assert found.sequence.first_threshold > max(tune.signals["confidence"][~tune.pinned])
    assert found.sequence.last_threshold == min(tune.signals["confidence"][~tune.pinned])
    assert found.sequence.first_threshold > found.policy.threshold > found.sequence.last_threshold


def test_a_long_table_makes_a_bounded_sequence(certify_on: Table) -> None:
    tune = toy_table(MAX_STEPS * 3, seed=5)
    found = select([point(GOOD, tune)], tune, certify_on, 0.08, 0.95, NOW)
    assert found.sequence.length == MAX_STEPS
    assert found.sequence.last_threshold == min(tune.signals["confidence"][~tune.pinned])


def test_certifying_on_the_rows_of_the_choice_is_refused(tune: Table) -> None:
    with pytest.raises(CertifyError, match="same split"):
        select([point(GOOD, tune)], tune, toy_table(1500, seed=2), 0.08, 0.95, NOW)


@pytest.mark.parametrize("name", ["fingerprint", "edge_sha256", "cloud_sha256", "edge_artifact"])
def test_tables_of_different_origin_are_refused(tune: Table, certify_on: Table, name: str) -> None:
    other: Any = {name: "another"}
    certify_on = replace(certify_on, **other)
    with pytest.raises(CertifyError, match=name):
        select([point(GOOD, tune)], tune, certify_on, 0.08, 0.95, NOW)


def test_an_empty_front_is_refused(tune: Table, certify_on: Table) -> None:
    with pytest.raises(CertifyError, match="empty"):
        select([], tune, certify_on, 0.08, 0.95, NOW)


def test_too_few_rows_are_named(tune: Table) -> None:
    with pytest.raises(CertifyError, match=r"200 rows.*at least 299"):
        select([point(GOOD, tune)], tune, toy_table(200, split="certify"), 0.01, 0.95, NOW)


def test_pinned_messages_alone_can_make_a_risk_impossible(tune: Table) -> None:
    """They stay at the edge whatever the threshold, so no policy can do better than they do."""
    stuck = toy_table(1500, seed=2, split="certify", pinned_share=0.9)
    floor = int((stuck.pinned & stuck.differs).sum())
    with pytest.raises(CertifyError, match=rf"{floor} of the failures are messages with personal"):
        select([point(GOOD, tune)], tune, stuck, 0.02, 0.95, NOW)


def test_the_first_of_equals_is_taken(tune: Table, certify_on: Table) -> None:
    twice = Weighted(weights={"confidence": 0.5})
    found = select([point(GOOD, tune), point(twice, tune)], tune, certify_on, 0.08, 0.95, NOW)
    assert found.policy.score == GOOD
    assert np.isfinite(found.policy.threshold)
