"""Another policy on the audit log -> what it would have done, and what the log cannot tell.

    audit log ─ since ─> a release's answers ─> the candidate's route of each ─┬─> OfflineReport
                         feedback ─────────────────────────────────────────────┘

Off-policy evaluation. What the candidate does, and so its cost, follows from what was written down
of every message: no outcome is needed. Whether the edge's answer differs from the cloud's is in the
log where the cloud was asked: on all that was escalated, and on the trusted by chance, if the
service explores (`explore_share`). The rest is bounded; `tune/off_policy/propensity.py` has the
methods.

Decided once:
- "The rule that ran" is the rule without its exploration: an explored message counts as kept.
- Pinned messages stay pinned. What the cloud says of them is in no log.
- An answer that went out degraded counts for routes and costs, and as never looked at.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.audit.read import ReadReport, read
from cluster.audit.records import Record
from cluster.errors import ConfigError, DataError
from cluster.intervals import Interval, wilson
from serve_app.contracts import RouteReason
from serve_app.decide.cost import Prices
from serve_app.decide.policy import RouterPolicy
from tune.off_policy.logged import (
    AT_EDGE,
    DEGRADED,
    PINNED,
    REASONS,
    Log,
    Served,
    is_one_of,
    read_log,
)
from tune.off_policy.propensity import PropensityEstimate, Seen, estimate
from tune.replay import Bools, Ints

# ---- the report ---------------------------------------------------------------------------------


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PolicySide(_Frozen):
    """One rule on the messages of the log.

    The share and the cost are known; their intervals (Wilson, 95%) are for messages to come that
    are like these. `risk` is the share of all messages that the edge answers otherwise than the
    cloud, `accuracy` of those with feedback that are answered right.
    """

    edge_share: float
    edge_share_interval: Interval
    per_message_usd: float
    per_message_usd_interval: Interval
    reasons: dict[str, int]
    risk: PropensityEstimate
    accuracy: PropensityEstimate | None


class Cell(_Frozen):
    """Messages that the two rules route so; on the `compared`, the log has both models' answers."""

    messages: int
    compared: int
    differing: int


class Cells(_Frozen):
    """Where the two rules send the same messages."""

    stay_at_edge: Cell
    newly_kept: Cell
    newly_escalated: Cell
    stay_in_cloud: Cell


class OfflineReport(_Frozen):
    """What `replay` found. Times are seconds since the epoch; `corrupt` counts lines of the log."""

    policy: str
    first_s: float
    last_s: float
    used: int
    left_out: dict[str, int]
    corrupt: int
    explored: int
    feedback: int
    feedback_unmatched: int
    ran: PolicySide
    candidate: PolicySide
    cells: Cells
    cannot_know: tuple[str, ...]


# ---- the doors ----------------------------------------------------------------------------------


def load_policy(path: Path) -> RouterPolicy:
    """Raises ConfigError, which names every key that does not fit."""
    try:
        return RouterPolicy.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"The policy {path} cannot be read ({error.strerror}). Give the JSON file of a policy, "
            "such as the policy.json of a release."
        ) from error
    except ValidationError as error:
        problems = "; ".join(_problem(found) for found in error.errors())
        raise ConfigError(
            f"{path} is not a policy: {problems}. docs/router.md has an example."
        ) from error


def _problem(found: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in found["loc"])
    if found["type"] == "extra_forbidden":
        return f"unknown key {where!r}"
    return f"{where}: {found['msg']}" if where else str(found["msg"])


def replay(
    folder: Path, policy: RouterPolicy, served: Served, since_s: float | None = None
) -> OfflineReport:
    """The candidate on the answers in an audit folder, read in one pass; the log is not changed.

    Raises:
        ReleaseError: the candidate names other classes or bundles.
        DataError: there is nothing that it can be replayed on.
        AuditError: a compacted day is broken.
    """
    found = ReadReport()
    report = evaluate(policy, read(folder, since_s, report=found), served)
    return report.model_copy(update={"corrupt": len(found.corrupt)})


