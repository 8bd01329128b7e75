"""One training loop inside one Ray TorchTrainer: what the training stages share.

A stage gives a loop that runs on each worker and returns its figures; rank 0's folder comes back
as a Ray checkpoint, so it works on a laptop and on a cluster with any storage path. A worker may
die: checkpoints.py.

The loop is our own because its memory is bounded by tokens, not by rows: a batch whose messages are
long is run in parts whose gradients are added. Nothing in it depends on what ran before but the
weights, the optimizer and the number of the epoch, which is what makes going on exact.
"""

import ctypes
import gc
import os
import random
import resource
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed
from torch.nn.attention import SDPBackend, sdpa_kernel

from cluster.errors import DataError
from cluster.files import write_json
from train_jobs.training.checkpoints import HISTORY, Stage

Batch = dict[str, torch.Tensor]
Loss = Callable[[Batch], torch.Tensor]

_CPU_TOKENS: Final = 2048  # padded, run at once; on a GPU more, which is what it is for
_GPU_TOKENS: Final = 32_768
_SORTED_BATCHES: Final = 50  # rows of so many batches are sorted by length, to save padding
_MAX_GRADIENT: Final = 1.0
_LOGGED: Final = 20  # points of a fit's curve
_UNDECAYED: Final = 1  # dimensions: biases and norms are not decayed


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How one model is fitted: warm-up, then linear decay to zero; the last weights are kept."""

    epochs: float
    learning_rate: float
    batch_size: int = 32
    warmup_share: float = 0.1
    weight_decay: float = 0.01
    first_step: int = 0  # of the progress shown: a stage made of two fits counts on
    total_steps: int = 0  # of the whole stage; 0: this fit is the stage

    def steps(self, rows: int, workers: int = 1) -> int:
        """Of the optimizer, on so many rows."""
        return max(1, round(self.epochs * self.steps_of_epoch(rows, workers)))

    def steps_of_epoch(self, rows: int, workers: int = 1) -> int:
        return ceil(ceil(rows / self.batch_size) / workers)

    def rate(self, step: int, steps: int) -> float:
        """The rate of a step, counted from 0."""
        warmup = max(1, int(steps * self.warmup_share))
        left = (steps - step) / max(1, steps - warmup)
        return self.learning_rate * min((step + 1) / warmup, max(0.0, left), 1.0)


def in_turn(rows: int, workers: int, *fits: Fit) -> tuple[Fit, ...]:
    """Fits of one stage, each told where it stands in the whole, so that one bar spans them."""
    steps = [fit.steps(rows, workers) if fit.epochs else 0 for fit in fits]
    return tuple(
        replace(fit, first_step=sum(steps[:i]), total_steps=sum(steps))
        for i, fit in enumerate(fits)
    )


@dataclass(frozen=True)
class TokenRows:
    """Token lists, and columns (n, ...) of whatever else a loss needs."""

    ids: Sequence[list[int]]
    columns: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, which: Sequence[int]) -> "TokenRows":
        return TokenRows(
            [self.ids[i] for i in which],
            {name: column[list(which)] for name, column in self.columns.items()},
        )

    def batch(self, which: Sequence[int], pad: int) -> Batch:
        """The rows as tensors, padded to the longest of them."""
        multiple = 4 if has_bf16() else 1  # kernels in bf16 are made anew for every length
        width = max(len(self.ids[i]) for i in which)
        width += -width % multiple
        tokens = torch.full((len(which), width), pad)
        mask = torch.zeros((len(which), width), dtype=torch.long)
        for row, i in enumerate(which):
            tokens[row, : len(self.ids[i])] = torch.tensor(self.ids[i])
            mask[row, : len(self.ids[i])] = 1
        others = {name: torch.as_tensor(column[which]) for name, column in self.columns.items()}
        return {"input_ids": tokens, "attention_mask": mask, **others}


def holdout(keys: Sequence[str], share: float = 0.1) -> tuple[list[int], list[int]]:
    """Row numbers to fit and to validate on, by content hash: the same in every stage.

    Recipes are compared on rows of `train` that no gradient has seen, so that `calibration`,
    `tune` and `certify` stay untouched.
    """
    validation = [i for i, key in enumerate(keys) if int(key[-8:], 16) / 16**8 < share]
    if not validation:
        raise DataError(f"{len(keys)} rows are too few to hold some out to compare recipes on.")
    held = set(validation)
    return [i for i in range(len(keys)) if i not in held], validation


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling new tensors finds reads of what was never written; it is 5% of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def has_bf16() -> bool:
    """Whether bf16 is fast here: a GPU that has it, or a CPU with AMX or AVX512-BF16.

    Measured on AVX512-BF16 (768x384x1536, 2 cores): 989 against 219 GFLOP/s in fp32.
    """
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    have = torch.cpu.get_capabilities()
    return bool(have.get("amx_bf16") or have.get("avx512_bf16"))


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def batches(lengths: Sequence[int], size: int, dice: random.Random) -> list[list[int]]:
    """Row numbers in random batches of like lengths; every row once."""
    order = list(range(len(lengths)))
    dice.shuffle(order)
    made: list[list[int]] = []
    for start in range(0, len(order), size * _SORTED_BATCHES):
        alike = sorted(order[start : start + size * _SORTED_BATCHES], key=lambda i: -lengths[i])
        made += [alike[i : i + size] for i in range(0, len(alike), size)]
    dice.shuffle(made)
    return made


def parts(batch: Sequence[int], lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """A batch in parts, the longest rows first, of so many padded tokens at most, or of one row."""
    part: list[int] = []
    for i in sorted(batch, key=lambda i: -lengths[i]):
        if part and (len(part) + 1) * lengths[part[0]] > tokens:
            yield part
            part = []
        part.append(i)
    yield part


@torch.inference_mode()
def predict(
    model: Any,
    ids: Sequence[list[int]],
    pad: int,
    read: Callable[[Any], torch.Tensor],
    *,
    exact: bool = False,
) -> NDArray[np.float32]:
    """What `read` finds in a model's output (rows, m), for n token lists: (n, m), in their order.

    Args:
        exact: in fp32 everywhere, as an exported model computes it.
    """
    model.eval()
    model.to(device())
    lengths = [len(item) for item in ids]
    rows = TokenRows(ids, {})
    made: NDArray[np.float32] | None = None
    for part in parts(range(len(ids)), lengths, tokens_at_once()):
        found = read(forward(model, rows.batch(part, pad), exact=exact)).float().cpu().numpy()
        if made is None:
            made = np.zeros((len(ids), found.shape[1]), np.float32)
        made[part] = found
    assert made is not None
    return made


def tokens_at_once() -> int:
    return _GPU_TOKENS if torch.cuda.is_available() else _CPU_TOKENS


def features_of(model: Any, ids: Sequence[list[int]], *, exact: bool = False) -> NDArray[Any]:
    """What a classifier's head reads (n, H) of n token lists."""
    pad = model.config.pad_token_id
    return predict(model.base_model, ids, pad, lambda output: output[0][:, 0], exact=exact)


