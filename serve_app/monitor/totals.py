"""What only grows: counts of answers and of requests. Kept in a file, so a restart resets none.

    audit records ─> Totals.count      router reports ─> Requests.note ─> Totals.requests
    Totals, how far the log was read, what each router had said ─> Saved ─> <audit>/.monitor.json

A router says what it has counted since its start, each time all of it: a report that is lost or
comes twice changes nothing. Pure, but for `load` and `save`.
"""

import json
import logging
import math
import os
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from errno import ENOENT
from pathlib import Path
from typing import Any, Final, NamedTuple

from cluster.audit.records import AuditRecord, FeedbackRecord, Record
from cluster.files import write_text
from serve_app.contracts import HURRIED, RequestEvent
from serve_app.monitor.figures import FRESH_S

log = logging.getLogger(__name__)

# Bounds of what is kept by name: no figure may grow with the service's age or its callers.
_MAX_RELEASES: Final = 50
_MAX_ABUSE_KINDS: Final = 50
_MAX_EVENTS: Final = 2_000
_MAX_ROUTERS: Final = 50
_REPORTED_S: Final = 15.0  # a router reports every 2 s; one that does not is gone
_FILE: Final = ".monitor.json"
# What keeps a router from being ready: so many asked in a row, none answered, the last of late.
_REFUSED_IN_A_ROW: Final = 5
_REFUSED_S: Final = 30.0

Events = dict[RequestEvent, int]


class Expected(NamedTuple):
    """What a release's certificate lets one expect."""

    edge_share: float
    edge_usd: float
    cloud_usd: float
    explore_share: float = 0.0

    def cost_usd(self, edge_share: float) -> float:
        """Of a message on average, if so many are trusted."""
        return self.edge_usd + (1.0 - edge_share + self.explore_share) * self.cloud_usd


class RouterReport(NamedTuple):
    """What a router says every 2 s: its events since its start, and what is wrong with it now."""

    router: str
    started_s: float
    events: Events
    problems: tuple[str, ...]  # why it is not ready
    warnings: tuple[str, ...]
    expected: Mapping[str, Expected]  # by release


# ---- in a router --------------------------------------------------------------------------------


class RequestCounts:
    """Counts a router's requests, and sees when it refuses all of them.

    One with a deadline of its own that had no answer says nothing of us: it may be a millisecond.
    """

    def __init__(self) -> None:
        self.events: Events = {}
        self._in_a_row = 0
        self._last = ("", 0.0)

    def add(self, event: RequestEvent, now_s: float) -> None:
        count_up(self.events, event, _MAX_EVENTS)
        if not event.asks:
            return
        if event.status >= 500 and HURRIED not in event.tags:
            self._in_a_row += 1
            self._last = (event.code, now_s)
        elif event.status < 400:
            self._in_a_row = 0

    def problem(self, now_s: float) -> str | None:
        """In words; None if requests are answered, or none was asked of late."""
        code, last_s = self._last
        if self._in_a_row < _REFUSED_IN_A_ROW or now_s - last_s > _REFUSED_S:
            return None
        return f"the last {self._in_a_row:,} requests had no answer; the newest: {code}"


# ---- in the monitor -----------------------------------------------------------------------------


class Requests:
    """What routers have reported, of all of them."""

    def __init__(self) -> None:
        self.reports: OrderedDict[str, tuple[float, RouterReport]] = OrderedDict()
        self._fresh: deque[tuple[float, Events]] = deque(maxlen=10_000)

    def recall(self, routers: Mapping[str, Events]) -> None:
        """What they had counted when a monitor before this one saved it."""
        for name, events in routers.items():
            self.reports[name] = (-math.inf, RouterReport(name, 0.0, events, (), (), {}))

    def note(self, report: RouterReport, now_s: float) -> Events:
        """What is new in it."""
        before = self.reports.get(report.router)
        known = before[1].events if before else {}
        new = {e: n - known.get(e, 0) for e, n in report.events.items() if n > known.get(e, 0)}
        self.reports[report.router] = (now_s, report)
        self.reports.move_to_end(report.router)
        if len(self.reports) > _MAX_ROUTERS:
            self.reports.popitem(last=False)
        # Of a router that is older than this monitor nobody knows when it counted what it has.
        if before or now_s - report.started_s < FRESH_S:
            self._fresh.append((now_s, new))
        return new

    def fresh(self, now_s: float) -> Counter[RequestEvent]:
        """Of the last 45 s."""
        while self._fresh and self._fresh[0][0] <= now_s - FRESH_S:
            self._fresh.popleft()
        found: Counter[RequestEvent] = Counter()
        for _, events in self._fresh:
            found.update(events)
        return found

    @property
    def expected(self) -> dict[str, Expected]:
        """By release, as the routers have told."""
        return {k: one for _, told in self.reports.values() for k, one in told.expected.items()}

    def live(self, now_s: float) -> list[RouterReport]:
        """Of the routers that are there."""
        return [told for at_s, told in self.reports.values() if now_s - at_s < _REPORTED_S]


