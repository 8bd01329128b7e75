"""Words alone: the reference learns what words tell, and cannot be made to fail."""

import random

import pytest

from tests.support.toys import LABELS, traffic
from train_jobs.words import answers


def numbered(rows: int, seed: int) -> tuple[list[str], list[int]]:
    texts, labels = traffic(rows, seed, tricky_share=0.0)
    return texts, [LABELS.index(label) for label in labels]


def test_it_learns_what_words_tell() -> None:
    texts, labels = numbered(300, 1)
    asked, truth = numbered(200, 2)
    made = answers(texts, labels, asked, seed=0)
    assert (made == truth).mean() > 0.98


def test_two_classes_are_two_numbers_of_any_size() -> None:
    made = answers(["good day", "bad day"] * 9, [7, 40] * 9, ["good", "bad"], seed=0)
    assert made.tolist() == [7, 40]


def test_the_same_seed_gives_the_same_answers() -> None:
    texts, labels = numbered(120, 1)
    random.Random(0).shuffle(labels)
    asked, _ = numbered(100, 2)
    first, second = (answers(texts, labels, asked, seed=3) for _ in range(2))
    assert first.tolist() == second.tolist()


def test_one_class_is_the_answer_to_everything() -> None:
    assert answers(["a", "b"], [4, 4], ["c", "d", "e"], seed=0).tolist() == [4, 4, 4]


@pytest.mark.parametrize("one", ["\U0001f600", "5", "?"])
def test_texts_without_words_are_told_by_their_characters(one: str) -> None:
    made = answers([one, "\U0001f525"] * 5, [0, 1] * 5, [one, "\U0001f525"], seed=0)
    assert made.tolist() == [0, 1]
