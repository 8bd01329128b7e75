"""Which release answers: the MLflow registry, with one alias, `champion`.

Bundles and releases are registered with their hashes as tags and their files as artifacts, so any
MLflow server can hold them and another machine can fetch them. Promotion and rollback move the one
alias, which is one write; where to roll back to is noted on the new champion before the alias
moves, so a crash in between changes nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cluster.bundles import ModelBundle
from cluster.errors import FirstlineError, ReleaseError
from cluster.files import new_folder
from cluster.releases import Release, bundle_path, load_release
from cluster.settings import Settings
from cluster.tracking import client, experiment_id

CHAMPION: Final = "champion"
_RELEASES: Final = "firstline-release"
_PREVIOUS: Final = "firstline.rollback_to"


@dataclass(frozen=True)
class Registered:
    """One release as the registry knows it."""

    id: str
    version: str
    edge_sha256: str
    cloud_sha256: str
    promises: dict[str, float]
    confidence: float
    created_at: str
    champion: bool


def _ensure_model(mlflow: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        mlflow.get_registered_model(name)
    except MlflowException:
        mlflow.create_registered_model(name)


def _versions(mlflow: Any, name: str) -> list[Any]:
    _ensure_model(mlflow, name)
    found = mlflow.search_model_versions(f"name='{name}'")
    return sorted(found, key=lambda item: int(item.version))


def _register(settings: Settings, name: str, folder: Path, tags: dict[str, str]) -> None:
    """Uploads a folder as a new version of a registered model, unless its hash is there."""
    mlflow = client(settings)
    key = "firstline.sha256" if "firstline.sha256" in tags else "firstline.id"
    if any(item.tags.get(key) == tags[key] for item in _versions(mlflow, name)):
        return
    run = mlflow.create_run(experiment_id(settings, mlflow), run_name=name, tags=tags)
    mlflow.log_artifacts(run.info.run_id, str(folder), "files")
    mlflow.set_terminated(run.info.run_id)
    mlflow.create_model_version(
        name, source=f"{run.info.artifact_uri}/files", run_id=run.info.run_id, tags=tags
    )


def register_bundle(settings: Settings, bundle: ModelBundle) -> None:
    """Registers a bundle that has passed the gate."""
    role = bundle.manifest.role
    _register(settings, f"firstline-{role}", bundle.path, {"firstline.sha256": bundle.sha256})


def fetch_bundle(settings: Settings, role: str, sha256: str | None = None) -> Path:
    """The folder of a registered bundle of a role, by hash, or of the newest.

    Raises:
        ReleaseError: there is none.
    """
    mlflow = client(settings)
    versions = [
        version
        for version in _versions(mlflow, f"firstline-{role}")
        if sha256 in {None, version.tags["firstline.sha256"]}
    ]
    if not versions:
        which = f"{role} bundle {sha256[:12]}" if sha256 else f"{role} bundle"
        raise ReleaseError(
            f"No {which} is registered in {settings.tracking_uri}. Run `firstline train`."
        )
    return _fetched(settings, mlflow, versions[-1])


def _fetched(settings: Settings, mlflow: Any, version: Any) -> Path:
    target = bundle_path(settings, version.tags["firstline.sha256"])
    if not target.is_dir():
        _download(mlflow, version, target)
    return target


def _download(mlflow: Any, version: Any, target: Path) -> None:
    with new_folder(target) as folder:
        made = Path(mlflow.download_artifacts(version.run_id, "files", str(folder)))
        for item in made.iterdir():
            item.rename(folder / item.name)
        made.rmdir()


def register_release(settings: Settings, release: Release) -> None:
    """Makes a release known to the registry; it answers nothing until it is promoted."""
    certificate = release.certificate
    _register(settings, _RELEASES, release.path, {
        "firstline.id": release.id,
        "firstline.edge": release.manifest.edge_sha256,
        "firstline.cloud": release.manifest.cloud_sha256,
        "firstline.promises": json.dumps(_promised(certificate)),
        "firstline.confidence": str(certificate["confidence"]),
        "firstline.created_at": release.manifest.created_at,
    })  # fmt: skip


def _promised(certificate: Mapping[str, Any]) -> dict[str, float]:
    """What is guaranteed: the limit of each promise."""
    return {name: promise["limit"] for name, promise in certificate["promises"].items()}


def list_registered(settings: Settings) -> list[Registered]:
    """Every registered release, oldest first."""
    mlflow = client(settings)
    versions = _versions(mlflow, _RELEASES)
    now = _champion_version(mlflow)
    return [
        Registered(
            id=item.tags["firstline.id"],
            version=str(item.version),
            edge_sha256=item.tags["firstline.edge"],
            cloud_sha256=item.tags["firstline.cloud"],
            promises=json.loads(item.tags["firstline.promises"]),
            confidence=float(item.tags["firstline.confidence"]),
            created_at=item.tags["firstline.created_at"],
            champion=str(item.version) == now,
        )
        for item in versions
    ]


def _champion_version(mlflow: Any) -> str | None:
    aliases: dict[str, Any] = mlflow.get_registered_model(_RELEASES).aliases
    found = aliases.get(CHAMPION)
    return None if found is None else str(found)


def champion(settings: Settings) -> str | None:
    """The id of the release that answers, if one was promoted."""
    return next((item.id for item in list_registered(settings) if item.champion), None)


def fetch_release(settings: Settings, release_id: str) -> Release:
    """A release on this machine's disk, brought from the registry if it is not there yet.

    Raises:
        ReleaseError: unknown, broken, or made of parts that do not fit.
    """
    try:
        return load_release(settings, release_id)
    except FirstlineError:
        _fetch_missing(settings, release_id)
    return load_release(settings, release_id)


def _fetch_missing(settings: Settings, release_id: str) -> None:
    """Brings whatever part of a release is not on this disk; each part comes whole or not."""
    mlflow = client(settings)
    for version in _versions(mlflow, _RELEASES):
        if version.tags["firstline.id"] != release_id:
            continue
        for role in ("edge", "cloud"):
            wanted = version.tags[f"firstline.{role}"]
            for item in _versions(mlflow, f"firstline-{role}"):
                if item.tags["firstline.sha256"] == wanted:
                    _fetched(settings, mlflow, item)
        if not (settings.releases_dir / release_id).is_dir():
            _download(mlflow, version, settings.releases_dir / release_id)


def promote(settings: Settings, release_id: str) -> str | None:
    """Makes a release the champion; returns the one before it.

    Raises:
        ReleaseError: not registered, or broken.
    """
    fetch_release(settings, release_id)
    mlflow = client(settings)
    known = {item.id: item for item in list_registered(settings)}
    if release_id not in known:
        raise ReleaseError(
            f"The release {release_id!r} is not registered. Known: {', '.join(known) or 'none'}."
        )
    before = next((item.id for item in known.values() if item.champion), None)
    if before == release_id:
        return before
    version = known[release_id].version
    now = datetime.now(UTC).isoformat(timespec="seconds")
    mlflow.set_model_version_tag(_RELEASES, version, "firstline.promoted_at", now)
    mlflow.set_model_version_tag(_RELEASES, version, _PREVIOUS, before or "")
    mlflow.set_registered_model_alias(_RELEASES, CHAMPION, version)
    return before


def rollback_target(settings: Settings) -> str:
    """The release that answered before the champion.

    Raises:
        ReleaseError: nothing to roll back to.
    """
    mlflow = client(settings)
    versions = {str(item.version): item for item in _versions(mlflow, _RELEASES)}
    now = _champion_version(mlflow)
    before = versions[now].tags.get(_PREVIOUS) if now else None
    if not before:
        raise ReleaseError(
            "There is nothing to roll back to: no release answered before the present one."
        )
    return str(before)


def rollback(settings: Settings) -> str:
    """Makes the release before the champion the champion again, and returns its id."""
    target = rollback_target(settings)
    fetch_release(settings, target)
    mlflow = client(settings)
    known = {item.id: item.version for item in list_registered(settings)}
    mlflow.set_registered_model_alias(_RELEASES, CHAMPION, known[target])
    return target
