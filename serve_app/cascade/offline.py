"""A release's two models and its rule in this process: messages -> finished Work, as served.

What is pinned is in no list for the cloud's model, although that stands in the same process. The
cloud's model fails -> the edge's answer, degraded. The edge fails -> the cloud is asked, unless the
message is pinned. Neither answers -> the Work has no `final`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.releases import Release
from serve_app.cascade.work import Work
from serve_app.contracts import Message, Prediction, Route, RouteReason
from serve_app.decide.cost import Prices
from serve_app.decide.policy import RouterPolicy, policy_of
from serve_app.model.golden import TierModel

log = logging.getLogger(__name__)


class Model(Protocol):
    """What scoring needs of a tier; `serve_app.model.golden.TierModel` is one."""

    def predict(self, texts: Sequence[str]) -> list[Prediction | None]: ...


@dataclass(frozen=True)
class OfflineCascade:
    """A release's two models, its rule and its prices."""

    edge: Model
    cloud: Model
    policy: RouterPolicy
    prices: Prices

    @classmethod
    def of(cls, release: Release) -> "OfflineCascade":
        """Raises BundleError or ReleaseError, as a replica of the service would."""
        manifest = release.manifest
        return cls(
            TierModel.load(release.edge_path, manifest.edge_sha256, 1, release.edge_artifact),
            TierModel.load(release.cloud_path, manifest.cloud_sha256, 1),
            policy_of(release),
            Prices.model_validate(release.prices),
        )

    def answer(self, messages: Sequence[Message]) -> list[Work]:
        """One finished Work per message, in order; `final` is None where no tier answered."""
        works = [Work(message) for message in messages]
        edge = self.edge.predict([message.text for message in messages])
        for work, prediction in zip(works, edge, strict=True):
            work.edge = prediction
            work.settle(prediction, 0.0)
            work.decide(self.policy)
        self._escalate([work for work in works if work.route is Route.CLOUD])
        return works

    def _escalate(self, works: Sequence[Work]) -> None:
        if any(
            work.message.pinned for work in works
        ):  # decide() never does; this is the last check
            raise AssertionError("a pinned message was about to leave the edge")
        texts = [work.message.text for work in works]
        for work, prediction in zip(works, self._ask_cloud(texts), strict=True):
            if prediction is not None:
                work.settle(prediction, 0.0)
            elif work.edge is not None:
                work.stay(RouteReason.CLOUD_FAILED, 0.0)

    def _ask_cloud(self, texts: Sequence[str]) -> Sequence[Prediction | None]:
        try:
            return self.cloud.predict(texts) if texts else []
        except Exception as error:  # noqa: BLE001 - decided once: the edge's answers stand in
            # The kind alone: an error's text may quote what a customer wrote.
            log.warning("The cloud failed on %d messages: %s.", len(texts), type(error).__name__)
            return [None] * len(texts)
