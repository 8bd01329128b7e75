"""Gate: the ASGI layer in front of the routes. What is not let in costs next to nothing.

    request ─> too many in work? ─> admission ─> body ─> done before? ─┬─> a direct route ─> answer
                                                                       └─> FastAPI's ─> answer

A direct route takes the body as bytes and gives the answer as bytes. It is reached without
FastAPI's layers, neither those between an application and its endpoint, which took 45 of the 64 us
of a request of one text, nor those around the middleware (`MiddlewareApi`), which took 28 of the
200 that are left beside real work.

Decided once: what is in work is bounded by count, and by how late the event loop is (loop_lag.py),
since a queue that is longer than clients wait is work for nobody. Over either, a request is refused
before its key or its body are looked at: a client without a right to be there hears "overloaded"
too. Every POST honours an Idempotency-Key (idempotency.py), and a HEAD is told what a GET is.
"""

import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from fastapi import FastAPI, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.access.admission import VISIT, Admission, Visit
from serve_app.errors import BodyTooLargeError, OverloadedError
from serve_app.http.body import Body, BodyBudget, ClientGoneError, discard
from serve_app.http.endings import Endings, OnEnd, ignore
from serve_app.http.errors import CODES, RETRY_AFTER_S, broken, refusal
from serve_app.http.idempotency import Idempotency, NotKeptError, Recorder, Reply
from serve_app.http.loop_lag import LoopLag

# Half a second of work at about 1,000 requests/s, so that what is let in is answered within one.
MAX_IN_WORK: Final = 512
# Beside so many, a late loop means that more wait unread than can be answered in time. With fewer
# it is late for another reason, such as replicas that start, and catches up.
_MANY_IN_WORK: Final = 64
_MAX_LATE_S: Final = 0.05
_MALFORMED: Final = frozenset({400, 413, 415, 422})
# Where the ASGI scope carries what only the same request with the same Idempotency-Key has too.
SAME_REQUEST: Final = "firstline.same_request"
_KEY: Final = b"idempotency-key"
# Of what is beside path and body, the one header that changes what a body means.
_BODY_SPLIT: Final = b"inference-header-content-length"
_REPLAYED: Final = (b"idempotent-replay", b"true")
_FULL: Final = "Too many requests are in work. Try again in a moment."
_FULL_BODY: Final = json.dumps(
    {"error": {"code": "overloaded", "message": _FULL, "details": []}}
).encode()
_FULL_START: Final[Message] = {
    "type": "http.response.start",
    "status": 429,
    "headers": [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(_FULL_BODY)).encode()),
        (b"retry-after", str(RETRY_AFTER_S).encode()),
    ],
}


@dataclass(frozen=True, slots=True)
class JsonReply:
    """A JSON answer, with headers of its own."""

    body: bytes = field(repr=False)
    headers: tuple[tuple[bytes, bytes], ...] = ()


Direct = Callable[[bytes, Mapping[bytes, bytes], Visit], Awaitable[JsonReply]]


