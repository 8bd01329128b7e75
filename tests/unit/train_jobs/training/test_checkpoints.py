"""A fit that goes on from a checkpoint is the fit that was never interrupted, to the last bit."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.train import Checkpoint

from cluster.errors import DataError, TrainingError
from train_jobs.training.checkpoints import HISTORY, NoBoard, Retries, Stage, on_worker
from train_jobs.training.encoders import averaged, only_trained
from train_jobs.training.trainer import Batch, Fit, TokenRows, in_turn, seed_everything, train

ROWS, CLASSES, WORDS = 96, 3, 50
NEVER_S, ALWAYS_S = 1e9, 0.0


class _Tied(torch.nn.Module):
    """Dropout, so that it needs its random state, and a weight under two names, as MaskedLm has."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(WORDS, 8)
        self.again = torch.nn.Linear(8, WORDS, bias=False)
        self.again.weight = self.words.weight
        self.drop = torch.nn.Dropout(0.2)
        self.head = torch.nn.Linear(8 + WORDS, CLASSES)

    def loss_of_rows(self, batch: Batch) -> torch.Tensor:
        """Of the words alone, whatever a row is padded to."""
        seen = batch["attention_mask"][..., None].float()
        hidden = (self.words(batch["input_ids"]) * seen).sum(dim=1) / seen.sum(dim=1)
        logits = self.head(torch.cat([hidden, self.again(hidden)], dim=-1))
        return torch.nn.functional.cross_entropy(logits, batch["labels"])

    def loss(self, batch: Batch) -> torch.Tensor:
        hidden = self.drop(self.words(batch["input_ids"])).mean(dim=1)
        logits = self.head(torch.cat([hidden, self.again(hidden)], dim=-1))
        return torch.nn.functional.cross_entropy(logits, batch["labels"])


class _Shelf(Stage):
    """Keeps every checkpoint in a folder; Ray Train keeps the last one."""

    def __init__(self, shelf: Path, every_s: float, kept: Path | None = None) -> None:
        super().__init__(NoBoard(), every_s, kept)
        self.shelf = shelf

    def keep(self, folder: Path, step: int) -> None:
        shutil.copytree(folder, self.shelf / f"{self.fit}-{step:03d}")


def _rows() -> TokenRows:
    made = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, 9, (ROWS,), generator=made).tolist()
    ids = [torch.randint(1, WORDS, (n,), generator=made).tolist() for n in lengths]
    labels = torch.randint(0, CLASSES, (ROWS,), generator=made).numpy()
    return TokenRows(ids, {"labels": labels})


def _train(stage: _Shelf) -> dict[str, torch.Tensor]:
    """Two fits on noise, the second of two epochs and a half."""
    seed_everything(1)
    model = _Tied()
    fits = in_turn(ROWS, 1, Fit(epochs=2, learning_rate=1e-2), Fit(epochs=2.5, learning_rate=3e-2))
    for fit in fits:
        train(model, _rows(), fit, model.loss, stage=stage, seed=1, pad=0)
    return {name: value.clone() for name, value in model.state_dict().items()}


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], value) for name, value in other.items())


def test_a_fit_goes_on_from_any_epoch_as_if_nothing_had_happened(tmp_path: Path) -> None:
    alone = _Shelf(tmp_path / "none", NEVER_S)
    undisturbed = _train(alone)
    assert not (tmp_path / "none").exists()
    assert alone.resumed_at_step is None

    shelf = _Shelf(tmp_path / "shelf", ALWAYS_S)
    assert _same(_train(shelf), undisturbed)
    # Nothing is written before anything has happened, nor after the end, where the result follows.
    kept = sorted((tmp_path / "shelf").iterdir())
    assert [folder.name for folder in kept] == ["0-003", "1-000", "1-003", "1-006"]
    assert shelf.histories == alone.histories

    for at, step in ((0, 3), (1, 6), (2, 9), (3, 12)):
        again = _Shelf(tmp_path / f"from {kept[at].name}", ALWAYS_S, kept[at])
        assert _same(_train(again), undisturbed)
        assert again.resumed_at_step == step
        assert again.histories == alone.histories
        left = sorted(path.name for path in again.shelf.iterdir()) if again.shelf.exists() else []
        assert left == [path.name for path in kept[at:][1:]], "each is written once"


def test_fits_that_are_averaged_go_on_too(tmp_path: Path) -> None:
    """A worker that dies in the second fit must not lose the first one's weights."""

    def made(stage: _Shelf) -> dict[str, torch.Tensor]:
        seed_everything(1)
        models = [_Tied(), _Tied()]
        together = torch.nn.ModuleList(models)
        models[1].load_state_dict(models[0].state_dict())
        for model in models:
            with only_trained(model, together):
                train(together, _rows(), Fit(epochs=2, learning_rate=1e-2), model.loss, stage=stage,
                      seed=1, pad=0)  # fmt: skip
        assert not _same(models[0].state_dict(), models[1].state_dict()), "one is not the other"
        assert all(value.requires_grad for value in together.parameters())
        return dict(averaged(models).state_dict())

    undisturbed = made(_Shelf(tmp_path / "none", NEVER_S))
    shelf = _Shelf(tmp_path / "shelf", ALWAYS_S)
    assert _same(made(shelf), undisturbed)
    kept = sorted((tmp_path / "shelf").iterdir())
    assert [folder.name[0] for folder in kept] == ["0", "1", "1"]
    for folder in kept:
        assert _same(made(_Shelf(tmp_path / f"from {folder.name}", NEVER_S, folder)), undisturbed)


def test_a_batch_run_in_parts_is_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound on memory changes no gradient: parts are weighed by their rows."""
    rows, steps = _rows(), Fit(epochs=1, learning_rate=1e-2)

    def trained(tokens: int) -> dict[str, torch.Tensor]:
        monkeypatch.setattr("train_jobs.training.trainer._CPU_TOKENS", tokens)
        seed_everything(1)
        model = _Tied()
        model.drop.p = 0.0
        train(model, rows, steps, model.loss_of_rows, stage=Stage(NoBoard(), NEVER_S), seed=1,
              pad=0)  # fmt: skip
        return dict(model.state_dict())

    whole, split = trained(10_000), trained(20)
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, atol=1e-6, rtol=1e-4)


def test_a_figure_from_before_a_fit_is_measured_once(tmp_path: Path) -> None:
    stage = _Shelf(tmp_path, NEVER_S)
    assert stage.measured("loss", lambda: 2.0) == 2.0
    assert stage.measured("loss", lambda: 3.0) == 2.0


def test_a_stage_whose_worker_died_after_its_result_was_brought_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "train_jobs.training.checkpoints.get_checkpoint",
        lambda: Checkpoint.from_directory(str(tmp_path)),
    )
    (tmp_path / HISTORY).write_text("{}")
    on_worker({"loop": ran.append, "board": NoBoard(), "checkpoint_every_s": NEVER_S})
    assert not ran

    monkeypatch.setattr("train_jobs.training.checkpoints.get_checkpoint", lambda: None)
    on_worker({"loop": ran.append, "board": NoBoard(), "checkpoint_every_s": NEVER_S, "seed": 1})
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
