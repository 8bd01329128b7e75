"""The running service: start, status, stop; what the command line calls.

    start ─> (a keeper that holds a local Ray) ─> release app ─> router app ─> service.json

The keeper is this module, run with `python -m serve_app.service.lifecycle <home>`: process.py has
its processes, rollout.py what it deploys, releases.py moves between releases. It also moves the
weights of an adaptive canary.
"""

import contextlib
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from cluster.connect import connect
from cluster.errors import FirstlineError, ServiceError
from cluster.processes import started
from cluster.ray_private.auth import use_token
from cluster.ray_private.environment import cluster_address
from cluster.ray_private.haproxy_failover import failing_over
from cluster.ray_private.serve_environment import serve_environment
from cluster.releases import load_release
from cluster.settings import Settings, load_settings
from serve_app.access import keys as api_keys
from serve_app.cascade import traffic
from serve_app.deploy.config import ServeConfig
from serve_app.deploy.names import ROUTER_APP, release_app
from serve_app.service.adaptive import ADAPT_EVERY_S
from serve_app.service.process import (
    STOP_WAIT_S,
    TOKEN,
    clean_up,
    ending,
    forget,
    is_taken,
    make_token,
    signals,
    spawn,
    stop_keeper,
    stop_start,
    sweep,
    token_in_use,
)
from serve_app.service.releases import try_adapt
from serve_app.service.rollout import (
    connected,
    deploy,
    leave_cluster,
    not_ready,
    shut_down,
    wait_ready,
    wait_running,
)
from serve_app.service.state import (
    STATE,
    WAIT_S,
    Holder,
    ServiceInfo,
    Task,
    Turn,
    adopted,
    holder,
    is_alive,
    read_info,
    turn,
    write_info,
)


