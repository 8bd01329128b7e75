"""Where a service is and what it answers with, and whose turn it is to change that.

    <home>/service.json   what runs: written once it answers
    <home>/service.lock   held by the one process that starts, moves or stops; its content says who

The kernel lets go of the lock when its holder dies. A content that is left then tells the next one
what to clean up.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError, computed_field, model_validator

from cluster.errors import ServiceError
from cluster.files import read_json, write_json
from cluster.processes import started
from cluster.settings import Settings
from serve_app.cascade.traffic import Routed
from serve_app.deploy.config import ServeConfig
from serve_app.deploy.fixed import without_fixed

STATE: Final = "service.json"
_LOCK: Final = "service.lock"
_POLL_S: Final = 0.05
# Whoever looks at the lock holds it for a moment, too.
_PATIENCE_S: Final = 1.0


class ServiceInfo(BaseModel):
    """Where a service is: the content of service.json.

    `previous` was the champion before, and is kept up.
    `keeper_pid` is None where the cluster is somebody else's; `keeper_started` is the kernel's
    start time of that process, so that a reused pid is not taken for it. `token_path` is where
    the cluster's Ray token lies, never the token. `home_inode` is of the file alone: it tells a
    copied home from the one that the service runs from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    port: int
    ray_address: str
    routed: Routed
    previous: str | None = None
    keeper_pid: int | None = None
    keeper_started: int | None = None
    haproxy_dir: Path | None = None
    token_path: Path | None = None
    config: ServeConfig
    started_at: str
    home_inode: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_champion(cls, found: Any) -> Any:
        """`routed` names the champion; a file of an earlier version names it as `release` only."""
        if not isinstance(found, Mapping) or "release" not in found:
            return found
        kept = {name: value for name, value in found.items() if name != "release"}
        routed = found.get("routed")
        if isinstance(routed, Mapping):
            kept["routed"] = {"champion": found["release"], **routed}
        return kept

    @computed_field  # type: ignore[prop-decorator]
    @property
    def release(self) -> str:
        """The champion: what answers alone once a canary is taken out."""
        return self.routed.champion

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.host in {"0.0.0.0", "::"} else self.host  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def up(self) -> tuple[str, ...]:
        """Every release whose application is kept up."""
        kept = (*self.routed.named, *([self.previous] if self.previous else []))
        return tuple(dict.fromkeys(kept))


def read_info(settings: Settings) -> ServiceInfo | None:
    """What service.json says; None without one, or if it came with a copy of another home.

    Raises:
        ServiceError: it cannot be read.
    """
    path = settings.home / STATE
    try:
        found = read_json(path)
        if isinstance(found, dict):  # an older version's service is found and stopped, too
            found["config"] = without_fixed(found.get("config"))
        info = ServiceInfo.model_validate(found)
        ours = info.home_inode in {None, settings.home.stat().st_ino}
        return info.model_copy(update={"home_inode": None}) if ours else None
    except FileNotFoundError:
        return None
    except (ValidationError, ValueError) as error:
        raise ServiceError(
            f"{path} is not a service file that this version reads: {error}. If no service is "
            "running, delete it."
        ) from None


def write_info(settings: Settings, info: ServiceInfo) -> None:
    settings.home.mkdir(parents=True, exist_ok=True)
    known = info.model_copy(update={"home_inode": settings.home.stat().st_ino})
    write_json(settings.home / STATE, known.model_dump(mode="json"))


def running_info(settings: Settings) -> ServiceInfo:
    """Raises ServiceError if no service is running."""
    info = read_info(settings)
    if info is None or not is_alive(info):
        if (now := holder(settings)) is not None and now.what is Task.STARTING:
            raise ServiceError(_busy(settings, now))
        raise ServiceError(
            f"No service is running from {settings.home}. Start one with `firstline serve`."
        )
    return info


@contextlib.contextmanager
def moving(settings: Settings) -> Iterator[ServiceInfo]:
    """The running service, with everybody held off who would move its releases too.

    Raises:
        ServiceError: none is running, or somebody is at it; the keeper adapts weights, too.
    """
    running_info(settings)
    with turn(settings, Task.MOVING):
        yield running_info(settings)


