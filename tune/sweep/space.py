"""The search space: what a trial may vary, each range with its reason. No Ray here.

A point names a scorer of the pool (tune/learned/pool.py), or `WEIGHTED` with a weight for each
signal, and the hard rules on top. Every signal that is weighed is in [0, 1] and has no unit, so
weights are comparable; a policy does not change when weights and threshold are scaled together:
ranges of size 1 lose nothing.

Thresholds and floors are not searched: a trial tries all of them (objective.curve). The sweep
starts from every scorer of the pool by itself (`Space.starts`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from serve_app.decide.factors import FACTORS, FULL_WORDS
from serve_app.decide.policy import Rules
from tune.replay import Table

SCORER: Final = "scorer"
WEIGHTED: Final = "weighted"
BUDGET: Final = "cloud_share_budget"
_START_BUDGET: Final = 0.2

# A choice for each parameter; the weights only where the scorer is WEIGHTED.
Point: TypeAlias = Mapping[str, Any]


class Range(NamedTuple):
    """Values from `low` to `high` in whole steps, so that a policy stays readable."""

    low: float
    high: float
    step: float


WEIGHTS: Final[Mapping[str, Range]] = MappingProxyType(
    {
        # A confident edge earns trust, an undecided one loses it: the sign is known.
        "confidence": Range(0.0, 1.0, 0.01),
        "margin": Range(0.0, 1.0, 0.01),
        "entropy": Range(-1.0, 0.0, 0.01),
        # The factors are meant as difficulty, but which way they point is left to the data.
        **{name: Range(-0.5, 0.5, 0.01) for name in FACTORS},
    }
)
# Not part of the policy: the largest cloud share at which the trial answers Optuna.
BUDGETS: Final = Range(0.0, 0.5, 0.01)

# Beside 0 (no floor): where calibrated confidences of a decent edge model live.
FLOORS: Final = (0.0, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
# The 1% of calibration messages that are furthest are at 1 and beyond.
MAX_DISTANCES: Final = (1.0, 1.25, 1.5, 2.0, 3.0)
# From the length of a long question to that of a letter.
MAX_WORDS: Final = (20, 40, 60, 120)
_RULED: Final = ("escalation", "words", "distance")


class Asker(Protocol):
    """What the space needs of an Optuna trial."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...

    def suggest_float(self, name: str, low: float, high: float, *, step: float) -> float: ...


@dataclass(frozen=True)
class Space:
    """What a trial may choose from: names of scorers, and for each rule its values, the first off.

    A rule of one choice is not asked for.
    """

    scorers: tuple[str, ...]
    rules: Mapping[str, tuple[Any, ...]]

    @classmethod
    def of(cls, scorers: Iterable[str], table: Table) -> "Space":
        """Of a pool's names and the rules that fire on a row of the table at least."""
        seen = {name: float(table.signals[name].max()) for name in _RULED}
        words = [limit for limit in MAX_WORDS if seen["words"] > limit / FULL_WORDS]
        distances = [limit for limit in MAX_DISTANCES if seen["distance"] > limit]
        return cls(
            scorers=(*scorers, WEIGHTED),
            rules={
                "escalation_words": (False, True) if seen["escalation"] > 0.0 else (False,),
                "max_words": (None, *words),
                "max_distance": (None, *distances),
            },
        )

    def __call__(self, trial: Asker) -> None:
        """Asks for a point; Optuna's define-by-run."""
        scorer = trial.suggest_categorical(SCORER, self.scorers)
        for name, choices in self.rules.items():
            if len(choices) > 1:
                trial.suggest_categorical(name, choices)
        if scorer == WEIGHTED:
            for name, limits in WEIGHTS.items():
                trial.suggest_float(name, limits.low, limits.high, step=limits.step)
        trial.suggest_float(BUDGET, BUDGETS.low, BUDGETS.high, step=BUDGETS.step)

    @property
    def starts(self) -> list[dict[str, Any]]:
        """Each scorer by itself, what any found policy has to beat; and single weights."""
        off = {name: choices[0] for name, choices in self.rules.items() if len(choices) > 1}
        common = {**off, BUDGET: _START_BUDGET}
        plain = [{SCORER: name, **common} for name in self.scorers if name != WEIGHTED]
        weights = ({"confidence": 1.0}, {"margin": 1.0}, {"entropy": -1.0})
        return plain + [
            {SCORER: WEIGHTED, **dict.fromkeys(WEIGHTS, 0.0), **some, **common} for some in weights
        ]


def weights_of(point: Point) -> dict[str, float]:
    """The weights in a point: rounded to the step, zeros left out; empty for a scorer's own."""
    rounded = {name: round(float(point.get(name, 0.0)), 2) for name in WEIGHTS}
    return {name: weight for name, weight in rounded.items() if weight}


def rules_of(point: Point, fixed: Rules) -> Rules:
    """The user's rules with those of a point; of two limits the stricter holds."""
    found = {
        "escalation_words": fixed.escalation_words or point.get("escalation_words", False),
        "max_words": _least(fixed.max_words, point.get("max_words")),
        "max_distance": _least(fixed.max_distance, point.get("max_distance")),
    }
    return Rules(**{**fixed.model_dump(), **found})


def simplicity(point: Point) -> tuple[int, bool, int]:
    """Sorts points: few rules first, a scorer of the pool before weights, few weights first."""
    rules = rules_of(point, Rules()).model_dump(exclude_defaults=True)
    return len(rules), point[SCORER] == WEIGHTED, len(weights_of(point))


def _least(*limits: float | None) -> float | None:
    return min((limit for limit in limits if limit is not None), default=None)
