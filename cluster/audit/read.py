"""The log's folder -> its records, of all writers and of both kinds of file, merged by time."""

import fcntl
import heapq
import logging
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import repeat
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO, Final

from cluster.audit.days import BLOCK_BYTES, days_of, end_s, files_of, folder_lock, start_of_last
from cluster.audit.parquet import is_compacted, parquet_records, sources_of
from cluster.audit.records import Record, parse
from cluster.errors import AuditError, ConfigError

log = logging.getLogger(__name__)

_MAX_WARNINGS: Final = 10  # about corrupt lines, in one read


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no record: `line` counts from 1."""

    file: Path
    line: int
    why: str


@dataclass(slots=True)
class ReadReport:
    """What a read met beside records: lines that are corrupt."""

    corrupt: list[BadLine] = field(default_factory=list)


def read(
    folder: Path,
    since_s: float | None = None,
    *,
    last: int | None = None,
    report: ReadReport | None = None,
) -> Iterator[Record]:
    """All records of all writers, day by day, merged by time within a day.

    A file is in the order of its appends, so two records may be out of time order by as much as
    their batches overlapped. A corrupt line is skipped, logged, and noted in `report`.

    Args:
        since_s: no record before this time; older day files are not opened.
        last: at most so many of the newest records of each file, which bounds a monitor's rebuild.
        report: filled in while reading.

    Raises:
        AuditError: a compacted day is broken.
    """
    report = report if report is not None else ReadReport()
    for day in days_of(folder):
        if since_s is not None and end_s(day) <= since_s:
            continue
        with ExitStack() as stack:
            streams = _open_day(folder, day, last, report, stack)
            for record in heapq.merge(*streams, key=attrgetter("time_s")):
                if since_s is None or record.time_s >= since_s:
                    yield record


_UNITS_S: Final = {"m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0}
_AGE: Final = re.compile(r"([0-9]{1,6})([mhdw])")


def parse_since(text: str, now_s: float) -> float:
    """`90m`, `24h`, `7d`, `2w`, or an ISO date or time (UTC if it names no zone) -> a `since_s`.

    Raises:
        ConfigError: it is none of these, or lies in the future.
    """
    if age := _AGE.fullmatch(text.strip()):
        return now_s - int(age[1]) * _UNITS_S[age[2]]
    try:
        day = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigError(
            f"{text!r} is no time to begin at. Give an age such as 90m, 24h, 7d or 2w, or a date "
            "such as 2026-11-21 or 2026-11-21T08:00."
        ) from None
    since_s = (day if day.tzinfo else day.replace(tzinfo=UTC)).timestamp()
    if since_s > now_s:
        raise ConfigError(f"{text!r} lies in the future; the log has nothing from then.")
    return since_s


def _open_day(
    folder: Path, day: str, last: int | None, report: ReadReport, stack: ExitStack
) -> list[Iterator[Record]]:
    """Opened under the folder's lock: a compaction is seen before or after, never in between."""
    with folder_lock(folder, fcntl.LOCK_SH):
        parquet, logs = files_of(folder, day)
        compacted = sources_of(parquet) if parquet else []
        streams = []
        if parquet:
            file = stack.enter_context(parquet.open("rb"))
            streams.append(parquet_records(file, parquet, last))
        for path in logs:
            if not is_compacted(path, compacted):
                file = stack.enter_context(path.open("rb"))
                streams.append(log_records(file, path, last, report))
        return streams


def log_records(
    file: BinaryIO, path: Path, last: int | None, report: ReadReport
) -> Iterator[Record]:
    descriptor = file.fileno()
    offset = 0
    if last is not None:
        offset = start_of_last(descriptor, os.fstat(descriptor).st_size, last)
    file.seek(offset)
    lines = _LineNumbers(descriptor)
    for line in file:
        if not line.endswith(b"\n"):  # torn, or a writer is just at it
            return
        try:
            yield parse(line)
        except AuditError as error:
            _note(BadLine(path, lines.at(offset), str(error)), report)
        offset += len(line)


def _note(bad: BadLine, report: ReadReport) -> None:
    """Logged one by one up to a limit: a log of another version has one in every line."""
    report.corrupt.append(bad)
    if len(report.corrupt) <= _MAX_WARNINGS:
        log.warning("%s, line %d is skipped. %s", bad.file, bad.line, bad.why)
    if len(report.corrupt) == _MAX_WARNINGS:
        log.warning("Further lines that are skipped are counted, and not logged.")


class _LineNumbers:
    """Counts only once a line is corrupt, and from the last such on."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._offset, self._line = 0, 1

    def at(self, offset: int) -> int:
        """The number of the line that begins at `offset`, which never goes back."""
        starts = range(self._offset, offset, BLOCK_BYTES)
        sizes = (min(BLOCK_BYTES, offset - at) for at in starts)
        blocks = map(os.pread, repeat(self._descriptor), sizes, starts)
        self._line += sum(block.count(b"\n") for block in blocks)
        self._offset = offset
        return self._line
