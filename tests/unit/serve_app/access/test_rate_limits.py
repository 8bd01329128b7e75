"""Rates: what is counted, what is told, and that a Redis that goes fails no request."""

import asyncio
import logging
import time

import pytest
from pydantic import SecretStr, ValidationError

from cluster.errors import ConfigError
from serve_app.access.rate_limits import Allowance, RateConfig, Rates
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.anyio

SMALL = RateConfig(requests_per_min=5, texts_per_min=256)


def on(server: RedisServer) -> SecretStr:
    return SecretStr(server.url)


async def spend(rates: Rates, key: str, count: int) -> list[bool]:
    return [(await rates.requests(key)).allowed for _ in range(count)]


@pytest.fixture(autouse=True)
def _in_one_minute() -> None:
    """The windows are cut by the clock: a test that straddles a minute counts in two of them."""
    if (left_s := 60.0 - time.time() % 60.0) < 3.0:
        time.sleep(left_s)


@pytest.fixture(params=["process", "redis"])
def redis(request: pytest.FixtureRequest) -> SecretStr | None:
    if request.param == "process":
        return None
    request.getfixturevalue("patient")
    server: RedisServer = request.getfixturevalue("redis_process")
    return on(server)


async def test_a_key_gets_what_it_may_and_no_more(redis: SecretStr | None) -> None:
    rates = Rates(SMALL, redis)
    taken = [await rates.requests("a") for _ in range(7)]
    assert [one.allowed for one in taken] == [True] * 5 + [False] * 2
    assert [one.remaining for one in taken] == [4, 3, 2, 1, 0, 0, 0]
    assert {one.limit for one in taken} == {5}
    assert all(0 <= one.reset_s <= 60 for one in taken)
    assert min(one.retry_after_s for one in taken[5:]) >= 10


async def test_one_key_takes_nothing_from_another(redis: SecretStr | None) -> None:
    rates = Rates(SMALL, redis)
    assert await spend(rates, "a", 6) == [True] * 5 + [False]
    assert await spend(rates, "b", 6) == [True] * 5 + [False]


async def test_texts_are_taken_whole_or_not_at_all(redis: SecretStr | None) -> None:
    rates = Rates(SMALL, redis)
    assert (await rates.texts("a", 200)).remaining == 56
    refused = await rates.texts("a", 57)
    assert not refused.allowed
    assert refused.remaining == 56
    assert (await rates.texts("a", 56)).allowed


async def test_a_key_may_have_limits_of_its_own(redis: SecretStr | None) -> None:
    rates, own = Rates(SMALL, redis), RateConfig(requests_per_min=7)
    taken = [(await rates.requests("a", own)).allowed for _ in range(8)]
    assert taken == [True] * 7 + [False]


async def test_many_at_once_are_counted_one_by_one(redis: SecretStr | None) -> None:
    rates = Rates(RateConfig(requests_per_min=20), redis)
    taken = await asyncio.gather(*(rates.requests("a") for _ in range(50)))
    assert sum(one.allowed for one in taken) == 20


@pytest.mark.usefixtures("patient")
async def test_routers_with_a_redis_count_together(redis_process: RedisServer) -> None:
    routers = [Rates(SMALL, on(redis_process)) for _ in range(3)]
    taken = [await routers[turn % 3].requests("a") for turn in range(9)]
    assert [one.allowed for one in taken] == [True] * 5 + [False] * 4


@pytest.mark.usefixtures("patient")
async def test_blocks_of_a_large_limit_add_up_to_it(redis_process: RedisServer) -> None:
    """Each router takes a hundredth at a time; at most that much lies unused in each."""
    config = RateConfig(requests_per_min=1000)
    routers = [Rates(config, on(redis_process)) for _ in range(3)]
    taken = [await routers[turn % 3].requests("a") for turn in range(1100)]
    assert 1000 - 2 * 10 <= sum(one.allowed for one in taken) <= 1000
    assert not taken[-1].allowed
    assert [one.remaining for one in taken[:3]] == [999, 989, 979]


@pytest.mark.usefixtures("patient")
async def test_lists_that_do_not_divide_a_block_waste_none_of_it(
    redis_process: RedisServer,
) -> None:
    rates = Rates(RateConfig(texts_per_min=10_000), on(redis_process))
    taken = [await rates.texts("a", 70) for _ in range(150)]
    assert sum(one.allowed for one in taken) == 10_000 // 70


async def test_without_a_redis_they_do_not() -> None:
    routers = [Rates(SMALL) for _ in range(2)]
    assert [await spend(one, "a", 6) for one in routers] == [[True] * 5 + [False]] * 2


