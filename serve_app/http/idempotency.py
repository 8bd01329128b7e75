"""Idempotency: a request sent again with its key gets its first answer again, and runs once.

    (caller, Idempotency-Key) ─> done before? ─> the same bytes
                              ─> in work?     ─> wait for it ─> the same bytes, or "still in work"
                              ─> neither      ─> make(), kept for `ttl_s`

By draft-ietf-httpapi-idempotency-key-header-07, with one difference: a request that comes while the
first is in work is not refused at once, but waits `wait_s`. A client that gave up and asks again
then gets its answer instead of an error to be waited out.

    IdempotencyKeyError      the header is none           -> 400
    IdempotencyInWorkError   the first is still in work   -> 409, Retry-After
    IdempotencyConflictError another body, the same key   -> 422

Decided once:
- A failure is not kept: whoever waits for it, or comes after, tries itself.
- A client that hangs up does not end the work. It is finished and kept, for its next attempt.
- Routers that share a Redis share the keys. A claim there lives for `CLAIM_S` and is renewed while
  the work goes on, so the keys of a killed router are free again within that time.
- Without Redis, or while it is gone, a key holds within one router only: sent again to another, the
  request runs again. Nothing is refused for it. An answer costs a little and destroys nothing; a
  job, which costs more, is known again by its folder (serve_app/jobs).

What is kept is a response's bytes: labels, ids and numbers, no text. No Ray.
"""

import asyncio
import json
import random
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from hmac import compare_digest
from typing import Final

from cachetools import TTLCache
from starlette.types import Message, Send

from serve_app.errors import IdempotencyConflictError, IdempotencyInWorkError, IdempotencyKeyError
from serve_app.redis_store import Claim, SharedStore, derive_key

Make = Callable[[], Awaitable[bytes]]

TTL_S: Final = 600.0  # how long a key holds: clients that retry do so within minutes
WAIT_S: Final = 5.0  # for a first request that is in work: longer than a killed router's claim
MAX_ENTRIES: Final = 10_000  # answers in each router
MAX_BYTES: Final = 32 << 20  # of answers in each router: 3 KB for each of so many
CLAIM_S: Final = 3.0
_RENEWALS: Final = 3  # per life of a claim, so that two may go astray
_FIRST_POLL_S: Final = 0.02
_LONGEST_POLL_S: Final = 0.2
_NAMESPACE: Final = "idempotency:2:"
_DIGEST_BYTES: Final = 16
_IN_WORK: Final = b"w"
_DONE: Final = b"d"
_HEAD_END: Final = b"\n"
# A string of RFC 8941 without escapes, or the same without quotes, as most clients send it.
_HEADER: Final = re.compile(r'"([!#-\[\]-~]{1,255})"|([!#-\[\]-~]{1,255})')


@dataclass(frozen=True, slots=True)
class _Done:
    fingerprint: bytes
    answer: bytes


@dataclass(frozen=True, slots=True)
class _Flight:
    """A request in work here; the task gives the answer, and whether it was made before."""

    fingerprint: bytes
    task: "asyncio.Task[tuple[bytes, bool]]"


def parse_header(value: str) -> str:
    """The key in an `Idempotency-Key` header, quoted or not.

    Raises:
        IdempotencyKeyError: it is empty, too long, or has other characters than visible ASCII.
    """
    if found := _HEADER.fullmatch(value.strip()):
        return found[1] or found[2]
    raise IdempotencyKeyError(
        f"Idempotency-Key has {len(value)} characters that are no key. Send 1 to 255 visible ASCII "
        "characters without spaces, quotes and backslashes, such as a new UUID for each request."
    )


