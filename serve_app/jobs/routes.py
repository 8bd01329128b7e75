"""POST /v1/jobs, GET, DELETE: many messages at once, scored beside the service.

    POST ─> <home>/jobs/<id>/ ─> the runner (runner.py) ─> `firstline score` ─> GET .../results

A job belongs to the API key that made it; to any other it does not exist. One that is asked for
again with its `Idempotency-Key` is the same job, on whatever router: its id is made of the request.
A job that the disk does not take is refused, and its texts are not counted. Texts that came with a
request lie on disk (0600) only until the job ends; its results until DELETE, or a day after its
end. A file is named below `<home>/inbox`, which only the operator fills.
"""

import asyncio
import errno
import json
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cluster.errors import DataError, FirstlineError, ServiceError
from cluster.files import read_json
from serve_app.access.admission import Admission
from serve_app.access.keys import Scope
from serve_app.contracts import Caller
from serve_app.http.errors import ErrorOut, problem
from serve_app.http.middleware import SAME_REQUEST
from serve_app.http.models import IdempotencyKey, null_is_absent
from serve_app.jobs.runner import RunnerClient
from serve_app.jobs.store import OUT, Job, JobState, JobStore
from serve_app.scored import SUMMARY, rows

log = logging.getLogger(__name__)

MAX_TEXTS: Final = 10_000
MAX_QUEUED: Final = 32  # jobs that are not over; each holds its texts on the disk
MAX_QUEUED_PER_KEY: Final = 8  # so that one key leaves room for others
RETRY_AFTER_S: Final = 30
_LINES: Final = 256  # of results that are sent at a time
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_Column = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]+$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class JobIn(_Model):
    texts: list[str] | None = Field(
        None,
        min_length=1,
        max_length=MAX_TEXTS,
        repr=False,
        description="one that cannot be answered is set aside with the reason",
        examples=[["Where is my order?"]],
    )
    file: str | None = Field(
        None,
        min_length=1,
        max_length=1000,
        repr=False,
        description="instead: a CSV, JSONL or Parquet file, by its path below the service's inbox",
    )
    text_column: Annotated[_Column, null_is_absent(_Column)] = Field(
        "text", description="of the file"
    )
    id_column: _Column | None = Field(
        None, description="of the file; its values come back, personal data masked"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> "JobIn":
        if (self.texts is None) == (self.file is None):
            raise ValueError("give texts, or a file, and not both")
        if self.texts is not None and (self.text_column != "text" or self.id_column is not None):
            raise ValueError("text_column and id_column are of a file")
        return self


class JobOut(_Model):
    id: str
    state: JobState
    release: str
    created_at: str
    rows_done: int
    rows_total: int | None = Field(description="null until they are counted")
    error: str | None = Field(None, description="of a failed job")
    summary: dict[str, Any] | None = Field(None, description="of a job that is done")
    results: str | None = Field(None, description="where its answers are, once it is done")


class UnknownJobError(FirstlineError):
    """There is no such job, or it is another key's."""


class JobNotDoneError(FirstlineError):
    """A job has no results yet, or never will."""


class UnknownFileError(FirstlineError):
    """The inbox has no such file."""


class QueueFullError(FirstlineError):
    """More jobs wait than may."""


class StorageError(FirstlineError):
    """The disk that jobs are kept on does not take, or give, what it should."""

    def __init__(self, error: OSError) -> None:
        self.is_full = error.errno in _FULL
        kind = errno.errorcode.get(error.errno or 0, type(error).__name__)
        found = "is full" if self.is_full else f"cannot be used ({kind})"
        super().__init__(
            f"The disk that jobs are kept on {found}, so nothing was done and no text was counted. "
            "Ask the operator to mend that, and then again."
        )


class Jobs:
    """The jobs of a service; several routers may have one each, for everything is on disk.

    Args:
        release: the id of the release that a new job is scored by.
        now: the time of day.
    """

    def __init__(
        self,
        home: Path,
        release: Callable[[], str],
        runner: RunnerClient,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = JobStore(home)
        self._release, self._runner = release, runner
        self._now = now

    async def resume(self) -> None:
        """Has the runner go on with what an earlier service left; call it once at the start."""
        if await asyncio.to_thread(self._store.all):  # the finished ones are removed in time
            await self._poke()

    async def known(self, owner: str, job_id: str | None) -> JobOut | None:
        """The job of that id, if it is there and theirs. Raises StorageError."""
        job = None if job_id is None else await asyncio.to_thread(self._store.find, job_id)
        if job is None or job.owner != owner:
            return None
        return await asyncio.to_thread(self._shown, job)

    async def create(self, owner: str, asked: JobIn, job_id: str | None = None) -> JobOut:
        """Puts a job in the queue.

        Args:
            job_id: 32 hex digits that only the very same request of this owner has; None: new ones.

        Raises:
            UnknownFileError, QueueFullError, StorageError
        """
        job = Job(
            id=job_id or secrets.token_hex(16),
            owner=owner,
            release=self._release(),
            file=asked.file,
            text_column=asked.text_column,
            id_column=asked.id_column,
            rows=None if asked.texts is None else len(asked.texts),
            created_s=self._now(),
        )
        await asyncio.to_thread(self._add, job, asked.texts or [])
        await self._poke()
        return await asyncio.to_thread(self._shown, job)

    def _add(self, job: Job, texts: list[str]) -> None:
        if job.file is not None:
            try:
                self._store.in_inbox(job.file)
            except DataError as error:
                raise UnknownFileError(str(error)) from None
        with _disk():
            waiting = [one for one in self._store.all() if not one.state.is_over]
            own = sum(one.owner == job.owner for one in waiting)
            if len(waiting) >= MAX_QUEUED or own >= MAX_QUEUED_PER_KEY:
                raise QueueFullError(
                    f"{len(waiting)} jobs wait or run, {own} of them of this key; at most "
                    f"{MAX_QUEUED} and {MAX_QUEUED_PER_KEY} may. Wait until one is done."
                )
            self._store.add(job, texts)

    async def get(self, owner: str, job_id: str) -> JobOut:
        """Raises UnknownJobError, StorageError."""
        job = await asyncio.to_thread(self._find, owner, job_id)
        if job.state is JobState.QUEUED:
            await self._poke()
        return await asyncio.to_thread(self._shown, job)

    async def delete(self, owner: str, job_id: str) -> None:
        """Stops it if it runs, and removes all of it.

        Raises:
            UnknownJobError, StorageError
            ServiceError: the runner does not answer; the job goes when it does.
        """
        job = await asyncio.to_thread(self._find, owner, job_id)
        await asyncio.to_thread(self._cancel, job)
        if not await self._runner.cleared(job.id):
            raise ServiceError("The job is being stopped. Ask again in a moment.")

    def _cancel(self, job: Job) -> None:
        with _disk():
            self._store.cancel(job)

    async def results(self, owner: str, job_id: str) -> Iterator[str]:
        """Its answers as JSON lines, some at a time, in the order of the input.

        Raises:
            UnknownJobError, JobNotDoneError
        """
        job = await asyncio.to_thread(self._find, owner, job_id)
        if job.state is not JobState.DONE:
            raise JobNotDoneError(f"The job is {job.state}; its results are there once it is done.")
        return _lines(self._store.folder(job.id) / OUT)

    def _find(self, owner: str, job_id: str) -> Job:
        job = self._store.find(job_id)
        if job is None or job.owner != owner:
            raise UnknownJobError("There is no such job. It may have been removed.")
        return job

    def _shown(self, job: Job) -> JobOut:
        is_done = job.state is JobState.DONE
        done, total = self._store.progress(job)
        with _disk():
            summary = read_json(self._store.folder(job.id) / OUT / SUMMARY) if is_done else None
        return JobOut(
            id=job.id,
            state=job.state,
            release=job.release,
            created_at=datetime.fromtimestamp(job.created_s, UTC).isoformat(timespec="seconds"),
            rows_done=done,
            rows_total=total,
            error=job.error,
            summary=summary,
            results=f"/v1/jobs/{job.id}/results" if is_done else None,
        )

    async def _poke(self) -> None:
        """Open on failure: the job is on disk, and the next look at it pokes again."""
        try:
            await self._runner.poke()
        except ServiceError as error:
            log.warning("A job waits: %s", error)


@contextmanager
def _disk() -> Iterator[None]:
    """Raises StorageError, instead of what the disk says."""
    try:
        yield
    except OSError as error:
        log.warning("The jobs' disk: %s", error.strerror)
        raise StorageError(error) from error


def _lines(out: Path) -> Iterator[str]:
    found = rows(out)
    while some := list(islice(found, _LINES)):
        yield "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in some)


# ---- the routes ---------------------------------------------------------------------------------


async def _unknown(request: Request, error: Exception) -> Response:
    return problem(404, str(error), code="unknown_job")


async def _not_done(request: Request, error: Exception) -> Response:
    return problem(409, str(error), code="job_not_done")


async def _full(request: Request, error: Exception) -> Response:
    return problem(
        429, str(error), code="too_many_jobs", headers={"Retry-After": str(RETRY_AFTER_S)}
    )


async def _no_file(request: Request, error: Exception) -> Response:
    return problem(422, str(error), code="unknown_file")


async def _no_disk(request: Request, error: Exception) -> Response:
    assert isinstance(error, StorageError)
    status, code = (507, "disk_full") if error.is_full else (503, "storage_failed")
    return problem(status, str(error), code=code)


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorOut} for status in statuses}


