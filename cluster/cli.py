"""The `firstline` command: the composition root, the one file that may import from all folders.

Each command reads its options, calls the stage that does the work, and prints. An error that a
user can act on is a paragraph on stderr and exit code 2; `--json` prints what a program reads.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import wraps
from math import inf
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cluster.connect import connected
from cluster.errors import ConfigError, DataError, FirstlineError, ServiceError
from cluster.files import read_json, write_json
from cluster.settings import Settings, load_settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Hybrid edge/cloud text classification on Ray, with a certified escalation rule.",
)
releases_app = typer.Typer(no_args_is_help=True, help="List and move releases.")
app.add_typer(releases_app, name="releases")

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Submit = Annotated[bool, typer.Option("--submit", help="Run as a job on the Ray cluster.")]

_PATH_OPTIONS: Final = frozenset({"--data", "--test", "--unlabelled", "--limits", "--base"})
_TIMED_MESSAGES: Final = 300
_WARM_UP: Final = 20
_FEEDBACK: Final = 100
_ELSEWHERE: Final = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "FIRSTLINE_RAY_ADDRESS")
_DEMO_ROWS: Final = 7000
_DEMO_EPOCHS: Final = 7.0
_DEMO_MORE_DISTILLATION: Final = 3.0
# Scoring a row costs a hundredth of training on it, and every row narrows the certificate.
_DEMO_CERTIFY_SHARE: Final = 0.3


def _say(line: str = "") -> None:
    typer.echo(line, err=True)


def _print(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _friendly(command: Callable[..., Any]) -> Callable[..., Any]:
    """A FirstlineError, or a full disk, becomes a paragraph and exit code 2."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except FirstlineError as error:
            _say(f"firstline: {error}")
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            _say(f"firstline: {error.strerror or error}{where}")
        except Exception as error:
            if not type(error).__module__.startswith("mlflow."):
                raise
            _say(f"firstline: MLflow refused, or does not answer: {str(error).splitlines()[0]} "
                 "Check MLFLOW_TRACKING_URI, and that the server is up.")  # fmt: skip
        raise typer.Exit(2)

    return wrapped


def _submitted(settings: Settings) -> None:
    """Runs these same words, `--submit` left out and paths made absolute, as a Ray job."""
    from cluster.jobs import submit

    words = [word for word in sys.argv[1:] if word != "--submit"]
    raise typer.Exit(submit(_with_absolute_paths(words), settings))


def _with_absolute_paths(words: Sequence[str]) -> list[str]:
    """The values of path options made absolute; a job runs in another folder."""
    made: list[str] = []
    for before, word in zip(("", *words), words, strict=False):
        option, equals, value = word.partition("=")
        if option in _PATH_OPTIONS and equals:
            made.append(f"{option}={_absolute(value)}")
        else:
            made.append(_absolute(word) if before in _PATH_OPTIONS else word)
    return made


def _absolute(value: str) -> str:
    # --base may be a hub id, which is no path here.
    return str(Path(value).absolute()) if Path(value).exists() else value


# -- train ----------------------------------------------------------------------------------------


@app.command()
@_friendly
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
        float | None, typer.Option(help="Of fine-tuning and distillation, at most.")
    ] = None,
    dapt_epochs: Annotated[float | None, typer.Option(help="Of domain adaptation.")] = None,
    student_layers: Annotated[int | None, typer.Option(help="Of the edge model.")] = None,
    certify_share: Annotated[
        float | None, typer.Option(help="Of the rows not in test; more certify more.")
    ] = None,
    limits: Annotated[Path | None, typer.Option(help="JSON of the gate's limits.")] = None,
    num_workers: Annotated[int, typer.Option(min=1, help="Ray Train workers.")] = 1,
    submit: Submit = False,
    as_json: Json = False,
) -> None:
    """Train, compress, calibrate, gate and register an edge/cloud pair.

    Example: firstline train --data messages.csv --text-column text --label-column label
    """
    settings = load_settings()
    if submit:
        _submitted(settings)
    from train_jobs.pipeline import configure, run

    config = configure(
        data=data, text_column=text_column, label_column=label_column, test=test,
        unlabelled=unlabelled, base=base, epochs=epochs, dapt_epochs=dapt_epochs,
        student_layers=student_layers, certify_share=certify_share, limits=limits,
        num_workers=num_workers,
    )  # fmt: skip
    result = run(config, settings)
    if as_json:
        _print(result.summary())
        return
    for check in result.checks:
        _say(f"  {check}")
    _say(f"Registered edge {result.edge.sha256[:12]} and cloud {result.cloud.sha256[:12]}.")
    _say("Next: firstline tune --risk 0.01")


