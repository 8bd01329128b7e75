"""How a stage outlives its workers: what it has done so far, and a worker that goes on from there.

In: a fit, at the beginning of an epoch. Out: a folder, reported to Ray Train as a checkpoint:
weights, optimizer, scheduler and trainer state under Hugging Face's names, so that its Trainer
reads them itself; `stage.pt`, what it knows nothing of; `random-<rank>.pt`, each worker's random
states. Weights go on from it to the same last bit as if nothing had happened. All of it is read
with `weights_only`: a checkpoint cannot run code.
"""

import random
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch
from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]
from ray.train import Checkpoint, UserCallback, get_checkpoint, report
from torch.distributed.checkpoint.stateful import Stateful
from transformers import Trainer, TrainerCallback
from transformers.trainer import (
    OPTIMIZER_NAME,
    SCHEDULER_NAME,
    TRAINER_STATE_NAME,
    WEIGHTS_NAME,
)

from cluster.errors import FirstlineError, TrainingError

HISTORY: Final = "history.json"  # a checkpoint that has one is the stage's result
_STAGE: Final = "stage.pt"
# What code raises again when it is run again. Not among them: the death of a worker, and what its
# neighbours then see, which from gloo and NCCL is a RuntimeError.
_FINAL: Final = (
    FirstlineError, ArithmeticError, AssertionError, AttributeError, ImportError, LookupError,
    NameError, TypeError, ValueError,
)  # fmt: skip


class Stage:
    """What a stage has done on this worker: its fits, and what they must know of earlier ones.

    Attributes:
        histories: the log of each fit that has ended; the last one still grows.
        figures: measured before a fit, and needed after it.
        kept: the checkpoint's folder, until a fit has taken it up.
        resumed_at_step: where an earlier worker's work was taken up; None if it never was.
    """

    def __init__(self, board: Any, every_s: float, kept: Path | None = None) -> None:
        self.board, self.kept = board, kept
        self.histories: list[list[dict[str, float]]] = []
        self.figures: dict[str, float] = {}
        self.resumed_at_step: int | None = None
        if kept is not None:
            state = _load(kept / _STAGE)
            self.histories, self.figures = state["histories"], state["figures"]
        self._ended = len(self.histories)
        self._every_s = every_s
        self._written, self._written_s = (0, 0), time.monotonic()

    def skips(self) -> bool:
        """Whether the next fit had ended before the checkpoint; asked once for every fit."""
        self._ended -= 1
        return self._ended >= 0

    def measured(self, name: str, measure: Callable[[], float]) -> float:
        """A figure from before a fit: from the checkpoint, where the fit had begun by then."""
        if name not in self.figures:
            self.figures[name] = float(measure())
        return self.figures[name]

    def due(self, step: int) -> bool:
        """Whether to write before this step. Rank 0's clock decides: all ranks write, or none."""
        if (len(self.histories), step) == self._written:
            return False  # nothing has happened since
        late = [time.monotonic() - self._written_s >= self._every_s]
        return bool(broadcast_object_list(late)[0])

    def keep(self, folder: Path, step: int) -> None:
        """Reports a folder as written before this step. Returns when every rank has done so."""
        report({"step": step}, checkpoint=Checkpoint.from_directory(str(folder)))
        self.wrote(step)

    def wrote(self, step: int) -> None:
        self._written, self._written_s = (len(self.histories), step), time.monotonic()


class Checkpoints(TrainerCallback):  # type: ignore[misc]
    """Writes a fit down when an epoch begins and it is time, and takes up what was written."""

    def __init__(self, trainer: Trainer, stage: Stage, best: Stateful, first_step: int) -> None:
        self._trainer, self._stage, self._best = trainer, stage, best
        self._first_step = first_step  # of the fit, in the steps of the stage

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        stage, trainer = self._stage, self._trainer
        if stage.kept is None:
            return
        state = _load(stage.kept / _STAGE)
        self._best.load_state_dict(state["best"])
        trainer._total_loss_scalar = state["total_loss"]  # of the log's `train_loss`
        _set_random(_load(stage.kept / _random_file(trainer)), _sampler_generator(trainer))
        stage.kept = None
        stage.resumed_at_step = self._first_step + trainer.state.global_step
        stage.wrote(trainer.state.global_step)

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        step = self._trainer.state.global_step
        if self._stage.due(step):
            with TemporaryDirectory() as name:
                self._write(Path(name))
                self._stage.keep(Path(name), step)

    def _write(self, folder: Path) -> None:
        trainer, stage = self._trainer, self._stage
        torch.save(_random_states(_sampler_generator(trainer)), folder / _random_file(trainer))
        if not trainer.is_world_process_zero():
            return
        model = trainer.accelerator.unwrap_model(trainer.model)
        torch.save(model.state_dict(), folder / WEIGHTS_NAME)
        torch.save(trainer.optimizer.state_dict(), folder / OPTIMIZER_NAME)
        torch.save(trainer.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)
        trainer.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        own = {
            "histories": stage.histories,
            "figures": stage.figures,
            "best": self._best.state_dict(),
            "total_loss": trainer._total_loss_scalar,
        }
        torch.save(own, folder / _STAGE)


def _load(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _random_file(trainer: Trainer) -> str:
    return f"random-{trainer.args.process_index}.pt"


def _sampler_generator(trainer: Trainer) -> torch.Generator | None:
    """The order of rows on several workers has a generator of its own; on one it is torch's."""
    found: torch.Generator | None = trainer.callback_handler.train_dataloader.synchronized_generator
    return found


def _random_states(sampler: torch.Generator | None) -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, np.asarray(keys).tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "sampler": None if sampler is None else sampler.get_state(),
    }


def _set_random(states: Mapping[str, Any], sampler: torch.Generator | None) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"])
    if sampler is not None:
        sampler.set_state(states["sampler"])


class Retries(UserCallback):
    """Ends a run at once where the loop raised what it would raise again; Ray retries the rest."""

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        errors = list(worker_exceptions.values())
        if all(isinstance(error, _FINAL) for error in errors):
            raise TrainingError(f"{type(errors[0]).__name__}: {errors[0]}") from errors[0]


def on_worker(config: dict[str, Any]) -> None:
    """Runs the loop of a stage on one worker, from the stage's last checkpoint if it has one."""
    loop, board, every_s = (config.pop(name) for name in ("loop", "board", "checkpoint_every_s"))
    checkpoint = get_checkpoint()
    with nullcontext() if checkpoint is None else checkpoint.as_directory() as folder:
        kept = None if folder is None else Path(folder)
        if kept is not None and (kept / HISTORY).exists():
            return  # a worker died after the result was brought
        loop({**config, "stage": Stage(board, every_s, kept)})
