"""Figures in Prometheus' text: all of them, and none that is not known."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve_app.contracts import AbuseAction, AbuseKind
from serve_app.monitor.prometheus import prometheus_text
from serve_app.monitor.stats import Stats
from serve_app.monitor.windows import Windows
from tests.support.monitoring import NOW_S, answer, report_on, traffic
from tests.unit.serve_app.monitor.test_health import labels
from tests.unit.serve_app.monitor.test_windows import abuse, degraded, shadow, two


def prometheus(stats: Stats) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(prometheus_text(stats).decode())
    return {
        (sample.name, tuple(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_prometheus_shows_the_figures() -> None:
    report = report_on(labels(traffic(1000), 0.9))
    samples = prometheus(report.stats)
    assert samples["firstline_messages_total", (("reason", "trusted"),)] == 900
    assert samples["firstline_messages_total", (("reason", "escalated"),)] == 100
    assert samples["firstline_release_messages_total", (("release", "r1"),)] == 1000
    assert samples["firstline_edge_share", ()] == 0.9
    assert samples["firstline_accuracy", ()] == 0.9
    assert samples["firstline_latency_seconds", (("quantile", "0.95"),)] == pytest.approx(0.04)
    assert samples["firstline_bad_outputs_total", ()] == 0
    assert not any(name.endswith("_created") for name, _ in samples)


def test_prometheus_leaves_out_what_is_not_known() -> None:
    names = {name for name, _ in prometheus(Windows().snapshot(NOW_S))}
    assert "firstline_edge_share" not in names
    assert "firstline_window_messages" in names


def test_prometheus_shows_releases_shadows_abuse_and_states() -> None:
    windows = Windows()
    windows.ingest([*two(), *(shadow(i) for i in range(8)), degraded(-1), answer(-2, cached=True)])
    windows.note_abuse([abuse(AbuseKind.SWEEP, AbuseAction.BLOCKED)] * 3, NOW_S)
    windows.note_state("cloud r1", "open")
    samples = prometheus(windows.snapshot(NOW_S))
    assert samples["firstline_release_messages_total", (("release", "r2"),)] == 40
    assert samples["firstline_shadow_messages_total", (("release", "s1"),)] == 8
    assert samples["firstline_shadow_agreement", (("release", "s1"),)] == 1.0
    assert samples["firstline_degraded_total", (("reason", "cloud_failed"),)] == 1
    assert samples["firstline_cached_total", ()] == 1
    assert samples["firstline_state", (("name", "cloud r1"), ("state", "open"))] == 1
    assert samples["firstline_abuse_total", (("action", "blocked"), ("kind", "sweep"))] == 3
    slow = samples["firstline_release_latency_seconds", (("quantile", "0.5"), ("release", "r1"))]
    assert slow == pytest.approx(0.004)
    assert not any("key-1" in str(found) for found in samples), "a caller is no label"
