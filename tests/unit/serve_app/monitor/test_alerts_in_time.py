"""What is wrong now is told now, whatever came before; and no longer once it is cured."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.audit.records import AuditRecord, Record
from cluster.audit.write import AuditLog
from serve_app.contracts import HURRIED, RequestEvent
from serve_app.monitor.actor import MonitorActor
from serve_app.monitor.stats import AlertName, HealthStatus, MonitorReport
from serve_app.monitor.totals import Expected, RequestCounts, RouterReport
from serve_app.monitor.windows import Windows
from tests.support.monitoring import HOUR_S, NOW_S, PRICES, answer, report_on, to_cloud, traffic

CLASSES = ("negative", "neutral", "positive")
CLASSIFY = RequestEvent("/v1/classify", 200, "", "r1")
FAILED = CLASSIFY._replace(status=503, code="audit_failed")


def good_day(until_s: float, count: int = 5000) -> list[AuditRecord]:
    """A day's traffic of three classes that ends `until_s` ago."""
    made = traffic(count, 23 * HOUR_S - until_s)
    return [
        one._replace(id=f"day-{i}", time_s=one.time_s - until_s, label=CLASSES[i % 3])
        for i, one in enumerate(made)
    ]


def names(report: MonitorReport) -> set[AlertName]:
    return {alert.name for alert in report.alerts}


def told(*events: tuple[RequestEvent, int], router: str = "one", **changes: Any) -> RouterReport:
    made = RouterReport(router, NOW_S - 5, dict(events), (), (), {})
    return made._replace(**changes)


# ---- answers


def circuit_open(count: int, span_s: float, until_s: float = 0.0) -> list[AuditRecord]:
    return [
        answer(f"open-{i}", until_s + span_s * (1 - (i + 1) / count), reason="circuit_open",
               degraded=True, label=CLASSES[i % 3])
        for i in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("span_s", [10.0, 600.0, 2 * HOUR_S])
def test_a_good_day_hides_no_open_circuit(span_s: float) -> None:
    """600 of 600 gave no alert and a health of 98."""
    report = report_on([*good_day(span_s), *circuit_open(600, span_s)])
    assert AlertName.DEGRADED in names(report)
    assert report.health.status is HealthStatus.CRITICAL
    assert any("it was not asked" in text for text in report.recommendations)


def test_a_dead_cloud_is_seen_where_the_edge_is_trusted_with_nearly_all() -> None:
    """3% of answers are degraded then, which is little, and all that was to be escalated."""
    records = [
        one._replace(route="edge", reason="circuit_open", degraded=True)
        if one.route == "cloud" else one
        for one in good_day(0.0)[-500:]
    ]  # fmt: skip
    trusted = [one._replace(route="edge", reason="trusted", degraded=False)
               if one.degraded and i % 3 else one for i, one in enumerate(records)]  # fmt: skip
    windows = Windows()
    windows.ingest(trusted)
    report = windows.report(NOW_S)
    assert report.stats.degraded_share is not None
    assert report.stats.degraded_share < 0.05
    assert names(report) == {AlertName.DEGRADED}
    assert report.health.score == 70
    well = [answer(f"well-{i}", -i, label=CLASSES[i % 3]) for i in range(30)]
    windows.ingest([*well, to_cloud(answer("sent", -31))])
    assert windows.report(NOW_S + 40).alerts == []


def test_a_few_degraded_answers_among_few_are_enough() -> None:
    report = report_on(circuit_open(30, 60.0))
    assert names(report) == {AlertName.DEGRADED}
    assert report.health.status is HealthStatus.CRITICAL


@pytest.mark.parametrize("ago_s", [60.0, 19 * HOUR_S])
def test_what_is_cured_is_no_alarm_any_more(ago_s: float) -> None:
    """It was one 19 hours later."""
    since = [answer(f"well-{i}", ago_s * (1 - (i + 1) / 200), label=CLASSES[i % 3])
             for i in range(200)]  # fmt: skip
    report = report_on([*circuit_open(600, 600.0, until_s=ago_s), *since])
    assert report.alerts == []
    assert report.health.status is HealthStatus.HEALTHY
    assert report.stats.degraded_reasons == {"circuit_open": 600}, "the window still shows it"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"latency_ms": 900.0}, AlertName.LATENCY),
        ({"cost_usd": 0.5}, AlertName.COST),
        ({"route": "cloud", "reason": "escalated"}, AlertName.EDGE_SHARE),
        ({"confidence": math.nan}, AlertName.BAD_OUTPUTS),
    ],
)
def test_each_alert_comes_after_a_good_day_and_goes_with_its_cause(
    changes: dict[str, Any], name: AlertName
) -> None:
    bad = [answer(f"bad-{i}", 300 - i / 2, label=CLASSES[i % 3])._replace(**changes)
           for i in range(600)]  # fmt: skip
    windows = Windows()
    windows.ingest([*good_day(400.0), *bad])
    assert names(windows.report(NOW_S)) == {name}
    windows.ingest([answer(f"well-{i}", -i / 4, label=CLASSES[i % 3]) for i in range(200)])
    assert names(windows.report(NOW_S + 50)) == set()


