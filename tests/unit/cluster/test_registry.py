"""The real embedded registry: what answers is one alias, and it moves in one write."""

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from cluster import registry
from cluster.errors import ReleaseError
from cluster.registry import (
    champion,
    fetch_bundle,
    fetch_release,
    list_registered,
    promote,
    register_bundle,
    register_release,
    rollback,
    rollback_target,
)
from cluster.releases import Release, bundle_path, store_bundle
from cluster.settings import Settings, load_settings
from cluster.tracking import EXPERIMENT, client, log_stage
from tests.support.serving import Pair, make_pair, make_release
from tests.support.toys import make_bundle


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return make_pair(tmp_path / "made")


@pytest.fixture
def releases(settings: Settings, pair: Pair) -> list[Release]:
    """Three registered releases of one pair."""
    for bundle in (pair.cloud, pair.edge):
        register_bundle(settings, store_bundle(settings, bundle))
    made = [make_release(settings, pair.edge, pair.cloud, threshold=t) for t in (0.9, 0.8, 0.7)]
    for release in made:
        register_release(settings, release)
    return made


@pytest.fixture
def elsewhere(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Another machine: an empty home, the same registry."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", settings.tracking_uri)
    return load_settings(tmp_path / "elsewhere")


def test_an_empty_registry_has_no_champion_and_says_what_to_do(settings: Settings) -> None:
    assert champion(settings) is None
    assert list_registered(settings) == []
    with pytest.raises(ReleaseError, match=r"No edge bundle is registered.*firstline train"):
        fetch_bundle(settings, "edge")
    with pytest.raises(ReleaseError, match="nothing to roll back to"):
        rollback_target(settings)


def test_what_is_registered_is_listed_with_its_promise(
    settings: Settings, releases: list[Release], pair: Pair
) -> None:
    found = list_registered(settings)
    assert [item.id for item in found] == [release.id for release in releases]
    assert {(i.edge_sha256, i.cloud_sha256) for i in found} == {
        (pair.edge.sha256, pair.cloud.sha256)
    }
    assert [(item.promises, item.confidence) for item in found] == [({"risk": 0.01}, 0.95)] * 3
    assert not any(item.champion for item in found)


def test_registering_twice_is_registering_once(
    settings: Settings, releases: list[Release], pair: Pair
) -> None:
    register_release(settings, releases[0])
    register_bundle(settings, pair.edge)
    assert len(list_registered(settings)) == 3
    assert len(client(settings).search_model_versions("name='firstline-edge'")) == 1


def test_the_newest_bundle_of_a_role_is_found(
    settings: Settings, releases: list[Release], pair: Pair, tmp_path: Path
) -> None:
    assert fetch_bundle(settings, "edge") == bundle_path(settings, pair.edge.sha256)
    newer = make_bundle(tmp_path / "newer", "edge", known_share=0.7)
    register_bundle(settings, newer)
    assert fetch_bundle(settings, "edge") == bundle_path(settings, newer.sha256)
    assert fetch_bundle(settings, "cloud") == bundle_path(settings, pair.cloud.sha256)


def test_promote_and_roll_back_step_by_step(settings: Settings, releases: list[Release]) -> None:
    a, b, c = (release.id for release in releases)
    assert [promote(settings, id_) for id_ in (a, b, c)] == [None, a, b]
    assert champion(settings) == c
    assert [item.champion for item in list_registered(settings)] == [False, False, True]
    assert (rollback(settings), champion(settings)) == (b, b)
    assert (rollback(settings), champion(settings)) == (a, a)
    with pytest.raises(ReleaseError, match="nothing to roll back to"):
        rollback(settings)
    assert champion(settings) == a


def test_promoting_the_champion_again_keeps_the_way_back(
    settings: Settings, releases: list[Release]
) -> None:
    a, b, _ = (release.id for release in releases)
    promote(settings, a)
    promote(settings, b)
    assert promote(settings, b) == b
    assert rollback_target(settings) == a


def test_an_unregistered_release_is_not_promoted(
    settings: Settings, releases: list[Release], pair: Pair
) -> None:
    promote(settings, releases[0].id)
    stray = make_release(settings, pair.edge, pair.cloud, threshold=0.1)
    with pytest.raises(ReleaseError, match=f"{stray.id}' is not registered. Known: "):
        promote(settings, stray.id)
    with pytest.raises(ReleaseError, match="no release 'r-unknown'"):
        promote(settings, "r-unknown")
    assert champion(settings) == releases[0].id


