"""One HTTP request of the client and its retries, planned without a transport.

    Call ─> Client.exchange ─> Send, Pause, Send ... ─> Reply, or an error of this tree:

ServiceError
├── UnreachableError      no answer came
│   └── TimedOutError     ... in the time there was
└── ResponseError         the service refused, in its own words; status, code, retry_after_s
    ├── UnauthorizedError 401, 403
    ├── RateLimitedError  429
    └── UnavailableError  502, 503, 504, 507

`exchange` is a generator that says what to do and is told what came of it, so that the sync and the
async client share every decision and add only how to send and how to wait.
"""

import json
import os
import random
import re
import time
import uuid
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from hashlib import sha256
from math import ceil
from typing import Any, Final

import httpx

from cluster.errors import ConfigError, DataError, ServiceError
from serve_app.request_limits import MAX_DEADLINE_MS

API_KEY: Final = "FIRSTLINE_API_KEY"
_MAX_CONNECTIONS: Final = 100
_TEXT: Final = re.compile(r"texts\[(\d{1,9})\]", re.ASCII)


class UnreachableError(ServiceError):
    """No answer came; the service may be down, or elsewhere."""


class TimedOutError(UnreachableError):
    """No answer came in the time there was; the service may still be at it."""


class ResponseError(ServiceError):
    """The service refused. `retry_after_s` is what it said of when to come back; `texts` are the
    places in the caller's list that it named, each with what is wrong.
    """

    def __init__(
        self,
        message: str,
        status: int,
        code: str,
        retry_after_s: float | None,
        texts: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s
        self.texts = dict(texts or {})


class UnauthorizedError(ResponseError):
    """The API key is missing, unknown, or lacks the scope."""


class RateLimitedError(ResponseError):
    """The key asks too often, or the service is full."""


class UnavailableError(ResponseError):
    """The service cannot answer now."""


_BY_STATUS: Final[Mapping[int, type[ResponseError]]] = {
    401: UnauthorizedError,
    403: UnauthorizedError,
    429: RateLimitedError,
    502: UnavailableError,
    503: UnavailableError,
    504: UnavailableError,
    507: UnavailableError,
}


# ---- what is configured -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long one request of at most 256 texts may take; `total_s` includes every retry."""

    connect_s: float = 5.0
    read_s: float = 30.0
    total_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How often one request is sent, and how long to wait between.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """

    attempts: int = 5
    base_s: float = 0.1
    cap_s: float = 5.0

    def pause_s(self, failed: int, retry_after_s: float | None, draw: float) -> float:
        """The wait after so many failures in a row, by a uniform number in [0, 1)."""
        jitter = draw * min(self.cap_s, self.base_s * 2.0 ** (failed - 1))
        return float(jitter + (retry_after_s or 0.0))


DEFAULT_TIMEOUTS: Final = Timeouts()
DEFAULT_RETRIES: Final = Retries()


# ---- the exchange -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request. `repeatable`: sent twice, it does no more than sent once."""

    method: str
    path: str
    content: bytes | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    deadline_ms: float | None = None
    repeatable: bool = True
    patient: bool = True  # tried again at all
    stream: bool = False  # a good answer is left to be read
    first: int = 0  # where its texts begin in the caller's list


def json_call(
    path: str, body: Mapping[str, Any], *, key: str | None = None, first: int = 0, **options: Any
) -> Call:
    """A POST with its own `Idempotency-Key`, the same in every retry.

    Args:
        key: None: a new one; else one is made of it, of the body, and of `first`.

    Raises:
        DataError: a text is none, or cannot be written as UTF-8.
    """
    try:
        content = json.dumps(body, ensure_ascii=False).encode()
    except TypeError as error:
        raise DataError(f"A text is no string: {error}. Decode bytes first.") from None
    except UnicodeEncodeError:
        raise DataError(
            "A text has half of a surrogate pair, which is no character and cannot be sent. "
            "Decode texts with errors='replace' where they are read."
        ) from None
    named = None if key is None else sha256(f"{key}/{first}/".encode() + content).hexdigest()
    made = named or uuid.uuid4().hex
    headers = {"Content-Type": "application/json", "Idempotency-Key": made}
    return Call(method="POST", path=path, content=content, headers=headers, first=first, **options)


@dataclass(frozen=True)
class Send:
    """Order to send a call now, with so many seconds left."""

    call: Call
    headers: Mapping[str, str]
    timeout: httpx.Timeout
    left_s: float


@dataclass(frozen=True)
class Pause:
    """Order to wait."""

    seconds: float


@dataclass(frozen=True)
class Reply:
    """What came; `content` is empty where the response is left to be read."""

    response: httpx.Response
    content: bytes = b""


# What a transport is told, what it gives back, and what comes of it all.
Attempt = Reply | httpx.RequestError | None
Exchange = Generator[Send | Pause, Attempt, Reply]

_NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout)
_CUT: Final = (httpx.NetworkError, httpx.RemoteProtocolError)


