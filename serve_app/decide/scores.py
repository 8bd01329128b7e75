"""Scores: evidence -> one number, high where the edge can be trusted.

A score is a frozen model of plain numbers inside the policy's JSON. To add one, write a class with
a `kind` and `of()` below, and name it in `Score`: service and certificate then take it.

`of` gives the same bits of one message (floats) and of a table (columns), and so a decision in
service is the one that was certified. Hence: only + - * and comparisons, in an order that is
written down; no reduction over features, which NumPy adds pairwise; no exp or log (signals.py).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from serve_app.decide.factors import FACTORS
from serve_app.decide.signals import SIGNALS, Evidence

# A walk through so many trees takes about 20 microseconds, of the 50 that a decision may take.
MAX_TREES: Final = 100
MAX_DEPTH: Final = 4
LEAF: Final = -1
BASE, CLASS, INTERCEPT = "base", "class", "intercept"
PUBLISHED_WEIGHT: Final = -0.2

Node: TypeAlias = "float | tuple[int, float, Node, Node]"


def _known(names: Iterable[str]) -> None:
    if unknown := sorted(set(names) - set(SIGNALS)):
        raise ValueError(f"unknown signals {unknown}; known are {list(SIGNALS)}")


def _known_weights(weights: dict[str, float]) -> dict[str, float]:
    """In the order of `SIGNALS`: a sum's last bit must not depend on how a file lists its keys."""
    _known(weights)
    return {name: weights[name] for name in SIGNALS if name in weights}


def _known_features(features: tuple[str, ...]) -> tuple[str, ...]:
    _known(features)
    return features


