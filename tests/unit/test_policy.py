"""The rule: the same bits on one message and on a table, and nothing sensitive past the edge."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.bundles import MODEL, MODEL_ANY
from cluster.files import sha256_json
from serve_app.contracts import Message, Prediction, Route, RouteReason
from serve_app.factors import FACTORS, factors
from serve_app.policy import (
    ALWAYS_CLOUD,
    ALWAYS_EDGE,
    BASELINES,
    PUBLISHED,
    RANDOM,
    SIGNALS,
    BundlePins,
    RouterPolicy,
    decide,
    random_signal,
    signals,
    trust,
)

FINITE = st.floats(-1e6, 1e6)
SHARE = st.floats(0, 1)
POLICIES = st.builds(
    RouterPolicy,
    name=st.just("any"),
    weights=st.dictionaries(st.sampled_from(SIGNALS), FINITE),
    threshold=FINITE,
    min_confidence=SHARE,
)
ROWS = st.fixed_dictionaries(dict.fromkeys(SIGNALS, SHARE))
PINNED = st.one_of(
    st.builds(Message, st.text(), st.just(("card",))),
    st.builds(Message, st.text(), st.just(()), st.just(True)),
    st.builds(Message, st.text(), st.just(("card",)), st.just(True)),
)


def prediction(confidence: float = 0.9) -> Prediction:
    return Prediction("a", confidence, 2 * confidence - 1, 0.3, (confidence, 1 - confidence))


def seen(values: dict[str, float]) -> Prediction:
    return Prediction("a", values["confidence"], values["margin"], values["entropy"], ())


@given(POLICIES, st.lists(ROWS, min_size=1, max_size=8))
def test_one_message_and_a_table_are_decided_by_the_same_bits(
    policy: RouterPolicy, rows: list[dict[str, float]]
) -> None:
    """Else a decision in service would not be the decision that was certified."""
    columns = {name: np.array([row[name] for row in rows]) for name in SIGNALS}
    scores = np.broadcast_to(trust(policy.weights, columns), len(rows))
    kept = (scores >= policy.threshold) & (columns["confidence"] >= policy.min_confidence)
    for i, row in enumerate(rows):
        decision = decide(Message("a text"), seen(row), policy, row)
        assert decision.trust.hex() == float(scores[i]).hex()
        assert (decision.route is Route.EDGE) == kept[i]
        assert decision.reason is (RouteReason.TRUSTED if kept[i] else RouteReason.ESCALATED)


@given(PINNED, st.one_of(POLICIES, st.sampled_from(BASELINES)), SHARE)
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
    policy = RouterPolicy(name="p", weights={"entropy": -1.0}, threshold=-10.0)
    values = {**signals(Message("a"), prediction()), "entropy": float("nan")}
    assert decide(Message("a"), prediction(), policy, values).route is Route.CLOUD


def test_the_threshold_itself_is_trusted() -> None:
    policy = RouterPolicy(name="p", weights={"confidence": 1.0}, threshold=0.9, min_confidence=0.9)
    for confidence, route in ((0.9, Route.EDGE), (np.nextafter(0.9, 0), Route.CLOUD)):
        made = prediction(float(confidence))
        assert decide(Message("a"), made, policy, signals(Message("a"), made)).route is route


def test_a_confidence_floor_overrules_the_score() -> None:
    policy = RouterPolicy(name="p", weights={}, threshold=0.0, min_confidence=0.8)
    made = prediction(0.7)
    assert decide(Message("a"), made, policy, signals(Message("a"), made)).route is Route.CLOUD


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"surprise": 1}, "Extra inputs"),
        ({"weights": {"confidance": 1.0}}, "unknown signals"),
        ({"weights": {"confidence": float("nan")}}, "finite"),
        ({"weights": {"confidence": float("inf")}}, "finite"),
        ({"threshold": float("nan")}, "finite"),
        ({"threshold": "high"}, "valid number"),
        ({"min_confidence": 1.1}, "less than or equal to 1"),
        ({"target_risk": 0.0}, "greater than 0"),
        ({"version": 2}, "less than or equal to 1"),
        ({"bundles": {"edge": "e"}}, "Field required"),
        ({"bundles": {"edge": "e", "cloud": "c", "third": "t"}}, "Extra inputs"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(over: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RouterPolicy.model_validate({"name": "p", "weights": {}, "threshold": 0.5, **over})


@given(POLICIES, st.sampled_from([MODEL, MODEL_ANY]))
def test_a_policy_survives_json_to_the_bit(policy: RouterPolicy, artifact: str) -> None:
    pins = BundlePins(edge="e", cloud="c", edge_artifact=artifact)
    pinned = policy.model_copy(update={"bundles": pins})
    assert RouterPolicy.model_validate_json(pinned.model_dump_json()) == pinned
    assert list(RouterPolicy.model_validate_json(policy.model_dump_json()).weights) == list(
        policy.weights
    )


def test_a_policy_of_an_earlier_version_keeps_its_hash() -> None:
    """Its certificate names it by that, and it runs with the only artifact that there was."""
    earlier = {
        "version": 1, "name": "certified-0.01", "weights": {"confidence": 1.0}, "threshold": 0.5,
        "min_confidence": 0.0, "bundles": {"edge": "e", "cloud": "c"}, "tuned_on": "tune@abc",
        "target_risk": 0.01, "created_at": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    policy = RouterPolicy.model_validate(earlier)
    assert policy.bundles is not None
    assert policy.bundles.edge_artifact == "model.onnx"
    assert sha256_json(policy.model_dump(mode="json")) == sha256_json(earlier)


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
    assert factors(easy)[factor] < 0.3
    assert factors(hard)[factor] > 0.5
    assert factors(hard.upper()) == factors(hard)


def test_the_published_rule_needs_an_easy_message_and_a_sure_model() -> None:
    def route(text: str, confidence: float) -> Route:
        made = prediction(confidence)
        return decide(Message(text), made, PUBLISHED, signals(Message(text), made)).route

    loaded = (
        "maybe I am not sure, I think it is awful, I hate it, the worst; I will sue, my lawyer, "
        "a refund, " + "and because " * 60
    )
    assert route("where is my card", 0.86) is Route.EDGE
    assert route("where is my card", 0.84) is Route.CLOUD
    assert route(loaded, 1.0) is Route.CLOUD
