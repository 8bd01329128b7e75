"""Release: an edge bundle, a cloud bundle, a policy and its certificate, pinned by hash.

    <home>/bundles/<sha256[:16]>/     the bundles, each once, whatever releases use it
    <home>/releases/<id>/             policy.json certificate.json prices.json ... release.json

`release.json` is written last and lists every hash. A release is loaded only if all of them fit
and the policy names these two bundles: a policy never runs with models it was not certified for.
Which release answers is the registry's business (cluster/registry.py).
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.bundles import GUARD, MODEL, ModelBundle, load_bundle, read_manifest
from cluster.errors import ReleaseError
from cluster.files import new_folder, read_json, sha256_file, sha256_json, write_json
from cluster.settings import Settings

POLICY: Final = "policy.json"
CERTIFICATE: Final = "certificate.json"
PRICES: Final = "prices.json"
REPORT: Final = "report.json"
MANIFEST: Final = "release.json"


class ReleaseManifest(BaseModel):
    """What a release pins."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    id: str
    edge_sha256: str
    cloud_sha256: str
    labels: tuple[str, ...]
    created_at: str
    files: dict[str, str]


@dataclass(frozen=True)
class Release:
    """A verified release on this machine's disk. `policy`, `certificate`, `prices` and `guard` are
    raw JSON; `guard` is None where training had the built-in one."""

    path: Path
    manifest: ReleaseManifest
    edge_path: Path
    cloud_path: Path
    policy: Mapping[str, Any]
    certificate: Mapping[str, Any]
    prices: Mapping[str, Any]
    guard: Mapping[str, Any] | None = None

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def edge_artifact(self) -> str:
        """The model file of the edge bundle that the policy was certified with."""
        return _edge_artifact(self.policy)


def bundle_path(settings: Settings, sha256: str) -> Path:
    """Where the bundle of this identity lives."""
    return settings.bundles_dir / sha256[:16]


def store_bundle(settings: Settings, bundle: ModelBundle) -> ModelBundle:
    """Copies a bundle to its place by hash; does nothing if it is there."""
    target = bundle_path(settings, bundle.sha256)
    if not target.is_dir():
        with new_folder(target) as folder:
            shutil.copytree(bundle.path, folder, dirs_exist_ok=True)
    return load_bundle(target, bundle.sha256)


def _check_pins(what: str, pins: Any, edge_sha256: str, cloud_sha256: str) -> None:
    found = (pins or {}).get("edge"), (pins or {}).get("cloud")
    if found != (edge_sha256, cloud_sha256):
        shown = [str(item)[:12] for item in found]
        raise ReleaseError(
            f"This {what} was made for the bundles edge {shown[0]} and cloud {shown[1]}, not for "
            f"edge {edge_sha256[:12]} and cloud {cloud_sha256[:12]}. A policy runs only with the "
            "models it was certified for: run `firstline tune` for this pair."
        )


def _edge_artifact(part: Mapping[str, Any]) -> str:
    """Of a policy or a certificate; those that name none were made when there was only one."""
    return str(part["bundles"].get("edge_artifact", MODEL))


def _check_parts(
    policy: Mapping[str, Any],
    certificate: Mapping[str, Any],
    edge_sha256: str,
    cloud_sha256: str,
) -> None:
    """Raises ReleaseError unless policy, certificate and bundles were made for one another."""
    _check_pins("policy", policy.get("bundles"), edge_sha256, cloud_sha256)
    _check_pins("certificate", certificate.get("bundles"), edge_sha256, cloud_sha256)
    if _edge_artifact(policy) != _edge_artifact(certificate):
        raise ReleaseError(
            f"The policy was made for the edge's {_edge_artifact(policy)}, and certified with "
            f"{_edge_artifact(certificate)}. Run `firstline tune` for this pair."
        )
    found, certified = sha256_json(dict(policy)), str(certificate.get("policy_sha256"))
    if found != certified:
        raise ReleaseError(
            f"The certificate speaks of the policy {certified[:12]}, and this one is "
            f"{found[:12]}: its score, its threshold or its rules were changed after it was "
            "certified. Run `firstline tune`."
        )


def identity_of(
    edge_sha256: str,
    cloud_sha256: str,
    policy: Mapping[str, Any],
    certificate: Mapping[str, Any],
    prices: Mapping[str, Any],
) -> str:
    """The name of a release: the same parts give the same id."""
    parts = [edge_sha256, cloud_sha256, dict(policy), dict(certificate), dict(prices)]
    return f"r-{sha256_json(parts)[:10]}"


