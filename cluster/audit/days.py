"""The log's folder: one file per writer and UTC day, one Parquet file per compacted day."""

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

Clock = Callable[[], float]
_LOG_NAME: Final = re.compile(r"(\d{8})-.+\.jsonl")
_PARQUET_NAME: Final = re.compile(r"(\d{8})\.parquet")
BLOCK_BYTES: Final = 1 << 20


def start_of_last(descriptor: int, size: int, lines: int) -> int:
    """Where the last `lines` whole lines begin; read backwards, so the cost is that of the tail."""
    left, end = lines + 1, size
    while end:
        start = max(0, end - BLOCK_BYTES)
        block = os.pread(descriptor, end - start, start)
        if (found := block.count(b"\n")) < left:
            left, end = left - found, start
            continue
        at = len(block)
        for _ in range(left):
            at = block.rindex(b"\n", 0, at)
        return start + at + 1
    return 0


def day_of(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y%m%d")


def end_s(day: str) -> float:
    start = datetime.strptime(day, "%Y%m%d").replace(tzinfo=UTC)
    return (start + timedelta(days=1)).timestamp()


def days_of(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    names = (path.name for path in folder.iterdir())
    matches = (_LOG_NAME.fullmatch(name) or _PARQUET_NAME.fullmatch(name) for name in names)
    return sorted({match[1] for match in matches if match})


def is_log(path: Path) -> bool:
    """By its name, a writer's file."""
    return _LOG_NAME.fullmatch(path.name) is not None


def files_of(folder: Path, day: str) -> tuple[Path | None, list[Path]]:
    """A day's compacted file, if any, and its writers' files."""
    parquet = folder / f"{day}.parquet"
    return (parquet if parquet.exists() else None), sorted(folder.glob(f"{day}-*.jsonl"))


@contextmanager
def folder_lock(folder: Path, kind: int) -> Iterator[None]:
    """The lock is the folder's own, so a reader needs no right to write."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
