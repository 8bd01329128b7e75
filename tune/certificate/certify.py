"""(a sequence of thresholds, untouched rows) -> the certificate of the last that passes. Pure.

The promise, for limits that are stated and a confidence 1 - d: in at most a share d of all draws
of the certify rows does the procedure name a policy that breaks one of them on new messages. Why
it holds, if messages are exchangeable with the certified rows:

  - The test of one fixed policy is valid (bounds.py, limits.py): a policy that breaks a limit
    passes with probability at most d.
  - The policies are tested in an order fixed before the rows are seen, each at level d, and
    testing stops at the first that is not rejected. To name a bad policy, the first bad one of the
    order has to pass, which happens with probability at most d: so the number of policies costs
    nothing (fixed-sequence testing; as a way to choose thresholds, Learn then Test: Angelopoulos,
    Bates, Candès, Jordan, Lei, arXiv:2110.01052, 2021).
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import CertifyError
from cluster.files import sha256_json
from serve_app.decide.cost import Prices
from serve_app.decide.explain import Alternative
from serve_app.decide.policy import BundlePins, RouterPolicy
from tune.certificate import bounds
from tune.certificate.bounds import (
    ClassBounds,
    allowed_failures,
    best_risk,
    level,
    min_rows,
    upper_bound,
)
from tune.certificate.counts import PolicyCounts, counts
from tune.certificate.limits import OPTION, Kind, Limits, observed, p_values, passes
from tune.objective import Shape
from tune.replay import Bools, Floats, Ints, Table

REFERENCE: Final = "the cloud's answer"
ASSUMES: Final = "messages exchangeable with the certified rows"
# Limits that only a share of the messages is counted against; of these, fewer kept is safer.
SAFE_WHEN_STRICT: Final = frozenset({"risk", "accuracy_loss"})
# Policies that are tested at a time: the test of the accuracy lost is slow, most of all where it
# fails.
_BLOCK: Final = 32


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Promise(_Frozen):
    """One limit, and what was seen. `bound` is exact for a rule that was fixed before the rows."""

    limit: float = Field(description="guaranteed: below it; of agreement: above it")
    observed: float = Field(description="on the certified rows")
    bound: float = Field(description="one-sided, at `confidence`")
    failures: int = Field(ge=0, description="what was counted against the limit")
    rows: int = Field(ge=0, description="among so many rows")


class Certificate(_Frozen):
    """What is guaranteed, about which parts, on which rows; all promises hold at once."""

    version: Literal[2] = Field(2, description="of this format")
    confidence: float = Field(gt=0.0, lt=1.0)
    promises: dict[Kind, Promise] = Field(min_length=1)
    classes: ClassBounds | None = Field(None, description="of predicted classes, all at once")
    rows: int = Field(gt=0)
    edge_share: float = Field(description="on the certified rows; seen, not guaranteed")
    reference: str = REFERENCE
    assumes: str = ASSUMES
    split: str
    fingerprint: str = Field(description="of the dataset")
    bundles: BundlePins
    policy_sha256: str
    position: int = Field(ge=0, description="of the policy in the sequence, from 0")
    tested: int = Field(ge=1, description="policies of the sequence that were tested")
    sequence_length: int = Field(ge=1)
    created_at: str


def fixed_sequence(passed: Bools) -> int:
    """The last place of the unbroken run of passes from the first on, or -1 if there is none."""
    failed = np.flatnonzero(~passed)
    return (int(failed[0]) if failed.size else passed.size) - 1


def start_of(limits: Limits, on_tune: PolicyCounts, prices: Prices, confidence: float) -> int:
    """The place of the sequence that proves most on `tune`, from where testing goes on.

    Where fewer kept rows are safer for every limit, that is the first. Agreement cannot be proven
    of a handful of kept rows, nor a cost where everything is escalated.
    """
    if limits.stated.keys() <= SAFE_WHEN_STRICT:
        return 0
    return int(p_values(limits, on_tune, prices, confidence, exact=False).argmin())


def policy_sha256(policy: RouterPolicy) -> str:
    """The hash by which a certificate names its policy."""
    return sha256_json(policy.model_dump(mode="json"))


def promises(
    limits: Limits, seen: PolicyCounts, prices: Prices, confidence: float
) -> dict[Kind, Promise]:
    """What is said of one policy. Args: seen: of that one policy."""
    return {
        kind: Promise(
            limit=limit,
            observed=float(observed(kind, seen, prices)[0]),
            bound=_bound(kind, seen, prices, confidence),
            failures=int(_counted(kind, seen)[0]),
            rows=_among(kind, seen),
        )
        for kind, limit in limits.stated.items()
    }


def _counted(kind: Kind, seen: PolicyCounts) -> Ints:
    if kind in ("cloud_share", "cost_usd"):
        return seen.escalated
    return seen.losses if kind == "accuracy_loss" else seen.failures


def _among(kind: Kind, seen: PolicyCounts) -> int:
    if kind == "agreement":
        return int(seen.kept[0])
    return seen.labelled if kind == "accuracy_loss" else seen.rows


def _bound(kind: Kind, seen: PolicyCounts, prices: Prices, confidence: float) -> float:
    failures, rows = int(_counted(kind, seen)[0]), _among(kind, seen)
    if kind == "agreement":
        return bounds.agreement_lower_bound(failures, rows, confidence)
    if kind == "accuracy_loss":
        return bounds.loss_upper_bound(failures, int(seen.gains[0]), rows, confidence)
    found = upper_bound(failures, rows, confidence)
    return prices.per_message(found) if kind == "cost_usd" else found


def certify(
    shape: Shape,
    thresholds: Floats,
    table: Table,
    limits: Limits,
    confidence: float,
    prices: Prices,
    start: int = 0,
) -> tuple[int, int]:
    """Tests one shape's thresholds in their order -> (place of the last that passes, how many were
    tested).

    Args:
        thresholds: falling, fixed without a look at `table`.
        table: rows that nothing was fitted or chosen on.
        start: the first to be tested, fixed likewise (`start_of`).

    Raises:
        CertifyError: the first policy that is tested does not pass.
    """
    require_labels(limits, table)
    seen = counts(shape, thresholds, table)
    last = _last_that_passes(limits, seen, prices, confidence, start)
    if last < start:
        opening = (
            f"No policy can be certified at {confidence:.0%} confidence on the {table.rows} rows "
            f"of {table.split!r}; already the first one tested fails"
        )
        raise CertifyError(
            refusal(opening, seen.of(np.array([start])), table, limits, confidence, prices)
        )
    return last, min(last + 2, thresholds.size) - start


def _last_that_passes(
    limits: Limits, seen: PolicyCounts, prices: Prices, confidence: float, start: int
) -> int:
    """`fixed_sequence` from `start`, a block at a time; start - 1 if there is none."""
    last = start - 1
    while last + 1 < seen.kept.size:
        block = np.arange(last + 1, min(last + 1 + _BLOCK, seen.kept.size))
        passed = passes(limits, seen.of(block), prices, confidence)
        last += fixed_sequence(passed) + 1
        if not passed.all():
            break
    return last


def certificate(
    policy: RouterPolicy,
    table: Table,
    limits: Limits,
    confidence: float,
    prices: Prices,
    created_at: str,
    *,
    position: int = 0,
    tested: int = 1,
    sequence_length: int = 1,
    classes: ClassBounds | None = None,
) -> Certificate:
    """The certificate of a policy that has passed.

    Raises:
        CertifyError: the policy is pinned to other bundles than those that scored the table.
    """
    check_pins(policy, table)
    seen = counts(Shape.of(policy), np.array([policy.threshold]), table)
    return Certificate(
        confidence=confidence,
        promises=promises(limits, seen, prices, confidence),
        classes=classes,
        rows=table.rows,
        edge_share=int(seen.kept[0]) / table.rows,
        split=table.split,
        fingerprint=table.fingerprint,
        bundles=table.pins,
        policy_sha256=policy_sha256(policy),
        position=position,
        tested=tested,
        sequence_length=sequence_length,
        created_at=created_at,
    )


def alternatives(
    risks: Sequence[float], shape: Shape, thresholds: Floats, table: Table, confidence: float
) -> tuple[Alternative, ...]:
    """The same sequence certified at other risks, each by itself; those that can be."""
    seen = counts(shape, thresholds, table)
    made = []
    for risk in sorted(risks):
        last = fixed_sequence(seen.failures <= allowed_failures(table.rows, risk, confidence))
        # The first threshold keeps nothing but what is pinned: no alternative to speak of.
        if last > 0:
            found = Alternative(
                risk=risk,
                threshold=float(thresholds[last]),
                edge_share=int(seen.kept[last]) / table.rows,
                upper_bound=upper_bound(int(seen.failures[last]), table.rows, confidence),
                confidence=confidence,
            )
            made.append(found)
    return tuple(made)


# ---- refusals -----------------------------------------------------------------------------------


def require_rows(rows: int, split: str, limits: Limits, confidence: float) -> None:
    """Raises CertifyError if the rows are too few for a limit, whatever the policy."""
    for what, share in _least_shares(limits).items():
        needed = min_rows(share, confidence)
        if rows < needed:
            raise CertifyError(
                f"The split {split!r} has {rows} rows; certifying {what} of {share:.2%} at "
                f"{confidence:.0%} confidence needs at least {needed}, and more if some of them "
                f"fail. The rows at hand could certify {what} of "
                f"{best_risk(rows, confidence):.2%} at best: ask for that, or add messages."
            )


def _least_shares(limits: Limits) -> Mapping[str, float]:
    """The limits that are a share of rows which may fail, of all of them at most."""
    found = {
        "a risk": limits.risk,
        "a disagreement": None if limits.agreement is None else level(limits.agreement),
        "a cloud share": limits.cloud_share,
    }
    return {what: share for what, share in found.items() if share is not None}


def check_pins(policy: RouterPolicy, table: Table) -> None:
    """Raises CertifyError if other bundles than the policy's scored the table."""
    if policy.bundles and policy.bundles != table.pins:
        raise CertifyError(
            f"The policy {policy.name!r} is pinned to the bundles {policy.bundles}; the rows of "
            f"{table.split!r} were scored by {table.pins}. Replay the split with the policy's "
            "own bundles."
        )


