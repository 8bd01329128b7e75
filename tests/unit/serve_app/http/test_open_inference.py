"""The Open Inference Protocol: what tritonclient sees, and that no refusal breaks its shape."""

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
import tritonclient.http as triton
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from tritonclient.utils import InferenceServerException

from cluster.errors import AuditError, ServiceError
from serve_app.access.admission import Admission
from serve_app.access.keys import ApiKey, Keys, Scope, new_key
from serve_app.access.rate_limits import RateConfig
from serve_app.contracts import Caller
from serve_app.decide.answered import Answered
from serve_app.errors import EmptyTextsError, OverloadedError, RefusedError, UnansweredError
from serve_app.http.open_inference import PLATFORM, Refusal, add_v2
from serve_app.http.routes import create_api
from serve_app.http.tensors import HEADER_BYTES, InferOut, read
from tests.support.http_server import serving
from tests.support.http_service import SECRET, StubService

pytestmark = pytest.mark.anyio

TEXTS = ["Where is my card?", "naïve façade 日本語", "x", "\U0001f600 " * 1000]
INFER = "/v2/models/firstline/infer"


class Echo(StubService):
    """Answers with the text itself as the label, so that no text can be lost or mixed up."""

    async def answer(
        self, texts: Sequence[str], *, explain: bool, route_only: bool, caller: Caller
    ) -> list[Answered]:
        answers = await super().answer(texts, explain=explain, route_only=route_only, caller=caller)
        return [answer._replace(label=text) for answer, text in zip(answers, texts, strict=True)]


def make_api(service: StubService, admission: Admission | None = None) -> FastAPI:
    admission = admission or Admission()
    api = create_api(service, admission=admission)
    add_v2(api, service, admission)
    return api


@pytest.fixture
def service() -> Echo:
    return Echo()


@pytest.fixture
def client(service: Echo) -> Iterator[triton.InferenceServerClient]:
    with (
        serving(make_api(service)) as url,
        triton.InferenceServerClient(url.removeprefix("http://")) as made,
    ):
        yield made


