"""Idempotency: one run per key, the first answer for all, whoever hangs up, fails or is killed."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from serve_app.errors import IdempotencyConflictError, IdempotencyInWorkError, IdempotencyKeyError
from serve_app.http.idempotency import CLAIM_S, WAIT_S, Idempotency, parse_header
from serve_app.redis_store import SharedStore
from tests.support.redis_server import RedisServer, raw_redis

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("patient")]

KEY = b"k" * 32
BODY = b"fingerprint-of-16"[:16]
OTHER = b"another-body-256"[:16]


class Work:
    """Counts its runs; each waits until it is let go, then gives its own answer or fails."""

    def __init__(self, failures: int = 0, *, held: bool = False) -> None:
        self.runs = 0
        self.ended = 0
        self.failures = failures
        self.go = asyncio.Event()
        self.begun = asyncio.Event()
        if not held:
            self.go.set()

    async def __call__(self) -> bytes:
        self.runs += 1
        run = self.runs
        self.begun.set()
        await self.go.wait()
        self.ended += 1
        if run <= self.failures:
            raise RuntimeError(f"run {run} failed")
        return b"answer %d" % run


@asynccontextmanager
async def router(url: str, **given: Any) -> AsyncIterator[Idempotency]:
    store = SharedStore(SecretStr(url), KEY)
    made = Idempotency(KEY, store, **given)
    try:
        yield made
    finally:
        await made.close()
        await store.close()


def alone(**given: Any) -> Idempotency:
    return Idempotency(KEY, **given)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# ---- the header ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ('"8e03978e-40d5-43e8-bc93-6894a57f9324"', "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        ("8e03978e-40d5-43e8-bc93-6894a57f9324", "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        ("  abc ", "abc"),
        ("a" * 255, "a" * 255),
        ("!#[]~", "!#[]~"),
    ],
)
def test_a_key_comes_quoted_or_not(value: str, key: str) -> None:
    assert parse_header(value) == key


def test_white_space_around_a_header_is_no_part_of_it() -> None:
    assert parse_header("a\n") == "a"


@pytest.mark.parametrize(
    "value", ["", '""', '"', '"a', 'a"b', "a b", "a\\b", "ä", "a\x00b", "a" * 256, "\ud800"]
)
def test_other_headers_are_refused_without_repeating_them(value: str) -> None:
    with pytest.raises(IdempotencyKeyError, match="UUID") as caught:
        parse_header(value)
    assert len(value) < 2 or value not in str(caught.value)


@given(st.text(max_size=300))
def test_any_header_is_a_key_or_refused(value: str) -> None:
    try:
        key = parse_header(value)
    except IdempotencyKeyError:
        return
    assert 1 <= len(key) <= 255
    assert key.isascii()
    assert key.isprintable()
    assert not set(key) & set(' "\\')


def test_names_and_fingerprints_are_of_one_caller() -> None:
    one = alone()
    assert one.name("chat", '"a"') == one.name("chat", "a") == alone().name("chat", "a")
    assert one.name("chat", "a") != one.name("mail", "a")
    assert one.fingerprint("chat", b"a") != one.fingerprint("mail", b"a")
    assert one.fingerprint("chat", b"a") != one.fingerprint("chat", b"b")
    assert one.name("chat", "a") != one.fingerprint("chat", b"a").hex()
    assert one.name("chat", "a") != Idempotency(b"x" * 32).name("chat", "a")


# ---- one router ---------------------------------------------------------------------------------


async def test_sent_again_it_gets_the_first_answer() -> None:
    one, work = alone(), Work()
    assert await one.run("a", BODY, work) == (b"answer 1", False)
    assert await one.run("a", BODY, work) == (b"answer 1", True)
    assert await one.run("b", BODY, work) == (b"answer 2", False)


async def test_another_body_under_the_key_is_a_conflict() -> None:
    one, work = alone(), Work()
    await one.run("a", BODY, work)
    with pytest.raises(IdempotencyConflictError, match="Send a new key"):
        await one.run("a", OTHER, work)
    assert work.runs == 1


async def test_another_body_while_the_first_is_in_work_is_a_conflict_at_once() -> None:
    one, work = alone(), Work(held=True)
    first = asyncio.create_task(one.run("a", BODY, work))
    await work.begun.wait()
    with pytest.raises(IdempotencyConflictError):
        await one.run("a", OTHER, work)
    work.go.set()
    assert await first == (b"answer 1", False)


async def test_those_that_come_while_it_is_in_work_wait_for_it() -> None:
    one, work = alone(), Work(held=True)
    calls = [asyncio.create_task(one.run("a", BODY, work)) for _ in range(20)]
    await turns()
    work.go.set()
    answers = await asyncio.gather(*calls)
    assert answers[0] == (b"answer 1", False)
    assert answers[1:] == [(b"answer 1", True)] * 19
    assert work.runs == 1


async def test_they_do_not_wait_for_ever() -> None:
    one, work = alone(wait_s=0.05), Work(held=True)
    first = asyncio.create_task(one.run("a", BODY, work))
    await work.begun.wait()
    with pytest.raises(IdempotencyInWorkError, match="in a moment"):
        await one.run("a", BODY, work)
    work.go.set()
    assert await first == (b"answer 1", False)
    assert await one.run("a", BODY, work) == (b"answer 1", True)


async def test_a_failure_is_told_to_its_own_and_the_next_one_tries() -> None:
    one, work = alone(), Work(failures=2, held=True)
    calls = [asyncio.create_task(one.run("a", BODY, work)) for _ in range(4)]
    await turns()
    work.go.set()
    said = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(one) for one in said[:2]] == ["run 1 failed", "run 2 failed"]
    assert said[2:] == [(b"answer 3", False), (b"answer 3", True)]
    assert work.runs == 3


async def test_nothing_is_kept_of_a_failure() -> None:
    one, work = alone(), Work(failures=1)
    with pytest.raises(RuntimeError, match="run 1 failed"):
        await one.run("a", BODY, work)
    assert await one.run("a", OTHER, work) == (b"answer 2", False)


async def test_the_first_client_hangs_up_and_the_others_get_the_answer() -> None:
    one, work = alone(), Work(held=True)
    first, *others = (asyncio.create_task(one.run("a", BODY, work)) for _ in range(3))
    await work.begun.wait()
    first.cancel()
    await turns()
    assert first.cancelled()
    work.go.set()
    assert await asyncio.gather(*others) == [(b"answer 1", True)] * 2


async def test_the_only_client_hangs_up_and_its_next_attempt_gets_the_answer() -> None:
    one, work = alone(), Work(held=True)
    first = asyncio.create_task(one.run("a", BODY, work))
    await work.begun.wait()
    first.cancel()
    await turns()
    work.go.set()
    assert await one.run("a", BODY, work) == (b"answer 1", True)
    assert work.runs == 1


async def test_a_failure_that_nobody_waits_for_is_silent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """asyncio logs a task's error that nobody asked for, and an error may quote a message."""
    one, work = alone(), Work(failures=1, held=True)
    first = asyncio.create_task(one.run("a", BODY, work))
    await work.begun.wait()
    first.cancel()
    work.go.set()
    await turns()
    del first
    gc.collect()
    await turns()
    assert work.ended == 1
    assert caplog.text == ""


