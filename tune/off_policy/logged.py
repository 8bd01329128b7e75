"""The audit log -> compact rows: what the rule that ran did, what a candidate would, what was seen.

    answers of a pair of bundles ─> chunks of columns ─> the candidate's reasons ─> 24 bytes each
    feedback ─────────────────────────────────────────────────────────────────────> true labels

One pass, and no record is kept. Only `serve_app.decide.policy.trust` computes a score and only
`fired` applies a rule, as in service.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from cluster.audit.records import AuditRecord, FeedbackRecord, Record
from cluster.errors import ReleaseError
from cluster.releases import Release
from serve_app.contracts import Route, RouteReason
from serve_app.decide.cost import Prices
from serve_app.decide.policy import BundlePins, RouterPolicy, fired, trust
from serve_app.decide.signals import Evidence
from tune.replay import Bools, Ints

REASONS: Final = tuple(RouteReason)
PINNED: Final = (RouteReason.PII_PINNED, RouteReason.DETECTOR_FAILED)
DEGRADED: Final = (RouteReason.CLOUD_FAILED, RouteReason.CIRCUIT_OPEN, RouteReason.CLOUD_CAPPED)
AT_EDGE: Final = (RouteReason.TRUSTED, RouteReason.CLASS_KEPT, *PINNED)
UNSEEN: Final = -1  # no label is known
_OTHER: Final = -2  # one that the models never answer with
_CODES: Final = {reason: code for code, reason in enumerate(REASONS)}
_CHUNK: Final = 65_536  # records held at once
_ROW: Final = np.dtype(
    [
        ("id", "i8"),
        ("chance", "f8"),  # with which the cloud is asked
        ("edge", "i2"),
        ("cloud", "i2"),  # UNSEEN where it was not asked, or failed
        ("truth", "i2"),
        ("before", "i1"),
        ("after", "i1"),
    ]
)
Rows: TypeAlias = npt.NDArray[Any]


class LeftOut(StrEnum):
    """Why an answer cannot be replayed."""

    OTHER_RELEASE = "other_release"  # its signals may be another edge's
    SHADOW = "shadow"  # the release saw the message, and did not answer it
    EDGE_FAILED = "edge_failed"  # no rule had anything to decide on
    MISSING_SIGNALS = "missing_signals"  # the candidate looks at what was not written down
    UNKNOWN_LABEL = "unknown_label"  # a label or reason that this release does not have


@dataclass(frozen=True, kw_only=True)
class Served:
    """Whose answers are replayed: releases of one pair of bundles, whatever their policies."""

    releases: Collection[str]
    labels: tuple[str, ...]
    prices: Prices
    bundles: BundlePins

    @classmethod
    def of(cls, release: Release) -> "Served":
        return cls(
            releases={release.id},
            labels=release.manifest.labels,
            prices=Prices.model_validate(release.prices),
            bundles=BundlePins.model_validate(release.policy["bundles"]),
        )

    def check(self, policy: RouterPolicy) -> None:
        """Raises ReleaseError if the policy is for other models."""
        policy.check_classes(self.labels)
        if policy.bundles is not None and policy.bundles != self.bundles:
            raise ReleaseError(
                f"The policy {policy.name!r} was made for {policy.bundles}; the log is of "
                f"{self.bundles}. Its threshold means nothing on another edge's signals: tune one "
                "for this pair."
            )


@dataclass
class Log:
    """What was read. `before` is the reason of the rule that ran, `after` the candidate's."""

    rows: Rows = field(default_factory=lambda: np.zeros(0, _ROW))
    left_out: Counter[str] = field(default_factory=Counter)
    lacking: Counter[str] = field(default_factory=Counter)  # answers, by the signal they lack
    first_s: float = np.inf
    last_s: float = -np.inf
    feedback_unmatched: int = 0

    @property
    def asked(self) -> Bools:
        """The cloud was, and answered."""
        return np.asarray(self.rows["cloud"] != UNSEEN)

    @property
    def labelled(self) -> Bools:
        return np.asarray(self.rows["truth"] != UNSEEN)

    def ran(self, *reasons: RouteReason) -> Bools:
        """The rule that ran gave one of these."""
        return is_one_of(self.rows["before"], reasons)


def is_one_of(codes: Ints, reasons: Sequence[RouteReason]) -> Bools:
    return np.isin(codes, [_CODES[reason] for reason in reasons])


def read_log(records: Iterable[Record], policy: RouterPolicy, served: Served) -> Log:
    """Answers and feedback in any order -> rows of those that the policy can be replayed on.

    Raises:
        ReleaseError: the policy is for other models.
    """
    served.check(policy)
    return _Reader(policy, served).read(records)


