"""FailoverProxy: HAProxy was killed -> another one answers on its port, until Ray Serve has its
own.

    every 0.1 s   its admin socket refuses ─> HAProxy from the same file, beside what Serve does
                  Serve's next one has our routers ─> the stand-in ends what it has begun, and goes

Serve starts a new manager before it starts HAProxy, and a manager's Python takes seconds: nobody
was answered for 4 to 5.4 s on two cores. Serve looks after no HAProxy but its own child, so the
stand-in is asked on another socket, lest Serve take it for that. Serve's next one is given the
stand-in's listeners (haproxy.py): no connection is lost between the two.

Private is where Serve keeps each node's HAProxy files, and how it names its backends. Public would
be a manager in Serve that starts HAProxy again by itself.
"""

import contextlib
import logging
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from cluster.ray_private.haproxy import STAND_IN, binary, bounded, is_up, routes

log = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 0.1
_PAUSE_S: Final = 1.0  # from one start to the next: one that cannot listen ends at once
_ANSWER_WAIT_S: Final = 1.0


@contextlib.contextmanager
def failing_over(haproxy_dir: Path) -> Iterator[None]:
    """Watches HAProxy while the block lasts; a stand-in ends with it."""
    stand_in, stopped = FailoverProxy(haproxy_dir), threading.Event()

    def watch() -> None:
        while not stopped.wait(_LOOK_EVERY_S):
            try:
                stand_in.look()
            except Exception as error:  # noqa: BLE001 - the next look may do better
                log.warning("HAProxy cannot be looked after: %r", error)

    watcher = threading.Thread(target=watch, name="stand-in", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stopped.set()
        watcher.join()
        stand_in.close()


class FailoverProxy:
    """Args: haproxy_dir: where Serve keeps each node's HAProxy files; this host's is one."""

    def __init__(self, haproxy_dir: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._dir = haproxy_dir
        self._clock = clock
        self._again_s = 0.0
        self._config = ""
        self._was_up = False
        self._process: subprocess.Popen[bytes] | None = None
        self._leaving: list[subprocess.Popen[bytes]] = []

    @property
    def pid(self) -> int | None:
        """Of the stand-in; None while Serve's own answers."""
        return self._process.pid if self._process else None

    def look(self) -> None:
        """Starts a stand-in, or lets it go, as is due.

        Raises:
            OSError: HAProxy does not start.
        """
        self._leaving = [one for one in self._leaving if one.poll() is None]
        admin = next(self._dir.glob("*/admin.sock"), None)
        if admin is None:
            return
        up = is_up(admin)
        self._was_up = self._was_up or up
        if self._process is None:
            needed = self._was_up and not up
        elif up and _has_routers(admin):
            admin.with_name(STAND_IN).unlink(missing_ok=True)
            self._let_go(self._process)
            return
        else:
            needed = self._process.poll() is not None
        if needed and self._clock() >= self._again_s:
            self._start(admin)

    def _start(self, admin: Path) -> None:
        found = bounded(admin.with_name("haproxy.cfg").read_text())
        if routes(found):  # else it is of Serve's next one, which knows no router yet
            self._config = found.replace(f" {admin} ", f" {admin.with_name(STAND_IN)} ")
        if not self._config:
            return
        log.warning("HAProxy is gone. Another one stands in for it.")
        self._again_s = self._clock() + _PAUSE_S
        file = admin.with_name("stand-in.cfg")
        file.write_text(self._config)
        self._process = subprocess.Popen(  # noqa: S603 - Ray's own HAProxy
            [binary(), "-db", "-dR", "-f", str(file)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _let_go(self, process: "subprocess.Popen[bytes]") -> None:
        """It takes no more connections, and ends when it has answered."""
        log.warning("Serve's HAProxy is back.")
        process.send_signal(signal.SIGUSR1)
        self._leaving.append(process)
        self._process = None

    def close(self) -> None:
        """None is left."""
        for process in (*self._leaving, self._process):
            if process is not None:
                process.kill()
                process.wait()
        self._leaving, self._process = [], None


def _has_routers(admin: Path) -> bool:
    """Serve's HAProxy has our routers, and so listens on the port."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(_ANSWER_WAIT_S)
        with contextlib.suppress(OSError):
            line.connect(str(admin))
            line.sendall(b"show stat\n")
            with line.makefile() as rows:
                return any(re.match(r"http-[^,]+,BACKEND,", row) for row in rows)
    return False
