"""A file or folder of any size -> chunks of rows that are the same every time, and their rows.

    plan(data, columns) -> Plan: which rows of which file each chunk has, by row number and offset
    Reader(plan, columns).rows(chunk) -> its rows in order, the broken ones with what is wrong

A row is a row of a Parquet file, a line of a JSONL file, or a record of a CSV file; lines without
a character are none. A row that cannot be used is given with its problem, never left out. Nothing
here holds more than a few rows, however large a file is.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from cluster.errors import DataError
from cluster.files import sha256_file

SUFFIXES: Final = (".csv", ".jsonl", ".ndjson", ".parquet")
# Small enough that two cores share 10,000 rows fairly.
FEWEST_ROWS: Final = 256
# What a kill may cost: less than a minute of a core.
MOST_ROWS: Final = 65_536
# Each costs Ray some ms; beyond so many, chunks grow instead, up to MOST_ROWS.
CHUNKS: Final = 128
CHUNKS_PER_CPU: Final = 32
_MAX_LINE: Final = 16 << 20
_BATCH: Final = 256
_READ_BYTES: Final = 1 << 20  # a row group of any size is streamed, not held
_LOOKED_AT: Final = 100  # rows of a JSONL file in which the column must turn up
_BOM: Final = "\ufeff"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows `first` to `first + rows` of a file, counted from 0.

    Of a text file, bytes `start` to `end`; `line` is the number of the line before it.
    """

    index: int
    file: str
    first: int
    rows: int
    start: int = 0
    end: int = 0
    line: int = 0


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns are read: the text, and beside it an id and what is to be kept."""

    text: str = "text"
    id: str | None = None
    keep: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Each once."""
        return list(dict.fromkeys([self.text, *([self.id] if self.id else []), *self.keep]))


@dataclass(frozen=True)
class Plan:
    """The chunks of a file or folder, in order, and what was read when it was made."""

    root: Path
    files: dict[str, str]  # name below root -> SHA-256
    chunks: tuple[Chunk, ...]

    @property
    def rows(self) -> int:
        return sum(chunk.rows for chunk in self.chunks)


@dataclass(slots=True)
class Row:
    """One row as it was found. `problem` is why it cannot be used, if so."""

    number: int
    line: int | None
    text: str = field(default="", repr=False)
    id: str | None = None
    kept: tuple[str | None, ...] = field(default=(), repr=False)
    problem: str | None = None


# ---- which files --------------------------------------------------------------------------------


def files_of(data: Path) -> tuple[Path, list[Path]]:
    """The folder that names are below, and the files to read, in order.

    Raises:
        DataError: nothing there, or of another kind.
    """
    if data.is_file():
        if data.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{data} ends in {data.suffix or 'nothing'}; {', '.join(SUFFIXES)} are understood."
            )
        return data.parent, [data]
    if not data.is_dir():
        raise DataError(f"There is no {data}. Give a CSV, JSONL or Parquet file, or a folder.")
    found = sorted(path for path in data.rglob("*") if path.is_file() and _is_data(path, data))
    if odd := [path for path in found if path.suffix.lower() not in SUFFIXES]:
        raise DataError(
            f"{data} holds {len(odd)} files of another kind, such as {odd[0].name}. Leave "
            f"{', '.join(SUFFIXES)} in it only, so that no row is left out unseen."
        )
    if not found:
        raise DataError(f"{data} holds no file ending in {', '.join(SUFFIXES)}.")
    return data, found


def _is_data(path: Path, root: Path) -> bool:
    """Not hidden, nor marked `_` as writers mark what is not data (_SUCCESS)."""
    return not any(part.startswith((".", "_")) for part in path.relative_to(root).parts)


def hashes(data: Path) -> dict[str, str]:
    """The SHA-256 of each file by its name below the root."""
    root, found = files_of(data)
    return {path.relative_to(root).as_posix(): sha256_file(path) for path in found}


# ---- the plan -----------------------------------------------------------------------------------


def plan(data: Path, columns: Columns, files: dict[str, str], cpus: int = 1) -> Plan:
    """Args: files: what `hashes` gave; cpus: that share the chunks.

    Raises:
        DataError: a file without rows of these columns.
    """
    root, _ = files_of(data)
    chunks: list[Chunk] = []
    stride = FEWEST_ROWS
    enough = max(CHUNKS, CHUNKS_PER_CPU * cpus, 2 * len(files))
    for name in files:
        for chunk in _smallest(root, name, columns):
            _add(chunks, chunk, stride)
            if len(chunks) > enough and stride < MOST_ROWS:
                stride *= 2
                chunks = _merged(chunks, stride)
    if not chunks:
        raise DataError(f"{data} has no rows. Expected the columns {', '.join(columns.names)}.")
    return Plan(root, files, tuple(replace(chunk, index=i) for i, chunk in enumerate(chunks)))


