"""Offline scoring: a file or folder of any size -> the answers that the service would give.

    firstline score messages.parquet --out scored

    plan ─> chunks ─> (Ray Data) an actor per core, each with both models:
                      read ─> prepare ─> edge ─> decide ─> cloud ─> parts/part-000000.parquet

In: a CSV, JSONL or Parquet file, or a folder of them, and a release. Out: a folder of Parquet parts
in the input's order, `refused.jsonl` and, last, `summary.json` (cluster/scored.py).

Decided once:
- Only the names of chunks travel through Ray, never a text, and one actor holds a few rows at a
  time: memory does not grow with the input, and nothing is spilled to a disk that holds messages.
- Both models stand in one actor, so no core is idle because the other tier has the work.
- A chunk's files are written beside their names and renamed when whole, refused rows first. So a
  run that was killed goes on with the chunks that have no part, and loses or doubles no row.
- Where no tier that may see a row answers (serve_app/cascade/offline.py), it is refused.
- Raw text is in the output only if `--keep-columns` names its column.
"""

import fcntl
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import fsum
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import ConfigError, DataError, FirstlineError, ServiceError
from cluster.files import read_json, write_json
from cluster.progress import Report, silent
from cluster.releases import load_release
from cluster.scored import ORDER, PARTS, PROGRESS, REFUSED, SUMMARY, refused_part
from cluster.settings import Settings, load_settings
from serve_app.cascade.offline import Pair
from serve_app.contracts import Message
from serve_app.decide.policy import policy_of
from serve_app.guard.prepare import MAX_CHARS, prepare
from train_jobs.scoring.chunks import Chunk, Columns, Plan, Reader, Row, files_of, hashes, plan
from train_jobs.scoring.ledger import Ledger
from train_jobs.scoring.parts import Parts, accounted, is_done, sweep

log = logging.getLogger(__name__)

_BATCH: Final = 256  # rows in work at a time
_LOCK: Final = ".lock"
_NICE: Final = 10
_ATTEMPTS: Final = 3  # pools of actors
_TOLD_EVERY_S: Final = 1.0
_SHOWN: Final = 200  # characters of an error of Ray's


Stamp = tuple[int, int]  # a file's bytes and its time: what a change would move


class ScoreConfig(BaseModel):
    """What is scored, and where to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path
    out: Path
    release: str
    text_column: str = "text"
    id_column: str | None = None
    keep_columns: tuple[str, ...] = Field((), description="written too, as `input_<name>`")
    cpus: int | None = Field(None, ge=1, description="None: every one there is")
    background: bool = Field(False, description="a service's job: nice, audited, no Ray CPU")

    @property
    def columns(self) -> Columns:
        return Columns(self.text_column, self.id_column, self.keep_columns)


class Summary(BaseModel):
    """What a finished folder holds: the content of summary.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    release: str
    files: int
    rows: int
    answered: int
    refused: int
    edge_share: float | None = Field(description="of the answered; None: there are none")
    pinned: int
    degraded: int
    cost_usd: float
    seconds: float = Field(description="of the run that finished it, Ray's start included")
    scoring_s: float = Field(description="of it, from the first chunk's start to the last's end")
    scored_rows: int = Field(description="in that run; the others were there from one before")


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


Execute = Callable[[Order, Sequence[Chunk], int | None], Iterator[Scored]]


# ---- a chunk ------------------------------------------------------------------------------------