def count_up(counts: dict[Any, int], name: Any, at_most: int, by: int = 1) -> None:
    """Counts; of more names than `at_most`, the one that was first seen longest ago goes."""
    counts[name] = counts.get(name, 0) + by
    if len(counts) > at_most:
        del counts[next(iter(counts))]


@dataclass
class Totals:
    """Since the first start."""

    messages: int = 0
    cached: int = 0
    bad_outputs: int = 0
    cost_usd: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)
    degraded: dict[str, int] = field(default_factory=dict)
    releases: dict[str, int] = field(default_factory=dict)
    shadows: dict[str, int] = field(default_factory=dict)
    abuse: dict[tuple[str, str], int] = field(default_factory=dict)
    requests: Events = field(default_factory=dict)

    def count(self, record: Record) -> None:
        """An answer, or what a shadow said; a job's rows and feedback are no part of it."""
        if isinstance(record, FeedbackRecord) or record.offline:
            return
        if record.shadow_of is None:
            self._count_answer(record)
        else:
            count_up(self.shadows, record.release, _MAX_RELEASES)

    def _count_answer(self, record: AuditRecord) -> None:
        self.messages += 1
        self.cached += record.cached
        self.cost_usd += record.cost_usd
        self.bad_outputs += not math.isfinite(record.confidence)
        self.reasons[record.reason] = self.reasons.get(record.reason, 0) + 1
        if record.degraded:
            self.degraded[record.reason] = self.degraded.get(record.reason, 0) + 1
        count_up(self.releases, record.release, _MAX_RELEASES)

    def count_abuse(self, kind: str, action: str) -> None:
        count_up(self.abuse, (kind, action), _MAX_ABUSE_KINDS)

    def requests_untagged(self) -> list[tuple[RequestEvent, int]]:
        """In order, each status, code and release of a route once."""
        found: Counter[RequestEvent] = Counter()
        for event, count in self.requests.items():
            found[event._replace(tags=())] += count
        return sorted(found.items())

    def count_requests(self, events: Events) -> None:
        for event, count in events.items():
            count_up(self.requests, event, _MAX_EVENTS, count)


# ---- on the disk --------------------------------------------------------------------------------


class Saved(NamedTuple):
    """Totals of the log's first bytes, by file, and what each router had counted by then."""

    offsets: dict[str, int]
    totals: Totals
    routers: dict[str, Events]


def save(folder: Path, offsets: Mapping[str, int], totals: Totals, requests: Requests) -> None:
    """Into the log's folder. Raises OSError, also for a folder that is gone: it stays gone."""
    if not folder.is_dir():
        raise FileNotFoundError(ENOENT, os.strerror(ENOENT), str(folder))
    kept = {
        "offsets": dict(offsets),
        "totals": {
            **vars(totals),
            "abuse": _rows(totals.abuse),
            "requests": _rows(totals.requests),
        },
        "routers": {name: _rows(told.events) for name, (_, told) in requests.reports.items()},
    }
    write_text(folder / _FILE, json.dumps(kept))


def load(folder: Path) -> Saved | None:
    """None where nothing was saved, or nothing that can be read."""
    path = folder / _FILE
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        totals = dict(kept["totals"])
        abuse = {(str(kind), str(action)): int(n) for (kind, action), n in totals.pop("abuse")}
        requests = _events(totals.pop("requests"))
        return Saved(
            offsets={str(name): int(at) for name, at in kept["offsets"].items()},
            totals=Totals(**totals, abuse=abuse, requests=requests),
            routers={str(name): _events(rows) for name, rows in kept["routers"].items()},
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("%s cannot be read (%r); the counters begin with the log.", path, error)
        return None


def _rows(counts: Mapping[Any, int]) -> list[tuple[list[Any], int]]:
    return [(list(key), count) for key, count in counts.items()]


def _events(rows: Iterable[Any]) -> Events:
    return {
        RequestEvent(str(route), int(status), str(code), str(release), tuple(map(str, tags))): int(
            n
        )
        for (route, status, code, release, tags), n in rows
    }
