"""The running service: start, move between releases, status, stop; what the command line calls.

    start ─> (a keeper that holds a local Ray) ─> release app ─> router app ─> service.json
    promote, canary, shadow, rollback ─> route ─> release apps beside ─> one update of the router

The keeper is this module, run with `python -m serve_app.service.lifecycle <home>`: process.py has
its processes, rollout.py what it deploys. It also moves the weights of an adaptive canary.
"""

import contextlib
import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict

from cluster.connect import connect
from cluster.errors import FirstlineError, ReleaseError, ServiceError
from cluster.processes import started
from cluster.releases import load_release
from cluster.settings import Settings, load_settings
from serve_app.access import keys as api_keys
from serve_app.cascade import traffic
from serve_app.cascade.traffic import ADAPT_EVERY_S, Routed, adapted
from serve_app.deploy.app import ROUTER_APP
from serve_app.deploy.config import ServeConfig
from serve_app.deploy.router import release_app
from serve_app.service.haproxy_failover import standing_in
from serve_app.service.process import (
    STATE,
    STOP_WAIT_S,
    ServiceInfo,
    forget,
    is_alive,
    is_taken,
    make_token,
    moving,
    read_info,
    serve_environment,
    signals,
    spawn,
    stop_keeper,
    sweep,
    token_in_use,
    use_token,
    write_info,
)
from serve_app.service.rollout import (
    ask_monitor,
    connected,
    deploy,
    leave_cluster,
    not_ready,
    shut_down,
    wait_ready,
    wait_running,
)

log = logging.getLogger(__name__)

_LET_GO_S: Final = 5.0  # requests that began on a release end on it
WAIT_S: Final = 180.0
_ADAPT_WAIT_S: Final = 15.0  # less than `stop` waits before it kills


class ServiceStatus(BaseModel):
    """What `firstline status` shows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    running: bool
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
    _check_startable(settings, release_id, config)
    if _cluster_address(settings):
        return _deploy_first(settings, release_id, config, None, wait_s)
    return spawn(settings, release_id, config, wait_s)


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
    _check_startable(settings, release_id, config)
    stopped, rng = threading.Event(), np.random.default_rng()
    # In this order: ray.init sets a SIGTERM handler of its own, which ends the process.
    with _serving(settings, release_id, config, wait_s) as info, signals(stopped):
        on_ready(info)
        while not stopped.wait(ADAPT_EVERY_S):
            _try_adapt(settings, rng)


def status(settings: Settings) -> ServiceStatus:
    """What runs; never raises for a service that is down."""
    info = read_info(settings)
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

    Raises:
        ServiceError: something of it is still alive afterwards.
    """
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


# ---- which release answers ----------------------------------------------------------------------


def promote(settings: Settings, release_id: str, wait_s: float = WAIT_S) -> ServiceInfo:
    """All traffic to one release, without a refused request. Ends a canary; shadows stay.

    The champion before stays up, for an instant way back.

    Raises: as `route`.
    """
    load_release(settings, release_id)
    with moving(settings) as info:
        return _route(settings, info, traffic.only(release_id, info.routed), release_id, wait_s)


def canary(
    settings: Settings,
    release_id: str,
    share: float,
    *,
    adaptive: bool = False,
    wait_s: float = WAIT_S,
) -> ServiceInfo:
    """A share of the users to a release, the others to the champion; replaces another canary.

    Raises:
        ConfigError: not a share, or the release is the champion.
        ServiceError: as `route`; or `adaptive` where no keeper runs that would move the weights.
    """
    with moving(settings) as info:
        if adaptive and info.keeper_pid is None:
            raise ServiceError(
                "Weights are moved by the keeper that `firstline serve` starts; this service runs "
                f"on the cluster at {info.ray_address}, which has none. Leave --adaptive out."
            )
        routed = traffic.split(info.release, release_id, share, info.routed, adaptive)
        return _route(settings, info, routed, info.release, wait_s)


def shadow(settings: Settings, release_id: str | None, wait_s: float = WAIT_S) -> ServiceInfo:
    """A release sees every message and never answers; replaces another shadow. None: no shadow.

    Raises:
        ServiceError: as `route`; or the release answers already.
    """
    with moving(settings) as info:
        if release_id in info.routed.releases:
            raise ServiceError(
                f"{release_id} answers {info.routed.releases[release_id]:.0%} of the traffic; a "
                "shadow answers nothing. Take it out first, or choose another release."
            )
        wanted = () if release_id is None else (release_id,)
        now = info.routed
        routed = Routed(releases=now.releases, shadow=wanted, adaptive=now.adaptive)
        return _route(settings, info, routed, info.release, wait_s)


def rollback(settings: Settings, wait_s: float = WAIT_S) -> ServiceInfo:
    """Takes the canary out; without one, all traffic goes to the champion before.

    Raises:
        ReleaseError: there is neither.
        ServiceError: as `route`.
    """
    with moving(settings) as info:
        target = info.release if len(info.routed.releases) > 1 else info.previous
        if target is None:
            raise ReleaseError(
                "There is nothing to roll back to: no release answered before the present one."
            )
        return _route(settings, info, traffic.only(target, info.routed), target, wait_s)