def forward(model: Any, batch: Batch, *, exact: bool = False) -> Any:
    """A model's output for a batch's tokens, in bf16 where that is fast."""
    where = device()
    with torch.autocast(where, torch.bfloat16, enabled=has_bf16() and not exact):
        return model(
            input_ids=batch["input_ids"].to(where),
            attention_mask=batch["attention_mask"].to(where),
        )


def train(
    model: torch.nn.Module,
    rows: TokenRows,
    fit: Fit,
    loss: Loss,
    *,
    stage: Stage,
    seed: int,
    pad: int,
    watch: Callable[[int], None] | None = None,
    share: float = 1.0,
) -> None:
    """Fits what may be trained of a model, in place. On several workers gradients are averaged.

    Args:
        loss: the mean loss of a batch's rows.
        stage: a fit that had ended before the checkpoint which it goes on from is skipped.
        pad: the token that fills short rows.
        watch: told of each step, counted from 0, after it was made.
        share: of the steps that are made; the rates are those of the whole fit.
    """
    if stage.skips():
        return
    rank, workers = placed()
    model.to(device()).train()
    lengths = [len(item) for item in rows.ids]
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = _optimizer(trained, fit)
    steps, each = fit.steps(len(rows), workers), fit.steps_of_epoch(len(rows), workers)
    history = _History(stage, fit, steps)
    begun = stage.take_up(model, optimizer, history, fit.first_step)
    last = ceil(steps * share)
    for epoch in range(begun, ceil(last / each)):
        stage.write_if_due(model, optimizer, history, epoch, epoch * each)
        seed_everything(hash((seed, stage.fit, epoch, rank)) % 2**32)
        dice = random.Random(f"{seed}/{stage.fit}/{epoch}")  # noqa: S311 - no secret hangs on it
        order = batches(lengths, fit.batch_size, dice)
        for number in range(min(each, last - epoch * each)):
            step = epoch * each + number
            batch = order[(number * workers + rank) % len(order)]
            with _attention():
                seen = _step(trained, optimizer, rows, batch, lengths, loss, pad, workers,
                             fit.rate(step, steps))  # fmt: skip
            history.add(step, seen)
            if watch is not None:
                watch(step)
            if rank == 0:
                stage.show(fit.first_step + step + 1, fit.total_steps or steps, epoch)
    stage.end()


