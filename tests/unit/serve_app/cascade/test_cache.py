"""ResponseCache: what may be kept, under which key, and what a stranger's value does to it."""

import asyncio
import itertools
import json
import math
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from cluster.audit.keyed_hash import TextHasher
from serve_app.cascade.cache import (
    CacheConfig,
    NoCache,
    ResponseCache,
    cacheable,
    decode,
    encode,
    fits,
    make_cache,
)
from serve_app.contracts import Cached, Message, Prediction, Route, RouteReason, packed
from serve_app.decide.policy import decide
from serve_app.decide.scores import Random
from serve_app.decide.signals import SIGNALS, signals
from serve_app.guard.prepare import prepare
from serve_app.redis_store import SharedStore, derive_key
from tests.support.redis_server import RedisServer, raw_redis
from tests.support.strategies import POLICIES
from tests.support.tables import LABELS

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("patient")]

KEY = b"k" * 32
KEPT = [name for name in SIGNALS if name != "random"]
BY_RULE = [
    RouteReason.TRUSTED,
    RouteReason.ESCALATED,
    RouteReason.CLASS_KEPT,
    RouteReason.CLASS_ESCALATED,
    RouteReason.OUT_OF_DOMAIN,
    RouteReason.ESCALATION_WORDS,
    RouteReason.TOO_LONG,
    RouteReason.UNCONFIDENT,
]
AT_EDGE = {RouteReason.TRUSTED, RouteReason.CLASS_KEPT}
FINITE = st.floats(allow_nan=False, allow_infinity=False)
CACHED = st.sampled_from(BY_RULE).flatmap(
    lambda reason: st.builds(
        Cached,
        label=st.sampled_from(LABELS),
        edge_label=st.sampled_from(LABELS),
        confidence=st.floats(0, 1),
        route=st.just(Route.EDGE if reason in AT_EDGE else Route.CLOUD),
        reason=st.just(reason),
        trust=FINITE,
        signals=st.dictionaries(st.sampled_from(KEPT), FINITE),
    )
)
ONE = Cached("neutral", "positive", 0.9, Route.CLOUD, RouteReason.ESCALATED, 0.4, {"margin": 0.1})
TWO = replace(ONE, label="negative")
PLAIN = Message("where is my parcel")


@asynccontextmanager
async def opened(
    url: str,
    config: CacheConfig = CacheConfig(),  # noqa: B008 - frozen
) -> AsyncIterator[ResponseCache]:
    store = SharedStore(SecretStr(url), KEY)
    cache = ResponseCache(config, KEY, store)
    try:
        yield cache
    finally:
        await cache.close()
        await store.close()


def local(config: CacheConfig | None = None, **given: Any) -> ResponseCache:
    return ResponseCache(config or CacheConfig(), KEY, **given)


# ---- what may be kept ---------------------------------------------------------------------------


@given(
    policy=POLICIES,
    text=st.text(min_size=1, max_size=200),
    confidence=st.floats(0.34, 1),
    label=st.sampled_from(LABELS),
)
def test_what_may_be_kept_is_what_the_rule_says_again(
    policy: Any, text: str, confidence: float, label: str
) -> None:
    """Every decision on a text without personal data, by a rule that does not look at `random`."""
    message, edge = prepare(text), Prediction(label, confidence, confidence / 2, 0.3, packed(1.0))
    decision = decide(message, edge, policy, signals(message, edge))
    uses = policy.score.uses
    kept = cacheable(message, decision.route, decision.reason, False, uses)
    assert kept == (message.pinned is None and "random" not in uses)
    assert not cacheable(message, decision.route, decision.reason, True, uses)


@pytest.mark.parametrize(
    "message", [Message("a", pii=("email",)), Message("a", detector_failed=True)]
)
@pytest.mark.parametrize("reason", RouteReason)
@pytest.mark.parametrize("route", Route)
def test_pinned_messages_are_never_kept(
    message: Message, route: Route, reason: RouteReason
) -> None:
    assert not cacheable(message, route, reason, False)


def test_chance_and_faults_of_the_moment_are_not_kept() -> None:
    kept = {
        (route, reason)
        for route, reason in itertools.product(Route, RouteReason)
        if cacheable(PLAIN, route, reason, False)
    }
    assert kept == {
        (Route.EDGE if reason in AT_EDGE else Route.CLOUD, reason) for reason in BY_RULE
    }


def test_a_rule_that_looks_at_random_is_not_kept() -> None:
    assert cacheable(PLAIN, Route.EDGE, RouteReason.TRUSTED, False, ["confidence"])
    assert not cacheable(PLAIN, Route.EDGE, RouteReason.TRUSTED, False, Random().uses)


