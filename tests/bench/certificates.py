"""Certificates that break their promise, and naive tuning beside them, by drawing the rows again.

    python -m tests.bench.certificates [--table replayed.parquet]

A population is known in full, at each of 300 thresholds that are fixed beforehand. From it 1,000
samples of n rows are drawn with replacement; on each the thresholds are tested in order, and the
last that passes is certified. A promise is broken if the population's figure at that threshold is
the target or worse. Naive tuning takes, of the same thresholds on the same rows, the one of largest
coverage whose observed figure is within the target. A sample on which nothing can be certified
breaks no promise and covers nothing; the notes say how many those were, and the mean coverage.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
from scipy import stats

from tests.bench.rows import Row, publish, row
from tests.support.bounds import allowed_losses
from tune.certificate.bounds import allowed_failures, level
from tune.replay import Bools, Floats, Ints, Table, load_table

DRAWS: Final = 1000
ROWS: Final = (300, 1000, 3000)
RISKS: Final = (0.01, 0.05)
LOSS: Final = 0.01  # most populations cannot lose 5%, and nothing could be broken
CONFIDENCE: Final = 0.95
THRESHOLDS: Final = 300
_SYNTHETIC: Final = 200_000  # rows


@dataclass(frozen=True, kw_only=True)
class Population:
    """All messages there are. `loses` and `gains`: only the cloud is right, only the edge is."""

    name: str
    score: Floats
    pinned: Bools
    differs: Bools
    loses: Bools
    gains: Bools

    @property
    def rows(self) -> int:
        return int(self.score.size)

    @cached_property
    def place(self) -> Ints:
        """Of each row, the first threshold that keeps it; they stand at even steps of coverage.

        A pinned row is kept at every one of them.
        """
        cuts = np.quantile(self.score, 1.0 - np.arange(1, THRESHOLDS + 1) / THRESHOLDS)
        return np.where(self.pinned, 0, np.searchsorted(-cuts, -self.score))

    @cached_property
    def coverage(self) -> Floats:
        return self.reached(np.ones(self.rows, np.bool_))

    def reached(self, of: Bools) -> Floats:
        """Of each threshold: the share of all rows that are kept and true in a column."""
        counts = np.bincount(self.place[of], minlength=THRESHOLDS + 1)[:-1]
        return np.asarray(counts.cumsum() / self.rows)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Counts among `rows` rows, of each draw and threshold."""

    rows: int
    kept: Ints
    failures: Ints
    losses: Ints
    gains: Ints


@dataclass(frozen=True)
class Tally:
    """What the samples of one size came to, for one target."""

    broken: int
    refused: int
    coverage: float
    naive_broken: int
    naive_coverage: float
    hindsight_coverage: float


def synthetic(rows: int = _SYNTHETIC, seed: int = 0) -> Population:
    """As of a good student: nearly all sure, 7% other than the cloud, 79% kept at a risk of 1%."""
    dice = np.random.default_rng(seed)
    doubt = 0.7 * dice.beta(0.3, 2.5, rows)
    differs = dice.random(rows) < 2.0 * doubt**1.5
    right = dice.choice(["cloud", "edge", "neither"], rows, p=(0.7, 0.2, 0.1))
    return Population(
        name="synthetic",
        score=1.0 - doubt,
        pinned=np.zeros(rows, np.bool_),
        differs=differs,
        loses=differs & (right == "cloud"),
        gains=differs & (right == "edge"),
    )


def of_table(table: Table) -> Population:
    """A replayed split by maximum probability, as if its rows were all messages."""
    return Population(
        name=table.split,
        score=table.signals["confidence"],
        pinned=table.pinned,
        differs=table.differs,
        loses=table.cloud_right & ~table.edge_right,
        gains=table.edge_right & ~table.cloud_right,
    )


def measure(
    population: Population, seed: int = 0, draws: int = DRAWS
) -> tuple[list[Row], dict[str, object]]:
    """(rows, notes): the share of broken promises, beside that of naive tuning.

    A share passes if a promise kept to the letter, broken in 5% of all samples, would exceed it
    with a chance of one in a thousand.
    """
    limit = float(stats.binom.ppf(0.999, draws, level(CONFIDENCE))) / draws
    rows: list[Row] = []
    notes: dict[str, object] = {"draws": draws, "thresholds": THRESHOLDS, "seed": seed}
    for promise, tally in _tallies(population, np.random.default_rng(seed), draws):
        figure = f"{population.name}: promises broken, {promise}"
        shares = [tally.broken / draws], [tally.naive_broken / draws]
        rows.append(row(figure, *shares, at_most=limit))
        notes[promise] = vars(tally)
    return rows, notes


