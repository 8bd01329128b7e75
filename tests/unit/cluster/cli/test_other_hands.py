"""The command line where something beside it is away, and where a folder is somebody else's."""

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from cluster.cli import demo
from cluster.cli.tune import dataset_of
from cluster.errors import ConfigError
from cluster.files import write_json
from cluster.registry import champion_here, list_registered, promote
from cluster.releases import Release
from cluster.settings import Settings, load_settings
from serve_app.cascade.traffic import only
from serve_app.service import lifecycle
from serve_app.service.state import write_info
from tests.support.serving import Pair
from tests.unit.cluster.cli.test_cli import (
    dataset,
    firstline,
    messages,
    refused,
    released,
    trained,
)
from tests.unit.serve_app.service.test_process import info

__all__ = ["dataset", "messages", "released", "trained"]

AWAY = "http://127.0.0.1:1"


@pytest.fixture
def away(
    settings: Settings, released: list[Release], monkeypatch: pytest.MonkeyPatch
) -> list[Release]:
    """Released and promoted; then the server goes away."""
    promote(settings, released[0].id)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    return released


@pytest.mark.parametrize(
    "words",
    [
        ("releases", "list"),
        ("releases", "list", "--json"),
        ("releases", "show", "{id}"),
        ("explain", "Where is my card?"),
        ("explain", "Where is my card?", "--json"),
        ("report",),
    ],
)
def test_without_a_server_what_is_on_the_disk_is_shown(
    away: list[Release], words: tuple[str, ...]
) -> None:
    """They failed, though the release was there."""
    start_s = time.monotonic()
    said = firstline(*(word.format(id=away[0].id) for word in words))
    assert time.monotonic() - start_s < 10
    if words != ("report",):  # a toy release has none
        assert said.code == 0, said.error
    assert "mlflow" not in said.error.lower() or "does not answer" in said.error
    assert "Traceback" not in said.error
    if "--json" in words:
        json.loads(said.out)


def test_the_star_is_on_the_champion_that_was_known_last(away: list[Release]) -> None:
    lines = firstline("releases", "list").out.splitlines()
    assert [line[:2] for line in lines if away[0].id in line] == ["* "]


