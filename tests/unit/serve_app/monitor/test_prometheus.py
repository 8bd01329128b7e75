"""Figures in Prometheus' text: all of them, and none that is not known."""

import re
import shutil
import subprocess

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


def busy() -> Windows:
    """With something in every figure."""
    windows = Windows()
    windows.ingest([*two(), *(shadow(i) for i in range(8)), degraded(-1), answer(-2, cached=True)])
    windows.note_abuse([abuse(AbuseKind.SWEEP, AbuseAction.BLOCKED)] * 3, NOW_S)
    windows.note_state("cloud r1", "open")
    return windows


def test_prometheus_shows_releases_shadows_abuse_and_states() -> None:
    windows = busy()
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


# The rules of `promtool check metrics`, by which a dashboard's tools know a type and a unit:
# https://github.com/prometheus/client_golang/tree/main/prometheus/testutil/promlint/validations
_ABBREVIATED = re.compile(r"_(s|ms|us|ns|sec|b|kb|mb|gb|tb|pb|m|h|d)(_|$)")


def test_every_metric_keeps_the_rules_of_promtool() -> None:
    """It ended with 3: quantiles were a label of gauges."""
    text = prometheus_text(busy().snapshot(NOW_S)).decode()
    families = list(text_string_to_metric_families(text))
    assert {family.type for family in families} == {"counter", "gauge", "summary"}
    for family in families:
        assert family.documentation, family.name
        assert not _ABBREVIATED.search(family.name), family.name
        assert not re.search("[A-Z:]|gauge|counter|summary|histogram", family.name), family.name
        for sample in family.samples:
            assert ("quantile" in sample.labels) <= (family.type == "summary"), sample
            assert "le" not in sample.labels
            assert sample.name.endswith("_total") == (family.type == "counter"), sample
            assert not sample.name.endswith(("_bucket", "_count", "_sum", "_info")), sample
            assert all(name.islower() for name in sample.labels), sample


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Debian's package `prometheus` has it")
def test_promtool_itself_finds_nothing() -> None:
    for windows in (Windows(), busy()):
        text = prometheus_text(windows.snapshot(NOW_S))
        checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
        assert checked.returncode == 0, checked.stderr
