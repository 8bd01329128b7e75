"""Toy releases for the serving tests: a toy pair, a rule on confidence, a certificate, prices."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.bundles import MODEL, ModelBundle
from cluster.files import sha256_json
from cluster.releases import Release, create_release
from cluster.settings import Settings
from serve_app.cost import Prices
from serve_app.policy import BundlePins, RouterPolicy
from serve_app.scores import Weighted
from tests.toys import make_bundle

THRESHOLD = 0.9


def certificate(
    edge: ModelBundle, cloud: ModelBundle, policy: RouterPolicy, **over: Any
) -> dict[str, Any]:
    """A certificate of the right shape; its figures are made up."""
    return {
        "bundles": policy.model_dump(mode="json")["bundles"],
        "policy_sha256": sha256_json(policy.model_dump(mode="json")),
        "risk": 0.01,
        "confidence": 0.95,
        "rows": 1000,
        "failures": 3,
        "reference": "cloud",
        **over,
    }


def make_release(
    settings: Settings,
    edge: ModelBundle,
    cloud: ModelBundle,
    *,
    threshold: float = THRESHOLD,
    edge_artifact: str = MODEL,
) -> Release:
    """Writes a release that trusts the edge from a confidence on."""
    policy = RouterPolicy(
        name="confidence",
        score=Weighted(weights={"confidence": 1.0}),
        threshold=threshold,
        bundles=BundlePins(edge=edge.sha256, cloud=cloud.sha256, edge_artifact=edge_artifact),
    )
    return create_release(
        settings,
        edge=edge,
        cloud=cloud,
        policy=policy.model_dump(mode="json"),
        certificate=certificate(edge, cloud, policy),
        prices=Prices().model_dump(mode="json"),
    )


@dataclass(frozen=True)
class Pair:
    edge: ModelBundle
    cloud: ModelBundle


def make_pair(folder: Path, *, cloud_nan_word: str | None = None) -> Pair:
    """A toy edge and cloud; the cloud may answer NaN to one word."""
    return Pair(make_bundle(folder, "edge"), make_bundle(folder, "cloud", nan_word=cloud_nan_word))