def asking(api: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(api, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


async def ask(service: StubService, method: str, path: str, **options: Any) -> httpx.Response:
    async with asking(make_api(service)) as http:
        return await http.request(method, path, **options)


def check_refusal(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    said = Refusal.model_validate_json(response.content).error
    assert SECRET not in response.text
    assert int(response.headers["content-length"]) == len(response.content)
    return said


def tensor(texts: Sequence[str], shape: list[int], *, binary: bool = True) -> triton.InferInput:
    made = triton.InferInput("text", shape, "BYTES")
    made.set_data_from_numpy(np.array(texts, dtype=object).reshape(shape), binary_data=binary)
    return made


def body(**changes: Any) -> dict[str, Any]:
    """An inference request of one text, with the input's fields changed."""
    given = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["hello"], **changes}
    return {"inputs": [{key: value for key, value in given.items() if value is not None}]}


# ---- the public client --------------------------------------------------------------------------


def test_tritonclient_finds_the_service_and_its_model(
    client: triton.InferenceServerClient, service: Echo
) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("firstline")
    assert client.is_model_ready("firstline", "r-1")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    for version in ("", "r-1"):
        found = client.get_model_metadata("firstline", version)
        assert (found["name"], found["versions"]) == ("firstline", ["r-1"])
        assert found["platform"] == PLATFORM
        assert found["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
        assert {output["name"]: output["datatype"] for output in found["outputs"]} == {
            "label": "BYTES", "confidence": "FP32", "route": "BYTES", "reason": "BYTES",
            "id": "BYTES", "release": "BYTES", "degraded": "BOOL",
        }  # fmt: skip
    service.gaps = ["release r-1: a tier does not answer"]
    assert client.is_server_live()
    assert not client.is_server_ready()
    assert not client.is_model_ready("firstline")


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("shape", [[4], [4, 1]])
@pytest.mark.parametrize("version", ["", "r-1"])
def test_tritonclient_gets_an_answer_per_text_in_every_encoding(
    client: triton.InferenceServerClient,
    binary_in: bool,
    binary_out: bool | None,
    shape: list[int],
    version: str,
) -> None:
    """None: no outputs are named, so that it asks for all of them as bytes."""
    names = ["confidence", "label", "degraded", "id", "route", "reason", "release"]
    outputs = (
        None
        if binary_out is None
        else [triton.InferRequestedOutput(name, binary_data=binary_out) for name in names]
    )
    result = client.infer(
        "firstline",
        [tensor(TEXTS, shape, binary=binary_in)],
        model_version=version,
        outputs=outputs,
        request_id="42",
    )
    found = {name: result.as_numpy(name) for name in names}
    assert all(list(values.shape) == shape for values in found.values())
    flat = {name: values.ravel().tolist() for name, values in found.items()}
    labels = [as_text(label) for label in flat["label"]]
    assert labels == TEXTS
    assert found["confidence"].dtype == np.float32
    assert flat["confidence"] == pytest.approx([0.9] * 4)
    assert flat["degraded"] == [False] * 4
    assert len(set(flat["id"])) == 4
    assert {as_text(route) for route in flat["route"]} == {"edge"}
    response = result.get_response()
    assert (response["model_name"], response["model_version"]) == ("firstline", "r-1")
    assert response["id"] == "42"


def as_text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def test_one_output_of_each_encoding_leaves_in_the_order_asked_for(
    client: triton.InferenceServerClient,
) -> None:
    outputs = [
        triton.InferRequestedOutput("confidence", binary_data=True),
        triton.InferRequestedOutput("label", binary_data=False),
    ]
    result = client.infer("firstline", [tensor(["a"], [1])], outputs=outputs)
    assert [output["name"] for output in result.get_response()["outputs"]] == [
        "confidence",
        "label",
    ]
    assert result.as_numpy("label").tolist() == ["a"]
    assert result.as_numpy("confidence").tolist() == pytest.approx([0.9])
    assert result.as_numpy("id") is None


def test_user_and_timeout_reach_the_service(
    client: triton.InferenceServerClient, service: Echo
) -> None:
    client.infer("firstline", [tensor(["a"], [1])])
    client.infer(
        "firstline", [tensor(["a"], [1])], parameters={"user_id": "u-1"}, timeout=2_000_000
    )
    nobody, someone = service.callers
    assert (nobody.user, nobody.deadline_s) == (None, None)
    assert (someone.user, someone.deadline_s) == ("u-1", 2.0)


@pytest.mark.parametrize(
    ("model", "version", "status"), [("other", "", "404"), ("firstline", "r-2", "404")]
)
def test_tritonclient_is_told_of_a_model_that_is_not_there(
    client: triton.InferenceServerClient, model: str, version: str, status: str
) -> None:
    assert not client.is_model_ready(model, version)
    calls: list[Callable[[], Any]] = [
        lambda: client.get_model_metadata(model, version),
        lambda: client.infer(model, [tensor(["a"], [1])], model_version=version),
    ]
    for call in calls:
        with pytest.raises(InferenceServerException, match="name") as refused:
            call()
        assert refused.value.status() == status


def test_tritonclient_is_told_of_a_wrong_datatype(client: triton.InferenceServerClient) -> None:
    made = triton.InferInput("text", [1], "FP32")
    made.set_data_from_numpy(np.array([1.0], dtype=np.float32))
    with pytest.raises(InferenceServerException, match="FP32; expected BYTES") as refused:
        client.infer("firstline", [made])
    assert refused.value.status() == "422"


def test_tritonclient_is_told_when_to_come_back(
    client: triton.InferenceServerClient, service: Echo
) -> None:
    service.fails = OverloadedError("The queue is full.")
    with pytest.raises(InferenceServerException, match="The queue is full") as refused:
        client.infer("firstline", [tensor(["a"], [1])])
    assert refused.value.status() == "429"


def test_a_compressed_body_is_refused_and_not_misread(
    client: triton.InferenceServerClient,
) -> None:
    with pytest.raises(InferenceServerException, match="compressed"):
        client.infer("firstline", [tensor(["a"], [1])], request_compression_algorithm="gzip")


# ---- keys ---------------------------------------------------------------------------------------


def admission_of(*entries: ApiKey) -> Admission:
    listed = json.dumps([entry.model_dump(mode="json") for entry in entries])
    return Admission(Keys(Path("/nowhere/keys.json"), SecretStr(listed)))


def key_with(scope: Scope, **changes: Any) -> tuple[str, ApiKey]:
    token, entry = new_key("ours", [scope], now=datetime.now(UTC))
    return token, entry.model_copy(update=changes)


def test_a_key_is_needed_to_ask_and_not_to_probe(service: Echo) -> None:
    token, entry = key_with(Scope.CLASSIFY)
    other_token, other = key_with(Scope.FEEDBACK)
    with (
        serving(make_api(service, admission_of(entry, other))) as url,
        triton.InferenceServerClient(url.removeprefix("http://")) as client,
    ):
        assert client.is_server_live()
        assert client.is_server_ready()
        for headers, status in (({}, "401"), ({"X-API-Key": other_token}, "403")):
            for version in ("", "r-2"):  # who may not ask does not learn which there are
                with pytest.raises(InferenceServerException, match="key") as refused:
                    client.infer("firstline", [tensor(["a"], [1])], version, headers=headers)
                assert refused.value.status() == status
        mine = {"Authorization": f"Bearer {token}"}
        assert client.is_model_ready("firstline", headers=mine)
        assert client.get_model_metadata("firstline", headers=mine)
        client.infer("firstline", [tensor(["a"], [1])], headers=mine)
    assert [caller.key for caller in service.callers] == [entry.id]


async def test_the_texts_are_taken_from_the_keys_rate(service: Echo) -> None:
    token, entry = key_with(Scope.CLASSIFY, rate=RateConfig(texts_per_min=256))
    api = make_api(service, admission_of(entry))
    many = body(shape=[200], data=["a"] * 200)
    async with asking(api) as http:
        http.headers["X-API-Key"] = token
        assert (await http.post(INFER, json=many)).status_code == 200
        refused = await http.post(INFER, json=many)
    assert "texts per minute" in check_refusal(refused, 429)
    assert int(refused.headers["retry-after"]) > 0


# ---- limits -------------------------------------------------------------------------------------


async def test_the_limits_are_those_of_classify(service: Echo) -> None:
    largest = body(shape=[256], data=["\U0001f600" * 10_000] + ["a"] * 255)
    response = await ask(service, "POST", INFER, json=largest)
    assert response.status_code == 200
    InferOut.model_validate_json(response.content)
    too_long = body(shape=[2], data=["a", SECRET + "x" * 10_000])
    said = check_refusal(await ask(service, "POST", INFER, json=too_long), 422)
    assert "texts[1]" in said
    assert "10000" in said
    too_large = b" " * (17 << 20)
    headers = {"content-type": "application/json"}
    response = await ask(service, "POST", INFER, content=too_large, headers=headers)
    assert "bytes" in check_refusal(response, 413)
    assert len(service.callers) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": SECRET}, "'text'"),
        ({"datatype": SECRET}, "none of the protocol's; expected BYTES"),
        ({"datatype": "INT64"}, "INT64; expected BYTES"),
        ({"shape": [2]}, "1 elements, but its shape says 2"),
        ({"shape": [0], "data": []}, "[0]; expected [n] or [n, 1]"),
        ({"shape": [257], "data": None}, "[257]; expected"),
        ({"shape": [1, 2]}, "[1, 2]; expected"),
        ({"shape": [-1]}, "[-1]; expected"),
        ({"shape": []}, "[]; expected"),
        ({"shape": [1] * 9}, "one of 9 dimensions"),
        ({"shape": [1] * 99}, "inputs[0].shape: List should have at most 16"),
        ({"shape": "1"}, "inputs[0].shape"),
        ({"shape": [True]}, "inputs[0].shape[0]"),
        ({"data": None}, "needs either data"),
        ({"data": [1]}, "inputs[0].data[0]"),
        ({"data": SECRET}, "inputs[0].data"),
        ({"data": [["a"], ["b"]]}, "2 elements"),
        ({"parameters": {"binary_data_size": 3}}, "needs either data"),
        ({"parameters": {"binary_data_size": -3}}, "inputs[0].parameters.binary_data_size"),
        ({"parameters": {"shared_memory_region": SECRET}}, "shared memory"),
        ({"parameters": [SECRET]}, "inputs[0].parameters"),
    ],
)
async def test_a_tensor_that_does_not_fit_is_told_what_was_found_and_expected(
    service: Echo, changes: dict[str, Any], said: str
) -> None:
    response = await ask(service, "POST", INFER, json=body(**changes))
    assert said in check_refusal(response, 422)
    assert not service.callers


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({}, "inputs: Field required"),
        ({"inputs": []}, "There are 0 inputs"),
        ({"inputs": body()["inputs"] * 2}, "There are 2 inputs"),
        ({**body(), "outputs": [{"name": SECRET}]}, "outputs[0] is none of the outputs: label"),
        ({**body(), "outputs": [{"name": "id"}] * 2}, "twice"),
        ({**body(), "outputs": [{"name": "id", "parameters": {"classification": 2}}]}, "classes"),
        ({**body(), "id": 7}, "id: "),
        ({**body(), "parameters": {"user_id": 7}}, "parameters.user_id"),
        ({**body(), "parameters": {"user_id": "x" * 201}}, "user_id: String should have at most"),
        ({**body(), "parameters": {"timeout": 0}}, "parameters.timeout"),
        ([SECRET], "body: "),
        (SECRET, "body: "),
    ],
)
async def test_a_request_that_does_not_fit_is_told_where(
    service: Echo, request_: Any, said: str
) -> None:
    assert said in check_refusal(await ask(service, "POST", INFER, json=request_), 422)


