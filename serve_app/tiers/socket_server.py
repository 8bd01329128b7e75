"""The replica's end of the local socket."""

import contextlib
import hmac
import logging
import pickle
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO, Any, Final, cast

from cluster.errors import ServiceError
from serve_app.contracts import Prediction
from serve_app.tiers.local_socket import (
    BUFFER_BYTES,
    SECRET_BYTES,
    ForeignPeerError,
    check_peer,
    framed,
    read_frame,
)

log = logging.getLogger(__name__)


# (texts, the bundle they need, when their caller gives up, by the host's monotonic clock)
Handler = Callable[[list[str], str, float], Sequence[Prediction | None]]
_PAUSE_S: Final = 0.1


def _portable(error: Exception) -> Exception:
    """The error, or one of ours where it does not come out of a pickle as it went in."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - written a moment ago
    except Exception:  # noqa: BLE001 - whatever its class does
        return ServiceError(f"The tier raised {type(error).__name__}, which cannot be sent.")
    return error


class SocketServer:
    """Answers lists that come over connections: those of one connection one after the other.

    Args:
        answer: called in a connection's thread; what it raises goes back over the connection.
        load: told how many lists are on hand, by how much that changed. Of those that wait in a
            socket a replica knows by what its router had out when it sent the one that runs, which
            is right on average.
    """

    def __init__(self, answer: Handler, load: Callable[[int], None]) -> None:
        self._answer = answer
        self._load = load
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._changing = threading.Lock()
        self._closed = False
        name, secret = f"firstline-{secrets.token_hex(8)}", secrets.token_hex(SECRET_BYTES // 2)
        self.address: Final = f"{name}:{secret}"
        self._secret = secret.encode()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(f"\0{name}")
        self._listener.listen()
        self._acceptor = threading.Thread(target=self._accept, name="lines", daemon=True)
        self._acceptor.start()

    def check(self) -> None:
        """Raises ServiceError where routers would connect, and nobody would read what they ask."""
        if not self._acceptor.is_alive():
            raise ServiceError("The replica takes in no connections any more. It must be replaced.")

    def close(self, wait_s: float = 0.0) -> None:
        """What has come is still answered, in so many seconds. A router that sends more finds its
        connection broken, and asks others about all that is out on it."""
        self._closed = True
        with self._changing:
            connections = dict(self._connections)
        for one in (self._listener, *connections):
            with contextlib.suppress(OSError):  # its peer was quicker
                one.shutdown(socket.SHUT_RD)
        self._listener.close()
        deadline_s = time.monotonic() + wait_s
        for thread in connections.values():
            thread.join(max(0.0, deadline_s - time.monotonic()))

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if not self._closed:  # of files or memory there may be enough in a moment
                    log.warning("No connection could be opened (%s).", type(error).__name__)
                    time.sleep(_PAUSE_S)
                continue
            try:
                check_peer(connection)
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                with self._changing:
                    thread.start()
                    self._connections[connection] = thread
            except (ForeignPeerError, RuntimeError) as error:
                log.warning("A connection was refused. %s", error)
                connection.close()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, cast(IO[bytes], connection.makefile("rb", BUFFER_BYTES)) as frames:
                if not hmac.compare_digest(frames.read(SECRET_BYTES), self._secret):
                    log.warning("A connection was refused. Its peer does not know the secret.")
                    return
                while content := read_frame(frames):
                    number, texts, sha256, deadline_s, out = pickle.loads(content)  # noqa: S301
                    self._load(out)
                    try:
                        said = self._said(texts, sha256, deadline_s)
                    finally:
                        self._load(-out)
                    connection.sendall(framed((number, *said)))
        except OSError as error:
            log.info("A router went away (%s).", type(error).__name__)
        finally:
            with self._changing:
                self._connections.pop(connection, None)

    def _said(self, texts: list[str], sha256: str, deadline_s: float) -> tuple[bool, Any]:
        try:
            return True, self._answer(texts, sha256, deadline_s)
        except Exception as error:  # noqa: BLE001 - the router judges what a tier raises
            return False, _portable(error)
