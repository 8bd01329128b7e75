"""ConnectionPool over real sockets: what comes of calls, of a replica that goes, of a stranger."""

import asyncio
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import uvloop

from cluster.errors import BundleError, ServiceError
from serve_app.contracts import Prediction, packed
from serve_app.tiers import socket_client
from serve_app.tiers.autoscaling import Load
from serve_app.tiers.local_socket import ForeignPeerError, framed
from serve_app.tiers.socket_client import ConnectionPool
from serve_app.tiers.socket_server import Handler, SocketServer

SHA = "0" * 64
BUDGET_S = 5.0


def said(text: str) -> Prediction:
    return Prediction(text, 0.9, 0.8, 0.1, packed(0.9, 0.1))


def echo(texts: list[str], sha256: str, deadline_s: float) -> Sequence[Prediction | None]:
    return [said(text) if text else None for text in texts]


@contextmanager
def served(answer: Handler, load: Load | None = None) -> Iterator[SocketServer]:
    server = SocketServer(answer, load or Load())
    try:
        yield server
    finally:
        server.close(1.0)


def run(story: Callable[[ConnectionPool], Awaitable[None]], *servers: SocketServer) -> None:
    async def told() -> None:
        connections = ConnectionPool()
        connections.follow(frozenset(server.address for server in servers))
        await settled(connections)
        async with asyncio.timeout(20):
            await story(connections)
        connections.follow(frozenset())
        connections.shortest()
        await asyncio.sleep(0)

    # The loop of a router; test_replica.py uses asyncio's own.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(told())


async def settled(connections: ConnectionPool) -> None:
    """Until what was asked for last is connected, or was tried."""
    connections.shortest()
    await asyncio.sleep(0)
    while connections._opening:
        await asyncio.sleep(0.001)


async def ask(
    connections: ConnectionPool, *texts: str, budget_s: float = BUDGET_S
) -> list[Prediction | None]:
    connection = connections.shortest()
    assert connection is not None
    return list(await connection.ask(list(texts), SHA, budget_s))


def test_answers_come_in_order_and_to_the_list_that_asked() -> None:
    async def story(connections: ConnectionPool) -> None:
        asked = [[f"{number}-{at}" for at in range(number % 5)] for number in range(60)]
        seen = await asyncio.gather(*(ask(connections, *texts) for texts in asked))
        assert seen == [[said(text) for text in texts] for texts in asked]
        assert await ask(connections, "a", "", "b") == [said("a"), None, said("b")]

    with served(echo) as one, served(echo) as other:
        run(story, one, other)


def test_a_list_larger_than_any_buffer_arrives_whole() -> None:
    texts = [str(number) * 10_000 for number in range(10, 266)]

    async def story(connections: ConnectionPool) -> None:
        assert await ask(connections, *texts) == [said(text) for text in texts]

    with served(echo) as server:
        run(story, server)


def test_what_is_told_along_is_the_bundle_and_an_end_on_this_hosts_clock() -> None:
    seen = []

    def note(texts: list[str], sha256: str, deadline_s: float) -> list[Prediction | None]:
        seen.append((sha256, deadline_s - time.monotonic()))
        return [said("a")]

    async def story(connections: ConnectionPool) -> None:
        await ask(connections, "a", budget_s=3.0)

    with served(note) as server:
        run(story, server)
    [(sha256, left_s)] = seen
    assert sha256 == SHA
    assert 2.0 < left_s < 3.0


@pytest.mark.parametrize("error", [BundleError("another"), TimeoutError("late"), ValueError("bug")])
def test_what_the_tier_raises_comes_back_and_the_line_goes_on(error: Exception) -> None:
    def fail(texts: list[str], sha256: str, deadline_s: float) -> list[Prediction | None]:
        if texts == ["bad"]:
            raise error
        return [said(text) for text in texts]

    async def story(connections: ConnectionPool) -> None:
        with pytest.raises(type(error), match=str(error)):
            await ask(connections, "bad")
        assert await ask(connections, "good") == [said("good")]

    with served(fail) as server:
        run(story, server)


class _UnwritableError(Exception):
    def __reduce__(self) -> str:
        raise TypeError("not to be written")


class _UnreadableError(Exception):
    def __init__(self, *, why: str) -> None:
        super().__init__(why)


@pytest.mark.parametrize(
    "error", [_UnwritableError("card 4111"), _UnreadableError(why="card 4111")], ids=repr
)
def test_an_error_that_no_pickle_carries_is_told_by_its_name(error: Exception) -> None:
    def fail(texts: list[str], sha256: str, deadline_s: float) -> list[Prediction | None]:
        raise error

    async def story(connections: ConnectionPool) -> None:
        with pytest.raises(ServiceError, match=type(error).__name__) as raised:
            await ask(connections, "a")
        assert "4111" not in str(raised.value)

    with served(fail) as server:
        run(story, server)