def test_messages_that_have_stopped_raise_no_alert() -> None:
    windows = Windows()
    windows.ingest(circuit_open(600, 600.0))
    assert names(windows.report(NOW_S + HOUR_S)) == set()


# ---- classes


def of_one_class(count: int, span_s: float = 300.0) -> list[AuditRecord]:
    return [answer(f"one-{i}", span_s * (1 - (i + 1) / count)) for i in range(count)]


@pytest.mark.parametrize("before", [8, 500, 5000])
@pytest.mark.parametrize("count", [100, 500, 3000])
def test_health_sees_answers_of_one_class_only(before: int, count: int) -> None:
    """500 of the last 500 after eight even ones: health was 100."""
    even = [one._replace(label="ab"[i % 2]) for i, one in enumerate(good_day(400.0, before))]
    report = report_on([*even, *of_one_class(count)])
    assert names(report) == {AlertName.ONE_CLASS}
    assert report.health.status is not HealthStatus.HEALTHY
    assert "'negative'" in report.alerts[0].message


def test_a_few_others_among_them_hide_nothing() -> None:
    noisy = [one._replace(label="neutral") if i % 40 == 0 else one
             for i, one in enumerate(of_one_class(800))]  # fmt: skip
    assert names(report_on([*good_day(400.0), *noisy])) == {AlertName.ONE_CLASS}


def test_a_class_that_has_always_been_nearly_all_is_no_alarm() -> None:
    mostly = [one._replace(label="negative" if i % 20 else "neutral")
              for i, one in enumerate(good_day(400.0))]  # fmt: skip
    assert report_on([*mostly, *of_one_class(150)]).alerts == []


def test_one_class_from_the_first_message_on_is_odd_for_a_release_that_is_known() -> None:
    windows = Windows()
    windows.ingest(of_one_class(700))
    assert names(windows.report(NOW_S)) == set(), "nobody has told what answers"
    windows.note_router(told(expected={"r1": Expected(0.9, 0.001, 0.0136)}), NOW_S)
    assert names(windows.report(NOW_S)) == {AlertName.ONE_CLASS}


def test_one_text_asked_again_and_again_out_of_the_cache_is_no_class_of_its_own() -> None:
    again = [one._replace(cached=True, cost_usd=0.0) for one in of_one_class(900)]
    assert report_on([*good_day(400.0), *again]).alerts == []


def test_other_classes_end_it() -> None:
    windows = Windows()
    windows.ingest([*good_day(400.0), *of_one_class(500)])
    windows.ingest([answer(f"well-{i}", -i / 4, label=CLASSES[i % 3]) for i in range(200)])
    assert windows.report(NOW_S + 50).alerts == []


# ---- what was certified


def certified(records: Sequence[Record], expected: Expected) -> MonitorReport:
    windows = Windows()
    windows.ingest(records)
    windows.note_router(told(expected={"r1": expected}), NOW_S)
    return windows.report(NOW_S)


