"""One replica class, bound twice: prepared texts -> one Prediction each. Edge and cloud are roles.

A replica verifies its bundle by hash and reproduces the bundle's golden messages before it is
ready, so one that computes something else on its CPU never answers anyone.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Semaphore
from typing import Final

from cluster.bundles import MODEL
from cluster.errors import BundleError
from serve_app.contracts import Prediction
from serve_app.model.golden import TierModel
from serve_app.tiers import gc_settings
from serve_app.tiers.autoscaling import LISTS, Load
from serve_app.tiers.local_socket import ADDRESS
from serve_app.tiers.socket_server import SocketServer

_DRAIN_S: Final = 5.0


class Tier:
    """The replica. Nothing runs on the event loop, on which Serve's throughput mode also answers
    health checks: lists that come over a connection run in the connection's thread, others in a
    pool's.

    Args:
        threads: messages that run side by side. One message at a time is exact
        (serve_app/model/classifier.py), so
            CPUs are used by messages side by side, not inside one.
    """

    def __init__(self, path: str, sha256: str, threads: int, artifact: str = MODEL) -> None:
        self._threads = threads
        self._free = Semaphore(threads)
        self._parted = ThreadPoolExecutor(threads, thread_name_prefix="part")
        self._called = ThreadPoolExecutor(thread_name_prefix="call")
        # A health check must not wait behind a long list, or Serve replaces a healthy replica.
        self._health = ThreadPoolExecutor(1, thread_name_prefix="health")
        self._model = TierModel.load(Path(path), sha256, 1, artifact)
        self._load = Load()
        self._connections = SocketServer(self.answer, self._load)
        gc_settings.settle()

    def answer(self, texts: list[str], sha256: str, deadline_s: float) -> list[Prediction | None]:
        """One entry per text, in order. Blocks; for any thread.

        Args:
            deadline_s: when the caller gives up, by the host's monotonic clock. A list whose time
                is over before its turn comes is not run: nobody would hear of it.

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
        first, *others = self._parts(texts)
        beside = [self._parted.submit(self._predict, part, deadline_s) for part in others]
        answers = self._predict(first, deadline_s)
        for part in beside:
            answers += part.result()
        return answers

    async def predict(
        self, texts: list[str], sha256: str, budget_s: float
    ) -> Sequence[Prediction | None]:
        """`answer`, for a call through Serve. Args: budget_s: how long the caller still waits."""
        deadline_s = time.monotonic() + budget_s
        self._load(1)
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._called, self.answer, texts, sha256, deadline_s)
        finally:
            self._load(-1)

    async def ready(self) -> str:
        """The hash of the bundle. That a replica answers at all means its golden messages fit."""
        return self._model.classifier.sha256

    async def check_health(self) -> None:
        """Called by Serve every few seconds; raising makes it replace the replica."""
        self._connections.check()
        await asyncio.get_running_loop().run_in_executor(self._health, self._model.check)

    async def record_replica_metadata(self) -> dict[str, str]:
        """Called by Serve once, and told to every router (least_outstanding.py)."""
        return {ADDRESS: self._connections.address}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve about every second, for the policy (autoscaling.py)."""
        return {LISTS: self._load.mean()}

    def __del__(self) -> None:
        """Called by Serve two seconds after it told the routers that this one leaves."""
        with suppress(AttributeError):  # it did not start
            self._connections.close(_DRAIN_S)

    def _parts(self, texts: list[str]) -> list[list[str]]:
        """As equal as can be, one per thread. A connection brings one list at a time, so a list
        that is not shared out leaves threads idle.
        """
        count = max(1, min(self._threads, len(texts)))
        size = -(-len(texts) // count)
        return [texts[start : start + size] for start in range(0, len(texts), size)]

    def _predict(self, texts: list[str], deadline_s: float) -> list[Prediction | None]:
        with self._free:
            if time.monotonic() > deadline_s:
                raise TimeoutError("The list waited longer than its caller does.")
            return self._model.predict(texts)
