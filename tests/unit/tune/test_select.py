"""The choice: made on tune, certified on certify, never the other way round."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cluster.bundles import MODEL_ANY
from cluster.errors import CertifyError, ConfigError
from serve_app.decide.cost import Prices
from serve_app.decide.policy import RouterPolicy, Rules
from serve_app.decide.scores import Logistic, MaxProbability, Score, Weighted
from tests.support.tables import toy_table
from tune.certificate.certify import policy_sha256
from tune.certificate.counts import counts
from tune.certificate.limits import Limits
from tune.learned.pool import Scorer
from tune.objective import FrontPoint, Shape, curve, evaluate, kept, trusts
from tune.replay import Table
from tune.select import MAX_STEPS, Selection, Wanted, select

NOW = "2026-01-01T00:00:00+00:00"
GOOD = Weighted(weights={"confidence": 1.0})
USELESS = Weighted(weights={"length": 1.0})
TUNE = toy_table(1500, seed=1)
CERTIFY = toy_table(1500, seed=2, split="certify")


def point(score: Score, floor: float = 0.0, scorer: str | None = None) -> FrontPoint:
    policy = RouterPolicy(name="found", score=score, threshold=0.5, min_confidence=floor)
    return FrontPoint(policy=policy, outcome=evaluate(policy, TUNE, Prices()), scorer=scorer)


def single(name: str, score: Score) -> Scorer:
    return Scorer(name, score, trusts(Shape(score=score), TUNE))


def wanted(**more: Any) -> Wanted:
    names = set(Limits.model_fields)
    limits = {name: more.pop(name) for name in names & set(more)} or {"risk": 0.08}
    return Wanted(limits=Limits(**limits), prices=Prices(), **more)


def chosen(
    points: list[FrontPoint] | None = None, pool: list[Scorer] | None = None,
    tune: Table = TUNE, certify_on: Table = CERTIFY, **more: Any,
) -> Selection:  # fmt: skip
    scorers = {one.name: one for one in pool or []}
    found = [point(GOOD)] if points is None and pool is None else points or []
    return select(found, scorers, tune, certify_on, wanted(**more), NOW)


# ---- which shape --------------------------------------------------------------------------------


def test_the_shape_that_keeps_most_at_the_edge_is_certified() -> None:
    found = chosen([point(USELESS), point(GOOD, 0.9), point(GOOD)])
    assert found.policy.score == GOOD
    assert found.policy.min_confidence == 0.0
    assert found.sequence.candidates == 3
    assert found.certificate.policy_sha256 == policy_sha256(found.policy)
    assert found.certificate.promises["risk"].bound <= 0.08
    assert found.certificate.split == "certify"
    assert found.certificate.edge_share > 0.3


def test_the_first_of_equals_is_taken() -> None:
    twice = Weighted(weights={"confidence": 0.5})
    found = chosen([point(GOOD), point(twice)])
    assert found.policy.score == GOOD
    assert found.sequence.best_tune_edge_share == found.sequence.tune_edge_share


def lucky_points() -> list[FrontPoint]:
    """Confidence with noise of 18 kinds on top: no better, and some of them are lucky on tune."""
    noise = [(name, sign * weight) for name in ("length", "random", "emotion")
             for sign in (1, -1) for weight in (0.01, 0.02, 0.04)]  # fmt: skip
    return [point(Weighted(weights={"confidence": 1.0, name: weight})) for name, weight in noise]


def test_a_lucky_shape_within_two_errors_is_not_taken_over_the_preferred_one() -> None:
    found = chosen(lucky_points(), [single("max_probability", MaxProbability())])
    assert found.sequence.best == "weighted"
    assert found.sequence.best_tune_edge_share > found.sequence.tune_edge_share
    assert (found.sequence.scorer, found.policy.score.kind) == ("max_probability",) * 2


def test_a_shape_that_is_better_by_more_than_chance_is_taken_over_the_preferred_one() -> None:
    found = chosen([point(GOOD)], [single("useless", USELESS)])
    assert (found.sequence.scorer, found.sequence.best) == ("weighted", "weighted")


def test_of_equals_learned_scores_come_first_and_of_these_the_smallest_log_loss() -> None:
    def learned(name: str, weight: float, log_loss: float) -> Scorer:
        score = Logistic(weights={"confidence": weight})
        return Scorer(name, score, weight * TUNE.signals["confidence"], log_loss=log_loss)

    pool = [single("plain", GOOD), learned("second", 2.0, 0.3), learned("first", 3.0, 0.2)]
    assert chosen([point(Weighted(weights={"confidence": 4.0}))], pool).sequence.scorer == "first"


@pytest.mark.parametrize("as_point", [False, True])
@pytest.mark.parametrize(("held_out", "winner"), [(True, "max_probability"), (False, "overfit")])
def test_a_scorer_is_judged_on_rows_that_it_did_not_see(
    as_point: bool, held_out: bool, winner: str
) -> None:
    """It knows the very rows of tune, and nothing of any other: judged on them it would be chosen.

    A point of the sweep has rules of its own, and still the pool's column.
    """
    dice = np.random.default_rng(6)
    knows = 0.1 * dice.random(TUNE.rows) - TUNE.differs.astype(float)
    column = dice.random(TUNE.rows) if held_out else knows
    scorer = Scorer("overfit", Logistic(weights={"energy": 1.0}), column, log_loss=0.01)
    tune = replace(TUNE, signals={**TUNE.signals, "energy": knows})
    found = chosen(
        [point(scorer.score, 0.01, "overfit")] if as_point else [],
        [scorer, single("max_probability", MaxProbability())],
        tune=tune,
        certify_on=replace(tune, split="certify"),
    )
    assert found.sequence.scorer == winner


# ---- the sequence -------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [{"risk": 0.08}, {"risk": 0.1, "cloud_share": 0.7}])
def test_nothing_of_the_certify_rows_changes_shape_or_sequence(limits: dict[str, Any]) -> None:
    """They may only say where to stop in a sequence that they did not shape."""
    pool = [single("max_probability", MaxProbability())]
    points = lucky_points()[:3]
    one = chosen(points, pool, **limits)
    kinder = toy_table(1500, seed=99, split="certify")
    shuffled = np.random.default_rng(0).permutation(1500)
    strange = {**CERTIFY.signals, "length": CERTIFY.signals["length"][shuffled],
               "random": CERTIFY.signals["random"] / 2}  # fmt: skip
    same = np.where(np.arange(1500) % 3 > 0, CERTIFY.cloud_label, CERTIFY.edge_label)
    for other in (
        kinder,
        replace(CERTIFY, signals=strange),
        replace(CERTIFY, edge_label=same),
        replace(CERTIFY, true_label=np.full(1500, -1)),
    ):
        found = chosen(points, pool, certify_on=other, **limits)
        assert found.sequence == one.sequence
        assert Shape.of(found.policy) == Shape.of(one.policy)
        assert found.policy.threshold in curve(found.sequence.shape, TUNE).thresholds


def test_the_sequence_runs_from_conservative_to_permissive() -> None:
    found = chosen().sequence
    confidence = TUNE.signals["confidence"][~TUNE.pinned]
    assert found.first_threshold > max(confidence)
    assert found.last_threshold == min(confidence)
    assert found.first_threshold > chosen().policy.threshold > found.last_threshold
    assert found.start == 0


def test_with_a_limit_of_the_cloud_it_starts_where_tune_proves_most() -> None:
    found = chosen(risk=0.1, cloud_share=0.7)
    assert 0 < found.sequence.start <= found.certificate.position
    assert found.certificate.tested <= found.sequence.length - found.sequence.start
    for promise in found.certificate.promises.values():
        assert promise.bound <= promise.limit


def test_a_long_table_makes_a_bounded_sequence() -> None:
    tune = toy_table(MAX_STEPS * 3, seed=5)
    found = chosen(tune=tune)
    assert found.sequence.length == MAX_STEPS
    assert found.sequence.last_threshold == min(tune.signals["confidence"][~tune.pinned])


def test_the_accuracy_lost_is_chosen_for_and_certified() -> None:
    found = chosen([point(USELESS), point(GOOD)], accuracy_loss=0.06)
    assert found.policy.score == GOOD
    assert found.certificate.promises["accuracy_loss"].bound <= 0.06 + 1e-6
    assert found.policy.target_risk is None


# ---- what is released ---------------------------------------------------------------------------


def test_the_policy_ships_with_its_pins_split_target_and_date() -> None:
    policy = chosen().policy
    assert policy.bundles == TUNE.pins
    assert policy.tuned_on == "tune@ffffffff"
    assert (policy.target_risk, policy.created_at) == (0.08, NOW)


def test_policy_and_certificate_name_the_artifact_that_scored_the_rows() -> None:
    found = chosen(
        tune=replace(TUNE, edge_artifact=MODEL_ANY),
        certify_on=replace(CERTIFY, edge_artifact=MODEL_ANY),
    )
    assert found.policy.bundles == found.certificate.bundles
    assert found.certificate.bundles.edge_artifact == MODEL_ANY


def test_the_users_rules_hold_for_every_scorer() -> None:
    rules = Rules(always_escalate=("negative",))
    found = chosen(pool=[single("max_probability", MaxProbability())], rules=rules)
    assert found.policy.rules == rules
    escalated = CERTIFY.edge_label == CERTIFY.labels.index("negative")
    assert not kept(found.policy, CERTIFY)[escalated & ~CERTIFY.pinned].any()


def test_per_class_keeps_a_part_and_the_certificate_is_about_what_is_released() -> None:
    plain, found = chosen(), chosen(per_class=True)
    assert found.sequence == plain.sequence
    assert found.policy.threshold == plain.policy.threshold
    assert not (kept(found.policy, CERTIFY) & ~kept(plain.policy, CERTIFY)).any()
    assert plain.certificate.classes is None
    assert found.certificate.classes is not None
    assert {bound.label for bound in found.certificate.classes.classes} == set(CERTIFY.labels)
    assert found.certificate.policy_sha256 == policy_sha256(found.policy)
    edge = kept(found.policy, CERTIFY)
    promise = found.certificate.promises["risk"]
    assert promise.failures == (edge & CERTIFY.differs).sum()
    assert promise.failures <= plain.certificate.promises["risk"].failures
    assert Selection.model_validate_json(found.model_dump_json()) == found


def test_alternatives_stand_beside_the_release() -> None:
    found = chosen()
    assert [one.risk for one in found.alternatives] == [0.02, 0.05, 0.1]
    shape = Shape.of(found.policy)
    for one in found.alternatives:
        seen = counts(shape, np.array([one.threshold]), CERTIFY)
        assert one.edge_share == seen.kept[0] / 1500


# ---- refusals -----------------------------------------------------------------------------------


def test_limits_that_contradict_each_other_are_named_both() -> None:
    with pytest.raises(CertifyError, match="contradict each other") as caught:
        chosen(risk=0.03, cloud_share=0.2)
    for part in ("--max-risk 0.03", "--max-cloud-share 0.2", "1 shapes", "Loosen one"):
        assert part in str(caught.value)


def test_the_contradiction_says_how_far_one_limit_lets_the_other_go() -> None:
    with pytest.raises(CertifyError, match="--min-agreement") as caught:
        chosen(agreement=0.93, cloud_share=0.2)
    assert "--max-cloud-share 0.2" in str(caught.value)


def test_one_limit_that_nothing_meets_is_no_contradiction() -> None:
    """Each limit by itself has to be in reach, or it is the one that is too much."""
    tune = toy_table(1500, seed=1, pinned_share=0.9)
    stuck = toy_table(1500, seed=2, split="certify", pinned_share=0.9)
    with pytest.raises(CertifyError, match=r"first one tested fails.*--max-risk 0.02"):
        chosen(tune=tune, certify_on=stuck, risk=0.02, cloud_share=0.5)


def test_certifying_on_the_rows_of_the_choice_is_refused() -> None:
    with pytest.raises(CertifyError, match="same split"):
        chosen(certify_on=toy_table(1500, seed=2))


@pytest.mark.parametrize("name", ["fingerprint", "edge_sha256", "cloud_sha256", "edge_artifact"])
def test_tables_of_different_origin_are_refused(name: str) -> None:
    other: Any = {name: "another"}
    with pytest.raises(CertifyError, match=name):
        chosen(certify_on=replace(CERTIFY, **other))


def test_nothing_to_choose_from_is_refused() -> None:
    with pytest.raises(CertifyError, match="no scorer, and an empty front"):
        chosen([], [])


def test_too_few_rows_are_named() -> None:
    with pytest.raises(CertifyError, match=r"200 rows.*at least 299"):
        chosen(certify_on=toy_table(200, split="certify"), risk=0.01)


@pytest.mark.parametrize("bare", ["tune", "certify"])
def test_the_accuracy_lost_needs_labels_on_both_splits(bare: str) -> None:
    tables: dict[str, Any] = {"tune": TUNE, "certify_on": CERTIFY}
    name = "tune" if bare == "tune" else "certify_on"
    tables[name] = replace(tables[name], true_label=np.full(1500, -1))
    with pytest.raises(CertifyError, match=f"of '{bare}' has one"):
        chosen(accuracy_loss=0.05, **tables)


def test_a_rule_about_an_unknown_class_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\['happy'\].*positive.*--always-escalate"):
        chosen(rules=Rules(always_escalate=("happy",)))


@pytest.mark.parametrize("limits", [{"agreement": 0.9}, {"risk": 0.1, "cloud_share": 0.7}])
def test_per_class_with_limits_that_it_may_break_is_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--per-class needs --max-risk and no other limit"):
        chosen(per_class=True, **limits)


def test_a_limit_of_quality_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="No limit of quality"):
        chosen(cloud_share=0.5)


def test_a_point_of_a_scorer_that_is_not_there_is_a_bug() -> None:
    """It used to be judged on the rows that it was learned from."""
    with pytest.raises(KeyError, match="gone"):
        chosen([point(GOOD, scorer="gone")])