async def test_work_that_is_cancelled_leaves_the_key_free() -> None:
    async def cancelled() -> bytes:
        raise asyncio.CancelledError

    one, work = alone(), Work()
    with pytest.raises(asyncio.CancelledError):
        await one.run("a", BODY, cancelled)
    assert await one.run("a", BODY, work) == (b"answer 1", False)


async def test_a_key_ends_with_its_time() -> None:
    now = [0.0]
    one, work = alone(ttl_s=10, clock=lambda: now[0]), Work()
    await one.run("a", BODY, work)
    now[0] = 9.9
    assert await one.run("a", BODY, work) == (b"answer 1", True)
    now[0] = 10.1
    assert await one.run("a", OTHER, work) == (b"answer 2", False)


def answering(size: int) -> Callable[[], Any]:
    async def make() -> bytes:
        return b"x" * size

    return make


@pytest.mark.parametrize(
    ("bounds", "size", "kept"),
    [
        ({"max_entries": 3}, 10, 3),
        ({"max_entries": 3, "max_bytes": 100}, 10, 3),
        ({"max_entries": 4, "max_bytes": 10}, 1, 4),
        ({"max_entries": 100, "max_bytes": 10}, 1, 10),
        ({"max_entries": 100, "max_bytes": 10}, 0, 10),
        ({"max_entries": 100, "max_bytes": 1000}, 300, 3),
        ({"max_entries": 100, "max_bytes": 1000}, 1001, 0),
    ],
)
async def test_memory_is_bounded_in_answers_and_bytes(
    bounds: dict[str, int], size: int, kept: int
) -> None:
    one = alone(**bounds)
    for n in range(20):
        assert (await one.run(f"k{n}", BODY, answering(size)))[1] is False
    again = [(await one.run(f"k{n}", BODY, answering(size)))[1] for n in range(19, 19 - kept, -1)]
    assert again == [True] * kept
    assert len(one._done) == kept
    assert one._flights == {}


