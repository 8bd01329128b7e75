"""The only ray.init: connects to a cluster, or starts a local one on loopback."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from cluster.errors import ConfigError, ServiceError
from cluster.settings import Settings

# Read by Ray Serve when its processes start, so they stand in the environment of the cluster.
# Together they gave 609 requests/s against 218 of the default proxy, at 32 connections.
SERVE_ENV: Final = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
}
_QUIET_ENV: Final = {
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_ATTEMPTS: Final = "RAY_gcs_server_port_wait_time_s"  # in seconds, one attempt a second
_JOB: Final = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in the driver of a submitted job
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
    for name, value in _QUIET_ENV.items():
        os.environ.setdefault(name, value)
    address = settings.ray_address or os.environ.get("RAY_ADDRESS")
    runtime_env: dict[str, object] = {"env_vars": settings.worker_env()}
    common: dict[str, Any] = {
        "namespace": NAMESPACE,
        "log_to_driver": log_to_driver,
        "logging_level": logging.WARNING,
    }
    if address:
        if _JOB in os.environ:
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
        with _impatient():
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


@contextmanager
def _impatient() -> Iterator[None]:
    """One attempt to reach the cluster instead of twenty, each of which may take half a minute.

    Only for joining: for a cluster that is started here it would be the time that it may take.
    """
    before = os.environ.get(_ATTEMPTS)
    os.environ.setdefault(_ATTEMPTS, "1")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_ATTEMPTS, None)


def _same_machine(address: str) -> bool:
    host = address.removeprefix("ray://").split(":")[0]
    return host in {"auto", "local", "localhost", "127.0.0.1"}


@contextmanager
def connected(settings: Settings, **options: Any) -> Iterator[None]:
    """`connect`, and let go at the end: a local cluster that we started is stopped."""
    import ray

    before = ray.is_initialized()
    connect(settings, **options)
    try:
        yield
    finally:
        if not before:
            ray.shutdown()