def add_jobs(api: FastAPI, jobs: Jobs, admission: Admission) -> None:
    """Adds the routes; each needs a key with the scope `classify`."""
    Known = Annotated[Caller, Depends(admission.needs(Scope.CLASSIFY))]  # noqa: N806 - a type
    api.add_exception_handler(UnknownJobError, _unknown)
    api.add_exception_handler(JobNotDoneError, _not_done)
    api.add_exception_handler(QueueFullError, _full)
    api.add_exception_handler(UnknownFileError, _no_file)
    api.add_exception_handler(StorageError, _no_disk)

    @api.post(
        "/v1/jobs",
        status_code=202,
        response_model=JobOut,
        responses=_errors(400, 409, 413, 422, 429, 503, 507),
        summary="Score up to 10,000 texts, or a file of the inbox, in the background",
    )
    async def create(
        request: Request, body: JobIn, caller: Known, idempotency_key: IdempotencyKey = None
    ) -> Response:
        same_request = request.scope.get(SAME_REQUEST)
        made = await jobs.known(caller.key, same_request)
        replayed = {} if made is None else {"Idempotent-Replay": "true"}
        if made is None:
            async with admission.taking(caller, body.texts or []):
                made = await jobs.create(caller.key, body, same_request)
        headers = {"Location": f"/v1/jobs/{made.id}", **replayed}
        return JSONResponse(made.model_dump(mode="json"), 202, headers)

    @api.get(
        "/v1/jobs/{job_id}",
        response_model=JobOut,
        responses=_errors(404),
        summary="How far a job is",
    )
    async def get(job_id: str, caller: Known) -> Response:
        return JSONResponse((await jobs.get(caller.key, job_id)).model_dump(mode="json"))

    @api.get(
        "/v1/jobs/{job_id}/results",
        responses={200: {"content": {"application/x-ndjson": {}}}, **_errors(404, 409)},
        response_class=StreamingResponse,
        summary="The answers of a job that is done, as JSON lines",
    )
    async def results(job_id: str, caller: Known) -> Response:
        lines = await jobs.results(caller.key, job_id)
        return StreamingResponse(lines, media_type="application/x-ndjson")

    @api.delete(
        "/v1/jobs/{job_id}",
        status_code=204,
        responses=_errors(404, 503),
        summary="Stop a job, and remove it with its texts and results",
    )
    async def delete(job_id: str, caller: Known) -> Response:
        await jobs.delete(caller.key, job_id)
        return Response(status_code=204)
