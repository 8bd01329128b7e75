"""(policy, table, prices) -> Outcome; and every threshold of one weights vector at once.

Two paths, equal to the bit (tests/unit/test_objective.py):
    evaluate()  one policy, O(n)
    curve()     one weights vector and confidence floor, all of its n thresholds, O(n log n):
                the rows are sorted by trust once, and cumulative sums give every count

Only `serve_app.policy.trust` computes a score, here as in service.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from serve_app.cost import Prices
from serve_app.policy import RouterPolicy, trust
from tune.replay import Bools, Floats, Ints, Table


@dataclass(frozen=True)
class Outcome:
    """What a policy does to a table.

    `accuracy` is the cascade's, over the rows with a true label (NaN if there are none). `risk` is
    the share of all messages that the edge answers differently from the cloud.
    """

    accuracy: float
    cost_usd: float
    edge_share: float
    cloud_share: float
    risk: float


class FrontPoint(BaseModel):
    """A policy and what it does to the table that it was searched on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: RouterPolicy
    outcome: Outcome


@dataclass(frozen=True)
class Curve:
    """All policies of one weights vector and floor, from the most conservative to the least.

    Columns of one entry per threshold, falling: the first keeps nothing at the edge but what is
    pinned, the last keeps all that the floor allows. `edge`, `right` and `failures` count rows.
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

    def outcome(self, i: int, prices: Prices) -> Outcome:
        return _outcome(
            int(self.edge[i]), int(self.right[i]), int(self.failures[i]), self.rows, self.known,
            prices,
        )  # fmt: skip


def kept(policy: RouterPolicy, table: Table) -> Bools:
    """Which rows the edge answers: what `decide()` says of each of them."""
    score = _scores(policy.weights, table)
    confident = table.signals["confidence"] >= policy.min_confidence
    trusted: Bools = (score >= policy.threshold) & confident
    return table.pinned | trusted


def evaluate(policy: RouterPolicy, table: Table, prices: Prices) -> Outcome:
    """One policy on one table. Raises DataError if the table is empty."""
    table.require_rows()
    edge = kept(policy, table)
    right = np.where(edge, table.edge_right, table.cloud_right)
    return _outcome(
        int(edge.sum()), int(right.sum()), int((edge & table.differs).sum()),
        table.rows, int(table.known.sum()), prices,
    )  # fmt: skip


def curve(weights: Mapping[str, float], min_confidence: float, table: Table) -> Curve:
    """Every threshold that tells two rows apart. Raises DataError if the table is empty."""
    table.require_rows()
    score = _scores(weights, table)
    free = ~table.pinned & (table.signals["confidence"] >= min_confidence)
    rows = np.flatnonzero(free)
    rows = rows[np.argsort(-score[rows], kind="stable")]
    falling = score[rows]
    # Rows of equal trust go together: a threshold stands only where a run of ties ends.
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], rows.size > 0))
    gain = table.edge_right.astype(np.int64) - table.cloud_right
    pinned = table.pinned
    nothing = np.nextafter(falling[0], np.inf) if rows.size else np.float64(0.0)
    return Curve(
        thresholds=np.append(nothing, falling[ends]),
        edge=int(pinned.sum()) + np.append(0, ends + 1),
        right=int(table.cloud_right.sum() + gain[pinned].sum()) + _after(gain[rows], ends),
        failures=int(table.differs[pinned].sum())
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


def _scores(weights: Mapping[str, float], table: Table) -> Floats:
    # No weights make a plain 0.0: it stands for a column of zeros.
    scores: Floats = np.broadcast_to(np.asarray(trust(weights, table.signals)), (table.rows,))
    return scores


def _after(steps: Ints, ends: Ints) -> Ints:
    """Sums of the first 0, then of all steps up to and including each end."""
    return np.append(0, np.cumsum(steps)[ends])


def _outcome(
    edge: int, right: int, failures: int, rows: int, known: int, prices: Prices
) -> Outcome:
    cloud_share = (rows - edge) / rows
    return Outcome(
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
