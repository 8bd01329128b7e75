"""Watching the cascade: audit records -> windows -> figures, alerts, trends, health, Prometheus.

    router replica: MetricsEmitter.emit ──(batches, off the request path)──> MonitorActor
    MonitorActor:   Windows.ingest -> snapshot() -> Stats -> prometheus_text()
                                   -> report()   -> Report (alerts, trends, health, advice)

Everything but the actor at the bottom is pure: the clock is an argument, and Ray is not imported.
The audit log is the truth and the monitor its shadow: records are counted once by id, feedback by
its newest time, so a monitor rebuilt from the log shows what the lost one showed.
"""

import asyncio
import logging
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel, ConfigDict, Field

from cluster.audit import AuditRecord, FeedbackRecord, Record, read
from serve_app.contracts import Route, RouteReason
from serve_app.cost import Prices

log = logging.getLogger(__name__)

ACTOR_NAME: Final = "firstline-monitor"
NAMESPACE: Final = "firstline"

_HOUR_S: Final = 3600.0
_MONTH_S: Final = 365.25 / 12 * 24 * _HOUR_S
_Z95: Final = NormalDist().inv_cdf(0.975)

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


# ---- configuration ------------------------------------------------------------------------------


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


# ---- what comes out -----------------------------------------------------------------------------


class Accuracy(_Model):
    """Answers that feedback confirmed, with a Wilson 95% interval; None without any label."""

    labelled: int
    correct: int
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


# ---- the window ---------------------------------------------------------------------------------

_UNKNOWN, _WRONG, _RIGHT = -1, 0, 1  # what feedback has said of a row
_ROW: Final = np.dtype(
    [
        ("time_s", "f8"),
        ("confidence", "f8"),
        ("cost_usd", "f8"),
        ("latency_ms", "f8"),
        ("feedback_s", "f8"),
        ("label", "i4"),
        ("reason", "i2"),
        ("release", "i2"),
        ("verdict", "i1"),
        ("edge", "?"),
        ("degraded", "?"),
    ]
)


