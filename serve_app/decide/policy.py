"""RouterPolicy and decide(): the one rule that serving, sweep, certificate and reports share.

A policy is a score with a threshold, and hard rules on top. In this order:
    personal data            -> edge, whatever else holds
    the hard rules (`fired`) -> the first that fires decides
    confidence < min_confidence       -> cloud
    score - class margin >= threshold -> edge, else cloud
Every baseline is a policy too. `fired` and `trust` run on floats (one message) and on NumPy columns
(a table), so a decision in service is the decision that was certified.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cluster.bundles import MODEL
from cluster.errors import ReleaseError
from cluster.releases import Release
from serve_app.contracts import Decision, Message, Prediction, Route, RouteReason
from serve_app.decide.factors import FULL_WORDS
from serve_app.decide.scores import CLASS, Logistic, Published, Random, Score, Weighted
from serve_app.decide.signals import Evidence

CLASS_MARGIN: Final = "class_margin"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BundlePins(_Frozen):
    """The bundles that a policy was tuned and certified for, by hash, and the edge's model file."""

    edge: str
    cloud: str
    # Left out where it is the one that every bundle has.
    edge_artifact: str = Field(MODEL, exclude_if=lambda name: name == MODEL)

    def __str__(self) -> str:
        return f"edge {self.edge[:12]} ({self.edge_artifact}), cloud {self.cloud[:12]}"


class Rules(_Frozen):
    """What holds whatever the score says. Personal data is pinned before any of it."""

    never_escalate: tuple[str, ...] = Field((), description="classes that stay at the edge")
    always_escalate: tuple[str, ...] = Field((), description="classes that go to the cloud")
    escalation_words: bool = Field(False, description="any of them -> cloud (factors.py)")
    max_distance: float | None = Field(None, ge=0.0, description="further -> cloud")
    max_words: int | None = Field(None, ge=0, description="longer -> cloud")

    @model_validator(mode="after")
    def _no_class_both_ways(self) -> "Rules":
        if both := sorted(set(self.never_escalate) & set(self.always_escalate)):
            raise ValueError(
                f"never_escalate and always_escalate both name {both}; a class can have only one"
            )
        return self


class RouterPolicy(_Frozen):
    """An escalation rule that a person can read. Unknown keys are refused."""

    version: Literal[2] = Field(2, description="of this format")
    name: str
    score: Score
    threshold: float
    class_margins: dict[str, float] = Field(
        default_factory=dict, description="what a predicted class needs beyond the threshold"
    )
    min_confidence: float = Field(0.0, ge=0.0, le=1.0)
    rules: Rules = Rules()
    bundles: BundlePins | None = Field(None, description="None: a baseline, fit for no release")
    tuned_on: str | None = Field(None, description="the split and fingerprint that chose it")
    target_risk: float | None = Field(None, gt=0.0, lt=1.0)
    created_at: str | None = None

    @property
    def classes(self) -> set[str]:
        """Every class that it names; if there is none, the predicted class has no say."""
        rules = self.rules
        offsets = self.score.classes if isinstance(self.score, Logistic) else ()
        return {*rules.never_escalate, *rules.always_escalate, *self.class_margins, *offsets}

    def without_classes(self) -> "RouterPolicy":
        """The same rule, in which the predicted class has no say."""
        score = self.score
        if isinstance(score, Logistic):
            score = score.model_copy(update={"classes": {}})
        rules = self.rules.model_copy(update={"never_escalate": (), "always_escalate": ()})
        return self.model_copy(update={"score": score, "class_margins": {}, "rules": rules})

    def check_classes(self, labels: Sequence[str]) -> None:
        """Raises ReleaseError if it names a class that is not among the models' labels."""
        if unknown := sorted(self.classes - set(labels)):
            raise ReleaseError(
                f"The policy {self.name!r} names the classes {unknown}, which the models never "
                f"answer with; they know {sorted(labels)[:20]}. Correct the policy's names."
            )


