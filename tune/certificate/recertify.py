"""A release + new messages -> a new certificate of its policy, written beside the old one.

The rule was fixed long before these rows were seen, so every statement about it holds as it stands:
all limits, and all classes, each at the stated confidence, without a sequence. The cloud's answer
is the reference, so yesterday's traffic will do; labels are needed for the accuracy lost alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import CertifyError, ConfigError, ReleaseError
from cluster.files import read_json, write_json
from cluster.releases import CERTIFICATE, Release
from serve_app.decide.cost import Prices
from serve_app.decide.policy import RouterPolicy, policy_of
from tune.certificate import bounds
from tune.certificate.certify import (
    Certificate,
    certificate,
    check_pins,
    refusal,
    require_labels,
    require_rows,
)
from tune.certificate.counts import PolicyCounts, counts
from tune.certificate.limits import Limits, passes
from tune.objective import Shape, kept
from tune.replay import Table

USED: Final = "used_rows.parquet"
# All but `test`: what the certificate itself was made on chose the threshold.
USED_SPLITS: Final = ("dapt", "train", "calibration", "tune", "certify")
NEW: Final = "certificate-{time}.json"
_CHANCES: Final = (0.5, 0.9)
_DIGITS: Final = 16  # 64 bits of a fingerprint: a new row is taken for a used one once in 10^14


# ---- rows that the release has used -------------------------------------------------------------


def save_used(path: Path, keys: Mapping[str, Sequence[str]]) -> None:
    """Writes what rows made a release. Args: keys: split -> fingerprints of its texts."""
    table = {
        "key": [key[:_DIGITS] for found in keys.values() for key in found],
        "split": [name for name, found in keys.items() for _ in found],
    }
    pq.write_table(pa.table(table), path)


def used_rows(release: Release, keys: Sequence[str]) -> dict[int, str]:
    """Which of these rows (places) the release has seen, and as part of what split.

    Raises:
        ReleaseError: the release does not tell.
    """
    file = release.path / USED
    if not file.is_file():
        raise ReleaseError(
            f"The release {release.id} has no {USED}, so nobody can tell which rows made it. Make "
            "it again with `firstline tune`, and certify that one."
        )
    table = pq.read_table(file).to_pydict()
    seen = dict(zip(table["key"], table["split"], strict=True))
    short = [key[:_DIGITS] for key in keys]
    return {place: seen[key] for place, key in enumerate(short) if key in seen}


def require_unused(release: Release, used: Mapping[int, str], rows: int, path: Path) -> None:
    """Raises CertifyError if any row trained, calibrated, tuned or certified the release."""
    if not used:
        return
    by_split: dict[str, int] = {}
    for split in used.values():
        by_split[split] = by_split.get(split, 0) + 1
    named = ", ".join(f"{count} in {split!r}" for split, count in sorted(by_split.items()))
    raise CertifyError(
        f"{len(used)} of {rows} rows of {path} were used to make {release.id} ({named}): on them "
        "it does better than on new messages, and a certificate would not hold. Give rows that it "
        "has never seen, or leave these out with --drop-used."
    )


# ---- the new certificate ------------------------------------------------------------------------


@dataclass(frozen=True)
class Recertified:
    """The new certificate, where it was written, and how many rows which limit would need."""

    certificate: Certificate
    path: Path
    rows_needed: tuple[str, ...]


def limits_of(release: Release, given: Limits) -> Limits:
    """What the user asks for now, or else what the release promises already."""
    if given.stated:
        return given
    promised = _read(release, CERTIFICATE).promises
    return Limits.model_validate({kind: promise.limit for kind, promise in promised.items()})


def recertify(
    release: Release,
    table: Table,
    limits: Limits,
    confidence: float,
    *,
    per_class: bool = False,
) -> Recertified:
    """Tests the release's policy on rows that made nothing of it.

    Args:
        per_class: also bound the risk, or the agreement, of each predicted class (Holm).

    Raises:
        ConfigError: limits that nothing can meet, or classes with nothing to bound.
        CertifyError: other models scored the rows, they are too few or lack labels, or the policy
            does not pass. Nothing is written then.
    """
    prices = Prices.model_validate(release.prices)
    policy = policy_of(release)
    limits.check(prices, confidence)
    if per_class:
        check_bounded(limits)
    table.require_rows()
    check_pins(policy, table)
    require_rows(table.rows, table.split, limits, confidence)
    require_labels(limits, table)
    seen = counts(Shape.of(policy), np.array([policy.threshold]), table)
    needed = tuple(rows_needed(limits, seen, confidence))
    if not passes(limits, seen, prices, confidence)[0]:
        opening = (
            f"The policy of {release.id} cannot be certified at {confidence:.0%} confidence on "
            f"the {table.rows} rows of {table.split!r}"
        )
        why = refusal(opening, seen, table, limits, confidence, prices)
        raise CertifyError(" ".join([why, *needed]))
    now = datetime.now(UTC)
    made = certificate(
        policy, table, limits, confidence, prices, now.isoformat(timespec="seconds"),
        classes=_classes(policy, table, limits, confidence) if per_class else None,
    )  # fmt: skip
    path = release.path / NEW.format(time=now.strftime("%Y%m%dT%H%M%S.%fZ"))
    write_json(path, made.model_dump(mode="json"))
    return Recertified(made, path, needed)


def check_bounded(limits: Limits) -> None:
    """Raises ConfigError if there is nothing to bound of each class."""
    if limits.risk is None and limits.agreement is None:
        raise ConfigError("--per-class bounds a risk or an agreement. Give one of them too.")


def certificates(release: Release) -> dict[str, Certificate]:
    """Every certificate of a release by file name, the one that it was made with first."""
    files = [release.path / CERTIFICATE, *sorted(release.path.glob(NEW.format(time="*")))]
    return {file.name: _read(release, file.name) for file in files}


def _read(release: Release, name: str) -> Certificate:
    try:
        return Certificate.model_validate(read_json(release.path / name))
    except ValueError as error:
        raise ReleaseError(
            f"{name} of the release {release.id} is not a certificate that this version can read "
            f"({error}). Make the release again with `firstline tune`."
        ) from None


def rows_needed(limits: Limits, seen: PolicyCounts, confidence: float) -> list[str]:
    """How many rows each limit on failures would take, if the share seen is the true one."""
    of: dict[str, tuple[float, float, float]] = {}
    if limits.risk is not None:
        of["risk"] = (limits.risk, int(seen.failures[0]) / seen.rows, 1.0)
    if limits.agreement is not None and seen.kept[0]:
        share = int(seen.kept[0]) / seen.rows
        of["disagreement"] = (
            1 - limits.agreement,
            int(seen.failures[0]) / int(seen.kept[0]),
            share,
        )
    lines = []
    for name, (limit, expected, share) in of.items():
        found = [bounds.rows_needed(limit, confidence, expected, c) / share for c in _CHANCES]
        counted = (
            f"about {math.ceil(found[0])} rows pass with a chance of 50%, {math.ceil(found[1])} "
            "with 90%"
            if all(map(math.isfinite, found))
            else "no number of rows will do"
        )
        lines.append(f"A {name} below {limit:.2%}, with {expected:.2%} as seen: {counted}.")
    return lines


def _classes(
    policy: RouterPolicy, table: Table, limits: Limits, confidence: float
) -> bounds.ClassBounds:
    edge = kept(policy, table)
    if limits.risk is not None:
        among, target = np.ones(table.rows, np.bool_), limits.risk
    elif limits.agreement is not None:
        among, target = edge, bounds.level(limits.agreement)
    else:
        raise AssertionError("refused by check_bounded")
    found = bounds.class_counts(table.edge_label, among, edge & table.differs, table.labels)
    return bounds.per_class(found, target, confidence)
