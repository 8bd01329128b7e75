"""CSV and JSONL files of any size: records by offset, so that reading may begin at any of them."""

import csv
import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from cluster.errors import DataError
from train_jobs.rows.row import FoundRow, Problem, check_columns

_MAX_LINE: Final = 16 << 20
_LOOKED_AT: Final = 100  # rows of a JSONL file in which the column must turn up
_NOT_UTF8: Final = Problem(
    "not UTF-8", "Convert the file first, for example: iconv -f latin1 -t utf-8."
)
_OBJECTS: Final = "Each line must be one JSON object."
_BOM: Final = "\ufeff"


@dataclass(slots=True)
class TextRecord:
    """Where a record starts, its first line, and its text or cells."""

    start: int
    line: int
    data: Any = field(repr=False)
    problem: Problem | None = None


class _Feed:
    """A file's lines as text, from an offset on; knows how far it has read, and what was wrong."""

    def __init__(self, file: BinaryIO, start: int, line: int) -> None:
        file.seek(start)
        self._file = file
        self.offset, self.line = start, line
        self.problem: Problem | None = None
        self._ahead: deque[bytes] = deque()

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        data = self._line()
        if not data:
            raise StopIteration
        at_start = self.offset == 0
        self.line += 1
        self.offset += len(data)
        if len(data) == _MAX_LINE and not data.endswith((b"\n", b"\r")):
            self._skip_rest()
        try:
            text = data.decode()
        except UnicodeDecodeError:
            self.problem = _NOT_UTF8
            text = data.decode(errors="replace")
        return text.removeprefix(_BOM) if at_start else text

    def _line(self) -> bytes:
        """The next line; some spreadsheets end it with a carriage return alone."""
        if not self._ahead:
            data = self._file.readline(_MAX_LINE)
            self._ahead.extend(data.splitlines(keepends=True))
            if len(data) == _MAX_LINE and len(self._ahead) > 1:  # the last may be half a line
                self._file.seek(-len(self._ahead.pop()), os.SEEK_CUR)
        return self._ahead.popleft() if self._ahead else b""

    def _skip_rest(self) -> None:
        self.problem = Problem(
            f"a line of more than {_MAX_LINE >> 20} MiB", "Split it, or delete the row."
        )
        while rest := self._file.readline(_MAX_LINE):
            line = rest.splitlines(keepends=True)[0]
            self.offset += len(line)
            if line.endswith((b"\n", b"\r")):
                self._file.seek(len(line) - len(rest), os.SEEK_CUR)
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


def jsonl_rows(
    path: Path, start: int = 0, end: int | None = None, line: int = 0
) -> Iterator[FoundRow]:
    """The rows that begin in bytes `start` to `end`; `line` is the number of the line before."""
    return map(_parsed, lines_of(path, start, end, line))


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
                problem = _no_csv(f"lines {first} to {feed.line}: {error}")
                yield TextRecord(began, first, [], problem)
                continue
            if cells is None:
                return
            if cells:
                yield TextRecord(began, first, cells, feed.problem or header.misfit(cells))


def csv_rows(
    path: Path,
    header: "CsvHeader",
    start: int | None = None,
    end: int | None = None,
    line: int | None = None,
) -> Iterator[FoundRow]:
    """As `jsonl_rows`; by default, all below the header."""
    start, line = header.end if start is None else start, header.line if line is None else line
    for record in csv_records(path, header, start, end, line):
        cells = None if record.problem else dict(zip(header.names, record.data, strict=True))
        yield FoundRow(record.line, cells, record.problem)


def _no_csv(what: str) -> Problem:
    return Problem(
        what,
        "So the file is not a CSV that can be read. Look for a quotation mark that is not closed, "
        "or not doubled.",
    )


@dataclass(frozen=True)
class CsvHeader:
    """The names of a CSV file's columns, the offset where it ends, and its last line."""

    names: tuple[str, ...]
    end: int
    line: int

    def misfit(self, cells: Sequence[str]) -> Problem | None:
        if len(cells) == len(self.names):
            return None
        return Problem(
            f"{len(cells)} fields, {len(self.names)} expected",
            f"The columns are {', '.join(self.names)}. Quote fields that hold a comma.",
        )


def csv_header(path: Path) -> CsvHeader:
    """Raises DataError if it cannot be read."""
    with path.open("rb") as file:
        feed = _Feed(file, 0, 0)
        try:
            names = next(csv.reader(feed, strict=True), [])
        except csv.Error as error:
            raise DataError(f"{path} has no header that can be read: {error}") from None
        if feed.problem:
            raise DataError(f"The header of {path} is {feed.problem.what}. {feed.problem.advice}")
        return CsvHeader(tuple(names), feed.offset, feed.line)


def check_jsonl(path: Path, column: str) -> None:
    """Raises DataError if none of the first rows has the column: it is misspelt."""
    names: set[str] = set()
    for count, row in enumerate(jsonl_rows(path), 1):
        names.update(row.cells or ())
        if count == _LOOKED_AT or column in names:
            break
    if names:
        check_columns(path, sorted(names), [column])


def _parsed(record: TextRecord) -> FoundRow:
    """The object of a line, or what is wrong with it."""
    if record.problem:
        return FoundRow(record.line, None, record.problem)
    try:
        value = json.loads(record.data)
    except json.JSONDecodeError as error:
        what = f"not JSON ({error.msg} at column {error.colno})"
        return FoundRow(record.line, None, Problem(what, _OBJECTS))
    except (ValueError, RecursionError):  # a number of thousands of digits; a very deep list
        return FoundRow(record.line, None, Problem("not JSON that can be read", _OBJECTS))
    if not isinstance(value, dict):
        what = f"a JSON {type(value).__name__} instead of an object"
        return FoundRow(record.line, None, Problem(what, _OBJECTS))
    return FoundRow(record.line, value)
