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
import heapq
import json
import logging
import math
import os
import re
import secrets
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from hashlib import blake2b
from itertools import islice, repeat
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, NoReturn

from pydantic import SecretStr
from pydantic_core import PydanticSerializationError, to_json

from cluster.errors import AuditError, ConfigError
from cluster.files import sha256_file

log = logging.getLogger(__name__)

Clock = Callable[[], float]

_ANSWER: Final = "answer"
_FEEDBACK: Final = "feedback"
_MIN_KEY_BYTES: Final = 16
_MAX_KEY_BYTES: Final = 64  # blake2b takes no longer key
_WRITER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LOG_NAME: Final = re.compile(r"(\d{8})-.+\.jsonl")
_PARQUET_NAME: Final = re.compile(r"(\d{8})\.parquet")
_SOURCES: Final = b"firstline_sources"
_ROW_GROUP: Final = 65_536
_BLOCK_BYTES: Final = 1 << 20
_MAX_WARNINGS: Final = 10  # about corrupt lines, in one read


# ---- the records --------------------------------------------------------------------------------


class AuditRecord(NamedTuple):
    """One answer. `route` and `reason` are the values of serve_app's enums.

    `label` is what went out, `edge_label` what the edge said, None if it failed. `propensity` is
    the chance with which the rule that ran takes the route that was taken: below 1 only where the
    service explores. `cached`: no model ran; route and reason are those of the same text before,
    and it cost nothing. `shadow_of` is the id of the answer whose message this release saw too,
    without answering it; None for an answer. `offline`: a row of a job, which the monitor passes
    over.
    """

    id: str
    time_s: float
    text_hash: str
    route: str
    reason: str
    label: str
    edge_label: str | None
    confidence: float
    signals: Mapping[str, float]
    trust: float
    threshold: float
    propensity: float
    release: str
    cost_usd: float
    latency_ms: float
    degraded: bool
    cached: bool = False
    shadow_of: str | None = None
    offline: bool = False

    def to_json(self) -> bytes:
        """One line of strict JSON; NaN and infinities become the strings that `float()` reads."""
        return _dumps(dict(zip(_ANSWER_KEYS, (_ANSWER, *self), strict=True)))

    @classmethod
    def from_json(cls, line: str | bytes) -> "AuditRecord":
        """Raises AuditError if the line is not an answer."""
        record = parse(line)
        if not isinstance(record, cls):
            raise AuditError(f"The line is a {_FEEDBACK} record; an {_ANSWER} was expected.")
        return record


class FeedbackRecord(NamedTuple):
    """The label that an answer should have had, as reported later. `id` is the answer's."""

    id: str
    time_s: float
    label: str

    def to_json(self) -> bytes:
        value = {"id": self.id, "time_s": self.time_s, "label": self.label}
        return _dumps({"kind": _FEEDBACK, **value})

    @classmethod
    def from_json(cls, line: str | bytes) -> "FeedbackRecord":
        """Raises AuditError if the line is not feedback."""
        record = parse(line)
        if not isinstance(record, cls):
            raise AuditError(f"The line is an {_ANSWER} record; {_FEEDBACK} was expected.")
        return record


Record = AuditRecord | FeedbackRecord


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no string")
    return value


def _text_or_none(value: Any) -> str | None:
    return None if value is None else _text(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _time(value: Any) -> float:
    number = _number(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is no time")
    return number


def _chance(value: Any) -> float:
    number = _number(value)
    if not 0.0 < number <= 1.0:
        raise ValueError(f"{value!r} is no chance of something that happened")
    return number


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value


def _numbers(value: Any) -> dict[str, float]:
    return {_text(name): _number(number) for name, number in value.items()}


_ANSWER_FIELDS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "id": _text,
    "time_s": _time,
    "text_hash": _text,
    "route": _text,
    "reason": _text,
    "label": _text,
    "edge_label": _text_or_none,
    "confidence": _number,
    "signals": _numbers,
    "trust": _number,
    "threshold": _number,
    "propensity": _chance,
    "release": _text,
    "cost_usd": _number,
    "latency_ms": _number,
    "degraded": _flag,
    "cached": _flag,
    "shadow_of": _text_or_none,
    "offline": _flag,
}
_FEEDBACK_FIELDS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "id": _text,
    "time_s": _time,
    "label": _text,
}
_ANSWER_KEYS: Final = ("kind", *AuditRecord._fields)