def _add(chunks: list[Chunk], chunk: Chunk, stride: int) -> None:
    """Appends it, or makes it part of the one before if both fit into `stride` rows."""
    last = chunks[-1] if chunks else None
    if last and last.file == chunk.file and last.rows + chunk.rows <= stride:
        chunks[-1] = replace(last, rows=last.rows + chunk.rows, end=chunk.end)
    else:
        chunks.append(chunk)


def _merged(chunks: Sequence[Chunk], stride: int) -> list[Chunk]:
    made: list[Chunk] = []
    for chunk in chunks:
        _add(made, chunk, stride)
    return made


def _smallest(root: Path, name: str, columns: Columns) -> Iterator[Chunk]:
    """A file in pieces of FEWEST_ROWS."""
    path = root / name
    match path.suffix.lower():
        case ".parquet":
            rows = _check_parquet(path, columns)
            for first in range(0, rows, FEWEST_ROWS):
                yield Chunk(0, name, first, min(FEWEST_ROWS, rows - first))
        case ".csv":
            header = csv_header(path, columns)
            yield from _cut(name, _csv_records(path, header, header.end, None, 1), path)
        case _:
            _check_jsonl(path, columns)
            yield from _cut(name, _lines(path, 0, None, 0), path)


def _cut(name: str, records: Iterator["_Record"], path: Path) -> Iterator[Chunk]:
    """Records in pieces of FEWEST_ROWS, by their offsets."""
    rows = 0
    begun: _Record | None = None
    for number, record in enumerate(records):
        if rows == FEWEST_ROWS and begun is not None:
            yield Chunk(0, name, number - rows, rows, begun.start, record.start, begun.line - 1)
            rows = 0
        begun = record if rows == 0 else begun
        rows += 1
    if begun is not None:
        size = path.stat().st_size
        yield Chunk(0, name, number + 1 - rows, rows, begun.start, size, begun.line - 1)


# ---- text files ---------------------------------------------------------------------------------


@dataclass(slots=True)
class _Record:
    """Where a record starts, its first line, and its bytes or cells."""

    start: int
    line: int
    data: Any = field(repr=False)
    problem: str | None = None


class _Feed:
    """A file's lines as text, from an offset on; knows how far it has read, and what was wrong."""

    def __init__(self, file: BinaryIO, start: int, line: int) -> None:
        file.seek(start)
        self._file = file
        self.offset, self.line = start, line
        self.problem: str | None = None

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        data = self._file.readline(_MAX_LINE)
        if not data:
            raise StopIteration
        at_start = self.offset == 0
        self.line += 1
        self.offset += len(data)
        if len(data) == _MAX_LINE and not data.endswith(b"\n"):
            self._skip_rest()
        try:
            text = data.decode()
        except UnicodeDecodeError:
            self.problem = "not UTF-8"
            text = data.decode(errors="replace")
        return text.removeprefix(_BOM) if at_start else text

    def _skip_rest(self) -> None:
        self.problem = f"a line of more than {_MAX_LINE >> 20} MiB"
        while rest := self._file.readline(_MAX_LINE):
            self.offset += len(rest)
            if rest.endswith(b"\n"):
                return


def _lines(path: Path, start: int, end: int | None, line: int) -> Iterator[_Record]:
    """The lines of a JSONL file that have a character."""
    with path.open("rb") as file:
        feed = _Feed(file, start, line)
        while end is None or feed.offset < end:
            began, feed.problem = feed.offset, None
            text = next(feed, None)
            if text is None:
                return
            if text.strip():
                yield _Record(began, feed.line, text, feed.problem)


def _csv_records(
    path: Path, header: "CsvHeader", start: int, end: int | None, line: int
) -> Iterator[_Record]:
    """The records of a CSV file; one that is broken ends where csv.reader gives it up."""
    with path.open("rb") as file:
        feed = _Feed(file, start, line)
        reader = csv.reader(feed, strict=True)
        while end is None or feed.offset < end:
            began, first, feed.problem = feed.offset, feed.line + 1, None
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield _Record(began, first, [], f"lines {first} to {feed.line}: {error}")
                continue
            if cells is None:
                return
            if cells:
                yield _Record(began, first, cells, feed.problem or header.misfit(cells))


