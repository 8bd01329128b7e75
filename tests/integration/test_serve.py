"""The service as a user runs it: a keeper, its Ray, HAProxy, throughput mode, real HTTP.

One service for the module, on a toy release whose cloud answers NaN to one word.
"""

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cluster.audit.read import read
from cluster.audit.records import AuditRecord, FeedbackRecord
from cluster.errors import ServiceError
from cluster.ray_private.haproxy import MAX_PER_ROUTER
from cluster.settings import Settings
from serve_app.cascade.cache import CacheConfig
from serve_app.deploy.config import CloudConfig, ServeConfig, TierConfig
from serve_app.http.errors import ErrorOut
from serve_app.service import lifecycle, process, releases, state
from serve_app.service.state import ServiceInfo
from tests.support.ray_private import is_forgotten
from tests.support.serving import make_pair, make_release, pids_titled
from tests.support.toys import message
from tests.support.waiting import free_port, wait_for

pytestmark = pytest.mark.timeout(280)

POISON = "friendly"
EASY = message("negative")
HARD = message("negative", hard=True)
PINNED = message("negative", hard=True, extra="jo@example.com")
# One second is shorter than a cloud replica needs to come back, so its death shows.
CONFIG = {
    "edge": TierConfig(max_replicas=2, downscale_delay_s=2, timeout_s=20),
    "cloud": CloudConfig(max_replicas=1, timeout_s=1),
    "cache": CacheConfig(enabled=False),  # the traffic here is one text
}


@dataclass(frozen=True)
class Running:
    settings: Settings
    info: ServiceInfo
    other_release: str
    http: httpx.Client

    def classify(self, *texts: str, **flags: bool) -> list[dict[str, Any]]:
        response = self.http.post("/v1/classify", json={"texts": texts, **flags})
        assert response.status_code == 200, response.text
        answers: list[dict[str, Any]] = response.json()["answers"]
        return answers

    def pids(self, title: str) -> list[int]:
        """The processes of this service whose title matches."""
        return pids_titled(self.info, title)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("serve")
    settings = Settings(home=folder / "home")
    pair = make_pair(folder / "bundles", cloud_nan_word=POISON)
    first = make_release(settings, pair.edge, pair.cloud)
    second = make_release(settings, pair.edge, pair.cloud, threshold=0.8)
    config = ServeConfig(port=free_port(), **CONFIG)
    info = lifecycle.start(settings, first.id, config)
    try:
        with httpx.Client(base_url=info.url, timeout=30) as http:
            yield Running(settings, info, second.id, http)
    finally:
        lifecycle.stop(settings)
        assert info.haproxy_dir is not None
        assert process.marked(info.haproxy_dir) == [], "a process was left behind"
        assert not process.is_taken(info.host, info.port)
        left = {path.name for path in settings.home.iterdir()}
        assert not left & {state.STATE, process.TOKEN}


@dataclass
class Traffic:
    statuses: Counter[str] = field(default_factory=Counter)
    releases: Counter[str] = field(default_factory=Counter)
    ids: set[str] = field(default_factory=set)


