"""The rule: the same bits on one message and on a table, and nothing sensitive past the edge."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.bundles import MODEL, MODEL_ANY
from cluster.errors import ReleaseError
from serve_app.contracts import Message, Prediction, Route, RouteReason, packed
from serve_app.decide.factors import FACTORS, text_signals
from serve_app.decide.policy import (
    ALWAYS_CLOUD,
    ALWAYS_EDGE,
    BASELINES,
    PUBLISHED,
    RANDOM,
    BundlePins,
    RouterPolicy,
    Rules,
    breakdown,
    decide,
    trust,
)
from serve_app.decide.scores import Logistic, MaxProbability, Weighted
from serve_app.decide.signals import (
    SIGNALS,
    Evidence,
    log_odds,
    logit_margin,
    random_signal,
    signals,
)
from tests.support.strategies import POLICIES, ROWS
from tests.support.tables import LABELS, row_of, toy_table
from tune.objective import kept
from tune.replay import Table

SHARE = st.floats(0, 1)
TABLES = st.builds(
    toy_table,
    rows=st.integers(1, 30),
    seed=st.integers(0, 10_000),
    pinned_share=st.sampled_from([0.0, 0.3]),
    distinct=st.sampled_from([None, 3]),
)
PINNED = st.one_of(
    st.builds(Message, st.text(), st.just(("card",))),
    st.builds(Message, st.text(), st.just(()), st.just(True)),
    st.builds(Message, st.text(), st.just(("card",)), st.just(True)),
)


def prediction(confidence: float = 0.9) -> Prediction:
    return Prediction("a", confidence, 2 * confidence - 1, 0.3, packed(confidence, 1 - confidence))


@given(POLICIES, TABLES)
@settings(deadline=None)
def test_one_message_and_a_table_are_decided_by_the_same_bits(
    policy: RouterPolicy, table: Table
) -> None:
    """Else a decision in service would not be the decision that was certified."""
    column = trust(policy.score, policy.class_margins, table.evidence)
    scores, edge = np.broadcast_to(column, table.rows), kept(policy, table)
    for i in range(table.rows):
        message, made, values = row_of(table, i)
        decision = decide(message, made, policy, values)
        assert decision.trust.hex() == float(scores[i]).hex()
        assert (decision.route is Route.EDGE) == edge[i]


@given(POLICIES, ROWS, st.sampled_from(LABELS))
@settings(deadline=None)
def test_the_breakdown_sums_to_the_trust(
    policy: RouterPolicy, row: dict[str, float], label: str
) -> None:
    evidence = Evidence(row, label)
    parts = breakdown(policy, evidence)
    reached = trust(policy.score, policy.class_margins, evidence)
    size = max(1.0, sum(map(abs, parts.values())))
    assert math.isclose(sum(parts.values()), reached, rel_tol=1e-12, abs_tol=1e-12 * size)


@given(PINNED, st.one_of(POLICIES, st.sampled_from(BASELINES)), SHARE)
@settings(deadline=None)
def test_a_pinned_message_never_leaves_the_edge(
    message: Message, policy: RouterPolicy, confidence: float
) -> None:
    made = prediction(confidence)
    decision = decide(message, made, policy, signals(message, made))
    assert decision.route is Route.EDGE
    failed = message.detector_failed
    assert decision.reason is (RouteReason.DETECTOR_FAILED if failed else RouteReason.PII_PINNED)


def test_a_value_that_is_no_number_escalates() -> None:
    """An unsure rule asks the better model."""
    policy = RouterPolicy(name="p", score=Weighted(weights={"entropy": -1.0}), threshold=-10.0)
    values = {**signals(Message("a"), prediction()), "entropy": float("nan")}
    assert decide(Message("a"), prediction(), policy, values).route is Route.CLOUD


def test_the_threshold_itself_is_trusted() -> None:
    policy = RouterPolicy(name="p", score=MaxProbability(), threshold=0.9, min_confidence=0.9)
    for confidence, route in ((0.9, Route.EDGE), (np.nextafter(0.9, 0), Route.CLOUD)):
        made = prediction(float(confidence))
        assert decide(Message("a"), made, policy, signals(Message("a"), made)).route is route


def test_a_confidence_floor_overrules_the_score() -> None:
    policy = RouterPolicy(name="p", score=Weighted(weights={}), threshold=0.0, min_confidence=0.8)
    made = prediction(0.7)
    decision = decide(Message("a"), made, policy, signals(Message("a"), made))
    assert (decision.route, decision.reason) == (Route.CLOUD, RouteReason.UNCONFIDENT)


def test_a_confidence_that_is_no_number_is_not_confident() -> None:
    values = {**signals(Message("a"), prediction()), "confidence": float("nan")}
    assert decide(Message("a"), prediction(), ALWAYS_EDGE, values).route is Route.CLOUD


# ---- hard rules ---------------------------------------------------------------------------------

# The edge says "neutral", sure of it; the message is long, loaded and far from all training.
SURE = Prediction("neutral", 0.95, 0.9, 0.1, b"", 3.0, 1.5)
LOADED = Message(" ".join(["a refund please"] * 10))
NEUTRAL = ("neutral",)
ALL = Rules(
    always_escalate=NEUTRAL, max_distance=1.0, escalation_words=True, max_words=29
)  # fmt: skip


def route(message: Message, made: Prediction, **over: Any) -> tuple[Route, RouteReason]:
    policy = RouterPolicy(name="p", score=MaxProbability(), **{"threshold": 0.9, **over})
    decision = decide(message, made, policy, signals(message, made))
    return decision.route, decision.reason


@pytest.mark.parametrize(
    ("left_out", "reason"),
    [
        ((), RouteReason.CLASS_ESCALATED),
        (("always_escalate",), RouteReason.OUT_OF_DOMAIN),
        (("always_escalate", "max_distance"), RouteReason.ESCALATION_WORDS),
        (("always_escalate", "max_distance", "escalation_words"), RouteReason.TOO_LONG),
    ],
)
def test_of_the_rules_that_fire_the_first_is_the_reason(
    left_out: tuple[str, ...], reason: RouteReason
) -> None:
    rules = Rules(**ALL.model_dump(exclude=set(left_out)))
    assert route(LOADED, SURE, rules=rules) == (Route.CLOUD, reason)


def test_a_class_that_is_never_escalated_stays_whatever_else_holds() -> None:
    rules = ALL.model_copy(update={"never_escalate": NEUTRAL, "always_escalate": ("negative",)})
    unsure = SURE._replace(confidence=0.4)
    kept_by_class = (Route.EDGE, RouteReason.CLASS_KEPT)
    assert route(LOADED, unsure, rules=rules, min_confidence=0.9) == kept_by_class


def test_personal_data_comes_before_every_rule() -> None:
    pinned = replace(LOADED, pii=("card",))
    assert route(pinned, SURE, rules=ALL) == (Route.EDGE, RouteReason.PII_PINNED)


@pytest.mark.parametrize(
    ("rules", "fires"),
    [
        (Rules(always_escalate=("negative", "positive")), False),
        (Rules(max_distance=1.5), False),
        (Rules(max_distance=math.nextafter(1.5, 0)), True),
        (Rules(max_words=30), False),
        (Rules(max_words=29), True),
        (Rules(max_words=0), True),
        (Rules(escalation_words=True), True),
        (Rules(), False),
    ],
)
def test_a_limit_itself_is_allowed(rules: Rules, fires: bool) -> None:
    expected = Route.CLOUD if fires else Route.EDGE
    assert route(LOADED, SURE, rules=rules)[0] is expected


def test_one_word_of_escalation_is_enough_and_none_is_not() -> None:
    rules = Rules(escalation_words=True)
    assert route(Message("my lawyer wrote"), SURE, rules=rules)[0] is Route.CLOUD
    assert route(Message("my sister wrote"), SURE, rules=rules)[0] is Route.EDGE


def test_a_class_may_need_more_than_the_threshold_or_less() -> None:
    margins = {"neutral": 0.1, "positive": -0.1}
    for label, threshold, expected in (
        ("neutral", 0.85, Route.EDGE),
        ("neutral", 0.86, Route.CLOUD),
        ("positive", 1.04, Route.EDGE),
        ("negative", 0.95, Route.EDGE),
        ("negative", 0.96, Route.CLOUD),
    ):
        made = SURE._replace(label=label)
        found = route(Message("a"), made, threshold=threshold - 1e-9, class_margins=margins)
        assert found[0] is expected


def test_a_decision_tells_the_trust_after_the_class_margin() -> None:
    policy = RouterPolicy(
        name="p", score=MaxProbability(), threshold=0.9, class_margins={"neutral": 0.25}
    )
    values = signals(LOADED, SURE)
    assert decide(LOADED, SURE, policy, values).trust == 0.95 - 0.25
    assert breakdown(policy, Evidence(values, "neutral")) == {
        "max_probability": 0.95, "class_margin": -0.25,
    }  # fmt: skip


def test_class_lists_that_contradict_each_other_are_named() -> None:
    with pytest.raises(ValidationError, match=r"never_escalate and always_escalate.*\['b'\]"):
        Rules(never_escalate=("a", "b"), always_escalate=("b", "c"))


@pytest.mark.parametrize(
    "over",
    [
        {"class_margins": {"neutrl": 0.1}},
        {"rules": Rules(never_escalate=("neutrl",))},
        {"rules": Rules(always_escalate=("neutrl",))},
        {"score": Logistic(weights={}, classes={"neutrl": 0.1})},
    ],
)
def test_a_class_that_the_models_do_not_know_is_named(over: dict[str, Any]) -> None:
    """A rule for a misspelt class would never fire, and nobody would notice."""
    policy = RouterPolicy(**{"name": "p", "score": MaxProbability(), "threshold": 0.9, **over})
    with pytest.raises(ReleaseError, match=r"\['neutrl'\]"):
        kept(policy, toy_table(5))


@given(POLICIES, ROWS)
@settings(deadline=None)
def test_without_its_classes_a_rule_says_the_same_of_each(
    policy: RouterPolicy, row: dict[str, float]
) -> None:
    blind = policy.without_classes()
    assert blind.classes == set()
    made = [prediction()._replace(label=label) for label in LABELS]
    decisions = [decide(Message("a"), one, blind, row) for one in made]
    assert decisions[1:] == decisions[:-1]
    if not policy.classes:
        assert blind == policy


# ---- the JSON -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"surprise": 1}, "Extra inputs"),
        ({"score": {"kind": "margin", "surprise": 1}}, "Extra inputs"),
        ({"rules": {"surprise": 1}}, "Extra inputs"),
        ({"score": {"kind": "weighted", "weights": {"confidance": 1.0}}}, "unknown signals"),
        ({"score": {"kind": "magic"}}, "does not match any of the expected tags"),
        ({"threshold": float("nan")}, "finite"),
        ({"threshold": "high"}, "valid number"),
        ({"class_margins": {"a": float("nan")}}, "finite"),
        ({"rules": {"max_distance": float("inf")}}, "finite"),
        ({"rules": {"max_distance": -0.1}}, "greater than or equal to 0"),
        ({"rules": {"max_words": 1.5}}, "valid integer"),
        ({"rules": {"never_escalate": ["a"], "always_escalate": ["a"]}}, "only one"),
        ({"min_confidence": 1.1}, "less than or equal to 1"),
        ({"target_risk": 0.0}, "greater than 0"),
        ({"version": 1}, "Input should be 2"),
        ({"bundles": {"edge": "e"}}, "Field required"),
        ({"bundles": {"edge": "e", "cloud": "c", "third": "t"}}, "Extra inputs"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(over: dict[str, object], said: str) -> None:
    plain = {"name": "p", "score": {"kind": "margin"}, "threshold": 0.5}
    RouterPolicy.model_validate(plain)
    with pytest.raises(ValidationError, match=said):
        RouterPolicy.model_validate({**plain, **over})


@given(POLICIES, st.sampled_from([MODEL, MODEL_ANY]))
@settings(deadline=None)
def test_a_policy_survives_json_to_the_bit(policy: RouterPolicy, artifact: str) -> None:
    pins = BundlePins(edge="e", cloud="c", edge_artifact=artifact)
    pinned = policy.model_copy(update={"bundles": pins})
    assert RouterPolicy.model_validate_json(pinned.model_dump_json()) == pinned


def test_another_artifact_is_another_policy() -> None:
    dumps = [
        BundlePins(edge="e", cloud="c", edge_artifact=name).model_dump(mode="json")
        for name in (MODEL, MODEL_ANY)
    ]
    assert dumps[0] != dumps[1]


@given(st.text(), SHARE)
def test_the_ends_of_the_scale(text: str, confidence: float) -> None:
    message, made = Message(text), prediction(confidence)
    values = signals(message, made)
    assert decide(message, made, ALWAYS_EDGE, values).route is Route.EDGE
    assert decide(message, made, ALWAYS_CLOUD, values).route is Route.CLOUD


def test_random_sends_half_whatever_the_model_thinks() -> None:
    messages = [Message(f"message {i}") for i in range(4000)]
    for confidence in (0.4, 1.0):
        made = prediction(confidence)
        routes = [decide(m, made, RANDOM, signals(m, made)).route for m in messages]
        assert abs(routes.count(Route.EDGE) / len(routes) - 0.5) < 0.03


def test_the_die_is_fair() -> None:
    values = np.sort([random_signal(f"text {i}") for i in range(20_000)])
    ranks = (np.arange(values.size) + 0.5) / values.size
    # Kolmogorov-Smirnov: 1.63 / sqrt(n) is passed by one fair die in a hundred; the texts are fixed
    assert np.abs(values - ranks).max() < 1.63 / np.sqrt(values.size)


def test_the_die_falls_the_same_on_every_machine() -> None:
    assert random_signal("where is my card?") == 0.5735440128989164


@given(st.text(st.characters(exclude_categories=())))
def test_the_die_takes_any_text(text: str) -> None:
    assert 0 <= random_signal(text) < 1


@given(st.text(), SHARE)
def test_every_signal_is_there_in_order(text: str, confidence: float) -> None:
    values = signals(Message(text), prediction(confidence))
    assert tuple(values) == SIGNALS
    assert all(0 <= values[name] <= 1 for name in (*FACTORS, "random", "confidence"))
    assert all(math.isfinite(value) for value in values.values())


def test_words_are_counted_beyond_where_length_ends() -> None:
    for count, length in ((30, 0.5), (60, 1.0), (180, 1.0)):
        values = text_signals("word " * count)
        assert (values["words"], values["length"]) == (count / 60, length)


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_logits_come_back_out_of_probabilities(confidence: float, share: float) -> None:
    second = confidence * share
    assert log_odds(confidence) == pytest.approx(math.log(confidence) - math.log1p(-confidence))
    assert logit_margin(confidence, confidence - second) == pytest.approx(
        math.log(confidence) - math.log(second), abs=1e-9
    )


def test_a_saturated_softmax_has_logits_too() -> None:
    assert log_odds(1.0) == pytest.approx(-log_odds(0.0))
    assert 27 < log_odds(1.0) < 28
    assert logit_margin(1.0, 1.0) == pytest.approx(27.6, abs=0.1)


@pytest.mark.parametrize(
    ("factor", "easy", "hard"),
    [
        ("length", "hello", "hello " * 60),
        ("structure", "where is it", "it came, but it broke; although I asked, nobody, ever, said"),
        ("uncertainty", "it is late", "maybe it is late, I am not sure, I think"),
        ("emotion", "it is late", "it is awful, I hate it, the worst!!"),
        ("escalation", "where is it", "I will sue, my lawyer wants a refund"),
    ],
)
def test_a_factor_rises_with_what_it_is_named_for(factor: str, easy: str, hard: str) -> None:
    assert text_signals(easy)[factor] < 0.3
    assert text_signals(hard)[factor] > 0.5
    assert text_signals(hard.upper()) == text_signals(hard)


def test_the_published_rule_needs_an_easy_message_and_a_sure_model() -> None:
    def ends(text: str, confidence: float) -> Route:
        made = prediction(confidence)
        return decide(Message(text), made, PUBLISHED, signals(Message(text), made)).route

    loaded = (
        "maybe I am not sure, I think it is awful, I hate it, the worst; I will sue, my lawyer, "
        "a refund, " + "and because " * 60
    )
    assert ends("where is my card", 0.86) is Route.EDGE
    assert ends("where is my card", 0.84) is Route.CLOUD
    assert ends(loaded, 1.0) is Route.CLOUD