def test_calls_go_to_the_line_with_the_fewest_lists_out() -> None:
    go, asked = threading.Event(), {"one": 0, "other": 0}

    def slow(name: str) -> Handler:
        def answer(texts: list[str], sha256: str, deadline_s: float) -> list[Prediction | None]:
            asked[name] += 1
            go.wait(10)
            return [said(name)]

        return answer

    async def story(connections: ConnectionPool) -> None:
        calls = [asyncio.ensure_future(ask(connections, "a")) for _ in range(4)]
        await asyncio.sleep(0)
        assert sorted(connection.out for connection in connections._connections.values()) == [2, 2]
        go.set()
        await asyncio.gather(*calls)
        assert asked == {"one": 2, "other": 2}

    with served(slow("one")) as one, served(slow("other")) as other:
        run(story, one, other)


def test_a_caller_that_gives_up_hears_no_other_lists_answer_and_its_list_still_counts() -> None:
    """It runs on in the replica, or hangs there: others must go elsewhere."""
    go = threading.Event()

    def slow(texts: list[str], sha256: str, deadline_s: float) -> list[Prediction | None]:
        if texts == ["slow"]:
            go.wait(10)
        return [said(text) for text in texts]

    async def story(connections: ConnectionPool) -> None:
        hung = connections.shortest()
        assert hung is not None
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await hung.ask(["slow"], SHA, BUDGET_S)
        assert hung.out == 1
        for _ in range(3):
            assert connections.shortest() is not hung
            assert await ask(connections, "next") == [said("next")]
        go.set()
        assert list(await hung.ask(["again"], SHA, BUDGET_S)) == [said("again")]
        assert hung.out == 0

    with served(slow) as one, served(slow) as other:
        run(story, one, other)


def test_a_line_that_nobody_waits_for_is_closed_when_its_replica_goes() -> None:
    go = threading.Event()

    def hang(texts: list[str], sha256: str, deadline_s: float) -> list[Prediction | None]:
        go.wait(10)
        return [None]

    async def story(connections: ConnectionPool) -> None:
        connection = connections.shortest()
        assert connection is not None
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await connection.ask(["a"], SHA, BUDGET_S)
        connections.follow(frozenset())
        assert connections.shortest() is None
        with pytest.raises(ConnectionError):
            await connection.ask(["b"], SHA, BUDGET_S)

    with served(hang) as server:
        run(story, server)
        go.set()


_REPLICA = """
import os, sys, time
from serve_app.tiers.socket_server import SocketServer
def answer(texts, sha256, deadline_s):
    if texts == ["die"]:
        os.kill(os.getpid(), 9)
    return [None for _ in texts]
print(SocketServer(answer, lambda change: None).address, flush=True)
time.sleep(60)
"""


def test_a_killed_replica_is_a_connection_error_at_once_and_no_line_any_more() -> None:
    async def story(connections: ConnectionPool) -> None:
        connections.follow(frozenset({address}))
        await settled(connections)
        assert await ask(connections, "a") == [None]
        start = time.monotonic()
        calls = [ask(connections, text) for text in ("die", "beside", "beside")]
        seen = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(one) for one in seen] == [ConnectionResetError] * 3
        assert time.monotonic() - start < 2.0
        assert connections.shortest() is None

    replica = subprocess.Popen([sys.executable, "-c", _REPLICA], stdout=subprocess.PIPE, text=True)
    try:
        assert replica.stdout is not None
        address = replica.stdout.readline().strip()
        run(story)
    finally:
        replica.kill()
        replica.wait()


def test_a_replica_that_leaves_answers_what_it_has_and_is_asked_no_more() -> None:
    go, begun = threading.Event(), threading.Event()

    def slow(texts: list[str], sha256: str, deadline_s: float) -> list[Prediction | None]:
        begun.set()
        go.wait(10)
        return [said(text) for text in texts]

    async def story(connections: ConnectionPool) -> None:
        calls = [asyncio.ensure_future(ask(connections, text)) for text in ("first", "second")]
        await asyncio.to_thread(begun.wait, 10)
        connections.follow(frozenset())
        assert connections.shortest() is None
        closing = asyncio.create_task(asyncio.to_thread(server.close, 10.0))
        await asyncio.sleep(0.05)
        go.set()
        assert await asyncio.gather(*calls) == [[said("first")], [said("second")]]
        await closing
        assert not server._connections, "a thread went on"

    server = SocketServer(slow, Load())
    run(story, server)