# ---- several routers ----------------------------------------------------------------------------


async def test_another_router_gives_the_first_answer(redis_url: str) -> None:
    async with router(redis_url) as one, router(redis_url) as two:
        work = Work()
        assert await one.run("a", BODY, work) == (b"answer 1", False)
        assert await two.run("a", BODY, work) == (b"answer 1", True)
        with pytest.raises(IdempotencyConflictError):
            await two.run("a", OTHER, work)


async def test_of_many_calls_to_two_routers_one_runs(redis_url: str) -> None:
    async with router(redis_url) as one, router(redis_url) as two:
        work = Work(held=True)
        calls = [asyncio.create_task(each.run("a", BODY, work)) for each in [one, two] * 10]
        await work.begun.wait()
        await asyncio.sleep(0.1)
        work.go.set()
        answers = await asyncio.gather(*calls)
        assert {answer for answer, _ in answers} == {b"answer 1"}
        assert [again for _, again in answers].count(False) == 1
        assert work.runs == 1


async def test_another_router_refuses_another_body_and_tells_who_waits_too_long(
    redis_url: str,
) -> None:
    async with router(redis_url) as one, router(redis_url, wait_s=0.1) as two:
        work = Work(held=True)
        first = asyncio.create_task(one.run("a", BODY, work))
        await work.begun.wait()
        with pytest.raises(IdempotencyConflictError):
            await two.run("a", OTHER, work)
        with pytest.raises(IdempotencyInWorkError):
            await two.run("a", BODY, work)
        work.go.set()
        assert await first == (b"answer 1", False)
        assert await two.run("a", BODY, work) == (b"answer 1", True)


async def test_a_failure_frees_the_key_at_once(redis_url: str) -> None:
    async with router(redis_url) as one, router(redis_url) as two:
        work = Work(failures=1)
        with pytest.raises(RuntimeError):
            await one.run("a", BODY, work)
        start = time.monotonic()
        assert await two.run("a", OTHER, work) == (b"answer 2", False)
        assert time.monotonic() - start < CLAIM_S / 2


