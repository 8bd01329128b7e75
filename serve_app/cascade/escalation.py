"""The door to the cloud: who may be escalated now. Pure; the clock is the breakers' own.

    messages that want the cloud ─> circuit breaker ─> escalation budget ─> those that may ask

Shut, the edge's answer goes out and is marked degraded. A message without an answer from the edge
always passes: degraded is better than none.
"""

from collections.abc import Sequence

from serve_app.cascade.circuit_breaker import CircuitBreaker, EscalationBudget, tally
from serve_app.contracts import RouteReason
from serve_app.tiers.batching import Outcome


class Door:
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


OPEN_DOOR = Door()
