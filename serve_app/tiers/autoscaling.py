"""How many replicas a tier gets: by the lists they have on hand, over connections and handles
alike.

Serve counts what goes through its own handles, and a connection (local_socket.py) does not. So each
replica counts for itself (`Load`, told to Serve by `record_autoscaling_stats`), and `by_lists` is
Serve's default policy over that count: delays, bounds and factors are Serve's own.

Serve keeps a replica's last figure until the replica ends, so one that hangs keeps its load.

Serve's controller runs a copy of `by_lists` without this module, so it refers to nothing here.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, Final

LISTS: Final = "lists"  # the figure's name, as `by_lists` has it


class Load:
    """How many lists a replica had on hand, on average, since it was asked last. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._lists = 0
        self._list_seconds = 0.0
        self._since_s = self._at_s = clock()

    def __call__(self, change: int) -> None:
        with self._lock:
            self._advance()
            self._lists += change

    def mean(self) -> float:
        with self._lock:
            self._advance()
            seconds = self._at_s - self._since_s
            mean = self._list_seconds / seconds if seconds > 0 else float(self._lists)
            self._since_s, self._list_seconds = self._at_s, 0.0
            return mean

    def _advance(self) -> None:
        now_s = self._clock()
        self._list_seconds += self._lists * (now_s - self._at_s)
        self._at_s = now_s


def by_lists(ctx: Any) -> tuple[float, dict[str, Any]]:
    """Serve's AutoscalingContext -> how many replicas the load is worth, and no state."""
    told = (ctx.aggregated_metrics or {}).get("lists", {})
    if not ctx.current_num_replicas or not told:
        return ctx.target_num_replicas, {}
    return sum(told.values()) / ctx.config.get_target_ongoing_requests(), {}