def _tallies(
    population: Population, dice: np.random.Generator, draws: int
) -> Iterator[tuple[str, Tally]]:
    for target, n in product(RISKS, ROWS):
        sample = _draw(population, n, dice, draws)
        yield f"risk {target:.0%}, n = {n:,}", _risk(population, sample, target)
        # Few rows prove nothing of themselves: the order starts where other rows prove most.
        other = _draw(population, n, dice, 1)
        first = int(np.argmin(_agreement_p_values(other, target)))
        tally = _agreement(population, sample, first, target)
        yield f"disagreement {target:.0%} of kept, n = {n:,}", tally
        if target == LOSS and population.loses.any():
            yield f"accuracy lost {target:.0%}, n = {n:,}", _loss(population, sample, target)


def _draw(population: Population, n: int, dice: np.random.Generator, draws: int) -> Sample:
    rows = dice.integers(0, population.rows, (draws, n))
    width = THRESHOLDS + 1
    cells = population.place[rows] + width * np.arange(draws)[:, None]

    def up_to(cells: Ints) -> Ints:
        counts = np.bincount(cells.ravel(), minlength=draws * width).reshape(draws, width)
        return np.asarray(counts[:, :-1].cumsum(axis=1))

    return Sample(
        rows=n,
        kept=up_to(cells),
        failures=up_to(cells[population.differs[rows]]),
        losses=up_to(cells[population.loses[rows]]),
        gains=up_to(cells[population.gains[rows]]),
    )


def _risk(population: Population, sample: Sample, target: float) -> Tally:
    passed = sample.failures <= allowed_failures(sample.rows, target, CONFIDENCE)
    within = sample.failures <= target * sample.rows
    return _tally(population, passed, within, population.reached(population.differs), target)


def _agreement(population: Population, sample: Sample, first: int, target: float) -> Tally:
    passed = np.asarray(_agreement_p_values(sample, target) <= level(CONFIDENCE))
    passed[:, :first] = passed[:, first : first + 1]
    risk, coverage = population.reached(population.differs), population.coverage
    truth = np.divide(risk, coverage, out=np.zeros_like(risk), where=coverage > 0)
    return _tally(population, passed, sample.failures <= target * sample.kept, truth, target)


def _agreement_p_values(sample: Sample, target: float) -> Floats:
    """`tune.certificate.bounds.p_value` of the kept rows, of every draw and threshold."""
    return np.asarray(stats.binom.cdf(sample.failures, sample.kept, target), np.float64)


def _loss(population: Population, sample: Sample, target: float) -> Tally:
    allowed = np.array([
        allowed_losses(gains, sample.rows, target, CONFIDENCE)
        for gains in range(int(sample.gains.max()) + 1)
    ])  # fmt: skip
    within = sample.losses - sample.gains <= target * sample.rows
    truth = population.reached(population.loses) - population.reached(population.gains)
    return _tally(population, sample.losses <= allowed[sample.gains], within, truth, target)


def _tally(
    population: Population, passed: Bools, within: Bools, truth: Floats, target: float
) -> Tally:
    """Chooses a threshold per draw, ours by fixed-sequence testing, and looks up the truth."""
    ours = np.logical_and.accumulate(passed, axis=1).sum(axis=1) - 1
    last = truth.size - 1
    naive = np.where(within.any(axis=1), last - within[:, ::-1].argmax(axis=1), -1)
    # One entry more, which the index -1 stands for: nothing was named.
    bad, reach = np.append(truth >= target, False), np.append(population.coverage, 0.0)
    return Tally(
        broken=int(bad[ours].sum()),
        refused=int((ours < 0).sum()),
        coverage=float(reach[ours].mean()),
        naive_broken=int(bad[naive].sum()),
        naive_coverage=float(reach[naive].mean()),
        hindsight_coverage=float(population.coverage[truth < target].max(initial=0.0)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--table", type=Path, help="a replayed split, as a second population")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    populations = [synthetic()]
    if arguments.table:
        populations.append(of_table(load_table(arguments.table)))
    rows: list[Row] = []
    notes: dict[str, object] = {}
    for population in populations:
        found, notes[population.name] = measure(population, arguments.seed)
        rows += found
    if not publish("certificates", rows, notes, Path(".firstline").absolute()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
