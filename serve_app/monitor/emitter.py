"""MetricsEmitter: a router's side of the monitor. Nothing here waits on the request path."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from cluster.audit.records import Record

log = logging.getLogger(__name__)

Send = Callable[[list[Record]], Awaitable[Any]]


class MetricsEmitter:
    """Hands a router's records to the monitor, off the request path; lives on one event loop.

    A batch goes out every `flush_interval_s`, or as soon as `batch_size` records wait, one call at
    a time. While the monitor is away the newest `keep` records wait and older ones are dropped and
    counted: they are in the audit log already, which is where the monitor finds them again.

    Args:
        resolve: finds the monitor, and gives what sends it a batch; called again after a failure,
            in a thread, since a look-up may block.
    """

    def __init__(
        self,
        resolve: Callable[[], Send],
        *,
        flush_interval_s: float = 0.5,
        batch_size: int = 500,
        keep: int = 20_000,
        call_timeout_s: float = 5.0,
    ) -> None:
        self._resolve = resolve
        self._flush_interval_s = flush_interval_s
        self._batch_size = batch_size
        self._keep = keep
        self._call_timeout_s = call_timeout_s
        self._send: Send | None = None
        self._waiting: deque[Record] = deque()
        self._in_flight: list[Record] = []
        self._wake = asyncio.Event()
        self._draining = False
        self._failing = False
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0

    @property
    def pending(self) -> int:
        """Records that the monitor has not confirmed yet."""
        return len(self._waiting) + len(self._in_flight)

    def emit(self, records: Sequence[Record]) -> None:
        """Keeps the records and returns at once. Call it on the event loop."""
        if self._draining:
            self.dropped += len(records)
            return
        self._waiting.extend(records)
        self._drop_oldest()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        if len(self._waiting) >= self._batch_size:
            self._wake.set()

    async def drain(self, timeout_s: float = 5.0) -> None:
        """Sends what waits, then stops; what is left after `timeout_s` is dropped and counted."""
        self._draining = True
        self._wake.set()
        if self._task is not None:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._task, timeout_s)
            self._task = None
        self.dropped += self.pending
        self._waiting.clear()
        self._in_flight = []

    async def _run(self) -> None:
        while not (self._draining and not self.pending):
            if self._failing or len(self._waiting) < self._batch_size:
                await self._pause()
            await self._flush()

    async def _pause(self) -> None:
        """Until the interval is over, a batch is full, or `drain` is called."""
        if self._failing:  # neither a full buffer nor a drain may hurry an absent monitor
            await asyncio.sleep(self._flush_interval_s)
        elif not self._draining:
            self._wake.clear()  # set by a full batch that has left since
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._flush_interval_s)

    async def _flush(self) -> None:
        """One batch, out of `_waiting` until it is confirmed or put back."""
        size = min(self._batch_size, len(self._waiting))
        if not size:
            return
        self._in_flight = [self._waiting.popleft() for _ in range(size)]
        try:
            await asyncio.wait_for(self._deliver(self._in_flight), self._call_timeout_s)
        except Exception as error:  # noqa: BLE001 - open on failure: metrics never stop an answer
            self._put_back(error)
        else:
            if self._failing:
                log.warning("The monitor is back; dropped since the start: %d.", self.dropped)
            self._failing = False
            self._in_flight = []

    async def _deliver(self, batch: list[Record]) -> None:
        if self._send is None:
            self._send = await asyncio.to_thread(self._resolve)
        await self._send(batch)

    def _put_back(self, error: Exception) -> None:
        if not self._failing:
            log.warning("The monitor did not take a batch (%r); keeping the newest records.", error)
        self._failing = True
        self._send = None
        self._waiting.extendleft(reversed(self._in_flight))
        self._in_flight = []
        self._drop_oldest()

    def _drop_oldest(self) -> None:
        """From those that wait: a batch in flight may yet arrive."""
        while len(self._waiting) > self._keep:
            self._waiting.popleft()
            self.dropped += 1
