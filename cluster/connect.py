"""The only ray.init: connects to a cluster, or starts a local one on loopback."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from cluster.errors import ConfigError, ServiceError
from cluster.ray_private import auth
from cluster.ray_private.environment import (
    QUIET,
    SERVE_ENV,
    TRAIN_POLL,
    cluster_address,
    is_submitted_job,
    kept,
    one_attempt,
)
from cluster.settings import Settings

_ENV: Final = {
    **QUIET,
    **TRAIN_POLL,
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_KNOCK_S: Final = 5.0
NAMESPACE: Final = "firstline"


def _package_root() -> Path:
    return Path(__file__).resolve().parent.parent


def connect(
    settings: Settings,
    *,
    num_cpus: int | None = None,
    dashboard: bool = False,
    log_to_driver: bool = False,
) -> None:
    """Joins FIRSTLINE_RAY_ADDRESS or RAY_ADDRESS, or starts Ray on this machine.

    A cluster that was there before gets our code as the working_dir; on a local one the workers
    import it from where it is installed.
    """
    import ray

    if ray.is_initialized():
        return
    for name, value in _ENV.items():
        os.environ.setdefault(name, value)
    address = cluster_address(settings.ray_address)
    runtime_env: dict[str, object] = {"env_vars": settings.worker_env()}
    common: dict[str, Any] = {
        "namespace": NAMESPACE,
        "log_to_driver": log_to_driver,
        "logging_level": logging.WARNING,
    }
    if address:
        if is_submitted_job():
            # A submitted job's own runtime_env holds for its workers too; Ray refuses a second one.
            runtime_env = {}
        elif not _same_machine(address):
            runtime_env["working_dir"] = str(_package_root())
        _join(address, runtime_env, common)
        return
    for name, value in SERVE_ENV.items():
        os.environ.setdefault(name, value)
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=dashboard,
        dashboard_host="127.0.0.1",
        runtime_env=runtime_env,
        **common,
    )


def _join(address: str, runtime_env: dict[str, object], common: dict[str, Any]) -> None:
    import ray
    from ray.exceptions import RayError

    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{address} is a dashboard, to which jobs are submitted. Add --submit, or set "
            "RAY_ADDRESS to the cluster itself, such as 127.0.0.1:6379 or ray://host:10001."
        )
    try:
        _knock(address)
        with one_attempt():
            ray.init(address=address, runtime_env=runtime_env, **common)
    except (RayError, ConnectionError, RuntimeError, TimeoutError, OSError) as error:
        raise ServiceError(
            f"The Ray cluster at {address} does not answer: {str(error).strip().splitlines()[0]} "
            "Check RAY_ADDRESS and FIRSTLINE_RAY_ADDRESS, or unset them for a Ray of its own."
        ) from error


def _knock(address: str) -> None:
    """Raises OSError at once if nothing listens there; Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()


def _same_machine(address: str) -> bool:
    host = address.removeprefix("ray://").split(":")[0]
    return host in {"auto", "local", "localhost", "127.0.0.1"}


@contextmanager
def connected(settings: Settings, **options: Any) -> Iterator[None]:
    """`connect`, and let go at the end: a local cluster that we started is stopped.

    Ray sets RAY_AUTH_MODE when it starts a cluster. A service that this process starts afterwards
    would take it for the user's, and would share the token of all clusters of the user.
    """
    import ray

    before = ray.is_initialized()
    with kept(auth.MODE, auth.PATH):
        connect(settings, **options)
        try:
            yield
        finally:
            if not before:
                ray.shutdown()