# ---- whose turn it is ---------------------------------------------------------------------------


class Task(StrEnum):
    """What is done under the lock."""

    STARTING = "starting"
    MOVING = "moving"
    STOPPING = "stopping"


class Holder(BaseModel):
    """Who holds the lock: its content. What a start has made so far is there to be cleaned up."""

    model_config = ConfigDict(frozen=True)

    what: Task
    pid: int
    pid_started: int | None
    since: str
    release: str = ""
    haproxy_dir: Path | None = None
    token_path: Path | None = None

    @property
    def is_alive(self) -> bool:
        return self.pid_started is not None and started(self.pid) == self.pid_started


class Turn:
    """The lock, held. `before` is what a process that died with it had written."""

    def __init__(self, file: IO[str], now: Holder | None, before: Holder | None = None) -> None:
        self._file = file
        self.now = now
        self.before = before

    @property
    def descriptor(self) -> int:
        """For a child that is to go on with it."""
        return self._file.fileno()

    def note(self, **changes: Any) -> None:
        """Writes down who holds it, and what there is to clean up."""
        assert self.now is not None
        self.now = self.now.model_copy(update=changes)
        _write(self._file, self.now.model_dump_json())

    def end(self) -> None:
        """Idempotent."""
        if not self._file.closed:
            _write(self._file, "")
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._file.close()

    def hand_over(self) -> None:
        """To the child that got `descriptor`: the lock is free once it has let go, too."""
        self._file.close()


@contextlib.contextmanager
def turn(
    settings: Settings, what: Task, *, wait_s: float = _PATIENCE_S, release: str = ""
) -> Iterator[Turn]:
    """Holds everybody else off who would start, move or stop the service of this home.

    Raises:
        ServiceError: somebody is at it, and still is after `wait_s`; who, and what to do.
    """
    file = (settings.home / _LOCK).open("a+", encoding="utf-8")
    deadline = time.monotonic() + wait_s
    while not _locked(file, fcntl.LOCK_EX):
        if time.monotonic() > deadline:
            now = _read(file)
            file.close()
            raise ServiceError(_busy(settings, now))
        time.sleep(_POLL_S)
    held = Turn(file, _myself(what, release), before=_read(file))
    held.note()
    try:
        yield held
    finally:
        held.end()


def adopted(descriptor: int) -> Turn:
    """A turn that the parent began, in the child that goes on with it."""
    os.set_inheritable(descriptor, False)
    held = Turn(os.fdopen(descriptor, "a+", encoding="utf-8"), None)
    before = _read(held._file)
    assert before is not None
    held.now = before
    held.note(pid=os.getpid(), pid_started=started(os.getpid()))
    return held


def holder(settings: Settings) -> Holder | None:
    """Who holds the lock now; None if nobody does."""
    try:
        with (settings.home / _LOCK).open(encoding="utf-8") as file:
            return None if _locked(file, fcntl.LOCK_SH) else _read(file)
    except OSError:
        return None


def _myself(what: Task, release: str) -> Holder:
    return Holder(
        what=what,
        pid=os.getpid(),
        pid_started=started(os.getpid()),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        release=release,
    )


def _locked(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(file: IO[str]) -> Holder | None:
    file.seek(0)
    try:
        return Holder.model_validate_json(file.read())
    except ValueError:  # empty, or of another version
        return None


def _write(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


def _busy(settings: Settings, now: Holder | None) -> str:
    who = f"process {now.pid}, since {now.since}" if now else "another process"
    if now is not None and now.what is Task.STARTING:
        return (
            f"A service is being started from {settings.home} ({who}). Wait for it, look at "
            "`firstline status`, or end it with `firstline stop`."
        )
    if now is not None and now.what is Task.STOPPING:
        return f"The service of {settings.home} is being stopped ({who}). Wait for it."
    return (
        f"The service's releases are being moved by another process ({who}). Wait for it, look at "
        "`firstline releases list`, and try again."
    )


def is_alive(info: ServiceInfo) -> bool:
    """Of somebody else's cluster we only know what was written."""
    return info.keeper_pid is None or started(info.keeper_pid) == info.keeper_started


WAIT_S: Final = 180.0
