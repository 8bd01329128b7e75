"""Alerts, trends and the health score that they take points from."""

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.audit.records import AuditRecord, FeedbackRecord, Record
from serve_app.monitor.health import fit_trend
from serve_app.monitor.stats import AlertName, Direction, HealthStatus, Trend
from serve_app.monitor.windows import Windows
from tests.support.monitoring import HOUR_S, NOW_S, answer, report_on, to_cloud, traffic


def labels(records: Sequence[AuditRecord], right_share: float) -> list[Record]:
    right = round(len(records) * right_share)
    given_labels = ["negative"] * right + ["positive"] * (len(records) - right)
    feedback = [
        FeedbackRecord(r.id, r.time_s, label)
        for r, label in zip(records, given_labels, strict=True)
    ]
    return [*records, *feedback]


def with_latency(records: Sequence[AuditRecord], latency_ms: float) -> list[AuditRecord]:
    return [record._replace(latency_ms=latency_ms) for record in records]


def with_cost(records: Sequence[AuditRecord], cost_usd: float) -> list[AuditRecord]:
    return [record._replace(cost_usd=cost_usd) for record in records]


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        (traffic(1000, edge_share=0.80), set()),
        (traffic(1000, edge_share=0.79), {AlertName.EDGE_SHARE}),
        (labels(traffic(1000), 0.85), set()),
        (labels(traffic(1000), 0.84), {AlertName.ACCURACY}),
        (with_cost(traffic(1000), 0.01), set()),
        (with_cost(traffic(1000), 0.0101), {AlertName.COST}),
        (with_latency(traffic(1000), 150.0), set()),
        (with_latency(traffic(1000), 150.1), {AlertName.LATENCY}),
        ([*traffic(1000), answer(-1, confidence=math.nan)], {AlertName.BAD_OUTPUTS}),
        ([*traffic(1000), answer(-1, confidence=math.inf)], {AlertName.BAD_OUTPUTS}),
    ],
)
def test_the_published_limits(records: list[Record], expected: set[AlertName]) -> None:
    assert {alert.name for alert in report_on(records).alerts} == expected


def test_few_records_raise_no_alert_but_a_bad_output_does() -> None:
    awful = labels(with_latency(traffic(99, edge_share=0.0), 900.0), 0.0)
    report = report_on(awful)
    assert report.alerts == []
    assert (report.health.status, report.health.score) == (HealthStatus.UNKNOWN, None)
    assert "99 messages" in report.recommendations[-1]
    [alert] = report_on([answer(0, confidence=math.nan)]).alerts
    assert (alert.name, alert.value) == (AlertName.BAD_OUTPUTS, 1)


def test_few_labels_raise_no_accuracy_alert() -> None:
    records = traffic(1000)
    assert report_on([*records, *labels(records[:49], 0.0)]).alerts == []
    assert [a.name for a in report_on([*records, *labels(records[:50], 0.0)]).alerts] == [
        AlertName.ACCURACY
    ]


def test_bad_outputs_without_an_answer_alert_until_they_leave_the_window() -> None:
    windows = Windows()
    windows.count_bad_outputs(3, NOW_S)
    assert [alert.value for alert in windows.report(NOW_S + 1).alerts] == [3]
    later = windows.report(NOW_S + 24 * HOUR_S)
    assert later.alerts == []
    assert (later.stats.bad_outputs, later.stats.bad_outputs_total) == (0, 3)


def trend_of(records: Sequence[AuditRecord], name: str) -> Trend:
    [trend] = [trend for trend in report_on(records).trends if trend.name == name]
    return trend


def noisy(records: Sequence[AuditRecord], per_hour: float, seed: int = 0) -> list[AuditRecord]:
    """Confidence 0.8 with noise, moving by `per_hour`."""
    source = random.Random(seed)
    start_s = records[0].time_s
    return [
        r._replace(
            confidence=0.8 + source.gauss(0, 0.05) + per_hour * (r.time_s - start_s) / HOUR_S
        )
        for r in records
    ]


@pytest.mark.parametrize(
    ("per_hour", "direction"),
    [(0.05, Direction.RISING), (-0.05, Direction.FALLING)],
)
def test_a_slope_out_of_noise_is_found(per_hour: float, direction: Direction) -> None:
    trend = trend_of(noisy(traffic(1200), per_hour), "confidence")
    assert trend.direction is direction
    assert trend.slope_per_hour == pytest.approx(per_hour, abs=0.01)


