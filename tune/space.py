"""The search space: what a trial may vary, each range with its reason. No Ray here.

A policy keeps the edge's answer when sum(weight * signal) >= threshold and confidence is at or
above a floor. Every signal here is in [0, 1] and has no unit, so weights are comparable; a policy
does not change when weights and threshold are scaled together: ranges of size 1 lose nothing.

Thresholds and floors are not searched: a trial tries all of them (objective.curve). Single-score
policies are corners of the space, and the sweep starts from them (`STARTS`).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from serve_app.factors import FACTORS
from serve_app.scores import PUBLISHED_WEIGHT

BUDGET: Final = "cloud_share_budget"


class Range(NamedTuple):
    """Values from `low` to `high` in whole steps, so that a policy stays readable."""

    low: float
    high: float
    step: float


def _space() -> dict[str, Range]:
    return {
        # A confident edge earns trust, an undecided one loses it: the sign is known.
        "confidence": Range(0.0, 1.0, 0.01),
        "margin": Range(0.0, 1.0, 0.01),
        "entropy": Range(-1.0, 0.0, 0.01),
        # The factors are meant as difficulty, but which way they point is left to the data.
        **{name: Range(-0.5, 0.5, 0.01) for name in FACTORS},
        # Not part of the policy: the largest cloud share at which the trial answers Optuna.
        BUDGET: Range(0.0, 0.5, 0.01),
    }


SPACE: Final[Mapping[str, Range]] = MappingProxyType(_space())

# Beside 0 (no floor): where calibrated confidences of a decent edge model live.
FLOORS: Final = (0.0, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def _start(weights: Mapping[str, float]) -> dict[str, float]:
    return {name: weights.get(name, 0.0) for name in SPACE if name != BUDGET} | {BUDGET: 0.2}


# The plain policies that any found one has to beat: one score each, and the published rule.
STARTS: Final = tuple(
    _start(weights)
    for weights in (
        {"confidence": 1.0},
        {"margin": 1.0},
        {"entropy": -1.0},
        dict.fromkeys(FACTORS, PUBLISHED_WEIGHT),
    )
)


def weights_of(point: Mapping[str, float]) -> dict[str, float]:
    """The policy's weights in a point of the space: rounded to the step, zeros left out."""
    rounded = {name: round(float(point[name]), 2) for name in SPACE if name != BUDGET}
    return {name: weight for name, weight in rounded.items() if weight}
