"""Stats and the rows behind them -> alerts, trends, a health score and advice. Pure."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from serve_app.contracts import RouteReason
from serve_app.monitor.figures import Recent
from serve_app.monitor.stats import (
    Alert,
    AlertName,
    AlertThresholds,
    Comparison,
    Direction,
    Health,
    HealthStatus,
    Stats,
    Trend,
    Verdict,
)

Floats = NDArray[np.float64]

_HOUR_S: Final = 3600.0


def find_alerts(
    stats: Stats, recent: Recent, limits: AlertThresholds, labels: Sequence[str]
) -> list[Alert]:
    """The thresholds that are crossed now; of accuracy, over the window, for labels come late.

    A bad output needs no minimum: one is too many. Of degraded answers and of requests some are
    enough, for what they tell is no matter of chance.

    Args:
        labels: their names, by the number that `recent` has.
    """
    newest, fresh = recent.newest, recent.fresh

    def lasting(of: Callable[[NDArray[Any]], Any], smaller: bool = True) -> float:
        """The figure of the newest, unless that of the fresh is on its way back."""
        pair = float(of(newest)), float(of(fresh))
        return min(pair) if smaller else max(pair)

    found: list[Alert | None] = []
    if stats.messages >= limits.min_records and len(newest) >= limits.min_records:
        # Explored messages are no more escalated than trusted ones; degraded ones have their alert.
        share = lasting(lambda rows: np.mean(rows["edge"] | rows["kept"]), smaller=False)
        cost_usd = lasting(lambda rows: np.mean(rows["cost_usd"]))
        p95_ms = lasting(lambda rows: np.percentile(rows["each_ms"], 95))
        found += [
            _under(AlertName.EDGE_SHARE, share, limits.min_edge_share),
            _over(AlertName.COST, cost_usd, limits.max_cost_usd),
            _over(AlertName.LATENCY, p95_ms, limits.max_p95_ms),
        ]
    if stats.messages >= limits.min_records and stats.accuracy.labelled >= limits.min_labels:
        found.append(_under(AlertName.ACCURACY, stats.accuracy.share, limits.min_accuracy))
    if len(newest) >= _SOME:
        share, of_sent = recent.degraded_share, recent.unanswered_share
        if share > limits.max_degraded_share or of_sent > limits.max_unanswered_share:
            words = f"{of_sent:.1%} of those that were to be escalated"
            found.append(_alert(AlertName.DEGRADED, share, limits.max_degraded_share, words))
    if recent.one_class is not None:
        name, share, before = recent.one_class
        found.append(_alert(AlertName.ONE_CLASS, share, before, labels[name]))
    found.append(_over(AlertName.BAD_OUTPUTS, recent.bad_outputs, 0))
    return [*_of_requests(stats, limits), *(alert for alert in found if alert is not None)]


def _of_requests(stats: Stats, limits: AlertThresholds) -> Iterator[Alert]:
    """What keeps requests from being answered; the most pressing first."""
    if stats.problems:
        words = "; ".join(stats.problems)
        yield _alert(AlertName.NOT_READY, len(stats.problems), 0, words)
    asked = stats.requests
    if asked.refused >= _SOME_REFUSED and asked.refused > limits.max_refused_share * asked.requests:
        codes = ", ".join(f"{code} {count}" for code, count in asked.refused_by_code.items())
        share = asked.refused / asked.requests
        yield _alert(AlertName.REFUSED, share, limits.max_refused_share, codes)
    if stats.warnings:
        yield _alert(AlertName.DISK, len(stats.warnings), 0, "; ".join(stats.warnings))


_ALERTS: Final[Mapping[AlertName, str]] = {
    AlertName.EDGE_SHARE: "The edge answers {:.1%} of messages, under {:.0%}.",
    AlertName.ACCURACY: "By feedback, {:.1%} of answers are right, under {:.0%}.",
    AlertName.COST: "A message costs ${:.4f}, over ${:g}.",
    AlertName.LATENCY: "The p95 latency is {:.0f} ms, over {:g} ms.",
    AlertName.BAD_OUTPUTS: "{:g} model outputs were NaN or infinite.",
    AlertName.DEGRADED: "{0:.1%} of the newest answers are degraded, {2}.",
    AlertName.ONE_CLASS: "{0:.1%} of the newest answers are {2!r}, of those before {1:.1%}.",
    AlertName.REFUSED: "{:.1%} of requests are refused by our fault, over {:.0%}: {}.",
    AlertName.NOT_READY: "The service is not ready: {2}.",
    AlertName.DISK: "The service will soon refuse: {2}.",
}


def _under(name: AlertName, value: float | None, limit: float) -> Alert | None:
    return _alert(name, value, limit) if value is not None and value < limit else None


def _over(name: AlertName, value: float | None, limit: float) -> Alert | None:
    return _alert(name, value, limit) if value is not None and value > limit else None


def _alert(name: AlertName, value: float, limit: float, words: str = "") -> Alert:
    message = _ALERTS[name].format(value, limit, words)
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
    AlertName.ONE_CLASS: 60.0,
    AlertName.REFUSED: 60.0,
    AlertName.NOT_READY: 60.0,
    AlertName.DISK: 30.0,
}
_DEGRADED_PENALTY: Final = 60.0
_UNANSWERED_PENALTY: Final = 30.0
_SOME: Final = 20
_SOME_REFUSED: Final = 3
_HEALTHY_SCORE: Final = 80
_CRITICAL_SCORE: Final = 50


def health(
    stats: Stats, alerts: Sequence[Alert], recent: Recent, limits: AlertThresholds
) -> Health:
    """100 points, less a penalty for every alert and for degraded answers; never under 0.

    An alert costs half its weight when its limit is just crossed, and all of it from half the limit
    beyond: weight * (0.5 + min(0.5, |value - limit| / limit)). Weights: accuracy 60, bad outputs
    60, refused 60, one class 60, latency 40, cost 30, edge share 30. For bad outputs the excess is
    their share of messages. Not ready costs 60 and a disk nearly full 30, each as a whole. Degraded
    answers cost 60 points times their share of the newest, or 30 times their share of what was to
    be escalated, whichever is more.

    Healthy: no alert and 80 points or more. Critical: under 50. Degraded: between. Unknown, with no
    score: fewer than `min_records` messages, and no alert.
    """
    judged = stats.messages >= limits.min_records
    if not judged and not alerts:
        return Health(score=None, status=HealthStatus.UNKNOWN, penalties={})
    penalties = {
        alert.name.value: _penalty(alert, stats)
        for alert in alerts
        if alert.name is not AlertName.DEGRADED
    }
    degraded = _DEGRADED_PENALTY * recent.degraded_share
    if lost := max(degraded, _UNANSWERED_PENALTY * recent.unanswered_share):
        penalties["degraded_answers"] = lost
    score = round(max(0.0, 100.0 - sum(penalties.values())))
    if score < _CRITICAL_SCORE:
        status = HealthStatus.CRITICAL
    else:
        well = score >= _HEALTHY_SCORE and not alerts
        status = HealthStatus.HEALTHY if well else HealthStatus.DEGRADED
    return Health(score=score, status=status, penalties=penalties)


def _penalty(alert: Alert, stats: Stats) -> float:
    if alert.name in _WHOLE:
        return _PENALTIES[alert.name]
    whole = alert.limit or max(1, stats.messages)
    excess = abs(alert.value - alert.limit) / whole
    return _PENALTIES[alert.name] * (0.5 + min(0.5, excess))


_WHOLE: Final = frozenset({AlertName.NOT_READY, AlertName.DISK})
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
    AlertName.DEGRADED: "See below for what keeps the cloud from answering.",
    AlertName.ONE_CLASS: (
        "Look at what is asked: the same text again and again, or a client that sends nothing else "
        "any more? If the messages are as ever, roll the release back."
    ),
    AlertName.REFUSED: (
        "Look at the codes: the table of errors in docs/serving.md says what each is; the router's "
        "log has the cause."
    ),
    AlertName.NOT_READY: "Until it is mended, requests may be refused; /readyz says when it is.",
    AlertName.DISK: "Free the disk of the audit log, or compact it: firstline compact",
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


_DEGRADED: Final[Mapping[str, str]] = {
    RouteReason.CLOUD_FAILED: (
        "the cloud tier failed and the edge's answer went out. Check the cloud's replicas."
    ),
    RouteReason.CIRCUIT_OPEN: (
        "the cloud failed so often that it was not asked. Check the cloud's replicas; it is tried "
        "again by itself."
    ),
    RouteReason.CLOUD_CAPPED: (
        "the budget of escalations was used up. See why so many messages are escalated; if they "
        "are right to be, raise the budget."
    ),
}
_OTHERWISE: Final = "the cloud should have answered. Look at its replicas and the router's log."


def recommend(
    stats: Stats,
    comparison: Sequence[Comparison],
    alerts: Sequence[Alert],
    trends: Sequence[Trend],
    limits: AlertThresholds,
) -> list[str]:
    """Plain sentences, the most pressing first; empty if there is nothing to do."""
    advice = [f"{alert.message} {_ADVICE[alert.name]}" for alert in alerts]
    advice += [_take_out(pair) for pair in comparison if pair.verdict is Verdict.WORSE]
    advice += [
        f"{count / stats.messages:.1%} of answers are degraded: {_DEGRADED.get(name, _OTHERWISE)}"
        for name, count in stats.degraded_reasons.items()
    ]
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


def _take_out(pair: Comparison) -> str:
    return f"{pair.summary} Take it out of the traffic: firstline releases rollback"
