"""Certifying a release again: on rows that it has never seen, beside what it has already."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.bundles import ModelBundle
from cluster.errors import CertifyError, ConfigError, DataError, ReleaseError
from cluster.files import write_json
from cluster.releases import Release, create_release, load_release
from cluster.settings import Settings
from serve_app.decide.cost import Prices
from serve_app.decide.policy import BundlePins
from serve_app.decide.scores import MaxProbability
from tests.support.serving import make_pair
from tests.support.tables import toy_table
from train_jobs.data import content_key
from tune.certificate import bounds
from tune.certificate.certify import certificate
from tune.certificate.counts import counts
from tune.certificate.limits import Limits
from tune.certificate.recertify import (
    USED,
    certificates,
    limits_of,
    recertify,
    require_unused,
    rows_needed,
    save_used,
    used_rows,
)
from tune.objective import Shape, kept
from tune.replay import Table

TEXTS = ("my order is late", "thanks a lot", "where is my account", "it broke")
SHAPE = Shape(score=MaxProbability())
THRESHOLD = 0.8


@pytest.fixture
def pair(tmp_path: Path) -> Any:
    return make_pair(tmp_path / "pair")


def table_of(pair: Any, rows: int = 1500, seed: int = 11, **more: Any) -> Table:
    """New rows, as scored by this pair."""
    hashes = {"edge_sha256": pair.edge.sha256, "cloud_sha256": pair.cloud.sha256}
    return replace(toy_table(rows, seed, "new.csv", **more), **hashes)


@pytest.fixture
def release(settings: Settings, pair: Any, tmp_path: Path) -> Release:
    """A release with a real certificate, made of two of the texts."""
    pins = BundlePins(edge=pair.edge.sha256, cloud=pair.cloud.sha256)
    policy = SHAPE.policy("p", THRESHOLD, bundles=pins)
    table = replace(table_of(pair, seed=10), split="certify")
    made = certificate(policy, table, Limits(risk=0.15), 0.95, Prices(), "2026-01-01T00:00:00")
    used = tmp_path / USED
    save_used(used, {"train": [content_key(TEXTS[0])], "certify": [content_key(TEXTS[1])]})
    edge: ModelBundle = pair.edge
    return create_release(
        settings, edge=edge, cloud=pair.cloud, policy=policy.model_dump(mode="json"),
        certificate=made.model_dump(mode="json"), prices=Prices().model_dump(mode="json"),
        extras=[used],
    )  # fmt: skip


def files(release: Release) -> Mapping[str, bytes]:
    return {file.name: file.read_bytes() for file in release.path.iterdir()}


# ---- used rows ----------------------------------------------------------------------------------


def test_used_rows_are_known_again_by_their_text(release: Release) -> None:
    """Spaces and capitals make no other text; a row is known by what was trained on."""
    keys = [content_key(text) for text in (*TEXTS, "Thanks  a LOT")]
    assert used_rows(release, keys) == {0: "train", 1: "certify", 4: "certify"}


def test_used_rows_are_refused_by_number_and_split(release: Release) -> None:
    used = used_rows(release, [content_key(text) for text in TEXTS])
    with pytest.raises(CertifyError) as caught:
        require_unused(release, used, len(TEXTS), Path("new.csv"))
    for part in ("2 of 4 rows of new.csv", release.id, "1 in 'certify', 1 in 'train'",
                 "--drop-used"):  # fmt: skip
        assert part in str(caught.value)


def test_new_rows_are_not_refused(release: Release) -> None:
    used = used_rows(release, [content_key(text) for text in TEXTS[2:]])
    require_unused(release, used, 2, Path("new.csv"))


def test_a_release_that_does_not_tell_its_rows_is_refused(release: Release) -> None:
    (release.path / USED).unlink()
    with pytest.raises(ReleaseError, match=rf"has no {USED}, so nobody can tell"):
        used_rows(release, [content_key(TEXTS[2])])


# ---- the new certificate ------------------------------------------------------------------------


def test_a_new_certificate_says_what_holds_of_the_released_policy(
    release: Release, pair: Any
) -> None:
    table = table_of(pair)
    limits = Limits(risk=0.15, agreement=0.8, accuracy_loss=0.12, cloud_share=0.4)
    made = recertify(release, table, limits, 0.95)
    found = made.certificate
    edge = kept(SHAPE.policy("p", THRESHOLD), table)
    failures = int((edge & table.differs).sum())
    assert found.promises["risk"].failures == failures
    assert found.promises["agreement"].rows == edge.sum()
    assert found.policy_sha256 == release.certificate["policy_sha256"]
    assert (found.split, found.rows) == ("new.csv", 1500)
    assert (found.position, found.tested, found.sequence_length) == (0, 1, 1)
    for kind, promise in found.promises.items():
        assert (promise.bound > promise.limit) == (kind == "agreement")


def test_certificates_stand_beside_each_other(
    release: Release, pair: Any, settings: Settings
) -> None:
    """Two of the same second used to be one."""
    before = files(release)
    made = [recertify(release, table_of(pair, seed=seed), Limits(risk=0.15), 0.95)
            for seed in (11, 12)]  # fmt: skip
    found = certificates(release)
    assert list(found) == ["certificate.json", *(one.path.name for one in made)]
    assert list(found.values())[1:] == [one.certificate for one in made]
    assert found["certificate.json"].split == "certify"
    assert {name: files(release)[name] for name in before} == before
    assert load_release(settings, release.id) == release


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"risk": 0.02}, "no number of rows will do"),
        ({"risk": 0.15, "cloud_share": 0.01}, "--max-cloud-share 0.01"),
        ({"agreement": 0.99}, "--min-agreement 0.99"),
    ],
)
def test_a_policy_that_does_not_pass_gets_no_certificate(
    release: Release, pair: Any, limits: dict[str, float], said: str
) -> None:
    before = files(release)
    with pytest.raises(CertifyError, match=f"policy of {release.id} cannot be certified") as caught:
        recertify(release, table_of(pair), Limits(**limits), 0.95)
    assert said in str(caught.value)
    assert files(release) == before


def test_rows_that_other_models_scored_are_refused(release: Release, pair: Any) -> None:
    before = files(release)
    other = replace(table_of(pair), edge_sha256="0" * 64)
    with pytest.raises(CertifyError, match="pinned to the bundles"):
        recertify(release, other, Limits(risk=0.001, agreement=0.9), 0.95)
    assert files(release) == before


def test_too_few_rows_no_rows_and_no_labels_are_refused(release: Release, pair: Any) -> None:
    before = files(release)
    with pytest.raises(CertifyError, match="at least 299"):
        recertify(release, table_of(pair, 200), Limits(risk=0.01), 0.95)
    with pytest.raises(DataError, match="has no rows"):
        recertify(release, table_of(pair, 0), Limits(agreement=0.9), 0.95)
    bare = table_of(pair, 300, unknown_share=1.0)
    with pytest.raises(CertifyError, match="none of the 300 rows"):
        recertify(release, bare, Limits(accuracy_loss=0.1), 0.95)
    assert files(release) == before


def test_limits_that_nothing_can_meet_are_refused(release: Release, pair: Any) -> None:
    with pytest.raises(ConfigError, match="The risk is 5"):
        recertify(release, table_of(pair), Limits(risk=5), 0.95)
    with pytest.raises(ConfigError, match="--per-class bounds a risk or an agreement"):
        recertify(release, table_of(pair), Limits(accuracy_loss=0.2), 0.95, per_class=True)


def test_what_the_release_promises_is_asked_for_again(release: Release) -> None:
    assert limits_of(release, Limits()) == Limits(risk=0.15)
    assert limits_of(release, Limits(agreement=0.9)) == Limits(agreement=0.9)


def test_a_certificate_of_another_format_is_refused(release: Release) -> None:
    write_json(release.path / "certificate-old.json", {"risk": 0.01, "failures": 3})
    with pytest.raises(ReleaseError, match=r"certificate-old.json .* this version can read"):
        certificates(release)


# ---- per class ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["risk", "agreement"])
def test_each_class_is_bounded_by_holm(release: Release, pair: Any, kind: str) -> None:
    table = table_of(pair)
    limits = {"risk": 0.15} if kind == "risk" else {"agreement": 0.8}
    made = recertify(release, table, Limits(**limits), 0.95, per_class=True).certificate
    edge = kept(SHAPE.policy("p", THRESHOLD), table)
    among = np.ones(table.rows, bool) if kind == "risk" else edge
    assert made.classes is not None
    assert made.classes.risk == pytest.approx(0.15 if kind == "risk" else 0.2)
    for item in made.classes.classes:
        of_it = table.edge_label == table.labels.index(item.label)
        assert item.rows == (among & of_it).sum()
        assert item.failures == (edge & of_it & table.differs).sum()
    assert {item.label for item in made.classes.classes} == set(table.labels)


# ---- how many rows ------------------------------------------------------------------------------


def test_rows_needed_are_told_for_what_was_seen(release: Release, pair: Any) -> None:
    table = table_of(pair)
    edge = kept(SHAPE.policy("p", THRESHOLD), table)
    failures = int((edge & table.differs).sum())
    lines = recertify(release, table, Limits(risk=0.15, agreement=0.8), 0.95).rows_needed
    half = bounds.rows_needed(0.15, 0.95, failures / 1500, 0.5)
    assert lines[0].startswith(f"A risk below 15.00%, with {failures / 1500:.2%} as seen: about")
    assert f" {half:.0f} rows pass with a chance of 50%" in lines[0]
    kept_half = bounds.rows_needed(0.2, 0.95, failures / int(edge.sum()), 0.5)
    assert f" {int(np.ceil(kept_half / edge.mean()))} rows" in lines[1]


def test_of_nothing_kept_no_rows_are_told(pair: Any) -> None:
    seen = counts(SHAPE, np.array([2.0]), table_of(pair, pinned_share=0.0))
    assert rows_needed(Limits(agreement=0.9), seen, 0.95) == []
