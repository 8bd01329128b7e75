"""RAY_* variables of every process that speaks with Ray: what they are for, and what would replace
them.

Ray reads most of them once, when it is imported or when a process of the cluster starts. A value in
the user's environment holds, but for those of `tuning`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# Names the cluster to join. Documented; public: ray.init(address=...), which is what it becomes.
ADDRESS: Final = "RAY_ADDRESS"
# Documented, and told to the cluster's processes in no other way; public: none. Together they gave
# 609 requests/s against 218 of the default proxy, at 32 connections.
SERVE_ENV: Final = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
}
# What the command line prints is its own. Public: none for any of them.
QUIET: Final = {
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",  # of options of Train that are not used here
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own table of trials; cluster/progress.py shows one line
    "RAY_COLOR_PREFIX": "0",  # escape codes before each line of a worker, in pipes and logs too
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to anybody
}
# How often Ray Train asks its workers whether they have ended; by default every 2 s, and a stage
# asks twice more than it has to: 11.4 -> 7.5 s of a stage that does nothing. Documented; public:
# none.
TRAIN_POLL: Final = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25"}
# How long joining may take, in seconds, at one attempt a second. Public: none; ray.init has no
# timeout.
_JOIN_WAIT: Final = "RAY_gcs_server_port_wait_time_s"
# Ray sets it in the driver of a submitted job. Public: none; ray.get_runtime_context() knows of the
# job only once ray.init was called, which this is asked for.
_JOB: Final = "RAY_JOB_CONFIG_JSON_ENV_VAR"
# The loggers of trials, by name. Public: RunConfig(callbacks=...), which is pickled with the run,
# and makes Tune import all of MLflow to count its loggers: 3 s.
_TUNE_CALLBACKS: Final = "RAY_TUNE_CALLBACKS"
# Tune's state, as JSON; a sweep goes on from it.
_TUNE_LOGGER: Final = "ray.tune.logger.JsonLoggerCallback"
# Documented; public: none. Nobody reads CSV or TensorBoard logs of every trial.
_NO_TUNE_LOGGERS: Final = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
# Documented: how often Tune's state is written. Public: RunConfig's SyncConfig has no such field.
_TUNE_CHECKPOINT_S: Final = "TUNE_GLOBAL_CHECKPOINT_S"


def cluster_address(named: str) -> str:
    """The cluster to join: `named`, or what RAY_ADDRESS says; empty for a Ray of our own."""
    return named or os.environ.get(ADDRESS, "")


def is_submitted_job() -> bool:
    """This process is the driver of a job that was submitted to the cluster it runs on."""
    return _JOB in os.environ


@contextmanager
def kept(*names: str) -> Iterator[None]:
    """These variables are afterwards what they were before."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def one_attempt() -> Iterator[None]:
    """One attempt to reach a cluster instead of twenty, each of which may take half a minute.

    Only for joining: for a cluster that is started here it would be the time that it may take.
    """
    with kept(_JOIN_WAIT):
        os.environ.setdefault(_JOIN_WAIT, "1")
        yield


@contextmanager
def tuning(*callbacks: str, checkpoint_s: float | None = None) -> Iterator[None]:
    """Ray Tune writes its state, and no other log.

    Args:
        callbacks: classes that Tune makes, as `package.module.Class`, and tells of each trial.
        checkpoint_s: how often the state is written; None for Tune's own choice.
    """
    values = {_TUNE_CALLBACKS: ",".join([*callbacks, _TUNE_LOGGER]), **_NO_TUNE_LOGGERS}
    if checkpoint_s is not None:
        values[_TUNE_CHECKPOINT_S] = str(checkpoint_s)
    with kept(*values):
        os.environ.update(values)
        yield
