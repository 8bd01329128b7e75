"""Batcher: lists across a call, bounded, and no message harmed by its neighbours."""

import asyncio
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import ModelOutputError, ServiceError
from serve_app.contracts import Prediction, TierCall, packed
from serve_app.deploy.config import TierConfig
from serve_app.errors import DeadlineError, OverloadedError
from serve_app.request_limits import MAX_TEXTS
from serve_app.tiers.batching import MAX_QUEUED, WORTH_A_CALL, Batcher
from serve_app.tiers.service_rate import ServiceRate

pytestmark = pytest.mark.anyio


def said(text: str) -> Prediction:
    return Prediction(text, 0.9, 0.8, 0.1, packed(0.9, 0.1))


class FakeTier:
    """Answers when told to; remembers the lists it was sent."""

    def __init__(self) -> None:
        self.lists: list[list[str]] = []
        self.budgets_s: list[float] = []
        self.open = asyncio.Event()
        self.most_at_once = 0
        self._now = 0

    async def __call__(self, texts: list[str], budget_s: float) -> Sequence[Prediction | None]:
        self.lists.append(texts)
        self.budgets_s.append(budget_s)
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            await self.open.wait()
        finally:
            self._now -= 1
        if "boom" in texts:
            raise RuntimeError("the replica died")
        return [None if text == "poison" else said(text) for text in texts]


def make(call: TierCall, **over: float) -> Batcher:
    options: dict[str, float] = {
        "max_in_flight": 1,
        "max_batch": 3,
        "max_queued": 8,
        "timeout_s": 5.0,
        "worth_a_call": 0,
        **over,
    }
    return Batcher(call, **options)  # type: ignore[arg-type]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_message_alone_leaves_at_once_and_the_rest_leave_together() -> None:
    tier = FakeTier()
    batcher = make(tier)
    tasks = [asyncio.create_task(batcher([text])) for text in "abcde"]
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
        batcher = make(tier, max_in_flight=in_flight, max_batch=batch, max_queued=1000)
        tasks = [asyncio.create_task(batcher(texts)) for texts in requests]
        await settle()
        tier.open.set()
        for texts, task in zip(requests, tasks, strict=True):
            assert await task == [said(text) for text in texts]
        assert tier.most_at_once <= in_flight
        assert all(len(texts) <= batch for texts in tier.lists)

    asyncio.run(check())


async def test_a_full_queue_refuses_whole_requests_and_takes_nothing_of_them() -> None:
    tier = FakeTier()
    batcher = make(tier, max_queued=4)
    first = asyncio.create_task(batcher(["a"]))
    await settle()
    waiting = asyncio.create_task(batcher(["b", "c", "d"]))
    await settle()
    batcher.check(1)
    with pytest.raises(OverloadedError, match="at most 4"):
        batcher.check(2)
    with pytest.raises(OverloadedError, match="at most 4"):
        await batcher(["e", "f"])
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
    batcher = make(tier)
    first = asyncio.create_task(batcher(["a"]))
    await settle()
    failing = [asyncio.create_task(batcher([text])) for text in ("boom", "b", "c")]
    later = asyncio.create_task(batcher(["d"]))
    await settle()
    tier.open.set()
    assert await first == [said("a")]
    for task in failing:
        assert isinstance((await task)[0], RuntimeError)
    assert await later == [said("d")]


async def test_a_client_that_leaves_disturbs_nobody_and_costs_no_call() -> None:
    tier = FakeTier()
    batcher = make(tier)
    stays = asyncio.create_task(batcher(["a"]))
    await settle()
    leaves = asyncio.create_task(batcher(["b"]))
    also_stays = asyncio.create_task(batcher(["c"]))
    await settle()
    leaves.cancel()
    await settle()
    tier.open.set()
    assert await stays == [said("a")]
    assert await also_stays == [said("c")]
    assert tier.lists == [["a"], ["c"]]


async def test_messages_of_clients_that_left_do_not_keep_the_queue_full() -> None:
    tier = FakeTier()
    batcher = make(tier, max_queued=3)
    first = asyncio.create_task(batcher(["a"]))
    await settle()
    leaves = asyncio.create_task(batcher(["b", "c", "d"]))
    await settle()
    leaves.cancel()
    await settle()
    task = asyncio.create_task(batcher(["e"]))
    await settle()
    tier.open.set()
    assert await task == [said("e")]
    await first


