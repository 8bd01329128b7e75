"""HTTP: what is taken, what is refused, and that every refusal has the one shape and no echo."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from pydantic import BaseModel
from starlette.routing import Route

from cluster.errors import AuditError, ServiceError
from serve_app.contracts import Caller
from serve_app.errors import OverloadedError, UnansweredError
from serve_app.http.errors import ErrorOut
from serve_app.http.models import ClassifyIn, ClassifyOut, FeedbackIn
from serve_app.http.routes import create_api
from serve_app.http.tensors import InferIn
from serve_app.jobs.routes import JobIn
from tests.support.http_service import SECRET, StubService, ask, check_error, classify, client

pytestmark = pytest.mark.anyio


async def test_an_answer_has_exactly_the_promised_fields(service: StubService) -> None:
    response = await ask(service, "POST", "/v1/classify", json={"texts": ["a", "b"]})
    first, second = response.json()["answers"]
    assert set(first) == {
        "id", "label", "confidence", "route", "reason", "cost_usd", "latency_ms", "release",
        "degraded", "cached",
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
        ({"texts": ["a"], "explain": 1}, "explain"),
        ({"texts": ["a"], "user_id": 7}, "user_id"),
        ({"texts": ["a"], "user_id": ""}, "user_id"),
        ({"texts": ["a"], "user_id": SECRET * 10}, "user_id"),
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


@pytest.mark.parametrize("name", ["user_id", "explain", "route_only"])
async def test_null_is_absent(service: StubService, name: str) -> None:
    response = await ask(service, "POST", "/v1/classify", json={"texts": ["a"], name: None})
    assert response.status_code == 200, response.text
    assert "explanation" not in response.json()["answers"][0]


def optional(schema: Any, defs: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Every field that may be left out, at any depth."""
    schema = {**defs.get(str(schema.get("$ref")).rsplit("/", 1)[-1], {}), **schema}
    for name, field in schema.get("properties", {}).items():
        if name not in schema.get("required", []):
            yield f"{where}.{name}", field
        yield from optional(field, defs, f"{where}.{name}")
    for part in [*schema.get("anyOf", []), *([schema["items"]] if "items" in schema else [])]:
        yield from optional(part, defs, where)


@pytest.mark.parametrize("model", [ClassifyIn, FeedbackIn, InferIn, JobIn])
def test_every_field_that_may_be_left_out_may_be_null(model: type[BaseModel]) -> None:
    schema = model.model_json_schema()
    found = dict(optional(schema, schema.get("$defs", {}), model.__name__))
    assert found or model is FeedbackIn
    for where, field in found.items():
        assert {"type": "null"} in field.get("anyOf", []), where


async def test_the_limits_themselves_are_allowed(service: StubService) -> None:
    texts = ["\U0001f600" * 10_000] + ["a"] * 255
    response = await ask(service, "POST", "/v1/classify", json={"texts": texts})
    assert response.status_code == 200
    assert len(response.json()["answers"]) == 256


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        f'{{"texts": ["{SECRET}"'.encode(),
        b'{"texts": ["\xff\xfe"]}',
        b'{"texts": ["\xed\xa0\x80"]}',  # a surrogate, as bytes
        rb'{"texts": ["\ud83d"]}',  # half of a pair, as an escape
        rb'{"texts": ["\ude00\ud83d"]}',  # a pair the wrong way round
        b'{"texts": ["a"]} {}',
        b'\xef\xbb\xbf{"texts": ["a"]}',
        b"[" * 50_000,
        b'{"texts": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    ],
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


async def test_head_is_told_what_get_is_without_the_body(service: StubService) -> None:
    """Load balancers ask HEAD /healthz; it was a 405."""
    service.gaps = ["release r-1: a tier does not answer"]
    api = create_api(service)
    paths = [
        route.path
        for route in api.routes
        if isinstance(route, Route) and "GET" in (route.methods or ())
    ]
    assert len(paths) >= 8
    async with client(api) as http:
        for path in [*paths, "/no/such/path", "/v1/classify"]:
            get, head = await http.get(path), await http.head(path)
            assert head.status_code == get.status_code, path
            assert dict(head.headers) == dict(get.headers), path
            assert head.content == b"", path
        refused = await http.delete("/healthz")
    assert refused.headers["allow"] == "GET, HEAD"


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


# ---- what of a request is looked at before its body, and what after ------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": ""},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
async def test_a_body_that_does_not_say_it_is_json_is_not_read_as_such(
    service: StubService, headers: dict[str, str]
) -> None:
    """A page in a browser may send text/plain to any address without asking first."""
    body = json.dumps({"texts": [SECRET]}).encode()
    response = await ask(service, "POST", "/v1/classify", content=body, headers=headers)
    check_error(response, 415, "unsupported_media_type")
    assert service.callers == []


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "Application/JSON", "a/b+json"]
)
async def test_json_by_any_of_its_names_is_read(service: StubService, kind: str) -> None:
    response = await ask(
        service,
        "POST",
        "/v1/classify",
        content=b'{"texts": ["a"]}',
        headers={"content-type": kind},
    )
    assert response.status_code == 200


@pytest.mark.parametrize(
    "text",
    [
        "a\x00b",
        "a\x1b[2Jb",
        "\u202ea\u202c",
        "\u2066a\u2069",
        "\U0001f600",
        "\ufeffa",
        "e" + "\u0301" * 5000,
    ],
)
async def test_strange_characters_are_text_like_any_other(service: StubService, text: str) -> None:
    response = await ask(service, "POST", "/v1/classify", json={"texts": [text]})
    assert response.status_code == 200
    assert len(response.json()["answers"]) == 1


