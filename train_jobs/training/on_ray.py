"""A stage's loop on Ray Train workers: resources -> rank 0's folder, brought home."""

import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from cluster.errors import ConfigError, TrainingError
from cluster.files import new_folder, read_json
from cluster.progress import Report, relayed
from cluster.settings import Settings
from cluster.tracking import log_stage
from train_jobs.data import Dataset
from train_jobs.training.checkpoints import HISTORY, Retries, on_worker
from train_jobs.training.curves import draw_curves

# One heap for all threads of a worker (glibc): what one lets go is there for the others
# (docs/training.md).
WORKER_ENV: Final = {"MALLOC_ARENA_MAX": "1"}
Loop = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where a stage runs, and what it outlives. The same code on a CPU and on a GPU."""

    num_workers: int = 1
    use_gpu: bool | None = None  # None: if the cluster has one per worker
    cpus_per_worker: int | None = None  # None: an even share of the cluster
    max_failures: int = 2  # of workers; after each the stage goes on from its last checkpoint
    checkpoint_every_s: float = 60.0  # at the most; a fit of seconds should not spend them writing


@dataclass(frozen=True)
class Trained:
    """What a stage leaves: a folder with a model and tokenizer, its figures and its history."""

    path: Path
    figures: Mapping[str, float]
    history: Sequence[Mapping[str, float]]


def _resources(compute: Compute) -> tuple[bool, int]:
    import ray

    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpu = compute.use_gpu
    if gpu is None:
        gpu = have.get("GPU", 0) >= compute.num_workers
    nodes = [
        int(node["Resources"].get("CPU", 0))
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]
    return gpu, compute.cpus_per_worker or cpus_per_worker(compute.num_workers, nodes)


def fit_resources(compute: Compute) -> tuple[int, int]:
    """CPUs and GPUs of one worker."""
    gpu, cpus = _resources(compute)
    return cpus, int(gpu)


def cpus_per_worker(workers: int, nodes: Sequence[int]) -> int:
    """The most CPUs each of so many workers can have, none of them spread over two nodes.

    Raises:
        ConfigError: more workers than CPUs; Ray Train would wait for ever.
    """
    for share in range(max(nodes, default=0), 0, -1):
        if sum(cpus // share for cpus in nodes) >= workers:
            return share
    raise ConfigError(
        f"{workers} workers were asked for and the cluster has {sum(nodes)} CPUs; each worker "
        "needs one at least. Use fewer with --num-workers, or add nodes."
    )


def fit_on_ray(
    loop: Loop,
    stage: str,
    config: Any,
    dataset: Dataset,
    out: Path,
    *,
    settings: Settings,
    compute: Compute,
    report: Report,
    **inputs: Any,
) -> Trained:
    """Runs `loop` on Ray Train workers, brings rank 0's folder to `out`, and logs the stage.

    The loop finds its config under the stage's name, the dataset's path, `inputs`, and what the
    stage has done so far as its `stage`.

    Raises:
        ConfigError: more workers than CPUs.
        TrainingError: workers died too often, or the loop raised; nothing is left at `out`.
    """
    from ray.train import (
        CheckpointConfig,
        FailureConfig,
        RunConfig,
        ScalingConfig,
        TrainingFailedError,
    )
    from ray.train.torch import TorchTrainer

    gpu, cpus = _resources(compute)
    name = f"{stage}-{uuid.uuid4().hex[:8]}"  # Train resumes a run of the same name
    storage = settings.home / "ray"
    with relayed(report) as board, _scratch(storage / name):
        trainer = TorchTrainer(
            on_worker,
            train_loop_config={
                "loop": loop,
                stage: config,
                "dataset": str(dataset.path),
                **inputs,
                "board": board,
                "seed": settings.seed,
                "workers": compute.num_workers,
                "checkpoint_every_s": compute.checkpoint_every_s,
            },
            scaling_config=ScalingConfig(
                num_workers=compute.num_workers,
                use_gpu=gpu,
                resources_per_worker={"CPU": cpus, **({"GPU": 1} if gpu else {})},
            ),
            run_config=RunConfig(  # type: ignore[call-arg]  # typed as V1's
                name=name,
                storage_path=str(storage),
                failure_config=FailureConfig(max_failures=compute.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                callbacks=[Retries()],  # type: ignore[list-item]  # typed as Tune's
                worker_runtime_env={"env_vars": WORKER_ENV},
            ),
        )
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            cause = str(error).strip().splitlines()
            raise TrainingError(
                f"The stage {stage!r} failed on its worker: {cause[-1] if cause else error!r} "
                "Nothing was registered. If a worker ran out of memory, use fewer workers or a "
                f"smaller base; its log is in the newest session under /tmp/ray ({name})."
            ) from error
        assert result.checkpoint is not None
        with new_folder(out) as folder:
            result.checkpoint.to_directory(str(folder))
    made = read_json(out / HISTORY)
    log_stage(
        settings,
        stage,
        params={**asdict(config), **asdict(compute)},
        metrics=made["figures"],
        history=made["history"],
        files=[draw_curves(made["history"], stage, out)],
        tags={"dataset": dataset.fingerprint},
    )
    return Trained(out, made["figures"], made["history"])


@contextmanager
def _scratch(folder: Path) -> Iterator[None]:
    """What Ray Train keeps of a run is of no use once its checkpoint was fetched, or it failed."""
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
