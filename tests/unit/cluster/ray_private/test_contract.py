"""What we use of private Ray is what the pinned Ray has: a new version fails here, by name, and not
in service, where a variable that Ray no longer reads is simply not read.

That it does what it is there for, the tests of the service in tests/integration show.
"""

import importlib
import inspect
import json
import mmap
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import ray

from cluster.ray_private import auth, environment, haproxy
from cluster.ray_private.serve_environment import serve_environment
from serve_app.deploy.router import Router
from serve_app.tiers.replica import Tier

RAY: Final = Path(ray.__file__).parent
NATIVE: Final = "_raylet.so"  # holds the names of the variables that Ray's C++ reads
IN_FILE: Final = {
    environment.ADDRESS: "_private/ray_constants.py",
    environment._JOIN_WAIT: "_private/node.py",
    environment._JOB: "_private/worker.py",
    environment._TUNE_CALLBACKS: "tune/constants.py",
    environment._TUNE_CHECKPOINT_S: "tune/execution/tune_controller.py",
    **dict.fromkeys(environment._NO_TUNE_LOGGERS, "tune/utils/callback.py"),
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "train/constants.py",
    **dict.fromkeys(environment.TRAIN_POLL, "train/v2/_internal/constants.py"),
    "RAY_AIR_NEW_OUTPUT": "tune/experimental/output.py",
    "RAY_COLOR_PREFIX": "_private/worker.py",
    "RAY_USAGE_STATS_ENABLED": "_common/usage/usage_constants.py",
    auth.MODE: NATIVE,
    auth.PATH: NATIVE,
    "RAY_enable_metrics_collection": NATIVE,
    "RAY_event_stats": NATIVE,
    "RAY_task_events_report_interval_ms": NATIVE,
    "RAY_worker_niceness": NATIVE,
}
# What Serve calls a constant that is not named as its variable.
CONSTANTS: Final = {
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "PROXY_HEALTH_CHECK_PERIOD_S",
    "RAY_SERVE_PROXY_GRACEFUL_SHUTDOWN_TIMEOUT_S": "PROXY_GRACEFUL_SHUTDOWN_TIMEOUT_S",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "CONTROL_LOOP_INTERVAL_S",
}


def gone(user: str, what: str, why: str = "") -> str:
    return f"{user} uses {what}, and Ray {ray.__version__} has it otherwise. {why}".strip()


def set_by_us(folder: Path) -> dict[str, str]:
    return {**environment.QUIET, **environment.SERVE_ENV, **serve_environment(folder)}


# ---- variables ----------------------------------------------------------------------------------


