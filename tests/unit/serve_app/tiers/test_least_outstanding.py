"""Which replica a call goes to, by Serve's own choosing among the counts that are kept here."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.request_router import ReplicaID

from serve_app.tiers.least_outstanding import LeastOutstanding
from serve_app.tiers.local_socket import ADDRESS
from serve_app.tiers.socket_client import pool_of
from tests.support import ray_private
from tests.support.ray_private import DeploymentHandleSource, DeploymentID

TIER = DeploymentID("edge", "release-r-1")
HERE = "this node"
ONE, OTHER = ReplicaID("one", TIER), ReplicaID("other", TIER)


@dataclass
class Replica:
    """What Serve's router asks of a replica, without one."""

    replica_id: ReplicaID
    max_ongoing_requests: int = 8
    says: int = 0
    node_id: str = HERE
    replica_metadata: dict[str, Any] = field(default_factory=dict)

    async def get_queue_len(self, *, deadline_s: float) -> int:
        return self.says


@pytest.fixture(autouse=True)
def _on_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(get_node_id=lambda: HERE)
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)


def run(story: Callable[[LeastOutstanding], Awaitable[None]], **says: int) -> None:
    """A router with two replicas, which say at first that they have nothing to do."""

    async def told() -> None:
        made: Any = LeastOutstanding
        router = made(TIER, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True)
        router.initialize_state(tier="release-r-1/edge")
        found = [Replica(id, says=says.get(id.unique_id, 0)) for id in (ONE, OTHER)]
        router.update_replicas(found)
        await asyncio.sleep(0.01)  # until they were asked
        await story(router)

    asyncio.run(told())


async def chosen(router: LeastOutstanding) -> ReplicaID:
    async with asyncio.timeout(5):
        return await ray_private.chosen(router)


def test_a_call_goes_where_the_fewest_are_out() -> None:
    async def story(router: LeastOutstanding) -> None:
        went = []
        for _ in range(4):
            went.append(await chosen(router))
            router.on_send_request(went[-1])
        assert went.count(ONE) == went.count(OTHER) == 2
        router.decrement_queue_len_cache(went[0])
        assert await chosen(router) == went[0]

    run(story)


def test_word_of_calls_that_have_ended_meanwhile_keeps_nobody_idle() -> None:
    """Regression: Serve's own count became the replica's word, and stayed too high."""

    async def story(router: LeastOutstanding) -> None:
        for _ in range(2):
            router.on_send_request(ONE)
        for _ in range(2):
            router.decrement_queue_len_cache(ONE)
        router.on_new_queue_len_info(ONE, 2)
        router.on_send_request(OTHER)
        router.on_new_queue_len_info(OTHER, 1)
        assert await chosen(router) == ONE

    run(story)


def test_a_replica_that_is_at_work_for_others_is_left_alone_at_first() -> None:
    async def story(router: LeastOutstanding) -> None:
        assert await chosen(router) == OTHER

    run(story, one=3)


def test_a_refused_call_is_not_counted_as_one_that_runs() -> None:
    """It never ends, so nothing would take it off again; the replica's word counts instead."""

    async def story(router: LeastOutstanding) -> None:
        router.on_send_request(ONE)
        router.on_new_queue_len_info(ONE, 8)  # taken by other routers, and full
        assert router.replica_queue_len_cache.get(ONE) == 8
        assert await chosen(router) == OTHER

    run(story)


def test_where_all_replicas_are_on_this_host_calls_go_over_their_lines() -> None:
    async def story(router: LeastOutstanding) -> None:
        connections, told = pool_of("release-r-1/edge"), {ADDRESS: "one"}
        router.update_replicas([Replica(ONE, replica_metadata=told)])  # type: ignore[list-item]
        assert connections._wanted == {"one"}
        near, far = Replica(ONE, replica_metadata=told), Replica(OTHER, node_id="another")
        router.update_replicas([near, far])  # type: ignore[list-item]
        assert connections._wanted == frozenset(), "the far one would be asked by nobody"
        router.update_replicas([near, Replica(OTHER)])  # type: ignore[list-item]
        assert connections._wanted == frozenset(), "one of an older version has none"
        router.update_replicas([near])  # type: ignore[list-item]
        assert connections._wanted == {"one"}
        router.update_replicas([])
        assert connections._wanted == frozenset()

    run(story)
