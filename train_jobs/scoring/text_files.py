"""CSV and JSONL files of any size: records by offset, so that reading may begin at any of them."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from cluster.errors import DataError
from train_jobs.scoring.columns import Columns, check_columns

_MAX_LINE: Final = 16 << 20
_LOOKED_AT: Final = 100  # rows of a JSONL file in which the column must turn up
_BOM: Final = "\ufeff"


@dataclass(slots=True)
class TextRecord:
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


def lines_of(path: Path, start: int, end: int | None, line: int) -> Iterator[TextRecord]:
    """The lines of a JSONL file that have a character."""
    with path.open("rb") as file:
        feed = _Feed(file, start, line)
        while end is None or feed.offset < end:
            began, feed.problem = feed.offset, None
            text = next(feed, None)
            if text is None:
                return
            if text.strip():
                yield TextRecord(began, feed.line, text, feed.problem)


def csv_records(
    path: Path, header: "CsvHeader", start: int, end: int | None, line: int
) -> Iterator[TextRecord]:
    """The records of a CSV file; one that is broken ends where csv.reader gives it up."""
    with path.open("rb") as file:
        feed = _Feed(file, start, line)
        reader = csv.reader(feed, strict=True)
        while end is None or feed.offset < end:
            began, first, feed.problem = feed.offset, feed.line + 1, None
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield TextRecord(began, first, [], f"lines {first} to {feed.line}: {error}")
                continue
            if cells is None:
                return
            if cells:
                yield TextRecord(began, first, cells, feed.problem or header.misfit(cells))


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
        check_columns(path, names, columns)
        return CsvHeader(tuple(names), feed.offset)


def check_jsonl(path: Path, columns: Columns) -> None:
    """Raises DataError if none of the first rows has the text's column: it is misspelt."""
    names: set[str] = set()
    for count, record in enumerate(lines_of(path, 0, None, 0), 1):
        value, _ = parsed(record)
        names.update(value or ())
        if count == _LOOKED_AT or columns.text in names:
            break
    if names and columns.text not in names:
        check_columns(path, sorted(names), columns)


def parsed(record: TextRecord) -> tuple[dict[str, Any] | None, str | None]:
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
