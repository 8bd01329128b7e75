"""The n-gram classifier is a linear one over hashed tokens and pairs, however odd its rows."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.bundles import TOKENIZER
from cluster.settings import Settings
from serve_app.model.tokenizer import TextTokenizer
from tests.support.encoders import make_tiny_bert
from train_jobs.data import DataConfig, build
from train_jobs.student import ngrams
from train_jobs.student.ngrams import PRIME, STEP, Ngrams, fit, hashed, scales
from train_jobs.training.encoders import save_tokenizer

START, END = 2, 3
Rows = tuple[list[list[int]], list[int]]


def rows(count: int, classes: int = 3, seed: int = 0) -> Rows:
    """Messages of one telling token among ten that tell nothing, and their classes."""
    dice = np.random.default_rng(seed)
    labels = (np.arange(count) % classes).tolist()
    ids = [[START, *dice.integers(100, 200, 5), 20 + label, *dice.integers(100, 200, 5), END]
           for label in labels]  # fmt: skip
    return [[int(token) for token in item] for item in ids], labels


def test_the_buckets_by_hand() -> None:
    """Python's integers know no overflow: the ids are those of the largest vocabularies."""
    tokens = [5, 250_000, 0, 249_999]
    pairs = [a * STEP + b for a, b in pairwise(tokens)]
    assert hashed(tokens, 4468).tolist() == [n % PRIME % 4468 for n in [*tokens, *pairs]]
    assert hashed([7], 10).tolist() == [7]


def test_pairs_of_one_bucketful_of_tokens_are_spread_over_all() -> None:
    """Tokens that share a bucket would share it in every pair, were there no prime in between."""
    size, following = 1000, 17
    pairs = [hashed([1 + size * i, following], size)[2] for i in range(200)]
    assert len(set(pairs)) > 150


def test_what_a_message_is_scaled_by_makes_its_squares_one() -> None:
    for length in (1, 2, 3, 40):
        assert scales(64)[length] ** 2 * len(hashed(range(length), 1 << 30)) == pytest.approx(1)
    assert np.isfinite(scales(0)).all()


def test_the_margin_is_the_lead_of_the_answer_over_the_best_other() -> None:
    table = np.zeros((1000, 4), np.float32)
    table[20], table[30] = (5, 1, 0, 0), (0, 3, -1, 0)
    made = Ngrams(table)
    said = np.array([5, 4, -1, 0]) * scales(2)[2]  # their pair's bucket is empty
    assert not table[hashed([20, 30], 1000)[2]].any()
    lead = [said[0] - said[1], said[1] - said[0], said[2] - said[0], said[3] - said[0]]
    found = made.margins([[20, 30]] * 4, np.arange(4))
    np.testing.assert_allclose(found, lead, rtol=1e-6)


def test_it_knows_the_class_of_messages_that_it_did_not_see() -> None:
    made = fit(*rows(300), 3)
    ids, labels = rows(100, seed=1)
    right, wrong = (made.margins(ids, (np.array(labels) + shift) % 3) for shift in (0, 1))
    assert (right > 0).mean() > 0.95
    assert (wrong < 0).mean() > 0.95


def test_two_classes_are_weighed_alike() -> None:
    """Of two classes scikit-learn keeps one row, which says what the second has over the first."""
    made = fit(*rows(200, 2), 2)
    ids, labels = rows(100, 2, seed=1)
    right = made.margins(ids, np.array(labels))
    assert (right > 0).mean() > 0.95
    np.testing.assert_allclose(made.margins(ids, 1 - np.array(labels)), -right)


@pytest.mark.parametrize("classes", [2, 3, 7, 8])
def test_a_class_without_rows_is_never_preferred(classes: int) -> None:
    """Nor is the column that makes an odd width even."""
    ids, labels = rows(60, 2)
    made = fit(ids, [label * (classes - 1) for label in labels], classes)
    assert made.table.shape[1] == classes + classes % 2
    seen = [0, classes - 1]
    unseen = [i for i in range(made.table.shape[1]) if i not in seen]
    if unseen:
        best_known = made.table[:, seen].min(-1, keepdims=True)
        assert (made.table[:, unseen] <= best_known).all()
        assert (made.margins(ids, np.full(60, unseen[0])) <= 0).all()


def test_the_same_rows_give_the_same_table() -> None:
    assert np.array_equal(fit(*rows(90), 3).table, fit(*rows(90), 3).table)


@pytest.mark.parametrize(
    ("classes", "buckets"), [(2, 8192), (3, 8192), (77, 4468), (151, 2427), (1000, 389)]
)
def test_the_table_has_a_size_that_many_classes_do_not_change(classes: int, buckets: int) -> None:
    made = fit([[START, 5, END]], [0], classes)
    assert len(made.table) == buckets
    assert made.block >= made.table.shape[1]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 6), st.integers(1, 4), st.integers(2, 5), st.integers(1, 5))
def test_however_few_the_rows_it_is_a_number(
    count: int, seen: int, classes: int, length: int
) -> None:
    """No row, rows of one class, messages of nothing but special tokens."""
    ids = [[START, END, *range(20, 20 + length)][:length] for _ in range(count)]
    made = fit(ids, [i % min(seen, classes) for i in range(count)], classes)
    asked = [[START], [START, END], [START, 9, END]]
    for answer in range(classes):
        assert np.isfinite(made.margins(asked, np.full(3, answer))).all()
    if min(count, seen) < 2:
        assert not made.margins(asked, np.zeros(3, np.int64)).any()


def test_rounding_to_four_bits_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, labels = rows(300, 40)
    coarse = fit(ids, labels, 40).margins(ids, np.array(labels))
    monkeypatch.setattr(ngrams, "rounded", lambda table, *_: table)
    exact = fit(ids, labels, 40).margins(ids, np.array(labels))
    assert 0 < np.abs(coarse - exact).mean() < 0.03 * np.abs(exact).mean()


def test_it_learns_from_train_as_the_edge_reads_it(tmp_path: Path) -> None:
    """A word that only `train` has with a class, in the tokenizer's own ids."""
    source = make_tiny_bert(tmp_path / "model")
    save_tokenizer(str(source), tmp_path / "model")
    texts = [("please refund me" if i % 2 else "thanks a lot") + f" {i}" for i in range(120)]
    data = tmp_path / "rows.csv"
    data.write_text("text,label\n" + "".join(f"{t},{'ab'[i % 2]}\n" for i, t in enumerate(texts)))
    settings = Settings(home=tmp_path / "home")
    dataset = build(DataConfig(data=data, text_column="text", label_column="label"), settings)
    made = ngrams.of(source, dataset)
    ids = TextTokenizer.from_file(source / TOKENIZER, 64).encode(["refund", "thanks"])
    said = made.margins(ids, np.array([dataset.labels.index("b"), dataset.labels.index("a")]))
    assert (said > 0).all()