# -- tune -----------------------------------------------------------------------------------------


def _last_run(settings: Settings) -> Mapping[str, Any]:
    file = settings.home / "run.json"
    if not file.is_file():
        raise ConfigError(f"Nothing was trained in {settings.home} yet. Run `firstline train`.")
    try:
        run: Mapping[str, Any] = read_json(file)
    except ValueError as error:
        raise ConfigError(
            f"{file} cannot be read ({error}). Run `firstline train` again."
        ) from None
    return run


def _tuned(settings: Settings, config: Any) -> Any:
    """Replay, sweep, certify and release the pair that was trained last; the report."""
    from cluster.bundles import load_bundle
    from cluster.registry import fetch_bundle, register_release
    from train_jobs.data import load_dataset
    from train_jobs.pipeline import timed
    from tune.certify import require_rows
    from tune.release import SPLITS, Pair, Split, certified, make, sweep, tables

    last = _last_run(settings)
    dataset = load_dataset(Path(last["dataset"]))
    hashes = {role: last[role]["sha256"] for role in ("edge", "cloud")}
    bundles = {
        role: load_bundle(fetch_bundle(settings, role, sha256), sha256)
        for role, sha256 in hashes.items()
    }
    pair = Pair(bundles["edge"], bundles["cloud"], dataset.fingerprint)
    pair.check()
    require_rows(dataset.rows["certify"], "certify", config.risk, config.confidence)
    splits = {
        name: Split([r.message for r in rows], [str(r.label) for r in rows])
        for name in SPLITS
        for rows in [dataset.read(name)]
    }
    stages_s: dict[str, float] = dict(last["stages_s"])
    folder = settings.home / "tables" / f"{pair.edge.sha256[:8]}-{pair.cloud.sha256[:8]}"
    with timed("replay", stages_s) as report:
        made = tables(pair, splits, folder, report)
    with timed("sweep", stages_s) as report, connected(settings):
        result = sweep(config, made["tune"], settings, report)
    with timed("certify", stages_s):
        selection = certified(config, result, made)
    with timed("release", stages_s):
        release, figures = make(config, pair, made, result, selection, stages_s, settings)
        register_release(settings, release)
    _say(f"{result.policies_evaluated:,} policies in {result.trials} trials.")
    return figures


@app.command()
@_friendly
def tune(
    risk: Annotated[float, typer.Option(help="Accuracy to give up against cloud-only.")] = 0.01,
    confidence: Annotated[float, typer.Option(help="Of the certificate.")] = 0.95,
    trials: Annotated[int, typer.Option(min=1, help="Of Ray Tune.")] = 64,
    edge_usd: Annotated[float, typer.Option(help="Price of an edge answer.")] = 0.001,
    cloud_usd: Annotated[float, typer.Option(help="Price of a cloud answer.")] = 0.0136,
    submit: Submit = False,
    as_json: Json = False,
) -> None:
    """Sweep the router's policies, certify the choice and make a release of it.

    Example: firstline tune --risk 0.01 --confidence 0.95
    """
    settings = load_settings()
    if submit:
        _submitted(settings)
    from serve_app.cost import Prices
    from tune.release import TuneConfig

    if not (0 < edge_usd < inf and 0 < cloud_usd < inf):
        raise ConfigError(
            "Prices must be above zero and finite; "
            f"--edge-usd is {edge_usd}, --cloud-usd {cloud_usd}."
        )
    prices = Prices(edge_usd=edge_usd, cloud_usd=cloud_usd)
    report = _tuned(
        settings, TuneConfig(risk=risk, confidence=confidence, trials=trials, prices=prices)
    )
    if as_json:
        _print(report.model_dump(mode="json"))
        return
    _show(report)
    _say(f"Next: firstline serve --release {report.release}")


