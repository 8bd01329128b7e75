"""Learned scores: what was planted is found, and no row is judged by a model that saw it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from pydantic import TypeAdapter
from sklearn.ensemble import GradientBoostingClassifier

from cluster.errors import DataError
from serve_app.decide.scores import LEAF, Boosted, Logistic, Score
from serve_app.decide.signals import SIGNALS, Evidence
from tests.support.tables import LABELS, toy_table
from tune.learned.fit import (
    FALLBACK,
    FEATURES,
    CrossFitted,
    Learn,
    crossfit,
    fit_boosted,
    fit_logistic,
    plain,
)
from tune.replay import Bools, Floats, Ints, Table
from tune.reporting.metrics import auroc

ANY: TypeAdapter[Score] = TypeAdapter(Score)
FITS = pytest.mark.parametrize("learn", [fit_logistic, fit_boosted])
PLANTED = ("log_odds", "words")


def with_agreement(table: Table, agrees: Bools) -> Table:
    other = (table.edge_label + 1) % len(table.labels)
    return replace(table, cloud_label=np.where(agrees, table.edge_label, other))


def planted(rows: int, odds: Callable[[Table], Floats], seed: int = 0) -> Table:
    """A table on which edge and cloud agree with the given log-odds."""
    table = toy_table(rows, seed)
    chance = 1.0 / (1.0 + np.exp(-odds(table)))
    return with_agreement(table, np.random.default_rng(seed + 1).random(rows) < chance)


def noise(rows: int, classes: int = 40) -> Table:
    """Nothing here says whether the edge agrees, which it does on three in four."""
    dice = np.random.default_rng(5)
    table = replace(
        toy_table(rows),
        signals={name: dice.random(rows) for name in SIGNALS},
        edge_label=dice.integers(0, classes, rows),
        labels=tuple(f"class {i}" for i in range(classes)),
        true_label=np.zeros(rows, np.int64),
    )
    return with_agreement(table, dice.random(rows) < 0.75)


def ask(score: Score, table: Table) -> Floats:
    return np.array(np.broadcast_to(score.of(table.evidence), (table.rows,)), np.float64)


def every(table: Table) -> Ints:
    return np.arange(table.rows)


def rule(table: Table) -> Floats:
    offset = np.array([0.0, 0.8, -0.8])[table.edge_label]
    odds: Floats = 0.7 * table.signals["log_odds"] - 1.5 * table.signals["words"]
    return np.asarray(0.5 + odds + offset, np.float64)


# ---- logistic -----------------------------------------------------------------------------------


def test_a_planted_logistic_rule_is_found() -> None:
    table = planted(40_000, rule)
    found = fit_logistic(table, every(table), features=PLANTED, strength=1e-3)
    assert found.weights == pytest.approx({"log_odds": 0.7, "words": -1.5}, abs=0.1)
    offsets = [found.intercept + found.classes[name] for name in LABELS]
    assert offsets == pytest.approx([0.5, 1.3, -0.3], abs=0.1)


def test_signals_that_say_nothing_get_no_weight_that_matters() -> None:
    table = planted(40_000, rule)
    found = ask(fit_logistic(table, every(table)), table)
    assert np.abs(found - rule(table)).mean() < 0.15


def test_only_the_asked_rows_are_learned_from() -> None:
    table = planted(3_000, rule)
    rows = np.arange(0, 3_000, 2)
    others = np.arange(3_000) % 2 == 1
    changed = with_agreement(table, ~table.differs ^ others)
    assert fit_logistic(table, rows) == fit_logistic(changed, rows)
    assert fit_logistic(table, rows) != fit_logistic(changed, every(table))


def test_a_class_of_few_rows_gets_a_small_offset() -> None:
    """It agrees on half of its rows, the only other class on 19 in 20: 2.9 in log-odds."""

    def offset(rows: int) -> float:
        table = toy_table(10_000)
        few = np.arange(10_000) < rows
        agrees = np.where(few, np.arange(10_000) % 2 == 0, np.arange(10_000) % 20 > 0)
        table = with_agreement(replace(table, edge_label=np.where(few, 1, 0)), agrees)
        classes = fit_logistic(table, every(table), features=["random"]).classes
        return classes[LABELS[1]] - classes[LABELS[0]]

    assert -1.5 < offset(6) < -0.1
    assert offset(6) > offset(60) > offset(600)
    assert offset(3_000) < -2.5


def test_with_much_strength_the_edges_own_log_odds_remain() -> None:
    table = planted(2_000, rule)
    weak, strong = (
        fit_logistic(table, every(table), features=PLANTED, strength=strength)
        for strength in (1.0, 3_000.0)
    )
    assert abs(strong.weights["words"]) < 0.1 * abs(weak.weights["words"])
    assert strong.weights["log_odds"] > 0.5 * weak.weights["log_odds"]
    assert not fit_logistic(table, every(table), class_offsets=False).classes


@FITS
def test_a_signal_that_never_varies_is_harmless(learn: Learn) -> None:
    """An edge without a distance answers 0.0, and 0 / 0 would reach every weight."""
    table = planted(2_000, rule)
    table = replace(table, signals={**table.signals, "distance": np.full(2_000, 0.1)})
    score = learn(table, every(table))
    assert np.isfinite(ask(score, table)).all()
    if isinstance(score, Logistic):
        assert "distance" not in score.weights
        assert "log_odds" in score.weights


# ---- both ---------------------------------------------------------------------------------------


@FITS
@pytest.mark.parametrize("agrees", [True, False])
def test_where_there_is_nothing_to_learn_the_log_odds_stand_in(learn: Learn, agrees: bool) -> None:
    table = with_agreement(toy_table(300), np.full(300, agrees))
    made = crossfit(learn, table)
    assert made.score == FALLBACK
    np.testing.assert_array_equal(made.held_out, table.signals["log_odds"])


@FITS
@pytest.mark.parametrize(("rows", "wrong"), [(1, 1), (3, 1), (40, 1), (40, 2)])
def test_tables_too_small_for_folds_still_have_a_score(learn: Learn, rows: int, wrong: int) -> None:
    made = crossfit(learn, with_agreement(toy_table(rows), np.arange(rows) >= wrong))
    assert np.isfinite(made.held_out).all()
    assert made.held_out.shape == (rows,)


@FITS
def test_the_same_rows_give_the_same_score(learn: Learn) -> None:
    table = planted(1_000, rule)
    once, again = (crossfit(learn, table, seed=4) for _ in range(2))
    assert once.score == again.score
    np.testing.assert_array_equal(once.held_out, again.held_out)
    assert (once.held_out != crossfit(learn, table, seed=5).held_out).any()


@FITS
def test_a_score_outlives_its_json(learn: Learn) -> None:
    table = planted(1_000, rule)
    score = learn(table, every(table))
    assert score != FALLBACK
    read = ANY.validate_json(score.model_dump_json())
    assert read == score
    np.testing.assert_array_equal(ask(read, table), ask(score, table))


# ---- boosted ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def boosted() -> tuple[GradientBoostingClassifier, Boosted, Table]:
    table = planted(3_000, lambda t: rule(t) + 6.0 * (t.signals["random"] > 0.3) - 3.0)
    columns = np.column_stack([table.signals[name] for name in SIGNALS])
    model = GradientBoostingClassifier(n_estimators=60, max_depth=3, random_state=0)
    model.fit(columns, ~table.differs)
    return model, plain(model, SIGNALS), table


def same(model: GradientBoostingClassifier, score: Boosted, columns: Floats) -> None:
    seen = {name: columns[:, i] for i, name in enumerate(SIGNALS)}
    ours = score.of(Evidence(seen, np.zeros(len(columns), np.int64), LABELS))
    np.testing.assert_allclose(ours, model.decision_function(columns), rtol=1e-12, atol=1e-12)


def test_a_boosted_score_is_what_scikit_learn_fitted(
    boosted: tuple[GradientBoostingClassifier, Boosted, Table],
) -> None:
    model, score, table = boosted
    same(model, score, np.column_stack([table.signals[name] for name in SIGNALS]))


def test_and_next_to_every_threshold_too(
    boosted: tuple[GradientBoostingClassifier, Boosted, Table],
) -> None:
    """scikit-learn compares the float32 of a value, a decision the value itself."""
    model, score, table = boosted
    probes: list[Floats] = []
    for tree in score.trees:
        for feature, threshold in zip(tree.feature, tree.threshold, strict=True):
            near = [threshold, *(np.nextafter(threshold, end) for end in (-np.inf, np.inf))]
            for value in near if feature != LEAF else []:
                row = np.array([table.signals[name][len(probes) % 3_000] for name in SIGNALS])
                row[feature] = value
                probes.append(row)
    assert len(probes) > 900
    same(model, score, np.array(probes))


def test_an_inner_node_is_the_mean_of_what_its_rows_are_given(
    boosted: tuple[GradientBoostingClassifier, Boosted, Table],
) -> None:
    """Else the breakdown would credit a step with what it did not change."""
    _, score, table = boosted
    for tree in score.trees[::10]:
        alone = score.model_copy(update={"trees": (tree,), "rate": 1.0, "base": 0.0})
        given = Boosted.model_validate(alone.model_dump()).of(table.evidence)
        assert tree.value[0] == pytest.approx(given.mean(), abs=1e-9)
        left = table.signals[SIGNALS[tree.feature[0]]] <= tree.threshold[0]
        assert tree.value[tree.left[0]] == pytest.approx(given[left].mean(), abs=1e-9)


def test_trees_find_what_no_sum_can_say() -> None:
    def crossed(table: Table) -> Floats:
        words, structure = table.signals["words"] > 0.5, table.signals["structure"] > 0.5
        return np.where(words == structure, 2.5, -0.5)

    table = planted(4_000, crossed)
    deep = partial(fit_boosted, trees=60, depth=3)
    linear, trees = (auc(crossfit(fit, table), table) for fit in (fit_logistic, deep))
    assert trees > 0.7
    assert linear < 0.6


def test_a_leaf_has_the_rows_that_were_asked_for() -> None:
    table = planted(2_000, rule)
    score = fit_boosted(table, every(table), leaf_rows=100)
    assert isinstance(score, Boosted)
    assert len(score.trees) == 40
    assert score.features == FEATURES
    for root in score.trees:
        alone = score.model_copy(update={"trees": (root,)})
        leaves = Boosted.model_validate(alone.model_dump()).of(table.evidence)
        assert np.unique(leaves, return_counts=True)[1].min() >= 100


# ---- cross-fitting ------------------------------------------------------------------------------


def auc(made: CrossFitted, table: Table) -> float:
    found = auroc(made.held_out, ~table.differs)
    assert found is not None
    return found


@pytest.mark.parametrize("eager", ["logistic", "boosted"])
def test_noise_is_learned_by_heart_and_not_believed(eager: str) -> None:
    """The story of every router tuned on the rows that trained its score."""
    table = noise(600)

    def learn(table: Table, rows: Ints) -> Score:
        if eager == "logistic":
            return fit_logistic(table, rows, strength=1e-3)
        return fit_boosted(table, rows, trees=60, depth=3, leaf_rows=5, rate=0.3)

    made = crossfit(learn, table)
    by_heart = auroc(ask(made.score, table), ~table.differs)
    assert by_heart is not None
    assert by_heart > (0.65 if eager == "logistic" else 0.95)
    assert auc(made, table) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("with_extra", [False, True])
def test_each_row_is_scored_by_the_one_model_that_did_not_see_it(with_extra: bool) -> None:
    table = planted(203, rule)
    extra = replace(toy_table(50, 9), split="calibration") if with_extra else None
    saw: list[set[int]] = []

    def spy(table: Table, rows: Ints) -> Score:
        saw.append(set(rows.tolist()))
        return Logistic(weights={}, intercept=float(len(saw) - 1))

    made = crossfit(spy, table, folds=4, extra=extra)
    everything = set(range(253 if with_extra else 203))
    for row, model in enumerate(made.held_out.astype(int)):
        assert row not in saw[model]
    for model, rows in enumerate(saw[:-1]):
        assert everything - rows == set(np.flatnonzero(made.held_out == model).tolist())
    assert saw[-1] == everything
    assert len(saw) == 5


def test_folds_share_the_disagreements_out() -> None:
    """A fold with more of them would be judged by a model that expects fewer."""
    table = with_agreement(toy_table(1_000), np.arange(1_000) >= 23)
    made = crossfit(lambda _, rows: Logistic(weights={}, intercept=float(rows.sum())), table)
    for fold in np.unique(made.held_out):
        rows = made.held_out == fold
        assert rows.sum() == 200
        assert table.differs[rows].sum() in (4, 5)


@FITS
def test_held_out_scores_of_all_folds_fit_one_threshold(learn: Learn) -> None:
    """Log-odds: pooled, they order the rows as well as those of the model for all rows do."""
    table, fresh = planted(4_000, rule), planted(20_000, rule, seed=7)
    made = crossfit(learn, table)
    elsewhere = auroc(ask(made.score, fresh), ~fresh.differs)
    assert auc(made, table) == pytest.approx(elsewhere, abs=0.025)
    share = (1.0 / (1.0 + np.exp(-made.held_out))).mean()
    assert share == pytest.approx((~table.differs).mean(), abs=0.01)


def test_extra_rows_help() -> None:
    table, extra = planted(120, rule), replace(planted(5_000, rule, seed=3), split="calibration")
    alone, helped = crossfit(fit_logistic, table), crossfit(fit_logistic, table, extra=extra)
    truth = rule(table)
    assert np.abs(helped.held_out - truth).mean() < 0.5 * np.abs(alone.held_out - truth).mean()
    assert helped.held_out.shape == (120,)


def test_tables_that_cannot_be_judged_fairly_are_refused() -> None:
    table = toy_table(50)
    with pytest.raises(DataError, match="that saw it"):
        crossfit(fit_logistic, table, extra=table)
    with pytest.raises(DataError, match="different models"):
        crossfit(
            fit_logistic, table, extra=replace(table, split="calibration", edge_sha256="0" * 64)
        )
    with pytest.raises(DataError, match="has no rows"):
        crossfit(fit_logistic, toy_table(0))
    with pytest.raises(ValueError, match="at least 2"):
        crossfit(fit_logistic, table, folds=1)