class Idempotency:
    """`await run(key, fingerprint, make)` -> the answer, and whether it is one given before.

    Bounded: at most `max_entries` answers and `max_bytes` of them; the oldest go first, and an
    answer larger than all of that is not kept.

    Args:
        key: the service's secret, the audit log's; another is derived from it.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        key: bytes,
        store: SharedStore | None = None,
        *,
        ttl_s: float = TTL_S,
        wait_s: float = WAIT_S,
        max_entries: int = MAX_ENTRIES,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ttl_s, self._wait_s = ttl_s, wait_s
        self._key = derive_key(key, "idempotency")
        self._store = store
        self._clock = clock
        self._flights: dict[str, _Flight] = {}
        # Each counts for its share at least, so that one size bounds the bytes and the entries.
        least = max(1, max_bytes // max_entries)
        most = min(max_bytes, least * max_entries)
        self._done: TTLCache[str, _Done] = TTLCache(
            most, ttl_s, clock, lambda done: max(least, len(done.answer))
        )

    def name(self, caller: str, header: str) -> str:
        """The key that `run` takes: of one caller, so that none can meet another's.

        Raises:
            IdempotencyKeyError
        """
        return self._digest(b"name", caller, parse_header(header).encode()).hex()

    def fingerprint(self, caller: str, body: bytes) -> bytes:
        """What tells two requests apart; the body cannot be guessed from it."""
        return self._digest(b"body", caller, body)

    async def run(self, key: str, fingerprint: bytes, make: Make) -> tuple[bytes, bool]:
        """The answer of the first request with this key.

        Raises:
            IdempotencyConflictError: the key stands for another fingerprint.
            IdempotencyInWorkError: the first was not answered within `wait_s`.
            Exception: what `make` raised, if it was this call's.
        """
        until_s = self._clock() + self._wait_s
        while True:
            if done := self._done.get(key):
                return _same(done.fingerprint, fingerprint, done.answer), True
            flight = self._flights.get(key)
            if flight is None:
                return await self._fly(key, fingerprint, make, until_s)
            _same(flight.fingerprint, fingerprint, b"")
            await self._wait(flight, until_s)
            if _landed(flight.task):
                return flight.task.result()[0], True

    async def close(self) -> None:
        """Waits for what is in work; the server has stopped taking requests."""
        if tasks := [flight.task for flight in self._flights.values()]:
            await asyncio.wait(tasks)

    async def _fly(
        self, key: str, fingerprint: bytes, make: Make, until_s: float
    ) -> tuple[bytes, bool]:
        """In a task of its own: the client may hang up, and others may wait for it."""
        task = asyncio.create_task(self._first(key, fingerprint, make, until_s))
        self._flights[key] = _Flight(fingerprint, task)
        task.add_done_callback(lambda task: self._land(key, fingerprint, task))
        await asyncio.wait([task])
        return task.result()

    def _land(self, key: str, fingerprint: bytes, task: "asyncio.Task[tuple[bytes, bool]]") -> None:
        del self._flights[key]
        if _landed(task):
            with suppress(ValueError):  # larger than all that may be kept
                self._done[key] = _Done(fingerprint, task.result()[0])

    async def _wait(self, flight: _Flight, until_s: float) -> None:
        await asyncio.wait([flight.task], timeout=max(0.0, until_s - self._clock()))
        if not flight.task.done():
            raise _in_work()

    async def _first(
        self, key: str, fingerprint: bytes, make: Make, until_s: float
    ) -> tuple[bytes, bool]:
        """The first with this key in this process."""
        if self._store is None:
            return await make(), False
        name = _NAMESPACE + key
        claim = _IN_WORK + fingerprint + secrets.token_bytes(_DIGEST_BYTES)
        if (
            answer := await self._claim(self._store, name, claim, fingerprint, until_s)
        ) is not None:
            return answer, True
        async with self._held(self._store, name, claim):
            answer = await make()
        await self._store.replace(name, claim, _DONE + fingerprint + answer, self._ttl_s)
        return answer, False

    async def _claim(
        self, store: SharedStore, name: str, claim: bytes, fingerprint: bytes, until_s: float
    ) -> bytes | None:
        """The answer of another router, or None where the work is ours: claimed, or Redis gone."""
        pause_s = _FIRST_POLL_S
        while await store.claim(name, claim, CLAIM_S) is Claim.LOST:
            if held := await store.get(name):
                rest = _same(held[1 : 1 + _DIGEST_BYTES], fingerprint, held[1 + _DIGEST_BYTES :])
                if held.startswith(_DONE):
                    return rest
            if self._clock() >= until_s:
                raise _in_work()
            # Spread, so that many who wait for one key do not ask in step.
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            pause_s = min(2.0 * pause_s, _LONGEST_POLL_S)
        return None

    @asynccontextmanager
    async def _held(self, store: SharedStore, name: str, claim: bytes) -> AsyncIterator[None]:
        """Keeps the claim alive while the work goes on, and drops it if the work fails."""
        renewing = asyncio.create_task(_renew(store, name, claim))
        try:
            yield
        except BaseException:
            await store.drop(name, claim)
            raise
        finally:
            renewing.cancel()

    def _digest(self, kind: bytes, caller: str, data: bytes) -> bytes:
        made = blake2b(digest_size=_DIGEST_BYTES, key=self._key, person=kind)
        made.update(caller.encode() + b"\0")
        made.update(data)
        return made.digest()


async def _renew(store: SharedStore, name: str, claim: bytes) -> None:
    while True:
        await asyncio.sleep(CLAIM_S / _RENEWALS)
        await store.renew(name, claim, CLAIM_S)


def _landed(task: "asyncio.Task[tuple[bytes, bool]]") -> bool:
    """Whether it has an answer. Asking for the error says that somebody has seen it."""
    return not task.cancelled() and task.exception() is None


def _same(known: bytes, given: bytes, answer: bytes) -> bytes:
    if compare_digest(known, given):
        return answer
    raise IdempotencyConflictError(
        "This Idempotency-Key was used before, for another request. Send a new key with each new "
        "request, and the same key only with the very same request."
    )


def _in_work() -> IdempotencyInWorkError:
    return IdempotencyInWorkError(
        "The first request with this Idempotency-Key is still in work. Send the same request again "
        "in a moment to get its answer."
    )


# ---- a response as it is kept --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole response, without what only its first client was told."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes = field(repr=False)

    @property
    def is_good(self) -> bool:
        return self.status < 300

    def packed(self) -> bytes:
        named = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.headers]
        return json.dumps([self.status, named]).encode() + _HEAD_END + self.body

    @classmethod
    def unpacked(cls, data: bytes) -> "Reply":
        head, _, body = data.partition(_HEAD_END)
        status, named = json.loads(head)
        headers = tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in named)
        return cls(status, headers, body)

    async def send(self, send: Send, *more: tuple[bytes, bytes]) -> None:
        headers = [*self.headers, *more]
        start = {"type": "http.response.start", "status": self.status, "headers": headers}
        await send(start)
        await send({"type": "http.response.body", "body": self.body})


class Recorder:
    """A `send` that keeps what it is told."""

    def __init__(self) -> None:
        self._status = 500
        self._headers: tuple[tuple[bytes, bytes], ...] = ()
        self._parts: list[bytes] = []

    async def __call__(self, message: Message) -> None:
        if message["type"] != "http.response.start":
            self._parts.append(message.get("body", b""))
            return
        self._status, self._headers = message["status"], tuple(message["headers"])

    def made(self) -> Reply:
        return Reply(self._status, self._headers, b"".join(self._parts))


class NotKeptError(Exception):
    """A refusal, which the next attempt with the same key must not get again."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self.reply = reply
