"""Line: a socket between a router and a replica of a tier on the same host: a cheaper call.

    Line, in a router    ── number, texts, bundle, deadline, lists out ──>  LineServer, in a replica
                         <── number, answers or what was raised ──────────

Ray Serve's own call wakes an event loop and a gRPC thread on both sides, and asks whether it is
welcome before it is answered: more than a message takes to run (docs/performance.md). A line's
thread reads a list, runs it and writes the answer, and nothing else in the replica is woken.

Serve still says which replicas there are (least_outstanding.py), starts, checks, scales and ends
them, and carries the calls wherever a line cannot go: to another host, or while no replica is known
yet.

The socket has no file: its name is of Linux's abstract kind. Both ends refuse a peer of another
user; and since a container may share the user's number and the network, but not what Serve tells
its routers, a router shows a secret before its first pickle is read.
"""

import asyncio
import contextlib
import hmac
import logging
import os
import pickle
import secrets
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import IO, Any, Final, cast

from cluster.errors import ServiceError
from serve_app.contracts import Prediction

log = logging.getLogger(__name__)

ADDRESS: Final = "line"  # in what a replica says of itself to Serve

# (texts, the bundle they need, when their caller gives up, by the host's monotonic clock)
Answer = Callable[[list[str], str, float], Sequence[Prediction | None]]

_HEAD: Final = struct.Struct("<I")  # bytes of the pickle that follows
_PEER: Final = struct.Struct("3i")  # pid, uid, gid: SO_PEERCRED, unix(7)
_SECRET_BYTES: Final = 32
_BUFFER_BYTES: Final = 1 << 16
_PAUSE_S: Final = 0.1
_AGAIN_S: Final = 0.5  # between two attempts to reach replicas that Serve knows


class ForeignPeerError(ConnectionError):
    """The other end of a socket belongs to another user."""


def _frame(content: object) -> bytes:
    packed = pickle.dumps(content, pickle.HIGHEST_PROTOCOL)
    return _HEAD.pack(len(packed)) + packed