def test_a_service_is_started_and_says_what_the_registry_was_not_told(
    settings: Settings, away: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended with 2, and the service ran."""
    second = away[1].id
    monkeypatch.setattr(lifecycle, "start", lambda *given: info())
    said = firstline("serve", "--release", second, "--detach")
    assert said.code == 0, said.error
    assert f"firstline releases promote {second}" in said.error
    assert champion_here(settings) == second


def test_nothing_is_promoted_and_nothing_moved_without_a_registry(
    settings: Settings, away: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(*_: object) -> None:
        raise AssertionError("the service was moved before the registry was asked")

    monkeypatch.setattr("serve_app.service.releases.promote", moved)
    write_info(settings, info())
    refused(firstline("releases", "promote", away[1].id), "does not answer", "MLFLOW_TRACKING_URI")


def test_the_way_back_works_without_a_registry(
    settings: Settings, away: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    back = info(routed=only(away[0].id))
    monkeypatch.setattr("serve_app.service.releases.rollback", lambda settings: back)
    write_info(settings, info())
    said = firstline("releases", "rollback")
    assert said.code == 0, said.error
    assert f"firstline releases promote {away[0].id}" in said.error
    assert champion_here(settings) == away[0].id


def test_train_refuses_before_it_starts_where_what_it_makes_could_not_be_registered(
    messages: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It found out after the first stage, and what it had trained was lost."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    refused(firstline("train", "--data", messages), f"The MLflow server {AWAY} does not answer")
    assert not home.exists() or not any(home.rglob("*"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    home.mkdir(exist_ok=True)
    (home / "mlflow.db").write_bytes(b"no database" * 400)
    refused(firstline("train", "--data", messages), "mlflow.db cannot be used", "move it away")


def test_a_locked_store_is_a_paragraph(settings: Settings, released: list[Release]) -> None:
    """It was a traceback."""
    with closing(sqlite3.connect(settings.home / "mlflow.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        said = firstline("releases", "list")
        assert said.code == 0
        assert "another command has it open" in said.error
        refused(firstline("releases", "promote", released[0].id), "another command has it open")
    assert len(list_registered(settings)) == len(released)


# ---- prices and rules under which an edge saves nothing


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--edge-usd", "5", "--cloud-usd", "0.01"], "costs $5 and one of the cloud $0.01"),
        (["--edge-usd", "0.0136"], "dearer than the cloud alone"),
        (["--cloud-usd", "0.0005"], "Correct --edge-usd or --cloud-usd"),
        (["--max-words", "0"], "--max-words is 0: every message has a word"),
        (["--always-escalate", "negative", "--always-escalate", "neutral",
          "--always-escalate", "positive"], "--always-escalate names all 3 classes"),
    ],
)  # fmt: skip
def test_tune_refuses_what_can_only_be_dearer_than_the_cloud_alone(
    settings: Settings, trained: Pair, options: list[str], said: str
) -> None:
    """A release was certified, "-49911.5% less"."""
    before = sorted(settings.home.rglob("*"))
    names = {"negative", "neutral", "positive"} & set(options)
    labels = sorted(trained.edge.manifest.labels)
    if names:
        options = [word for label in labels for word in ("--always-escalate", label)]
        said = f"--always-escalate names all {len(labels)} classes"
    refused(firstline("tune", *options), said)
    assert sorted(settings.home.rglob("*")) == before


# ---- homes


def test_a_runs_dataset_is_that_of_the_home_wherever_it_was_made(
    settings: Settings, tmp_path: Path
) -> None:
    """After a move `tune` looked in the old place, or used the copy's original."""
    old = tmp_path / "old" / "datasets" / "0123"
    (settings.home / "datasets" / "0123").mkdir(parents=True)
    old.mkdir(parents=True)
    here = settings.home / "datasets" / "0123"
    assert dataset_of(settings, {"dataset": "datasets/0123"}) == here
    assert dataset_of(settings, {"dataset": str(old)}) == here, "of a version before this one"
    assert dataset_of(settings, {"dataset": str(old.with_name("9"))}) == old.with_name("9")


@pytest.fixture
def demo_home(home: Path) -> Settings:
    (home / "demo").mkdir(parents=True)
    return load_settings(home / "demo")


def made_by_a_demo(settings: Settings) -> None:
    demo._clear(settings, yes=True)
    settings.audit_dir.mkdir()
    (settings.audit_dir / "20261121-r1.jsonl").write_text("{}\n")
    write_json(settings.home / demo._MARK, {"audit_bytes": demo._audit_bytes(settings)})


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("another's", "files that no demo of this version has made"),
        ("keys", "API keys"),
        ("answers", "an audit log of more than the demo's answers"),
        ("a service", "a service that runs"),
    ],
)
def test_the_demo_deletes_nothing_of_somebody_elses_unasked(
    demo_home: Settings, what: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`<home>/demo` went, audit log and keys included."""
    home = demo_home.home
    if what == "another's":
        (home / "keys.json").write_text("[]")
    else:
        made_by_a_demo(demo_home)
    if what == "keys":
        (home / "keys.json").write_text("[]")
    if what == "answers":
        with (demo_home.audit_dir / "20261121-r1.jsonl").open("a") as file:
            file.write("{}\n")
    if what == "a service":
        running = lifecycle.status(demo_home).model_copy(update={"running": True})
        monkeypatch.setattr(lifecycle, "status", lambda settings: running)
    before = sorted(home.rglob("*"))
    with pytest.raises(ConfigError, match=said):
        demo._clear(demo_home, yes=False)
    assert sorted(home.rglob("*")) == before
    demo._clear(demo_home, yes=True)
    assert [path.name for path in home.iterdir() if path.name != "service.lock"] == [demo._MARK]


def test_the_demo_deletes_what_the_last_one_made(demo_home: Settings) -> None:
    demo._clear(demo_home, yes=False)
    made_by_a_demo(demo_home)
    (demo_home.audit_dir / ".monitor.json").write_text("{}")
    demo._clear(demo_home, yes=False)
    assert not demo_home.audit_dir.exists()


def test_the_demo_follows_no_link_to_another_folder(home: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "file").touch()
    home.mkdir()
    (home / "demo").symlink_to(theirs)
    with pytest.raises(ConfigError, match="no folder of a demo"):
        demo._clear(load_settings(home / "demo"), yes=False)
    assert (theirs / "file").exists()
