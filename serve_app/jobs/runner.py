"""The one runner of a service's jobs: takes them from disk in their order, and runs each as
`firstline score`, a driver of its own on the service's Ray cluster.

Ray's own job API needs a dashboard, which a local service does not run, so a job is what that API
would start: a process that joins the cluster, started here by a detached actor. It is one way for
both kinds of cluster, and the very command a user would type. If the actor dies, Ray starts it
again; if the service stops, the next one's runner goes on: a job that ran is put back in the queue,
and score.py scores only what it has no part of yet.
"""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from pydantic import BaseModel, ConfigDict, Field

from cluster.connect import NAMESPACE
from cluster.errors import FirstlineError, ServiceError
from cluster.processes import started
from cluster.ray_private.environment import ADDRESS
from serve_app.jobs.store import LOG, OUT, Job, JobState, JobStore

log = logging.getLogger(__name__)

ACTOR_NAME: Final = "firstline-jobs"
_POLL_S: Final = 0.2
_SWEEP_EVERY_S: Final = 60.0
_STOP_WAIT_S: Final = 5.0
_ANSWER_WAIT_S: Final = 30.0
_ATTEMPTS: Final = 5
_ERROR_MARK: Final = "firstline: "


class JobsConfig(BaseModel):
    """What a service allows of jobs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: int = Field(1, ge=1, description="processes of one job, at a lower priority")
    retention_s: float = Field(86_400.0, gt=0, description="from its end until it is removed")


Command = Callable[[Job, Path, Path], Sequence[str]]


def score_command(cpus: int) -> Command:
    """The command of a job: (job, data, out) -> words."""

    def words(job: Job, data: Path, out: Path) -> list[str]:
        given = {
            "--out": out,
            "--release": job.release,
            "--text-column": job.text_column,
            "--id-column": job.id_column,
            "--cpus": cpus,
        }
        # With `=` and `--`, so that no name can be taken for an option.
        options = [f"{name}={value}" for name, value in given.items() if value is not None]
        return [sys.executable, "-m", "cluster.cli", "score", "--background", *options,
                "--", str(data)]  # fmt: skip

    return words


class Runner:
    """Runs one job at a time, in a thread, until the process ends."""

    def __init__(
        self,
        home: Path,
        config: JobsConfig,
        command: Command,
        environment: Mapping[str, str],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._home = home
        self._store = JobStore(home)
        self._config, self._command = config, command
        self._environment = dict(environment)
        self._now = now
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True, name="jobs")

    def start(self) -> None:
        """Puts what ran before back in the queue, and begins."""
        for job in self._store.all():
            if job.pid is not None:
                _end(job.pid, job.pid_started)
            if job.state is JobState.RUNNING:
                self._store.update(job.model_copy(update={"state": JobState.QUEUED, "pid": None}))
        self._thread.start()

    def stop(self, timeout_s: float = _STOP_WAIT_S * 3) -> None:
        """Ends the job that runs, which the next service goes on with, and the thread."""
        self._stopped.set()
        self._wake.set()
        self._thread.join(timeout_s)

    def poke(self) -> None:
        """Something changed on the disk: look now."""
        self._wake.set()

    def cleared(self, job_id: str, timeout_s: float = _STOP_WAIT_S * 2) -> bool:
        """Whether a cancelled job is gone, its process too; waits for it."""
        self.poke()
        deadline = time.monotonic() + timeout_s
        while self._store.folder(job_id).exists() and time.monotonic() < deadline:
            time.sleep(_POLL_S / 4)
        return not self._store.folder(job_id).exists()

    def _loop(self) -> None:
        while not self._stopped.is_set():
            self._wake.clear()
            try:
                if self._step():
                    continue
            except Exception:  # a stage's top: one broken job must not end them all
                log.exception("A job broke its runner; going on.")
            if not self._stopped.is_set():
                self._wake.wait(_SWEEP_EVERY_S)

    def _step(self) -> bool:
        """Removes what is to go, and runs the next job; False if there was none.

        One that is said to run does not: what became of it could not be written.
        """
        left = [job for job in self._swept() if not job.state.is_over]
        if left:
            self._run(left[0])
        return bool(left)

    def _swept(self, running: str | None = None) -> list[Job]:
        """The jobs, after the cancelled and the old are removed; the running one is left."""
        jobs = self._store.all()
        for job in jobs:
            if job.id != running and (job.state is JobState.CANCELLED or self._is_old(job)):
                self._store.remove(job)
        return jobs

    def _is_old(self, job: Job) -> bool:
        return job.ended_s is not None and self._now() - job.ended_s > self._config.retention_s

    def _run(self, job: Job) -> None:
        if job.attempts >= _ATTEMPTS:
            self._end(job, JobState.FAILED, f"It was interrupted {_ATTEMPTS} times.")
            return
        folder = self._store.folder(job.id)
        try:
            words = self._command(job, self._store.data(job), folder / OUT)
        except FirstlineError as error:  # the file was taken away meanwhile
            self._end(job, JobState.FAILED, str(error))
            return
        # Counted first: one that cannot even be started must not be tried for ever.
        job = job.model_copy(update={"attempts": job.attempts + 1})
        self._store.update(job)
        with open(os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            process = subprocess.Popen(  # noqa: S603 - our own command
                words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self._environment,
                start_new_session=True, cwd=Path(__file__).resolve().parents[2],
            )  # fmt: skip
        since = started(process.pid)
        running = {"state": JobState.RUNNING, "pid": process.pid, "pid_started": since}
        job = job.model_copy(update=running)
        try:
            self._store.update(job)
            self._follow(job, process)
        except OSError:  # the disk: it starts again when that is mended, and not beside this one
            _end(process.pid, since)
            process.wait()
            raise

    def _follow(self, job: Job, process: "subprocess.Popen[bytes]") -> None:
        while process.poll() is None:
            now = self._store.find(job.id)
            if now is None or now.state is JobState.CANCELLED or self._stopped.is_set():
                _end(process.pid, job.pid_started)
                process.wait()
                return
            if self._wake.wait(_POLL_S):
                self._wake.clear()
                self._swept(running=job.id)
        if process.returncode == 0:
            self._end(job, JobState.DONE)
        elif process.returncode < 0:  # killed: nothing is wrong with the job itself
            self._store.update(job.model_copy(update={"state": JobState.QUEUED, "pid": None}))
        else:
            self._end(job, JobState.FAILED, self._told(job))

    def _end(self, job: Job, state: JobState, error: str | None = None) -> None:
        self._store.forget_texts(job)
        ended = {"state": state, "error": error, "pid": None, "ended_s": self._now()}
        self._store.update(job.model_copy(update=ended))

    def _told(self, job: Job) -> str:
        """The command's last word to its user, without the paths of this machine."""
        path = self._store.folder(job.id) / LOG
        lines = path.read_text(errors="replace").splitlines()
        told = [line.removeprefix(_ERROR_MARK) for line in lines if line.startswith(_ERROR_MARK)]
        if not told:
            return "It broke. The operator finds the cause in the job's log."
        # A file without a header line would have its first message quoted as the columns found.
        shown = told[-1].split(" Found: ")[0].replace(str(self._store.folder(job.id)), "job")
        return shown.replace(str(self._home), "home")


