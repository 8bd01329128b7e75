"""The service under fire, and how things are broken: processes, disks.

A stage is a service on a toy release with traffic of which one in five escalates, the response
cache off, so that every request goes the whole way. Every fault here undoes itself.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import pytest

from cluster.settings import Settings
from serve_app.service import lifecycle
from serve_app.service.process import marked
from serve_app.service.state import ServiceInfo
from tests.bench.load import clients, read_records
from tests.bench.ours import PATH, config, serving
from tests.chaos.clients import Right, Seen, answers_of_models, judge
from tests.support.serving import make_pair, make_release, pids_titled
from tests.support.toys import message, traffic
from tests.support.waiting import wait_for

CONNECTIONS: Final = 20
# `make chaos` leaves it; a first look may set it lower.
SECONDS: Final = float(os.environ.get("CHAOS_SECONDS", "60"))
POISON: Final = "friendly"  # the toy cloud answers NaN to it
_TEXTS: Final = 5000
_CALM_S: Final = 60.0
_EVERY: Final = 10  # of how many texts one is poisoned

CONTROLLER: Final = r"^ray::ServeController"
MONITOR: Final = r"^ray::MonitorActor"
HAPROXY: Final = r"^\S*haproxy .*/haproxy\.cfg"
STAND_IN: Final = r"^\S*haproxy .*/stand-in\.cfg"
ROUTER: Final = r"^ray::ServeReplica:firstline-router:router"


@dataclass(frozen=True)
class Stage:
    """A running service, what is asked of it, and what is right."""

    settings: Settings
    info: ServiceInfo
    releases: tuple[str, str]
    texts: Sequence[str]
    right: Right

    @property
    def url(self) -> str:
        return self.info.url + PATH

    def tier(self, role: str) -> str:
        """What the processes of a tier are called."""
        return rf"^ray::ServeReplica:release-[\w-]+:{role}"

    def pids(self, title: str) -> list[int]:
        """The processes of this service, and no other's, that are called so."""
        return pids_titled(self.info, title)

    def kill(self, title: str, count: int | None = None) -> float:
        """SIGKILL to all of them, or the first few; when, as time of day.

        Before it, not after: clients see the end of their connections before this process runs on.
        """
        found = self.pids(title)[:count]
        assert found, f"no process of the service is called {title}"
        when = time.time()
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        return when

    @contextmanager
    def stopped(self, title: str) -> Iterator[None]:
        """They hang while the block lasts (SIGSTOP); one that was replaced meanwhile stays dead."""
        found = self.pids(title)
        assert found, f"no process of the service is called {title}"
        try:
            for pid in found:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in found:
                with _gone():
                    os.kill(pid, signal.SIGCONT)

    def memory(self) -> dict[int, float]:
        """MB of each process of the service by its number, shared pages counted for each."""
        assert self.info.haproxy_dir is not None
        found = {}
        for pid in marked(self.info.haproxy_dir):
            with _gone():
                found[pid] = psutil.Process(pid).memory_info().rss / 1e6
        return found

    def ask(self, text: str, timeout_s: float = 5.0) -> httpx.Response:
        body = {"texts": [text]}
        return httpx.post(self.url, json=body, timeout=timeout_s, trust_env=False)

    def calm(self) -> bool:
        """Waits until the service is whole again; False if it does not become so."""
        return wait_for(lambda: not lifecycle.status(self.settings).problems, _CALM_S)

    def under_load(self, fault: Callable[[], Any], **options: Any) -> Seen:
        """A third of the time as it should be, then the fault, and at least a third after it."""
        with tempfile.TemporaryDirectory(prefix="chaos-") as name:
            file, end = Path(name, "seen.jsonl"), time.monotonic() + SECONDS
            with clients(self.url, self.texts, file, connections=CONNECTIONS, **options):
                time.sleep(SECONDS / 3)
                fault()
                time.sleep(max(SECONDS / 3, end - time.monotonic()))
            return judge(read_records(file), self.texts, self.right, self.settings.audit_dir)


@contextmanager
def _gone() -> Iterator[None]:
    """Passes over a process that has ended meanwhile."""
    with suppress(ProcessLookupError, psutil.NoSuchProcess):
        yield


@contextmanager
def stage(folder: Path, *, poisoned: bool = False, **changes: Any) -> Iterator[Stage]:
    """A service in `folder`, with changes of its configuration.

    Args:
        poisoned: some messages have the word that the cloud answers NaN to.
    """
    settings = Settings(home=folder / "home")
    pair = make_pair(folder / "bundles", cloud_nan_word=POISON)
    first = make_release(settings, pair.edge, pair.cloud)
    second = make_release(settings, pair.edge, pair.cloud, threshold=0.8)
    texts = _texts(poisoned)
    right = answers_of_models(pair.edge, pair.cloud, texts)
    with serving(settings, first.id, config(**changes)) as info:
        yield Stage(settings, info, (first.id, second.id), texts, right)


def _texts(poisoned: bool) -> list[str]:
    texts, _ = traffic(_TEXTS)
    if poisoned:
        hard = message("positive", hard=True, extra=POISON)
        texts[::_EVERY] = [f"{hard} {text.split()[-1]}" for text in texts[::_EVERY]]
    return texts


# -- disks ---------------------------------------------------------------------------------------


def need_root(*programs: str) -> None:
    """Skips where a file system cannot be mounted."""
    absent = [name for name in programs if shutil.which(name) is None]
    if os.geteuid() != 0 or absent:
        pytest.skip(f"needs root, and on the PATH: {', '.join(programs)}")


@contextmanager
def mounted(target: Path, *options: str) -> Iterator[None]:
    """A file system at `target` while the block lasts."""
    target.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *options, str(target)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this machine does not mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        # Lazily: a process that is not quite gone would keep the folder busy.
        subprocess.run(["umount", "--lazy", str(target)], check=True)


@contextmanager
def small_disk(target: Path, size_mb: int) -> Iterator[None]:
    need_root("mount")
    with mounted(target, "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs"):
        yield


@contextmanager
def freezable_disk(target: Path, folder: Path) -> Iterator[None]:
    """An ext4 of its own, in a file of `folder`; see `freeze`."""
    need_root("mount", "mkfs.ext4", "fsfreeze")
    image = folder / "disk.img"
    with ExitStack() as stack:
        with image.open("wb") as file:
            file.truncate(256 << 20)
        stack.callback(image.unlink)
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
        stack.enter_context(mounted(target, "-o", "loop", str(image)))
        yield


def freeze(target: Path, seconds: float) -> None:
    """Every write to the file system hangs for so long, as on a disk that does not answer.

    One process freezes and thaws: a test that is killed leaves nothing frozen, and no process that
    cannot be killed.
    """
    script = 'fsfreeze --freeze "$1"; sleep "$2"; fsfreeze --unfreeze "$1"'
    command = ["sh", "-c", script, "freeze", str(target), str(seconds)]
    subprocess.run(command, check=True, start_new_session=True)


@contextmanager
def full(target: Path) -> Iterator[None]:
    """No byte is free while the block lasts."""
    filler = target / "filler"
    block = b"\0" * 4096
    try:
        # Ends in an error: full, which is what is wanted.
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(block):
                pass
        yield
    finally:
        filler.unlink(missing_ok=True)