# -- report ---------------------------------------------------------------------------------------


def _latency_file(settings: Settings, release_id: str) -> Path:
    return settings.home / "latency" / f"{release_id}.json"


def _time(
    settings: Settings, client: Any, texts: Sequence[str], release_id: str
) -> dict[str, float] | None:
    """Asks one text per request, end to end, and keeps p50 and p95 for the release's report."""
    import numpy as np

    if not texts:
        return None
    for _ in client.timed(texts[:_WARM_UP]):
        pass
    p50, p95 = np.percentile(list(client.timed(texts)), (50, 95))
    latency = {"p50": round(float(p50), 2), "p95": round(float(p95), 2)}
    write_json(_latency_file(settings, release_id), latency)
    return latency


def _report(settings: Settings, release_id: str | None) -> tuple[Any, Any]:
    """The release asked for, or the champion, or the newest; and its report."""
    from cluster.registry import fetch_release
    from tune.release import report_of
    from tune.report import Latency

    release = fetch_release(settings, release_id or _which(settings))
    file = _latency_file(settings, release.id)
    latency = Latency.model_validate(read_json(file)) if file.is_file() else None
    return release, report_of(release, latency)


def _which(settings: Settings) -> str:
    from cluster.errors import ReleaseError
    from cluster.registry import champion
    from cluster.releases import list_releases

    found = champion(settings) or next(reversed(list_releases(settings)), None)
    if found is None:
        raise ReleaseError(f"There is no release in {settings.home}. Run `firstline tune`.")
    return found


def _ms(value: float | None) -> str:
    return "never served" if value is None else f"{value:.1f} ms"


def _show(report: Any) -> None:
    """The summary table."""
    spans, certificate = report.intervals, report.certificate

    def share(value: float, span: tuple[float, float]) -> str:
        return f"{value:7.2%}   ({span[0]:.2%} to {span[1]:.2%})"

    rows = [
        ("accuracy, edge alone", share(report.accuracy.edge, spans.accuracy.edge)),
        ("accuracy, cloud alone", share(report.accuracy.cloud, spans.accuracy.cloud)),
        ("accuracy, cascade", share(report.accuracy.cascade, spans.accuracy.cascade)),
        ("answered at the edge", share(report.edge_share, spans.edge_share)),
        ("differs from the cloud", share(report.risk, spans.risk)),
        ("certified risk", f"{certificate.risk:7.2%}   at {certificate.confidence:.0%} confidence,"
         f" {certificate.failures} failures in {certificate.rows} rows"),
        ("cost per message", f"${report.cost.per_message_usd:.5f}   "
         f"({report.cost.savings_vs_cloud_only:.1%} less than cloud-only)"),
        ("size, edge", f"{report.size_bytes.edge / 1e6:.1f} MB   "
         f"({1 - report.size_bytes.edge / report.size_bytes.cloud:.1%} less than the cloud's "
         f"{report.size_bytes.cloud / 1e6:.1f} MB)"),
        ("end to end, p50 / p95", f"{_ms(report.latency_ms.p50)} / {_ms(report.latency_ms.p95)}"),
    ]  # fmt: skip
    typer.echo(f"Release {report.release}, split {report.split!r}, {report.rows} rows, "
               "95% intervals in brackets")  # fmt: skip
    for name, value in rows:
        typer.echo(f"  {name:<24} {value}")


