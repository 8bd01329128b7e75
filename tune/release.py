"""A trained pair and its splits -> tables -> sweep -> certified choice -> a release and report.

The tables are scored once, through the classifier that serves, and kept. Scores learn from `tune`
and `calibration`; the sweep and the choice see `tune`, the certificate `certify`, the report
`test`.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from cluster.bundles import ModelBundle, warnings_of
from cluster.errors import CertifyError, ConfigError, DataError
from cluster.files import read_json, write_json
from cluster.progress import Report as Progress
from cluster.progress import silent
from cluster.releases import REPORT, Release, create_release, identity_of
from cluster.settings import Settings
from cluster.tracking import log_stage
from serve_app.contracts import Message
from serve_app.decide.cost import Prices
from serve_app.decide.explain import ALTERNATIVES
from serve_app.decide.policy import Rules
from serve_app.model.classifier import OnnxClassifier
from tune.certificate.limits import Limits
from tune.certificate.recertify import USED, save_used
from tune.learned.pool import Scorer
from tune.replay import COLUMNS, Table, load_table, replay, save_table
from tune.reporting.models import Latency, Measured, PerTier, ReleaseReport
from tune.reporting.page import DisagreementRow, write
from tune.reporting.pictures import draw
from tune.reporting.report import build_report
from tune.select import Selection, Wanted, check_rules, select
from tune.sweep import search

PICTURES: Final = "pictures.json"
# Rows of a kept table that are scored again: signals are made by code, and code changes.
_LOOKED_AT: Final = 16
SPLITS: Final = ("calibration", "tune", "certify", "test")


@dataclass(frozen=True, kw_only=True)
class Pricing:
    """What a call costs: USD per message, or per second that a message takes. None: published."""

    edge_usd: float | None = None
    cloud_usd: float | None = None
    edge_usd_per_s: float | None = None
    cloud_usd_per_s: float | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError for prices of zero or below, and for two prices of one tier."""
        for name, value in vars(self).items():
            if value is not None and not 0 < value < float("inf"):
                option = name.replace("_", "-")
                raise ConfigError(f"Prices must be above zero and finite; --{option} is {value}.")
        for tier in ("edge", "cloud"):
            if getattr(self, f"{tier}_usd") and getattr(self, f"{tier}_usd_per_s"):
                raise ConfigError(
                    f"--{tier}-usd and --{tier}-usd-per-s are both given: a message has one price. "
                    "Leave one out."
                )

    @property
    def stated(self) -> Prices:
        """As far as they are known before a message was measured: what is not stands in no way."""
        nothing = {
            "edge_usd": None if self.edge_usd_per_s is None else sys.float_info.min,
            "cloud_usd": None if self.cloud_usd_per_s is None else sys.float_info.max,
        }
        given = {name: getattr(self, name) or usd for name, usd in nothing.items()}
        return Prices(**{name: usd for name, usd in given.items() if usd is not None})

    def of(self, table: Table) -> Prices:
        """Per message; a price per second times the mean time of a message in this table."""
        given = {
            "edge_usd": self.edge_usd,
            "cloud_usd": self.cloud_usd,
            **_timed("edge_usd", self.edge_usd_per_s, table.edge_s),
            **_timed("cloud_usd", self.cloud_usd_per_s, table.cloud_s),
        }
        return Prices(**{name: usd for name, usd in given.items() if usd is not None})


def _timed(name: str, usd_per_s: float | None, mean_s: float) -> dict[str, float]:
    return {} if usd_per_s is None else {name: usd_per_s * mean_s}


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """What a user states: what may be given up, how sure they want to be, what a call costs."""

    limits: Limits = field(default_factory=lambda: Limits(risk=0.01))
    confidence: float = 0.95
    trials: int = search.SweepConfig.trials
    pricing: Pricing = field(default_factory=Pricing)
    rules: Rules = field(default_factory=Rules)
    per_class: bool = False
    strict: bool = False

    def check(self, labels: Sequence[str]) -> None:
        """Raises ConfigError for what nothing can meet, as far as can be told before a model runs.

        Args:
            labels: all that the models answer with.
        """
        check_rules(self.rules, labels)
        limits = self.limits
        if self.pricing.edge_usd_per_s is not None:  # what a message costs is still to be measured
            limits = limits.model_copy(update={"cost_usd": None})
        self._wanted(limits, self.pricing.stated).check()

    def wanted(self, table: Table) -> Wanted:
        """The same with the prices of a message."""
        return self._wanted(self.limits, self.pricing.of(table))

    def _wanted(self, limits: Limits, prices: Prices) -> Wanted:
        return Wanted(
            limits=limits, confidence=self.confidence, prices=prices, rules=self.rules,
            per_class=self.per_class, strict=self.strict,
        )  # fmt: skip


