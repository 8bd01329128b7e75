"""A router's side of the monitor actor: what is told and asked. Never on the request path."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

from cluster.audit.records import Record
from cluster.errors import ServiceError
from cluster.settings import Settings
from serve_app.contracts import AbuseEvent
from serve_app.decide.cost import Prices
from serve_app.monitor.actor import get_or_create
from serve_app.monitor.emitter import MetricsEmitter, Send
from serve_app.monitor.windows import Compared

log = logging.getLogger(__name__)

_MONITOR_WAIT_S: Final = 5.0


class MonitorClient:
    """The router's side of the monitor: nothing here waits on the request path, or raises."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._prices = Prices()
        self._compared: Compared | None = None
        self._actor: Any = None
        self._emitter = MetricsEmitter(self._resolve)
        self._background: set[asyncio.Task[None]] = set()

    def use(self, prices: Prices, compared: Compared) -> None:
        """The prices that savings are counted by, and which releases are compared."""
        self._prices, self._compared = prices, compared
        self._tell("use_prices", prices)
        self._tell("compare", compared)

    def emit(self, records: Sequence[Record]) -> None:
        self._emitter.emit(records)

    def bad_outputs(self, count: int) -> None:
        self._tell("count_bad_outputs", count)

    def abuse(self, event: AbuseEvent) -> None:
        self._tell("note_abuse", [event])

    def state(self, name: str, state: str) -> None:
        """Of a breaker, when it changes."""
        self._tell("note_state", name, state)

    async def close(self) -> None:
        """Sends what waits."""
        await self._emitter.drain()

    async def ask(self, method: str) -> Any:
        """Raises ServiceError if the monitor does not answer."""
        try:
            async with asyncio.timeout(_MONITOR_WAIT_S):
                actor = await asyncio.to_thread(self._monitor)
                return await getattr(actor, method).remote()
        except Exception as error:
            log.warning("The monitor did not answer: %r", error)
            self._actor = None
            raise ServiceError(
                "The monitor does not answer. It restarts by itself and rebuilds its figures from "
                "the audit log; answers are not affected. Try again in a moment."
            ) from error

    def _monitor(self) -> Any:
        if self._actor is None:
            self._actor = get_or_create(self._settings.audit_dir, self._prices)
        return self._actor

    def _resolve(self) -> Send:
        self._actor = None
        actor = self._monitor()
        actor.use_prices.remote(self._prices)  # one that has started again has those of its first

        async def send(batch: list[Record]) -> None:
            await actor.ingest.remote(batch, self._compared)

        return send

    def _tell(self, method: str, *values: Any) -> None:
        """Calls the actor in the background."""
        task = asyncio.get_running_loop().create_task(self._call(method, *values))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _call(self, method: str, *values: Any) -> None:
        try:
            actor = await asyncio.to_thread(self._monitor)
            await getattr(actor, method).remote(*values)
        except Exception as error:  # noqa: BLE001 - open on failure: metrics never stop an answer
            log.warning("The monitor did not take %s: %r", method, error)