class Scorer:
    """Scores chunks, one after the other: what an actor is."""

    def __init__(self, order: Order, pair: Pair, ledger: Ledger | None = None) -> None:
        self._order = order
        self._pair = pair
        self._ledger = ledger
        self._reader = Reader(order.root, order.columns)

    def score(self, chunk: Chunk) -> Scored:
        """Writes the chunk's parts; twice gives the same.

        Raises:
            DataError: its file cannot be read any more, or was changed.
        """
        started_s = time.time()
        order = self._order
        with Parts(order.out, chunk, order.columns, order.release, self._pair.prices) as parts:
            for rows in _batches(self._reader.rows(chunk)):
                self._score(chunk.file, rows, parts)
            self._check_unchanged(chunk.file)
        return Scored(chunk.index, chunk.rows, started_s, time.time())

    def _check_unchanged(self, name: str) -> None:
        path = self._order.root / name
        if _stamp(path) != self._order.stamps[name]:
            raise DataError(
                f"{path} was changed while it was scored. Score it again into another folder."
            )

    def _score(self, file: str, rows: Sequence[Row], parts: Parts) -> None:
        if self._ledger is not None:  # a service's job: what comes out of it, its guard has seen
            for row in rows:
                row.id = prepare(row.id).text if row.id is not None else None
        messages = [message for row in rows if (message := _message(row)) is not None]
        works = iter(self._pair.answer(messages) if messages else ())
        found = [(row, next(works) if row.problem is None else None) for row in rows]
        if self._ledger is not None:
            known = [(row.number, work) for row, work in found if work is not None and work.known]
            self._ledger.write(file, known)
        for row, work in found:
            if work is not None and work.known:
                parts.answer(row, work)
            else:
                parts.refuse(row, row.problem or "no tier that may see it answered")


def _message(row: Row) -> Message | None:
    """The prepared text; None, and the reason in `row.problem`, if there is none to answer."""
    if row.problem is None and len(row.text) > MAX_CHARS:
        row.problem = f"{len(row.text):,} characters, of which {MAX_CHARS:,} are the limit"
    if row.problem is not None:
        return None
    message = prepare(row.text)
    if not message.text:
        row.problem = "no visible character"
        return None
    return message


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


# ---- the stage ----------------------------------------------------------------------------------


def run(
    config: ScoreConfig,
    settings: Settings,
    report: Report = silent,
    execute: Execute | None = None,
) -> Summary:
    """Scores what is not scored yet; a finished folder is only read.

    Args:
        execute: where the chunks are scored; None: Ray Data.

    Raises:
        ConfigError: the folder holds the scores of something else, or another run works in it.
        DataError: the input cannot be used, or was changed meanwhile.
        ReleaseError, BundleError: the release cannot be used.
        ServiceError: Ray gave up.
    """
    began = time.monotonic()
    policy_of(load_release(settings, config.release))
    _check_apart(config)
    (config.out / PARTS).mkdir(parents=True, exist_ok=True)
    with _locked(config.out):
        stamps = _stamps(config.data)
        made = _planned(config)
        summary = _known(config.out)
        if summary is not None:
            return summary
        order = Order(
            home=settings.home,
            release=config.release,
            root=made.root.absolute(),
            out=config.out.absolute(),
            columns=config.columns,
            stamps=stamps,
            background=config.background,
        )
        scored = _score_all(order, made, config.cpus, report, execute or on_ray)
        return _finish(config, made, scored, time.monotonic() - began)


