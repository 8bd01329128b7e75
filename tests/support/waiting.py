"""A clock that a test moves, a wait for what comes true, and a port that is free."""

import socket
import time
from collections.abc import Callable
from typing import Final

_POLL_S: Final = 0.1


class Clock:
    """Seconds that pass when told to: `clock.now_s += 5`."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def wait_for(what: Callable[[], object], within_s: float = 40.0) -> bool:
    """Whether it came true in time."""
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        if what():
            return True
        time.sleep(_POLL_S)
    return bool(what())


def free_port() -> int:
    """A port of loopback that nobody listens on; another process may take it at any time."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
