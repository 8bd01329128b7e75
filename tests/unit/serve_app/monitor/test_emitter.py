"""The router's side of the monitor: never in the way of an answer, honest about what it drops."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from cluster.audit.records import FeedbackRecord, Record
from serve_app.monitor.emitter import MetricsEmitter, Send


def records(first: int, count: int) -> list[Record]:
    return [FeedbackRecord(f"id-{i}", float(i), "x") for i in range(first, first + count)]


class Monitor:
    """Takes batches as the actor would; can be slow, hang or be away."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.away = False
        self.delay_s = 0.0
        self.resolved = 0
        self.calls_out = 0
        self.most_calls_out = 0

    def resolve(self) -> Send:
        self.resolved += 1
        if self.away:
            raise ValueError("no actor of that name")
        return self.take

    async def take(self, batch: list[Record]) -> None:
        self.calls_out += 1
        self.most_calls_out = max(self.most_calls_out, self.calls_out)
        try:
            await asyncio.sleep(self.delay_s)
            if self.away:
                raise ConnectionError("the actor died")
            self.batches.append([record.id for record in batch])
        finally:
            self.calls_out -= 1

    @property
    def ids(self) -> list[str]:
        return [record_id for batch in self.batches for record_id in batch]


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.005)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def ids(first: int, count: int) -> list[str]:
    return [record.id for record in records(first, count)]


def test_small_emits_leave_as_one_batch_after_the_interval() -> None:
    async def test() -> None:
        monitor = Monitor()
        emitter = MetricsEmitter(monitor.resolve, flush_interval_s=0.05)
        for i in range(5):
            emitter.emit(records(i, 1))
        assert monitor.batches == []
        await until(lambda: bool(monitor.batches))
        assert monitor.batches == [ids(0, 5)]
        await emitter.drain()

    run(test())


def test_a_full_batch_does_not_wait_and_none_is_larger() -> None:
    async def test() -> None:
        monitor = Monitor()
        emitter = MetricsEmitter(monitor.resolve, flush_interval_s=60, batch_size=10)
        emitter.emit(records(0, 25))
        await until(lambda: len(monitor.ids) == 20)
        assert [len(batch) for batch in monitor.batches] == [10, 10]
        await emitter.drain()
        assert monitor.ids == ids(0, 25)

    run(test())


def test_one_call_at_a_time_and_emit_never_waits_for_it() -> None:
    async def test() -> None:
        monitor = Monitor()
        monitor.delay_s = 0.02
        emitter = MetricsEmitter(monitor.resolve, flush_interval_s=0.001, batch_size=3)
        for i in range(30):
            emitter.emit(records(i, 1))
            await asyncio.sleep(0.001)
        await emitter.drain()
        assert monitor.most_calls_out == 1
        assert monitor.ids == ids(0, 30)
        assert emitter.dropped == 0

    run(test())


def test_a_monitor_that_died_is_found_again_and_gets_what_it_missed() -> None:
    async def test() -> None:
        monitor = Monitor()
        emitter = MetricsEmitter(monitor.resolve, flush_interval_s=0.01)
        emitter.emit(records(0, 3))
        await until(lambda: len(monitor.ids) == 3)
        monitor.away = True
        emitter.emit(records(3, 3))
        await until(lambda: monitor.resolved >= 3)
        assert emitter.pending == 3
        monitor.away = False
        await until(lambda: len(monitor.ids) == 6)
        assert monitor.ids == ids(0, 6)
        assert emitter.dropped == 0
        await emitter.drain()

    run(test())


def test_while_the_monitor_is_away_the_newest_are_kept_and_the_rest_counted() -> None:
    async def test() -> None:
        monitor = Monitor()
        monitor.away = True
        emitter = MetricsEmitter(monitor.resolve, flush_interval_s=0.01, batch_size=10, keep=20)
        for i in range(0, 100, 5):
            emitter.emit(records(i, 5))
            await asyncio.sleep(0.002)
            assert emitter.pending <= 20 + 10  # a batch may be out
        monitor.away = False
        await until(lambda: emitter.pending == 0)
        assert monitor.ids[-20:] == ids(80, 20)
        assert len(monitor.ids) + emitter.dropped == 100
        await emitter.drain()

    run(test())


def test_an_absent_monitor_is_not_hammered() -> None:
    async def test() -> None:
        monitor = Monitor()
        monitor.away = True
        emitter = MetricsEmitter(monitor.resolve, flush_interval_s=0.05, batch_size=2)
        for i in range(100):
            emitter.emit(records(i, 2))
            await asyncio.sleep(0.002)
        tries = monitor.resolved
        assert 1 <= tries <= 20
        await emitter.drain(timeout_s=0.3)
        assert monitor.resolved - tries <= 8
        assert emitter.dropped == 200

    run(test())


def test_a_call_that_hangs_is_given_up_and_its_batch_sent_again() -> None:
    async def test() -> None:
        monitor = Monitor()
        monitor.delay_s = 60
        emitter = MetricsEmitter(monitor.resolve, flush_interval_s=0.01, call_timeout_s=0.05)
        emitter.emit(records(0, 2))
        await until(lambda: monitor.resolved >= 2)
        monitor.delay_s = 0
        await until(lambda: monitor.ids == ids(0, 2))
        await emitter.drain()

    run(test())


def test_draining_a_hanging_monitor_ends_in_time_and_counts() -> None:
    async def test() -> None:
        monitor = Monitor()
        monitor.delay_s = 60
        emitter = MetricsEmitter(monitor.resolve, flush_interval_s=0.01)
        emitter.emit(records(0, 7))
        await until(lambda: monitor.calls_out == 1)
        start_s = time.monotonic()
        await emitter.drain(timeout_s=0.1)
        assert time.monotonic() - start_s < 2
        assert (emitter.dropped, emitter.pending) == (7, 0)
        emitter.emit(records(7, 1))
        assert (emitter.dropped, emitter.pending) == (8, 0)

    run(test())


def test_draining_an_unused_emitter_is_nothing() -> None:
    async def test() -> None:
        monitor = Monitor()
        await MetricsEmitter(monitor.resolve).drain()
        assert monitor.resolved == 0

    run(test())


def test_a_slow_look_up_does_not_block_the_event_loop() -> None:
    async def test() -> None:
        monitor = Monitor()

        def resolve() -> Send:
            time.sleep(0.3)
            return monitor.resolve()

        emitter = MetricsEmitter(resolve, flush_interval_s=0.001)
        emitter.emit(records(0, 1))
        longest_s, last_s = 0.0, time.monotonic()
        while not monitor.batches:
            await asyncio.sleep(0.001)
            longest_s = max(longest_s, time.monotonic() - last_s)
            last_s = time.monotonic()
        assert longest_s < 0.25
        await emitter.drain()

    run(test())
