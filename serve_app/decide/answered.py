"""What leaves for one text."""

from typing import NamedTuple

from serve_app.contracts import Route, RouteReason
from serve_app.decide.explain import Explanation


class Answered(NamedTuple):
    """What leaves for one text. `label` is None in a preview."""

    id: str
    label: str | None
    confidence: float
    route: Route
    reason: RouteReason
    cost_usd: float
    latency_ms: float
    release: str
    degraded: bool
    cached: bool = False
    explanation: Explanation | None = None
