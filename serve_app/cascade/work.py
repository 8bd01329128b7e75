"""One message on its way through the router, and what leaves and is written down of it. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cluster.audit.records import AuditRecord
from serve_app.contracts import Cached, Decision, Message, Prediction, Route, RouteReason
from serve_app.decide.answered import Answered
from serve_app.decide.cost import Prices
from serve_app.decide.explain import Alternative, Explanation, explain
from serve_app.decide.policy import RouterPolicy, decide
from serve_app.decide.signals import signals


@dataclass(frozen=True, slots=True)
class Timer:
    """How long a request has taken, and how long its caller still waits."""

    start: float
    clock: Callable[[], float]
    deadline_s: float | None

    @classmethod
    def started(cls, clock: Callable[[], float], deadline_s: float | None) -> "Timer":
        return cls(clock(), clock, deadline_s)

    def ms(self) -> float:
        return 1000.0 * (self.clock() - self.start)

    def left_s(self, reserve: float = 0.0) -> float | None:
        """Args: reserve: the share of it that is held back, 50 ms at most."""
        if self.deadline_s is None:
            return None
        left_s = max(0.0, self.deadline_s - (self.clock() - self.start))
        return left_s - min(0.05, reserve * left_s)


@dataclass(slots=True, eq=False)
class Work:
    """One message on its way through."""

    message: Message
    cached: Cached | None = None
    edge: Prediction | None = None
    decision: Decision | None = None
    final: Prediction | None = None
    route: Route = Route.EDGE
    reason: RouteReason = RouteReason.TRUSTED
    propensity: float = 1.0
    degraded: bool = False
    latency_ms: float = 0.0

    @property
    def known(self) -> bool:
        """There is an answer."""
        return self.final is not None or self.cached is not None

    def decide(self, policy: RouterPolicy) -> None:
        """Where the rule sends it, once the edge has been asked."""
        pinned = self.message.pinned
        if self.edge is not None:
            values = signals(self.message, self.edge)
            self.decision = decide(self.message, self.edge, policy, values)
            self.route, self.reason = self.decision.route, self.decision.reason
        elif pinned is not None:
            self.reason = pinned
        else:
            self.route, self.reason = Route.CLOUD, RouteReason.EDGE_FAILED

    def settle(self, prediction: Prediction | None, latency_ms: float) -> None:
        self.final, self.latency_ms = prediction, latency_ms

    def stay(self, reason: RouteReason, latency_ms: float) -> None:
        """The edge's answer goes out instead of the cloud's.

        For an explored message that is the rule's own answer; for any other it is a degraded one.
        """
        self.settle(self.edge, latency_ms)
        self.route = Route.EDGE
        if self.reason is not RouteReason.EXPLORED:
            self.reason, self.degraded = reason, True

    def recall(self, cached: Cached, latency_ms: float) -> None:
        """Answers from what the same release said of the same text before."""
        self.cached, self.latency_ms = cached, latency_ms
        self.route, self.reason = cached.route, cached.reason

    def cost_usd(self, prices: Prices) -> float:
        """A tier is charged for the answers it gives; one from the cache costs nothing."""
        if self.cached is not None:
            return 0.0
        return prices.cloud_usd if self.edge is None else prices.of(self.route)

    def answered(
        self, answer_id: str, release: str, prices: Prices, explanation: Explanation | None
    ) -> Answered:
        known = self.cached or self.final
        if known is None:
            raise AssertionError("a message without an answer came through")
        return Answered(
            id=answer_id,
            label=known.label,
            confidence=known.confidence,
            route=self.route,
            reason=self.reason,
            cost_usd=self.cost_usd(prices),
            latency_ms=self.latency_ms,
            release=release,
            degraded=self.degraded,
            cached=self.cached is not None,
            explanation=explanation,
        )

    def explained(
        self,
        policy: RouterPolicy,
        prices: Prices,
        labels: Sequence[str],
        alternatives: Sequence[Alternative],
    ) -> Explanation:
        """Why the rule sent it where it did, with the probabilities of the model that answered."""
        given = self.final.probabilities if self.final else ()
        return explain(
            policy,
            self.message,
            self.edge,
            self.decision,
            prices=prices,
            alternatives=alternatives,
            probabilities=dict(zip(labels, given, strict=bool(given))),
        )


@dataclass(frozen=True)
class RecordBuilder:
    """Writes a release's work down.

    `random` is a hash of the text without a key, with which likely texts could be tried, so it is
    written down only where the score looks at it.
    """

    threshold: float
    keeps_random: bool
    hash_text: Callable[[str], str]
    now: Callable[[], float]
    offline: bool = False

    @classmethod
    def of(
        cls,
        policy: RouterPolicy,
        hash_text: Callable[[str], str],
        now: Callable[[], float],
        *,
        offline: bool = False,
    ) -> "RecordBuilder":
        return cls(policy.threshold, "random" in policy.score.uses, hash_text, now, offline)

    def record(
        self, work: Work, answer: Answered, shadow_of: str | None = None, request_size: int = 1
    ) -> AuditRecord:
        known = work.cached or work.decision
        return AuditRecord(
            id=answer.id,
            time_s=self.now(),
            text_hash=self.hash_text(work.message.text),
            route=answer.route.value,
            reason=answer.reason.value,
            label=answer.label or "",
            edge_label=work.cached.edge_label if work.cached else _label(work.edge),
            confidence=answer.confidence,
            signals=self.signals(work.decision) if work.cached is None else work.cached.signals,
            trust=known.trust if known else 0.0,
            threshold=self.threshold,
            propensity=work.propensity,
            release=answer.release,
            cost_usd=answer.cost_usd,
            latency_ms=answer.latency_ms,
            degraded=answer.degraded,
            cached=answer.cached,
            shadow_of=shadow_of,
            offline=self.offline,
            request_size=request_size,
        )

    def signals(self, decision: Decision | None) -> Mapping[str, float]:
        """Without a decision there are none: the edge had failed."""
        if decision is None:
            return {}
        if self.keeps_random or "random" not in decision.signals:
            return decision.signals
        return {name: value for name, value in decision.signals.items() if name != "random"}

    def cached(self, work: Work) -> Cached:
        """What a later answer to the same text needs, of work that the rule decided."""
        if work.final is None or work.edge is None or work.decision is None:
            raise AssertionError("a message without the rule's answer was about to be kept")
        return Cached(
            label=work.final.label,
            edge_label=work.edge.label,
            confidence=work.final.confidence,
            route=work.route,
            reason=work.reason,
            trust=work.decision.trust,
            signals=self.signals(work.decision),
        )


def _label(prediction: Prediction | None) -> str | None:
    return prediction.label if prediction else None
