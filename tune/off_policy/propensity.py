"""Outcomes seen by chance -> what they say of all messages: bounds, and estimates. Pure.

A log shows the cloud's answer on some messages only. On each of them it was shown for certain, with
a chance below 1 that is known (exploration), or not at all:

    bounds     the unseen at their best and at their worst; nothing is assumed
               (Manski, American Economic Review 80, 1990)
    estimates  what chance showed stands for what it might have shown

Both speak of the messages of the log, not of messages to come.
"""

from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict
from scipy import stats

from tune.replay import Bools, Floats

_TAIL: Final = 0.025  # of each side of a 95% interval


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Sampled(_Frozen):
    """Shares of the `messages` whose outcome is seen or could have been; `looks` were by chance.

    `low` and `high` are the 95% interval around `self_normalised`.
    """

    messages: int
    looks: int
    effective_looks: float
    horvitz_thompson: float
    self_normalised: float
    low: float
    high: float


class PropensityEstimate(_Frozen):
    """A share of all `messages`, as far as a log can tell.

    `smallest` and `largest`: what it is if none and if all of the `unseen` have the outcome. `low`
    and `high`: its 95% interval, in which only the `never` seen are at these extremes; None if
    chance showed nothing.
    """

    messages: int
    unseen: int
    never: int
    smallest: float
    largest: float
    low: float | None
    high: float | None
    sampled: Sampled | None


class Seen(NamedTuple):
    """Columns of n messages: the outcome (0 where unseen), whether it is seen, and with what chance
    it had to be: 1 for certain, 0 for never."""

    outcome: Bools
    seen: Bools
    chance: Floats


def estimate(rows: Seen) -> PropensityEstimate:
    """The share of messages with the outcome. There must be some."""
    count = rows.outcome.size
    unseen = int((~rows.seen).sum())
    never = int((~rows.seen & (rows.chance == 0.0)).sum())
    smallest = int(rows.outcome.sum()) / count
    largest = (int(rows.outcome.sum()) + unseen) / count
    found = _sampled(rows, count - never)
    reached = (count - never) / count
    return PropensityEstimate(
        messages=count,
        unseen=unseen,
        never=never,
        smallest=smallest,
        largest=largest,
        low=max(smallest, found.low * reached) if found else None,
        high=min(largest, found.high * reached + never / count) if found else None,
        sampled=found,
    )


def _sampled(rows: Seen, messages: int) -> Sampled | None:
    """None if chance decided nothing, or showed nothing.

    Horvitz and Thompson (JASA 47, 1952) weigh each look by 1 / its chance. Self-normalised, the
    weights of the looks are divided by their sum (Swaminathan and Joachims, NeurIPS 2015): a little
    bias for far less variance. How many messages chance decided on is known, so only the rate among
    those is estimated. Its interval is Clopper and Pearson's at the effective number of looks (Kish
    1965; Korn and Graubard, Survey Methodology 24, 1998), and exact where all chances are equal.
    """
    by_chance = (rows.chance > 0.0) & (rows.chance < 1.0)
    looks = by_chance & rows.seen
    if not looks.any():
        return None
    weights, hits = 1.0 / rows.chance[looks], rows.outcome[looks]
    effective = float(weights.sum() ** 2 / (weights**2).sum())
    rate = float(weights[hits].sum() / weights.sum())
    certain, drawn = int((rows.outcome & ~by_chance).sum()), int(by_chance.sum())
    low, high = ((certain + drawn * end) / messages for end in _interval(rate, effective))
    return Sampled(
        messages=messages,
        looks=int(looks.sum()),
        effective_looks=effective,
        horvitz_thompson=(certain + float(weights[hits].sum())) / messages,
        self_normalised=(certain + drawn * rate) / messages,
        low=low,
        high=high,
    )


def _interval(rate: float, rows: float) -> tuple[float, float]:
    """Clopper and Pearson (Biometrika 26, 1934), of a number of rows that need not be whole."""
    hits = rate * rows
    low = stats.beta.ppf(_TAIL, hits, rows - hits + 1) if rate > 0.0 else 0.0
    high = stats.beta.ppf(1 - _TAIL, hits + 1, rows - hits) if rate < 1.0 else 1.0
    return float(low), float(high)
