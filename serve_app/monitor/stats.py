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
    """When to alert. The first four limits are the published ones.

    Those of edge share and cost hold for a release of which no certificate is known. With one, the
    edge share may be 10 points under the certified share, and a message cost what it then does.
    """

    min_edge_share: float = Field(0.80, ge=0, le=1)
    min_accuracy: float = Field(0.85, ge=0, le=1)
    max_cost_usd: float = Field(0.01, gt=0, description="per message")
    max_p95_ms: float = Field(150.0, gt=0, description="a list's time, shared by its messages")
    max_degraded_share: float = Field(0.05, ge=0, le=1)
    max_unanswered_share: float = Field(0.5, ge=0, le=1, description="of what is escalated")
    max_refused_share: float = Field(0.05, ge=0, le=1, description="of requests, by our fault")
    min_records: int = Field(100, ge=1, description="no alert of theirs on fewer")
    min_labels: int = Field(50, ge=1, description="no accuracy alert on fewer feedback labels")


class FeedbackAccuracy(_Model):
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


class LatencyQuantiles(_Model):
    """Milliseconds inside the router."""

    mean: float
    p50: float
    p95: float
    p99: float


class ReleaseStats(_Model):
    """What one release answered in the window, as its answers went out."""

    messages: int
    edge_share: float | None
    cost_per_message_usd: float | None
    latency_ms: LatencyQuantiles | None
    degraded_share: float | None
    cached_share: float | None
    accuracy: FeedbackAccuracy
    disagreement: Disagreement


class AsCertified(_Model):
    """What a certificate may be held against: the rule, without what failures did to it.

    `edge_share` is of what the rule kept there: a degraded answer counts as escalated, an explored
    one as kept. `accuracy` leaves degraded answers out. `disagreement` never has any.
    """

    messages: int
    edge_share: float | None
    accuracy: FeedbackAccuracy


class Agreement(_Model):
    """Messages on which a shadow says what the client was told, with a Wilson 95% interval."""

    compared: int = Field(description="both answered, and neither was degraded")
    agreeing: int
    share: float | None
    low: float | None
    high: float | None


class Differing(_Model):
    """A way in which a shadow differs."""

    live: str
    shadow: str
    messages: int


class ShadowStats(_Model):
    """What a release that answers nobody would have done; in no other figure."""

    messages: int
    edge_share: float | None
    cost_per_message_usd: float | None = Field(description="spent beside the answers' cost")
    degraded_share: float | None
    agreement: Agreement
    differing: list[Differing] = Field(description="the ten most frequent")


class AbuseNote(_Model):
    """A key that a rule has slowed or blocked. `key` is its id."""

    time_s: float
    key: str
    kind: str
    action: str
    until_s: float


class AbuseCount(_Model):
    kind: str
    action: str
    events: int


class RequestCount(_Model):
    """`release` is empty where none was asked, `code` where there was an answer."""

    route: str
    status: int
    code: str
    release: str
    requests: int


class RequestStats(_Model):
    """Requests that wanted something done, of late."""

    within_s: float
    requests: int
    refused: int = Field(description="by our fault: 5xx, or overloaded")
    refused_by_code: dict[str, int]


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
    latency_ms: LatencyQuantiles | None
    confidence_mean: float | None
    confidence_histogram: list[int] = Field(description="ten equal bins from 0 to 1")
    classes: dict[str, int]
    reasons: dict[str, int]
    releases: dict[str, int]
    by_release: dict[str, ReleaseStats]
    cached_share: float | None = Field(description="answered by no model, and so at no cost")
    degraded_share: float | None
    degraded_reasons: dict[str, int]
    pii_pinned_share: float | None
    bad_outputs: int = Field(description="NaN or infinite outputs of a model")
    accuracy: FeedbackAccuracy
    accuracy_by_route: dict[str, FeedbackAccuracy]
    disagreement: Disagreement
    as_certified: AsCertified
    feedback_unmatched: int = Field(description="labels for an id that is not in the window")
    shadows: dict[str, ShadowStats]
    abuse: list[AbuseNote] = Field(description="the newest, the newest first")
    states: dict[str, str] = Field(description="such as of a circuit breaker, as last told")
    requests: RequestStats
    problems: list[str] = Field(description="why a router is not ready")
    warnings: list[str] = Field(description="what will soon be one")
    # Since the first start: kept over restarts of the monitor and of the service.
    messages_total: int
    reasons_total: dict[str, int]
    releases_total: dict[str, int]
    cost_total_usd: float
    bad_outputs_total: int
    cached_total: int
    degraded_total: dict[str, int] = Field(description="by reason")
    shadow_messages_total: dict[str, int] = Field(description="by release")
    abuse_total: list[AbuseCount]
    requests_total: list[RequestCount]


class AlertName(StrEnum):
    EDGE_SHARE = "edge_share"
    ACCURACY = "accuracy"
    COST = "cost"
    LATENCY = "latency"
    BAD_OUTPUTS = "bad_outputs"
    DEGRADED = "degraded"
    ONE_CLASS = "one_class"
    REFUSED = "refused"
    NOT_READY = "not_ready"
    DISK = "disk"


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


class Difference(_Model):
    """The challenger's figure less the champion's, with a 95% interval; None: too little to say."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def stands_out(self) -> bool:
        """The interval leaves zero out."""
        return self.low is not None and self.high is not None and self.low * self.high > 0


class Arm(_Model):
    """One release of a comparison, over the time in which all of them answered."""

    release: str
    messages: int
    edge_share: float | None = Field(description="of what its rule kept there")
    degraded_share: float | None
    cost_per_message_usd: float | None = Field(description="without cached answers")
    latency_mean_ms: float | None = Field(description="without cached answers")
    accuracy: FeedbackAccuracy


class Verdict(StrEnum):
    """Which release is right more often, by feedback."""

    BETTER = "better"
    WORSE = "worse"
    UNDECIDED = "undecided"


class Comparison(_Model):
    """A challenger against the champion. `verdict` is of the challenger, by accuracy alone."""

    since_s: float
    until_s: float
    champion: Arm
    challenger: Arm
    accuracy: Difference
    edge_share: Difference
    degraded_share: Difference
    cost_usd: Difference
    latency_ms: Difference
    verdict: Verdict
    more_labels: int | None = Field(description="about so many, in all, to tell; None: it is told")
    summary: str


class MonitorReport(_Model):
    stats: Stats
    comparison: list[Comparison] = Field(description="one per challenger; empty for one release")
    alerts: list[Alert]
    trends: list[Trend]
    health: Health
    recommendations: list[str]