def create_release(
    settings: Settings,
    *,
    edge: ModelBundle,
    cloud: ModelBundle,
    policy: Mapping[str, Any],
    certificate: Mapping[str, Any],
    prices: Mapping[str, Any],
    extras: Sequence[Path] = (),
) -> Release:
    """Writes a release whole. The same parts give the same id, and are written once.

    Raises:
        ReleaseError: parts that do not belong together.
    """
    if edge.manifest.labels != cloud.manifest.labels:
        raise ReleaseError(
            f"The edge knows {len(edge.manifest.labels)} labels and the cloud "
            f"{len(cloud.manifest.labels)}, or in another order. Both must come from one dataset."
        )
    if edge.guard_sha256 != cloud.guard_sha256:
        raise ReleaseError(
            "The edge and the cloud were trained behind different guards (guard.json). Train both "
            "by one `firstline train`."
        )
    _check_parts(policy, certificate, edge.sha256, cloud.sha256)
    identity = identity_of(edge.sha256, cloud.sha256, policy, certificate, prices)
    target = settings.releases_dir / identity
    if (target / MANIFEST).is_file():
        return load_release(settings, target.name)
    store_bundle(settings, edge)
    store_bundle(settings, cloud)
    with new_folder(target) as folder:
        write_json(folder / POLICY, dict(policy))
        write_json(folder / CERTIFICATE, dict(certificate))
        write_json(folder / PRICES, dict(prices))
        if edge.guard_sha256:
            shutil.copyfile(edge.path / GUARD, folder / GUARD)
        for extra in extras:
            shutil.copyfile(extra, folder / extra.name)
        manifest = ReleaseManifest(
            id=target.name,
            edge_sha256=edge.sha256,
            cloud_sha256=cloud.sha256,
            labels=edge.manifest.labels,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            files={path.name: sha256_file(path) for path in sorted(folder.iterdir())},
        )
        write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
    return load_release(settings, target.name)


def list_releases(settings: Settings) -> list[str]:
    """Ids of the finished releases on this machine, oldest first."""
    done = [path.parent for path in settings.releases_dir.glob(f"r-*/{MANIFEST}")]
    return [path.name for path in sorted(done, key=lambda path: path.stat().st_mtime)]


def load_release(settings: Settings, release_id: str) -> Release:
    """Reads a release and checks its files and its pins; the bundles' own bytes are checked by
    the replicas that load them.

    Raises:
        ReleaseError: unknown, unfinished, changed, or made of parts that do not fit.
    """
    path = settings.releases_dir / release_id
    if not (path / MANIFEST).is_file():
        known = list_releases(settings)
        raise ReleaseError(
            f"There is no release {release_id!r} in {settings.releases_dir}. "
            + (f"Known: {', '.join(known)}." if known else "Make one with `firstline tune`.")
        )
    try:
        manifest = ReleaseManifest.model_validate(read_json(path / MANIFEST))
    except (ValidationError, ValueError) as error:
        raise ReleaseError(f"{path / MANIFEST} is not a release manifest: {error}") from None
    for name, expected in manifest.files.items():
        file = path / name
        if not file.is_file() or sha256_file(file) != expected:
            raise ReleaseError(
                f"The release {release_id} is corrupted: {name} is missing or was changed after "
                "the release was made. Make it again with `firstline tune`."
            )
    policy, certificate = read_json(path / POLICY), read_json(path / CERTIFICATE)
    prices = read_json(path / PRICES)
    edge, cloud = manifest.edge_sha256, manifest.cloud_sha256
    _check_parts(policy, certificate, edge, cloud)
    if identity_of(edge, cloud, policy, certificate, prices) != release_id:
        raise ReleaseError(
            f"The folder {path} holds another release than its name says. Make it again with "
            "`firstline tune`."
        )
    release = Release(
        path=path,
        manifest=manifest,
        edge_path=bundle_path(settings, manifest.edge_sha256),
        cloud_path=bundle_path(settings, manifest.cloud_sha256),
        policy=policy,
        certificate=certificate,
        prices=prices,
        guard=read_json(path / GUARD) if GUARD in manifest.files else None,
    )
    for folder in (release.edge_path, release.cloud_path):
        # By way of the bundle's hash, the release's id stands for its guard too.
        if read_manifest(folder).files.get(GUARD) != manifest.files.get(GUARD):
            raise ReleaseError(
                f"The guard.json of the release {release_id} is not the one that its models were "
                "trained behind. Make it again with `firstline tune`."
            )
    return release
