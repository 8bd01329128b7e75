"""A socket between a router and a replica of a tier on the same host: a cheaper call.

    Connection, in a router ── number, texts, bundle, deadline, lists out ──> SocketServer
                            <── number, answers or what was raised ─────────   in a replica

Ray Serve's own call wakes an event loop and a gRPC thread on both sides, and asks whether it is
welcome before it is answered: more than a message takes to run (docs/performance.md). A
connection's thread reads a list, runs it and writes the answer, and nothing else in the replica is
woken.

Serve still says which replicas there are (least_outstanding.py), starts, checks, scales and ends
them, and carries the calls wherever a connection cannot go: to another host, or while no replica is
known yet.

The socket has no file: its name is of Linux's abstract kind. Both ends refuse a peer of another
user; and since a container may share the user's number and the network, but not what Serve tells
its routers, a router shows a secret before its first pickle is read.
"""

import os
import pickle
import socket
import struct
from typing import IO, Final

ADDRESS: Final = "line"  # in what a replica says of itself to Serve


HEAD: Final = struct.Struct("<I")  # bytes of the pickle that follows
_PEER: Final = struct.Struct("3i")  # pid, uid, gid: SO_PEERCRED, unix(7)
SECRET_BYTES: Final = 32
BUFFER_BYTES: Final = 1 << 16


class ForeignPeerError(ConnectionError):
    """The other end of a socket belongs to another user."""


def framed(content: object) -> bytes:
    packed = pickle.dumps(content, pickle.HIGHEST_PROTOCOL)
    return HEAD.pack(len(packed)) + packed


def read_frame(frames: IO[bytes]) -> bytes:
    """One pickle; nothing where the peer has ended, be it within one."""
    head = frames.read(HEAD.size)
    if len(head) < HEAD.size:
        return b""
    (size,) = HEAD.unpack(head)
    content = frames.read(size)
    return content if len(content) == size else b""


def check_peer(connection: socket.socket) -> None:
    _, uid, _ = _PEER.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    )
    if uid != os.getuid():
        raise ForeignPeerError(f"The peer runs as user {uid}; user {os.getuid()} was expected.")