async def test_what_the_protocol_may_add_is_left_aside(service: Echo) -> None:
    """Its own example carries a `model_name` that its schema does not have."""
    more = {**body(), "model_name": "x", "parameters": {"sequence_id": 7, "priority": 1}}
    assert (await ask(service, "POST", INFER, json=more)).status_code == 200


@pytest.mark.parametrize(
    "nulls",
    [
        {"parameters": None},
        {"parameters": {"user_id": None, "timeout": None, "binary_data_output": None}},
        {"id": None},
        {"outputs": None},
        {"outputs": [{"name": "label", "parameters": None}]},
        {"outputs": [{"name": "label", "parameters": {"binary_data": None}}]},
        {"inputs": [{**body()["inputs"][0], "parameters": None}]},
        {"inputs": [{**body()["inputs"][0], "parameters": {"binary_data_size": None}}]},
    ],
)
async def test_null_is_absent_at_any_depth(service: Echo, nulls: dict[str, Any]) -> None:
    """As clients send what they do not set: `"parameters": null` was refused."""
    response = await ask(service, "POST", INFER, json={**body(), **nulls})
    assert response.status_code == 200, response.text
    assert response.json()["outputs"][0]["data"] == ["hello"]


async def test_a_request_sent_again_with_its_key_is_answered_once(service: Echo) -> None:
    """Also where the answer is bytes, and its headers say how to read them."""
    binary = {**body(), "parameters": {"binary_data_output": True}}
    headers = {"Idempotency-Key": "k"}
    async with asking(make_api(service)) as http:
        first = await http.post(INFER, json=binary, headers=headers)
        again = await http.post(INFER, json=binary, headers=headers)
        other = await http.post(INFER, json=body(data=["b"]), headers=headers)
        classified = await http.post("/v1/classify", json={"texts": ["a"]}, headers=headers)
    assert first.status_code == again.status_code == 200
    assert first.content == again.content
    for name in ("content-type", "content-length", HEADER_BYTES):
        assert first.headers[name] == again.headers[name]
    assert again.headers["idempotent-replay"] == "true"
    assert len(service.callers) == 1
    assert "another request" in check_refusal(other, 422)
    assert classified.status_code == 422


