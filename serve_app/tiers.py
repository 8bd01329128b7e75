"""One replica class, bound twice: prepared texts -> one Prediction each. Edge and cloud are roles.

A replica verifies its bundle by hash and reproduces the bundle's golden messages before it is
ready, so one that computes something else on its CPU never answers anyone.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from cluster.errors import BundleError
from serve_app import garbage
from serve_app.contracts import Prediction
from serve_app.model import TierModel

T = TypeVar("T")

_SHORTEST_PART: Final = 4  # messages


class Tier:
    """The replica. Lists never run on the event loop, on which Serve's throughput mode also answers
    health checks. A message that comes alone does, where there is one thread: an edge takes it half
    a millisecond, and handing it over and back took 0.3 (docs/performance.md).

    Args:
        threads: of lists and their parts. One message at a time is exact (classifier.py), so CPUs
            are used by messages side by side, not inside one.
    """

    def __init__(self, path: str, sha256: str, threads: int, artifact: str) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="onnx")
        # A health check must not wait behind a long list, or Serve replaces a healthy replica.
        self._health = ThreadPoolExecutor(1, thread_name_prefix="health")
        self._model = TierModel.load(Path(path), sha256, 1, artifact)
        garbage.settle()

    async def predict(
        self, texts: list[str], sha256: str, budget_s: float
    ) -> list[Prediction | None]:
        """One entry per text, in order.

        Args:
            budget_s: how long the caller still waits. A list whose time is over before its turn
                comes is not run: nobody would hear of it.

        Raises:
            BundleError: the caller's policy was certified for another bundle.
            TimeoutError: the list waited longer than that.
        """
        held = self._model.classifier.sha256
        if sha256 != held:
            raise BundleError(
                f"This replica holds bundle {held[:12]}, and the router's release needs "
                f"{sha256[:12]}: the application was redeployed under it. Deploy the router again."
            )
        deadline_s = time.monotonic() + budget_s
        if self._threads == 1 and len(texts) == 1:
            return self._predict(texts, deadline_s)
        parts = await asyncio.gather(
            *(self._off_loop(self._predict, part, deadline_s) for part in self._parts(texts))
        )
        return [answer for part in parts for answer in part]

    async def ready(self) -> str:
        """The hash of the bundle. That a replica answers at all means its golden messages fit."""
        return self._model.classifier.sha256

    async def check_health(self) -> None:
        """Called by Serve every few seconds; raising makes it replace the replica."""
        await asyncio.get_running_loop().run_in_executor(self._health, self._model.check)

    def _parts(self, texts: list[str]) -> list[list[str]]:
        """As equal as can be, one per thread, none too short to be worth handing over."""
        count = max(1, min(self._threads, len(texts) // _SHORTEST_PART))
        size = -(-len(texts) // count)
        return [texts[start : start + size] for start in range(0, len(texts), size)]

    def _predict(self, texts: list[str], deadline_s: float) -> list[Prediction | None]:
        if time.monotonic() > deadline_s:
            raise TimeoutError("The list waited longer than its caller does.")
        return self._model.predict(texts)

    async def _off_loop(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)