def _attention() -> AbstractContextManager[object]:
    """Which attention a step takes: on a CPU the plain one.

    The fused one's backward pass is slow on short messages there: 12.8 ms a layer on 64 of them, a
    third of a student's step (torch 2.13, 2 cores with AVX512-BF16).
    """
    return nullcontext() if torch.cuda.is_available() else sdpa_kernel(SDPBackend.MATH)


def placed() -> tuple[int, int]:
    """Rank and number of workers of this process's group; alone without one."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def _optimizer(trained: Sequence[torch.nn.Parameter], fit: Fit) -> torch.optim.Optimizer:
    """AdamW, fused: 13 against 60 ms a step on 2 cores, of 23 million parameters."""
    plain = [value for value in trained if value.dim() <= _UNDECAYED]
    decayed = [value for value in trained if value.dim() > _UNDECAYED]
    groups = [
        {"params": decayed, "weight_decay": fit.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], fused=True)


def _step(
    trained: Sequence[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    rows: TokenRows,
    batch: Sequence[int],
    lengths: Sequence[int],
    loss: Loss,
    pad: int,
    workers: int,
    rate: float,
) -> float:
    """One step of the optimizer; the loss of the batch on this worker."""
    seen = 0.0
    for part in parts(batch, lengths, tokens_at_once()):
        found = loss(rows.batch(part, pad)) * (len(part) / len(batch))
        found.backward()  # type: ignore[no-untyped-call]
        seen += float(found.detach())
    if workers > 1:
        for value in trained:
            if value.grad is None:
                value.grad = torch.zeros_like(value)
            distributed.all_reduce(value.grad)
            value.grad /= workers
    torch.nn.utils.clip_grad_norm_(trained, _MAX_GRADIENT)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    return seen


class _History:
    """The curve of a fit: the mean loss of every twentieth of it."""

    def __init__(self, stage: Stage, fit: Fit, steps: int) -> None:
        self.rows: list[dict[str, float]] = []
        self.sum, self.count = 0.0, 0
        self._fit, self._steps = fit, steps
        self._every = max(1, steps // _LOGGED)
        stage.histories.append(self.rows)

    def add(self, step: int, loss: float) -> None:
        self.sum, self.count = self.sum + loss, self.count + 1
        if (step + 1) % self._every == 0 or step + 1 == self._steps:
            rate = self._fit.rate(step, self._steps)
            at = float(self._fit.first_step + step + 1)
            self.rows.append({"step": at, "loss": self.sum / self.count, "learning_rate": rate})
            self.sum, self.count = 0.0, 0


def peak_memory_mb() -> float:
    """Of this process, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def give_back_memory() -> None:
    """What earlier work of this process has let go, to the system.

    Ray Tune runs each trial of a process in a new thread, and glibc gives each thread a heap of its
    own; what the one before has freed would lie there. Three trials then took 1.8 GB; with this
    1.2 (docs/training.md).
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def finish(stage: Stage, model: Any, tokenizer_source: str, figures: Mapping[str, float]) -> None:
    """Rank 0 saves model, tokenizer and history; every rank reports, as Ray Train asks.

    The figures get a `resumed_at_step` if a worker died and another went on.
    """
    from ray import train as ray_train

    from train_jobs.training.encoders import save_tokenizer

    peak = max(figures.get("peak_memory_mb", 0.0), peak_memory_mb())  # of an earlier worker, too
    made = {**figures, "peak_memory_mb": peak}
    if stage.resumed_at_step is not None:
        made["resumed_at_step"] = float(stage.resumed_at_step)
    with tempfile.TemporaryDirectory() as name:
        checkpoint = None
        if placed()[0] == 0:
            folder = Path(name)
            model.save_pretrained(folder)
            save_tokenizer(tokenizer_source, folder)
            history = list(chain.from_iterable(stage.histories))
            write_json(folder / HISTORY, {"figures": made, "history": history})
            checkpoint = ray_train.Checkpoint.from_directory(name)
        ray_train.report(made, checkpoint=checkpoint)


def set_threads() -> None:
    """One worker uses the CPUs that Ray gave it, not the whole host, and keeps few kernels."""
    # oneDNN keeps 1,024 of them by default, one for every shape of a batch: 170 MB (torch 2.13).
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
