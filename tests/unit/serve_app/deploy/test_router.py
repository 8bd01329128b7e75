"""The router's replica without Ray: real bundles, tiers, cards, audit log and monitor, over HTTP.

What Ray would carry to another process is called in this one: a handle here is the object itself.
"""

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from ray import serve

from cluster.audit.read import read
from cluster.audit.records import AuditRecord, FeedbackRecord
from cluster.errors import ReleaseError
from cluster.releases import Release
from cluster.settings import load_settings
from serve_app.cascade.traffic import Routed, only, split
from serve_app.deploy.app import Card, describe
from serve_app.deploy.config import RouterArgs
from serve_app.deploy.names import CARD, release_app
from serve_app.deploy.router import Router
from serve_app.monitor.actor import MonitorActor
from serve_app.monitor.windows import Compared
from serve_app.tiers.replica import Tier
from tests.support.http_service import check_error, client
from tests.support.serving import Pair, make_pair, make_release
from tests.support.toys import message

pytestmark = pytest.mark.anyio

EASY = message("negative")
HARD = message("negative", hard=True)
USERS = [f"user-{number}" for number in range(40)]


class _Said:
    """An answer that is there at once, to be awaited like a Ray object."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __await__(self) -> Any:
        yield from ()
        return self._value


class Handle:
    """`handle.method.remote(...)`, as of a Serve handle or an actor, on an object of this process.

    Before a call `first` is called with the method's name and may raise, or wait.
    """

    def __init__(self, target: Any) -> None:
        self.target = target
        self.first: Callable[[str], Any] = lambda name: None
        self.calls: list[str] = []

    def options(self, **_: Any) -> "Handle":
        return self

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.target, name)

        async def slowly(*given: Any) -> Any:
            if inspect.isawaitable(waits := self.first(name)):
                await waits
            return await method(*given)

        def remote(*given: Any) -> Any:
            self.calls.append(name)
            if inspect.iscoroutinefunction(method):
                return slowly(*given)
            self.first(name)
            return _Said(method(*given))

        return SimpleNamespace(remote=remote)


class Replica(Router):
    """Serve awaits `__del__` when a replica has drained, and so do these tests; Python must not
    call it once more."""

    drained = Router.__del__

    def __del__(self) -> None:  # type: ignore[override]
        """Nothing is left to do."""


@dataclass
class Cluster:
    """The applications of a home, by their names, and the one monitor."""

    home: Path
    pair: Pair
    applications: dict[str, dict[str, Handle]] = field(default_factory=dict)
    monitor: Handle | None = None
    one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def handle(self, deployment: str, app_name: str, **_: Any) -> Handle:
        return self.applications[app_name][deployment]

    def monitor_of(self, audit_dir: Path, *prices: Any) -> Handle:
        with self.one_at_a_time:  # as Ray's get_if_exists: several threads ask
            if self.monitor is None:
                self.monitor = Handle(MonitorActor(audit_dir, *prices))
            return self.monitor

    def add(self, threshold: float = 0.9) -> Release:
        """A release whose application is up."""
        made = make_release(load_settings(), self.pair.edge, self.pair.cloud, threshold=threshold)
        edge, cloud = (
            Handle(Tier(str(bundle.path), bundle.sha256, 1))
            for bundle in (self.pair.edge, self.pair.cloud)
        )
        card: Any = Card(describe(made), edge, cloud)  # type: ignore[arg-type]
        self.applications[release_app(made.id)] = {
            CARD: Handle(card), "edge": edge, "cloud": cloud,
        }  # fmt: skip
        return made

    def of(self, release: Release, deployment: str) -> Handle:
        return self.applications[release_app(release.id)][deployment]

    @asynccontextmanager
    async def router(
        self, routed: Routed | None = None, **args: Any
    ) -> AsyncIterator[tuple[Replica, httpx.AsyncClient]]:
        """A replica as Serve makes it, routed as told, and a client of its HTTP."""
        replica = Replica(RouterArgs(home=self.home, **args))
        try:
            if routed is not None:
                await replica.reconfigure(routed.user_config())
            async with client(replica.__serve_build_asgi_app__()) as http:
                yield replica, http
        finally:
            await replica.drained()

    def records(self) -> list[AuditRecord]:
        found = read(load_settings().audit_dir)
        return [one for one in found if isinstance(one, AuditRecord)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def cluster(home: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster(home, pair)
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="replica"))
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(serve, "get_deployment_handle", made.handle)
    monkeypatch.setattr("serve_app.monitor.client.get_or_create", made.monitor_of)
    return made


async def ask(
    http: httpx.AsyncClient, *texts: str, user: str | None = None, **flags: bool
) -> list[dict[str, Any]]:
    body = {"texts": texts, **flags, **({} if user is None else {"user_id": user})}
    response = await http.post("/v1/classify", json=body)
    assert response.status_code == 200, response.text
    answers: list[dict[str, Any]] = response.json()["answers"]
    return answers


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not what():
            await asyncio.sleep(0.005)


async def test_a_request_goes_through_both_tiers_into_the_audit_log(cluster: Cluster) -> None:
    release = cluster.add()
    async with cluster.router(only(release.id)) as (_, http):
        easy, hard = await ask(http, EASY, HARD)
        assert (easy["route"], easy["reason"], easy["label"]) == ("edge", "trusted", "negative")
        assert (hard["route"], hard["reason"], hard["label"]) == ("cloud", "escalated", "negative")
        assert easy["release"] == hard["release"] == release.id
        assert {one.id: one.route for one in cluster.records()} == {
            easy["id"]: "edge", hard["id"]: "cloud",
        }  # fmt: skip
        (preview,) = await ask(http, HARD, route_only=True)
        assert (preview["route"], preview["label"]) == ("cloud", None)
        assert len(cluster.records()) == 2


async def test_before_it_is_routed_it_lives_and_is_not_ready(cluster: Cluster) -> None:
    release = cluster.add()
    async with cluster.router() as (replica, http):
        assert (await http.get("/healthz")).status_code == 200
        told = check_error(await http.get("/readyz"), 503, "not_ready")
        assert told["details"][0]["problem"] == "no release is routed yet"
        body = {"texts": [EASY]}
        check_error(await http.post("/v1/classify", json=body), 503, "unavailable")
        check_error(await http.get("/v1/release"), 503, "unavailable")
        await replica.reconfigure(only(release.id).user_config())
        assert (await http.get("/readyz")).json() == {"status": "ready"}
        assert (await ask(http, EASY))[0]["release"] == release.id


async def test_a_tier_with_another_bundle_or_without_a_word_is_not_ready(cluster: Cluster) -> None:
    release = cluster.add()
    async with cluster.router(only(release.id)) as (replica, http):

        async def missing() -> str:
            """Asked anew: what was found is kept for half a second, or until it is routed again."""
            await replica.reconfigure(only(release.id).user_config())
            told = check_error(await http.get("/readyz"), 503, "not_ready")
            (problem,) = told["details"]
            assert release.id in problem["problem"]
            return str(problem["problem"])

        card, cloud = cluster.of(release, CARD), cluster.of(release, "cloud")
        held, cloud.target = cloud.target, cluster.of(release, "edge").target
        assert "the cloud holds another bundle" in await missing()
        cloud.target = held

        def gone(name: str) -> None:
            raise ConnectionError("gone")

        card.first = lambda name: gone(name) if name == "ready" else None
        assert "does not answer" in await missing()


async def test_whoever_asks_and_however_often_the_tiers_are_asked_seldom(cluster: Cluster) -> None:
    release = cluster.add()
    async with cluster.router(only(release.id)) as (_, http):
        asked = await asyncio.gather(*(http.get("/readyz") for _ in range(20)))
        assert {one.status_code for one in asked} == {200}
        assert cluster.of(release, CARD).calls.count("ready") <= 2


async def test_a_request_finishes_on_the_release_that_it_began_with(cluster: Cluster) -> None:
    first, second = cluster.add(), cluster.add(threshold=0.8)
    go = asyncio.Event()
    cluster.of(first, "edge").first = lambda name: go.wait() if name == "predict" else None
    async with cluster.router(only(first.id)) as (replica, http):
        begun = asyncio.create_task(ask(http, EASY))
        await until(lambda: "predict" in cluster.of(first, "edge").calls)
        await replica.reconfigure(only(second.id).user_config())
        assert (await ask(http, EASY))[0]["release"] == second.id
        go.set()
        assert (await begun)[0]["release"] == first.id
        await replica.reconfigure(only(first.id).user_config())
        assert (await ask(http, EASY))[0]["release"] == first.id


async def test_a_release_that_cannot_be_reached_leaves_what_answers(cluster: Cluster) -> None:
    release = cluster.add()
    broken = cluster.add(threshold=0.8)

    def fails(name: str) -> None:
        raise ReleaseError("its card does not come up")

    cluster.of(broken, CARD).first = fails
    async with cluster.router(only(release.id)) as (replica, http):
        with pytest.raises(ReleaseError):
            await replica.reconfigure(split(release.id, broken.id, 0.3).user_config())
        assert (await http.get("/readyz")).status_code == 200
        assert {(await ask(http, EASY, user=user))[0]["release"] for user in USERS} == {release.id}


async def test_a_canary_has_its_users_and_a_release_that_stays_is_not_asked_again(
    cluster: Cluster,
) -> None:
    first, second = cluster.add(), cluster.add(threshold=0.8)
    async with cluster.router(only(first.id)) as (replica, http):
        await replica.reconfigure(split(first.id, second.id, 0.3).user_config())
        seen = [{u: (await ask(http, EASY, user=u))[0]["release"] for u in USERS} for _ in "ab"]
        assert seen[0] == seen[1]
        assert set(seen[0].values()) == {first.id, second.id}
        shown = (await http.get("/v1/release")).json()
        assert shown["id"] == first.id
        assert shown["routed"]["weights"] == {first.id: 0.7, second.id: 0.3}
        assert cluster.of(first, CARD).calls.count("describe") == 1


async def test_a_canary_above_one_half_is_not_the_champion(cluster: Cluster) -> None:
    """It was the larger weight: new jobs, `/v1/release` and the comparison followed the canary."""
    first, second = cluster.add(), cluster.add(threshold=0.8)
    async with cluster.router(split(first.id, second.id, 0.9)) as (replica, http):
        assert (await http.get("/v1/release")).json()["id"] == first.id
        assert replica._champion_id() == first.id, "of new jobs"
        assert replica._routed().compared == Compared(first.id, (second.id,))


async def test_a_shadow_sees_what_was_answered_and_never_troubles_it(cluster: Cluster) -> None:
    first, second = cluster.add(), cluster.add(threshold=0.8)
    routed = only(first.id).model_copy(update={"shadow": (second.id,)})
    async with cluster.router(routed) as (_, http):
        answered = await ask(http, EASY, HARD)
        await ask(http, HARD, route_only=True)  # nobody's answer
        assert {one["release"] for one in answered} == {first.id}
        ids = {one["id"] for one in answered}
        await until(lambda: len(cluster.records()) == 4)
        shadowed = [one for one in cluster.records() if one.shadow_of is not None]
        assert {one.shadow_of for one in shadowed} == ids
        assert {one.release for one in shadowed} == {second.id}

        def fails(name: str) -> None:
            raise RuntimeError("the shadow broke")

        cluster.of(second, "edge").first = fails
        cluster.of(second, "cloud").first = fails
        assert (await ask(http, HARD))[0]["degraded"] is False


async def test_shadows_that_cannot_follow_miss_messages_and_hold_nothing_up(
    cluster: Cluster,
) -> None:
    first, second = cluster.add(), cluster.add(threshold=0.8)
    routed = only(first.id).model_copy(update={"shadow": (second.id,)})
    go = asyncio.Event()
    cluster.of(second, "edge").first = lambda name: go.wait() if name == "predict" else None
    async with cluster.router(routed) as (_, http):
        for number in range(30):
            assert (await ask(http, f"{EASY} {number}"))[0]["release"] == first.id
        go.set()
        await until(lambda: any(one.shadow_of for one in cluster.records()))
        await asyncio.sleep(0.1)
        assert 0 < sum(one.shadow_of is not None for one in cluster.records()) < 30


async def test_feedback_is_written_down_and_reaches_the_monitor(cluster: Cluster) -> None:
    release = cluster.add()
    async with cluster.router(only(release.id)) as (_, http):
        (answer,) = await ask(http, EASY)
        told = {"id": answer["id"], "label": "positive"}
        assert (await http.post("/v1/feedback", json=told)).json() == {"accepted": True}
        unknown = {"id": answer["id"], "label": "nothing of ours"}
        check_error(await http.post("/v1/feedback", json=unknown), 422, "unknown_label")
        (given,) = (
            one for one in read(load_settings().audit_dir) if isinstance(one, FeedbackRecord)
        )
        assert (given.id, given.label) == (answer["id"], "positive")

        async def labelled() -> int:
            stats = (await http.get("/v1/stats")).json()
            return int(stats["accuracy"]["labelled"])

        async with asyncio.timeout(10):
            while await labelled() < 1:
                await asyncio.sleep(0.02)
        assert (await http.get("/v1/report")).json()["stats"]["messages"] == 1
        assert b"firstline_messages_total" in (await http.get("/metrics")).content


async def test_what_is_on_its_way_when_it_drains_gets_there(cluster: Cluster) -> None:
    release = cluster.add()
    async with cluster.router(only(release.id)) as (_, http):
        await ask(http, *[f"{EASY} {number}" for number in range(20)])
    assert cluster.monitor is not None
    assert cluster.monitor.target.snapshot().messages == 20
    assert len(cluster.records()) == 20


async def test_a_circuit_that_opens_is_told_to_the_monitor_once(cluster: Cluster) -> None:
    release = cluster.add()

    def fails(name: str) -> None:
        raise RuntimeError("no cloud today")

    cluster.of(release, "cloud").first = fails
    async with cluster.router(only(release.id)) as (_, http):
        for number in range(8):  # five failures in a row open it
            (answer,) = await ask(http, f"{HARD} {number}")
            assert (answer["degraded"], answer["route"]) == (True, "edge")
        assert cluster.monitor is not None
        monitor = cluster.monitor
        await until(lambda: "note_state" in monitor.calls)
        assert monitor.calls.count("note_state") == 1
        assert (await http.get("/v1/stats")).json()["states"] == {release.id: "open"}


async def test_without_a_monitor_there_are_answers_and_no_figures(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(*_: Any) -> Sequence[Any]:
        raise ConnectionError("no monitor")

    monkeypatch.setattr("serve_app.monitor.client.get_or_create", nobody)
    release = cluster.add()
    async with cluster.router(only(release.id)) as (_, http):
        assert (await ask(http, EASY))[0]["route"] == "edge"
        for path in ("/v1/stats", "/v1/report", "/metrics"):
            check_error(await http.get(path), 503, "unavailable")
        monkeypatch.setattr("serve_app.monitor.client.get_or_create", cluster.monitor_of)
    assert cluster.monitor is not None
    assert cluster.monitor.target.snapshot().messages == 1, "kept until there was one again"


# ---- what keeps it from answering


async def said_by_readyz(http: httpx.AsyncClient, status: int) -> str:
    """Asked until it is so; within ten seconds it has to be."""
    async with asyncio.timeout(10):
        while (found := await http.get("/readyz")).status_code != status:
            await asyncio.sleep(0.05)
    return found.text


async def alerts(http: httpx.AsyncClient) -> set[str]:
    return {alert["name"] for alert in (await http.get("/v1/report")).json()["alerts"]}


async def test_an_audit_folder_that_is_gone_is_seen_by_all_who_look_and_so_is_its_cure(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every request was refused, and `/readyz` 200, health 100, `/metrics` silent."""
    monkeypatch.setattr("serve_app.deploy.router._WATCH_EVERY_S", 0.05)
    release, audit = cluster.add(), load_settings().audit_dir
    async with cluster.router(only(release.id)) as (_, http):
        await ask(http, EASY)
        audit.rename(audit.with_name("away"))
        assert "No such file or directory" in await said_by_readyz(http, 503)
        for number in range(6):
            body = {"texts": [f"{HARD} {number}"]}
            check_error(await http.post("/v1/classify", json=body), 503, "audit_failed")
        async with asyncio.timeout(10):
            while await alerts(http) < {"not_ready", "refused"}:
                await asyncio.sleep(0.05)
        report = (await http.get("/v1/report")).json()
        assert report["health"]["status"] == "critical"
        assert any("No such file" in alert["message"] for alert in report["alerts"])
        metrics = (await http.get("/metrics")).text
        counted = f'code="audit_failed",release="{release.id}",route="/v1/classify",status="503"'
        assert f"firstline_requests_total{{{counted}}} 6.0" in metrics
        assert not audit.exists(), "nobody makes it anew: it may be a disk that is away"

        audit.with_name("away").rename(audit)
        for number in range(2):  # what was asked in vain says so until something was not
            await ask(http, f"{EASY} {number}")
        assert await said_by_readyz(http, 200) == '{"status":"ready"}'
        async with asyncio.timeout(10):
            while "not_ready" in await alerts(http):
                await asyncio.sleep(0.05)