class Middleware:
    """ASGI middleware: `middleware.before(app)` is the application behind it.

    Args:
        direct: path -> what answers a POST to it.
        max_in_work: requests with a body, between its last byte and their answer.
        idempotency: None: keys hold within this middleware.
    """

    def __init__(
        self,
        *,
        admission: Admission,
        body_budget: BodyBudget,
        direct: Mapping[str, Direct],
        max_in_work: int,
        idempotency: Idempotency | None = None,
    ) -> None:
        self._app: ASGIApp
        self._idempotency = idempotency or Idempotency(secrets.token_bytes())
        self._admission = admission
        self._body_budget = body_budget
        self._direct = direct
        self._max_in_work = max_in_work
        self._in_work = 0
        self._loop_lag = LoopLag()

    def before(self, app: ASGIApp) -> "Middleware":
        self._app = app
        return self

    def answers(self, scope: Scope) -> bool:
        """Whether the request is one of a direct route."""
        return (
            scope["type"] == "http" and scope["path"] in self._direct and scope["method"] == "POST"
        )

    @property
    def _full(self) -> bool:
        late = self._loop_lag.late_s() > _MAX_LATE_S
        return self._in_work >= self._max_in_work or (late and self._in_work >= _MANY_IN_WORK)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        bodied = scope["method"] != "GET"
        if bodied and self._full:
            await send(_FULL_START)
            await send({"type": "http.response.body", "body": _FULL_BODY})
            return
        headers = dict(scope["headers"])
        out = _Out(send, self._admission)
        try:
            out.visit = scope[VISIT] = await self._admission.enter(scope["path"], headers)
            if bodied:
                await self._with_body(scope, receive, out, headers)
            else:
                await self._app(scope, receive, out)
        except ClientGoneError:
            return
        except BodyTooLargeError as error:
            await discard(receive)
            await (await refusal(Request(scope), error))(scope, receive, out)
        except Exception as error:  # noqa: BLE001 - `refusal` raises again what is none
            try:
                response = await refusal(Request(scope), error)
            except Exception:
                self._admission.give_back_request(out.visit)
                raise
            await response(scope, receive, out)

    async def _with_body(
        self, scope: Scope, receive: Receive, out: "_Out", headers: Mapping[bytes, bytes]
    ) -> None:
        body = Body(self._body_budget)
        try:
            content = await body.read(headers, receive)
            if self._in_work >= self._max_in_work:  # it filled up while the body came
                raise OverloadedError(_FULL)
            self._in_work += 1
            try:
                await self._work(scope, content, receive, out, headers)
            finally:
                self._in_work -= 1
        finally:
            body.close()

    async def _work(
        self,
        scope: Scope,
        content: bytes,
        receive: Receive,
        out: "_Out",
        headers: Mapping[bytes, bytes],
    ) -> None:
        if _KEY in headers and scope["method"] == "POST":
            await self._once(scope, content, receive, out, headers)
        else:
            await self._answer(scope, content, receive, out, headers)

    async def _answer(
        self,
        scope: Scope,
        content: bytes,
        receive: Receive,
        send: Send,
        headers: Mapping[bytes, bytes],
    ) -> None:
        if self.answers(scope):
            reply = await self._direct[scope["path"]](content, headers, scope[VISIT])
            length = str(len(reply.body)).encode()
            sizes = [(b"content-type", b"application/json"), (b"content-length", length)]
            headers_out = [*sizes, *reply.headers]
            await send({"type": "http.response.start", "status": 200, "headers": headers_out})
            await send({"type": "http.response.body", "body": reply.body})
        else:
            await self._app(scope, _again(content, receive), send)

    async def _once(
        self,
        scope: Scope,
        content: bytes,
        receive: Receive,
        out: "_Out",
        headers: Mapping[bytes, bytes],
    ) -> None:
        """The first answer that this request got with its key; a refusal is not kept."""
        idempotency, caller = self._idempotency, out.visit.id
        name = idempotency.name(caller, headers[_KEY].decode("latin-1"))
        asked = (scope["path"].encode(), headers.get(_BODY_SPLIT, b""), content)
        fingerprint = idempotency.fingerprint(caller, b"\0".join(asked))
        scope[SAME_REQUEST] = idempotency.fingerprint(name, fingerprint).hex()

        async def make() -> bytes:
            recorder = Recorder()
            await self._answer(scope, content, receive, recorder, headers)
            reply = recorder.made()
            if not reply.is_good:
                raise NotKeptError(reply)
            return reply.packed()

        try:
            kept, replayed = await idempotency.run(name, fingerprint, make)
        except NotKeptError as refused:
            await refused.reply.send(out)
            return
        await Reply.unpacked(kept).send(out, *([_REPLAYED] if replayed else []))


class MiddlewareApi(FastAPI):
    """An application whose layers stand around its middleware, but for what the middleware answers
    itself.
    """

    def __init__(self, middleware: Middleware, on_end: OnEnd = ignore, **options: Any) -> None:
        super().__init__(**options)
        self._middleware = middleware
        self._endings = Endings(on_end, CODES, self._paths)
        self.add_middleware(middleware.before)

    def _paths(self) -> frozenset[str]:
        paths = (str(getattr(route, "path", "{")) for route in self.routes)
        return frozenset(path for path in paths if "{" not in path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._endings.around(self._answer, scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            asked = {**scope, "method": "GET"}
            with suppress(HeadDoneError):
                await super().__call__(asked, receive, Bodiless(send))
            scope["route"] = asked.get("route")  # for its event
            return
        if not self._middleware.answers(scope):
            await super().__call__(scope, receive, send)
            return
        try:
            await self._middleware(scope, receive, send)
        except Exception as error:  # told as Starlette's outermost layer does, and logged behind us
            await (await broken(Request(scope), error))(scope, receive, send)
            raise


class _Out:
    """A `send` that adds the visit's headers, and notes which requests were none."""

    def __init__(self, send: Send, admission: Admission) -> None:
        self._send = send
        self._admission = admission
        self.visit = Visit()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and self.visit.key is not None:
            if message["status"] in _MALFORMED:
                self._admission.malformed(self.visit)
            if message["status"] >= 500:
                self._admission.give_back_request(self.visit)
            message = {**message, "headers": self._merged(message["headers"])}
        await self._send(message)

    def _merged(self, headers: Any) -> list[tuple[bytes, bytes]]:
        """Its own headers come first: a refusal may speak of another rate."""
        own = list(headers)
        names = {name.lower() for name, _ in own}
        return own + [header for header in self.visit.headers if header[0] not in names]


class HeadDoneError(Exception):
    """All that a HEAD is told has been told; the rest of a stream need not be read."""


class Bodiless:
    """A `send` for HEAD: status and headers as GET has them, and no body."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._done = False

    async def __call__(self, message: Message) -> None:
        """Raises HeadDoneError where more of a body would follow."""
        if message["type"] == "http.response.start":
            await self._send(message)
            return
        if not self._done:
            self._done = True
            await self._send({"type": "http.response.body", "body": b""})
        if message.get("more_body", False):
            raise HeadDoneError


def _again(content: bytes, receive: Receive) -> Receive:
    """A `receive` that tells the body once more."""
    told = False

    async def once() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": content, "more_body": False}

    return once
