"""The environment: understood whole, or refused by the name of what is wrong."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from cluster.errors import ConfigError
from cluster.settings import load_settings

SECRET = "a-key-nobody-should-read"


def test_every_field_has_a_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FIRSTLINE_HOME", str(tmp_path))
    monkeypatch.setenv("FIRSTLINE_SEED", "7")
    monkeypatch.setenv("FIRSTLINE_RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("FIRSTLINE_AUDIT_KEY", SECRET)
    settings = load_settings()
    assert (settings.home, settings.seed, settings.ray_address) == (tmp_path, 7, "10.0.0.1:6379")
    assert settings.audit_key.get_secret_value() == SECRET


def test_the_key_is_in_no_repr_and_goes_to_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime_env is shown on Ray's dashboard."""
    monkeypatch.setenv("FIRSTLINE_AUDIT_KEY", SECRET)
    settings = load_settings()
    assert SECRET not in repr(settings)
    assert SECRET not in str(settings.worker_env())


def test_a_misspelt_variable_is_refused_and_the_right_one_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FIRSTLINE_SEEED", "7")
    with pytest.raises(ConfigError, match=r"FIRSTLINE_SEEED.*Did you mean FIRSTLINE_SEED\?"):
        load_settings()


def test_a_variable_like_none_of_ours_lists_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRSTLINE_XYZZY", "7")
    with pytest.raises(ConfigError, match=r"FIRSTLINE_AUDIT_KEY, FIRSTLINE_HOME, .*FIRSTLINE_SEED"):
        load_settings()


@pytest.mark.parametrize("value", ["soon", "1.5", "-1", ""])
def test_a_value_of_the_wrong_type_is_named_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """The whole message used to be in capitals, and did not show the value."""
    monkeypatch.setenv("FIRSTLINE_SEED", value)
    with pytest.raises(ConfigError, match=f"FIRSTLINE_SEED: [Ii]nput should be .*found '{value}'"):
        load_settings()


def test_a_home_that_ray_deletes_is_refused() -> None:
    """A job submitted with the default home wrote its results into the job's own folder."""
    inside = Path("/tmp/ray/session_1/runtime_resources/working_dir_files/pkg/.firstline")
    with pytest.raises(ConfigError, match="FIRSTLINE_HOME to a folder that lasts"):
        load_settings(inside)


def test_the_home_is_absolute_whatever_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIRSTLINE_HOME", "here")
    settings = load_settings()
    assert settings.home == tmp_path / "here"
    assert settings.tracking_uri == f"sqlite:///{tmp_path}/here/mlflow.db"


def test_a_tilde_is_the_users_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_settings(Path("~/kept")).home == tmp_path / "kept"


def test_a_worker_loads_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FIRSTLINE_SEED", "3")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://registry:5000")
    mine = load_settings(tmp_path / "chosen")
    env = mine.worker_env()
    for name in ("FIRSTLINE_SEED", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert load_settings() == mine
    assert load_settings().tracking_uri == "http://registry:5000"


def test_settings_do_not_change(tmp_path: Path) -> None:
    settings = load_settings(tmp_path)
    with pytest.raises(ValidationError):
        settings.seed = 1  # type: ignore[misc]


def test_loading_writes_nothing(tmp_path: Path) -> None:
    assert not load_settings(tmp_path / "new").home.exists()
