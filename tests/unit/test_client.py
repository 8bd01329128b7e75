"""The client: lists of any length in requests of 256, and errors in the service's own words."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from cluster.errors import ServiceError
from cluster.jobs import submit
from cluster.settings import load_settings
from serve_app.client import MAX_TEXTS, Firstline

Handler = Callable[[httpx.Request], httpx.Response]


def client_of(handler: Handler) -> Firstline:
    client = Firstline("http://service/")
    client._http = httpx.Client(base_url="http://service", transport=httpx.MockTransport(handler))
    return client


def echo(request: httpx.Request) -> httpx.Response:
    texts = json.loads(request.content)["texts"]
    assert len(texts) <= MAX_TEXTS
    return httpx.Response(200, json={"answers": [{"label": text} for text in texts]})


@pytest.mark.parametrize("count", [0, 1, 256, 257, 600])
def test_answers_come_in_order_from_as_many_requests_as_it_takes(count: int) -> None:
    texts = [f"text {i}" for i in range(count)]
    with client_of(echo) as client:
        assert [answer["label"] for answer in client.classify(texts)] == texts


def test_flags_and_feedback_are_sent() -> None:
    seen: list[tuple[str, Any]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.path, json.loads(request.content)))
        return httpx.Response(200, json={"answers": [{}]})

    with client_of(handler) as client:
        client.classify(["a"], explain=True, route_only=True)
        client.feedback("id-1", "positive")
        assert len(list(client.timed(["a", "b"]))) == 2
    assert seen[0] == (
        "/v1/classify", {"texts": ["a"], "explain": True, "route_only": True}
    )  # fmt: skip
    assert seen[1] == ("/v1/feedback", {"id": "id-1", "label": "positive"})


def test_an_explanation_is_that_of_a_preview() -> None:
    """Else `firstline explain` would pay the cloud."""

    def handler(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        assert asked == {"texts": ["a"], "explain": True, "route_only": True}
        return httpx.Response(200, json={"answers": [{"explanation": {"route": "edge"}}]})

    with client_of(handler) as client:
        assert client.explain("a") == {"route": "edge"}


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (
            httpx.Response(422, json={"error": {"message": "Bad request.", "details": [
                {"where": "texts", "problem": "too many"}]}}),
            r"answered 422: Bad request\.\n  texts: too many",
        ),
        (httpx.Response(503, json={"error": {"message": "Busy."}}), "answered 503: Busy"),
        (httpx.Response(502, text="<html>" + "x" * 999), r"answered 502: <html>x{194}$"),
        (httpx.Response(500, json=["odd"]), "answered 500"),
    ],
)  # fmt: skip
def test_a_refusal_is_told_in_the_services_words(response: httpx.Response, said: str) -> None:
    with client_of(lambda _: response) as client, pytest.raises(ServiceError, match=said):
        client.get("/v1/stats")


def test_no_service_is_an_error_that_says_what_to_do() -> None:
    with (
        Firstline("http://127.0.0.1:1") as client,
        pytest.raises(ServiceError, match=r"No answer from http://127.0.0.1:1 .*firstline serve"),
    ):
        client.classify(["a"])


def test_a_job_for_no_cluster_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    with pytest.raises(ServiceError, match=r"not taken by http://127.0.0.1:1.*ray start --head"):
        submit(["train"], load_settings())
