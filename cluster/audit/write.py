"""The append-only decision log: one record per answer, never the text.

    answers -> AuditLog.append -> <day>-<writer>.jsonl -> read -> the monitor, reports
                                        └─ compact (closed days) -> <day>.parquet

Decided once: a record is written before its answer leaves, and if it cannot be written the answer
does not leave (`AuditError`). A batch is one write into the page cache, so it survives a SIGKILL of
the process a millisecond later. It does not survive the loss of power or a kernel panic within the
seconds until the kernel writes back; an fsync per batch would close that gap, at milliseconds per
answer on common disks, which is more than the edge model takes. Who needs it mounts the folder
with `sync`, or runs it on a disk with a battery.

A writer killed inside a write leaves a torn last line. Its answer never left, so readers pass over
it, and the next writer of that name cuts it off. Whole records of the same torn batch stay: the log
may hold an answer that did not leave, never the other way round.

The writer of a file, and its compaction, hold the file's `flock`; readers and the compaction's last
step hold the folder's. Both need a file system with working locks (any local disk, NFS v4).
"""

import errno
import fcntl
import os
import re
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from cluster.audit.days import Clock, day_of, start_of_last
from cluster.audit.records import Record
from cluster.errors import AuditError, ConfigError

_WRITER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# What `check` writes and takes away again: as much as a request of 24 answers needs.
_CHECK_BYTES: Final = 1 << 14
_LOW_SHARE: Final = 0.02
_LOW_BYTES: Final = 256 << 20  # some 400,000 answers


# ---- writing ------------------------------------------------------------------------------------


class AuditLog:
    """Appends to one file per writer and UTC day, from any thread.

    Args:
        folder: where the log lives; made if missing.
        writer: one name per process, such as a replica's id; letters, digits, `.`, `_` and `-`.
        clock: chooses the day's file; records carry their own times.
    """

    def __init__(self, folder: Path, writer: str, clock: Clock = time.time) -> None:
        if not _WRITER.fullmatch(writer):
            raise ConfigError(
                f"An audit writer cannot be called {writer!r}: use up to 100 letters, digits, "
                "'.', '_' and '-', a letter or digit first."
            )
        self._folder = folder
        self._writer = writer
        self._clock = clock
        self._lock = threading.Lock()
        self._day = ""
        self._descriptor: int | None = None
        self._closed = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._refuse(error)

    def append(self, records: Sequence[Record]) -> None:
        """Writes all of the records, or none. Call it before their answers leave.

        Raises:
            AuditError: they could not be written, so the answers must not leave.
        """
        if not records:
            return
        try:
            data = b"\n".join([*(record.to_json() for record in records), b""])
        except (TypeError, ValueError) as error:
            raise AuditError(f"An answer cannot be written down as JSON: {error}.") from error
        with self._lock:
            if self._closed:
                raise AuditError(f"The audit log of {self._writer} is closed; no answer may leave.")
            try:
                descriptor = self._lock_today()
                _write_all(descriptor, data)
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            except BaseException as error:
                # A fresh descriptor next time: it cuts off what a failed rollback may have left.
                with suppress(OSError):
                    self._release()
                if isinstance(error, OSError):
                    self._refuse(error)
                raise

    def check(self) -> str | None:
        """Whether a record could be written now, tried without one; what will soon prevent it.

        Raises:
            AuditError: none could.
        """
        with self._lock:
            if self._closed:
                raise AuditError(f"The audit log of {self._writer} is closed; no answer may leave.")
            try:
                if self._descriptor is not None or self._path(day_of(self._clock())).exists():
                    fcntl.flock(self._lock_today(), fcntl.LOCK_UN)
                self._try_disk()
                disk = os.statvfs(self._folder)
            except OSError as error:
                with suppress(OSError):
                    self._release()
                self._refuse(error)
        free, size = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
        if free < min(_LOW_SHARE * size, _LOW_BYTES):
            return f"the audit log's disk is nearly full: {free / 1e6:,.0f} MB are free"
        return None

    def _try_disk(self) -> None:
        path = self._folder / f".{self._writer}.check"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_all(descriptor, bytes(_CHECK_BYTES))
        finally:
            os.close(descriptor)
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Idempotent. Nothing is buffered, so nothing is flushed."""
        with self._lock:
            self._release()
            self._closed = True

    def _lock_today(self) -> int:
        """The descriptor of today's file, its lock held.

        The day is checked again under the lock: once `compact` has had the lock of a closed day's
        file, nobody writes to it. A file deleted or moved behind our back is made again.
        """
        while True:
            day = day_of(self._clock())
            if self._descriptor is None or day != self._day:
                self._open(day)
            assert self._descriptor is not None
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            if day == day_of(self._clock()) and self._is_in_place(self._descriptor):
                return self._descriptor
            self._release()

    def _is_in_place(self, descriptor: int) -> bool:
        """The open file is the one that readers find: neither deleted nor moved with its folder."""
        try:
            found = os.stat(self._path(self._day))
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(descriptor))

    def _open(self, day: str) -> None:
        self._release()
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(self._path(day), flags, 0o600)
        self._day = day
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        _cut_torn_line(self._descriptor)

    def _path(self, day: str) -> Path:
        return self._folder / f"{day}-{self._writer}.jsonl"

    def _release(self) -> None:
        """Closes the file, and with it gives up its lock."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)

    def _refuse(self, error: OSError) -> NoReturn:
        raise AuditError(
            f"The audit log in {self._folder} cannot be written ({error.strerror or error}), so no "
            "answer may leave. Free or repair the disk, or set FIRSTLINE_HOME to another one."
        ) from error


def _write_all(descriptor: int, data: bytes) -> None:
    """One write, or several where the system takes less at a time; nothing stays if one fails."""
    start = os.fstat(descriptor).st_size
    try:
        rest = memoryview(data)
        while rest:
            written = os.write(descriptor, rest)
            if not written:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            rest = rest[written:]
    except BaseException:
        os.ftruncate(descriptor, start)
        raise


def _cut_torn_line(descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        os.ftruncate(descriptor, start_of_last(descriptor, size, 0))


# ---- compaction ---------------------------------------------------------------------------------


# pyarrow is imported where it is used: a router's replica writes, and never needs it.
