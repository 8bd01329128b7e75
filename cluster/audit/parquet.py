"""A compacted day: its columns, its records, and the files that it was made of.

pyarrow is imported where it is used: a router's replica writes, and never needs it.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from cluster.audit.records import (
    ANSWER_FIELDS,
    Record,
    as_chance,
    as_flag,
    as_number,
    as_numbers,
    as_size,
    as_text,
    as_text_or_none,
    as_time,
    build,
)
from cluster.errors import AuditError
from cluster.files import sha256_file

_SOURCES: Final = b"firstline_sources"


def source_of(path: Path) -> list[str]:
    return [path.name, sha256_file(path)]


def is_compacted(path: Path, sources: Sequence[Sequence[str]]) -> bool:
    """By content too: a file of an old name that a clock set back made again is no source."""
    return any(name == path.name for name, _ in sources) and source_of(path) in sources


def schema_of(sources: Sequence[Sequence[str]]) -> Any:
    import pyarrow as pa

    kinds: dict[Any, Any] = {
        as_text: pa.string(),
        as_text_or_none: pa.string(),
        as_time: pa.float64(),
        as_number: pa.float64(),
        as_chance: pa.float64(),
        as_numbers: pa.map_(pa.string(), pa.float64()),
        as_flag: pa.bool_(),
        as_size: pa.int32(),
    }
    columns = [("kind", pa.string())]
    columns += [(name, kinds[read]) for name, read in ANSWER_FIELDS.items()]
    return pa.schema(columns, metadata={_SOURCES: json.dumps(sources)})


def parquet_records(file: BinaryIO, path: Path, last: int | None) -> Iterator[Record]:
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
                yield build(row)
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


def sources_of(parquet: Path) -> list[list[str]]:
    """[name, SHA-256] of each file that was compacted into this one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = pq.read_schema(parquet).metadata[_SOURCES]
        return [[as_text(name), as_text(digest)] for name, digest in json.loads(found)]
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise _broken(parquet, error) from error


def _broken(path: Path, error: Exception) -> AuditError:
    return AuditError(
        f"The compacted day {path} cannot be read ({type(error).__name__}: {error}). Restore it "
        "from a backup, or move it away to read the other days."
    )
