"""Every request ends as one RequestEvent, whichever layer answers or refuses it.

    MiddlewareApi ─> Endings.around ─> ... ─> what is sent: the status ──┐
    problem(): the code; the router: the release, tags ─> note() ────────┴─> on_end(RequestEvent)

What is noted belongs to the request whose task, or a task made by it, runs: nothing has to be
handed through the layers.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from starlette.types import Message, Receive, Scope, Send

from serve_app.contracts import RequestEvent

OnEnd = Callable[[RequestEvent], None]
_CLIENT_GONE: Final = 499  # as nginx calls it
_ELSEWHERE: Final = "elsewhere"  # a path of a client's own must not become a label


@dataclass(slots=True)
class _Noted:
    status: int = 0
    code: str = ""
    release: str = ""
    tags: tuple[str, ...] = ()


_noted: ContextVar[_Noted | None] = ContextVar("firstline_request", default=None)


def note(*, code: str = "", release: str = "", tags: tuple[str, ...] = ()) -> None:
    """Notes it of the request that is worked on; the last word counts."""
    now = _noted.get()
    if now is not None:
        now.code, now.release, now.tags = code or now.code, release or now.release, tags or now.tags


class Endings:
    """Sees every request of an application to its end.

    Args:
        codes: status -> the code of an error that named none.
        paths: those of the schema; asked once a request has come, when all routes are there.
    """

    def __init__(
        self, on_end: OnEnd, codes: Mapping[int, str], paths: Callable[[], frozenset[str]]
    ) -> None:
        self._on_end = on_end
        self._codes = codes
        self._paths = paths
        self._known: frozenset[str] | None = None

    async def around(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        noted = _Noted()

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                noted.status = message["status"]
            await send(message)

        before = _noted.set(noted)
        try:
            await app(scope, receive, told)
        finally:
            _noted.reset(before)
            self._on_end(self._event(scope, noted))

    def _event(self, scope: Scope, noted: _Noted) -> RequestEvent:
        status, code = noted.status, ""
        if not status:
            status, code = _CLIENT_GONE, "client_gone"
        elif status >= 400:
            code = noted.code or self._codes.get(status, f"http_{status}")
        return RequestEvent(self._route(scope), status, code, noted.release, noted.tags)

    def _route(self, scope: Scope) -> str:
        if self._known is None:
            self._known = self._paths()
        if scope["path"] in self._known:
            return str(scope["path"])
        found: Any = scope.get("route")
        return str(getattr(found, "path", _ELSEWHERE))


def ignore(event: RequestEvent) -> None:
    """Where nobody counts."""
