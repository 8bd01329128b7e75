"""Progress that a person can read: a bar on a terminal, plain lines elsewhere.

A stage on a Ray worker reports to a `Board` actor; the driver polls it and draws. Nothing waits
for the screen.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

from tqdm import tqdm

_LINE_EVERY_S: Final = 10.0
_POLL_S: Final = 0.3


class Report(Protocol):
    """Tells how far a stage is: `done` of `total` steps, with a short note."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


def silent(done: int, total: int, note: str = "") -> None:
    """The null report."""


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


class _Lines:
    """One line at most every ten seconds, for logs and pipes."""

    def __init__(self, stage: str, clock: Callable[[], float]) -> None:
        self._stage, self._clock = stage, clock
        self._start = self._last = clock()

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = self._clock()
        if now - self._last < _LINE_EVERY_S or not 0 < done < total:
            return
        self._last = now
        spent = now - self._start
        left = spent / done * (total - done)
        _say(
            f"  {self._stage}: {done}/{total} ({100 * done // total}%), {_clock(spent)} spent, "
            f"about {_clock(left)} left {note}".rstrip()
        )


@contextmanager
def stage(name: str) -> Iterator[Report]:
    """Announces a stage, yields its report, and says how long it took."""
    start = time.monotonic()
    if sys.stderr.isatty():
        with tqdm(desc=name, leave=True, bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}") as bar:  # fmt: skip  # noqa: E501

            def draw(done: int, total: int, note: str = "") -> None:
                bar.total = total
                bar.n = done
                bar.set_postfix_str(note, refresh=False)
                bar.refresh()

            yield draw
            if bar.total:
                bar.n = bar.total
    else:
        _say(f"{name} ...")
        yield _Lines(name, time.monotonic)
        _say(f"{name}: done in {_clock(time.monotonic() - start)}")


class Board:
    """The actor's body: the latest report, nothing else."""

    def __init__(self) -> None:
        self._latest: tuple[int, int, str] = (0, 0, "")

    def put(self, done: int, total: int, note: str) -> None:
        self._latest = (done, total, note)

    def get(self) -> tuple[int, int, str]:
        return self._latest


@contextmanager
def relayed(report: Report) -> Iterator[Any]:
    """Yields the handle of a Board for workers; what they put there reaches `report`."""
    import ray

    board: Any = ray.remote(Board).options(num_cpus=0).remote()
    done = threading.Event()

    def poll() -> None:
        while not done.wait(_POLL_S):
            try:
                latest = ray.get(board.get.remote(), timeout=5)
            except (ray.exceptions.RayError, TimeoutError):
                return  # the board is gone: training goes on without a bar
            if latest[1]:
                report(*latest)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield board
    finally:
        done.set()
        thread.join(timeout=6)
        ray.kill(board)
