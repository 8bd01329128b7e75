"""What every unit test stands on: a home of its own, no Ray, nobody's environment."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.settings import PREFIX, Settings, load_settings
from cluster.tracking import client

_CLUSTER_VARIABLES = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """FIRSTLINE_HOME below the test's own folder, and no other setting of ours."""
    for name in list(os.environ):
        if name.startswith(PREFIX) or name in _CLUSTER_VARIABLES:
            monkeypatch.delenv(name)
    monkeypatch.setenv(f"{PREFIX}HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit test that starts Ray would take seconds, and hide a wrong layer."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("A unit test must not start Ray; tests/integration may.")

    monkeypatch.setattr(ray, "init", refuse)


@pytest.fixture(scope="session")
def _empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, made once: its migrations take five seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    client(Settings(home=folder)).search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def settings(home: Path, _empty_store: Path) -> Settings:
    """Settings of a home with an embedded MLflow store that holds nothing yet."""
    home.mkdir()
    shutil.copyfile(_empty_store, home / "mlflow.db")
    return load_settings()
