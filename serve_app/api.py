"""HTTP: routes, their models, and one shape for every error.

    {"error": {"code": "...", "message": "...", "details": [{"where": "...", "problem": "..."}]}}

No error repeats what the client sent: a log of errors must not become a log of messages.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Annotated, Any, Final, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.errors import AuditError, ServiceError
from serve_app.contracts import Route, RouteReason
from serve_app.explain import Explanation
from serve_app.gather import OverloadedError
from serve_app.router import Answered, EmptyTextsError, UnansweredError

log = logging.getLogger(__name__)

MAX_TEXTS: Final = 256
MAX_CHARS: Final = 10_000
# 256 texts of 10,000 characters, each escaped to the six bytes of a \uXXXX, and some air.
MAX_BODY_BYTES: Final = 16 << 20
# Of all bodies being read or answered: what keeps many large requests from filling the memory.
MAX_HELD_BYTES: Final = 256 << 20
RETRY_AFTER_S: Final = 1
_MAX_DETAILS: Final = 10
_PLAIN_NAME: Final = re.compile(r"[A-Za-z_]\w{0,39}", re.ASCII)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassifyIn(_Model):
    texts: list[Annotated[str, StringConstraints(max_length=MAX_CHARS)]] = Field(
        min_length=1,
        max_length=MAX_TEXTS,
        repr=False,
        description="each with at least one visible character",
        examples=[["Where is my order?"]],
    )
    explain: bool = Field(
        False,
        strict=True,
        description="say why, with both costs and the nearest certified thresholds",
    )
    route_only: bool = Field(
        False,
        strict=True,
        description="a preview of the route: the edge runs, the cloud is not paid, the label is "
        "null, and nothing but the route depends on it; neither audited nor counted",
    )


class AnswerOut(_Model):
    id: str
    label: str | None = Field(description="null with route_only, and only then")
    confidence: float = Field(description="calibrated, of the model that answered")
    route: Route
    reason: RouteReason
    cost_usd: float
    latency_ms: float = Field(description="until this text's answer was known to the router")
    release: str
    degraded: bool = Field(description="the cloud should have answered, and could not")
    explanation: Explanation | None = Field(None, description="absent unless asked for")


class ClassifyOut(_Model):
    answers: list[AnswerOut] = Field(description="one per text, in order")


class FeedbackIn(_Model):
    id: str = Field(pattern=r"^[0-9a-f]{32}$", description="of the answer")
    label: str = Field(max_length=1000, repr=False, description="the right one")


class FeedbackOut(_Model):
    accepted: bool


class Detail(_Model):
    where: str
    problem: str


class ErrorBody(_Model):
    code: str
    message: str
    details: list[Detail]


class ErrorOut(_Model):
    error: ErrorBody


class Service(Protocol):
    """What stands behind the routes: the router's replica, or a stub."""

    async def answer(
        self, texts: Sequence[str], *, explain: bool, route_only: bool
    ) -> list[Answered]: ...

    def labels(self) -> Sequence[str]: ...

    def feedback(self, answer_id: str, label: str) -> None: ...

    async def missing(self) -> Sequence[str]: ...

    def release(self) -> Mapping[str, Any]: ...

    async def stats(self) -> Mapping[str, Any]: ...

    async def report(self) -> Mapping[str, Any]: ...

    async def metrics(self) -> bytes: ...


# ---- errors -------------------------------------------------------------------------------------

_CODES: Final = {
    400: "invalid_json",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid_request",
    429: "overloaded",
    500: "internal",
    503: "unavailable",
}