@contextmanager
def traffic(running: Running, threads: int, texts: list[str]) -> Iterator[Traffic]:
    """Requests from several clients for as long as the block lasts."""
    seen, over, lock = Traffic(), threading.Event(), threading.Lock()

    def send() -> None:
        with httpx.Client(base_url=running.info.url, timeout=30) as http:
            while not over.is_set():
                try:
                    response = http.post("/v1/classify", json={"texts": texts})
                    answers = response.json()["answers"] if response.is_success else []
                    kind = str(response.status_code)
                except httpx.HTTPError as error:
                    answers, kind = [], repr(error)
                with lock:
                    seen.statuses[kind] += 1
                    seen.releases.update(answer["release"] for answer in answers)
                    seen.ids.update(answer["id"] for answer in answers)

    workers = [threading.Thread(target=send) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield seen
    finally:
        over.set()
        for worker in workers:
            worker.join()


def records(running: Running) -> dict[str, AuditRecord]:
    found = read(running.settings.audit_dir)
    return {record.id: record for record in found if isinstance(record, AuditRecord)}


def test_easy_stays_hard_goes_and_both_are_right(running: Running) -> None:
    easy, hard = running.classify(EASY, HARD)
    assert (easy["route"], easy["reason"], easy["label"]) == ("edge", "trusted", "negative")
    assert (hard["route"], hard["reason"], hard["label"]) == ("cloud", "escalated", "negative")
    assert hard["cost_usd"] > easy["cost_usd"] > 0
    assert easy["release"] == running.info.release


def test_explain_and_route_only(running: Running) -> None:
    explanation = running.classify(HARD, explain=True)[0]["explanation"]
    assert explanation["trust"] < explanation["threshold"] == 0.9
    assert abs(sum(explanation["probabilities"].values()) - 1) < 1e-9
    preview = running.classify(HARD, route_only=True)[0]
    assert (preview["route"], preview["label"]) == ("cloud", None)
    assert preview["id"] not in records(running)


def test_personal_data_stays_at_the_edge(running: Running) -> None:
    answer = running.classify(PINNED)[0]
    assert (answer["route"], answer["reason"]) == ("edge", "pii_pinned")


def test_a_cloud_that_answers_nan_degrades_that_message_only(running: Running) -> None:
    bad, good = running.classify(f"{POISON} {message('positive', hard=True)}", HARD)
    assert (bad["degraded"], bad["reason"], bad["route"]) == (True, "cloud_failed", "edge")
    assert (good["degraded"], good["route"]) == (False, "cloud")


def test_every_answer_is_in_the_audit_log_without_its_text(running: Running) -> None:
    answers = running.classify(EASY, HARD, PINNED)
    found = records(running)
    for answer in answers:
        record = found[answer["id"]]
        assert (record.route, record.reason) == (answer["route"], answer["reason"])
    log = b"".join(path.read_bytes() for path in running.settings.audit_dir.glob("*.jsonl"))
    assert b"jo@example.com" not in log
    assert HARD.encode() not in log


def test_feedback_reaches_the_log_and_the_monitor(running: Running) -> None:
    answer = running.classify(EASY)[0]
    body = {"id": answer["id"], "label": answer["label"]}
    assert running.http.post("/v1/feedback", json=body).json() == {"accepted": True}
    given = [one for one in read(running.settings.audit_dir) if isinstance(one, FeedbackRecord)]
    assert (given[-1].id, given[-1].label) == (answer["id"], answer["label"])
    assert wait_for(
        lambda: running.http.get("/v1/stats").json()["accuracy"]["labelled"] >= 1, within_s=10
    )


def test_the_figures_follow_the_answers(running: Running) -> None:
    before = running.http.get("/v1/stats").json()["messages_total"]
    running.classify(*[EASY] * 7)
    assert wait_for(
        lambda: running.http.get("/v1/stats").json()["messages_total"] >= before + 7, within_s=10
    )
    metrics = running.http.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    assert 'firstline_messages_total{reason="trusted"}' in metrics.text
    assert running.http.get("/v1/report").json()["stats"]["messages"] > 0


def test_it_says_what_it_is_and_that_it_is_ready(running: Running) -> None:
    assert running.http.get("/healthz").status_code == 200
    assert running.http.get("/readyz").json() == {"status": "ready"}
    release = running.http.get("/v1/release").json()
    assert release["id"] == running.info.release
    assert release["certificate"]["promises"]["risk"]["limit"] == 0.01
    assert release["policy"]["bundles"] == release["bundles"]
    assert "/v1/classify" in running.http.get("/docs").text


def test_a_job_is_scored_beside_the_service_and_removed(running: Running) -> None:
    made = running.http.post("/v1/jobs", json={"texts": [EASY, " ", HARD, PINNED]})
    assert made.status_code == 202, made.text
    path = f"/v1/jobs/{made.json()['id']}"

    def state() -> str:
        return str(running.http.get(path).json()["state"])

    assert wait_for(lambda: state() in {"done", "failed"}, within_s=90)
    job = running.http.get(path).json()
    assert (job["state"], job["rows_done"], job["release"]) == ("done", 4, running.info.release)
    lines = running.http.get(job["results"]).text.splitlines()
    found = [json.loads(line) for line in lines]
    assert [row.get("route") for row in found] == ["edge", None, "cloud", "edge"]
    assert found[3]["reason"] == "pii_pinned"
    assert running.classify(EASY)[0]["route"] == "edge"
    assert running.http.delete(path).status_code == 204
    assert running.http.get(path).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/v1/classify", b"{", 400),
        ("POST", "/v1/classify", b'{"texts": []}', 422),
        ("POST", "/v1/classify", b'{"texts": [1]}', 422),
        ("POST", "/v1/classify", b'{"texts": [" "]}', 422),
        ("POST", "/v1/classify", b'{"texts": ["' + b"a" * 10_001 + b'"]}', 422),
        ("POST", "/v1/classify", b"a" * (17 << 20), 413),
        ("POST", "/v1/feedback", b'{"id": "x", "label": "negative"}', 422),
        ("GET", "/v1/classify", None, 405),
        ("GET", "/nothing", None, 404),
    ],
)
def test_bad_input_has_one_shape_through_the_proxy(
    running: Running, method: str, path: str, content: bytes | None, status: int
) -> None:
    response = running.http.request(
        method, path, content=content, headers={"content-type": "application/json"}
    )
    assert response.status_code == status
    ErrorOut.model_validate_json(response.content)


