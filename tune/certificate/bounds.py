"""Counts -> what holds of all messages: exact bounds, tests, and the rows that they take. Pure.

Every function here is about ONE rule that was fixed before the rows were seen (`share_bound_of_any`
excepted), and about rows that are independent draws of the messages to come.
`tune.certificate.certify` adds the choice among many rules. docs/certificates.md says all of it in
words.

    a  risk           failures of all rows        Clopper and Pearson
    b  agreement      failures of the kept rows   the same, given how many were kept
    c  accuracy lost  losses and gains, paired    exact trinomial test, Berger and Boos
    d  cloud share    escalated of all rows       a again; the cost is linear in it
    e  per class      a or b of each class        Holm, with the bounds that belong to it
    f  rows needed    for a wanted chance to pass

`confidence` is 1 minus the level of a test; a test passes if its p-value is at most the level.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
from scipy import stats

from tune.replay import Bools, Floats, Ints

# Of the level of the test of the accuracy lost, what is spent on bounding how often only one of
# edge and cloud is right. 0.02, 0.05 and 0.2 gave bounds up to 6% wider, none over 1.5% tighter.
_SPENT: Final = 0.1
# Cells in a standard deviation of those rows; twice as many make a bound 0.6% tighter.
_CELLS: Final = 20
_MOST_CELLS: Final = 400


class FailureCounts(NamedTuple):
    """Failures among rows."""

    failures: int
    rows: int


def level(confidence: float) -> float:
    """1 - confidence, of a test: 1 - 0.95 is a little more than 0.05 in floating point."""
    return round(1.0 - confidence, 12)


# ---- a: risk --------------------------------------------------------------------------------


def upper_bound(failures: int, rows: int, confidence: float) -> float:
    """The largest risk that `failures` in `rows` do not rule out; 1.0 of no rows.

    Failures are Binomial(rows, risk). Clopper and Pearson, Biometrika 26 (1934): the bound is
    below the risk in at most a share 1 - confidence of all draws, whatever the risk.
    """
    return _upper(failures, rows, level(confidence))


def p_value(failures: int, rows: int, risk: float) -> float:
    """Of H0: risk >= `risk`. The chance of at most so many failures if H0 only just holds.

    The binomial cdf falls in the risk, so this is the largest chance under H0, and P(p <= u) <= u
    for every u. It is at most 1 - confidence exactly where `upper_bound` is at most `risk`
    (Clopper and Pearson, 1934).
    """
    return float(stats.binom.cdf(failures, rows, risk))


def min_rows(risk: float, confidence: float) -> int:
    """The fewest rows that can certify a risk at all, with no failure among them. By `p_value`."""
    return _fewest(risk, level(confidence))


def best_risk(rows: int, confidence: float) -> float:
    """The smallest risk that so many rows can certify, with no failure among them."""
    return upper_bound(0, rows, confidence)


def allowed_failures(rows: int, risk: float, confidence: float) -> int:
    """The most failures with which a policy passes; -1 if not even none will do. By `p_value`."""
    guess = max(0, int(stats.binom.ppf(level(confidence), rows, risk)))
    return guess if p_value(guess, rows, risk) <= level(confidence) else guess - 1


# ---- b: agreement among the messages answered at the edge -----------------------------------


def agreement_lower_bound(failures: int, kept: int, confidence: float) -> float:
    """Of the messages answered at the edge, at least this share gets the cloud's label.

    `kept` is counted on the same rows. Given which rows are kept, each of them fails on its own
    with the one chance P(differs | kept): failures are Binomial(kept, that chance) for each value
    of `kept`. The bound of Clopper and Pearson (1934) misses with at most 1 - confidence given
    each value, and so on average over them.
    """
    return 1.0 - upper_bound(failures, kept, confidence)


# ---- c: accuracy lost against cloud-only, on human labels, paired ---------------------------


def loss_counts(kept: Bools, edge_right: Bools, cloud_right: Bools) -> tuple[int, int]:
    """(losses, gains): kept rows on which only the cloud is right, and only the edge is."""
    losses = kept & cloud_right & ~edge_right
    gains = kept & edge_right & ~cloud_right
    return int(losses.sum()), int(gains.sum())


def loss_p_value(losses: int, gains: int, rows: int, loss: float, confidence: float) -> float:
    """Of H0: accuracy lost >= `loss`, to be compared with 1 - confidence.

    A row is a loss, a gain or neither, with chances p, g and the rest; the accuracy lost is p - g.
    The statistic is losses - gains. Its distribution depends on q = p + g too, so q is bounded at
    a tenth of the level, and the p-value is the largest chance over such q, plus that tenth: valid
    in finite samples by lemma 1 of Berger and Boos (JASA 89, 1994).

    That largest chance is bounded, not searched for. losses - gains falls stochastically if p
    falls or g rises: the smallest p and the largest g of a cell of q stand for the whole cell, and
    for every H0 with a larger loss.
    """
    spent = _SPENT * level(confidence)
    highest = _upper(losses + gains, rows, spent)
    cells = min(_MOST_CELLS, math.ceil(_CELLS * math.sqrt(rows * highest)) + 1)
    edges = np.linspace(0.0, highest, cells + 1)
    low, high = edges[:-1][edges[1:] >= loss], edges[1:][edges[1:] >= loss]
    if not high.size:
        return spent
    p = np.maximum(0.0, (low + loss) / 2)
    g = np.clip((high - loss) / 2, 0.0, high)
    return min(1.0, spent + float(_at_most(losses - gains, rows, p, g).max()))


def loss_upper_bound(losses: int, gains: int, rows: int, confidence: float) -> float:
    """The largest loss of accuracy that the rows do not rule out, to 1e-6; 1.0 of no rows.

    Every loss from the bound on is rejected by `loss_p_value`, which falls in the loss (Berger and
    Boos, 1994).
    """
    low, high = -1.0, 1.0
    while rows and high - low > 1e-6:
        middle = (low + high) / 2
        if loss_p_value(losses, gains, rows, middle, confidence) <= level(confidence):
            high = middle
        else:
            low = middle
    return high


def _at_most(difference: int, rows: int, p: Floats, g: Floats) -> Floats:
    """P(losses - gains <= difference) of each p and g, by summing over the gains."""
    gains = np.arange(1 + int(stats.binom.isf(1e-9, rows, g.max())))
    chance = np.asarray(stats.binom.pmf(gains, rows, g[:, None]))
    given = np.minimum(1.0, p / np.maximum(1.0 - g, 1e-300))
    below = stats.binom.cdf(gains + difference, rows - gains, given[:, None])
    # What lies past the end of the sum counts in full: the result is never too small.
    past = np.maximum(0.0, 1.0 - chance.sum(axis=1))
    return np.asarray((chance * below).sum(axis=1) + past, np.float64)


# ---- d: cloud share -------------------------------------------------------------------------


def share_bound_of_any(escalated: int, rows: int, confidence: float) -> float:
    """Of the cloud share of a threshold that was chosen on these very rows; confidence >= 0.5.

    The rows kept by falling thresholds of one shape are nested, so the kept share over thresholds
    is an empirical distribution function, and bounds of them all hold at once: Dvoretzky, Kiefer
    and Wolfowitz, with the constant of Massart (Annals of Probability 18, 1990).
    """
    if not rows:
        return 1.0
    margin = math.sqrt(math.log(1.0 / level(confidence)) / (2 * rows))
    return min(1.0, escalated / rows + margin)


# ---- e: per class ---------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassBound:
    """Of one predicted class. `upper_bound` is the target if it is certified."""

    label: str
    failures: int
    rows: int
    certified: bool
    upper_bound: float


@dataclass(frozen=True)
class ClassBounds:
    """All statements in it hold at once, at `confidence`.

    `too_few` names the classes of which nothing is said, and `rows_needed` what one of them would
    have needed.
    """

    risk: float
    confidence: float
    classes: tuple[ClassBound, ...]
    too_few: tuple[str, ...]
    rows_needed: int


def class_counts(
    predicted: Ints, among: Bools, failed: Bools, labels: Sequence[str]
) -> dict[str, FailureCounts]:
    """Failures among the rows of each predicted class, indices into `labels`.

    `among` is all rows for the risk of a class, and the kept rows for its agreement.
    """
    rows = np.bincount(predicted[among], minlength=len(labels))
    failures = np.bincount(predicted[among & failed], minlength=len(labels))
    return {name: FailureCounts(int(failures[i]), int(rows[i])) for i, name in enumerate(labels)}


def per_class(counts: Mapping[str, FailureCounts], risk: float, confidence: float) -> ClassBounds:
    """Which predicted classes have a risk below the target, and a bound of those that may not.

    Given how many rows each class has, the failures of a class are binomial, and classes picked
    by these numbers alone are as good as fixed. Of m classes, the smallest p-value is tested at
    level / m, the next at level / (m - 1), and so on to the first that fails (Holm, Scandinavian
    Journal of Statistics 6, 1979). A certified class is bounded by the target, each of the r
    others by Clopper and Pearson at level / r (Strassburger and Bretz, Statistics in Medicine 27,
    2008). The proof that all of it holds at once is short: docs/certificates.md.
    """
    at = level(confidence)
    tested, needed = testable(counts, risk, at)
    p_values = {name: p_value(*counts[name], risk) for name in tested}
    left = sorted(tested, key=lambda name: p_values[name])
    while left and p_values[left[0]] <= at / len(left):
        left.pop(0)
    bounds = {name: _upper(*counts[name], at / len(left)) for name in left}
    return ClassBounds(
        risk=risk,
        confidence=confidence,
        classes=tuple(
            ClassBound(name, *counts[name], name not in bounds, bounds.get(name, risk))
            for name in tested
        ),
        too_few=tuple(name for name in counts if name not in tested),
        rows_needed=needed,
    )


def testable(counts: Mapping[str, FailureCounts], risk: float, at: float) -> tuple[list[str], int]:
    """The most classes that could all be certified, in order, and the rows of one more."""
    by_rows = sorted(counts, key=lambda name: -counts[name].rows)
    m = 0
    while m < len(by_rows) and counts[by_rows[m]].rows >= _fewest(risk, at / (m + 1)):
        m += 1
    chosen = set(by_rows[:m])
    return [name for name in counts if name in chosen], _fewest(risk, at / (m + 1))


# ---- f: rows needed -------------------------------------------------------------------------


def rows_needed(risk: float, confidence: float, expected_risk: float, chance: float = 0.5) -> float:
    """The fewest rows with which a policy of risk `expected_risk` passes with at least `chance`.

    Exact, by the binomial test above. Infinite if the policy is no better than the target. A few
    rows more allow no failure more, and pass a little less often.
    """
    if expected_risk >= risk:
        return math.inf
    low, high = -1, 0
    while _passes(high, risk, confidence, expected_risk) < chance:
        low, high = high, 2 * high + 1
    while high - low > 1:
        middle = (low + high) // 2
        if _passes(middle, risk, confidence, expected_risk) < chance:
            low = middle
        else:
            high = middle
    return float(_fewest(risk, level(confidence), high))


def _passes(allowed: int, risk: float, confidence: float, true_risk: float) -> float:
    """The chance of at most `allowed` failures in the fewest rows that allow so many."""
    return p_value(allowed, _fewest(risk, level(confidence), allowed), true_risk)


def _upper(failures: int, rows: int, at: float) -> float:
    return 1.0 if failures >= rows else float(stats.beta.isf(at, failures + 1, rows - failures))


@lru_cache(maxsize=4096)
def _fewest(risk: float, at: float, failures: int = 0) -> int:
    """The fewest rows in which so many failures pass a test at a level."""
    low, high = failures, failures + 1
    while p_value(failures, high, risk) > at:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if p_value(failures, middle, risk) <= at else (middle, high)
    return high
