"""LoopLag: how late an event loop is. A clock that should tick, and what it says of a full process.

Requests that a process has not read yet are in no queue of its own: they wait in sockets, where
nobody counts them. But the loop that should read them is late then, and that it can see.
"""

import asyncio
from typing import Final

_BEAT_S: Final = 0.02


class LoopLag:
    """Of the event loop that asks; costs it 50 wake-ups a second."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due_s = 0.0
        self._late_s = 0.0

    def late_s(self) -> float:
        """By how much the last beat was late, or the next one is already."""
        loop = self._loop
        if loop is None or loop.is_closed():
            loop, self._late_s = asyncio.get_running_loop(), 0.0
            self._loop = loop
            self._next(loop)
        return max(self._late_s, loop.time() - self._due_s)

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due_s = loop.time() + _BEAT_S
        loop.call_at(self._due_s, self._beat, loop)

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is self._loop:
            self._late_s = loop.time() - self._due_s
            self._next(loop)
