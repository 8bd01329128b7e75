"""Breaker and budget: they trip when they must, never on honest traffic, and always recover."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.errors import ModelOutputError, ServiceError
from serve_app.cascade.circuit_breaker import CircuitBreaker, CircuitState, RecentCount, tally
from serve_app.cascade.escalation import EscalationBudget, default_budget_share
from serve_app.contracts import Outcome, Prediction, packed
from serve_app.errors import DeadlineError, OverloadedError
from tests.support.waiting import Clock

GOOD = Prediction("a", 0.9, 0.8, 0.1, packed(0.9, 0.1))
NAN = ModelOutputError("NaN")


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 9)), max_size=60))
def test_a_recent_count_misses_nothing_of_its_window(steps: list[tuple[float, int]]) -> None:
    clock, count = Clock(), RecentCount(10.0)
    added: list[tuple[float, int]] = []
    for pause_s, number in steps:
        clock.now_s += pause_s
        count.add(number, clock.now_s)
        added.append((clock.now_s, number))
        ages = [(clock.now_s - at_s, number) for at_s, number in added]
        within = sum(number for age_s, number in ages if age_s < 10.0)
        assert within <= count.total(clock.now_s)
        assert count.total(clock.now_s) <= sum(number for age_s, number in ages if age_s < 10.4)


# ---- the circuit --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcomes", "counted"),
    [
        ([GOOD, GOOD], (2, 0)),
        ([GOOD, NAN], (1, 0)),  # a poisoned message
        ([NAN, NAN], (0, 2)),  # a broken model
        ([TimeoutError(), ServiceError("gone"), ConnectionError()], (0, 3)),
        ([GOOD, TimeoutError()], (1, 1)),
        ([OverloadedError("full")] * 2, (0, 0)),
        ([DeadlineError()], (0, 0)),
        ([NAN, OverloadedError("full")], (0, 1)),
    ],
)
def test_only_what_the_cloud_is_to_blame_for_counts(
    outcomes: list[Outcome], counted: tuple[int, int]
) -> None:
    assert tally(outcomes) == counted


def opened() -> tuple[CircuitBreaker, Clock]:
    clock = Clock()
    breaker = CircuitBreaker(clock)
    for _ in range(5):
        assert breaker.allow()
        breaker.record(0, 1)
    assert breaker.state is CircuitState.OPEN
    return breaker, clock


def test_calls_that_only_fail_open_it_even_when_there_are_few() -> None:
    breaker, clock = opened()
    assert not breaker.allow()
    clock.now_s += 4.9
    assert not breaker.allow()


def test_a_share_of_failures_opens_it_and_a_smaller_one_does_not() -> None:
    breaker = CircuitBreaker(Clock())
    for _ in range(100):
        breaker.record(6, 4)
    assert breaker.allow()
    for _ in range(100):
        breaker.record(4, 6)
    assert breaker.state is CircuitState.OPEN


def test_failures_of_long_ago_are_forgotten() -> None:
    clock = Clock()
    breaker = CircuitBreaker(clock, max_consecutive=1000)
    breaker.record(0, 19)
    assert breaker.allow()
    clock.now_s += 11
    breaker.record(0, 19)
    assert breaker.allow()
    breaker.record(0, 1)
    assert breaker.state is CircuitState.OPEN


def test_a_few_probes_close_it() -> None:
    breaker, clock = opened()
    clock.now_s += 5
    assert [breaker.allow() for _ in range(5)] == [True, True, True, False, False]
    for _ in range(3):
        assert breaker.state is CircuitState.HALF_OPEN
        breaker.record(1, 0)
    assert breaker.state is CircuitState.CLOSED
    breaker.record(0, 1)  # what opened it is forgotten
    assert breaker.state is CircuitState.CLOSED


def test_a_bad_probe_opens_it_again() -> None:
    breaker, clock = opened()
    clock.now_s += 5
    assert breaker.allow()
    breaker.record(1, 0)
    assert breaker.allow()
    breaker.record(0, 64)
    assert breaker.state is CircuitState.OPEN


def test_a_probe_that_says_nothing_is_given_back() -> None:
    breaker, clock = opened()
    clock.now_s += 5
    for _ in range(10):
        assert breaker.allow()
        breaker.record(0, 0)  # our own queue was full
    assert breaker.state is CircuitState.HALF_OPEN


def test_probes_that_never_come_back_do_not_keep_it_half_open() -> None:
    breaker, clock = opened()
    clock.now_s += 5
    while breaker.allow():
        pass
    clock.now_s += 5
    for _ in range(3):
        assert breaker.allow()
        breaker.record(1, 0)
    assert breaker.state is CircuitState.CLOSED


class CircuitMachine(RuleBasedStateMachine):
    """Whatever happens: open lets nothing through for its time, half-open no more than the probes
    per `open_s`, and a cloud that is well again is used again."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breaker = CircuitBreaker(self.clock, open_s=5.0, probes=3)
        self.opened_s = -math.inf

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @rule(success=st.integers(0, 64), failure=st.integers(0, 64))
    def record(self, success: int, failure: int) -> None:
        before = self.breaker.state
        self.breaker.record(success, failure)
        if before is not CircuitState.OPEN and self.breaker.state is CircuitState.OPEN:
            assert failure
            self.opened_s = self.clock.now_s

    @rule()
    def call(self) -> None:
        state = self.breaker.state
        allowed = self.breaker.allow()
        if state is CircuitState.CLOSED:
            assert allowed
        elif state is CircuitState.OPEN:
            assert not allowed
            assert self.clock.now_s - self.opened_s < 5.0

    @precondition(lambda self: self.breaker.state is CircuitState.HALF_OPEN)
    @rule()
    def flood(self) -> None:
        assert sum(self.breaker.allow() for _ in range(50)) <= 3
        assert not self.breaker.allow()

    @rule()
    def the_cloud_is_well_for_a_while(self) -> None:
        for _ in range(4):
            self.clock.now_s += 5.0
            for _ in range(3):
                if self.breaker.allow():
                    self.breaker.record(1, 0)
        assert self.breaker.state is CircuitState.CLOSED

    @invariant()
    def open_is_only_ever_left_by_time(self) -> None:
        if self.clock.now_s - self.opened_s < 5.0:
            assert self.breaker.state is not CircuitState.HALF_OPEN


