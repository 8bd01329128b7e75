"""One Hugging Face Trainer inside one Ray TorchTrainer: what the three training stages share.

A stage gives a loop that runs on each worker and returns its figures; rank 0's folder comes back
as a Ray checkpoint, so it works on a laptop and on a cluster with any storage path. A worker may
die: resume.py.
"""

import os
import random
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    EvalPrediction,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from cluster.errors import ConfigError, DataError, TrainingError
from cluster.files import new_folder, read_json, write_json
from cluster.progress import Report, relayed
from cluster.settings import Settings
from cluster.tracking import log_stage
from train_jobs.curves import draw_curves
from train_jobs.data import Dataset
from train_jobs.resume import HISTORY, Checkpoints, Retries, Stage, on_worker

Loop = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where a stage runs, and what it outlives. The same code on a CPU and on a GPU."""

    num_workers: int = 1
    use_gpu: bool | None = None  # None: if the cluster has one per worker
    cpus_per_worker: int | None = None  # None: an even share of the cluster
    max_failures: int = 2  # of workers; after each the stage goes on from its last checkpoint
    checkpoint_every_s: float = 60.0  # at the most; a fit of seconds should not spend them writing


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How one Trainer trains. Rates are per step, shares are of all steps."""

    epochs: float
    learning_rate: float
    batch_size: int = 32
    warmup_share: float = 0.1
    patience_epochs: int = 3
    plateau_factor: float = 0.5  # the rate is cut by this when validation stops improving
    weight_decay: float = 0.01
    first_step: int = 0  # of the progress shown: a stage made of two fits counts on
    total_steps: int = 0  # of the whole stage; 0: this fit is the stage


def in_turn(rows: int, workers: int, *fits: Fit) -> tuple[Fit, ...]:
    """Fits of one stage, each told where it stands in the whole, so that one bar spans them."""
    steps = [ceil(ceil(rows / workers) / fit.batch_size) * ceil(fit.epochs) for fit in fits]
    return tuple(
        replace(fit, first_step=sum(steps[:i]), total_steps=sum(steps))
        for i, fit in enumerate(fits)
    )


@dataclass(frozen=True)
class Trained:
    """What a stage leaves: a folder with a model and tokenizer, its figures and its history."""

    path: Path
    figures: Mapping[str, float]
    history: Sequence[Mapping[str, float]]


class TokenRows(torch.utils.data.Dataset[dict[str, Any]]):
    """Token lists, with labels and whatever else a loss needs; padded by the collator."""

    def __init__(self, ids: Sequence[list[int]], **columns: Sequence[Any]) -> None:
        self._ids, self._columns = ids, columns

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = {name: column[index] for name, column in self._columns.items()}
        row["input_ids"] = self._ids[index]
        row["attention_mask"] = [1] * len(self._ids[index])
        return row


def holdout(keys: Sequence[str], share: float = 0.1) -> tuple[list[int], list[int]]:
    """Row numbers to fit and to validate on, by content hash: the same in every stage.

    Early stopping judges on rows of `train` that no gradient has seen, so that `calibration`,
    `tune` and `certify` stay untouched.
    """
    validation = [i for i, key in enumerate(keys) if int(key[-8:], 16) / 16**8 < share]
    if not validation:
        raise DataError(f"{len(keys)} rows are too few to hold some out for early stopping.")
    held = set(validation)
    return [i for i in range(len(keys)) if i not in held], validation


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)


def has_bf16() -> bool:
    """Whether bf16 is fast here: a GPU that has it, or a CPU with AMX or AVX512-BF16.

    Measured on AVX512-BF16 (768x384x1536, 2 cores): 989 against 219 GFLOP/s in fp32.
    """
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    have = torch.cpu.get_capabilities()
    return bool(have.get("amx_bf16") or have.get("avx512_bf16"))


class _Relay(TrainerCallback):  # type: ignore[misc]
    """Sends rank 0's steps to the progress board."""

    def __init__(self, board: Any, fit: Fit) -> None:
        self._board, self._fit = board, fit

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.is_world_process_zero:
            done = self._fit.first_step + state.global_step
            total = self._fit.total_steps or state.max_steps
            self._board.put.remote(done, total, f"epoch {state.epoch or 0:.1f}")


class _BestWeights(TrainerCallback):  # type: ignore[misc]
    """Keeps the best weights in memory, cuts the rate on a plateau, and stops early."""

    def __init__(self, fit: Fit) -> None:
        self._fit = fit
        self.factor = 1.0
        self.best_loss = float("inf")
        self.best: dict[str, torch.Tensor] | None = None
        self._bad = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "factor": self.factor,
            "best_loss": self.best_loss,
            "best": self.best,
            "bad": self._bad,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.factor, self.best_loss = state["factor"], state["best_loss"]
        self.best, self._bad = state["best"], state["bad"]

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float],
        model: torch.nn.Module,
        **_: Any,
    ) -> None:
        if "eval_loss" not in metrics:
            return  # somebody measures something else, such as DAPT on the rows that judge it
        if metrics["eval_loss"] < self.best_loss - 1e-4:
            self.best_loss, self._bad = metrics["eval_loss"], 0
            self.best = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
            return
        self._bad += 1
        self.factor *= self._fit.plateau_factor
        control.should_training_stop = self._bad >= self._fit.patience_epochs


