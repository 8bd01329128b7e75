"""Canary, shadow, promotion and rollback as a user sees them: a real service, real HTTP.

One service on two releases of one toy pair: the second escalates more.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from cluster.audit.read import read
from cluster.audit.records import AuditRecord
from cluster.errors import ReleaseError
from cluster.settings import Settings
from serve_app.cascade.traffic import Routed
from serve_app.deploy.config import CloudConfig, ServeConfig, TierConfig
from serve_app.deploy.names import ROUTER_APP, release_app
from serve_app.service import lifecycle, releases
from serve_app.service.state import ServiceInfo
from tests.integration.test_serve import traffic
from tests.support.serving import make_pair, make_release
from tests.support.toys import message
from tests.support.waiting import free_port, wait_for

pytestmark = pytest.mark.timeout(280)

EASY = message("negative")
HARD = message("negative", hard=True)
SHARE = 0.3
USERS = [f"user-{i}" for i in range(200)]
TIER: dict[str, Any] = {"max_replicas": 1, "cpus": 0.25, "timeout_s": 20}


@dataclass(frozen=True)
class Running:
    settings: Settings
    info: ServiceInfo
    second: str
    http: httpx.Client

    @property
    def first(self) -> str:
        return self.info.release

    def ask(self, user: str | None = None, text: str = EASY) -> dict[str, Any]:
        body = {"texts": [text], **({"user_id": user} if user is not None else {})}
        response = self.http.post("/v1/classify", json=body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()["answers"][0]
        return answer

    def by_user(self) -> dict[str, str]:
        return {user: self.ask(user)["release"] for user in USERS}

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get("/v1/report").json()
        return found

    def applications(self) -> set[str]:
        return set(lifecycle.status(self.settings).applications)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("canary")
    settings = Settings(home=folder / "home")
    pair = make_pair(folder / "bundles")
    first = make_release(settings, pair.edge, pair.cloud)
    second = make_release(settings, pair.edge, pair.cloud, threshold=0.8)
    edge, cloud = TierConfig(**TIER), CloudConfig(**TIER)
    config = ServeConfig(port=free_port(), routers=2, router_cpus=0.25, edge=edge, cloud=cloud)
    info = lifecycle.start(settings, first.id, config)
    try:
        with httpx.Client(base_url=info.url, timeout=30) as http:
            yield Running(settings, info, second.id, http)
    finally:
        lifecycle.stop(settings)


@pytest.fixture(autouse=True)
def alone(running: Running) -> None:
    """Every test begins with the first release answering all."""
    releases.route(running.settings, Routed(releases={running.first: 1.0}))


def test_a_canary_answers_its_users_and_always_the_same(running: Running) -> None:
    releases.canary(running.settings, running.second, SHARE)
    first_time = running.by_user()
    assert running.by_user() == first_time, "two routers, and one answer to who gets what"
    share = list(first_time.values()).count(running.second) / len(USERS)
    assert share == pytest.approx(SHARE, abs=0.15), "4.6 standard errors"
    releases.canary(running.settings, running.second, 0.6)
    later = running.by_user()
    gone = [u for u in USERS if (first_time[u], later[u]) == (running.second, running.first)]
    assert gone == []


def test_a_canary_is_compared_in_the_report(running: Running) -> None:
    releases.canary(running.settings, running.second, 0.5)
    for user in USERS[:40]:
        answer = running.ask(user)
        body = {"id": answer["id"], "label": answer["label"]}
        assert running.http.post("/v1/feedback", json=body).status_code == 200

    def compared() -> bool:
        found = running.report()["comparison"]
        return bool(found) and found[0]["challenger"]["accuracy"]["labelled"] > 5

    assert wait_for(compared, within_s=10)
    [found] = running.report()["comparison"]
    assert found["champion"]["release"] == running.first
    assert found["challenger"]["release"] == running.second
    assert "cannot be told" in found["summary"]
    assert set(running.report()["stats"]["by_release"]) >= {running.first, running.second}


def test_from_canary_to_champion_and_back_without_a_failed_request(running: Running) -> None:
    with traffic(running, 2, [EASY]) as seen:  # type: ignore[arg-type]
        releases.canary(running.settings, running.second, SHARE)
        promoted = releases.promote(running.settings, running.second)
        back = releases.rollback(running.settings)
    assert set(seen.statuses) == {"200"}, seen.statuses
    assert set(seen.releases) == {running.first, running.second}
    assert promoted.routed == Routed(releases={running.second: 1.0})
    assert (promoted.release, promoted.previous) == (running.second, running.first)
    assert (back.release, back.previous) == (running.first, running.second)
    assert {running.ask(user)["release"] for user in USERS[:20]} == {running.first}
    kept = {ROUTER_APP, release_app(running.first), release_app(running.second)}
    assert wait_for(lambda: running.applications() == kept), "the way back stays up"


def test_rolling_back_a_canary_leaves_the_champion(running: Running) -> None:
    releases.canary(running.settings, running.second, SHARE)
    back = releases.rollback(running.settings)
    assert (back.release, back.routed.releases) == (running.first, {running.first: 1.0})


def test_a_shadow_sees_everything_and_answers_nothing(running: Running) -> None:
    releases.shadow(running.settings, running.second)
    before = running.report()["stats"]
    answers = [running.ask(user, text) for user in USERS[:10] for text in (EASY, HARD)]
    assert {answer["release"] for answer in answers} == {running.first}

    def watched() -> bool:
        shadows = running.report()["stats"]["shadows"]
        return running.second in shadows and shadows[running.second]["agreement"]["compared"] >= 20

    assert wait_for(watched, within_s=15)
    after = running.report()["stats"]
    assert after["shadows"][running.second]["agreement"]["share"] == 1.0, "one pair of models"
    assert after["messages_total"] - before["messages_total"] == 20
    ids = {answer["id"] for answer in answers}
    logged = [one for one in read(running.settings.audit_dir) if isinstance(one, AuditRecord)]
    seen = [one for one in logged if one.shadow_of in ids]
    assert {one.release for one in seen} == {running.second}
    assert {one.shadow_of for one in seen} == ids
    off = releases.shadow(running.settings, None)
    assert off.routed.shadow == ()


def test_a_release_that_does_not_come_up_moves_nothing(running: Running) -> None:
    before = lifecycle.status(running.settings).info
    with pytest.raises(ReleaseError, match="no release 'r-unknown'"):
        releases.canary(running.settings, "r-unknown", SHARE)
    assert lifecycle.status(running.settings).info == before
    assert running.ask("anybody")["release"] == running.first