def require_labels(limits: Limits, table: Table) -> None:
    """Raises CertifyError if a limit needs human labels and the rows have none."""
    if limits.accuracy_loss is not None and not table.known.any():
        raise CertifyError(
            f"{OPTION['accuracy_loss']} compares with human labels, and none of the {table.rows} "
            f"rows of {table.split!r} has one. Give labelled rows, or {OPTION['risk']}, which "
            "needs none and bounds the accuracy lost as well."
        )


def refusal(
    opening: str,
    seen: PolicyCounts,
    table: Table,
    limits: Limits,
    confidence: float,
    prices: Prices,
) -> str:
    """Why a policy did not pass, limit by limit. Args: seen: what that one does to the table."""
    words = [
        f"{OPTION[kind]} {made.limit:g}: {made.failures} of {made.rows} rows, {made.observed:.4g} "
        f"seen, {made.bound:.4g} can be guaranteed"
        for kind, made in promises(limits, seen, prices, confidence).items()
    ]
    stuck = 0 if limits.risk is None else int((table.pinned & table.differs).sum())
    pinned = (
        f" {stuck} of the failures are messages with personal data, which stay at the edge "
        "whatever the rule says."
    )
    return (
        f"{opening} ({'; '.join(words)}).{pinned if stuck else ''} Ask for less, certify on more "
        "rows, or train a better edge."
    )
