"""The running service: start, promote, status, stop; what the command line calls.

    start ─> (a keeper process that holds a local Ray) ─> release app ─> router app ─> service.json

Everything is deployed declaratively, as `serve deploy serve_app/serve.yaml` does, because Serve
then knows that a change of `user_config` alone needs no new replica. `<home>/service.json` says
where the service is.

A local Ray dies with the driver that started it, so a detached service has a keeper: this module,
run with `python -m serve_app.service <home>`. Ray's own `ray stop` would take every cluster of the
machine down and can leave HAProxy behind; the keeper shuts down in order, and whatever is left is
found by the one thing that every process of this cluster and no other inherits: the folder that
HAProxy's files are in.
"""

import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.connect import connect
from cluster.errors import FirstlineError, ServiceError
from cluster.files import read_json, write_json
from cluster.releases import load_release
from cluster.settings import Settings, load_settings
from serve_app.app import ROUTER, ROUTER_APP, ServeConfig, release_app

log = logging.getLogger(__name__)

STATE: Final = "service.json"
TOKEN: Final = "ray.token"  # noqa: S105 - a file name
LOG: Final = "service.log"
WAIT_S: Final = 180.0
_AUTH_MODE: Final = "RAY_AUTH_MODE"
_AUTH_PATH: Final = "RAY_AUTH_TOKEN_PATH"
_POLL_S: Final = 0.2
_STOP_WAIT_S: Final = 60.0
_HTTP_WAIT_S: Final = 10.0
_MARKER: Final = "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"
_RELEASE_BUILDER: Final = "serve_app.app:build_release"
_ROUTER_BUILDER: Final = "serve_app.app:build_router"
_FAILED: Final = frozenset({"DEPLOY_FAILED", "UNHEALTHY"})
# An ingress replica drains this long before it stops, so that load balancers on other machines
# hear of it. Here the only one is the HAProxy beside it, which hears within 0.1 s.
_DRAIN_S: Final = "2"


class ServiceInfo(BaseModel):
    """Where a service is: the content of service.json.

    `keeper_pid` is None where the cluster is somebody else's; `keeper_started` is the kernel's
    start time of that process, so that a reused pid is not taken for it. `token_path` is where
    the cluster's Ray token lies, never the token.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    port: int
    ray_address: str
    release: str
    previous: str | None = None
    keeper_pid: int | None = None
    keeper_started: int | None = None
    haproxy_dir: Path | None = None
    token_path: Path | None = None
    config: ServeConfig
    started_at: str

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.host in {"0.0.0.0", "::"} else self.host  # noqa: S104
        return f"http://{host}:{self.port}"


class ServiceStatus(BaseModel):
    """What `firstline status` shows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    running: bool
    ready: bool
    info: ServiceInfo | None
    applications: dict[str, str]
    replicas: dict[str, dict[str, int]]
    problems: list[str]


# ---- the doors ----------------------------------------------------------------------------------


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
    return _spawn_keeper(settings, release_id, config, wait_s)


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
    stopped = threading.Event()
    # In this order: ray.init sets a SIGTERM handler of its own, which ends the process.
    with _serving(settings, release_id, config, wait_s) as info, _signals(stopped):
        on_ready(info)
        stopped.wait()


def promote(settings: Settings, release_id: str, wait_s: float = WAIT_S) -> ServiceInfo:
    """Moves a running service to another release without a refused request; also rolls back.

    The release's application comes up beside the current one; then the router is pointed at it by
    one update; the application before stays, for an instant way back, and older ones go.

    Raises:
        ReleaseError: the release cannot be served.
        ServiceError: no service is running, or the release does not come up; then nothing moved.
    """
    load_release(settings, release_id)
    info = _running(settings)
    with _connected(settings, info):
        if info.release == release_id:
            return info
        wanted = [info.release, release_id]
        if info.previous and info.previous not in wanted:
            wanted.append(info.previous)
        _deploy(settings, info.config, wanted, routed=info.release)
        try:
            _wait_running(release_app(release_id), wait_s)
        except ServiceError:
            kept = [name for name in wanted if name != release_id]
            _deploy(settings, info.config, kept, routed=info.release)
            raise
        _deploy(settings, info.config, wanted, routed=release_id)
        _wait_routed(info, release_id, wait_s)
        _deploy(settings, info.config, wanted[:2], routed=release_id)
    moved = info.model_copy(update={"release": release_id, "previous": info.release})
    _write(settings, moved)
    return moved


