"""(a shape, its thresholds, a table) -> what each of these policies does, as counts. Pure.

`objective.curve` answers for every threshold that tells rows of its own table apart; here the
thresholds are given, so that those of one table can be counted on another, or on rows with weights.
"""

from dataclasses import dataclass, replace

import numpy as np

from tune.objective import Shape, by_rule, trusts
from tune.replay import Bools, Floats, Ints, Table


@dataclass(frozen=True, eq=False)
class PolicyCounts:
    """What m policies do to n rows, as columns (m,).

    `failures` are kept rows on which the edge differs from the cloud; of the `labelled` rows, kept
    ones are `losses` where only the cloud is right, and `gains` where only the edge is.
    """

    kept: Ints
    failures: Ints
    losses: Ints
    gains: Ints
    rows: int
    labelled: int

    @property
    def escalated(self) -> Ints:
        return self.rows - self.kept

    def of(self, places: Ints) -> "PolicyCounts":
        """Those of some of the policies."""
        return replace(
            self,
            kept=self.kept[places],
            failures=self.failures[places],
            losses=self.losses[places],
            gains=self.gains[places],
        )

    def scaled(self, rows: int) -> "PolicyCounts":
        """The same shares of another number of rows, rounded."""
        by = rows / self.rows
        columns = (self.kept, self.failures, self.losses, self.gains)
        kept, failures, losses, gains = (np.rint(by * c).astype(np.int64) for c in columns)
        return PolicyCounts(kept, failures, losses, gains, rows, round(by * self.labelled))


class Counter:
    """One shape on one table, sorted once; counts any thresholds, with any weights of the rows."""

    def __init__(self, shape: Shape, table: Table, trust: Floats | None = None) -> None:
        """Args: trust: of each row (n,), if not the shape's own: of models that did not see it."""
        table.require_rows()
        self._table = table
        self._edge, free = by_rule(shape, table)
        score = trusts(shape, table) if trust is None else trust
        rows = np.flatnonzero(free)
        self._rows = rows[np.argsort(-score[rows], kind="stable")]
        self._rising = -score[self._rows]

    def of(self, thresholds: Floats, weights: Ints | None = None) -> PolicyCounts:
        """Args: weights: how often each row (n,) counts; None: once."""
        table = self._table
        each = np.ones(table.rows, np.int64) if weights is None else weights
        upto = np.searchsorted(self._rising, -thresholds, side="right")

        def total(which: Bools | None = None) -> Ints:
            column = each if which is None else each * which
            falling = np.append(0, np.cumsum(column[self._rows]))
            return np.asarray(int(column[self._edge].sum()) + falling[upto], np.int64)

        return PolicyCounts(
            kept=total(),
            failures=total(table.differs),
            losses=total(table.cloud_right & ~table.edge_right),
            gains=total(table.edge_right & ~table.cloud_right),
            rows=int(each.sum()),
            labelled=int((each * table.known).sum()),
        )


def counts(shape: Shape, thresholds: Floats, table: Table) -> PolicyCounts:
    """What the shape does to a table at each threshold (m,)."""
    return Counter(shape, table).of(thresholds)
