"""A folder that `firstline score` filled: what lies where, and its answers in the input's order.

    order.json                    what is scored with what, and in which chunks
    parts/part-000000.parquet     the answers of a chunk; with its counts, written last of the chunk
    parts/part-000000.jsonl       its refused rows, if there are any
    progress.json                 rows done and in all
    refused.jsonl  summary.json   of the whole; a folder with a summary is finished

Pure half of serve_app: train_jobs/scoring/score.py writes by these names, serve_app/jobs/routes.py
reads by them.
"""

import json
from collections.abc import Iterator
from heapq import merge
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

ORDER: Final = "order.json"
PARTS: Final = "parts"
PROGRESS: Final = "progress.json"
REFUSED: Final = "refused.jsonl"
SUMMARY: Final = "summary.json"
_BATCH: Final = 1024


def part(out: Path, index: int) -> Path:
    """The answers of a chunk."""
    return out / PARTS / f"part-{index:06d}.parquet"


def refused_part(out: Path, index: int) -> Path:
    """The refused rows of a chunk."""
    return part(out, index).with_suffix(".jsonl")


def refusals(path: Path) -> Iterator[dict[str, Any]]:
    """The refused rows of a chunk; none if it has no such file."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def rows(out: Path) -> Iterator[dict[str, Any]]:
    """Every row of a finished folder, answered or refused, in the order of the input."""
    for path in sorted((out / PARTS).glob("part-*.parquet")):
        yield from merge(_answers(path), refusals(path.with_suffix(".jsonl")), key=_row)


def _answers(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_BATCH):
            yield from batch.to_pylist()


def _row(row: dict[str, Any]) -> int:
    return int(row["row"])