def test_heads_strange_hosts_and_long_headers_through_the_proxy(running: Running) -> None:
    http = running.http
    for path in ("/healthz", "/readyz", "/metrics", "/v2/health/live", "/nothing"):
        get, head = http.get(path), http.head(path)
        assert (head.status_code, head.content) == (get.status_code, b""), path
    for host in (f"localhost:{running.info.port}", "LOCALHOST", "[::1]"):
        assert http.get("/healthz", headers={"Host": host}).status_code == 200
    for headers, status in (({"Host": "evil.example"}, 421), ({"X-Long": "a" * 20_000}, 431)):
        response = http.get("/healthz", headers=headers)
        assert response.status_code == status
        ErrorOut.model_validate_json(response.content)


def test_a_job_asked_for_twice_with_one_key_is_one_job(running: Running) -> None:
    headers = {"Idempotency-Key": "of-one-job"}
    made = [
        running.http.post("/v1/jobs", json={"texts": [EASY]}, headers=headers) for _ in range(2)
    ]
    assert [one.status_code for one in made] == [202, 202]
    assert made[0].json()["id"] == made[1].json()["id"]
    assert running.http.delete(f"/v1/jobs/{made[0].json()['id']}").status_code == 204


def test_a_second_start_and_a_taken_port_are_refused(running: Running, tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="already served"):
        lifecycle.start(running.settings, running.info.release, running.info.config)
    elsewhere = Settings(home=tmp_path)
    pair = make_pair(tmp_path / "bundles")
    release = make_release(elsewhere, pair.edge, pair.cloud)
    with pytest.raises(ServiceError, match=f"Port {running.info.port} "):
        lifecycle.start(elsewhere, release.id, running.info.config)
    assert not (tmp_path / state.STATE).exists()


