"""What an earlier version left on disk loads, reads and answers as it did.

`tests/support/old_home` was written by the version of 1 December 2026, before the code was moved
into packages, with `tests/toys.py` as it was then: two bundles, a release, an audit log of two
days (one packed into Parquet), a table, and the state of a service with all its 73 options.
"""

import shutil
from pathlib import Path

import pytest

from cluster.audit.read import read
from cluster.releases import list_releases, load_release
from cluster.settings import Settings
from serve_app.cascade.offline import OfflineCascade
from serve_app.decide.policy import policy_of
from serve_app.guard.prepare import prepare
from serve_app.service.state import read_info
from tests.support import __file__ as support
from tune.replay import load_table


@pytest.fixture
def old(tmp_path: Path) -> Settings:
    shutil.copytree(Path(support).parent / "old_home", tmp_path / "home")
    return Settings(home=tmp_path / "home")


@pytest.fixture
def release_id(old: Settings) -> str:
    return (old.home / "release-id").read_text()


def test_a_release_is_found_and_answers(old: Settings, release_id: str) -> None:
    """Its bundles are checked against their hashes and reproduce their golden messages."""
    assert release_id in list_releases(old)
    release = load_release(old, release_id)
    assert policy_of(release).threshold == release.policy["threshold"]
    answered = OfflineCascade.of(release).answer([prepare("great thanks"), prepare("awful late")])
    assert [one.final and one.final.label for one in answered] == ["positive", "negative"]


def test_the_audit_log_reads_as_it_was_written(old: Settings) -> None:
    lines = (old.home / "audit-lines.jsonl").read_bytes().splitlines()
    assert [record.to_json() for record in read(old.audit_dir)] == lines


def test_a_table_loads(old: Settings) -> None:
    assert len(load_table(old.home / "table.parquet").signals["confidence"]) == 200


def test_a_service_that_the_old_version_started_is_found(old: Settings, release_id: str) -> None:
    info = read_info(old)
    assert info is not None
    assert info.release == release_id
    assert info.config.cloud.timeout_s == 3.0
