"""What report.json holds. Unknown keys are refused."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from cluster.intervals import Interval
from serve_app.decide.explain import Alternative
from serve_app.decide.policy import RouterPolicy
from tune.certificate.certify import Certificate


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PerTier(_Frozen):
    """Bytes that have to be shipped to run each tier."""

    edge: int
    cloud: int


class Latency(_Frozen):
    """End to end over HTTP; None if the release was never served."""

    p50: float | None = None
    p95: float | None = None


class Measured(_Frozen):
    """What others found: the bundles' sizes and warnings, the traffic, the stages' times."""

    release: str | None
    size_bytes: PerTier
    latency_ms: Latency = Latency()
    stages_s: dict[str, float]
    warnings: tuple[str, ...] = ()


class Accuracy(_Frozen):
    edge: float
    cloud: float
    cascade: float


class AccuracyIntervals(_Frozen):
    edge: Interval
    cloud: Interval
    cascade: Interval


class Intervals(_Frozen):
    """95% intervals of the figures of the same name."""

    accuracy: AccuracyIntervals
    edge_share: Interval
    risk: Interval
    agreement: Interval
    accuracy_loss: Interval


class Cost(_Frozen):
    """An escalated message pays for both tiers; cloud-only runs no edge."""

    per_message_usd: float
    cloud_only_usd: float
    savings_vs_cloud_only: float


class PolicyFigures(_Frozen):
    """What one rule does to the reported split."""

    accuracy: float
    accuracy_interval: Interval
    edge_share: float
    risk: float
    risk_interval: Interval
    per_message_usd: float
    savings_vs_cloud_only: float


class CertifiedPoint(_Frozen):
    """The same score and rules, certified at another risk by itself; and what they do here."""

    certified: Alternative
    figures: PolicyFigures


class Estimate(_Frozen):
    """A metric and its 95% bootstrap interval; None where too many draws have no value."""

    value: float
    interval: Interval | None


class CallThreshold(_Frozen):
    """What it takes to recover a share of the gap between edge and cloud."""

    cloud_share: Estimate
    cost_usd: Estimate


class ScoreMetrics(_Frozen):
    """How well one score tells what to escalate, over all its thresholds (metrics.py).

    A failure is an edge that differs from the cloud; the gap is of accuracy. `apgr` is None and
    `cpt` empty where the cloud is no better than the edge: there is no gap. `hindsight_coverage`
    is the most that any threshold keeps within the certified limits of quality on these rows.
    """

    aurc: Estimate
    excess_aurc: Estimate
    auroc: Estimate | None
    apgr: Estimate | None
    cpt: dict[str, CallThreshold]
    hindsight_coverage: Estimate


class Oracle(_Frozen):
    """Escalating only where it helps, which takes the true labels: no routing does better."""

    accuracy: float
    cloud_share: float
    per_message_usd: float


class ReleaseReport(_Frozen):
    """report.json. Figures are those seen on `split`; what is guaranteed is in the certificate.

    `agreement` is None if nothing stays at the edge. `accuracy_loss` is against cloud-only.
    `of_hindsight` is the edge share over the hindsight coverage of the same score. `warnings` are
    sentences of the gate that a user has accepted.
    """

    version: Literal[2] = 2
    release: str | None
    created_at: str
    split: str
    rows: int
    accuracy: Accuracy
    edge_share: float
    risk: float
    agreement: float | None
    accuracy_loss: float
    certificate: Certificate
    alternatives: tuple[CertifiedPoint, ...]
    cost: Cost
    size_bytes: PerTier
    latency_ms: Latency
    stages_s: dict[str, float]
    intervals: Intervals
    baselines: dict[str, PolicyFigures]
    scores: dict[str, ScoreMetrics]
    of_hindsight: float | None
    oracle: Oracle
    edge_calibration_error: float
    policy: RouterPolicy
    warnings: tuple[str, ...] = ()
