"""A registry that is away, broken, locked, shared or moved: work is kept, and words say what."""

import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cluster.cli.report import which
from cluster.errors import RegistryError, ReleaseError
from cluster.registry import (
    champion,
    champion_here,
    fetch_bundle,
    fetch_release,
    list_here,
    list_registered,
    promote,
    register_bundle,
    register_release,
    rollback,
    rollback_target,
)
from cluster.releases import Release, bundle_path, store_bundle
from cluster.settings import Settings, load_settings
from cluster.tracking import client, log_stage, shown_uri
from tests.support.serving import Pair, make_pair, make_release

AWAY = "http://jo:secret@127.0.0.1:1"


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return make_pair(tmp_path / "made")


@pytest.fixture
def releases(settings: Settings, pair: Pair) -> list[Release]:
    """Two registered releases of one pair; the first is the champion."""
    for bundle in (pair.cloud, pair.edge):
        register_bundle(settings, store_bundle(settings, bundle))
    made = [make_release(settings, pair.edge, pair.cloud, threshold=t) for t in (0.9, 0.8)]
    for release in made:
        register_release(settings, release)
    promote(settings, made[0].id)
    return made


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


Break = Callable[[Settings], None]


def damaged(settings: Settings) -> None:
    (settings.home / "mlflow.db").write_bytes(b"no database" * 500)


def cut_off(settings: Settings) -> None:
    path = settings.home / "mlflow.db"
    path.write_bytes(path.read_bytes()[:20_000])


def a_folder(settings: Settings) -> None:
    (settings.home / "mlflow.db").unlink()
    (settings.home / "mlflow.db").mkdir()


@pytest.mark.parametrize("broken", [damaged, cut_off, a_folder])
def test_a_store_that_cannot_be_read_is_told_and_what_is_here_is_used(
    settings: Settings, releases: list[Release], broken: Break, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was a traceback."""
    broken(settings)
    for ask in (list_registered, champion, rollback_target):
        with pytest.raises(RegistryError, match=r"mlflow.db cannot be used: .*move it away"):
            ask(settings)
    assert which(settings) == releases[0].id
    assert "Going on with what is on this disk" in capsys.readouterr().err
    assert fetch_release(settings, releases[1].id) == releases[1]


def test_a_store_that_another_process_has_locked_is_told_within_ten_seconds(
    settings: Settings, releases: list[Release]
) -> None:
    with closing(sqlite3.connect(settings.home / "mlflow.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        start_s = time.monotonic()
        with pytest.raises(RegistryError, match=r"locked.*another command has it open"):
            list_registered(settings)
        assert time.monotonic() - start_s < 10
    assert len(list_registered(settings)) == 2


@pytest.mark.parametrize("kind", ["away", "silent"])
def test_without_a_server_all_that_only_reads_works_from_the_disk(
    settings: Settings,
    releases: list[Release],
    silent: str,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    champion(settings)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY if kind == "away" else silent)
    start_s = time.monotonic()
    assert which(settings) == releases[0].id
    assert time.monotonic() - start_s < 10
    assert "does not answer" in capsys.readouterr().err
    assert fetch_release(settings, releases[1].id) == releases[1]
    assert fetch_bundle(settings, "edge", releases[0].manifest.edge_sha256).is_dir()
    found = list_here(settings)
    assert {item.id for item in found} == {release.id for release in releases}
    assert [item.id for item in found if item.champion] == [releases[0].id]
    with pytest.raises(RegistryError, match="MLFLOW_TRACKING_URI") as told:
        promote(settings, releases[1].id)
    assert "secret" not in str(told.value)
    assert champion_here(settings) == releases[0].id


def test_a_password_in_the_address_is_not_shown(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    assert shown_uri(settings) == "http://127.0.0.1:1"


def test_what_could_not_be_registered_is_registered_by_the_next_command(
    settings: Settings, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was lost, hours of training and all."""
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", AWAY)
        for bundle in (pair.cloud, pair.edge):
            register_bundle(settings, store_bundle(settings, bundle))
        release = make_release(settings, pair.edge, pair.cloud)
        register_release(settings, release)
        assert log_stage(settings, "tune", params={}, metrics={}) is None
        assert which(settings) == release.id
    assert list_registered(settings) == []
    promote(settings, release.id)
    assert [item.id for item in list_registered(settings)] == [release.id]
    assert len(client(settings).search_model_versions("name='firstline-edge'")) == 1
    assert list((settings.home / "unregistered").iterdir()) == []


def foreign(settings: Settings, name: str, tags: dict[str, str]) -> str:
    mlflow = client(settings)
    run = mlflow.create_run("0")
    made = mlflow.create_model_version(
        name, source="s3://theirs", run_id=run.info.run_id, tags=tags
    )
    return str(made.version)


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"team": "another"},
        {"firstline.id": "r-0123456789"},
        {
            "firstline.id": "../../../etc", "firstline.edge": "a" * 64,
            "firstline.cloud": "b" * 64, "firstline.promises": "{}",
            "firstline.confidence": "0.95", "firstline.created_at": "now",
        },
        {
            "firstline.id": "r-0123456789", "firstline.edge": "a" * 64,
            "firstline.cloud": "b" * 64, "firstline.promises": '{"risk": null}',
            "firstline.confidence": "0.9.5", "firstline.created_at": "now",
        },
    ],
)  # fmt: skip
def test_a_version_that_somebody_else_made_is_passed_over(
    settings: Settings, releases: list[Release], tags: dict[str, str]
) -> None:
    """It was a KeyError in every command."""
    foreign(settings, "firstline-release", tags)
    foreign(settings, "firstline-edge", {"firstline.sha256": "../../../../tmp/x"})
    foreign(settings, "firstline-cloud", {})
    ids = [release.id for release in releases]
    assert [item.id for item in list_registered(settings)] == ids
    assert fetch_bundle(settings, "edge") == releases[0].edge_path
    promote(settings, ids[1])
    assert rollback(settings) == ids[0]


