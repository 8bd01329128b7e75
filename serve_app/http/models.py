"""The bodies of the native API: what comes in, and what goes out."""

from typing import Annotated, Any

from fastapi import Header
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticUseDefault

from serve_app.contracts import Route, RouteReason
from serve_app.decide.explain import Explanation
from serve_app.request_limits import MAX_CHARS, MAX_TEXTS

# Described here for the schema: the middleware reads it, for every POST.
IdempotencyKey = Annotated[
    str | None,
    Header(description="the same key and body again give the same answer again, for ten minutes"),
]


def null_is_absent(kind: Any) -> BeforeValidator:
    """For an optional field of this kind: many clients send null for what they do not set."""
    return BeforeValidator(_given, json_schema_input_type=kind | None)


def _given(value: Any) -> Any:
    if value is None:
        raise PydanticUseDefault
    return value


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
    user_id: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        repr=False,
        description="decides which release answers where several do; never kept",
    )
    explain: Annotated[bool, null_is_absent(bool)] = Field(
        False,
        strict=True,
        description="say why, with both costs and the nearest certified thresholds",
    )
    route_only: Annotated[bool, null_is_absent(bool)] = Field(
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
    cached: bool = Field(description="given before to the same text; free")
    explanation: Explanation | None = Field(None, description="absent unless asked for")


class ClassifyOut(_Model):
    answers: list[AnswerOut] = Field(description="one per text, in order")


class FeedbackIn(_Model):
    id: str = Field(pattern=r"^[0-9a-f]{32}$", description="of the answer")
    label: str = Field(max_length=1000, repr=False, description="the right one")


class FeedbackOut(_Model):
    accepted: bool
