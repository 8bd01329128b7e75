"""The Open Inference Protocol v2 (KServe, Triton) over HTTP.

    add_v2(api, service, admission)

One model, `firstline`, whose version is the release. A request takes the way of `/v1/classify`:
same limits, guard, audit and keys. What is refused under /v2, by whomever, leaves as
{"error": "..."}, and never repeats what the client sent.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Final

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope

from serve_app.access.admission import Admission, Answers
from serve_app.access.keys import Scope
from serve_app.contracts import Caller
from serve_app.decide.answered import Answered
from serve_app.http.models import IdempotencyKey
from serve_app.http.routes import Service
from serve_app.http.tensors import (
    HEADER_BYTES,
    INPUT,
    MODEL,
    OUTPUTS,
    Asked,
    InferIn,
    InferOut,
    Out,
    read,
    refuse,
    write,
)

PLATFORM: Final = "firstline_cascade"
_BINARY: Final = "binary_tensor_data"


class TensorMetadata(Out):
    name: str
    datatype: str
    shape: list[int] = Field(description="-1: any number")


class ModelMetadata(Out):
    name: str
    versions: list[str] = Field(description="the release that answers")
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(Out):
    name: str
    version: str
    extensions: list[str]


class ServerLive(Out):
    live: bool


class ServerReady(Out):
    ready: bool


class ModelReady(Out):
    name: str
    ready: bool


class Refusal(Out):
    error: str


# ---- the shape of refusals ----------------------------------------------------------------------


class _OneShape:
    """ASGI: rewrites every refusal under /v2, also those of other layers, to {"error": "..."}.

    Status and headers stay. A crash is answered here, and still goes up to be logged.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or not (path == "/v2" or path.startswith("/v2/")):
            await self._app(scope, receive, send)
            return
        reshaped = _Reshaped(send)
        try:
            await self._app(scope, receive, reshaped)
        except Exception:
            if not reshaped.started:
                broken = "Something broke here. The operator finds the cause in the router's log."
                await JSONResponse({"error": broken}, 500)(scope, receive, send)
            raise


