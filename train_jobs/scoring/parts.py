"""The files of one scored chunk: answers as Parquet, refused rows as JSONL, and their counts.

Both are written beside their names and renamed when whole, the refused rows first. So the answers'
file marks a chunk that is done, and a chunk that is scored twice gives the same. Nothing waits for
the disk: a file that a power cut left short says of itself that it is not whole.
"""

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from math import fsum
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import DataError
from serve_app.cascade.work import Work
from serve_app.contracts import Route
from serve_app.decide.cost import Prices
from serve_app.scored import PARTS, part, refused_part
from train_jobs.scoring.chunks import Chunk, InputRow
from train_jobs.scoring.columns import Columns

_ROW_GROUP: Final = 4096  # rows held before they are written
_COUNTS: Final = b"firstline_counts"
_SUFFIX: Final = ".tmp"


@dataclass(slots=True)
class PartCounts:
    """What became of the rows of a chunk."""

    rows: int = 0
    answered: int = 0
    refused: int = 0
    cloud: int = 0
    pinned: int = 0
    degraded: int = 0
    cost_usd: float = 0.0


def schema(columns: Columns) -> pa.Schema:
    """The columns of a part."""
    fields = [
        ("file", pa.string()),
        ("row", pa.int64()),
        *([("id", pa.string())] if columns.id else []),
        ("label", pa.string()),
        ("confidence", pa.float64()),
        ("route", pa.string()),
        ("reason", pa.string()),
        ("cost_usd", pa.float64()),
        ("degraded", pa.bool_()),
        ("release", pa.string()),
        *((f"input_{name}", pa.string()) for name in columns.keep),
    ]
    return pa.schema(fields)


class PartWriter:
    """Both files of a chunk: whole under their names after the block, or not there."""

    def __init__(
        self, out: Path, chunk: Chunk, columns: Columns, release: str, prices: Prices
    ) -> None:
        self._out, self._chunk, self._columns = out, chunk, columns
        self._release, self._prices = release, prices
        self._schema = schema(columns)
        self._held: list[tuple[Any, ...]] = []
        self._counts = PartCounts(rows=chunk.rows)
        self._costs: list[float] = []

    def __enter__(self) -> "PartWriter":
        self._answers, self._answers_path = _scratch(self._out / PARTS)
        self._refused, self._refused_path = _scratch(self._out / PARTS)
        self._writer = pq.ParquetWriter(self._answers, self._schema)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._writer.close()  # a second time does nothing
            self._answers.close()
            self._refused.close()
            self._answers_path.unlink(missing_ok=True)
            self._refused_path.unlink(missing_ok=True)

    def answer(self, row: InputRow, work: Work) -> None:
        """Args: work: a finished one."""
        final, counts = work.final, self._counts
        assert final is not None
        cost_usd = work.cost_usd(self._prices)
        given = (row.id,) if self._columns.id else ()
        self._held.append((
            self._chunk.file, row.number, *given, final.label, final.confidence, work.route.value,
            work.reason.value, cost_usd, work.degraded, self._release, *row.kept,
        ))  # fmt: skip
        self._costs.append(cost_usd)
        counts.answered += 1
        counts.cloud += work.route is Route.CLOUD
        counts.pinned += work.message.pinned is not None
        counts.degraded += work.degraded
        if len(self._held) == _ROW_GROUP:
            self._flush()

    def refuse(self, row: InputRow, reason: str) -> None:
        """Sets a row aside, with where it stands and never what it says."""
        place: dict[str, Any] = {"file": self._chunk.file, "row": row.number}
        place |= {} if row.line is None else {"line": row.line}
        place |= {} if row.id is None else {"id": row.id}
        self._refused.write(f"{json.dumps({**place, 'reason': reason})}\n".encode())
        self._counts.refused += 1

    def _flush(self) -> None:
        if not self._held:
            return
        arrays = [
            pa.array(column, field.type)
            for column, field in zip(zip(*self._held, strict=True), self._schema, strict=True)
        ]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._held, self._costs = [], [fsum(self._costs)]

    def _finish(self) -> None:
        self._flush()
        self._counts.cost_usd = fsum(self._costs)
        self._writer.add_key_value_metadata({_COUNTS: json.dumps(asdict(self._counts)).encode()})
        self._writer.close()
        self._refused.flush()
        self._answers.flush()
        if self._counts.refused:
            self._refused_path.replace(refused_part(self._out, self._chunk.index))
        self._answers_path.replace(part(self._out, self._chunk.index))


def _scratch(folder: Path) -> tuple[BinaryIO, Path]:
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=_SUFFIX)
    return os.fdopen(descriptor, "wb"), Path(name)


def sweep(out: Path) -> None:
    """Removes what a killed run left half-written."""
    for left in (out / PARTS).glob(f".*{_SUFFIX}"):
        left.unlink(missing_ok=True)


def is_done(out: Path, chunk: Chunk) -> bool:
    """Whether a chunk has a part that is whole and accounts for all of its rows."""
    try:
        return accounted(out, chunk).rows == chunk.rows
    except DataError:
        return False


def accounted(out: Path, chunk: Chunk) -> PartCounts:
    """The counts of a chunk that is done.

    Raises:
        DataError: its part is missing, is none of ours, or does not account for every row.
    """
    path = part(out, chunk.index)
    try:
        counts = PartCounts(**json.loads(pq.read_metadata(path).metadata[_COUNTS]))
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        raise DataError(
            f"{path} is missing, or not a part that `firstline score` wrote. Delete it if it is "
            "there, and run the same command again."
        ) from None
    if not counts.rows == chunk.rows == counts.answered + counts.refused:
        raise DataError(
            f"{path} accounts for {counts.answered} answered and {counts.refused} refused rows, "
            f"and its chunk has {chunk.rows}. Delete it and run the same command again."
        )
    return counts
