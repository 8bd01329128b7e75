"""HTTP: the routes of the native API.

    middleware.py (admission, body) ─┬─> Classify ─> service        POST /v1/classify, directly
                                     └─> FastAPI ─> service         all else

Refusals have one shape (errors.py), and none repeats what the client sent.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Protocol

from fastapi import Depends, FastAPI, Header, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import ValidationError

from serve_app.access.admission import Admission, Visit, deadline_s
from serve_app.access.keys import Scope
from serve_app.contracts import Caller
from serve_app.decide.answered import Answered
from serve_app.errors import RefusedError
from serve_app.http.body import BodyBudget
from serve_app.http.docs_page import docs_page
from serve_app.http.endings import OnEnd, ignore
from serve_app.http.errors import HANDLERS, MAX_DETAILS, Detail, ErrorOut, problem
from serve_app.http.idempotency import Idempotency
from serve_app.http.middleware import MAX_IN_WORK, JsonReply, Middleware, MiddlewareApi
from serve_app.http.models import (
    ClassifyIn,
    ClassifyOut,
    FeedbackIn,
    FeedbackOut,
    IdempotencyKey,
)
from serve_app.request_limits import MAX_DEADLINE_MS

CLASSIFY: Final = "/v1/classify"
_ENCODE: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class Service(Protocol):
    """What stands behind the routes: the router's replica, or a stub."""

    async def answer(
        self, texts: Sequence[str], *, explain: bool, route_only: bool, caller: Caller
    ) -> list[Answered]: ...

    def labels(self) -> Sequence[str]: ...

    async def feedback(self, answer_id: str, label: str) -> None: ...

    async def missing(self) -> Sequence[str]: ...

    def warnings(self) -> Sequence[str]: ...

    def release(self) -> Mapping[str, Any]: ...

    async def stats(self) -> Mapping[str, Any]: ...

    async def report(self) -> Mapping[str, Any]: ...

    async def metrics(self) -> bytes: ...


# ---- POST /v1/classify --------------------------------------------------------------------------


def answer_json(answered: Answered) -> dict[str, Any]:
    """AnswerOut as plain JSON, without the cost of validating what we made ourselves."""
    value: dict[str, Any] = {
        "id": answered.id,
        "label": answered.label,
        "confidence": answered.confidence,
        "route": answered.route,  # JSON takes a StrEnum as the string it is, and `.value` is slow
        "reason": answered.reason,
        "cost_usd": answered.cost_usd,
        "latency_ms": answered.latency_ms,
        "release": answered.release,
        "degraded": answered.degraded,
        "cached": answered.cached,
    }
    if answered.explanation is not None:
        value["explanation"] = answered.explanation.model_dump(mode="json")
    return value


class Classify:
    """A body -> its answers, by way of the middleware alone."""

    def __init__(self, service: Service, admission: Admission) -> None:
        self._service = admission.over(service)

    async def __call__(
        self, body: bytes, headers: Mapping[bytes, bytes], visit: Visit
    ) -> JsonReply:
        visit.check(Scope.CLASSIFY)
        _check_kind(body, headers)
        asked = _asked(body)
        caller = Caller(visit.id, asked.user_id, deadline_s(headers))
        answered = await self._service.answer(
            asked.texts, explain=asked.explain, route_only=asked.route_only, caller=caller
        )
        return JsonReply(_ENCODE({"answers": list(map(answer_json, answered))}).encode())


def _check_kind(body: bytes, headers: Mapping[bytes, bytes]) -> None:
    """Refuses what is not JSON by its own word: a web page may send that without asking."""
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    plain = headers.get(b"content-encoding", b"identity") == b"identity"
    if body and not (plain and (kind == b"application/json" or kind.endswith(b"+json"))):
        raise RefusedError(
            415,
            "unsupported_media_type",
            "The body is of another kind, or compressed. Send JSON with the header "
            "`Content-Type: application/json`.",
        )


def _asked(body: bytes) -> ClassifyIn:
    try:
        return ClassifyIn.model_validate_json(body or b"null")
    except ValidationError as error:
        items = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError(
            [{**item, "loc": ("body", *item["loc"])} for item in items]
        ) from None


# ---- the application ----------------------------------------------------------------------------


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorOut} for status in (401, 403, 429, *statuses)}