def test_a_second_start_beside_one_that_is_under_way_is_refused_and_stop_ends_the_first(
    running: Running, tmp_path: Path
) -> None:
    """The second deleted the first one's token; `stop` found nothing, and then it ran."""
    home = Settings(home=tmp_path / "home")
    pair = make_pair(tmp_path / "bundles")
    release = make_release(home, pair.edge, pair.cloud)
    config = ServeConfig(port=free_port(), **CONFIG)
    ended: list[str] = []

    def start() -> None:
        try:
            lifecycle.start(home, release.id, config)
        except ServiceError as error:
            ended.append(str(error))

    first = threading.Thread(target=start)
    first.start()
    try:
        assert wait_for(lambda: lifecycle.status(home).starting, 10)
        with pytest.raises(ServiceError, match="is being started"):
            lifecycle.start(home, release.id, config)
        assert wait_for(lambda: (home.home / process.TOKEN).exists(), 30), ended
    finally:
        was_there = lifecycle.stop(home)
    assert was_there
    first.join(60)
    assert not first.is_alive()
    assert "ended before the service answered" in ended[0]
    assert not lifecycle.status(home).running
    left = {path.name for path in home.home.iterdir()}
    assert not left & {state.STATE, process.TOKEN}
    assert not process.is_taken(config.host, config.port)


def test_haproxy_listens_on_loopback_only_and_bounds_what_waits(running: Running) -> None:
    assert running.info.haproxy_dir is not None
    proxies = [
        psutil.Process(pid)
        for pid in process.marked(running.info.haproxy_dir)
        if psutil.Process(pid).name() == "haproxy"
    ]
    listening = {
        one.laddr
        for process in proxies
        for one in process.net_connections("inet")
        if one.status == psutil.CONN_LISTEN
    }
    assert running.info.port in {address.port for address in listening}
    assert {address.ip for address in listening} == {"127.0.0.1"}, "its statistics too"
    (written,) = running.info.haproxy_dir.glob("*/haproxy.cfg")
    assert f"maxconn {MAX_PER_ROUTER}" in written.read_text()


def test_replicas_do_not_stand_back_for_their_clients(running: Running) -> None:
    assert running.info.haproxy_dir is not None
    marked = set(process.marked(running.info.haproxy_dir))
    seen = psutil.process_iter(["pid", "nice", "cmdline"])
    replicas = [
        process.info["nice"]
        for process in seen
        if process.info["pid"] in marked and "ServeReplica" in str(process.info["cmdline"])
    ]
    assert len(replicas) >= 3, "a router, an edge and a cloud"
    assert set(replicas) == {psutil.Process().nice()}


def test_an_audit_folder_that_is_gone_is_told_within_ten_seconds_and_so_is_its_cure(
    running: Running,
) -> None:
    def told() -> str:
        return running.http.get("/readyz").text

    def alerts() -> set[str]:
        return {alert["name"] for alert in running.http.get("/v1/report").json()["alerts"]}

    def refused() -> int:
        text = running.http.get("/metrics").text
        lines = [line for line in text.splitlines() if 'code="audit_failed"' in line]
        return sum(int(float(line.split()[-1])) for line in lines)

    audit, before = running.settings.audit_dir, refused()
    audit.rename(audit.with_name("away"))
    try:
        for _ in range(6):
            response = running.http.post("/v1/classify", json={"texts": [EASY]})
            assert (response.status_code, response.json()["error"]["code"]) == (503, "audit_failed")
        assert wait_for(lambda: "No such file or directory" in told(), 10)
        assert wait_for(lambda: alerts() >= {"not_ready", "refused"}, 10)
        assert running.http.get("/v1/report").json()["health"]["score"] < 50
        assert wait_for(lambda: refused() == before + 6, 10)
        assert any("No such file" in one for one in lifecycle.status(running.settings).problems)
    finally:
        audit.with_name("away").rename(audit)
    assert running.classify(EASY)
    assert wait_for(lambda: "ready" in running.http.get("/readyz").json().get("status", ""), 10)
    assert wait_for(lambda: "not_ready" not in alerts(), 10)
    assert lifecycle.status(running.settings).ready