class PlateauTrainer(Trainer):  # type: ignore[misc]
    """Warm-up, then linear decay times a factor that falls when validation stops improving."""

    def __init__(self, *args: Any, fit: Fit, stage: Stage, **kwargs: Any) -> None:
        self._best = _BestWeights(fit)
        self._fit, self.stage = fit, stage
        super().__init__(*args, **kwargs)
        self.add_callback(self._best)
        self.add_callback(_Relay(stage.board, fit))
        self.add_callback(Checkpoints(self, stage, self._best, fit.first_step))

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LambdaLR:
        warmup = max(1, int(num_training_steps * self._fit.warmup_share))

        def rate(step: int) -> float:
            left = (num_training_steps - step) / max(1, num_training_steps - warmup)
            return min((step + 1) / warmup, max(0.0, left), 1.0) * self._best.factor

        chosen = optimizer or self.optimizer
        assert chosen is not None
        self.lr_scheduler = LambdaLR(chosen, rate)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def train_to_best(self) -> dict[str, float]:
        """Trains, puts the best weights back, and returns their validation figures.

        A fit that had ended before the checkpoint which the stage goes on from is skipped, and has
        no figures; its weights come with those of the fit that follows.
        """
        if self.stage.skips():
            return {}
        kept = self.stage.kept
        self.train(resume_from_checkpoint=None if kept is None else str(kept))
        self.stage.histories.append(self.state.log_history)
        assert self._best.best is not None
        self.accelerator.unwrap_model(self.model).load_state_dict(self._best.best)
        return {k: float(v) for k, v in self.evaluate().items()}


def arguments(fit: Fit, scratch: Path, seed: int, *, loss_only: bool = False) -> TrainingArguments:
    """TrainingArguments of one fit: dynamic padding, length grouping, bf16 where it is fast.

    Args:
        loss_only: do not gather logits, which for a vocabulary of 30,000 would be gigabytes.
    """
    gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=fit.epochs,
        learning_rate=fit.learning_rate,
        per_device_train_batch_size=fit.batch_size,
        per_device_eval_batch_size=128,
        weight_decay=fit.weight_decay,
        optim="adamw_torch_fused",  # 13 against 60 ms a step on 2 cores: 23 M parameters
        group_by_length=True,
        bf16=has_bf16(),
        use_cpu=not gpu,
        ddp_backend=None if gpu else "gloo",
        ddp_find_unused_parameters=False,
        eval_strategy="epoch",
        save_strategy="no",
        logging_strategy="epoch",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        prediction_loss_only=loss_only,
        dataloader_num_workers=0,
        dataloader_pin_memory=gpu,
        seed=seed,
        data_seed=seed,
        log_level="error",
    )


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of rows whose highest logit (n, classes) is the label (n,)."""
    logits = prediction.predictions
    logits = logits[0] if isinstance(logits, tuple) else logits
    return {"accuracy": float((np.argmax(logits, axis=-1) == prediction.label_ids).mean())}


def finish(
    trainer: PlateauTrainer, model: Any, tokenizer_source: str, figures: Mapping[str, float]
) -> None:
    """Rank 0 saves model, tokenizer and history; every rank reports, as Ray Train asks.

    The figures get a `resumed_at_step` if a worker died and another went on.
    """
    from ray import train as ray_train

    from train_jobs.encoders import save_tokenizer

    made = dict(figures)
    if trainer.stage.resumed_at_step is not None:
        made["resumed_at_step"] = float(trainer.stage.resumed_at_step)
    with tempfile.TemporaryDirectory() as name:
        checkpoint = None
        if trainer.is_world_process_zero():
            folder = Path(name)
            model.save_pretrained(folder)
            save_tokenizer(tokenizer_source, folder)
            history = list(chain.from_iterable(trainer.stage.histories))
            write_json(folder / HISTORY, {"figures": made, "history": history})
            checkpoint = ray_train.Checkpoint.from_directory(name)
        ray_train.report(made, checkpoint=checkpoint)


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
    **inputs: str,
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
            run_config=RunConfig(
                name=name,
                storage_path=str(storage),
                failure_config=FailureConfig(max_failures=compute.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                callbacks=[Retries()],  # type: ignore[list-item]  # typed as Tune's
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


def set_threads() -> None:
    """One worker uses the CPUs that Ray gave it, not the whole host."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