async def test_the_split_of_a_body_is_part_of_the_request(service: Echo) -> None:
    head = json.dumps(body()).encode()
    async with asking(make_api(service)) as http:
        for split, status in ((None, 200), (str(len(head)), 422)):
            headers = {"Idempotency-Key": "k", "content-type": "application/json"}
            headers |= {} if split is None else {HEADER_BYTES: split}
            assert (await http.post(INFER, content=head, headers=headers)).status_code == status


async def test_head_has_no_body_also_where_it_is_refused(service: Echo) -> None:
    service.gaps = ["a tier does not answer"]
    async with asking(make_api(service)) as http:
        for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/firstline", "/v2/x"):
            get, head = await http.get(path), await http.head(path)
            assert (head.status_code, head.content) == (get.status_code, b"")
            assert dict(head.headers) == dict(get.headers)


async def test_a_nested_tensor_is_read_row_by_row(service: Echo) -> None:
    nested = body(shape=[2, 1], data=[["a"], ["b"]])
    outputs = (await ask(service, "POST", INFER, json=nested)).json()["outputs"]
    assert outputs[0] == {"name": "label", "datatype": "BYTES", "shape": [2, 1], "data": ["a", "b"]}


# ---- binary tensors -----------------------------------------------------------------------------


def packed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


