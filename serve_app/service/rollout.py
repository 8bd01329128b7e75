"""What a cluster runs for us: the declarative config, and waiting until it is so.

    (config, releases, Routed) ─> applications ─> deploy ─> wait_running ─> wait_ready

Everything is deployed declaratively, as `serve deploy serve_app/serve.yaml` does, because Serve
then knows that a change of `user_config` alone needs no new replica. Serve says DEPLOYING in the
moment in which it takes a config, and RUNNING once every replica holds it: a tier's replica only
after its golden messages came out right, a router's after it has the new `user_config`.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import httpx

from cluster.connect import connect
from cluster.errors import ServiceError
from cluster.ray_private import serve_client
from cluster.ray_private.auth import using_token
from cluster.settings import Settings
from serve_app.cascade.traffic import Routed
from serve_app.deploy.config import ServeConfig
from serve_app.deploy.names import ROUTER, ROUTER_APP, release_app
from serve_app.jobs.runner import ACTOR_NAME as JOBS_ACTOR
from serve_app.monitor.actor import ACTOR_NAME, NAMESPACE
from serve_app.monitor.stats import MonitorReport
from serve_app.service.state import ServiceInfo

_POLL_S: Final = 0.2
_HTTP_WAIT_S: Final = 10.0
_STOP_JOBS_S: Final = 20.0
_MONITOR_WAIT_S: Final = 10.0
_RELEASE_BUILDER: Final = "serve_app.deploy.app:build_release"
_ROUTER_BUILDER: Final = "serve_app.deploy.app:build_router"
_BUILDERS: Final = frozenset({_RELEASE_BUILDER, _ROUTER_BUILDER})
_FAILED: Final = frozenset({"DEPLOY_FAILED", "UNHEALTHY"})


# ---- the declarative config ---------------------------------------------------------------------


def applications(
    config: ServeConfig, home: Path, releases: Sequence[str], routed: Routed | None
) -> list[dict[str, Any]]:
    """The `applications` of a Serve config file: the releases, and the router over some of them."""
    made: list[dict[str, Any]] = [
        {
            "name": release_app(release),
            "route_prefix": None,
            "import_path": _RELEASE_BUILDER,
            "args": config.release_args(release, home).model_dump(mode="json"),
        }
        for release in releases
    ]
    if routed is not None:
        router = {
            "name": ROUTER_APP,
            "route_prefix": "/",
            "import_path": _ROUTER_BUILDER,
            "args": config.router_args(home).model_dump(mode="json"),
            "deployments": [{"name": ROUTER, "user_config": routed.user_config()}],
        }
        made.append(router)
    return made


def _is_ours(name: str) -> bool:
    return name == ROUTER_APP or name.startswith(release_app(""))


def deploy(
    settings: Settings, config: ServeConfig, releases: Sequence[str], routed: Routed | None
) -> None:
    """Makes the cluster run these applications, and none of ours besides.

    The list is the whole of what was deployed by config, so what others deployed this way is kept.

    Raises:
        ServiceError: the service was started by a version whose code is no longer there.
    """
    from ray.serve.schema import ServeDeploySchema

    there = serve_client.app_configs()
    known = {name for name in there if _is_ours(name)}
    if any(there[name].import_path not in _BUILDERS for name in known):
        raise ServiceError(
            "This service was started by another version of Firstline, whose code is not here. "
            "Run `firstline stop`, then `firstline serve`."
        )
    theirs = [
        app.model_dump(exclude_unset=True) for name, app in there.items() if name not in known
    ]
    ours = applications(config, settings.home, releases, routed)
    schema = ServeDeploySchema.model_validate(
        {
            "proxy_location": "HeadOnly",
            "http_options": {"host": config.host, "port": config.port},
            "applications": [*theirs, *ours],
        }
    )
    serve_client.deploy(schema)


def _get(reference: Any, timeout_s: float | None = None) -> Any:
    import ray

    return ray.get(reference, timeout=timeout_s)


# ---- waiting ------------------------------------------------------------------------------------


def wait_running(name: str, wait_s: float) -> None:
    """Until every replica of the application holds its config.

    Raises:
        ServiceError: it failed, or is not there in time.
    """
    from ray import serve

    deadline = time.monotonic() + wait_s
    found = "unknown"
    while time.monotonic() < deadline:
        app = serve.status().applications.get(name)
        if app is not None:
            found = str(app.status.value)
            if found == "RUNNING":
                return
            if found in _FAILED:
                raise ServiceError(f"The application {name} failed: {_last_line(app)}")
        time.sleep(_POLL_S)
    raise ServiceError(
        f"The application {name} is {found} after {wait_s:g} s; RUNNING was expected. Either its "
        "replicas find no free CPU (see `ray status`), or this machine is busy: try again."
    )


def _last_line(app: Any) -> str:
    """The cause, out of the tracebacks that Serve puts around it."""
    messages = [app.message, *(found.message for found in app.deployments.values())]
    lines = [line.strip() for text in messages for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return str((errors or lines or ["no message"])[-1])


def wait_ready(info: ServiceInfo, wait_s: float) -> None:
    """Until the endpoint says ready, through HAProxy, and over new connections each time.

    Raises:
        ServiceError: it does not in time.
    """
    deadline = time.monotonic() + wait_s
    seen = 0
    while time.monotonic() < deadline:
        seen = 0 if not_ready(info) else seen + 1
        if seen > info.config.routers:
            return
        time.sleep(_POLL_S / 4)
    raise ServiceError(
        f"{info.url} is not ready after {wait_s:g} s. `firstline status` shows what runs."
    )


def not_ready(info: ServiceInfo) -> list[str]:
    """What keeps the service from being ready; empty if nothing does."""
    try:
        # Not through the user's proxy: the service is on this machine.
        answer = httpx.get(f"{info.url}/readyz", timeout=_HTTP_WAIT_S, trust_env=False)
        if answer.is_success:
            return []
        error = answer.json()["error"]
        # HAProxy's own page, where no router is left, has no details.
        return [str(one["problem"]) for one in error["details"]] or [str(error["message"])]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        return [f"{info.url}/readyz does not answer ({type(error).__name__})"]


def ask_monitor() -> MonitorReport:
    """What the monitor makes of the traffic; raises whatever Ray does if it is not there."""
    import ray

    actor = ray.get_actor(ACTOR_NAME, NAMESPACE)
    report: MonitorReport = _get(actor.report.remote(), _MONITOR_WAIT_S)
    return report


# ---- joining and leaving ------------------------------------------------------------------------


@contextlib.contextmanager
def connected(settings: Settings, info: ServiceInfo) -> Iterator[None]:
    """A driver in the service's cluster, for as long as the block takes."""
    import ray

    if ray.is_initialized():
        yield
        return
    with using_token(info.token_path):
        try:
            connect(settings.model_copy(update={"ray_address": info.ray_address}))
            yield
        finally:
            serve_client.forget_controller()
            ray.shutdown()


def shut_down() -> None:
    """Jobs, then Serve, so that HAProxy ends with its manager; then Ray."""
    import ray
    from ray import serve

    if not ray.is_initialized():
        return
    _stop_jobs()
    with contextlib.suppress(Exception):
        serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


def _stop_jobs() -> None:
    """So that a job that runs goes on with the next service, and is not taken for broken."""
    import ray

    with contextlib.suppress(Exception):  # there is none, or it does not answer
        jobs = ray.get_actor(JOBS_ACTOR, NAMESPACE)
        _get(jobs.stop.remote(), _STOP_JOBS_S)
        ray.kill(jobs)


def leave_cluster(settings: Settings, info: ServiceInfo) -> None:
    """Takes our applications and our monitor off somebody else's cluster."""
    import ray
    from ray import serve

    with connected(settings, info):
        ours = [name for name in serve.status().applications if _is_ours(name)]
        for name in ours:
            serve.delete(name)
        _stop_jobs()
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(ACTOR_NAME, NAMESPACE))
