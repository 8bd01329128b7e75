"""Offline scoring by Ray Data: the answers of the service, in order, and going on after SIGKILL."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import BundleError
from cluster.files import read_json
from cluster.releases import Release, load_release
from cluster.settings import Settings, load_settings
from serve_app.decide.cost import Prices
from serve_app.decide.policy import decide, policy_of
from serve_app.decide.signals import signals
from serve_app.guard.prepare import prepare
from serve_app.model.golden import TierModel
from serve_app.scored import PARTS, PROGRESS, REFUSED, SUMMARY, rows
from tests.support.serving import make_pair, make_release
from tests.support.toys import message, traffic
from tests.support.waiting import wait_for
from train_jobs.scoring.score import ScoreConfig, run

pytestmark = pytest.mark.timeout(280)

ROWS = 16_000
REFUSED_ROWS = {7: "", 9_000: "x" * 10_001}
PINNED_ROW = 11
WAIT_S = 90.0


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Release, Path, list[str]]:
    folder = tmp_path_factory.mktemp("score")
    settings = Settings(home=folder / "home")
    pair = make_pair(folder / "bundles")
    release = make_release(settings, pair.edge, pair.cloud)
    texts, _ = traffic(ROWS)
    for row, text in REFUSED_ROWS.items():
        texts[row] = text
    texts[PINNED_ROW] = message("negative", hard=True, extra="jo@example.com")
    data = folder / "in.parquet"
    pq.write_table(pa.table({"text": texts}), data)
    return settings, release, data, texts


def served(release: Release, texts: list[str]) -> list[tuple[str, float, str, str, float]]:
    """What the parts of the answer path say of each text, one after the other."""
    manifest, policy = release.manifest, policy_of(release)
    prices = Prices.model_validate(release.prices)
    edge = TierModel.load(release.edge_path, manifest.edge_sha256, 1)
    cloud = TierModel.load(release.cloud_path, manifest.cloud_sha256, 1)
    made = []
    for text in texts:
        ready = prepare(text)
        first = edge.predict([ready.text])[0]
        assert first is not None
        decision = decide(ready, first, policy, signals(ready, first))
        last = first if decision.route.value == "edge" else cloud.predict([ready.text])[0]
        assert last is not None
        cost_usd = prices.of(decision.route)
        made.append(
            (last.label, last.confidence, decision.route.value, decision.reason.value, cost_usd)
        )
    return made


def command(home: Path, data: Path, out: Path, *options: str) -> list[str]:
    words = ["score", "--out", str(out), "--cpus", "2", "--json", *options, str(data)]
    return [sys.executable, "-m", "cluster.cli", *words]


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "FIRSTLINE_HOME": str(home), "RAY_worker_niceness": "0"}


def of_folder(folder: Path) -> list[int]:
    """Processes, but this one, that have a folder of this test in their environment."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit() and int(place.name) != os.getpid():
            try:
                if str(folder).encode() in (place / "environ").read_bytes():
                    found.append(int(place.name))
            except OSError:
                continue
    return found


def parts(out: Path) -> dict[str, tuple[bytes, int]]:
    """The finished parts, with what they hold and when they were written."""
    found = sorted((out / PARTS).glob("part-*.parquet"))
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


def test_a_run_that_is_killed_goes_on_and_its_answers_are_those_of_the_service(
    scored: tuple[Settings, Release, Path, list[str]], tmp_path: Path
) -> None:
    settings, release, data, texts = scored
    out = tmp_path / "out"
    words, env = command(settings.home, data, out), environment(settings.home)
    with (tmp_path / "log").open("wb") as told:
        driver = subprocess.Popen(words, env=env, stdout=told, stderr=told)
        try:
            assert wait_for(lambda: len(parts(out)) >= 5 or driver.poll() is not None, WAIT_S)
        finally:
            driver.send_signal(signal.SIGKILL)
            driver.wait(30)
    before = parts(out)
    assert not (out / SUMMARY).exists(), (tmp_path / "log").read_text()
    assert 5 <= len(before) < ROWS // 256, "killed in the middle"
    assert wait_for(lambda: not of_folder(settings.home), WAIT_S), "Ray outlived its driver"
    before = parts(out)

    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    after = parts(out)
    assert {name: after[name] for name in before} == before, "a finished chunk was scored again"
    assert summary["scored_rows"] == ROWS - sum(
        json.loads(pq.read_metadata(out / PARTS / name).metadata[b"firstline_counts"])["rows"]
        for name in before
    )
    assert (summary["rows"], summary["refused"]) == (ROWS, len(REFUSED_ROWS))
    assert "score" in done.stderr
    assert "Running" not in done.stderr, "Ray Data's own bars are off"

    found = list(rows(out))
    assert [row["row"] for row in found] == list(range(ROWS))
    answered = [row for row in found if "label" in row]
    assert {row["row"] for row in found} - {row["row"] for row in answered} == set(REFUSED_ROWS)
    expected = served(release, [text for row, text in enumerate(texts) if row not in REFUSED_ROWS])
    names = ("label", "confidence", "route", "reason", "cost_usd")
    assert [tuple(row[name] for name in names) for row in answered] == expected
    assert found[PINNED_ROW]["reason"] == "pii_pinned"
    assert len((out / REFUSED).read_text().splitlines()) == len(REFUSED_ROWS)
    assert read_json(out / PROGRESS) == {"done": ROWS, "total": ROWS}
    assert wait_for(lambda: not of_folder(settings.home), WAIT_S), "a process was left behind"


def test_a_bundle_that_is_broken_is_told_as_such(tmp_path: Path) -> None:
    settings = load_settings(tmp_path / "home")
    pair = make_pair(tmp_path / "bundles")
    release = make_release(settings, pair.edge, pair.cloud)
    (load_release(settings, release.id).edge_path / "model.onnx").write_bytes(b"broken")
    data = tmp_path / "in.jsonl"
    data.write_text('{"text": "where"}\n')
    config = ScoreConfig(data=data, out=tmp_path / "out", release=release.id, cpus=1)
    with pytest.raises(BundleError, match="is corrupted"):
        run(config, settings)
    assert not (tmp_path / "out" / SUMMARY).exists()
