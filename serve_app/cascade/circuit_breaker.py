"""The circuit breaker in front of the cloud. Pure: one event loop, the clock is an argument.

The cloud is broken: it is left alone, and tried again with a few calls. It answers a yes or a no,
and never raises. One per release and router.

No library: aiobreaker has had no release since 2021, pybreaker's async needs Tornado, purgatory
counts consecutive failures only; and all three call the system's clock, so none can be tested by
the minute.
"""

from collections import deque
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Final

from cluster.errors import ModelOutputError
from serve_app.contracts import Outcome, Prediction
from serve_app.errors import DeadlineError, OverloadedError

Clock = Callable[[], float]

MINUTE_S: Final = 60.0


class RecentCount:
    """How much was added within the last `window_s`, to a sixtieth of it, and never less."""

    _SLOTS: Final = 60

    def __init__(self, window_s: float) -> None:
        self._slot_s = window_s / self._SLOTS
        self._slots: deque[list[int]] = deque()  # [slot number, count]
        self._total = 0

    def add(self, count: int, now_s: float) -> None:
        slot = int(now_s / self._slot_s)
        if self._slots and self._slots[-1][0] == slot:
            self._slots[-1][1] += count
        else:
            self._slots.append([slot, count])
        self._total += count

    def total(self, now_s: float) -> int:
        oldest = int(now_s / self._slot_s) - self._SLOTS
        while self._slots and self._slots[0][0] < oldest:
            self._total -= self._slots.popleft()[1]
        return self._total

    def clear(self) -> None:
        self._slots.clear()
        self._total = 0


# ---- the cloud is broken ------------------------------------------------------------------------


class CircuitState(StrEnum):
    """The pattern's own names (Nygard, Release It!)."""

    CLOSED = "closed"  # calls go through
    OPEN = "open"  # none does
    HALF_OPEN = "half_open"  # a few do, to see


def tally(outcomes: Sequence[Outcome]) -> tuple[int, int]:
    """A call's outcomes -> (successes, failures), as the breaker counts them.

    Timeouts, lost replicas and other errors are failures. Our own full queue is none, nor is a
    deadline of the caller's that was too short to blame the tier for. A message without a finite
    answer is the message's fault as long as another of its call had one; a call in which none had
    is the model's.
    """
    success = sum(isinstance(outcome, Prediction) for outcome in outcomes)
    blameless: tuple[type[Exception], ...] = (OverloadedError, DeadlineError)
    if success:
        blameless += (ModelOutputError,)
    failure = sum(
        isinstance(outcome, Exception) and not isinstance(outcome, blameless)
        for outcome in outcomes
    )
    return success, failure


class CircuitBreaker:
    """`if breaker.allow(): ...call...; breaker.record(success, failure)`.

    Closed, it opens on `max_consecutive` calls in a row that brought nothing but failures, or when
    `failure_share` of at least `min_messages` messages failed within `window_s`. Open, it lets
    nothing through for `open_s`. Half-open, it lets `probes` calls through: as many good ones close
    it, one bad one opens it again. A probe of which nothing is heard is replaced after `open_s`.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        failure_share: float = 0.5,
        min_messages: int = 20,
        window_s: float = 10.0,
        max_consecutive: int = 5,
        open_s: float = 5.0,
        probes: int = 3,
    ) -> None:
        self._clock = clock
        self._failure_share = failure_share
        self._min_messages = min_messages
        self._max_consecutive = max_consecutive
        self._open_s = open_s
        self._probes = probes
        self._successes = RecentCount(window_s)
        self._failures = RecentCount(window_s)
        self._consecutive = 0
        self._state = CircuitState.CLOSED
        self._since_s = 0.0  # opened, or the last probe left
        self._out = 0  # probes that may be out
        self._good = 0

    @property
    def state(self) -> CircuitState:
        """As of now: open turns into half-open by time alone."""
        if self._state is CircuitState.OPEN and self._clock() - self._since_s >= self._open_s:
            self._state = CircuitState.HALF_OPEN
            self._out = self._good = 0
        return self._state

    def allow(self) -> bool:
        """Whether a call may go out now. In half-open, True takes one of the probes."""
        state = self.state
        if state is not CircuitState.HALF_OPEN:
            return state is CircuitState.CLOSED
        now_s = self._clock()
        if self._out >= self._probes and now_s - self._since_s >= self._open_s:
            self._out = self._good
        if self._out >= self._probes:
            return False
        self._out += 1
        self._since_s = now_s
        return True

    def record(self, success: int, failure: int) -> None:
        """What came of one call, in messages; (0, 0) where it says nothing of the cloud."""
        state = self.state
        if state is CircuitState.CLOSED:
            self._record_closed(success, failure)
        elif state is CircuitState.HALF_OPEN:
            self._record_probe(success, failure)
        # Open: a call from before, which brings no news.

    def _record_closed(self, success: int, failure: int) -> None:
        now_s = self._clock()
        self._successes.add(success, now_s)
        self._failures.add(failure, now_s)
        if success:
            self._consecutive = 0
        elif failure:
            self._consecutive += 1
        failed = self._failures.total(now_s)
        seen = failed + self._successes.total(now_s)
        often = seen >= self._min_messages and failed >= self._failure_share * seen
        if failure and (often or self._consecutive >= self._max_consecutive):
            self._open(now_s)

    def _record_probe(self, success: int, failure: int) -> None:
        if not success and not failure:
            self._out = max(self._good, self._out - 1)
        elif failure >= self._failure_share * (success + failure):
            self._open(self._clock())
        else:
            self._good += 1
            self._out = max(self._good, self._out)
            if self._good >= self._probes:
                self._close()

    def _open(self, now_s: float) -> None:
        self._state, self._since_s = CircuitState.OPEN, now_s

    def _close(self) -> None:
        self._state = CircuitState.CLOSED
        self._consecutive = 0
        self._successes.clear()
        self._failures.clear()