def status(settings: Settings) -> ServiceStatus:
    """What runs; never raises for a service that is down."""
    info = _read(settings)
    if info is None:
        return _down(None)
    if not _is_alive(info):
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
    with _connected(settings, info):
        from ray import serve

        applications = serve.status().applications
        missing = _not_ready(info)
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


def stop(settings: Settings, wait_s: float = _STOP_WAIT_S) -> bool:
    """Stops the service and every process that belongs to it; False if there was none.

    Raises:
        ServiceError: something of it is still alive afterwards.
    """
    info = _read(settings)
    if info is None:
        return False
    if info.keeper_pid is None:
        with contextlib.suppress(ServiceError):  # the cluster is gone, and all on it
            _leave_cluster(settings, info)
    else:
        _stop_keeper(info, wait_s)
    _forget(settings, info)
    if info.keeper_pid is not None and _is_taken(info.host, info.port):
        raise ServiceError(
            f"The service was stopped, but port {info.port} on {info.host} is still held by "
            "another process. Find it with: ss -ltnp"
        )
    return True


# ---- starting -----------------------------------------------------------------------------------


def _cluster_address(settings: Settings) -> str:
    return settings.ray_address or os.environ.get("RAY_ADDRESS", "")


def _check_startable(settings: Settings, release_id: str, config: ServeConfig) -> None:
    """Everything that can be wrong before anything is started."""
    load_release(settings, release_id)
    info = _read(settings)
    if info is not None and _is_alive(info):
        raise ServiceError(
            f"Release {info.release} is already served at {info.url} from {settings.home}. Move "
            "it with `firstline releases promote`, or end it with `firstline stop`."
        )
    if info is not None:
        _forget(settings, info)
    if not _cluster_address(settings) and _is_taken(config.host, config.port):
        raise ServiceError(
            f"Port {config.port} on {config.host} is taken by another process. Choose another one "
            "with --port, or find who has it with: ss -ltnp"
        )


def _is_taken(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def _spawn_keeper(
    settings: Settings, release_id: str, config: ServeConfig, wait_s: float
) -> ServiceInfo:
    order = {"release": release_id, "config": config.model_dump(mode="json"), "wait_s": wait_s}
    log_path = settings.home / LOG
    with log_path.open("wb") as output:
        keeper = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "serve_app.service", str(settings.home)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=Path(__file__).resolve().parent.parent,
        )
    assert keeper.stdin is not None
    keeper.stdin.write(json.dumps(order).encode())
    keeper.stdin.close()
    try:
        return _await_keeper(settings, keeper, log_path, wait_s)
    except BaseException:
        if keeper.poll() is None:
            keeper.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                keeper.wait(_STOP_WAIT_S)
        raise


def _await_keeper(
    settings: Settings, keeper: "subprocess.Popen[bytes]", log_path: Path, wait_s: float
) -> ServiceInfo:
    deadline = time.monotonic() + wait_s + _STOP_WAIT_S
    while time.monotonic() < deadline:
        if keeper.poll() is not None:
            lines = log_path.read_text(errors="replace").strip().splitlines()
            raise ServiceError(lines[-1] if lines else f"The keeper ended; see {log_path}.")
        info = _read(settings)
        if info is not None and info.keeper_pid == keeper.pid:
            return info
        time.sleep(_POLL_S)
    raise ServiceError(f"The service did not come up in {wait_s:g} s; see {log_path}.")


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
    os.environ.update(_serve_environment(haproxy_dir))
    token_path = _make_token(settings)
    try:
        _use_token(token_path)
        connect(settings, num_cpus=max(os.cpu_count() or 1, config.cpus_for_promotion))
        yield _deploy_first(settings, release_id, config, haproxy_dir, wait_s)
    finally:
        _shut_down()
        _sweep(haproxy_dir)
        (settings.home / STATE).unlink(missing_ok=True)
        if token_path is not None:
            token_path.unlink(missing_ok=True)


def _make_token(settings: Settings) -> Path | None:
    """A new Ray token for this cluster alone, mode 0600; None where the user set RAY_AUTH_MODE.

    Ray 2.60 asks for a token on every cluster that `ray.init` starts, by default one in
    ~/.ray/auth_token, which all clusters of the user share. With one of its own, this cluster's
    token opens no other, and the commands that join it need nothing from outside `home`.
    """
    if _AUTH_MODE in os.environ:
        return None
    path = settings.home / TOKEN
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    return path