def at_70(share: float) -> list[AuditRecord]:
    """Traffic of three classes, at twenty times the usual prices."""
    made = [one._replace(label=CLASSES[i % 3])
            for i, one in enumerate(traffic(2000, edge_share=share))]  # fmt: skip
    return [one._replace(cost_usd=0.02 + 0.3 * (one.route == "cloud")) for one in made]


def test_traffic_exactly_as_certified_raises_no_alert() -> None:
    """Two alerts: the edge share under 80%, the cost over a cent."""
    report = certified(at_70(0.70), Expected(0.70, 0.02, 0.30))
    assert report.alerts == []
    assert report.health.score == 100


def test_traffic_that_is_not_as_certified_does() -> None:
    assert names(certified(at_70(0.58), Expected(0.70, 0.02, 0.30))) == {
        AlertName.EDGE_SHARE, AlertName.COST,
    }  # fmt: skip
    [alert] = certified(at_70(0.82), Expected(0.95, 0.02, 0.90)).alerts
    assert alert.name is AlertName.EDGE_SHARE
    assert alert.limit == pytest.approx(0.85)


def test_exploration_is_no_drift() -> None:
    explored = [to_cloud(one)._replace(reason="explored", edge_label=one.label)
                if i % 3 == 0 and one.route == "edge" else one
                for i, one in enumerate(traffic(1000))]  # fmt: skip
    report = certified(explored, Expected(0.9, PRICES.edge_usd, PRICES.cloud_usd, 0.33))
    assert names(report) == {AlertName.ONE_CLASS}


def test_of_two_releases_each_is_held_to_its_own_certificate() -> None:
    half = [one._replace(release="r2") if i % 2 else one for i, one in enumerate(at_70(0.70))]
    windows = Windows()
    windows.ingest(half)
    both = {"r1": Expected(0.60, 0.02, 0.30), "r2": Expected(0.82, 0.02, 0.30)}
    windows.note_router(told(expected=both), NOW_S)
    assert windows.report(NOW_S).alerts == []


def test_a_list_is_as_fast_as_each_of_its_messages() -> None:
    """The demo's own lists were a latency alert for a day."""
    lists = [one._replace(latency_ms=1300.0, request_size=256, label=CLASSES[i % 3])
             for i, one in enumerate(traffic(2048))]  # fmt: skip
    assert report_on(lists).alerts == []
    assert report_on(lists).stats.latency_ms is not None
    slow = [one._replace(request_size=2) for one in lists]
    assert names(report_on(slow)) == {AlertName.LATENCY}


# ---- requests


def test_requests_that_are_refused_alert_at_once_and_for_less_than_a_minute() -> None:
    windows = Windows()
    windows.ingest(good_day(10.0))
    windows.note_router(told((CLASSIFY, 900)), NOW_S - 2)
    windows.note_router(told((CLASSIFY, 900), (FAILED, 100)), NOW_S)
    report = windows.report(NOW_S + 1)
    [alert] = report.alerts
    assert alert.name is AlertName.REFUSED
    assert alert.value == pytest.approx(0.1)
    assert "audit_failed 100" in alert.message
    assert (report.health.score or 0) < 80
    assert windows.report(NOW_S + 50).alerts == []
    totals = {(one.status, one.code): one.requests for one in report.stats.requests_total}
    assert totals == {(200, ""): 900, (503, "audit_failed"): 100}


@pytest.mark.parametrize(
    "event",
    [
        CLASSIFY._replace(status=422, code="empty_text"),
        CLASSIFY._replace(status=429, code="rate_limited"),
        CLASSIFY._replace(status=401, code="unauthorized"),
        CLASSIFY._replace(status=499, code="client_gone"),
        RequestEvent("/readyz", 503, "not_ready", ""),
        RequestEvent("/metrics", 503, "unavailable", ""),
    ],
)
def test_what_is_the_clients_own_or_no_work_is_counted_and_no_alarm(event: RequestEvent) -> None:
    windows = Windows()
    windows.note_router(told((event, 500)), NOW_S)
    report = windows.report(NOW_S)
    assert report.alerts == []
    assert [one.requests for one in report.stats.requests_total] == [500]


