"""Who answers whom: sticky, in the shares that were asked for, and moving nobody without need."""

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.errors import ConfigError
from serve_app.cascade import traffic
from serve_app.cascade.traffic import Routed, Traffic

KEY = b"0123456789abcdef"
USERS = [f"user-{i}" for i in range(4000)]
shares = st.floats(0.01, 0.99)


def canary(share: float) -> Traffic:
    return Traffic(Routed(releases={"r-1": 1 - share, "r-2": share}), KEY)


def assigned(made: Traffic) -> dict[str, str]:
    return {user: made.assign(user, 0.0) for user in USERS}


# ---- what may be routed


@pytest.mark.parametrize(
    ("given_config", "said"),
    [
        ({"releases": {}}, "names 0 releases; 1 to 4"),
        ({"releases": {f"r-{i}": 0.2 for i in range(5)}}, "names 5 releases"),
        ({"releases": {"r-1": 0.9}}, "sum to 0.9; 1 was expected"),
        ({"releases": {"r-1": 1.0, "r-2": 0.0}}, "'r-2' the weight 0.0; more than 0"),
        ({"releases": {"r-1": 1.5, "r-2": -0.5}}, "'r-2' the weight -0.5"),
        ({"releases": {"r-1": math.nan}}, "the weight nan"),
        ({"releases": {"r-1": 1.0}, "shadow": ["r-1"]}, r"\['r-1'\] are in releases and in shadow"),
        ({"releases": {"r-1": 1.0}, "shadow": ["r-2", "r-2"]}, "at most 2 different"),
        ({"releases": {"r-1": 1.0}, "shadow": ["a", "b", "c"]}, "at most 2 different"),
        ({"releases": {"r-1": 1.0}, "adaptive": True}, "two releases or more"),
        ({"releases": {"r-1": 1.0}, "champion": "r-2"}, r"champion is 'r-2'; one of .*\['r-1'\]"),
        ({"releases": {"r-1": 1.0}, "weights": {}}, "weights"),
    ],
)
def test_what_cannot_be_routed_is_refused_with_what_was_found(
    given_config: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        Routed.model_validate(given_config)


@given(shares)
def test_any_split_of_two_sums_to_one(share: float) -> None:
    routed = traffic.split("r-1", "r-2", share)
    assert math.fsum(routed.releases.values()) == pytest.approx(1, abs=1e-9)
    assert list(routed.releases) == ["r-1", "r-2"]
    assert Routed.model_validate(routed.user_config()).champion == "r-1", "whatever the share"


def test_a_config_of_before_the_champion_was_named_has_the_largest_weight() -> None:
    assert Routed.model_validate({"releases": {"a": 0.4, "b": 0.6}}).champion == "b"
    assert Routed.model_validate({"releases": {"a": 0.5, "b": 0.5}}).champion == "a"


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_canary_has_a_share_and_leaves_one(share: float) -> None:
    with pytest.raises(ConfigError, match="more than 0 and less than 1"):
        traffic.split("r-1", "r-2", share)


def test_the_champion_is_no_canary() -> None:
    with pytest.raises(ConfigError, match="r-1 is the champion"):
        traffic.split("r-1", "r-1", 0.1)


def test_shadows_stay_unless_they_answer() -> None:
    before = Routed(releases={"r-1": 1.0}, shadow=("r-2", "r-3"))
    assert traffic.split("r-1", "r-2", 0.1, before).shadow == ("r-3",)
    assert traffic.only("r-4", before).shadow == ("r-2", "r-3")
    assert traffic.only("r-3", before).shadow == ("r-2",)
    assert before.named == ("r-1", "r-2", "r-3")


def test_the_config_of_the_router_says_no_default() -> None:
    assert traffic.only("latest").user_config() == {"releases": {"latest": 1.0}}
    full = Routed(releases={"r-1": 0.5, "r-2": 0.5}, shadow=("r-3",), adaptive=True)
    assert Routed.model_validate(full.user_config()) == full


# ---- who gets which


@given(st.text(), shares)
def test_a_user_stays_whatever_the_draw_and_the_replica(user: str, share: float) -> None:
    first, second = canary(share), canary(share)
    assert (
        len({one.assign(user, draw) for one in (first, second) for draw in (0.0, 0.5, 0.99)}) == 1
    )


def test_a_user_stays_after_a_restart() -> None:
    """Another process has another seed for Python's own hashes."""
    code = (
        "from serve_app.cascade.traffic import Routed, Traffic\n"
        f"made = Traffic(Routed(releases={{'r-1': 0.5, 'r-2': 0.5}}), {KEY!r})\n"
        "print(''.join(made.assign(f'user-{i}', 0.0)[-1] for i in range(200)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = canary(0.5)
    assert done.stdout.strip() == "".join(here.assign(user, 0.0)[-1] for user in USERS[:200])


@pytest.mark.parametrize("weights", [(0.9, 0.1), (0.5, 0.5), (0.7, 0.2, 0.1), (0.97, 0.01, 0.02)])
def test_the_shares_of_users_are_the_weights(weights: tuple[float, ...]) -> None:
    routed = Routed(releases={f"r-{i}": weight for i, weight in enumerate(weights)})
    given_to = list(assigned(Traffic(routed, KEY)).values())
    for release, weight in routed.releases.items():
        sigma = math.sqrt(len(USERS) * weight * (1 - weight))
        assert abs(given_to.count(release) - len(USERS) * weight) < 4.5 * sigma


@given(shares, shares)
def test_a_rising_share_takes_users_in_and_gives_none_away(one: float, other: float) -> None:
    low, high = sorted((one, other))
    users = USERS[:300]
    before, after = canary(low), canary(high)
    for user in users:
        if before.assign(user, 0.0) == "r-2":
            assert after.assign(user, 0.0) == "r-2"


def test_of_three_releases_only_the_canarys_gain_moves() -> None:
    before = assigned(Traffic(Routed(releases={"a": 0.6, "b": 0.3, "c": 0.1}), KEY))
    after = assigned(Traffic(Routed(releases={"c": 0.2, "b": 0.3 * 8 / 9, "a": 0.6 * 8 / 9}), KEY))
    moved = {(before[user], after[user]) for user in USERS if before[user] != after[user]}
    assert moved == {("a", "c"), ("b", "c")}


def test_another_key_or_another_canary_takes_other_users() -> None:
    """So nobody chooses a release by a name, and no user is in every trial.

    By chance 10% would be in both; between two canaries it is 18%, since a user's time for the
    champion is the same in both.
    """
    mine = taken(canary(0.1))
    other_key = taken(Traffic(traffic.split("r-1", "r-2", 0.1), b"another key of 16"))
    other_canary = taken(Traffic(traffic.split("r-1", "r-3", 0.1), KEY))
    assert 0.05 < len(mine & other_key) / len(mine) < 0.15
    assert 0.12 < len(mine & other_canary) / len(mine) < 0.25


def taken(made: Traffic) -> set[str]:
    return {user for user, release in assigned(made).items() if release != "r-1"}


def test_without_a_user_the_draw_decides() -> None:
    made = canary(0.1)
    draws = np.linspace(0, 1, 1000, endpoint=False)
    assert [made.assign(None, draw) for draw in draws].count("r-2") == pytest.approx(100, abs=1)
    thirds = Traffic(Routed(releases={"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}), KEY)
    assert thirds.assign(None, math.nextafter(1.0, 0)) in {"a", "c"}


def test_one_release_answers_all_and_the_key_is_not_shown() -> None:
    made = Traffic(traffic.only("r-1"), KEY * 10)
    assert {made.assign(user, 0.5) for user in (None, "", "\ud800", "x")} == {"r-1"}
    assert canary(0.5).assign("\ud800", 0.5) in {"r-1", "r-2"}
    assert KEY.decode() not in repr(made)


# ---- weights that follow the feedback


@given(st.permutations(["a", "b", "c"]))
def test_the_order_of_releases_moves_no_user(order: list[str]) -> None:
    weights = {"a": 0.5, "b": 0.3, "c": 0.2}
    assume(order != ["a", "b", "c"])
    one = Traffic(Routed(releases=weights), KEY)
    other = Traffic(Routed(releases={name: weights[name] for name in order}), KEY)
    assert all(one.assign(user, 0) == other.assign(user, 0) for user in USERS[:100])
