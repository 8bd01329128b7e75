"""What fine-tuning may try: candidates, how each is fitted and judged against others; its model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, sqrt
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - the field's own name for it

from cluster.bundles import TOKENIZER
from serve_app.model.tokenizer import TextTokenizer
from train_jobs.data import Dataset
from train_jobs.training.dropout import quick_dropout, without_dropout
from train_jobs.training.encoders import load_classifier, max_tokens, new_head
from train_jobs.training.trainer import Batch, Fit, Loss, TokenRows, forward


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to fine-tune.

    `head` is where it starts: a linear probe of the encoder, or random weights, as plain
    fine-tuning does. `smoothing` is the share of each label that is spread over all classes
    (Szegedy et al. 2016, "Rethinking the Inception Architecture"). `epochs` None: as many as
    `FinetuneConfig` gives.
    """

    learning_rate: float
    head: Literal["probe", "new"] = "probe"
    smoothing: float = 0.1
    batch_size: int = 64
    epochs: float | None = None

    @property
    def fits(self) -> int:
        """How many are made and averaged; from random heads they do not lie near each other."""
        return 2 if self.head == "probe" else 1

    @property
    def name(self) -> str:
        return f"{'plain' if self.head == 'new' else 'probed'}, {self.learning_rate:g}"


def plain(learning_rate: float) -> Candidate:
    """What everybody would try first."""
    return Candidate(
        learning_rate=learning_rate, head="new", smoothing=0.0, batch_size=32, epochs=3.0
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How the cloud model is fitted, and what competes for it.

    `epochs` None: 2, or as many as `min_steps` take, 20 at most: few rows make few steps, and few
    steps can end on a plateau (Mosbach et al., "On the Stability of Fine-tuning BERT", 2021).
    A `learning_rate` that is given is not raced for. `minutes` bounds race and fit together.
    """

    learning_rate: float | None = None
    epochs: float | None = None
    min_steps: int = 200
    batch_size: int = 64
    minutes: float | None = None
    candidates: tuple[Candidate, ...] = (
        Candidate(learning_rate=2e-4),  # the default
        Candidate(learning_rate=4e-4),
        Candidate(learning_rate=5e-5),
        plain(3e-4),
        plain(1e-4),
        plain(5e-5),
    )
    race_epochs: float = 0.5
    race_steps: tuple[int, int] = (45, 120)  # at least, at most: a short race flatters low rates

    def fit(self, candidate: Candidate, rows: int, workers: int = 1) -> Fit:
        """The whole fit of a candidate, on so many rows."""
        fit = Fit(epochs=1.0, learning_rate=candidate.learning_rate,
                  batch_size=candidate.batch_size)  # fmt: skip
        enough = ceil(self.min_steps / fit.steps_of_epoch(rows, workers))
        epochs = candidate.epochs or self.epochs
        return replace(fit, epochs=epochs or float(max(_EPOCHS, min(enough, _MOST_EPOCHS))))

    def race(self, candidate: Candidate, rows: int) -> Fit:
        """The short fit that it races in; its rate falls to zero as the whole fit's does."""
        fit = self.fit(candidate, rows)
        each = fit.steps_of_epoch(rows)
        least, most = self.race_steps
        steps = min(max(self.race_epochs * each, least), most, fit.epochs * each)
        return replace(fit, epochs=steps / each)


_EPOCHS: Final = 2
_MOST_EPOCHS: Final = 20


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What a candidate reached on the held-out rows. `share` of its short fit was run."""

    name: str
    share: float
    accuracy: float
    log_loss: float  # calibrated: at the temperature that these rows ask for
    seconds: float


def best_of(tried: Sequence[Tried], rows: int, default: str) -> Tried:
    """Of those within one standard error of the best accuracy, the default, or the least log-loss.

    A short fit flatters low rates: on Banking77 60 steps at 5e-5 end 0.4 points above as many at
    2e-4, and 120 steps 0.4 points below (docs/training.md). So the default, whose rate was found
    on whole fits, has to be beaten by more than chance. A candidate that was stopped early is out,
    unless none came to the end.
    """
    furthest = max(item.share for item in tried)
    ended = [item for item in tried if item.share == furthest]
    best = max(item.accuracy for item in ended)
    error = sqrt(best * (1 - best) / rows)
    return min(
        (item for item in ended if item.accuracy >= best - error),
        key=lambda item: (item.name != default, item.log_loss, item.name),
    )


def label_loss(model: Any, smoothing: float) -> Loss:
    """Cross-entropy on `labels`, smoothed."""

    def loss(batch: Batch) -> torch.Tensor:
        logits = forward(model, batch).logits.float()
        return F.cross_entropy(logits, batch["labels"].to(logits.device), label_smoothing=smoothing)

    return loss


def made_ready(start: str, labels: Sequence[str], candidate: Candidate) -> Any:
    """A classifier as the candidate begins with it.

    Word embeddings are half of all weights, and a few thousand messages teach them little, so they
    stay as they are.
    """
    model = load_classifier(start, labels)
    if candidate.head == "new":
        new_head(model)
    else:
        without_dropout(model, only_attention=True)
    quick_dropout(model)
    model.get_input_embeddings().weight.requires_grad = False
    return model


def token_rows(dataset: Dataset, source: str) -> tuple[TokenRows, list[str]]:
    """The `train` split as an encoder reads it, and its keys."""
    tokenizer = TextTokenizer.from_file(Path(source) / TOKENIZER, max_tokens(source))
    texts, labels = dataset.labelled("train")
    keys = [row.key for row in dataset.read("train")]
    return TokenRows(tokenizer.encode(texts), {"labels": np.array(labels)}), keys