@pytest.mark.parametrize("code", ["overloaded", "internal", "no_answer", "unavailable"])
def test_every_other_refusal_is(code: str) -> None:
    windows = Windows()
    event = FAILED._replace(status=429 if code == "overloaded" else 503, code=code)
    windows.note_router(told((event, 5)), NOW_S)
    assert names(windows.report(NOW_S)) == {AlertName.REFUSED}


def test_why_a_router_is_not_ready_is_an_alert_until_it_says_that_it_is_over() -> None:
    windows = Windows()
    why = "the audit log cannot be written (No space left on device)"
    windows.note_router(told(problems=(why,)), NOW_S)
    report = windows.report(NOW_S + 2)
    [alert] = report.alerts
    assert (alert.name, why in alert.message) == (AlertName.NOT_READY, True)
    assert report.health.status is HealthStatus.CRITICAL or (report.health.score or 0) <= 40
    windows.note_router(told(), NOW_S + 4)
    assert windows.report(NOW_S + 5).alerts == []
    windows.note_router(told(problems=(why,)), NOW_S + 6)
    assert windows.report(NOW_S + 30).alerts == [], "a router that is gone says nothing"


def test_reports_that_come_twice_or_not_at_all_change_no_counter() -> None:
    windows = Windows()
    for count in (10, 10, 25, 25):
        windows.note_router(told((CLASSIFY, count)), NOW_S)
    windows.note_router(told((CLASSIFY, 7), router="two"), NOW_S)
    [total] = windows.snapshot(NOW_S).requests_total
    assert total.requests == 32


def test_a_router_that_refuses_all_is_not_ready_and_one_answer_makes_it_so_again() -> None:
    counts = RequestCounts()
    for _ in range(4):
        counts.add(FAILED, NOW_S)
    assert counts.problem(NOW_S) is None
    counts.add(FAILED, NOW_S)
    assert "audit_failed" in (counts.problem(NOW_S) or "")
    assert counts.problem(NOW_S + 31) is None, "it may be over, and only asking tells"
    counts.add(CLASSIFY._replace(status=422, code="empty_text"), NOW_S)
    assert counts.problem(NOW_S), "a client's own mistake is no answer"
    counts.add(CLASSIFY, NOW_S)
    assert counts.problem(NOW_S) is None


def test_clients_that_hardly_wait_cannot_make_it_unready() -> None:
    counts = RequestCounts()
    for _ in range(100):
        counts.add(FAILED._replace(code="no_answer", tags=(HURRIED,)), NOW_S)
    assert counts.problem(NOW_S) is None
    for _ in range(9):
        counts.add(FAILED, NOW_S)
    counts.add(CLASSIFY._replace(tags=(HURRIED,)), NOW_S)
    assert counts.problem(NOW_S) is None, "one that was answered says that others may be"


# ---- over restarts


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("serve_app.monitor.actor.time.monotonic", made)
    monkeypatch.setattr("serve_app.monitor.actor.time.time", lambda: NOW_S)
    return made


def test_the_monitor_learns_from_the_log_what_a_killed_router_did_not_tell(
    tmp_path: Path, clock: Clock
) -> None:
    """It lacked ten answers for ever."""
    monitor, log = MonitorActor(tmp_path), AuditLog(tmp_path, "router-1", lambda: NOW_S)
    records = traffic(30)
    log.append(records)
    monitor.ingest(records[:20])
    assert monitor.snapshot().messages == 20
    clock.now_s = 3.0
    assert (monitor.snapshot().messages, monitor.snapshot().messages_total) == (30, 30)
    monitor.ingest(records)
    assert monitor.snapshot().messages_total == 30


