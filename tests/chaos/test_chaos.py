"""Under fire: 20 connections for a minute each, a fault in the middle, and what the clients saw.

    make chaos                                  writes .firstline/bench/chaos.json
    CHAOS_SECONDS=15 make chaos       for a shorter look

Always: no wrong answer, and none that a client holds is missing from the audit log. Most faults may
not cost a request; what the others may cost stands in their test.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from serve_app.cascade.cache import CacheConfig
from serve_app.service import releases
from tests.bench.load import alone, bodies_of, clients, read_records, wrk
from tests.bench.rows import Row, publish
from tests.chaos.clients import Seen, judge
from tests.chaos.stage import (
    CONTROLLER,
    HAPROXY,
    MONITOR,
    ROUTER,
    SECONDS,
    STAND_IN,
    Stage,
    freezable_disk,
    freeze,
    full,
    small_disk,
    stage,
)
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_for

pytest_plugins = ["tests.support.redis_server"]
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

_BACK_S: Final = 5.0
_IN_FLIGHT: Final = frozenset({"502", "503", "cut"})
_OPEN_CONNECTIONS: Final = 32


class Rows(list[Row]):
    """What the clients saw, a row for each figure."""

    def add(self, figure: str, value: float, must: str, ok: bool) -> None:
        self.append(Row(figure, float(value), None, None, must, ok))

    def zero(self, figure: str, count: int) -> None:
        self.add(figure, count, "0", count == 0)

    def note(self, figure: str, value: float) -> None:
        self.add(figure, value, "", True)


@pytest.fixture(scope="module")
def every_row() -> Iterator[Rows]:
    """All of the module's, published at its end."""
    kept = Rows()
    yield kept
    if kept:
        publish("chaos", kept, {"seconds": SECONDS}, Path(".firstline").absolute())


@pytest.fixture
def rows(every_row: Rows) -> Iterator[Rows]:
    """This test's; it fails if one of them is not met."""
    own = Rows()
    yield own
    every_row.extend(own)
    missed = [f"{row.figure}: {row.ours:g}, not {row.must}" for row in own if not row.ok]
    assert not missed, missed


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One service for the faults after which it must be whole again by itself."""
    with stage(tmp_path_factory.mktemp("chaos")) as made:
        yield made


def account(rows: Rows, name: str, seen: Seen, *, may_fail: bool = False) -> None:
    """What holds whatever breaks; and no failed request, unless the fault may cost some."""
    rows.zero(f"{name}: wrong answers", len(seen.wrong))
    rows.zero(f"{name}: answers not in the audit log", len(seen.unaudited))
    if not may_fail:
        rows.zero(f"{name}: failed requests {dict(seen.kinds) or ''}".rstrip(), len(seen.failures))
    rows.note(f"{name}: requests", seen.requests)
    rows.note(f"{name}: degraded answers", seen.degraded)
    rows.note(f"{name}: p99, ms", seen.percentile_ms(0.99))
    rows.note(f"{name}: slowest, ms", seen.percentile_ms(1.0))


# -- no failed request ---------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["edge", "cloud"])
def test_a_replica_is_killed(shared: Stage, rows: Rows, role: str) -> None:
    seen = shared.under_load(lambda: shared.kill(shared.tier(role), 1))
    account(rows, f"{role} replica killed", seen)
    assert shared.calm()


def test_the_cloud_hangs(shared: Stage, rows: Rows) -> None:
    def fault() -> None:
        with shared.stopped(shared.tier("cloud")):
            time.sleep(SECONDS / 3)

    seen = shared.under_load(fault)
    account(rows, "cloud hangs", seen)
    # Otherwise nothing was tried: one in five messages escalates.
    rows.add("cloud hangs: some are degraded", seen.degraded, "> 0", seen.degraded > 0)
    assert shared.calm()


@pytest.mark.parametrize("title", [MONITOR, CONTROLLER], ids=["monitor", "controller"])
def test_what_answers_nobody_is_killed(shared: Stage, rows: Rows, title: str) -> None:
    name = title.rpartition("::")[2]
    seen = shared.under_load(lambda: shared.kill(title))
    account(rows, f"{name} killed", seen)
    assert wait_for(lambda: bool(shared.pids(title)), 60), "it did not come back"
    assert shared.calm()


def test_a_release_is_promoted_and_rolled_back_ten_times(shared: Stage, rows: Rows) -> None:
    def fault() -> None:
        for _ in range(10):
            releases.promote(shared.settings, shared.releases[1])
            releases.promote(shared.settings, shared.releases[0])

    account(rows, "promoted and rolled back 10 times", shared.under_load(fault))


def test_the_cloud_answers_nan(tmp_path: Path, rows: Rows) -> None:
    with stage(tmp_path, poisoned=True) as made:
        seen = made.under_load(lambda: None)
    account(rows, "cloud answers NaN", seen)
    rows.add("cloud answers NaN: some are degraded", seen.degraded, "> 0", seen.degraded > 0)


def test_a_slow_disk(tmp_path: Path, rows: Rows) -> None:
    """The audit log's disk hangs for a second, again and again."""
    audit = tmp_path / "home" / "audit"

    def fault() -> None:
        end = time.monotonic() + SECONDS / 3
        while time.monotonic() < end:
            freeze(audit, 1.0)
            time.sleep(1.0)

    with freezable_disk(audit, tmp_path), stage(tmp_path) as made:
        assert made.settings.audit_dir == audit
        seen = made.under_load(fault)
        account(rows, "slow disk", seen)
    slowest_ms = seen.percentile_ms(1.0)
    rows.add("slow disk: it was felt, ms", slowest_ms, ">= 500", slowest_ms >= 500)


