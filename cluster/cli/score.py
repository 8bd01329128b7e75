"""`firstline score`: a file or folder of any size through a release, without a service."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.cli.report import which
from cluster.cli.terminal import Json, Submit, friendly, print_json, say
from cluster.settings import load_settings

commands = typer.Typer()


@commands.command()
@friendly
def score(
    file: Annotated[Path, typer.Argument(help="CSV, JSONL or Parquet, or a folder of them.")],
    out: Annotated[Path, typer.Option(help="A folder; the same one again goes on.")],
    release: Annotated[str | None, typer.Option(help="Default: the champion.")] = None,
    text_column: Annotated[str, typer.Option(help="Its column of texts.")] = "text",
    id_column: Annotated[
        str | None, typer.Option(help="A column to know the rows by; row numbers are there.")
    ] = None,
    keep_columns: Annotated[
        str | None, typer.Option(help="Columns to write too, with commas: a,b.")
    ] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="Default: all of them.")] = None,
    background: Annotated[
        bool, typer.Option("--background", help="A service's job: gives way to it, and is audited.")
    ] = False,
    submit: Submit = False,
    as_json: Json = False,
) -> None:
    """Score a file of any size with a release; goes on where it was stopped.

    Example: firstline score messages.parquet --out scored
    """
    from cluster.registry import fetch_release
    from train_jobs.scoring.score import ScoreConfig, run

    settings = load_settings()
    config = ScoreConfig(
        data=file.absolute(),
        out=out.absolute(),
        release=fetch_release(settings, release or which(settings)).id,
        text_column=text_column,
        id_column=id_column,
        keep_columns=tuple(keep_columns.split(",")) if keep_columns else (),
        cpus=cpus,
        background=background,
    )
    if submit:
        from cluster.jobs import submit as submit_job

        raise typer.Exit(submit_job(words(config), settings))
    say("Reading the file and starting Ray ...")
    with ExitStack() as stack:
        summary = run(config, settings, _Late(stack))
    if as_json:
        print_json(summary.model_dump(mode="json"))
    else:
        _show(summary, out)


class _Late:
    """Begins with the first rows, so that what is left is not judged by Ray's start."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._report: Any = None

    def __call__(self, done: int, total: int, note: str = "") -> None:
        from cluster.progress import stage

        if self._report is None and done:
            self._report = self._stack.enter_context(stage("score"))
        if self._report is not None:
            self._report(done, total, note)


def words(config: Any) -> list[str]:
    """The command that does the same elsewhere; `--` keeps a file's name from being an option."""
    given = {
        "--out": config.out,
        "--release": config.release,
        "--text-column": config.text_column,
        "--id-column": config.id_column,
        "--keep-columns": ",".join(config.keep_columns) or None,
        "--cpus": config.cpus,
    }
    options = [f"{name}={value}" for name, value in given.items() if value is not None]
    flags = ["--background"] if config.background else []
    return ["score", *options, *flags, "--", str(config.data)]


def _show(summary: Any, out: Path) -> None:
    share = "" if summary.edge_share is None else f", {summary.edge_share:.1%} at the edge"
    typer.echo(f"{summary.answered} of {summary.rows} rows answered{share}, "
               f"${summary.cost_usd:.2f}, {summary.seconds:.0f} s")  # fmt: skip
    if summary.degraded:
        typer.echo(f"{summary.degraded} by the edge because the cloud's model failed")
    if summary.refused:
        typer.echo(f"{summary.refused} refused; why is in {out / 'refused.jsonl'}")
    say(f"Wrote {out / 'parts'} and {out / 'summary.json'}.")