async def send_binary(
    service: Echo, tail: bytes, *, size: int | None = None, count: int = 1, header: Any = None
) -> httpx.Response:
    parameters = {"binary_data_size": len(tail) if size is None else size}
    head = json.dumps(body(data=None, shape=[count], parameters=parameters)).encode()
    headers = {
        HEADER_BYTES: str(len(head)) if header is None else header,
        "content-type": "application/octet-stream",
    }
    return await ask(service, "POST", INFER, content=head + tail, headers=headers)


async def test_bytes_may_come_in_and_json_go_out(service: Echo) -> None:
    response = await send_binary(service, packed("ä".encode(), b"b"), count=2)
    assert response.json()["outputs"][0]["data"] == ["ä", "b"]
    assert HEADER_BYTES not in response.headers


@pytest.mark.parametrize(
    ("tail", "options", "said"),
    [
        (packed(b"a")[:-1], {}, "longer than the bytes that came"),
        (packed(b"a") + b"\x01\x00", {}, "Element 1 of inputs[0] is longer"),
        (b"\xff\xff\xff\xff" + SECRET.encode(), {}, "Element 0 of inputs[0] is longer"),
        (packed(SECRET.encode() + b"\xff"), {}, "Element 0 of inputs[0] is not UTF-8"),
        (packed("\ud800".encode("utf-8", "surrogatepass")), {}, "not UTF-8"),
        (packed(b"a", b"b", b"c"), {"count": 1}, "has 2 elements, but its shape says 1"),
        (packed(b"a"), {"count": 2}, "has 1 elements, but its shape says 2"),
        (packed(b"a"), {"size": 4}, "5 bytes follow the JSON, but inputs[0] declares 4"),
        (packed(b"a"), {"size": 6}, "5 bytes follow the JSON, but inputs[0] declares 6"),
    ],
)
async def test_bytes_that_do_not_fit_are_refused(
    service: Echo, tail: bytes, options: dict[str, Any], said: str
) -> None:
    assert said in check_refusal(await send_binary(service, tail, **options), 422)
    assert not service.callers


@pytest.mark.parametrize("header", ["", "x", "-1", "1.0", "0", "5", "999999", "9" * 5000, "²"])
async def test_a_wrong_length_of_the_json_part_is_refused(service: Echo, header: str) -> None:
    response = await send_binary(service, packed(b"a"), header=header.encode())
    check_refusal(response, 400)


@given(texts=st.lists(st.text(max_size=20), min_size=1, max_size=9), binary=st.booleans())
def test_texts_come_through_both_encodings_unchanged(texts: list[str], binary: bool) -> None:
    elements = [text.encode() for text in texts]
    tail = packed(*elements) if binary else b""
    data = None if binary else texts
    parameters = {"binary_data_size": len(tail)} if binary else None
    head = json.dumps(body(shape=[len(texts)], data=data, parameters=parameters)).encode()
    assert read(head + tail, str(len(head)) if binary else None).texts == texts


