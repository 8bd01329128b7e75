"""Explanations: the rule's own arithmetic, and previews from which no label can be read."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import serve_app
from cluster.bundles import ModelBundle
from cluster.errors import BundleError, DataError, ReleaseError
from cluster.files import write_json
from cluster.settings import load_settings
from serve_app.cascade.local import explain_locally
from serve_app.contracts import Message, Prediction, Route, RouteReason, packed
from serve_app.decide.cost import Prices
from serve_app.decide.explain import (
    ALTERNATIVES,
    Alternative,
    Explanation,
    blinded,
    explain,
    lines,
    load_alternatives,
    preview,
)
from serve_app.decide.policy import RouterPolicy, Rules, decide
from serve_app.decide.scores import Logistic, MaxProbability, Weighted
from serve_app.decide.signals import log_odds, signals
from tests.support.serving import make_release
from tests.support.strategies import POLICIES, ROWS
from tests.support.tables import LABELS
from tests.support.toys import make_bundle, message

PRICES = Prices()
HELLO = Message("hello there")
UNSURE = Prediction("neutral", 0.6, 0.3, 0.7, packed(0.3, 0.6, 0.1))


def alternative(risk: float, threshold: float) -> Alternative:
    return Alternative(
        risk=risk, threshold=threshold, edge_share=0.8, upper_bound=risk * 0.9, confidence=0.95
    )


# The policy of most tests has the threshold 0.7 (risk 1%).
OTHERS = tuple(
    alternative(*pair) for pair in ((0.002, 0.95), (0.005, 0.8), (0.02, 0.65), (0.05, 0.5))
)


def policy(**over: Any) -> RouterPolicy:
    return RouterPolicy(**{"name": "p", "score": MaxProbability(), "threshold": 0.7, **over})


def explained(
    rule: RouterPolicy,
    made: Prediction = UNSURE,
    text: Message = HELLO,
    alternatives: Sequence[Alternative] = OTHERS,
) -> Explanation:
    decision = decide(text, made, rule, signals(text, made))
    return explain(rule, text, made, decision, prices=PRICES, alternatives=alternatives)


def previewed(
    rule: RouterPolicy, made: Prediction, text: Message, values: dict[str, float]
) -> tuple[RouteReason, Explanation]:
    decision = decide(text, made, rule, values)
    return (
        blinded(rule, text, made, decision).reason,
        preview(rule, text, made, decision, prices=PRICES, alternatives=OTHERS),
    )


# ---- what it says -------------------------------------------------------------------------------


@given(POLICIES, ROWS, st.sampled_from(LABELS), st.sampled_from([(), ("card",)]))
@settings(deadline=None)
def test_an_explanation_is_the_decision_in_parts(
    rule: RouterPolicy, row: dict[str, float], label: str, pii: tuple[str, ...]
) -> None:
    text, made = Message("a text", pii), UNSURE._replace(label=label)
    decision = decide(text, made, rule, row)
    found = explain(rule, text, made, decision, prices=PRICES, alternatives=OTHERS)
    assert (found.route, found.reason, found.trust) == (
        decision.route, decision.reason, decision.trust
    )  # fmt: skip
    size = max(1.0, sum(map(abs, found.breakdown.values())))
    assert math.isclose(sum(found.breakdown.values()), decision.trust, abs_tol=1e-12 * size)
    fires = [reason for reason, fires in found.rules.items() if fires]
    if not pii:
        assert decision.reason in (fires[:1] or [RouteReason.TRUSTED, RouteReason.ESCALATED])
    assert Explanation.model_validate_json(found.model_dump_json()) == found


@given(POLICIES, ROWS, st.sampled_from(LABELS), st.floats(-2, 2))
@settings(deadline=None)
def test_the_edge_answers_up_to_the_threshold_that_it_says(
    rule: RouterPolicy, row: dict[str, float], label: str, threshold: float
) -> None:
    made = UNSURE._replace(label=label)
    decision = decide(HELLO, made, rule, row)
    found = explain(rule, HELLO, made, decision, prices=PRICES)
    other = decide(HELLO, made, rule.model_copy(update={"threshold": threshold}), row)
    if found.edge_up_to is None:
        assert other.route is found.route
    else:
        assert (other.route is Route.EDGE) == (threshold <= found.edge_up_to)


def test_the_nearest_on_both_sides_say_where_the_message_would_go() -> None:
    near = explained(policy(), UNSURE._replace(confidence=0.66)).alternatives
    assert near.stricter is not None
    assert (near.stricter.risk, near.stricter.route) == (0.005, Route.CLOUD)
    assert near.looser is not None
    assert (near.looser.risk, near.looser.route) == (0.02, Route.EDGE)


def test_of_risks_with_one_threshold_the_smallest_is_told() -> None:
    twins = (alternative(0.02, 0.5), alternative(0.05, 0.5))
    near = explained(policy(), alternatives=twins).alternatives
    assert near.stricter is None
    assert near.looser is not None
    assert near.looser.risk == 0.02


def test_the_release_itself_is_no_alternative() -> None:
    near = explained(policy(), alternatives=[alternative(0.01, 0.7)]).alternatives
    assert (near.stricter, near.looser) == (None, None)


@pytest.mark.parametrize(
    ("rule", "text", "route"),
    [
        (policy(), Message("hello", ("card",)), Route.EDGE),
        (policy(rules=Rules(never_escalate=("neutral",))), HELLO, Route.EDGE),
        (policy(rules=Rules(max_words=1)), HELLO, Route.CLOUD),
        (policy(min_confidence=0.61), HELLO, Route.CLOUD),
    ],
)
def test_where_a_rule_decides_no_threshold_matters(
    rule: RouterPolicy, text: Message, route: Route
) -> None:
    others = (alternative(0.001, 1.0), alternative(0.5, 0.0))
    found = explained(rule, text=text, alternatives=others)
    assert found.edge_up_to is None
    assert found.alternatives.stricter is not None
    assert found.alternatives.looser is not None
    assert found.alternatives.stricter.route is found.alternatives.looser.route is route


def test_every_rule_that_is_set_is_listed_in_order_with_whether_it_fires() -> None:
    rules = Rules(
        never_escalate=("positive",), escalation_words=True, max_distance=1.0, max_words=1
    )
    found = explained(policy(rules=rules, min_confidence=0.5))
    assert list(found.rules.items()) == [
        (RouteReason.CLASS_KEPT, False),
        (RouteReason.OUT_OF_DOMAIN, False),
        (RouteReason.ESCALATION_WORDS, False),
        (RouteReason.TOO_LONG, True),
        (RouteReason.UNCONFIDENT, False),
    ]
    assert explained(policy()).rules == {}


def test_the_class_margin_is_that_of_the_predicted_class() -> None:
    margins = {"neutral": 0.25, "positive": 0.5}
    found = explained(policy(class_margins=margins))
    assert found.class_margin == 0.25
    assert found.breakdown == {"max_probability": 0.6, "class_margin": -0.25}
    assert explained(policy()).class_margin == 0.0


def test_both_costs_are_told_and_a_failed_edge_costs_nothing() -> None:
    assert explained(policy()).costs_usd == {
        Route.EDGE: PRICES.edge_usd,
        Route.CLOUD: PRICES.edge_usd + PRICES.cloud_usd,
    }
    failed = explain(policy(), HELLO, None, None, prices=PRICES, alternatives=OTHERS)
    assert failed.costs_usd == {Route.CLOUD: PRICES.cloud_usd}
    assert (failed.route, failed.trust, failed.alternatives.looser) == (None, None, None)


def test_a_score_without_classes_has_no_part_for_the_class() -> None:
    plain = Logistic(weights={"log_odds": 1.0}, intercept=0.5)
    assert list(explained(policy(score=plain)).breakdown) == ["intercept", "log_odds"]


# ---- previews -----------------------------------------------------------------------------------


@given(
    POLICIES,
    ROWS,
    st.lists(st.sampled_from(LABELS), min_size=2, max_size=2, unique=True),
    st.sampled_from([(), ("card",)]),
)
@settings(deadline=None, max_examples=400)
def test_two_messages_that_differ_in_the_class_have_one_preview_but_for_the_route(
    rule: RouterPolicy, row: dict[str, float], labels: list[str], pii: tuple[str, ...]
) -> None:
    """Else the label could be read, of which no record is kept."""
    text = Message("a text", pii)
    pair = [UNSURE._replace(label=label) for label in labels]
    (reason, first), (other, second) = (previewed(rule, made, text, row) for made in pair)
    if first.route is second.route:
        assert (reason, first) == (other, second)
    turned = {"route": None, "reason": None}
    assert first.model_copy(update=turned) == second.model_copy(update=turned)


LEARNED = Logistic(weights={"log_odds": 1.0}, intercept=-2.0, classes={"neutral": 9.0})


@pytest.mark.parametrize(
    ("rule", "label", "told"),
    [
        # the class turns the route, by a list, a margin or an offset: the reason names none of them
        (policy(rules=Rules(never_escalate=("neutral",))), "neutral", RouteReason.CLASS_KEPT),
        (policy(class_margins={"neutral": -0.5}), "neutral", RouteReason.CLASS_KEPT),
        (policy(score=LEARNED), "neutral", RouteReason.CLASS_KEPT),
        (
            policy(threshold=0.5, rules=Rules(always_escalate=("neutral",))),
            "neutral",
            RouteReason.CLASS_ESCALATED,
        ),
        (policy(threshold=0.5, class_margins={"neutral": 0.2}), "neutral",
         RouteReason.CLASS_ESCALATED),
        # the route would be the same without the class: what else decides it is the reason
        (policy(rules=Rules(always_escalate=("neutral",))), "neutral", RouteReason.ESCALATED),
        (policy(threshold=0.5, rules=Rules(never_escalate=("neutral",))), "neutral",
         RouteReason.TRUSTED),
        (policy(rules=Rules(always_escalate=("neutral",), max_words=1)), "neutral",
         RouteReason.TOO_LONG),
    ],
)  # fmt: skip
def test_a_preview_names_the_class_only_where_the_route_gives_it_away(
    rule: RouterPolicy, label: str, told: RouteReason
) -> None:
    made = UNSURE._replace(label=label)
    reason, found = previewed(rule, made, HELLO, signals(HELLO, made))
    assert reason is found.reason is told
    assert found.route is decide(HELLO, made, rule, signals(HELLO, made)).route


def test_a_preview_keeps_back_all_that_the_class_has_a_part_in() -> None:
    rule = policy(
        score=LEARNED, class_margins={"neutral": 0.25}, rules=Rules(always_escalate=("positive",))
    )
    _, found = previewed(rule, UNSURE, HELLO, signals(HELLO, UNSURE))
    assert found.breakdown == {"intercept": -2.0, "log_odds": log_odds(0.6)}
    assert found.trust == sum(found.breakdown.values())
    assert (found.class_margin, found.edge_up_to, found.rules) == (None, None, {})
    assert found.probabilities == {}
    assert found.alternatives.looser is not None
    assert found.alternatives.looser.route is None


def test_a_preview_whose_rule_looks_at_no_class_keeps_back_only_the_answer() -> None:
    rule = policy(min_confidence=0.5)
    _, found = previewed(rule, UNSURE, HELLO, signals(HELLO, UNSURE))
    assert found == explained(rule)


# ---- alternatives.json --------------------------------------------------------------------------


def test_alternatives_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert load_alternatives(tmp_path) == ()
    write_json(tmp_path / ALTERNATIVES, [item.model_dump() for item in OTHERS])
    assert load_alternatives(tmp_path) == OTHERS
    write_json(tmp_path / ALTERNATIVES, [])
    assert load_alternatives(tmp_path) == ()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[", "Expecting value"),
        ('{"risk": 0.01}', "valid tuple"),
        ('[{"risk": 0.01}]', "threshold"),
        (json.dumps([{**OTHERS[0].model_dump(), "risk": 1.5}]), "risk"),
        (json.dumps([{**OTHERS[0].model_dump(), "surprise": 1}]), "surprise"),
        (json.dumps([{**OTHERS[0].model_dump(), "threshold": float("inf")}]), "threshold"),
        (json.dumps([item.model_dump() for item in OTHERS[::-1]]), r"risks are \[0.05, .*do not"),
    ],
)
def test_alternatives_that_make_no_sense_are_refused_with_what_was_found(
    tmp_path: Path, content: str, said: str
) -> None:
    (tmp_path / ALTERNATIVES).write_text(content)
    with pytest.raises(ReleaseError, match=rf"(?s)alternatives\.json is not.*{said}.*firstline"):
        load_alternatives(tmp_path)


# ---- for a terminal -----------------------------------------------------------------------------


def test_lines_are_aligned_and_what_added_most_comes_first() -> None:
    rule = policy(
        score=Weighted(weights={"confidence": 1.0, "entropy": -2.0}),
        threshold=-0.7,
        rules=Rules(max_words=120, escalation_words=True),
    )
    near = (alternative(0.005, 0.5), alternative(0.02, -0.9))
    assert lines(explained(rule, alternatives=near).model_dump(mode="json")) == [
        "route     cloud (escalated)",
        "trust     -0.8000; the edge answers from -0.7000 on",
        "score     1.0 \u00d7 confidence + -2.0 \u00d7 entropy",
        "parts     entropy     -1.4000",
        "          confidence  +0.6000",
        "rules     escalation_words  no",
        "          too_long          no",
        "costs     edge $0.00100, cloud $0.01460",
        "stricter  risk 0.50% at 95% confidence: threshold 0.5000, 80.0% at the edge; "
        "this message: cloud",
        "looser    risk 2.00% at 95% confidence: threshold -0.9000, 80.0% at the edge; "
        "this message: edge",
    ]


def test_lines_of_a_failed_edge_and_of_a_preview_make_nothing_up() -> None:
    failed = explain(policy(), HELLO, None, None, prices=PRICES)
    assert lines(failed.model_dump(mode="json")) == [
        "route  cloud, since the edge had no usable answer",
        "score  confidence",
        "costs  cloud $0.01360",
    ]
    rule = policy(class_margins={"neutral": 0.1})
    _, found = previewed(rule, UNSURE, HELLO, signals(HELLO, UNSURE))
    shown = "\n".join(lines(found.model_dump(mode="json")))
    assert "looser" in shown
    assert "this message" not in shown


@given(POLICIES, ROWS, st.sampled_from(LABELS))
@settings(deadline=None)
def test_every_explanation_can_be_printed(
    rule: RouterPolicy, row: dict[str, float], label: str
) -> None:
    made = UNSURE._replace(label=label)
    found = explain(
        rule, HELLO, made, decide(HELLO, made, rule, row), prices=PRICES, alternatives=OTHERS
    )
    shown = lines(found.model_dump(mode="json"))
    assert all("\n" not in line for line in shown)
    assert all(any(name in line for line in shown) for name in found.breakdown)


def test_the_documented_explanation_is_what_is_made() -> None:
    page = (Path(serve_app.__file__).parents[1] / "docs" / "router.md").read_text()
    (written,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    printed, as_json = re.findall(r"```\n(.*?)```", page.split("## Explain")[1], re.DOTALL)[:2]
    rule = RouterPolicy.model_validate_json(written)
    made = Prediction("fraud", 0.86, 0.75, 0.3, packed(0.11, 0.86, 0.03))
    near = tuple(
        Alternative(risk=risk, threshold=at, edge_share=share, upper_bound=bound, confidence=0.95)
        for risk, at, share, bound in ((0.005, 0.81, 0.743, 0.0048), (0.02, 0.64, 0.902, 0.0197))
    )
    answers = dict(zip(("complaint", "fraud", "greeting"), made.probabilities, strict=True))
    found = explained(rule, made, Message("Why was my card charged twice?"), near)
    found = found.model_copy(update={"probabilities": answers})
    assert lines(found.model_dump(mode="json")) == printed.splitlines()
    update = {
        "signals": {name: found.signals[name] for name in ("confidence", "entropy")},
        "costs_usd": {route: round(usd, 6) for route, usd in found.costs_usd.items()},
    }
    assert Explanation.model_validate_json(as_json) == found.model_copy(update=update)


# ---- without a service --------------------------------------------------------------------------


def pair(folder: Path, **over: Any) -> tuple[ModelBundle, ModelBundle]:
    return make_bundle(folder, "edge", **over), make_bundle(folder, "cloud")


def test_a_message_is_explained_without_a_service(tmp_path: Path) -> None:
    release = make_release(load_settings(), *pair(tmp_path))
    easy = explain_locally(release, message("positive"))
    hard = explain_locally(release, message("positive", hard=True))
    assert (easy.route, easy.reason) == (Route.EDGE, RouteReason.TRUSTED)
    assert (hard.route, hard.reason) == (Route.CLOUD, RouteReason.ESCALATED)
    assert max(easy.probabilities, key=lambda label: easy.probabilities[label]) == "positive"
    assert any("positive" in line for line in lines(easy.model_dump(mode="json")))


def test_personal_data_is_found_on_ones_own_machine_too(tmp_path: Path) -> None:
    release = make_release(load_settings(), *pair(tmp_path))
    found = explain_locally(release, f"{message('positive', hard=True)} jo@example.com")
    assert (found.reason, found.pii) == (RouteReason.PII_PINNED, ("email",))


def test_an_edge_without_an_answer_is_explained_as_such(tmp_path: Path) -> None:
    release = make_release(load_settings(), *pair(tmp_path, nan_word="friendly"))
    found = explain_locally(release, "friendly")
    assert (found.route, found.probabilities) == (None, {})


def test_what_cannot_be_explained_is_said(tmp_path: Path) -> None:
    release = make_release(load_settings(), *pair(tmp_path))
    with pytest.raises(DataError, match="no visible character"):
        explain_locally(release, " \u200b")
    (release.edge_path / "model.onnx").write_bytes(b"other")
    with pytest.raises(BundleError):
        explain_locally(release, "hello")
