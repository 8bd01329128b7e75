"""A fit that goes on from a checkpoint is the fit that was never interrupted, to the last bit."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState  # type: ignore[import-untyped]
from ray.train import Checkpoint
from torch import distributed
from transformers import AutoTokenizer, DataCollatorWithPadding

from cluster.errors import DataError, TrainingError
from tests.encoders import make_tiny_bert
from train_jobs.resume import HISTORY, Retries, Stage, on_worker
from train_jobs.training import (
    Fit,
    PlateauTrainer,
    TokenRows,
    accuracy,
    arguments,
    in_turn,
    seed_everything,
)

ROWS, CLASSES, WORDS = 96, 3, 50
NEVER_S, ALWAYS_S = 1e9, 0.0
TIMES = ("_runtime", "_per_second")


class _Tied(torch.nn.Module):
    """Dropout, so that it needs its random state, and a weight under two names, as MaskedLm has."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(WORDS, 8)
        self.again = torch.nn.Linear(8, WORDS, bias=False)
        self.again.weight = self.words.weight
        self.drop = torch.nn.Dropout(0.2)
        self.head = torch.nn.Linear(8 + WORDS, CLASSES)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        hidden = self.drop(self.words(input_ids)).mean(dim=1)
        logits = self.head(torch.cat([hidden, self.again(hidden)], dim=-1))
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


class _Shelf(Stage):
    """Keeps every checkpoint in a folder; Ray Train keeps the last one."""

    def __init__(self, shelf: Path, every_s: float, kept: Path | None = None) -> None:
        super().__init__(_NoBoard(), every_s, kept)
        self.shelf = shelf

    def keep(self, folder: Path, step: int) -> None:
        shutil.copytree(folder, self.shelf / f"{len(self.histories)}-{step:03d}")
        self.wrote(step)


class _NoBoard:
    """Nobody watches."""

    @property
    def put(self) -> "_NoBoard":
        return self

    def remote(self, *_: Any) -> None: ...


@dataclass
class _Done:
    stage: _Shelf
    weights: dict[str, torch.Tensor]
    figures: dict[str, float]
    rates: list[float]


def _timeless(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if not any(t in name for t in TIMES)}


def _history(stage: Stage) -> list[list[dict[str, float]]]:
    return [[_timeless(row) for row in rows] for rows in stage.histories]


@pytest.fixture(scope="module")
def collator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataCollatorWithPadding]:
    """A tokenizer that pads, in a process group of one, as Ray Train makes it."""
    folder = make_tiny_bert(tmp_path_factory.mktemp("encoder"))
    group = (folder / "group").as_uri()
    distributed.init_process_group("gloo", init_method=group, rank=0, world_size=1)
    yield DataCollatorWithPadding(AutoTokenizer.from_pretrained(folder))
    distributed.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)


def _assert_same(one: _Done, other: _Done) -> None:
    assert all(torch.equal(one.weights[name], value) for name, value in other.weights.items())
    assert one.figures == other.figures
    assert one.rates == other.rates
    assert _history(one.stage) == _history(other.stage)


def _rows(seed: int) -> TokenRows:
    made = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 9, (ROWS,), generator=made).tolist()
    ids = [torch.randint(1, WORDS, (n,), generator=made).tolist() for n in lengths]
    return TokenRows(ids, labels=torch.randint(0, CLASSES, (ROWS,), generator=made).tolist())


def _train(collator: DataCollatorWithPadding, scratch: Path, stage: _Shelf) -> _Done:
    """Two fits on noise, so that validation soon gets worse: the rate is cut, and it stops."""
    seed_everything(1)
    model = _Tied()
    fits = in_turn(
        ROWS, 1, Fit(epochs=2, learning_rate=1e-2),
        Fit(epochs=9, learning_rate=3e-2, patience_epochs=4),
    )  # fmt: skip
    figures: dict[str, float] = {}
    rates: list[float] = []
    for fit in fits:
        trainer = PlateauTrainer(
            model=model, args=arguments(fit, scratch, 1), train_dataset=_rows(1),
            eval_dataset=_rows(2), data_collator=collator, compute_metrics=accuracy,
            fit=fit, stage=stage,
        )  # fmt: skip
        figures = trainer.train_to_best()
        rates = [row["learning_rate"] for row in trainer.state.log_history if "loss" in row]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return _Done(stage, weights, _timeless(figures), rates)


def test_a_fit_goes_on_from_any_epoch_as_if_nothing_had_happened(
    collator: DataCollatorWithPadding, tmp_path: Path
) -> None:
    undisturbed = _train(collator, tmp_path, _Shelf(tmp_path / "none", NEVER_S))
    assert not (tmp_path / "none").exists()
    assert undisturbed.stage.resumed_at_step is None
    assert 5 <= len(undisturbed.rates) < 9, "the second fit must stop early"

    watched = _train(collator, tmp_path, _Shelf(tmp_path / "shelf", ALWAYS_S))
    # Nothing is written before anything has happened, nor after the end, where the result follows.
    kept = sorted((tmp_path / "shelf").iterdir())
    assert [folder.name for folder in kept] == [
        "0-003", *(f"1-{3 * epoch:03d}" for epoch in range(len(undisturbed.rates)))
    ]  # fmt: skip
    _assert_same(watched, undisturbed)

    for at, step in ((0, 3), (1, 6), (4, 15), (-1, 6 + 3 * (len(kept) - 2))):
        shelf = tmp_path / f"from {kept[at].name}"
        again = _train(collator, tmp_path, _Shelf(shelf, ALWAYS_S, kept[at]))
        assert again.stage.resumed_at_step == step
        _assert_same(again, undisturbed)
        left = sorted(path.name for path in shelf.iterdir()) if shelf.exists() else []
        assert left == [path.name for path in kept[at:][1:]], "each is written once"


def test_a_figure_from_before_a_fit_is_measured_once(tmp_path: Path) -> None:
    stage = _Shelf(tmp_path, NEVER_S)
    assert stage.measured("loss", lambda: 2.0) == 2.0
    assert stage.measured("loss", lambda: 3.0) == 2.0


def test_a_stage_whose_worker_died_after_its_result_was_brought_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "train_jobs.resume.get_checkpoint", lambda: Checkpoint.from_directory(str(tmp_path))
    )
    (tmp_path / HISTORY).write_text("{}")
    on_worker({"loop": ran.append, "board": _NoBoard(), "checkpoint_every_s": NEVER_S})
    assert not ran

    monkeypatch.setattr("train_jobs.resume.get_checkpoint", lambda: None)
    on_worker({"loop": ran.append, "board": _NoBoard(), "checkpoint_every_s": NEVER_S, "seed": 1})
    assert [(config["seed"], config["stage"].kept) for config in ran] == [(1, None)]


@pytest.mark.parametrize(
    "errors",
    [
        {0: ValueError("no such label")},
        {0: DataError("too few rows"), 1: KeyError("labels")},
    ],
)
def test_what_a_loop_raises_is_not_tried_again(errors: dict[int, Exception]) -> None:
    with pytest.raises(TrainingError, match=str(errors[0])):
        Retries().after_exception(None, errors)


@pytest.mark.parametrize(
    "errors",
    [
        {0: RuntimeError("gloo: connection closed by peer")},
        {0: ConnectionResetError()},
        {0: ValueError("of a broken group"), 1: RuntimeError("died")},
    ],
)
def test_what_a_dying_neighbour_causes_is_left_to_ray(errors: dict[int, Exception]) -> None:
    Retries().after_exception(None, errors)