def _end(pid: int, since: int | None) -> None:
    """Ends a process that we started, and its group; nothing if it is another one by now."""
    for step in (signal.SIGTERM, signal.SIGKILL):
        if since is None or started(pid) != since:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, step)
        deadline = time.monotonic() + _STOP_WAIT_S
        while started(pid) == since and time.monotonic() < deadline:
            time.sleep(_POLL_S / 4)


# ---- on Ray -------------------------------------------------------------------------------------


class RunnerClient(Protocol):
    """The router's side of the runner."""

    async def poke(self) -> None: ...

    async def cleared(self, job_id: str) -> bool: ...


class _RunnerActor:
    """The actor's body."""

    def __init__(self, home: Path, config: JobsConfig) -> None:
        environment = {**os.environ, "FIRSTLINE_HOME": str(home), ADDRESS: _address()}
        self._runner = Runner(home, config, score_command(config.cpus), environment)
        self._runner.start()

    def poke(self) -> None:
        self._runner.poke()

    def cleared(self, job_id: str) -> bool:
        return self._runner.cleared(job_id)

    def stop(self) -> None:
        self._runner.stop()


def _address() -> str:
    """Of this cluster, by loopback if its head is this machine."""
    import ray

    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    here = host == ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return f"127.0.0.1:{port}" if here else f"{host}:{port}"


class RayRunner:
    """A RunnerClient to the detached actor of this cluster, started at the first call."""

    def __init__(self, home: Path, config: JobsConfig) -> None:
        self._home, self._config = home, config

    async def poke(self) -> None:
        """Raises ServiceError if the runner does not answer."""
        await self._ask("poke")

    async def cleared(self, job_id: str) -> bool:
        """Raises ServiceError if the runner does not answer."""
        return bool(await self._ask("cleared", job_id))

    async def _ask(self, method: str, *args: Any) -> Any:
        try:
            async with asyncio.timeout(_ANSWER_WAIT_S):
                actor = await asyncio.to_thread(self._actor)
                return await getattr(actor, method).remote(*args)
        except Exception as error:
            log.warning("The job runner did not answer: %r", error)
            raise ServiceError(
                "The job runner does not answer. It restarts by itself, and jobs are kept. Try "
                "again in a moment."
            ) from error

    def _actor(self) -> Any:
        import ray

        actor = ray.remote(_RunnerActor).options(
            name=ACTOR_NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_concurrency=8,
            num_cpus=0,
        )
        return actor.remote(self._home, self._config)
