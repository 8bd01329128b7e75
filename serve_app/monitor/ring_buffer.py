"""The newest audit records as numpy rows, each under its id; the monitor's figures are of these.

Pure. A row takes about 80 bytes, its id about 180 more.
"""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cluster.audit.records import AuditRecord
from serve_app.contracts import Route, RouteReason

Rows = NDArray[Any]

UNKNOWN, WRONG, RIGHT = -1, 0, 1  # what feedback has said of an answer
SAME, DIFFERENT = 0, 1  # what the cloud has said of an explored one
NO_LABEL: Final = -1
ANSWER: Final = np.dtype(
    [
        ("time_s", "f8"),
        ("confidence", "f8"),
        ("cost_usd", "f8"),
        ("latency_ms", "f8"),
        ("each_ms", "f8"),  # of its request's latency, this message's part
        ("feedback_s", "f8"),
        ("label", "i4"),
        ("reason", "i2"),
        ("release", "i2"),
        ("verdict", "i1"),
        ("differs", "i1"),
        ("edge", "?"),
        ("kept", "?"),  # by the rule: see AsCertified
        ("degraded", "?"),
        ("cached", "?"),
    ]
)
SHADOW: Final = np.dtype(
    [
        ("time_s", "f8"),
        ("cost_usd", "f8"),
        ("label", "i4"),
        ("live", "i4"),  # what the client was told; NO_LABEL: not seen, or degraded
        ("release", "i2"),
        ("edge", "?"),
        ("degraded", "?"),
    ]
)


class Names:
    """Strings <-> small numbers, for columns of few distinct values."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    def code(self, name: str) -> int:
        return self._codes.setdefault(name, len(self._codes))

    def find(self, name: str) -> int:
        """-1 if never seen: what clients send must not grow the table."""
        return self._codes.get(name, -1)

    def by_code(self) -> list[str]:
        return list(self._codes)

    def count(self, codes: NDArray[Any]) -> dict[str, int]:
        """name -> how often, the most frequent first."""
        counts = np.bincount(codes, minlength=len(self._codes)).tolist()
        found = [(name, counts[code]) for name, code in self._codes.items() if counts[code]]
        return dict(sorted(found, key=lambda item: (-item[1], item[0])))


class RingBuffer:
    """The newest rows, each under an id; the oldest one makes room."""

    def __init__(self, capacity: int, row: np.dtype[Any]) -> None:
        self._rows = np.zeros(capacity, dtype=row)
        self._ids: list[str] = []
        self._slots: dict[str, int] = {}
        self._added = 0

    def add(self, row_id: str, values: tuple[Any, ...]) -> bool:
        """False, and nothing done, if the id is there."""
        if row_id in self._slots:
            return False
        slot = self._added % len(self._rows)
        if slot < len(self._ids):
            del self._slots[self._ids[slot]]
            self._ids[slot] = row_id
        else:
            self._ids.append(row_id)
        self._slots[row_id] = slot
        self._rows[slot] = values
        self._added += 1
        return True

    def find(self, row_id: str) -> Any | None:
        """The row, to be read or changed."""
        slot = self._slots.get(row_id)
        return None if slot is None else self._rows[slot]

    def since(self, time_s: float) -> Rows:
        """The rows after `time_s` in order of time, so that no figure depends on arrival."""
        rows = self._rows[: len(self._ids)]
        rows = rows[rows["time_s"] > time_s]
        return rows[np.argsort(rows["time_s"], kind="stable")]


class RecordColumns:
    """Records -> rows; their names become numbers."""

    def __init__(self) -> None:
        self.labels, self.reasons, self.releases = Names(), Names(), Names()

    def answer(self, record: AuditRecord) -> tuple[Any, ...]:
        """A row of ANSWER, before any feedback."""
        return (
            record.time_s,
            record.confidence,
            record.cost_usd,
            record.latency_ms,
            record.latency_ms / record.request_size,
            -math.inf,
            self.labels.code(record.label),
            self.reasons.code(record.reason),
            self.releases.code(record.release),
            UNKNOWN,
            _compared(record),
            record.route == Route.EDGE,
            _kept(record),
            record.degraded,
            record.cached,
        )

    def shadow(self, record: AuditRecord) -> tuple[Any, ...]:
        """A row of SHADOW, before its answer is found."""
        return (
            record.time_s,
            record.cost_usd,
            self.labels.code(record.label),
            NO_LABEL,
            self.releases.code(record.release),
            record.route == Route.EDGE,
            record.degraded,
        )

    def by_release(self, rows: Rows) -> dict[str, Rows]:
        """The rows of each release, the most frequent first."""
        codes = rows["release"]
        return {
            name: rows[codes == self.releases.find(name)] for name in self.releases.count(codes)
        }


def _kept(record: AuditRecord) -> bool:
    """The rule trusted the edge. It did not where a degraded answer went out for the cloud's."""
    explored = record.reason == RouteReason.EXPLORED
    return explored or (record.route == Route.EDGE and not record.degraded)


def _compared(record: AuditRecord) -> int:
    """UNKNOWN unless explored, for what the rule escalates is no sample of the trusted; and not
    where a look was answered out of the cache, for it is the same look again."""
    explored = record.reason == RouteReason.EXPLORED and record.route != Route.EDGE
    if not explored or record.degraded or record.cached:
        return UNKNOWN
    return SAME if record.edge_label == record.label else DIFFERENT
