"""The race for a recipe: who is run to the end, whoever comes first."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from ray.tune.search import Searcher

from train_jobs.training.rungs import Rungs, goes_on


def test_the_second_rung_begins_when_the_first_has_ended() -> None:
    rungs = Rungs(3, 2, 0.25)
    names = ["a", "b", "c"]
    begun = [suggested(rungs, name) for name in names]
    assert [(one["candidate"], one["share"]) for one in begun] == [(0, 0.25), (1, 0.25), (2, 0.25)]
    assert rungs.suggest("d") is None
    rungs.on_trial_complete("c", {"log_loss": 0.5})
    rungs.on_trial_complete("a", {"log_loss": 0.9})
    assert rungs.suggest("d") is None
    rungs.on_trial_complete("b", {"log_loss": 0.7})
    assert suggested(rungs, "d") == {"candidate": 0, "share": 1.0, "done": 3, "of": 5}
    assert suggested(rungs, "e") == {"candidate": 2, "share": 1.0, "done": 4, "of": 5}
    assert rungs.suggest("f") == Searcher.FINISHED


def test_a_candidate_that_failed_is_out() -> None:
    rungs = Rungs(3, 2, 0.25)
    for name in "abc":
        suggested(rungs, name)
    rungs.on_trial_complete("a", {"log_loss": 0.9})
    rungs.on_trial_complete("b", None, error=True)
    rungs.on_trial_complete("c", {"training_iteration": 1})
    assert suggested(rungs, "d")["candidate"] == 0
    assert rungs.suggest("e") == Searcher.FINISHED


@given(st.permutations(range(6)), st.lists(st.floats(0.1, 2.0), min_size=6, max_size=6))
def test_who_is_run_to_the_end_does_not_depend_on_who_comes_first(
    order: list[int], losses: list[float]
) -> None:
    rungs = Rungs(6, 2, 0.25)
    for number in range(6):
        suggested(rungs, str(number))
    for number in order:
        rungs.on_trial_complete(str(number), {"log_loss": losses[number]})
    ended = [suggested(rungs, name)["candidate"] for name in ("x", "y")]
    assert ended == goes_on(dict(enumerate(losses)), 2)
    assert 0 in ended


def suggested(rungs: Rungs, trial: str) -> dict[str, Any]:
    found = rungs.suggest(trial)
    assert isinstance(found, dict)
    point: dict[str, Any] = found["point"]
    return point


def test_the_default_is_run_to_the_end_however_it_began() -> None:
    assert goes_on({0: 0.9, 1: 0.5, 2: 0.4, 3: 0.8}, 2) == [0, 2]
    assert goes_on({0: 0.9}, 2) == [0]
    assert goes_on({1: 0.5, 2: 0.4, 3: 0.8}, 2) == [1, 2], "the default's trial was cut off"
