"""`firstline tune`: the pair that was trained last -> a certified release."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.cli.report import show
from cluster.cli.terminal import Json, Submit, friendly, print_json, say, submitted
from cluster.connect import connected
from cluster.errors import ConfigError
from cluster.files import read_json
from cluster.settings import Settings, load_settings

commands = typer.Typer()

# Limits, as `tune` and `certify` take them.
Risk = Annotated[
    float | None,
    typer.Option("--max-risk", "--risk", help="Of all messages: answered otherwise at the edge."),
]
Agreement = Annotated[
    float | None, typer.Option("--min-agreement", help="With the cloud, of those at the edge.")
]
Loss = Annotated[
    float | None,
    typer.Option("--max-accuracy-loss", help="Against cloud-only; needs labelled rows."),
]
CloudShare = Annotated[
    float | None, typer.Option("--max-cloud-share", help="Of messages that are escalated.")
]
Cost = Annotated[float | None, typer.Option("--max-cost-usd", help="Of a message, on average.")]
Confidence = Annotated[float, typer.Option(help="Of the certificate.")]
PerClass = Annotated[
    bool, typer.Option("--per-class", help="Certify the risk of each predicted class too.")
]
DEFAULT_RISK = 0.01


def last_run(settings: Settings) -> Mapping[str, Any]:
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


def dataset_of(settings: Settings, run: Mapping[str, Any]) -> Path:
    """Where a run's dataset lies now: in this home, wherever it lay when it was made."""
    named = Path(run["dataset"])
    here = settings.home / "datasets" / named.name
    return here if here.is_dir() else settings.home / named


def tuned(settings: Settings, config: Any) -> Any:
    """Replay, sweep, certify and release the pair that was trained last; the report.

    What nothing can meet is refused before anything runs, or as soon as a message's price is known.
    """
    from cluster.bundles import load_bundle
    from cluster.registry import fetch_bundle, register_release
    from train_jobs.data import load_dataset
    from train_jobs.pipeline import timed
    from tune.certificate.certify import require_rows
    from tune.certificate.recertify import USED_SPLITS
    from tune.learned import pool as pools
    from tune.release import SPLITS, Pair, Split, certified, make, sweep, tables

    last = last_run(settings)
    dataset = load_dataset(dataset_of(settings, last))
    config.check(dataset.labels)
    hashes = {role: last[role]["sha256"] for role in ("edge", "cloud")}
    bundles = {
        role: load_bundle(fetch_bundle(settings, role, sha256), sha256)
        for role, sha256 in hashes.items()
    }
    pair = Pair(bundles["edge"], bundles["cloud"], dataset.fingerprint)
    pair.check()
    require_rows(dataset.rows["certify"], "certify", config.limits, config.confidence)
    used = {name: [row.key for row in dataset.read(name)] for name in USED_SPLITS}
    splits = {
        name: Split([r.message for r in rows], [str(r.label) for r in rows])
        for name in SPLITS
        for rows in [dataset.read(name)]
    }
    stages_s: dict[str, float] = dict(last["stages_s"])
    with timed("replay", stages_s) as report:
        made = tables(pair, splits, settings, report)
    config.wanted(made["tune"]).check()
    with timed("scorers", stages_s) as report:
        pool = pools.pool(made["tune"], made["calibration"], report)
    with timed("sweep", stages_s) as report, connected(settings):
        result = sweep(config, made["tune"], pool, settings, report)
    with timed("certify", stages_s):
        selection = certified(config, result, pool, made)
    with timed("release", stages_s):
        release, figures = make(config, pair, made, result, selection, used, stages_s, settings)
        register_release(settings, release)
    say(f"{result.policies_evaluated:,} policies in {result.trials} trials.")
    return figures


