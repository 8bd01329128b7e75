"""Stage 4: the cloud classifier -> a small edge student (Ray Train).

The student takes layers of its teacher, evenly spaced from first to last, with the embeddings and
the head (Sanh et al. 2019, "DistilBERT"), and learns from the teacher's logits on the `dapt` text
(a transfer set that needs no label) and from the labels of `train`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - the field's own name for it
from transformers import AutoTokenizer, DataCollatorWithPadding

from cluster.bundles import TOKENIZER
from cluster.errors import ConfigError
from cluster.progress import Report, silent
from cluster.settings import Settings
from serve_app.text import TextTokenizer
from train_jobs.data import Dataset, load_dataset
from train_jobs.encoders import keep_layers, layers_of, load_classifier, max_tokens
from train_jobs.training import (
    Compute,
    Fit,
    PlateauTrainer,
    TokenRows,
    Trained,
    accuracy,
    arguments,
    finish,
    fit_on_ray,
    holdout,
    seed_everything,
    set_threads,
)

_NO_LABEL = -100


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """`soft_share` weighs the teacher's logits against the labels."""

    layers: int = 3
    epochs: float = 10.0
    learning_rate: float = 3e-4
    batch_size: int = 32
    patience_epochs: int = 2
    temperature: float = 2.0
    soft_share: float = 0.7


def evenly_spaced(layers: int, of: int) -> list[int]:
    """Which of a teacher's layers a student takes: first and last included where it has two."""
    if not 1 <= layers <= of:
        raise ConfigError(f"A student of {layers} layers cannot be taken from a teacher of {of}.")
    if layers == 1:
        return [0]
    return [round(i * (of - 1) / (layers - 1)) for i in range(layers)]


class _DistillTrainer(PlateauTrainer):
    """Hinton et al. 2015: KL to the teacher at a temperature, plus cross-entropy on the labels."""

    def __init__(self, *args: Any, distill: DistillConfig, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._distill = distill
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        **_: Any,
    ) -> Any:
        teacher, labels = inputs.pop("teacher"), inputs.get("labels")
        outputs = model(**{k: v for k, v in inputs.items() if k != "labels"})
        heat = self._distill.temperature
        soft = F.kl_div(
            F.log_softmax(outputs.logits.float() / heat, -1),
            F.softmax(teacher.float() / heat, -1),
            reduction="batchmean",
        )
        assert labels is not None
        known = labels != _NO_LABEL
        hard = F.cross_entropy(outputs.logits[known].float(), labels[known]) if known.any() else 0.0
        loss = self._distill.soft_share * heat**2 * soft + (1 - self._distill.soft_share) * hard
        return (loss, {"logits": outputs.logits}) if return_outputs else loss


@torch.inference_mode()
def teacher_logits(model: Any, ids: list[list[int]], pad: int, batch: int = 64) -> np.ndarray:
    """Logits (n, classes) of the teacher, rows batched by length to save padding."""
    model.eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    logits = np.zeros((len(ids), model.config.num_labels), np.float32)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        width = max(len(ids[i]) for i in rows)
        tokens = torch.full((len(rows), width), pad)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for row, i in enumerate(rows):
            tokens[row, : len(ids[i])] = torch.tensor(ids[i])
            mask[row, : len(ids[i])] = 1
        made = model(input_ids=tokens.to(device), attention_mask=mask.to(device)).logits
        logits[rows] = made.float().cpu().numpy()
    return logits


def _transfer_set(dataset: Dataset) -> tuple[list[str], list[str], list[int]]:
    """Texts, keys and labels: `train`, and what `dapt` has beyond it, unlabelled."""
    train = dataset.read("train")
    number: Mapping[str | None, int] = {label: i for i, label in enumerate(dataset.labels)}
    seen = {row.key for row in train}
    rows = train + [row for row in dataset.read("dapt") if row.key not in seen]
    return (
        [row.message.text for row in rows],
        [row.key for row in rows],
        [number.get(row.label, _NO_LABEL) for row in rows],
    )


def loop(config: dict[str, Any]) -> None:
    """Runs on each Ray Train worker."""
    set_threads()
    seed_everything(config["seed"])
    distill: DistillConfig = config["distill"]
    source = config["teacher"]
    dataset = load_dataset(Path(config["dataset"]))
    tokenizer = TextTokenizer.from_file(Path(source) / TOKENIZER, max_tokens(source))
    texts, keys, labels = _transfer_set(dataset)
    ids = tokenizer.encode(texts)
    padder = AutoTokenizer.from_pretrained(source)
    taught = teacher_logits(load_classifier(source, dataset.labels), ids, padder.pad_token_id)

    student = load_classifier(source, dataset.labels)
    keep_layers(student, evenly_spaced(distill.layers, len(layers_of(student))))
    fitted, validated = holdout(keys)
    validated = [i for i in validated if labels[i] != _NO_LABEL]

    def part(which: list[int]) -> TokenRows:
        return TokenRows(
            [ids[i] for i in which],
            labels=[labels[i] for i in which],
            teacher=[taught[i].tolist() for i in which],
        )

    fit = Fit(epochs=distill.epochs, learning_rate=distill.learning_rate,
              batch_size=distill.batch_size, patience_epochs=distill.patience_epochs)  # fmt: skip
    trainer = _DistillTrainer(
        model=student,
        args=arguments(fit, Path.cwd(), config["seed"]),
        train_dataset=part(fitted),
        eval_dataset=part(validated),
        data_collator=DataCollatorWithPadding(padder),
        compute_metrics=accuracy,
        fit=fit,
        board=config["board"],
        distill=distill,
    )
    best = trainer.train_to_best()
    agree = [int(taught[i].argmax()) == labels[i] for i in validated]
    figures = {
        "validation_accuracy": best["eval_accuracy"],
        "validation_loss": best["eval_loss"],
        "teacher_validation_accuracy": float(np.mean(agree)),
        "validation_rows": float(len(validated)),
        "epochs": float(trainer.state.epoch or 0),
    }
    finish(trainer, student, source, figures, trainer.state.log_history)


def run(
    config: DistillConfig,
    dataset: Dataset,
    teacher: Path,
    out: Path,
    *,
    settings: Settings,
    compute: Compute,
    report: Report = silent,
) -> Trained:
    """Distils; `out` is a folder in Hugging Face's layout."""
    return fit_on_ray(
        loop, "distill", config, dataset, out, settings=settings, compute=compute, report=report,
        teacher=str(teacher)
    )  # fmt: skip