def route(settings: Settings, routed: Routed, wait_s: float = WAIT_S) -> ServiceInfo:
    """Makes the running service answer as `routed` says, without a refused request.

    The releases that are new come up beside those that run, and nothing is sent to one until its
    golden messages came out right on every replica. Then the router is told by one update. What is
    no longer named goes, except for the champion before. The champion stays who it is while it is
    routed; else it is the largest weight.

    Raises:
        ReleaseError: a release cannot be served.
        ServiceError: no service is running, somebody else is moving it, or a release does not come
            up; then nothing moved.
    """
    with moving(settings) as info:
        stays = info.release in routed.releases
        return _route(settings, info, routed, info.release if stays else routed.champion, wait_s)


def _route(
    settings: Settings, info: ServiceInfo, routed: Routed, champion: str, wait_s: float
) -> ServiceInfo:
    for release_id in routed.named:
        load_release(settings, release_id)
    previous = info.previous if champion == info.release else info.release
    moved = info.model_copy(update={"release": champion, "routed": routed, "previous": previous})
    with connected(settings, info):
        _bring_up(settings, info, moved, wait_s)
        write_info(settings, moved)
        if set(info.up) - set(moved.up):
            time.sleep(_LET_GO_S)
        deploy(settings, moved.config, moved.up, routed)
    return moved


def _bring_up(settings: Settings, info: ServiceInfo, moved: ServiceInfo, wait_s: float) -> None:
    """Both the old and the new releases up, and the router on the new; or all as it was."""
    new = [name for name in moved.up if name not in info.up]
    both = [*info.up, *new]
    try:
        if new:
            deploy(settings, info.config, both, info.routed)
        for name in new:
            wait_running(release_app(name), wait_s)
        deploy(settings, info.config, both, moved.routed)
        wait_running(ROUTER_APP, wait_s)
        wait_ready(moved, wait_s)
    except BaseException:  # Ctrl-C too: what runs must be what service.json says
        with contextlib.suppress(Exception):  # the first cause is the one to tell
            deploy(settings, info.config, info.up, info.routed)
        raise


def adapt(
    settings: Settings, rng: np.random.Generator, wait_s: float = _ADAPT_WAIT_S
) -> ServiceInfo | None:
    """One step of an adaptive canary's weights after the feedback; None if they stay.

    Raises: as `route`; and what Ray raises for a monitor that does not answer.
    """
    with moving(settings) as info:
        if not info.routed.adaptive:
            return None
        with connected(settings, info):
            routed = adapted(info.routed, ask_monitor(), rng)
        return _route(settings, info, routed, info.release, wait_s) if routed else None


def _try_adapt(settings: Settings, rng: np.random.Generator) -> None:
    try:
        if moved := adapt(settings, rng):
            log.info("The weights follow the feedback: %s", moved.routed.releases)
    except Exception as error:  # noqa: BLE001 - open on failure: they stay, and the service runs
        log.warning("The weights stay as they are: %r", error)


# ---- starting -----------------------------------------------------------------------------------


def _cluster_address(settings: Settings) -> str:
    return settings.ray_address or os.environ.get("RAY_ADDRESS", "")


def _check_startable(settings: Settings, release_id: str, config: ServeConfig) -> None:
    """Everything that can be wrong before anything is started."""
    load_release(settings, release_id)
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
    if not _cluster_address(settings) and is_taken(config.host, config.port):
        raise ServiceError(
            f"Port {config.port} on {config.host} is taken by another process. Choose another one "
            "with --port, or find who has it with: ss -ltnp"
        )


@contextlib.contextmanager
def _serving(
    settings: Settings, release_id: str, config: ServeConfig, wait_s: float
) -> Iterator[ServiceInfo]:
    """Serves inside the block, on a cluster of its own or on the one that was named."""
    if _cluster_address(settings):
        try:
            yield _deploy_first(settings, release_id, config, None, wait_s)
        finally:
            stop(settings)
        return
    # Below /tmp, since a socket's path may have 107 bytes, and Serve adds a node's id of 56.
    haproxy_dir = Path(tempfile.mkdtemp(prefix="fl-", dir="/tmp"))
    os.environ.update(serve_environment(haproxy_dir))
    token_path = make_token(settings)
    try:
        use_token(token_path)
        connect(settings, num_cpus=max(os.cpu_count() or 1, config.cpus_for_promotion))
        info = _deploy_first(settings, release_id, config, haproxy_dir, wait_s)
        with standing_in(haproxy_dir):
            yield info
    finally:
        shut_down()
        sweep(haproxy_dir)
        (settings.home / STATE).unlink(missing_ok=True)
        if token_path is not None:
            token_path.unlink(missing_ok=True)


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
        release=release_id,
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
    try:
        run(
            settings,
            order["release"],
            ServeConfig.model_validate(order["config"]),
            float(order["wait_s"]),
        )
    except FirstlineError as error:
        print(error, flush=True)  # noqa: T201 - its log is what `start` reads
        sys.exit(2)


if __name__ == "__main__":
    main()
