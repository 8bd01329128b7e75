"""`firstline report`: what a release does, in figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cluster.cli.terminal import Json, friendly, print_json, say
from cluster.errors import DataError
from cluster.files import read_json, write_json
from cluster.settings import Settings, load_settings

_WARM_UP: Final = 20
_COUNTED: Final = {"risk": "failures", "agreement": "failures", "accuracy_loss": "losses"}

commands = typer.Typer()


def latency_file(settings: Settings, release_id: str) -> Path:
    return settings.home / "latency" / f"{release_id}.json"


def time_one_by_one(
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
    write_json(latency_file(settings, release_id), latency)
    return latency


def report_of_release(settings: Settings, release_id: str | None) -> tuple[Any, Any]:
    """The release asked for, or the champion, or the newest; and its report."""
    from cluster.registry import fetch_release
    from tune.release import report_of
    from tune.reporting.models import Latency

    release = fetch_release(settings, release_id or which(settings))
    file = latency_file(settings, release.id)
    latency = Latency.model_validate(read_json(file)) if file.is_file() else None
    return release, report_of(release, latency)


def which(settings: Settings) -> str:
    """The champion, or the newest release; as this disk knows it where the registry is away."""
    from cluster.errors import RegistryError, ReleaseError
    from cluster.registry import champion, champion_here
    from cluster.releases import list_releases

    try:
        found = champion(settings)
    except RegistryError as error:
        say(f"{error} Going on with what is on this disk.")
        found = champion_here(settings)
    found = found or next(reversed(list_releases(settings)), None)
    if found is None:
        raise ReleaseError(f"There is no release in {settings.home}. Run `firstline tune`.")
    return found


def ms(value: float | None) -> str:
    return "never served" if value is None else f"{value:.1f} ms"


def show(report: Any) -> None:
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
        *((f"certified {kind.replace('_', ' ')}", _promised(kind, promise, certificate))
          for kind, promise in certificate.promises.items()),
        ("cost per message", f"${report.cost.per_message_usd:.5f}   "
         f"({_saved(report.cost.savings_vs_cloud_only)} than cloud-only)"),
        ("size, edge", f"{report.size_bytes.edge / 1e6:.1f} MB   "
         f"({1 - report.size_bytes.edge / report.size_bytes.cloud:.1%} less than the cloud's "
         f"{report.size_bytes.cloud / 1e6:.1f} MB)"),
        ("end to end, p50 / p95", f"{ms(report.latency_ms.p50)} / {ms(report.latency_ms.p95)}"),
    ]  # fmt: skip
    typer.echo(f"Release {report.release}, split {report.split!r}, {report.rows} rows, "
               "95% intervals in brackets")  # fmt: skip
    for warning in report.warnings:
        typer.echo(f"  Warning: {warning}")
    for name, value in rows:
        typer.echo(f"  {name:<24} {value}")
    typer.echo(f"What is certified assumes {certificate.assumes}.")


def _saved(share: float) -> str:
    return f"{share:.1%} less" if share >= 0 else f"{-share:.1%} more"


def amount(kind: str, value: float) -> str:
    """A figure of a limit in its unit."""
    return f"${value:.5f}" if kind == "cost_usd" else f"{value:.2%}"


def _promised(kind: str, promise: Any, certificate: Any) -> str:
    return (
        f"{amount(kind, promise.limit):>7}   at {certificate.confidence:.0%} confidence, "
        f"{promise.failures} {_COUNTED.get(kind, 'escalated')} in {promise.rows} rows"
    )


def worst(settings: Settings, release: Any) -> Any:
    """The worst disagreements on `test`, where the rows are on this machine; or none."""
    from serve_app.decide.policy import RouterPolicy
    from train_jobs.data import load_dataset
    from tune.release import table_path
    from tune.replay import load_table
    from tune.reporting.page import disagreements

    try:
        table = load_table(table_path(settings, release, "test"))
        dataset = load_dataset(settings.home / "datasets" / table.fingerprint[:16])
        policy = RouterPolicy.model_validate(release.policy)
        return disagreements(policy, table, dataset.texts("test"))
    except DataError:
        return []


@commands.command()
@friendly
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

    settings = load_settings()
    found, figures = report_of_release(settings, release)
    if out is not None:
        data, page = write_report(found, figures, out, worst(settings, found))
        say(f"Wrote {data} and {page}.")
    if as_json:
        print_json(figures.model_dump(mode="json"))
    elif out is None:
        show(figures)