def holds(file: Path, word: str) -> bool:
    with (
        file.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return re.search(rf"{word}\b".encode(), content) is not None


@pytest.mark.parametrize("name", IN_FILE)
def test_ray_reads_the_variable(name: str) -> None:
    file = RAY / IN_FILE[name]
    assert file.is_file(), gone("cluster/ray_private", name, f"There is no {file}.")
    assert holds(file, name), gone("cluster/ray_private", name, f"It is not in {file}.")


def test_serve_takes_the_values_that_are_set(tmp_path: Path) -> None:
    """In a new process, since Serve reads them once."""
    values = {name: value for name, value in set_by_us(tmp_path).items() if name not in IN_FILE}
    names = {name: CONSTANTS.get(name, name) for name in values}
    program = (
        "import json; from ray.serve._private import constants as c;"
        f"print(json.dumps({{k: getattr(c, v, None) for k, v in {names!r}.items()}}))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **values}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    read = json.loads(ran.stdout.splitlines()[-1])
    for name, value in values.items():
        user = "cluster/ray_private/serve_environment.py"
        assert same(read[name], value), gone(user, f"{name}={value}", f"It reads {read[name]!r}.")


def same(read: Any, value: str) -> bool:
    """A constant's value is that of its variable, as text."""
    if isinstance(read, bool):
        return read == (value == "1")
    return float(read) == float(value) if isinstance(read, int | float) else read == value


def test_every_variable_that_is_set_is_looked_for(tmp_path: Path) -> None:
    known = {*IN_FILE, *CONSTANTS, *vars(found(CONSTANT))}
    assert set(set_by_us(tmp_path)) - known == set()


# ---- what is called and read --------------------------------------------------------------------


def found(name: str) -> Any:
    """`module:attribute.attribute` of Ray; None if it is not there."""
    module, _, attributes = name.partition(":")
    try:
        value: Any = importlib.import_module(module)
        for attribute in filter(None, attributes.split(".")):
            value = getattr(value, attribute)
    except (ImportError, AttributeError):
        return None
    return value


def source_of(name: str) -> str:
    value = found(name)
    return "" if value is None else inspect.getsource(value)


CLIENT: Final = "cluster/ray_private/serve_client.py"
AUTH: Final = "cluster/ray_private/auth.py"
HAPROXY: Final = "cluster/ray_private/haproxy.py"
FAILOVER: Final = "cluster/ray_private/haproxy_failover.py"
ROUTING: Final = "serve_app/tiers/least_outstanding.py"
CONSTANT: Final = "ray.serve._private.constants"
ROUTER: Final = "ray.serve.request_router:RequestRouter"
REPLICA: Final = "ray.serve.request_router:RunningReplica"

# What of Ray is alpha, or for developers, is among them: it stands where it is used.
SIGNATURES: Final = {
    "ray.serve.context:_get_global_client": (CLIENT, ["raise_if_no_controller_running"]),
    "ray.serve.context:_set_global_client": (CLIENT, ["client"]),
    "ray.serve._private.client:ServeControllerClient.deploy_apps": (
        CLIENT,
        ["self", "config", "_blocking"],
    ),
    "ray.serve._private.controller:ServeController.get_app_configs": (CLIENT, ["self"]),
    "ray.serve:get_deployment_handle": (
        CLIENT,
        ["deployment_name", "app_name", "_check_exists", "_record_telemetry"],
    ),
    f"{ROUTER}.initialize_state": (ROUTING, ["self", "kwargs"]),
    f"{ROUTER}.update_replicas": (ROUTING, ["self", "replicas"]),
    f"{ROUTER}.choose_replicas": (ROUTING, ["self", "candidate_replicas", "pending_request"]),
    f"{ROUTER}.on_new_queue_len_info": (ROUTING, ["self", "replica_id", "num_ongoing_requests"]),
    "ray.train:UserCallback.after_exception": (
        "train_jobs/training/checkpoints.py",
        ["self", "run_context", "worker_exceptions"],
    ),
    "ray.tune.experiment:Trial.is_finished": ("tune/sweep/search.py", ["self"]),
}
ATTRIBUTES: Final = {
    "ray.tune.logger:JsonLoggerCallback": "cluster/ray_private/environment.py",
    f"{ROUTER}.curr_replicas": ROUTING,
    f"{ROUTER}.replica_queue_len_cache": ROUTING,
    f"{REPLICA}.node_id": ROUTING,
    f"{REPLICA}.replica_metadata": ROUTING,
    f"{REPLICA}.max_ongoing_requests": ROUTING,
    "ray.data:DataContext.enable_progress_bars": "train_jobs/scoring/on_ray.py",
    "ray.data:DataContext.print_on_execution_start": "train_jobs/scoring/on_ray.py",
    "ray.data:DataContext.raise_original_map_exception": "train_jobs/scoring/on_ray.py",
}
# A constant of Serve, whose it is, and what we took it to be.
NAMES: Final = {
    f"{CONSTANT}:RECORD_REPLICA_METADATA_METHOD": (
        "serve_app/tiers/replica.py",
        Tier.record_replica_metadata.__name__,
    ),
    "ray.serve._private.replica:SERVE_BUILD_ASGI_APP_METHOD": (
        "serve_app/deploy/router.py",
        Router.__serve_build_asgi_app__.__name__,
    ),
    f"{CONSTANT}:SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER": (HAPROXY, haproxy._UNWATCHED),
    f"{CONSTANT}:SERVE_HTTP_REQUEST_ID_HEADER": (HAPROXY, haproxy._ID),
}
# Lines that tell of an attribute, or of the place of a file, which nothing else does.
LINES: Final = {
    "self._controller: Any = controller": (CLIENT, "ray.serve._private.client"),
    "os.path.join(d, self._node_id, f)": (FAILOVER, "ray.serve._private.haproxy"),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_what_is_called_takes_what_it_is_given(name: str) -> None:
    user, expected = SIGNATURES[name]
    function = found(name)
    assert function is not None, gone(user, name)
    assert list(inspect.signature(function).parameters) == expected, gone(user, name)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_what_is_read_is_there(name: str) -> None:
    assert found(name) is not None, gone(ATTRIBUTES[name], name)


@pytest.mark.parametrize("name", NAMES)
def test_serve_calls_it_by_the_name_that_it_has_here(name: str) -> None:
    user, ours = NAMES[name]
    assert found(name) == ours, gone(user, ours, f"{name} is {found(name)!r}.")


@pytest.mark.parametrize("line", LINES)
def test_serve_is_written_as_it_was(line: str) -> None:
    user, module = LINES[line]
    assert line in source_of(f"{module}:"), gone(user, f"{line!r} of {module}")


def test_auth_changes_the_token_of_a_process_that_has_imported_ray(tmp_path: Path) -> None:
    """In a new process, since tokens are the whole process's."""
    program = """
import sys
from pathlib import Path
import ray
from ray._raylet import AuthenticationTokenLoader
from cluster.ray_private.auth import use_token
for path in sys.argv[1:]:
    use_token(Path(path))
    print(AuthenticationTokenLoader.instance().get_raw_token())
"""
    tokens = ["a" * 64, "b" * 64]
    for token in tokens:
        (tmp_path / token[0]).write_text(token)
    ran = subprocess.run(
        [sys.executable, "-c", program, *(str(tmp_path / token[0]) for token in tokens)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.stdout.split() == tokens, gone(
        AUTH, "Config.initialize and AuthenticationTokenLoader", ran.stderr
    )


# ---- HAProxy ------------------------------------------------------------------------------------

# Of Ray's template, what haproxy.py and haproxy_failover.py look for, as they look for it.
TEMPLATE: Final = (
    "stats socket {{ config.socket_path }} ",
    "\ndefaults\n",
    "    errorfile 503 {{",
    "\nfrontend http_frontend\n    bind {{ config.frontend_host }}:{{ config.frontend_port }}\n",
    "    bind :{{ config.metrics_port }}\n",
    "    use_backend {{ ",
)


@pytest.mark.parametrize("line", TEMPLATE)
def test_haproxy_changes_lines_that_are_in_rays_template(line: str) -> None:
    template = "ray.serve._private.haproxy_templates:HAPROXY_CONFIG_TEMPLATE"
    assert line in str(found(template)), gone(HAPROXY, f"the line {line.strip()!r} of {template}")
