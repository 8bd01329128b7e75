"""Weights that follow the feedback: in small steps, to the better release, and not without
reason.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.cascade.traffic import Routed
from serve_app.monitor.stats import MonitorReport
from serve_app.monitor.windows import Compared, Windows
from serve_app.service.adaptive import Trial, adapted, thompson_weights


def step(seen: dict[str, Trial], weights: dict[str, float], **options: float) -> dict[str, float]:
    return thompson_weights(seen, weights, rng=np.random.default_rng(0), **options)  # type: ignore[arg-type]


@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=2, max_size=4),
    st.data(),
)
def test_a_step_is_small_and_leaves_shares(
    trials: list[tuple[int, int]], data: st.DataObject
) -> None:
    raw = data.draw(st.lists(st.floats(0.1, 1), min_size=len(trials), max_size=len(trials)))
    now = {f"r-{i}": weight / sum(raw) for i, weight in enumerate(raw)}
    seen = {f"r-{i}": Trial(*trial) for i, trial in enumerate(trials)}
    moved = step(seen, now, draws=500)
    assert math.fsum(moved.values()) == pytest.approx(1, abs=1e-9)
    Routed(releases=moved)
    for release, weight in moved.items():
        assert abs(weight - now[release]) <= 0.1 + 1e-3
        assert weight >= min(0.05, now[release]) - 1e-3


def test_the_better_release_gets_all_but_the_floor_in_many_small_steps() -> None:
    seen = {"old": Trial(800, 200), "new": Trial(930, 70)}
    weights, steps = {"old": 0.9, "new": 0.1}, 0
    while weights["new"] < 0.949 and steps < 50:
        weights, steps = step(seen, weights), steps + 1
    assert weights == {"old": pytest.approx(0.05, abs=1e-3), "new": pytest.approx(0.95, abs=1e-3)}
    assert steps == 9, "0.85 to go, 0.1 at a time"


def test_equal_releases_with_much_feedback_share() -> None:
    seen = {"a": Trial(900, 100), "b": Trial(900, 100)}
    assert step(seen, {"a": 0.5, "b": 0.5})["a"] == pytest.approx(0.5, abs=0.02)


def test_thompson_finds_the_better_arm_by_playing() -> None:
    """A simulation of the whole loop: 90% against 80% right, 200 labels a step by the weights."""
    rng = np.random.default_rng(3)
    right = {"old": 0.8, "new": 0.9}
    seen = {name: Trial(0, 0) for name in right}
    weights = {"old": 0.9, "new": 0.1}
    for _ in range(20):
        for name, share in right.items():
            labels = round(200 * weights[name])
            correct = int(rng.binomial(labels, share))
            before = seen[name]
            seen[name] = Trial(before.correct + correct, before.wrong + labels - correct)
        weights = thompson_weights(seen, weights, rng=rng, draws=2000)
    assert weights["new"] > 0.9


def report(labels: dict[str, tuple[int, int]]) -> MonitorReport:
    """Of releases that answered in turns, so many right of so many labelled."""
    from tests.support.monitoring import NOW_S, answer, judged

    windows = Windows()
    windows.compared = Compared("old", ("new",))
    for release, (correct, labelled) in labels.items():
        made = [
            answer(f"{release}-{i}", 3600 * (1 - i / 1000), release=release) for i in range(1000)
        ]
        windows.ingest([*made, *judged(made[:labelled], correct)])
    return windows.report(NOW_S)


def adaptive(**weights: float) -> Routed:
    return Routed(releases=weights, adaptive=True)


def test_the_feedback_in_a_report_moves_the_weights() -> None:
    found = report({"old": (80, 100), "new": (99, 100)})
    moved = adapted(adaptive(old=0.9, new=0.1), found, np.random.default_rng(0))
    assert moved is not None
    assert moved.releases == {"old": pytest.approx(0.8), "new": pytest.approx(0.2)}
    assert moved.adaptive


def test_a_challenger_of_more_weight_is_still_the_challenger() -> None:
    found = report({"old": (80, 100), "new": (99, 100)})
    routed = Routed(releases={"old": 0.45, "new": 0.55}, champion="old", adaptive=True)
    moved = adapted(routed, found, np.random.default_rng(0))
    assert moved is not None
    assert moved.champion == "old"
    assert moved.releases["new"] == pytest.approx(0.65)


@pytest.mark.parametrize(
    ("labels", "routed"),
    [
        ({"old": (80, 100), "new": (29, 29)}, adaptive(old=0.9, new=0.1)),  # too few labels
        ({"old": (80, 100)}, adaptive(old=0.9, new=0.1)),  # no message to the new one yet
        ({"old": (8, 100), "new": (99, 100)}, Routed(releases={"old": 0.9, "new": 0.1})),
        ({"old": (50, 100), "new": (99, 100)}, adaptive(old=0.05, new=0.95)),  # where it should be
    ],
)
def test_weights_stay_where_there_is_no_reason_to_move(
    labels: dict[str, tuple[int, int]], routed: Routed
) -> None:
    assert adapted(routed, report(labels), np.random.default_rng(0)) is None