@dataclass(frozen=True)
class CsvHeader:
    """The names of a CSV file's columns, and where its first row starts."""

    names: tuple[str, ...]
    end: int

    def misfit(self, cells: Sequence[str]) -> str | None:
        if len(cells) == len(self.names):
            return None
        return f"{len(cells)} fields, {len(self.names)} expected"


def csv_header(path: Path, columns: Columns) -> CsvHeader:
    """Raises DataError if it cannot be read, or lacks a column."""
    with path.open("rb") as file:
        feed = _Feed(file, 0, 0)
        try:
            names = next(csv.reader(feed, strict=True), [])
        except csv.Error as error:
            raise DataError(f"{path} has no header that can be read: {error}") from None
        if feed.problem:
            raise DataError(f"The header of {path} is {feed.problem}. Save the file as UTF-8.")
        _check_columns(path, names, columns)
        return CsvHeader(tuple(names), feed.offset)


def _check_columns(path: Path, found: Sequence[str], columns: Columns) -> None:
    for name in columns.names:
        if Counter(found)[name] > 1:
            raise DataError(f"{path} has the column {name!r} more than once. Rename one.")
        if name not in found:
            raise DataError(
                f"{path} has no column {name!r}. Found: {', '.join(found) or 'none'}. Use "
                "--text-column, --id-column and --keep-columns."
            )


def _check_jsonl(path: Path, columns: Columns) -> None:
    """Raises DataError if none of the first rows has the text's column: it is misspelt."""
    names: set[str] = set()
    for count, record in enumerate(_lines(path, 0, None, 0), 1):
        value, _ = _parsed(record)
        names.update(value or ())
        if count == _LOOKED_AT or columns.text in names:
            break
    if names and columns.text not in names:
        _check_columns(path, sorted(names), columns)


def _parsed(record: _Record) -> tuple[dict[str, Any] | None, str | None]:
    """The object of a line, or what is wrong with it."""
    if record.problem:
        return None, record.problem
    try:
        value = json.loads(record.data)
    except json.JSONDecodeError as error:
        return None, f"not JSON ({error.msg} at column {error.colno})"
    except (ValueError, RecursionError):  # a number of thousands of digits; a very deep list
        return None, "not JSON that can be read"
    if not isinstance(value, dict):
        return None, f"a JSON {type(value).__name__} instead of an object"
    return value, None


# ---- Parquet ------------------------------------------------------------------------------------


