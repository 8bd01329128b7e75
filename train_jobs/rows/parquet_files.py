"""Parquet files of any size: a cursor that reads forwards, a few rows at a time."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from cluster.errors import DataError
from train_jobs.rows.row import FoundRow

_BATCH: Final = 256
_READ_BYTES: Final = 1 << 20  # a row group of any size is streamed, not held


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raises DataError where the file turns out to be none; also behind a footer that is whole."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a Parquet file that can be read: {error}") from None


def schema_of(path: Path) -> tuple[pa.Schema, int]:
    """The schema and the number of rows.

    Raises:
        DataError: it is no Parquet file.
    """
    with readable(path), pq.ParquetFile(path) as file:
        return file.schema_arrow, int(file.metadata.num_rows)


def holds_strings(kind: pa.DataType) -> bool:
    plain = kind.value_type if pt.is_dictionary(kind) else kind
    return bool(pt.is_string(plain) or pt.is_large_string(plain) or pt.is_string_view(plain))


class Cursor:
    """A Parquet file, read forwards: a chunk that follows the last one goes on where that ended.

    Going back, or over whole row groups, opens it anew at the right group.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._file = pq.ParquetFile(path, buffer_size=_READ_BYTES)
        self._columns = list(columns)
        meta = self._file.metadata
        sizes = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
        self._starts = [sum(sizes[:group]) for group in range(len(sizes) + 1)]
        self._next = meta.num_rows + 1
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._left: pa.RecordBatch | None = None

    def rows(self, first: int, count: int) -> Iterator[FoundRow]:
        """Rows `first` to `first + count`."""
        for batch in self._read(first, count):
            columns = [_values(batch.column(name)) for name in self._columns]
            for cells in zip(*columns, strict=True):
                yield FoundRow(None, dict(zip(self._columns, cells, strict=True)))

    def _read(self, first: int, rows: int) -> Iterator[pa.RecordBatch]:
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
