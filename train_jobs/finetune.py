"""Stage 4: a first head, a recipe and the `train` split -> the cloud classifier (Ray Train).

All of `train` is learned from, the tenth too that the recipe was chosen on. Two fits from one start
differ in the order of rows and in dropout only, and the mean of their last weights is better than
either (Wortsman et al. 2022, "Model soups"). Where they start and at which rate: recipe.py.
"""

from pathlib import Path
from typing import Any

from torch import nn

from cluster.progress import Report, silent
from cluster.settings import Settings
from train_jobs.data import Dataset, load_dataset
from train_jobs.recipe import Recipe
from train_jobs.training.candidates import FinetuneConfig, label_loss, made_ready, token_rows
from train_jobs.training.encoders import averaged, only_trained
from train_jobs.training.on_ray import Compute, Trained, fit_on_ray
from train_jobs.training.trainer import finish, in_turn, placed, seed_everything, set_threads, train


def loop(config: dict[str, Any]) -> None:
    """Runs on each Ray Train worker."""
    set_threads()
    seed_everything(config["seed"])
    finetune: FinetuneConfig = config["finetune"]
    source, stage = config["start"], config["stage"]
    candidate = config["candidate"]
    dataset = load_dataset(Path(config["dataset"]))
    rows, _ = token_rows(dataset, source)
    workers = placed()[1]
    fit = finetune.fit(candidate, len(rows), workers)
    models = [made_ready(source, dataset.labels, candidate) for _ in range(candidate.fits)]
    # One module, so that a checkpoint during the second fit holds what the first one made.
    together = nn.ModuleList(models)
    for model, turn in zip(models, in_turn(len(rows), workers, *[fit] * len(models)), strict=True):
        loss = label_loss(model, candidate.smoothing)
        with only_trained(model, together):
            train(together, rows, turn, loss, stage=stage, seed=config["seed"],
                  pad=model.config.pad_token_id)  # fmt: skip
    model = averaged(models)
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