def _portable(error: Exception) -> Exception:
    """The error, or one of ours where it does not come out of a pickle as it went in."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - written a moment ago
    except Exception:  # noqa: BLE001 - whatever its class does
        return ServiceError(f"The tier raised {type(error).__name__}, which cannot be sent.")
    return error


def _read(frames: IO[bytes]) -> bytes:
    """One pickle; nothing where the peer has ended, be it within one."""
    head = frames.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return b""
    (size,) = _HEAD.unpack(head)
    content = frames.read(size)
    return content if len(content) == size else b""


def _check_peer(line: socket.socket) -> None:
    _, uid, _ = _PEER.unpack(line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    if uid != os.getuid():
        raise ForeignPeerError(f"The peer runs as user {uid}; user {os.getuid()} was expected.")


def _opened(address: str) -> socket.socket:
    """To "name:secret". A local socket connects at once, or not at all.

    Raises:
        OSError
    """
    name, _, secret = address.partition(":")
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        line.setblocking(False)
        line.connect(f"\0{name}")
        _check_peer(line)
        line.sendall(secret.encode())
    except BaseException:
        line.close()
        raise
    return line


# ---- the replica's end --------------------------------------------------------------------------


class LineServer:
    """Answers lists that come over lines: those of one line one after the other.

    Args:
        answer: called in a line's thread; what it raises goes back over the line.
        load: told how many lists are on hand, by how much that changed. Of those that wait in a
            socket a replica knows by what its router had out when it sent the one that runs, which
            is right on average.
    """

    def __init__(self, answer: Answer, load: Callable[[int], None]) -> None:
        self._answer = answer
        self._load = load
        self._lines: dict[socket.socket, threading.Thread] = {}
        self._changing = threading.Lock()
        self._closed = False
        name, secret = f"firstline-{secrets.token_hex(8)}", secrets.token_hex(_SECRET_BYTES // 2)
        self.address: Final = f"{name}:{secret}"
        self._secret = secret.encode()
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._door.bind(f"\0{name}")
        self._door.listen()
        self._usher = threading.Thread(target=self._accept, name="lines", daemon=True)
        self._usher.start()

    def check(self) -> None:
        """Raises ServiceError where routers would connect, and nobody would read what they ask."""
        if not self._usher.is_alive():
            raise ServiceError("The replica takes in no lines any more. It must be replaced.")

    def close(self, wait_s: float = 0.0) -> None:
        """What has come is still answered, in so many seconds. A router that sends more finds its
        line broken, and asks others about all that is out on it."""
        self._closed = True
        with self._changing:
            lines = dict(self._lines)
        for one in (self._door, *lines):
            with contextlib.suppress(OSError):  # its peer was quicker
                one.shutdown(socket.SHUT_RD)
        self._door.close()
        deadline_s = time.monotonic() + wait_s
        for thread in lines.values():
            thread.join(max(0.0, deadline_s - time.monotonic()))

    def _accept(self) -> None:
        while not self._closed:
            try:
                line, _ = self._door.accept()
            except OSError as error:
                if not self._closed:  # of files or memory there may be enough in a moment
                    log.warning("No line could be opened (%s).", type(error).__name__)
                    time.sleep(_PAUSE_S)
                continue
            try:
                _check_peer(line)
                thread = threading.Thread(target=self._serve, args=(line,), daemon=True)
                with self._changing:
                    thread.start()
                    self._lines[line] = thread
            except (ForeignPeerError, RuntimeError) as error:
                log.warning("A line was refused. %s", error)
                line.close()

    def _serve(self, line: socket.socket) -> None:
        try:
            with line, cast(IO[bytes], line.makefile("rb", _BUFFER_BYTES)) as frames:
                if not hmac.compare_digest(frames.read(_SECRET_BYTES), self._secret):
                    log.warning("A line was refused. Its peer does not know the secret.")
                    return
                while content := _read(frames):
                    number, texts, sha256, deadline_s, out = pickle.loads(content)  # noqa: S301
                    self._load(out)
                    try:
                        said = self._said(texts, sha256, deadline_s)
                    finally:
                        self._load(-out)
                    line.sendall(_frame((number, *said)))
        except OSError as error:
            log.info("A router went away (%s).", type(error).__name__)
        finally:
            with self._changing:
                self._lines.pop(line, None)

    def _said(self, texts: list[str], sha256: str, deadline_s: float) -> tuple[bool, Any]:
        try:
            return True, self._answer(texts, sha256, deadline_s)
        except Exception as error:  # noqa: BLE001 - the router judges what a tier raises
            return False, _portable(error)


# ---- the router's end ---------------------------------------------------------------------------


class Line(asyncio.Protocol):
    """The router's end of one line; several lists may be out on it."""

    def __init__(self, lost: Callable[["Line"], None]) -> None:
        self._lost = lost
        self._retired = False
        self._transport: asyncio.Transport | None = None
        self._seen = bytearray()
        self._number = 0
        self._waiting: dict[int, asyncio.Future[Sequence[Prediction | None]]] = {}

    @property
    def out(self) -> int:
        """Lists that the replica has not answered, those that nobody waits for any more included:
        it has to get past them, or hangs."""
        return len(self._waiting)

    async def ask(
        self, texts: list[str], sha256: str, budget_s: float
    ) -> Sequence[Prediction | None]:
        """Raises what the tier raised; ConnectionError where the replica went away."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("The line is closed.")
        self._number += 1
        number, deadline_s = self._number, time.monotonic() + budget_s
        frame = _frame((number, texts, sha256, deadline_s, self.out + 1))
        answer: asyncio.Future[Sequence[Prediction | None]]
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._transport.write(frame)
        try:
            return await answer
        finally:
            self._end_if_done()

    def retire(self) -> None:
        """Closes it as soon as nobody waits for an answer."""
        self._retired = True
        self._end_if_done()

    def _end_if_done(self) -> None:
        awaited = any(not answer.done() for answer in self._waiting.values())
        if self._retired and not awaited and self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        seen = self._seen
        seen += data
        while len(seen) >= _HEAD.size:
            end = _HEAD.size + _HEAD.unpack_from(seen)[0]
            if len(seen) < end:
                return
            number, good, said = pickle.loads(seen[_HEAD.size : end])  # noqa: S301 - ours
            del seen[:end]
            answer = self._waiting.pop(number)
            if answer.done():
                continue  # whoever asked has given up
            if good:
                answer.set_result(said)
            else:
                answer.set_exception(said)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost(self)
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ConnectionResetError("The replica closed its line."))


class Lines:
    """The lines to a tier's replicas, kept up as Serve's word of them changes.

    `follow` may be called in any thread; all else in the event loop that asks.
    """

    def __init__(self) -> None:
        self._wanted: frozenset[str] = frozenset()
        self._followed: frozenset[str] = frozenset()
        self._lines: dict[str, Line] = {}
        self._opening: set[asyncio.Task[None]] = set()
        self._again_s = 0.0

    def follow(self, addresses: frozenset[str]) -> None:
        """Args: addresses: of all replicas; empty where a line cannot go to every one of them."""
        self._wanted = addresses

    def shortest(self) -> Line | None:
        """The line with the fewest lists out; None if there is none."""
        if self._wanted is not self._followed or self._wanted != self._lines.keys():
            self._catch_up()
        return min(self._lines.values(), key=_out, default=None)

    def _catch_up(self) -> None:
        now_s = time.monotonic()
        if self._wanted is self._followed and (self._opening or now_s < self._again_s):
            return
        self._followed, self._again_s = self._wanted, now_s + _AGAIN_S
        for address in self._lines.keys() - self._wanted:
            self._lines.pop(address).retire()
        for address in self._wanted - self._lines.keys():
            task = asyncio.get_running_loop().create_task(self._open(address))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, address: str) -> None:
        def lost(line: Line) -> None:
            if self._lines.get(address) is line:
                del self._lines[address]

        try:
            end = _opened(address)
            loop = asyncio.get_running_loop()
            _, line = await loop.create_unix_connection(lambda: Line(lost), sock=end)
        except OSError as error:
            # Serve may know a replica for some seconds after its death.
            log.info("No line to a replica (%s).", type(error).__name__)
            return
        if address in self._wanted and address not in self._lines:
            self._lines[address] = line
        else:
            line.retire()


def _out(line: Line) -> int:
    return line.out


# Serve makes a request router for each handle, and there may be several for one tier; so the lines
# are the process's own.
_LINES: Final[defaultdict[str, Lines]] = defaultdict(Lines)


def lines_of(tier: str) -> Lines:
    """The lines of this process to a tier, by the name that `serve_app/deploy/app.py` gives it."""
    return _LINES[tier]
