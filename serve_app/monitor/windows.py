"""Audit records -> columns in rings -> Stats and MonitorReport. Pure: the clock is an argument.

    answers, feedback ─> one ring ───> every figure of the service, and per release
    shadow records ────> another one ─> what a shadow would have done; nowhere else

The models stand in stats.py, the judgement in health.py, the comparison in compare.py. The audit
log is the truth: records are counted once by id, feedback by its newest time, so windows rebuilt
from the log show what the lost ones showed. Abuse, states and outputs that led to no answer are in
no log, and their window is lost with the process; what only grows is kept by totals.py.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from cluster.audit.records import AuditRecord, FeedbackRecord, Record
from serve_app.contracts import AbuseEvent, Route, RouteReason
from serve_app.decide.cost import Prices
from serve_app.monitor import figures
from serve_app.monitor.compare import compare
from serve_app.monitor.health import find_alerts, find_trends, health, recommend
from serve_app.monitor.ring_buffer import ANSWER, SHADOW, RecordColumns, RingBuffer, Rows
from serve_app.monitor.stats import (
    AbuseCount,
    AbuseNote,
    AlertThresholds,
    Comparison,
    MonitorReport,
    RequestCount,
    RequestStats,
    ShadowStats,
    Stats,
    WindowConfig,
)
from serve_app.monitor.totals import Expected, Requests, RouterReport, Totals

_HOUR_S: Final = 3600.0
_MONTH_S: Final = 365.25 / 12 * 24 * _HOUR_S
_EDGE_SHARE_LEEWAY: Final = 0.1  # under the certified share
_MAX_ABUSE_NOTES: Final = 100
_MAX_STATES: Final = 50


class Compared(NamedTuple):
    """The releases that answer, by id: the champion, and whom it is compared with."""

    champion: str
    challengers: tuple[str, ...]


class Windows:
    """The newest records in rings of columns, and the figures over them.

    Not thread-safe: its owner calls it from one thread. Time leaves the window by comparison with
    `now_s`, never by deletion, so a snapshot changes nothing.
    """

    def __init__(
        self,
        prices: Prices | None = None,
        thresholds: AlertThresholds | None = None,
        config: WindowConfig | None = None,
    ) -> None:
        self.prices = prices or Prices()
        self.thresholds = thresholds or AlertThresholds()
        self.config = config or WindowConfig()
        self.compared: Compared | None = None
        self._answers = RingBuffer(self.config.capacity, ANSWER)
        self._shadows = RingBuffer(self.config.capacity, SHADOW)
        self._columns = RecordColumns()
        # Feedback whose answer is not here: too old, made up, or faster than the answer's batch.
        self._unmatched: OrderedDict[str, FeedbackRecord] = OrderedDict()
        # The ids of shadow records, by the answer that has not come yet.
        self._early_shadows: OrderedDict[str, list[str]] = OrderedDict()
        self._bad: deque[tuple[float, int]] = deque(maxlen=10_000)
        self._abuse: deque[AbuseNote] = deque(maxlen=_MAX_ABUSE_NOTES)
        self._states: OrderedDict[str, str] = OrderedDict()
        self.totals = Totals()
        self.requests = Requests()

    # -- what comes in --

    def ingest(self, records: Iterable[Record]) -> None:
        """Answers, feedback and shadow records in any order, as they stand in the audit log."""
        for record in records:
            if isinstance(record, FeedbackRecord):
                self._judge(record)
            elif record.offline:
                continue
            elif record.shadow_of is None:
                self._add(record)
            else:
                self._add_shadow(record, record.shadow_of)

    def observe(self, records: Sequence[AuditRecord]) -> None:
        """Counts each record once, however often it is shown."""
        self.ingest(records)

    def feedback(self, records: Sequence[FeedbackRecord]) -> None:
        """Takes the newest label per answer."""
        self.ingest(records)

    def count_bad_outputs(self, count: int, now_s: float) -> None:
        """Counts outputs that led to no answer. They are not in the audit log: a rebuilt monitor
        knows only those that reached an answer's record as its confidence."""
        self._bad.append((now_s, count))
        self.totals.bad_outputs += count

    def note_abuse(self, events: Iterable[AbuseEvent], now_s: float) -> None:
        """Keys that a router slowed or blocked."""
        for event in events:
            note = AbuseNote(
                time_s=now_s,
                key=event.key,
                kind=event.kind.value,
                action=event.action.value,
                until_s=event.until_s,
            )
            self._abuse.appendleft(note)
            self.totals.count_abuse(note.kind, note.action)

    def note_router(self, report: RouterReport, now_s: float) -> None:
        """How a router's requests have ended, and what is wrong with it."""
        self.totals.count_requests(self.requests.note(report, now_s))

    def note_state(self, name: str, state: str) -> None:
        """The state that a part of the service is in; of several routers, the last one told."""
        self._states[name] = state
        self._states.move_to_end(name)
        if len(self._states) > _MAX_STATES:
            self._states.popitem(last=False)

    def _add(self, record: AuditRecord) -> None:
        if not self._answers.add(record.id, self._columns.answer(record)):
            return
        self.totals.count(record)
        if waiting := self._unmatched.pop(record.id, None):
            self._judge(waiting)
        for shadow_id in self._early_shadows.pop(record.id, ()):
            self._match(shadow_id, record.id)

    def _judge(self, feedback: FeedbackRecord) -> None:
        row = self._answers.find(feedback.id)
        if row is None or self._is_out(row["time_s"], feedback.time_s):
            self._keep_unmatched(feedback)
            return
        if feedback.time_s >= row["feedback_s"]:
            row["feedback_s"] = feedback.time_s
            row["verdict"] = self._columns.labels.find(feedback.label) == row["label"]

    def _keep_unmatched(self, feedback: FeedbackRecord) -> None:
        known = self._unmatched.get(feedback.id)
        if known is None or known.time_s <= feedback.time_s:
            self._unmatched[feedback.id] = feedback
        if len(self._unmatched) > self.config.capacity:
            self._unmatched.popitem(last=False)

    def _add_shadow(self, record: AuditRecord, answer_id: str) -> None:
        if not self._shadows.add(record.id, self._columns.shadow(record)):
            return
        self.totals.count(record)
        if self._answers.find(answer_id) is not None:
            self._match(record.id, answer_id)
            return
        self._early_shadows.setdefault(answer_id, []).append(record.id)
        if len(self._early_shadows) > self.config.capacity:
            self._early_shadows.popitem(last=False)

    def _match(self, shadow_id: str, answer_id: str) -> None:
        """What was told to the client is written to the shadow's row, if it is still there."""
        shadow, answer = self._shadows.find(shadow_id), self._answers.find(answer_id)
        if shadow is not None and answer is not None and not answer["degraded"]:
            shadow["live"] = answer["label"]

    def _is_out(self, time_s: float, now_s: float) -> bool:
        return time_s <= now_s - self.config.window_s

    # -- what comes out --

    def snapshot(self, now_s: float) -> Stats:
        """The figures as of now."""
        return self._stats(self._answers.since(now_s - self.config.window_s), now_s)

    def report(self, now_s: float) -> MonitorReport:
        """The figures, and what to make of them."""
        rows = self._answers.since(now_s - self.config.window_s)
        stats = self._stats(rows, now_s)
        expected = self.requests.expected
        bad = self._bad_since(now_s - figures.FRESH_S)
        recent = figures.recent(rows, now_s, bad, alone_is_odd=bool(expected))
        limits = self._limits(recent.newest, expected)
        alerts = find_alerts(stats, recent, limits, self._columns.labels.by_code())
        trends = find_trends(rows)
        comparison = self._comparison(rows)
        return MonitorReport(
            stats=stats,
            comparison=comparison,
            alerts=alerts,
            trends=trends,
            health=health(stats, alerts, recent, self.thresholds),
            recommendations=recommend(stats, comparison, alerts, trends, self.thresholds),
        )

    def _limits(self, rows: Rows, expected: Mapping[str, Expected]) -> AlertThresholds:
        """Those of edge share and cost by the certificates of the releases that answered `rows`."""
        known = self._columns.by_release(rows)
        if not expected.keys() & known.keys():
            return self.thresholds
        least = most = 0.0
        for name, part in known.items():
            share, cost_usd = self.thresholds.min_edge_share, self.thresholds.max_cost_usd
            if name in expected:
                share = max(0.0, expected[name].edge_share - _EDGE_SHARE_LEEWAY)
                cost_usd = expected[name].cost_usd(share)
            least += share * len(part) / len(rows)
            most += cost_usd * len(part) / len(rows)
        return self.thresholds.model_copy(update={"min_edge_share": least, "max_cost_usd": most})

    def _stats(self, rows: Rows, now_s: float) -> Stats:
        span_s = max(0.0, now_s - float(rows["time_s"][0])) if len(rows) else 0.0
        cost_usd = figures.mean(rows["cost_usd"])
        reasons = self._columns.reasons.count(rows["reason"])
        confidence = rows["confidence"][np.isfinite(rows["confidence"])]
        recent = np.count_nonzero(rows["time_s"] > now_s - self.config.rate_s)
        bad = self._bad_since(now_s - self.config.window_s)
        edge, totals, live = rows["edge"], self.totals, self.requests.live(now_s)
        return Stats(
            time_s=now_s,
            window_s=self.config.window_s,
            span_s=span_s,
            messages=len(rows),
            messages_per_s=recent / self.config.rate_s,
            edge_share=figures.mean(edge),
            cost_per_message_usd=cost_usd,
            savings_vs_cloud_only=None if cost_usd is None else self.prices.savings(cost_usd),
            savings_per_month_usd=self._savings_per_month_usd(len(rows), span_s, cost_usd),
            latency_ms=figures.latency(rows["latency_ms"]),
            confidence_mean=figures.mean(confidence),
            confidence_histogram=np.histogram(confidence, bins=10, range=(0.0, 1.0))[0].tolist(),
            classes=self._columns.labels.count(rows["label"]),
            reasons=reasons,
            releases=self._columns.releases.count(rows["release"]),
            by_release={
                name: figures.of_release(part)
                for name, part in self._columns.by_release(rows).items()
            },
            cached_share=figures.mean(rows["cached"]),
            degraded_share=figures.mean(rows["degraded"]),
            degraded_reasons=self._columns.reasons.count(rows["reason"][rows["degraded"]]),
            pii_pinned_share=figures.share(reasons.get(RouteReason.PII_PINNED, 0), len(rows)),
            bad_outputs=bad + len(rows) - len(confidence),
            accuracy=figures.accuracy(rows["verdict"]),
            accuracy_by_route={
                Route.EDGE.value: figures.accuracy(rows["verdict"][edge]),
                Route.CLOUD.value: figures.accuracy(rows["verdict"][~edge]),
            },
            disagreement=figures.disagreement(rows["differs"]),
            as_certified=figures.as_certified(rows),
            feedback_unmatched=sum(
                not self._is_out(feedback.time_s, now_s) for feedback in self._unmatched.values()
            ),
            shadows=self._shadow_stats(now_s),
            abuse=[note for note in self._abuse if not self._is_out(note.time_s, now_s)],
            states=dict(sorted(self._states.items())),
            requests=self._request_stats(now_s),
            problems=sorted({one for told in live for one in told.problems}),
            warnings=sorted({one for told in live for one in told.warnings}),
            messages_total=totals.messages,
            reasons_total=dict(sorted(totals.reasons.items())),
            releases_total=dict(sorted(totals.releases.items())),
            cost_total_usd=totals.cost_usd,
            bad_outputs_total=totals.bad_outputs,
            cached_total=totals.cached,
            degraded_total=dict(sorted(totals.degraded.items())),
            shadow_messages_total=dict(sorted(totals.shadows.items())),
            abuse_total=[
                AbuseCount(kind=kind, action=action, events=events)
                for (kind, action), events in sorted(totals.abuse.items())
            ],
            requests_total=[
                RequestCount(
                    route=event.route,
                    status=event.status,
                    code=event.code,
                    release=event.release,
                    requests=count,
                )
                for event, count in totals.requests_untagged()
            ],
        )

    def _request_stats(self, now_s: float) -> RequestStats:
        works = {e: n for e, n in self.requests.fresh(now_s).items() if e.works}
        refused = {e: n for e, n in works.items() if e.refused}
        codes: dict[str, int] = {}
        for event, count in sorted(refused.items()):
            codes[event.code] = codes.get(event.code, 0) + count
        return RequestStats(
            within_s=figures.FRESH_S,
            requests=sum(works.values()),
            refused=sum(refused.values()),
            refused_by_code=codes,
        )

    def _bad_since(self, time_s: float) -> int:
        return sum(count for at_s, count in self._bad if at_s > time_s)

    def _savings_per_month_usd(
        self, messages: int, span_s: float, cost_usd: float | None
    ) -> float | None:
        if cost_usd is None or span_s < self.config.min_extrapolation_s:
            return None
        return (self.prices.cloud_usd - cost_usd) * messages / span_s * _MONTH_S

    def _shadow_stats(self, now_s: float) -> dict[str, ShadowStats]:
        rows = self._shadows.since(now_s - self.config.window_s)
        labels = self._columns.labels.by_code()
        return {
            name: figures.of_shadow(part, labels)
            for name, part in self._columns.by_release(rows).items()
        }

    # -- releases side by side --

    def _comparison(self, rows: Rows) -> list[Comparison]:
        """The champion against each challenger, over the time in which all of them answered.

        So no release is judged by messages of another hour. Nothing is compared before a router
        has told who is the champion.
        """
        if self.compared is None:
            return []
        champion, challengers = self.compared
        parts = self._columns.by_release(rows)
        parts = {name: parts[name] for name in (champion, *challengers) if name in parts}
        if champion not in parts or len(parts) < 2:
            return []
        since_s = max(float(part["time_s"][0]) for part in parts.values())
        until_s = min(float(part["time_s"][-1]) for part in parts.values())
        counts = {
            name: figures.counts(
                name, part[(part["time_s"] >= since_s) & (part["time_s"] <= until_s)]
            )
            for name, part in parts.items()
        }
        if not all(one.messages for one in counts.values()):
            return []
        return [
            compare(counts[champion], one, since_s, until_s)
            for name, one in counts.items()
            if name != champion
        ]
