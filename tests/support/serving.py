"""Toy releases for the serving tests: a toy pair, a rule on confidence, a certificate, prices."""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.bundles import MODEL, ModelBundle
from cluster.files import sha256_json
from cluster.releases import Release, create_release
from cluster.settings import Settings
from serve_app.decide.cost import Prices
from serve_app.decide.policy import BundlePins, RouterPolicy
from serve_app.decide.scores import Weighted
from serve_app.guard.prepare import prepare
from serve_app.service import process
from serve_app.service.state import ServiceInfo
from tests.support.toys import make_bundle
from train_jobs.data import content_key
from tune.certificate.certify import Certificate, Promise
from tune.certificate.recertify import USED, save_used

THRESHOLD = 0.9


def certificate(policy: RouterPolicy) -> dict[str, Any]:
    """A certificate of the right shape; its figures are made up."""
    assert policy.bundles is not None
    risk = Promise(limit=0.01, observed=0.003, bound=0.008, failures=3, rows=1000)
    made = Certificate(
        confidence=0.95,
        promises={"risk": risk},
        rows=1000,
        edge_share=0.8,
        split="certify",
        fingerprint="toy",
        bundles=policy.bundles,
        policy_sha256=sha256_json(policy.model_dump(mode="json")),
        position=0,
        tested=1,
        sequence_length=1,
        created_at="2026-01-31T12:00:00+00:00",
    )
    return made.model_dump(mode="json")


def make_release(
    settings: Settings,
    edge: ModelBundle,
    cloud: ModelBundle,
    *,
    threshold: float = THRESHOLD,
    edge_artifact: str = MODEL,
    trained_on: Sequence[str] = (),
) -> Release:
    """Writes a release that trusts the edge from a confidence on.

    Args:
        trained_on: texts of its `train` split, for what asks whether a row made it.
    """
    policy = RouterPolicy(
        name="confidence",
        score=Weighted(weights={"confidence": 1.0}),
        threshold=threshold,
        bundles=BundlePins(edge=edge.sha256, cloud=cloud.sha256, edge_artifact=edge_artifact),
    )
    with tempfile.TemporaryDirectory() as folder:
        used = Path(folder, USED)
        save_used(used, {"train": [content_key(prepare(text).text) for text in trained_on]})
        return create_release(
            settings,
            edge=edge,
            cloud=cloud,
            policy=policy.model_dump(mode="json"),
            certificate=certificate(policy),
            prices=Prices().model_dump(mode="json"),
            extras=[used],
        )


@dataclass(frozen=True)
class Pair:
    edge: ModelBundle
    cloud: ModelBundle


def make_pair(folder: Path, *, cloud_nan_word: str | None = None) -> Pair:
    """A toy edge and cloud; the cloud may answer NaN to one word."""
    return Pair(make_bundle(folder, "edge"), make_bundle(folder, "cloud", nan_word=cloud_nan_word))


def pids_titled(info: ServiceInfo, title: str) -> list[int]:
    """The processes of a service whose title matches."""
    assert info.haproxy_dir is not None
    marked = process.marked(info.haproxy_dir)
    return [pid for pid in marked if re.search(title, _title(pid))]


def _title(pid: int) -> str:
    """Empty if it has ended since it was listed."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""
