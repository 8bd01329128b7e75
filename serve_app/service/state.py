"""Where a service is and what it answers with: <home>/service.json, and who may change it."""

import contextlib
import fcntl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError, computed_field, model_validator

from cluster.errors import ServiceError
from cluster.files import read_json, write_json
from cluster.processes import started
from cluster.settings import Settings
from serve_app.cascade.traffic import Routed
from serve_app.deploy.config import ServeConfig
from serve_app.deploy.fixed import without_fixed

STATE: Final = "service.json"
_MOVING: Final = "service.lock"


class ServiceInfo(BaseModel):
    """Where a service is: the content of service.json.

    `previous` was the champion before, and is kept up.
    `keeper_pid` is None where the cluster is somebody else's; `keeper_started` is the kernel's
    start time of that process, so that a reused pid is not taken for it. `token_path` is where
    the cluster's Ray token lies, never the token.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    port: int
    ray_address: str
    routed: Routed
    previous: str | None = None
    keeper_pid: int | None = None
    keeper_started: int | None = None
    haproxy_dir: Path | None = None
    token_path: Path | None = None
    config: ServeConfig
    started_at: str

    @model_validator(mode="before")
    @classmethod
    def _with_champion(cls, found: Any) -> Any:
        """`routed` names the champion; a file of an earlier version names it as `release` only."""
        if not isinstance(found, Mapping) or "release" not in found:
            return found
        kept = {name: value for name, value in found.items() if name != "release"}
        routed = found.get("routed")
        if isinstance(routed, Mapping):
            kept["routed"] = {"champion": found["release"], **routed}
        return kept

    @computed_field  # type: ignore[prop-decorator]
    @property
    def release(self) -> str:
        """The champion: what answers alone once a canary is taken out."""
        return self.routed.champion

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.host in {"0.0.0.0", "::"} else self.host  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def up(self) -> tuple[str, ...]:
        """Every release whose application is kept up."""
        kept = (*self.routed.named, *([self.previous] if self.previous else []))
        return tuple(dict.fromkeys(kept))


def read_info(settings: Settings) -> ServiceInfo | None:
    """What service.json says; None without one.

    Raises:
        ServiceError: it cannot be read.
    """
    path = settings.home / STATE
    try:
        found = read_json(path)
        if isinstance(found, dict):  # an older version's service is found and stopped, too
            found["config"] = without_fixed(found.get("config"))
        return ServiceInfo.model_validate(found)
    except FileNotFoundError:
        return None
    except (ValidationError, ValueError) as error:
        raise ServiceError(
            f"{path} is not a service file that this version reads: {error}. If no service is "
            "running, delete it."
        ) from None


def write_info(settings: Settings, info: ServiceInfo) -> None:
    write_json(settings.home / STATE, info.model_dump(mode="json"))


def running_info(settings: Settings) -> ServiceInfo:
    """Raises ServiceError if no service is running."""
    info = read_info(settings)
    if info is None or not is_alive(info):
        raise ServiceError(
            f"No service is running from {settings.home}. Start one with `firstline serve`."
        )
    return info


@contextlib.contextmanager
def moving(settings: Settings) -> Iterator[ServiceInfo]:
    """The running service, with everybody held off who would move its releases too.

    Raises:
        ServiceError: none is running, or somebody is at it; the keeper adapts weights, too.
    """
    running_info(settings)
    with (settings.home / _MOVING).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServiceError(
                "The service's releases are being moved by another process. Wait for it, look at "
                "`firstline releases list`, and try again."
            ) from None
        yield running_info(settings)


def is_alive(info: ServiceInfo) -> bool:
    """Of somebody else's cluster we only know what was written."""
    return info.keeper_pid is None or started(info.keeper_pid) == info.keeper_started


WAIT_S: Final = 180.0
