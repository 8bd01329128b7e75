"""A CSV, JSONL or Parquet file -> the cells of some columns, row by row, as strings."""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import DataError


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        header = next(reader, None)
        if header is None:
            return
        if doubled := [name for name, count in Counter(header).items() if name and count > 1]:
            raise DataError(
                f"{path} has the column {doubled[0]!r} more than once, so it is unclear which is "
                "meant. Rename or delete one."
            )
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(cells)} fields were found, "
                    f"{len(header)} expected ({', '.join(header)}). Quote fields that hold a comma."
                )
            yield reader.line_num, dict(zip(header, cells, strict=True))


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: not JSON ({error.msg} at column {error.colno}). "
                    "Each line must be one JSON object."
                ) from None
            if not isinstance(row, dict):
                raise DataError(
                    f"{path}, line {number}: a JSON {type(row).__name__} was found, an object "
                    "expected."
                )
            yield number, row


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    # Damage behind a good footer: a page that cannot be decompressed, or bytes that are no text.
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a Parquet file that can be read: {error}") from None


_READERS: Final[dict[str, Callable[[Path], Iterator[tuple[int, dict[str, Any]]]]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}


def _cell(value: Any, where: str) -> str:
    if isinstance(value, list | dict | bytes):
        raise DataError(
            f"{where}: a {type(value).__name__} was found, a string or a number expected."
        )
    return "" if value is None else str(value)


def read_rows(path: Path, columns: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Line number and the asked columns of each row.

    Raises:
        DataError: no such file, an unknown kind, a wrong encoding, a missing column, an empty
            file, a broken row or an empty cell, each with its line.
    """
    names = list(columns)
    if not path.is_file():
        raise DataError(f"There is no file {path}. Give the path of a CSV, JSONL or Parquet file.")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path} ends in {path.suffix or 'nothing'}; {', '.join(_READERS)} are understood."
        )
    seen = 0
    try:
        for number, row in reader(path):
            if missing := [name for name in names if name not in row]:
                raise DataError(
                    f"{path}, line {number}: no column {missing[0]!r}. Found: "
                    f"{', '.join(map(str, row))}. Use --text-column and --label-column."
                )
            seen += 1
            yield number, [_cell(row[name], f"{path}, line {number}, {name!r}") for name in names]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at offset {error.start} "
            "of a block. Convert it first, for example: iconv -f latin1 -t utf-8."
        ) from None
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV that can be read: {error}") from None
    if not seen:
        raise DataError(f"{path} has no rows. Expected columns: {', '.join(names)}.")
