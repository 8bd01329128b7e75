"""A release pins its parts: what does not belong together is refused, what was changed too."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster.bundles import GUARD, MODEL, MODEL_ANY
from cluster.errors import BundleError, ReleaseError
from cluster.files import read_json, sha256_file, sha256_json, write_json
from cluster.releases import (
    CERTIFICATE,
    MANIFEST,
    POLICY,
    PRICES,
    create_release,
    list_releases,
    load_release,
    store_bundle,
)
from cluster.settings import Settings, load_settings
from serve_app.decide.policy import RouterPolicy
from serve_app.guard.config import GuardConfig, guard_config
from tests.support.serving import Pair, make_pair, make_release
from tests.support.toys import make_bundle


@pytest.fixture
def settings() -> Settings:
    return load_settings()


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return make_pair(tmp_path / "made")


def pins(pair: Pair) -> dict[str, str]:
    return {"edge": pair.edge.sha256, "cloud": pair.cloud.sha256}


def create(settings: Settings, pair: Pair, **over: Any) -> Any:
    policy = over.pop("policy", {"bundles": pins(pair)})
    certificate = {"bundles": pins(pair), **over.pop("certificate", {})}
    parts: dict[str, Any] = {
        "policy": policy,
        "certificate": {"policy_sha256": sha256_json(policy), **certificate},
        "prices": {"edge_usd": 0.001, "cloud_usd": 0.0136},
        **over,
    }
    return create_release(settings, edge=pair.edge, cloud=pair.cloud, **parts)


def test_a_release_comes_back_as_it_was_made(settings: Settings, pair: Pair) -> None:
    made = make_release(settings, pair.edge, pair.cloud)
    again = load_release(settings, made.id)
    assert again == made
    assert RouterPolicy.model_validate(again.policy).threshold == 0.9
    assert (again.manifest.edge_sha256, again.manifest.cloud_sha256) == tuple(pins(pair).values())
    assert (again.edge_path / MODEL).read_bytes() == pair.edge.model_path.read_bytes()


def test_the_same_parts_give_the_same_id_and_are_written_once(
    settings: Settings, pair: Pair
) -> None:
    first = make_release(settings, pair.edge, pair.cloud)
    written = (first.path / MANIFEST).stat().st_mtime_ns
    assert make_release(settings, pair.edge, pair.cloud).id == first.id
    assert (first.path / MANIFEST).stat().st_mtime_ns == written


def test_any_other_part_gives_another_id(settings: Settings, pair: Pair) -> None:
    ids = {
        create(settings, pair).id,
        create(settings, pair, policy={"bundles": pins(pair), "threshold": 0.5}).id,
        create(settings, pair, certificate={"bundles": pins(pair), "confidence": 0.9}).id,
        create(settings, pair, prices={"edge_usd": 1.0, "cloud_usd": 2.0}).id,
    }
    assert len(ids) == 4
    assert set(list_releases(settings)) == ids


@pytest.mark.parametrize("part", ["policy", "certificate"])
@pytest.mark.parametrize("tier", ["edge", "cloud"])
def test_a_part_of_another_release_is_refused(
    settings: Settings, pair: Pair, part: str, tier: str
) -> None:
    """The wrong policy with the right bundles: it would run, and keep no promise."""
    other = {**pins(pair), tier: "f" * 64}
    with pytest.raises(
        ReleaseError, match=f"This {part} was made for .*ffffffffffff.*firstline tu"
    ):
        create(settings, pair, **{part: {"bundles": other}})
    assert list_releases(settings) == []


def test_a_certificate_speaks_of_one_policy_only(settings: Settings, pair: Pair) -> None:
    """Right bundles, right pins, another threshold: nobody certified that."""
    looser = sha256_json({"bundles": pins(pair), "threshold": 0.1})
    with pytest.raises(ReleaseError, match="changed after it was certified"):
        create(settings, pair, certificate={"policy_sha256": looser})
    assert list_releases(settings) == []


@pytest.mark.parametrize("part", ["policy", "certificate"])
def test_a_policy_certified_with_another_artifact_is_refused(
    settings: Settings, pair: Pair, part: str
) -> None:
    """One bundle, one hash, two model files: the rows were scored by one of them."""
    other = {**pins(pair), "edge_artifact": MODEL_ANY}
    with pytest.raises(ReleaseError, match=r"made for the edge's .*, and certified with .*firstl"):
        create(settings, pair, **{part: {"bundles": other}})
    assert list_releases(settings) == []


def test_a_release_says_which_artifact_it_was_certified_with(
    settings: Settings, pair: Pair
) -> None:
    """One that names none was certified with the artifact that every bundle has."""
    assert "edge_artifact" not in pins(pair)
    assert create(settings, pair).edge_artifact == MODEL
    made = make_release(settings, pair.edge, pair.cloud, edge_artifact=MODEL_ANY)
    assert load_release(settings, made.id).edge_artifact == MODEL_ANY


def test_a_threshold_changed_on_disk_with_its_hash_is_refused(
    settings: Settings, pair: Pair
) -> None:
    """Whoever mends the manifest's hash too still meets the certificate's."""
    made = make_release(settings, pair.edge, pair.cloud)
    policy = read_json(made.path / POLICY)
    write_json(made.path / POLICY, {**policy, "threshold": 0.1})
    manifest = read_json(made.path / MANIFEST)
    manifest["files"][POLICY] = sha256_file(made.path / POLICY)
    write_json(made.path / MANIFEST, manifest)
    with pytest.raises(ReleaseError, match="changed after it was certified"):
        load_release(settings, made.id)


@pytest.mark.parametrize("none", [{}, {"bundles": None}])
def test_a_baseline_makes_no_release(settings: Settings, pair: Pair, none: dict[str, Any]) -> None:
    with pytest.raises(ReleaseError, match="policy was made for"):
        create(settings, pair, policy=none)


def test_swapped_tiers_are_refused(settings: Settings, pair: Pair) -> None:
    with pytest.raises(ReleaseError, match="policy was made for"):
        create(settings, Pair(edge=pair.cloud, cloud=pair.edge), policy={"bundles": pins(pair)})


def test_different_labels_are_refused(
    settings: Settings, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.toys.LABELS", ("positive", "neutral", "negative"))
    other = make_bundle(tmp_path / "other", "cloud")
    with pytest.raises(ReleaseError, match="in another order"):
        create(settings, Pair(pair.edge, other))


@pytest.mark.parametrize("name", [POLICY, CERTIFICATE, PRICES])
def test_a_file_that_was_changed_afterwards_is_named(
    settings: Settings, pair: Pair, name: str
) -> None:
    """An operator who lowers a threshold by hand has no certificate any more."""
    made = make_release(settings, pair.edge, pair.cloud)
    content = json.loads((made.path / name).read_text())
    (made.path / name).write_text(json.dumps({**content, "threshold": 0.1}))
    with pytest.raises(ReleaseError, match=f"corrupted: {name} is missing or was changed"):
        load_release(settings, made.id)


def test_a_missing_file_is_named(settings: Settings, pair: Pair) -> None:
    made = make_release(settings, pair.edge, pair.cloud)
    (made.path / POLICY).unlink()
    with pytest.raises(ReleaseError, match=f"{POLICY} is missing"):
        load_release(settings, made.id)


def test_a_manifest_of_another_pair_is_refused(settings: Settings, pair: Pair) -> None:
    """Every hash fits, and still the policy was made for other bundles."""
    made = make_release(settings, pair.edge, pair.cloud)
    manifest = json.loads((made.path / MANIFEST).read_text())
    (made.path / MANIFEST).write_text(json.dumps({**manifest, "edge_sha256": "f" * 64}))
    with pytest.raises(ReleaseError, match="policy was made for"):
        load_release(settings, made.id)


@pytest.mark.parametrize("content", ["{", "[]", '{"id": "r-1"}'])
def test_a_broken_manifest_is_refused(settings: Settings, pair: Pair, content: str) -> None:
    made = make_release(settings, pair.edge, pair.cloud)
    (made.path / MANIFEST).write_text(content)
    with pytest.raises(ReleaseError, match="not a release manifest"):
        load_release(settings, made.id)


def test_an_unknown_id_lists_what_is_known(settings: Settings, pair: Pair) -> None:
    with pytest.raises(ReleaseError, match=r"no release 'r-x'.*firstline tune"):
        load_release(settings, "r-x")
    made = make_release(settings, pair.edge, pair.cloud)
    with pytest.raises(ReleaseError, match=f"Known: {made.id}"):
        load_release(settings, "r-x")


def test_a_half_written_release_is_none(settings: Settings, pair: Pair) -> None:
    made = make_release(settings, pair.edge, pair.cloud)
    (made.path / MANIFEST).unlink()
    assert list_releases(settings) == []
    with pytest.raises(ReleaseError, match="no release"):
        load_release(settings, made.id)
    assert make_release(settings, pair.edge, pair.cloud).id == made.id


def test_a_failure_in_the_middle_leaves_no_release(
    settings: Settings, pair: Pair, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError):
        create(settings, pair, extras=[tmp_path / "no-such-picture.png"])
    assert list(settings.releases_dir.iterdir()) == []


def test_a_missing_bundle_is_found_before_anything_starts(settings: Settings, pair: Pair) -> None:
    made = make_release(settings, pair.edge, pair.cloud)
    shutil.rmtree(made.cloud_path)
    with pytest.raises(BundleError, match="not a finished model bundle"):
        load_release(settings, made.id)


def test_a_bundle_is_stored_once_and_checked_each_time(settings: Settings, pair: Pair) -> None:
    stored = store_bundle(settings, pair.edge)
    assert store_bundle(settings, pair.edge) == stored
    assert len(list(settings.bundles_dir.iterdir())) == 1
    (stored.model_path).write_bytes(b"")
    with pytest.raises(BundleError, match="corrupted"):
        store_bundle(settings, pair.edge)


def test_releases_are_listed_by_age(settings: Settings, pair: Pair) -> None:
    made = [
        make_release(settings, pair.edge, pair.cloud, threshold=threshold)
        for threshold in (0.9, 0.1, 0.5)
    ]
    for age, release in enumerate(reversed(made)):
        os.utime(release.path / MANIFEST, (1000 - age, 1000 - age))
    assert list_releases(settings) == [release.id for release in made]


FOOTER = GuardConfig(harmless_domains=("acme.example",))


def test_a_release_pins_the_guard_that_its_models_were_trained_behind(
    settings: Settings, tmp_path: Path
) -> None:
    own = make_pair(tmp_path / "own", guard=FOOTER)
    release = make_release(settings, own.edge, own.cloud)
    assert guard_config(load_release(settings, release.id).guard) == FOOTER
    other = make_pair(tmp_path / "other", guard=GuardConfig(harmless_domains=("b.example",)))
    assert make_release(settings, other.edge, other.cloud).id != release.id


def test_a_release_without_a_guard_has_the_built_in_one(settings: Settings, pair: Pair) -> None:
    assert make_release(settings, pair.edge, pair.cloud).guard is None


def test_models_behind_different_guards_make_no_release(
    settings: Settings, pair: Pair, tmp_path: Path
) -> None:
    own = make_pair(tmp_path / "own", guard=FOOTER)
    with pytest.raises(ReleaseError, match="different guards"):
        make_release(settings, own.edge, pair.cloud)


def test_another_guard_in_a_release_is_refused_even_if_its_manifest_agrees(
    settings: Settings, tmp_path: Path
) -> None:
    """The release's id stands for its guard by way of the bundles' hashes."""
    own = make_pair(tmp_path / "own", guard=FOOTER)
    path = make_release(settings, own.edge, own.cloud).path
    (path / GUARD).write_text('{"off": ["email"]}')
    with pytest.raises(ReleaseError, match=r"guard\.json is missing or was changed"):
        load_release(settings, path.name)
    manifest = read_json(path / MANIFEST)
    manifest["files"][GUARD] = sha256_file(path / GUARD)
    write_json(path / MANIFEST, manifest)
    with pytest.raises(ReleaseError, match="not the one that its models were"):
        load_release(settings, path.name)
