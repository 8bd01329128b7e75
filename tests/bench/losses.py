"""Three bounds of the accuracy lost, on the same rows: why `tune.bounds` has the one it has.

    python -m tests.bench.losses

Per message a loss of 1, -1 or 0, of known chances. In the table, how far each bound at 95% lies
above the mean loss, on average over 200 samples, in percentage points: ours, and as the reference
two Clopper-Pearson bounds at half the level each, on losses and on gains. The notes have the bound
by betting with bets of at most 1/2, the shares of samples in which each lies below the truth, and
those in which each certifies a loss of at most one point more than the mean.
"""

import argparse
from itertools import product
from pathlib import Path
from typing import Final
from unittest import mock

import numpy as np

from tests.bench.rows import Row, publish, row
from tune import bounds
from tune.bounds import loss_upper_bound, lower_bound, upper_bound
from tune.replay import Floats, Ints

CONFIDENCE: Final = 0.95
DRAWS: Final = 200
ROWS: Final = (500, 1000, 2000, 3000)
CHANCES: Final = ((0.005, 0.002), (0.005, 0.005), (0.01, 0.002), (0.01, 0.005), (0.01, 0.01),
                  (0.02, 0.002), (0.02, 0.005), (0.02, 0.01))  # fmt: skip


def two_binomials(losses: Ints) -> Floats:
    """Upper bound of the losses less the lower bound of the gains, each at half the level."""
    rows, each = losses.shape[-1], (1.0 + CONFIDENCE) / 2
    return np.array([
        upper_bound(int((one == 1).sum()), rows, each)
        - lower_bound(int((one == -1).sum()), rows, each)
        for one in losses
    ])  # fmt: skip


def smaller_bets(losses: Ints) -> Floats:
    with mock.patch.object(bounds, "_LARGEST_BET", 0.5):
        return loss_upper_bound(losses, CONFIDENCE)


def measure(seed: int = 0) -> tuple[list[Row], dict[str, object]]:
    dice = np.random.default_rng(seed)
    rows: list[Row] = []
    notes: dict[str, object] = {"draws": DRAWS, "seed": seed}
    for n, (loss, gain) in product(ROWS, CHANCES):
        losses = dice.choice((1, -1, 0), (DRAWS, n), p=(loss, gain, 1 - loss - gain))
        mean = loss - gain
        found = {
            "betting": loss_upper_bound(losses, CONFIDENCE),
            "betting, at most 1/2": smaller_bets(losses),
            "two binomials": two_binomials(losses),
        }
        points = {name: 100 * float((bound - mean).mean()) for name, bound in found.items()}
        figure = f"n = {n:,}, loss {loss:.1%}, gain {gain:.1%}: bound above mean, points"
        rows.append(row(figure, [points["betting"]], [points["two binomials"]]))
        notes[figure] = {
            name: {
                "points": points[name],
                "below": float((bound < mean).mean()),
                "certifies": float((bound <= mean + 0.01).mean()),
            }
            for name, bound in found.items()
        }
    return rows, notes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    publish("losses", *measure(parser.parse_args().seed), Path(".firstline").absolute())


if __name__ == "__main__":
    main()