async def test_256_texts_of_10_000_characters_are_one_request(service: StubService) -> None:
    """Each character as the six bytes of an escape: the largest body that fits."""
    body = json.dumps({"texts": ["\u00e9" * 10_000] * 256}).encode()
    assert len(body) > 15_000_000
    response = await ask(
        service,
        "POST",
        "/v1/classify",
        content=body,
        headers={"content-type": "application/json"},
    )
    assert len(response.json()["answers"]) == 256


async def test_the_user_and_the_deadline_reach_the_service_and_no_repr(
    service: StubService,
) -> None:
    await ask(
        service,
        "POST",
        "/v1/classify",
        json={"texts": ["a"], "user_id": SECRET},
        headers={"X-Deadline-Ms": "1500"},
    )
    assert service.callers == [Caller("anonymous", SECRET, 1.5)]
    assert SECRET not in repr(service.callers)
    assert SECRET not in repr(ClassifyIn(texts=[SECRET], user_id=SECRET))


@pytest.mark.parametrize("value", ["0", "60001", "-1", "1.5", "", "1e3", SECRET, "9" * 5000])
async def test_a_deadline_that_is_none_is_refused(service: StubService, value: str) -> None:
    response = await ask(
        service,
        "POST",
        "/v1/classify",
        json={"texts": ["a"]},
        headers={"X-Deadline-Ms": value},
    )
    check_error(response, 422, "invalid_request")
    assert "X-Deadline-Ms" in response.text
    assert service.callers == []


# ---- the same request again ----------------------------------------------------------------------


async def test_the_same_request_again_gets_the_first_answer_again(service: StubService) -> None:
    async with client(create_api(service)) as http:
        first = await classify(http, {"texts": ["a"]}, "k-1")
        again = await classify(http, {"texts": ["a"]}, "k-1")
        other = await classify(http, {"texts": ["a"]}, "k-2")
        none = await classify(http, {"texts": ["a"]})
    assert again.content == first.content
    assert again.headers["idempotent-replay"] == "true"
    assert "idempotent-replay" not in first.headers
    ids = {one.json()["answers"][0]["id"] for one in (first, other, none)}
    assert len(ids) == len(service.callers) == 3


async def test_another_body_under_the_same_key_is_a_conflict(service: StubService) -> None:
    async with client(create_api(service)) as http:
        await classify(http, {"texts": ["a"]}, "k-1")
        response = await classify(http, {"texts": [SECRET]}, "k-1")
    check_error(response, 422, "idempotency_conflict")
    assert len(service.callers) == 1


async def test_every_post_honours_the_key_and_a_key_is_of_one_request(
    service: StubService,
) -> None:
    fed = {"id": "0" * 32, "label": "no"}
    async with client(create_api(service)) as http:
        made = [
            await http.post("/v1/feedback", json=fed, headers={"Idempotency-Key": "f"})
            for _ in range(2)
        ]
        assert service.fed == [("0" * 32, "no")]
        assert [one.headers.get("idempotent-replay") for one in made] == [None, "true"]
        assert made[0].content == made[1].content
        await classify(http, {"texts": ["a"]}, "k")
        other = await http.post(
            "/v1/feedback", json={"texts": ["a"]}, headers={"Idempotency-Key": "k"}
        )
        check_error(other, 422, "idempotency_conflict")
        refused = {"id": "0" * 32, "label": "maybe"}
        for _ in range(2):
            response = await http.post(
                "/v1/feedback", json=refused, headers={"Idempotency-Key": "r"}
            )
            check_error(response, 422, "unknown_label")
            assert "idempotent-replay" not in response.headers


async def test_a_failure_is_not_given_again(service: StubService) -> None:
    async with client(create_api(service)) as http:
        service.fails = UnansweredError([0])
        check_error(await classify(http, {"texts": ["a"]}, "k-1"), 503, "no_answer")
        service.fails = None
        again = await classify(http, {"texts": ["a"]}, "k-1")
    assert again.status_code == 200
    assert "idempotent-replay" not in again.headers


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "\u00e9"])
async def test_an_idempotency_key_that_is_none_is_refused(service: StubService, key: str) -> None:
    response = await ask(
        service,
        "POST",
        "/v1/classify",
        json={"texts": ["a"]},
        headers={"Idempotency-Key": key.encode("latin-1")},
    )
    check_error(response, 400, "invalid_idempotency_key")
    assert service.callers == []


# ---- too many, too slow, gone --------------------------------------------------------------------


async def test_an_answer_that_is_no_json_number_is_a_500_not_a_lie(service: StubService) -> None:
    service.confidence = float("nan")
    response = await ask(service, "POST", "/v1/classify", json={"texts": ["a"]})
    check_error(response, 500, "internal")


async def test_the_direct_route_answers_as_its_schema_says(service: StubService) -> None:
    body = {"texts": ["a"] * 3, "explain": True}
    response = await ask(service, "POST", "/v1/classify", json=body)
    made = ClassifyOut.model_validate_json(response.content)
    assert len(made.answers) == 3
    assert response.headers["content-type"] == "application/json"
    assert int(response.headers["content-length"]) == len(response.content)


api_schema = schemathesis.openapi.from_asgi("/openapi.json", create_api(StubService()))


@api_schema.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_is_sent_nothing_breaks(case: Any) -> None:
    response = case.call()
    assert response.status_code < 500
    if response.status_code >= 400:
        ErrorOut.model_validate(json.loads(response.content))
