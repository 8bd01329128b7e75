"""Batcher: many small requests -> few lists for the calls between deployments.

A call costs on both sides: through Serve more than the model (8 ms with it, 3 ms without, on 2
cores), and over a connection (local_socket.py) less. So what arrives while every call is out waits,
and leaves together with the next one. A message that is alone leaves at once: there is no timer.
Failures are values, one per message, so a poisoned message takes no neighbour with it.

A long list delays a single message by little: the first few texts of each request have half of
every call, and the rest of the lists, the oldest first, the other half. One that would wait too
long is refused when it comes, while it can still go elsewhere: what is ahead of it, over the
messages per second that the tier has lately finished. Deadlines travel: a call is told how long the
most patient of its messages still waits.

One Batcher per release and tier, on one event loop.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from cluster.errors import ModelOutputError, ServiceError
from serve_app.contracts import Outcome, TierCall
from serve_app.errors import DeadlineError, OverloadedError
from serve_app.tiers.service_rate import ServiceRate

# Texts of a request that wait with single messages, and not behind lists. Simulated beside two
# clients with 256 texts each, a single one takes at most 0.23 s, and 0.62 where a call takes 64.
_FIRST: Final = 8
MAX_BATCH: Final = 24  # messages in a list; see `max_wait_s` and `_FIRST` for what more would do
MAX_QUEUED: Final = 2048  # messages: eight whole requests
MAX_WAIT_S: Final = 0.75
WORTH_A_CALL: Final = 16  # messages; measured against 12, 9, 8 and 4: docs/performance.md
_SHARE_STEP: Final = 0.1  # a mean over some ten calls
_FAIR_S: Final = 1.0  # a caller's deadline shorter than this says nothing about the tier


@dataclass(slots=True, eq=False)
class _Request:
    texts: Sequence[str] = field(repr=False)
    deadline_s: float
    done: "asyncio.Future[None]"
    outcomes: list[Outcome | None]
    sent: int = 0
    answered: int = 0

    @property
    def unsent(self) -> int:
        return len(self.texts) - self.sent

    @property
    def first(self) -> int:
        """Texts that still wait with single messages."""
        return max(0, min(len(self.texts), _FIRST) - self.sent)

    def settle(self, start: int, outcomes: Sequence[Outcome]) -> None:
        self.outcomes[start : start + len(outcomes)] = outcomes
        self.answered += len(outcomes)
        if self.answered == len(self.texts):
            self.expire()

    def expire(self) -> None:
        """What is not answered by now is late."""
        if not self.done.done():
            self.done.set_result(None)


@dataclass(frozen=True, slots=True)
class _Part:
    """The texts of one request that go out in one call."""

    request: _Request
    start: int
    stop: int

    @property
    def texts(self) -> Sequence[str]:
        return self.request.texts[self.start : self.stop]


class Batcher:
    """`await batcher(texts)` -> one Outcome per text, in order.

    Args:
        call: asks the tier; its answer has one entry per text.
        max_in_flight: calls out at the same time. Autoscaling counts them, so there must be more
            of them than replicas, or load never shows.
        max_batch: texts per call, which bounds how long one call holds its replica.
        max_queued: texts waiting for a call; more are refused.
        timeout_s: from arrival to outcome, the wait included; a call lasts no longer either.
        worth_a_call: messages that must wait for each call that is out before another leaves. A
            call costs as much CPU as several messages, so under load few long calls get more done;
            0 fills every slot at once.
        max_wait_s: expected until a request is answered; one that would take longer is refused,
            but none for its own length: half of that is waited for its turn in any case. Simulated
            at three times the capacity of 625 messages/s, with `max_batch` 24, p99 of what is
            accepted is 0.8 s for single texts, for lists of 64 and for a mix up to 256.
    """

    def __init__(
        self,
        call: TierCall,
        *,
        max_in_flight: int,
        timeout_s: float,
        max_batch: int = MAX_BATCH,
        max_queued: int = MAX_QUEUED,
        max_wait_s: float = MAX_WAIT_S,
        worth_a_call: int = WORTH_A_CALL,
    ) -> None:
        self._call = call
        self._worth_a_call = worth_a_call
        self._max_in_flight = max_in_flight
        self._max_batch = max_batch
        self._max_queued = max_queued
        self._timeout_s = timeout_s
        self._max_wait_s = max_wait_s
        # In order of arrival; a client that leaves is taken out at once.
        self._new: OrderedDict[_Request, None] = OrderedDict()
        self._begun: OrderedDict[_Request, None] = OrderedDict()
        self._queued = 0
        self._first = 0  # of them, in `_new` and of each the first few
        self._lists_share = 1.0  # of a call, that single messages leave to lists
        self._in_flight = 0
        self._calls: set[asyncio.Task[None]] = set()
        self._rate = ServiceRate()

    @property
    def waiting(self) -> int:
        """Messages that are not finished: queued and in flight."""
        return self._queued + self._in_flight

    async def __call__(self, texts: Sequence[str], timeout_s: float | None = None) -> list[Outcome]:
        """Args: timeout_s: how long the caller waits, where that is less than the tier's own.

        Raises OverloadedError, and then none of the texts was taken in.
        """
        limit_s = self._timeout_s if timeout_s is None else min(timeout_s, self._timeout_s)
        if limit_s <= 0:
            return [self._late(limit_s)] * len(texts)
        if not texts:
            return []
        self.check(len(texts), limit_s)
        loop = asyncio.get_running_loop()
        request = self._enter(texts, limit_s, loop)
        # A timer takes a microsecond, asyncio.timeout five, of each message's way.
        timer = loop.call_at(request.deadline_s, request.expire)
        try:
            await request.done
        finally:
            timer.cancel()
            self._leave(request)
        return [self._outcome(outcome, limit_s) for outcome in request.outcomes]

    def check(self, count: int, timeout_s: float | None = None) -> None:
        """Raises OverloadedError where the queue has no room for so many, or they would be late."""
        patience_s = self._timeout_s if timeout_s is None else timeout_s
        limit_s = min(patience_s, self._max_wait_s)
        if self._queued + count > self._max_queued:
            raise OverloadedError(
                f"{self._queued} messages are waiting and {count} more came; at most "
                f"{self._max_queued} may wait. Try again in a moment, with shorter lists."
            )
        # One call's worth may always wait: a replica that died stands still for seconds, which says
        # nothing about the one that takes its place.
        if self.waiting < self._max_batch or (per_s := self._rate.per_s) is None:
            return
        ahead = self._ahead(count)
        wait_s, answer_s = ahead / per_s, (ahead + count) / per_s
        most_s = limit_s if wait_s > limit_s / 2 else patience_s
        if answer_s > most_s:
            raise OverloadedError(
                f"{ahead} messages are ahead, so the answer would take about {answer_s:.2g} s; at "
                f"most {most_s:.2g} s are waited. Try again in a moment.",
                retry_after_s=answer_s - most_s,
            )

    def _ahead(self, count: int) -> int:
        """Messages that go before the last of `count` that come now. Of single ones: those that
        came first, and as many of lists. Of a list: all, and what comes later and goes first."""
        if count <= _FIRST:
            return self._in_flight + min(self._queued, 2 * self._first)
        return self._in_flight + round((self._queued + count) / self._lists_share) - count

    def _enter(
        self, texts: Sequence[str], limit_s: float, loop: asyncio.AbstractEventLoop
    ) -> _Request:
        now_s = loop.time()
        request = _Request(texts, now_s + limit_s, loop.create_future(), [None] * len(texts))
        self._new[request] = None
        self._queued += request.unsent
        self._first += request.first
        self._start(now_s)
        return request

    def _leave(self, request: _Request) -> None:
        """Answered, late, or the client is gone: what still waits is not sent."""
        for queue in (self._new, self._begun):
            if queue.pop(request, self) is None:
                self._queued -= request.unsent
                self._first -= request.first
        request.done.cancel()

    def _outcome(self, outcome: Outcome | None, limit_s: float) -> Outcome:
        if outcome is None or isinstance(outcome, TimeoutError):
            return self._late(limit_s)
        return outcome

    def _late(self, limit_s: float) -> TimeoutError:
        fair = limit_s >= min(self._timeout_s, _FAIR_S)
        return (TimeoutError if fair else DeadlineError)(f"no answer within {limit_s:.3g} s")

    def _start(self, now_s: float) -> None:
        """Fills the free slots."""
        while self._has_slot() and (parts := self._take()):
            task = asyncio.create_task(self._run(parts, now_s))
            self._calls.add(task)
            task.add_done_callback(self._finished)
        # What waits until it is worth a call says nothing of what the tier could do.
        if len(self._calls) == self._max_in_flight:
            self._rate.saturated(now_s)
        else:
            self._rate.freed()

    def _has_slot(self) -> bool:
        """A lone message leaves at once; beside calls that are out, only what is worth a call."""
        out = len(self._calls)
        return out < self._max_in_flight and self._queued >= out * self._worth_a_call

    def _take(self) -> list[_Part]:
        """The texts of the next call."""
        parts: list[_Part] = []
        half = self._max_batch // 2 if self._begun else 0
        room = self._begin(parts, self._max_batch - half)
        if half:
            self._lists_share += _SHARE_STEP * ((room + half) / self._max_batch - self._lists_share)
        room = self._go_on(parts, room + half)
        room = self._begin(parts, room)
        taken = self._max_batch - room
        self._queued -= taken
        self._in_flight += taken
        return parts

    def _begin(self, parts: list[_Part], room: int) -> int:
        """Adds the first few texts of each request that is new. The room that is left."""
        while room and self._new:
            request = next(iter(self._new))
            room -= self._add(parts, request, min(room, request.first))
            if not request.first:
                del self._new[request]
                if request.unsent:
                    self._begun[request] = None
        return room

    def _go_on(self, parts: list[_Part], room: int) -> int:
        """Adds the rest of the lists, the oldest first. The room that is left."""
        while room and self._begun:
            request = next(iter(self._begun))
            room -= self._add(parts, request, min(room, request.unsent))
            if not request.unsent:
                del self._begun[request]
        return room

    def _add(self, parts: list[_Part], request: _Request, count: int) -> int:
        """The next so many texts of a request. How many that is."""
        first, start = request.first, request.sent
        request.sent += count
        self._first -= first - request.first
        parts.append(_Part(request, start, request.sent))
        return count

    async def _run(self, parts: Sequence[_Part], start_s: float) -> None:
        texts = [text for part in parts for text in part.texts]
        deadline_s = max(part.request.deadline_s for part in parts)
        try:
            outcomes = await self._ask(texts, deadline_s - start_s)
        finally:
            now_s = asyncio.get_running_loop().time()
            self._in_flight -= len(texts)
            self._rate.finished(len(texts), now_s - start_s, now_s)
        at = 0
        for part in parts:
            size = part.stop - part.start
            part.request.settle(part.start, outcomes[at : at + size])
            at += size

    async def _ask(self, texts: list[str], budget_s: float) -> list[Outcome]:
        try:
            async with asyncio.timeout(budget_s):
                answers = await self._call(texts, budget_s)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise  # the loop is closing
            return [ServiceError("The call to the tier was cancelled.")] * len(texts)
        except Exception as error:  # noqa: BLE001 - whatever it was, every sender must hear of it
            return [error] * len(texts)
        if len(answers) != len(texts):
            wrong = ServiceError(f"The tier gave {len(answers)} answers to {len(texts)} messages.")
            return [wrong] * len(texts)
        return [
            ModelOutputError("The model had no finite answer.") if answer is None else answer
            for answer in answers
        ]

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._calls.discard(task)
        if not task.cancelled():
            self._start(asyncio.get_running_loop().time())