TestCircuit = CircuitMachine.TestCase
TestCircuit.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


# ---- the budget ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cloud_share", "budget"), [(0.0, 0.1), (0.01, 0.1), (0.1, 0.3), (0.3, 0.9), (0.5, 1.0)]
)
def test_the_default_is_three_times_what_was_certified(cloud_share: float, budget: float) -> None:
    assert default_budget_share(cloud_share) == pytest.approx(budget)


@settings(max_examples=40, deadline=None)
@given(
    cloud_share=st.floats(0.0, 0.6),
    drift=st.floats(0.7, 1.5),
    per_s=st.sampled_from([0.05, 5.0, 500.0]),
    size=st.sampled_from([1, 8, 64, 256]),
    seed=st.integers(0, 2**32),
)
def test_honest_traffic_never_meets_the_cap(
    cloud_share: float, drift: float, per_s: float, size: int, seed: int
) -> None:
    """Nor where half as much again is hard as was certified, nor at night."""
    draw, clock = random.Random(seed), Clock()
    budget = EscalationBudget(clock, share=default_budget_share(cloud_share))
    hard_share = min(1.0, drift * cloud_share)
    for _ in range(2000):
        clock.now_s += draw.expovariate(per_s / size)
        hard = sum(draw.random() < hard_share for _ in range(size))
        assert budget.take(size, hard) == hard


def test_one_hard_list_on_a_quiet_service_passes() -> None:
    assert EscalationBudget(Clock(), share=0.1).take(256, 256) == 256


def storm(budget: EscalationBudget, clock: Clock, per_s: int, for_s: int) -> int:
    """Every message is hard; how many went to the cloud."""
    went = 0
    for _ in range(for_s * per_s):
        clock.now_s += 1 / per_s
        went += budget.take(1, 1)
    return went


def test_a_storm_gets_a_minutes_budget_at_once_and_its_share_after_that() -> None:
    clock = Clock()
    budget = EscalationBudget(clock, share=0.3)
    for _ in range(60 * 100):
        clock.now_s += 0.01
        budget.take(1, 0)
    first = storm(budget, clock, per_s=100, for_s=60)
    assert first <= 2 * (0.3 * 6000 + 300) + 100
    later = storm(budget, clock, per_s=100, for_s=60)
    assert later == pytest.approx(0.3 * 6000 + 300, rel=0.05)


def test_after_a_storm_the_hard_messages_of_an_honest_minute_all_pass() -> None:
    clock = Clock()
    budget = EscalationBudget(clock, share=0.3)
    storm(budget, clock, per_s=100, for_s=120)
    draw, refused = random.Random(1), 0
    for _ in range(6000):
        clock.now_s += 0.01
        hard = int(draw.random() < 0.1)
        refused += hard - budget.take(1, hard)
    assert refused <= 5


@settings(max_examples=100, deadline=None)
@given(
    share=st.floats(0, 1),
    floor=st.integers(1, 1000),
    cap=st.one_of(st.none(), st.integers(0, 500)),
    steps=st.lists(st.tuples(st.floats(0, 30), st.integers(0, 256), st.floats(0, 1)), max_size=60),
)
def test_no_minute_has_more_than_twice_the_budget_nor_more_than_the_cap(
    share: float, floor: int, cap: int | None, steps: list[tuple[float, int, float]]
) -> None:
    clock = Clock()
    budget = EscalationBudget(clock, share=share, floor_per_min=floor, max_per_min=cap)
    history: list[tuple[float, int, int]] = []
    for pause_s, seen, hard_share in steps:
        clock.now_s += pause_s
        wanted = int(hard_share * seen)
        allowed = budget.take(seen, wanted)
        assert 0 <= allowed <= wanted
        history.append((clock.now_s, seen, allowed))
        minute = [row for row in history if clock.now_s - row[0] < 60.0]
        # The bucket began the minute with what the minute before had left in it.
        two = [row for row in history if clock.now_s - row[0] < 122.0]
        went = sum(allowed for _, _, allowed in minute)
        assert went <= 2 * floor + 2 * share * sum(seen for _, seen, _ in two) + 1e-6
        assert cap is None or went <= cap
