"""RetryingCall: a call to a tier, over a local socket or a Ray Serve handle. Lost replicas are
asked past, in time.

What the two raise, Ray Serve 2.60 in throughput mode (gRPC between replicas), and what comes of it:

    a replica closes its socket, or dies       ConnectionError             asked again
    a replica dies before it took the call     Serve itself sends it to another one
    a replica dies under the call              ActorUnavailableError       asked again
    its server shuts down under the call       AioRpcError CANCELLED       asked again
    the replica cancels the call               asyncio.CancelledError      asked again
    the actor is known to be dead              ActorDiedError              asked again
    every queue is full                        BackPressureError           OverloadedError
    the deployment failed to deploy            DeploymentUnavailableError  as it is: waiting is vain
    the tier raises                            its own error               as it is

Serve does not take a replica out when a call dies over gRPC. The next call that is sent to it
fails before it is taken, which makes Serve probe it, drop it, and choose another one by itself: so
asking again reaches a living replica, or waits for one until the deadline.

Asking twice is safe, since a tier keeps nothing.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from random import SystemRandom
from typing import Any, Final

import grpc  # type: ignore[import-untyped]
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from serve_app.contracts import Prediction, TierCall
from serve_app.errors import OverloadedError
from serve_app.tiers.socket_client import ConnectionPool

log = logging.getLogger(__name__)

_DRAW: Final = SystemRandom().random
_LOST: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})


def call_of(handle: DeploymentHandle[Any], connections: ConnectionPool, sha256: str) -> TierCall:
    """A tier's handle, its connections, and the bundle it must hold -> the bare call.

    It goes over a connection where there is one. Else Serve carries it, which also waits for a
    replica to start; the errors are those of whichever carried it.
    """
    # What crosses are plain values of ours; cloudpickle, the default, looks at each in Python.
    plain = handle.options(request_serialization="pickle", response_serialization="pickle")

    async def call(texts: list[str], budget_s: float) -> Sequence[Prediction | None]:
        if (connection := connections.shortest()) is not None:
            return await connection.ask(texts, sha256, budget_s)
        answers: Sequence[Prediction | None]
        answers = await plain.predict.remote(texts, sha256, budget_s)
        return answers

    return call


class RetryingCall:
    """`await call(texts, budget_s)` -> what the tier says, asked again where a replica was lost.

    Args:
        call: asks the tier once; see `call_of`.
        retries: at most, after the first call.
        backoff_s: the longest pause before the first retry, doubled before each further one. The
            pause is uniform from zero (full jitter), so that many calls lost with one replica do
            not come back together.
        draw: a uniform number in [0, 1), new at every call.
    """

    def __init__(
        self,
        call: TierCall,
        *,
        retries: int = 2,
        backoff_s: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = _DRAW,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._call = call
        self._retries = retries
        self._backoff_s = backoff_s
        self._clock = clock
        self._draw = draw
        self._sleep = sleep

    async def __call__(self, texts: list[str], budget_s: float) -> Sequence[Prediction | None]:
        """Raises ConnectionError if no replica stayed alive for it; OverloadedError; the tier's."""
        deadline_s = self._clock() + budget_s
        for retry in range(self._retries + 1):
            try:
                return await self._once(texts, deadline_s - self._clock())
            except ConnectionError as error:
                pause_s = self._draw() * self._backoff_s * 2**retry
                if retry == self._retries or self._clock() + pause_s >= deadline_s:
                    raise
                log.warning("%s Asking another.", error)
            await self._sleep(pause_s)
        raise AssertionError("the last retry neither returned nor raised")

    async def _once(self, texts: list[str], budget_s: float) -> Sequence[Prediction | None]:
        """Whatever way a replica is lost is one ConnectionError."""
        try:
            return await self._call(texts, budget_s)
        except BackPressureError as error:
            raise OverloadedError(
                "Every replica of the tier is busy. Try again in a moment.",
                retry_after_s=error.retry_after_s or 1.0,
            ) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise  # by our own side: late, or the loop is closing
            raise _lost("the replica cancelled it") from None
        except grpc.aio.AioRpcError as error:
            if error.code() not in _LOST:
                raise
            raise _lost(error.code().name) from error
        except (RayActorError, ConnectionError) as error:
            raise _lost(type(error).__name__) from error


def _lost(how: str) -> ConnectionError:
    return ConnectionError(f"A replica was lost under a call ({how}).")
