"""Watching the cascade: audit records -> windows -> figures, alerts, trends, health, Prometheus.

    router replica: MetricsEmitter.emit ──(batches, off the request path)──> MonitorActor
    MonitorActor:   Windows.ingest -> snapshot() -> Stats -> prometheus_text()
                                   -> report()   -> Report (alerts, trends, health, advice)

Everything but the actor at the bottom is pure: the clock is an argument, and Ray is not imported.
The models stand in stats.py, the judgement in health.py, the router's side in emitter.py.
The audit log is the truth and the monitor its shadow: records are counted once by id, feedback by
its newest time, so a monitor rebuilt from the log shows what the lost one showed.
"""

import logging
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cluster.audit import AuditRecord, FeedbackRecord, Record, read
from serve_app.contracts import Route, RouteReason
from serve_app.cost import Prices
from serve_app.emitter import Send
from serve_app.health import find_alerts, find_trends, health, recommend
from serve_app.stats import (
    Accuracy,
    AlertThresholds,
    Disagreement,
    Latency,
    Report,
    Stats,
    WindowConfig,
)

log = logging.getLogger(__name__)

ACTOR_NAME: Final = "firstline-monitor"
NAMESPACE: Final = "firstline"

_HOUR_S: Final = 3600.0
_MONTH_S: Final = 365.25 / 12 * 24 * _HOUR_S
_Z95: Final = NormalDist().inv_cdf(0.975)

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


_UNKNOWN, _WRONG, _RIGHT = -1, 0, 1  # what feedback has said of a row
_SAME, _DIFFERENT = 0, 1  # what the cloud has said of an explored one
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
        ("differs", "i1"),
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
            _compared(record),
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
            disagreement=_disagreement(rows["differs"]),
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


def _compared(record: AuditRecord) -> int:
    """_UNKNOWN unless explored: what the rule itself escalates is no sample of the trusted."""
    if record.reason != RouteReason.EXPLORED or record.route == Route.EDGE:
        return _UNKNOWN
    return _SAME if record.edge_label == record.label else _DIFFERENT


def _disagreement(compared: NDArray[Any]) -> Disagreement:
    explored = int(np.count_nonzero(compared != _UNKNOWN))
    differing = int(np.count_nonzero(compared == _DIFFERENT))
    low, high = wilson(differing, explored) if explored else (None, None)
    share = _share(differing, explored)
    return Disagreement(explored=explored, differing=differing, share=share, low=low, high=high)


def wilson(correct: int, total: int) -> tuple[float, float]:
    """The Wilson score interval at 95% (Wilson, 1927): honest for few labels and near 0 or 1."""
    share, z2 = correct / total, _Z95 * _Z95
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return max(0.0, centre - half), min(1.0, centre + half)


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
        yield _gauge("disagreement", "Of the trusted, by exploration", stats.disagreement.share)
        yield _gauge("explored_messages", "In the window", stats.disagreement.explored)
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

    def use_prices(self, prices: Prices) -> None:
        """Another release may have other prices; savings are against those of the present one."""
        self._windows.prices = prices

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