async def test_a_tier_that_hangs_gives_timeouts_and_frees_its_slot() -> None:
    tier = FakeTier()
    batcher = make(tier, timeout_s=0.05)
    hanging = await asyncio.gather(batcher(["a"]), batcher(["b"]))
    assert all(isinstance(outcome[0], TimeoutError) for outcome in hanging)
    tier.open.set()
    assert await batcher(["c"]) == [said("c")]


async def test_a_call_that_ray_cancels_is_a_failure_not_the_end() -> None:
    calls = 0

    async def cancelled_once(texts: list[str], budget_s: float) -> list[Prediction | None]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise asyncio.CancelledError
        return [said(text) for text in texts]

    batcher = make(cancelled_once)
    assert isinstance((await batcher(["a"]))[0], ServiceError)
    assert await batcher(["b"]) == [said("b")]


async def test_a_short_answer_is_refused_for_all() -> None:
    async def short(texts: list[str], budget_s: float) -> list[Prediction | None]:
        return [said(texts[0])]

    outcomes = await make(short)(["a", "b"])
    assert all(isinstance(outcome, ServiceError) for outcome in outcomes)


async def test_a_tier_that_hangs_is_to_blame_and_a_hasty_caller_is_not() -> None:
    tier = FakeTier()
    patient, hasty, gone = await asyncio.gather(
        make(tier, timeout_s=0.05)(["a"]),
        make(tier)(["b"], timeout_s=0.05),
        make(tier)(["c"], timeout_s=0.0),
    )
    assert type(patient[0]) is TimeoutError
    assert type(hasty[0]) is DeadlineError
    assert type(gone[0]) is DeadlineError
    assert ["c"] not in tier.lists


async def test_a_call_is_told_how_long_its_most_patient_message_waits() -> None:
    tier = FakeTier()
    batcher = make(tier)
    first = asyncio.create_task(batcher(["a"], timeout_s=0.5))
    await settle()
    waiting = [
        asyncio.create_task(batcher([text], timeout_s=s)) for text, s in (("b", 1), ("c", 9))
    ]
    await settle()
    tier.open.set()
    await asyncio.gather(first, *waiting)
    assert tier.lists == [["a"], ["b", "c"]]
    assert tier.budgets_s == pytest.approx([0.5, 5.0], abs=0.05)  # the tier's own time is 5 s


async def test_a_hasty_caller_does_not_cut_its_neighbours_call_short() -> None:
    tier = FakeTier()
    batcher = make(tier)
    first = asyncio.create_task(batcher(["a"]))
    await settle()
    hasty = asyncio.create_task(batcher(["b"], timeout_s=0.02))
    patient = asyncio.create_task(batcher(["c"]))
    await settle()
    assert isinstance((await hasty)[0], DeadlineError)
    tier.open.set()
    assert (await first, await patient) == ([said("a")], [said("c")])


async def test_a_list_that_is_part_late_brings_what_there_is() -> None:
    async def slow_from_c(texts: list[str], budget_s: float) -> list[Prediction]:
        await asyncio.sleep(60 if "c" in texts else 0)
        return [said(text) for text in texts]

    outcomes = await make(slow_from_c, max_batch=1, timeout_s=0.05)(["a", "b", "c", "d"])
    assert outcomes[:2] == [said("a"), said("b")]
    assert all(type(outcome) is TimeoutError for outcome in outcomes[2:])


async def test_a_message_does_not_wait_for_a_list_that_came_before() -> None:
    tier = FakeTier()
    batcher = make(tier, max_batch=16, max_queued=1000)
    first = asyncio.create_task(batcher(["first"]))
    await settle()
    long = asyncio.create_task(batcher(["long"] * 40))
    short = asyncio.create_task(batcher(["short"]))
    await settle()
    tier.open.set()
    await asyncio.gather(first, long, short)
    assert "short" in tier.lists[1]
    assert [len(texts) for texts in tier.lists] == [1, 16, 16, 9]


