"""Why a message goes where it goes: policy, message, prediction, decision -> Explanation.

An explanation is the rule's own arithmetic, not an estimate of it: `explain` calls what `decide`
calls. `preview` is for `route_only`, where the label must not be readable: of the predicted class
it tells nothing but what the route itself gives away.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from cluster.errors import ReleaseError
from cluster.files import read_json
from serve_app.contracts import Decision, Message, Prediction, Route, RouteReason
from serve_app.decide.cost import Prices
from serve_app.decide.policy import RouterPolicy, breakdown, decide, fired
from serve_app.decide.signals import Evidence

ALTERNATIVES: Final = "alternatives.json"
_BY_THRESHOLD: Final = frozenset({RouteReason.TRUSTED, RouteReason.ESCALATED})
_SHOWN_ANSWERS: Final = 3


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# ---- the alternatives of a release --------------------------------------------------------------


class Alternative(_Frozen):
    """The release's rule at another threshold, certified at another risk, by itself."""

    risk: float = Field(gt=0.0, lt=1.0)
    threshold: float
    edge_share: float = Field(ge=0.0, le=1.0, description="seen on the certified rows")
    upper_bound: float = Field(ge=0.0, le=1.0, description="of the risk, at this confidence")
    confidence: float = Field(gt=0.0, lt=1.0)


class Choice(Alternative):
    """An alternative, and where this message would go under it."""

    route: Route | None = Field(None, description="null in a preview whose rule looks at classes")


class Nearest(_Frozen):
    """The certified thresholds on both sides of the release's own; null where there is none."""

    stricter: Choice | None = None
    looser: Choice | None = None


_File: Final = TypeAdapter(tuple[Alternative, ...])


def load_alternatives(release_path: Path) -> tuple[Alternative, ...]:
    """`alternatives.json` of a release's folder; empty if there is none.

    Raises:
        ReleaseError: it is not a list of alternatives by rising risk.
    """
    path = release_path / ALTERNATIVES
    try:
        found = _File.validate_python(read_json(path))
    except FileNotFoundError:
        return ()
    except ValueError as error:
        raise ReleaseError(_unusable(path, str(error))) from None
    risks = [item.risk for item in found]
    if risks != sorted(risks):
        raise ReleaseError(_unusable(path, f"its risks are {risks}, which do not rise"))
    return found


def _unusable(path: Path, found: str) -> str:
    return (
        f"{path} is not a list of certified alternatives by rising risk: {found}. Make the release "
        "again with `firstline tune`."
    )


# ---- explanations -------------------------------------------------------------------------------


class Explanation(_Frozen):
    """Why an answer is what it is, as HTTP gives it.

    What is null or empty is not known: the edge failed, or a preview keeps it back.
    """

    route: Route | None = Field(None, description="what the rule said; null: the edge failed")
    reason: RouteReason | None = Field(None, description="the rule that fired")
    score: str = Field(description="the formula")
    score_kind: str
    trust: float | None = Field(None, description="the score less the class margin")
    threshold: float = Field(description="the edge is trusted from here on")
    breakdown: dict[str, float] = Field({}, description="what each part added; the sum is `trust`")
    class_margin: float | None = Field(
        None, description="what the predicted class needs beyond the threshold"
    )
    min_confidence: float
    rules: dict[RouteReason, bool] = Field(
        {}, description="every hard rule that is set, in order, and whether it fires"
    )
    signals: dict[str, float] = Field({}, description="what the rule may look at")
    probabilities: dict[str, float] = Field({}, description="of the model that answered")
    pii: tuple[str, ...] = Field((), description="kinds of personal data found and masked")
    costs_usd: dict[Route, float] = Field(description="of the message on each route")
    edge_up_to: float | None = Field(
        None, description="the edge answers at thresholds up to this; null: no threshold matters"
    )
    alternatives: Nearest = Nearest()


def explain(
    policy: RouterPolicy,
    message: Message,
    edge: Prediction | None,
    decision: Decision | None,
    *,
    prices: Prices,
    alternatives: Sequence[Alternative] = (),
    probabilities: Mapping[str, float] | None = None,
) -> Explanation:
    """Everything about one decision. `edge` and `decision` are None where the edge failed."""
    made = Explanation(
        score=str(policy.score),
        score_kind=policy.score.kind,
        threshold=policy.threshold,
        min_confidence=policy.min_confidence,
        probabilities=dict(probabilities or {}),
        pii=message.pii,
        costs_usd={Route.CLOUD: prices.cloud_usd},  # alone: the edge is not paid for failing
    )
    if edge is None or decision is None:
        return made
    seen = Evidence(decision.signals, edge.label)
    return made.model_copy(
        update={
            "route": decision.route,
            "reason": decision.reason,
            "trust": decision.trust,
            "breakdown": breakdown(policy, seen),
            "class_margin": seen.per_class(policy.class_margins),
            "rules": _rules(policy, seen),
            "signals": dict(decision.signals),
            "costs_usd": {route: prices.of(route) for route in Route},
            "edge_up_to": decision.trust if decision.reason in _BY_THRESHOLD else None,
            "alternatives": _nearest(policy, message, edge, decision, alternatives),
        }
    )