def test_an_alias_on_somebody_elses_version_is_no_champion_of_ours(
    settings: Settings, releases: list[Release]
) -> None:
    version = foreign(settings, "firstline-release", {})
    client(settings).set_registered_model_alias("firstline-release", "champion", version)
    assert champion(settings) is None
    with pytest.raises(ReleaseError, match="nothing to roll back to"):
        rollback_target(settings)
    promote(settings, releases[1].id)
    assert champion(settings) == releases[1].id


# ---- homes that are moved


def emptied(settings: Settings) -> None:
    """Only the registry's own copies are left."""
    shutil.rmtree(settings.bundles_dir)
    shutil.rmtree(settings.releases_dir)


@pytest.mark.parametrize("how", [shutil.move, shutil.copytree])
def test_a_home_in_another_place_uses_its_own_files(
    settings: Settings,
    releases: list[Release],
    pair: Pair,
    tmp_path: Path,
    how: Callable[[Path, Path], object],
) -> None:
    """What was made in a copy went to the old place, and what was read came from there."""
    old, new = settings.home, tmp_path / "another place" / "home"
    new.parent.mkdir()
    how(old, new)
    before = sorted(old.rglob("*")) if old.exists() else None
    moved = load_settings(new)
    emptied(moved)
    if before is not None:
        shutil.rmtree(old / "mlflow")
        before = sorted(old.rglob("*"))
    assert fetch_release(moved, releases[0].id).path.is_relative_to(new)
    assert bundle_path(moved, pair.edge.sha256).is_dir()
    log_stage(moved, "later", params={}, metrics={}, files=[Path(__file__)])
    third = make_release(moved, pair.edge, pair.cloud, threshold=0.5)
    register_release(moved, third)
    shutil.rmtree(third.path)
    assert fetch_release(moved, third.id).manifest == third.manifest
    assert before is None or sorted(old.rglob("*")) == before
    with closing(sqlite3.connect(new / "mlflow.db")) as store:
        assert str(old) not in "".join(store.iterdump())


def test_nothing_of_mlflows_is_on_stdout(settings: Settings, tmp_path: Path) -> None:
    """With a server, address lines stood before the JSON that a program reads."""
    code = (
        "import sys; from pathlib import Path; from cluster.settings import Settings\n"
        "from cluster.tracking import client\n"
        "client(Settings(home=Path(sys.argv[1])))\n"
        "from mlflow.environment_variables import MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT as quiet\n"
        "sys.stderr.write(str(quiet.get()))"
    )
    command = [sys.executable, "-c", code, str(settings.home)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout == ""
    assert found.stderr.endswith("True")


def test_artifacts_out_of_reach_are_registered_later_too(
    settings: Settings, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may answer while the disk or bucket behind it does not."""

    def fails(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/mlartifacts")

    with monkeypatch.context() as away:
        away.setattr("mlflow.MlflowClient.log_artifacts", fails)
        register_bundle(settings, store_bundle(settings, pair.edge))
    register_bundle(settings, store_bundle(settings, pair.cloud))
    assert fetch_bundle(settings, "edge") == bundle_path(settings, pair.edge.sha256)