async def test_lists_are_finished_in_the_order_in_which_they_came() -> None:
    """Turns between them would make all of them as slow as the last."""
    tier = FakeTier()
    batcher = make(tier, max_batch=16, max_queued=1000)
    first = asyncio.create_task(batcher(["first"]))
    await settle()
    lists = [asyncio.create_task(batcher([name] * 40)) for name in "abc"]
    await settle()
    tier.open.set()
    await asyncio.gather(first, *lists)
    sent = [text for texts in tier.lists for text in texts]
    last = [len(sent) - 1 - sent[::-1].index(name) for name in "abc"]
    assert last == sorted(last)
    assert last[0] < 60, "of 120 messages"


async def test_beside_lists_and_a_flood_of_messages_each_has_half_of_a_call() -> None:
    tier = FakeTier()
    batcher = make(tier, max_batch=16, max_queued=1000)
    first = asyncio.create_task(batcher(["first"]))
    await settle()
    long = asyncio.create_task(batcher(["long"] * 40))
    flood = [asyncio.create_task(batcher(["short"])) for _ in range(200)]
    await settle()
    tier.open.set()
    await long
    shares = [texts.count("long") for texts in tier.lists[2:6]]
    assert shares == [8, 8, 8, 8]
    await asyncio.gather(first, *flood)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(2, 9))
def test_what_is_counted_as_waiting_is_what_waits(sizes: list[int], max_batch: int) -> None:
    """Also after clients have left, with lists that are new, begun, and out."""

    def counted(batcher: Batcher) -> None:
        new, begun = list(batcher._new), list(batcher._begun)
        assert batcher._queued == sum(one.unsent for one in (*new, *begun))
        assert batcher._first == sum(one.first for one in new)
        assert all(one.first and not other.first for one in new for other in begun)

    async def story() -> None:
        tier = FakeTier()
        batcher = make(tier, max_batch=max_batch, max_queued=1000)
        tasks = [asyncio.create_task(batcher(["text"] * size)) for size in sizes]
        await settle()
        counted(batcher)
        for task in tasks[::2]:
            task.cancel()
        await settle()
        counted(batcher)
        tier.open.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        counted(batcher)
        assert batcher.waiting == 0

    asyncio.run(story())


async def test_a_request_that_fits_only_in_part_is_not_sent_behind_the_lists() -> None:
    tier = FakeTier()
    batcher = make(tier, max_batch=24, max_queued=1000)
    first = asyncio.create_task(batcher(["first"]))
    await settle()
    lists = [asyncio.create_task(batcher(["long"] * 100)) for _ in range(4)]
    few = [asyncio.create_task(batcher([name] * 8)) for name in "ab"]
    await settle()
    tier.open.set()
    await asyncio.gather(*few)
    sent = [text for texts in tier.lists for text in texts]
    assert sent.index("b") < sent.index("long") + 60
    assert len(sent) - sent[::-1].index("b") < 150, "of 417 messages"
    await asyncio.gather(first, *lists)


# ---- admission, in simulated time ---------------------------------------------------------------


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on which waiting takes no time: the clock jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        selector: Any = self._selector  # type: ignore[attr-defined]
        select = selector.select

        def jump(timeout_s: float | None = None) -> Any:
            assert timeout_s is not None, "everything waits for something that never comes"
            self._now_s += timeout_s
            return select(0)

        selector.select = jump

    def time(self) -> float:
        return self._now_s


class Replicas:
    """A tier as it is: each replica runs one list at a time, and the hop costs something."""

    def __init__(self, per_message_s: float, replicas: int = 2, hop_s: float = 0.004) -> None:
        self.per_message_s = per_message_s
        self._hop_s = hop_s
        self._locks = [asyncio.Lock() for _ in range(replicas)]
        self._held = [0] * replicas

    async def __call__(self, texts: list[str], budget_s: float) -> list[Prediction]:
        chosen = self._held.index(min(self._held))
        self._held[chosen] += 1
        try:
            await asyncio.sleep(self._hop_s)
            async with self._locks[chosen]:
                await asyncio.sleep(self.per_message_s * len(texts))
        finally:
            self._held[chosen] -= 1
        return [said(text) for text in texts]


