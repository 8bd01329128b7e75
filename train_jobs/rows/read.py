"""A file in which every row must be good -> the cells of some columns, row by row, as strings.

For training, and for whatever else is small enough to be mended. What scores a file of any size
reads the same rows by chunks, and goes on after a broken one: `train_jobs/scoring/chunks.py`.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import DataError
from cluster.files import ROW_SUFFIXES
from train_jobs.rows.parquet_files import Cursor, holds_strings, readable, schema_of
from train_jobs.rows.row import FoundRow, check_columns, missing
from train_jobs.rows.text_files import csv_header, csv_rows, jsonl_rows


def read_rows(path: Path, columns: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Line number (of Parquet, row number) and the asked columns of each row.

    Raises:
        DataError: no such file, an unknown kind, a wrong encoding, a missing column, an empty
            file, a broken row or a cell that is no text, each with its line.
    """
    names = list(columns)
    if not path.is_file():
        raise DataError(f"There is no file {path}. Give the path of a CSV, JSONL or Parquet file.")
    if path.suffix.lower() not in ROW_SUFFIXES:
        raise DataError(
            f"{path} ends in {path.suffix or 'nothing'}; {', '.join(ROW_SUFFIXES)} are understood."
        )
    count = 0
    for count, row in enumerate(_rows(path, names), 1):
        number = row.line or count
        where = f"{path}, line {number}"
        if row.problem is not None:
            raise DataError(f"{where}: {row.problem.what}. {row.problem.advice}")
        assert row.cells is not None
        for name in names:
            if name not in row.cells:
                raise missing(where, name, row.cells)
        yield number, [_cell(row.cells[name], f"{where}, {name!r}") for name in names]
    if not count:
        raise DataError(f"{path} has no rows. Expected columns: {', '.join(names)}.")


def _rows(path: Path, names: Sequence[str]) -> Iterator[FoundRow]:
    match path.suffix.lower():
        case ".parquet":
            schema, rows = schema_of(path)
            check_columns(path, schema.names, names)
            strings = [name for name in names if holds_strings(schema.field(name).type)]
            with readable(path):
                for row in Cursor(path, names).rows(0, rows):
                    if row.cells and any(isinstance(row.cells[name], bytes) for name in strings):
                        raise OSError(f"a string of {', '.join(strings)} is not UTF-8")
                    yield row
        case ".csv":
            header = csv_header(path)
            if header.names:  # else the file is empty
                check_columns(path, header.names, names)
            yield from csv_rows(path, header)
        case _:
            yield from jsonl_rows(path)


def _cell(value: Any, where: str) -> str:
    if isinstance(value, list | dict | bytes):
        raise DataError(
            f"{where}: a {type(value).__name__} was found, a string or a number expected."
        )
    return "" if value is None else str(value)
