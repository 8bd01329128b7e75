"""Three bounds of the accuracy lost, on the same rows: why `tune.certificate.bounds` has the one it
has.

    python -m tests.bench.losses

Per message a loss of 1, -1 or 0, of known chances. In the table, how far a bound at 95% lies above
the mean loss, on average over 200 samples, in percentage points: ours, and as the reference each of

- two binomials: Clopper-Pearson on losses and on gains, at half the level each;
- betting: Waudby-Smith and Ramdas (JRSS-B 86, 2024), in the order of the rows.

The notes have the share of samples in which a bound lies below the true mean, and below the mean
that was seen; the share in which it certifies a loss of one point more than the mean; and how far
it moves, as a standard deviation in points, if the same rows come in another order.
"""

import argparse
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np

from tests.bench.rows import Row, publish, row
from tests.support.bounds import lower_bound
from tune.certificate.bounds import level, loss_upper_bound, upper_bound
from tune.replay import Floats, Ints

CONFIDENCE: Final = 0.95
DRAWS: Final = 200
ROWS: Final = (500, 1000, 2000, 3000)
CHANCES: Final = ((0.005, 0.002), (0.005, 0.005), (0.01, 0.002), (0.01, 0.005), (0.01, 0.01),
                  (0.02, 0.002), (0.02, 0.005), (0.02, 0.01))  # fmt: skip
_LARGEST_BET: Final = 0.75  # of the two that the paper names, the better one on these cases


def trinomial(losses: Ints) -> Floats:
    rows = losses.shape[-1]
    return _by_counts(losses, lambda lost, won: loss_upper_bound(lost, won, rows, CONFIDENCE))


def two_binomials(losses: Ints) -> Floats:
    rows, each = losses.shape[-1], (1.0 + CONFIDENCE) / 2
    return _by_counts(
        losses, lambda lost, won: upper_bound(lost, rows, each) - lower_bound(won, rows, each)
    )


def _by_counts(losses: Ints, bound: Callable[[int, int], float]) -> Floats:
    """Once for every pair of counts among the samples."""
    counts = np.stack([(losses == 1).sum(axis=-1), (losses == -1).sum(axis=-1)], axis=-1)
    pairs, place = np.unique(counts, axis=0, return_inverse=True)
    return np.array([bound(*pair) for pair in pairs.tolist()])[place.ravel()]


def betting(losses: Ints) -> Floats:
    """The one-sided hedged-capital bound with bets for a known number of rows, by bisection."""
    rows = losses.shape[-1]
    x, seen = (losses + 1.0) / 2, np.arange(2, rows + 2)
    mean = (0.5 + x.cumsum(axis=-1)) / seen
    variance = (0.25 + np.square(x - mean).cumsum(axis=-1)) / seen
    before = np.concatenate([np.full_like(x[:, :1], 0.25), variance[:, :-1]], axis=-1)
    bets = np.sqrt(-2 * np.log(level(CONFIDENCE)) / (rows * before))
    low, high = np.zeros(len(x)), np.ones(len(x))
    for _ in range(20):
        middle = (low + high) / 2
        capped = np.minimum(bets, _LARGEST_BET / (1.0 - middle[:, None]))
        wealth = np.log1p(-capped * (x - middle[:, None])).cumsum(axis=-1).max(axis=-1)
        rejected = wealth >= -np.log(level(CONFIDENCE))
        low, high = np.where(rejected, low, middle), np.where(rejected, middle, high)
    return np.asarray(2 * high - 1)


BOUNDS: Final[Mapping[str, Callable[[Ints], Floats]]] = {
    "trinomial": trinomial,
    "two binomials": two_binomials,
    "betting": betting,
}


def measure(seed: int = 0) -> tuple[list[Row], dict[str, object]]:
    dice = np.random.default_rng(seed)
    rows: list[Row] = []
    notes: dict[str, object] = {"draws": DRAWS, "seed": seed}
    for n, (loss, gain) in product(ROWS, CHANCES):
        losses = dice.choice((1, -1, 0), (DRAWS, n), p=(loss, gain, 1 - loss - gain))
        again = dice.permuted(np.repeat(losses[:1], DRAWS, axis=0), axis=1)
        found = {
            name: _figures(bound(losses), losses, loss - gain, bound(again))
            for name, bound in BOUNDS.items()
        }
        case = f"n = {n:,}, loss {loss:.1%}, gain {gain:.1%}"
        notes[case] = found
        for name in ("two binomials", "betting"):
            points = [found["trinomial"]["points"]], [found[name]["points"]]
            rows.append(row(f"{case}: bound above mean, points, and {name}", *points))
    return rows, notes


def _figures(bound: Floats, losses: Ints, mean: float, again: Floats) -> dict[str, float]:
    return {
        "points": 100 * float((bound - mean).mean()),
        "below_truth": float((bound < mean).mean()),
        "below_seen": float((bound < losses.mean(axis=-1)).mean()),
        "certifies": float((bound <= mean + 0.01).mean()),
        "moves": 100 * float(again.std()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    publish("losses", *measure(parser.parse_args().seed), Path(".firstline").absolute())


if __name__ == "__main__":
    main()
