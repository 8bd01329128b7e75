"""RAY_* variables of a cluster that serves: HAProxy's files and ports, and what a request costs.

Ray Serve has no argument for any of them: it reads them in each process of the cluster that it
starts. So they are set before ray.init, and every process of the cluster carries them, by which
those of one service are found again (`mark_of`).
"""

import os
import shlex
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from cluster.ray_private import haproxy

_CONFIG_FILE: Final = "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"
# What a value of the user's replaces. Documented, all four; public: none.
_DEFAULTS: Final = {
    # Ray's own figures take a twentieth of a request; ours are /metrics.
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    # What `ray list tasks` shows. Jobs and actors are listed as ever.
    "RAY_task_events_report_interval_ms": "0",
    # Ray makes its workers stand back by 15 for all else on the machine. Whoever waits for an
    # answer comes first: before a client that floods it, and before a training run.
    "RAY_worker_niceness": "0",
}
# An ingress replica drains this long before it stops, so that load balancers on other machines
# hear of it. Here the only one is the HAProxy beside it, which hears within half a second.
_DRAIN_S: Final = "2"


def serve_environment(haproxy_dir: Path) -> Mapping[str, str]:
    """HAProxy's files and side ports, apart from those of any other cluster on the machine.

    Writes the program that Ray starts as HAProxy.
    """
    stats, metrics, http, grpc = _free_ports(4)
    return {
        # Public for all of HAProxy's: none; http_options has host and port, and no more.
        _CONFIG_FILE: str(haproxy_dir / "haproxy.cfg"),
        haproxy.PROGRAM: str(_program(haproxy_dir)),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy_dir / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy_dir),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy_dir / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy_dir / "metrics.sock"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        # HAProxy sends here what no router of ours takes. By default it is one port for all
        # clusters of a machine, so that another service answered, and audited it in its own log.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(http),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(grpc),
        # A router that dies under a request says nothing, and HAProxy would cut its client off.
        # Another router is asked instead, since whatever may be asked of us twice does no harm; but
        # for a job, see haproxy.py.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        # Public: a deployment's graceful_shutdown_timeout_s bounds the drain from above only.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": _DRAIN_S,
        # Per request, a line from HAProxy to a Python process that counts it; ours are /metrics.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        # A request takes it 0.05 to 0.08 ms, and a second thread makes each dearer by a fifth.
        "RAY_SERVE_HAPROXY_NBTHREAD": str(max(1, min(4, (os.cpu_count() or 1) // 4))),
        # Three missed checks and a new manager: how long a stand-in has to stand in
        # (haproxy_failover.py). Public: none; health_check_period_s is that of replicas.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        "RAY_SERVE_PROXY_GRACEFUL_SHUTDOWN_TIMEOUT_S": "1",
        # Each turn of Serve's controller, ten a second by default, takes 4 to 5 ms of CPU. Public:
        # none.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",
        **{name: os.environ.get(name, value) for name, value in _DEFAULTS.items()},
    }


def mark_of(haproxy_dir: Path) -> bytes:
    """What the environment of every process of that cluster has in it, and of no other.

    Public: none. `ray stop` ends every cluster of the machine.
    """
    return f"{_CONFIG_FILE}={haproxy_dir}/".encode()


def _program(haproxy_dir: Path) -> Path:
    """What Ray starts as HAProxy: haproxy.py."""
    program = haproxy_dir / "haproxy"
    words = shlex.join([sys.executable, "-P", haproxy.__file__])
    program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    program.chmod(0o700)
    return program


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
