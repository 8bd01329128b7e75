"""The three doors, as a user goes through them: real commands, real Ray, real HTTP.

A random encoder of a few thousand weights stands in for the base, so that the whole way takes
minutes; what comes out is not accurate, and nothing here judges how accurate it is.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.encoders import make_tiny_bert
from tests.support.waiting import free_port
from train_jobs.samples.generator import write_csv

# A pair is trained behind the first test.
pytestmark = pytest.mark.timeout(600)

FIRSTLINE = str(Path(sys.executable).parent / "firstline")


class Shell:
    """Runs `firstline` words in a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._env = {**os.environ, "FIRSTLINE_HOME": str(home)}
        self._env.pop("RAY_ADDRESS", None)

    def run(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [FIRSTLINE, *words], env=self._env, capture_output=True, text=True, timeout=560
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def json(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json").stdout)


def _ours(home: Path) -> list[str]:
    """Processes that carry this home in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FIRSTLINE_HOME") == str(home):
                found.append(" ".join(process.cmdline())[:120])
        except (psutil.Error, OSError):
            continue
    return found


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    made = Shell(tmp_path_factory.mktemp("home"))
    yield made
    made.run("stop")
    assert _ours(made.home) == []


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "messages.csv"
    write_csv(path, 1500, 3)
    return path


@pytest.fixture(scope="module")
def trained(shell: Shell, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    base = make_tiny_bert(tmp_path_factory.mktemp("base"))
    limits = base / "limits.json"
    limits.write_text(
        '{"min_accuracy_kept": 0, "max_calibration_error": 1, "max_size_ratio": 9,'
        ' "max_latency_ratio": 9, "min_gain_over_words": -1, "min_gain_over_largest_class": -1,'
        ' "max_edge_gain": 1, "max_classes_never_found": 3}'
    )
    return shell.json(
        "train", "--data", str(data), "--base", str(base), "--epochs", "2", "--dapt-epochs", "1",
        "--student-layers", "2", "--limits", str(limits),
    )  # fmt: skip


@pytest.fixture(scope="module")
def report(shell: Shell, trained: Any) -> Any:
    return shell.json("tune", "--risk", "0.5", "--trials", "4")


def test_train_registers_a_pair(trained: Any) -> None:
    assert trained["edge"]["sha256"] != trained["cloud"]["sha256"]
    assert set(trained["stages_s"]) >= {"data", "dapt", "finetune", "distill", "compress", "gate"}


def test_report_has_the_promised_shape(report: Any) -> None:
    assert set(report["accuracy"]) == {"edge", "cloud", "cascade"}
    assert set(report["size_bytes"]) == {"edge", "cloud"}
    assert set(report["latency_ms"]) == {"p50", "p95"}
    assert {"promises", "confidence", "rows", "reference"} <= set(report["certificate"])
    assert set(report["certificate"]["promises"]["risk"]) == {
        "limit", "observed", "bound", "failures", "rows"
    }  # fmt: skip
    assert {"per_message_usd", "savings_vs_cloud_only"} <= set(report["cost"])
    assert {"dapt", "sweep", "certify"} <= set(report["stages_s"])
    assert report["split"] == "test"
    assert set(report["baselines"]) >= {
        "always_edge", "always_cloud", "random", "published_five_factor", "max_probability"
    }  # fmt: skip


def test_a_release_is_certified_again_on_messages_of_another_seed(
    shell: Shell, report: Any, data: Path, tmp_path: Path
) -> None:
    release, fresh = report["release"], tmp_path / "fresh.csv"
    write_csv(fresh, 1000, 4)
    wanted = ("--release", release, "--max-risk", "0.6")
    seen = shell.run("certify", "--data", str(data), *wanted, code=2)
    assert "were used to make" in seen.stderr
    few = shell.run("certify", "--data", str(fresh), "--release", release, "--max-risk", "0.0001",
                    "--drop-used", code=2)  # fmt: skip
    assert "needs at least 29956" in few.stderr
    made = shell.json(
        "certify", "--data", str(fresh), "--drop-used", "--label-column", "label", *wanted,
        "--max-accuracy-loss", "0.9",
    )  # fmt: skip
    assert set(made["promises"]) == {"risk", "accuracy_loss"}
    shown = json.loads(shell.run("releases", "show", release).stdout)["certificates"]
    first, second = shown
    assert (first, shown[second]) == ("certificate.json", made)


def test_a_message_is_explained_without_a_service(shell: Shell, report: Any) -> None:
    words = ("explain", "where is my parcel?", "--release", report["release"])
    made = shell.json(*words)
    assert made["threshold"] == report["policy"]["threshold"]
    assert sum(made["breakdown"].values()) == pytest.approx(made["trust"])
    assert shell.run(*words).stdout.startswith("route")
    pinned = shell.json("explain", "my card number is 4111 1111 1111 1111", *words[2:])
    assert (pinned["route"], pinned["reason"]) == ("edge", "pii_pinned")
    assert "visible character" in shell.run("explain", " ", *words[2:], code=2).stderr


def test_serve_classify_promote_roll_back_stop(
    shell: Shell, report: Any, data: Path, tmp_path: Path
) -> None:
    first = report["release"]
    second = shell.json("tune", "--risk", "0.4", "--trials", "2")["release"]
    assert second != first
    port = str(free_port())
    shell.run("serve", "--release", first, "--port", port, "--detach")
    assert shell.json("status")["ready"] is True

    (answer,) = shell.json("classify", "where is my parcel?")
    assert answer["release"] == first
    pinned = shell.json("classify", "my card number is 4111 1111 1111 1111")
    assert (pinned[0]["route"], pinned[0]["reason"]) == ("edge", "pii_pinned")
    asked = shell.json("explain", "where is my parcel?", "--url", f"http://127.0.0.1:{port}")
    here = shell.json("explain", "where is my parcel?")
    assert (asked["route"], asked["threshold"]) == (here["route"], here["threshold"])

    out = tmp_path / "answers.jsonl"
    shown = shell.run(
        "classify", "--file", str(data), "--label-column", "label", "--out", str(out)
    ).stdout
    assert "accuracy" in shown
    assert len(out.read_text().splitlines()) == 1500

    shell.run("releases", "promote", second)
    assert shell.json("classify", "where is my parcel?")[0]["release"] == second
    assert [one["id"] for one in shell.json("releases", "list") if one["champion"]] == [second]
    shell.run("releases", "rollback")
    assert shell.json("classify", "where is my parcel?")[0]["release"] == first

    taken = shell.run("serve", "--port", port, code=2)
    assert "firstline stop" in taken.stderr
    shell.run("stop")
    gone = shell.run("classify", "hello", code=2)
    assert "firstline serve" in gone.stderr
    _replay(shell, first, second)


def _replay(shell: Shell, first: str, second: str) -> None:
    """Both rules on what the first has answered; the log outlives the service."""
    releases = shell.home / "releases"
    words = ("replay", "--since", "1h", "--release", first, "--policy")
    same = shell.json(*words, str(releases / first / "policy.json"))
    assert same["used"] >= 1500
    assert same["ran"]["edge_share"] == same["candidate"]["edge_share"]
    assert same["cells"]["newly_kept"]["messages"] == 0
    other = shell.json(*words, str(releases / second / "policy.json"))
    assert sum(cell["messages"] for cell in other["cells"].values()) == other["used"]
    shown = shell.run(*words, str(releases / second / "policy.json")).stdout
    assert "What this log cannot tell:" in shown


def test_report_writes_a_page(shell: Shell, report: Any, tmp_path: Path) -> None:
    shell.run("report", "--release", report["release"], "--out", str(tmp_path))
    assert json.loads((tmp_path / "report.json").read_text())["release"] == report["release"]
    assert "<img" in (tmp_path / "report.html").read_text()


def test_too_few_rows_to_certify_says_how_many(shell: Shell, trained: Any) -> None:
    refused = shell.run("tune", "--risk", "0.001", "--trials", "1", code=2)
    assert "2995" in refused.stderr