class _Reshaped:
    """A `send` that holds a refusal back until it is whole, and sends it in the other shape."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._refusal: Message | None = None
        self._body = b""
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self._refusal = message
        elif self._refusal is None:
            self.started = True
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._finish(self._refusal)

    async def _finish(self, start: Message) -> None:
        self.started = True
        body = json.dumps({"error": _words(self._body)}).encode()
        kept = [
            (name, value)
            for name, value in start["headers"]
            if name.lower() not in (b"content-length", b"content-type")
        ]
        sizes = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        await self._send({**start, "headers": kept + sizes})
        await self._send({"type": "http.response.body", "body": body})


def _words(body: bytes) -> str:
    """The message of a refusal in either shape, with its details."""
    try:
        error = json.loads(body)["error"]
        if isinstance(error, str):
            return error
        details = "; ".join(f"{item['where']}: {item['problem']}" for item in error["details"])
        return f"{error['message']} ({details})" if details else str(error["message"])
    except (ValueError, KeyError, TypeError):
        return "The request failed."


# ---- the routes ---------------------------------------------------------------------------------


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    described: tuple[int | str, ...] = (*statuses, "default")
    return {status: {"model": Refusal} for status in described}


def _inlined(value: Any, definitions: Mapping[str, Any]) -> Any:
    """A JSON schema without references, so that it can stand where FastAPI does not look."""
    if isinstance(value, Mapping):
        if reference := value.get("$ref"):
            value = {**definitions[reference.rsplit("/", 1)[-1]], **value}
        return {
            key: _inlined(item, definitions)
            for key, item in value.items()
            if key not in ("$ref", "$defs")
        }
    return [_inlined(item, definitions) for item in value] if isinstance(value, list) else value


def _infer_body() -> dict[str, Any]:
    """The request body for OpenAPI; the route reads it itself, since it may end in bytes."""
    schema = InferIn.model_json_schema()
    content = {
        "application/json": {"schema": _inlined(schema, schema["$defs"])},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    }
    return {"requestBody": {"required": True, "content": content}}


def _check_kind(request: Request) -> None:
    """Refuses what we do not read, and what a web page could send without a browser's asking.

    tritonclient names no content type; a browser that names none names its origin.
    """
    if request.headers.get("content-encoding", "identity") != "identity":
        refuse("The body is compressed. Send it as it is.", 415)
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind not in ("", "application/json", "application/octet-stream") or (
        not kind and "origin" in request.headers
    ):
        refuse("Send application/json, or application/octet-stream with binary tensors.", 415)


def _response(asked: Asked, answered: Sequence[Answered]) -> Response:
    head, tail = write(asked, answered)
    if not any(asked.outputs.values()):
        return Response(head, media_type="application/json")
    return Response(
        head + tail,
        media_type="application/octet-stream",
        headers={HEADER_BYTES: str(len(head))},
    )


def add_v2(api: FastAPI, service: Service, admission: Admission) -> None:
    """Adds the protocol's routes, after all others so that its shape of refusals holds outermost.

    What says something of the model, or asks it, needs the scope `classify`.
    """
    api.add_middleware(_OneShape)
    allowed = admission.needs(Scope.CLASSIFY)
    _add_server(api, service)
    checks: dict[str, Callable[..., Any]] = {
        "/v2/models/{name}": _any_version,
        "/v2/models/{name}/versions/{version}": partial(_one_version, service),
    }
    for path, known in checks.items():
        _add_model(api, service, allowed, path, known)
        _add_infer(api, admission.over(service), allowed, path, known)


async def _any_version(name: str) -> None:
    if name != MODEL:
        refuse(f"There is no model of this name; there is one, {MODEL!r}.", 404)


async def _one_version(service: Service, name: str, version: str) -> None:
    await _any_version(name)
    if version != (current := service.release()["id"]):
        refuse(f"No release of this name answers. Leave the version out, or ask {current}.", 404)


async def _check_ready(service: Service) -> None:
    if missing := await service.missing():
        refuse(f"Not ready: {'; '.join(missing)}. Wait, or look at `firstline status`.", 503)


def _add_server(api: FastAPI, service: Service) -> None:
    @api.get(
        "/v2/health/live",
        response_model=ServerLive,
        responses=_refusals(),
        summary="The process is alive (Open Inference Protocol)",
    )
    async def v2_live() -> Response:
        return JSONResponse({"live": True})

    @api.get(
        "/v2/health/ready",
        response_model=ServerReady,
        responses=_refusals(503),
        summary="Every model can answer (Open Inference Protocol)",
    )
    async def v2_ready() -> Response:
        await _check_ready(service)
        return JSONResponse({"ready": True})

    @api.get(
        "/v2",
        response_model=ServerMetadata,
        responses=_refusals(),
        summary="What this server is (Open Inference Protocol)",
    )
    async def v2_server() -> Response:
        return JSONResponse({"name": MODEL, "version": api.version, "extensions": [_BINARY]})


def _add_model(
    api: FastAPI,
    service: Service,
    allowed: Callable[..., Any],
    path: str,
    known: Callable[..., Any],
) -> None:
    @api.get(
        path,
        response_model=ModelMetadata,
        responses=_refusals(404, 503),
        dependencies=[Depends(allowed), Depends(known)],
        summary="The model's tensors (Open Inference Protocol)",
    )
    async def v2_model() -> Response:
        outputs = [
            {"name": name, "datatype": datatype, "shape": [-1]}
            for name, (datatype, _) in OUTPUTS.items()
        ]
        return JSONResponse(
            {
                "name": MODEL,
                "versions": [service.release()["id"]],
                "platform": PLATFORM,
                "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
                "outputs": outputs,
            }
        )

    @api.get(
        f"{path}/ready",
        response_model=ModelReady,
        responses=_refusals(404, 503),
        dependencies=[Depends(known)],
        summary="The model can answer (Open Inference Protocol)",
    )
    async def v2_model_ready() -> Response:
        await _check_ready(service)
        return JSONResponse({"name": MODEL, "ready": True})


def _add_infer(
    api: FastAPI,
    service: Answers,
    allowed: Callable[..., Any],
    path: str,
    known: Callable[..., Any],
) -> None:
    @api.post(
        f"{path}/infer",
        response_model=InferOut,
        responses=_refusals(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503),
        # Named here too, so that who may not ask does not learn which versions there are.
        dependencies=[Depends(allowed), Depends(known), Depends(_check_kind)],
        openapi_extra=_infer_body(),
        summary="Classify 1 to 256 texts (Open Inference Protocol)",
    )
    async def v2_infer(
        request: Request,
        caller: Annotated[Caller, Depends(allowed)],
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        asked = read(await request.body(), request.headers.get(HEADER_BYTES))
        answered = await service.answer(
            asked.texts, explain=False, route_only=False, caller=asked.by(caller)
        )
        return _response(asked, answered)