def _rules(policy: RouterPolicy, seen: Evidence) -> dict[RouteReason, bool]:
    made = {reason: bool(fires) for reason, fires in fired(policy.rules, seen)}
    if policy.min_confidence > 0.0:
        made[RouteReason.UNCONFIDENT] = not seen.signals["confidence"] >= policy.min_confidence
    return made


def _nearest(
    policy: RouterPolicy,
    message: Message,
    edge: Prediction,
    decision: Decision,
    alternatives: Sequence[Alternative],
) -> Nearest:
    def choice(beyond: Callable[[Alternative], bool]) -> Choice | None:
        # Of several risks that certify one threshold, the smallest says most.
        found = min(
            filter(beyond, alternatives),
            key=lambda item: (abs(item.threshold - policy.threshold), item.risk),
            default=None,
        )
        if found is None:
            return None
        other = policy.model_copy(update={"threshold": found.threshold})
        route = decide(message, edge, other, decision.signals).route
        return Choice(**found.model_dump(), route=route)

    return Nearest(
        stricter=choice(lambda item: item.threshold > policy.threshold),
        looser=choice(lambda item: item.threshold < policy.threshold),
    )


# ---- previews -----------------------------------------------------------------------------------


def blinded(
    policy: RouterPolicy, message: Message, edge: Prediction, decision: Decision
) -> Decision:
    """What a preview may tell of a decision: the real route, and all else as if the predicted
    class had no say. Where that would have been another route, the reason says that the class
    turned it, whether by a list, a margin or an offset.
    """
    if not policy.classes:
        return decision
    made = decide(message, edge, policy.without_classes(), decision.signals)
    kept = decision.route is Route.EDGE
    turned = RouteReason.CLASS_KEPT if kept else RouteReason.CLASS_ESCALATED
    reason = made.reason if made.route is decision.route else turned
    return made._replace(route=decision.route, reason=reason)


def preview(
    policy: RouterPolicy,
    message: Message,
    edge: Prediction | None,
    decision: Decision | None,
    *,
    prices: Prices,
    alternatives: Sequence[Alternative] = (),
) -> Explanation:
    """As `explain`, but a function of the route and of what the predicted class has no part in."""
    if not policy.classes or edge is None or decision is None:
        return explain(policy, message, edge, decision, prices=prices, alternatives=alternatives)
    shown, blind = blinded(policy, message, edge, decision), policy.without_classes()
    made = explain(blind, message, edge, shown, prices=prices, alternatives=alternatives)
    near = made.alternatives
    kept_back = {
        "stricter": near.stricter and near.stricter.model_copy(update={"route": None}),
        "looser": near.looser and near.looser.model_copy(update={"route": None}),
    }
    return made.model_copy(
        update={"class_margin": None, "edge_up_to": None, "alternatives": Nearest(**kept_back)}
    )


# ---- for a terminal -----------------------------------------------------------------------------


def lines(explanation: Mapping[str, Any]) -> list[str]:
    """An explanation's JSON -> aligned lines for a terminal, what added most first."""
    rows = list(_rows(explanation))
    width = max(len(head) for head, _ in rows)
    return [f"{head:<{width}}  {text}".rstrip() for head, text in rows]


def _rows(made: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(heading, text) of every line; the heading is empty where one goes on."""
    if made["route"] is None:
        yield "route", "cloud, since the edge had no usable answer"
    else:
        yield "route", f"{made['route']} ({made['reason']})"
        yield "trust", f"{made['trust']:.4f}; the edge answers from {made['threshold']:.4f} on"
    yield "score", made["score"]
    yield from _headed("parts", _numbers(made["breakdown"], "+.4f", len(made["breakdown"])))
    yield from _headed("rules", _flags(made["rules"]))
    yield from _headed("answers", _numbers(made["probabilities"], ".4f", _SHOWN_ANSWERS))
    if made["pii"]:
        yield "found", f"{', '.join(made['pii'])}; masked, and kept at the edge"
    yield "costs", ", ".join(f"{key} ${usd:.5f}" for key, usd in made["costs_usd"].items())
    for name, choice in made["alternatives"].items():
        if choice:
            yield name, _choice(choice)


def _headed(head: str, texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    yield from zip((head, *[""] * len(texts)), texts, strict=False)


def _numbers(values: Mapping[str, float], form: str, most: int) -> list[str]:
    """The largest by absolute value, names and numbers in columns."""
    largest = sorted(values.items(), key=lambda item: -abs(item[1]))[:most]
    shown = [(name, format(value, form)) for name, value in largest]
    width = max((len(name) for name, _ in shown), default=0)
    digits = max((len(number) for _, number in shown), default=0)
    return [f"{name:<{width}}  {number:>{digits}}" for name, number in shown]


def _flags(rules: Mapping[str, bool]) -> list[str]:
    width = max(map(len, rules), default=0)
    return [f"{name:<{width}}  {'fires' if fires else 'no'}" for name, fires in rules.items()]


def _choice(choice: Mapping[str, Any]) -> str:
    goes = f"; this message: {choice['route']}" if choice["route"] else ""
    return (
        f"risk {choice['risk']:.2%} at {choice['confidence']:.0%} confidence: threshold "
        f"{choice['threshold']:.4f}, {choice['edge_share']:.1%} at the edge{goes}"
    )
