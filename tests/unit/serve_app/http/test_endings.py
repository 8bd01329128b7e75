"""Every request ends as one event, whoever answers or refuses it, and no client chooses a label."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.errors import AuditError, ServiceError
from serve_app.access.admission import Admission
from serve_app.access.keys import Keys, KeyStore, Scope, new_key, now_utc
from serve_app.contracts import RequestEvent
from serve_app.errors import OverloadedError, UnansweredError
from serve_app.http.endings import note
from serve_app.http.open_inference import add_v2
from serve_app.http.routes import create_api
from tests.support.http_service import SECRET, StubService, client, drive, post_scope

pytestmark = pytest.mark.anyio


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    file = tmp_path / "keys.json"
    _, key = new_key("crm", [Scope.CLASSIFY], now=now_utc())
    KeyStore(file).add(key)
    return Keys(file)


TEXTS = {"texts": ["a"]}


async def events_of(
    service: StubService, method: str, path: str, *, keys: Keys | None = None, **options: Any
) -> list[RequestEvent]:
    """What one request ended as."""
    ended: list[RequestEvent] = []
    admission = Admission(keys)
    api = create_api(service, admission=admission, on_end=ended.append)
    add_v2(api, service, admission)
    async with client(api) as http:
        response: httpx.Response = await http.request(method, path, **options)
    assert response.status_code == ended[-1].status
    return ended


@pytest.mark.parametrize(
    ("method", "path", "options", "event"),
    [
        ("POST", "/v1/classify", {"json": TEXTS}, ("/v1/classify", 200, "")),
        ("POST", "/v1/classify", {"json": {}}, ("/v1/classify", 422, "invalid_request")),
        ("POST", "/v1/classify", {"json": {"texts": [" "]}}, ("/v1/classify", 422, "empty_text")),
        ("POST", "/v1/classify", {"content": "{"}, ("/v1/classify", 415, "unsupported_media_type")),
        ("GET", "/v1/classify", {}, ("/v1/classify", 405, "method_not_allowed")),
        ("GET", f"/{SECRET}", {}, ("elsewhere", 404, "not_found")),
        ("GET", "/healthz", {}, ("/healthz", 200, "")),
        ("POST", "/v1/feedback", {"json": {"id": "0" * 32, "label": "who"}},
         ("/v1/feedback", 422, "unknown_label")),
        ("POST", "/v1/feedback", {"json": {"id": "0" * 32, "label": "yes"}},
         ("/v1/feedback", 200, "")),
        ("GET", "/v2/models/firstline", {}, ("/v2/models/{name}", 200, "")),
        ("HEAD", "/v2/models/firstline", {}, ("/v2/models/{name}", 200, "")),
        ("GET", f"/v2/models/{SECRET}", {}, ("/v2/models/{name}", 404, "not_found")),
    ],
)  # fmt: skip
async def test_each_request_is_one_event(
    service: StubService, method: str, path: str, options: dict[str, Any], event: tuple[Any, ...]
) -> None:
    [found] = await events_of(service, method, path, **options)
    assert (found.route, found.status, found.code) == event
    assert SECRET not in repr(found)


@pytest.mark.parametrize(
    ("fails", "status", "code"),
    [
        (OverloadedError("full"), 429, "overloaded"),
        (UnansweredError([0]), 503, "no_answer"),
        (AuditError("no disk"), 503, "audit_failed"),
        (ServiceError("not yet"), 503, "unavailable"),
        (RuntimeError(SECRET), 500, "internal"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/classify", "/v2/models/firstline/infer"])
async def test_what_breaks_behind_is_counted_on_both_doors(
    service: StubService, path: str, fails: Exception, status: int, code: str
) -> None:
    service.fails = fails
    body: dict[str, Any] = TEXTS
    if path != "/v1/classify":
        tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}
        body = {"inputs": [tensor]}
    [found] = await events_of(service, "POST", path, json=body)
    assert (found.status, found.code) == (status, code)
    assert found.asks
    assert found.refused


async def test_not_ready_and_without_a_key_are_events_too(service: StubService, keys: Keys) -> None:
    service.gaps = ["the audit log cannot be written (No space left on device)"]
    [found] = await events_of(service, "GET", "/readyz")
    assert (found.route, found.code, found.asks, found.works) == (
        "/readyz", "not_ready", False, False,
    )  # fmt: skip
    [found] = await events_of(service, "POST", "/v1/classify", json=TEXTS, keys=keys)
    assert (found.route, found.code) == ("/v1/classify", "unauthorized")


async def test_a_client_that_is_gone_is_an_event_of_its_own(service: StubService) -> None:
    ended: list[RequestEvent] = []

    async def hung_up() -> Any:
        yield {"type": "http.disconnect"}

    await drive(create_api(service, on_end=ended.append), hung_up(), post_scope())
    assert [(one.status, one.code) for one in ended] == [(499, "client_gone")]
    assert not ended[0].refused


async def test_what_is_noted_belongs_to_the_request_alone(service: StubService) -> None:
    answer = service.answer

    async def noting(*given: Any, **named: Any) -> Any:
        note(release="r-7", tags=("hurried",))
        return await answer(*given, **named)

    service.answer = noting  # type: ignore[method-assign]
    [found] = await events_of(service, "POST", "/v1/classify", json=TEXTS)
    assert (found.release, found.tags) == ("r-7", ("hurried",))
    [found] = await events_of(service, "GET", "/healthz")
    assert (found.release, found.tags) == ("", ())
    note(code="outside of any request")


async def test_ready_says_what_will_soon_keep_it_from_being_so(service: StubService) -> None:
    async with client(create_api(service)) as http:
        assert (await http.get("/readyz")).json() == {"status": "ready"}
        service.cautions = ["the audit log's disk is nearly full"]
        response = await http.get("/readyz")
    assert response.status_code == 200
    assert response.json()["warnings"] == service.cautions