def test_a_release_is_promoted_and_rolled_back_without_a_failed_request(running: Running) -> None:
    with traffic(running, 2, [EASY]) as seen:
        promoted = releases.promote(running.settings, running.other_release)
        time.sleep(0.5)
        back = releases.promote(running.settings, running.info.release)
    assert promoted.previous == running.info.release
    assert (back.release, back.previous) == (running.info.release, running.other_release)
    assert set(seen.statuses) == {"200"}, seen.statuses
    assert set(seen.releases) == {running.info.release, running.other_release}
    assert seen.ids <= set(records(running))
    state = lifecycle.status(running.settings)
    assert state.ready
    assert set(state.applications.values()) == {"RUNNING"}
    # The next service that this process moves may give its driver the same job id.
    assert is_forgotten()


def test_an_edge_replica_is_added_under_load_and_removed_after(running: Running) -> None:
    title = f"{running.info.release}:edge"
    assert wait_for(lambda: len(running.pids(title)) == 1)
    with traffic(running, 8, [EASY] * 64) as seen:
        assert wait_for(lambda: len(running.pids(title)) == 2)
    assert set(seen.statuses) == {"200"}, seen.statuses
    assert wait_for(lambda: len(running.pids(title)) == 1)


def test_an_edge_replica_that_dies_costs_no_request(running: Running) -> None:
    title = f"{running.info.release}:edge"
    with traffic(running, 2, [EASY]) as seen:
        time.sleep(1)
        dead = running.pids(title)
        os.kill(dead[0], signal.SIGKILL)
        assert wait_for(lambda: bool(set(running.pids(title)) - set(dead)))
        time.sleep(2)
    assert set(seen.statuses) == {"200"}, seen.statuses
    assert seen.ids <= set(records(running))


def test_a_dead_cloud_degrades_and_comes_back(running: Running) -> None:
    for pid in running.pids(f"{running.info.release}:cloud"):
        os.kill(pid, signal.SIGKILL)
    hard, pinned = running.classify(HARD, PINNED)
    assert (hard["degraded"], hard["reason"], hard["route"]) == (True, "cloud_failed", "edge")
    assert (pinned["degraded"], pinned["reason"]) == (False, "pii_pinned")
    assert wait_for(lambda: running.classify(HARD)[0]["route"] == "cloud")


def test_a_killed_haproxy_has_a_stand_in_until_serve_has_another(running: Running) -> None:
    serves, stand_in = r"^\S*haproxy .*/haproxy\.cfg", r"^\S*haproxy .*/stand-in\.cfg"

    def answered() -> bool:
        with suppress(httpx.TransportError):
            return bool(running.classify(EASY))
        return False

    for pid in running.pids(serves):
        os.kill(pid, signal.SIGKILL)
    assert wait_for(answered, 3.0)
    assert running.pids(stand_in)
    assert not running.pids(serves)
    assert wait_for(lambda: bool(running.pids(serves)))
    # It ends what it has begun: our connection is kept until we have asked once more.
    assert wait_for(lambda: answered() and not running.pids(stand_in))
    assert answered()


def test_a_keeper_that_is_killed_leaves_nothing_that_stop_does_not_find(running: Running) -> None:
    """The last one: it ends the module's service."""
    settings, info = running.settings, running.info
    assert info.keeper_pid is not None
    assert info.haproxy_dir is not None
    os.kill(info.keeper_pid, signal.SIGKILL)
    # Ray ends a process that joins a cluster in the moment of its death, and this one is pytest.
    assert wait_for(lambda: not state.is_alive(info))
    assert wait_for(lambda: not lifecycle.status(settings).running)
    assert lifecycle.stop(settings)
    assert process.marked(info.haproxy_dir) == []
    assert not info.haproxy_dir.exists()
    assert not process.is_taken(info.host, info.port)
    assert not (settings.home / process.TOKEN).exists()
    assert not lifecycle.stop(settings), "there is nothing left to stop"
