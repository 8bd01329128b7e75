"""SharedStore on a real Redis: what it keeps, what it refuses, and what happens when Redis goes."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from cluster.errors import ConfigError
from serve_app.redis_store import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    TIMEOUT_S,
    Backoff,
    Claim,
    SharedStore,
    derive_key,
)
from tests.support.redis_server import PATIENT_S, RedisServer, raw_redis
from tests.support.waiting import Clock

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("patient")]

KEY = b"k" * 32
SLACK_S = 1.0  # for a machine that is busy with something else


@asynccontextmanager
async def opened(
    url: str, clock: Callable[[], float] = time.monotonic, key: bytes = KEY
) -> AsyncIterator[SharedStore]:
    store = SharedStore(SecretStr(url), key, clock=clock)
    try:
        yield store
    finally:
        await store.close()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage() for record in caplog.records if record.name == "serve_app.redis_store"
    ]


# ---- what it keeps ------------------------------------------------------------------------------


async def test_values_come_back_by_name_and_in_order(redis_url: str) -> None:
    async with opened(redis_url) as store:
        assert await store.set_many({"a": b"\x00\xff", "b": b""}, 60)
        assert await store.get_many(["b", "none", "a", "b"]) == [b"", None, b"\x00\xff", b""]
        assert await store.get_many([]) == []
        assert await store.get("a") == b"\x00\xff"


@pytest.mark.parametrize("size", [1, 100, 600])
async def test_reads_that_go_together_are_told_apart(redis_url: str, size: int) -> None:
    async with opened(redis_url) as store:
        await store.set_many({str(n): b"%d" % n for n in range(2000)}, 60)
        lists = [[str(start * 7 + n) for n in range(size)] for start in range(40)]
        found = await asyncio.gather(*map(store.get_many, lists))
        assert found == [[name.encode() for name in names] for names in lists]


async def test_values_end_with_their_time(redis_url: str) -> None:
    async with opened(redis_url) as store:
        await store.set("short", b"1", 0.05)
        await store.set("long", b"2", 60)
        await asyncio.sleep(0.1)
        assert await store.get_many(["short", "long"]) == [None, b"2"]


async def test_all_names_have_our_prefix(redis_url: str) -> None:
    async with opened(redis_url) as store, raw_redis(redis_url) as other:
        await store.set("a", b"1", 60)
        await store.claim("b", b"1", 60)
        assert sorted(await other.keys()) == [b"firstline:a", b"firstline:b"]


async def test_one_of_many_wins_a_claim(redis_url: str) -> None:
    async with opened(redis_url) as one, opened(redis_url) as two:
        claims = [store.claim("job", bytes([n]), 60) for n in range(10) for store in (one, two)]
        assert sorted(claim.name for claim in await asyncio.gather(*claims)).count("WON") == 1


async def test_a_claim_is_held_by_its_value(redis_url: str) -> None:
    """Who lost a claim must neither renew, replace nor delete what another has written there."""
    async with opened(redis_url) as store:
        assert await store.claim("job", b"mine", 60) is Claim.WON
        assert not await store.renew("job", b"another's", 60)
        assert not await store.replace("job", b"another's", b"wrong", 60)
        assert not await store.drop("job", b"another's")
        assert await store.get("job") == b"mine"
        assert await store.renew("job", b"mine", 60)
        assert await store.replace("job", b"mine", b"done", 60)
        assert await store.get("job") == b"done"


async def test_a_renewed_claim_lives_on_and_a_dropped_one_is_free(redis_url: str) -> None:
    async with opened(redis_url) as store:
        await store.claim("job", b"mine", 0.05)
        assert await store.renew("job", b"mine", 60)
        await asyncio.sleep(0.1)
        assert await store.claim("job", b"yours", 60) is Claim.LOST
        assert await store.drop("job", b"mine")
        assert await store.claim("job", b"yours", 60) is Claim.WON


async def test_a_result_is_written_where_the_claim_has_run_out(redis_url: str) -> None:
    async with opened(redis_url) as store:
        assert await store.replace("job", b"mine", b"done", 60)
        assert await store.get("job") == b"done"


# ---- what it refuses ----------------------------------------------------------------------------


async def test_foreign_values_are_nothing_and_counted(redis_url: str) -> None:
    async with opened(redis_url) as store, raw_redis(redis_url) as other:
        await store.set_many({"a": b"of a", "b": b"of b"}, 60)
        sealed = await other.get("firstline:a")
        forged = {"b": sealed, "short": sealed[:7], "changed": sealed[:-1] + b"!", "own": b"of a"}
        for name, value in {**forged, "empty": b""}.items():
            await other.set(f"firstline:{name}", value)
        assert await store.get_many([*forged, "empty", "a"]) == [None] * 5 + [b"of a"]
        assert store.foreign == 5


async def test_another_services_key_reads_nothing(redis_url: str) -> None:
    async with opened(redis_url) as ours, opened(redis_url, key=b"x" * 32) as theirs:
        await ours.set("a", b"1", 60)
        assert await theirs.get("a") is None


@given(st.binary(min_size=16, max_size=100), st.text(max_size=30), st.text(max_size=30))
def test_keys_of_two_purposes_differ(key: bytes, one: str, two: str) -> None:
    assert (derive_key(key, one) == derive_key(key, two)) == (one == two)


@pytest.mark.parametrize(
    "url",
    [
        "http://:hunter2@host",
        "hunter2",
        "redis://:hunter2@host:port",
        "redis://:hunter2@h?db=x",
        "redis://:hunter2@h?nonsense=1",
    ],
)
def test_a_wrong_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigError, match="redis://host") as caught:
        SharedStore(SecretStr(url), KEY)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("password", ["hunter2", "wrong-hunter2"])
async def test_a_password_is_used_and_never_shown(
    password: str, caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer("--requirepass", "hunter2") as server:
        url = f"redis://:{password}@127.0.0.1:{server.port}/0"
        async with opened(url) as store:
            assert await store.set("a", b"1", 60) == (password == "hunter2")
            shown = repr(store) + caplog.text
    assert "hunter2" not in shown
    assert (f"127.0.0.1:{server.port} is gone (AuthenticationError)" in shown) == (
        password == "wrong-hunter2"
    )


# ---- when Redis goes ----------------------------------------------------------------------------


async def everything(store: SharedStore) -> list[object]:
    return [
        await store.get("a"),
        await store.get_many(["a", "b"]),
        await store.set("a", b"1", 60),
        await store.claim("b", b"1", 60),
        await store.renew("b", b"1", 60),
        await store.replace("b", b"1", b"2", 60),
        await store.drop("b", b"1"),
    ]


NOTHING = [None, [None, None], False, Claim.UNKNOWN, False, False, False]


async def test_gone_and_back(redis_process: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    async with opened(redis_process.url, clock) as store:
        assert await store.set("a", b"1", 60)
        redis_process.kill()
        assert await everything(store) == NOTHING
        assert not store.available
        assert len(warnings(caplog)) == 1
        redis_process.start()
        assert await store.get("a") is None  # in the pause it is not asked
        assert not store.available
        clock.now_s += FIRST_PAUSE_S
        assert await store.set("a", b"2", 60)
        assert await store.get("a") == b"2"
        assert store.available
    gone, back = warnings(caplog)
    assert f"127.0.0.1:{redis_process.port} is gone" in gone
    assert f"127.0.0.1:{redis_process.port} is back" in back


async def test_a_restart_between_two_calls_is_not_noticed(
    redis_process: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(redis_process.url) as store:
        await asyncio.gather(*(store.set(str(n), b"1", 60) for n in range(8)))
        redis_process.kill()
        redis_process.start()
        await asyncio.sleep(0.02)  # the loop sees that the connections are closed
        assert await asyncio.gather(*(store.set(str(n), b"1", 60) for n in range(8))) == [True] * 8
    assert warnings(caplog) == []


async def test_never_there(caplog: pytest.LogCaptureFixture) -> None:
    async with opened("redis://127.0.0.1:1/0") as store:
        assert await everything(store) == NOTHING
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("options", ["", "?socket_timeout=60&socket_connect_timeout=60&timeout=60"])
async def test_a_redis_that_hangs_holds_up_each_call_once_and_briefly(
    options: str,
    redis_process: RedisServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    async with opened(redis_process.url + options, clock) as store:
        await store.set("a", b"1", 60)
        redis_process.freeze()
        monkeypatch.setattr("serve_app.redis_store.TIMEOUT_S", TIMEOUT_S)  # as in service
        start = time.monotonic()
        assert await asyncio.gather(*(store.get("a") for _ in range(32))) == [None] * 32
        assert time.monotonic() - start < TIMEOUT_S + SLACK_S
        start = time.monotonic()
        for _ in range(1000):
            assert await store.get("a") is None
        assert time.monotonic() - start < SLACK_S
        assert len(warnings(caplog)) == 1
        redis_process.thaw()
        monkeypatch.setattr("serve_app.redis_store.TIMEOUT_S", PATIENT_S)
        clock.now_s += FIRST_PAUSE_S  # 32 that failed together made one pause, not 32 doublings
        assert await store.get("a") == b"1"


async def test_after_the_pause_one_call_tries_and_the_others_do_not_wait(
    redis_process: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    async with opened(redis_process.url, clock) as store:
        redis_process.freeze()
        monkeypatch.setattr("serve_app.redis_store.TIMEOUT_S", TIMEOUT_S)  # as in service
        await store.get("a")
        clock.now_s += FIRST_PAUSE_S
        trying = asyncio.create_task(store.get("a"))
        for _ in range(5):
            await asyncio.sleep(0)
        for _ in range(100):
            assert await store.get("a") is None
        assert not trying.done()  # so none of them gave up the loop
        assert await trying is None
        redis_process.thaw()


async def test_callers_that_are_cancelled_mix_up_nothing(redis_url: str) -> None:
    """A command cut off between question and answer once gave its answer to the next caller."""
    names = [f"n{n}" for n in range(40)]
    async with opened(redis_url) as store:
        await store.set_many({name: name.encode() for name in names}, 60)
        for turn in range(12):
            reads = [asyncio.create_task(store.get(name)) for name in names]
            others = [asyncio.create_task(store.claim(name, b"x", 60)) for name in names]
            for _ in range(turn):
                await asyncio.sleep(0)
            for task in [*reads[::2], *others[::2]]:
                task.cancel()
            values = await asyncio.gather(*reads[1::2])
            assert values == [name.encode() for name in names[1::2]]
            assert set(await asyncio.gather(*others[1::2])) == {Claim.LOST}
        assert await store.get_many(names) == [name.encode() for name in names]
        assert store.available
        assert store.foreign == 0


async def test_a_redis_that_takes_no_more_refuses_nothing_of_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with RedisServer("--maxmemory", "1", "--maxmemory-policy", "noeviction") as server:
        async with opened(server.url) as store:
            assert not await store.set("a", b"1", 60)
            assert await store.claim("a", b"1", 60) is Claim.UNKNOWN
    assert len(warnings(caplog)) == 1


# ---- the pause ----------------------------------------------------------------------------------


def fail_at(pause: Backoff, now_s: float) -> bool:
    ticket = pause.begin(now_s)
    return ticket is not None and pause.failed(ticket, now_s)


def test_the_pause_grows_to_its_longest() -> None:
    pause, now_s, seen = Backoff(), 0.0, []
    assert fail_at(pause, now_s)
    for _ in range(7):
        seen.append(pause.pause_s)
        assert pause.begin(now_s + 0.99 * pause.pause_s) is None
        now_s += pause.pause_s
        assert not fail_at(pause, now_s)  # it was gone already
    assert seen == [1.0, 2.0, 4.0, 8.0, 16.0, LONGEST_PAUSE_S, LONGEST_PAUSE_S]


def test_what_comes_and_goes_does_not_begin_again_at_a_second() -> None:
    """A Redis that reads but cannot write would else be tried, and logged, every second."""
    pause, now_s = Backoff(), 0.0
    fail_at(pause, now_s)
    for _ in range(10):
        now_s += pause.pause_s + 1.0
        ticket = pause.begin(now_s)
        assert ticket is not None
        assert pause.succeeded(ticket, now_s)
        fail_at(pause, now_s)
    assert pause.pause_s == LONGEST_PAUSE_S


def test_after_a_good_while_it_begins_again_at_a_second() -> None:
    pause = Backoff()
    fail_at(pause, 0.0)
    fail_at(pause, 1.0)
    assert pause.pause_s == 2.0
    ticket = pause.begin(3.0)
    assert ticket is not None
    assert pause.succeeded(ticket, 3.0)
    fail_at(pause, 10.0)
    assert pause.pause_s == FIRST_PAUSE_S


def test_those_that_were_out_before_have_no_say() -> None:
    pause = Backoff()
    tickets = [pause.begin(0.0) for _ in range(3)]
    assert [pause.failed(ticket, 0.0) for ticket in tickets if ticket is not None] == [
        True,
        False,
        False,
    ]
    assert pause.pause_s == FIRST_PAUSE_S
    assert tickets[0] is not None
    assert not pause.succeeded(tickets[0], 0.5)
    assert not pause.up
