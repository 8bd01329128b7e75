"""The monitor as a Ray actor: found by name, fed by an emitter, rebuilt from the log."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.audit.records import AuditRecord, FeedbackRecord, Record
from cluster.audit.write import AuditLog
from serve_app.monitor.actor import ACTOR_NAME, NAMESPACE, get_or_create
from serve_app.monitor.emitter import MetricsEmitter, Send
from serve_app.monitor.stats import Stats

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray.init("local", num_cpus=1, include_dashboard=False, configure_logging=False)
    try:
        yield
    finally:
        ray.shutdown()


@pytest.fixture
def monitor(local_ray: None, tmp_path: Path) -> Iterator[Any]:
    actor = get_or_create(tmp_path)
    try:
        yield actor
    finally:
        ray.kill(actor, no_restart=True)


def records(count: int) -> list[Record]:
    now_s = time.time()
    answers: list[Record] = [
        AuditRecord(
            id=f"id-{i}",
            time_s=now_s - count + i,
            text_hash="00" * 16,
            route="cloud" if i % 10 == 0 else "edge",
            reason="escalated" if i % 10 == 0 else "trusted",
            label=("negative", "neutral", "positive")[i % 3],
            edge_label=("negative", "neutral", "positive")[i % 3],
            confidence=0.5 + i % 50 / 100,
            signals={"confidence": 0.9},
            trust=0.9,
            threshold=0.8,
            propensity=1.0,
            release="r1",
            cost_usd=0.001,
            latency_ms=float(i),
            degraded=i % 25 == 0,
        )
        for i in range(count)
    ]
    feedback = [FeedbackRecord(f"id-{i}", now_s, "negative") for i in range(0, count, 4)]
    return [*answers, *feedback]


def snapshot(actor: Any) -> Stats:
    stats: Stats = ray.get(actor.snapshot.remote(), timeout=20)
    return stats


def resolve() -> Send:
    actor = ray.get_actor(ACTOR_NAME, NAMESPACE)

    async def send(batch: list[Record]) -> None:
        await actor.ingest.remote(batch)

    return send


def emit(batch: list[Record]) -> int:
    """Through an emitter, as a router does; gives what it dropped."""

    async def test() -> int:
        emitter = MetricsEmitter(resolve, flush_interval_s=0.01, batch_size=50)
        emitter.emit(batch)
        await emitter.drain(timeout_s=20)
        return emitter.dropped

    return asyncio.run(test())


def comparable(stats: Stats) -> Stats:
    """Without what moves with the clock, and what tells the processes apart."""
    moving = {"time_s": 0.0, "span_s": 0.0, "messages_per_s": 0.0, "bad_outputs_total": 0}
    return stats.model_copy(update=moving)


def killed_and_back(actor: Any) -> Stats:
    """The first figures of the new process.

    A call right after the kill may still be answered by the old one. Bad outputs without an answer
    are not in the audit log, so those of the window tell the two apart; their total is kept.
    """
    ray.get(actor.count_bad_outputs.remote(1))
    ray.kill(actor, no_restart=False)
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        try:
            stats = snapshot(actor)
        except ray.exceptions.RayActorError:
            time.sleep(0.1)
            continue
        if not stats.bad_outputs:
            return stats
        time.sleep(0.02)
    raise AssertionError("the monitor did not come back")


def test_a_killed_monitor_comes_back_with_the_same_figures(monitor: Any, tmp_path: Path) -> None:
    log = AuditLog(tmp_path, "r1")
    log.append(records(120))
    assert emit(records(120)) == 0
    before = snapshot(monitor)
    assert (before.messages, before.accuracy.labelled) == (120, 30)

    after = killed_and_back(monitor)
    assert comparable(after) == comparable(before)

    # The batch that the dead monitor may have missed is sent again, and counted once.
    assert emit([records(121)[120], *records(120)]) == 0
    assert snapshot(monitor).messages == 121


def test_there_is_one_monitor_and_it_answers_in_every_form(monitor: Any, tmp_path: Path) -> None:
    assert get_or_create(tmp_path / "elsewhere") == monitor
    assert ray.get_actor(ACTOR_NAME, NAMESPACE) == monitor
    ray.get(monitor.count_bad_outputs.remote(2))
    report = ray.get(monitor.report.remote())
    assert report.stats.bad_outputs == 2
    assert b"firstline_bad_outputs_total 2.0" in ray.get(monitor.prometheus.remote())
