"""Replay of a candidate on the log: what it says is true, and what nobody can know it says too."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.audit.records import AuditRecord, FeedbackRecord, Record
from cluster.audit.write import AuditLog
from cluster.errors import ConfigError, DataError, ReleaseError
from serve_app.contracts import Decision, Route, RouteReason
from serve_app.decide.cost import Prices
from serve_app.decide.policy import (
    ALWAYS_CLOUD,
    ALWAYS_EDGE,
    RANDOM,
    BundlePins,
    RouterPolicy,
    decide,
)
from serve_app.decide.policy import Rules as HardRules
from serve_app.decide.scores import MaxProbability
from tests.support.strategies import POLICIES
from tests.support.tables import LABELS, row_of, toy_table
from tune.objective import evaluate as on_table
from tune.off_policy.logged import Served
from tune.off_policy.offline import OfflineReport, evaluate, lines, load_policy, replay
from tune.off_policy.propensity import PropensityEstimate, Seen, estimate
from tune.replay import Table

NOW_S = 1.8e9
PRICES = Prices()
PINS = BundlePins(edge="e" * 64, cloud="c" * 64)
SERVED = Served(releases={"r-1"}, labels=LABELS, prices=PRICES, bundles=PINS)


def by_confidence(threshold: float, **changes: object) -> RouterPolicy:
    return RouterPolicy(
        name=f"from {threshold}", score=MaxProbability(), threshold=threshold
    ).model_copy(update=changes)


def record(
    table: Table, i: int, decision: Decision, *, explored: bool = False, share: float = 0.0
) -> AuditRecord:
    """What the router writes of row i; the cloud answers whatever it is asked."""
    route = Route.CLOUD if explored else decision.route
    label = table.edge_label if route is Route.EDGE else table.cloud_label
    chance = {True: share, False: 1.0 - share}[explored]
    return AuditRecord(
        id=f"id-{i}",
        time_s=NOW_S + i,
        text_hash="00" * 16,
        route=route.value,
        reason=RouteReason.EXPLORED.value if explored else decision.reason.value,
        label=LABELS[label[i]],
        edge_label=LABELS[table.edge_label[i]],
        confidence=decision.signals["confidence"],
        signals=decision.signals,
        trust=decision.trust,
        threshold=decision.threshold,
        propensity=chance if decision.reason is RouteReason.TRUSTED else 1.0,
        release="r-1",
        cost_usd=PRICES.of(route),
        latency_ms=1.0,
        degraded=False,
    )


def logged(table: Table, policy: RouterPolicy, share: float = 0.0, seed: int = 0) -> list[Record]:
    dice = np.random.default_rng(seed)
    made: list[Record] = []
    for i in range(table.rows):
        message, prediction, values = row_of(table, i)
        decision = decide(message, prediction, policy, values)
        explored = decision.reason is RouteReason.TRUSTED and dice.random() < share
        made.append(record(table, i, decision, explored=explored, share=share))
    return made


def feedback(table: Table, every: int = 1) -> list[Record]:
    return [
        FeedbackRecord(f"id-{i}", NOW_S + 1e6, LABELS[table.true_label[i]])
        for i in range(0, table.rows, every)
    ]


def holds(found: PropensityEstimate, truth: float) -> bool:
    return found.smallest - 1e-12 <= truth <= found.largest + 1e-12


# ---- what is known for certain


TABLES = st.builds(
    toy_table,
    rows=st.integers(1, 25),
    seed=st.integers(0, 10_000),
    pinned_share=st.sampled_from([0.0, 0.3]),
    distinct=st.sampled_from([None, 3]),
)


@given(TABLES, POLICIES, POLICIES, st.sampled_from([0.0, 0.5]))
@settings(max_examples=150, deadline=None)
def test_the_candidate_does_what_it_would_have_done_in_service(
    table: Table, ran: RouterPolicy, candidate: RouterPolicy, share: float
) -> None:
    report = evaluate(candidate, logged(table, ran, share), SERVED)
    for policy, side in ((ran, report.ran), (candidate, report.candidate)):
        cases = [row_of(table, i) for i in range(table.rows)]
        made = [decide(message, seen, policy, values) for message, seen, values in cases]
        assert side.reasons == Counter(decision.reason for decision in made)
        truth = on_table(policy, table, PRICES)
        assert side.edge_share == pytest.approx(truth.edge_share)
        assert side.per_message_usd == pytest.approx(truth.cost_usd)
        assert holds(side.risk, truth.risk)


@given(TABLES, POLICIES, POLICIES, st.sampled_from([0.0, 0.5]))
@settings(max_examples=80, deadline=None)
def test_the_accuracy_lies_within_its_bounds(
    table: Table, ran: RouterPolicy, candidate: RouterPolicy, share: float
) -> None:
    records = [*feedback(table), *logged(table, ran, share)]
    report = evaluate(candidate, records, SERVED)
    for policy, side in ((ran, report.ran), (candidate, report.candidate)):
        assert side.accuracy is not None
        assert holds(side.accuracy, on_table(policy, table, PRICES).accuracy)


def test_disagreement_on_newly_kept_messages_is_seen() -> None:
    """They were escalated, so both answers are in the log: no exploration is needed."""
    table = toy_table(600, pinned_share=0.0)
    report = evaluate(by_confidence(0.6), logged(table, by_confidence(0.9)), SERVED)
    confidence = table.signals["confidence"]
    new = (confidence >= 0.6) & (confidence < 0.9)
    cell = report.cells.newly_kept
    assert (cell.messages, cell.compared) == (new.sum(), new.sum())
    assert cell.differing == (new & table.differs).sum()
    assert report.cells.stay_at_edge.compared == report.cells.newly_escalated.messages == 0


def test_a_candidate_that_keeps_only_what_was_escalated_is_known_exactly() -> None:
    table = toy_table(300, pinned_share=0.0)
    report = evaluate(by_confidence(0.8), logged(table, ALWAYS_CLOUD), SERVED)
    risk = report.candidate.risk
    assert (risk.unseen, risk.sampled) == (0, None)
    assert risk.smallest == risk.largest == on_table(by_confidence(0.8), table, PRICES).risk


def test_without_exploration_what_both_keep_is_bounded_and_said() -> None:
    table = toy_table(400, pinned_share=0.0)
    report = evaluate(by_confidence(0.7), logged(table, by_confidence(0.9)), SERVED)
    kept = report.cells.stay_at_edge.messages
    risk = report.candidate.risk
    assert risk.sampled is None
    assert risk.low is None
    assert risk.never == risk.unseen == kept
    assert risk.largest - risk.smallest == pytest.approx(kept / 400)
    assert f"{kept} messages were answered at the edge with no look" in report.cannot_know[0]
    assert "set explore_share" in report.cannot_know[0]


# ---- what chance showed


def test_the_estimate_counts_the_explored_by_hand() -> None:
    """1,000 trusted at a chance of 0.1: 100 looks, 3 of which differ; 50 escalated, 5 differ."""
    seen = np.zeros(1050, bool)
    seen[:100], seen[1000:] = True, True
    outcome = np.zeros(1050, bool)
    outcome[:3], outcome[1000:1005] = True, True
    chance = np.where(np.arange(1050) < 1000, 0.1, 1.0)
    found = estimate(Seen(outcome, seen, chance))
    assert found.sampled is not None
    assert found.sampled.effective_looks == pytest.approx(100)
    assert found.sampled.horvitz_thompson == pytest.approx((5 + 3 / 0.1) / 1050)
    assert found.sampled.self_normalised == pytest.approx((5 + 1000 * 3 / 100) / 1050)
    # Clopper and Pearson for 3 of 100, as tabulated: 0.62% to 8.52%
    assert found.low == pytest.approx((5 + 1000 * 0.006230) / 1050, abs=1e-5)
    assert found.high == pytest.approx((5 + 1000 * 0.085176) / 1050, abs=1e-5)
    assert (found.unseen, found.never) == (900, 0)


def test_what_is_never_seen_widens_the_interval_to_both_ends() -> None:
    seen = np.arange(200) < 50
    chance = np.where(np.arange(200) < 100, 0.5, 0.0)
    found = estimate(Seen(np.zeros(200, bool), seen, chance))
    assert found.sampled is not None
    assert (found.never, found.sampled.messages) == (100, 100)
    assert found.low == 0.0
    assert found.high == pytest.approx(0.5 + 0.5 * found.sampled.high)


def test_the_interval_never_leaves_what_was_seen() -> None:
    """Of 4 messages, 3 were seen to fail: no statistics can bring the share under 3 of 4."""
    found = estimate(Seen(np.arange(4) < 3, np.arange(4) < 3, np.full(4, 0.5)))
    assert found.low is not None
    assert found.low >= 0.75


@pytest.mark.parametrize("shares", [(0.1, 0.1), (0.05, 0.4)])
def test_estimates_are_unbiased_and_their_intervals_hold(shares: tuple[float, float]) -> None:
    """One log of 3,000, drawn 800 times: the trusted are explored at one chance, or at two."""
    dice = np.random.default_rng(7)
    count, draws = 3000, 800
    truth = dice.random(count) < np.where(np.arange(count) < 1500, 0.01, 0.03)
    chance = np.where(np.arange(count) % 2, *shares)
    found = []
    for _ in range(draws):
        seen = dice.random(count) < chance
        sampled = estimate(Seen(truth & seen, seen, chance)).sampled
        assert sampled is not None
        found.append(sampled)
    for name in ("horvitz_thompson", "self_normalised"):
        values = np.array([getattr(sampled, name) for sampled in found])
        assert abs(values.mean() - truth.mean()) < 3 * values.std() / np.sqrt(draws)
    held = np.mean([sampled.low <= truth.mean() <= sampled.high for sampled in found])
    assert held > 0.95 - 3 * np.sqrt(0.95 * 0.05 / draws)


def test_with_exploration_the_estimate_of_a_replay_comes_near_the_truth() -> None:
    table = toy_table(4000, pinned_share=0.0)
    candidate = by_confidence(0.75)
    records = [*logged(table, by_confidence(0.9), share=0.3), *feedback(table, every=2)]
    report = evaluate(candidate, records, SERVED)
    risk, right = report.candidate.risk, report.candidate.accuracy
    assert risk.low is not None
    assert risk.high is not None
    assert risk.low <= on_table(candidate, table, PRICES).risk <= risk.high
    assert risk.high - risk.low < 0.03
    assert right is not None
    assert right.unseen == 0, "whatever the candidate keeps, the edge's answer is in the log"
    stricter = evaluate(by_confidence(0.97), records, SERVED).candidate.accuracy
    assert stricter is not None
    assert stricter.sampled is not None
    assert report.explored == report.cells.stay_at_edge.compared > 500


def test_an_explored_message_whose_look_failed_is_one_without_a_look() -> None:
    table = toy_table(50, pinned_share=0.0)
    records = [r for r in logged(table, ALWAYS_EDGE, share=0.5) if isinstance(r, AuditRecord)]
    failed = [
        r._replace(route="edge", label=str(r.edge_label)) if r.reason == "explored" else r
        for r in records
    ]
    report = evaluate(ALWAYS_EDGE, failed, SERVED)
    assert (report.explored, report.ran.risk.unseen) == (0, 50)
    assert report.ran.risk.sampled is None
    assert "none was" in report.cannot_know[0]


# ---- what is left out


def answers(count: int = 3, **changes: Any) -> list[AuditRecord]:
    made = logged(toy_table(count, pinned_share=0.0), by_confidence(0.8))
    return [r._replace(**changes) for r in made if isinstance(r, AuditRecord)]


def reported(records: Sequence[Record], policy: RouterPolicy = ALWAYS_EDGE) -> OfflineReport:
    return evaluate(policy, [*answers(2), *records], SERVED)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"release": "r-2"}, "other_release"),
        ({"edge_label": None, "reason": "edge_failed", "signals": {}}, "edge_failed"),
        ({"signals": {"margin": 0.5}}, "missing_signals"),
        ({"edge_label": "no such class"}, "unknown_label"),
        ({"reason": "invented_later"}, "unknown_label"),
    ],
)
def test_what_cannot_be_replayed_is_left_out_and_counted(
    changes: dict[str, object], why: str
) -> None:
    report = reported(answers(3, **changes))
    assert (report.used, report.left_out) == (2, {why: 3})
    assert f"3 {why}" in lines(report)[1]


def test_a_candidate_on_the_die_is_told_why_it_cannot_be_replayed() -> None:
    kept = [r._replace(signals={k: v for k, v in r.signals.items() if k != "random"})
            for r in answers(4)]  # fmt: skip
    with pytest.raises(DataError, match="4 missing_signals"):
        evaluate(RANDOM, kept, SERVED)
    report = evaluate(RANDOM, [*kept, *answers(1)], SERVED)
    assert any("4 answers lack random" in text for text in report.cannot_know)


def test_a_degraded_answer_counts_for_the_routes_and_is_never_seen() -> None:
    """Left out, outages would make the rule look as if it had escalated less."""
    failed = answers(3, route="edge", reason="cloud_failed", degraded=True)
    report = evaluate(ALWAYS_EDGE, failed, SERVED)
    assert report.ran.edge_share == 0.0
    assert report.candidate.edge_share == 1.0
    assert report.candidate.risk.never == 3
    assert any("3 messages were escalated when the cloud failed" in t for t in report.cannot_know)


def test_pinned_and_class_kept_messages_are_named_apart() -> None:
    pinned = answers(3, route="edge", reason="pii_pinned")
    kept = answers(2, route="edge", reason="class_kept")
    report = evaluate(ALWAYS_CLOUD, [*pinned, *kept], SERVED)
    assert report.candidate.reasons == {"escalated": 2, "pii_pinned": 3}
    assert any("3 messages have personal data" in text for text in report.cannot_know)
    assert any("2 messages have a class that is never" in text for text in report.cannot_know)


def test_the_newest_feedback_counts_and_strange_labels_are_no_match() -> None:
    one = answers(1)
    right = str(one[0].edge_label)
    marks: list[Record] = [
        FeedbackRecord(one[0].id, 2.0, right),
        FeedbackRecord(one[0].id, 1.0, "no such class"),
        FeedbackRecord("made up", 1.0, right),
    ]
    report = evaluate(ALWAYS_EDGE, [*marks, *one], SERVED)
    assert (report.feedback, report.feedback_unmatched) == (1, 1)
    assert report.candidate.accuracy is not None
    assert report.candidate.accuracy.smallest == 1.0
    wrong = evaluate(ALWAYS_EDGE, [*one, marks[1]], SERVED).candidate.accuracy
    assert wrong is not None
    assert wrong.largest == 0.0


# ---- the doors


def test_replay_reads_the_folder_since_a_time_and_counts_broken_lines(tmp_path: Path) -> None:
    made = answers(5)
    log = AuditLog(tmp_path, "r1", lambda: NOW_S)
    log.append(made)
    log.close()
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes() + b"{}\n")
    report = replay(tmp_path, ALWAYS_EDGE, SERVED, since_s=NOW_S + 3)
    assert (report.used, report.corrupt) == (2, 1)
    assert (report.first_s, report.last_s) == (NOW_S + 3, NOW_S + 4)
    assert OfflineReport.model_validate_json(report.model_dump_json()) == report


def test_an_empty_log_is_an_error_that_names_the_release(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is none.*r-1"):
        replay(tmp_path, ALWAYS_EDGE, SERVED)


def test_a_candidate_for_other_models_is_refused() -> None:
    strange = by_confidence(0.9, rules=HardRules(never_escalate=("spam",)))
    with pytest.raises(ReleaseError, match="spam"):
        evaluate(strange, answers(), SERVED)
    other = by_confidence(0.9, bundles=BundlePins(edge="0" * 64, cloud="c" * 64))
    with pytest.raises(ReleaseError, match="edge 000000000000"):
        evaluate(other, answers(), SERVED)


def test_a_policy_file_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "candidate.json"
    path.write_text(RANDOM.model_dump_json())
    assert load_policy(path) == RANDOM


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("{", "Invalid JSON"),
        (json.dumps({**RANDOM.model_dump(), "treshold": 1}), "unknown key 'treshold'"),
        (json.dumps({"name": "x", "score": {"kind": "margin"}}), "threshold: Field required"),
        (json.dumps({**RANDOM.model_dump(), "score": {"kind": "luck"}}), "luck"),
    ],
)
def test_a_file_that_is_no_policy_is_told_what_does_not_fit(
    tmp_path: Path, content: str, found: str
) -> None:
    path = tmp_path / "candidate.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=found):
        load_policy(path)


def test_a_missing_policy_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json cannot be read"):
        load_policy(tmp_path / "nowhere.json")


def test_the_lines_show_both_rules_and_everything_it_cannot_know() -> None:
    table = toy_table(500)
    records = [*logged(table, by_confidence(0.9), share=0.2), *feedback(table, every=5)]
    report = evaluate(by_confidence(0.7), records, SERVED)
    shown = "\n".join(lines(report))
    for side in (report.ran, report.candidate):
        assert f"{side.edge_share:.1%}" in shown
        assert f"${side.per_message_usd:.5f}" in shown
    assert all(text in shown for text in report.cannot_know)
    assert max(map(len, shown.split("What this log")[0].splitlines())) <= 100
