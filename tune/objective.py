"""(policy, table, prices) -> Outcome; and every threshold of one shape of policy at once.

Two paths, equal to the bit (tests/unit/tune/test_objective.py):
    evaluate()  one policy, O(n)
    curve()     one shape (score, class margins, floor, rules), all of its n thresholds, O(n log n):
                the rows are sorted by trust once, and cumulative sums give every count

Only `serve_app.decide.policy.trust` computes a score and only `fired` applies a rule, here as in
service.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from serve_app.contracts import RouteReason
from serve_app.decide.cost import Prices
from serve_app.decide.policy import RouterPolicy, Rules, fired, trust
from serve_app.decide.scores import Score
from tune.replay import Bools, Floats, Ints, Table


@dataclass(frozen=True)
class PolicyOutcome:
    """What a policy does to a table.

    `accuracy` is the cascade's, over the rows with a true label (NaN if there are none). `risk` is
    the share of all messages that the edge answers differently from the cloud.
    """

    accuracy: float
    cost_usd: float
    edge_share: float
    cloud_share: float
    risk: float


class Shape(BaseModel):
    """A policy without its threshold."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    score: Score
    class_margins: dict[str, float] = Field(default_factory=dict)
    min_confidence: float = Field(0.0, ge=0.0, le=1.0)
    rules: Rules = Rules()

    @classmethod
    def of(cls, policy: RouterPolicy) -> "Shape":
        return cls(**{name: getattr(policy, name) for name in cls.model_fields})

    def policy(self, name: str, threshold: float, **details: Any) -> RouterPolicy:
        """Args: details: the other fields of a RouterPolicy, such as `bundles`."""
        own = {field: getattr(self, field) for field in type(self).model_fields}
        return RouterPolicy(name=name, threshold=threshold, **own, **details)


