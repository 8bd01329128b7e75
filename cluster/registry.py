"""Which release answers: the MLflow registry, with one alias, `champion`.

Bundles and releases are registered with their hashes as tags and their files as artifacts, so any
MLflow server can hold them and another machine can fetch them. Promotion and rollback move the one
alias, which is one write; where to roll back to is noted on the new champion before the alias
moves, so a crash in between changes nothing.

A registry may be shared: a version without our tags is somebody else's, and is passed over. It may
be away: what was to be registered then is noted in <home>/unregistered/ and registered by the next
command that changes the registry, and who was the champion is known from <home>/champion.
"""

import json
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cluster.bundles import ModelBundle, load_bundle
from cluster.errors import FirstlineError, RegistryError, ReleaseError
from cluster.files import new_folder, write_text
from cluster.releases import Release, bundle_path, list_releases, load_release
from cluster.settings import Settings
from cluster.tracking import answered, client, experiment_id, shown_uri

CHAMPION: Final = "champion"
_RELEASES: Final = "firstline-release"
_PREVIOUS: Final = "firstline.rollback_to"
_ID: Final = "firstline.id"
_SHA256: Final = "firstline.sha256"
_PROMISES: Final = "firstline.promises"
_UNREGISTERED: Final = "unregistered"
_HEX64: Final = re.compile(r"[0-9a-f]{64}")
# A tag of ours and what it looks like. Hashes and ids become paths, so nothing else may pass.
_OURS: Final[Mapping[str, Mapping[str, re.Pattern[str]]]] = {
    _RELEASES: {
        _ID: re.compile(r"r-[0-9a-f]{10}"),
        "firstline.edge": _HEX64,
        "firstline.cloud": _HEX64,
        _PROMISES: re.compile(r"\{.*\}"),
        "firstline.confidence": re.compile(r"[0-9.]{1,20}"),
        "firstline.created_at": re.compile(r".*"),
    },
    "firstline-edge": {_SHA256: _HEX64},
    "firstline-cloud": {_SHA256: _HEX64},
}

# What is registered: its model's name, its folder, its tags.
Parts = tuple[str, Path, dict[str, str]]

log = logging.getLogger(__name__)


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
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        mlflow.create_registered_model(name)


def _versions(mlflow: Any, name: str) -> list[Any]:
    """Ours, oldest first."""
    _ensure_model(mlflow, name)
    found = mlflow.search_model_versions(f"name='{name}'")
    ours = [item for item in found if _is_ours(name, item.tags)]
    return sorted(ours, key=lambda item: int(item.version))


def _is_ours(name: str, tags: Mapping[str, str]) -> bool:
    return all(form.fullmatch(tags.get(tag, "\n")) for tag, form in _OURS[name].items())


@answered
def _register(settings: Settings, name: str, folder: Path, tags: dict[str, str]) -> None:
    """Uploads a folder as a new version of a registered model, unless its hash is there."""
    mlflow = client(settings)
    key = _SHA256 if _SHA256 in tags else _ID
    if any(item.tags.get(key) == tags[key] for item in _versions(mlflow, name)):
        return
    run = mlflow.create_run(experiment_id(settings, mlflow), run_name=name, tags=tags)
    mlflow.log_artifacts(run.info.run_id, str(folder), "files")
    mlflow.set_terminated(run.info.run_id)
    mlflow.create_model_version(
        name, source=f"{run.info.artifact_uri}/files", run_id=run.info.run_id, tags=tags
    )


def register_bundle(settings: Settings, bundle: ModelBundle) -> None:
    """Registers a bundle that has passed the gate; with the next command, if it cannot now."""
    _now_or_later(settings, f"bundle-{bundle.sha256}", _bundle_parts(bundle))


def _bundle_parts(bundle: ModelBundle) -> Parts:
    return f"firstline-{bundle.manifest.role}", bundle.path, {_SHA256: bundle.sha256}


def _now_or_later(settings: Settings, note: str, parts: Parts) -> None:
    try:
        _register_unregistered(settings)
        _register(settings, *parts)
    except (RegistryError, OSError) as error:  # such as a server's artifacts out of our reach
        write_text(settings.home / _UNREGISTERED / note, "")
        log.warning(
            "%s is on this disk, and will be registered by the next command. %s", note, error
        )


