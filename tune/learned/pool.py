"""Tables -> the pool: every finished scorer that a policy may be made of, by name.

    made = pool(tune, calibration)
    made["logistic-1"].trust    of each row of `tune`, by a model that did not see it

Signals are scores as they are. What is learned is learned from all rows of both tables, and
cross-fitted on `tune` (fit.py), so that its column there can be searched and chosen from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cluster.progress import Report, silent
from serve_app.decide.policy import trust
from serve_app.decide.scores import (
    Distance,
    Energy,
    Entropy,
    Logistic,
    Margin,
    MaxProbability,
    NgramMargin,
    Published,
    Random,
    Score,
    Weighted,
)
from tune.learned.fit import (
    FALLBACK,
    FEATURES,
    Learn,
    check_extra,
    crossfit,
    fit_boosted,
    fit_logistic,
)
from tune.replay import Bools, Floats, Ints, Table

SINGLES: Final[tuple[Score, ...]] = (
    MaxProbability(), Margin(), Entropy(), Energy(), Distance(), NgramMargin(), Published(),
    Random(),
)  # fmt: skip
# With these four and class offsets a logistic model was best or near best on banking77, clinc150
# and our samples; all features overfit slightly.
CORE: Final = ("log_odds", "logit_margin", "entropy", "energy")
# A second opinion beside the first: two weights need few rows, and no offset of each class.
NGRAM: Final = ("log_odds", "ngram_margin")
STRENGTHS_OF_NGRAM: Final = (1.0, 10.0)
STRENGTHS: Final = (1.0, 3.0, 10.0, 30.0)
STRENGTHS_OF_ALL: Final = (10.0, 100.0)
STRENGTHS_PER_CLASS: Final = (1.0, 10.0)
TREES: Final = (20, 40)
PER_CLASS: Final = "per_class"
# Signals that not every edge measures.
_MEASURED: Final = ("distance", "ngram_margin")


@dataclass(frozen=True, eq=False)
class Scorer:
    """A score with its class margins, finished; and what it says of the n rows of `tune`.

    `trust` is the score less the margin: of a learned one, each row by a model that did not see it.
    `log_loss` is that of "the edge agrees", as held out, in nats; None for what is not learned.
    """

    name: str
    score: Score
    trust: Floats
    class_margins: Mapping[str, float] = field(default_factory=dict)
    log_loss: float | None = None


def pool(table: Table, extra: Table | None = None, progress: Report = silent) -> dict[str, Scorer]:
    """All scorers, the plain ones first.

    Args:
        extra: more rows to learn from, such as those of `calibration`.

    Raises:
        DataError: the table has no rows, or `extra` is the same split or of other models.
    """
    check_extra(table, extra)
    made = singles(table)
    wanted = learners(table)
    for done, (name, learn) in enumerate(wanted.items(), start=1):
        made[name] = learned(name, learn, table, extra)
        progress(done, len(wanted), name)
    return made


def singles(table: Table) -> dict[str, Scorer]:
    """The scores that need no learning."""
    return {
        score.kind: Scorer(score.kind, score, _column(score, {}, table))
        for score in SINGLES
        if score.kind not in _MEASURED or _varies(table, score.kind)
    }


def learners(table: Table) -> dict[str, Learn]:
    """How each learned scorer is learned.

    Those of the n-gram margin, where the edge measures one, are in the place of those of the
    distance: every further scorer is one more that chance can put first.
    """
    core = {f"logistic-{s:g}": _logistic(CORE, s) for s in STRENGTHS}
    distance = {f"logistic-distance-{s:g}": _logistic((*CORE, "distance"), s) for s in STRENGTHS}
    ngram: dict[str, Learn] = {
        f"logistic-ngram-{s:g}": partial(
            fit_logistic, features=NGRAM, strength=s, class_offsets=False
        )
        for s in STRENGTHS_OF_NGRAM
    }
    every = {f"logistic-all-{s:g}": _logistic(FEATURES, s) for s in STRENGTHS_OF_ALL}
    boosted: dict[str, Learn] = {
        f"boosted-{trees}x2": partial(fit_boosted, trees=trees, depth=2) for trees in TREES
    }
    per_class = {f"{PER_CLASS}-{s:g}": _logistic(("log_odds",), s) for s in STRENGTHS_PER_CLASS}
    measured = (("ngram_margin", ngram), ("distance", distance))
    second = next((found for name, found in measured if _varies(table, name)), {})
    return {**core, **second, **every, **boosted, **per_class}


def learned(name: str, learn: Learn, table: Table, extra: Table | None) -> Scorer:
    """One learned scorer, cross-fitted."""
    # The matrices are small: more threads would only wait for each other.
    with threadpool_limits(limits=1, user_api="blas"):
        made = crossfit(learn, table, extra=extra)
        loss = log_loss(made.held_out, ~table.differs)
        if not name.startswith(PER_CLASS):
            return Scorer(name, made.score, made.held_out, log_loss=loss)
        plain = crossfit(partial(_per_class, learn), table, extra=extra)
    score, margins = _as_margins(plain.score)
    return Scorer(name, score, plain.held_out, margins, loss)


def log_loss(log_odds: Floats, agrees: Bools) -> float:
    """The mean negative log-likelihood of what happened, in nats."""
    return float(np.logaddexp(0.0, np.where(agrees, -log_odds, log_odds)).mean())


def _logistic(features: tuple[str, ...], strength: float) -> Learn:
    return partial(fit_logistic, features=features, strength=strength)


def _per_class(learn: Learn, table: Table, rows: Ints) -> Logistic:
    """The edge's own log-odds plus an offset per class: a confidence of its own for each class."""
    found = learn(table, rows)
    assert isinstance(found, Logistic)
    weight = found.weights.get("log_odds", 0.0)
    if weight <= 0.0:  # confidence says nothing here, and nothing can be told in its unit
        return FALLBACK
    classes = {name: round(offset / weight, 6) for name, offset in found.classes.items()}
    return Logistic(weights={"log_odds": 1.0}, classes=classes)


def _as_margins(score: Score) -> tuple[Weighted, dict[str, float]]:
    """The same trust to the bit, as a score and what each class needs beyond the threshold."""
    assert isinstance(score, Logistic)
    margins = {name: -offset for name, offset in score.classes.items() if offset}
    return Weighted(weights=score.weights), margins


def _varies(table: Table, signal: str) -> bool:
    return bool(np.ptp(table.signals[signal]) > 0.0)


def _column(score: Score, margins: Mapping[str, float], table: Table) -> Floats:
    made: Any = trust(score, margins, table.evidence)
    return np.array(np.broadcast_to(made, (table.rows,)), np.float64)