class FrontPoint(BaseModel):
    """A policy and what it does to the table that it was searched on.

    `scorer` names what stands in the pool (tune/learned/pool.py); None: a weighted score that the
    sweep made. The outcome of a learned scorer is of its held-out column: no row judged a model
    that saw it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: RouterPolicy
    outcome: PolicyOutcome
    scorer: str | None = None


@dataclass(frozen=True)
class Curve:
    """All policies of one shape, from the most conservative to the least.

    Columns of one entry per threshold, falling: the first keeps nothing at the edge but what is
    pinned or kept by a rule, the last keeps all that the floor and the rules allow. `edge`, `right`
    and `failures` count rows.
    """

    thresholds: Floats
    edge: Ints
    right: Ints
    failures: Ints
    rows: int
    known: int

    @property
    def accuracy(self) -> Floats:
        return _share(self.right, self.known)

    @property
    def value(self) -> Floats:
        """What a sweep maximises: accuracy; of a table without labels, agreement with the cloud."""
        return self.accuracy if self.known else 1.0 - self.risk

    @property
    def edge_share(self) -> Floats:
        return _share(self.edge, self.rows)

    @property
    def cloud_share(self) -> Floats:
        return _share(self.rows - self.edge, self.rows)

    @property
    def risk(self) -> Floats:
        return _share(self.failures, self.rows)

    def cost_usd(self, prices: Prices) -> Floats:
        return _cost(prices, self.cloud_share)

    def outcome(self, i: int, prices: Prices) -> PolicyOutcome:
        return _outcome(
            int(self.edge[i]), int(self.right[i]), int(self.failures[i]), self.rows, self.known,
            prices,
        )  # fmt: skip


def kept(policy: RouterPolicy, table: Table) -> Bools:
    """Which rows the edge answers: what `decide()` says of each of them.

    Raises:
        ReleaseError: the policy names a class that the table's models never answer with.
    """
    policy.check_classes(table.labels)
    edge, free = by_rule(policy, table)
    trusted: Bools = edge | (free & (trusts(policy, table) >= policy.threshold))
    return trusted


def evaluate(policy: RouterPolicy, table: Table, prices: Prices) -> PolicyOutcome:
    """One policy on one table. Raises DataError if the table is empty."""
    table.require_rows()
    edge = kept(policy, table)
    right = np.where(edge, table.edge_right, table.cloud_right)
    return _outcome(
        int(edge.sum()), int(right.sum()), int((edge & table.differs).sum()),
        table.rows, int(table.known.sum()), prices,
    )  # fmt: skip


def curve(shape: Shape, table: Table, trust: Floats | None = None) -> Curve:
    """Every threshold that tells two rows apart.

    Args:
        trust: (n,), in place of what the shape's score and class margins say: of a learned score,
            each row by a model that did not see it (`Scorer.trust`).

    Raises:
        DataError: the table is empty.
        ValueError: `trust` has other rows than the table.
    """
    table.require_rows()
    score = trusts(shape, table) if trust is None else trust
    if score.shape != (table.rows,):
        raise ValueError(f"the trust is of shape {score.shape}, the table has {table.rows} rows")
    edge, free = by_rule(shape, table)
    rows = np.flatnonzero(free)
    rows = rows[np.argsort(-score[rows], kind="stable")]
    falling = score[rows]
    # Rows of equal trust go together: a threshold stands only where a run of ties ends.
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], rows.size > 0))
    gain = table.edge_right.astype(np.int64) - table.cloud_right
    nothing = np.nextafter(falling[0], np.inf) if rows.size else np.float64(0.0)
    return Curve(
        thresholds=np.append(nothing, falling[ends]),
        edge=int(edge.sum()) + np.append(0, ends + 1),
        right=int(table.cloud_right.sum() + gain[edge].sum()) + _after(gain[rows], ends),
        failures=int(table.differs[edge].sum())
        + _after(table.differs[rows].astype(np.int64), ends),
        rows=table.rows,
        known=int(table.known.sum()),
    )


def pareto(cost: Floats, value: Floats) -> Ints:
    """Indices of the points that no other beats in both: cost rising, value rising strictly."""
    order = np.lexsort((-value, cost))
    best_before = np.append(-np.inf, np.maximum.accumulate(value[order])[:-1])
    return order[value[order] > best_before]


def front(points: Sequence[FrontPoint]) -> list[FrontPoint]:
    """The points not dominated in (cost, accuracy), cheapest first."""
    if not points:
        return []
    cost = np.array([point.outcome.cost_usd for point in points])
    accuracy = np.array([point.outcome.accuracy for point in points])
    return [points[i] for i in pareto(cost, accuracy)]


def trusts(shape: Shape | RouterPolicy, table: Table) -> Floats:
    made = trust(shape.score, shape.class_margins, table.evidence)
    # A score without parts is a plain 0.0: it stands for a column of zeros.
    column: Floats = np.broadcast_to(np.asarray(made), (table.rows,))
    return column


def by_rule(shape: Shape | RouterPolicy, table: Table) -> tuple[Bools, Bools]:
    """(rows that stay at the edge whatever the threshold, rows that the threshold decides)."""
    edge, free = table.pinned, ~table.pinned
    for reason, fires in fired(shape.rules, table.evidence):
        if reason is RouteReason.CLASS_KEPT:
            edge = edge | (free & fires)
        free = free & ~fires
    confident: Bools = table.signals["confidence"] >= shape.min_confidence
    return edge, free & confident


def _after(steps: Ints, ends: Ints) -> Ints:
    """Sums of the first 0, then of all steps up to and including each end."""
    return np.append(0, np.cumsum(steps)[ends])


def _outcome(
    edge: int, right: int, failures: int, rows: int, known: int, prices: Prices
) -> PolicyOutcome:
    cloud_share = (rows - edge) / rows
    return PolicyOutcome(
        accuracy=right / known if known else float("nan"),
        cost_usd=prices.per_message(cloud_share),
        edge_share=edge / rows,
        cloud_share=cloud_share,
        risk=failures / rows,
    )


def _share(counts: Ints, of: int) -> Floats:
    return counts / of if of else np.full(counts.shape, np.nan)


def _cost(prices: Prices, cloud_share: Any) -> Floats:
    # `per_message` is arithmetic, and so takes a column as well as a number: one price list.
    cost: Any = prices.per_message(cloud_share)
    return np.asarray(cost, np.float64)
