"""Variables that are set for Ray: whose value holds, and what is left afterwards."""

import os
from pathlib import Path

import pytest
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

from cluster.ray_private import auth
from cluster.ray_private.environment import ADDRESS, cluster_address, kept, one_attempt, tuning
from cluster.ray_private.serve_environment import mark_of, serve_environment

WAIT = "RAY_gcs_server_port_wait_time_s"
CALLBACKS = "RAY_TUNE_CALLBACKS"
CHECKPOINT = "TUNE_GLOBAL_CHECKPOINT_S"


def test_a_cluster_that_is_named_comes_before_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert cluster_address("") == ""
    monkeypatch.setenv(ADDRESS, "10.0.0.1:6379")
    assert cluster_address("") == "10.0.0.1:6379"
    assert cluster_address("auto") == "auto"


@pytest.mark.parametrize("before", [None, "", "60"])
def test_variables_are_what_they_were_whatever_happens(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(WAIT, raising=False)
    if before is not None:
        monkeypatch.setenv(WAIT, before)

    def broken() -> None:
        with kept(WAIT):
            os.environ[WAIT] = "1"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert os.environ.get(WAIT) == before


def test_one_attempt_unless_the_user_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WAIT, raising=False)
    with one_attempt():
        assert os.environ[WAIT] == "1"
    assert WAIT not in os.environ
    monkeypatch.setenv(WAIT, "60")
    with one_attempt():
        assert os.environ[WAIT] == "60"


def test_tune_writes_its_state_and_tells_the_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CALLBACKS, "mine.Own")
    monkeypatch.setenv(CHECKPOINT, "10")
    with tuning("our.Ticker", checkpoint_s=0.5):
        assert os.environ[CALLBACKS] == "our.Ticker,ray.tune.logger.JsonLoggerCallback"
        assert os.environ[CHECKPOINT] == "0.5"
    with tuning():
        assert os.environ[CALLBACKS] == "ray.tune.logger.JsonLoggerCallback"
        assert os.environ[CHECKPOINT] == "10", "ours is the sweep's"
    assert os.environ[CALLBACKS] == "mine.Own"


def test_the_users_niceness_and_metrics_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_worker_niceness", "5")
    made = serve_environment(tmp_path)
    assert (made["RAY_worker_niceness"], made["RAY_enable_metrics_collection"]) == ("5", "0")


def test_a_mark_is_of_one_service_only(tmp_path: Path) -> None:
    """Whatever carries it is ended with the service."""
    mine, other = tmp_path / "fl-a", tmp_path / "fl-ab"
    for folder in (mine, other):
        folder.mkdir()
    carried = "\0".join(f"{name}={value}" for name, value in serve_environment(other).items())
    assert mark_of(other) in carried.encode()
    assert mark_of(mine) not in carried.encode()


def test_a_token_is_forgotten_with_its_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray keeps what it read: the next `ray.init` of this process showed it the service's token."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (auth.MODE, auth.PATH, "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "ray.token"
    path.write_text("5e" * 32)
    loader = AuthenticationTokenLoader.instance()
    loader.reset_cache()
    with auth.using_token(path):
        assert loader.has_token(ignore_auth_mode=True)
    assert not loader.has_token(ignore_auth_mode=True)
