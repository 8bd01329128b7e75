"""A chunk of rows -> its answers, by a release's two models in this process."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cluster.errors import DataError
from cluster.releases import load_release
from cluster.settings import load_settings
from serve_app.cascade.offline import OfflineCascade
from serve_app.contracts import Message
from serve_app.guard.pii import redact
from serve_app.guard.prepare import Redactor, prepare, redactor_of
from serve_app.request_limits import MAX_CHARS
from train_jobs.scoring.chunks import Chunk, InputRow, Reader
from train_jobs.scoring.columns import Columns
from train_jobs.scoring.job_audit import JobAudit
from train_jobs.scoring.parts import PartWriter

_BATCH: Final = 256  # rows in work at a time
Stamp = tuple[int, int]  # a file's bytes and its time: what a change would move


@dataclass(frozen=True)
class Order:
    """What an actor is told: which release scores what, and where the parts go."""

    home: Path
    release: str
    root: Path
    out: Path
    columns: Columns
    stamps: Mapping[str, Stamp]  # of the files when they were hashed
    background: bool = False


@dataclass(frozen=True, slots=True)
class Scored:
    """A chunk that is done. Times are of the wall clock."""

    index: int
    rows: int
    started_s: float
    ended_s: float


class ChunkScorer:
    """Scores chunks, one after the other: what an actor is."""

    def __init__(
        self,
        order: Order,
        pair: OfflineCascade,
        audit: JobAudit | None = None,
        redactor: Redactor = redact,
    ) -> None:
        self._redactor = redactor
        self._order = order
        self._pair = pair
        self._audit = audit
        self._reader = Reader(order.root, order.columns)

    def score(self, chunk: Chunk) -> Scored:
        """Writes the chunk's parts; twice gives the same.

        Raises:
            DataError: its file cannot be read any more, or was changed.
        """
        started_s = time.time()
        order = self._order
        with PartWriter(order.out, chunk, order.columns, order.release, self._pair.prices) as parts:
            for rows in _batches(self._reader.rows(chunk)):
                self._score(chunk.file, rows, parts)
            self._check_unchanged(chunk.file)
        return Scored(chunk.index, chunk.rows, started_s, time.time())

    def _check_unchanged(self, name: str) -> None:
        path = self._order.root / name
        if stamp_of(path) != self._order.stamps[name]:
            raise DataError(
                f"{path} was changed while it was scored. Score it again into another folder."
            )

    def _score(self, file: str, rows: Sequence[InputRow], parts: PartWriter) -> None:
        if self._audit is not None:  # a service's job: what comes out of it, its guard has seen
            for row in rows:
                row.id = prepare(row.id, self._redactor).text if row.id is not None else None
        prepared = (_message(row, self._redactor) for row in rows)
        messages = [message for message in prepared if message is not None]
        works = iter(self._pair.answer(messages) if messages else ())
        found = [(row, next(works) if row.problem is None else None) for row in rows]
        if self._audit is not None:
            known = [(row.number, work) for row, work in found if work is not None and work.known]
            self._audit.write(file, known)
        for row, work in found:
            if work is not None and work.known:
                parts.answer(row, work)
            else:
                parts.refuse(row, row.problem or "no tier that may see it answered")


def _message(row: InputRow, redactor: Redactor) -> Message | None:
    """The prepared text; None, and the reason in `row.problem`, if there is none to answer."""
    if row.problem is None and len(row.text) > MAX_CHARS:
        row.problem = f"{len(row.text):,} characters, of which {MAX_CHARS:,} are the limit"
    if row.problem is not None:
        return None
    message = prepare(row.text, redactor)
    if not message.text:
        row.problem = "no visible character"
        return None
    return message


def _batches(rows: Iterator[InputRow]) -> Iterator[list[InputRow]]:
    batch: list[InputRow] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def stamp_of(path: Path) -> Stamp:
    seen = path.stat()
    return seen.st_size, seen.st_mtime_ns


def scorer_of(order: Order) -> ChunkScorer:
    settings = load_settings(order.home)
    release = load_release(settings, order.release)
    audit = JobAudit(settings, release, order.out) if order.background else None
    return ChunkScorer(order, OfflineCascade.of(release), audit, redactor_of(release.guard))