def test_a_replica_that_cannot_be_reached_is_tried_again_but_not_at_every_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = []

    def refuse(address: str) -> socket.socket:
        tried.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket_client, "_opened", refuse)

    async def story(connections: ConnectionPool) -> None:
        connections.follow(frozenset({"nobody"}))
        for _ in range(100):
            await settled(connections)
        assert tried == ["nobody"]
        await asyncio.sleep(socket_client._AGAIN_S)
        await settled(connections)
        assert tried == ["nobody"] * 2

    run(story)


def test_of_two_replicas_one_that_cannot_be_reached_keeps_nobody_from_the_other() -> None:
    async def story(connections: ConnectionPool) -> None:
        connections.follow(frozenset({server.address, "nobody"}))
        await settled(connections)
        assert await ask(connections, "a") == [said("a")]

    with served(echo) as server:
        run(story)


def test_a_peer_of_another_user_is_refused_at_both_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who could send a pickle could run code."""
    with served(echo) as server, caplog.at_level(logging.WARNING):
        mine, name = os.getuid(), server.address.partition(":")[0]
        monkeypatch.setattr("os.getuid", lambda: mine + 1)
        with pytest.raises(ForeignPeerError, match=f"user {mine}"):
            socket_client._opened(server.address)
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(f"\0{name}")
            stranger.settimeout(10)
            assert stranger.recv(1) == b"", "the server took a stranger in"
    assert "was refused" in caplog.text


@pytest.mark.parametrize("shown", ["0" * 32, "", "short"])
def test_who_does_not_know_the_secret_is_not_read(
    shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A container of the same user and network sees a socket's name, and could send pickles."""
    asked = []

    def note(texts: list[str], sha256: str, deadline_s: float) -> list[Prediction | None]:
        asked.append(texts)
        return [None]

    with served(note) as server, caplog.at_level(logging.WARNING):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect("\0" + server.address.partition(":")[0])
            stranger.sendall(shown.encode() + framed((1, ["a"], SHA, 1e9, 1)))
            stranger.shutdown(socket.SHUT_WR)
            stranger.settimeout(10)
            with suppress(ConnectionResetError):
                assert stranger.recv(1) == b""
        assert not asked
    assert "does not know the secret" in caplog.text


def test_a_moment_without_free_files_ends_no_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: the thread that takes connections in ended, and routers went on connecting."""
    fails = [OSError("too many open files")]
    accept = socket.socket.accept

    def failing(self: socket.socket) -> Any:
        if fails:
            raise fails.pop()
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", failing)

    async def story(connections: ConnectionPool) -> None:
        assert await ask(connections, "a") == [said("a")]

    with served(echo) as server:
        run(story, server)
        assert not fails
        server.check()


def test_a_replica_that_takes_in_no_lines_is_unwell() -> None:
    with served(echo) as server:
        server.check()
        server.close()
        server._acceptor.join(10)
        with pytest.raises(ServiceError, match="must be replaced"):
            server.check()


def test_half_a_frame_ends_its_line_and_no_other() -> None:
    async def story(connections: ConnectionPool) -> None:
        for torn in (b"\x01", framed((1, ["a"], SHA, 0.0, 1))[:-3]):
            with socket.socket(socket.AF_UNIX) as client:
                name, _, secret = server.address.partition(":")
                client.connect(f"\0{name}")
                client.sendall(secret.encode() + torn)
        assert await ask(connections, "a") == [said("a")]

    with served(echo) as server:
        run(story, server)


def test_lists_that_wait_in_the_socket_are_part_of_the_load() -> None:
    """The replica cannot see them; with one connection and one thread it would never be scaled."""
    now_s, go = 0.0, threading.Semaphore(0)
    load, begun = Load(clock=lambda: now_s), threading.Semaphore(0)

    def slow(texts: list[str], sha256: str, deadline_s: float) -> list[Prediction | None]:
        begun.release()
        go.acquire(timeout=10)
        return [None]

    async def story(connections: ConnectionPool) -> None:
        nonlocal now_s
        calls = [asyncio.ensure_future(ask(connections, "a")) for _ in range(3)]
        await asyncio.to_thread(begun.acquire, timeout=10)
        load.mean()
        for _ in calls:  # each runs for a second, while what was sent before it is done
            now_s += 1.0
            go.release()
            if now_s < len(calls):
                await asyncio.to_thread(begun.acquire, timeout=10)
        await asyncio.gather(*calls)
        assert load.mean() == pytest.approx((3 + 2 + 1) / 3)
        now_s += 1.0
        assert load.mean() == 0.0

    with served(slow, load) as server:
        run(story, server)


def test_a_prediction_takes_few_bytes() -> None:
    """It is most of what crosses; each of its 77 probabilities as a float would be 9 more."""
    one = Prediction("card_arrival", 0.9, 0.8, 0.1, packed(*[1 / 77] * 77))
    many = len(pickle.dumps([one._replace(confidence=at / 64) for at in range(64)]))
    assert many < 64 * 800
