"""A real redis-server of a test's own, on loopback and a free port, with nothing kept on disk.

pytest_plugins = ["tests.support.redis_server"]     # in a test module: gives the two fixtures

async def test_it(redis_url: str) -> None: ...
async def test_it_goes(redis_process: RedisServer) -> None:
    redis_process.kill()                    # SIGKILL; what it held is lost
    redis_process.start()                   # again, on the same port
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import pytest
from redis.asyncio import Redis

from tests.support.waiting import free_port

PATIENT_S: Final = 5.0
_BINARY: Final = "redis-server"
_START_S: Final = 10.0
_POLL_S: Final = 0.01
_ATTEMPTS: Final = 5  # another process may take the free port before the server does


class RedisServer:
    """One redis-server process. As a context manager it is started, and stopped in any case."""

    def __init__(self, *options: str) -> None:
        self.port = 0
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="firstline-redis-")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> "RedisServer":
        for _ in range(_ATTEMPTS):
            self.port = free_port()
            try:
                self.start()
            except RuntimeError:
                continue
            return self
        self._folder.cleanup()
        raise RuntimeError(f"no redis-server came up in {_ATTEMPTS} attempts")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        self._folder.cleanup()

    def start(self) -> None:
        """Returns once it answers. Raises RuntimeError if it does not, and leaves none running."""
        binary = shutil.which(_BINARY)
        assert binary is not None
        assert self._process is None, "it is running"
        command = [binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--appendonly", "no", "--dir", self._folder.name, *self._options]
        with (Path(self._folder.name) / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            self._wait_until_up(self._process)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL, also while it is stopped: it goes without a word to its clients."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def freeze(self) -> None:
        """It takes connections and says nothing, as a machine that hangs."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def _wait_until_up(self, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + _START_S
        while time.monotonic() < until and process.poll() is None:
            if _answers(self.port) and process.poll() is None:
                return
            time.sleep(_POLL_S)
        said = (Path(self._folder.name) / "log").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"redis-server did not come up on port {self.port}: {said}")


def _answers(port: int) -> bool:
    """Whether there is a Redis, with or without a password."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as link:
            link.sendall(b"PING\r\n")
            return link.recv(16).startswith((b"+PONG", b"-NOAUTH"))
    except OSError:
        return False


def _need_binary() -> None:
    if shutil.which(_BINARY) is None:
        pytest.skip("needs redis-server on the PATH (Debian: apt-get install redis-server)")


@contextmanager
def redis_server() -> Iterator[str]:
    """The URL of a running server; without a redis-server on the PATH the test is skipped."""
    _need_binary()
    with RedisServer() as server:
        yield server.url


@pytest.fixture
def redis_process() -> Iterator[RedisServer]:
    """A running server that the test may kill and start again."""
    _need_binary()
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(redis_process: RedisServer) -> str:
    return redis_process.url


def raw_redis(url: str) -> Any:
    """A client that sees what lies in Redis, and can write there what it likes; untyped, as the
    library's types know neither a client's mode nor its answers."""
    return Redis.from_url(url)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with other tests must not pass for a Redis that is gone."""
    for module in ("serve_app.redis_store", "serve_app.access.rate_limits"):
        monkeypatch.setattr(f"{module}.TIMEOUT_S", PATIENT_S)