T = TypeVar("T")

CAPACITY = 625.0  # messages per second of two replicas at 3.2 ms


@dataclass
class Seen:
    """What clients saw: seconds from request to answer, by the time of the request."""

    answered_s: list[tuple[float, float]] = field(default_factory=list)
    refused_s: list[tuple[float, float]] = field(default_factory=list)
    retry_after_s: list[float] = field(default_factory=list)
    late: int = 0
    messages: Counter[str] = field(default_factory=Counter)

    def p99_s(self, since_s: float = 0.0) -> float:
        lasted = sorted(lasted for at, lasted in self.answered_s if at >= since_s)
        return lasted[math.ceil(0.99 * len(lasted)) - 1]

    def share_refused(self, since_s: float = 0.0, until_s: float = math.inf) -> float:
        refused = sum(since_s <= at < until_s for at, _ in self.refused_s)
        return refused / (refused + sum(since_s <= at < until_s for at, _ in self.answered_s))


def simulate(story: Callable[[], Awaitable[T]]) -> T:
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(asyncio.ensure_future(story(), loop=loop))
    finally:
        loop.close()


def ready(tier: TierCall, worth_a_call: int = 0) -> Batcher:
    """As a service has it by default, but for `worth_a_call`."""
    default = TierConfig()
    return Batcher(
        tier,
        max_in_flight=default.max_in_flight,
        timeout_s=default.timeout_s,
        worth_a_call=worth_a_call,
    )


async def ask(batcher: Batcher, size: int, seen: Seen) -> None:
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    try:
        outcomes = await batcher(["text"] * size)
    except OverloadedError as error:
        seen.refused_s.append((start_s, loop.time() - start_s))
        seen.retry_after_s.append(error.retry_after_s)
        seen.messages["refused"] += size
        return
    assert all(isinstance(outcome, Prediction | TimeoutError) for outcome in outcomes)
    seen.late += any(isinstance(outcome, TimeoutError) for outcome in outcomes)
    seen.answered_s.append((start_s, loop.time() - start_s))
    seen.messages["answered"] += size


async def load(
    batcher: Batcher, seen: Seen, *, per_s: float, for_s: float, sizes: Sequence[int] = (1,)
) -> None:
    """Poisson arrivals, open loop, of `per_s` messages a second."""
    draw, loop = random.Random(7), asyncio.get_running_loop()
    until_s, tasks = loop.time() + for_s, []
    requests_per_s = per_s * len(sizes) / sum(sizes)
    while loop.time() < until_s:
        await asyncio.sleep(draw.expovariate(requests_per_s))
        tasks.append(asyncio.create_task(ask(batcher, draw.choice(sizes), seen)))
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("sizes", [(1,), (64,), (1, 1, 1, 1, 1, 8, 64, 256)])
@pytest.mark.parametrize("worth_a_call", [0, WORTH_A_CALL])
def test_at_three_times_the_capacity_what_is_accepted_stays_quick(
    sizes: Sequence[int], worth_a_call: int
) -> None:
    async def story() -> Seen:
        seen = Seen()
        tier = ready(Replicas(2 / CAPACITY), worth_a_call)
        await load(tier, seen, per_s=3 * CAPACITY, for_s=10, sizes=sizes)
        return seen

    seen = simulate(story)
    assert seen.p99_s() < 1.0
    assert 0.5 < seen.messages["refused"] / seen.messages.total() < 0.75
    assert seen.late == 0
    assert all(lasted == 0.0 for _, lasted in seen.refused_s)
    assert all(0.0 < retry_s < 2.0 for retry_s in seen.retry_after_s)