def _check_parquet(path: Path, columns: Columns) -> int:
    """The number of rows.

    Raises:
        DataError: it is no Parquet file, lacks a column, or the text's column holds no strings.
    """
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            rows = int(file.metadata.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a Parquet file that can be read: {error}") from None
    _check_columns(path, schema.names, columns)
    kind = schema.field(columns.text).type
    plain = kind.value_type if pt.is_dictionary(kind) else kind
    if not (pt.is_string(plain) or pt.is_large_string(plain) or pt.is_string_view(plain)):
        raise DataError(f"The column {columns.text!r} of {path} is {kind}; strings were expected.")
    return rows


class _Cursor:
    """A Parquet file, read forwards: a chunk that follows the last one goes on where that ended.

    Going back, or over whole row groups, opens it anew at the right group.
    """

    def __init__(self, path: Path, columns: Columns) -> None:
        self._file = pq.ParquetFile(path, buffer_size=_READ_BYTES)
        self._columns = columns.names
        meta = self._file.metadata
        sizes = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
        self._starts = [sum(sizes[:group]) for group in range(len(sizes) + 1)]
        self._next = meta.num_rows + 1
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._left: pa.RecordBatch | None = None

    def read(self, first: int, rows: int) -> Iterator[pa.RecordBatch]:
        """Rows `first` to `first + rows`, in batches."""
        if not self._is_near(first):
            self._open(self._group(first))
        stop = first + rows
        while self._next < stop:
            batch = next(self._batches, None) if self._left is None else self._left
            if batch is None:  # fewer rows than the footer said, which the reader tells
                return
            start, size = self._next, batch.num_rows
            taken = min(size, (first if start < first else stop) - start)
            self._left = batch.slice(taken) if taken < size else None
            self._next = start + taken
            if start >= first:
                yield batch.slice(0, taken)

    def _group(self, row: int) -> int:
        return next(g for g, start in enumerate(self._starts[1:]) if row < start)

    def _is_near(self, first: int) -> bool:
        return self._next <= first and (
            self._next == first or self._group(self._next) == self._group(first)
        )

    def _open(self, group: int) -> None:
        groups = list(range(group, len(self._starts) - 1))
        self._batches = self._file.iter_batches(_BATCH, groups, self._columns)
        self._next, self._left = self._starts[group], None


def _values(column: pa.Array) -> list[Any]:
    """Python values; bytes for a string that is not UTF-8, instead of an error for its batch."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        plain = column.dictionary_decode() if pt.is_dictionary(column.type) else column
        return [_decoded(value) for value in plain.cast(pa.large_binary()).to_pylist()]


def _decoded(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value


# ---- rows ---------------------------------------------------------------------------------------


class Reader:
    """Reads the rows of chunks; quickest in their order."""

    def __init__(self, root: Path, columns: Columns) -> None:
        self._root = root
        self._columns = columns
        self._cursor: tuple[str, _Cursor] | None = None

    def rows(self, chunk: Chunk) -> Iterator[Row]:
        """Raises DataError if the file cannot be read any more, or has not the rows planned."""
        path = self._root / chunk.file
        count = 0
        try:
            for count, row in enumerate(self._rows(path, chunk), 1):  # noqa: B007 - used below
                yield row
        except (pa.ArrowException, OSError) as error:
            self._cursor = None
            raise DataError(f"{path} cannot be read: {error}. Mend it and run again.") from None
        if count != chunk.rows:
            raise DataError(
                f"{path} has {count} rows where there were {chunk.rows}: it was changed while it "
                "was scored. Score it again into another folder."
            )

    def _rows(self, path: Path, chunk: Chunk) -> Iterator[Row]:
        match path.suffix.lower():
            case ".parquet":
                return self._parquet(path, chunk)
            case ".csv":
                return self._csv(path, chunk)
            case _:
                return self._jsonl(path, chunk)

    def _jsonl(self, path: Path, chunk: Chunk) -> Iterator[Row]:
        records = _lines(path, chunk.start, chunk.end, chunk.line)
        for number, record in enumerate(records, chunk.first):
            value, problem = _parsed(record)
            yield self._row(number, record.line, value, problem)

    def _csv(self, path: Path, chunk: Chunk) -> Iterator[Row]:
        header = csv_header(path, self._columns)
        records = _csv_records(path, header, chunk.start, chunk.end, chunk.line)
        for number, record in enumerate(records, chunk.first):
            value = None if record.problem else dict(zip(header.names, record.data, strict=True))
            yield self._row(number, record.line, value, record.problem)

    def _parquet(self, path: Path, chunk: Chunk) -> Iterator[Row]:
        number = chunk.first
        for batch in self._at(path, chunk.file).read(chunk.first, chunk.rows):
            names = self._columns.names
            columns = [_values(batch.column(name)) for name in names]
            for values in zip(*columns, strict=True):
                yield self._row(number, None, dict(zip(names, values, strict=True)), None)
                number += 1

    def _at(self, path: Path, name: str) -> _Cursor:
        if self._cursor is None or self._cursor[0] != name:
            self._cursor = name, _Cursor(path, self._columns)
        return self._cursor[1]

    def _row(
        self, number: int, line: int | None, value: dict[str, Any] | None, problem: str | None
    ) -> Row:
        if value is None:
            return Row(number, line, problem=problem)
        columns = self._columns
        row = Row(number, line)
        row.id = _word(value.get(columns.id)) if columns.id else None
        row.kept = tuple(_word(value.get(name)) for name in columns.keep)
        text = value.get(columns.text)
        if isinstance(text, str):
            row.text = text
        else:
            row.problem = _no_text(text, there=columns.text in value)
        return row


def _no_text(value: Any, *, there: bool) -> str:
    if isinstance(value, bytes):
        return "not UTF-8"
    return f"the text is {'a ' + type(value).__name__ if there else 'missing'}, not a string"


def _word(value: Any) -> str | None:
    """A kept value as text: itself, or JSON for what is more than a word."""
    if value is None or isinstance(value, str):
        return None if value is None else value.encode(errors="replace").decode()
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, list | dict | bool):
        return json.dumps(value, ensure_ascii=True, default=str)
    return str(value)
