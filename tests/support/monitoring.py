"""Records of invented traffic, and the monitor's report on them."""

import math
from collections.abc import Sequence
from typing import Any

from cluster.audit.records import AuditRecord, FeedbackRecord, Record
from serve_app.decide.cost import Prices
from serve_app.monitor.stats import AlertThresholds, MonitorReport
from serve_app.monitor.windows import Compared, Windows

NOW_S = 1_800_000_000.0
HOUR_S = 3600.0
PRICES = Prices()


def answer(number: int | str, age_s: float = 1.0, **changes: Any) -> AuditRecord:
    record = AuditRecord(
        id=f"id-{number}",
        time_s=NOW_S - age_s,
        text_hash="00" * 16,
        route="edge",
        reason="trusted",
        label="negative",
        edge_label="negative",
        confidence=0.95,
        signals={},
        trust=0.95,
        threshold=0.8,
        propensity=1.0,
        release="r1",
        cost_usd=PRICES.edge_usd,
        latency_ms=4.0,
        degraded=False,
    )
    return record._replace(**changes)


def judged(records: Sequence[AuditRecord], correct: int) -> list[FeedbackRecord]:
    """Feedback to all of them, on the first so many that they are right."""
    return [
        FeedbackRecord(record.id, record.time_s, record.label if i < correct else "another")
        for i, record in enumerate(records)
    ]


def to_cloud(record: AuditRecord) -> AuditRecord:
    cost_usd = PRICES.edge_usd + PRICES.cloud_usd
    return record._replace(route="cloud", reason="escalated", cost_usd=cost_usd, latency_ms=40.0)


def traffic(
    count: int, span_s: float = 2 * HOUR_S, *, edge_share: float = 0.9
) -> list[AuditRecord]:
    """Evenly spread over `span_s` up to now, with a deterministic share of escalations."""
    records = [answer(i, span_s * (1 - i / count)) for i in range(count)]
    kept = [math.floor((i + 1) * edge_share) > math.floor(i * edge_share) for i in range(count)]
    return [
        record if keep else to_cloud(record) for record, keep in zip(records, kept, strict=True)
    ]


def report_on(records: Sequence[Record], **limits: Any) -> MonitorReport:
    windows = Windows(thresholds=AlertThresholds(**limits))
    windows.compared = Compared("r1", ("r2",))
    windows.ingest(records)
    return windows.report(NOW_S)