def test_noise_alone_is_rarely_a_trend() -> None:
    found = [trend_of(noisy(traffic(480), 0.0, seed), "confidence").direction for seed in range(60)]
    assert found.count(Direction.STEADY) >= 57


def test_a_constant_is_steady_whatever_its_rounding() -> None:
    for trend in report_on(with_latency(traffic(1000, edge_share=1.0), 0.1)).trends:
        assert trend.direction is Direction.STEADY, trend


@pytest.mark.parametrize(
    ("name", "change", "direction"),
    [
        ("latency_p95_ms", lambda r, age: r._replace(latency_ms=9 - age), Direction.RISING),
        ("cost_per_message_usd", lambda r, age: r._replace(cost_usd=age), Direction.FALLING),
        ("edge_share", lambda r, age: to_cloud(r) if age < 0.7 else r, Direction.FALLING),
    ],
)
def test_each_figure_has_its_trend(
    name: str, change: Callable[[AuditRecord, float], AuditRecord], direction: Direction
) -> None:
    records = [change(r, (NOW_S - r.time_s) / HOUR_S) for r in traffic(1000, edge_share=1.0)]
    assert trend_of(records, name).direction is direction


def test_too_few_buckets_are_no_trend() -> None:
    # Under eight minutes of traffic, and a day of less than ten messages per bucket.
    for records in (traffic(1000, 400), traffic(100, 23 * HOUR_S)):
        trend = trend_of(records, "confidence")
        assert (trend.direction, trend.slope_per_hour) == (Direction.UNKNOWN, None)


@given(
    slope=st.floats(-5, 5),
    noise=st.lists(st.floats(-1, 1), min_size=8, max_size=24),
)
def test_least_squares_equal_numpys(slope: float, noise: list[float]) -> None:
    hours = NOW_S / HOUR_S + np.arange(len(noise)) / 4
    values = slope * (hours - hours[0]) + np.array(noise)
    trend = fit_trend("x", hours, values)
    (expected, _), covariance = np.polyfit(hours - hours[0], values, 1, cov=True)
    assert trend.slope_per_hour == pytest.approx(expected, abs=1e-6)
    assert trend.standard_error == pytest.approx(math.sqrt(covariance[0, 0]), abs=1e-6)


def test_good_traffic_is_healthy() -> None:
    report = report_on(labels(traffic(1000), 0.95))
    assert (report.health.score, report.health.status) == (100, HealthStatus.HEALTHY)
    assert report.recommendations == []


def test_a_limit_just_crossed_costs_half_its_weight() -> None:
    health = report_on(with_latency(traffic(1000), 150.0001)).health
    assert (health.score, health.status) == (80, HealthStatus.DEGRADED)
    assert health.penalties == {"latency": pytest.approx(20.0, abs=0.01)}


def test_the_further_off_the_lower_the_score() -> None:
    scores = [
        report_on(labels(traffic(1000), share)).health.score or 0
        for share in (0.9, 0.84, 0.7, 0.6, 0.4, 0.0)
    ]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == 100
    assert scores[-1] == 40
    assert report_on(labels(traffic(1000), 0.4)).health.status is HealthStatus.CRITICAL


def test_everything_wrong_is_zero_not_less() -> None:
    awful = labels(with_latency(traffic(1000, edge_share=0.0), 900.0), 0.0)
    health = report_on([*awful, answer(-1, confidence=math.nan)]).health
    assert (health.score, health.status) == (0, HealthStatus.CRITICAL)


def test_degraded_answers_cost_points_and_are_mentioned() -> None:
    failed = [
        r._replace(degraded=True, reason="cloud_failed") if i % 2 else r
        for i, r in enumerate(traffic(1000))
    ]
    report = report_on(failed)
    assert (report.health.score, report.health.status) == (70, HealthStatus.DEGRADED)
    assert any("50.0% of answers are degraded" in text for text in report.recommendations)


def test_every_alert_and_bad_trend_has_its_sentence() -> None:
    awful = labels(with_latency(traffic(1000, edge_share=0.0), 900.0), 0.0)
    report = report_on(awful)
    assert len(report.alerts) == 4
    for alert, text in zip(report.alerts, report.recommendations, strict=False):
        assert text.startswith(alert.message)
    drifting = report_on(noisy(traffic(1200), -0.05))
    assert any("confidence is falling" in text for text in drifting.recommendations)
