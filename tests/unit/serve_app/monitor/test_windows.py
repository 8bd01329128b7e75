"""The monitor's figures against brute force, and what it makes of them."""

import math
import random
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.audit.read import read
from cluster.audit.records import AuditRecord, FeedbackRecord, Record
from cluster.audit.write import AuditLog
from cluster.intervals import wilson
from serve_app.contracts import AbuseAction, AbuseEvent, AbuseKind
from serve_app.monitor.stats import AlertThresholds, MonitorReport, Verdict, WindowConfig
from serve_app.monitor.windows import Compared, Windows
from tests.support.monitoring import (
    HOUR_S,
    NOW_S,
    PRICES,
    answer,
    judged,
    report_on,
    to_cloud,
    traffic,
)

# ---- figures


@st.composite
def histories(draw: st.DrawFn) -> list[AuditRecord]:
    count = draw(st.integers(0, 40))
    return [
        answer(
            i,
            draw(st.floats(0, 30 * HOUR_S)),
            route=draw(st.sampled_from(["edge", "cloud"])),
            reason=draw(st.sampled_from(["trusted", "escalated", "pii_pinned"])),
            label=draw(st.sampled_from(["a", "b", "c"])),
            confidence=draw(st.floats(0, 1) | st.sampled_from([math.nan, math.inf])),
            release=draw(st.sampled_from(["r1", "r2"])),
            cost_usd=draw(st.floats(0, 0.1)),
            latency_ms=draw(st.floats(0, 1000)),
            degraded=draw(st.booleans()),
        )
        for i in range(count)
    ]


@given(histories())
def test_figures_equal_brute_force(history: list[AuditRecord]) -> None:
    windows = Windows()
    windows.observe(history)
    stats = windows.snapshot(NOW_S)
    seen = [record for record in history if record.time_s > NOW_S - 24 * HOUR_S]
    finite = [record.confidence for record in seen if math.isfinite(record.confidence)]

    assert stats.messages == len(seen)
    assert stats.messages_total == len(history)
    assert stats.messages_per_s == sum(r.time_s > NOW_S - 60 for r in seen) / 60
    assert stats.classes == Counter(record.label for record in seen)
    assert stats.reasons == Counter(record.reason for record in seen)
    assert stats.releases == Counter(record.release for record in seen)
    assert stats.reasons_total == Counter(record.reason for record in history)
    assert stats.bad_outputs == len(seen) - len(finite)
    assert sum(stats.confidence_histogram) == len(finite)
    assert stats.cost_total_usd == pytest.approx(sum(record.cost_usd for record in history))
    if finite:
        assert stats.confidence_mean == pytest.approx(statistics.fmean(finite))
    if not seen:
        assert stats.edge_share is None
        assert stats.latency_ms is None
        assert stats.cost_per_message_usd is None
        return
    cost_usd = statistics.fmean(record.cost_usd for record in seen)
    latency_ms = [record.latency_ms for record in seen]
    assert stats.span_s == pytest.approx(max(NOW_S - record.time_s for record in seen))
    assert stats.edge_share == pytest.approx(sum(r.route == "edge" for r in seen) / len(seen))
    assert stats.degraded_share == pytest.approx(sum(r.degraded for r in seen) / len(seen))
    assert stats.pii_pinned_share == pytest.approx(stats.reasons.get("pii_pinned", 0) / len(seen))
    assert stats.cost_per_message_usd == pytest.approx(cost_usd)
    assert stats.savings_vs_cloud_only == pytest.approx(1 - cost_usd / PRICES.cloud_usd)
    assert stats.latency_ms is not None
    assert stats.latency_ms.mean == pytest.approx(statistics.fmean(latency_ms))
    assert stats.latency_ms.p95 == pytest.approx(np.percentile(latency_ms, 95))
    assert stats.latency_ms.p50 == pytest.approx(statistics.median(latency_ms))


def test_the_histogram_bins_are_tenths_with_one_in_the_last() -> None:
    windows = Windows()
    windows.observe([answer(i, confidence=c) for i, c in enumerate([0.0, 0.05, 0.35, 0.999, 1.0])])
    assert windows.snapshot(NOW_S).confidence_histogram == [2, 0, 0, 1, 0, 0, 0, 0, 0, 2]


