"""A table -> a learned score, cross-fitted.

    made = crossfit(fit_logistic, table)
    made.score     the score for a policy, learned from all rows
    made.held_out  each row's score by a model that did not see it: what a sweep may judge

What is learned is the log-odds that the edge says what the cloud says (Jitkrittum et al.,
arXiv:2307.02764, 2023). No human label is needed. All scores here are log-odds, so those of
different folds can be compared, and share one threshold.

scikit-learn fits; what is kept are plain numbers (serve_app/decide/scores.py). It is imported where
it fits: it takes more than a second, and most who read a score never fit one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from cluster.errors import DataError
from serve_app.decide.scores import LEAF, Boosted, Logistic, Score, Tree
from serve_app.decide.signals import SIGNALS, Evidence
from tune.replay import Bools, Floats, Ints, Table

if TYPE_CHECKING:
    from sklearn.ensemble import GradientBoostingClassifier

FEATURES: Final = tuple(name for name in SIGNALS if name != "random")
# The penalty of a class offset over that of a standardised weight. An offset is then half its
# unpenalised size where the class has some 4 / (p (1 - p)) rows: 84 at 5% disagreement.
CLASS_PENALTY: Final = 4.0
# What is left to say where there is nothing to learn from: the edge's own, calibrated log-odds.
FALLBACK: Final = Logistic(weights={"log_odds": 1.0})
# A column this many times as large bears a hundredth of the penalty.
_FREE: Final = 10.0
# Enough for a decision, few enough to read; and BLAS may differ in the last bits.
_DIGITS: Final = 6

Learn: TypeAlias = Callable[[Table, Ints], Score]


# ---- cross-fitting ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CrossFitted:
    """A score learned from all rows, and of each row (n,) the score by a model without it."""

    score: Score
    held_out: Floats


def crossfit(
    learn: Learn, table: Table, folds: int = 5, seed: int = 0, extra: Table | None = None
) -> CrossFitted:
    """Learns on all folds but one, scores that one; and learns once more on all rows.

    The cross-fitting of Chernozhukov et al., Econometrics Journal 21 (2018). Folds are a seeded
    permutation, stratified by disagreement.

    Args:
        extra: more rows that every model may learn from, such as those of `calibration`. They are
            not scored.

    Raises:
        DataError: the table has no rows, or `extra` is the same split or of other models.
    """
    if folds < 2:
        raise ValueError(f"{folds} folds; at least 2 are needed to hold one out")
    check_extra(table, extra)
    joint = table if extra is None else _joined(table, extra)
    fold = np.append(_folds(table.differs, folds, seed), np.full(joint.rows - table.rows, -1))
    held_out = np.empty(table.rows)
    for held in np.unique(fold[: table.rows]):
        score = learn(joint, np.flatnonzero(fold != held))
        rows = np.flatnonzero(fold == held)
        held_out[rows] = score.of(_evidence(table, rows))
    return CrossFitted(learn(joint, np.arange(joint.rows)), held_out)


def _folds(differs: Bools, folds: int, seed: int) -> Ints:
    """A fold of each row; folds differ by at most one in rows and one in disagreements."""
    order = np.random.default_rng(seed).permutation(differs.size)
    order = order[np.argsort(~differs[order], kind="stable")]
    fold = np.empty(differs.size, np.int64)
    fold[order] = np.arange(differs.size) % folds
    return fold


def check_extra(table: Table, extra: Table | None) -> None:
    """Raises DataError: the table has no rows, or `extra` is the same split or of other models."""
    table.require_rows()
    if extra is None:
        return
    if (table.split, table.fingerprint) == (extra.split, extra.fingerprint):
        raise DataError(
            f"The extra rows are the split {extra.split!r} itself, so each would judge a score "
            "that saw it. Give another split."
        )
    if (table.labels, table.pins) != (extra.labels, extra.pins):
        raise DataError(
            f"The tables of {table.split!r} and {extra.split!r} come from different models. "
            "Replay both with the same pair of bundles."
        )


def _joined(table: Table, extra: Table) -> Table:
    """The rows of both, those of `table` first."""
    return replace(
        table,
        signals={name: np.append(table.signals[name], extra.signals[name]) for name in SIGNALS},
        pinned=np.append(table.pinned, extra.pinned),
        edge_label=np.append(table.edge_label, extra.edge_label),
        cloud_label=np.append(table.cloud_label, extra.cloud_label),
        true_label=np.append(table.true_label, extra.true_label),
        split=f"{table.split}+{extra.split}",
    )


def _evidence(table: Table, rows: Ints) -> Evidence:
    signals = {name: column[rows] for name, column in table.signals.items()}
    return Evidence(signals, table.edge_label[rows], table.labels)


# ---- logistic -----------------------------------------------------------------------------------


def fit_logistic(
    table: Table,
    rows: Ints,
    *,
    features: Sequence[str] = FEATURES,
    class_offsets: bool = True,
    strength: float = 1.0,
) -> Logistic:
    """A logistic deferral model of some rows (indices), with an L2 penalty.

    Where the edge agrees with the cloud on all of the rows or on none, there is nothing to learn,
    and the score is `FALLBACK`: the log-odds of the edge's calibrated confidence.

    Args:
        class_offsets: also learn an offset of each predicted class, shrunk to 0 where rows are few.
        strength: the penalty of a weight of a standardised feature. That of `log_odds` bears a
            hundredth: with much of it, the score is the edge's own log-odds, recalibrated.
    """
    from sklearn.linear_model import LogisticRegression

    agrees = ~table.differs[rows]
    if agrees.all() or not agrees.any():
        return FALLBACK
    seen, mean, scale = _standardised(_columns(table, rows, features), features)
    predicted = table.edge_label[rows]
    classes = np.unique(predicted) if class_offsets else np.empty(0, np.int64)
    # A column s times as large bears 1 / s^2 of the penalty.
    shrink = CLASS_PENALTY**-0.5
    one_hot = shrink * (predicted[:, None] == classes)
    # Newton steps converge even where features are nearly collinear, as confidence and margin.
    model = LogisticRegression(C=1.0 / strength, solver="newton-cholesky", tol=1e-8, max_iter=200)
    coefficients = model.fit(np.hstack([seen, one_hot]), agrees).coef_[0]
    weights = _rounded(coefficients[: mean.size] / scale)
    offsets = _rounded(coefficients[mean.size :] * shrink)
    return Logistic(
        weights={name: w for name, w in zip(features, weights, strict=True) if w},
        intercept=round(float(model.intercept_[0] - mean @ weights), _DIGITS),
        classes={table.labels[i]: offset for i, offset in zip(classes, offsets, strict=True)},
    )


def _standardised(values: Floats, features: Sequence[str]) -> tuple[Floats, Floats, Floats]:
    """(values of mean 0 and deviation 1, their means, what they were divided by).

    `log_odds` has a deviation of `_FREE` instead, and so a penalty that is next to none. A column
    without variation is all 0 and was divided by infinity: its weight becomes 0.
    """
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    scale = np.where(deviation > 1e-9 * np.maximum(1.0, np.abs(mean)), deviation, np.inf)
    scale = scale / np.where(np.array(features) == "log_odds", _FREE, 1.0)
    return (values - mean) / scale, mean, scale


def _columns(table: Table, rows: Ints, features: Sequence[str]) -> Floats:
    return np.column_stack([table.signals[name][rows] for name in features])


def _rounded(values: Floats) -> list[float]:
    return [float(f"{value:.{_DIGITS}g}") for value in values]


# ---- boosted ------------------------------------------------------------------------------------


def fit_boosted(
    table: Table,
    rows: Ints,
    *,
    features: Sequence[str] = FEATURES,
    trees: int = 40,
    depth: int = 2,
    rate: float = 0.1,
    leaf_rows: int = 30,
) -> Boosted | Logistic:
    """Gradient boosted trees of some rows (indices), shallow (Friedman, Annals 29, 2001).

    As in `fit_logistic`, and also where no tree could split for want of rows, the score is
    `FALLBACK`.

    Args:
        leaf_rows: the fewest rows of a leaf. A leaf with no disagreement claims certainty, so it
            needs enough rows to be meant.
    """
    from sklearn.ensemble import GradientBoostingClassifier

    agrees = ~table.differs[rows]
    if agrees.all() or not agrees.any() or rows.size < 2 * leaf_rows:
        return FALLBACK
    model = GradientBoostingClassifier(
        n_estimators=trees, max_depth=depth, learning_rate=rate, min_samples_leaf=leaf_rows,
        random_state=0,
    )  # fmt: skip
    model.fit(_columns(table, rows, features), agrees)
    return plain(model, features)


def plain(model: "GradientBoostingClassifier", features: Sequence[str]) -> Boosted:
    """A fitted two-class model -> the same as plain numbers: its `decision_function`."""
    share = model.init_.class_prior_[1]
    return Boosted(
        features=tuple(features),
        trees=tuple(_tree(found.tree_) for found in model.estimators_[:, 0]),
        rate=model.learning_rate,
        base=float(np.log(share / (1.0 - share))),
    )


def _tree(found: Any) -> Tree:
    leaf = found.children_left == LEAF
    return Tree(
        feature=tuple(np.where(leaf, LEAF, found.feature).tolist()),
        threshold=tuple(np.where(leaf, 0.0, _in_float64(found.threshold)).tolist()),
        left=tuple(found.children_left.tolist()),
        right=tuple(found.children_right.tolist()),
        value=tuple(_values(found, leaf)),
    )


def _values(found: Any, leaf: Bools) -> list[float]:
    """What a leaf adds, and for an inner node its mean over the rows below.

    scikit-learn changes the leaves after a tree is grown and leaves the inner nodes as they were.
    """
    value: list[float] = found.value[:, 0, 0].tolist()
    cover: list[float] = found.weighted_n_node_samples.tolist()
    for node in reversed(np.flatnonzero(~leaf).tolist()):  # children come after their parent
        left, right = found.children_left[node], found.children_right[node]
        below = cover[left] * value[left] + cover[right] * value[right]
        value[node] = below / (cover[left] + cover[right])
    return value


def _in_float64(threshold: Floats) -> Floats:
    """Thresholds that a float64 is at most exactly where scikit-learn says so of its float32.

    Rounding is monotone, so there is one: the largest float64 that rounds to at most the threshold.
    It is halfway from the last float32 below to the next, or just short of it if that rounds up.
    """
    up, down = np.float32(np.inf), np.float32(-np.inf)
    last = threshold.astype(np.float32)
    last = np.where(last > threshold, np.nextafter(last, down), last)
    half = (last.astype(np.float64) + np.nextafter(last, up).astype(np.float64)) / 2.0
    return np.where(half.astype(np.float32) > last, np.nextafter(half, -np.inf), half)