def _use_token(path: Path | None) -> None:
    """Lets this process, and those that it starts, speak with the cluster of that token."""
    if path is None:
        return
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    os.environ[_AUTH_MODE] = "token"
    os.environ[_AUTH_PATH] = str(path)
    # Both are cached when Ray is imported; ray.init refreshes them this way too.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _serve_environment(haproxy_dir: Path) -> dict[str, str]:
    """HAProxy's files and side ports, apart from those of any other cluster on the machine."""
    stats, metrics = _free_ports(2)
    return {
        _MARKER: str(haproxy_dir / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy_dir / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy_dir),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy_dir / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy_dir / "metrics.sock"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": _DRAIN_S,
    }


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


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
        keeper_pid=os.getpid() if haproxy_dir else None,
        keeper_started=_started(os.getpid()) if haproxy_dir else None,
        haproxy_dir=haproxy_dir,
        token_path=_token_in_use(settings) if haproxy_dir else None,
        config=config,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    try:
        _deploy(settings, config, [release_id], routed=None)
        _wait_running(release_app(release_id), wait_s)
        _deploy(settings, config, [release_id], routed=release_id)
        _wait_running(ROUTER_APP, wait_s)
        _wait_routed(info, release_id, wait_s)
        _write(settings, info)
    except BaseException:
        if haproxy_dir is None:  # a cluster of our own goes down as a whole
            _leave_cluster(settings, info)
        raise
    return info


def _token_in_use(settings: Settings) -> Path | None:
    path = settings.home / TOKEN
    return path if os.environ.get(_AUTH_PATH) == str(path) else None


def _join_address(gcs_address: str, local: bool) -> str:
    """How another process on this machine joins; by loopback if the cluster is its own."""
    return f"127.0.0.1:{gcs_address.rsplit(':', 1)[1]}" if local else gcs_address


# ---- the declarative config ---------------------------------------------------------------------


def applications(
    config: ServeConfig, home: Path, releases: Sequence[str], routed: str | None
) -> list[dict[str, Any]]:
    """The `applications` of a Serve config file: the releases, and the router pointed at one."""
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
            "deployments": [{"name": ROUTER, "user_config": {"releases": {routed: 1.0}}}],
        }
        made.append(router)
    return made


def _deploy(
    settings: Settings, config: ServeConfig, releases: Sequence[str], routed: str | None
) -> None:
    """Makes the cluster run these applications, and none of ours besides.

    The list is the whole of what was deployed by config, so what others deployed this way is kept.
    """
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    # What `serve deploy` reaches through the dashboard, which a local service does not run.
    client = _get_global_client()
    assert client is not None
    theirs = [
        app.model_dump(exclude_unset=True)
        for name, app in _get(client._controller.get_app_configs.remote()).items()
        if name != ROUTER_APP and app.import_path != _RELEASE_BUILDER
    ]
    ours = applications(config, settings.home, releases, routed)
    schema = ServeDeploySchema.model_validate(
        {
            "proxy_location": "HeadOnly",
            "http_options": {"host": config.host, "port": config.port},
            "applications": [*theirs, *ours],
        }
    )
    client.deploy_apps(schema)


def _get(reference: Any) -> Any:
    import ray

    return ray.get(reference)


def _wait_running(name: str, wait_s: float) -> None:
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


def _wait_routed(info: ServiceInfo, release_id: str, wait_s: float) -> None:
    """Until the endpoint says ready and names the release.

    Over new connections, so that each look may reach another router; as many looks in a row as
    there are routers, and one more.
    """
    deadline = time.monotonic() + wait_s
    seen = 0
    while time.monotonic() < deadline:
        seen = seen + 1 if _routes(info, release_id) else 0
        if seen > info.config.routers:
            return
        time.sleep(_POLL_S / 4)
    raise ServiceError(
        f"{info.url} does not answer with release {release_id} after {wait_s:g} s. "
        "`firstline status` shows what runs."
    )


def _get_http(info: ServiceInfo, path: str) -> httpx.Response:
    # Not through the user's proxy: the service is on this machine.
    return httpx.get(f"{info.url}{path}", timeout=_HTTP_WAIT_S, trust_env=False)


def _routes(info: ServiceInfo, release_id: str) -> bool:
    try:
        if _get_http(info, "/readyz").status_code != httpx.codes.OK:
            return False
        found = _get_http(info, "/v1/release")
        return bool(found.is_success and found.json()["id"] == release_id)
    except (httpx.HTTPError, ValueError, KeyError):
        return False