def test_counters_survive_a_restart_to_the_last_answer(tmp_path: Path, clock: Clock) -> None:
    """One went from 320 to 20: what had left the window was counted no more."""
    log = AuditLog(tmp_path, "router-1", lambda: NOW_S)
    old = [answer(f"old-{i}", 30 * HOUR_S) for i in range(300)]
    log.append(old)
    monitor = MonitorActor(tmp_path)
    monitor.ingest(old)
    monitor.note_router(told((CLASSIFY, 320), (FAILED, 7)))
    log.append(traffic(20))
    clock.now_s = 11.0
    assert monitor.snapshot().messages_total == 320
    later = [answer(f"later-{i}") for i in range(5)]
    log.append(later)  # and nobody is told

    again = MonitorActor(tmp_path)
    again.ingest(later)
    stats = again.snapshot()
    assert (stats.messages, stats.messages_total) == (25, 325)
    assert stats.reasons_total == {"escalated": 2, "trusted": 323}
    again.note_router(told((CLASSIFY, 325), (FAILED, 7)))
    assert [one.requests for one in again.snapshot().requests_total] == [325, 7]
    assert b'firstline_messages_total{reason="trusted"} 323.0' in again.prometheus()


def test_what_prometheus_was_shown_is_never_less_after_a_restart(
    tmp_path: Path, clock: Clock
) -> None:
    """Less is a reset to Prometheus, which then counts all of it once more."""
    AuditLog(tmp_path, "router-1", lambda: NOW_S).append(traffic(20))
    monitor = MonitorActor(tmp_path)
    monitor.note_router(told((CLASSIFY, 20), (FAILED, 3)))
    monitor.count_bad_outputs(2)
    shown = monitor.prometheus()
    again = MonitorActor(tmp_path).prometheus()

    def counters(text: bytes) -> list[str]:
        return [line for line in text.decode().splitlines() if "_total" in line]

    assert counters(again) == counters(shown)
    assert "firstline_bad_outputs_total 2.0" in counters(shown)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"offsets": {}, "totals": {"x": 1}}'])
def test_counters_that_cannot_be_read_begin_with_the_log(
    tmp_path: Path, clock: Clock, content: str
) -> None:
    AuditLog(tmp_path, "router-1", lambda: NOW_S).append(traffic(20))
    (tmp_path / ".monitor.json").write_text(content)
    assert MonitorActor(tmp_path).snapshot().messages_total == 20


def test_a_compacted_day_that_is_broken_does_not_keep_the_monitor_from_starting(
    tmp_path: Path, clock: Clock
) -> None:
    AuditLog(tmp_path, "router-1", lambda: NOW_S).append(traffic(20))
    (tmp_path / "20270115.parquet").write_bytes(b"no Parquet")
    assert MonitorActor(tmp_path).snapshot().messages >= 0


def test_the_log_that_is_away_for_a_while_is_read_on_where_it_was(
    tmp_path: Path, clock: Clock
) -> None:
    folder = tmp_path / "audit"
    log = AuditLog(folder, "router-1", lambda: NOW_S)
    log.append(traffic(20))
    monitor = MonitorActor(folder)
    folder.rename(tmp_path / "away")
    clock.now_s = 20.0
    assert monitor.snapshot().messages_total == 20
    (tmp_path / "away").rename(folder)
    log.append([answer("back")])
    clock.now_s = 40.0
    assert monitor.snapshot().messages_total == 21


def test_prometheus_shows_requests_by_status_and_code_and_every_alert() -> None:
    from serve_app.monitor.prometheus import prometheus_text

    windows = Windows()
    hurried = FAILED._replace(tags=(HURRIED,))
    windows.note_router(told((FAILED, 7), (hurried, 5), problems=("no disk",)), NOW_S)
    report = windows.report(NOW_S)
    text = prometheus_text(report.stats, report).decode()
    assert (
        'firstline_requests_total{code="audit_failed",release="r1",route="/v1/classify",'
        'status="503"} 12.0'
    ) in text
    assert text.count('code="audit_failed"') == 1, "a series stands once, whatever the tags"
    assert 'firstline_alert{name="not_ready"} 1.0' in text
    assert 'firstline_alert{name="latency"} 0.0' in text
    assert "firstline_health_score 0.0" in text
    assert "firstline_not_ready_problems 1.0" in text