def test_savings_per_month_extrapolate_the_windows_rate() -> None:
    windows = Windows()
    windows.observe(traffic(720, 2 * HOUR_S, edge_share=1.0))  # 360 an hour, all at the edge
    saved = windows.snapshot(NOW_S).savings_per_month_usd
    assert saved == pytest.approx(360 * 24 * (365.25 / 12) * (0.0136 - 0.001))


def test_a_short_window_says_nothing_about_a_month() -> None:
    windows = Windows()
    windows.observe(traffic(500, 599))
    assert windows.snapshot(NOW_S).savings_per_month_usd is None
    assert windows.snapshot(NOW_S + 1).savings_per_month_usd is not None


def test_time_and_capacity_bound_the_window() -> None:
    windows = Windows(config=WindowConfig(capacity=10))
    windows.observe([answer(i, 100 - i, label=f"l{i}") for i in range(25)])
    stats = windows.snapshot(NOW_S)
    assert (stats.messages, stats.messages_total) == (10, 25)
    assert sorted(stats.classes) == [f"l{i}" for i in range(15, 25)]
    later = windows.snapshot(NOW_S + 24 * HOUR_S - 80)
    assert sorted(later.classes) == ["l21", "l22", "l23", "l24"]


# ---- once each, in any order, and again from the log


def mixed_history(count: int = 300) -> list[Record]:
    history: list[Record] = []
    for record in traffic(count):
        history.append(record)
        number = int(record.id[3:])
        if number % 3 == 0:
            label = "positive" if number % 7 == 0 else "negative"
            history.append(FeedbackRecord(record.id, record.time_s + 0.5, label))
        if number % 50 == 0:
            history.append(FeedbackRecord(record.id, record.time_s + 0.9, "negative"))
    return [*history, FeedbackRecord("unheard of", NOW_S - 1, "negative")]


@given(st.randoms(use_true_random=False))
@settings(deadline=None)
def test_shown_twice_and_shuffled_gives_the_same_report(source: random.Random) -> None:
    history = mixed_history(120)
    twice = [*history, *history]
    source.shuffle(twice)
    shuffled, plain = report_on(twice), report_on(history)
    assert without_sums(shuffled) == without_sums(plain)
    assert shuffled.stats.cost_total_usd == pytest.approx(plain.stats.cost_total_usd)


def without_sums(report: MonitorReport) -> MonitorReport:
    """`cost_total_usd` adds up in order of arrival, so its last bits differ."""
    return report.model_copy(
        update={"stats": report.stats.model_copy(update={"cost_total_usd": 0})}
    )