async def test_when_redis_goes_no_request_fails_and_when_it_is_back_it_counts_again(
    redis_process: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    now = [0.0]
    rates = Rates(SMALL, on(redis_process), clock=lambda: now[0])
    assert await spend(rates, "a", 2) == [True] * 2
    redis_process.kill()
    start = time.perf_counter()
    assert await spend(rates, "a", 6) == [True] * 5 + [False]  # its own five
    assert time.perf_counter() - start < 0.5
    redis_process.start()
    now[0] += 60.0
    assert await spend(rates, "a", 6) == [True] * 5 + [False]  # in Redis, which forgot
    said = [record.message for record in caplog.records]
    assert [("gone" in line, "back" in line) for line in said] == [(True, False), (False, True)]


async def test_a_redis_that_hangs_costs_one_short_wait(redis_process: RedisServer) -> None:
    rates = Rates(SMALL, on(redis_process))
    await rates.requests("a")
    redis_process.freeze()
    try:
        start = time.perf_counter()
        taken = await asyncio.gather(*(rates.requests(f"k{at}") for at in range(20)))
        assert time.perf_counter() - start < 0.5
        assert all(one.allowed for one in taken)
        start = time.perf_counter()
        assert (await rates.requests("b")).allowed
        assert time.perf_counter() - start < 0.02
    finally:
        redis_process.thaw()


@pytest.mark.parametrize("url", ["http://:hunter2@host/0", "hunter2", "redis://:hunter2@host:x/0"])
async def test_a_url_that_is_none_is_refused_unseen(url: str) -> None:
    with pytest.raises(ConfigError, match="FIRSTLINE_REDIS_URL") as caught:
        Rates(SMALL, SecretStr(url))
    assert "hunter2" not in str(caught.value)


async def test_a_password_is_in_no_log_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    rates = Rates(SMALL, SecretStr("redis://:hunter2@127.0.0.1:1/0"))
    assert (await rates.requests("a")).allowed
    assert "gone" in caplog.text
    assert "hunter2" not in caplog.text + repr(rates)


def test_a_limit_below_one_request_is_refused() -> None:
    """A key that could never send a whole list would be told to come back for ever."""
    with pytest.raises(ValidationError, match="texts_per_min"):
        RateConfig(texts_per_min=255)
    with pytest.raises(ValidationError, match="requests_per_minute"):
        RateConfig.model_validate({"requests_per_minute": 1})


async def test_a_refused_list_is_told_to_wait_until_it_fits() -> None:
    rates = Rates(RateConfig(texts_per_min=600))
    await rates.texts("a", 600)
    assert (await rates.texts("a", 200)).retry_after_s >= 20


def test_headers_are_whole_numbers() -> None:
    made = Allowance(False, 10, 0, 0.2)
    assert made.retry_after_s == 1
    assert made.headers() == {
        "X-RateLimit-Limit": "10",
        "X-RateLimit-Remaining": "0",
        "X-RateLimit-Reset": "1",
    }


async def test_in_process_it_costs_far_less_than_a_tenth_of_a_millisecond() -> None:
    rates, rounds = Rates(RateConfig(requests_per_min=10**6)), []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(200):
            await rates.requests("a")
        rounds.append((time.perf_counter() - start) / 200)
    assert min(rounds) < 1e-4


# ---- what was not delivered ----------------------------------------------------------------------


async def test_what_is_given_back_can_be_asked_again(redis: SecretStr | None) -> None:
    rates = Rates(RateConfig(requests_per_min=3, texts_per_min=300), redis)
    for _ in range(5):
        assert (await rates.texts("a", 250)).allowed
        rates.give_back_texts("a", 250)
        assert (await rates.requests("a")).allowed
        rates.give_back_request("a")
    taken = await rates.texts("a", 300)
    assert (taken.allowed, taken.remaining) == (True, 0)
    assert not (await rates.texts("a", 1)).allowed


async def test_a_list_may_be_more_than_what_was_given_back(redis: SecretStr | None) -> None:
    """Its rest is asked for: 200 lie here, and 100 are left."""
    rates = Rates(RateConfig(texts_per_min=300), redis)
    await rates.texts("a", 200)
    rates.give_back_texts("a", 200)
    refused = await rates.texts("a", 301)
    assert (refused.allowed, refused.remaining) == (False, 300)
    assert (await rates.texts("a", 299)).allowed
    assert (await rates.texts("a", 1)).remaining == 0


async def test_no_more_is_given_back_than_a_key_may_have_nor_after_its_minute() -> None:
    now_s = 0.0
    rates = Rates(RateConfig(texts_per_min=300), clock=lambda: now_s)
    rates.give_back_texts("a", 300)  # of a key that took nothing
    await rates.texts("a", 300)
    for _ in range(3):
        rates.give_back_texts("a", 300)
    assert (await rates.texts("a", 300)).allowed
    assert not (await rates.texts("a", 1)).allowed
    now_s = 61.0
    rates.give_back_texts("a", 300)
    assert not (await rates.texts("a", 300)).allowed


async def test_many_at_once_share_what_was_given_back() -> None:
    rates = Rates(RateConfig(texts_per_min=300))
    await rates.texts("a", 300)
    rates.give_back_texts("a", 150)
    taken = await asyncio.gather(*(rates.texts("a", 20) for _ in range(10)))
    assert sum(one.allowed for one in taken) == 7
