"""A body: whole and within bounds, or refused before it is parsed."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from serve_app.http.body import BodyBudget
from serve_app.http.routes import create_api
from tests.support.http_service import (
    SECRET,
    StubService,
    check_error,
    client,
    drive,
    post_scope,
    response_of,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_is_bounded_before_it_is_parsed(service: StubService, declared: bool) -> None:
    async def stream() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield SECRET.encode() * 20

    content = SECRET.encode() * 80 if declared else stream()
    async with client(create_api(service, body_budget=BodyBudget(max_body_bytes=1000))) as http:
        response = await http.post("/v1/classify", content=content)
    check_error(response, 413, "too_large")


async def test_many_large_bodies_together_are_refused_and_their_bytes_given_back(
    service: StubService,
) -> None:
    async with client(create_api(service, body_budget=BodyBudget(max_held_bytes=1000))) as http:
        for _ in range(3):
            response = await http.post("/v1/classify", json={"texts": ["a" * 2000]})
            check_error(response, 429, "overloaded")
            assert response.headers["retry-after"] == "1"
        assert (await http.post("/v1/classify", json={"texts": ["a" * 500]})).status_code == 200
        assert (await http.post("/v1/classify", json={"texts": ["a" * 500]})).status_code == 200


async def test_a_body_that_trickles_in_is_given_up(service: StubService) -> None:
    async def trickle() -> AsyncIterator[Any]:
        while True:
            await asyncio.sleep(0.01)
            yield {"type": "http.request", "body": b" ", "more_body": True}

    body_budget = BodyBudget(timeout_s=0.1)
    sent = await asyncio.wait_for(
        drive(create_api(service, body_budget=body_budget), trickle(), post_scope()), timeout=5
    )
    response = response_of(sent)
    check_error(response, 408, "too_slow")
    assert response.headers["connection"] == "close"
    assert body_budget.held_bytes == 0


async def test_a_client_that_hangs_up_in_its_body_is_answered_by_nobody(
    service: StubService,
) -> None:
    async def half() -> AsyncIterator[Any]:
        yield {"type": "http.request", "body": b'{"te', "more_body": True}
        yield {"type": "http.disconnect"}

    body_budget = BodyBudget()
    for path in ("/v1/classify", "/v1/feedback"):
        assert (
            await drive(create_api(service, body_budget=body_budget), half(), post_scope(path))
            == []
        )
    assert body_budget.held_bytes == 0
    assert service.callers == []


async def test_a_content_length_beyond_all_numbers_is_too_large(service: StubService) -> None:
    """int() of 5,000 digits raises, which was a 500."""

    async def nothing() -> AsyncIterator[Any]:
        yield {"type": "http.request", "body": b"", "more_body": False}

    sent = await drive(create_api(service), nothing(), post_scope(content_length="9" * 5000))
    check_error(response_of(sent), 413, "too_large")