@answered
def _register_unregistered(settings: Settings) -> None:
    """What could not be, since the registry was away; bundles before the releases that name them.

    Raises:
        RegistryError: it still cannot.
    """
    folder = settings.home / _UNREGISTERED
    for note in sorted(folder.iterdir()) if folder.is_dir() else ():
        kind, _, name = note.name.partition("-")
        try:
            if kind == "bundle":
                parts = _bundle_parts(load_bundle(bundle_path(settings, name), name))
            else:
                parts = _as_registered(load_release(settings, name))
        except FirstlineError as error:  # what is gone from the disk cannot be registered
            log.warning("%s is not registered: %s", note.name, error)
        else:
            _register(settings, *parts)
        note.unlink(missing_ok=True)


@answered
def fetch_bundle(settings: Settings, role: str, sha256: str | None = None) -> Path:
    """The folder of a bundle of a role, by hash, or of the newest that is registered.

    Raises:
        ReleaseError: there is none.
        RegistryError: it is not on this disk, and the registry cannot be asked.
    """
    if sha256 and bundle_path(settings, sha256).is_dir():
        return bundle_path(settings, sha256)
    mlflow = client(settings)
    versions = [
        version
        for version in _versions(mlflow, f"firstline-{role}")
        if sha256 in {None, version.tags[_SHA256]}
    ]
    if not versions:
        which = f"{role} bundle {sha256[:12]}" if sha256 else f"{role} bundle"
        raise ReleaseError(
            f"No {which} is registered in {shown_uri(settings)}. Run `firstline train`."
        )
    return _fetched(settings, mlflow, versions[-1])


def _fetched(settings: Settings, mlflow: Any, version: Any) -> Path:
    target = bundle_path(settings, version.tags[_SHA256])
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
    """Makes a release known to the registry, with the next command if it cannot now; it answers
    nothing until it is promoted."""
    _now_or_later(settings, f"release-{release.id}", _as_registered(release))


def _as_registered(release: Release) -> Parts:
    certificate = release.certificate
    return _RELEASES, release.path, {
        _ID: release.id,
        "firstline.edge": release.manifest.edge_sha256,
        "firstline.cloud": release.manifest.cloud_sha256,
        _PROMISES: json.dumps(_promised(certificate)),
        "firstline.confidence": str(certificate["confidence"]),
        "firstline.created_at": release.manifest.created_at,
    }  # fmt: skip


def _promised(certificate: Mapping[str, Any]) -> dict[str, float]:
    """What is guaranteed: the limit of each promise."""
    return {name: promise["limit"] for name, promise in certificate["promises"].items()}


@answered
def list_registered(settings: Settings) -> list[Registered]:
    """Every registered release, oldest first.

    Raises:
        RegistryError: the registry cannot be asked.
    """
    mlflow = client(settings)
    versions = _versions(mlflow, _RELEASES)
    now = _champion_version(mlflow)
    found = []
    for item in versions:
        with suppress(ValueError, TypeError):  # promises that are no JSON are not ours either
            version = str(item.version)
            found.append(_registered(item.tags, version, champion=version == now))
    return found


def _registered(tags: Mapping[str, str], version: str, *, champion: bool) -> Registered:
    return Registered(
        id=tags[_ID],
        version=version,
        edge_sha256=tags["firstline.edge"],
        cloud_sha256=tags["firstline.cloud"],
        promises={name: float(limit) for name, limit in json.loads(tags[_PROMISES]).items()},
        confidence=float(tags["firstline.confidence"]),
        created_at=tags["firstline.created_at"],
        champion=champion,
    )


def list_here(settings: Settings) -> list[Registered]:
    """The same of the releases on this disk, for when the registry cannot be asked."""
    found, now = [], champion_here(settings)
    for name in list_releases(settings):
        with suppress(FirstlineError):
            _, _, tags = _as_registered(load_release(settings, name))
            found.append(_registered(tags, "", champion=name == now))
    return found


