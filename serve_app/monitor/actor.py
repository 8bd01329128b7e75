"""The monitor: one actor that every router tells, and that every reader asks.

    router replica: MetricsEmitter.emit ──(batches, off the request path)──> MonitorActor
    MonitorActor:   Windows.ingest -> snapshot() -> Stats -> prometheus_text()
                                   -> report()   -> MonitorReport: comparison, alerts, health

Thin: the figures are made in windows.py and compare.py, their text in prometheus.py, the router's
side is emitter.py. The audit log is the truth and the monitor its shadow: it rebuilds itself from
there, and learns from there what a killed router could not tell. What only grows is saved beside
the log every 10 s, with how far the log was read: so counters go on where they were.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from cluster.audit.follow import Follower
from cluster.audit.read import read
from cluster.audit.records import Record
from cluster.errors import AuditError
from serve_app.contracts import AbuseEvent
from serve_app.decide.cost import Prices
from serve_app.monitor.prometheus import prometheus_text
from serve_app.monitor.stats import AlertThresholds, MonitorReport, Stats
from serve_app.monitor.totals import RouterReport, load, save
from serve_app.monitor.windows import Compared, Windows
from serve_app.request_limits import MAX_SHADOWS

ACTOR_NAME: Final = "firstline-monitor"
NAMESPACE: Final = "firstline"
# An answer, its feedback, and what each shadow made of it: so a rebuilt window is a full one.
_RECORDS_PER_ANSWER: Final = 2 + MAX_SHADOWS
_FOLLOW_EVERY_S: Final = 2.0
_SAVE_EVERY_S: Final = 10.0

log = logging.getLogger(__name__)


class MonitorActor:
    """Windows behind a name. Thin: Ray runs its calls one after another in one thread."""

    def __init__(
        self,
        audit_dir: Path,
        prices: Prices | None = None,
        thresholds: AlertThresholds | None = None,
    ) -> None:
        self._audit_dir = audit_dir
        self._windows = Windows(prices, thresholds)
        self._followed_s = self._saved_s = time.monotonic()
        saved = load(audit_dir)
        self._follower = Follower(audit_dir, saved and saved.offsets)
        # What nobody has counted comes first, so that no record between the two is missed.
        if saved is not None:
            for record in self._unread():
                saved.totals.count(record)
        self._rebuild()
        later = list(self._unread())
        self._windows.ingest(later)
        if saved is not None:
            self._windows.totals = saved.totals
            self._windows.requests.recall(saved.routers)
            for record in later:
                saved.totals.count(record)

    def _rebuild(self) -> None:
        config = self._windows.config
        since_s = time.time() - config.window_s
        last = config.capacity * _RECORDS_PER_ANSWER
        try:
            self._windows.ingest(read(self._audit_dir, since_s, last=last))
        except AuditError as error:  # a monitor that knows less is better than none
            log.error("The window is not whole: %s", error)

    def _unread(self) -> Iterator[Record]:
        while True:
            yield from self._follower.new()
            if not self._follower.is_behind:
                return

    def _catch_up(self, *, at_once: bool = False) -> None:
        """Reads what routers wrote and may not have told; saves what was counted."""
        now_s = time.monotonic()
        if not at_once and now_s - self._followed_s < _FOLLOW_EVERY_S:
            return
        self._followed_s = now_s
        self._windows.ingest(self._follower.new())
        # All that was told is in the log by now: the totals are those of what has been read.
        due = at_once or now_s - self._saved_s >= _SAVE_EVERY_S
        if due and not self._follower.is_behind:
            self._saved_s = now_s
            windows = self._windows
            try:
                save(self._audit_dir, self._follower.offsets, windows.totals, windows.requests)
            except OSError as error:
                log.warning("The counters were not saved: %s", error)

    def ingest(self, records: Sequence[Record], compared: Compared | None = None) -> None:
        """What a router sends; each time with whom to compare, which a new process never heard."""
        if compared is not None:
            self._windows.compared = compared
        self._windows.ingest(records)

    def count_bad_outputs(self, count: int) -> None:
        self._windows.count_bad_outputs(count, time.time())

    def use_prices(self, prices: Prices) -> None:
        """Another release may have other prices; savings are against those of the present one."""
        self._windows.prices = prices

    def compare(self, compared: Compared) -> None:
        """From now on these; `ingest` tells them too, but only once a message has come."""
        self._windows.compared = compared

    def note_abuse(self, events: Sequence[AbuseEvent]) -> None:
        self._windows.note_abuse(events, time.time())

    def note_state(self, name: str, state: str) -> None:
        self._windows.note_state(name, state)

    def note_router(self, report: RouterReport) -> None:
        self._windows.note_router(report, time.time())
        self._catch_up()

    def snapshot(self) -> Stats:
        self._catch_up()
        return self._windows.snapshot(time.time())

    def report(self) -> MonitorReport:
        self._catch_up()
        return self._windows.report(time.time())

    def prometheus(self) -> bytes:
        """What was shown is saved: a counter that were less after a restart would count anew."""
        self._catch_up(at_once=True)
        report = self.report()
        return prometheus_text(report.stats, report)


def get_or_create(
    audit_dir: Path, prices: Prices | None = None, thresholds: AlertThresholds | None = None
) -> Any:
    """The handle of the one monitor of this cluster, started if it is not there; needs Ray.

    It outlives its creator, starts again whenever it dies, and then rebuilds itself from
    `audit_dir`, which must be the same folder on whichever node it lands. Prices and thresholds
    are those of the call that started it.
    """
    import ray

    actor = ray.remote(MonitorActor).options(
        name=ACTOR_NAME,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        num_cpus=0,
    )
    return actor.remote(audit_dir, prices, thresholds)
