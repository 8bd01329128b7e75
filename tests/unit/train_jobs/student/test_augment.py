"""Varied copies: as many as asked for, of the texts' own words, and the same for the same seed."""

from hypothesis import given, settings
from hypothesis import strategies as st

from train_jobs.samples.generator import generate
from train_jobs.student.augment import varied

TEXTS = [sample.text for sample in generate(200, seed=3)]
WORDS = st.lists(st.sampled_from(["card", "where", "is", "my", "5", "é"]), min_size=1, max_size=6)


@settings(deadline=None)
@given(st.lists(WORDS.map(" ".join), min_size=1, max_size=8), st.integers(0, 4), st.integers())
def test_copies_are_made_of_the_texts_words_and_never_empty(
    texts: list[str], copies: int, seed: int
) -> None:
    before = list(texts)
    made = varied(texts, copies, seed)
    assert texts == before
    assert len(made) == copies * len(texts)
    assert all(made)
    assert {word for text in made for word in text.split()} <= set(" ".join(texts).split())


def test_a_seed_makes_the_copies() -> None:
    assert varied(TEXTS, 2, seed=5) == varied(TEXTS, 2, seed=5)
    assert varied(TEXTS, 2, seed=5) != varied(TEXTS, 2, seed=6)


def test_copies_differ_from_their_source_and_among_themselves() -> None:
    """And yet each still has words of its own source: a copy is a variation, not another text."""
    made = varied(TEXTS, 3, seed=5)
    sources = TEXTS * 3
    assert sum(copy == source for copy, source in zip(made, sources, strict=True)) < len(made) / 3
    assert len(set(made)) > 0.9 * len(set(TEXTS)) * 2
    shared = [
        len(set(copy.split()) & set(source.split())) / len(set(source.split()))
        for copy, source in zip(made, sources, strict=True)
    ]
    assert sum(shared) / len(shared) > 0.75


def test_one_word_is_never_lost() -> None:
    """Dropping it would leave an empty message, which no tokenizer is asked to read."""
    assert set(varied(["hello"], 500, seed=0)) <= {"hello", "hello hello"}