def policy_of(release: Release) -> RouterPolicy:
    """The policy of a release.

    Raises:
        ReleaseError: it is not of this format, or names a class that the models do not know.
    """
    try:
        policy = RouterPolicy.model_validate(release.policy)
    except ValidationError as error:
        raise ReleaseError(
            f"The release {release.id} has a policy that this version cannot read: {error}. Make "
            "it again with `firstline tune`."
        ) from None
    policy.check_classes(release.manifest.labels)
    return policy


def trust(score: Score, class_margins: Mapping[str, float], evidence: Evidence) -> Any:
    """What is compared with the threshold: the score less the predicted class's margin."""
    value = score.of(evidence)
    return value - evidence.per_class(class_margins) if class_margins else value


def fired(rules: Rules, evidence: Evidence) -> Iterator[tuple[RouteReason, Any]]:
    """The rules that are set, in their order, each with whether it fires: a bool, or a column.

    The edge keeps what CLASS_KEPT fires on; all others send to the cloud.
    """
    if rules.never_escalate:
        yield RouteReason.CLASS_KEPT, evidence.is_one_of(rules.never_escalate)
    if rules.always_escalate:
        yield RouteReason.CLASS_ESCALATED, evidence.is_one_of(rules.always_escalate)
    seen = evidence.signals
    if rules.max_distance is not None:
        yield RouteReason.OUT_OF_DOMAIN, seen["distance"] > rules.max_distance
    if rules.escalation_words:
        yield RouteReason.ESCALATION_WORDS, seen["escalation"] > 0.0
    if rules.max_words is not None:
        yield RouteReason.TOO_LONG, seen["words"] > rules.max_words / FULL_WORDS


def decide(
    message: Message, prediction: Prediction, policy: RouterPolicy, values: Mapping[str, float]
) -> Decision:
    """Where the message goes. Pure; `values` are `signals(message, prediction)`."""
    evidence = Evidence(values, prediction.label)
    reached = float(trust(policy.score, policy.class_margins, evidence))
    route, reason = _route(message, policy, evidence, reached)
    return Decision(route, reason, reached, policy.threshold, values)


def _route(
    message: Message, policy: RouterPolicy, evidence: Evidence, reached: float
) -> tuple[Route, RouteReason]:
    pinned = message.pinned
    if pinned is not None:
        return Route.EDGE, pinned
    for reason, fires in fired(policy.rules, evidence):
        if fires:
            return Route.EDGE if reason is RouteReason.CLASS_KEPT else Route.CLOUD, reason
    if not evidence.signals["confidence"] >= policy.min_confidence:  # a NaN is not confident
        return Route.CLOUD, RouteReason.UNCONFIDENT
    if reached >= policy.threshold:
        return Route.EDGE, RouteReason.TRUSTED
    return Route.CLOUD, RouteReason.ESCALATED


def breakdown(policy: RouterPolicy, evidence: Evidence) -> dict[str, float]:
    """What each part added to the trust in one message; they sum to it."""
    parts = policy.score.parts(evidence)
    if not policy.classes:
        parts.pop(CLASS, None)
    margin = evidence.per_class(policy.class_margins)
    return {**parts, CLASS_MARGIN: -margin} if margin else parts


ALWAYS_EDGE: Final = RouterPolicy(name="always_edge", score=Weighted(weights={}), threshold=0.0)
ALWAYS_CLOUD: Final = RouterPolicy(name="always_cloud", score=Weighted(weights={}), threshold=1.0)
RANDOM: Final = RouterPolicy(name="random", score=Random(), threshold=0.5)
# The published rule: a complexity of five weighted factors, and a confidence that must be reached.
# The article is described in factors.py; no copy of its code was at hand, so the equal weights,
# the 0.5 and the 0.85 are our reading of it. docs/router.md says so wherever the figure is shown.
PUBLISHED: Final = RouterPolicy(
    name="published_five_factor", score=Published(), threshold=-0.5, min_confidence=0.85
)
BASELINES: Final = (ALWAYS_EDGE, ALWAYS_CLOUD, RANDOM, PUBLISHED)
