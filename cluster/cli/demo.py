"""`firstline demo`: everything once, on sample messages."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from cluster.cli.report import report_of_release, show, time_one_by_one, worst
from cluster.cli.serve import read_texts, serve_config
from cluster.cli.terminal import friendly, say
from cluster.cli.tune import dataset_of, last_run, tuned
from cluster.connect import connected
from cluster.errors import ConfigError
from cluster.files import read_json, write_json
from cluster.ray_private.environment import ADDRESS
from cluster.settings import Settings, load_settings

_TIMED_MESSAGES: Final = 300
_FEEDBACK: Final = 100
_ELSEWHERE: Final = ("MLFLOW_TRACKING_URI", ADDRESS, "FIRSTLINE_RAY_ADDRESS")
_DEMO_ROWS: Final = 7000
_MARK: Final = "demo.json"
# Scoring a row costs a hundredth of training on it, and every row narrows the certificate.
_DEMO_CERTIFY_SHARE: Final = 0.3
commands = typer.Typer()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _raw_test(settings: Settings, samples: Path) -> tuple[list[str], list[str]]:
    """The test split as customers wrote it: a dataset holds masked text, traffic does not."""
    from serve_app.guard.prepare import prepare
    from train_jobs.data import load_dataset

    raw = {prepare(text).text: text for text in read_texts(samples, "text", None)[0]}
    test = load_dataset(dataset_of(settings, last_run(settings))).read("test")
    return [raw[row.message.text] for row in test], [str(row.label) for row in test]


def _traffic(settings: Settings, url: str, texts: Sequence[str], labels: Sequence[str]) -> float:
    """Real HTTP: the whole split in lists, feedback, then one by one; the accuracy seen."""
    from serve_app.client import Firstline

    with Firstline(url) as client:
        answers = client.classify(texts)
        for answer, label in list(zip(answers, labels, strict=True))[:_FEEDBACK]:
            client.feedback(answer["id"], label)
        time_one_by_one(settings, client, texts[:_TIMED_MESSAGES], answers[0]["release"])
    right: int = sum(a["label"] == label for a, label in zip(answers, labels, strict=True))
    return right / len(answers)


# ---- a home of its own --------------------------------------------------------------------------


def _clear(settings: Settings, yes: bool) -> None:
    """An empty home for the demo; what is not its own is deleted only by a word.

    Raises:
        ConfigError: there is somebody else's, and nobody to ask.
    """
    from serve_app.service import lifecycle

    home = settings.home
    theirs = _not_ours(settings)
    if theirs and not yes:
        question = f"{home} holds {theirs}. Delete it, with all that is in it?"
        if not sys.stdin.isatty():
            raise ConfigError(
                f"{home} holds {theirs}, and the demo would delete it. Move it away, set "
                "FIRSTLINE_HOME to another folder, or say --yes."
            )
        typer.confirm(question, abort=True, err=True)
    lifecycle.stop(settings)
    if home.exists():
        shutil.rmtree(home)
    home.mkdir(parents=True)
    write_json(home / _MARK, {"audit_bytes": None})


def _not_ours(settings: Settings) -> str | None:
    """What of the folder no demo has made; None if all of it may go."""
    from serve_app.access.keys import FILE
    from serve_app.service import lifecycle

    home = settings.home
    if home.is_symlink() or (home.exists() and not home.is_dir()):
        return "no folder of a demo"
    if not home.exists() or not any(home.iterdir()):
        return None
    if not (home / _MARK).is_file():
        return "files that no demo of this version has made"
    if (home / FILE).exists():
        return "API keys"
    if (state := lifecycle.status(settings)).running or state.starting:
        return "a service that runs"
    known = read_json(home / _MARK).get("audit_bytes")
    if known is not None and _audit_bytes(settings) != known:
        return "an audit log of more than the demo's answers"
    return None


def _audit_bytes(settings: Settings) -> int:
    """Of the records; the monitor's file beside them changes by itself."""
    if not settings.audit_dir.is_dir():
        return 0
    kept = settings.audit_dir.iterdir()
    return sum(path.stat().st_size for path in kept if not path.name.startswith("."))


@commands.command()
@friendly
def demo(
    rows: Annotated[int, typer.Option(min=1000, help="Sample messages.")] = _DEMO_ROWS,
    epochs: Annotated[float | None, typer.Option(help="Of training, at most.")] = None,
    risk: Annotated[float, typer.Option(help="Accuracy to give up.")] = 0.02,
    yes: Annotated[
        bool, typer.Option("--yes", help="Delete <home>/demo, whoever made what is in it.")
    ] = False,
) -> None:
    """Run everything once on sample messages: train, tune, serve, traffic, report.

    It has a home of its own, <home>/demo, and deletes what the last demo made there.

    Example: firstline demo
    """
    from cluster.registry import fetch_release, promote
    from serve_app.service import lifecycle
    from train_jobs.pipeline import configure, run
    from train_jobs.samples.generator import write_csv
    from tune.certificate.limits import Limits
    from tune.release import TuneConfig, write_report

    for name in _ELSEWHERE:  # the demo is this machine's alone
        os.environ.pop(name, None)
    settings = load_settings(load_settings().home / "demo")
    _clear(settings, yes)
    samples = settings.home / "samples.csv"
    write_csv(samples, rows, settings.seed)
    with connected(settings):
        config = configure(data=samples, epochs=epochs, certify_share=_DEMO_CERTIFY_SHARE)
        run(config, settings)
        figures = tuned(settings, TuneConfig(limits=Limits(risk=risk)))
    release = fetch_release(settings, figures.release)
    promote(settings, release.id)
    texts, labels = _raw_test(settings, samples)
    say("Serving it ...")
    try:
        info = lifecycle.start(settings, release.id, serve_config(None, "127.0.0.1", _free_port()))
        seen = _traffic(settings, info.url, texts, labels)
    finally:
        lifecycle.stop(settings)
    write_json(settings.home / _MARK, {"audit_bytes": _audit_bytes(settings)})
    _, figures = report_of_release(settings, release.id)
    data, page = write_report(release, figures, settings.home, worst(settings, release))
    show(figures)
    typer.echo(f"  {'accuracy over HTTP':<24} {seen:7.2%}")
    typer.echo(f"Wrote {data} and {page}.")
