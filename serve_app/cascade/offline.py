"""A release's two models and its rule in this process: messages -> finished Work, as served.

The steps are the online path's (steps.py), with no limit to the cloud. What is pinned is in no list
for the cloud's model, although that stands in the same process. Where no tier that may see a
message answers, its Work has no `final`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.releases import Release
from serve_app.cascade.escalation import UNLIMITED
from serve_app.cascade.steps import (
    admit,
    decide_all,
    settle_cloud,
    settle_edge,
    texts_for_cloud,
)
from serve_app.cascade.work import Work
from serve_app.contracts import Message, Outcome, Prediction
from serve_app.decide.cost import Prices
from serve_app.decide.policy import RouterPolicy, policy_of
from serve_app.model.golden import TierModel


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
        settle_edge(works, self.edge.predict([message.text for message in messages]), 0.0)
        decide_all(works, self.policy)
        asking = admit(works, len(works), UNLIMITED, 0.0)
        settle_cloud(asking, self._ask_cloud(texts_for_cloud(asking)), 0.0)
        return works

    def _ask_cloud(self, texts: Sequence[str]) -> Sequence[Outcome | None]:
        try:
            return self.cloud.predict(texts) if texts else []
        except Exception as error:  # noqa: BLE001 - decided once: the edge's answers stand in
            return [error] * len(texts)
