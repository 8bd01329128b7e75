"""The way to the cloud: who may be escalated now. Pure; the clock is an argument.

    messages that want the cloud ─> circuit breaker ─> escalation budget ─> those that may ask

The breaker knows whether the cloud is broken. The budget caps the cloud's share, and so the bill,
where everything is suddenly hard. Both are of one release and router, and neither raises.

Shut, the edge's answer goes out and is marked degraded. A message without an answer from the edge
always passes: degraded is better than none.
"""

from collections.abc import Sequence

from serve_app.cascade.circuit_breaker import MINUTE_S, CircuitBreaker, Clock, RecentCount, tally
from serve_app.contracts import Outcome, RouteReason


def default_budget_share(cloud_share: float) -> float:
    """The share that a certified policy sends to the cloud -> the share it may send.

    Three times as much, at least 0.1. Chance does not reach it: of messages that come one by one, a
    run of hard ones outruns a bucket of b, refilled at three times their share, with a probability
    below exp(-1.9 b) (Lundberg's bound), and b is at least the floor, 300; the bucket grows with
    the traffic for lists whose messages are hard together. Nor does a drift of what customers
    write, which the monitor reports long before it has tripled. Where a third or more is escalated
    anyway there is no cap: a storm could not triple the bill.
    """
    return min(1.0, max(0.1, 3.0 * cloud_share))


class EscalationBudget:
    """`budget.take(seen, wanted)` -> how many of the wanted messages may go to the cloud.

    A token bucket that traffic fills: `share` of a token per message seen, and `floor_per_min`
    tokens a minute whatever comes, so that little traffic is never capped. It holds the floor and
    the share of the last minute's messages, so that a storm gets at most a minute's budget at once,
    first come, first served, and after that `share` of the traffic.

    Args:
        share: of all messages; see `default_budget_share`.
        floor_per_min: more than one request's texts, so that one hard list on a quiet service
            passes.
        max_per_min: what never is exceeded in any minute, whatever the traffic; None: no such cap.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        share: float,
        floor_per_min: int = 300,
        max_per_min: int | None = None,
    ) -> None:
        self._clock = clock
        self._share = share
        self._floor_per_min = floor_per_min
        self._max_per_min = max_per_min
        self._seen = RecentCount(MINUTE_S)
        self._used = RecentCount(MINUTE_S)
        self._tokens = float(floor_per_min)
        self._filled_s = clock()

    def take(self, seen: int, wanted: int) -> int:
        """Args: seen: messages of a request, whatever their route; wanted: of these, the hard."""
        now_s = self._clock()
        self._fill(seen, now_s)
        allowed = min(wanted, int(self._tokens))
        if self._max_per_min is not None:
            allowed = min(allowed, max(0, self._max_per_min - self._used.total(now_s)))
        self._tokens -= allowed
        if self._max_per_min is not None:
            self._used.add(allowed, now_s)
        return allowed

    def give_back(self, count: int) -> None:
        """Of what was taken, and then did not go."""
        self._tokens += count
        if self._max_per_min is not None:
            self._used.add(-count, self._clock())

    def _fill(self, seen: int, now_s: float) -> None:
        self._seen.add(seen, now_s)
        flow = self._floor_per_min * (now_s - self._filled_s) / MINUTE_S + self._share * seen
        size = self._floor_per_min + self._share * self._seen.total(now_s)
        self._tokens = min(size, self._tokens + flow)
        self._filled_s = now_s


class EscalationLimit:
    """Either part may be missing, and then never shuts."""

    def __init__(
        self, breaker: CircuitBreaker | None = None, budget: EscalationBudget | None = None
    ) -> None:
        self.breaker = breaker
        self.budget = budget

    def admit(self, seen: int, must: int, wanted: int) -> tuple[int, RouteReason]:
        """How many of the `wanted` may ask, and why the others may not.

        Args:
            seen: messages of the request, whatever their route: the budget is a share of them.
            must: messages that ask in any case.
        """
        allowed = wanted
        if self.budget is not None:
            allowed = max(0, self.budget.take(seen, must + wanted) - must)
        # Asked last, since a yes may be one of the breaker's few probes.
        if allowed and self.breaker is not None and not self.breaker.allow():
            if self.budget is not None:
                self.budget.give_back(allowed)
            return 0, RouteReason.CIRCUIT_OPEN
        return allowed, RouteReason.CLOUD_CAPPED

    def judge(self, outcomes: Sequence[Outcome]) -> None:
        """Tells the breaker what came of a call."""
        if self.breaker is None:
            return
        self.breaker.record(*tally(outcomes))


UNLIMITED = EscalationLimit()
