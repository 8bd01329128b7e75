"""Tables and the selection -> every figure of a release: report.json.

All figures come from the `test` table, which nothing was fitted, chosen or certified on; the
certificate speaks of its own split. Every figure carries a 95% interval: Wilson's for a share, the
exact trinomial one for the accuracy lost, and the bootstrap for a metric of a score. The permanent
baselines stand beside the cascade, and `max_probability` too: confidence alone, its threshold set
on `tune` to the same edge share as the certified policy, so that equal costs are compared.

A report holds no text of any message: it travels with the release, to the registry and to MLflow.
pictures.py draws the tables, and page.py makes report.html.
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from cluster.intervals import Interval, wilson
from serve_app.decide.cost import Prices
from serve_app.decide.policy import BASELINES, RouterPolicy
from serve_app.decide.scores import MaxProbability, Random
from serve_app.model.reliability import reliability
from tune.certificate.bounds import loss_counts, loss_upper_bound
from tune.certificate.certify import Certificate
from tune.certificate.limits import QUALITY
from tune.objective import Shape, by_rule, curve, evaluate, kept, trusts
from tune.replay import Bools, Floats, Table
from tune.reporting import metrics
from tune.reporting.models import (
    Accuracy,
    AccuracyIntervals,
    CallThreshold,
    CertifiedPoint,
    Cost,
    Estimate,
    Intervals,
    Measured,
    Oracle,
    PolicyFigures,
    ReleaseReport,
    ScoreMetrics,
)
from tune.select import Selection

CERTIFIED: Final = "certified"
MAX_PROBABILITY: Final = "max_probability"
RANDOM: Final = "random"
GAPS: Final[Mapping[str, float]] = {"50%": 0.5, "80%": 0.8, "95%": 0.95}
_ONE_SIDED: Final = 0.975  # on each side, of a two-sided interval of 95%


# ---- the figures ----------------------------------------------------------------------------


# ---- tables -> figures ----------------------------------------------------------------------


def build_report(
    *,
    tune: Table,
    test: Table,
    selection: Selection,
    prices: Prices,
    measured: Measured,
    created_at: str,
) -> ReleaseReport:
    """All figures of a release.

    Raises:
        DataError: the test table is empty, or has no true labels.
    """
    test.require_labels()
    policy, certificate = selection.policy, selection.certificate
    ours = _figures(policy, test, prices)
    known, at_edge = int(test.known.sum()), kept(policy, test)
    edge, cloud = int(test.edge_right.sum()), int(test.cloud_right.sum())
    agreed, stayed = int((at_edge & ~test.differs).sum()), int(at_edge.sum())
    losses, gains = loss_counts(at_edge, test.edge_right, test.cloud_right)
    said = test.signals["confidence"][test.known]
    rivals = (*BASELINES, max_probability(policy, tune, prices))
    scores = _scores(policy, certificate, test, prices)
    hindsight = scores[CERTIFIED].hindsight_coverage.value
    return ReleaseReport(
        release=measured.release,
        created_at=created_at,
        split=test.split,
        rows=test.rows,
        accuracy=Accuracy(edge=edge / known, cloud=cloud / known, cascade=ours.accuracy),
        edge_share=ours.edge_share,
        risk=ours.risk,
        agreement=agreed / stayed if stayed else None,
        accuracy_loss=(losses - gains) / known,
        certificate=certificate,
        alternatives=_alternatives(selection, test, prices),
        cost=Cost(
            per_message_usd=ours.per_message_usd,
            cloud_only_usd=prices.cloud_usd,
            savings_vs_cloud_only=ours.savings_vs_cloud_only,
        ),
        size_bytes=measured.size_bytes,
        latency_ms=measured.latency_ms,
        stages_s=measured.stages_s,
        intervals=Intervals(
            accuracy=AccuracyIntervals(
                edge=wilson(edge, known), cloud=wilson(cloud, known), cascade=ours.accuracy_interval
            ),
            edge_share=wilson(stayed, test.rows),
            risk=ours.risk_interval,
            agreement=wilson(agreed, stayed),
            accuracy_loss=_loss_interval(losses, gains, known),
        ),
        baselines={rival.name: _figures(rival, test, prices) for rival in rivals},
        scores=scores,
        of_hindsight=ours.edge_share / hindsight if hindsight else None,
        oracle=_oracle(test, prices),
        edge_calibration_error=reliability(said, test.edge_right[test.known]).error,
        policy=policy,
        warnings=measured.warnings,
    )


def max_probability(policy: RouterPolicy, tune: Table, prices: Prices) -> RouterPolicy:
    """Confidence alone, at the edge share on `tune` that comes nearest to the policy's."""
    shape = Shape(score=MaxProbability())
    found = curve(shape, tune)
    wanted = evaluate(policy, tune, prices).edge_share
    nearest = int(np.abs(found.edge_share - wanted).argmin())
    return shape.policy(MAX_PROBABILITY, float(found.thresholds[nearest]))


