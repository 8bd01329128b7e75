"""Pareto front + `tune` rows + `certify` rows -> the certified policy. Pure.

1. On `tune` alone: of all shapes (score, floor, rules) that the sweep found, the one with the
   best edge share within the failures that the certificate can afford.
2. Its thresholds, from conservative to permissive, are the sequence. It is now fixed.
3. On `certify`: fixed-sequence testing names the last policy of it that passes.

Step 1 aims at the failure rate that step 3 will accept, not at the risk itself: of n rows, a risk
of 1% at 95% confidence allows well under 1% failures, and the shape that keeps most messages at 1%
is often not the one that keeps most at 0.4%. n is known without a look at the rows.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict

from cluster.errors import CertifyError
from serve_app.policy import RouterPolicy
from tune.certify import Certificate, allowed_failures, certify, require_rows
from tune.objective import Curve, FrontPoint, Shape, curve
from tune.replay import Ints, Table

# Testing more thresholds costs nothing in confidence, only time and little edge share is left.
MAX_STEPS: Final = 2000


class SequenceSummary(BaseModel):
    """The sequence that was fixed on `tune`, in a few figures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: Shape
    length: int
    first_threshold: float
    last_threshold: float
    tune_risk_aimed_at: float
    tune_edge_share: float
    candidates: int


class Selection(BaseModel):
    """The policy to release, what is guaranteed of it, and where it came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: RouterPolicy
    certificate: Certificate
    sequence: SequenceSummary


def select(
    candidates: Sequence[FrontPoint],
    tune: Table,
    certify_on: Table,
    risk: float,
    confidence: float,
    created_at: str,
) -> Selection:
    """Chooses on `tune`, certifies on `certify_on`.

    Args:
        candidates: `SweepResult.risk_front + SweepResult.front`; their shapes are taken, their
            thresholds are not.
        risk: the accuracy to give up against cloud-only, as a share.
        created_at: the time, ISO 8601.

    Raises:
        CertifyError: tables that do not belong together, nothing to choose from, too few rows, or
            no policy passes.
    """
    _check(candidates, tune, certify_on)
    require_rows(certify_on.rows, certify_on.split, risk, confidence)
    aim = max(0, allowed_failures(certify_on.rows, risk, confidence)) / certify_on.rows
    shapes = list(_shapes(candidates))
    curves = [curve(shape, tune) for shape in shapes]
    reach = [_reach(found, aim) for found in curves]
    best = int(np.argmax(reach))
    sequence = _sequence(shapes[best], curves[best], tune, risk, created_at)
    certificate = certify(sequence, certify_on, risk, confidence, created_at)
    summary = SequenceSummary(
        shape=shapes[best],
        length=len(sequence),
        first_threshold=sequence[0].threshold,
        last_threshold=sequence[-1].threshold,
        tune_risk_aimed_at=aim,
        tune_edge_share=max(0.0, reach[best]),
        candidates=len(shapes),
    )
    policy = sequence[certificate.position]
    return Selection(policy=policy, certificate=certificate, sequence=summary)


def _check(candidates: Sequence[FrontPoint], tune: Table, certify_on: Table) -> None:
    if not candidates:
        raise CertifyError("There is nothing to choose from: the sweep's front is empty.")
    tune.require_rows()
    if tune.split == certify_on.split:
        raise CertifyError(
            f"The policy would be chosen and certified on the same split, {tune.split!r}; a "
            "certificate needs rows that nothing was chosen on. Replay two splits."
        )
    for name in ("fingerprint", "edge_sha256", "cloud_sha256", "edge_artifact", "labels"):
        left, right = getattr(tune, name), getattr(certify_on, name)
        if left != right:
            raise CertifyError(
                f"The tables of {tune.split!r} and {certify_on.split!r} differ in {name}: {left} "
                f"and {right}. Replay both splits of one dataset with one pair of bundles."
            )


def _shapes(candidates: Sequence[FrontPoint]) -> Iterator[Shape]:
    """The distinct shapes among the candidates, in their order."""
    seen = set()
    for point in candidates:
        shape = Shape.of(point.policy)
        key = shape.model_dump_json()
        if key not in seen:
            seen.add(key)
            yield shape


def _reach(found: Curve, risk: float) -> float:
    """The best edge share within a risk; -1 if even the most conservative policy exceeds it."""
    within = found.edge_share[found.risk <= risk]
    return float(within.max()) if within.size else -1.0


def _sequence(
    shape: Shape,
    found: Curve,
    tune: Table,
    risk: float,
    created_at: str,
) -> list[RouterPolicy]:
    return [
        shape.policy(
            f"certified-{risk:g}",
            float(found.thresholds[step]),
            bundles=tune.pins,
            tuned_on=f"{tune.split}@{tune.fingerprint}",
            target_risk=risk,
            created_at=created_at,
        )
        for step in _steps(len(found.thresholds))
    ]


def _steps(length: int) -> Ints:
    """All places of a curve, or `MAX_STEPS` spread over it, ends included."""
    if length <= MAX_STEPS:
        return np.arange(length)
    return np.linspace(0, length - 1, MAX_STEPS).round().astype(np.int64)
