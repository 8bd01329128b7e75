"""The records of the decision log: one per answer, one per label that came later. Never the text.

    AuditRecord, FeedbackRecord <─> a line of strict JSON

A key that a later version adds is read over; a value of the wrong type makes the line no record.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from pydantic_core import PydanticSerializationError, to_json

from cluster.errors import AuditError

ANSWER: Final = "answer"
FEEDBACK: Final = "feedback"


class AuditRecord(NamedTuple):
    """One answer. `route` and `reason` are the values of serve_app's enums.

    `label` is what went out, `edge_label` what the edge said, None if it failed. `propensity` is
    the chance with which the rule that ran takes the route that was taken: below 1 only where the
    service explores. `cached`: no model ran; route and reason are those of the same text before,
    and it cost nothing. `shadow_of` is the id of the answer whose message this release saw too,
    without answering it; None for an answer. `offline`: a row of a job, which the monitor passes
    over. `request_size` is how many messages its request had, whose latency they share.
    """

    id: str
    time_s: float
    text_hash: str
    route: str
    reason: str
    label: str
    edge_label: str | None
    confidence: float
    signals: Mapping[str, float]
    trust: float
    threshold: float
    propensity: float
    release: str
    cost_usd: float
    latency_ms: float
    degraded: bool
    cached: bool = False
    shadow_of: str | None = None
    offline: bool = False
    request_size: int = 1

    def to_json(self) -> bytes:
        """One line of strict JSON; NaN and infinities become the strings that `float()` reads.

        A request of one message, as most are, leaves out its size.
        """
        value = dict(zip(_ANSWER_KEYS, (ANSWER, *self), strict=True))
        if self.request_size == 1:
            del value["request_size"]
        return _dumps(value)


class FeedbackRecord(NamedTuple):
    """The label that an answer should have had, as reported later. `id` is the answer's."""

    id: str
    time_s: float
    label: str

    def to_json(self) -> bytes:
        value = {"id": self.id, "time_s": self.time_s, "label": self.label}
        return _dumps({"kind": FEEDBACK, **value})


Record = AuditRecord | FeedbackRecord


def as_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no string")
    return value


def as_text_or_none(value: Any) -> str | None:
    return None if value is None else as_text(value)


def as_number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def as_time(value: Any) -> float:
    number = as_number(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is no time")
    return number


def as_chance(value: Any) -> float:
    number = as_number(value)
    if not 0.0 < number <= 1.0:
        raise ValueError(f"{value!r} is no chance of something that happened")
    return number


def as_flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value


def as_size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 31:
        raise TypeError(f"{value!r} is no number of messages")
    return value


def as_numbers(value: Any) -> dict[str, float]:
    return {as_text(name): as_number(number) for name, number in value.items()}


ANSWER_FIELDS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "id": as_text,
    "time_s": as_time,
    "text_hash": as_text,
    "route": as_text,
    "reason": as_text,
    "label": as_text,
    "edge_label": as_text_or_none,
    "confidence": as_number,
    "signals": as_numbers,
    "trust": as_number,
    "threshold": as_number,
    "propensity": as_chance,
    "release": as_text,
    "cost_usd": as_number,
    "latency_ms": as_number,
    "degraded": as_flag,
    "cached": as_flag,
    "shadow_of": as_text_or_none,
    "offline": as_flag,
    "request_size": as_size,
}
_LATER: Final = frozenset({"request_size"})  # that a record may lack
_FEEDBACK_FIELDS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "id": as_text,
    "time_s": as_time,
    "label": as_text,
}
_ANSWER_KEYS: Final = ("kind", *AuditRecord._fields)


def _dumps(value: dict[str, Any]) -> bytes:
    """By pydantic's writer, in a quarter of the time that json.dumps takes."""
    try:
        return to_json(value, inf_nan_mode="strings")
    except PydanticSerializationError:  # a lone surrogate, for which UTF-8 has no bytes
        return json.dumps(_spelled(value), separators=(",", ":"), allow_nan=False).encode()


def _spelled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _spelled(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return value


def parse(line: str | bytes) -> Record:
    """A line -> its record. Keys that this version does not know are passed over.

    Raises:
        AuditError: the line is not JSON, lacks a key, or has a value of the wrong type.
    """
    try:
        return build(json.loads(line))
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise AuditError(
            f"The line is no audit record ({type(error).__name__}: {error})."
        ) from None


def build(value: Mapping[str, Any]) -> Record:
    kind = value["kind"]
    if kind == ANSWER:
        known = {
            name: read(value[name])
            for name, read in ANSWER_FIELDS.items()
            if name not in _LATER or value.get(name) is not None
        }
        return AuditRecord(**known)
    if kind == FEEDBACK:
        return FeedbackRecord(
            **{name: read(value[name]) for name, read in _FEEDBACK_FIELDS.items()}
        )
    raise ValueError(f"kind {kind!r} is neither {ANSWER} nor {FEEDBACK}")
