"""What we use of private Ray is what the pinned Ray has: a new version fails here, by name, and not
in service, where a variable that Ray no longer reads is simply not read.

That it does what it is there for, the tests of the service in tests/integration show.
"""

import inspect
import json
import mmap
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import pytest
import ray
from ray.data import DataContext
from ray.serve import api, context
from ray.serve._private import constants, haproxy_templates
from ray.serve._private.client import ServeControllerClient
from ray.serve._private.controller import ServeController
from ray.serve.request_router import RequestRouter, RunningReplica
from ray.train import UserCallback
from ray.tune.experiment import Trial

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
    return {**environment.QUIET, **environment.SERVE_MODE, **serve_environment(folder)}


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
    known = {*IN_FILE, *vars(constants), *CONSTANTS}
    assert set(set_by_us(tmp_path)) - known == set()


def test_the_callback_that_writes_the_state_of_tune_is_there() -> None:
    from ray.tune.logger import JsonLoggerCallback

    made = f"ray.tune.logger.{JsonLoggerCallback.__name__}"
    assert made == environment._TUNE_LOGGER


# ---- functions and methods ----------------------------------------------------------------------


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


SIGNATURES: Final[dict[str, tuple[Callable[..., Any], list[str]]]] = {
    "ray.serve.context._get_global_client": (
        context._get_global_client,
        ["raise_if_no_controller_running"],
    ),
    "ray.serve.context._set_global_client": (context._set_global_client, ["client"]),
    "ServeControllerClient.deploy_apps": (
        ServeControllerClient.deploy_apps,
        ["self", "config", "_blocking"],
    ),
    "ServeController.get_app_configs": (ServeController.get_app_configs, ["self"]),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_serve_client_calls_what_is_there(name: str) -> None:
    function, expected = SIGNATURES[name]
    assert parameters(function) == expected, gone("cluster/ray_private/serve_client.py", name)


def test_serve_client_finds_the_controller_of_a_client() -> None:
    user = "cluster/ray_private/serve_client.py"
    assert "_controller" in inspect.getsource(ServeControllerClient.__init__), gone(
        user, "ServeControllerClient._controller"
    )
    assert "_check_exists" in parameters(api.get_deployment_handle), gone(
        user, "get_deployment_handle(_check_exists=False)"
    )


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
        "cluster/ray_private/auth.py", "Config.initialize and AuthenticationTokenLoader", ran.stderr
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
    assert line in haproxy_templates.HAPROXY_CONFIG_TEMPLATE, gone(
        "cluster/ray_private/haproxy.py", f"the line {line.strip()!r} of HAPROXY_CONFIG_TEMPLATE"
    )


def test_haproxy_names_headers_and_files_as_serve_does() -> None:
    user = "cluster/ray_private/haproxy.py"
    assert constants.SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER == haproxy._UNWATCHED, gone(
        user, haproxy._UNWATCHED
    )
    assert constants.SERVE_HTTP_REQUEST_ID_HEADER == haproxy._ID, gone(user, haproxy._ID)


def test_haproxy_failover_finds_a_nodes_files_as_serve_lays_them() -> None:
    from ray.serve._private import haproxy as rays

    laid = "os.path.join(d, self._node_id, f)"
    assert laid in inspect.getsource(rays), gone(
        "cluster/ray_private/haproxy_failover.py", "<folder>/<node>/admin.sock and haproxy.cfg"
    )


# ---- hooks, alpha and developer APIs, which stand where they are used ---------------------------


def _uses() -> Iterator[tuple[str, str, bool]]:
    """(file, what it uses, whether Ray has it)."""
    router = "serve_app/tiers/least_outstanding.py"
    for name in ("initialize_state", "update_replicas", "choose_replicas", "on_new_queue_len_info",
                 "curr_replicas", "replica_queue_len_cache"):  # fmt: skip
        yield router, f"RequestRouter.{name}", hasattr(RequestRouter, name)
    for name in ("node_id", "replica_id", "replica_metadata", "max_ongoing_requests"):
        yield router, f"RunningReplica.{name}", hasattr(RunningReplica, name)
    hook = constants.RECORD_REPLICA_METADATA_METHOD
    yield "serve_app/tiers/replica.py", "record_replica_metadata", hasattr(Tier, hook)
    hook = "__serve_build_asgi_app__"
    named = hook in inspect.getsource(api.ingress) and hasattr(Router, hook)
    yield "serve_app/deploy/router.py", hook, named
    knobs = {field.name for field in fields(DataContext)}
    for name in ("enable_progress_bars", "print_on_execution_start",
                 "raise_original_map_exception"):  # fmt: skip
        yield "train_jobs/scoring/on_ray.py", f"DataContext.{name}", name in knobs
    yield (
        "train_jobs/training/checkpoints.py",
        "UserCallback.after_exception",
        (parameters(UserCallback.after_exception) == ["self", "run_context", "worker_exceptions"]),
    )
    yield "tune/sweep/search.py", "Trial.is_finished", hasattr(Trial, "is_finished")


@pytest.mark.parametrize(("user", "what", "there"), _uses())
def test_what_ray_may_change_is_as_it_was(user: str, what: str, there: bool) -> None:
    assert there, gone(user, what)
