"""The middleware: who is refused at once, and places that are given back."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Send
from starlette.types import Scope as AsgiScope

from serve_app.access.admission import VISIT, Admission, Visit
from serve_app.access.keys import Scope, new_key, now_utc
from serve_app.errors import OverloadedError, UnansweredError
from serve_app.http.body import BodyBudget
from serve_app.http.middleware import JsonReply, Middleware, MiddlewareApi
from serve_app.http.routes import create_api
from tests.support.http_service import (
    SECRET,
    StubService,
    check_error,
    classify,
    client,
    drive,
    post_scope,
    response_of,
)

pytestmark = pytest.mark.anyio


async def test_slow_bodies_take_no_place_among_the_requests_in_work(service: StubService) -> None:
    """Else a few connections that send nothing would shut everybody out."""
    api = create_api(service, max_in_work=1)

    async def stalled() -> AsyncIterator[Any]:
        await asyncio.sleep(3600)
        yield

    stuck = [asyncio.create_task(drive(api, stalled(), post_scope())) for _ in range(5)]
    await asyncio.sleep(0)
    async with client(api) as http:
        assert (await classify(http, {"texts": ["a"]})).status_code == 200
    for task in stuck:
        task.cancel()
    await asyncio.gather(*stuck, return_exceptions=True)


async def test_over_the_bound_a_request_is_refused_at_once_and_probes_are_not(
    service: StubService,
) -> None:
    service.may_answer.clear()
    async with client(create_api(service, max_in_work=2)) as http:
        first = [asyncio.create_task(classify(http, {"texts": ["a"]})) for _ in range(2)]
        while len(service.callers) < 2:
            await asyncio.sleep(0)
        refused = await classify(http, {"texts": [SECRET]})
        check_error(refused, 429, "overloaded")
        assert refused.headers["retry-after"] == "1"
        assert (await http.get("/healthz")).status_code == 200
        assert (await http.get("/v1/stats")).status_code == 200
        service.may_answer.set()
        assert [one.status_code for one in await asyncio.gather(*first)] == [200, 200]
        assert (await classify(http, {"texts": ["a"]})).status_code == 200
    assert len(service.callers) == 3


async def test_a_late_loop_refuses_beside_many_requests_and_not_beside_few(
    service: StubService,
) -> None:
    service.may_answer.clear()
    async with client(create_api(service)) as http:
        asked = [asyncio.create_task(classify(http, {"texts": ["a"]})) for _ in range(64)]
        while len(service.callers) < 63:
            await asyncio.sleep(0)
        time.sleep(0.2)
        while len(service.callers) < 64:
            await asyncio.sleep(0)
        time.sleep(0.2)
        check_error(await classify(http, {"texts": ["a"]}), 429, "overloaded")
        await asyncio.sleep(0.1)
        late = asyncio.create_task(classify(http, {"texts": ["a"]}))
        while len(service.callers) < 65:
            await asyncio.sleep(0)
        service.may_answer.set()
        answers = await asyncio.gather(*asked, late)
    assert {one.status_code for one in answers} == {200}


async def test_an_early_refusal_reads_nothing_of_the_body(service: StubService) -> None:
    async def never() -> AsyncIterator[Any]:
        raise AssertionError("the body was read")
        yield

    sent = await drive(create_api(service, max_in_work=0), never(), post_scope())
    check_error(response_of(sent), 429, "overloaded")


async def test_places_are_given_back_whatever_becomes_of_a_request(service: StubService) -> None:
    async with client(create_api(service, max_in_work=1)) as http:
        for fails in (OverloadedError("full"), RuntimeError(SECRET), UnansweredError([0])):
            service.fails = fails
            assert (await classify(http, {"texts": ["a"]})).status_code >= 429
        service.fails = None
        service.may_answer.clear()
        gone = asyncio.create_task(classify(http, {"texts": ["a"]}))
        while len(service.callers) < 4:
            await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        service.may_answer.set()
        assert (await classify(http, {"texts": ["a"]})).status_code == 200


# -- the class itself, in front of an application that writes down what reaches it ----------------

DIRECT = "/direct"
ALLOWED = ((b"x-allowed", b"7"),)


class Visited(Admission):
    """Lets everybody in by one key, and notes who sent what is no request."""

    def __init__(self) -> None:
        super().__init__()
        self.key = new_key("test", [Scope.CLASSIFY], now=now_utc())[1]
        self.malformed_by: list[str] = []

    async def enter(self, path: str, headers: Mapping[bytes, bytes]) -> Visit:
        return Visit(self.key, self.key.scopes, ALLOWED)

    def malformed(self, visit: Visit) -> None:
        self.malformed_by.append(visit.id)


class Behind:
    """A middleware, the application behind it, and one direct route."""

    def __init__(self, *, max_in_work: int = 8, **budget: Any) -> None:
        self.admission = Visited()
        self.body_budget = BodyBudget(**budget)
        self.seen: list[tuple[AsgiScope, list[Message]]] = []
        self.direct: list[bytes] = []
        self.reply: JsonReply | Exception = JsonReply(b"{}", ((b"x-own", b"1"),))
        self.status = 200
        self.waits = asyncio.Event()
        self.waits.set()
        self.middleware = Middleware(
            admission=self.admission,
            body_budget=self.body_budget,
            direct={DIRECT: self._direct},
            max_in_work=max_in_work,
        ).before(self._app)

    async def _direct(self, body: bytes, headers: Mapping[bytes, bytes], visit: Visit) -> JsonReply:
        assert visit.key is self.admission.key
        self.direct.append(body)
        await self.waits.wait()
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply

    async def _app(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        bodied = scope.get("method", "GET") == "POST"
        self.seen.append((scope, [await receive(), await receive()] if bodied else []))
        headers = [(b"x-allowed", b"of the application"), (b"x-app", b"1")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"app"})

    async def ask(
        self, path: str, *parts: Message, method: str = "POST", **headers: str
    ) -> list[Any]:
        return await drive(
            self.middleware, _stream(*parts), {**post_scope(path, **headers), "method": method}
        )


async def _stream(*parts: Message) -> AsyncIterator[Message]:
    for part in parts:
        yield part
    yield {"type": "http.disconnect"}


def part(body: bytes, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_direct_route_is_handed_the_whole_body_and_the_application_never() -> None:
    behind = Behind()
    response = response_of(await behind.ask(DIRECT, part(b"[1,", True), part(b"2]")))
    assert (response.status_code, response.content) == (200, b"{}")
    assert behind.direct == [b"[1,2]"]
    assert behind.seen == []
    told = response.headers
    assert (told["content-type"], told["content-length"]) == ("application/json", "2")
    assert (told["x-allowed"], told["x-own"]) == ("7", "1")
    assert behind.body_budget.held_bytes == 0


async def test_only_a_post_to_a_direct_route_is_direct() -> None:
    behind = Behind()
    await behind.ask(DIRECT, method="GET")
    await behind.ask(f"{DIRECT}/more", part(b"{}"))
    assert behind.direct == []
    assert [scope["path"] for scope, _ in behind.seen] == [DIRECT, f"{DIRECT}/more"]


async def test_the_application_reads_the_body_once_more_then_what_follows_and_the_visit() -> None:
    behind = Behind()
    sent = await behind.ask("/app", part(b"ab", True), part(b"c"))
    [(scope, told)] = behind.seen
    assert told == [part(b"abc"), {"type": "http.disconnect"}]
    assert scope[VISIT].key is behind.admission.key
    assert response_of(sent).content == b"app"


async def test_its_own_headers_come_before_those_of_the_visit() -> None:
    """A refusal by the texts' rate must not be told as the requests' rate."""
    sent = await Behind().ask("/app", part(b""))
    assert sent[0]["headers"] == [(b"x-allowed", b"of the application"), (b"x-app", b"1")]


@pytest.mark.parametrize(
    ("status", "noted"), [(200, 0), (400, 1), (404, 0), (413, 1), (415, 1), (422, 1), (503, 0)]
)
async def test_what_is_no_request_is_held_against_its_key(status: int, noted: int) -> None:
    behind = Behind()
    behind.status = status
    await behind.ask("/app", part(b"{}"))
    assert behind.admission.malformed_by == [behind.admission.key.id] * noted


async def test_a_body_that_is_too_large_is_taken_off_the_line_and_refused() -> None:
    """A client that still sends when it is reset never reads why."""
    behind, taken = Behind(max_body_bytes=4), 0

    async def stream() -> AsyncIterator[Message]:
        nonlocal taken
        for number in range(6):
            taken += 1
            yield part(b"abc", number < 5)

    response = response_of(await drive(behind.middleware, stream(), post_scope(DIRECT)))
    check_error(response, 413, "too_large")
    assert taken == 6
    assert behind.admission.malformed_by == [behind.admission.key.id]
    assert (behind.direct, behind.body_budget.held_bytes) == ([], 0)


async def test_a_client_that_hangs_up_is_told_nothing_and_leaves_no_place_taken() -> None:
    behind = Behind(max_in_work=1)
    assert await behind.ask(DIRECT, part(b"half", True)) == []
    assert response_of(await behind.ask(DIRECT, part(b"{}"))).status_code == 200


async def test_places_that_fill_while_a_body_comes_are_not_overdrawn() -> None:
    """It was let in when there was a place, and is counted only once its body is whole."""
    behind = Behind(max_in_work=1)
    behind.waits.clear()
    rest = asyncio.Event()

    async def slow() -> AsyncIterator[Message]:
        yield part(b"{", True)
        await rest.wait()
        yield part(b"}")

    late = asyncio.create_task(drive(behind.middleware, slow(), post_scope(DIRECT)))
    first = asyncio.create_task(behind.ask(DIRECT, part(b"first")))
    while not behind.direct:
        await asyncio.sleep(0)
    rest.set()
    check_error(response_of(await late), 429, "overloaded")
    behind.waits.set()
    assert response_of(await first).status_code == 200
    assert behind.direct == [b"first"]


async def test_an_error_with_a_refusal_is_told_and_any_other_goes_on() -> None:
    behind = Behind(max_in_work=1)
    behind.reply = OverloadedError("full", retry_after_s=3.0)
    refused = response_of(await behind.ask(DIRECT, part(b"{}")))
    check_error(refused, 429, "overloaded")
    assert refused.headers["retry-after"] == "3"
    behind.reply = KeyError(SECRET)
    for _ in range(2):  # its place is free again
        with pytest.raises(KeyError):
            await behind.ask(DIRECT, part(b"{}"))
    assert behind.body_budget.held_bytes == 0


async def test_a_broken_direct_route_is_a_500_and_is_raised_for_the_log() -> None:
    """Past Starlette's outermost layer, which does the same for every other route."""
    behind, sent = Behind(), list[Any]()
    behind.reply = KeyError(SECRET)

    async def send(message: Message) -> None:
        sent.append(message)

    api, parts = MiddlewareApi(behind.middleware), _stream(part(b"{}"))
    with pytest.raises(KeyError):
        await api(post_scope(DIRECT), parts.__anext__, send)
    check_error(response_of(sent), 500, "internal")


async def test_a_head_does_not_read_a_stream_to_its_end(service: StubService) -> None:
    """The results of a job may be gigabytes."""
    api, told = create_api(service), 0

    def rows() -> Iterator[str]:
        nonlocal told
        while True:
            told += 1
            yield "{}\n"

    @api.get("/endless")
    async def endless() -> StreamingResponse:
        return StreamingResponse(rows(), media_type="application/x-ndjson")

    async with client(api) as http:
        head = await asyncio.wait_for(http.head("/endless"), 5)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"].startswith("application/x-ndjson")
    assert told < 4


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_what_is_no_http_goes_through_as_it_came(kind: str) -> None:
    behind, scope = Behind(max_in_work=0), {"type": kind, "path": DIRECT}
    await drive(behind.middleware, _stream(), scope)
    assert [seen for seen, _ in behind.seen] == [scope]
