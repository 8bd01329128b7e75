"""The doors to a Ray cluster of one's own: `--submit`, `ray job submit` and `serve deploy`.

One cluster of this machine for the module, as the README starts it: `ray start --head`, with ports,
a folder and a token that no other cluster here has.
"""

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import pytest
import yaml

from cluster.audit.read import read
from cluster.audit.records import AuditRecord
from cluster.bundles import load_bundle
from cluster.files import read_json
from cluster.ray_private.environment import SERVE_ENV
from cluster.registry import fetch_bundle
from cluster.settings import Settings
from serve_app.scored import rows
from tests import __file__ as tests_file
from tests.support.encoders import make_tiny_bert
from tests.support.serving import make_pair, make_release
from tests.support.toys import LABELS, message
from tests.support.waiting import free_port, wait_for
from train_jobs.pipeline import RUN
from train_jobs.samples.generator import write_csv

pytestmark = pytest.mark.timeout(280)

ROOT: Final = Path(tests_file).resolve().parent.parent
BIN: Final = Path(sys.executable).parent
START_S: Final = 60.0
EASY = message("negative")
HARD = message("negative", hard=True)


@dataclass(frozen=True)
class Cluster:
    """A running cluster, and a home that holds a release."""

    home: Path
    dashboard: str
    release: str
    env: Mapping[str, str]

    def run(
        self, *words: str, code: int = 0, without: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """A command of the environment that the cluster runs in, from our own root."""
        env = {name: value for name, value in self.env.items() if name != without}
        done = subprocess.run(
            [str(BIN / words[0]), *words[1:]], env=env, cwd=ROOT, capture_output=True, text=True,
            timeout=200,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done


def _of(home: Path) -> list[psutil.Process]:
    """The processes that have this home in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FIRSTLINE_HOME") == str(home):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def _environment(folder: Path, home: Path, dashboard: str) -> dict[str, str]:
    """What the README has set where the cluster starts, and what keeps it apart from others."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("FIRSTLINE_")}
    return {
        **env,
        **SERVE_ENV,
        "PATH": f"{BIN}{os.pathsep}{env['PATH']}",
        "PYTHONPATH": str(ROOT),
        "FIRSTLINE_HOME": str(home),
        "RAY_ADDRESS": dashboard,
        "RAY_DASHBOARD_ADDRESS": dashboard,  # the one that `serve deploy` asks
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(BIN / "firstline-haproxy"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
    }


def _start(folder: Path, dashboard_port: int, env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """A head that ends with its process."""
    ports = (
        "port", "ray-client-server-port", "dashboard-agent-grpc-port",
        "dashboard-agent-listen-port", "metrics-export-port",
    )  # fmt: skip
    words = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=4",
             "--dashboard-host=127.0.0.1",
             f"--dashboard-port={dashboard_port}", f"--temp-dir={folder}",
             *(f"--{name}={free_port()}" for name in ports)]  # fmt: skip
    # RAY_ADDRESS names the cluster to whoever asks one, and this command is to start another.
    env = {name: value for name, value in env.items() if name != "RAY_ADDRESS"}
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(words, env=env, stdout=log, stderr=log, start_new_session=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = tmp_path_factory.mktemp("cluster")
    home, port = made / "home", free_port()
    pair = make_pair(made / "bundles")
    release = make_release(Settings(home=home), pair.edge, pair.cloud)
    dashboard = f"http://127.0.0.1:{port}"
    # Ray's sockets lie below it, and a socket's path has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="fl-", ignore_cleanup_errors=True) as short:
        env = _environment(Path(short), home, dashboard)
        head = _start(Path(short), port, env)
        try:
            token = {"Authorization": f"Bearer {env['RAY_AUTH_TOKEN']}"}

            def answers() -> bool:
                assert head.poll() is None, Path(short, "log").read_text()
                try:
                    return httpx.get(f"{dashboard}/api/version", headers=token).is_success
                except httpx.TransportError:
                    return False

            assert wait_for(answers, START_S), Path(short, "log").read_text()
            yield Cluster(home, dashboard, release.id, env)
        finally:
            # Stopped in order, its routers would first drain for half a minute.
            while left := _of(home):
                for one in left:
                    with suppress(psutil.NoSuchProcess):
                        one.kill()
                psutil.wait_procs(left, 10)
            head.wait(10)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "in.jsonl"
    texts = [EASY, HARD, " ", *(message(label) for label in LABELS)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_submit_scores_a_file_on_the_cluster(cluster: Cluster, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = cluster.run(
        "firstline", "score", str(data), "--out", str(out), "--release", cluster.release,
        "--cpus", "1", "--submit",
    )  # fmt: skip
    assert f"to {cluster.dashboard}" in done.stderr
    assert "5 of 6 rows answered" in done.stdout, "the job's own words are followed"
    found = {row["row"]: row.get("label") for row in rows(out)}
    assert found == {0: "negative", 1: "negative", 2: None, **dict(enumerate(LABELS, start=3))}


def test_submit_without_the_token_is_a_paragraph(
    cluster: Cluster, data: Path, tmp_path: Path
) -> None:
    refused = cluster.run(
        "firstline", "score", str(data), "--out", str(tmp_path), "--release", cluster.release,
        "--submit", code=2, without="RAY_AUTH_MODE",
    )  # fmt: skip
    assert "asks for a token" in refused.stderr
    assert "Traceback" not in refused.stderr


def _job(cluster: Cluster, *words: str) -> str:
    """What `ray job submit` prints, as the README has it, until the job is over."""
    environment = {"env_vars": {"FIRSTLINE_HOME": str(cluster.home)}}
    return cluster.run(
        "ray", "job", "submit", "--address", cluster.dashboard, "--working-dir", ".",
        "--runtime-env-json", json.dumps(environment), "--", "python", "-m", *words,
    ).stdout  # fmt: skip


def test_a_submitted_job_scores_a_file(cluster: Cluster, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = _job(
        cluster, "cluster.cli", "score", str(data), "--out", str(out),
        "--release", cluster.release, "--cpus", "1",
    )  # fmt: skip
    assert "5 of 6 rows answered" in told
    assert "succeeded" in told
    assert [row.get("label") for row in rows(out)] == ["negative", "negative", None, *LABELS]


@pytest.mark.long
def test_a_submitted_job_trains_a_pair(cluster: Cluster, tmp_path: Path) -> None:
    write_csv(tmp_path / "messages.csv", 400, 5)
    told = _job(
        cluster, "train_jobs.pipeline", "--data", str(tmp_path / "messages.csv"),
        "--base", str(make_tiny_bert(tmp_path / "base")), "--epochs", "1", "--dapt-epochs", "0.1",
        "--student-layers", "1", "--accept",
    )  # fmt: skip
    assert "succeeded" in told
    settings = Settings(home=cluster.home)
    made = read_json(settings.home / RUN)
    for role in ("edge", "cloud"):
        assert load_bundle(fetch_bundle(settings, role), made[role]["sha256"])


def test_serve_deploy_answers_as_serve_does(cluster: Cluster, tmp_path: Path) -> None:
    config: dict[str, Any] = yaml.safe_load((ROOT / "serve_app" / "serve.yaml").read_text())
    port = config["http_options"]["port"] = free_port()
    written = tmp_path / "serve.yaml"
    written.write_text(yaml.safe_dump(config))
    cluster.run("serve", "deploy", str(written))
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:

        def ready() -> bool:
            try:
                return http.get("/readyz").is_success
            except httpx.TransportError:
                return False

        assert wait_for(ready, 90), cluster.run("serve", "status").stdout
        easy, hard = http.post("/v1/classify", json={"texts": [EASY, HARD]}).json()["answers"]
    assert (easy["route"], hard["route"]) == ("edge", "cloud")
    assert easy["release"] == hard["release"] == cluster.release
    logged = read(Settings(home=cluster.home).audit_dir)
    assert {one.id for one in logged if isinstance(one, AuditRecord)} >= {easy["id"], hard["id"]}
