"""The middleware: who is refused at once, and places that are given back."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from serve_app.errors import OverloadedError, UnansweredError
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
