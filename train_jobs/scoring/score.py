"""Offline scoring: a file or folder of any size -> the answers that the service would give.

    firstline score messages.parquet --out scored

    plan ─> chunks ─> (Ray Data) an actor per core, each with both models:
                      read ─> prepare ─> edge ─> decide ─> cloud ─> parts/part-000000.parquet

In: a CSV, JSONL or Parquet file, or a folder of them, and a release. Out: a folder of Parquet parts
in the input's order, `refused.jsonl` and, last, `summary.json` (serve_app/scored.py).

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
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from math import fsum
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import ConfigError, DataError
from cluster.files import read_json, write_json
from cluster.progress import Report, silent
from cluster.releases import load_release
from cluster.settings import Settings
from serve_app.decide.policy import policy_of
from serve_app.scored import ORDER, PARTS, PROGRESS, REFUSED, SUMMARY, refused_part
from train_jobs.scoring.chunks import Chunk, Plan, files_of, hashes, plan
from train_jobs.scoring.columns import Columns
from train_jobs.scoring.on_ray import on_ray
from train_jobs.scoring.parts import accounted, is_done, sweep
from train_jobs.scoring.scorer import Order, Scored, Stamp, stamp_of

_LOCK: Final = ".lock"
_TOLD_EVERY_S: Final = 1.0


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


Execute = Callable[[Order, Sequence[Chunk], int | None], Iterator[Scored]]


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
    return {path.relative_to(root).as_posix(): stamp_of(path) for path in found}


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
    try:
        made = plan(config.data, config.columns, files, config.cpus or os.cpu_count() or 1)
    except DataError as error:
        if not config.background:
            raise
        # Of a file without a header, the names found are a customer's words, and a job's log stays.
        raise DataError(str(error).split(" Found: ")[0]) from None
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
