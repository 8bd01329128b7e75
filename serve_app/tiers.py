"""One replica class, bound twice: prepared texts -> one Prediction each. Edge and cloud are roles.

A replica verifies its bundle by hash and reproduces the bundle's golden messages before it is
ready, so one that computes something else on its CPU never answers anyone.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cluster.bundles import MODEL, GoldenRow, ModelBundle, load_bundle
from cluster.errors import BundleError, ModelOutputError
from serve_app.classifier import OnnxClassifier
from serve_app.contracts import Prediction
from serve_app.cpu import cpu_flags

T = TypeVar("T")


@dataclass(frozen=True)
class TierModel:
    """A bundle that has proved, on this machine, that it computes what was measured."""

    classifier: OnnxClassifier
    golden: tuple[GoldenRow, ...]

    @classmethod
    def load(cls, path: Path, sha256: str, threads: int, artifact: str = MODEL) -> "TierModel":
        """Args: artifact: the model file of the bundle that the release was certified with.

        Raises:
            BundleError: a byte or a golden answer differs, there are none to compare, or this CPU
                runs another artifact.
        """
        bundle = load_bundle(path, sha256)
        _check_artifact(bundle, artifact)
        golden = tuple(bundle.golden(artifact))
        if not golden:
            raise BundleError(
                f"The bundle {path} has no golden messages, so a replica cannot prove that it "
                "computes what was measured. Make it again with `firstline train`."
            )
        model = cls(OnnxClassifier.of(bundle, threads, artifact), golden)
        model.classifier.check_golden(golden)  # and warms the session up
        return model

    def predict(self, texts: Sequence[str]) -> list[Prediction | None]:
        """One entry per text; None where the model had no finite answer.

        After a list in which one message is poisoned, each is asked alone.
        """
        try:
            return list(self.classifier.predict(texts))
        except ModelOutputError:
            return [self._one(text) for text in texts]

    def _one(self, text: str) -> Prediction | None:
        try:
            return self.classifier.predict([text])[0]
        except ModelOutputError:
            return None

    def check(self) -> None:
        """Raises BundleError if the first golden message no longer comes out as it did."""
        self.classifier.check_golden(self.golden[:1])


def _check_artifact(bundle: ModelBundle, certified: str) -> None:
    """Raises BundleError unless this CPU computes the certified artifact as it was measured."""
    flags = cpu_flags()
    if missing := set(bundle.named(certified).needs) - flags:
        raise BundleError(
            f"The release was certified with {certified} of the bundle {bundle.path}, which needs "
            f"a CPU with {', '.join(sorted(missing))}; this one has "
            f"{', '.join(sorted(flags)) or 'no such flag'} and would run another artifact. A "
            "policy runs only with the model that it was certified for: run `firstline tune` on a "
            "machine of the kind that serves, or on the oldest of them."
        )


class Tier:
    """The replica. ONNX Runtime runs in as many threads as the replica has CPUs, never on the
    event loop, on which Serve's throughput mode also answers health checks.
    """

    def __init__(self, path: str, sha256: str, threads: int, artifact: str) -> None:
        # One message at a time is exact (classifier.py), so CPUs are used by messages side by
        # side, not inside one.
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="onnx")
        # A health check must not wait behind a long list, or Serve replaces a healthy replica.
        self._health = ThreadPoolExecutor(1, thread_name_prefix="health")
        self._model = TierModel.load(Path(path), sha256, 1, artifact)

    async def predict(self, texts: list[str], sha256: str) -> list[Prediction | None]:
        """One entry per text, in order.

        Raises:
            BundleError: the caller's policy was certified for another bundle.
        """
        held = self._model.classifier.sha256
        if sha256 != held:
            raise BundleError(
                f"This replica holds bundle {held[:12]}, and the router's release needs "
                f"{sha256[:12]}: the application was redeployed under it. Deploy the router again."
            )
        return await self._off_loop(self._model.predict, texts)

    async def ready(self) -> str:
        """The hash of the bundle. That a replica answers at all means its golden messages fit."""
        return self._model.classifier.sha256

    async def check_health(self) -> None:
        """Called by Serve every few seconds; raising makes it replace the replica."""
        await asyncio.get_running_loop().run_in_executor(self._health, self._model.check)

    async def _off_loop(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)