async def test_long_work_keeps_its_claim(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.http.idempotency.CLAIM_S", 0.3)
    async with router(redis_url) as one, router(redis_url) as two:
        work = Work(held=True)
        first = asyncio.create_task(one.run("a", BODY, work))
        await work.begun.wait()
        second = asyncio.create_task(two.run("a", BODY, work))
        await asyncio.sleep(0.9)
        assert work.runs == 1
        work.go.set()
        assert [await first, await second] == [(b"answer 1", False), (b"answer 1", True)]


async def test_a_killed_routers_key_is_free_again_while_the_retry_waits(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's retry reaches another router, waits for the dead claim, and is answered."""
    monkeypatch.setattr("serve_app.http.idempotency.CLAIM_S", 0.3)
    async with router(redis_url) as one:
        killed, work = Work(held=True), Work()
        async with raw_redis(redis_url) as raw:
            first = asyncio.create_task(one.run("a", BODY, killed))
            await killed.begun.wait()
            name = "firstline:idempotency:2:a"
            claim = await raw.get(name)
            killed.go.set()
            await first
            await raw.set(name, claim, px=300)  # as a router leaves it that is killed in its work
        async with router(redis_url) as two:
            assert await two.run("a", BODY, work) == (b"answer 1", False)
    assert WAIT_S > CLAIM_S


async def test_a_strangers_answer_is_not_given(redis_url: str) -> None:
    """Bytes from Redis go to clients as they are, so only sealed ones may."""
    async with router(redis_url, wait_s=0.1) as one:
        async with raw_redis(redis_url) as raw:
            await raw.set("firstline:idempotency:2:a", b"d" + BODY + b"forged", px=60_000)
        with pytest.raises(IdempotencyInWorkError):
            await one.run("a", BODY, Work())


@pytest.mark.parametrize("moment", ["before", "in work"])
async def test_redis_gone_answers_go_on_within_each_router(
    moment: str, redis_process: RedisServer
) -> None:
    async with router(redis_process.url) as one, router(redis_process.url) as two:
        work = Work(held=True)
        if moment == "before":
            redis_process.kill()
        first = asyncio.create_task(one.run("a", BODY, work))
        await work.begun.wait()
        second = asyncio.create_task(one.run("a", BODY, work))
        await turns()
        if moment == "in work":
            redis_process.kill()
        work.go.set()
        assert [await first, await second] == [(b"answer 1", False), (b"answer 1", True)]
        assert await one.run("a", BODY, work) == (b"answer 1", True)
        assert await two.run("a", BODY, work) == (b"answer 2", False)  # a second run, no refusal


async def test_redis_goes_while_another_router_waits(redis_process: RedisServer) -> None:
    """Who waited for a claim that cannot be seen any more does the work itself."""
    async with router(redis_process.url) as one, router(redis_process.url) as two:
        work = Work(held=True)
        first = asyncio.create_task(one.run("a", BODY, work))
        await work.begun.wait()
        second = asyncio.create_task(two.run("a", BODY, work))
        await asyncio.sleep(0.1)
        assert work.runs == 1
        redis_process.kill()
        while work.runs < 2:
            await asyncio.sleep(0.01)
        work.go.set()
        assert {answer for answer, _ in await asyncio.gather(first, second)} == {
            b"answer 1",
            b"answer 2",
        }


async def test_redis_back_empty_takes_the_answer_all_the_same(redis_process: RedisServer) -> None:
    async with router(redis_process.url) as one, router(redis_process.url) as two:
        work = Work(held=True)
        first = asyncio.create_task(one.run("a", BODY, work))
        await work.begun.wait()
        redis_process.kill()
        redis_process.start()
        await asyncio.sleep(0.02)  # the loop sees that the connection is closed
        work.go.set()
        assert await first == (b"answer 1", False)
        assert await two.run("a", BODY, work) == (b"answer 1", True)


async def test_no_text_and_no_key_lies_in_redis(redis_url: str) -> None:
    async with router(redis_url) as one, raw_redis(redis_url) as raw:
        name = one.name("chat", "order-4711")
        await one.run(name, one.fingerprint("chat", b"where is my parcel"), Work())
        (key,) = await raw.keys()
        kept = key + await raw.get(key)
        assert not any(word in kept for word in (b"chat", b"4711", b"parcel"))
