"""A service without models behind the real HTTP surface, and requests to it."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.types import ASGIApp

from serve_app.contracts import Caller, Route, RouteReason
from serve_app.decide.answered import Answered
from serve_app.decide.explain import Explanation
from serve_app.errors import EmptyTextsError
from serve_app.guard.prepare import normalise
from serve_app.http.errors import ErrorOut
from serve_app.http.routes import create_api

SECRET = "xyzzy-what-a-customer-wrote"


class StubService:
    """An routes.Service of two labels that answers at once, or fails as told."""

    def __init__(self) -> None:
        self.fails: Exception | None = None
        self.gaps: list[str] = []
        self.cautions: list[str] = []
        self.fed: list[tuple[str, str]] = []
        self.callers: list[Caller] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.confidence = 0.9
        self._ids = itertools.count()

    async def answer(
        self, texts: Sequence[str], *, explain: bool, route_only: bool, caller: Caller
    ) -> list[Answered]:
        self.callers.append(caller)
        await self.may_answer.wait()
        if self.fails is not None:
            raise self.fails
        if empty := [index for index, text in enumerate(texts) if not normalise(text)]:
            raise EmptyTextsError(empty)
        return [self._answer(explain, route_only) for _ in texts]

    def _answer(self, explain: bool, route_only: bool) -> Answered:
        made = Explanation(
            route=Route.EDGE,
            reason=RouteReason.TRUSTED,
            score="confidence",
            score_kind="max_probability",
            trust=0.9,
            threshold=0.8,
            min_confidence=0.0,
            rules={RouteReason.TOO_LONG: False},
            probabilities={"no": 0.1, "yes": 0.9},
            costs_usd={Route.EDGE: 0.001, Route.CLOUD: 0.0146},
        )
        return Answered(
            id=f"{next(self._ids):032x}",
            label=None if route_only else "yes",
            confidence=self.confidence,
            route=Route.EDGE,
            reason=RouteReason.TRUSTED,
            cost_usd=0.001,
            latency_ms=1.5,
            release="r-1",
            degraded=False,
            explanation=made if explain else None,
        )

    def labels(self) -> Sequence[str]:
        return ("no", "yes")

    async def feedback(self, answer_id: str, label: str) -> None:
        self.fed.append((answer_id, label))

    async def missing(self) -> Sequence[str]:
        return self.gaps

    def warnings(self) -> Sequence[str]:
        return self.cautions

    def release(self) -> Mapping[str, Any]:
        return {"id": "r-1"}

    async def stats(self) -> Mapping[str, Any]:
        if self.fails is not None:
            raise self.fails
        return {"messages": 0}

    async def report(self) -> Mapping[str, Any]:
        return {"alerts": []}

    async def metrics(self) -> bytes:
        return b"firstline_messages_total 0.0\n"


@asynccontextmanager
async def client(api: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(api, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as made:
        yield made


async def ask(service: StubService, method: str, path: str, **options: Any) -> httpx.Response:
    async with client(create_api(service)) as http:
        return await http.request(method, path, **options)


def check_error(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = ErrorOut.model_validate_json(response.content).error
    assert error.code == code
    assert error.message
    assert SECRET not in response.text
    return error.model_dump()


def post_scope(path: str = "/v1/classify", **headers: str) -> dict[str, Any]:
    encoded = [(b"content-type", b"application/json")]
    encoded += [
        (name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()
    ]
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "scheme": "http", "headers": encoded, "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip


async def drive(api: ASGIApp, parts: AsyncIterator[Any], scope: dict[str, Any]) -> list[Any]:
    """Calls the application as a server does; what it sent."""
    sent: list[Any] = []

    async def receive() -> Any:
        return await anext(parts)

    async def send(message: Any) -> None:
        sent.append(message)

    await api(scope, receive, send)
    return sent


def response_of(sent: list[Any]) -> httpx.Response:
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return httpx.Response(sent[0]["status"], headers=sent[0]["headers"], content=content)


async def classify(http: httpx.AsyncClient, body: Any, key: str | None = None) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    return await http.post("/v1/classify", json=body, headers=headers)
