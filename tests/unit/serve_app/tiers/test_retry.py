"""RetryingCall: a lost replica is asked past, once or twice, in time; everything else is left
alone.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from cluster.errors import BundleError, ModelOutputError, ServiceError
from serve_app.contracts import Prediction, packed
from serve_app.errors import OverloadedError
from serve_app.tiers.batching import Batcher
from serve_app.tiers.retry import RetryingCall
from tests.support.ray_private import DeploymentID, RPCSerializer

pytestmark = pytest.mark.anyio

SAID = Prediction("a", 0.9, 0.8, 0.1, packed(0.9, 0.1))


class FakeHandle:
    """Fails as it is told, call by call, and then answers. Waiting takes no time."""

    def __init__(self, *fails: BaseException, takes_s: float = 0.0) -> None:
        self._fails = list(fails)
        self._takes_s = takes_s
        self.budgets_s: list[float] = []
        self.pauses_s: list[float] = []
        self.now_s = 100.0

    async def __call__(self, texts: list[str], budget_s: float) -> Sequence[Prediction | None]:
        self.budgets_s.append(budget_s)
        self.now_s += self._takes_s
        if self._fails:
            raise self._fails.pop(0)
        return [SAID for _ in texts]

    async def sleep(self, pause_s: float) -> None:
        self.pauses_s.append(pause_s)
        self.now_s += pause_s


def retrying(handle: FakeHandle, draw: Callable[[], float] = lambda: 0.5) -> RetryingCall:
    return RetryingCall(handle, clock=lambda: handle.now_s, draw=draw, sleep=handle.sleep)


def grpc_error(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "Socket closed")


LOST = [
    ActorUnavailableError("Actor is unavailable.", None),
    ActorDiedError(),
    ConnectionResetError(),
    grpc_error(grpc.StatusCode.UNAVAILABLE),
    grpc_error(grpc.StatusCode.CANCELLED),
    asyncio.CancelledError(),
]


@pytest.mark.parametrize("lost", LOST, ids=lambda error: type(error).__name__)
async def test_a_lost_replica_is_asked_past(lost: BaseException) -> None:
    handle = FakeHandle(lost, lost)
    assert await retrying(handle)(["a", "b"], 5.0) == [SAID, SAID]
    assert len(handle.budgets_s) == 3


@pytest.mark.parametrize("lost", LOST, ids=lambda error: type(error).__name__)
async def test_two_retries_are_the_most(lost: BaseException) -> None:
    handle = FakeHandle(*[lost] * 9)
    with pytest.raises(ConnectionError, match="replica was lost"):
        await retrying(handle)(["a"], 5.0)
    assert len(handle.budgets_s) == 3


@pytest.mark.parametrize(
    "error",
    [
        BundleError("another bundle"),
        TimeoutError(),
        DeploymentUnavailableError(DeploymentID("edge", "release-1")),
        grpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED),
        RuntimeError("a bug in the tier"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_another_replica_would_say_too_is_not_asked_again(error: Exception) -> None:
    handle = FakeHandle(error)
    with pytest.raises(type(error)):
        await retrying(handle)(["a"], 5.0)
    assert len(handle.budgets_s) == 1


async def test_an_error_of_the_tier_keeps_its_class_through_ray() -> None:
    cause = BundleError("another bundle")
    wrapped = RayTaskError("predict", "traceback", cause, "", 1, "ip")  # type: ignore[no-untyped-call]
    handle = FakeHandle(wrapped.as_instanceof_cause())  # type: ignore[no-untyped-call]
    with pytest.raises(BundleError):
        await retrying(handle)(["a"], 5.0)
    assert len(handle.budgets_s) == 1


async def test_pauses_are_random_and_longer_each_time() -> None:
    handle = FakeHandle(*LOST[:2])
    await retrying(handle, draw=lambda: 1.0)(["a"], 5.0)
    assert handle.pauses_s == [0.1, 0.2]
    handle = FakeHandle(*LOST[:2])
    await retrying(handle, draw=lambda: 0.0)(["a"], 5.0)
    assert handle.pauses_s == [0.0, 0.0]


async def test_the_budget_shrinks_and_nothing_is_asked_after_it() -> None:
    handle = FakeHandle(*[LOST[0]] * 9, takes_s=0.4)
    with pytest.raises(ConnectionError):
        await retrying(handle)(["a"], 1.0)
    assert handle.budgets_s == pytest.approx([1.0, 0.55, 0.05])
    handle = FakeHandle(*[LOST[0]] * 9, takes_s=0.4)
    with pytest.raises(ConnectionError):
        await retrying(handle)(["a"], 0.44)
    assert len(handle.budgets_s) == 1


async def test_full_queues_are_an_overload() -> None:
    handle = FakeHandle(BackPressureError(8, 8, 503, 2.5))
    with pytest.raises(OverloadedError) as refused:
        await retrying(handle)(["a"], 5.0)
    assert refused.value.retry_after_s == 2.5
    assert len(handle.budgets_s) == 1


async def test_when_our_own_side_cancels_nothing_is_asked_again() -> None:
    calls = 0

    async def hang(texts: list[str], budget_s: float) -> Sequence[Prediction | None]:
        nonlocal calls
        calls += 1
        await asyncio.sleep(60)
        raise AssertionError

    task = asyncio.create_task(RetryingCall(hang)(["a"], 60.0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await RetryingCall(hang)(["a"], 60.0)
    assert calls == 2


async def test_no_message_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    handle = FakeHandle(ConnectionError("of: my card is 4111"))
    with caplog.at_level(logging.DEBUG):
        await retrying(handle)(["my card is 4111"], 5.0)
    assert "replica was lost" in caplog.text
    assert "4111" not in caplog.text


async def test_behind_a_gatherer_a_killed_replica_is_not_seen() -> None:
    handle = FakeHandle(*LOST[:2])
    batcher = Batcher(retrying(handle), max_in_flight=2, max_batch=8, max_queued=256, timeout_s=5.0)
    assert await batcher(["a", "b"]) == [SAID, SAID]
    handle = FakeHandle(*LOST)
    batcher = Batcher(retrying(handle), max_in_flight=2, max_batch=8, max_queued=256, timeout_s=5.0)
    outcomes = await batcher(["a", "b"])
    assert all(isinstance(outcome, ConnectionError) for outcome in outcomes)
    assert not any(isinstance(outcome, ServiceError) for outcome in outcomes)


@pytest.mark.parametrize(
    "error",
    [BundleError("redeployed under it"), TimeoutError("late"), ModelOutputError("no number")],
)
@pytest.mark.parametrize("wrapped", [False, True])
async def test_what_a_tier_raises_crosses_the_hop_as_it_is(error: Exception, wrapped: bool) -> None:
    """Serve writes errors as it writes answers, here with plain `pickle`."""
    wire = RPCSerializer("pickle", "pickle")
    wrap: Any = RayTaskError
    sent = wrap("predict", f"Traceback: {error}", error) if wrapped else error
    came = wire.loads_response(wire.dumps_response(sent))
    if wrapped:
        came = came.as_instanceof_cause()  # as Serve raises it
    assert isinstance(came, type(error))
    assert str(error) in str(came)
    handle = FakeHandle(came)
    with pytest.raises(type(error)):
        await retrying(handle)(["a"], 5.0)
    assert len(handle.budgets_s) == 1, "asked again for nothing"
