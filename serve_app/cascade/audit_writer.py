"""AuditWriter: group commit in front of the audit log. Request -> its records are in the file.

    append ─┐                      ┌─ thread: one write ─┐
    append ─┼─ wait while one is out ─> the next write ──┴─> every request of that write goes on
    append ─┘

A slow disk delays answers, and never the event loop. There is no timer: a request that is alone is
written at once, and what arrives while a write is out shares the next one.

Closed on failure, as cluster/audit/write.py has decided: a record that is not in the file keeps its
answer from leaving. A write has all of its records or none, so its requests fail together. With a
disk that hangs, `max_waiting` records are held and more are refused at once.

`check` asks the log itself, so that a service without traffic knows too, and knows when it is over.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import NamedTuple, Protocol

from cluster.audit.records import Record
from cluster.errors import AuditError

log = logging.getLogger(__name__)


class RecordLog(Protocol):
    """What is written to, in the writer's thread; `cluster.audit.write.AuditLog` is one."""

    def append(self, records: Sequence[Record]) -> None: ...

    def check(self) -> str | None: ...


class AuditState(NamedTuple):
    """What keeps records from being written, and what soon will; None: nothing."""

    problem: str | None
    warning: str | None


@dataclass(slots=True, eq=False)
class _Entry:
    records: Sequence[Record]
    done: "asyncio.Future[None]" = field(repr=False)


class AuditWriter:
    """`await writer.append(records)` -> they are written. Lives on one event loop.

    Args:
        max_waiting: records held, in a write or before it.
        timeout_s: for a request; its records may yet be written, its answer does not leave.
    """

    def __init__(
        self, log: RecordLog, *, max_waiting: int = 20_000, timeout_s: float = 10.0
    ) -> None:
        self._log = log
        self._max_waiting = max_waiting
        self._timeout_s = timeout_s
        self._late = (
            f"The audit log took no record within {timeout_s:g} s, so no answer may leave. Repair "
            "the disk, or set FIRSTLINE_HOME to another one."
        )
        self._waiting: list[_Entry] = []
        self._held = 0
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._checking: asyncio.Future[AuditState] | None = None
        self._found = AuditState(None, None)
        self._writing = False
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._thread: threading.Thread | None = None

    @property
    def pending(self) -> int:
        """Records that are not yet known to be written."""
        return self._held

    async def append(self, records: Sequence[Record]) -> None:
        """Raises AuditError if the records could not be written, so that no answer may leave."""
        if not records:
            return
        self._refuse(len(records))
        loop = asyncio.get_running_loop()
        entry = _Entry(records, loop.create_future())
        self._held += len(records)
        self._waiting.append(entry)
        self._write()
        timer = loop.call_later(self._timeout_s, _settle, [entry], self._late)
        try:
            await entry.done
        finally:
            timer.cancel()

    async def check(self, timeout_s: float = 2.0) -> AuditState:
        """Whether a record could be written now; never raises."""
        if self._closed:
            return AuditState("the audit log is closed", None)
        if self._checking is None or self._checking.done():
            self._checking = asyncio.get_running_loop().create_future()
            self._in_thread(partial(self._check, asyncio.get_running_loop(), self._checking))
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._checking)
        except TimeoutError:
            return AuditState(f"the audit log's disk does not answer within {timeout_s:g} s", None)

    async def close(self, timeout_s: float = 5.0) -> None:
        """Takes in no more, and waits for what is held. Idempotent; the log stays open.

        What a hanging disk has not taken within `timeout_s` is given up: its requests, if there
        still are any, hear an AuditError.
        """
        self._closed = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            log.error("%d audit records were not written at shutdown.", self._held)
        given_up, self._waiting = self._waiting, []
        _settle(given_up, "The audit log was closed under a disk that hangs; no answer may leave.")
        self._work.put(None)

    def _refuse(self, count: int) -> None:
        if self._closed:
            raise AuditError("The audit log is closed; no answer may leave.")
        if self._held + count > self._max_waiting:
            raise AuditError(
                f"{self._held} records wait for the audit log's disk and {count} more came; at "
                f"most {self._max_waiting} may, so no answer may leave. Repair or replace the disk."
            )

    def _write(self) -> None:
        """Hands the thread what waits, unless it has a write already."""
        if self._writing or not self._waiting:
            return
        batch, self._waiting = self._waiting, []
        self._writing = True
        self._idle.clear()
        self._in_thread(partial(self._commit, asyncio.get_running_loop(), batch))

    def _in_thread(self, work: Callable[[], None]) -> None:
        if self._thread is None:
            # A daemon: a disk that hangs must not keep the process from ending.
            self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
            self._thread.start()
        self._work.put(work)

    def _run(self) -> None:
        """The thread: one write at a time, until None."""
        while (work := self._work.get()) is not None:
            try:
                work()
            except RuntimeError:  # the loop is closed, and nobody waits any more
                return

    def _commit(self, loop: asyncio.AbstractEventLoop, batch: Sequence[_Entry]) -> None:
        why = self._try([record for entry in batch for record in entry.records])
        loop.call_soon_threadsafe(self._finished, batch, why)

    def _check(self, loop: asyncio.AbstractEventLoop, done: "asyncio.Future[AuditState]") -> None:
        try:
            found = AuditState(None, self._log.check())
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            found = AuditState(f"the audit log cannot be written ({_cause(error)})", None)
        if found.problem != self._found.problem:  # it is looked at every 2 s
            log.warning("%s", found.problem or "The audit log can be written again.")
        self._found = found
        loop.call_soon_threadsafe(_resolve, done, found)

    def _try(self, records: Sequence[Record]) -> str | None:
        """None, or why they could not be written."""
        try:
            self._log.append(records)
        except AuditError as error:
            return str(error)
        except Exception as error:  # whatever it was, the waiting must hear of it
            log.exception("The audit log broke.")
            return f"The audit log broke ({type(error).__name__}), so no answer may leave."
        return None

    def _finished(self, batch: Sequence[_Entry], why: str | None) -> None:
        self._held -= sum(len(entry.records) for entry in batch)
        self._writing = False
        _settle(batch, why)
        self._write()
        if not self._writing:
            self._idle.set()


def _cause(error: Exception) -> str:
    """Without the folder's path: whoever asks /readyz needs no key."""
    cause = error.__cause__ or error
    return (cause.strerror if isinstance(cause, OSError) else None) or type(cause).__name__


def _resolve(done: "asyncio.Future[AuditState]", found: AuditState) -> None:
    if not done.done():
        done.set_result(found)


def _settle(entries: Sequence[_Entry], why: str | None) -> None:
    """Each waiting request hears of it by an error of its own: a shared one would collect their
    tracebacks."""
    for entry in entries:
        if entry.done.done():  # late, or the client is gone
            continue
        if why is None:
            entry.done.set_result(None)
        else:
            entry.done.set_exception(AuditError(why))