class Client:
    """What both clients are: where, as whom, how long. They add only the transport."""

    def __init__(self, url: str, api_key: str | None, timeouts: Timeouts, retries: Retries) -> None:
        self.url = url.rstrip("/")
        self._timeouts = timeouts
        self._retries = retries
        self._options: dict[str, Any] = {
            "base_url": _checked(self.url),
            "headers": _authorization(api_key),
            "limits": httpx.Limits(max_connections=_MAX_CONNECTIONS),
            "trust_env": False,
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def exchange(self, call: Call) -> Exchange:
        """Yields what to do, is sent what came of it, and returns the reply.

        Raises:
            ServiceError: the last failure, when trying again would not help, or not in time.
        """
        total_s = self._timeouts.total_s
        if call.deadline_ms is not None:
            total_s = min(total_s, call.deadline_ms / 1e3)
        end_s = time.monotonic() + total_s
        failed = 0
        while True:
            outcome = yield self._order(call, end_s - time.monotonic())
            if isinstance(outcome, Reply) and not outcome.response.is_error:
                return outcome
            failed += 1
            error = self.error(call, outcome)
            draw = random.random()  # noqa: S311 - it spreads load and guards nothing
            pause_s = self._retries.pause_s(failed, _retry_after_s(outcome), draw)
            last = failed >= self._retries.attempts or not _worth_repeating(call, outcome)
            if last or pause_s >= end_s - time.monotonic():
                raise error
            yield Pause(pause_s)

    def _order(self, call: Call, left_s: float) -> Send:
        left_s = max(left_s, 1e-3)
        read_s = min(self._timeouts.read_s, left_s)
        timeout = httpx.Timeout(read_s, connect=min(self._timeouts.connect_s, left_s))
        left_ms = min(ceil(left_s * 1e3), MAX_DEADLINE_MS)
        deadline = {} if call.deadline_ms is None else {"X-Deadline-Ms": str(left_ms)}
        return Send(call, {**call.headers, **deadline}, timeout, left_s)

    def error(self, call: Call, outcome: Attempt) -> ServiceError:
        """What a failed outcome is to the caller."""
        if isinstance(outcome, Reply):
            return _refusal(f"{self.url}{call.path}", outcome, call.first)
        name = type(outcome).__name__
        if isinstance(outcome, httpx.TimeoutException) and not isinstance(outcome, _NEVER_SENT):
            return TimedOutError(
                f"No answer from {self.url} in time ({name}). It may be busy: send fewer texts "
                "per request, or give it longer (Timeouts)."
            )
        return UnreachableError(
            f"No answer from {self.url} ({name}). Is it running? `firstline status` tells; "
            "`firstline serve` starts it."
        )


def _checked(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"The service's URL cannot be used: {error}.") from None
    usable = parsed.scheme in ("http", "https") and parsed.host and (parsed.port or 80) < 1 << 16
    if not usable or parsed.userinfo:
        raise ConfigError(
            "The service's URL should be like http://127.0.0.1:8000, without a user or password "
            "in it. A key goes into `api_key`."
        )
    return parsed


def _authorization(api_key: str | None) -> dict[str, str]:
    key = os.environ.get(API_KEY, "") if api_key is None else api_key
    if not (key.isascii() and key.isprintable()):
        raise ConfigError("The API key has characters that no key has. Copy it again.")
    return {"Authorization": f"Bearer {key.strip()}"} if key.strip() else {}


def _worth_repeating(call: Call, outcome: Attempt) -> bool:
    if not call.patient:
        return False
    if isinstance(outcome, Reply):
        status = outcome.response.status_code
        # 409 with a time: the first request with this Idempotency-Key is still in work.
        in_work = status == 409 and _retry_after_s(outcome) is not None
        return status in (429, 503) or (call.repeatable and (status == 502 or in_work))
    return isinstance(outcome, _NEVER_SENT) or (call.repeatable and isinstance(outcome, _CUT))


def _retry_after_s(outcome: Attempt) -> float | None:
    """Of the header `Retry-After`, in seconds or as a date; None where it says neither."""
    said = outcome.response.headers.get("retry-after") if isinstance(outcome, Reply) else None
    if said is None:
        return None
    if said.isascii() and said.isdigit():
        return float(said)
    try:
        return max(0.0, (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # no date, or one without a time zone
        return None


def _refusal(where: str, reply: Reply, first: int) -> ResponseError:
    status = reply.response.status_code
    code, said, texts = _said(reply.content, first)
    kind = _BY_STATUS.get(status, ResponseError)
    return kind(f"{where} answered {status}: {said}", status, code, _retry_after_s(reply), texts)


def _said(content: bytes, first: int) -> tuple[str, str, Mapping[int, str]]:
    """Code and message of an error in the service's shape, or the beginning of what came; and the
    texts that it names, by their place in the caller's list, of which the request began at `first`.
    """
    try:
        error = json.loads(content)["error"]
        found = {str(d["where"]): str(d["problem"]) for d in error.get("details", [])}
        code, message = str(error.get("code", "")), str(error["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", content.decode(errors="replace")[:200], {}
    texts = {
        first + int(place[1]): problem
        for where, problem in found.items()
        if (place := _TEXT.fullmatch(where))
    }
    shown = [(f"texts[{at}]", problem) for at, problem in texts.items()]
    shown += [item for item in found.items() if not _TEXT.fullmatch(item[0])]
    return code, message + "".join(f"\n  {where}: {problem}" for where, problem in shown), texts


# ---- for the transports -------------------------------------------------------------------------


def request_of(http: httpx.Client | httpx.AsyncClient, order: Send) -> httpx.Request:
    return http.build_request(
        order.call.method,
        order.call.path,
        content=order.call.content,
        headers=dict(order.headers),
        timeout=order.timeout,
    )


def in_time(response: httpx.Response, end_s: float) -> Iterator[bytes]:
    """The body, unless it trickles on beyond the end: httpx bounds each read, not their sum."""
    for chunk in response.iter_bytes():
        if time.monotonic() > end_s:
            raise httpx.ReadTimeout("The body took longer than the request may.")
        yield chunk
