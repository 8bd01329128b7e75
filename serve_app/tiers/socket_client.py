"""The router's end of the local socket: one connection to each replica of a tier on this host."""

import asyncio
import logging
import pickle
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final, cast

from serve_app.contracts import Prediction
from serve_app.tiers.local_socket import HEAD, check_peer, framed

log = logging.getLogger(__name__)

_AGAIN_S: Final = 0.5  # between two attempts to reach replicas that Serve knows


def _opened(address: str) -> socket.socket:
    """To "name:secret". A local socket connects at once, or not at all.

    Raises:
        OSError
    """
    name, _, secret = address.partition(":")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.connect(f"\0{name}")
        check_peer(connection)
        connection.sendall(secret.encode())
    except BaseException:
        connection.close()
        raise
    return connection


class Connection(asyncio.Protocol):
    """The router's end of one connection; several lists may be out on it."""

    def __init__(self, lost: Callable[["Connection"], None]) -> None:
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
            raise ConnectionResetError("The connection is closed.")
        self._number += 1
        number, deadline_s = self._number, time.monotonic() + budget_s
        frame = framed((number, texts, sha256, deadline_s, self.out + 1))
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
        while len(seen) >= HEAD.size:
            end = HEAD.size + HEAD.unpack_from(seen)[0]
            if len(seen) < end:
                return
            number, good, said = pickle.loads(seen[HEAD.size : end])  # noqa: S301 - ours
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
                answer.set_exception(ConnectionResetError("The replica closed its connection."))


class ConnectionPool:
    """The connections to a tier's replicas, kept up as Serve's word of them changes.

    `follow` may be called in any thread; all else in the event loop that asks.
    """

    def __init__(self) -> None:
        self._wanted: frozenset[str] = frozenset()
        self._followed: frozenset[str] = frozenset()
        self._connections: dict[str, Connection] = {}
        self._opening: set[asyncio.Task[None]] = set()
        self._again_s = 0.0

    def follow(self, addresses: frozenset[str]) -> None:
        """Args: addresses: of all replicas; empty where a connection cannot go to every one of
        them.
        """
        self._wanted = addresses

    def shortest(self) -> Connection | None:
        """The connection with the fewest lists out; None if there is none."""
        if self._wanted is not self._followed or self._wanted != self._connections.keys():
            self._catch_up()
        return min(self._connections.values(), key=_out, default=None)

    def _catch_up(self) -> None:
        now_s = time.monotonic()
        if self._wanted is self._followed and (self._opening or now_s < self._again_s):
            return
        self._followed, self._again_s = self._wanted, now_s + _AGAIN_S
        for address in self._connections.keys() - self._wanted:
            self._connections.pop(address).retire()
        for address in self._wanted - self._connections.keys():
            task = asyncio.get_running_loop().create_task(self._open(address))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, address: str) -> None:
        def lost(connection: Connection) -> None:
            if self._connections.get(address) is connection:
                del self._connections[address]

        try:
            end = _opened(address)
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_unix_connection(lambda: Connection(lost), sock=end)
        except OSError as error:
            # Serve may know a replica for some seconds after its death.
            log.info("No connection to a replica (%s).", type(error).__name__)
            return
        if address in self._wanted and address not in self._connections:
            self._connections[address] = connection
        else:
            connection.retire()


def _out(connection: Connection) -> int:
    return connection.out


# Serve makes a request router for each handle, and there may be several for one tier; so the
# connections are the process's own.
_POOLS: Final[defaultdict[str, ConnectionPool]] = defaultdict(ConnectionPool)


def pool_of(tier: str) -> ConnectionPool:
    """The connections of this process to a tier, by the name that `serve_app/deploy/app.py` gives
    it.
    """
    return _POOLS[tier]