class _Reader:
    def __init__(self, policy: RouterPolicy, served: Served) -> None:
        self._policy = policy
        self._served = served
        self._index = {label: i for i, label in enumerate(served.labels)}
        self._needed = needed(policy)
        self._feedback: dict[int, FeedbackRecord] = {}
        self._log = Log()

    def read(self, records: Iterable[Record]) -> Log:
        usable, parts = self._usable(records), [self._log.rows]
        while chunk := list(islice(usable, _CHUNK)):
            parts.append(self._columns(chunk))
        self._log.rows = np.concatenate(parts)
        self._judge(self._log.rows)
        return self._log

    def _usable(self, records: Iterable[Record]) -> Iterator[AuditRecord]:
        log = self._log
        for record in records:
            if isinstance(record, FeedbackRecord):
                self._keep(record)
            elif why := self._why_not(record):
                log.left_out[why.value] += 1
            else:
                log.first_s = min(log.first_s, record.time_s)
                log.last_s = max(log.last_s, record.time_s)
                yield record

    def _keep(self, feedback: FeedbackRecord) -> None:
        known = self._feedback.get(hash(feedback.id))
        if known is None or known.time_s <= feedback.time_s:
            self._feedback[hash(feedback.id)] = feedback

    def _why_not(self, record: AuditRecord) -> LeftOut | None:
        if record.release not in self._served.releases:
            return LeftOut.OTHER_RELEASE
        if record.shadow_of is not None:
            return LeftOut.SHADOW
        if record.edge_label is None:
            return LeftOut.EDGE_FAILED
        if missing := [name for name in self._needed if name not in record.signals]:
            self._log.lacking.update(missing)
            return LeftOut.MISSING_SIGNALS
        known = {record.edge_label, record.label} <= self._index.keys()
        return None if known and record.reason in _CODES else LeftOut.UNKNOWN_LABEL

    def _columns(self, chunk: Sequence[AuditRecord]) -> Rows:
        rows = np.zeros(len(chunk), _ROW)
        rows["id"] = [hash(record.id) for record in chunk]
        rows["chance"] = [_chance(record) for record in chunk]
        rows["edge"] = [self._index[str(record.edge_label)] for record in chunk]
        rows["cloud"] = [
            self._index[record.label] if record.route == Route.CLOUD else UNSEEN for record in chunk
        ]
        rows["truth"] = UNSEEN
        rows["before"] = [_CODES[_own_reason(record)] for record in chunk]
        seen = {name: np.array([r.signals[name] for r in chunk]) for name in self._needed}
        evidence = Evidence(seen, rows["edge"], self._served.labels)
        pinned = is_one_of(rows["before"], PINNED)
        rows["after"] = np.where(pinned, rows["before"], _reasons(self._policy, evidence))
        return rows

    def _judge(self, rows: Rows) -> None:
        """Writes the true labels to their answers; an id is known by its 64-bit hash."""
        order = np.argsort(rows["id"])
        ids = rows["id"][order]
        for name, feedback in self._feedback.items():
            at = int(np.searchsorted(ids, name))
            if at < ids.size and ids[at] == name:
                rows["truth"][order[at]] = self._index.get(feedback.label, _OTHER)
            else:
                self._log.feedback_unmatched += 1


def needed(policy: RouterPolicy) -> tuple[str, ...]:
    """The signals that the rule looks at: its score, its hard rules and its floor."""
    asked: defaultdict[str, float] = defaultdict(float)  # keeps the names that it is asked for
    evidence = Evidence(asked, "")
    policy.score.of(evidence)
    list(fired(policy.rules, evidence))
    return tuple(sorted({*asked, "confidence"}))


def _own_reason(record: AuditRecord) -> RouteReason:
    """The rule's own, its exploration taken out."""
    reason = RouteReason(record.reason)
    return RouteReason.TRUSTED if reason is RouteReason.EXPLORED else reason


def _chance(record: AuditRecord) -> float:
    """With which the cloud is asked. A look that failed is one that chance did not take."""
    if record.reason == RouteReason.TRUSTED:
        return 1.0 - record.propensity
    asked = record.route == Route.CLOUD or record.reason == RouteReason.EXPLORED
    return record.propensity if asked else 0.0


def _reasons(policy: RouterPolicy, evidence: Evidence) -> Ints:
    """Why `decide` sends each row where it does, as codes; pinned ones apart."""
    trusted = trust(policy.score, policy.class_margins, evidence) >= policy.threshold
    confident = evidence.signals["confidence"] >= policy.min_confidence
    made = np.where(trusted, _CODES[RouteReason.TRUSTED], _CODES[RouteReason.ESCALATED])
    made = np.where(confident, made, _CODES[RouteReason.UNCONFIDENT])
    for reason, fires in reversed(list(fired(policy.rules, evidence))):
        made = np.where(fires, _CODES[reason], made)
    return made
