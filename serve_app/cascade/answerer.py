"""The answer path: raw texts -> answers, every one of them in the audit log before it leaves.

    texts ─> guard ─┬─ seen before ─────────────────────────────────────────────┐
                    └─> edge ─┬─ trusted, or pinned ────────────────────────────┼─> audit ─> out
                              └─ escalated, explored, edge failed ─> limit ─────┘

Plain: no Ray, no HTTP. The tiers, clocks, ids, log, cache and monitor are arguments.

Decided once:
- A pinned message (personal data, or a detector that failed) is never in a list for the cloud, nor
  in the cache.
- Cloud fails, or its limit is reached (escalation.py) -> the edge's answer goes out, degraded. Edge
  fails -> the cloud is asked. Both fail, or the edge fails on a pinned message -> no answer of that
  request leaves (`UnansweredError`).
- The edge is too busy -> the request is refused (`OverloadedError`), not sent to the dearer tier.
- A tier is charged for the answers it gives. A call that failed brought none and costs nothing, and
  neither does an answer from the cache.
- Every answer of a request is in the audit log before the first of them leaves.
- A trusted message is explored by chance only, whether its text was seen before or not: the cloud's
  answer goes out, and both are paid. If the cloud fails there, the edge's answer is the rule's own,
  and not degraded.
- `route_only` is a preview: it pays the edge, carries no label, and is neither audited nor counted.
- A shadow release sees the messages and answers none; what it would have said is audited as such.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from random import SystemRandom
from typing import Any, Final, Protocol

from cluster.audit.records import AuditRecord
from cluster.errors import ModelOutputError
from serve_app.cascade.cache import Cache, NoCache, cacheable
from serve_app.cascade.escalation import UNLIMITED, EscalationLimit
from serve_app.cascade.steps import (
    admit,
    decide_all,
    settle_cloud,
    settle_edge,
    texts_for_cloud,
)
from serve_app.cascade.work import RecordBuilder, Timer, Work
from serve_app.contracts import Caller, Message, Outcome, Route, RouteReason
from serve_app.decide.answered import Answered
from serve_app.decide.cost import Prices
from serve_app.decide.explain import Alternative, Explanation, blinded, preview
from serve_app.decide.policy import RouterPolicy
from serve_app.errors import EmptyTextsError, OverloadedError, RefusedError, UnansweredError
from serve_app.guard.prepare import prepare
from serve_app.request_limits import MAX_REQUEST_CHARS

log = logging.getLogger(__name__)

# Preparing and deciding take about a microsecond per 10 characters; more than this leaves the loop.
_INLINE_CHARS: Final = 4_000
_DRAW: Final = SystemRandom().random  # has no state that a fork or a thread could share
# Of a deadline, kept for the edge's answer to go out in if the cloud has none.
_RESERVE: Final = 0.2
_ANYONE: Final = Caller()

Prepare = Callable[[str], Message]


class Ask(Protocol):
    """Asks a tier: one Outcome per text, in order, within so many seconds."""

    def __call__(
        self, texts: Sequence[str], timeout_s: float | None = None
    ) -> Awaitable[Sequence[Outcome]]: ...


def _always_room(count: int, timeout_s: float | None = None) -> None:
    """A tier that never refuses."""


class Audit(Protocol):
    """Where decisions are written down; raises AuditError if they cannot be."""

    async def append(self, records: Sequence[AuditRecord]) -> None: ...


class Emitter(Protocol):
    """Where decisions are counted. Neither waits nor raises."""

    def emit(self, records: Sequence[AuditRecord]) -> None: ...

    def bad_outputs(self, count: int) -> None: ...


@dataclass(frozen=True)
class ServedRelease:
    """A release as the router sees it: the rule, the prices, and how to ask its two tiers.

    `room` raises OverloadedError where the edge would refuse so many texts now.
    """

    id: str
    app: str  # what it is routed as: its id, or an alias such as `latest`
    policy: RouterPolicy
    prices: Prices
    labels: tuple[str, ...]
    edge: Ask
    cloud: Ask
    escalation: EscalationLimit = UNLIMITED
    cache: Cache = field(default_factory=NoCache)
    alternatives: tuple[Alternative, ...] = ()
    card: Mapping[str, Any] = field(default_factory=dict, repr=False)
    room: Callable[[int, float | None], None] = _always_room


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
        self._new_id = new_id
        self._clock = clock
        self._pool = pool
        self._prepare = prepare
        self._explore_share = explore_share
        self._draw = draw
        self._record_builder = RecordBuilder.of(release.policy, hash_text, now)

    async def answer(
        self,
        texts: Sequence[str],
        *,
        caller: Caller = _ANYONE,
        explain: bool = False,
        route_only: bool = False,
    ) -> list[Answered]:
        """One Answered per raw text, in order; all, or an error.

        Raises:
            EmptyTextsError, OverloadedError, RefusedError, UnansweredError, AuditError
        """
        timer = Timer.started(self._clock, caller.deadline_s)
        size = sum(map(len, texts))
        works = await self._prepared(texts, size, timer)
        if route_only:
            await self._decide(works, works, size, timer)
            return [self._preview(work, explain) for work in works]
        exploring = self._exploring(works)
        if not explain:
            await self._recall(works, exploring, caller, timer)
        fresh = [work for work in works if work.cached is None]
        await self._decide(works, fresh, size, timer)
        self._explore(fresh, exploring)
        await self._escalate(works, fresh, timer)
        answers = [self._answered(work, explain) for work in works]
        await self._write_down(self._records(works, answers, [None] * len(works)))
        self._keep(fresh, caller)
        return answers

    async def shadow(self, texts: Sequence[str], seen: Sequence[Answered]) -> None:
        """Decides on messages that another release answered, for the comparison alone.

        Raises: as `answer`.
        """
        timer = Timer.started(self._clock, None)
        size = sum(map(len, texts))
        works = await self._prepared(texts, size, timer)
        await self._decide(works, works, size, timer)
        await self._escalate(works, works, timer)
        made = [self._answered(work, explain=False) for work in works]
        of = [answer.id for answer in seen]
        await self._write_down(self._records(works, made, of))

    def _records(
        self, works: Sequence[Work], answers: Sequence[Answered], of: Sequence[str | None]
    ) -> list[AuditRecord]:
        return list(map(self._record_builder.record, works, answers, of, repeat(len(works))))

    async def _write_down(self, records: Sequence[AuditRecord]) -> None:
        await self._audit.append(records)
        self._emitter.emit(records)

    async def _off_loop(self, size: int, function: Any, *args: Any) -> Any:
        """Runs it here if it is short, in a thread if it would hold up the event loop."""
        if size <= _INLINE_CHARS:
            return function(*args)
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    async def _prepared(self, texts: Sequence[str], size: int, timer: Timer) -> list[Work]:
        if size > MAX_REQUEST_CHARS:
            raise RefusedError(
                413,
                "too_large",
                f"The texts have {size:,} characters together, and a request may have "
                f"{MAX_REQUEST_CHARS:,}. Send them in several requests, or as a job.",
            )
        if size > _INLINE_CHARS:
            # What would be refused is not prepared first: lists that come again at once kept the
            # router from those that it had taken. A short one may be in the cache.
            self.release.room(len(texts), timer.deadline_s)
        works: list[Work] = await self._off_loop(size, self._prepare_all, texts)
        return works

    def _prepare_all(self, texts: Sequence[str]) -> list[Work]:
        works = [Work(self._prepare(text)) for text in texts]
        if empty := [index for index, work in enumerate(works) if not work.message.text]:
            raise EmptyTextsError(empty)
        return works

    # -- the cache --

    async def _recall(
        self, works: Sequence[Work], exploring: Sequence[Work], caller: Caller, timer: Timer
    ) -> None:
        """Answers what was answered before; what chance sends to the cloud is looked at anew."""
        asked = [work for work in works if work.message.pinned is None]
        release = self.release
        found = await release.cache.get_many(self._keys(asked, caller), release.labels)
        latency_ms = timer.ms()
        for work, known in zip(asked, found, strict=True):
            if known is None or (known.reason is RouteReason.TRUSTED and work in exploring):
                continue
            work.recall(known, latency_ms)
            if known.reason is RouteReason.TRUSTED:
                work.propensity = 1.0 - self._explore_share

    def _keep(self, works: Sequence[Work], caller: Caller) -> None:
        uses = self.release.policy.score.uses
        kept = [
            work
            for work in works
            if cacheable(work.message, work.route, work.reason, work.degraded, uses)
        ]
        made = map(self._record_builder.cached, kept)
        pairs = zip(self._keys(kept, caller), made, strict=True)
        self.release.cache.put_many(pairs, self.release.labels)

    def _keys(self, works: Sequence[Work], caller: Caller) -> list[str]:
        cache, release = self.release.cache, self.release.id
        return [cache.key(release, caller.key, work.message.text) for work in works]

    # -- the edge --

    async def _decide(
        self, works: Sequence[Work], fresh: Sequence[Work], size: int, timer: Timer
    ) -> None:
        """Asks the edge about what is new, and the rule where it goes."""
        if fresh:
            await self._ask_edge(fresh, timer)
            await self._off_loop(size, decide_all, fresh, self.release.policy)
        self._refuse(works, lambda work: not work.known and work.message.pinned is not None)

    async def _ask_edge(self, works: Sequence[Work], timer: Timer) -> None:
        outcomes = await self.release.edge([work.message.text for work in works], timer.left_s())
        for outcome in outcomes:
            if isinstance(outcome, OverloadedError):
                raise outcome
        self._count_bad(outcomes)
        settle_edge(works, outcomes, timer.ms())

    # -- exploring --

    def _exploring(self, works: Sequence[Work]) -> list[Work]:
        """Those that chance sends to the cloud, if the rule trusts them."""
        share = self._explore_share
        return [work for work in works if self._draw() < share] if share else []

    def _explore(self, works: Sequence[Work], exploring: Sequence[Work]) -> None:
        """Sends them, and notes of all trusted ones with what chance they went where."""
        share = self._explore_share
        for work in works if share else ():
            if work.reason is not RouteReason.TRUSTED:
                continue
            if work in exploring:
                work.route, work.reason = Route.CLOUD, RouteReason.EXPLORED
                work.propensity = share
            else:
                work.propensity = 1.0 - share

    # -- the cloud --

    async def _escalate(self, works: Sequence[Work], fresh: Sequence[Work], timer: Timer) -> None:
        """Asks the cloud about what is to go there, as far as its limit lets it."""
        asking = admit(fresh, len(works), self.release.escalation, timer.ms())
        if asking:
            await self._ask_cloud(asking, timer)
        self._refuse(works, lambda work: not work.known)

    async def _ask_cloud(self, works: Sequence[Work], timer: Timer) -> None:
        texts = texts_for_cloud(works)
        try:
            outcomes = await self.release.cloud(texts, timer.left_s(reserve=_RESERVE))
        except OverloadedError as error:
            outcomes = [error] * len(texts)
        self.release.escalation.judge(outcomes)
        self._count_bad(outcomes)
        settle_cloud(works, outcomes, timer.ms())

    # -- what comes out --

    def _count_bad(self, outcomes: Sequence[Outcome]) -> None:
        if bad := sum(isinstance(outcome, ModelOutputError) for outcome in outcomes):
            self._emitter.bad_outputs(bad)

    @staticmethod
    def _refuse(works: Sequence[Work], lost: Callable[[Work], bool]) -> None:
        if indices := [index for index, work in enumerate(works) if lost(work)]:
            raise UnansweredError(indices)

    def _answered(self, work: Work, explain: bool) -> Answered:
        release = self.release
        explanation = self._explain(work) if explain else None
        return work.answered(self._new_id(), release.id, release.prices, explanation)

    def _preview(self, work: Work, explain: bool) -> Answered:
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

    def _previewed_reason(self, work: Work) -> RouteReason:
        """One that does not tell the label, for a preview is not audited."""
        if work.edge is None or work.decision is None:
            return work.reason
        return blinded(self.release.policy, work.message, work.edge, work.decision).reason

    def _explain_preview(self, work: Work) -> Explanation:
        release = self.release
        return preview(
            release.policy,
            work.message,
            work.edge,
            work.decision,
            prices=release.prices,
            alternatives=release.alternatives,
        )

    def _explain(self, work: Work) -> Explanation:
        release = self.release
        return work.explained(release.policy, release.prices, release.labels, release.alternatives)
