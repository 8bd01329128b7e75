"""Audit records and a log that holds them, for the tests of the log."""

import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from cluster.audit.compact import Compacted, compact
from cluster.audit.records import AuditRecord, Record
from cluster.audit.write import AuditLog

NOON_S = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()
DAY_S = 86_400.0
TOMORROW = date(2026, 11, 22)


def answer(number: int = 0, time_s: float = NOON_S, **changes: Any) -> AuditRecord:
    record = AuditRecord(
        id=f"id-{number}",
        time_s=time_s + number,
        text_hash="0123456789abcdef" * 2,
        route="edge",
        reason="trusted",
        label="negative",
        edge_label="negative",
        confidence=0.9312,
        signals={"confidence": 0.9312, "margin": 0.8},
        trust=0.9312,
        threshold=0.8,
        propensity=1.0,
        release="release-1",
        cost_usd=0.001,
        latency_ms=3.25,
        degraded=False,
    )
    return record._replace(**changes)


def write(
    folder: Path, records: Sequence[Record], writer: str = "r1", at_s: float = NOON_S
) -> Path:
    log = AuditLog(folder, writer, lambda: at_s)
    log.append(records)
    log.close()
    return folder / f"{datetime.fromtimestamp(at_s, UTC):%Y%m%d}-{writer}.jsonl"


def compact_closed(folder: Path) -> Compacted:
    """Compacts the 21st, as seen two days later."""
    return compact(folder, TOMORROW, lambda: NOON_S + 2 * DAY_S)


def run_python(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