def _dumps(value: dict[str, Any]) -> bytes:
    """By pydantic's writer, in a quarter of the time that json.dumps takes."""
    try:
        return to_json(value, inf_nan_mode="strings")
    except PydanticSerializationError:  # a lone surrogate, for which UTF-8 has no bytes
        return json.dumps(_spelled(value), separators=(",", ":"), allow_nan=False).encode()


def _spelled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _spelled(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return value


def parse(line: str | bytes) -> Record:
    """A line -> its record. Keys that this version does not know are passed over.

    Raises:
        AuditError: the line is not JSON, lacks a key, or has a value of the wrong type.
    """
    try:
        return _build(json.loads(line))
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise AuditError(
            f"The line is no audit record ({type(error).__name__}: {error})."
        ) from None


def _build(value: Mapping[str, Any]) -> Record:
    kind = value["kind"]
    if kind == _ANSWER:
        return AuditRecord(**{name: read(value[name]) for name, read in _ANSWER_FIELDS.items()})
    if kind == _FEEDBACK:
        return FeedbackRecord(
            **{name: read(value[name]) for name, read in _FEEDBACK_FIELDS.items()}
        )
    raise ValueError(f"kind {kind!r} is neither {_ANSWER} nor {_FEEDBACK}")


# ---- the keyed hash -----------------------------------------------------------------------------


class TextHasher:
    """text -> 32 hex characters, the same for the same text and key (blake2b, keyed).

    Keyed, because messages are short: without the key, a plain hash of every likely message could
    be compared with the log.
    """

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        if len(key) < _MIN_KEY_BYTES:
            raise ConfigError(
                f"The key of the audit log has {len(key)} bytes, and needs at least "
                f"{_MIN_KEY_BYTES}: set FIRSTLINE_AUDIT_KEY to a longer one, or leave it empty to "
                "have one made."
            )
        self._key = key if len(key) <= _MAX_KEY_BYTES else blake2b(key).digest()

    def __call__(self, text: str) -> str:
        data = text.encode("utf-8", "surrogatepass")
        return blake2b(data, digest_size=16, key=self._key).hexdigest()

    def __repr__(self) -> str:
        return "TextHasher(key=**********)"


def load_key(path: Path, given: SecretStr | str = "") -> bytes:
    """The given key, or the one kept at `path`, made on the first call (mode 0600).

    Of several processes that make one at the same time, one wins and all return the winner's.

    Raises:
        ConfigError: the file can be read by other users, or cannot be read or made.
    """
    secret = given.get_secret_value() if isinstance(given, SecretStr) else given
    if secret:
        return secret.encode()
    try:
        if not path.exists():
            _make_key(path)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(
                f"The audit key {path} can be read by other users. Run: chmod 600 {path}"
            )
        return path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(
            f"The audit key {path} cannot be read or made ({error.strerror}). Make its folder "
            "writable, or set FIRSTLINE_AUDIT_KEY."
        ) from error


def _make_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        # A link, not a rename: it fails where a key is, so the first of several processes wins.
        path.hardlink_to(name)
    except FileExistsError:
        pass
    finally:
        Path(name).unlink()


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

    def close(self) -> None:
        """Idempotent. Nothing is buffered, so nothing is flushed."""
        with self._lock:
            self._release()
            self._closed = True

    def _lock_today(self) -> int:
        """The descriptor of today's file, its lock held.

        The day is checked again under the lock: once `compact` has had the lock of a closed day's
        file, nobody writes to it. A file deleted behind our back is made again.
        """
        while True:
            day = _day_of(self._clock())
            if self._descriptor is None or day != self._day:
                self._open(day)
            assert self._descriptor is not None
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            if day == _day_of(self._clock()) and os.fstat(self._descriptor).st_nlink:
                return self._descriptor
            self._release()

    def _open(self, day: str) -> None:
        self._release()
        path = self._folder / f"{day}-{self._writer}.jsonl"
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._day = day
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        _cut_torn_line(self._descriptor)

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
        os.ftruncate(descriptor, _start_of_last(descriptor, size, 0))


def _start_of_last(descriptor: int, size: int, lines: int) -> int:
    """Where the last `lines` whole lines begin; read backwards, so the cost is that of the tail."""
    left, end = lines + 1, size
    while end:
        start = max(0, end - _BLOCK_BYTES)
        block = os.pread(descriptor, end - start, start)
        if (found := block.count(b"\n")) < left:
            left, end = left - found, start
            continue
        at = len(block)
        for _ in range(left):
            at = block.rindex(b"\n", 0, at)
        return start + at + 1
    return 0


# ---- reading ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no record: `line` counts from 1."""

    file: Path
    line: int
    why: str


@dataclass(slots=True)
class ReadReport:
    """What a read met: records given out, torn last lines, and lines that are corrupt."""

    records: int = 0
    torn: int = 0
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
    for day in _days(folder):
        if since_s is not None and _end_s(day) <= since_s:
            continue
        with ExitStack() as stack:
            streams = _open_day(folder, day, last, report, stack)
            for record in heapq.merge(*streams, key=attrgetter("time_s")):
                if since_s is None or record.time_s >= since_s:
                    report.records += 1
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
    with _folder_lock(folder, fcntl.LOCK_SH):
        parquet, logs = _files(folder, day)
        compacted = _sources(parquet) if parquet else []
        streams = []
        if parquet:
            file = stack.enter_context(parquet.open("rb"))
            streams.append(_parquet_records(file, parquet, last))
        for path in logs:
            if not _is_compacted(path, compacted):
                file = stack.enter_context(path.open("rb"))
                streams.append(_log_records(file, path, last, report))
        return streams


def _log_records(
    file: BinaryIO, path: Path, last: int | None, report: ReadReport
) -> Iterator[Record]:
    descriptor = file.fileno()
    offset = 0
    if last is not None:
        offset = _start_of_last(descriptor, os.fstat(descriptor).st_size, last)
    file.seek(offset)
    lines = _LineNumbers(descriptor)
    for line in file:
        if not line.endswith(b"\n"):  # torn, or a writer is just at it
            report.torn += 1
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
        starts = range(self._offset, offset, _BLOCK_BYTES)
        sizes = (min(_BLOCK_BYTES, offset - at) for at in starts)
        blocks = map(os.pread, repeat(self._descriptor), sizes, starts)
        self._line += sum(block.count(b"\n") for block in blocks)
        self._offset = offset
        return self._line


def _day_of(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y%m%d")


def _end_s(day: str) -> float:
    start = datetime.strptime(day, "%Y%m%d").replace(tzinfo=UTC)
    return (start + timedelta(days=1)).timestamp()


def _days(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    names = (path.name for path in folder.iterdir())
    matches = (_LOG_NAME.fullmatch(name) or _PARQUET_NAME.fullmatch(name) for name in names)
    return sorted({match[1] for match in matches if match})


def _files(folder: Path, day: str) -> tuple[Path | None, list[Path]]:
    """A day's compacted file, if any, and its writers' files."""
    parquet = folder / f"{day}.parquet"
    return (parquet if parquet.exists() else None), sorted(folder.glob(f"{day}-*.jsonl"))


@contextmanager
def _folder_lock(folder: Path, kind: int) -> Iterator[None]:
    """The lock is the folder's own, so a reader needs no right to write."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


# ---- compaction ---------------------------------------------------------------------------------


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
    closed = min(before_day.strftime("%Y%m%d"), _day_of(clock()))
    days = [day for day in _days(folder) if day < closed]
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
    parquet, logs = _files(folder, day)
    _wait_for_writers(logs)
    sources = _sources(parquet) if parquet else []
    stale = [path for path in logs if _is_compacted(path, sources)]
    fresh = [path for path in logs if path not in stale]
    left = tuple(path for path in fresh if not _is_clean(path))
    fresh = [path for path in fresh if path not in left]
    if not fresh:
        _delete(stale)
        return Compacted((), 0, left)
    target = folder / f"{day}.parquet"
    scratch = folder / f".{day}.parquet.tmp"  # one name: a crashed attempt is overwritten
    records = _write_parquet(scratch, parquet, fresh, sources + [_source(path) for path in fresh])
    with _folder_lock(folder, fcntl.LOCK_EX):
        scratch.replace(target)
        _sync(folder)
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
        for _ in _log_records(file, path, None, report):
            pass
    return not report.corrupt


def _source(path: Path) -> list[str]:
    return [path.name, sha256_file(path)]


def _is_compacted(path: Path, sources: Sequence[Sequence[str]]) -> bool:
    """By content too: a file of an old name that a clock set back made again is no source."""
    return any(name == path.name for name, _ in sources) and _source(path) in sources


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# pyarrow is imported where it is used: a router's replica writes, and never needs it.


def _schema(sources: Sequence[Sequence[str]]) -> Any:
    import pyarrow as pa

    kinds: dict[Any, Any] = {
        _text: pa.string(),
        _text_or_none: pa.string(),
        _time: pa.float64(),
        _number: pa.float64(),
        _chance: pa.float64(),
        _numbers: pa.map_(pa.string(), pa.float64()),
        _flag: pa.bool_(),
    }
    columns = [("kind", pa.string())]
    columns += [(name, kinds[read]) for name, read in _ANSWER_FIELDS.items()]
    return pa.schema(columns, metadata={_SOURCES: json.dumps(sources)})


def _write_parquet(
    path: Path, older: Path | None, logs: Iterable[Path], sources: Sequence[Sequence[str]]
) -> int:
    """Streams the records of an older compaction and of `logs` into a synced file; counts them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, count = _schema(sources), 0
    with ExitStack() as stack:
        streams = []
        if older:
            file = stack.enter_context(older.open("rb"))
            streams.append(_parquet_records(file, older, None))
        for source in logs:
            file = stack.enter_context(source.open("rb"))
            streams.append(_log_records(file, source, None, ReadReport()))
        rows = map(_row, heapq.merge(*streams, key=attrgetter("time_s")))
        writer = stack.enter_context(pq.ParquetWriter(path, schema, compression="zstd"))
        while batch := list(islice(rows, _ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(batch, schema))
            count += len(batch)
    _sync(path)
    return count


def _row(record: Record) -> dict[str, Any]:
    if isinstance(record, FeedbackRecord):
        return {"kind": _FEEDBACK, **record._asdict()}
    row = record._asdict()
    row["signals"] = list(record.signals.items())
    return {"kind": _ANSWER, **row}


def _parquet_records(file: BinaryIO, path: Path, last: int | None) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        groups = _last_groups(table.metadata, last)
        skip = sum(table.metadata.row_group(group).num_rows for group in groups)
        skip = max(0, skip - last) if last is not None else 0
        for batch in table.iter_batches(batch_size=4096, row_groups=groups):
            for row in batch.slice(min(skip, len(batch))).to_pylist():
                row["signals"] = dict(row["signals"] or ())
                yield _build(row)
            skip = max(0, skip - len(batch))
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise _broken(path, error) from error


def _last_groups(metadata: Any, last: int | None) -> list[int]:
    """The row groups, from the end, that hold the last so many rows."""
    first, rows = metadata.num_row_groups, 0
    while first and (last is None or rows < last):
        first -= 1
        rows += metadata.row_group(first).num_rows
    return list(range(first, metadata.num_row_groups))


def _sources(parquet: Path) -> list[list[str]]:
    """[name, SHA-256] of each file that was compacted into this one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = pq.read_schema(parquet).metadata[_SOURCES]
        return [[_text(name), _text(digest)] for name, digest in json.loads(found)]
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise _broken(parquet, error) from error


def _broken(path: Path, error: Exception) -> AuditError:
    return AuditError(
        f"The compacted day {path} cannot be read ({type(error).__name__}: {error}). Restore it "
        "from a backup, or move it away to read the other days."
    )