def _figures(policy: RouterPolicy, table: Table, prices: Prices) -> PolicyFigures:
    outcome = evaluate(policy, table, prices)
    known = int(table.known.sum())
    return PolicyFigures(
        accuracy=outcome.accuracy,
        accuracy_interval=wilson(round(outcome.accuracy * known), known),
        edge_share=outcome.edge_share,
        risk=outcome.risk,
        risk_interval=wilson(round(outcome.risk * table.rows), table.rows),
        per_message_usd=outcome.cost_usd,
        savings_vs_cloud_only=prices.savings(outcome.cost_usd),
    )


def _alternatives(selection: Selection, table: Table, prices: Prices) -> tuple[CertifiedPoint, ...]:
    shape = selection.sequence.shape
    return tuple(
        CertifiedPoint(
            certified=one,
            figures=_figures(shape.policy(f"at-{one.risk:g}", one.threshold), table, prices),
        )
        for one in selection.alternatives
    )


def _loss_interval(losses: int, gains: int, known: int) -> Interval:
    """Both one-sided exact bounds: accuracy lost one way is accuracy gained the other way."""
    return (
        -loss_upper_bound(gains, losses, known, _ONE_SIDED),
        loss_upper_bound(losses, gains, known, _ONE_SIDED),
    )


def _oracle(table: Table, prices: Prices) -> Oracle:
    found = metrics.oracle(
        table.edge_right, table.cloud_right, table.pinned, int(table.known.sum())
    )
    share = float(found.cloud_share[1])
    return Oracle(
        accuracy=float(found.accuracy[1]),
        cloud_share=share,
        per_message_usd=prices.per_message(share),
    )


# ---- metrics of scores ----------------------------------------------------------------------


def _scores(
    policy: RouterPolicy, certificate: Certificate, table: Table, prices: Prices
) -> dict[str, ScoreMetrics]:
    shapes = {
        CERTIFIED: Shape.of(policy),
        MAX_PROBABILITY: Shape(score=MaxProbability()),
        RANDOM: Shape(score=Random()),
    }
    limits: dict[str, float] = {
        kind: certificate.promises[kind].limit for kind in QUALITY if kind in certificate.promises
    }
    return {
        name: score_metrics(order(shape, table), table, limits, prices)
        for name, shape in shapes.items()
    }


def order(shape: Shape, table: Table) -> Floats:
    """Each row's score; +inf where a rule keeps it at the edge, -inf where one sends it away."""
    edge, free = by_rule(shape, table)
    ruled = np.where(edge, np.inf, -np.inf)
    return np.where(free, trusts(shape, table), ruled)


def score_metrics(
    score: Floats, table: Table, limits: Mapping[str, float], prices: Prices
) -> ScoreMetrics:
    """Args: limits: certified, of risk, agreement or the accuracy lost."""
    # In the order of the score, which makes the 200 sorts of the bootstrap cheap.
    rows = np.argsort(score, kind="stable")
    columns = (table.differs, table.edge_right, table.cloud_right, table.known)
    sorted_columns = [column[rows] for column in (score, *columns)]
    measure = _measure(limits)
    values, intervals = measure(*sorted_columns), metrics.bootstrap(measure, *sorted_columns)
    made = {
        name: Estimate(value=value, interval=intervals[name])
        for name, value in values.items()
        if value is not None
    }
    return ScoreMetrics(
        aurc=made["aurc"],
        excess_aurc=made["excess_aurc"],
        auroc=made.get("auroc"),
        apgr=made.get("apgr"),
        cpt={name: _call_threshold(made[name], prices) for name in GAPS if name in made},
        hindsight_coverage=made["hindsight_coverage"],
    )


def _measure(limits: Mapping[str, float]) -> Callable[..., dict[str, float | None]]:
    def measure(
        score: Floats, differs: Bools, edge_right: Bools, cloud_right: Bools, known: Bools
    ) -> dict[str, float | None]:
        lost = cloud_right.astype(np.int64) - edge_right
        return {
            "aurc": metrics.aurc(score, differs),
            "excess_aurc": metrics.excess_aurc(score, differs),
            "auroc": metrics.auroc(score, ~differs),
            "apgr": metrics.apgr(score, edge_right, cloud_right),
            "hindsight_coverage": metrics.hindsight_coverage_within(
                score, differs, lost, max(1, int(known.sum())), **limits
            ),
        } | {name: metrics.cpt(score, edge_right, cloud_right, gap) for name, gap in GAPS.items()}

    return measure


def _call_threshold(share: Estimate, prices: Prices) -> CallThreshold:
    span = share.interval
    return CallThreshold(
        cloud_share=share,
        cost_usd=Estimate(
            value=prices.per_message(share.value),
            interval=span and (prices.per_message(span[0]), prices.per_message(span[1])),
        ),
    )
