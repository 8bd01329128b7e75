"""Admission: who may ask, how often, and with what consequences.

    request ─┬─> key ─> blocked? ─> rate ─> slowed? ─┬─> scope ─> texts' rate ─> the service
             └─> no keys were ever set ─> its host ──┘

One way to protect a route:

    async def infer(caller: Annotated[Caller, Depends(admission.needs(Scope.CLASSIFY))]) -> ...

Closed by default: where keys are set, a path that is not in OPEN_PATHS wants a valid one, and
`needs` the scope on top. Where none were ever set, everybody is "anonymous" and may do all, without
rates and abuse rules: they would punish all for one (keys.check_exposed keeps that on loopback,
hosts.py keeps web pages out).

What is asked of `over(service)` is taken from the key's texts, and looked at for abuse. What was
not answered is given back. More texts than ever fit are no matter of time: that is a 422, and not
a 429 to come back after.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Final, Protocol

from fastapi import Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from serve_app.access.abuse import Abuse
from serve_app.access.hosts import Hosts
from serve_app.access.keys import ApiKey, Keys, Scope
from serve_app.access.rate_limits import Allowance, Rates
from serve_app.contracts import Caller, RouteReason
from serve_app.decide.answered import Answered
from serve_app.errors import RefusedError
from serve_app.request_limits import MAX_DEADLINE_MS

OPEN_PATHS: Final = frozenset(
    {
        "/healthz", "/readyz", "/docs", "/openapi.json",
        "/v2", "/v2/health/live", "/v2/health/ready",
    }
)  # fmt: skip
ANONYMOUS: Final = "anonymous"
VISIT: Final = "firstline.visit"  # where the ASGI scope carries the Visit
# An answer below this share of certainty says that no label fits; so does the edge's distance.
_GARBAGE_CONFIDENCE: Final = 0.1
_BEARER_PREFIX: Final = b"bearer "
_BEARER: Final = HTTPBearer(
    auto_error=False,
    scheme_name="API key",
    description="`fl_...`, from `firstline keys add`; X-API-Key takes it too. Wanted where keys "
    "are set.",
)


@dataclass(frozen=True, slots=True)
class Visit:
    """One request that was let in, and what it may do. `key` is None where none was looked at."""

    key: ApiKey | None = None
    scopes: tuple[Scope, ...] = ()
    headers: tuple[tuple[bytes, bytes], ...] = ()  # for its answer, whatever that is

    @property
    def id(self) -> str:
        return ANONYMOUS if self.key is None else self.key.id

    def check(self, scope: Scope) -> None:
        """Raises RefusedError (403) if the key lacks the scope."""
        if scope not in self.scopes:
            raise RefusedError(
                403,
                "forbidden",
                f"The API key lacks the scope {scope.value}; it has: {', '.join(self.scopes)}. "
                "Ask the operator for a key with it.",
            )


_ANYBODY: Final = Visit(scopes=tuple(Scope))
_PASSER_BY: Final = Visit()  # on an open path, where nobody is asked


class Answers(Protocol):
    """The part of routes.Service that admission stands in front of."""

    async def answer(
        self, texts: Sequence[str], *, explain: bool, route_only: bool, caller: Caller
    ) -> list[Answered]: ...


class Admission:
    """Decides on every request before it is worked on.

    Args:
        keys: None: no keys, so that everybody is anonymous.
        hosts: that an open service answers to; None: any.
        now: seconds of the day.
        sleep: waits; of a slowed key's request, before its body is read.
    """

    def __init__(
        self,
        keys: Keys | None = None,
        rates: Rates | None = None,
        abuse: Abuse | None = None,
        *,
        hosts: Hosts | None = None,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    ) -> None:
        self._keys = keys
        self._rates = rates or Rates()
        self._abuse = abuse or Abuse()
        self._hosts = hosts
        self._now = now
        self._sleep = sleep

    async def enter(self, path: str, headers: Mapping[bytes, bytes]) -> Visit:
        """Lets a request in, or raises RefusedError: 401, 421 for a host that is none of ours, or
        429 with when to come back."""
        if self._keys is None or self._keys.are_open():
            if self._hosts is not None:
                self._hosts.check(headers.get(b"host"))
            return _ANYBODY
        if path in OPEN_PATHS:
            return _PASSER_BY
        tokens = _tokens(headers)
        key = next(filter(None, map(self._keys.find, tokens)), None)
        if key is None:
            raise _unknown(tokens)
        delay_s = self._judge(key)
        allowance = await self._rates.requests(key.id, key.rate)
        if not allowance.allowed:
            raise self._limited(key, allowance, "requests")
        if delay_s:
            await self._sleep(delay_s)
        return Visit(key, key.scopes, _encoded(allowance.headers()))

    def needs(self, scope: Scope) -> Callable[..., Awaitable[Caller]]:
        """A FastAPI dependency: the Caller, if its key has `scope`; else 403, or 422 for a header
        that does not fit."""

        async def caller(
            request: Request,
            shown: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
        ) -> Caller:
            visit: Visit = request.scope[VISIT]
            visit.check(scope)
            return Caller(visit.id, deadline_s=deadline_s(dict(request.scope["headers"])))

        return caller

    def over(self, service: Answers) -> "Admitted":
        """The service as the routes ask it."""
        return Admitted(self, service)

    @asynccontextmanager
    async def taking(self, caller: Caller, texts: Sequence[str]) -> AsyncIterator[None]:
        """Takes the texts from the key's rate; they are given back if the block fails.

        Raises:
            RefusedError: they are too many, now (429) or at any time (422).
        """
        key = self._known(caller)
        if key is None or not texts:
            yield
            return
        allowance = await self._rates.texts(key.id, len(texts), key.rate)
        if len(texts) > allowance.limit:
            raise _never(len(texts), allowance)
        if not allowance.allowed:
            raise self._limited(key, allowance, "texts")
        if key.watched:
            self._abuse.asked(key.id, texts, self._now())
        try:
            yield
        except Exception:
            self._rates.give_back_texts(key.id, len(texts), key.rate)
            raise

    def give_back_request(self, visit: Visit) -> None:
        """Of a request that failed, and not by its own fault."""
        if visit.key is not None:
            self._rates.give_back_request(visit.key.id, visit.key.rate)

    def saw(self, caller: Caller, answered: Sequence[Answered]) -> None:
        """Notes what came of a request."""
        key = self._known(caller)
        if key is not None and key.watched:
            garbage = sum(map(_is_garbage, answered))
            self._abuse.answered(key.id, garbage, len(answered), self._now())

    def malformed(self, visit: Visit) -> None:
        """Notes a request that was none."""
        if visit.key is not None and visit.key.watched:
            self._abuse.malformed(visit.key.id, self._now())

    def _known(self, caller: Caller) -> ApiKey | None:
        return None if self._keys is None else self._keys.get(caller.key)

    def _judge(self, key: ApiKey) -> float:
        """Seconds that the request has to wait; raises RefusedError for a blocked key."""
        if not key.watched:
            return 0.0
        verdict = self._abuse.verdict(key.id, self._now())
        if verdict.blocked_s:
            raise RefusedError(
                429,
                "blocked",
                "The API key is blocked for a while, because of what was asked with it. The "
                "operator sees why in the monitor.",
                {"Retry-After": str(int(verdict.blocked_s) + 1)},
            )
        return verdict.delay_s

    def _limited(self, key: ApiKey, allowance: Allowance, what: str) -> RefusedError:
        if key.watched:
            self._abuse.refused(key.id, self._now())
        wait_s = allowance.retry_after_s
        return RefusedError(
            429,
            "rate_limited",
            f"The API key may ask {allowance.limit:,} {what} per minute. Come back in {wait_s} s.",
            {**allowance.headers(), "Retry-After": str(wait_s)},
        )


class Admitted:
    """A service behind the texts' rate and the abuse rules."""

    def __init__(self, admission: Admission, service: Answers) -> None:
        self._admission = admission
        self._service = service

    async def answer(
        self, texts: Sequence[str], *, explain: bool, route_only: bool, caller: Caller
    ) -> list[Answered]:
        """Raises RefusedError (429), and what the service raises."""
        async with self._admission.taking(caller, texts):
            answered = await self._service.answer(
                texts, explain=explain, route_only=route_only, caller=caller
            )
        self._admission.saw(caller, answered)
        return answered