@pytest.mark.parametrize("worth_a_call", [0, WORTH_A_CALL])
@pytest.mark.parametrize(
    ("few", "few_share", "lists", "lists_share"),
    [
        (1, 0.05, (64, 256), 2.95),
        (1, 0.4, (64,), 2.6),
        (1, 0.6, (64,), 2.4),
        (5, 0.4, (64, 256), 2.6),
        (8, 0.3, (64, 256), 2.7),
    ],
)
def test_what_overload_has_no_room_for_is_the_lists(
    few: int, few_share: float, lists: Sequence[int], lists_share: float, worth_a_call: int
) -> None:
    """Where short requests alone would have room, they have it; and no accepted list is late."""

    async def story() -> tuple[Seen, Seen]:
        short, long = Seen(), Seen()
        tier = ready(Replicas(2 / CAPACITY), worth_a_call)
        await asyncio.gather(
            load(tier, short, per_s=few_share * CAPACITY, for_s=20, sizes=(few,)),
            load(tier, long, per_s=lists_share * CAPACITY, for_s=20, sizes=lists),
        )
        return short, long

    short, long = simulate(story)
    assert short.share_refused() == 0.0
    assert short.p99_s() < 0.5
    assert 0.3 < long.share_refused() < 0.95
    assert long.p99_s() < 1.0


def test_a_list_that_its_client_would_not_wait_for_is_refused_at_once() -> None:
    async def client(batcher: Batcher, size: int, timeout_s: float, late: list[bool]) -> None:
        with suppress(OverloadedError):
            outcomes = await batcher(["text"] * size, timeout_s)
            late.append(any(isinstance(outcome, TimeoutError) for outcome in outcomes))

    async def story() -> list[bool]:
        late: list[bool] = []
        batcher = ready(Replicas(2 / CAPACITY))
        seen = Seen()
        background = asyncio.create_task(load(batcher, seen, per_s=0.9 * CAPACITY, for_s=10))
        await asyncio.sleep(2.0)
        for _ in repeat(None, 20):  # 256 messages take 0.4 s alone
            await asyncio.gather(client(batcher, 256, 0.3, late), asyncio.sleep(0.3))
        await background
        return late

    assert sum(simulate(story)) <= 3, "those that came while next to nothing waited"


def test_overload_costs_no_throughput_and_is_over_when_the_load_is() -> None:
    async def story() -> Seen:
        seen = Seen()
        batcher = ready(Replicas(2 / CAPACITY))
        await load(batcher, seen, per_s=3 * CAPACITY, for_s=10)
        await load(batcher, seen, per_s=0.5 * CAPACITY, for_s=5)
        return seen

    seen = simulate(story)
    overloaded = sum(at < 10 for at, _ in seen.answered_s)
    assert overloaded > 0.9 * 10 * CAPACITY
    assert seen.share_refused(since_s=11) == 0.0
    assert seen.p99_s(since_s=11) < 0.05


@pytest.mark.parametrize("load_share", [0.3, 0.9])
def test_below_the_capacity_nothing_is_refused(load_share: float) -> None:
    async def story() -> Seen:
        seen = Seen()
        await load(ready(Replicas(2 / CAPACITY)), seen, per_s=load_share * CAPACITY, for_s=20)
        return seen

    seen = simulate(story)
    assert not seen.refused_s


def test_admission_follows_the_capacity_within_a_second() -> None:
    async def story() -> Seen:
        seen, tier = Seen(), Replicas(2 / CAPACITY)
        batcher = ready(tier)
        await load(batcher, seen, per_s=0.9 * CAPACITY, for_s=5)
        tier.per_message_s *= 4  # a neighbour on the machine
        await load(batcher, seen, per_s=0.9 * CAPACITY, for_s=5)
        tier.per_message_s /= 4
        await load(batcher, seen, per_s=0.9 * CAPACITY, for_s=5)
        return seen

    seen = simulate(story)
    assert seen.share_refused(until_s=5) == 0.0
    slow_s = [lasted for at, lasted in seen.answered_s if 7 <= at < 10]
    assert max(slow_s) < 1.0
    assert seen.share_refused(since_s=12) == 0.0


def test_a_tier_that_was_almost_dead_is_used_again() -> None:
    """Regression: a rate of one message a second admitted so little that no slot ever filled up,
    and a rate learned only from full slots stayed at one for ever."""

    async def story() -> Seen:
        seen, tier = Seen(), Replicas(1.0)
        batcher = ready(tier)
        await load(batcher, seen, per_s=20, for_s=5)
        tier.per_message_s = 2 / CAPACITY
        await load(batcher, seen, per_s=0.5 * CAPACITY, for_s=10)
        return seen

    seen = simulate(story)
    end_s = seen.answered_s[-1][0]
    assert seen.share_refused(since_s=end_s - 8) == 0.0


