"""Admission as a client meets it: keys, scopes, rates and abuse rules over HTTP."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI

from cluster.errors import AuditError, ServiceError
from serve_app.access.abuse import BLOCK_S, RULES, SLOW_S, Abuse, AbuseRule
from serve_app.access.admission import OPEN_PATHS, Admission
from serve_app.access.hosts import Hosts
from serve_app.access.keys import ApiKey, Keys, KeyStore, Scope, new_key, now_utc
from serve_app.access.rate_limits import RateConfig, Rates
from serve_app.contracts import AbuseAction, AbuseEvent, AbuseKind, Caller
from serve_app.errors import EmptyTextsError, OverloadedError, UnansweredError
from serve_app.http.routes import create_api
from tests.support.http_service import SECRET, StubService, check_error, client, drive, post_scope

pytestmark = pytest.mark.anyio

ONE: dict[str, Any] = {"texts": ["a"]}
NONE: dict[str, Any] = {"texts": []}
QUICK = AbuseRule(allowed_share=0.0, leak_per_s=0.001, slow_at=3, block_at=6)
QUICK_GARBAGE = {**RULES, AbuseKind.GARBAGE: QUICK}
QUICK_FLOOD = {**RULES, AbuseKind.FLOOD: QUICK}


class Rig:
    """An application with keys, and a clock and a sleep of its own."""

    def __init__(
        self,
        path: Path,
        rate: RateConfig | None = None,
        rules: Mapping[AbuseKind, AbuseRule] = RULES,
    ) -> None:
        self.path = path
        self.now_s = now_utc().timestamp()
        self.slept: list[float] = []
        self.events: list[AbuseEvent] = []
        self.service = StubService()
        self._rate, self._rules = rate, rules
        self.hosts: Hosts | None = None
        self.store = KeyStore(path)

    def key(self, *scopes: Scope, **change: Any) -> dict[str, str]:
        """Adds one; the headers that show it."""
        made = datetime.fromtimestamp(self.now_s, now_utc().tzinfo)
        token, key = new_key("test", scopes or [Scope.CLASSIFY], now=made)
        self.store.add(key.model_copy(update=change))
        return {"Authorization": f"Bearer {token}"}

    def api(self) -> FastAPI:
        self.admission = Admission(
            Keys(self.path, clock=self.clock, now=self.clock),
            Rates(self._rate),
            Abuse(self.events.append, rules=self._rules),
            hosts=self.hosts,
            now=self.clock,
            sleep=self._sleep,
        )
        return create_api(self.service, admission=self.admission)

    def clock(self) -> float:
        return self.now_s

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def http(self) -> Any:
        return client(self.api())


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "keys.json")


def ids(rig: Rig) -> list[ApiKey]:
    return rig.store.list()


# ---- who -----------------------------------------------------------------------------------------


async def test_a_key_opens_by_either_header_and_is_the_caller(rig: Rig) -> None:
    headers = rig.key()
    token = headers["Authorization"].split()[1]
    async with rig.http() as http:
        for shown in (
            headers,
            {"authorization": f"bearer {token}"},
            {"X-API-Key": token},
            {"X-API-Key": token, "Authorization": "Bearer of-the-gateway"},
            {"X-API-Key": "", **headers},
            {"X-API-Key": " ", **headers},
            {"X-API-Key": "of-the-gateway", **headers},
            {"X-API-Key": token, "Authorization": ""},
        ):
            assert (await http.post("/v1/classify", json=ONE, headers=shown)).status_code == 200
    assert {caller.key for caller in rig.service.callers} == {ids(rig)[0].id}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer fl_000000000000_" + "0" * 64},
        {"Authorization": "Basic fl_x"},
        {"Authorization": SECRET},
        {"X-API-Key": SECRET},
        {"X-API-Key": "\u00e9".encode()},
        {"X-API-Key": ""},
        {"X-API-Key": SECRET, "Authorization": f"Bearer {SECRET}"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/classify"),
        ("POST", "/v1/feedback"),
        ("GET", "/v1/stats"),
        ("GET", "/metrics"),
        ("GET", "/v1/release"),
        ("GET", "/no/such/path"),
        ("DELETE", "/v1/classify"),
    ],
)
async def test_without_a_right_key_there_is_nothing_to_see(
    rig: Rig, method: str, path: str, headers: dict[str, Any]
) -> None:
    rig.key(*Scope)
    async with rig.http() as http:
        response = await http.request(method, path, headers=headers)
    check_error(response, 401, "unauthorized")
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert rig.service.callers == []


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/docs", "/openapi.json"])
async def test_probes_and_the_schema_are_open(rig: Rig, path: str) -> None:
    rig.key()
    assert path in OPEN_PATHS
    async with rig.http() as http:
        assert (await http.get(path)).status_code == 200


async def test_a_body_is_not_read_for_who_has_no_key(rig: Rig) -> None:
    rig.key()

    async def never() -> AsyncIterator[Any]:
        raise AssertionError("the body was read")
        yield

    sent = await drive(rig.api(), never(), post_scope())
    assert sent[0]["status"] == 401


async def test_an_expired_key_is_refused(rig: Rig) -> None:
    end = datetime.fromtimestamp(rig.now_s, now_utc().tzinfo) + timedelta(days=1)
    headers = rig.key(expires_at=end)
    async with rig.http() as http:
        assert (await http.post("/v1/classify", json=ONE, headers=headers)).status_code == 200
        rig.now_s = end.timestamp()
        response = await http.post("/v1/classify", json=ONE, headers=headers)
        check_error(response, 401, "unauthorized")


async def test_a_revoked_key_is_refused_within_a_second_and_a_new_one_let_in(rig: Rig) -> None:
    headers = rig.key()
    async with rig.http() as http:
        assert (await http.post("/v1/classify", json=ONE, headers=headers)).status_code == 200
        rig.store.revoke(ids(rig)[0].id)
        new = rig.key()
        rig.now_s += 1.0
        assert (await http.post("/v1/classify", json=ONE, headers=headers)).status_code == 401
        assert (await http.post("/v1/classify", json=ONE, headers=new)).status_code == 200


async def test_where_no_key_was_ever_set_everybody_is_anonymous(rig: Rig) -> None:
    async with rig.http() as http:
        response = await http.post("/v1/classify", json=ONE)
        assert (await http.get("/v1/stats")).status_code == 200
    assert response.status_code == 200
    assert "x-ratelimit-limit" not in response.headers
    assert rig.service.callers == [Caller("anonymous")]


# ---- by what name --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/classify"), ("GET", "/v1/stats"), ("GET", "/healthz"), ("GET", "/docs"),
     ("HEAD", "/healthz"), ("GET", "/no/such/path")],
)  # fmt: skip
async def test_an_open_service_does_not_answer_to_a_name_that_is_none_of_its_own(
    rig: Rig, method: str, path: str
) -> None:
    """A page of evil.example that gave its name our address would read every answer."""
    rig.hosts = Hosts("127.0.0.1")
    async with rig.http() as http:
        for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"):
            response = await http.request(method, path, json=ONE, headers={"Host": host})
            assert response.status_code in {200, 404}, host
        response = await http.request(method, path, headers={"Host": f"{SECRET}.example"})
    if method == "HEAD":
        assert (response.status_code, response.content) == (421, b"")
    else:
        assert "allowed_hosts" in check_error(response, 421, "wrong_host")["message"]


async def test_a_service_with_keys_answers_by_any_name_from_the_first_key_on(rig: Rig) -> None:
    """No page has a key, and a gateway in front may leave its own name there."""
    rig.hosts = Hosts("127.0.0.1")
    evil = {"Host": "evil.example"}
    async with rig.http() as http:
        check_error(await http.get("/healthz", headers=evil), 421, "wrong_host")
        headers = rig.key(*Scope)
        rig.now_s += 1.0
        assert (await http.get("/healthz", headers=evil)).status_code == 200
        check_error(await http.get("/v1/stats", headers=evil), 401, "unauthorized")
        response = await http.get("/v1/stats", headers={**headers, **evil})
        assert response.status_code == 200


# ---- what ----------------------------------------------------------------------------------------

FED: dict[str, Any] = {"id": "0" * 32, "label": "no"}


@pytest.mark.parametrize("scope", list(Scope))
async def test_a_scope_opens_its_routes_and_no_other(rig: Rig, scope: Scope) -> None:
    headers = rig.key(scope)
    bodies = {"/v1/classify": ONE, "/v1/feedback": FED}
    wants = {
        ("POST", "/v1/classify"): Scope.CLASSIFY,
        ("POST", "/v1/feedback"): Scope.FEEDBACK,
        ("GET", "/v1/stats"): Scope.ADMIN,
        ("GET", "/v1/report"): Scope.ADMIN,
        ("GET", "/metrics"): Scope.ADMIN,
        ("GET", "/v1/release"): scope,  # any valid key
    }
    async with rig.http() as http:
        for (method, path), wanted in wants.items():
            response = await http.request(method, path, json=bodies.get(path), headers=headers)
            if wanted is scope:
                assert response.status_code == 200, path
            else:
                check_error(response, 403, "forbidden")
                assert wanted.value in response.text


async def test_any_route_is_protected_by_one_dependency(rig: Rig) -> None:
    """What http/open_inference.py and jobs/routes.py stand on."""
    good, bad = rig.key(Scope.CLASSIFY), rig.key(Scope.FEEDBACK)
    api = rig.api()

    @api.post("/v9/infer")
    async def infer(
        caller: Annotated[Caller, Depends(rig.admission.needs(Scope.CLASSIFY))],
    ) -> list[Any]:
        return [caller.key, caller.deadline_s]

    async with client(api) as http:
        response = await http.post("/v9/infer", headers={**good, "X-Deadline-Ms": "250"})
        assert response.json() == [ids(rig)[0].id, 0.25]
        assert "x-ratelimit-remaining" in response.headers
        check_error(await http.post("/v9/infer", headers=bad), 403, "forbidden")
        check_error(await http.post("/v9/infer"), 401, "unauthorized")


async def test_the_same_idempotency_key_of_two_callers_is_two_keys(rig: Rig) -> None:
    first, second = rig.key(), rig.key()
    async with rig.http() as http:
        made = [
            await http.post("/v1/classify", json=ONE, headers={**who, "Idempotency-Key": "k"})
            for who in (first, second, first)
        ]
    ids = [one.json()["answers"][0]["id"] for one in made]
    assert ids[0] != ids[1]
    assert ids[0] == ids[2]


# ---- how often -----------------------------------------------------------------------------------


async def test_a_rate_is_told_with_every_answer_and_refused_beyond(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "keys.json", RateConfig(requests_per_min=3))
    headers = rig.key()
    async with rig.http() as http:
        told = []
        for body in (ONE, NONE, ONE):
            response = await http.post("/v1/classify", json=body, headers=headers)
            told.append((response.status_code, response.headers["x-ratelimit-remaining"]))
        assert told == [(200, "2"), (422, "1"), (200, "0")]
        refused = await http.post("/v1/classify", json=ONE, headers=headers)
    check_error(refused, 429, "rate_limited")
    assert refused.headers["x-ratelimit-limit"] == "3"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert len(rig.service.callers) == 2


async def test_texts_are_limited_beside_requests(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "keys.json", RateConfig(texts_per_min=300))
    headers = rig.key()
    async with rig.http() as http:
        many = {"texts": ["a"] * 200}
        assert (await http.post("/v1/classify", json=many, headers=headers)).status_code == 200
        refused = await http.post("/v1/classify", json=many, headers=headers)
        check_error(refused, 429, "rate_limited")
        assert refused.headers.get_list("x-ratelimit-limit") == ["300"]
        assert refused.headers.get_list("x-ratelimit-remaining") == ["100"]
        assert (await http.post("/v1/classify", json=ONE, headers=headers)).status_code == 200


async def test_a_key_with_a_rate_of_its_own(rig: Rig) -> None:
    own = rig.key(rate=RateConfig(requests_per_min=1))
    async with rig.http() as http:
        codes = [
            (await http.post("/v1/classify", json=ONE, headers=own)).status_code for _ in range(2)
        ]
    assert codes == [200, 429]


@pytest.mark.parametrize(
    "fails",
    [EmptyTextsError([0]), OverloadedError("full"), UnansweredError([0]), AuditError("no disk"),
     ServiceError("not yet"), RuntimeError(SECRET)],
)  # fmt: skip
async def test_texts_that_got_no_answer_are_given_back(tmp_path: Path, fails: Exception) -> None:
    """Ten lists of 250 that were refused used up what the key may send in eight minutes."""
    rig = Rig(tmp_path / "keys.json", RateConfig(texts_per_min=300))
    headers = rig.key()
    many = {"texts": ["a"] * 250}
    async with rig.http() as http:
        rig.service.fails = fails
        for _ in range(10):
            response = await http.post("/v1/classify", json=many, headers=headers)
            assert response.status_code != 429 or isinstance(fails, OverloadedError)
        rig.service.fails = None
        assert (await http.post("/v1/classify", json=many, headers=headers)).status_code == 200
        check_error(
            await http.post("/v1/classify", json=many, headers=headers), 429, "rate_limited"
        )


@pytest.mark.parametrize("fails", [UnansweredError([0]), AuditError("x"), RuntimeError(SECRET)])
async def test_a_request_that_failed_here_is_given_back(tmp_path: Path, fails: Exception) -> None:
    rig = Rig(tmp_path / "keys.json", RateConfig(requests_per_min=2))
    headers = rig.key()
    async with rig.http() as http:
        rig.service.fails = fails
        for _ in range(5):
            response = await http.post("/v1/classify", json=ONE, headers=headers)
            assert response.status_code >= 500
        rig.service.fails = None
        codes = [
            (await http.post("/v1/classify", json=ONE, headers=headers)).status_code
            for _ in range(3)
        ]
    assert codes == [200, 200, 429]


# ---- abuse ---------------------------------------------------------------------------------------


async def test_what_is_no_request_slows_a_key_then_blocks_it_for_a_while(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "keys.json", rules=QUICK_GARBAGE)
    headers, other = rig.key(), rig.key()
    async with rig.http() as http:
        for _ in range(6):
            await http.post("/v1/classify", json={"texts": SECRET}, headers=headers)
        assert rig.slept == [SLOW_S] * 3
        refused = await http.post("/v1/classify", json=ONE, headers=headers)
        check_error(refused, 429, "blocked")
        assert int(refused.headers["retry-after"]) in (BLOCK_S, BLOCK_S + 1)
        assert (await http.post("/v1/classify", json=ONE, headers=other)).status_code == 200
        assert (await http.get("/healthz", headers=headers)).status_code == 200
        rig.now_s += BLOCK_S
        assert (await http.post("/v1/classify", json=ONE, headers=headers)).status_code == 200
    actions = [event.action for event in rig.events]
    assert actions == [AbuseAction.SLOWED, AbuseAction.BLOCKED]
    assert {event.key for event in rig.events} == {ids(rig)[0].id}


async def test_answers_without_certainty_are_garbage(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "keys.json", rules=QUICK_GARBAGE)
    headers = rig.key()
    async with rig.http() as http:
        await http.post("/v1/classify", json={"texts": ["a"] * 50}, headers=headers)
        assert rig.events == []
        rig.service.confidence = 0.05
        await http.post("/v1/classify", json={"texts": ["a"] * 5}, headers=headers)
    assert [event.action for event in rig.events] == [AbuseAction.SLOWED]


async def test_refusals_by_the_rate_are_a_flood_and_overload_is_not(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "keys.json", RateConfig(requests_per_min=1), QUICK_FLOOD)
    headers = rig.key()
    async with rig.http() as http:
        for _ in range(8):
            await http.post("/v1/classify", json=ONE, headers=headers)
    assert [event.action for event in rig.events] == [AbuseAction.SLOWED, AbuseAction.BLOCKED]


async def test_a_key_that_is_not_watched_is_left_alone(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "keys.json", rules=QUICK_GARBAGE)
    headers = rig.key(watched=False)
    async with rig.http() as http:
        for _ in range(20):
            response = await http.post("/v1/classify", json={}, headers=headers)
            assert response.status_code == 422
    assert rig.events == []


async def test_slow_waiting_takes_no_place_among_the_requests_in_work(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "keys.json", rules=QUICK_GARBAGE)
    headers, other = rig.key(), rig.key()
    waits = asyncio.Event()

    async def sleep(seconds: float) -> None:
        await waits.wait()

    rig.api()
    rig.admission._sleep = sleep
    api = create_api(rig.service, admission=rig.admission, max_in_work=1)
    async with client(api) as http:
        for _ in range(3):
            await http.post("/v1/classify", json={}, headers=headers)
        slowed = asyncio.create_task(http.post("/v1/classify", json=ONE, headers=headers))
        await asyncio.sleep(0)
        assert (await http.post("/v1/classify", json=ONE, headers=other)).status_code == 200
        waits.set()
        assert (await slowed).status_code == 200


async def test_no_token_is_in_any_log_line_or_repr(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    headers = rig.key()
    token = headers["Authorization"].split()[1]
    async with rig.http() as http:
        await http.post("/v1/classify", json={"texts": [SECRET]}, headers=headers)
        await http.post("/v1/feedback", json=FED, headers=headers)
        rig.service.fails = RuntimeError("broken")
        await http.post("/v1/classify", json={"texts": [SECRET]}, headers=headers)
    ours = "\n".join(record.getMessage() for record in caplog.records if "serve_app" in record.name)
    for shown in (ours, repr(rig.service.callers), repr(ids(rig)), repr(rig.admission)):
        assert token not in shown
        assert SECRET not in shown