def test_no_field_holds_free_text() -> None:
    """A new field must be thought about here: what is kept in Redis has no text in it."""
    assert {field.name for field in fields(Cached)} == {
        "label", "edge_label", "confidence", "route", "reason", "trust", "signals",
    }  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"label": "my card is 4111 1111 1111 1111"},
        {"edge_label": "another"},
        {"signals": {"where is my parcel": 1.0}},
        {"signals": {"random": 0.5}},
        {"signals": {"margin": math.nan}},
        {"confidence": 1.5},
        {"confidence": math.nan},
        {"trust": math.inf},
        {"route": Route.EDGE},
        {"reason": RouteReason.PII_PINNED, "route": Route.EDGE},
        {"reason": RouteReason.EXPLORED},
    ],
)
async def test_what_does_not_fit_is_neither_kept_nor_read(wrong: dict[str, Any]) -> None:
    bad = replace(ONE, **wrong)
    assert not fits(bad, LABELS)
    assert decode(encode(bad), LABELS) is None
    cache = local()
    cache.put_many([("bad", bad), ("good", ONE)], LABELS)
    assert await cache.get_many(["bad", "good"], LABELS) == [None, ONE]


# ---- as bytes -----------------------------------------------------------------------------------


@given(CACHED)
def test_bytes_give_the_very_same_answer(cached: Cached) -> None:
    again = decode(encode(cached), LABELS)
    assert again == cached
    assert again is not None
    assert type(again.route) is Route
    assert type(again.reason) is RouteReason


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=8), inner),
)


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_other_bytes_are_no_answer(data: bytes) -> None:
    assert decode(data, LABELS) is None


@given(CACHED, st.integers(0, 6), JSON)
def test_a_field_of_the_wrong_kind_is_no_answer(cached: Cached, at: int, value: Any) -> None:
    """Whatever is read is again something that fits, or nothing."""
    values = json.loads(encode(cached))
    values[at] = value
    read = decode(json.dumps(values).encode(), LABELS)
    assert read is None or fits(read, LABELS)


@pytest.mark.parametrize("data", [b"[" * 100_000, b"[1e999]", b'["a"]', b"\xff", b"", b"{}"])
def test_broken_json_is_no_answer(data: bytes) -> None:
    assert decode(data, LABELS) is None


# ---- keys ---------------------------------------------------------------------------------------


def test_a_key_depends_on_release_caller_text_and_secret_and_on_nothing_else() -> None:
    cache = local()
    key = cache.key("r-1", "chat", "where is my parcel")
    assert re.fullmatch("[0-9a-f]{32}", key)
    assert key == local().key("r-1", "chat", "where is my parcel")
    others = {
        cache.key("r-2", "chat", "where is my parcel"),
        cache.key("r-1", "mail", "where is my parcel"),
        cache.key("r-1", "chat", "where is my parcel?"),
        ResponseCache(CacheConfig(), b"x" * 32).key("r-1", "chat", "where is my parcel"),
    }
    assert len(others | {key}) == 5


def test_a_lone_surrogate_has_a_key() -> None:
    assert local().key("r-1", "chat", "\ud800") != local().key("r-1", "chat", "\ud801")


@given(st.text(max_size=50))
def test_a_key_cannot_be_joined_with_the_audit_log(text: str) -> None:
    assert local().key("", "", text) != TextHasher(KEY)(text)
    assert derive_key(KEY, text).hex() != TextHasher(KEY)(text)


# ---- in process ---------------------------------------------------------------------------------


async def test_answers_come_back_in_order() -> None:
    cache = local()
    cache.put_many([("a", ONE), ("b", TWO)], LABELS)
    assert await cache.get_many(["b", "none", "a", "b"], LABELS) == [TWO, None, ONE, TWO]
    assert await cache.get_many([], LABELS) == []


async def test_the_one_not_asked_for_longest_goes_first() -> None:
    cache = local(CacheConfig(max_entries=2))
    cache.put_many([("a", ONE), ("b", TWO)], LABELS)
    await cache.get_many(["a"], LABELS)
    cache.put_many([("c", TWO)], LABELS)
    assert await cache.get_many(["a", "b", "c"], LABELS) == [ONE, None, TWO]


async def test_answers_end_with_their_time() -> None:
    now = [0.0]
    cache = local(CacheConfig(ttl_s=10), clock=lambda: now[0])
    cache.put_many([("a", ONE)], LABELS)
    now[0] = 9.9
    assert await cache.get_many(["a"], LABELS) == [ONE]
    now[0] = 10.1
    assert await cache.get_many(["a"], LABELS) == [None]


