"""The limit to the cloud: the budget first, the breaker's few probes last."""

from serve_app.cascade.circuit_breaker import CircuitBreaker, CircuitState
from serve_app.cascade.escalation import UNLIMITED, EscalationBudget, EscalationLimit
from serve_app.contracts import RouteReason
from tests.support.waiting import Clock


def test_an_open_door_lets_all_through() -> None:
    assert UNLIMITED.admit(10, 1, 9)[0] == 9
    UNLIMITED.judge([TimeoutError()])


def test_what_must_ask_uses_the_budget_up_and_is_never_refused() -> None:
    limit = EscalationLimit(budget=EscalationBudget(Clock(), share=0.1, floor_per_min=256))
    assert limit.admit(200, 200, 0)[0] == 0
    allowed, reason = limit.admit(100, 0, 100)
    assert 0 < allowed < 100
    assert reason is RouteReason.CLOUD_CAPPED


def test_a_broken_cloud_is_left_alone_and_tried_again() -> None:
    clock = Clock()
    limit = EscalationLimit(CircuitBreaker(clock, max_consecutive=2, open_s=5.0, probes=1))
    for _ in range(2):
        assert limit.admit(1, 0, 1)[0] == 1
        limit.judge([TimeoutError()])
    assert limit.admit(1, 0, 1) == (0, RouteReason.CIRCUIT_OPEN)
    clock.now_s += 5.0
    assert limit.admit(1, 0, 1)[0] == 1
    assert limit.admit(1, 0, 1) == (0, RouteReason.CIRCUIT_OPEN)


def test_a_message_that_the_budget_keeps_out_is_no_probe() -> None:
    """A probe that is never sent would keep the circuit open for as long again."""
    clock = Clock()
    breaker = CircuitBreaker(clock, max_consecutive=1, open_s=5.0, probes=1)
    limit = EscalationLimit(
        breaker, EscalationBudget(clock, share=0.1, floor_per_min=256, max_per_min=1)
    )
    assert limit.admit(1, 0, 1)[0] == 1
    limit.judge([TimeoutError()])
    clock.now_s += 5.0
    assert limit.admit(1, 0, 1) == (0, RouteReason.CLOUD_CAPPED)
    assert breaker.state is CircuitState.HALF_OPEN
    assert breaker.allow(), "the probe is still to be had"


def test_what_an_open_circuit_turns_away_costs_no_budget() -> None:
    """Or the minute after an outage would be capped, with the cloud idle."""
    clock = Clock()
    budget = EscalationBudget(clock, share=0.1, floor_per_min=256, max_per_min=10)
    limit = EscalationLimit(CircuitBreaker(clock, max_consecutive=1, open_s=5.0, probes=3), budget)
    assert limit.admit(1, 0, 1)[0] == 1
    limit.judge([TimeoutError()])
    for _ in range(50):
        assert limit.admit(1, 0, 1) == (0, RouteReason.CIRCUIT_OPEN)
    clock.now_s += 5.0
    assert limit.admit(1, 0, 1)[0] == 1
