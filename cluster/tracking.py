"""What a stage did -> one MLflow run: parameters, metrics with their steps, files and pictures.

    client(settings) ─> the server, if it answers; or <home>/mlflow.db, at home where it lies now
    @answered         ─> whatever a store raises is one RegistryError, in words

What a stage made stands on the disk. So a run that cannot be logged is told, and costs nothing.
"""

import logging
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar
from urllib.parse import urlsplit

from cluster.errors import RegistryError
from cluster.settings import Settings

EXPERIMENT: Final = "firstline"
History = Sequence[Mapping[str, float]]

_KNOCK_S: Final = 3.0
_ENV: Final = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for what a program reads
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # MLflow would try for many minutes; that the server answers is seen first.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
}
# Whose errors say that a store failed.
_STORES: Final = ("mlflow", "sqlalchemy", "alembic", "sqlite3", "requests", "urllib3")
# Where the embedded store keeps the place of our files: table, column.
_PLACES: Final = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


# ---- the store ----------------------------------------------------------------------------------


def answered(
    function: Callable[Concatenate[Settings, P], R],
) -> Callable[Concatenate[Settings, P], R]:
    """What the registry's parts raise becomes a RegistryError; all else stays what it is."""

    @wraps(function)
    def wrapped(settings: Settings, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(settings, *args, **kwargs)
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in _STORES:
                raise
            raise _failed(settings, error) from error

    return wrapped


def _failed(settings: Settings, error: Exception) -> RegistryError:
    why = (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(". ")
    if _embedded(settings):
        advice = (
            "If another command has it open, wait for that. If it is damaged, restore it from a "
            "backup, or move it away: releases on this disk are served without it."
        )
    else:
        advice = "Check MLFLOW_TRACKING_URI, and that the server is up."
    return RegistryError(f"The registry {shown_uri(settings)} cannot be used: {why}. {advice}")


def shown_uri(settings: Settings) -> str:
    """The registry's address without the password that may be in it."""
    uri = settings.tracking_uri
    user, at, _ = urlsplit(uri).netloc.rpartition("@")
    return uri.replace(f"{user}{at}", "", 1) if at else uri


@answered
def client(settings: Settings) -> Any:
    """An MlflowClient on the server, or on the embedded SQLite file (made when first used).

    Raises:
        RegistryError: the server does not answer within 3 s, or the file cannot be used.
    """
    for name, value in _ENV.items():
        os.environ.setdefault(name, value)
    if settings.tracking_uri.startswith(("http://", "https://")):
        _knock(settings)
    elif _embedded(settings):
        settings.home.mkdir(parents=True, exist_ok=True)
        _bring_home(settings)

    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # after the import, which sets them to INFO
        logging.getLogger(name).setLevel(logging.WARNING)
    made = MlflowClient(tracking_uri=settings.tracking_uri, registry_uri=settings.tracking_uri)
    made.get_experiment_by_name(EXPERIMENT)  # a store that cannot be opened says so here
    return made


def check_store(settings: Settings) -> None:
    """Raises RegistryError if the store cannot be used; makes none where there is none yet."""
    if not _embedded(settings) or _database(settings).exists():
        client(settings)


def _knock(settings: Settings) -> None:
    """Any answer will do: what it says is for the client to hear, who also checks certificates."""
    import httpx

    try:
        httpx.get(shown_uri(settings), timeout=_KNOCK_S, verify=False)  # noqa: S501 - tells nothing
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RegistryError(
            f"The MLflow server {shown_uri(settings)} does not answer ({type(error).__name__}). "
            "Check MLFLOW_TRACKING_URI, and that the server is up."
        ) from None


def _embedded(settings: Settings) -> bool:
    return settings.tracking_uri == f"sqlite:///{_database(settings)}"


def _database(settings: Settings) -> Path:
    return settings.home / "mlflow.db"


def _artifacts(settings: Settings) -> str:
    return (settings.home / "mlflow").as_uri()


def _bring_home(settings: Settings) -> None:
    """A home that was moved or copied: its store must name the files that are here.

    MLflow keeps absolute places only, and has no way to be told of others.
    """
    path, now = _database(settings), _artifacts(settings)
    if not path.exists():
        return
    with closing(sqlite3.connect(path, timeout=_KNOCK_S)) as store, store:
        tables = {name for (name,) in store.execute("SELECT name FROM sqlite_master")}
        if not tables >= {table for table, _ in _PLACES}:
            return
        question = "SELECT artifact_location FROM experiments WHERE name = ?"
        found = store.execute(question, (EXPERIMENT,)).fetchone()
        if found is None or found[0] == now:
            return
        before = f"{found[0]}/"
        for table, column in _PLACES:
            store.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 - our names
                f"WHERE substr({column} || '/', 1, ?) = ?",
                (now, len(found[0]) + 1, len(before), before),
            )


def experiment_id(settings: Settings, mlflow: Any) -> str:
    """The one experiment; the embedded store keeps its files under our home."""
    found = mlflow.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    local = settings.tracking_uri.startswith("sqlite:")
    location = _artifacts(settings) if local else None
    return str(mlflow.create_experiment(EXPERIMENT, artifact_location=location))


# ---- runs ---------------------------------------------------------------------------------------


def log_stage(
    settings: Settings,
    stage: str,
    *,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    history: History = (),
    files: Sequence[Path] = (),
    tags: Mapping[str, str] | None = None,
) -> str | None:
    """Logs a finished stage and returns the run's id; None, and a warning, if it cannot.

    Args:
        history: rows with a `step` and figures, as Hugging Face's `log_history` has them.
    """
    try:
        return _log(settings, stage, params, metrics, history, files, tags or {})
    except (RegistryError, OSError) as error:
        log.warning("The stage %s was not logged; what it made is kept. %s", stage, error)
        return None


@answered
def _log(
    settings: Settings,
    stage: str,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    history: History,
    files: Sequence[Path],
    tags: Mapping[str, str],
) -> str:
    mlflow = client(settings)
    run = mlflow.create_run(
        experiment_id(settings, mlflow), run_name=stage, tags={"stage": stage, **tags}
    )
    run_id = str(run.info.run_id)
    for name, value in params.items():
        mlflow.log_param(run_id, name, str(value)[:500])
    for name, value in metrics.items():
        mlflow.log_metric(run_id, name, value)
    for row in history:
        for name, value in row.items():
            if name not in {"step", "epoch"} and isinstance(value, int | float):
                mlflow.log_metric(run_id, name, float(value), step=int(row.get("step", 0)))
    for file in files:
        mlflow.log_artifact(run_id, str(file))
    mlflow.set_terminated(run_id)
    return run_id
