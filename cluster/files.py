"""Writing so that a reader sees the whole thing or nothing, whatever happens in between."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

# Files of rows: what can be trained on, scored, and named in a job.
ROW_SUFFIXES: Final = (".csv", ".jsonl", ".ndjson", ".parquet")


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a value's canonical JSON, so that key order does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Writes a file whole, through a temporary file beside it and a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes pretty JSON whole; keeps the order of keys."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yields a scratch folder that becomes `target` if the block ends well, and vanishes if not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = _beside(target)
    try:
        yield scratch
        scratch.chmod(0o755)
        if target.exists():  # moved aside, not deleted in place, which could stop half-way
            old = _beside(target)
            target.replace(old)
            scratch.replace(target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            scratch.replace(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _beside(target: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