def _not_ready(info: ServiceInfo) -> list[str]:
    try:
        answer = _get_http(info, "/readyz")
        if answer.is_success:
            return []
        return [str(detail["problem"]) for detail in answer.json()["error"]["details"]]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        return [f"{info.url}/readyz does not answer ({type(error).__name__})"]


# ---- joining and leaving ------------------------------------------------------------------------


@contextlib.contextmanager
def _connected(settings: Settings, info: ServiceInfo) -> Iterator[None]:
    """A driver in the service's cluster, for as long as the block takes."""
    import ray

    if ray.is_initialized():
        yield
        return
    kept = {name: os.environ.get(name) for name in (_AUTH_MODE, _AUTH_PATH)}
    _use_token(info.token_path)
    try:
        connect(settings.model_copy(update={"ray_address": info.ray_address}))
        yield
    finally:
        ray.shutdown()
        for name, value in kept.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _shut_down() -> None:
    """Serve first, so that HAProxy ends with its manager; then Ray."""
    import ray
    from ray import serve

    if not ray.is_initialized():
        return
    with contextlib.suppress(Exception):
        serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


def _leave_cluster(settings: Settings, info: ServiceInfo) -> None:
    """Takes our applications and our monitor off somebody else's cluster."""
    import ray
    from ray import serve

    from serve_app.monitor import ACTOR_NAME, NAMESPACE

    with _connected(settings, info):
        ours = [
            name
            for name in serve.status().applications
            if name == ROUTER_APP or name.startswith(release_app(""))
        ]
        for name in ours:
            serve.delete(name)
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(ACTOR_NAME, NAMESPACE))


# ---- processes ----------------------------------------------------------------------------------


def _running(settings: Settings) -> ServiceInfo:
    info = _read(settings)
    if info is None or not _is_alive(info):
        raise ServiceError(
            f"No service is running from {settings.home}. Start one with `firstline serve`."
        )
    return info


def _is_alive(info: ServiceInfo) -> bool:
    """Of somebody else's cluster we only know what was written."""
    return info.keeper_pid is None or _started(info.keeper_pid) == info.keeper_started


def _started(pid: int) -> int | None:
    """The start time of a process in clock ticks since boot (proc(5), field 22); None if gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def _stop_keeper(info: ServiceInfo, wait_s: float) -> None:
    pid = info.keeper_pid
    assert pid is not None
    for step in (signal.SIGTERM, signal.SIGKILL):
        if not _is_alive(info):
            return
        os.kill(pid, step)
        deadline = time.monotonic() + wait_s
        while _is_alive(info) and time.monotonic() < deadline:
            time.sleep(_POLL_S)


def _sweep(haproxy_dir: Path | None) -> None:
    """Ends what is left of our cluster, and nothing else; then removes HAProxy's folder."""
    if haproxy_dir is None:
        return
    for step, wait_s in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0)):
        deadline = time.monotonic() + wait_s
        for pid in _marked(haproxy_dir):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, step)
        while _marked(haproxy_dir) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
    shutil.rmtree(haproxy_dir, ignore_errors=True)


def _forget(settings: Settings, info: ServiceInfo) -> None:
    """Removes every trace of a service whose keeper is gone."""
    _sweep(info.haproxy_dir)
    if info.token_path is not None:
        info.token_path.unlink(missing_ok=True)
    (settings.home / STATE).unlink(missing_ok=True)


def _marked(haproxy_dir: Path) -> list[int]:
    """Processes, but this one, that inherited our HAProxy folder in their environment."""
    marker = f"{_MARKER}={haproxy_dir}/".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if marker in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


def _read(settings: Settings) -> ServiceInfo | None:
    path = settings.home / STATE
    try:
        return ServiceInfo.model_validate(read_json(path))
    except FileNotFoundError:
        return None
    except (ValidationError, ValueError) as error:
        raise ServiceError(
            f"{path} is not a service file that this version reads: {error}. If no service is "
            "running, delete it."
        ) from None


def _write(settings: Settings, info: ServiceInfo) -> None:
    write_json(settings.home / STATE, info.model_dump(mode="json"))


@contextlib.contextmanager
def _signals(stopped: threading.Event) -> Iterator[None]:
    """SIGINT and SIGTERM set the event."""

    def handle(number: int, frame: Any) -> None:
        stopped.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
