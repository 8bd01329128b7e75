"""HTTP: what is taken, what is refused, and that every refusal has the one shape and no echo."""

import itertools
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, settings

from cluster.errors import AuditError, ServiceError
from serve_app.api import ErrorOut, create_api
from serve_app.contracts import Route, RouteReason
from serve_app.explain import Explanation
from serve_app.gather import OverloadedError
from serve_app.router import Answered, EmptyTextsError, UnansweredError
from serve_app.text import normalise

pytestmark = pytest.mark.anyio

SECRET = "xyzzy-what-a-customer-wrote"


class StubService:
    """An api.Service of two labels that answers at once, or fails as told."""

    def __init__(self) -> None:
        self.fails: Exception | None = None
        self.gaps: list[str] = []
        self.fed: list[tuple[str, str]] = []
        self._ids = itertools.count()

    async def answer(
        self, texts: Sequence[str], *, explain: bool, route_only: bool
    ) -> list[Answered]:
        if self.fails is not None:
            raise self.fails
        if empty := [index for index, text in enumerate(texts) if not normalise(text)]:
            raise EmptyTextsError(empty)
        return [self._answer(explain, route_only) for _ in texts]

    def _answer(self, explain: bool, route_only: bool) -> Answered:
        made = Explanation(
            route=Route.EDGE,
            reason=RouteReason.TRUSTED,
            score="confidence",
            score_kind="max_probability",
            trust=0.9,
            threshold=0.8,
            min_confidence=0.0,
            rules={RouteReason.TOO_LONG: False},
            probabilities={"no": 0.1, "yes": 0.9},
            costs_usd={Route.EDGE: 0.001, Route.CLOUD: 0.0146},
        )
        return Answered(
            id=f"{next(self._ids):032x}",
            label=None if route_only else "yes",
            confidence=0.9,
            route=Route.EDGE,
            reason=RouteReason.TRUSTED,
            cost_usd=0.001,
            latency_ms=1.5,
            release="r-1",
            degraded=False,
            explanation=made if explain else None,
        )

    def labels(self) -> Sequence[str]:
        return ("no", "yes")

    def feedback(self, answer_id: str, label: str) -> None:
        self.fed.append((answer_id, label))

    async def missing(self) -> Sequence[str]:
        return self.gaps

    def release(self) -> Mapping[str, Any]:
        return {"id": "r-1"}

    async def stats(self) -> Mapping[str, Any]:
        if self.fails is not None:
            raise self.fails
        return {"messages": 0}

    async def report(self) -> Mapping[str, Any]:
        return {"alerts": []}

    async def metrics(self) -> bytes:
        return b"firstline_messages_total 0.0\n"


@asynccontextmanager
async def client(api: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(api, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as made:
        yield made


@pytest.fixture
def service() -> StubService:
    return StubService()


async def ask(service: StubService, method: str, path: str, **options: Any) -> httpx.Response:
    async with client(create_api(service)) as http:
        return await http.request(method, path, **options)


def check_error(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = ErrorOut.model_validate_json(response.content).error
    assert error.code == code
    assert error.message
    assert SECRET not in response.text
    return error.model_dump()


async def test_an_answer_has_exactly_the_promised_fields(service: StubService) -> None:
    response = await ask(service, "POST", "/v1/classify", json={"texts": ["a", "b"]})
    first, second = response.json()["answers"]
    assert set(first) == {
        "id", "label", "confidence", "route", "reason", "cost_usd", "latency_ms", "release",
        "degraded",
    }  # fmt: skip
    assert first["id"] != second["id"]


async def test_what_explains_is_in_the_schema(service: StubService) -> None:
    schemas = (await ask(service, "GET", "/openapi.json")).json()["components"]["schemas"]
    assert set(schemas) >= {"Explanation", "Nearest", "Choice"}


async def test_explain_and_route_only_reach_the_service(service: StubService) -> None:
    body = {"texts": ["a"], "explain": True, "route_only": True}
    answer = (await ask(service, "POST", "/v1/classify", json=body)).json()["answers"][0]
    assert answer["label"] is None
    assert answer["explanation"] == {
        "route": "edge",
        "reason": "trusted",
        "score": "confidence",
        "score_kind": "max_probability",
        "trust": 0.9,
        "threshold": 0.8,
        "breakdown": {},
        "class_margin": None,
        "min_confidence": 0.0,
        "rules": {"too_long": False},
        "signals": {},
        "probabilities": {"no": 0.1, "yes": 0.9},
        "pii": [],
        "costs_usd": {"edge": 0.001, "cloud": 0.0146},
        "edge_up_to": None,
        "alternatives": {"stricter": None, "looser": None},
    }


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, "texts"),
        ({"texts": []}, "texts"),
        ({"texts": SECRET}, "texts"),
        ({"texts": [1]}, "texts[0]"),
        ({"texts": ["a", None]}, "texts[1]"),
        ({"texts": ["a"] * 257}, "texts"),
        ({"texts": ["a", SECRET * 400]}, "texts[1]"),
        ({"texts": ["a"], "explain": "yes"}, "explain"),
        ({"texts": ["a"], "other": SECRET}, "other"),
        ({"texts": ["a"], f"{SECRET} as a key": 1}, "(a name not shown)"),
        ([SECRET], "body"),
        (None, "body"),
        (SECRET, "body"),
    ],
)
async def test_a_request_that_does_not_fit_is_told_where(
    service: StubService, body: Any, where: str
) -> None:
    response = await ask(service, "POST", "/v1/classify", json=body)
    error = check_error(response, 422, "invalid_request")
    assert error["details"][0]["where"] == where