def test_a_hit_in_process_never_gives_up_the_loop() -> None:
    """No await inside suspends: the coroutine ends at its first step, without a loop."""
    cache = local()
    cache.put_many([("a", ONE)], LABELS)
    with pytest.raises(StopIteration) as done:
        cache.get_many(["a", "none"], LABELS).send(None)
    assert done.value.value == [ONE, None]


async def test_switched_off_it_keeps_nothing() -> None:
    cache = make_cache(CacheConfig(enabled=False), KEY, None)
    assert isinstance(cache, NoCache)
    cache.put_many([(cache.key("r", "c", "text"), ONE)], LABELS)
    assert await cache.get_many([cache.key("r", "c", "text")] * 2, LABELS) == [None, None]


@pytest.mark.parametrize("wrong", [{"ttl": 1}, {"ttl_s": 0}, {"max_entries": 0}])
def test_a_wrong_option_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CacheConfig(**wrong)


# ---- with Redis ---------------------------------------------------------------------------------


async def test_routers_share_answers(redis_url: str) -> None:
    async with opened(redis_url) as one, opened(redis_url) as two, raw_redis(redis_url) as raw:
        one.put_many([("a", ONE), ("b", TWO)], LABELS)
        await one.close()
        assert await two.get_many(["b", "none", "a"], LABELS) == [TWO, None, ONE]
        await raw.flushall()
        assert await two.get_many(["a"], LABELS) == [ONE]  # now it has it itself


async def test_redis_forgets_after_its_time(redis_url: str) -> None:
    config = CacheConfig(ttl_s=0.05)
    async with opened(redis_url, config) as one, opened(redis_url) as two:
        one.put_many([("a", ONE)], LABELS)
        await one.close()
        await asyncio.sleep(0.1)
        assert await two.get_many(["a"], LABELS) == [None]


async def test_another_releases_label_is_a_miss(redis_url: str) -> None:
    async with opened(redis_url) as one, opened(redis_url) as two:
        one.put_many([("a", ONE), ("b", replace(ONE, label="positive"))], LABELS)
        await one.close()
        assert await two.get_many(["a", "b"], ("positive",)) == [
            None,
            replace(ONE, label="positive"),
        ]


async def test_a_strangers_values_are_misses(redis_url: str) -> None:
    """Whoever can write to Redis must not decide what is answered."""
    async with opened(redis_url) as one, opened(redis_url) as two, raw_redis(redis_url) as raw:
        one.put_many([("a", ONE), ("b", TWO)], LABELS)
        await one.close()
        moved = await raw.get("firstline:cache:1:a")
        for key, value in {"a": encode(TWO), "b": moved, "c": b"\x80\x04.", "d": b""}.items():
            await raw.set(f"firstline:cache:1:{key}", value)
        assert await two.get_many(["a", "b", "c", "d"], LABELS) == [None] * 4


async def test_nothing_in_redis_tells_the_text(redis_url: str) -> None:
    async with opened(redis_url) as cache, raw_redis(redis_url) as raw:
        text = "where is my parcel from berlin"
        cache.put_many([(cache.key("r-1", "chat", text), ONE)], LABELS)
        await cache.close()
        (name,) = await raw.keys()
        kept = name + await raw.get(name)
        assert not any(word.encode() in kept for word in [*text.split(), "chat", "r-1"])
        assert TextHasher(KEY)(text).encode() not in kept


async def test_redis_killed_in_the_middle_and_back(redis_process: RedisServer) -> None:
    """Every call is answered: from this process, or as a miss."""
    async with opened(redis_process.url) as cache:
        for turn in range(60):
            if turn == 20:
                redis_process.kill()
            if turn == 40:
                redis_process.start()
            key = f"k{turn}"
            assert await cache.get_many([key, "none"], LABELS) == [None, None]
            cache.put_many([(key, ONE)], LABELS)
            assert await cache.get_many([key], LABELS) == [ONE]
        await asyncio.sleep(1.1)  # the first pause
        await cache.get_many(["none"], LABELS)
        cache.put_many([("last", TWO)], LABELS)
        await cache.close()
        async with opened(redis_process.url) as other:
            assert await other.get_many(["last"], LABELS) == [TWO]


async def test_a_flood_of_writes_does_not_pile_up(redis_process: RedisServer) -> None:
    async with opened(redis_process.url) as cache:
        redis_process.freeze()
        before = len(asyncio.all_tasks())
        for turn in range(10_000):
            cache.put_many([(f"k{turn}", ONE)], LABELS)
            if turn % 1000 == 0:
                await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) - before <= 2
        assert len(cache._unwritten) <= 4096
        redis_process.thaw()
        await cache.close()
    async with opened(redis_process.url) as other:
        assert await other.get_many(["k0", "k1"], LABELS) == [ONE, ONE]