class _Names:
    """Strings <-> small numbers, for columns of few distinct values."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    def code(self, name: str) -> int:
        return self._codes.setdefault(name, len(self._codes))

    def find(self, name: str) -> int:
        """-1 if never seen: what clients send must not grow the table."""
        return self._codes.get(name, -1)

    def count(self, codes: NDArray[Any]) -> dict[str, int]:
        """name -> how often, the most frequent first."""
        counts = np.bincount(codes, minlength=len(self._codes)).tolist()
        found = [(name, counts[code]) for name, code in self._codes.items() if counts[code]]
        return dict(sorted(found, key=lambda item: (-item[1], item[0])))


class Windows:
    """The newest records in a ring of columns, and the figures over them.

    Not thread-safe: its owner calls it from one thread. Time leaves the window by comparison with
    `now_s`, never by deletion, so a snapshot changes nothing.
    """

    def __init__(
        self,
        prices: Prices | None = None,
        thresholds: AlertThresholds | None = None,
        config: WindowConfig | None = None,
    ) -> None:
        self.prices = prices or Prices()
        self.thresholds = thresholds or AlertThresholds()
        self.config = config or WindowConfig()
        self._rows = np.zeros(self.config.capacity, dtype=_ROW)
        self._ids: list[str] = []
        self._slots: dict[str, int] = {}
        self._labels, self._reasons, self._releases = _Names(), _Names(), _Names()
        # Feedback whose answer is not here: too old, made up, or faster than the answer's batch.
        self._unmatched: OrderedDict[str, FeedbackRecord] = OrderedDict()
        self._bad: deque[tuple[float, int]] = deque(maxlen=10_000)
        self._total = 0
        self._reasons_total: Counter[str] = Counter()
        self._releases_total: Counter[str] = Counter()
        self._cost_total_usd = 0.0
        self._bad_total = 0

    def ingest(self, records: Iterable[Record]) -> None:
        """Answers and feedback in any order, as they stand in the audit log."""
        for record in records:
            if isinstance(record, AuditRecord):
                self._add(record)
            else:
                self._judge(record)

    def observe(self, records: Sequence[AuditRecord]) -> None:
        """Counts each record once, however often it is shown."""
        self.ingest(records)

    def feedback(self, records: Sequence[FeedbackRecord]) -> None:
        """Takes the newest label per answer."""
        self.ingest(records)

    def count_bad_outputs(self, count: int, now_s: float) -> None:
        """Counts outputs that led to no answer. They are not in the audit log: a rebuilt monitor
        knows only those that reached an answer's record as its confidence."""
        self._bad.append((now_s, count))
        self._bad_total += count

    def _add(self, record: AuditRecord) -> None:
        if record.id in self._slots:
            return
        slot = self._total % self.config.capacity
        if slot < len(self._ids):
            del self._slots[self._ids[slot]]
            self._ids[slot] = record.id
        else:
            self._ids.append(record.id)
        self._slots[record.id] = slot
        self._rows[slot] = (
            record.time_s,
            record.confidence,
            record.cost_usd,
            record.latency_ms,
            -math.inf,
            self._labels.code(record.label),
            self._reasons.code(record.reason),
            self._releases.code(record.release),
            _UNKNOWN,
            record.route == Route.EDGE,
            record.degraded,
        )
        self._count(record)
        if waiting := self._unmatched.pop(record.id, None):
            self._judge(waiting)

    def _count(self, record: AuditRecord) -> None:
        self._total += 1
        self._reasons_total[record.reason] += 1
        self._releases_total[record.release] += 1
        self._cost_total_usd += record.cost_usd
        self._bad_total += not math.isfinite(record.confidence)

    def _judge(self, feedback: FeedbackRecord) -> None:
        slot = self._slots.get(feedback.id)
        if slot is None or self._is_out(self._rows["time_s"][slot], feedback.time_s):
            self._keep_unmatched(feedback)
            return
        row = self._rows[slot]
        if feedback.time_s >= row["feedback_s"]:
            row["feedback_s"] = feedback.time_s
            row["verdict"] = self._labels.find(feedback.label) == row["label"]

    def _keep_unmatched(self, feedback: FeedbackRecord) -> None:
        known = self._unmatched.get(feedback.id)
        if known is None or known.time_s <= feedback.time_s:
            self._unmatched[feedback.id] = feedback
        if len(self._unmatched) > self.config.capacity:
            self._unmatched.popitem(last=False)

    def _is_out(self, time_s: float, now_s: float) -> bool:
        return time_s <= now_s - self.config.window_s

    def _window(self, now_s: float) -> NDArray[Any]:
        """The rows in the window, in order of time, so that no figure depends on arrival."""
        rows = self._rows[: len(self._ids)]
        rows = rows[rows["time_s"] > now_s - self.config.window_s]
        return rows[np.argsort(rows["time_s"], kind="stable")]

    def snapshot(self, now_s: float) -> Stats:
        """The figures as of now."""
        return self._stats(self._window(now_s), now_s)

    def report(self, now_s: float) -> Report:
        """The figures, and what to make of them."""
        rows = self._window(now_s)
        stats = self._stats(rows, now_s)
        alerts = find_alerts(stats, self.thresholds)
        trends = find_trends(rows)
        return Report(
            stats=stats,
            alerts=alerts,
            trends=trends,
            health=health(stats, alerts, self.thresholds),
            recommendations=recommend(stats, alerts, trends, self.thresholds),
        )

    def _stats(self, rows: NDArray[Any], now_s: float) -> Stats:
        span_s = max(0.0, now_s - float(rows["time_s"][0])) if len(rows) else 0.0
        cost_usd = _mean(rows["cost_usd"])
        reasons = self._reasons.count(rows["reason"])
        confidence = rows["confidence"][np.isfinite(rows["confidence"])]
        recent = np.count_nonzero(rows["time_s"] > now_s - self.config.rate_s)
        bad = sum(count for time_s, count in self._bad if not self._is_out(time_s, now_s))
        edge = rows["edge"]
        return Stats(
            time_s=now_s,
            window_s=self.config.window_s,
            span_s=span_s,
            messages=len(rows),
            messages_per_s=recent / self.config.rate_s,
            edge_share=_mean(edge),
            cost_per_message_usd=cost_usd,
            savings_vs_cloud_only=None if cost_usd is None else self.prices.savings(cost_usd),
            savings_per_month_usd=self._savings_per_month_usd(len(rows), span_s, cost_usd),
            latency_ms=_latency(rows["latency_ms"]),
            confidence_mean=_mean(confidence),
            confidence_histogram=np.histogram(confidence, bins=10, range=(0.0, 1.0))[0].tolist(),
            classes=self._labels.count(rows["label"]),
            reasons=reasons,
            releases=self._releases.count(rows["release"]),
            degraded_share=_mean(rows["degraded"]),
            pii_pinned_share=_share(reasons.get(RouteReason.PII_PINNED, 0), len(rows)),
            bad_outputs=bad + len(rows) - len(confidence),
            accuracy=_accuracy(rows["verdict"]),
            accuracy_by_route={
                Route.EDGE.value: _accuracy(rows["verdict"][edge]),
                Route.CLOUD.value: _accuracy(rows["verdict"][~edge]),
            },
            feedback_unmatched=sum(
                not self._is_out(feedback.time_s, now_s) for feedback in self._unmatched.values()
            ),
            messages_total=self._total,
            reasons_total=dict(sorted(self._reasons_total.items())),
            releases_total=dict(sorted(self._releases_total.items())),
            cost_total_usd=self._cost_total_usd,
            bad_outputs_total=self._bad_total,
        )

    def _savings_per_month_usd(
        self, messages: int, span_s: float, cost_usd: float | None
    ) -> float | None:
        if cost_usd is None or span_s < self.config.min_extrapolation_s:
            return None
        return (self.prices.cloud_usd - cost_usd) * messages / span_s * _MONTH_S