def create_api(
    service: Service,
    *,
    admission: Admission | None = None,
    idempotency: Idempotency | None = None,
    body_budget: BodyBudget | None = None,
    max_in_work: int = MAX_IN_WORK,
    on_end: OnEnd = ignore,
) -> FastAPI:
    """The application. Its routes only translate between HTTP and `service`.

    Args:
        admission: None: everybody may ask everything.
        idempotency: None: keys hold within this application.
        on_end: hears how each request has ended.
    """
    admission = admission or Admission()
    middleware = Middleware(
        admission=admission,
        body_budget=body_budget or BodyBudget(),
        direct={CLASSIFY: Classify(service, admission)},
        max_in_work=max_in_work,
        idempotency=idempotency,
    )
    api = MiddlewareApi(
        middleware,
        on_end,
        title="Firstline",
        version="1",
        description="Answers at the edge, escalates what is hard, accounts for every answer.",
        docs_url=None,  # FastAPI's page loads its scripts from a CDN; ours works offline
        redoc_url=None,
        exception_handlers=dict(HANDLERS),
    )
    _add_answers(api, service, admission)
    _add_probes(api, service)
    _add_figures(api, service, admission)
    return api


def _add_answers(api: FastAPI, service: Service, admission: Admission) -> None:
    @api.post(
        CLASSIFY,
        response_model=ClassifyOut,
        responses=_errors(400, 408, 409, 413, 415, 422, 503),
        dependencies=[Depends(admission.needs(Scope.CLASSIFY))],
        summary="Classify 1 to 256 texts",
    )
    async def classify(
        body: ClassifyIn,
        x_deadline_ms: Annotated[
            int | None,
            Header(ge=1, le=MAX_DEADLINE_MS, description="how long the caller waits at most"),
        ] = None,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        # Described here for the schema: the middleware hands the request to `Classify`.
        raise AssertionError(f"{CLASSIFY} came past the middleware")

    @api.post(
        "/v1/feedback",
        response_model=FeedbackOut,
        responses=_errors(400, 408, 409, 413, 422, 503),
        dependencies=[Depends(admission.needs(Scope.FEEDBACK))],
        summary="Say what an answer should have been",
    )
    async def feedback(body: FeedbackIn, idempotency_key: IdempotencyKey = None) -> Response:
        labels = service.labels()
        if body.label not in labels:
            shown = ", ".join(labels[:MAX_DETAILS]) + (", ..." if len(labels) > 10 else "")
            return problem(
                422,
                f"The label is not one of the {len(labels)} that the release knows ({shown}). "
                "/v1/release lists them all.",
                code="unknown_label",
            )
        await service.feedback(body.id, body.label)
        return JSONResponse({"accepted": True})


def _add_probes(api: FastAPI, service: Service) -> None:
    @api.get("/healthz", summary="The process is alive")
    async def healthz() -> Response:
        return JSONResponse({"status": "ok"})

    @api.get(
        "/readyz",
        responses={503: {"model": ErrorOut}},
        summary="Both tiers of every routed release answer, and what is answered can be kept",
    )
    async def readyz() -> Response:
        if missing := await service.missing():
            return problem(
                503,
                "Not ready: see details. Wait, or look at `firstline status`.",
                code="not_ready",
                details=[Detail(where="service", problem=item) for item in missing],
            )
        warnings = list(service.warnings())
        return JSONResponse({"status": "ready", **({"warnings": warnings} if warnings else {})})


def _add_figures(api: FastAPI, service: Service, admission: Admission) -> None:
    figures = [Depends(admission.needs(Scope.ADMIN))]

    @api.get("/v1/release", responses=_errors(503), summary="What answers, and its certificate")
    async def release() -> Response:
        return JSONResponse(dict(service.release()))

    @api.get(
        "/v1/stats",
        responses=_errors(503),
        dependencies=figures,
        summary="The monitor's figures",
    )
    async def stats() -> Response:
        return _strict_json(await service.stats())

    @api.get(
        "/v1/report",
        responses=_errors(503),
        dependencies=figures,
        summary="Figures, alerts, trends, health",
    )
    async def report() -> Response:
        return _strict_json(await service.report())

    @api.get(
        "/metrics",
        responses=_errors(503),
        dependencies=figures,
        summary="The same for Prometheus",
    )
    async def metrics() -> Response:
        return Response(
            await service.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    @api.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(docs_page(api.openapi()))


def _strict_json(value: Mapping[str, Any]) -> Response:
    return Response(json.dumps(value, allow_nan=False), media_type="application/json")