def _check_apart(config: ScoreConfig) -> None:
    """Raises ConfigError if the scores would become a part of the input."""
    if config.out.resolve().is_relative_to(config.data.resolve()):
        raise ConfigError(f"{config.out} lies in {config.data}. Give an --out outside of it.")


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Raises ConfigError if another run works in the folder. A killed one holds no lock."""
    with (out / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"Another `firstline score` works in {out}. Wait for it, or give another --out."
            ) from None
        yield


def _stamps(data: Path) -> dict[str, Stamp]:
    root, found = files_of(data)
    return {path.relative_to(root).as_posix(): _stamp(path) for path in found}


def _stamp(path: Path) -> Stamp:
    seen = path.stat()
    return seen.st_size, seen.st_mtime_ns


def _planned(config: ScoreConfig) -> Plan:
    """The plan that the folder began with, or a new one, written down.

    Raises:
        ConfigError: it began with another input, release or columns.
    """
    files = hashes(config.data)
    asked = {
        "files": files,
        "release": config.release,
        "text_column": config.text_column,
        "id_column": config.id_column,
        "keep_columns": list(config.keep_columns),
    }
    path = config.out / ORDER
    if path.exists():
        root, _ = files_of(config.data)
        return Plan(root, files, _chunks_of(path, asked))
    made = plan(config.data, config.columns, files, config.cpus or os.cpu_count() or 1)
    write_json(path, {"asked": asked, "chunks": [list(asdict(c).values()) for c in made.chunks]})
    return made


def _chunks_of(path: Path, asked: Mapping[str, Any]) -> tuple[Chunk, ...]:
    found = read_json(path)
    differ = [name for name, value in asked.items() if found["asked"].get(name) != value]
    if differ:
        told = "; ".join(
            "the files or their content" if name == "files"
            else f"{name} is {asked[name]!r}, and was {found['asked'].get(name)!r}"
            for name in differ
        )  # fmt: skip
        raise ConfigError(
            f"{path.parent} holds the scores of something else. What differs: {told}. Give "
            "another --out, or the arguments from before."
        )
    return tuple(Chunk(*values) for values in found["chunks"])


def _known(out: Path) -> Summary | None:
    path = out / SUMMARY
    return Summary.model_validate(read_json(path)) if path.exists() else None


def _score_all(
    order: Order, made: Plan, cpus: int | None, report: Report, execute: Execute
) -> list[Scored]:
    """Has the chunks scored that have no part yet, and tells how far it is."""
    out = order.out
    sweep(out)
    todo = [chunk for chunk in made.chunks if not is_done(out, chunk)]
    tell = _Teller(out, made.rows - sum(chunk.rows for chunk in todo), made.rows, report)
    scored: list[Scored] = []
    for one in execute(order, todo, cpus) if todo else ():
        scored.append(one)
        tell(one.rows)
    return scored


class _Teller:
    """Tells the terminal of this run, and progress.json, for whoever looks from outside, of all."""

    def __init__(self, out: Path, before: int, total: int, report: Report) -> None:
        self._path = out / PROGRESS
        self._before = self._done = before
        self._total, self._report = total, report
        self._told_s = 0.0
        self(0)

    def __call__(self, rows: int) -> None:
        self._done += rows
        before = self._before
        note = f"rows, {before} were there" if before else "rows"
        self._report(self._done - before, self._total - before, note)
        now = time.monotonic()
        if now - self._told_s >= _TOLD_EVERY_S or self._done == self._total:
            self._told_s = now
            write_json(self._path, {"done": self._done, "total": self._total})


def _finish(config: ScoreConfig, made: Plan, scored: Sequence[Scored], seconds: float) -> Summary:
    """Puts the refused rows together, and writes the summary last.

    Raises:
        DataError: a part is missing, or does not account for every row of its chunk.
    """
    out = config.out
    counts = [accounted(out, chunk) for chunk in made.chunks]
    with tempfile.NamedTemporaryFile("wb", dir=out, prefix=".", delete=False) as file:
        for chunk in made.chunks:
            path = refused_part(out, chunk.index)
            file.write(path.read_bytes() if path.exists() else b"")
    Path(file.name).replace(out / REFUSED)
    answered = sum(one.answered for one in counts)
    cloud = sum(one.cloud for one in counts)
    ends = [one.ended_s for one in scored]
    summary = Summary(
        release=config.release,
        files=len(made.files),
        rows=made.rows,
        answered=answered,
        refused=sum(one.refused for one in counts),
        edge_share=(answered - cloud) / answered if answered else None,
        pinned=sum(one.pinned for one in counts),
        degraded=sum(one.degraded for one in counts),
        cost_usd=fsum(one.cost_usd for one in counts),
        seconds=round(seconds, 3),
        scoring_s=round(max(ends) - min(one.started_s for one in scored), 3) if ends else 0.0,
        scored_rows=sum(one.rows for one in scored),
    )
    write_json(out / SUMMARY, summary.model_dump(mode="json"))
    return summary


# ---- where chunks are scored --------------------------------------------------------------------


def here(order: Order, chunks: Sequence[Chunk], cpus: int | None) -> Iterator[Scored]:
    """In this process, one after the other."""
    yield from map(_scorer(order).score, chunks)


def _scorer(order: Order) -> Scorer:
    settings = load_settings(order.home)
    release = load_release(settings, order.release)
    ledger = Ledger(settings, release, order.out) if order.background else None
    return Scorer(order, Pair.of(release), ledger)


class ChunkActor:
    """A Ray Data actor: the fields of a chunk -> the fields of what came of it."""

    def __init__(self, order: Order) -> None:
        if order.background:
            os.nice(_NICE)
        self._scorer: Scorer | FirstlineError
        try:
            self._scorer = _scorer(order)
        except FirstlineError as error:
            # Of an actor that dies on its way up Ray keeps the words, and not the kind of error.
            self._scorer = error

    def __call__(self, chunk: dict[str, Any]) -> dict[str, Any]:
        if isinstance(self._scorer, FirstlineError):
            raise self._scorer
        return asdict(self._scorer.score(Chunk(**chunk)))


def on_ray(order: Order, chunks: Sequence[Chunk], cpus: int | None) -> Iterator[Scored]:
    """By Ray Data, in a pool of actors with one thread each, in whatever order they get done.

    A pool that lost an actor is started again, for the chunks that have no part yet.

    Raises:
        FirstlineError: what an actor raised; ServiceError: Ray gave up.
    """
    import ray
    from ray.exceptions import RayError

    from cluster.connect import connected

    left = {chunk.index: chunk for chunk in chunks}
    with connected(load_settings(order.home), num_cpus=cpus):
        found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        size = cpus or int(found.get("CPU", 1))
        for attempt in range(_ATTEMPTS):
            try:
                for one in _pooled(order, list(left.values()), size):
                    del left[one.index]
                    yield one
            except (RayError, FirstlineError) as error:
                cause = _cause(error)
                if not isinstance(cause, ServiceError) or attempt == _ATTEMPTS - 1:
                    raise cause from error
                log.warning("%s", cause)
            for chunk in [one for one in left.values() if is_done(order.out, one)]:
                yield Scored(left.pop(chunk.index).index, chunk.rows, time.time(), time.time())
            if not left:
                return


def _pooled(order: Order, chunks: Sequence[Chunk], size: int) -> Iterator[Scored]:
    import ray.data
    from ray.util.annotations import RayDeprecationWarning

    _quieten(ray.data.DataContext.get_current())
    names = ray.data.from_items(list(map(asdict, chunks)), override_num_blocks=len(chunks))
    with warnings.catch_warnings():
        # 2.60 has no other way to say that an actor which dies, for want of memory say, is not to
        # be started again without end.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        scored = names.map(
            ChunkActor,  # type: ignore[arg-type]  # a class, of which Ray makes the callable
            fn_constructor_args=(order,),
            compute=ray.data.ActorPoolStrategy(
                size=min(size, len(chunks)), max_tasks_in_flight_per_actor=2
            ),
            num_cpus=0 if order.background else 1,
            max_restarts=0,
        )
    for row in scored.iter_rows():
        yield Scored(**row)


def _quieten(context: Any) -> None:
    """Our progress is told by `cluster.progress`; Ray Data's own bars and notes are off."""
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what went wrong is raised


def _cause(error: BaseException) -> FirstlineError:
    """Ours, out of what Ray put around it."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, FirstlineError):
            return found
        found = getattr(found, "cause", None) or found.__cause__
    return ServiceError(
        f"Ray gave up on scoring: {str(error).strip().splitlines()[-1][:_SHOWN]} ... Run the same "
        "command again: it goes on where it stopped."
    )