def test_eight_clients_with_lists_that_wait_for_their_answers_are_not_refused() -> None:
    """Each sends 64 texts at once, so 512 messages are on hand, which take 0.6 s."""

    async def client(batcher: Batcher, seen: Seen) -> None:
        for _ in repeat(None, 20):
            await ask(batcher, 64, seen)

    async def story() -> Seen:
        seen = Seen()
        batcher = ready(Replicas(2 / 850.0))
        await asyncio.gather(*(client(batcher, seen) for _ in range(8)))
        return seen

    assert not simulate(story).refused_s


def test_a_long_list_is_not_refused_for_its_own_length() -> None:
    async def story() -> Seen:
        seen = Seen()
        batcher = ready(Replicas(0.02))  # 256 texts take 2.6 s
        for size in (256, 1, 256):
            await ask(batcher, size, seen)
        return seen

    assert not simulate(story).refused_s


def test_clients_with_long_lists_crowd_nobody_out() -> None:
    async def client(batcher: Batcher, size: int, pause_s: float, seen: Seen) -> None:
        for _ in repeat(None, 50):
            await ask(batcher, size, seen)
            await asyncio.sleep(pause_s)

    async def story() -> Seen:
        long, short = Seen(), Seen()
        batcher = ready(Replicas(2 / CAPACITY))
        await asyncio.gather(
            *(client(batcher, 256, 0.0, long) for _ in range(2)),
            *(client(batcher, 1, 0.1, short) for _ in range(8)),
        )
        return short

    seen = simulate(story)
    assert not seen.refused_s
    assert seen.p99_s() < 0.3  # a list of 256 takes 0.8 s beside another


def test_a_rate_is_unknown_until_the_tier_was_full_for_a_while() -> None:
    rate = ServiceRate()
    rate.finished(1, 0.004, 1.0)
    assert rate.per_s is None
    rate.saturated(2.0)
    rate.finished(5, 0.05, 2.05)
    assert rate.per_s is None
    rate.finished(10, 0.1, 2.15)
    assert rate.per_s == pytest.approx(100, rel=0.2)


def test_free_slots_show_what_a_tier_can_do_at_least() -> None:
    rate = ServiceRate()
    rate.saturated(0.0)
    rate.finished(100, 1.0, 1.0)
    rate.freed()
    rate.finished(1, 0.1, 5.0)  # ten a second, alone: says nothing
    assert rate.per_s == pytest.approx(100)
    rate.finished(200, 1.0, 9.0)
    assert rate.per_s is not None
    assert rate.per_s > 150


async def test_beside_a_call_that_is_out_only_what_is_worth_a_hop_leaves() -> None:
    tier = FakeTier()
    batcher = make(tier, max_in_flight=3, max_batch=8, worth_a_call=2)
    tasks = [asyncio.create_task(batcher([text])) for text in "abcdef"]
    await settle()
    assert tier.lists == [["a"], ["b", "c"]], "two calls are out, and four are not waiting"
    tier.open.set()
    answers = await asyncio.gather(*tasks)
    assert [one[0] for one in answers] == [said(text) for text in "abcdef"]


async def test_what_waits_to_be_worth_a_call_is_no_sign_of_a_slow_tier() -> None:
    """Two clients with a message each, one after another, and then a burst that the tier can do."""

    async def tier(texts: list[str], budget_s: float) -> Sequence[Prediction | None]:
        await asyncio.sleep(0.02)  # for one as for many
        return [said(text) for text in texts]

    batcher = make(tier, max_in_flight=4, max_batch=64, max_queued=2048, worth_a_call=16)

    async def ask(first_s: float) -> None:
        await asyncio.sleep(first_s)
        for _ in range(20):
            await batcher(["a"])
            await asyncio.sleep(0.01)

    await asyncio.gather(ask(0.0), ask(0.01))
    answers = await asyncio.gather(*(batcher(["a"] * 100) for _ in range(4)))
    assert [len(one) for one in answers] == [100] * 4


def test_the_queue_of_a_tier_takes_at_least_one_whole_request() -> None:
    assert MAX_QUEUED >= MAX_TEXTS