@commands.command()
@friendly
def tune(
    risk: Risk = None,
    agreement: Agreement = None,
    accuracy_loss: Loss = None,
    cloud_share: CloudShare = None,
    cost_usd: Cost = None,
    confidence: Confidence = 0.95,
    trials: Annotated[int | None, typer.Option(min=1, help="Of Ray Tune.")] = None,
    edge_usd: Annotated[float | None, typer.Option(help="An edge answer; 0.001.")] = None,
    cloud_usd: Annotated[float | None, typer.Option(help="A cloud answer; 0.0136.")] = None,
    edge_usd_per_s: Annotated[
        float | None, typer.Option(help="Of the edge's machine, instead.")
    ] = None,
    cloud_usd_per_s: Annotated[
        float | None, typer.Option(help="Of the cloud's machine, instead.")
    ] = None,
    always_escalate: Annotated[
        list[str] | None, typer.Option(help="A class for the cloud; may repeat.")
    ] = None,
    never_escalate: Annotated[
        list[str] | None, typer.Option(help="A class for the edge; may repeat.")
    ] = None,
    escalation_words: Annotated[
        bool, typer.Option("--escalation-words", help="Words such as lawyer go to the cloud.")
    ] = False,
    max_words: Annotated[int | None, typer.Option(help="Longer goes to the cloud.")] = None,
    max_distance: Annotated[
        float | None, typer.Option(help="Further from the training data: to the cloud.")
    ] = None,
    per_class: PerClass = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Escalate classes that cannot be certified.")
    ] = False,
    submit: Submit = False,
    as_json: Json = False,
) -> None:
    """Sweep the router's policies, certify the choice and make a release of it.

    Without a limit of quality the risk may be 1%.

    Example: firstline tune --max-risk 0.01 --confidence 0.95
    """
    settings = load_settings()
    if submit:
        submitted(settings)
    from tune.release import Pricing, TuneConfig

    rules = _rules(
        always_escalate=tuple(always_escalate or ()),
        never_escalate=tuple(never_escalate or ()),
        escalation_words=escalation_words,
        max_words=max_words,
        max_distance=max_distance,
    )
    config = TuneConfig(
        limits=limits(risk, agreement, accuracy_loss, cloud_share, cost_usd),
        confidence=confidence,
        pricing=Pricing(
            edge_usd=edge_usd, cloud_usd=cloud_usd,
            edge_usd_per_s=edge_usd_per_s, cloud_usd_per_s=cloud_usd_per_s,
        ),
        rules=rules,
        per_class=per_class or strict,
        strict=strict,
        **({} if trials is None else {"trials": trials}),
    )  # fmt: skip
    report = tuned(settings, config)
    if as_json:
        print_json(report.model_dump(mode="json"))
        return
    show(report)
    say(f"Next: firstline serve --release {report.release}")


def limits(
    risk: float | None, agreement: float | None, accuracy_loss: float | None,
    cloud_share: float | None, cost_usd: float | None, *, default: bool = True,
) -> Any:  # fmt: skip
    """The limits that were given; the default risk where none of them is of quality."""
    from tune.certificate.limits import OPTION, Limits

    unlimited = default and risk is None and agreement is None and accuracy_loss is None
    return _checked(
        Limits, OPTION, risk=DEFAULT_RISK if unlimited else risk, agreement=agreement,
        accuracy_loss=accuracy_loss, cloud_share=cloud_share, cost_usd=cost_usd,
    )  # fmt: skip


def _rules(**given: Any) -> Any:
    from serve_app.decide.policy import Rules

    return _checked(Rules, {name: f"--{name.replace('_', '-')}" for name in given}, **given)


def _checked(model: Any, options: Mapping[Any, str], **given: Any) -> Any:
    """A model of options; what it refuses is told by the name of the option."""
    from pydantic import ValidationError

    try:
        return model(**given)
    except ValidationError as error:
        found = error.errors()[0]
        named = [f"{options[key]} is {given[key]}: " for key in map(str, found["loc"][:1])]
        problem = found["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{''.join(named)}{problem}. Correct the option.") from None