def _champion_version(mlflow: Any) -> str | None:
    aliases: dict[str, Any] = mlflow.get_registered_model(_RELEASES).aliases
    found = aliases.get(CHAMPION)
    return None if found is None else str(found)


def champion(settings: Settings) -> str | None:
    """The id of the release that answers, if one was promoted.

    Raises:
        RegistryError: the registry cannot be asked; `champion_here` may know.
    """
    found = next((item.id for item in list_registered(settings) if item.champion), None)
    if found is not None and found != champion_here(settings):
        note_champion(settings, found)
    return found


def champion_here(settings: Settings) -> str | None:
    """The champion as this home last heard of it, if its release is on this disk."""
    with suppress(OSError):
        found = (settings.home / CHAMPION).read_text(encoding="utf-8").strip()
        if found in list_releases(settings):
            return found
    return None


def note_champion(settings: Settings, release_id: str) -> None:
    """For `champion_here`; a disk that takes no note is no reason to fail."""
    with suppress(OSError):
        write_text(settings.home / CHAMPION, f"{release_id}\n")


@answered
def fetch_release(settings: Settings, release_id: str) -> Release:
    """A release on this machine's disk, brought from the registry if it is not there yet.

    Raises:
        ReleaseError: unknown, broken, or made of parts that do not fit.
        RegistryError: it is not on this disk, and the registry cannot be asked.
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
        if version.tags[_ID] != release_id:
            continue
        for role in ("edge", "cloud"):
            wanted = version.tags[f"firstline.{role}"]
            for item in _versions(mlflow, f"firstline-{role}"):
                if item.tags[_SHA256] == wanted:
                    _fetched(settings, mlflow, item)
        if not (settings.releases_dir / release_id).is_dir():
            _download(mlflow, version, settings.releases_dir / release_id)


@answered
def check_promotable(settings: Settings, release_id: str) -> dict[str, Registered]:
    """The registered releases by id, this one among them.

    Raises:
        ReleaseError: not registered, or broken.
        RegistryError: the registry cannot be asked.
    """
    fetch_release(settings, release_id)
    _register_unregistered(settings)
    known = {item.id: item for item in list_registered(settings)}
    if release_id not in known:
        raise ReleaseError(
            f"The release {release_id!r} is not registered. Known: {', '.join(known) or 'none'}."
        )
    return known


@answered
def promote(settings: Settings, release_id: str) -> str | None:
    """Makes a release the champion; returns the one before it.

    Raises: as `check_promotable`.
    """
    known = check_promotable(settings, release_id)
    mlflow = client(settings)
    before = next((item.id for item in known.values() if item.champion), None)
    if before == release_id:
        note_champion(settings, release_id)
        return before
    version = known[release_id].version
    now = datetime.now(UTC).isoformat(timespec="seconds")
    mlflow.set_model_version_tag(_RELEASES, version, "firstline.promoted_at", now)
    mlflow.set_model_version_tag(_RELEASES, version, _PREVIOUS, before or "")
    mlflow.set_registered_model_alias(_RELEASES, CHAMPION, version)
    note_champion(settings, release_id)
    return before


@answered
def rollback_target(settings: Settings) -> str:
    """The release that answered before the champion.

    Raises:
        ReleaseError: nothing to roll back to.
        RegistryError: the registry cannot be asked.
    """
    mlflow = client(settings)
    versions = {str(item.version): item for item in _versions(mlflow, _RELEASES)}
    now = _champion_version(mlflow)
    before = versions[now].tags.get(_PREVIOUS) if now in versions else None
    if not before:
        raise ReleaseError(
            "There is nothing to roll back to: no release answered before the present one."
        )
    return str(before)


@answered
def rollback(settings: Settings) -> str:
    """Makes the release before the champion the champion again, and returns its id."""
    target = rollback_target(settings)
    fetch_release(settings, target)
    mlflow = client(settings)
    known = {item.id: item.version for item in list_registered(settings)}
    if target not in known:
        raise ReleaseError(
            f"{target}, which answered before, is not registered any more. Promote another one: "
            f"{', '.join(known)}."
        )
    mlflow.set_registered_model_alias(_RELEASES, CHAMPION, known[target])
    note_champion(settings, target)
    return target
