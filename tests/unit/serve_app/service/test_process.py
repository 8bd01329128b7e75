"""What is written down of a service, who may move it, and what the cluster is told."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import ServiceError
from cluster.settings import Settings, load_settings
from serve_app.cascade import traffic
from serve_app.cascade.traffic import Routed
from serve_app.deploy.config import ServeConfig
from serve_app.deploy.names import release_app
from serve_app.service import releases
from serve_app.service.rollout import applications
from serve_app.service.state import STATE, ServiceInfo, moving, read_info, write_info


def info(**changes: object) -> ServiceInfo:
    made = ServiceInfo(
        host="0.0.0.0",
        port=8000,
        ray_address="127.0.0.1:1",
        routed=traffic.only("r-1"),
        config=ServeConfig(),
        started_at="2026-01-31T12:00:00+00:00",
    )
    return made.model_copy(update=changes)


@pytest.fixture
def served(home: Path) -> Settings:
    """A service on somebody else's cluster, so that no process stands for it."""
    home.mkdir()
    settings = load_settings()
    write_info(settings, info())
    return settings


def test_weights_and_shadows_come_back_as_they_were_written(served: Settings) -> None:
    routed = Routed(releases={"r-1": 0.9, "r-2": 0.1}, shadow=("r-3",), adaptive=True)
    written = info(routed=routed, previous="r-0")
    write_info(served, written)
    assert read_info(served) == written
    assert list(written.up) == ["r-1", "r-2", "r-3", "r-0"]
    assert written.url == "http://127.0.0.1:8000"


def test_the_champion_is_written_down_beside_a_canary_above_one_half(served: Settings) -> None:
    write_info(served, info(routed=traffic.split("r-1", "r-2", 0.9)))
    found = json.loads((served.home / STATE).read_text())
    assert (found["release"], found["routed"]["champion"]) == ("r-1", "r-1")
    read = read_info(served)
    assert read is not None
    assert read.release == "r-1"


def test_a_state_file_of_before_the_champion_was_a_field_still_loads(served: Settings) -> None:
    """Its `release` is the champion, also where a canary has the larger weight."""
    written = info(routed=traffic.split("r-1", "r-2", 0.9))
    old = written.model_dump(mode="json")
    del old["routed"]["champion"]
    (served.home / STATE).write_text(json.dumps(old))
    assert read_info(served) == written


def test_a_previous_champion_that_is_a_canary_again_is_up_once() -> None:
    routed = traffic.split("r-1", "r-0", 0.2)
    assert info(routed=routed, previous="r-0").up == ("r-1", "r-0")


def test_a_state_file_of_another_version_is_refused(served: Settings) -> None:
    (served.home / STATE).write_text('{"host": "127.0.0.1", "release": "r-1"}')
    with pytest.raises(ServiceError, match="not a service file that this version reads"):
        read_info(served)


def test_one_at_a_time_moves_the_releases(served: Settings) -> None:
    with moving(served) as first:
        assert first == info()
        with pytest.raises(ServiceError, match="moved by another process"), moving(served):
            pass
    with moving(served):
        pass


MOVES: dict[str, Callable[[Settings], object]] = {
    "canary": lambda settings: releases.canary(settings, "r-2", 0.1),
    "shadow": lambda settings: releases.shadow(settings, "r-2"),
    "rollback": releases.rollback,
    "route": lambda settings: releases.route(settings, traffic.only("r-2")),
    "adapt": lambda settings: releases.adapt(settings, np.random.default_rng(0)),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_nothing_is_moved_where_nothing_runs(
    home: Path, move: Callable[[Settings], object]
) -> None:
    with pytest.raises(ServiceError, match="No service is running"):
        move(load_settings())
    assert not home.exists()


def test_without_a_keeper_nobody_would_move_the_weights(served: Settings) -> None:
    with pytest.raises(ServiceError, match="Leave --adaptive out"):
        releases.canary(served, "r-2", 0.1, adaptive=True)


def test_what_answers_is_no_shadow(served: Settings) -> None:
    with pytest.raises(ServiceError, match="r-1 answers 100% of the traffic"):
        releases.shadow(served, "r-1")


def test_weights_that_are_not_adaptive_are_left_alone(served: Settings) -> None:
    assert releases.adapt(served, np.random.default_rng(0)) is None


def test_a_canary_changes_nothing_of_the_router_but_its_user_config() -> None:
    """A changed argument would give the router a new code version, and so new replicas."""
    config, home, up = ServeConfig(), Path("/home"), ["r-1", "r-2", "r-3"]
    routed = Routed(releases={"r-1": 0.9, "r-2": 0.1}, shadow=("r-3",))
    before = applications(config, home, up, traffic.only("r-1"))
    after = applications(config, home, up, routed)
    assert before[:-1] == after[:-1]
    assert [app["name"] for app in after[:-1]] == [release_app(name) for name in up]
    [deployment] = after[-1].pop("deployments")
    assert deployment["user_config"] == {
        "releases": {"r-1": 0.9, "r-2": 0.1},
        "champion": "r-1",
        "shadow": ["r-3"],
    }
    assert before[-1].pop("deployments") != [deployment]
    assert before[-1] == after[-1]
