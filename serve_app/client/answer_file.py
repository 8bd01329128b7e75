"""Rows of a file -> answers in another file, as they come; the same again goes on.

    answers.jsonl              one line per answered row, in the file's order, each batch when paid
    answers.refused.jsonl      the rows that were set aside, with the reason; no such file: none
    .answers.jsonl.run.json    while it is not finished: over what, and under which name

A run that was killed, or that the service left, is told by the last of these. A batch that was
paid and not written is asked for again by the same Idempotency-Key: within ten minutes it is the
same answer, and not paid twice.
"""

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from cluster.errors import DataError
from cluster.files import read_json, write_json, write_text
from serve_app.client.calls import Answer, batches
from serve_app.client.client import Firstline
from serve_app.client.exchange import ResponseError
from serve_app.request_limits import fault_of

_UNPROCESSABLE: Final = 422


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its number from 0, its line in a text file, and why it has no answer, if so."""

    number: int
    line: int | None
    text: str = field(default="", repr=False)
    problem: str | None = None

    @property
    def place(self) -> dict[str, int]:
        return {"row": self.number} | ({} if self.line is None else {"line": self.line})


def checked(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Those that a service would take, and those to set aside.

    Raises:
        DataError: there is none to ask for.
    """
    good: list[Row] = []
    bad: list[Row] = []
    for row in rows:
        problem = row.problem or fault_of(row.text)
        if problem is None:
            good.append(row)
        else:
            bad.append(replace(row, problem=problem))
    if not good:
        first = f" The first: {bad[0].problem}." if bad else ""
        raise DataError(f"None of the {len(rows):,} rows can be answered.{first}")
    return good, bad


class AnswerFile:
    """Where the answers go; None: nowhere, they are only given back.

    Args:
        over: what tells this run from another: the input's hash, columns, options.

    Raises:
        DataError: it cannot be written, or holds another run's answers.
    """

    def __init__(self, path: Path | None, over: Mapping[str, Any]) -> None:
        self._path = path
        self._over = dict(over)
        self.run = uuid.uuid4().hex
        self.answers: dict[int, Answer] = {}
        self._whole_bytes = 0
        if path is None:
            return
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "no file"
            raise DataError(f"--out {path} is {kind}. Name a file, such as {path}/answers.jsonl.")
        was_there = path.exists()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("ab").close()
            if not was_there:
                path.unlink()
        except OSError as error:
            raise DataError(
                f"--out {path} cannot be written: {error.strerror}. Name a file in a folder that "
                "you may write to."
            ) from None
        if was_there and self._state.exists():
            self._go_on(path)

    @property
    def _state(self) -> Path:
        assert self._path is not None
        return self._path.with_name(f".{self._path.name}.run.json")

    @property
    def refused(self) -> Path | None:
        """Where the rows are that were set aside."""
        return self._path and self._path.with_name(f"{self._path.stem}.refused.jsonl")

    def _go_on(self, path: Path) -> None:
        try:
            found = read_json(self._state)
            run, begun = str(found["run"]), dict(found["over"])
        except (ValueError, KeyError, TypeError):
            run, begun = "", {}
        if begun != self._over:
            differs = [name for name, value in self._over.items() if begun.get(name) != value]
            raise DataError(
                f"{path} holds the first answers of a run that was not finished, and that differs "
                f"in: {', '.join(differs)}. Finish it with its own command, delete {path}, or give "
                "another --out."
            )
        self.run = run
        for size, row, answer in _lines(path):
            self.answers[row] = answer
            self._whole_bytes += size

    def begin(self) -> None:
        """Forgets what an earlier run left: all of it, or what a kill cut off."""
        if self._path is None:
            return
        with self._path.open("ab") as file:
            file.truncate(self._whole_bytes)
        write_json(self._state, {"run": self.run, "over": self._over})

    def write(self, rows: Sequence[Row], answers: Sequence[Answer]) -> None:
        """A batch at a time, since each was paid."""
        self.answers |= {row.number: one for row, one in zip(rows, answers, strict=True)}
        if self._path is None:
            return
        lines = [
            json.dumps({**row.place, **one}, ensure_ascii=False) + "\n"
            for row, one in zip(rows, answers, strict=True)
        ]
        with self._path.open("ab") as file:
            file.write("".join(lines).encode())

    def set_aside(self, rows: Sequence[Row]) -> None:
        """All of them; says why, and never what."""
        if self.refused is None:
            return
        self.refused.unlink(missing_ok=True)
        if rows:
            lines = [json.dumps({**row.place, "reason": row.problem}) + "\n" for row in rows]
            write_text(self.refused, "".join(lines))

    @property
    def kept(self) -> str:
        """What becomes of the answers of a run that does not end, in words."""
        if self._path is None:
            return "without --out they are lost."
        return f"they are in {self._path}, and the same command goes on after them."

    def finish(self) -> None:
        if self._path is not None:
            self._state.unlink(missing_ok=True)


def _lines(path: Path) -> Iterator[tuple[int, int, Answer]]:
    """The size, row and answer of each whole line, up to the first that is none."""
    with path.open("rb") as file:
        for line in file:
            try:
                found = json.loads(line)
                row = int(found.pop("row"))
            except (ValueError, KeyError, TypeError, AttributeError):
                return
            found.pop("line", None)
            if not line.endswith(b"\n"):
                return
            yield len(line), row, found


def answer_rows(
    client: Firstline, rows: Sequence[Row], out: AnswerFile, *, explain: bool = False
) -> list[Row]:
    """Asks for what `out` has no answer to yet; the rows that were set aside.

    A row that the service refuses, because it knows more than we do, is set aside too.

    Raises:
        DataError: none of the rows can be answered.
        ServiceError: the service does not answer; what it did is written.
    """
    good, bad = checked(rows)
    client.release()  # nothing of an earlier run is forgotten for a service that is not there
    out.begin()
    out.set_aside(bad)
    left = [row for row in good if row.number not in out.answers]
    while left:
        _, fits = next(batches(row.text for row in left))
        batch = left[: len(fits)]
        try:
            answers = client.classify(
                [row.text for row in batch],
                explain=explain,
                idempotency_key=f"{out.run}/{batch[0].number}",
            )
        except ResponseError as error:
            refused = _named(batch, error)
            if not refused:
                raise
            bad += refused
            out.set_aside(bad)
            gone = {row.number for row in refused}
            left = [row for row in left if row.number not in gone]
            continue
        out.write(batch, answers)
        left = left[len(batch) :]
    out.finish()
    return sorted(bad, key=lambda row: row.number)


def _named(batch: Sequence[Row], error: ResponseError) -> list[Row]:
    """The rows that a refusal names; none where it is about something else."""
    if error.status != _UNPROCESSABLE:
        return []
    return [
        replace(row, problem=error.texts[at]) for at, row in enumerate(batch) if at in error.texts
    ]