@app.command()
@_friendly
def report(
    release: Annotated[str | None, typer.Option(help="Default: the champion.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write report.json and report.html into this folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a release: accuracy, edge share, certificate, cost, size and latency.

    Example: firstline report --out report/
    """
    from tune.release import write_report

    found, figures = _report(load_settings(), release)
    if out is not None:
        data, page = write_report(found, figures, out)
        _say(f"Wrote {data} and {page}.")
    if as_json:
        _print(figures.model_dump(mode="json"))
    elif out is None:
        _show(figures)


# -- releases -------------------------------------------------------------------------------------


@releases_app.command("list")
@_friendly
def releases_list(as_json: Json = False) -> None:
    """List every registered release; `*` marks the champion.

    Example: firstline releases list
    """
    from dataclasses import asdict

    from cluster.registry import list_registered

    found = list_registered(load_settings())
    if as_json:
        _print([asdict(item) for item in found])
        return
    if not found:
        _say("No release is registered. Run `firstline tune`.")
    for item in found:
        typer.echo(f"{'*' if item.champion else ' '} {item.id}  risk {item.risk:.2%} at "
                   f"{item.confidence:.0%}  edge {item.edge_sha256[:12]}  "
                   f"cloud {item.cloud_sha256[:12]}  {item.created_at}")  # fmt: skip


@releases_app.command("show")
@_friendly
def releases_show(release: Annotated[str, typer.Argument(help="Its id.")]) -> None:
    """Print a release's manifest, policy and certificate as JSON.

    Example: firstline releases show r-0123456789
    """
    from cluster.registry import fetch_release

    found = fetch_release(load_settings(), release)
    _print({"manifest": found.manifest.model_dump(mode="json"), "policy": found.policy,
            "certificate": found.certificate, "prices": found.prices})  # fmt: skip


def _move(settings: Settings, target: str, alias: Callable[[], Any]) -> None:
    """Moves a running service first, the alias after: the registry never names what is not up."""
    from serve_app import service

    running = service.status(settings).running
    if running:
        service.promote(settings, target)
    alias()
    _say(f"{target} is the champion{' and answers now' if running else ''}.")


@releases_app.command("promote")
@_friendly
def releases_promote(release: Annotated[str, typer.Argument(help="Its id.")]) -> None:
    """Make a release the champion; a running service moves to it without a restart.

    Example: firstline releases promote r-0123456789
    """
    from cluster.registry import fetch_release, promote

    settings = load_settings()
    fetch_release(settings, release)
    _move(settings, release, lambda: promote(settings, release))


@releases_app.command("rollback")
@_friendly
def releases_rollback() -> None:
    """Go back to the release that answered before; a running service moves at once.

    Example: firstline releases rollback
    """
    from cluster.registry import rollback, rollback_target

    settings = load_settings()
    _move(settings, rollback_target(settings), lambda: rollback(settings))


# -- serve, classify, status, stop ----------------------------------------------------------------


@app.command()
@_friendly
def serve(
    release: Annotated[
        str | None, typer.Option(help="Default: the champion, or the newest.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    config: Annotated[
        Path | None, typer.Option(help="JSON of serving options, see docs/serving.md.")
    ] = None,
    detach: Annotated[bool, typer.Option(help="Return when it answers.")] = False,
) -> None:
    """Serve a release over HTTP until Ctrl-C; it becomes the champion.

    Example: firstline serve --port 8000
    """
    from cluster.registry import fetch_release, promote
    from serve_app import service

    settings = load_settings()
    options = _serve_config(config, host, port)
    wanted = fetch_release(settings, release or _which(settings)).id
    _say(f"Starting release {wanted} on http://{host}:{port} ...")

    def up(info: Any) -> None:
        with suppress(FirstlineError):  # a release that was never registered can still be served
            promote(settings, wanted)
        _say(f"Serving {info.release} at {info.url} (docs at {info.url}/docs).")

    if detach:
        up(service.start(settings, wanted, options))
    else:
        service.run(settings, wanted, options, on_ready=up)


def _serve_config(file: Path | None, host: str, port: int) -> Any:
    from pydantic import ValidationError

    from serve_app.app import ServeConfig

    try:
        given = read_json(file) if file else {}
        return ServeConfig.model_validate({**given, "host": host, "port": port})
    except FileNotFoundError:
        raise ConfigError(f"There is no file {file}.") from None
    except (ValidationError, ValueError, TypeError) as error:
        raise ConfigError(f"{file or 'The options'} cannot be used: {error}") from None


def _url(settings: Settings, url: str | None) -> str:
    from serve_app import service

    if url:
        return url
    info = service.status(settings).info
    if info is None:
        raise ServiceError("No service is running here. Start one with `firstline serve`.")
    return str(info.url)


def _read_texts(
    file: Path, text_column: str, label_column: str | None
) -> tuple[list[str], list[str]]:
    from serve_app.text import normalise
    from train_jobs.data import read_rows

    columns = [text_column, *([label_column] if label_column else [])]
    rows = [values for _, values in read_rows(file, columns)]
    return [row[0] for row in rows], [normalise(row[1]) for row in rows] if label_column else []


@app.command()
@_friendly
def classify(
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to classify.")] = None,
    file: Annotated[Path | None, typer.Option(help="CSV, JSONL or Parquet of texts.")] = None,
    text_column: Annotated[str, typer.Option()] = "text",
    label_column: Annotated[
        str | None, typer.Option(help="A column of right labels: prints the accuracy.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the answers as JSONL.")] = None,
    url: Annotated[str | None, typer.Option(help="Default: the service started here.")] = None,
    explain: Annotated[bool, typer.Option(help="Say why, for each answer.")] = False,
    timed: Annotated[
        int, typer.Option(min=0, help="Then ask so many one by one, and keep p50 and p95.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Classify texts over HTTP.

    Example: firstline classify "Where is my card?"
    """
    from cluster.files import write_text
    from serve_app.client import Firstline

    if bool(texts) == bool(file):
        raise DataError("Give texts, or a file with --file, and not both.")
    labels: list[str] = []
    if file is not None:
        texts, labels = _read_texts(file, text_column, label_column)
    assert texts is not None
    settings = load_settings()
    with Firstline(_url(settings, url)) as client:
        answers = client.classify(texts, explain=explain)
        latency = _time(settings, client, texts[:timed], answers[0]["release"])
    if out is not None:
        write_text(out, "".join(json.dumps(a, ensure_ascii=False) + "\n" for a in answers))
        _say(f"Wrote {len(answers)} answers to {out}.")
    if as_json:
        _print(answers)
    elif file is None:
        for answer in answers:
            typer.echo(f"{answer['label']}  {answer['confidence']:.3f}  {answer['route']} "
                       f"({answer['reason']})")  # fmt: skip
            if explain:
                _print(answer["explanation"])
    if file is not None and not as_json:
        _summarise(answers, labels)
    if latency is not None:
        p50, p95 = _ms(latency["p50"]), _ms(latency["p95"])
        _say(f"one by one, end to end over HTTP: p50 {p50}, p95 {p95}")


def _summarise(answers: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> None:
    edge = sum(answer["route"] == "edge" for answer in answers)
    cost = sum(answer["cost_usd"] for answer in answers) / len(answers)
    typer.echo(f"{len(answers)} answers, {edge / len(answers):.1%} at the edge, "
               f"${cost:.5f} per message")  # fmt: skip
    if labels:
        right = sum(a["label"] == label for a, label in zip(answers, labels, strict=True))
        typer.echo(f"accuracy {right / len(answers):.2%} ({right} of {len(answers)})")


@app.command()
@_friendly
def status(as_json: Json = False) -> None:
    """Show what is running.

    Example: firstline status
    """
    from serve_app import service

    found = service.status(load_settings())
    if as_json:
        _print(found.model_dump(mode="json"))
    elif not found.running or found.info is None:
        typer.echo("No service is running.")
    else:
        typer.echo(f"{found.info.release} at {found.info.url}: "
                   f"{'ready' if found.ready else 'not ready'}")  # fmt: skip
        for name, states in sorted(found.replicas.items()):
            typer.echo(f"  {name:<40} {', '.join(f'{n} {s}' for s, n in states.items())}")
    for line in found.problems:
        _say(f"  {line}")


@app.command()
@_friendly
def stop() -> None:
    """Stop the service that was started here, and every process of it.

    Example: firstline stop
    """
    from serve_app import service

    _say("Stopped." if service.stop(load_settings()) else "No service was running.")


@app.command()
@_friendly
def compact(
    days: Annotated[int, typer.Option(min=1, help="Leave so many of the newest alone.")] = 7,
) -> None:
    """Pack the audit log's older days into one Parquet file each; nothing is lost.

    Example: firstline compact --days 7
    """
    from datetime import UTC, datetime, timedelta

    from cluster.audit import compact as pack

    before = datetime.now(UTC).date() - timedelta(days=days - 1)
    made = pack(load_settings().audit_dir, before)
    _say(f"Packed {made.records} records into {len(made.files)} files.")
    for path in made.left:
        _say(f"  left as it is, a line of it is corrupt: {path}")


# -- demo -----------------------------------------------------------------------------------------


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _raw_test(settings: Settings, samples: Path) -> tuple[list[str], list[str]]:
    """The test split as customers wrote it: a dataset holds masked text, traffic does not."""
    from serve_app.text import prepare
    from train_jobs.data import load_dataset

    raw = {prepare(text).text: text for text in _read_texts(samples, "text", None)[0]}
    test = load_dataset(Path(_last_run(settings)["dataset"])).read("test")
    return [raw[row.message.text] for row in test], [str(row.label) for row in test]


def _traffic(settings: Settings, url: str, texts: Sequence[str], labels: Sequence[str]) -> float:
    """Real HTTP: the whole split in lists, feedback, then one by one; the accuracy seen."""
    from serve_app.client import Firstline

    with Firstline(url) as client:
        answers = client.classify(texts)
        for answer, label in list(zip(answers, labels, strict=True))[:_FEEDBACK]:
            client.feedback(answer["id"], label)
        _time(settings, client, texts[:_TIMED_MESSAGES], answers[0]["release"])
    right: int = sum(a["label"] == label for a, label in zip(answers, labels, strict=True))
    return right / len(answers)


@app.command()
@_friendly
def demo(
    rows: Annotated[int, typer.Option(min=1000, help="Sample messages.")] = _DEMO_ROWS,
    epochs: Annotated[float, typer.Option(help="Of training, at most.")] = _DEMO_EPOCHS,
    risk: Annotated[float, typer.Option(help="Accuracy to give up.")] = 0.02,
) -> None:
    """Run everything once on sample messages: train, tune, serve, traffic, report.

    Example: firstline demo
    """
    from cluster.registry import fetch_release, promote
    from serve_app import service
    from train_jobs.pipeline import configure, run
    from train_jobs.samples import write_csv
    from tune.release import TuneConfig, write_report

    for name in _ELSEWHERE:  # the demo is this machine's alone
        os.environ.pop(name, None)
    settings = load_settings(load_settings().home / "demo")
    service.stop(settings)
    shutil.rmtree(settings.home, ignore_errors=True)
    settings.home.mkdir(parents=True)
    samples = settings.home / "samples.csv"
    write_csv(samples, rows, settings.seed)
    with connected(settings):
        config = configure(
            data=samples, epochs=epochs, dapt_epochs=1.0, certify_share=_DEMO_CERTIFY_SHARE
        )
        # The student has more to learn than the few steps of so small a run would teach it.
        longer = replace(config.distill, epochs=epochs + _DEMO_MORE_DISTILLATION)
        run(replace(config, distill=longer), settings)
        tuned = _tuned(settings, TuneConfig(risk=risk))
    release = fetch_release(settings, tuned.release)
    promote(settings, release.id)
    texts, labels = _raw_test(settings, samples)
    _say("Serving it ...")
    try:
        info = service.start(settings, release.id, _serve_config(None, "127.0.0.1", _free_port()))
        seen = _traffic(settings, info.url, texts, labels)
    finally:
        service.stop(settings)
    _, figures = _report(settings, release.id)
    data, page = write_report(release, figures, settings.home)
    _show(figures)
    typer.echo(f"  {'accuracy over HTTP':<24} {seen:7.2%}")
    typer.echo(f"Wrote {data} and {page}.")


def main() -> None:
    """The console script."""
    app(prog_name="firstline")


if __name__ == "__main__":
    main()
