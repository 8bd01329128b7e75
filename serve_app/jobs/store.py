"""Jobs on disk: a folder each, so that they outlive every process. No Ray, no HTTP.

    <home>/inbox/                    files that a job may name; whoever runs the service fills it
    <home>/jobs/<id>/job.json        what is asked, whose it is, and how far it is
    <home>/jobs/<id>/texts.jsonl     texts that came with the request; gone when the job ends
    <home>/jobs/<id>/cancelled       the job is to be stopped and its folder removed
    <home>/jobs/<id>/out/            what `firstline score` writes (serve_app/scored.py)

Routers create jobs and mark them cancelled; the one runner does all the rest. Folders are for their
owner's eyes only (0700, files 0600).
"""

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.errors import DataError
from cluster.files import ROW_SUFFIXES, read_json, write_json
from serve_app.scored import PROGRESS

INBOX: Final = "inbox"
JOBS: Final = "jobs"
TEXTS: Final = "texts.jsonl"
OUT: Final = "out"
LOG: Final = "log.txt"
_JOB: Final = "job.json"
_CANCELLED: Final = "cancelled"
_TAKEN: Final = frozenset({errno.ENOTEMPTY, errno.EEXIST})
_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)


class JobState(StrEnum):
    """How far a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"  # until its folder is gone

    @property
    def is_over(self) -> bool:
        return self in {JobState.DONE, JobState.FAILED, JobState.CANCELLED}


class Job(BaseModel):
    """What is asked, and what became of it: the content of job.json. It holds no text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    owner: str = Field(description="id of the API key")
    release: str
    file: str | None = Field(None, description="below the inbox; None: texts.jsonl")
    text_column: str = "text"
    id_column: str | None = None
    rows: int | None = Field(None, description="of texts")
    state: JobState = JobState.QUEUED
    created_s: float
    ended_s: float | None = None
    attempts: int = 0
    error: str | None = None
    # The process that runs it; its start time, so that a reused pid is not taken for it.
    pid: int | None = None
    pid_started: int | None = None


class JobStore:
    """The jobs of a home. Reads and writes small files; call it off the event loop."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.root = home / JOBS

    def folder(self, job_id: str) -> Path:
        return self.root / job_id

    def add(self, job: Job, texts: Sequence[str] = ()) -> None:
        """Writes a job whole: a reader sees all of it, or nothing. One that is there stays."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        scratch = Path(tempfile.mkdtemp(dir=self.root, prefix="."))  # 0700
        try:
            if texts:
                descriptor = os.open(scratch / TEXTS, os.O_WRONLY | os.O_CREAT, 0o600)
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
            write_json(scratch / _JOB, job.model_dump(mode="json"))
            scratch.replace(self.folder(job.id))
        except BaseException as error:
            shutil.rmtree(scratch, ignore_errors=True)
            if not (isinstance(error, OSError) and error.errno in _TAKEN):
                raise

    def update(self, job: Job) -> None:
        """Does nothing if the job has been removed."""
        if self.folder(job.id).is_dir():
            write_json(self.folder(job.id) / _JOB, job.model_dump(mode="json"))

    def find(self, job_id: str) -> Job | None:
        """None if there is none, or one that this version cannot read."""
        folder = self.folder(job_id)
        if not _ID.fullmatch(job_id):
            return None
        try:
            job = Job.model_validate(read_json(folder / _JOB))
        except (OSError, ValidationError, ValueError):
            return None
        if (folder / _CANCELLED).exists():
            return job.model_copy(update={"state": JobState.CANCELLED})
        return job

    def all(self) -> list[Job]:
        """Oldest first."""
        names = [path.name for path in self.root.iterdir()] if self.root.is_dir() else []
        found = [job for name in names if (job := self.find(name)) is not None]
        return sorted(found, key=lambda job: (job.created_s, job.id))

    def progress(self, job: Job) -> tuple[int, int | None]:
        """Rows done and in all; None while nobody has counted them."""
        try:
            found = read_json(self.folder(job.id) / OUT / PROGRESS)
            return int(found["done"]), int(found["total"])
        except (OSError, ValueError, KeyError):
            return 0, job.rows

    def cancel(self, job: Job) -> None:
        """Marks it; whoever runs it stops it and removes it."""
        with contextlib.suppress(FileNotFoundError):  # gone already
            (self.folder(job.id) / _CANCELLED).touch(mode=0o600)

    def remove(self, job: Job) -> None:
        shutil.rmtree(self.folder(job.id), ignore_errors=True)

    def forget_texts(self, job: Job) -> None:
        (self.folder(job.id) / TEXTS).unlink(missing_ok=True)

    def data(self, job: Job) -> Path:
        """What is scored.

        Raises:
            DataError: the file is not in the inbox.
        """
        if job.file is None:
            return self.folder(job.id) / TEXTS
        return self.in_inbox(job.file)

    def in_inbox(self, name: str) -> Path:
        """The file of that name below the inbox, reached by no link.

        Raises:
            DataError: there is none, in the same words whatever lies outside.
        """
        parts = PurePosixPath(name).parts
        refusal = DataError(
            f"There is no such file in the service's inbox, or none ending in "
            f"{', '.join(ROW_SUFFIXES)}. Give its path below the inbox, without `..` or links."
        )
        if "\0" in name or name.startswith("/") or not parts or ".." in parts:
            raise refusal
        path = self._home / INBOX
        try:
            for part in parts:
                path = path / part
                if path.is_symlink():
                    raise refusal
            if not path.is_file() or path.suffix.lower() not in ROW_SUFFIXES:
                raise refusal
        except OSError:  # a name longer than the file system takes, or a folder that is closed
            raise refusal from None
        return path
