"""Stage 4: a first head, a recipe and the `train` split -> the cloud classifier (Ray Train).

All of `train` is learned from, the tenth too that the recipe was chosen on; the last weights are
kept, at which the rate is zero. Where it starts and at which rate: recipe.py.
"""

from pathlib import Path
from typing import Any

from cluster.progress import Report, silent
from cluster.settings import Settings
from train_jobs.data import Dataset, load_dataset
from train_jobs.encoders import load_classifier, new_head
from train_jobs.recipe import FinetuneConfig, Recipe, freeze_words, label_loss, token_rows
from train_jobs.training import (
    Compute,
    Trained,
    finish,
    fit_on_ray,
    placed,
    seed_everything,
    set_threads,
    train,
)


def loop(config: dict[str, Any]) -> None:
    """Runs on each Ray Train worker."""
    set_threads()
    seed_everything(config["seed"])
    finetune: FinetuneConfig = config["finetune"]
    source, stage = config["start"], config["stage"]
    candidate = config["candidate"]
    dataset = load_dataset(Path(config["dataset"]))
    model = load_classifier(source, dataset.labels)
    if candidate.head == "new":
        new_head(model)
    freeze_words(model)
    rows, _ = token_rows(dataset, source)
    fit = finetune.fit(candidate, len(rows), placed()[1])
    train(model, rows, fit, label_loss(model), stage=stage, seed=config["seed"],
          pad=model.config.pad_token_id)  # fmt: skip
    figures = {"epochs": fit.epochs, "learning_rate": fit.learning_rate, "rows": float(len(rows))}
    finish(stage, model, source, {**figures, **config["chosen_on"]})


def run(
    config: FinetuneConfig,
    recipe: Recipe,
    dataset: Dataset,
    out: Path,
    *,
    settings: Settings,
    compute: Compute,
    report: Report = silent,
) -> Trained:
    """Fine-tunes; `out` is a folder in Hugging Face's layout, label names in its config.

    Its figures hold what the chosen recipe reached in the race, on rows that it had not learned
    from; without a race, what its first head did.
    """
    last = (
        recipe.tried[-1]
        if len(recipe.tried) == 1
        else next(one for one in recipe.tried if one.name == recipe.chosen.name)
    )
    chosen_on = {"validation_accuracy": last.accuracy, "validation_loss": last.log_loss,
                 "validation_rows": float(recipe.rows),
                 "peak_memory_mb": recipe.figures["peak_memory_mb"]}  # fmt: skip
    return fit_on_ray(
        loop, "finetune", config, dataset, out, settings=settings, compute=compute, report=report,
        start=str(recipe.start), candidate=recipe.chosen, chosen_on=chosen_on,
    )  # fmt: skip
