"""Answerer: raw texts -> edge -> decide -> cloud where needed -> audit -> answers.

    prepare (normalise, mask) ─> edge ─> decide ─┬─ trusted, pinned ───────────────┬─> audit ─> out
                                                 └─ escalated, edge failed ─> cloud ┘

Plain: no Ray, no HTTP. The tiers, clocks, ids, log and monitor are arguments.

Decided once:
- A pinned message (personal data, or a detector that failed) is never in a list for the cloud.
- Cloud fails -> the edge's answer goes out, degraded. Edge fails -> the cloud is asked. Both fail,
  or the edge fails on a pinned message -> no answer of that request leaves (`UnansweredError`).
- The edge is too busy -> the request is refused (`OverloadedError`), not sent to the dearer tier.
- A tier is charged for the answers it gives. A call that failed brought none and costs nothing.
- Every answer of a request is in the audit log before the first of them leaves.
- A trusted message is explored by chance only: the cloud's answer goes out, and both are paid. If
  the cloud fails there, the edge's answer is the rule's own, and not degraded.
- `route_only` is a preview: it pays the edge, carries no label, and is neither audited nor counted.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import SystemRandom
from typing import Any, Final, Protocol

from cluster.audit import AuditRecord
from cluster.errors import FirstlineError, ModelOutputError
from serve_app.contracts import Decision, Message, Prediction, Route, RouteReason
from serve_app.cost import Prices
from serve_app.explain import Alternative, Explanation, blinded, explain, preview
from serve_app.gather import Outcome, OverloadedError
from serve_app.policy import RouterPolicy, decide
from serve_app.signals import signals
from serve_app.text import prepare

log = logging.getLogger(__name__)

# Preparing and deciding take about a microsecond per 10 characters; more than this leaves the loop.
_INLINE_CHARS: Final = 4_000
_DRAW: Final = SystemRandom().random  # has no state that a fork or a thread could share

Ask = Callable[[Sequence[str]], Awaitable[Sequence[Outcome]]]
Prepare = Callable[[str], Message]


class EmptyTextsError(FirstlineError):
    """Texts in which nothing is left after normalising."""

    def __init__(self, indices: Sequence[int]) -> None:
        super().__init__(f"{len(indices)} of the texts have no visible character. Leave them out.")
        self.indices = tuple(indices)


class UnansweredError(FirstlineError):
    """Messages that no tier which may see them could answer; so no answer of the request leaves."""

    def __init__(self, indices: Sequence[int]) -> None:
        super().__init__(
            f"{len(indices)} of the texts got no answer from any tier that may see them, so the "
            "request has none. Try again, or send the others without them."
        )
        self.indices = tuple(indices)


class Audit(Protocol):
    """Where decisions are written down; raises AuditError if they cannot be."""

    def append(self, records: Sequence[AuditRecord]) -> None: ...


class Emitter(Protocol):
    """Where decisions are counted. Neither waits nor raises."""

    def emit(self, records: Sequence[AuditRecord]) -> None: ...

    def bad_outputs(self, count: int) -> None: ...


@dataclass(frozen=True)
class ServedRelease:
    """A release as the router sees it: the rule, the prices, and how to ask its two tiers."""

    id: str
    app: str  # what it is routed as: its id, or an alias such as `latest`
    policy: RouterPolicy
    prices: Prices
    labels: tuple[str, ...]
    edge: Ask
    cloud: Ask
    alternatives: tuple[Alternative, ...] = ()
    card: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Answered:
    """What leaves for one text. `label` is None in a preview."""

    id: str
    label: str | None
    confidence: float
    route: Route
    reason: RouteReason
    cost_usd: float
    latency_ms: float
    release: str
    degraded: bool
    explanation: Explanation | None = None


@dataclass(slots=True)
class _Work:
    """One message on its way through."""

    message: Message
    edge: Prediction | None = None
    decision: Decision | None = None
    final: Prediction | None = None
    route: Route = Route.EDGE
    reason: RouteReason = RouteReason.TRUSTED
    propensity: float = 1.0
    degraded: bool = False
    latency_ms: float = 0.0

    def settle(self, prediction: Prediction | None, latency_ms: float) -> None:
        self.final, self.latency_ms = prediction, latency_ms


class Answerer:
    """Answers requests by one release.

    Args:
        clock: monotonic seconds, for durations; `now` is the time of day, for the log.
        hash_text: prepared text -> its keyed hash, all that is ever written of it.
        explore_share: the chance that a trusted message is sent to the cloud all the same; pinned
            ones and those that a hard rule keeps never are.
        draw: a uniform number in [0, 1), new at every call.
    """

    def __init__(
        self,
        release: ServedRelease,
        *,
        audit: Audit,
        emitter: Emitter,
        hash_text: Callable[[str], str],
        new_id: Callable[[], str],
        clock: Callable[[], float],
        now: Callable[[], float],
        pool: ThreadPoolExecutor,
        prepare: Prepare = prepare,
        explore_share: float = 0.0,
        draw: Callable[[], float] = _DRAW,
    ) -> None:
        self.release = release
        self._audit = audit
        self._emitter = emitter
        self._hash_text = hash_text
        self._new_id = new_id
        self._clock = clock
        self._now = now
        self._pool = pool
        self._prepare = prepare
        self._explore_share = explore_share
        self._draw = draw

    async def answer(
        self, texts: Sequence[str], *, explain: bool = False, route_only: bool = False
    ) -> list[Answered]:
        """One Answered per raw text, in order; all, or an error.

        Raises:
            EmptyTextsError, OverloadedError, UnansweredError, AuditError
        """
        start = self._clock()
        size = sum(map(len, texts))
        works = await self._off_loop(size, self._prepare_all, texts)
        await self._ask_edge(works, start)
        await self._off_loop(size, self._decide_all, works)
        self._refuse(works, lambda work: work.final is None and work.message.pinned is not None)
        if route_only:
            return [self._preview(work, explain) for work in works]
        self._explore(works)
        await self._ask_cloud([work for work in works if work.route is Route.CLOUD], start)
        self._refuse(works, lambda work: work.final is None)
        answers = [self._answered(work, explain) for work in works]
        records = [self._record(work, answer) for work, answer in zip(works, answers, strict=True)]
        self._audit.append(records)
        self._emitter.emit(records)
        return answers

    async def _off_loop(self, size: int, function: Any, *args: Any) -> Any:
        """Runs it here if it is short, in a thread if it would hold up the event loop."""
        if size <= _INLINE_CHARS:
            return function(*args)
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    def _prepare_all(self, texts: Sequence[str]) -> list[_Work]:
        works = [_Work(self._prepare(text)) for text in texts]
        if empty := [index for index, work in enumerate(works) if not work.message.text]:
            raise EmptyTextsError(empty)
        return works

    def _ms_since(self, start: float) -> float:
        return 1000.0 * (self._clock() - start)

    async def _ask_edge(self, works: Sequence[_Work], start: float) -> None:
        outcomes = await self.release.edge([work.message.text for work in works])
        for outcome in outcomes:
            if isinstance(outcome, OverloadedError):
                raise outcome
        latency_ms = self._ms_since(start)
        for work, answer in zip(works, self._usable(outcomes, Route.EDGE), strict=True):
            work.edge = answer
            work.settle(answer, latency_ms)

    def _decide_all(self, works: Sequence[_Work]) -> None:
        policy = self.release.policy
        for work in works:
            pinned = work.message.pinned
            if work.edge is not None:
                values = signals(work.message, work.edge)
                work.decision = decide(work.message, work.edge, policy, values)
                work.route, work.reason = work.decision.route, work.decision.reason
            elif pinned is not None:
                work.reason = pinned
            else:
                work.route, work.reason = Route.CLOUD, RouteReason.EDGE_FAILED

    def _explore(self, works: Sequence[_Work]) -> None:
        """Sends some of the trusted to the cloud, and notes of all of them with what chance."""
        share = self._explore_share
        for work in works if share else ():
            if work.reason is not RouteReason.TRUSTED:
                continue
            if self._draw() < share:
                work.route, work.reason = Route.CLOUD, RouteReason.EXPLORED
                work.propensity = share
            else:
                work.propensity = 1.0 - share

    async def _ask_cloud(self, works: Sequence[_Work], start: float) -> None:
        if not works:
            return
        if any(work.message.pinned for work in works):  # decide() never does; this is the last door
            raise AssertionError("a pinned message was about to leave the edge")
        try:
            outcomes = await self.release.cloud([work.message.text for work in works])
        except OverloadedError as error:
            outcomes = [error] * len(works)
        latency_ms = self._ms_since(start)
        for work, answer in zip(works, self._usable(outcomes, Route.CLOUD), strict=True):
            if answer is not None:
                work.settle(answer, latency_ms)
            elif work.edge is not None:
                work.settle(work.edge, latency_ms)
                work.route = Route.EDGE
                if work.reason is not RouteReason.EXPLORED:
                    work.reason, work.degraded = RouteReason.CLOUD_FAILED, True

    def _usable(self, outcomes: Sequence[Outcome], tier: Route) -> list[Prediction | None]:
        """Failures become None, after they are counted and logged, once per kind."""
        errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if bad := sum(isinstance(error, ModelOutputError) for error in errors):
            self._emitter.bad_outputs(bad)
        for kind in {type(error) for error in errors}:
            # The kind alone: an error's text may quote what a customer wrote.
            log.warning("The %s failed on %d messages: %s.", tier, len(errors), kind.__name__)
        return [outcome if isinstance(outcome, Prediction) else None for outcome in outcomes]

    @staticmethod
    def _refuse(works: Sequence[_Work], lost: Callable[[_Work], bool]) -> None:
        if indices := [index for index, work in enumerate(works) if lost(work)]:
            raise UnansweredError(indices)

    def _cost_usd(self, work: _Work) -> float:
        prices = self.release.prices
        if work.edge is None:
            return prices.cloud_usd
        return prices.of(work.route)

    def _answered(self, work: _Work, explain: bool) -> Answered:
        if work.final is None:
            raise AssertionError("a message without an answer came through")
        return Answered(
            id=self._new_id(),
            label=work.final.label,
            confidence=work.final.confidence,
            route=work.route,
            reason=work.reason,
            cost_usd=self._cost_usd(work),
            latency_ms=work.latency_ms,
            release=self.release.id,
            degraded=work.degraded,
            explanation=self._explain(work, work.final) if explain else None,
        )

    def _preview(self, work: _Work, explain: bool) -> Answered:
        return Answered(
            id=self._new_id(),
            label=None,
            confidence=work.edge.confidence if work.edge else 0.0,
            route=work.route,
            reason=self._previewed_reason(work),
            cost_usd=self.release.prices.edge_usd if work.edge else 0.0,
            latency_ms=work.latency_ms,
            release=self.release.id,
            degraded=False,
            explanation=self._explain_preview(work) if explain else None,
        )

    def _previewed_reason(self, work: _Work) -> RouteReason:
        """One that does not tell the label, for a preview is not audited."""
        if work.edge is None or work.decision is None:
            return work.reason
        return blinded(self.release.policy, work.message, work.edge, work.decision).reason

    def _explain_preview(self, work: _Work) -> Explanation:
        release = self.release
        return preview(
            release.policy,
            work.message,
            work.edge,
            work.decision,
            prices=release.prices,
            alternatives=release.alternatives,
        )

    def _explain(self, work: _Work, answer: Prediction) -> Explanation:
        release = self.release
        return explain(
            release.policy,
            work.message,
            work.edge,
            work.decision,
            prices=release.prices,
            alternatives=release.alternatives,
            probabilities=dict(zip(release.labels, answer.probabilities, strict=True)),
        )

    def _kept_signals(self, decision: Decision | None) -> dict[str, float]:
        """Without signals no decision was made: the edge had failed.

        `random` is a hash of the text without a key, with which likely texts could be tried, so it
        is written down only where the score looks at it.
        """
        seen = decision.signals if decision else {}
        used = self.release.policy.score.uses
        return {name: value for name, value in seen.items() if name != "random" or name in used}

    def _record(self, work: _Work, answer: Answered) -> AuditRecord:
        decision = work.decision
        return AuditRecord(
            id=answer.id,
            time_s=self._now(),
            text_hash=self._hash_text(work.message.text),
            route=answer.route.value,
            reason=answer.reason.value,
            label=answer.label or "",
            edge_label=work.edge.label if work.edge else None,
            confidence=answer.confidence,
            signals=self._kept_signals(decision),
            trust=decision.trust if decision else 0.0,
            threshold=self.release.policy.threshold,
            propensity=work.propensity,
            release=answer.release,
            cost_usd=answer.cost_usd,
            latency_ms=answer.latency_ms,
            degraded=answer.degraded,
        )