async def test_the_limits_themselves_are_allowed(service: StubService) -> None:
    texts = ["\U0001f600" * 10_000] + ["a"] * 255
    response = await ask(service, "POST", "/v1/classify", json={"texts": texts})
    assert response.status_code == 200
    assert len(response.json()["answers"]) == 256


@pytest.mark.parametrize(
    "content",
    [b"", b"{", f'{{"texts": ["{SECRET}"'.encode(), b'{"texts": ["\xff\xfe"]}', b"[" * 50_000],
)
async def test_what_is_not_json_is_a_400_or_422(service: StubService, content: bytes) -> None:
    response = await ask(
        service,
        "POST",
        "/v1/classify",
        content=content,
        headers={"content-type": "application/json"},
    )
    if content:
        check_error(response, 400, "invalid_json")
    else:
        check_error(response, 422, "invalid_request")


async def test_empty_texts_are_named(service: StubService) -> None:
    response = await ask(service, "POST", "/v1/classify", json={"texts": ["a", " \t", "\u200b"]})
    error = check_error(response, 422, "empty_text")
    assert [detail["where"] for detail in error["details"]] == ["texts[1]", "texts[2]"]


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_is_bounded_before_it_is_parsed(service: StubService, declared: bool) -> None:
    async def stream() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield SECRET.encode() * 20

    content = SECRET.encode() * 80 if declared else stream()
    async with client(create_api(service, max_body_bytes=1000)) as http:
        response = await http.post("/v1/classify", content=content)
    check_error(response, 413, "too_large")


async def test_many_large_bodies_together_are_refused_and_their_bytes_given_back(
    service: StubService,
) -> None:
    async with client(create_api(service, max_held_bytes=1000)) as http:
        for _ in range(3):
            response = await http.post("/v1/classify", json={"texts": ["a" * 2000]})
            check_error(response, 429, "overloaded")
            assert response.headers["retry-after"] == "1"
        assert (await http.post("/v1/classify", json={"texts": ["a" * 500]})).status_code == 200
        assert (await http.post("/v1/classify", json={"texts": ["a" * 500]})).status_code == 200


@pytest.mark.parametrize(
    ("fails", "status", "code"),
    [
        (OverloadedError("full"), 429, "overloaded"),
        (UnansweredError([0]), 503, "no_answer"),
        (AuditError(f"no disk for {SECRET}"), 503, "audit_failed"),
        (ServiceError("not yet"), 503, "unavailable"),
        (RuntimeError(SECRET), 500, "internal"),
    ],
)
async def test_what_breaks_behind_has_the_same_shape(
    service: StubService, fails: Exception, status: int, code: str
) -> None:
    service.fails = fails
    response = await ask(service, "POST", "/v1/classify", json={"texts": [SECRET]})
    check_error(response, status, code)


async def test_overload_says_when_to_come_back(service: StubService) -> None:
    service.fails = OverloadedError("full")
    response = await ask(service, "POST", "/v1/classify", json={"texts": ["a"]})
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", f"/{SECRET}", 404, "not_found"),
        ("GET", "/v1/classify", 405, "method_not_allowed"),
        ("DELETE", "/healthz", 405, "method_not_allowed"),
    ],
)
async def test_wrong_doors_have_the_same_shape(
    service: StubService, method: str, path: str, status: int, code: str
) -> None:
    check_error(await ask(service, method, path), status, code)


async def test_feedback_takes_known_labels_only(service: StubService) -> None:
    good = {"id": "0" * 32, "label": "no"}
    assert (await ask(service, "POST", "/v1/feedback", json=good)).json() == {"accepted": True}
    assert service.fed == [("0" * 32, "no")]
    unknown = {"id": "0" * 32, "label": SECRET}
    response = await ask(service, "POST", "/v1/feedback", json=unknown)
    assert "no, yes" in check_error(response, 422, "unknown_label")["message"]
    no_id = {"id": "not an id", "label": "no"}
    response = await ask(service, "POST", "/v1/feedback", json=no_id)
    check_error(response, 422, "invalid_request")
    assert len(service.fed) == 1


async def test_ready_only_when_nothing_is_missing(service: StubService) -> None:
    assert (await ask(service, "GET", "/readyz")).status_code == 200
    service.gaps = ["release r-1: a tier does not answer"]
    error = check_error(await ask(service, "GET", "/readyz"), 503, "not_ready")
    assert error["details"][0]["problem"] == service.gaps[0]
    assert (await ask(service, "GET", "/healthz")).status_code == 200


async def test_a_monitor_that_is_away_is_a_503(service: StubService) -> None:
    service.fails = ServiceError("The monitor does not answer.")
    check_error(await ask(service, "GET", "/v1/stats"), 503, "unavailable")


async def test_the_docs_load_nothing_from_elsewhere(service: StubService) -> None:
    page = (await ask(service, "GET", "/docs")).text
    assert "/v1/classify" in page
    assert "ErrorOut" in page
    assert "http://" not in page
    assert "https://" not in page


async def test_the_schema_names_the_error_shape_for_every_refusal(service: StubService) -> None:
    schema = (await ask(service, "GET", "/openapi.json")).json()
    refusals = [
        answer["content"]["application/json"]["schema"]["$ref"]
        for operations in schema["paths"].values()
        for operation in operations.values()
        for status, answer in operation["responses"].items()
        if status >= "400"
    ]
    assert set(refusals) == {"#/components/schemas/ErrorOut"}


api_schema = schemathesis.openapi.from_asgi("/openapi.json", create_api(StubService()))


@api_schema.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_is_sent_nothing_breaks(case: Any) -> None:
    response = case.call()
    assert response.status_code < 500
    if response.status_code >= 400:
        ErrorOut.model_validate(json.loads(response.content))
