"""Stage 3: an encoder and the `train` split -> the cloud classifier (Ray Train).

In two stages, as published: the head alone with the backbone frozen, then the whole model at a
smaller rate. Early stopping judges on a tenth of `train` held out by content hash, and the best
weights are put back.
"""

from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Final

from transformers import AutoTokenizer, DataCollatorWithPadding

from cluster.bundles import TOKENIZER
from cluster.progress import Report, silent
from cluster.settings import Settings
from serve_app.text import TextTokenizer
from train_jobs.data import Dataset, load_dataset
from train_jobs.encoders import first_position_only, load_classifier, max_tokens
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
    in_turn,
    seed_everything,
    set_threads,
)

_EPOCHS: Final = 6
_MOST_EPOCHS: Final = 40


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Rates found on Banking77's validation rows; `label_smoothing` helps with noisy labels.

    `epochs` None: as many as `min_steps` take, 6 at least. Few rows make few steps, and few steps
    can end on a plateau (Mosbach et al., "On the Stability of Fine-tuning BERT", 2021). Patience is
    of 6 epochs, and grows with them.
    """

    head_epochs: float = 1.0
    head_learning_rate: float = 1e-3
    epochs: float | None = None
    min_steps: int = 500
    learning_rate: float = 3e-4
    batch_size: int = 64
    patience_epochs: int = 2
    label_smoothing: float = 0.0

    def whole(self, rows: int, workers: int) -> Fit:
        """The second stage, on so many rows."""
        enough = ceil(self.min_steps / ceil(ceil(rows / workers) / self.batch_size))
        epochs = self.epochs or float(max(_EPOCHS, min(enough, _MOST_EPOCHS)))
        return Fit(
            epochs=epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            patience_epochs=max(
                self.patience_epochs, round(self.patience_epochs * epochs / _EPOCHS)
            ),
        )


def loop(config: dict[str, Any]) -> None:
    """Runs on each Ray Train worker."""
    set_threads()
    seed_everything(config["seed"])
    finetune: FinetuneConfig = config["finetune"]
    source = config["encoder"]
    dataset = load_dataset(Path(config["dataset"]))
    model = load_classifier(source, dataset.labels)
    first_position_only(model)
    tokenizer = TextTokenizer.from_file(Path(source) / TOKENIZER, max_tokens(source))
    rows = dataset.read("train")
    texts, labels = dataset.labelled("train")
    ids = tokenizer.encode(texts)
    fitted, validated = holdout([row.key for row in rows])

    def part(which: list[int]) -> TokenRows:
        return TokenRows([ids[i] for i in which], labels=[labels[i] for i in which])

    def trainer(fit: Fit) -> PlateauTrainer:
        args = arguments(fit, Path.cwd(), config["seed"])
        args.label_smoothing_factor = finetune.label_smoothing
        return PlateauTrainer(
            model=model,
            args=args,
            train_dataset=part(fitted),
            eval_dataset=part(validated),
            data_collator=DataCollatorWithPadding(AutoTokenizer.from_pretrained(source)),
            compute_metrics=accuracy,
            fit=fit,
            stage=config["stage"],
        )

    def set_backbone(trains: bool) -> None:
        for parameter in model.base_model.parameters():
            parameter.requires_grad = trains

    head_fit, whole_fit = in_turn(
        len(fitted),
        config["workers"],
        Fit(
            epochs=finetune.head_epochs,
            learning_rate=finetune.head_learning_rate,
            batch_size=finetune.batch_size,
        ),
        finetune.whole(len(fitted), config["workers"]),
    )
    set_backbone(trains=False)
    trainer(head_fit).train_to_best()
    set_backbone(trains=True)
    whole = trainer(whole_fit)
    best = whole.train_to_best()
    figures = {
        "validation_accuracy": best["eval_accuracy"],
        "validation_loss": best["eval_loss"],
        "validation_rows": float(len(validated)),
        "epochs": float(whole.state.epoch or 0),
    }
    finish(whole, model, source, figures)


def run(
    config: FinetuneConfig,
    dataset: Dataset,
    encoder: Path,
    out: Path,
    *,
    settings: Settings,
    compute: Compute,
    report: Report = silent,
) -> Trained:
    """Fine-tunes; `out` is a folder in Hugging Face's layout, label names in its config."""
    return fit_on_ray(
        loop, "finetune", config, dataset, out, settings=settings, compute=compute, report=report,
        encoder=str(encoder)
    )  # fmt: skip
