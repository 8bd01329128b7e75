"""What a stage did -> one MLflow run: parameters, metrics with their steps, files and pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cluster.settings import Settings

EXPERIMENT: Final = "firstline"
History = Sequence[Mapping[str, float]]


def client(settings: Settings) -> Any:
    """An MlflowClient on the server, or on the embedded SQLite file (made when first used)."""
    import logging

    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # after the import, which sets them to INFO
        logging.getLogger(name).setLevel(logging.WARNING)
    settings.home.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=settings.tracking_uri, registry_uri=settings.tracking_uri)


def experiment_id(settings: Settings, mlflow: Any) -> str:
    """The one experiment; the embedded store keeps its files under our home."""
    found = mlflow.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    embedded = settings.tracking_uri.startswith("sqlite:")
    location = (settings.home / "mlflow").as_uri() if embedded else None
    return str(mlflow.create_experiment(EXPERIMENT, artifact_location=location))


def log_stage(
    settings: Settings,
    stage: str,
    *,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    history: History = (),
    files: Sequence[Path] = (),
    tags: Mapping[str, str] | None = None,
) -> str:
    """Logs a finished stage and returns the run's id.

    Args:
        history: rows with a `step` and figures, as Hugging Face's `log_history` has them.
    """
    mlflow = client(settings)
    run = mlflow.create_run(
        experiment_id(settings, mlflow), run_name=stage, tags={"stage": stage, **(tags or {})}
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
