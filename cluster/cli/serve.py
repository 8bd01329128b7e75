"""`firstline serve`, `classify`, `status`, `stop`, `compact`: the running service."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cluster.cli.report import ms, time_one_by_one, which
from cluster.cli.terminal import Json, friendly, print_json, say
from cluster.errors import ConfigError, DataError, FirstlineError, RegistryError, ServiceError
from cluster.files import read_json
from cluster.settings import Settings, load_settings

_SHOWN: Final = 10
commands = typer.Typer()


@commands.command()
@friendly
def serve(
    release: Annotated[
        str | None, typer.Option(help="Default: the champion, or the newest.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    config: Annotated[
        Path | None, typer.Option(help="JSON of serving options, see docs/serving.md.")
    ] = None,
    allow_open: Annotated[
        bool, typer.Option(help="Listen beyond loopback without API keys.")
    ] = False,
    detach: Annotated[bool, typer.Option(help="Return when it answers.")] = False,
) -> None:
    """Serve a release over HTTP until Ctrl-C; it becomes the champion.

    Example: firstline serve --port 8000
    """
    from cluster.registry import fetch_release, note_champion, promote
    from serve_app.service import lifecycle

    settings = load_settings()
    options = serve_config(config, host, port, allow_open)
    wanted = fetch_release(settings, release or which(settings)).id
    say(f"Starting release {wanted} on http://{host}:{port} ...")

    def up(info: Any) -> None:
        try:
            promote(settings, wanted)
        except RegistryError as error:
            note_champion(settings, wanted)
            say(f"Once the registry is back: firstline releases promote {wanted}. {error}")
        except FirstlineError:
            pass  # a release that was never registered can still be served
        say(f"Serving {info.release} at {info.url} (docs at {info.url}/docs).")

    if detach:
        up(lifecycle.start(settings, wanted, options))
    else:
        lifecycle.run(settings, wanted, options, on_ready=up)


def serve_config(file: Path | None, host: str, port: int, allow_open: bool = False) -> Any:
    from pydantic import ValidationError

    from serve_app.deploy.config import ServeConfig

    try:
        given = read_json(file) if file else {}
        chosen = {"host": host, "port": port, **({"allow_open": True} if allow_open else {})}
        return ServeConfig.model_validate({**given, **chosen})
    except FileNotFoundError:
        raise ConfigError(f"There is no file {file}.") from None
    except (ValidationError, ValueError, TypeError) as error:
        raise ConfigError(f"{file or 'The options'} cannot be used: {error}") from None


def _url(settings: Settings, url: str | None) -> str:
    from serve_app.service import lifecycle

    if url:
        return url
    info = lifecycle.status(settings).info
    if info is None:
        raise ServiceError("No service is running here. Start one with `firstline serve`.")
    return str(info.url)


def read_texts(
    file: Path, text_column: str, label_column: str | None
) -> tuple[list[str], list[str]]:
    from serve_app.guard.prepare import normalise
    from train_jobs.rows.read import read_rows

    columns = [text_column, *([label_column] if label_column else [])]
    rows = [values for _, values in read_rows(file, columns)]
    return [row[0] for row in rows], [normalise(row[1]) for row in rows] if label_column else []


@commands.command()
@friendly
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
    from serve_app.client import Firstline
    from serve_app.client.answer_file import AnswerFile, Row
    from serve_app.decide.explain import lines

    if bool(texts) == bool(file):
        raise DataError("Give texts, or a file with --file, and not both.")
    settings = load_settings()
    rows = [Row(at, None, text) for at, text in enumerate(texts or [])]
    labels: dict[int, str] = {}
    over: dict[str, Any] = {"file_sha256": None}
    if file is not None:
        rows, labels, over = _rows_of(file, text_column, label_column)
        if out is not None and out.exists() and out.samefile(file):
            raise DataError(f"--out {out} is the file to classify. Name another one.")
    into = AnswerFile(out, {**over, "explain": explain})
    with Firstline(_url(settings, url)) as client:
        if file is None:
            answers = client.classify([row.text for row in rows], explain=explain)
            into.begin()
            into.write(rows, answers)
            into.finish()
        else:
            _answer_file(client, rows, into, explain)
        asked = [row.text for row in rows if row.number in into.answers][:timed]
        answers = list(into.answers.values())
        latency = time_one_by_one(settings, client, asked, answers[0]["release"])
    if out is not None:
        say(f"Wrote {len(answers)} answers to {out}.")
    if as_json and file is not None:
        places = {row.number: row.place for row in rows}
        print_json([{**places[number], **one} for number, one in into.answers.items()])
    elif as_json:
        print_json(answers)
    elif file is None:
        for answer in answers:
            typer.echo(f"{answer['label']}  {answer['confidence']:.3f}  {answer['route']} "
                       f"({answer['reason']})")  # fmt: skip
            if explain:
                for line in lines(answer["explanation"]):
                    typer.echo(f"  {line}")
    if file is not None and not as_json:
        _summarise(into.answers, labels)
    if latency is not None:
        p50, p95 = ms(latency["p50"]), ms(latency["p95"])
        say(f"one by one, end to end over HTTP: p50 {p50}, p95 {p95}")


def _rows_of(
    file: Path, text_column: str, label_column: str | None
) -> tuple[list[Any], dict[int, str], dict[str, Any]]:
    """The rows of a file, checked; the labels by row; and what tells it from another file."""
    from serve_app.client.answer_file import Row, checked
    from serve_app.guard.prepare import normalise
    from train_jobs.scoring.chunks import Reader, hashes, plan
    from train_jobs.scoring.columns import Columns

    if not file.is_file():
        folder = " `firstline score` takes folders." if file.is_dir() else ""
        raise DataError(
            f"There is no file {file}. Give the path of a CSV, JSONL or Parquet file.{folder}"
        )
    columns = Columns(text=text_column, keep=(label_column,) if label_column else ())
    planned = plan(file, columns, hashes(file))
    reader = Reader(planned.root, columns)
    found = [row for chunk in planned.chunks for row in reader.rows(chunk)]
    rows = [Row(row.number, row.line, row.text, row.problem) for row in found]
    checked(rows)
    labels = {row.number: normalise(row.kept[0] or "") for row in found if row.kept}
    (sha256,) = planned.files.values()
    return rows, labels, {"file_sha256": sha256, "text_column": text_column}


def _answer_file(client: Any, rows: Sequence[Any], into: Any, explain: bool) -> None:
    """Says what was set aside, and what is kept where the service does not go on."""
    from serve_app.client.answer_file import answer_rows

    if into.answers:
        say(f"Going on after {len(into.answers)} answers.")
    try:
        refused = answer_rows(client, rows, into, explain=explain)
    except FirstlineError:
        if into.answers:
            say(f"{len(into.answers)} of {len(rows)} rows are answered; {into.kept}")
        raise
    if not into.answers:
        raise DataError(f"The service refused all of the {len(rows)} rows: {refused[0].problem}.")
    if refused:
        say(f"{len(refused)} of {len(rows)} rows are set aside"
            f"{f', in {into.refused}' if into.refused else ''}:")  # fmt: skip
    for row in refused[:_SHOWN]:
        say(f"  {f'row {row.number}' if row.line is None else f'line {row.line}'}: {row.problem}")
    if len(refused) > _SHOWN:
        say(f"  and {len(refused) - _SHOWN} more")


def _summarise(answers: Mapping[int, Any], labels: Mapping[int, str]) -> None:
    made = answers.values()
    edge = sum(answer["route"] == "edge" for answer in made)
    cost = sum(answer["cost_usd"] for answer in made) / len(made)
    typer.echo(f"{len(made)} answers, {edge / len(made):.1%} at the edge, "
               f"${cost:.5f} per message")  # fmt: skip
    if labels:
        right = sum(answer["label"] == labels.get(row) for row, answer in answers.items())
        typer.echo(f"accuracy {right / len(made):.2%} ({right} of {len(made)})")


@commands.command()
@friendly
def explain(
    text: Annotated[str, typer.Argument(help="One message.")],
    release: Annotated[str | None, typer.Option(help="Default: the champion.")] = None,
    url: Annotated[
        str | None, typer.Option(help="Ask a service; default: the release's edge, here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say where a message would go and why: score, threshold, rules, parts, cost, alternatives.

    Example: firstline explain "Where is my card?"
    """
    from cluster.registry import fetch_release
    from serve_app.cascade.local import explain_locally
    from serve_app.client import Firstline
    from serve_app.decide.explain import lines

    settings = load_settings()
    if url is not None:
        with Firstline(url) as client:
            made = dict(client.explain(text))
    else:
        found = fetch_release(settings, release or which(settings))
        made = explain_locally(found, text).model_dump(mode="json")
    if as_json:
        print_json(made)
        return
    for line in lines(made):
        typer.echo(line)