# ---- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fails", "status"),
    [
        (EmptyTextsError([0]), 422),
        (OverloadedError("full"), 429),
        (UnansweredError([0]), 503),
        (AuditError(f"no disk for {SECRET}"), 503),
        (ServiceError("not yet"), 503),
        (RuntimeError(SECRET), 500),
    ],
)
async def test_what_breaks_behind_has_the_status_of_classify_and_the_protocols_shape(
    service: Echo, fails: Exception, status: int
) -> None:
    service.fails = fails
    theirs = await ask(service, "POST", "/v1/classify", json={"texts": ["a"]})
    ours = await ask(service, "POST", INFER, json=body())
    check_refusal(ours, status)
    assert theirs.status_code == status
    assert isinstance(theirs.json()["error"], dict)  # its own shape stays
    assert ours.headers.get("retry-after") == theirs.headers.get("retry-after")


async def test_an_empty_text_is_named(service: Echo) -> None:
    response = await ask(service, "POST", INFER, json=body(shape=[2], data=["a", " \t"]))
    assert "texts[1]: no visible character" in check_refusal(response, 422)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", f"/v2/{SECRET}", 404),
        ("GET", f"/v2/models/{SECRET}", 404),
        ("GET", f"/v2/models/firstline/versions/{SECRET}/ready", 404),
        ("GET", INFER, 405),
        ("DELETE", "/v2", 405),
        ("POST", f"/v2/models/{SECRET}/infer", 404),
    ],
)
async def test_wrong_doors_have_the_shape_too(
    service: Echo, method: str, path: str, status: int
) -> None:
    check_refusal(await ask(service, method, path), status)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", f'{{"inputs": ["{SECRET}"'.encode(), b'"\xff"', b"[" * 50_000, b'"\\ud800"'],
)
async def test_what_is_not_json_is_a_400(service: Echo, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    response = await ask(service, "POST", INFER, content=content, headers=headers)
    assert "not JSON" in check_refusal(response, 400)


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"origin": "https://evil.example"},
        {"content-encoding": "gzip", "content-type": "application/json"},
    ],
)
async def test_what_a_web_page_could_send_unasked_is_refused(
    service: Echo, headers: dict[str, str]
) -> None:
    """Else any page could make a service on loopback pay for its messages."""
    content = json.dumps(body()).encode()
    check_refusal(await ask(service, "POST", INFER, content=content, headers=headers), 415)
    assert not service.callers


async def test_the_request_is_in_the_schema_with_all_it_may_say(service: Echo) -> None:
    schema = (await ask(service, "GET", "/openapi.json")).json()
    content = schema["paths"][INFER.replace("firstline", "{name}")]["post"]["requestBody"][
        "content"
    ]
    asked = content["application/json"]["schema"]
    assert asked["properties"]["inputs"]["items"]["properties"]["datatype"]["examples"] == ["BYTES"]
    assert "$ref" not in json.dumps(asked)


# ---- whatever comes -----------------------------------------------------------------------------


fuzzed = schemathesis.openapi.from_asgi("/openapi.json", make_api(StubService()))


@fuzzed.include(path_regex="^/v2").parametrize()
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_is_sent_nothing_breaks(case: Any) -> None:
    check_unbroken(case.call())
    if "name" in case.path_parameters:  # a model that is there is not guessed by chance
        given = {"name": "firstline", "version": "r-1"}
        case.path_parameters = {name: given[name] for name in case.path_parameters}
        check_unbroken(case.call())


def check_unbroken(response: Any) -> None:
    assert response.status_code < 500
    if response.status_code >= 400:
        Refusal.model_validate(json.loads(response.content))


@given(content=st.binary(max_size=200), header=st.one_of(st.none(), st.integers(0, 200)))
def test_no_bytes_break_the_reader(content: bytes, header: int | None) -> None:
    """Only refusals come out, never another error."""
    try:
        texts = read(content, None if header is None else str(header)).texts
    except RefusedError:
        return
    assert texts
