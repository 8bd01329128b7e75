"""A router's side of the monitor actor: what is told and asked. Never on the request path."""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any, Final

from cluster.audit.records import Record
from cluster.errors import ServiceError
from cluster.settings import Settings
from serve_app.contracts import AbuseEvent
from serve_app.decide.cost import Prices
from serve_app.monitor.actor import get_or_create
from serve_app.monitor.emitter import MetricsEmitter, Send
from serve_app.monitor.totals import RouterReport
from serve_app.monitor.windows import Compared

log = logging.getLogger(__name__)

_MONITOR_WAIT_S: Final = 5.0
_AWAY_S: Final = 30.0  # a monitor that starts again reads a day's log first


class MonitorClient:
    """The router's side of the monitor: nothing here waits on the request path."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._prices = Prices()
        self._compared: Compared | None = None
        self._actor: Any = None
        self._emitter = MetricsEmitter(self._resolve)
        self._background: set[asyncio.Task[None]] = set()
        self._away_since_s: float | None = None

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

    async def report(self, report: RouterReport) -> None:
        """Tells how this router does; whether that was taken is what `away` says."""
        try:
            await self.ask("note_router", report)
        except ServiceError:
            if self._away_since_s is None:
                self._away_since_s = time.monotonic()
        else:
            self._away_since_s = None

    @property
    def problem(self) -> str | None:
        """Nobody watches, and has not for so long that it will not mend itself."""
        return self._absence if self._away_s > _AWAY_S else None

    @property
    def warning(self) -> str | None:
        return self._absence if self._away_since_s is not None and not self.problem else None

    @property
    def _away_s(self) -> float:
        since_s = self._away_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    @property
    def _absence(self) -> str:
        return (
            f"the monitor has not answered for {self._away_s:.0f} s: nobody counts, nobody alerts"
        )

    async def close(self) -> None:
        """Sends what waits."""
        await self._emitter.drain()

    async def ask(self, method: str, *values: Any) -> Any:
        """Raises ServiceError if the monitor does not answer."""
        try:
            async with asyncio.timeout(_MONITOR_WAIT_S):
                actor = await asyncio.to_thread(self._monitor)
                return await getattr(actor, method).remote(*values)
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
