"""A request's body, whole and within bounds, before anything parses it.

    bytes as they come ─> one body ─> held until its request is answered

Decided once: what is too large, or too slow, is refused before its rest is kept. A body that
trickles in holds no place among the requests in work, only its bytes.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from starlette.types import Receive

from serve_app.errors import BodyTooLargeError, OverloadedError, SlowBodyError

# 256 texts of 10,000 characters, each escaped to the six bytes of a \uXXXX, and some air.
MAX_BODY_BYTES: Final = 16 << 20
# Of all bodies being read or answered: what keeps many large requests from filling the memory.
MAX_HELD_BYTES: Final = 256 << 20
# The largest body on a line of 8 Mbit/s.
BODY_TIMEOUT_S: Final = 16.0
_DISCARDED_BYTES: Final = 64 << 20
_DISCARD_S: Final = 2.0


class ClientGoneError(Exception):
    """The client hung up before its request was whole."""


class BodyBudget:
    """Counts the bytes of all bodies in one process."""

    def __init__(
        self,
        max_body_bytes: int = MAX_BODY_BYTES,
        max_held_bytes: int = MAX_HELD_BYTES,
        timeout_s: float = BODY_TIMEOUT_S,
    ) -> None:
        self.max_body_bytes = max_body_bytes
        self.max_held_bytes = max_held_bytes
        self.timeout_s = timeout_s
        self.held_bytes = 0


def _number(digits: bytes) -> int:
    """Of a Content-Length: more digits than anybody has bytes are a number that is too large."""
    return int(digits[:18]) if digits.isdigit() else 0


async def discard(receive: Receive) -> None:
    """Takes what is still on its way, and keeps none of it, up to a bound of bytes and time.

    A connection that is closed under a client that still sends is reset, and the client never
    reads why it was refused.
    """
    left_bytes = _DISCARDED_BYTES
    with suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            while left_bytes > 0:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
                left_bytes -= len(message.get("body", b""))


class Body:
    """One body. Its owner calls `close` when the request is answered, whatever became of it."""

    def __init__(self, body_budget: BodyBudget) -> None:
        self._body_budget = body_budget
        self._held_bytes = 0

    async def read(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """Raises BodyTooLargeError, SlowBodyError, ClientGoneError, or OverloadedError where all
        bodies together are too many bytes."""
        declared = headers.get(b"content-length", b"")
        if _number(declared) > self._body_budget.max_body_bytes:
            raise BodyTooLargeError(self._body_budget.max_body_bytes)
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self._body_budget.timeout_s):
                while await self._part(receive, parts):
                    pass
        except TimeoutError:
            raise SlowBodyError(self._body_budget.timeout_s) from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _part(self, receive: Receive, parts: list[bytes]) -> bool:
        """Takes the next part; whether there is more."""
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGoneError
        part: bytes = message.get("body", b"")
        parts.append(part)
        self._hold(len(part))
        return bool(message.get("more_body", False))

    def _hold(self, size: int) -> None:
        body_budget = self._body_budget
        self._held_bytes += size
        body_budget.held_bytes += size
        if self._held_bytes > body_budget.max_body_bytes:
            raise BodyTooLargeError(body_budget.max_body_bytes)
        if body_budget.held_bytes > body_budget.max_held_bytes:
            raise OverloadedError("Too many large requests are in work. Try again in a moment.")

    def close(self) -> None:
        """Gives its bytes back."""
        self._body_budget.held_bytes -= self._held_bytes
        self._held_bytes = 0