def _encoded(headers: Mapping[str, str]) -> tuple[tuple[bytes, bytes], ...]:
    """As ASGI has them: lower case."""
    return tuple((name.lower().encode(), value.encode()) for name, value in headers.items())


def _tokens(headers: Mapping[bytes, bytes]) -> list[bytes]:
    """What may be a key. X-API-Key first: a gateway in front may use Authorization for itself."""
    said = headers.get(b"authorization", b"")
    bearer = said[len(_BEARER_PREFIX) :] if said[:7].lower() == _BEARER_PREFIX else b""
    return [token for it in (headers.get(b"x-api-key", b""), bearer) if (token := it.strip())]


def _unknown(tokens: Sequence[bytes]) -> RefusedError:
    message = (
        "The API key is unknown, expired or revoked."
        if tokens
        else "An API key is wanted: send it as `Authorization: Bearer fl_...` or `X-API-Key`."
    )
    realm = {"WWW-Authenticate": 'Bearer realm="firstline"'}
    return RefusedError(401, "unauthorized", message, realm)


def _never(count: int, allowance: Allowance) -> RefusedError:
    return RefusedError(
        422,
        "over_limit",
        f"The request has {count:,} texts, and the API key may ask {allowance.limit:,} per minute, "
        f"so it never fits. Send at most {allowance.limit:,} at a time, or ask the operator for a "
        "key that may ask more.",
    )


def _is_garbage(answered: Answered) -> bool:
    return answered.reason is RouteReason.OUT_OF_DOMAIN or answered.confidence < _GARBAGE_CONFIDENCE


def deadline_s(headers: Mapping[bytes, bytes]) -> float | None:
    """X-Deadline-Ms in seconds, if there is one; raises RefusedError (422) if it does not fit."""
    value = headers.get(b"x-deadline-ms")
    if value is None:
        return None
    if value.isdigit() and len(value) <= 9 and 1 <= int(value) <= MAX_DEADLINE_MS:
        return int(value) / 1000.0
    raise RefusedError(
        422,
        "invalid_request",
        f"X-Deadline-Ms is no whole number from 1 to {MAX_DEADLINE_MS:,}.",
    )
