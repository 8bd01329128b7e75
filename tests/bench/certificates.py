"""Certificates that break their promise, and naive tuning beside them, by drawing the rows again.

    python -m tests.bench.certificates [--table replayed.parquet]

A population is known in full, at each of 300 thresholds that are fixed beforehand. From it 1,000
samples of n rows are drawn with replacement; on each the thresholds are tested in order, and the
last that passes is certified. A promise is broken if the population's figure at that threshold is
the target or worse. Naive tuning takes, of the same thresholds on the same rows, the one of largest
coverage whose observed figure is within the target. A sample on which nothing can be certified
breaks no promise; the notes say how many those were, and what coverage the rest kept.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
from scipy import stats

from tests.bench.rows import Row, publish, row
from tune.bounds import allowed_failures, level, loss_p_value, paired_losses
from tune.replay import Bools, Floats, Ints, Table, load_table

DRAWS: Final = 1000
ROWS: Final = (300, 1000, 3000)
RISKS: Final = (0.01, 0.05)
CONFIDENCE: Final = 0.95
THRESHOLDS: Final = 300
# A bet is made row by row at each threshold, so the accuracy lost is tested on fewer of both.
LOSS: Final = 0.01
LOSS_ROWS: Final = (1000, 3000)
LOSS_THRESHOLDS: Final = 30
_SYNTHETIC: Final = 200_000  # rows


@dataclass(frozen=True, kw_only=True)
class Population:
    """All messages there are. `loss` is 1, -1 or 0 if kept; None without human labels."""

    name: str
    score: Floats
    pinned: Bools
    differs: Bools
    loss: Ints | None

    @property
    def rows(self) -> int:
        return int(self.score.size)

    def places(self, thresholds: int) -> Ints:
        """Of each row, the first of so many thresholds, at even steps of coverage, that keeps it.

        A pinned row is kept at every one of them.
        """
        cuts = np.quantile(self.score, 1.0 - np.arange(1, thresholds + 1) / thresholds)
        return np.where(self.pinned, 0, np.searchsorted(-cuts, -self.score))


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
        loss=paired_losses(differs, right == "edge", right == "cloud"),
    )


def of_table(table: Table) -> Population:
    """A replayed split by maximum probability, as if its rows were all messages."""
    labelled = bool(table.known.all())
    every = np.ones(table.rows, np.bool_)
    return Population(
        name=table.split,
        score=table.signals["confidence"],
        pinned=table.pinned,
        differs=table.differs,
        loss=paired_losses(every, table.edge_right, table.cloud_right) if labelled else None,
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
    place = population.places(THRESHOLDS)
    for target, n in product(RISKS, ROWS):
        counts = _counts(population, place, n, dice, draws)
        yield f"risk {target:.0%}, n = {n:,}", _risk(population, place, counts, n, target)
        # Few rows prove nothing of themselves: the order starts where other rows prove most.
        other = _counts(population, place, n, dice, 1)
        first = int(np.argmin(_agreement_p_values(*other, target)))
        tally = _agreement(population, place, counts, first, target)
        yield f"disagreement {target:.0%} of kept, n = {n:,}", tally
    if population.loss is not None:
        place = population.places(LOSS_THRESHOLDS)
        coverage = _reached(place, LOSS_THRESHOLDS)
        lost = _reached(place, LOSS_THRESHOLDS, population.loss)
        for n in LOSS_ROWS:
            tests = _loss_tests(place, population.loss, n, dice, draws)
            yield f"accuracy lost {LOSS:.0%}, n = {n:,}", _tally(*tests, lost, coverage, LOSS)


def _risk(
    population: Population, place: Ints, counts: tuple[Ints, Ints], n: int, target: float
) -> Tally:
    _, failures = counts
    passed = failures <= allowed_failures(n, target, CONFIDENCE)
    truth = _reached(place, THRESHOLDS, population.differs)
    return _tally(passed, failures <= target * n, truth, _reached(place, THRESHOLDS), target)


def _agreement(
    population: Population, place: Ints, counts: tuple[Ints, Ints], first: int, target: float
) -> Tally:
    kept, failures = counts
    coverage = _reached(place, THRESHOLDS)
    risk = _reached(place, THRESHOLDS, population.differs)
    truth = np.divide(risk, coverage, out=np.zeros_like(risk), where=coverage > 0)
    passed = np.asarray(_agreement_p_values(kept, failures, target) <= level(CONFIDENCE))
    passed[:, :first] = passed[:, first : first + 1]
    return _tally(passed, failures <= target * kept, truth, coverage, target)


def _agreement_p_values(kept: Ints, failures: Ints, target: float) -> Floats:
    """`tune.bounds.agreement_p_value` of every draw and threshold."""
    return np.asarray(stats.binom.cdf(failures, kept, target), np.float64)


def _reached(place: Ints, thresholds: int, of: Bools | Ints | None = None) -> Floats:
    """Of each threshold: the sum of a column over the rows that it keeps, over all rows."""
    sums = np.bincount(place, of, thresholds + 1)[:-1]
    return np.asarray(sums.cumsum() / place.size, np.float64)


def _counts(
    population: Population, place: Ints, n: int, dice: np.random.Generator, draws: int
) -> tuple[Ints, Ints]:
    """(rows kept, failures among them), of each draw and threshold."""
    rows = dice.integers(0, population.rows, (draws, n))
    width = THRESHOLDS + 1
    cells = place[rows] + width * np.arange(draws)[:, None]

    def up_to(cells: Ints) -> Ints:
        counts = np.bincount(cells.ravel(), minlength=draws * width).reshape(draws, width)
        return np.asarray(counts[:, :-1].cumsum(axis=1))

    return up_to(cells), up_to(cells[population.differs[rows]])


def _loss_tests(
    place: Ints, loss: Ints, n: int, dice: np.random.Generator, draws: int
) -> tuple[Bools, Bools]:
    """(passed, observed within the target), of each draw and threshold."""
    rows = dice.integers(0, place.size, (draws, n))
    place, loss = place[rows], loss[rows]
    passed = np.zeros((draws, LOSS_THRESHOLDS), np.bool_)
    within = np.zeros_like(passed)
    going = np.arange(draws)
    for step in range(LOSS_THRESHOLDS):
        lost = np.where(place <= step, loss, 0)
        within[:, step] = lost.mean(axis=1) <= LOSS
        # What comes after a failure is never looked at.
        going = going[loss_p_value(lost[going], LOSS, CONFIDENCE) <= level(CONFIDENCE)]
        passed[going, step] = True
    return passed, within


def _tally(passed: Bools, within: Bools, truth: Floats, coverage: Floats, target: float) -> Tally:
    """Chooses a threshold per draw, ours by fixed-sequence testing, and looks up the truth."""
    ours = np.logical_and.accumulate(passed, axis=1).sum(axis=1) - 1
    last = truth.size - 1
    naive = np.where(within.any(axis=1), last - within[:, ::-1].argmax(axis=1), -1)
    # One entry more, which the index -1 stands for: nothing was named.
    bad, reach = np.append(truth >= target, False), np.append(coverage, 0.0)
    return Tally(
        broken=int(bad[ours].sum()),
        refused=int((ours < 0).sum()),
        coverage=float(reach[ours].mean()),
        naive_broken=int(bad[naive].sum()),
        naive_coverage=float(reach[naive].mean()),
        hindsight_coverage=float(coverage[truth < target].max(initial=0.0)),
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