@dataclass(frozen=True)
class Split:
    """Prepared messages and their labels, in step."""

    messages: Sequence[Message]
    labels: Sequence[str] | None


@dataclass(frozen=True)
class Pair:
    """The two bundles and the dataset that made them."""

    edge: ModelBundle
    cloud: ModelBundle
    fingerprint: str

    def check(self) -> None:
        """Raises CertifyError if the splits at hand are not those the bundles were kept from."""
        for bundle in (self.edge, self.cloud):
            trained_on = bundle.manifest.dataset.fingerprint
            if trained_on != self.fingerprint:
                raise CertifyError(
                    f"The {bundle.manifest.role} bundle was trained on the dataset "
                    f"{trained_on[:12]}, not on {self.fingerprint[:12]}: some rows to certify on "
                    "may be rows it was trained on. Use the dataset that the pair came from."
                )


def tables(
    pair: Pair, splits: Mapping[str, Split], settings: Settings, progress: Progress = silent
) -> dict[str, Table]:
    """Scores every split once and keeps the tables as Parquet; those that still hold are read."""
    edge, cloud = OnnxClassifier.of(pair.edge), OnnxClassifier.of(pair.cloud)
    total = sum(len(splits[name].messages) for name in SPLITS)
    made: dict[str, Table] = {}
    done = 0
    for name in SPLITS:
        split, file = splits[name], table_path(settings, pair, name)
        score = partial(replay, edge=edge, cloud=cloud, split=name, fingerprint=pair.fingerprint)
        found = _kept_table(file, split, score)
        if found is None:
            part = _shifted(progress, done, total)
            found = score(split.messages, split.labels, progress=part)
            save_table(found, file)
        made[name] = found
        done += len(split.messages)
    return made


def _kept_table(file: Path, split: Split, score: Callable[..., Table]) -> Table | None:
    """The table of an earlier run, if these models and this code would make it of these rows."""
    try:
        found = load_table(file)
    except DataError:
        return None
    rows = len(split.messages)
    places = np.unique(np.linspace(0, rows - 1, min(rows, _LOOKED_AT)).round().astype(np.int64))
    now = score(
        [split.messages[i] for i in places],
        None if split.labels is None else [split.labels[i] for i in places],
    )
    return found if found.rows == rows and _equal(found.of(places), now) else None


def _equal(one: Table, other: Table) -> bool:
    """The same values from the same models; what a message took may differ."""
    if (one.labels, one.fingerprint, one.pins) != (other.labels, other.fingerprint, other.pins):
        return False
    pairs = [(one.signals[name], other.signals[name]) for name in one.signals]
    pairs += [(getattr(one, name), getattr(other, name)) for name in COLUMNS]
    return all(np.array_equal(left, right) for left, right in pairs)


def table_path(settings: Settings, release: Release | Pair, split: str) -> Path:
    """Where the table of a pair's split is kept."""
    if isinstance(release, Pair):
        edge, cloud = release.edge.sha256, release.cloud.sha256
    else:
        edge, cloud = release.manifest.edge_sha256, release.manifest.cloud_sha256
    return settings.home / "tables" / f"{edge[:8]}-{cloud[:8]}" / f"{split}.parquet"


def _shifted(progress: Progress, start: int, of: int) -> Progress:
    """The progress of one split as a part of all of them."""

    def report(done: int, total: int, note: str = "") -> None:
        progress(start + done, of, note)

    return report


def sweep(
    config: TuneConfig,
    table: Table,
    pool: Mapping[str, Scorer],
    settings: Settings,
    progress: Progress = silent,
) -> search.SweepResult:
    """The Ray Tune search on `tune`; one that was killed goes on where it was."""
    storage = settings.home / "sweep"
    found = search.run(
        search.SweepConfig(
            storage=str(storage), trials=config.trials, seed=settings.seed,
            prices=config.pricing.of(table), rules=config.rules,
        ),
        table,
        pool,
        progress,
    )  # fmt: skip
    shutil.rmtree(storage, ignore_errors=True)
    return found


