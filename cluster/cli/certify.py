"""`firstline certify` and `replay`: a release on new messages, a policy on past ones."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.cli.report import amount, which
from cluster.cli.terminal import Json, friendly, print_json, say
from cluster.cli.tune import Agreement, CloudShare, Confidence, Cost, Loss, PerClass, Risk, limits
from cluster.errors import ConfigError, DataError
from cluster.settings import load_settings

commands = typer.Typer()


@commands.command()
@friendly
def certify(
    data: Annotated[Path, typer.Option(help="New messages; labels are not needed.")],
    release: Annotated[str | None, typer.Option(help="Default: the champion.")] = None,
    text_column: Annotated[str, typer.Option(help="Its column of texts.")] = "text",
    label_column: Annotated[
        str | None, typer.Option(help="Its column of right labels, for the accuracy lost.")
    ] = None,
    risk: Risk = None,
    agreement: Agreement = None,
    accuracy_loss: Loss = None,
    cloud_share: CloudShare = None,
    cost_usd: Cost = None,
    confidence: Confidence = 0.95,
    per_class: PerClass = False,
    drop_used: Annotated[
        bool, typer.Option("--drop-used", help="Leave out rows that made the release.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Certify a release again, on messages that it has never seen; without limits, the same ones.

    Example: firstline certify --data new.parquet --max-risk 0.01
    """
    from cluster.registry import fetch_release
    from serve_app.decide.cost import Prices
    from tune.certificate.recertify import check_bounded, limits_of, recertify

    settings = load_settings()
    found = fetch_release(settings, release or which(settings))
    given = limits(risk, agreement, accuracy_loss, cloud_share, cost_usd, default=False)
    wanted = limits_of(found, given)
    wanted.check(Prices.model_validate(found.prices), confidence)
    _require_label_column(wanted, label_column)
    if per_class:
        check_bounded(wanted)
    rows = _unused(found, data, text_column, label_column, drop_used)
    table = _scored(found, rows, data.name, wanted, confidence)
    made = recertify(found, table, wanted, confidence, per_class=per_class)
    if as_json:
        print_json(made.certificate.model_dump(mode="json"))
    else:
        _show(made, found.id)
    say(f"Wrote {made.path}.")


def _require_label_column(wanted: Any, label_column: str | None) -> None:
    """Labels may be left out, but not for the one limit that compares with them."""
    if wanted.accuracy_loss is not None and label_column is None:
        raise ConfigError(
            "--max-accuracy-loss compares with human labels, and no column of them was named. Give "
            "--label-column, or --max-risk, which needs none and bounds the accuracy lost as well."
        )


def _unused(
    release: Any, data: Path, text_column: str, label_column: str | None, drop_used: bool
) -> list[Any]:
    """The rows of a file that made nothing of the release."""
    from serve_app.guard.config import guard_config
    from train_jobs.data import read_messages
    from tune.certificate.recertify import require_unused, used_rows

    notes = Counter[str]()
    guard = guard_config(release.guard)
    rows = read_messages(data, text_column, label_column, notes, guard=guard)
    used = used_rows(release, [row.key for row in rows])
    if not drop_used:
        require_unused(release, used, len(rows), data)
    fresh = [row for place, row in enumerate(rows) if place not in used]
    if not fresh:
        raise DataError(f"All {len(rows)} rows of {data} made {release.id}. Give new messages.")
    for note, count in {**notes, "rows_that_made_the_release_left_out": len(used)}.items():
        if count:
            say(f"  {note.replace('_', ' ')}: {count}")
    return fresh


def _scored(release: Any, rows: Sequence[Any], name: str, wanted: Any, confidence: float) -> Any:
    """Both models of the release over the rows, if these are enough."""
    from cluster.bundles import load_bundle
    from cluster.files import sha256_json
    from cluster.progress import stage
    from serve_app.model.classifier import OnnxClassifier
    from tune.certificate.certify import require_rows
    from tune.replay import replay

    require_rows(len(rows), name, wanted, confidence)
    manifest = release.manifest
    edge = OnnxClassifier.of(load_bundle(release.edge_path, manifest.edge_sha256))
    cloud = OnnxClassifier.of(load_bundle(release.cloud_path, manifest.cloud_sha256))
    labels = None if rows[0].label is None else [row.label for row in rows]
    fingerprint = sha256_json(sorted(row.key for row in rows))
    with stage("replay") as report:
        return replay([row.message for row in rows], labels, edge, cloud, name, fingerprint, report)


def _show(made: Any, release: str) -> None:
    certificate = made.certificate
    typer.echo(f"Release {release} on {certificate.rows} rows of {certificate.split}, at "
               f"{certificate.confidence:.0%} confidence, if {certificate.assumes}:")  # fmt: skip
    for kind, promise in certificate.promises.items():
        limit, seen, bound = (
            amount(kind, value) for value in (promise.limit, promise.observed, promise.bound)
        )
        typer.echo(f"  {kind.replace('_', ' '):<14} {limit} holds; {seen} seen, {bound} can be "
                   f"guaranteed ({promise.failures} of {promise.rows} rows)")  # fmt: skip
    if certificate.classes is not None:
        for item in certificate.classes.classes:
            sign = "certified" if item.certified else f"not below {item.upper_bound:.2%}"
            typer.echo(f"    {item.label:<32} {item.failures} of {item.rows} rows, {sign}")
        if few := certificate.classes.too_few:
            typer.echo(f"    too few rows (under {certificate.classes.rows_needed}): "
                       f"{', '.join(few)}")  # fmt: skip
    for line in made.rows_needed:
        typer.echo(f"  {line}")


@commands.command()
@friendly
def replay(
    policy: Annotated[Path, typer.Option(help="A candidate policy, as JSON.")],
    since: Annotated[str, typer.Option(help="7d, 24h, or a date such as 2026-01-31.")] = "7d",
    release: Annotated[str | None, typer.Option(help="That answered; the champion.")] = None,
    as_json: Json = False,
) -> None:
    """Replay another policy on the audit log: what it would have sent where, and at what cost.

    Example: firstline replay --policy candidate.json --since 7d
    """
    from cluster.audit.read import parse_since
    from cluster.registry import fetch_release
    from tune.off_policy import offline
    from tune.off_policy.logged import Served

    settings = load_settings()
    candidate = offline.load_policy(policy)
    found = fetch_release(settings, release or which(settings))
    made = offline.replay(
        settings.audit_dir, candidate, Served.of(found), parse_since(since, time.time())
    )
    if as_json:
        print_json(made.model_dump(mode="json"))
        return
    for line in offline.lines(made):
        typer.echo(line)