def _mean(values: NDArray[Any]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _latency(values_ms: Floats) -> Latency | None:
    if not len(values_ms):
        return None
    p50, p95, p99 = np.percentile(values_ms, (50, 95, 99)).tolist()
    return Latency(mean=float(np.mean(values_ms)), p50=p50, p95=p95, p99=p99)


def _accuracy(verdicts: NDArray[Any]) -> Accuracy:
    labelled = int(np.count_nonzero(verdicts != _UNKNOWN))
    correct = int(np.count_nonzero(verdicts == _RIGHT))
    low, high = wilson(correct, labelled) if labelled else (None, None)
    return Accuracy(
        labelled=labelled, correct=correct, share=_share(correct, labelled), low=low, high=high
    )


def wilson(correct: int, total: int) -> tuple[float, float]:
    """The Wilson score interval at 95% (Wilson, 1927): honest for few labels and near 0 or 1."""
    share, z2 = correct / total, _Z95 * _Z95
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return max(0.0, centre - half), min(1.0, centre + half)


# ---- alerts -------------------------------------------------------------------------------------


def find_alerts(stats: Stats, limits: AlertThresholds) -> list[Alert]:
    """The thresholds that are crossed. A bad output needs no minimum: one is too many."""
    found: list[Alert | None] = []
    if stats.messages >= limits.min_records:
        p95_ms = stats.latency_ms.p95 if stats.latency_ms else None
        labelled = stats.accuracy.labelled
        right = stats.accuracy.share if labelled >= limits.min_labels else None
        found += [
            _under(AlertName.EDGE_SHARE, stats.edge_share, limits.min_edge_share),
            _under(AlertName.ACCURACY, right, limits.min_accuracy),
            _over(AlertName.COST, stats.cost_per_message_usd, limits.max_cost_usd),
            _over(AlertName.LATENCY, p95_ms, limits.max_p95_ms),
        ]
    found.append(_over(AlertName.BAD_OUTPUTS, stats.bad_outputs, 0))
    return [alert for alert in found if alert is not None]


_ALERTS: Final[Mapping[AlertName, str]] = {
    AlertName.EDGE_SHARE: "The edge answers {:.1%} of messages, under {:.0%}.",
    AlertName.ACCURACY: "By feedback, {:.1%} of answers are right, under {:.0%}.",
    AlertName.COST: "A message costs ${:.4f}, over ${:g}.",
    AlertName.LATENCY: "The p95 latency is {:.0f} ms, over {:g} ms.",
    AlertName.BAD_OUTPUTS: "{:g} model outputs were NaN or infinite.",
}


def _under(name: AlertName, value: float | None, limit: float) -> Alert | None:
    return _alert(name, value, limit) if value is not None and value < limit else None


def _over(name: AlertName, value: float | None, limit: float) -> Alert | None:
    return _alert(name, value, limit) if value is not None and value > limit else None


def _alert(name: AlertName, value: float, limit: float) -> Alert:
    message = _ALERTS[name].format(value, limit)
    return Alert(name=name, value=value, limit=limit, message=message)


# ---- trends -------------------------------------------------------------------------------------

_MAX_BUCKETS: Final = 24
_MIN_BUCKETS: Final = 8
_MIN_BUCKET_S: Final = 60.0
_MIN_PER_BUCKET: Final = 10
# A slope counts from three standard errors on: with no trend, eight buckets exceed that in 2.4% of
# cases (Student's t, 6 degrees of freedom) and twenty-four in 0.7%.
_STANDARD_ERRORS: Final = 3.0


def find_trends(rows: NDArray[Any]) -> list[Trend]:
    """How the figures move over the window; `rows` are in order of time."""
    buckets = _buckets(rows)
    hours = np.array([float(np.mean(bucket["time_s"])) for bucket in buckets]) / _HOUR_S

    def trend(name: str, of: Callable[[NDArray[Any]], Any]) -> Trend:
        return fit_trend(name, hours, np.array([float(of(bucket)) for bucket in buckets]))

    return [
        trend("edge_share", lambda bucket: np.mean(bucket["edge"])),
        trend("latency_p95_ms", lambda bucket: np.percentile(bucket["latency_ms"], 95)),
        trend("cost_per_message_usd", lambda bucket: np.mean(bucket["cost_usd"])),
        trend("confidence", lambda bucket: _finite_mean(bucket["confidence"])),
    ]


def _buckets(rows: NDArray[Any]) -> list[NDArray[Any]]:
    """At most 24 equal stretches of time, a minute or longer; those with few rows left out."""
    if not len(rows):
        return []
    ages_s = rows["time_s"] - rows["time_s"][0]
    # Slightly wider than a 24th, so that the newest row falls into the last bucket.
    width_s = max(_MIN_BUCKET_S, float(ages_s[-1]) * (1 + 1e-9) / _MAX_BUCKETS)
    edges = np.flatnonzero(np.diff(np.floor_divide(ages_s, width_s))) + 1
    return [bucket for bucket in np.split(rows, edges) if len(bucket) >= _MIN_PER_BUCKET]


def _finite_mean(values: Floats) -> float:
    finite = values[np.isfinite(values)]
    return float(np.mean(finite)) if len(finite) else math.nan


def fit_trend(name: str, hours: Floats, values: Floats) -> Trend:
    """Ordinary least squares of bucket values on time, and whether the slope stands out."""
    keep = np.isfinite(values)
    hours, values = hours[keep], values[keep]
    count = len(values)
    if count < _MIN_BUCKETS:
        return Trend(
            name=name,
            direction=Direction.UNKNOWN,
            slope_per_hour=None,
            standard_error=None,
            buckets=count,
        )
    x, y = hours - np.mean(hours), values - np.mean(values)
    spread = float(x @ x)
    slope = float(x @ y) / spread
    error = math.sqrt(float(np.sum((y - slope * x) ** 2)) / (count - 2) / spread)
    # A constant's slope is rounding noise, and so is its error.
    noise = 1e-9 * float(np.max(np.abs(values))) / float(np.ptp(hours))
    direction = Direction.STEADY
    if abs(slope) > max(_STANDARD_ERRORS * error, noise):
        direction = Direction.RISING if slope > 0 else Direction.FALLING
    return Trend(
        name=name, direction=direction, slope_per_hour=slope, standard_error=error, buckets=count
    )


# ---- health -------------------------------------------------------------------------------------

_PENALTIES: Final[Mapping[AlertName, float]] = {
    AlertName.ACCURACY: 60.0,
    AlertName.BAD_OUTPUTS: 60.0,
    AlertName.LATENCY: 40.0,
    AlertName.COST: 30.0,
    AlertName.EDGE_SHARE: 30.0,
}
_DEGRADED_PENALTY: Final = 60.0
_HEALTHY_SCORE: Final = 80
_CRITICAL_SCORE: Final = 50


def health(stats: Stats, alerts: Sequence[Alert], limits: AlertThresholds) -> Health:
    """100 points, less a penalty for every alert and for degraded answers; never under 0.

    An alert costs half its weight when its limit is just crossed, and all of it from half the limit
    beyond: weight * (0.5 + min(0.5, |value - limit| / limit)). Weights: accuracy 60, bad outputs
    60, latency 40, cost 30, edge share 30. For bad outputs the excess is their share of messages.
    Degraded answers cost 60 points times their share.

    Healthy: no alert and 80 points or more. Critical: under 50. Degraded: between. Unknown, with no
    score: fewer than `min_records` messages, and no alert.
    """
    judged = stats.messages >= limits.min_records
    if not judged and not alerts:
        return Health(score=None, status=HealthStatus.UNKNOWN, penalties={})
    penalties = {alert.name.value: _penalty(alert, stats) for alert in alerts}
    if judged and stats.degraded_share:
        penalties["degraded_answers"] = _DEGRADED_PENALTY * stats.degraded_share
    score = round(max(0.0, 100.0 - sum(penalties.values())))
    if score < _CRITICAL_SCORE:
        status = HealthStatus.CRITICAL
    else:
        well = score >= _HEALTHY_SCORE and not alerts
        status = HealthStatus.HEALTHY if well else HealthStatus.DEGRADED
    return Health(score=score, status=status, penalties=penalties)


def _penalty(alert: Alert, stats: Stats) -> float:
    whole = alert.limit or max(1, stats.messages)
    excess = abs(alert.value - alert.limit) / whole
    return _PENALTIES[alert.name] * (0.5 + min(0.5, excess))


_ADVICE: Final[Mapping[AlertName, str]] = {
    AlertName.EDGE_SHARE: (
        "Compare the reasons and the confidence with those at release time; if the messages have "
        "changed, retrain the edge and tune again. Lowering the threshold by hand voids the "
        "certificate."
    ),
    AlertName.ACCURACY: (
        "Compare the accuracy of both routes: if only the edge fell, roll the release back or "
        "certify a new policy; if both fell, the labels or the messages have changed."
    ),
    AlertName.COST: "Look at the edge share first: every escalation pays for both tiers.",
    AlertName.LATENCY: (
        "See whether the edge or the cloud queues, and raise its replicas or its CPUs."
    ),
    AlertName.BAD_OUTPUTS: (
        "Roll back to the release before: a model that answers NaN is broken or was fed what it "
        "never saw."
    ),
}
_MOVES: Final[Mapping[tuple[str, Direction], str]] = {
    ("edge_share", Direction.FALLING): "The edge share is falling, by {:.1%} per hour.",
    ("latency_p95_ms", Direction.RISING): "The p95 latency is rising, by {:.1f} ms per hour.",
    ("cost_per_message_usd", Direction.RISING): "The cost per message rises ${:.5f} per hour.",
    ("confidence", Direction.FALLING): (
        "The confidence is falling, by {:.4f} per hour: the messages may be drifting away from "
        "what the models were trained on."
    ),
}


def recommend(
    stats: Stats, alerts: Sequence[Alert], trends: Sequence[Trend], limits: AlertThresholds
) -> list[str]:
    """Plain sentences, the most pressing first; empty if there is nothing to do."""
    advice = [f"{alert.message} {_ADVICE[alert.name]}" for alert in alerts]
    if stats.degraded_share:
        advice.append(
            f"{stats.degraded_share:.1%} of answers are degraded: the cloud tier failed and the "
            "edge's answer went out. Check the cloud's replicas."
        )
    for trend in trends:
        text = _MOVES.get((trend.name, trend.direction))
        if text and trend.slope_per_hour is not None:
            advice.append(text.format(abs(trend.slope_per_hour)))
    if stats.messages < limits.min_records:
        advice.append(
            f"Only {stats.messages} messages are in the window; {limits.min_records} are needed "
            "to judge the service."
        )
    elif stats.accuracy.labelled < limits.min_labels:
        advice.append(
            f"Only {stats.accuracy.labelled} answers have a feedback label; send "
            f"{limits.min_labels} or more to POST /v1/feedback to see the accuracy."
        )
    return advice


# ---- Prometheus ---------------------------------------------------------------------------------


def prometheus_text(stats: Stats) -> bytes:
    """The figures in Prometheus' text format; what is None is left out."""
    registry = CollectorRegistry()
    registry.register(_Collector(stats))
    return generate_latest(registry)


class _Collector(Collector):
    """Finished figures; the client's own counters would each carry a new creation time."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats, latency, accuracy = self._stats, self._stats.latency_ms, self._stats.accuracy
        yield _counter("messages", "Answers given", "reason", stats.reasons_total)
        yield _counter("release_messages", "Answers given", "release", stats.releases_total)
        yield _counter("cost_usd", "USD spent", None, {"": stats.cost_total_usd})
        yield _counter(
            "bad_outputs", "NaN or infinite outputs", None, {"": stats.bad_outputs_total}
        )
        yield _gauge("window_messages", "Answers in the window", stats.messages)
        yield _gauge("messages_per_second", "Over the last minute", stats.messages_per_s)
        yield _gauge("edge_share", "Share answered at the edge", stats.edge_share)
        yield _gauge("cost_per_message_usd", "Mean cost", stats.cost_per_message_usd)
        yield _gauge("savings_share", "Saved against cloud-only", stats.savings_vs_cloud_only)
        yield _gauge("degraded_share", "Share of degraded answers", stats.degraded_share)
        yield _gauge("pii_pinned_share", "Share with personal data", stats.pii_pinned_share)
        yield _gauge("confidence_mean", "Mean confidence", stats.confidence_mean)
        yield _gauge("accuracy", "Share right, by feedback", accuracy.share)
        yield _gauge("accuracy_labels", "Answers with feedback", accuracy.labelled)
        yield _gauge("feedback_unmatched", "Labels without an answer", stats.feedback_unmatched)
        yield _labelled_gauge("class_messages", "Answers in the window", "label", stats.classes)
        if latency is not None:
            by_quantile = {"0.5": latency.p50, "0.95": latency.p95, "0.99": latency.p99}
            seconds = {quantile: ms / 1000 for quantile, ms in by_quantile.items()}
            yield _labelled_gauge("latency_seconds", "In the router", "quantile", seconds)


def _gauge(name: str, text: str, value: float | None) -> Metric:
    gauge = GaugeMetricFamily(f"firstline_{name}", text)
    if value is not None:
        gauge.add_metric([], value)
    return gauge


def _labelled_gauge(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    gauge = GaugeMetricFamily(f"firstline_{name}", text, labels=[label])
    for key, value in values.items():
        gauge.add_metric([key], value)
    return gauge


def _counter(name: str, text: str, label: str | None, values: Mapping[str, float]) -> Metric:
    counter = CounterMetricFamily(f"firstline_{name}", text, labels=[label] if label else [])
    for key, value in values.items():
        counter.add_metric([key] if label else [], value)
    return counter


# ---- the router's side --------------------------------------------------------------------------

Send = Callable[[list[Record]], Awaitable[Any]]


class MetricsEmitter:
    """Hands a router's records to the monitor, off the request path; lives on one event loop.

    A batch goes out every `flush_interval_s`, or as soon as `batch_size` records wait, one call at
    a time. While the monitor is away the newest `keep` records wait and older ones are dropped and
    counted: they are in the audit log already, which is where the monitor finds them again.

    Args:
        resolve: finds the monitor, and gives what sends it a batch; called again after a failure,
            in a thread, since a look-up may block.
    """

    def __init__(
        self,
        resolve: Callable[[], Send],
        *,
        flush_interval_s: float = 0.5,
        batch_size: int = 500,
        keep: int = 20_000,
        call_timeout_s: float = 5.0,
    ) -> None:
        self._resolve = resolve
        self._flush_interval_s = flush_interval_s
        self._batch_size = batch_size
        self._keep = keep
        self._call_timeout_s = call_timeout_s
        self._send: Send | None = None
        self._waiting: deque[Record] = deque()
        self._in_flight: list[Record] = []
        self._wake = asyncio.Event()
        self._draining = False
        self._failing = False
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0

    @property
    def pending(self) -> int:
        """Records that the monitor has not confirmed yet."""
        return len(self._waiting) + len(self._in_flight)

    def emit(self, records: Sequence[Record]) -> None:
        """Keeps the records and returns at once. Call it on the event loop."""
        if self._draining:
            self.dropped += len(records)
            return
        self._waiting.extend(records)
        self._drop_oldest()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        if len(self._waiting) >= self._batch_size:
            self._wake.set()

    async def drain(self, timeout_s: float = 5.0) -> None:
        """Sends what waits, then stops; what is left after `timeout_s` is dropped and counted."""
        self._draining = True
        self._wake.set()
        if self._task is not None:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._task, timeout_s)
            self._task = None
        self.dropped += self.pending
        self._waiting.clear()
        self._in_flight = []

    async def _run(self) -> None:
        while not (self._draining and not self.pending):
            if self._failing or len(self._waiting) < self._batch_size:
                await self._pause()
            await self._flush()

    async def _pause(self) -> None:
        """Until the interval is over, a batch is full, or `drain` is called."""
        if self._failing:  # neither a full buffer nor a drain may hurry an absent monitor
            await asyncio.sleep(self._flush_interval_s)
        elif not self._draining:
            self._wake.clear()  # set by a full batch that has left since
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._flush_interval_s)

    async def _flush(self) -> None:
        """One batch, out of `_waiting` until it is confirmed or put back."""
        size = min(self._batch_size, len(self._waiting))
        if not size:
            return
        self._in_flight = [self._waiting.popleft() for _ in range(size)]
        try:
            await asyncio.wait_for(self._deliver(self._in_flight), self._call_timeout_s)
        except Exception as error:  # noqa: BLE001 - open on failure: metrics never stop an answer
            self._put_back(error)
        else:
            self._failing = False
            self._in_flight = []

    async def _deliver(self, batch: list[Record]) -> None:
        if self._send is None:
            self._send = await asyncio.to_thread(self._resolve)
        await self._send(batch)

    def _put_back(self, error: Exception) -> None:
        if not self._failing:
            log.warning("The monitor did not take a batch (%r); keeping the newest records.", error)
        self._failing = True
        self._send = None
        self._waiting.extendleft(reversed(self._in_flight))
        self._in_flight = []
        self._drop_oldest()

    def _drop_oldest(self) -> None:
        """From those that wait: a batch in flight may yet arrive."""
        while len(self._waiting) > self._keep:
            self._waiting.popleft()
            self.dropped += 1


# ---- the actor ----------------------------------------------------------------------------------


class MonitorActor:
    """Windows behind a name. Thin: Ray runs its calls one after another in one thread."""

    def __init__(
        self,
        audit_dir: Path,
        prices: Prices | None = None,
        thresholds: AlertThresholds | None = None,
    ) -> None:
        self._windows = Windows(prices, thresholds)
        config = self._windows.config
        since_s = time.time() - config.window_s
        self._windows.ingest(read(audit_dir, since_s, last=config.capacity))

    def ping(self) -> bool:
        return True

    def ingest(self, records: Sequence[Record]) -> None:
        """What a MetricsEmitter sends."""
        self._windows.ingest(records)

    def observe(self, records: Sequence[AuditRecord]) -> None:
        self._windows.observe(records)

    def feedback(self, records: Sequence[FeedbackRecord]) -> None:
        self._windows.feedback(records)

    def count_bad_outputs(self, count: int) -> None:
        self._windows.count_bad_outputs(count, time.time())

    def snapshot(self) -> Stats:
        return self._windows.snapshot(time.time())

    def report(self) -> Report:
        return self._windows.report(time.time())

    def prometheus(self) -> bytes:
        return prometheus_text(self.snapshot())


def get_or_create(
    audit_dir: Path, prices: Prices | None = None, thresholds: AlertThresholds | None = None
) -> Any:
    """The handle of the one monitor of this cluster, started if it is not there; needs Ray.

    It outlives its creator, starts again whenever it dies, and then rebuilds itself from
    `audit_dir`, which must be the same folder on whichever node it lands. Prices and thresholds
    are those of the call that started it.
    """
    import ray

    actor = ray.remote(MonitorActor).options(
        name=ACTOR_NAME,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        num_cpus=0,
    )
    return actor.remote(audit_dir, prices, thresholds)


def resolve_actor() -> Send:
    """The `resolve` of a MetricsEmitter in a Ray process: looks the monitor up by name."""
    import ray

    actor = ray.get_actor(ACTOR_NAME, NAMESPACE)

    async def send(batch: list[Record]) -> None:
        await actor.ingest.remote(batch)

    return send
