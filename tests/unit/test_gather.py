"""Gatherer: lists across the hop, bounded, and no message harmed by its neighbours."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import ModelOutputError, ServiceError
from serve_app.contracts import Prediction
from serve_app.gather import Gatherer, OverloadedError, TierCall

pytestmark = pytest.mark.anyio


def said(text: str) -> Prediction:
    return Prediction(text, 0.9, 0.8, 0.1, (0.9, 0.1))


class FakeTier:
    """Answers when told to; remembers the lists it was sent."""

    def __init__(self) -> None:
        self.lists: list[list[str]] = []
        self.open = asyncio.Event()
        self.most_at_once = 0
        self._now = 0

    async def __call__(self, texts: list[str]) -> Sequence[Prediction | None]:
        self.lists.append(texts)
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            await self.open.wait()
        finally:
            self._now -= 1
        if "boom" in texts:
            raise RuntimeError("the replica died")
        return [None if text == "poison" else said(text) for text in texts]


def make(call: TierCall, **over: float) -> Gatherer:
    options: dict[str, float] = {
        "max_in_flight": 1,
        "max_batch": 3,
        "max_queued": 8,
        "timeout_s": 5.0,
        **over,
    }
    return Gatherer(call, **options)  # type: ignore[arg-type]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_message_alone_leaves_at_once_and_the_rest_leave_together() -> None:
    tier = FakeTier()
    gatherer = make(tier)
    tasks = [asyncio.create_task(gatherer([text])) for text in "abcde"]
    await settle()
    assert tier.lists == [["a"]]
    tier.open.set()
    answers = await asyncio.gather(*tasks)
    assert tier.lists == [["a"], ["b", "c", "d"], ["e"]]
    assert [one[0] for one in answers] == [said(text) for text in "abcde"]


@settings(max_examples=50, deadline=None)
@given(
    requests=st.lists(
        st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=7), max_size=12
    ),
    in_flight=st.integers(1, 4),
    batch=st.integers(1, 5),
)
def test_every_sender_gets_its_own_answers_in_order(
    requests: list[list[str]], in_flight: int, batch: int
) -> None:
    async def check() -> None:
        tier = FakeTier()
        gatherer = make(tier, max_in_flight=in_flight, max_batch=batch, max_queued=1000)
        tasks = [asyncio.create_task(gatherer(texts)) for texts in requests]
        await settle()
        tier.open.set()
        for texts, task in zip(requests, tasks, strict=True):
            assert await task == [said(text) for text in texts]
        assert tier.most_at_once <= in_flight
        assert all(len(texts) <= batch for texts in tier.lists)

    asyncio.run(check())


async def test_a_full_queue_refuses_whole_requests_and_takes_nothing_of_them() -> None:
    tier = FakeTier()
    gatherer = make(tier, max_queued=4)
    first = asyncio.create_task(gatherer(["a"]))
    await settle()
    waiting = asyncio.create_task(gatherer(["b", "c", "d"]))
    await settle()
    with pytest.raises(OverloadedError, match="at most 4"):
        await gatherer(["e", "f"])
    tier.open.set()
    assert await first == [said("a")]
    assert await waiting == [said("b"), said("c"), said("d")]
    assert tier.lists == [["a"], ["b", "c", "d"]]


async def test_a_poisoned_message_does_not_harm_its_neighbours() -> None:
    tier = FakeTier()
    tier.open.set()
    good, bad, also_good = await make(tier)(["a", "poison", "b"])
    assert (good, also_good) == (said("a"), said("b"))
    assert isinstance(bad, ModelOutputError)


async def test_a_failed_call_reaches_all_its_senders_and_nobody_else() -> None:
    tier = FakeTier()
    gatherer = make(tier)
    first = asyncio.create_task(gatherer(["a"]))
    await settle()
    failing = [asyncio.create_task(gatherer([text])) for text in ("boom", "b", "c")]
    later = asyncio.create_task(gatherer(["d"]))
    await settle()
    tier.open.set()
    assert await first == [said("a")]
    for task in failing:
        assert isinstance((await task)[0], RuntimeError)
    assert await later == [said("d")]


async def test_a_client_that_leaves_disturbs_nobody_and_costs_no_call() -> None:
    tier = FakeTier()
    gatherer = make(tier)
    stays = asyncio.create_task(gatherer(["a"]))
    await settle()
    leaves = asyncio.create_task(gatherer(["b"]))
    also_stays = asyncio.create_task(gatherer(["c"]))
    await settle()
    leaves.cancel()
    await settle()
    tier.open.set()
    assert await stays == [said("a")]
    assert await also_stays == [said("c")]
    assert tier.lists == [["a"], ["c"]]


async def test_messages_of_clients_that_left_do_not_keep_the_queue_full() -> None:
    tier = FakeTier()
    gatherer = make(tier, max_queued=3)
    first = asyncio.create_task(gatherer(["a"]))
    await settle()
    leaves = asyncio.create_task(gatherer(["b", "c", "d"]))
    await settle()
    leaves.cancel()
    await settle()
    task = asyncio.create_task(gatherer(["e"]))
    await settle()
    tier.open.set()
    assert await task == [said("e")]
    await first


async def test_a_tier_that_hangs_gives_timeouts_and_frees_its_slot() -> None:
    tier = FakeTier()
    gatherer = make(tier, timeout_s=0.05)
    hanging = await asyncio.gather(gatherer(["a"]), gatherer(["b"]))
    assert all(isinstance(outcome[0], TimeoutError) for outcome in hanging)
    tier.open.set()
    assert await gatherer(["c"]) == [said("c")]


async def test_a_call_that_ray_cancels_is_a_failure_not_the_end() -> None:
    calls = 0

    async def cancelled_once(texts: list[str]) -> list[Prediction | None]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise asyncio.CancelledError
        return [said(text) for text in texts]

    gatherer = make(cancelled_once)
    assert isinstance((await gatherer(["a"]))[0], ServiceError)
    assert await gatherer(["b"]) == [said("b")]


async def test_a_short_answer_is_refused_for_all() -> None:
    async def short(texts: list[str]) -> list[Prediction | None]:
        return [said(texts[0])]

    outcomes = await make(short)(["a", "b"])
    assert all(isinstance(outcome, ServiceError) for outcome in outcomes)
