"""`firstline train`: a file of labelled messages -> a registered pair."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.terminal import Json, Submit, friendly, print_json, say, submitted
from cluster.settings import load_settings

commands = typer.Typer()


@commands.command()
@friendly
def train(
    data: Annotated[Path, typer.Option(help="CSV, JSONL or Parquet of labelled messages.")],
    text_column: Annotated[str, typer.Option(help="Its column of texts.")] = "text",
    label_column: Annotated[str, typer.Option(help="Its column of labels.")] = "label",
    test: Annotated[Path | None, typer.Option(help="A test file to respect.")] = None,
    unlabelled: Annotated[
        list[Path] | None, typer.Option(help="More text for domain adaptation; may repeat.")
    ] = None,
    base: Annotated[str, typer.Option(help="Hub id, local folder, or minilm.")] = "minilm",
    epochs: Annotated[
        float | None,
        typer.Option(help="Of each fit; without it, few rows get more."),
    ] = None,
    dapt_epochs: Annotated[float | None, typer.Option(help="Of domain adaptation.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Of the cloud's recipe and fit, at most.")
    ] = None,
    student_layers: Annotated[int | None, typer.Option(help="Of the edge model.")] = None,
    certify_share: Annotated[
        float | None, typer.Option(help="Of the rows not in test; more certify more.")
    ] = None,
    limits: Annotated[Path | None, typer.Option(help="JSON of the gate's limits.")] = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="Take a pair of poor quality, with warnings.")
    ] = False,
    guard: Annotated[
        Path | None, typer.Option(help="guard.json: what is harmless here (docs/guard.md).")
    ] = None,
    num_workers: Annotated[int, typer.Option(min=1, help="Ray Train workers.")] = 1,
    submit: Submit = False,
    as_json: Json = False,
) -> None:
    """Train, compress, calibrate, gate and register an edge/cloud pair.

    Example: firstline train --data messages.csv --text-column text --label-column label
    """
    settings = load_settings()
    if submit:
        submitted(settings)
    from train_jobs.pipeline import configure, run

    config = configure(
        data=data, text_column=text_column, label_column=label_column, test=test,
        unlabelled=unlabelled, base=base, epochs=epochs, dapt_epochs=dapt_epochs, minutes=minutes,
        student_layers=student_layers, certify_share=certify_share, limits=limits,
        accept=accept, num_workers=num_workers, guard=guard,
    )  # fmt: skip
    result = run(config, settings)
    if as_json:
        print_json(result.summary())
        return
    if not result.figures["dapt"]["adapted"]:
        say("The base encoder was not adapted to the domain: docs/training.md says when that pays.")
    for check in result.checks:
        say(f"  {check}")
    for warning in result.edge.manifest.warnings:
        say(f"Warning, accepted: {warning}")
    say(f"Registered edge {result.edge.sha256[:12]} and cloud {result.cloud.sha256[:12]}.")
    say("Next: firstline tune --risk 0.01")
