"""What the monitor says: its configuration, and the figures, alerts and health that come out."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

_HOUR_S: Final = 3600.0


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """How much the monitor keeps: about 250 bytes per record, whichever bound is met first."""

    window_s: float = 24 * _HOUR_S
    capacity: int = 100_000
    rate_s: float = 60.0  # messages per second are a mean over this long
    min_extrapolation_s: float = 600.0  # a shorter window says nothing about a month


class AlertThresholds(_Model):
    """When to alert. The four limits are the published ones."""

    min_edge_share: float = Field(0.80, ge=0, le=1)
    min_accuracy: float = Field(0.85, ge=0, le=1)
    max_cost_usd: float = Field(0.01, gt=0, description="per message")
    max_p95_ms: float = Field(150.0, gt=0)
    min_records: int = Field(100, ge=1, description="no alert on fewer (bad outputs excepted)")
    min_labels: int = Field(50, ge=1, description="no accuracy alert on fewer feedback labels")


class Accuracy(_Model):
    """Answers that feedback confirmed, with a Wilson 95% interval; None without any label."""

    labelled: int
    correct: int
    share: float | None
    low: float | None
    high: float | None


class Disagreement(_Model):
    """Explored messages on which the cloud differs, with a Wilson 95% interval; None of none.

    Chance chose them, so the share holds of all messages that the rule trusts.
    """

    explored: int = Field(description="trusted, and answered by the cloud all the same")
    differing: int
    share: float | None
    low: float | None
    high: float | None


class Latency(_Model):
    """Milliseconds inside the router."""

    mean: float
    p50: float
    p95: float
    p99: float


class Stats(_Model):
    """The figures at `time_s`, of the records in the window. None: nothing to divide by."""

    time_s: float
    window_s: float
    span_s: float = Field(description="age of the oldest record in the window")
    messages: int
    messages_per_s: float
    edge_share: float | None
    cost_per_message_usd: float | None
    savings_vs_cloud_only: float | None = Field(description="share; negative if dearer")
    savings_per_month_usd: float | None = Field(description="at the window's rate of messages")
    latency_ms: Latency | None
    confidence_mean: float | None
    confidence_histogram: list[int] = Field(description="ten equal bins from 0 to 1")
    classes: dict[str, int]
    reasons: dict[str, int]
    releases: dict[str, int]
    degraded_share: float | None
    pii_pinned_share: float | None
    bad_outputs: int = Field(description="NaN or infinite outputs of a model")
    accuracy: Accuracy
    accuracy_by_route: dict[str, Accuracy]
    disagreement: Disagreement
    feedback_unmatched: int = Field(description="labels for an id that is not in the window")
    # Since the monitor's start; a rebuilt monitor starts with its window.
    messages_total: int
    reasons_total: dict[str, int]
    releases_total: dict[str, int]
    cost_total_usd: float
    bad_outputs_total: int


class AlertName(StrEnum):
    EDGE_SHARE = "edge_share"
    ACCURACY = "accuracy"
    COST = "cost"
    LATENCY = "latency"
    BAD_OUTPUTS = "bad_outputs"


class Alert(_Model):
    name: AlertName
    value: float
    limit: float
    message: str


class Direction(StrEnum):
    RISING = "rising"
    FALLING = "falling"
    STEADY = "steady"
    UNKNOWN = "unknown"  # too few records to say


class Trend(_Model):
    """A least-squares line through the means (or p95) of time buckets."""

    name: str
    direction: Direction
    slope_per_hour: float | None
    standard_error: float | None = Field(description="of the slope, per hour")
    buckets: int


class HealthStatus(StrEnum):
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    CRITICAL = "critical"
    UNKNOWN = "unknown"  # too few records to judge


class Health(_Model):
    """See `health()` for the formula. No score where there is too little to judge."""

    score: int | None = Field(ge=0, le=100)
    status: HealthStatus
    penalties: dict[str, float] = Field(description="what each finding took off the 100 points")


class Report(_Model):
    stats: Stats
    alerts: list[Alert]
    trends: list[Trend]
    health: Health
    recommendations: list[str]