def certified(
    config: TuneConfig,
    result: search.SweepResult,
    pool: Mapping[str, Scorer],
    made: Mapping[str, Table],
) -> Selection:
    """The choice on `tune`, certified on `certify`."""
    return select(
        result.risk_front + result.front,
        pool,
        made["tune"],
        made["certify"],
        config.wanted(made["tune"]),
        datetime.now(UTC).isoformat(timespec="seconds"),
    )


def make(
    config: TuneConfig,
    pair: Pair,
    made: Mapping[str, Table],
    result: search.SweepResult,
    selection: Selection,
    used: Mapping[str, Sequence[str]],
    stages_s: Mapping[str, float],
    settings: Settings,
) -> tuple[Release, ReleaseReport]:
    """Writes the release with report and pictures, and logs it; promotes nothing.

    Args:
        used: split -> fingerprints of the rows that made the release in any way.
    """
    policy = selection.policy.model_dump(mode="json")
    certificate = selection.certificate.model_dump(mode="json")
    costs = config.wanted(made["tune"]).prices
    prices = costs.model_dump(mode="json")
    parts = {"policy": policy, "certificate": certificate, "prices": prices}
    start = time.monotonic()
    identity = identity_of(pair.edge.sha256, pair.cloud.sha256, **parts)
    report = build_report(
        tune=made["tune"],
        test=made["test"],
        selection=selection,
        prices=costs,
        measured=Measured(
            release=identity,
            size_bytes=PerTier(edge=pair.edge.size_bytes, cloud=pair.cloud.size_bytes),
            latency_ms=Latency(),
            stages_s=dict(stages_s),
            warnings=warnings_of(pair.edge.manifest, pair.cloud.manifest),
        ),
        created_at=selection.certificate.created_at,
    )
    report = report.model_copy(update={"warnings": (*report.warnings, *_too_dear(report))})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = draw(
            folder, tune=made["tune"], certify=made["certify"], test=made["test"],
            front=result.front, selection=selection, prices=costs, report=report,
        )  # fmt: skip
        spent = {**report.stages_s, "release": round(time.monotonic() - start, 1)}
        report = report.model_copy(update={"stages_s": spent})
        write(folder, report, pictures)
        write_json(folder / PICTURES, {caption: file.name for caption, file in pictures.items()})
        search.save(result, folder / "front.json")
        others = [one.model_dump(mode="json") for one in selection.alternatives]
        write_json(folder / ALTERNATIVES, others)
        save_used(folder / USED, used)
        files = [path for path in sorted(folder.iterdir()) if path.is_file()]
        release = create_release(settings, edge=pair.edge, cloud=pair.cloud, **parts, extras=files)
        log_stage(
            settings, "tune",
            params={"trials": result.trials, **config.limits.model_dump(exclude_none=True)},
            metrics={
                "policies_evaluated": result.policies_evaluated,
                "edge_share": report.edge_share,
                "accuracy_cascade": report.accuracy.cascade,
                **{f"certified_{kind}": promise.bound
                   for kind, promise in selection.certificate.promises.items()},
            },
            files=files, tags={"release": release.id, "dataset": pair.fingerprint},
        )  # fmt: skip
    return release, report


def _too_dear(report: ReleaseReport) -> list[str]:
    """A release that costs more than the cloud alone, in words."""
    cost = report.cost
    if cost.per_message_usd <= cost.cloud_only_usd:
        return []
    return [
        f"A message costs ${cost.per_message_usd:.5f}, {-cost.savings_vs_cloud_only:.1%} more than "
        f"the cloud alone (${cost.cloud_only_usd:.5f}): the edge answers {report.edge_share:.1%}, "
        "and every message pays it. Allow more risk, escalate less by rules, or correct the prices."
    ]


def report_of(release: Release, latency: Latency | None = None) -> ReleaseReport:
    """The report of a release, with the latest latency that was measured over HTTP."""
    report = ReleaseReport.model_validate(read_json(release.path / REPORT))
    return report if latency is None else report.model_copy(update={"latency_ms": latency})


def write_report(
    release: Release, report: ReleaseReport, folder: Path, worst: Sequence[DisagreementRow] = ()
) -> tuple[Path, Path]:
    """report.json and report.html (pictures inside) in a folder; returns their paths.

    Args:
        worst: shown in the page, with the words of the messages.
    """
    named: Mapping[str, str] = read_json(release.path / PICTURES)
    pictures = {text: release.path / file for text, file in named.items()}
    return write(folder, report, pictures, worst)