def test_a_corrupted_release_is_not_promoted(settings: Settings, releases: list[Release]) -> None:
    promote(settings, releases[0].id)
    (releases[1].path / "policy.json").write_text("{}")
    with pytest.raises(ReleaseError, match="corrupted"):
        promote(settings, releases[1].id)
    assert champion(settings) == releases[0].id


@pytest.mark.parametrize("write", ["set_model_version_tag", "set_registered_model_alias"])
def test_a_crash_before_the_alias_moves_changes_nothing(
    settings: Settings, releases: list[Release], monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    a, b, c = (release.id for release in releases)
    promote(settings, a)
    promote(settings, b)

    def crash(*_: Any, **__: Any) -> None:
        raise ConnectionError("the plug was pulled")

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, write, crash)
        with pytest.raises(ConnectionError):
            promote(settings, c)
    assert champion(settings) == b
    assert rollback_target(settings) == a
    promote(settings, c)
    assert (champion(settings), rollback_target(settings)) == (c, b)


def test_another_machine_fetches_a_release_with_its_bundles(
    elsewhere: Settings, releases: list[Release]
) -> None:
    found = fetch_release(elsewhere, releases[0].id)
    assert found.path.parent == elsewhere.releases_dir
    assert found.manifest == releases[0].manifest
    for path, original in ((found.edge_path, releases[0].edge_path),
                           (found.cloud_path, releases[0].cloud_path)):  # fmt: skip
        files = {item.name: item.read_bytes() for item in path.iterdir()}
        assert files == {item.name: item.read_bytes() for item in original.iterdir()}


def test_a_fetch_that_was_cut_off_is_taken_up(
    elsewhere: Settings, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The release used to come first: cut off after it, its bundles were never fetched again."""
    downloads = 0
    real = registry._download

    def cut_off(*arguments: Any) -> None:
        nonlocal downloads
        downloads += 1
        if downloads == 2:
            raise ConnectionError("the network is gone")
        real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(registry, "_download", cut_off)
        with pytest.raises(ConnectionError):
            fetch_release(elsewhere, releases[0].id)
    assert fetch_release(elsewhere, releases[0].id).manifest == releases[0].manifest


def test_a_bundle_that_was_deleted_is_fetched_again(
    elsewhere: Settings, releases: list[Release]
) -> None:
    found = fetch_release(elsewhere, releases[0].id)
    for item in found.edge_path.iterdir():
        item.unlink()
    found.edge_path.rmdir()
    assert fetch_release(elsewhere, releases[0].id) == found
    assert (found.edge_path / "model.onnx").is_file()


def test_a_release_on_this_disk_needs_no_registry(
    settings: Settings, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router that restarts while the registry is down still starts."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert fetch_release(settings, releases[0].id) == releases[0]


def test_a_stage_is_logged_with_its_curve_and_files(settings: Settings, tmp_path: Path) -> None:
    picture = tmp_path / "curve.png"
    picture.write_bytes(b"png")
    run_id = log_stage(
        settings, "finetune", params={"rate": 0.1, "long": "x" * 900}, metrics={"accuracy": 0.9},
        history=[{"step": 1, "epoch": 0.5, "loss": 2.0}, {"step": 2, "epoch": 1.0, "loss": 1.0}],
        files=[picture], tags={"dataset": "f"},
    )  # fmt: skip
    mlflow = client(settings)
    run = mlflow.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"rate": "0.1", "long": "x" * 500}
    assert run.data.metrics == {"accuracy": 0.9, "loss": 1.0}
    assert (run.data.tags["stage"], run.data.tags["dataset"]) == ("finetune", "f")
    assert [(m.step, m.value) for m in mlflow.get_metric_history(run_id, "loss")] == [
        (1, 2.0),
        (2, 1.0),
    ]
    assert [item.path for item in mlflow.list_artifacts(run_id)] == ["curve.png"]
    assert (settings.home / "mlflow").is_dir()
    assert mlflow.get_experiment_by_name(EXPERIMENT) is not None
