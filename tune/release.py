"""A trained pair and its splits -> tables -> sweep -> certified choice -> a release and report.

The three tables are scored once, through the classifier that serves. The sweep and the choice see
`tune` only, the certificate `certify`, the report `test`.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cluster.bundles import ModelBundle
from cluster.errors import CertifyError
from cluster.files import read_json, write_json
from cluster.progress import Report as Progress
from cluster.progress import silent
from cluster.releases import REPORT, Release, create_release, identity_of
from cluster.settings import Settings
from cluster.tracking import log_stage
from serve_app.classifier import OnnxClassifier
from serve_app.contracts import Message
from serve_app.cost import Prices
from tune import search
from tune.replay import Table, replay, save_table
from tune.report import Latency, Measured, PerTier, Report, build_report, draw, write
from tune.select import Selection, select

PICTURES: Final = "pictures.json"
SPLITS: Final = ("tune", "certify", "test")


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """What a user states: what may be given up, how sure they want to be, what a call costs."""

    risk: float = 0.01
    confidence: float = 0.95
    trials: int = search.SweepConfig.trials
    prices: Prices = field(default_factory=Prices)


@dataclass(frozen=True)
class Split:
    """Prepared messages and their labels, in step."""

    messages: Sequence[Message]
    labels: Sequence[str]


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
    pair: Pair, splits: Mapping[str, Split], folder: Path, progress: Progress = silent
) -> dict[str, Table]:
    """Scores every split once and keeps the tables as Parquet for later sweeps."""
    edge, cloud = OnnxClassifier.of(pair.edge), OnnxClassifier.of(pair.cloud)
    total = sum(len(splits[name].messages) for name in SPLITS)
    made: dict[str, Table] = {}
    done = 0
    for name in SPLITS:
        split = splits[name]
        made[name] = replay(
            split.messages,
            split.labels,
            edge,
            cloud,
            name,
            pair.fingerprint,
            _shifted(progress, done, total),
        )
        save_table(made[name], folder / f"{name}.parquet")
        done += len(split.messages)
    return made


def _shifted(progress: Progress, start: int, of: int) -> Progress:
    """The progress of one split as a part of all of them."""

    def report(done: int, total: int, note: str = "") -> None:
        progress(start + done, of, note)

    return report


def sweep(
    config: TuneConfig, table: Table, settings: Settings, progress: Progress = silent
) -> search.SweepResult:
    """The Ray Tune search on the tune table."""
    with tempfile.TemporaryDirectory(prefix="firstline-sweep-") as scratch:
        return search.run(
            search.SweepConfig(
                storage=scratch, trials=config.trials, seed=settings.seed, prices=config.prices
            ),
            table,
            progress,
        )


def certified(
    config: TuneConfig, result: search.SweepResult, made: Mapping[str, Table]
) -> Selection:
    """The choice on `tune`, certified on `certify`."""
    return select(
        result.risk_front + result.front,
        made["tune"],
        made["certify"],
        config.risk,
        config.confidence,
        datetime.now(UTC).isoformat(timespec="seconds"),
    )


def make(
    config: TuneConfig,
    pair: Pair,
    made: Mapping[str, Table],
    result: search.SweepResult,
    selection: Selection,
    stages_s: Mapping[str, float],
    settings: Settings,
) -> tuple[Release, Report]:
    """Writes the release with report and pictures, and logs it; promotes nothing."""
    policy = selection.policy.model_dump(mode="json")
    certificate = selection.certificate.model_dump(mode="json")
    prices = config.prices.model_dump(mode="json")
    parts = {"policy": policy, "certificate": certificate, "prices": prices}
    start = time.monotonic()
    identity = identity_of(pair.edge.sha256, pair.cloud.sha256, **parts)
    report = build_report(
        tune=made["tune"],
        test=made["test"],
        selection=selection,
        prices=config.prices,
        measured=Measured(
            release=identity,
            size_bytes=PerTier(edge=pair.edge.size_bytes, cloud=pair.cloud.size_bytes),
            latency_ms=Latency(),
            stages_s=dict(stages_s),
        ),
        created_at=selection.certificate.created_at,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = draw(
            folder, tune=made["tune"], certify=made["certify"], test=made["test"],
            front=result.front, selection=selection, prices=config.prices, report=report,
        )  # fmt: skip
        spent = {**report.stages_s, "release": round(time.monotonic() - start, 1)}
        report = report.model_copy(update={"stages_s": spent})
        write(folder, report, pictures)
        write_json(folder / PICTURES, {caption: file.name for caption, file in pictures.items()})
        search.save(result, folder / "front.json")
        files = [path for path in sorted(folder.iterdir()) if path.is_file()]
        release = create_release(settings, edge=pair.edge, cloud=pair.cloud, **parts, extras=files)
        log_stage(
            settings, "tune", params={"risk": config.risk, "trials": result.trials},
            metrics={
                "policies_evaluated": result.policies_evaluated,
                "edge_share": report.edge_share,
                "accuracy_cascade": report.accuracy.cascade,
                "certified_upper_bound": selection.certificate.upper_bound,
            },
            files=files, tags={"release": release.id, "dataset": pair.fingerprint},
        )  # fmt: skip
    return release, report


def report_of(release: Release, latency: Latency | None = None) -> Report:
    """The report of a release, with the latest latency that was measured over HTTP."""
    report = Report.model_validate(read_json(release.path / REPORT))
    return report if latency is None else report.model_copy(update={"latency_ms": latency})


def write_report(release: Release, report: Report, folder: Path) -> tuple[Path, Path]:
    """report.json and report.html (pictures inside) in a folder; returns their paths."""
    named: Mapping[str, str] = read_json(release.path / PICTURES)
    return write(folder, report, {text: release.path / file for text, file in named.items()})
