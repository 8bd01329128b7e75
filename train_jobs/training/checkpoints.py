"""How a stage outlives its workers: what it has done so far, and a worker that goes on from there.

In: a fit, at the beginning of an epoch. Out: a folder, reported to Ray Train as a checkpoint: the
weights, the optimizer, and where the fit stands. Randomness is seeded anew by the number of each
epoch, so weights go on from it to the same last bit as if nothing had happened. It is read with
`weights_only`: a checkpoint cannot run code.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from ray.train import Checkpoint, UserCallback, get_checkpoint, report
from torch import distributed

from cluster.errors import FirstlineError, TrainingError

HISTORY: Final = "history.json"  # a checkpoint that has one is the stage's result
STATE: Final = "state.pt"
_SHOWN_EVERY_S: Final = 0.5
# What code raises again when it is run again. Not among them: the death of a worker, and what its
# neighbours then see, which from gloo and NCCL is a RuntimeError.
_FINAL: Final = (
    FirstlineError, ArithmeticError, AssertionError, AttributeError, ImportError, LookupError,
    NameError, TypeError, ValueError,
)  # fmt: skip


class Stage:
    """What a stage has done on this worker: its fits, and what they must know of earlier ones.

    Attributes:
        fit: the number of the fit that is next, or under way.
        histories: the curve of each fit that has begun.
        figures: measured before a fit, and needed after it.
        kept: the checkpoint's folder, until a fit has taken it up.
        resumed_at_step: where an earlier worker's work was taken up; None if it never was.
    """

    def __init__(self, board: Any, every_s: float, kept: Path | None = None) -> None:
        self.board, self.kept = board, kept
        self.fit = 0
        self.histories: list[list[dict[str, float]]] = []
        self.figures: dict[str, float] = {}
        self.resumed_at_step: int | None = None
        self._state: dict[str, Any] = {}
        if kept is not None:
            self._state = torch.load(kept / STATE, map_location="cpu", weights_only=True)
            self.histories, self.figures = self._state["histories"], self._state["figures"]
        self._every_s = every_s
        self._shown_s = 0.0
        self._written, self._written_s = (0, 0), time.monotonic()

    def skips(self) -> bool:
        """Whether the next fit had ended before the checkpoint; asked once for every fit."""
        if self.kept is None or self.fit == self._state["fit"]:
            return False
        self.fit += 1
        return True

    def end(self) -> None:
        """The fit under way has ended."""
        self.fit += 1

    def measured(self, name: str, measure: Callable[[], float]) -> float:
        """A figure from before a fit: from the checkpoint, where the fit had begun by then."""
        if name not in self.figures:
            self.figures[name] = float(measure())
        return self.figures[name]

    def show(self, done: int, total: int, epoch: int) -> None:
        """To whoever watches, twice a second: each call wakes a process beside the training."""
        now = time.monotonic()
        if done == total or now - self._shown_s >= _SHOWN_EVERY_S:
            self._shown_s = now
            self.board.put.remote(done, total, f"epoch {epoch + 1}")

    def take_up(self, model: Any, optimizer: Any, history: Any, first_step: int) -> int:
        """The epoch at which a fit begins: 0, or that of the checkpoint, whose state it gets."""
        if self.kept is None:
            return 0
        state = self._state
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        self.histories.pop()  # the fit's own, as yet empty: the checkpoint's goes on
        history.rows = self.histories[-1]
        history.sum, history.count = state["loss"]
        self.kept, self._state = None, {}
        self.resumed_at_step = first_step + state["step"]
        self._wrote(state["step"])
        return int(state["epoch"])

    def write_if_due(self, model: Any, optimizer: Any, history: Any, epoch: int, step: int) -> None:
        """Writes a checkpoint before this epoch, if it is time. All ranks do, or none."""
        if not self._due(step):
            return
        with TemporaryDirectory() as name:
            if _rank() == 0:
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "histories": self.histories,
                    "figures": self.figures,
                    "loss": (history.sum, history.count),
                    "fit": self.fit,
                    "epoch": epoch,
                    "step": step,
                }
                torch.save(state, Path(name) / STATE)
            self.keep(Path(name), step)
        self._wrote(step)

    def keep(self, folder: Path, step: int) -> None:
        """Reports a folder as written before this step. Returns when every rank has done so."""
        checkpoint = Checkpoint.from_directory(str(folder)) if _rank() == 0 else None
        report({"step": step}, checkpoint=checkpoint)

    def _due(self, step: int) -> bool:
        if (self.fit, step) == self._written:
            return False  # nothing has happened since
        late = [time.monotonic() - self._written_s >= self._every_s]
        if distributed.is_initialized():
            distributed.broadcast_object_list(late)  # rank 0's clock decides
        return late[0]

    def _wrote(self, step: int) -> None:
        self._written, self._written_s = (self.fit, step), time.monotonic()


class NoBoard:
    """A progress board that nobody reads."""

    @property
    def put(self) -> "NoBoard":
        return self

    def remote(self, *_: Any) -> None: ...


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


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