Weights = Annotated[dict[str, float], AfterValidator(_known_weights)]
Features = Annotated[tuple[str, ...], AfterValidator(_known_features)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Score(_Frozen, ABC):
    kind: str

    @abstractmethod
    def of(self, evidence: Evidence) -> Any:
        """A float for one message, a column for a table; high: the edge can be trusted."""

    def parts(self, evidence: Evidence) -> dict[str, float]:
        """What each part added to the score of one message; they sum to it."""
        return {self.kind: self.of(evidence)}

    @cached_property
    def uses(self) -> tuple[str, ...]:
        """The signals that it looks at; all of them always, since a column cannot branch."""
        asked = _Asked()
        self.of(Evidence(asked, ""))
        return tuple(name for name in SIGNALS if name in asked)


class _Asked(dict[str, float]):
    """Has a 0.0 for every name, and remembers which it was asked for."""

    def __missing__(self, name: str) -> float:
        self[name] = 0.0
        return 0.0


# ---- one signal ---------------------------------------------------------------------------------


class _Single(_Score):
    signal: ClassVar[str]
    sign: ClassVar[float] = 1.0

    def of(self, evidence: Evidence) -> Any:
        return self.sign * evidence.signals[self.signal]

    def __str__(self) -> str:
        return self.signal if self.sign > 0 else f"-{self.signal}"


class MaxProbability(_Single):
    """The calibrated probability of the answer (Hendrycks and Gimpel, arXiv:1610.02136, 2017)."""

    kind: Literal["max_probability"] = "max_probability"
    signal = "confidence"


class Margin(_Single):
    """The lead over the second label (Scheffer, Decomain, Wrobel, IDA 2001)."""

    kind: Literal["margin"] = "margin"
    signal = "margin"


class Entropy(_Single):
    """The entropy of the probabilities, negated."""

    kind: Literal["entropy"] = "entropy"
    signal, sign = "entropy", -1.0


class Energy(_Single):
    """The negated free energy of the logits (Liu, Wang, Owens, Li, arXiv:2010.03759, 2020)."""

    kind: Literal["energy"] = "energy"
    signal = "energy"


class Distance(_Single):
    """The distance from what the edge was trained on, negated."""

    kind: Literal["distance"] = "distance"
    signal, sign = "distance", -1.0


class NgramMargin(_Single):
    """By how much a classifier of n-grams prefers the answer to any other (ngrams.py)."""

    kind: Literal["ngram_margin"] = "ngram_margin"
    signal = "ngram_margin"


class Random(_Single):
    """A hash of the text: the baseline that no score may fall behind."""

    kind: Literal["random"] = "random"
    signal = "random"


# ---- sums ---------------------------------------------------------------------------------------


class _Sum(_Score):
    """The sum of its parts, in their order."""

    @abstractmethod
    def parts(self, evidence: Evidence) -> dict[str, Any]:
        """Floats for one message, columns for a table."""

    def of(self, evidence: Evidence) -> Any:
        total: Any = 0.0
        for part in self.parts(evidence).values():
            total = total + part
        return total


class Published(_Sum):
    """The five published factors with equal weights: a complexity, negated (factors.py)."""

    kind: Literal["published"] = "published"

    def parts(self, evidence: Evidence) -> dict[str, Any]:
        return {name: PUBLISHED_WEIGHT * evidence.signals[name] for name in FACTORS}

    def __str__(self) -> str:
        return _terms(dict.fromkeys(FACTORS, PUBLISHED_WEIGHT))


class Weighted(_Sum):
    """A weighted sum of signals. Without weights it is 0 for every message."""

    kind: Literal["weighted"] = "weighted"
    weights: Weights

    def parts(self, evidence: Evidence) -> dict[str, Any]:
        return {name: weight * evidence.signals[name] for name, weight in self.weights.items()}

    def __str__(self) -> str:
        return _terms(self.weights) or "0"


class Logistic(_Sum):
    """A logistic deferral model: the log-odds that the edge says what the cloud would say.

    `classes` holds what is added for a predicted class. Deferral as a model of agreement with the
    expert: Jitkrittum et al., "When Does Confidence-Based Cascade Deferral Suffice?",
    arXiv:2307.02764, 2023.
    """

    kind: Literal["logistic"] = "logistic"
    weights: Weights
    intercept: float = 0.0
    classes: dict[str, float] = Field(default_factory=dict)

    def parts(self, evidence: Evidence) -> dict[str, Any]:
        return {
            INTERCEPT: self.intercept,
            CLASS: evidence.per_class(self.classes),
            **{name: weight * evidence.signals[name] for name, weight in self.weights.items()},
        }

    def __str__(self) -> str:
        offset = " + an offset of the predicted class" if self.classes else ""
        return f"{self.intercept} + {_terms(self.weights)}{offset}"


def _terms(weights: dict[str, float]) -> str:
    return " + ".join(f"{weight} \u00d7 {name}" for name, weight in weights.items())


# ---- trees --------------------------------------------------------------------------------------


class Tree(_Frozen):
    """A binary tree of m nodes as arrays of length m; node 0 is the root.

    An inner node sends a message to `left` if its feature is at most the threshold. A leaf has the
    feature, left and right -1. `value` is what a leaf adds, and for an inner node the mean of what
    it sends below adds: by these the breakdown tells what each step was worth.
    """

    feature: tuple[int, ...]
    threshold: tuple[float, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]
    value: tuple[float, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_a_tree(self) -> "Tree":
        sizes = {len(column) for column in (self.feature, self.threshold, self.left, self.right)}
        if sizes != {len(self.value)}:
            raise ValueError(f"the arrays of a tree differ in length: {sorted(sizes)}")
        depth = [0] * len(self.value)
        children: list[int] = []
        for node, (left, right) in enumerate(zip(self.left, self.right, strict=True)):
            below = [] if self.feature[node] == LEAF else [left, right]
            for child in below:
                if not node < child < len(depth):
                    raise ValueError(f"node {node} has the child {child}, which must come after it")
                depth[child] = depth[node] + 1
            children += below
        if sorted(children) != list(range(1, len(depth))):
            raise ValueError("every node but the root must be the child of exactly one other")
        if max(depth) > MAX_DEPTH:
            raise ValueError(f"a tree is {max(depth)} deep; {MAX_DEPTH} is the limit")
        return self

    def nodes(self, rate: float, at: int = 0) -> Node:
        """The same as nested (feature, threshold, left, right); a leaf is rate times its value."""
        if self.feature[at] == LEAF:
            return rate * self.value[at]
        left, right = self.nodes(rate, self.left[at]), self.nodes(rate, self.right[at])
        return self.feature[at], self.threshold[at], left, right

    def steps(self, seen: list[float]) -> Iterator[tuple[int, float]]:
        """(feature, change of the value) of every step from the root to a leaf."""
        at = 0
        while (feature := self.feature[at]) != LEAF:
            child = self.left[at] if seen[feature] <= self.threshold[at] else self.right[at]
            yield feature, self.value[child] - self.value[at]
            at = child


class Boosted(_Score):
    """Gradient boosted trees (Friedman, Annals of Statistics 29, 2001) as plain numbers.

    The score is the raw margin: base + rate * (a leaf of every tree), added in order.
    """

    kind: Literal["boosted"] = "boosted"
    features: Features
    trees: tuple[Tree, ...] = Field(max_length=MAX_TREES)
    rate: float
    base: float

    @model_validator(mode="after")
    def _known_columns(self) -> "Boosted":
        last = len(self.features) - 1
        for tree in self.trees:
            if not LEAF <= min(tree.feature) <= max(tree.feature) <= last:
                raise ValueError(f"a tree asks for a feature beyond the {last + 1} of the score")
        return self

    @cached_property
    def roots(self) -> tuple[Node, ...]:
        return tuple(tree.nodes(self.rate) for tree in self.trees)

    def of(self, evidence: Evidence) -> Any:
        leaf = _leaves if evidence.is_table else _leaf
        seen = [evidence.signals[name] for name in self.features]
        total: Any = self.base
        for value in seen:  # adds nothing, but makes a NaN known, which every comparison hides
            total = total + 0.0 * value
        for root in self.roots:
            total = total + leaf(root, seen)
        return total

    def parts(self, evidence: Evidence) -> dict[str, float]:
        """Along each tree's path a feature is given what its step changed (Saabas, 2014)."""
        seen = [evidence.signals[name] for name in self.features]
        made = {BASE: self.base, **dict.fromkeys(self.features, 0.0)}
        for tree in self.trees:
            made[BASE] += self.rate * tree.value[0]
            for feature, change in tree.steps(seen):
                made[self.features[feature]] += self.rate * change
        return made

    def __str__(self) -> str:
        return f"{len(self.trees)} boosted trees on {', '.join(self.features)}"


def _leaf(node: Node, seen: list[float]) -> float:
    while isinstance(node, tuple):
        feature, threshold, left, right = node
        node = left if seen[feature] <= threshold else right
    return node


def _leaves(node: Node, seen: list[Any]) -> Any:
    if not isinstance(node, tuple):
        return node
    feature, threshold, left, right = node
    return np.where(seen[feature] <= threshold, _leaves(left, seen), _leaves(right, seen))


Score = Annotated[
    MaxProbability
    | Margin
    | Entropy
    | Energy
    | Distance
    | NgramMargin
    | Random
    | Published
    | Weighted
    | Logistic
    | Boosted,
    Field(discriminator="kind"),
]
