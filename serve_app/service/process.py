"""The processes behind a service: started, marked, found again and ended.

    spawn ─> python -m serve_app.service.lifecycle <home>
                 └─> Ray, HAProxy, replicas     (all carry a mark)
    <home>/ray.token      the cluster's own token, mode 0600

A local Ray dies with the driver that started it, so a detached service has a keeper. Ray's own
`ray stop` would take every cluster of the machine down and can leave HAProxy behind; the keeper
shuts down in order, and whatever is left is found by the one thing that every process of this
cluster and no other inherits: the folder that HAProxy's files are in.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from cluster.errors import ServiceError
from cluster.processes import started
from cluster.ray_private import auth
from cluster.ray_private.serve_environment import mark_of
from cluster.settings import Settings
from serve_app.deploy.config import ServeConfig
from serve_app.service.state import STATE, Holder, ServiceInfo, Turn, is_alive, read_info

TOKEN: Final = "ray.token"  # noqa: S105 - a file name
LOG: Final = "service.log"
STOP_WAIT_S: Final = 60.0
_POLL_S: Final = 0.2
_REFUSED: Final = 2  # a keeper that has said why it does not start


def forget(settings: Settings, info: ServiceInfo) -> None:
    """Removes every trace of a service whose keeper is gone."""
    sweep(info.haproxy_dir)
    if info.token_path is not None:
        info.token_path.unlink(missing_ok=True)
    (settings.home / STATE).unlink(missing_ok=True)


# ---- the keeper's process -----------------------------------------------------------------------


def spawn(
    settings: Settings, release_id: str, config: ServeConfig, wait_s: float, turn: Turn
) -> ServiceInfo:
    """Starts a keeper, and returns once it has written that the service answers.

    The keeper goes on with the caller's turn: from here on until it answers, nobody else starts,
    and `stop` finds it.

    Raises:
        ServiceError: it ended, or does not come up in time; its last line is the cause.
    """
    order = {
        "release": release_id,
        "config": config.model_dump(mode="json"),
        "wait_s": wait_s,
        "turn": turn.descriptor,
    }
    log_path = settings.home / LOG
    with log_path.open("wb") as output:
        keeper = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "serve_app.service.lifecycle", str(settings.home)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=Path(__file__).resolve().parents[2],
            pass_fds=(turn.descriptor,),
        )
    turn.note(pid=keeper.pid, pid_started=started(keeper.pid))
    turn.hand_over()
    assert keeper.stdin is not None
    keeper.stdin.write(json.dumps(order).encode())
    keeper.stdin.close()
    try:
        return _await_keeper(settings, keeper, log_path, wait_s)
    except BaseException:
        if keeper.poll() is None:
            keeper.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                keeper.wait(STOP_WAIT_S)
        raise


def _await_keeper(
    settings: Settings, keeper: "subprocess.Popen[bytes]", log_path: Path, wait_s: float
) -> ServiceInfo:
    deadline = time.monotonic() + wait_s + STOP_WAIT_S
    while time.monotonic() < deadline:
        if keeper.poll() is not None:
            lines = log_path.read_text(errors="replace").strip().splitlines()
            if keeper.returncode != _REFUSED or not lines:
                raise ServiceError(
                    f"The start was ended before the service answered; see {log_path}."
                )
            raise ServiceError(lines[-1])
        info = read_info(settings)
        if info is not None and info.keeper_pid == keeper.pid:
            return info
        time.sleep(_POLL_S)
    raise ServiceError(f"The service did not come up in {wait_s:g} s; see {log_path}.")


def stop_keeper(info: ServiceInfo, wait_s: float) -> None:
    """Asks it to end, then ends it."""
    assert info.keeper_pid is not None
    _end(info.keeper_pid, lambda: is_alive(info), wait_s)


def stop_start(start: Holder, wait_s: float) -> None:
    """Ends a start that is under way, with all that it has made."""
    _end(start.pid, lambda: start.is_alive, wait_s)
    clean_up(start)


def clean_up(start: Holder) -> None:
    """What a start that has died left behind."""
    if start.is_alive:
        return
    sweep(start.haproxy_dir)
    if start.token_path is not None:
        start.token_path.unlink(missing_ok=True)


def _end(pid: int, alive: Callable[[], bool], wait_s: float) -> None:
    for step in (signal.SIGTERM, signal.SIGKILL):
        if not alive():
            return
        os.kill(pid, step)
        deadline = time.monotonic() + wait_s
        while alive() and time.monotonic() < deadline:
            time.sleep(_POLL_S)


@contextlib.contextmanager
def signals(stopped: threading.Event) -> Iterator[None]:
    """SIGINT and SIGTERM set the event."""

    def handle(number: int, frame: Any) -> None:
        stopped.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """SIGTERM ends the block as SystemExit, so that what it has begun is taken back."""

    def handle(number: int, frame: Any) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# ---- what its processes carry -------------------------------------------------------------------


def make_token(settings: Settings) -> Path | None:
    """A new Ray token for this cluster alone, mode 0600; None where the user set RAY_AUTH_MODE.

    Ray 2.60 asks for a token on every cluster that `ray.init` starts, by default one in
    ~/.ray/auth_token, which all clusters of the user share. With one of its own, this cluster's
    token opens no other, and the commands that join it need nothing from outside `home`.
    """
    if auth.MODE in os.environ:
        return None
    path = settings.home / TOKEN
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    return path


def token_in_use(settings: Settings) -> Path | None:
    path = settings.home / TOKEN
    return path if os.environ.get(auth.PATH) == str(path) else None


def is_taken(host: str, port: int) -> bool:
    """Somebody listens there already."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def sweep(haproxy_dir: Path | None) -> None:
    """Ends what is left of our cluster, and nothing else; then removes HAProxy's folder."""
    if haproxy_dir is None:
        return
    for step, wait_s in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0)):
        deadline = time.monotonic() + wait_s
        for pid in marked(haproxy_dir):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, step)
        while marked(haproxy_dir) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
    shutil.rmtree(haproxy_dir, ignore_errors=True)


def marked(haproxy_dir: Path) -> list[int]:
    """Processes, but this one, that inherited our HAProxy folder in their environment."""
    mark = mark_of(haproxy_dir)
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if mark in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found
