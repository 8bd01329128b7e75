"""The replica of a tier, without Ray: what it answers, refuses, and keeps off its event loop."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from cluster.bundles import MODEL, ModelBundle
from cluster.errors import BundleError
from serve_app.contracts import Prediction
from serve_app.tiers.autoscaling import LISTS
from serve_app.tiers.local_socket import ADDRESS
from serve_app.tiers.replica import Tier
from serve_app.tiers.socket_client import ConnectionPool
from tests.support.toys import make_bundle, message


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    return make_bundle(tmp_path_factory.mktemp("toy") / "edge", "edge")


def tier(bundle: ModelBundle, threads: int = 1) -> Tier:
    return Tier(str(bundle.path), bundle.sha256, threads, MODEL)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_message_is_answered_alike_alone_and_in_a_list(bundle: ModelBundle, threads: int) -> None:
    texts = [message(label) for label in bundle.manifest.labels] * 4
    made = tier(bundle, threads)

    async def story() -> tuple[Sequence[Any], list[Any]]:
        together = await made.predict(texts, bundle.sha256, 5.0)
        alone = [(await made.predict([text], bundle.sha256, 5.0))[0] for text in texts]
        return together, alone

    together, alone = asyncio.run(story())
    assert list(together) == alone
    assert all(isinstance(answer, Prediction) for answer in alone)


@pytest.mark.parametrize("count", [1, 9])
def test_the_wrong_bundle_and_a_list_that_is_late_are_refused(
    bundle: ModelBundle, count: int
) -> None:
    made, texts = tier(bundle), ["a text"] * count
    with pytest.raises(BundleError, match="Deploy the router again"):
        asyncio.run(made.predict(texts, "0" * 64, 5.0))
    with pytest.raises(TimeoutError, match="longer than its caller"):
        asyncio.run(made.predict(texts, bundle.sha256, -1.0))


@pytest.mark.parametrize("count", [1, 16])
@pytest.mark.parametrize("threads", [1, 2])
def test_nothing_runs_on_the_event_loop_and_no_more_at_once_than_there_are_threads(
    bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch, threads: int, count: int
) -> None:
    """A list there would keep the replica's health checks waiting; and two messages on one thread's
    share of the CPUs would each wait for the other."""
    made, ran_in, at_once = tier(bundle, threads), set(), [0]
    scorer = type(made._model.classifier.scorer)
    answers, running, lock = scorer.answers, [0], threading.Lock()

    def noted(self: Any, texts: Sequence[str]) -> Any:
        with lock:
            ran_in.add(threading.current_thread())
            running[0] += 1
            at_once[0] = max(at_once[0], running[0])
        try:
            return answers(self, texts)
        finally:
            with lock:
                running[0] -= 1

    monkeypatch.setattr(scorer, "answers", noted)

    async def story() -> None:
        calls = (made.predict(["a text"] * count, bundle.sha256, 20.0) for _ in range(8))
        await asyncio.gather(*calls)

    asyncio.run(story())
    assert ran_in
    assert threading.current_thread() not in ran_in
    assert at_once[0] <= threads


@pytest.mark.parametrize("threads", [1, 2])
def test_over_its_line_it_says_what_it_says_through_serve(
    bundle: ModelBundle, threads: int
) -> None:
    made, texts = tier(bundle, threads), [message(label) for label in bundle.manifest.labels] * 4

    async def story() -> None:
        connections = ConnectionPool()
        connections.follow(frozenset({(await made.record_replica_metadata())[ADDRESS]}))
        while (connection := connections.shortest()) is None:
            await asyncio.sleep(0.01)
        through_serve = await made.predict(texts, bundle.sha256, 5.0)
        assert await connection.ask(texts, bundle.sha256, 5.0) == through_serve
        with pytest.raises(BundleError, match="Deploy the router again"):
            await connection.ask(texts, "0" * 64, 5.0)
        with pytest.raises(TimeoutError, match="longer than its caller"):
            await connection.ask(texts, bundle.sha256, -1.0)

    asyncio.run(story())


def test_its_load_counts_what_came_either_way(
    bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serve scales by it, and sees no call that came over a connection."""
    made, go = tier(bundle), threading.Event()
    monkeypatch.setattr(type(made._model), "predict", lambda self, texts: go.wait(10) and [None])

    async def load() -> float:
        await made.record_autoscaling_stats()
        await asyncio.sleep(0.1)
        return (await made.record_autoscaling_stats())[LISTS]

    async def story() -> None:
        assert await load() == 0.0
        connections = ConnectionPool()
        connections.follow(frozenset({(await made.record_replica_metadata())[ADDRESS]}))
        while (connection := connections.shortest()) is None:
            await asyncio.sleep(0.01)
        calls = [
            asyncio.ensure_future(made.predict(["a"], bundle.sha256, 10.0)),
            asyncio.ensure_future(connection.ask(["a"], bundle.sha256, 10.0)),
        ]
        await asyncio.sleep(0.1)
        assert await load() == pytest.approx(2.0)
        go.set()
        await asyncio.gather(*calls)

    asyncio.run(story())


def test_a_bundle_that_is_another_than_promised_does_not_start(bundle: ModelBundle) -> None:
    with pytest.raises(BundleError):
        Tier(str(bundle.path), "0" * 64, 1, MODEL)