class ServiceStatus(BaseModel):
    """What `firstline status` shows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    running: bool
    starting: bool = False
    ready: bool
    info: ServiceInfo | None
    applications: dict[str, str]
    replicas: dict[str, dict[str, int]]
    problems: list[str]


# ---- start, status, stop ------------------------------------------------------------------------


def start(
    settings: Settings, release_id: str, config: ServeConfig, wait_s: float = WAIT_S
) -> ServiceInfo:
    """Starts the service detached, and returns when it answers.

    Raises:
        ReleaseError: the release cannot be served.
        ServiceError: one is running, the port is taken, or it does not come up in time.
    """
    load_release(settings, release_id)
    with turn(settings, Task.STARTING, release=release_id) as held:
        _check_startable(settings, release_id, config, held)
        if cluster_address(settings.ray_address):
            return _deploy_first(settings, release_id, config, None, wait_s)
        return spawn(settings, release_id, config, wait_s, held)


def run(
    settings: Settings,
    release_id: str,
    config: ServeConfig,
    wait_s: float = WAIT_S,
    on_ready: Callable[[ServiceInfo], None] = lambda info: None,
) -> None:
    """Serves in the foreground until SIGINT or SIGTERM, then stops what it started.

    Raises: as `start`.
    """
    load_release(settings, release_id)
    with turn(settings, Task.STARTING, release=release_id) as held:
        _check_startable(settings, release_id, config, held)
        _run(settings, release_id, config, wait_s, held, on_ready)


def _run(
    settings: Settings,
    release_id: str,
    config: ServeConfig,
    wait_s: float,
    held: Turn,
    on_ready: Callable[[ServiceInfo], None] = lambda info: None,
) -> None:
    """Serves under a turn, which ends as soon as the service answers."""
    stopped, rng = threading.Event(), np.random.default_rng()
    # In this order: ray.init sets a SIGTERM handler of its own, which ends the process.
    with ending(), _serving(settings, release_id, config, wait_s, held) as info, signals(stopped):
        held.end()
        on_ready(info)
        while not stopped.wait(ADAPT_EVERY_S):
            try_adapt(settings, rng)


def status(settings: Settings) -> ServiceStatus:
    """What runs; never raises for a service that is down."""
    info = read_info(settings)
    if info is None or not is_alive(info):
        now = holder(settings)
        if now is not None and now.what is Task.STARTING:
            return _starting(now)
    if info is None:
        return _down(None)
    if not is_alive(info):
        return _down(info, "the keeper process is gone; run `firstline stop` to clean up")
    try:
        return _live_status(settings, info)
    except ServiceError as error:
        return _down(info, f"{error} If that cluster is gone for good: firstline stop")


def _down(info: ServiceInfo | None, *problems: str) -> ServiceStatus:
    return ServiceStatus(
        running=False,
        ready=False,
        info=info,
        applications={},
        replicas={},
        problems=list(problems),
    )


def _starting(now: Holder) -> ServiceStatus:
    words = f"{now.release} is being started by process {now.pid}, since {now.since}"
    return _down(None, words).model_copy(update={"starting": True})


def _live_status(settings: Settings, info: ServiceInfo) -> ServiceStatus:
    with connected(settings, info):
        from ray import serve

        applications = serve.status().applications
        missing = not_ready(info)
        failed = [f"{name}: {app.message}" for name, app in applications.items() if app.message]
        return ServiceStatus(
            running=True,
            ready=not missing,
            info=info,
            applications={name: str(app.status.value) for name, app in applications.items()},
            replicas={
                f"{name}/{deployment}": {str(k): v for k, v in found.replica_states.items()}
                for name, app in applications.items()
                for deployment, found in app.deployments.items()
            },
            problems=failed + missing,
        )


def stop(settings: Settings, wait_s: float = STOP_WAIT_S) -> bool:
    """Stops the service and every process that belongs to it; False if there was none.

    A start that is under way is ended; a move of its releases is waited for.

    Raises:
        ServiceError: something of it is still alive afterwards, or the move does not end.
    """
    if not settings.home.is_dir():
        return False
    now = holder(settings)
    starting = now is not None and now.what is Task.STARTING
    if now is not None and starting:
        stop_start(now, wait_s)
    with turn(settings, Task.STOPPING, wait_s=wait_s) as held:
        if held.before is not None:
            clean_up(held.before)
        return _stop(settings, wait_s) or starting


def _stop(settings: Settings, wait_s: float) -> bool:
    info = read_info(settings)
    if info is None:
        return False
    if info.keeper_pid is None:
        with contextlib.suppress(ServiceError):  # the cluster is gone, and all on it
            leave_cluster(settings, info)
    else:
        stop_keeper(info, wait_s)
    forget(settings, info)
    if info.keeper_pid is not None and is_taken(info.host, info.port):
        raise ServiceError(
            f"The service was stopped, but port {info.port} on {info.host} is still held by "
            "another process. Find it with: ss -ltnp"
        )
    return True


# ---- starting -----------------------------------------------------------------------------------


def _check_startable(settings: Settings, release_id: str, config: ServeConfig, held: Turn) -> None:
    """Everything that can be wrong before anything is started; and what a start that died left."""
    if held.before is not None:
        clean_up(held.before)
    keys = api_keys.Keys(settings.home / api_keys.FILE, settings.api_keys)
    api_keys.check_exposed(config.host, keys, config.allow_open)
    info = read_info(settings)
    if info is not None and is_alive(info):
        raise ServiceError(
            f"Release {info.release} is already served at {info.url} from {settings.home}. Move "
            "it with `firstline releases promote`, or end it with `firstline stop`."
        )
    if info is not None:
        forget(settings, info)
    if not cluster_address(settings.ray_address) and is_taken(config.host, config.port):
        raise ServiceError(
            f"Port {config.port} on {config.host} is taken by another process. Choose another one "
            "with --port, or find who has it with: ss -ltnp"
        )


@contextlib.contextmanager
def _serving(
    settings: Settings, release_id: str, config: ServeConfig, wait_s: float, held: Turn
) -> Iterator[ServiceInfo]:
    """Serves inside the block, on a cluster of its own or on the one that was named."""
    if cluster_address(settings.ray_address):
        try:
            yield _deploy_first(settings, release_id, config, None, wait_s)
        finally:
            _stop(settings, STOP_WAIT_S)
        return
    # Below /tmp, since a socket's path may have 107 bytes, and Serve adds a node's id of 56.
    haproxy_dir = Path(tempfile.mkdtemp(prefix="fl-", dir="/tmp"))
    os.environ.update(serve_environment(haproxy_dir))
    held.note(haproxy_dir=haproxy_dir, token_path=settings.home / TOKEN)
    token_path = None
    try:
        token_path = make_token(settings)
        use_token(token_path)
        connect(settings, num_cpus=max(os.cpu_count() or 1, config.cpus_for_promotion))
        info = _deploy_first(settings, release_id, config, haproxy_dir, wait_s)
        with failing_over(haproxy_dir):
            yield info
    finally:
        shut_down()
        sweep(haproxy_dir)
        # In this order: without the state the next one may start, and make a token of its own.
        if token_path is not None:
            token_path.unlink(missing_ok=True)
        (settings.home / STATE).unlink(missing_ok=True)


def _deploy_first(
    settings: Settings,
    release_id: str,
    config: ServeConfig,
    haproxy_dir: Path | None,
    wait_s: float,
) -> ServiceInfo:
    """Deploys on the connected (or named) cluster, and writes service.json once it answers."""
    import ray
    from ray import serve

    connect(settings)
    # Given explicitly, the host holds for HAProxy and for the replicas' own ingress too.
    serve.start(proxy_location="HeadOnly", http_options={"host": config.host, "port": config.port})
    info = ServiceInfo(
        host=config.host,
        port=config.port,
        ray_address=_join_address(ray.get_runtime_context().gcs_address, haproxy_dir is not None),
        routed=traffic.only(release_id),
        keeper_pid=os.getpid() if haproxy_dir else None,
        keeper_started=started(os.getpid()) if haproxy_dir else None,
        haproxy_dir=haproxy_dir,
        token_path=token_in_use(settings) if haproxy_dir else None,
        config=config,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    try:
        deploy(settings, config, [release_id], None)
        wait_running(release_app(release_id), wait_s)
        deploy(settings, config, [release_id], info.routed)
        wait_running(ROUTER_APP, wait_s)
        wait_ready(info, wait_s)
        write_info(settings, info)
    except BaseException:
        if haproxy_dir is None:  # a cluster of our own goes down as a whole
            leave_cluster(settings, info)
        raise
    return info


def _join_address(gcs_address: str, local: bool) -> str:
    """How another process on this machine joins; by loopback if the cluster is its own."""
    return f"127.0.0.1:{gcs_address.rsplit(':', 1)[1]}" if local else gcs_address


def main() -> None:
    """The keeper: an order on stdin; runs until it is told to stop. Its last line is the cause."""
    order: Mapping[str, Any] = json.load(sys.stdin)
    settings = load_settings(Path(sys.argv[1]))
    held = adopted(int(order["turn"]))
    try:
        _run(
            settings,
            order["release"],
            ServeConfig.model_validate(order["config"]),
            float(order["wait_s"]),
            held,
        )
    except FirstlineError as error:
        print(error, flush=True)  # noqa: T201 - its log is what `start` reads
        sys.exit(2)
    finally:
        held.end()


if __name__ == "__main__":
    main()
