"""The generator of sample messages: reproducible, balanced, various, and not solvable by words."""

import csv
from collections import Counter
from itertools import islice
from pathlib import Path
from statistics import median

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from cluster.errors import ConfigError
from serve_app.guard.pii import redact
from serve_app.guard.prepare import dedup_key
from train_jobs.samples.__main__ import main
from train_jobs.samples.generator import Sample, generate, write_csv
from train_jobs.samples.phrases import CLOSERS, DOMAINS, EITHER, FEELINGS, OPENERS, Sentiment

PINNED = [
    "Your form asks whether the shoes have lasted longer than my last pair. Where do I answer? "
    "Many thanks in advance.",
    "I cant say Im unhappy never mind that everything in the box was broken",
    "I have been with you since 2009. How do I return a gift?",
]


@pytest.fixture(scope="module")
def many() -> list[Sample]:
    return list(generate(20_000, seed=1))


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", 300, seed=5)
    write_csv(tmp_path / "b.csv", 300, seed=5)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_the_first_messages_of_seed_1_are_pinned() -> None:
    """Figures are quoted for a seed: whoever changes the generator has to notice."""
    texts = [sample.text for sample in generate(3, seed=1)]
    assert texts == PINNED


def test_other_seeds_give_other_messages() -> None:
    one, two = ({sample.text for sample in generate(2_000, seed)} for seed in (1, 2))
    assert len(one & two) < 60  # the shortest ones do meet


def test_fewer_rows_are_the_beginning_of_more() -> None:
    assert list(generate(50, seed=3)) == list(islice(generate(500, seed=3), 50))


def test_labels_are_balanced(many: list[Sample]) -> None:
    shares = [count / len(many) for count in Counter(sample.label for sample in many).values()]
    assert len(shares) == 3
    assert all(abs(share - 1 / 3) < 0.015 for share in shares)


def test_no_two_messages_are_alike(many: list[Sample]) -> None:
    assert len({dedup_key(sample.text) for sample in many}) == len(many)


def test_messages_are_as_long_as_messages_are(many: list[Sample]) -> None:
    lengths = [len(sample.text.split()) for sample in many]
    assert 15 <= median(lengths) <= 20
    assert min(lengths) <= 4
    assert max(lengths) >= 40
    assert all(sample.text == " ".join(sample.text.split()) for sample in many)


def test_every_slot_is_filled(many: list[Sample]) -> None:
    assert not any("{" in sample.text or "}" in sample.text for sample in many)


def test_a_million_messages_without_typing_errors() -> None:
    """Counts one skeleton alone, "yes, ... still, ..., and ...", for one label."""
    skeletons = [skeleton for _, group in EITHER for skeleton in group]
    assert "yes, {unevent}. still, {event}, and {feel}." in skeletons
    around = len(set(OPENERS)) * len(set(CLOSERS))
    feelings = len({good for good, _ in FEELINGS})
    events = sum(len(domain.events) * (len(domain.events) - 1) for domain in DOMAINS.values())
    assert around * feelings * events > 1_000_000


def test_clauses_are_distinct_and_come_in_pairs() -> None:
    pairs = [pair for domain in DOMAINS.values() for pair in domain.events + domain.deeds]
    clauses = [clause for pair in [*pairs, *FEELINGS] for clause in pair]
    assert len(set(clauses)) == len(clauses)


def test_noise_is_as_asked_and_changes_no_text(many: list[Sample]) -> None:
    clean = list(generate(len(many), seed=1, label_noise_share=0.0))
    assert [sample.text for sample in clean] == [sample.text for sample in many]
    wrong = sum(a.label is not b.label for a, b in zip(clean, many, strict=True))
    assert wrong / len(many) == pytest.approx(0.02, abs=0.004)
    all_wrong = generate(500, seed=1, label_noise_share=1.0)
    assert all(a.label is not b.label for a, b in zip(all_wrong, clean, strict=False))


def test_personal_data_is_as_asked_and_found(many: list[Sample]) -> None:
    found = [redact(sample.text)[1] for sample in many[:5_000]]
    assert sum(map(bool, found)) / len(found) == pytest.approx(0.04, abs=0.01)
    assert {kind for kinds in found for kind in kinds} == {
        "account", "card", "email", "iban", "phone",
    }  # fmt: skip
    assert all(redact(sample.text)[1] for sample in generate(1_000, seed=2, pii_share=1.0))
    assert not any(redact(sample.text)[1] for sample in generate(1_000, seed=2, pii_share=0.0))


def test_personal_data_is_added_and_replaces_nothing() -> None:
    plain = list(generate(200, seed=4, pii_share=0.0))
    for bare, full in zip(plain, generate(200, seed=4, pii_share=1.0), strict=True):
        assert full.text.startswith(bare.text + " ")
        assert full.label is bare.label


def test_single_words_do_not_solve_it() -> None:
    """TF-IDF of unigrams learns something and stays far from what order and negation tell."""
    rows = list(generate(5_000, seed=7, label_noise_share=0.0))
    texts, labels = [row.text for row in rows], [row.label.value for row in rows]
    words = make_pipeline(TfidfVectorizer(), LogisticRegression(C=3.0, max_iter=500))
    words.fit(texts[:4_000], labels[:4_000])
    assert 0.70 < words.score(texts[4_000:], labels[4_000:]) < 0.90


def test_negation_is_no_sign_of_anger() -> None:
    """It stands about as often in good clauses as in bad ones."""
    pairs = [*FEELINGS, *(pair for domain in DOMAINS.values() for pair in domain.events)]
    negations = {"not", "never", "nobody", "nothing", "no", "hardly", "anything"}
    good, bad = (
        sum(any(word in negations for word in pair[side].split()) for pair in pairs)
        for side in (0, 1)
    )
    assert 0.7 < good / bad < 1.4


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"rows": -1}, "rows is -1"),
        ({"rows": 1, "label_noise_share": 1.5}, "label_noise_share is 1.5"),
        ({"rows": 1, "pii_share": -0.1}, "pii_share is -0.1"),
    ],
)
def test_impossible_wishes_are_refused_at_once(arguments: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        generate(seed=1, **arguments)  # type: ignore[arg-type]


def test_no_rows() -> None:
    assert list(generate(0, seed=1)) == []


def test_the_command_writes_a_readable_file(tmp_path: Path) -> None:
    out = tmp_path / "new" / "samples.csv"
    main(["--rows", "40", "--seed", "9", "--out", str(out)])
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["text"], row["label"]) for row in rows] == [
        (sample.text, sample.label.value) for sample in generate(40, seed=9)
    ]
    assert {row["label"] for row in rows} == {label.value for label in Sentiment}


def test_the_command_refuses_in_a_sentence_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "samples.csv"
    with pytest.raises(SystemExit) as stop:
        main(["--rows", "-3", "--out", str(out)])
    assert stop.value.code == 2
    assert "rows is -3" in capsys.readouterr().err
    assert not out.exists()