async def test_a_router_whose_tiers_answer_nothing_is_not_ready_until_one_does(
    cluster: Cluster,
) -> None:
    release = cluster.add()

    def fails(name: str) -> None:
        if name == "predict":
            raise RuntimeError("broken")

    tiers = [cluster.of(release, "edge"), cluster.of(release, "cloud")]
    async with cluster.router(only(release.id)) as (_, http):
        for tier in tiers:
            tier.first = fails
        for number in range(5):
            body = {"texts": [f"{EASY} {number}"]}
            check_error(await http.post("/v1/classify", json=body), 503, "no_answer")
        assert "no_answer" in await said_by_readyz(http, 503)
        for tier in tiers:
            tier.first = lambda name: None
        await ask(http, EASY)
        await said_by_readyz(http, 200)


async def test_without_a_monitor_it_says_so_and_after_a_while_is_not_ready(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(*_: Any) -> Sequence[Any]:
        raise ConnectionError("no monitor")

    monkeypatch.setattr("serve_app.deploy.router._WATCH_EVERY_S", 0.05)
    monkeypatch.setattr("serve_app.monitor.client.get_or_create", nobody)
    release = cluster.add()
    async with cluster.router(only(release.id)) as (_, http):
        async with asyncio.timeout(10):
            while "warnings" not in (found := (await http.get("/readyz")).json()):
                await asyncio.sleep(0.05)
        assert "the monitor has not answered" in found["warnings"][0]
        monkeypatch.setattr("serve_app.monitor.client._AWAY_S", 0.1)
        assert "the monitor has not answered" in await said_by_readyz(http, 503)
        assert (await ask(http, EASY))[0]["route"] == "edge", "answers go out as ever"
        monkeypatch.setattr("serve_app.monitor.client.get_or_create", cluster.monitor_of)
        await said_by_readyz(http, 200)


async def test_the_monitor_hears_what_the_certificate_lets_expect(cluster: Cluster) -> None:
    release = cluster.add()
    async with cluster.router(only(release.id)) as (replica, _):
        report = await replica._report()
        assert report.expected[release.id].edge_share == release.certificate["edge_share"]
        assert report.problems == ()


async def test_a_record_says_how_many_messages_its_request_had(cluster: Cluster) -> None:
    release = cluster.add()
    async with cluster.router(only(release.id)) as (_, http):
        await ask(http, EASY)
        await ask(http, *[f"{EASY} {number}" for number in range(7)])
    assert sorted(one.request_size for one in cluster.records()) == [1] + [7] * 7