@commands.command()
@friendly
def status(as_json: Json = False) -> None:
    """Show what is running.

    Example: firstline status
    """
    from serve_app.service import lifecycle

    found = lifecycle.status(load_settings())
    if as_json:
        print_json(found.model_dump(mode="json"))
    elif not found.running or found.info is None:
        typer.echo("A service is starting." if found.starting else "No service is running.")
    else:
        typer.echo(f"{found.info.release} at {found.info.url}: "
                   f"{'ready' if found.ready else 'not ready'}")  # fmt: skip
        for name, states in sorted(found.replicas.items()):
            typer.echo(f"  {name:<40} {', '.join(f'{n} {s}' for s, n in states.items())}")
    for line in found.problems:
        say(f"  {line}")


@commands.command()
@friendly
def stop() -> None:
    """Stop the service that was started here, and every process of it.

    Example: firstline stop
    """
    from serve_app.service import lifecycle

    say("Stopped." if lifecycle.stop(load_settings()) else "No service was running.")


@commands.command()
@friendly
def compact(
    days: Annotated[int, typer.Option(min=1, help="Leave so many of the newest alone.")] = 7,
) -> None:
    """Pack the audit log's older days into one Parquet file each; nothing is lost.

    Example: firstline compact --days 7
    """
    from datetime import UTC, datetime, timedelta

    from cluster.audit.compact import compact as pack

    before = datetime.now(UTC).date() - timedelta(days=days - 1)
    made = pack(load_settings().audit_dir, before)
    say(f"Packed {made.records} records into {len(made.files)} files.")
    for path in made.left:
        say(f"  left as it is, a line of it is corrupt: {path}")
