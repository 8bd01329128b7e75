"""A file or folder of any size -> chunks of rows that are the same every time, and their rows.

    plan(data, columns) -> Plan: which rows of which file each chunk has, by row number and offset
    Reader(plan, columns).rows(chunk) -> its rows in order, the broken ones with what is wrong

A row is a row of a Parquet file, a line of a JSONL file, or a record of a CSV file; lines without
a character are none. A row that cannot be used is given with its problem, never left out. Nothing
here holds more than a few rows, however large a file is.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from cluster.errors import DataError
from cluster.files import ROW_SUFFIXES, sha256_file
from train_jobs.rows.parquet_files import Cursor, holds_strings, schema_of
from train_jobs.rows.row import FoundRow, check_columns
from train_jobs.rows.text_files import (
    TextRecord,
    check_jsonl,
    csv_header,
    csv_records,
    csv_rows,
    jsonl_rows,
    lines_of,
)
from train_jobs.scoring.columns import Columns

# Small enough that two cores share 10,000 rows fairly.
FEWEST_ROWS: Final = 256
# What a kill may cost: less than a minute of a core.
MOST_ROWS: Final = 65_536
# Each costs Ray some ms; beyond so many, chunks grow instead, up to MOST_ROWS.
CHUNKS: Final = 128
CHUNKS_PER_CPU: Final = 32


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
class InputRow:
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
        if data.suffix.lower() not in ROW_SUFFIXES:
            raise DataError(
                f"{data} ends in {data.suffix or 'nothing'}; {', '.join(ROW_SUFFIXES)} are "
                "understood."
            )
        return data.parent, [data]
    if not data.is_dir():
        raise DataError(f"There is no {data}. Give a CSV, JSONL or Parquet file, or a folder.")
    found = sorted(path for path in data.rglob("*") if path.is_file() and _is_data(path, data))
    if odd := [path for path in found if path.suffix.lower() not in ROW_SUFFIXES]:
        raise DataError(
            f"{data} holds {len(odd)} files of another kind, such as {odd[0].name}. Leave "
            f"{', '.join(ROW_SUFFIXES)} in it only, so that no row is left out unseen."
        )
    if not found:
        raise DataError(f"{data} holds no file ending in {', '.join(ROW_SUFFIXES)}.")
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
            header = csv_header(path)
            check_columns(path, header.names, columns.names)
            yield from _cut(name, csv_records(path, header, header.end, None, header.line), path)
        case _:
            check_jsonl(path, columns.text)
            yield from _cut(name, lines_of(path, 0, None, 0), path)


def _check_parquet(path: Path, columns: Columns) -> int:
    """The number of rows.

    Raises:
        DataError: it is no Parquet file, lacks a column, or the text's column holds no strings.
    """
    schema, rows = schema_of(path)
    check_columns(path, schema.names, columns.names)
    kind = schema.field(columns.text).type
    if not holds_strings(kind):
        raise DataError(f"The column {columns.text!r} of {path} is {kind}; strings were expected.")
    return rows


def _cut(name: str, records: Iterator[TextRecord], path: Path) -> Iterator[Chunk]:
    """Records in pieces of FEWEST_ROWS, by their offsets."""
    rows = 0
    begun: TextRecord | None = None
    for number, record in enumerate(records):
        if rows == FEWEST_ROWS and begun is not None:
            yield Chunk(0, name, number - rows, rows, begun.start, record.start, begun.line - 1)
            rows = 0
        begun = record if rows == 0 else begun
        rows += 1
    if begun is not None:
        size = path.stat().st_size
        yield Chunk(0, name, number + 1 - rows, rows, begun.start, size, begun.line - 1)


# ---- rows ---------------------------------------------------------------------------------------


class Reader:
    """Reads the rows of chunks; quickest in their order."""

    def __init__(self, root: Path, columns: Columns) -> None:
        self._root = root
        self._columns = columns
        self._cursor: tuple[str, Cursor] | None = None

    def rows(self, chunk: Chunk) -> Iterator[InputRow]:
        """Raises DataError if the file cannot be read any more, or has not the rows planned."""
        path = self._root / chunk.file
        count = 0
        try:
            for count, found in enumerate(self._rows(path, chunk), 1):
                yield self._row(chunk.first + count - 1, found)
        except (pa.ArrowException, OSError) as error:
            self._cursor = None
            raise DataError(f"{path} cannot be read: {error}. Mend it and run again.") from None
        if count != chunk.rows:
            raise DataError(
                f"{path} has {count} rows where there were {chunk.rows}: it was changed while it "
                "was scored. Score it again into another folder."
            )

    def _rows(self, path: Path, chunk: Chunk) -> Iterator[FoundRow]:
        match path.suffix.lower():
            case ".parquet":
                return self._at(path, chunk.file).rows(chunk.first, chunk.rows)
            case ".csv":
                return csv_rows(path, csv_header(path), chunk.start, chunk.end, chunk.line)
            case _:
                return jsonl_rows(path, chunk.start, chunk.end, chunk.line)

    def _at(self, path: Path, name: str) -> Cursor:
        if self._cursor is None or self._cursor[0] != name:
            self._cursor = name, Cursor(path, self._columns.names)
        return self._cursor[1]

    def _row(self, number: int, found: FoundRow) -> InputRow:
        row, columns, cells = InputRow(number, found.line), self._columns, found.cells
        if cells is None:
            row.problem = found.problem.what if found.problem else None
            return row
        row.id = _word(cells.get(columns.id)) if columns.id else None
        row.kept = tuple(_word(cells.get(name)) for name in columns.keep)
        text = cells.get(columns.text)
        if isinstance(text, str):
            row.text = text
        else:
            row.problem = _no_text(text, there=columns.text in cells)
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