def problem(
    status: int,
    message: str,
    *,
    code: str | None = None,
    details: Sequence[Detail] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The one shape."""
    body = ErrorOut(
        error=ErrorBody(
            code=code or _CODES.get(status, f"http_{status}"),
            message=message,
            details=list(details),
        )
    )
    return JSONResponse(body.model_dump(), status, dict(headers or {}))


def _name(part: Any) -> str:
    """A step of a location, unless it is the client's own words."""
    if isinstance(part, int):
        return f"[{part}]"
    return f".{part}" if _PLAIN_NAME.fullmatch(str(part)) else ".(a name not shown)"


def _details(error: RequestValidationError) -> list[Detail]:
    return [
        Detail(
            where="".join(map(_name, item["loc"][1:])).lstrip(".") or "body",
            problem=str(item["msg"]),
        )
        for item in error.errors()[:_MAX_DETAILS]
    ]


def _at(indices: Sequence[int], what: str) -> list[Detail]:
    return [Detail(where=f"texts[{index}]", problem=what) for index in indices[:_MAX_DETAILS]]


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    if any(item["type"] == "json_invalid" for item in error.errors()):
        return problem(
            400, 'The body is not JSON. Send an object such as {"texts": ["Where is my order?"]}.'
        )
    return problem(
        422,
        f"The request does not fit: see details. Send 1 to {MAX_TEXTS} texts of at most "
        f"{MAX_CHARS:,} characters as application/json; /docs shows every field.",
        details=_details(error),
    )


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {
        400: "The body cannot be read as JSON in UTF-8.",
        404: "There is nothing at this path. /docs lists the paths.",
        405: "This path does not take this method. /docs lists the methods.",
    }
    text = messages.get(error.status_code, "The request failed.")
    return problem(error.status_code, text, headers=error.headers)


async def _empty(request: Request, error: Exception) -> Response:
    assert isinstance(error, EmptyTextsError)
    return problem(
        422, str(error), code="empty_text", details=_at(error.indices, "no visible character")
    )


async def _overloaded(request: Request, error: Exception) -> Response:
    return problem(429, str(error), headers={"Retry-After": str(RETRY_AFTER_S)})


async def _unanswered(request: Request, error: Exception) -> Response:
    assert isinstance(error, UnansweredError)
    return problem(
        503,
        str(error),
        code="no_answer",
        details=_at(error.indices, "no tier answered"),
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )


async def _unaudited(request: Request, error: Exception) -> Response:
    log.error("No answer may leave: %s", error)
    return problem(
        503,
        "The decision could not be written to the audit log, so no answer leaves. The operator "
        "finds the cause in the router's log.",
        code="audit_failed",
    )


async def _unavailable(request: Request, error: Exception) -> Response:
    return problem(503, str(error), headers={"Retry-After": str(RETRY_AFTER_S)})


async def _broken(request: Request, error: Exception) -> Response:
    return problem(500, "Something broke here. The operator finds the cause in the router's log.")


_HANDLERS: Final = {
    RequestValidationError: _invalid,
    HTTPException: _http_error,
    EmptyTextsError: _empty,
    OverloadedError: _overloaded,
    UnansweredError: _unanswered,
    AuditError: _unaudited,
    ServiceError: _unavailable,
    Exception: _broken,
}


class _TooLargeError(Exception):
    """More bytes came than one body may have."""


class BodyLimit:
    """ASGI: a body is counted as it streams in, and refused before anything parses it.

    `max_held_bytes` bounds all bodies together, so that many large ones cannot fill the memory.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_body_bytes: int = MAX_BODY_BYTES,
        max_held_bytes: int = MAX_HELD_BYTES,
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_held_bytes = max_held_bytes
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body_bytes = 0

        async def counted() -> Message:
            nonlocal body_bytes
            message = await receive()
            size = len(message.get("body", b""))
            body_bytes += size
            self._held_bytes += size
            if body_bytes > self._max_body_bytes:
                raise _TooLargeError
            if self._held_bytes > self._max_held_bytes:
                raise OverloadedError("Too many large requests are in work. Try again in a moment.")
            return message

        try:
            if _declared_bytes(scope) > self._max_body_bytes:
                raise _TooLargeError
            # The body is read here: raised inside the application, the refusal would be wrapped
            # by whoever parses.
            await self._app(scope, await _buffered(scope, counted, receive), send)
        except _TooLargeError:
            refusal = problem(
                413,
                f"The body has more than {self._max_body_bytes:,} bytes, the limit. Send fewer or "
                "shorter texts.",
                headers={"Connection": "close"},
            )
            await refusal(scope, receive, send)
        except OverloadedError as error:
            await (await _overloaded(Request(scope), error))(scope, receive, send)
        finally:
            self._held_bytes -= body_bytes


def _declared_bytes(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


async def _buffered(scope: Scope, counted: Receive, receive: Receive) -> Receive:
    """Reads the body, and gives a `receive` that tells it again."""
    if scope["method"] in {"GET", "HEAD"}:
        return counted
    messages: list[Message] = []
    while True:
        message = await counted()
        messages.append(message)
        if message["type"] != "http.request" or not message.get("more_body", False):
            break
    rest = iter(messages)

    async def again() -> Message:
        return next(rest, None) or await receive()

    return again


# ---- the routes ---------------------------------------------------------------------------------


def answer_json(answered: Answered) -> dict[str, Any]:
    """AnswerOut as plain JSON, without the cost of validating what we made ourselves."""
    value: dict[str, Any] = {
        "id": answered.id,
        "label": answered.label,
        "confidence": answered.confidence,
        "route": answered.route.value,
        "reason": answered.reason.value,
        "cost_usd": answered.cost_usd,
        "latency_ms": answered.latency_ms,
        "release": answered.release,
        "degraded": answered.degraded,
    }
    if answered.explanation is not None:
        value["explanation"] = answered.explanation.model_dump(mode="json")
    return value


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorOut} for status in statuses}


def create_api(
    service: Service,
    *,
    max_body_bytes: int = MAX_BODY_BYTES,
    max_held_bytes: int = MAX_HELD_BYTES,
) -> FastAPI:
    """The application. Its routes only translate between HTTP and `service`."""
    api = FastAPI(
        title="Firstline",
        version="1",
        description="Answers at the edge, escalates what is hard, accounts for every answer.",
        docs_url=None,  # FastAPI's page loads its scripts from a CDN; ours works offline
        redoc_url=None,
        exception_handlers=_HANDLERS,  # type: ignore[arg-type]
    )
    api.add_middleware(BodyLimit, max_body_bytes=max_body_bytes, max_held_bytes=max_held_bytes)
    _add_answers(api, service)
    _add_probes(api, service)
    _add_figures(api, service)
    return api


def _add_answers(api: FastAPI, service: Service) -> None:
    @api.post(
        "/v1/classify",
        response_model=ClassifyOut,
        responses=_errors(400, 413, 422, 429, 503),
        summary="Classify 1 to 256 texts",
    )
    async def classify(body: ClassifyIn) -> Response:
        answered = await service.answer(
            body.texts, explain=body.explain, route_only=body.route_only
        )
        return JSONResponse({"answers": [answer_json(one) for one in answered]})

    @api.post(
        "/v1/feedback",
        response_model=FeedbackOut,
        responses=_errors(400, 413, 422, 503),
        summary="Say what an answer should have been",
    )
    async def feedback(body: FeedbackIn) -> Response:
        labels = service.labels()
        if body.label not in labels:
            shown = ", ".join(labels[:_MAX_DETAILS]) + (", ..." if len(labels) > 10 else "")
            return problem(
                422,
                f"The label is not one of the {len(labels)} that the release knows ({shown}). "
                "/v1/release lists them all.",
                code="unknown_label",
            )
        service.feedback(body.id, body.label)
        return JSONResponse({"accepted": True})


def _add_probes(api: FastAPI, service: Service) -> None:
    @api.get("/healthz", summary="The process is alive")
    async def healthz() -> Response:
        return JSONResponse({"status": "ok"})

    @api.get(
        "/readyz",
        responses=_errors(503),
        summary="Both tiers of every routed release have reproduced their golden answers",
    )
    async def readyz() -> Response:
        if missing := await service.missing():
            return problem(
                503,
                "Not ready: see details. Wait, or look at `firstline status`.",
                code="not_ready",
                details=[Detail(where="service", problem=item) for item in missing],
            )
        return JSONResponse({"status": "ready"})


def _add_figures(api: FastAPI, service: Service) -> None:
    @api.get("/v1/release", responses=_errors(503), summary="What answers, and its certificate")
    async def release() -> Response:
        return JSONResponse(dict(service.release()))

    @api.get("/v1/stats", responses=_errors(503), summary="The monitor's figures")
    async def stats() -> Response:
        return _strict_json(await service.stats())

    @api.get("/v1/report", responses=_errors(503), summary="Figures, alerts, trends, health")
    async def report() -> Response:
        return _strict_json(await service.report())

    @api.get("/metrics", responses=_errors(503), summary="The same for Prometheus")
    async def metrics() -> Response:
        return Response(
            await service.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    @api.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(docs_page(api.openapi()))


def _strict_json(value: Mapping[str, Any]) -> Response:
    return Response(json.dumps(value, allow_nan=False), media_type="application/json")


# ---- the page at /docs --------------------------------------------------------------------------

_PAGE: Final = """<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>body{{font:16px/1.5 system-ui;max-width:56rem;margin:2rem auto;padding:0 1rem}}
code,pre{{background:#8881;padding:.1em .3em}}pre{{padding:1em;overflow:auto}}</style>
<h1>{title}</h1><p>{description}</p>
<p>For tools: <a href="openapi.json">openapi.json</a></p>{body}"""


def docs_page(schema: Mapping[str, Any]) -> str:
    """The OpenAPI document as one HTML page, with nothing to load from elsewhere."""
    routes = "".join(
        f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
        f"<p>{escape(operation.get('summary', ''))}</p>{_bodies(operation)}"
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    )
    models = "".join(
        f"<details id={escape(name)}><summary><code>{escape(name)}</code></summary>"
        f"<pre>{escape(json.dumps(model, indent=2))}</pre></details>"
        for name, model in schema.get("components", {}).get("schemas", {}).items()
    )
    info = schema["info"]
    return _PAGE.format(
        title=escape(info["title"]),
        description=escape(info.get("description", "")),
        body=f"{routes}<h2>Models</h2>{models}",
    )


def _bodies(operation: Mapping[str, Any]) -> str:
    named = {"takes": operation.get("requestBody", {}), **operation["responses"]}
    rows = [
        f"<li>{escape(str(key))}: <a href='#{name}'><code>{name}</code></a></li>"
        for key, value in named.items()
        if (name := _model_name(value))
    ]
    return f"<ul>{''.join(rows)}</ul>"


def _model_name(body: Mapping[str, Any]) -> str:
    reference = body.get("content", {}).get("application/json", {}).get("schema", {}).get("$ref")
    return escape(str(reference).rsplit("/", 1)[-1]) if reference else ""
