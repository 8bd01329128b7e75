"""One shape for every error, and which error becomes which refusal.

    {"error": {"code": "...", "message": "...", "details": [{"where": "...", "problem": "..."}]}}

No error repeats what the client sent: a log of errors must not become a log of messages.
"""

import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import ceil
from typing import Any, Final

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from cluster.errors import AuditError, ServiceError
from serve_app.errors import (
    BodyTooLargeError,
    EmptyTextsError,
    IdempotencyConflictError,
    IdempotencyInWorkError,
    IdempotencyKeyError,
    OverloadedError,
    RefusedError,
    SlowBodyError,
    UnansweredError,
)
from serve_app.http.endings import note

log = logging.getLogger(__name__)

RETRY_AFTER_S: Final = 1
MAX_DETAILS: Final = 10
_COME_BACK: Final = {"Retry-After": str(RETRY_AFTER_S)}
# A rest of the body may be unread, so the connection cannot be used again.
_CLOSE: Final = {"Connection": "close"}
_PLAIN_NAME: Final = re.compile(r"[A-Za-z_]\w{0,39}", re.ASCII)

Handler = Callable[[Request, Exception], Awaitable[Response]]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Detail(_Model):
    where: str
    problem: str


class ErrorBody(_Model):
    code: str
    message: str
    details: list[Detail]


class ErrorOut(_Model):
    error: ErrorBody


CODES: Final = {
    400: "invalid_json",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    409: "in_work",
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
    code = code or CODES.get(status, f"http_{status}")
    note(code=code)
    body = ErrorOut(
        error=ErrorBody(
            code=code,
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
        for item in error.errors()[:MAX_DETAILS]
    ]


def _at(indices: Sequence[int], what: str) -> list[Detail]:
    return [Detail(where=f"texts[{index}]", problem=what) for index in indices[:MAX_DETAILS]]


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    if any(item["type"] == "json_invalid" for item in error.errors()):
        return problem(
            400, 'The body is not JSON. Send an object such as {"texts": ["Where is my order?"]}.'
        )
    return problem(
        422,
        "The request does not fit: see details. /docs shows every field.",
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
    headers = dict(error.headers or {})
    if headers.get("Allow") == "GET":
        headers["Allow"] = "GET, HEAD"
    return problem(error.status_code, text, headers=headers)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return problem(error.status, str(error), code=error.code, headers=error.headers)


async def _too_large(request: Request, error: Exception) -> Response:
    return problem(413, str(error), headers=_CLOSE)


async def _too_slow(request: Request, error: Exception) -> Response:
    return problem(408, str(error), headers=_CLOSE)


async def _empty(request: Request, error: Exception) -> Response:
    assert isinstance(error, EmptyTextsError)
    return problem(
        422, str(error), code="empty_text", details=_at(error.indices, "no visible character")
    )


async def _overloaded(request: Request, error: Exception) -> Response:
    assert isinstance(error, OverloadedError)
    return problem(429, str(error), headers={"Retry-After": str(ceil(error.retry_after_s) or 1)})


async def _unanswered(request: Request, error: Exception) -> Response:
    assert isinstance(error, UnansweredError)
    return problem(
        503,
        str(error),
        code="no_answer",
        details=_at(error.indices, "no tier answered"),
        headers=_COME_BACK,
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
    return problem(503, str(error), headers=_COME_BACK)


async def broken(request: Request, error: Exception) -> Response:
    return problem(500, "Something broke here. The operator finds the cause in the router's log.")


async def _no_idempotency_key(request: Request, error: Exception) -> Response:
    return problem(400, str(error), code="invalid_idempotency_key")


async def _in_work(request: Request, error: Exception) -> Response:
    return problem(409, str(error), headers=_COME_BACK)


async def _conflict(request: Request, error: Exception) -> Response:
    return problem(422, str(error), code="idempotency_conflict")


HANDLERS: Final[Mapping[type[Exception], Handler]] = {
    RequestValidationError: _invalid,
    HTTPException: _http_error,
    RefusedError: _refused,
    BodyTooLargeError: _too_large,
    SlowBodyError: _too_slow,
    IdempotencyKeyError: _no_idempotency_key,
    IdempotencyInWorkError: _in_work,
    IdempotencyConflictError: _conflict,
    EmptyTextsError: _empty,
    OverloadedError: _overloaded,
    UnansweredError: _unanswered,
    AuditError: _unaudited,
    ServiceError: _unavailable,
    Exception: broken,
}


async def refusal(request: Request, error: Exception) -> Response:
    """The response to an error that has one; any other is raised again, for whoever logs it."""
    for kind in type(error).__mro__:
        if kind is not Exception and kind in HANDLERS:
            return await HANDLERS[kind](request, error)
    raise error