def test_redis_goes_and_comes_back(
    tmp_path: Path, rows: Rows, redis_process: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the limits and the cache, with so few entries in process that it is asked."""

    def fault() -> None:
        redis_process.kill()
        time.sleep(SECONDS / 3)
        redis_process.start()

    monkeypatch.setenv("FIRSTLINE_REDIS_URL", redis_process.url)
    with stage(tmp_path, cache=CacheConfig(max_entries=1), routers=2) as made:
        seen = made.under_load(fault)
        account(rows, "Redis gone", seen)


# -- what may be seen ----------------------------------------------------------------------------


def test_a_full_disk_under_the_audit_log(tmp_path: Path, rows: Rows) -> None:
    """Decided: no answer without a record. 503 `audit_failed`, until there is room again."""
    audit = tmp_path / "home" / "audit"
    times: list[float] = []

    def fault() -> None:
        with full(audit):
            times.append(time.time())
            time.sleep(SECONDS / 3)
        times.append(time.time())

    with small_disk(audit, size_mb=64), stage(tmp_path) as made:
        seen = made.under_load(fault)
        account(rows, "full disk", seen, may_fail=True)
    other = [one for one in seen.failures if (one.kind, one.code) != ("503", "audit_failed")]
    rows.zero("full disk: failures but 503 audit_failed", len(other))
    # A page of the log's that was begun may take some more records.
    late = [at for at in seen.answered_at if times[0] + 1 < at < times[1]]
    rows.zero("full disk: answered while it was full", len(late))
    rows.add("full disk: refused", len(seen.failures), "> 0", bool(seen.failures))
    _back(rows, "full disk: from room to an answer, s", seen.silence_s(times[1]))


def test_haproxy_is_killed(shared: Stage, rows: Rows) -> None:
    times: list[float] = []
    seen = shared.under_load(lambda: times.append(shared.kill(HAPROXY)))
    account(rows, "HAProxy killed", seen, may_fail=True)
    _back(rows, "HAProxy killed: until an answer, s", seen.silence_s(times[0]))
    last = max((one.at_s for one in seen.failures), default=times[0]) - times[0]
    _back(rows, "HAProxy killed: until the last failure, s", last)
    early = [one for one in seen.failures if one.at_s < times[0]]
    rows.zero("HAProxy killed: failures before", len(early))
    assert wait_for(lambda: not shared.pids(STAND_IN) and bool(shared.pids(HAPROXY)), 60)
    assert shared.calm()


def test_a_router_replica_is_killed(tmp_path: Path, rows: Rows) -> None:
    """Requests in flight in it may fail, with 502, 503 or a cut connection; no others."""
    times: list[float] = []
    with stage(tmp_path, routers=2) as made:
        seen = made.under_load(lambda: times.append(made.kill(ROUTER, 1)))
        account(rows, "router killed", seen, may_fail=True)
        assert wait_for(lambda: len(made.pids(ROUTER)) == 2, 60), "it did not come back"
    rows.zero(f"router killed: failures of another kind {dict(seen.kinds)}",
              len([one for one in seen.failures if one.kind not in _IN_FLIGHT]))  # fmt: skip
    # Each of the 20 connections had one request out.
    rows.add("router killed: failed requests", len(seen.failures), "<= 20",
             len(seen.failures) <= 20)  # fmt: skip
    sent_later = [one for one in seen.failures if one.at_s - one.seconds > times[0] + 0.1]
    rows.zero("router killed: failures of requests sent later", len(sent_later))


def test_three_times_the_capacity(tmp_path: Path, rows: Rows) -> None:
    with stage(tmp_path) as made, ExitStack() as stack:
        bodies = bodies_of(made.texts)
        wrk(made.url, bodies, connections=_OPEN_CONNECTIONS, seconds=5)
        capacity = wrk(made.url, bodies, connections=_OPEN_CONNECTIONS, seconds=10).per_s
        rows.note("overload: capacity, requests/s", capacity)
        file = tmp_path / "seen.jsonl"
        stack.enter_context(clients(made.url, made.texts, file, rate=3 * capacity, seconds=SECONDS))
        time.sleep(SECONDS / 3)
        early = made.memory()
        time.sleep(SECONDS / 3)
        late = made.memory()
        stack.close()  # returns once every request has its answer
        took_s = _calm_again(made)
        seen = judge(read_records(file), made.texts, made.right, made.settings.audit_dir)
    account(rows, "overload", seen, may_fail=True)
    p99_ms = seen.percentile_ms(0.99)
    rows.add("overload: p99 of the accepted, ms", p99_ms, "< 1000", p99_ms < 1000)
    _refusals(rows, seen)
    # A replica that autoscaling adds meanwhile is no growth; how many there may be is bounded.
    both = early.keys() & late.keys()
    grown = sum(late[pid] for pid in both) / sum(early[pid] for pid in both) - 1
    rows.add("overload: memory grown", grown, "<= 0.05", grown <= 0.05)
    rows.note(
        "overload: memory of replicas added meanwhile, MB",
        sum(late.values()) - sum(late[pid] for pid in both),
    )
    _back(rows, "overload: until a message alone is quick again, s", took_s)


def _refusals(rows: Rows, seen: Seen) -> None:
    other = [one for one in seen.failures if one.kind not in {"429", "503"}]
    rows.zero(f"overload: failures but 429 and 503 {dict(seen.kinds)}", len(other))
    silent = [one for one in seen.failures if not one.retry_after_s]
    rows.zero("overload: refused without Retry-After", len(silent))
    waits = sorted(1e3 * one.seconds for one in seen.failures) or [0.0]
    p99_ms = waits[int(0.99 * (len(waits) - 1))]
    rows.add("overload: p99 of the refused, ms", p99_ms, "< 500", p99_ms < 500)
    rows.add("overload: refused", len(seen.failures), "> 0", bool(seen.failures))
    rows.note("overload: the clients themselves late, at worst, ms", 1e3 * seen.late_s)


def _calm_again(made: Stage) -> float:
    """Seconds until ten messages one after another are each answered within 100 ms."""
    start = time.monotonic()

    def quick() -> bool:
        load = alone(made.url, bodies_of(made.texts[:10]), 10)
        return load.failed == 0 and load.p99_ms < 100

    return time.monotonic() - start if wait_for(quick, 30) else float("inf")


def _back(rows: Rows, figure: str, seconds: float) -> None:
    rows.add(figure, seconds, f"<= {_BACK_S:g}", seconds <= _BACK_S)
