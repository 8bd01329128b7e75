"""The monitor: one actor that every router tells, and that every reader asks.

    router replica: MetricsEmitter.emit ──(batches, off the request path)──> MonitorActor
    MonitorActor:   Windows.ingest -> snapshot() -> Stats -> prometheus_text()
                                   -> report()   -> MonitorReport: comparison, alerts, health

Thin: the figures are made in windows.py and compare.py, their text in prometheus.py, the router's
side is emitter.py. The audit log is the truth and the monitor its shadow: it rebuilds itself from
there.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from cluster.audit.read import read
from cluster.audit.records import Record
from serve_app.contracts import AbuseEvent
from serve_app.decide.cost import Prices
from serve_app.monitor.prometheus import prometheus_text
from serve_app.monitor.stats import AlertThresholds, MonitorReport, Stats
from serve_app.monitor.windows import Compared, Windows
from serve_app.request_limits import MAX_SHADOWS

ACTOR_NAME: Final = "firstline-monitor"
NAMESPACE: Final = "firstline"
# An answer, its feedback, and what each shadow made of it: so a rebuilt window is a full one.
_RECORDS_PER_ANSWER: Final = 2 + MAX_SHADOWS


class MonitorActor:
    """Windows behind a name. Thin: Ray runs its calls one after another in one thread."""

    def __init__(
        self,
        audit_dir: Path,
        prices: Prices | None = None,
        thresholds: AlertThresholds | None = None,
    ) -> None:
        self._windows = Windows(prices, thresholds)
        config = self._windows.config
        since_s = time.time() - config.window_s
        last = config.capacity * _RECORDS_PER_ANSWER
        self._windows.ingest(read(audit_dir, since_s, last=last))

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

    def snapshot(self) -> Stats:
        return self._windows.snapshot(time.time())

    def report(self) -> MonitorReport:
        return self._windows.report(time.time())

    def prometheus(self) -> bytes:
        return prometheus_text(self.snapshot())


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