def evaluate(policy: RouterPolicy, records: Iterable[Record], served: Served) -> OfflineReport:
    """Answers and feedback in any order -> the report. Raises as `replay`."""
    log = read_log(records, policy, served)
    rows = log.rows
    if not rows.size:
        raise DataError(
            f"No answer in the log can be replayed ({_counted(log.left_out) or 'there is none'}). "
            f"Answers of {', '.join(sorted(served.releases))} were expected: choose an earlier "
            "--since, or the release that answered then."
        )
    before, after = is_one_of(rows["before"], AT_EDGE), is_one_of(rows["after"], AT_EDGE)
    return OfflineReport(
        policy=policy.name,
        first_s=log.first_s,
        last_s=log.last_s,
        used=rows.size,
        left_out=dict(log.left_out),
        corrupt=0,
        explored=int((before & log.asked).sum()),
        feedback=int(log.labelled.sum()),
        feedback_unmatched=log.feedback_unmatched,
        ran=_side(log, before, rows["before"], served.prices),
        candidate=_side(log, after, rows["after"], served.prices),
        cells=Cells(
            stay_at_edge=_cell(log, before & after),
            newly_kept=_cell(log, ~before & after),
            newly_escalated=_cell(log, before & ~after),
            stay_in_cloud=_cell(log, ~before & ~after),
        ),
        cannot_know=(
            *_never_seen(log, after),
            *_not_replayed(log),
            *_of_feedback(log),
            _PROMISE,
        ),
    )


# ---- figures ------------------------------------------------------------------------------------


def _side(log: Log, kept: Bools, reasons: Ints, prices: Prices) -> PolicySide:
    count, rows = int(kept.sum()), kept.size
    low, high = wilson(count, rows)
    counts = np.bincount(reasons, minlength=len(REASONS)).tolist()
    return PolicySide(
        edge_share=count / rows,
        edge_share_interval=(low, high),
        per_message_usd=prices.per_message(1 - count / rows),
        per_message_usd_interval=(prices.per_message(1 - high), prices.per_message(1 - low)),
        reasons={reason.value: n for reason, n in zip(REASONS, counts, strict=True) if n},
        risk=estimate(_risk(log, kept)),
        accuracy=estimate(_right(log, kept)) if log.labelled.any() else None,
    )


def _risk(log: Log, kept: Bools) -> Seen:
    """Outcome: the edge answers, and otherwise than the cloud. What it leaves to it is no risk."""
    seen = ~kept | log.asked
    differs = log.rows["edge"] != log.rows["cloud"]
    return Seen(kept & seen & differs, seen, np.where(kept, log.rows["chance"], 1.0))


def _right(log: Log, kept: Bools) -> Seen:
    """Outcome, of messages with feedback: the answer is right. The edge's is always in the log."""
    seen = kept | log.asked
    answer = np.where(kept, log.rows["edge"], log.rows["cloud"])
    right = seen & (answer == log.rows["truth"])
    chance = np.where(kept, 1.0, log.rows["chance"])
    return Seen(right[log.labelled], seen[log.labelled], chance[log.labelled])


def _cell(log: Log, among: Bools) -> Cell:
    compared = among & log.asked
    differing = compared & (log.rows["edge"] != log.rows["cloud"])
    return Cell(
        messages=int(among.sum()), compared=int(compared.sum()), differing=int(differing.sum())
    )


# ---- what the log cannot tell -------------------------------------------------------------------

_PROMISE: Final = (
    "Risk and accuracy are of the messages in this log. A promise about messages to come takes "
    "rows that nothing was chosen on: firstline tune certifies."
)


def _never_seen(log: Log, after: Bools) -> Iterator[str]:
    """A sentence for every kind of message on which the cloud's answer is missing for good."""
    chance = log.rows["chance"]
    never = ~log.asked & (chance == 0.0)
    trusted = never & log.ran(RouteReason.TRUSTED)
    by_chance = (chance > 0.0) & (chance < 1.0)
    kinds = {
        "were answered at the edge with no look at the cloud; whether the candidate's answer on "
        "them differs is not in the log: set explore_share.": trusted & after,
        "were answered at the edge with no look at the cloud, and would go there; what that gains "
        "is not in the log: set explore_share.": trusted & ~after,
        "could have been explored, but none was: wait for more, or raise explore_share.": by_chance
        & ~(by_chance & log.asked).any(),
        "have a class that is never escalated, and so never explored; what the cloud says of them "
        "is not in the log.": never & log.ran(RouteReason.CLASS_KEPT),
        "have personal data, or may have; they stay at the edge under every rule, and what the "
        "cloud says of them is in no log.": never & log.ran(*PINNED),
        "were escalated when the cloud failed or was not to be asked; what it says of them is not "
        "in the log.": never & log.ran(*DEGRADED),
    }
    for text, found in kinds.items():
        if count := int(found.sum()):
            yield f"{count:,} messages {text}"