def test_a_monitor_rebuilt_from_the_audit_log_equals_the_lost_one(tmp_path: Path) -> None:
    history = mixed_history()
    logs = [AuditLog(tmp_path, name, lambda: NOW_S) for name in ("r1", "r2")]
    for i in range(0, len(history), 16):
        logs[i // 16 % 2].append(history[i : i + 16])
    rebuilt = Windows()
    rebuilt.ingest(read(tmp_path, NOW_S - 24 * HOUR_S, last=rebuilt.config.capacity))
    assert without_sums(rebuilt.report(NOW_S)) == without_sums(report_on(history))


# ---- feedback


def test_accuracy_overall_and_by_route() -> None:
    windows = Windows()
    windows.observe([answer(i) if i < 6 else to_cloud(answer(i)) for i in range(10)])
    labels = ["negative"] * 4 + ["positive"] * 2 + ["negative"] * 4
    windows.feedback([FeedbackRecord(f"id-{i}", NOW_S, label) for i, label in enumerate(labels)])
    stats = windows.snapshot(NOW_S)
    assert (stats.accuracy.correct, stats.accuracy.labelled) == (8, 10)
    assert stats.accuracy_by_route["edge"].share == pytest.approx(4 / 6)
    assert stats.accuracy_by_route["cloud"].share == 1.0
    # Wilson's interval for 8 of 10, as tabulated (R: prop.test(8, 10, correct = FALSE))
    assert stats.accuracy.low == pytest.approx(0.4901625, abs=1e-6)
    assert stats.accuracy.high == pytest.approx(0.9433178, abs=1e-6)


def test_the_newest_label_counts_whatever_comes_first() -> None:
    windows = Windows()
    windows.observe([answer(0)])
    windows.feedback([FeedbackRecord("id-0", NOW_S + 2, "negative")])
    windows.feedback([FeedbackRecord("id-0", NOW_S + 1, "positive")])
    stats = windows.snapshot(NOW_S + 3)
    assert (stats.accuracy.correct, stats.accuracy.labelled) == (1, 1)


def test_feedback_that_overtakes_its_answer_waits_for_it() -> None:
    """A client may answer faster than the router's next batch to the monitor."""
    windows = Windows()
    windows.feedback([FeedbackRecord("id-0", NOW_S, "negative")])
    assert windows.snapshot(NOW_S).feedback_unmatched == 1
    windows.observe([answer(0)])
    stats = windows.snapshot(NOW_S)
    assert (stats.feedback_unmatched, stats.accuracy.correct) == (0, 1)


def test_feedback_for_an_answer_that_left_the_window_is_unmatched() -> None:
    windows = Windows()
    windows.observe([answer(0, 25 * HOUR_S)])
    windows.feedback([FeedbackRecord("id-0", NOW_S, "negative")])
    stats = windows.snapshot(NOW_S)
    assert (stats.feedback_unmatched, stats.accuracy.labelled) == (1, 0)


def test_made_up_ids_do_not_grow_the_monitor() -> None:
    windows = Windows(config=WindowConfig(capacity=10))
    windows.feedback([FeedbackRecord(f"x{i}", NOW_S, "negative") for i in range(1000)])
    assert windows.snapshot(NOW_S).feedback_unmatched == 10


def explored(number: int, **changes: Any) -> AuditRecord:
    record = to_cloud(answer(number))._replace(reason="explored", propensity=0.1)
    return record._replace(**changes)


def test_disagreement_is_counted_on_what_chance_chose_alone() -> None:
    """What the rule escalates differs more: it would tell nothing of what the rule trusts."""
    escalated = [to_cloud(answer(i, label="positive")) for i in range(5)]
    looks = [explored(10 + i) for i in range(7)] + [explored(20, label="positive")]
    failed = [explored(30 + i, route="edge") for i in range(3)]
    found = report_on([*escalated, *looks, *failed]).stats.disagreement
    assert (found.explored, found.differing, found.share) == (8, 1, 1 / 8)
    assert (found.low, found.high) == wilson(1, 8)


def test_without_exploration_disagreement_is_not_known() -> None:
    found = report_on(traffic(200)).stats.disagreement
    assert (found.explored, found.share, found.low, found.high) == (0, None, None, None)


def test_explored_messages_are_paid_twice_and_not_degraded() -> None:
    stats = report_on([explored(i) for i in range(4)]).stats
    assert stats.cost_per_message_usd == pytest.approx(PRICES.edge_usd + PRICES.cloud_usd)
    assert (stats.edge_share, stats.degraded_share) == (0.0, 0.0)
    assert stats.reasons == {"explored": 4}


# ---- degraded and cached answers


def degraded(number: int, reason: str = "cloud_failed", **changes: Any) -> AuditRecord:
    return answer(number, reason=reason, degraded=True, **changes)


def test_degraded_answers_are_no_part_of_what_a_certificate_is_held_against() -> None:
    """They went out at the edge; the rule had sent them to the cloud, which was not to be had."""
    kept = [answer(i) for i in range(60)]
    sent = [to_cloud(answer(i)) for i in range(60, 70)]
    looks = [explored(i) for i in range(70, 80)]
    failed = [degraded(i, label="positive") for i in range(80, 100)]
    stats = report_on([*kept, *sent, *looks, *failed, *judged([*kept, *failed], 60)]).stats
    assert stats.edge_share == pytest.approx(0.80), "as they went out"
    assert stats.as_certified.edge_share == pytest.approx(0.70), "as the rule decided"
    assert (stats.accuracy.correct, stats.accuracy.labelled) == (60, 80)
    certified = stats.as_certified.accuracy
    assert (certified.correct, certified.labelled) == (60, 60)


def test_degraded_answers_are_shown_by_reason() -> None:
    reasons = ["cloud_failed"] * 2 + ["circuit_open"] * 3 + ["cloud_capped"] * 5
    records = [degraded(i, reason) for i, reason in enumerate(reasons)]
    report = report_on([*records, *(answer(i) for i in range(10, 20))])
    expected = {"cloud_capped": 5, "circuit_open": 3, "cloud_failed": 2}
    assert (report.stats.degraded_share, report.stats.degraded_reasons) == (0.5, expected)
    assert report.stats.degraded_total == expected
    told = [text for text in report.recommendations if "of answers are degraded" in text]
    assert [text.split("%")[0] for text in told] == ["25.0", "15.0", "10.0"]
    assert "budget" in told[0]


def test_a_degraded_or_cached_look_tells_nothing_new_of_the_trusted() -> None:
    looks = [explored(i) for i in range(4)]
    again = [explored(10 + i, cached=True, label="positive") for i in range(9)]
    found = report_on([*looks, *again, explored(30, degraded=True)]).stats
    assert (found.disagreement.explored, found.disagreement.differing) == (4, 0)


def test_cached_answers_are_free_and_counted() -> None:
    cached = [answer(i, cached=True, cost_usd=0.0) for i in range(25)]
    stats = report_on([*cached, *(answer(i) for i in range(25, 100))]).stats
    assert (stats.cached_share, stats.cached_total) == (0.25, 25)
    assert stats.cost_per_message_usd == pytest.approx(0.75 * PRICES.edge_usd)


# ---- releases side by side


def two(
    count: int = 400, *, champion: Sequence[AuditRecord] = (), share: int = 10, **changes: Any
) -> list[AuditRecord]:
    """Two hours of traffic, every `share`-th message of it to r2, changed so."""
    return [
        *champion,
        *(
            record._replace(release="r2", **changes) if i % share == 0 else record
            for i, record in enumerate(traffic(count))
        ),
    ]


def test_each_release_has_its_own_figures() -> None:
    records = two(latency_ms=50.0, cost_usd=0.02, route="cloud")
    stats = report_on([*records, *judged([r for r in records if r.release == "r2"], 30)]).stats
    assert list(stats.by_release) == ["r1", "r2"]
    first, second = stats.by_release["r1"], stats.by_release["r2"]
    assert (first.messages, second.messages) == (360, 40)
    assert first.messages + second.messages == stats.messages
    assert second.edge_share == 0.0
    assert second.cost_per_message_usd == pytest.approx(0.02)
    assert second.latency_ms is not None
    assert second.latency_ms.p50 == 50.0
    assert (first.accuracy.labelled, second.accuracy.labelled) == (0, 40)
    assert (second.accuracy.low, second.accuracy.high) == wilson(30, 40)


def test_releases_are_compared_and_the_worse_is_to_be_taken_out() -> None:
    records = two(2000, share=4, latency_ms=90.0)
    old, new = ([r for r in records if r.release == name] for name in ("r1", "r2"))
    report = report_on([*records, *judged(old[:400], 380), *judged(new[:300], 240)])
    [found] = report.comparison
    assert (found.champion.release, found.challenger.release) == ("r1", "r2")
    assert found.verdict is Verdict.WORSE
    assert found.latency_ms.stands_out
    assert any("firstline releases rollback" in text for text in report.recommendations)


def test_only_the_time_in_which_both_answered_is_compared() -> None:
    """Yesterday's messages were easier: they would speak for the release that answered them."""
    easy = [answer(f"old-{i}", 20 * HOUR_S + i) for i in range(1000)]
    records = two(champion=easy)
    old = [r for r in records if r.release == "r1"]
    [found] = report_on([*records, *judged(old, 1000)]).comparison
    assert found.champion.messages == 351, "of the 360, those between r2's first and last"
    assert found.champion.accuracy.correct == 0
    assert found.since_s == pytest.approx(NOW_S - 2 * HOUR_S)


def test_releases_that_answered_one_after_the_other_are_not_compared() -> None:
    before = [answer(f"a{i}", 7200 - i) for i in range(100)]
    after = [answer(f"b{i}", 3600 - i, release="r2") for i in range(100)]
    assert report_on([*before, *after]).comparison == []
    assert report_on(before).comparison == []


@pytest.mark.parametrize(("champion", "challenger"), [("r1", "r2"), ("r2", "r1")])
def test_who_is_told_to_be_the_champion_is_whoever_answers_more(
    champion: str, challenger: str
) -> None:
    """It was the larger weight: a canary above one half took the champion's place."""
    windows = Windows()
    records = two(share=3)
    windows.ingest([*records, *(answer(f"x{i}", 60 + i, release="gone") for i in range(9))])
    assert windows.report(NOW_S).comparison == [], "nobody has told yet"
    windows.compared = Compared(champion, (challenger,))
    [found] = windows.report(NOW_S).comparison
    assert (found.champion.release, found.challenger.release) == (champion, challenger)


def test_nothing_is_compared_with_a_champion_that_has_not_answered() -> None:
    windows = Windows()
    windows.ingest(two(share=2))
    windows.compared = Compared("r3", ("r1", "r2"))
    assert windows.report(NOW_S).comparison == []


def test_cached_answers_are_no_part_of_a_releases_cost_or_latency() -> None:
    """The champion's cache is the fuller one, whatever its models cost."""
    records = [
        r._replace(cached=True, cost_usd=0.0, latency_ms=0.1) if i % 3 == 1 else r
        for i, r in enumerate(two(700, share=7))
    ]
    [found] = report_on(records).comparison
    assert found.champion.cost_per_message_usd == pytest.approx(
        found.challenger.cost_per_message_usd, rel=0.2
    )
    assert not found.cost_usd.stands_out


# ---- shadows


def shadow(number: int, release: str = "s1", **changes: Any) -> AuditRecord:
    """What a shadow made of the message that `answer(number)` answers."""
    changes = {"cost_usd": 0.5, "latency_ms": 900.0, "confidence": 0.1, **changes}
    return answer(f"{release}-of-{number}", release=release, shadow_of=f"id-{number}", **changes)


@given(st.randoms(use_true_random=False))
@settings(deadline=None)
def test_shadows_leave_every_live_figure_as_it_is(source: random.Random) -> None:
    live = mixed_history(60)
    silent = [
        shadow(i, degraded=i % 2 == 0, reason="cloud_failed", confidence=math.nan)
        for i in range(60)
    ]
    mixed: list[Record] = [*live, *silent]
    source.shuffle(mixed)
    with_shadows, without = report_on(mixed), report_on(live)
    apart: dict[str, Any] = {"shadows": {}, "shadow_messages_total": {}}
    stats = with_shadows.stats.model_copy(update=apart)
    shown = with_shadows.model_copy(update={"stats": stats})
    assert without_sums(shown) == without_sums(without)
    assert with_shadows.stats.shadow_messages_total == {"s1": 60}


def test_a_shadow_is_compared_with_what_clients_were_told_whichever_came_first() -> None:
    windows = Windows()
    told = [answer(i, label="a" if i < 6 else "b") for i in range(10)]
    seen = [shadow(i, label="a", route="edge" if i < 4 else "cloud") for i in range(10)]
    windows.ingest([*seen[:5], *told, *seen[5:], *seen])
    found = windows.snapshot(NOW_S).shadows["s1"]
    assert (found.messages, found.edge_share) == (10, 0.4)
    assert found.cost_per_message_usd == pytest.approx(0.5)
    assert (found.agreement.agreeing, found.agreement.compared) == (6, 10)
    assert (found.agreement.low, found.agreement.high) == wilson(6, 10)
    assert [one.model_dump() for one in found.differing] == [
        {"live": "b", "shadow": "a", "messages": 4}
    ]


def test_degraded_answers_and_unseen_ones_agree_with_nobody() -> None:
    windows = Windows()
    windows.ingest([answer(0), degraded(1), answer(2)])
    windows.ingest([shadow(0), shadow(1), shadow(2, degraded=True), shadow(99)])
    found = windows.snapshot(NOW_S).shadows["s1"]
    assert (found.messages, found.agreement.compared) == (4, 1)


def test_two_shadows_of_one_answer_are_two() -> None:
    windows = Windows()
    windows.ingest([shadow(0, "s1"), shadow(0, "s2", label="b"), answer(0)])
    found = windows.snapshot(NOW_S).shadows
    assert {name: one.agreement.agreeing for name, one in found.items()} == {"s1": 1, "s2": 0}


def test_shadows_come_back_from_the_audit_log(tmp_path: Path) -> None:
    history: list[Record] = [*traffic(50), *(shadow(i, label="b") for i in range(0, 50, 2))]
    AuditLog(tmp_path, "r1", lambda: NOW_S).append(history)
    rebuilt = Windows()
    rebuilt.ingest(read(tmp_path, NOW_S - 24 * HOUR_S))
    assert without_sums(rebuilt.report(NOW_S)) == without_sums(report_on(history))
    assert rebuilt.snapshot(NOW_S).shadows["s1"].agreement.compared == 25


def test_shadows_without_answers_do_not_grow_the_monitor() -> None:
    windows = Windows(config=WindowConfig(capacity=10))
    windows.ingest([shadow(i) for i in range(1000)])
    assert windows.snapshot(NOW_S).shadows["s1"].messages == 10
    assert len(windows._early_shadows) == 10
    windows.ingest([answer(i) for i in range(1000)])
    assert windows.snapshot(NOW_S).shadows["s1"].agreement.compared == 10


# ---- abuse and states


def abuse(kind: AbuseKind, action: AbuseAction) -> AbuseEvent:
    return AbuseEvent("key-1", kind, action, NOW_S + 60)


def test_abuse_is_noted_newest_first_and_bounded() -> None:
    windows = Windows()
    windows.note_abuse([abuse(AbuseKind.FLOOD, AbuseAction.SLOWED)], NOW_S)
    windows.note_abuse([abuse(AbuseKind.FLOOD, AbuseAction.BLOCKED)] * 2, NOW_S + 1)
    stats = windows.snapshot(NOW_S + 2)
    assert [note.action for note in stats.abuse] == ["blocked", "blocked", "slowed"]
    assert (stats.abuse[0].key, stats.abuse[0].until_s) == ("key-1", NOW_S + 60)
    counted = [(one.kind, one.action, one.events) for one in stats.abuse_total]
    assert counted == [("flood", "blocked", 2), ("flood", "slowed", 1)]
    windows.note_abuse([abuse(AbuseKind.SWEEP, AbuseAction.SLOWED)] * 500, NOW_S)
    assert len(windows.snapshot(NOW_S + 2).abuse) == 100
    assert windows.snapshot(NOW_S + 25 * HOUR_S).abuse == []


def test_the_last_state_of_a_part_is_shown() -> None:
    windows = Windows()
    windows.note_state("cloud r1", "open")
    windows.note_state("cloud r1", "half_open")
    assert windows.snapshot(NOW_S).states == {"cloud r1": "half_open"}
    for i in range(1000):
        windows.note_state(f"part-{i}", "open")
    assert len(windows.snapshot(NOW_S).states) == 50


def test_old_releases_leave_the_counters() -> None:
    windows = Windows()
    windows.ingest([answer(i, release=f"r{i}") for i in range(1000)])
    totals = windows.snapshot(NOW_S).releases_total
    assert len(totals) == 50
    assert "r999" in totals


# ---- borders


def test_an_empty_monitor_reports_in_json() -> None:
    report = Windows().report(NOW_S)
    assert MonitorReport.model_validate_json(report.model_dump_json()) == report
    assert (report.stats.messages, report.health.score) == (0, None)


def test_a_full_report_survives_json_nan_confidence_and_all() -> None:
    report = report_on([*mixed_history(), answer(-1, confidence=math.nan)])
    assert MonitorReport.model_validate_json(report.model_dump_json()) == report


def test_models_refuse_unknown_keys() -> None:
    with pytest.raises(ValidationError, match="extra"):
        AlertThresholds.model_validate({"min_edge": 0.5})
