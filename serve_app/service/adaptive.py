"""Weights that follow the feedback: routed releases and the monitor's report -> their next weights.

Pure: the random source is an argument.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from serve_app.cascade.traffic import Routed
from serve_app.monitor.stats import MonitorReport

ADAPT_EVERY_S: Final = 600.0
_FLOOR_SHARE: Final = 0.05
_MAX_STEP: Final = 0.1
_MIN_STEP: Final = 0.01
_MIN_LABELS: Final = 30
_DRAWS: Final = 10_000
_DIGITS: Final = 4


@dataclass(frozen=True, slots=True)
class Trial:
    """What feedback has said of a release's answers."""

    correct: int
    wrong: int


def thompson_weights(
    seen: Mapping[str, Trial],
    weights: Mapping[str, float],
    *,
    rng: np.random.Generator,
    draws: int = _DRAWS,
    floor_share: float = _FLOOR_SHARE,
    max_step: float = _MAX_STEP,
) -> dict[str, float]:
    """One step towards the chance of each release of being the best (Thompson, 1933).

    Beta-Bernoulli with a uniform prior. Every release is to keep `floor_share`, so that it goes on
    being measured, and no weight moves further than `max_step`. Releases that are equally good end
    up with shares that mean nothing.
    """
    best = _chances_of_being_best([seen[release] for release in weights], draws, rng)
    now = np.array(list(weights.values()))
    floor = min(floor_share, 1 / len(now))
    wanted = floor + (1 - len(now) * floor) * best
    furthest = float(np.max(np.abs(wanted - now)))
    moved = now + min(1.0, max_step / furthest) * (wanted - now) if furthest else now
    return _rounded(dict(zip(weights, moved.tolist(), strict=True)))


def _chances_of_being_best(
    trials: list[Trial], draws: int, rng: np.random.Generator
) -> np.typing.NDArray[np.float64]:
    accuracies = [rng.beta(1 + one.correct, 1 + one.wrong, draws) for one in trials]
    return np.bincount(np.argmax(accuracies, axis=0), minlength=len(trials)) / draws


def _rounded(weights: dict[str, float]) -> dict[str, float]:
    """Weights that a person can read; the largest takes the rest."""
    made = {release: round(weight, _DIGITS) for release, weight in weights.items()}
    largest = max(made, key=made.__getitem__)
    rest = math.fsum(weight for release, weight in made.items() if release != largest)
    return {**made, largest: round(1 - rest, _DIGITS)}


def adapted(routed: Routed, report: MonitorReport, rng: np.random.Generator) -> Routed | None:
    """The weights after what `report` says; None where they are to stay.

    They stay unless `adaptive`, until every routed release has 30 labels from the time in which
    all of them answered, and where no weight would move by a hundredth: a move takes sticky users
    with it. Accuracy is of the answers as they went out, degraded ones too.
    """
    seen = _trials(report)
    if not routed.adaptive or seen.keys() < routed.releases.keys():
        return None
    if any(seen[name].correct + seen[name].wrong < _MIN_LABELS for name in routed.releases):
        return None
    weights = thompson_weights(seen, routed.releases, rng=rng)
    moves = (abs(weights[name] - weight) for name, weight in routed.releases.items())
    if max(moves) < _MIN_STEP:
        return None
    return Routed(releases=weights, champion=routed.champion, shadow=routed.shadow, adaptive=True)


def _trials(report: MonitorReport) -> dict[str, Trial]:
    arms = [arm for pair in report.comparison for arm in (pair.champion, pair.challenger)]
    return {
        arm.release: Trial(arm.accuracy.correct, arm.accuracy.labelled - arm.accuracy.correct)
        for arm in arms
    }