def _not_replayed(log: Log) -> Iterator[str]:
    for name, count in log.lacking.items():
        why = ""
        if name == "random":
            why = " It tells likely texts, so it is written down only for a rule that looks at it."
        yield f"{count:,} answers lack {name}, which the candidate looks at.{why}"


def _of_feedback(log: Log) -> Iterator[str]:
    missing = int((~log.labelled).sum())
    if missing == log.rows.size:
        yield "No answer has feedback, so the log has no true labels: POST /v1/feedback."
    elif missing:
        yield (
            f"{missing:,} of {log.rows.size:,} answers have no feedback. If those with it are no "
            "fair sample (complaints, say), the accuracy is theirs alone."
        )


# ---- for people ---------------------------------------------------------------------------------


def lines(report: OfflineReport) -> list[str]:
    """The report as a terminal shows it."""
    first, last = (_day(time_s) for time_s in (report.first_s, report.last_s))
    made = [f"{report.policy} on {report.used:,} answers, {first} to {last} UTC"]
    if left_out := _counted({**report.left_out, "corrupt lines": report.corrupt}):
        made.append(f"  left out: {left_out}")
    made += ["", _row("", "the rule that ran", "candidate")]
    made += [_row(name, *cells) for name, cells in _figures(report)]
    made += ["", *(_row(f"  {name}", *cells) for name, cells in _reason_counts(report))]
    made += ["", *_moves(report.cells), "", "What this log cannot tell:"]
    return [*made, *(f"  - {text}" for text in report.cannot_know)]


def _row(name: str, *cells: str) -> str:
    return f"  {name:<26}{''.join(f'{cell:<26}' for cell in cells)}".rstrip()


def _figures(report: OfflineReport) -> Iterator[tuple[str, list[str]]]:
    sides = (report.ran, report.candidate)
    yield "edge share", [_with(f"{s.edge_share:.1%}", s.edge_share_interval) for s in sides]
    yield "cost per message", [f"${side.per_message_usd:.5f}" for side in sides]
    risks = [side.risk for side in sides]
    yield "risk, by what was seen", [_bounds(risk) for risk in risks]
    if report.explored:
        yield f"  by {report.explored:,} explored", [_estimated(risk) for risk in risks]
    rights = [side.accuracy for side in sides if side.accuracy]
    if rights:
        yield f"accuracy, of {report.feedback:,}", [_bounds(right) for right in rights]
    if any(right.sampled for right in rights):
        yield "  by the explored", [_estimated(right) for right in rights]


def _reason_counts(report: OfflineReport) -> Iterator[tuple[str, list[str]]]:
    sides = (report.ran.reasons, report.candidate.reasons)
    for name in REASONS:
        if counts := [side.get(name, 0) for side in sides if name in sides[0] | sides[1]]:
            yield name.value, [f"{count:,}" for count in counts]


def _with(text: str, interval: Interval) -> str:
    return f"{text} ({interval[0]:.1%} to {interval[1]:.1%})"


def _bounds(found: PropensityEstimate) -> str:
    if not found.unseen:
        return f"{found.smallest:.2%}"
    return f"{found.smallest:.2%} to {found.largest:.2%}"


def _estimated(found: PropensityEstimate) -> str:
    """The interval is of all messages, the ones never seen at their extremes included."""
    if found.sampled is None or found.low is None or found.high is None:
        return "-"
    return f"{found.sampled.self_normalised:.2%} ({found.low:.2%} to {found.high:.2%})"


def _moves(cells: Cells) -> Iterator[str]:
    for name, cell in (
        ("newly kept at the edge", cells.newly_kept),
        ("newly escalated", cells.newly_escalated),
        ("kept by both", cells.stay_at_edge),
        ("escalated by both", cells.stay_in_cloud),
    ):
        seen = f"; edge and cloud differ on {cell.differing:,} of {cell.compared:,} seen"
        yield f"  {name}: {cell.messages:,} messages{seen if cell.compared else ''}"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


def _day(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M")
