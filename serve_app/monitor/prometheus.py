"""Stats -> Prometheus' text format. Pure.

Labels are reasons, releases (the 50 newest), the models' labels, and the kinds and states that our
own code names: none grows with the traffic, and no replica or caller is one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from serve_app.monitor.stats import AlertName, LatencyQuantiles, MonitorReport, Stats

_PREFIX: Final = "firstline_"

Samples = Iterable[tuple[Sequence[str], float]]


def prometheus_text(stats: Stats, report: MonitorReport | None = None) -> bytes:
    """The figures in Prometheus' text format, and what `report` makes of them; no None."""
    registry = CollectorRegistry()
    registry.register(_Collector(stats, report))
    return generate_latest(registry)


class _Collector(Collector):
    """Finished figures; the client's own counters would each carry a new creation time."""

    def __init__(self, stats: Stats, report: MonitorReport | None) -> None:
        self._stats = stats
        self._report = report

    def collect(self) -> Iterator[Metric]:
        yield from _counters(self._stats)
        yield from _gauges(self._stats)
        yield from _releases(self._stats)
        yield from _requests(self._stats)
        if self._report is not None:
            yield from _judgement(self._report)


def _counters(stats: Stats) -> Iterator[Metric]:
    yield _counter("messages", "Answers given", ["reason"], _by(stats.reasons_total))
    yield _counter("release_messages", "Answers given", ["release"], _by(stats.releases_total))
    yield _counter("cost_usd", "USD spent on answers", [], [([], stats.cost_total_usd)])
    yield _counter("cached", "Answers out of the cache", [], [([], stats.cached_total)])
    yield _counter("degraded", "Degraded answers", ["reason"], _by(stats.degraded_total))
    yield _counter("bad_outputs", "NaN or infinite outputs", [], [([], stats.bad_outputs_total)])
    shadow = _by(stats.shadow_messages_total)
    yield _counter("shadow_messages", "Seen in silence", ["release"], shadow)
    abuse = [([one.kind, one.action], float(one.events)) for one in stats.abuse_total]
    yield _counter("abuse", "Keys slowed or blocked", ["kind", "action"], abuse)


def _gauges(stats: Stats) -> Iterator[Metric]:
    accuracy, disagreement = stats.accuracy, stats.disagreement
    yield _gauge("window_messages", "Answers in the window", stats.messages)
    yield _gauge("messages_per_second", "Over the last minute", stats.messages_per_s)
    yield _gauge("edge_share", "Share answered at the edge", stats.edge_share)
    yield _gauge("cost_per_message_usd", "Mean cost", stats.cost_per_message_usd)
    yield _gauge("savings_share", "Saved against cloud-only", stats.savings_vs_cloud_only)
    yield _gauge("cached_share", "Share out of the cache", stats.cached_share)
    yield _gauge("degraded_share", "Share of degraded answers", stats.degraded_share)
    yield _gauge("pii_pinned_share", "Share with personal data", stats.pii_pinned_share)
    yield _gauge("confidence_mean", "Mean confidence", stats.confidence_mean)
    yield _gauge("accuracy", "Share right, by feedback", accuracy.share)
    yield _gauge("accuracy_labels", "Answers with feedback", accuracy.labelled)
    yield _gauge("disagreement", "Of the trusted, by exploration", disagreement.share)
    yield _gauge("explored_messages", "In the window", disagreement.explored)
    yield _gauge("feedback_unmatched", "Labels without an answer", stats.feedback_unmatched)
    yield _gauges_by("class_messages", "Answers in the window", ["label"], _by(stats.classes))
    states = [([name, state], 1.0) for name, state in stats.states.items()]
    yield _gauges_by("state", "1 for the state it is in", ["name", "state"], states)
    if stats.latency_ms is not None:
        yield _quantiles("latency_seconds", "In the router", [({}, stats.latency_ms)])


def _releases(stats: Stats) -> Iterator[Metric]:
    """What a canary or a shadow is watched by."""
    live = stats.by_release
    figures: Mapping[str, tuple[str, Mapping[str, float | None]]] = {
        "release_edge_share": ("By release", {n: one.edge_share for n, one in live.items()}),
        "release_cost_per_message_usd": (
            "By release",
            {n: one.cost_per_message_usd for n, one in live.items()},
        ),
        "release_degraded_share": (
            "By release",
            {n: one.degraded_share for n, one in live.items()},
        ),
        "release_accuracy": ("By feedback", {n: one.accuracy.share for n, one in live.items()}),
        "release_accuracy_labels": (
            "Answers with feedback",
            {n: one.accuracy.labelled for n, one in live.items()},
        ),
        "shadow_agreement": (
            "With what clients were told",
            {n: one.agreement.share for n, one in stats.shadows.items()},
        ),
    }
    for name, (text, values) in figures.items():
        known = {release: value for release, value in values.items() if value is not None}
        yield _gauges_by(name, text, ["release"], _by(known))
    latency = [
        ({"release": name}, one.latency_ms)
        for name, one in live.items()
        if one.latency_ms is not None
    ]
    yield _quantiles("release_latency_seconds", "In the router", latency)


def _requests(stats: Stats) -> Iterator[Metric]:
    """How requests end, answered or not, and whether the routers are ready."""
    labels = ["route", "status", "code", "release"]
    ended = [
        ([one.route, str(one.status), one.code, one.release], float(one.requests))
        for one in stats.requests_total
    ]
    yield _counter("requests", "Requests that have ended", labels, ended)
    yield _gauge("not_ready_problems", "What keeps a router from being ready", len(stats.problems))


def _judgement(report: MonitorReport) -> Iterator[Metric]:
    yield _gauge("health_score", "From 0 to 100", report.health.score)
    now = {alert.name for alert in report.alerts}
    alerts = [([name.value], float(name in now)) for name in AlertName]
    yield _gauges_by("alert", "1 for an alert that is on", ["name"], alerts)


def _by(values: Mapping[str, float]) -> list[tuple[list[str], float]]:
    return [([name], value) for name, value in values.items()]


def _gauge(name: str, text: str, value: float | None) -> Metric:
    return _gauges_by(name, text, [], [] if value is None else [([], value)])


def _gauges_by(name: str, text: str, labels: Sequence[str], samples: Samples) -> Metric:
    gauge = GaugeMetricFamily(f"{_PREFIX}{name}", text, labels=labels)
    for values, value in samples:
        gauge.add_metric(values, value)
    return gauge


def _quantiles(
    name: str, text: str, samples: Iterable[tuple[Mapping[str, str], LatencyQuantiles]]
) -> Metric:
    """A summary of quantiles alone, which the format allows: those of a window have no count that
    only grows."""
    full_name = f"{_PREFIX}{name}"
    summary = SummaryMetricFamily(full_name, text)
    for labels, latency in samples:
        by_quantile = {"0.5": latency.p50, "0.95": latency.p95, "0.99": latency.p99}
        for quantile, ms in by_quantile.items():
            summary.add_sample(full_name, {**labels, "quantile": quantile}, ms / 1000)
    return summary


def _counter(name: str, text: str, labels: Sequence[str], samples: Samples) -> Metric:
    counter = CounterMetricFamily(f"{_PREFIX}{name}", text, labels=labels)
    for values, value in samples:
        counter.add_metric(values, value)
    return counter
