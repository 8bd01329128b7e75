"""Scores: the same bits of one message and of a table, and plain numbers that a person can read."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from cluster.files import sha256_json
from serve_app.decide.factors import FACTORS
from serve_app.decide.scores import (
    LEAF,
    MAX_DEPTH,
    Boosted,
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
    Tree,
    Weighted,
)
from serve_app.decide.signals import SIGNALS, Evidence
from tests.support.strategies import KINDS, ROWS, SCORES
from tests.support.tables import LABELS

ANY: TypeAdapter[Score] = TypeAdapter(Score)
SEEN = st.lists(st.tuples(ROWS, st.integers(0, len(LABELS) - 1)), min_size=1, max_size=6)
# If confidence <= 0.5: 1.0, else if margin <= 0.25: 2.0, else 4.0. Inner values are the means.
TREE = {
    "feature": [0, LEAF, 1, LEAF, LEAF],
    "threshold": [0.5, 0.0, 0.25, 0.0, 0.0],
    "left": [1, LEAF, 3, LEAF, LEAF],
    "right": [2, LEAF, 4, LEAF, LEAF],
    "value": [2.0, 1.0, 3.0, 2.0, 4.0],
}
STUMP = {"kind": "boosted", "features": ["confidence", "margin"], "trees": [TREE], "rate": 0.5,
         "base": 0.25}  # fmt: skip


def one(values: Mapping[str, float], label: str = LABELS[0]) -> Evidence:
    return Evidence({**dict.fromkeys(SIGNALS, 0.0), **values}, label)


def table(rows: list[tuple[dict[str, float], int]]) -> Evidence:
    columns = {name: np.array([row[name] for row, _ in rows]) for name in SIGNALS}
    return Evidence(columns, np.array([label for _, label in rows]), LABELS)


@given(SCORES, SEEN)
@settings(deadline=None)
def test_one_message_and_a_table_have_the_same_bits(
    score: Any, rows: list[tuple[dict[str, float], int]]
) -> None:
    """Else a decision in service would not be the decision that was certified."""
    column = np.broadcast_to(score.of(table(rows)), len(rows))
    alone = [float(score.of(Evidence(row, LABELS[label]))) for row, label in rows]
    assert [float(value).hex() for value in column] == [value.hex() for value in alone]


@given(SCORES, ROWS, st.sampled_from(LABELS))
@settings(deadline=None)
def test_the_parts_sum_to_the_score(score: Any, row: dict[str, float], label: str) -> None:
    parts = score.parts(Evidence(row, label))
    size = sum(map(abs, parts.values()))
    whole = score.of(Evidence(row, label))
    assert math.isclose(sum(parts.values()), whole, rel_tol=1e-12, abs_tol=1e-12 * max(1.0, size))


@given(SCORES)
@settings(deadline=None)
def test_a_score_survives_json_to_the_bit(score: Any) -> None:
    assert ANY.validate_json(ANY.dump_json(score)) == score


@given(SCORES, ROWS)
@settings(deadline=None)
def test_a_score_looks_at_what_it_says_and_at_nothing_else(
    score: Any, row: dict[str, float]
) -> None:
    """The router writes the hash of a text down only where a score uses it."""
    assert set(score.uses) <= set(SIGNALS)
    seen = {name: row[name] for name in score.uses}
    assert score.of(Evidence(seen, LABELS[0])) == score.of(Evidence(row, LABELS[0]))
    assert score == ANY.validate_json(ANY.dump_json(score)), "what it remembers is no part of it"


@pytest.mark.parametrize(
    ("score", "signal", "rises"),
    [
        (MaxProbability(), "confidence", True),
        (Margin(), "margin", True),
        (Entropy(), "entropy", False),
        (Energy(), "energy", True),
        (Distance(), "distance", False),
        (NgramMargin(), "ngram_margin", True),
        (Random(), "random", True),
        *((Published(), factor, False) for factor in FACTORS),
    ],
)
def test_high_means_that_the_edge_can_be_trusted(score: Any, signal: str, rises: bool) -> None:
    change = score.of(one({signal: 0.75})) - score.of(one({signal: 0.25}))
    assert change > 0 if rises else change < 0
    assert signal in score.uses


def test_the_published_score_is_the_negated_complexity_of_five_equal_factors() -> None:
    hard = one(dict.fromkeys(FACTORS, 1.0))
    assert Published().of(hard) == pytest.approx(-1.0)
    assert Published().uses == FACTORS


def test_a_logistic_score_by_hand() -> None:
    score = Logistic(
        weights={"margin": 2.0, "confidence": 3.0}, intercept=-1.0, classes={LABELS[1]: 0.5}
    )
    seen = {"confidence": 0.5, "margin": 0.25}
    assert score.of(one(seen, LABELS[0])) == -1.0 + 1.5 + 0.5
    assert score.of(one(seen, LABELS[1])) == -1.0 + 0.5 + 1.5 + 0.5
    assert score.parts(one(seen, LABELS[1])) == {
        "intercept": -1.0, "class": 0.5, "confidence": 1.5, "margin": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("confidence", "margin", "leaf"),
    [(0.5, 0.9, 1.0), (0.51, 0.25, 2.0), (0.51, 0.26, 4.0)],
)
def test_a_boosted_score_by_hand(confidence: float, margin: float, leaf: float) -> None:
    """At the threshold itself a message goes left, as in scikit-learn."""
    score = Boosted.model_validate(STUMP)
    assert score.of(one({"confidence": confidence, "margin": margin})) == 0.25 + 0.5 * leaf


def test_a_step_down_a_tree_is_put_to_the_account_of_its_feature() -> None:
    score = Boosted.model_validate(STUMP)
    # The root's mean is 2; confidence takes it to 3 and margin to 4, at a rate of a half.
    assert score.parts(one({"confidence": 0.9, "margin": 0.9})) == {
        "base": 0.25 + 1.0, "confidence": 0.5, "margin": 0.5,
    }  # fmt: skip


def test_the_order_of_keys_in_a_file_changes_neither_bits_nor_hash() -> None:
    """sha256_json sorts keys, so two files with one hash must be one rule, to the last bit."""
    given_order = {"random": 0.1, "entropy": 0.2, "confidence": 0.3}
    there = Weighted(weights=given_order)
    back = Weighted(weights=dict(reversed(given_order.items())))
    assert list(there.weights) == list(back.weights) == ["confidence", "entropy", "random"]
    assert sha256_json(there.model_dump(mode="json")) == sha256_json(back.model_dump(mode="json"))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_unknown_keys_are_refused(kind: type[Any]) -> None:
    needed: dict[str, dict[str, Any]] = {
        "weighted": {"weights": {}},
        "logistic": {"weights": {}},
        "boosted": STUMP,
    }
    name = kind.model_fields["kind"].default
    plain = {**needed.get(name, {}), "kind": name}
    assert isinstance(ANY.validate_python(plain), kind)
    with pytest.raises(ValidationError, match="Extra inputs"):
        ANY.validate_python({**plain, "surprise": 1})


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"kind": "magic"}, "does not match any of the expected tags"),
        ({"weights": {}}, "Unable to extract tag"),
        ({"kind": "weighted"}, "Field required"),
        ({"kind": "weighted", "weights": {"confidance": 1.0}}, "unknown signals"),
        ({"kind": "weighted", "weights": {"confidence": math.nan}}, "finite"),
        ({"kind": "weighted", "weights": {"confidence": math.inf}}, "finite"),
        ({"kind": "logistic", "weights": {"label": 1.0}}, "unknown signals"),
        ({"kind": "logistic", "weights": {}, "intercept": math.nan}, "finite"),
        ({"kind": "logistic", "weights": {}, "classes": {"a": math.inf}}, "finite"),
        ({**STUMP, "features": ["confidence", "magic"]}, "unknown signals"),
        ({**STUMP, "features": ["confidence"]}, "feature beyond the 1 of the score"),
        ({**STUMP, "base": math.nan}, "finite"),
        ({**STUMP, "rate": math.inf}, "finite"),
        ({**STUMP, "trees": [TREE] * 101}, "at most 100 items"),
    ],
)
def test_a_score_that_makes_no_sense_is_refused(made: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ANY.validate_python(made)


def chain(depth: int) -> dict[str, list[Any]]:
    """A tree in which every right child is a leaf."""
    inner, nodes = [2 * i for i in range(depth)], 2 * depth + 1
    left, right = [LEAF] * nodes, [LEAF] * nodes
    for node in inner:
        left[node], right[node] = node + 2, node + 1
    feature = [0 if node in inner else LEAF for node in range(nodes)]
    return {"feature": feature, "left": left, "right": right, "threshold": [0.5] * nodes,
            "value": [0.0] * nodes}  # fmt: skip


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"threshold": [0.5]}, "differ in length"),
        ({"value": []}, "at least 1 item"),
        ({"left": [0, -1, 3, -1, -1]}, "must come after"),
        ({"left": [5, -1, 3, -1, -1]}, "must come after"),
        ({"right": [1, -1, 4, -1, -1]}, "child of exactly one"),
        ({"feature": [0, LEAF, LEAF, LEAF, LEAF]}, "child of exactly one"),
        ({"value": [2.0, 1.0, 3.0, 2.0, math.nan]}, "finite"),
        (chain(MAX_DEPTH + 1), "is the limit"),
    ],
)
def test_what_is_no_tree_is_refused(over: dict[str, Any], said: str) -> None:
    """A loop in a file would hang the router."""
    Tree.model_validate(chain(MAX_DEPTH))
    with pytest.raises(ValidationError, match=said):
        Tree.model_validate({**TREE, **over})


@pytest.mark.parametrize("kind", ["weighted", "boosted"])
def test_a_value_that_is_no_number_shows_in_the_score(kind: str) -> None:
    """Every comparison in a tree hides it; and a NaN reaches no threshold."""
    score = ANY.validate_python(
        {"weighted": {"kind": "weighted", "weights": {"margin": 1.0}}, "boosted": STUMP}[kind]
    )
    seen = one({"margin": math.nan})
    assert math.isnan(score.of(seen))


def test_a_boosted_score_is_what_scikit_learn_fitted() -> None:
    ensemble = pytest.importorskip("sklearn.ensemble")
    dice = np.random.default_rng(3)
    # scikit-learn compares in float32; values that are such already make both compare the same.
    columns = dice.random((600, len(SIGNALS))).astype(np.float32)
    answers = columns[:, 0] + columns[:, 1] * columns[:, 5] + dice.normal(0, 0.3, 600) > 0.8
    model = ensemble.GradientBoostingClassifier(n_estimators=60, max_depth=3, random_state=0)
    model.fit(columns, answers)
    prior = model.init_.class_prior_[1]
    score = Boosted(
        features=SIGNALS,
        trees=tuple(_tree(found[0].tree_) for found in model.estimators_),
        rate=model.learning_rate,
        base=math.log(prior / (1 - prior)),
    )
    seen = {name: columns[:, i].astype(np.float64) for i, name in enumerate(SIGNALS)}
    ours = score.of(Evidence(seen, np.zeros(600, np.int64), LABELS))
    np.testing.assert_allclose(ours, model.decision_function(columns), rtol=1e-12, atol=1e-12)


def _tree(found: Any) -> Tree:
    leaf = found.children_left == -1
    return Tree(
        feature=tuple(np.where(leaf, LEAF, found.feature).tolist()),
        threshold=tuple(np.where(leaf, 0.0, found.threshold).tolist()),
        left=tuple(found.children_left.tolist()),
        right=tuple(found.children_right.tolist()),
        value=tuple(found.value[:, 0, 0].tolist()),
    )
