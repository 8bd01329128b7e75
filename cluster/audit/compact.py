"""Days that are over: the files of their writers -> one Parquet file per day."""

import fcntl
import heapq
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

from cluster.audit.days import Clock, day_of, days_of, files_of, folder_lock, sync
from cluster.audit.parquet import is_compacted, parquet_records, schema_of, source_of, sources_of
from cluster.audit.read import ReadReport, log_records
from cluster.audit.records import ANSWER, FEEDBACK, FeedbackRecord, Record
from cluster.errors import AuditError

_ROW_GROUP: Final = 65_536


@dataclass(frozen=True, slots=True)
class Compacted:
    """What a compaction made, and the files it left because a line of theirs is corrupt."""

    files: tuple[Path, ...]
    records: int
    left: tuple[Path, ...]


def compact(folder: Path, before_day: date, clock: Clock = time.time) -> Compacted:
    """The day files before `before_day` (and before today, UTC) -> one Parquet file per day.

    Written beside, synced, renamed, and only then are the sources deleted. The Parquet file's
    metadata names each source with its SHA-256, and `read` passes over a source found there: a
    crash between rename and deletion doubles nothing, and the next call deletes what was left.
    Running it again changes nothing. A file with a corrupt line is left for a person to look at.

    Raises:
        AuditError: another compaction is running, or a compacted day is broken.
    """
    closed = min(before_day.strftime("%Y%m%d"), day_of(clock()))
    days = [day for day in days_of(folder) if day < closed]
    if not days:
        return Compacted((), 0, ())
    with _only_compaction(folder):
        done = [_compact_day(folder, day) for day in days]
    return Compacted(
        files=tuple(path for one in done for path in one.files),
        records=sum(one.records for one in done),
        left=tuple(path for one in done for path in one.left),
    )


def _compact_day(folder: Path, day: str) -> Compacted:
    parquet, logs = files_of(folder, day)
    _wait_for_writers(logs)
    sources = sources_of(parquet) if parquet else []
    stale = [path for path in logs if is_compacted(path, sources)]
    fresh = [path for path in logs if path not in stale]
    left = tuple(path for path in fresh if not _is_clean(path))
    fresh = [path for path in fresh if path not in left]
    if not fresh:
        _delete(stale)
        return Compacted((), 0, left)
    target = folder / f"{day}.parquet"
    scratch = folder / f".{day}.parquet.tmp"  # one name: a crashed attempt is overwritten
    records = _write_parquet(scratch, parquet, fresh, sources + [source_of(path) for path in fresh])
    with folder_lock(folder, fcntl.LOCK_EX):
        scratch.replace(target)
        sync(folder)
        _delete([*stale, *fresh])
    return Compacted((target,), records, left)


@contextmanager
def _only_compaction(folder: Path) -> Iterator[None]:
    with (folder / ".compact.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AuditError(f"Another compaction of {folder} is running; wait for it.") from None
        yield


def _wait_for_writers(logs: Iterable[Path]) -> None:
    """Outwaits a write that began before midnight; see `AuditLog._lock_today`."""
    for path in logs:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)


def _is_clean(path: Path) -> bool:
    report = ReadReport()
    with path.open("rb") as file:
        for _ in log_records(file, path, None, report):
            pass
    return not report.corrupt


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink()


def _write_parquet(
    path: Path, older: Path | None, logs: Iterable[Path], sources: Sequence[Sequence[str]]
) -> int:
    """Streams the records of an older compaction and of `logs` into a synced file; counts them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, count = schema_of(sources), 0
    with ExitStack() as stack:
        streams = []
        if older:
            file = stack.enter_context(older.open("rb"))
            streams.append(parquet_records(file, older, None))
        for source in logs:
            file = stack.enter_context(source.open("rb"))
            streams.append(log_records(file, source, None, ReadReport()))
        rows = map(_row, heapq.merge(*streams, key=attrgetter("time_s")))
        writer = stack.enter_context(pq.ParquetWriter(path, schema, compression="zstd"))
        while batch := list(islice(rows, _ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(batch, schema))
            count += len(batch)
    sync(path)
    return count


def _row(record: Record) -> dict[str, Any]:
    if isinstance(record, FeedbackRecord):
        return {"kind": FEEDBACK, **record._asdict()}
    row = record._asdict()
    row["signals"] = list(record.signals.items())
    return {"kind": ANSWER, **row}
