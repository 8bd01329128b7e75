"""Invented customer messages: rows and a seed -> texts labelled negative, neutral or positive.

    python -m train_jobs.samples --rows 5000 --seed 1 --out samples.csv

A message is a skeleton filled with clauses of one domain. Clauses come in pairs that share most of
their words and differ in what they mean ("there was no fee" / "there was a fee"), and the skeletons
say which of two opposite clauses prevails. So single words tell little, and order, negation and
contrast tell a lot; tests/unit/train_jobs/test_samples.py measures how little. On top come typing
errors, and a share of wrong labels and of invented personal data.

The same seed gives the same bytes; fewer rows are the beginning of more.
"""

import csv
import io
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from stdnum import iban, luhn

from cluster.errors import ConfigError
from cluster.files import write_text
from serve_app.guard.prepare import dedup_key
from train_jobs.samples.phrases import (
    CLOSERS,
    DOMAINS,
    FEELINGS,
    FILLERS,
    OPENERS,
    PERSONAL,
    SKELETONS,
    Industry,
    Sentiment,
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One message and its label. Use the text alone where unlabelled text is wanted."""

    text: str
    label: Sentiment


# --- How it is written ----------------------------------------------------------------------------

_SLOT = re.compile(r"\{(\w+)\}")
_SENTENCE = re.compile(r"(?:^|[.!?] )[a-z]")
_CONTRACTIONS: Final = (
    ("could not", "couldn't"), ("did not", "didn't"), ("does not", "doesn't"), ("was not",
    "wasn't"),
    ("is not", "isn't"), ("has not", "hasn't"), ("have not", "haven't"), ("will not", "won't"),
    ("I am", "I'm"), ("I have been", "I've been"), ("it is", "it's"), ("you are", "you're"),
)  # fmt: skip
_CONTRACTED_SHARE = 0.5
_OPENER_SHARE = 0.45
_CLOSER_SHARE = 0.4
_TYPING_ERRORS_SHARE = 0.3
_LOWER_SHARE, _UPPER_SHARE, _UNPOINTED_SHARE = 0.12, 0.03, 0.08
_MAX_REPEATS = 10_000  # in a row of messages that were drawn before: then no new ones are left


class _Writer:
    """Writes one message after the other. All randomness comes from `rng`."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def message(self, label: Sentiment) -> str:
        domain = self._rng.choice(tuple(DOMAINS.values()))
        text = self._fill(self._skeleton(label), domain, label)
        return self._mistype(self._point(text))

    def personal(self) -> str:
        """A sentence with invented personal data."""
        template = self._rng.choice(PERSONAL)
        return _SLOT.sub(lambda slot: _invented(self._rng, slot.group(1)), template)

    def _skeleton(self, label: Sentiment) -> str:
        weights, groups = zip(*SKELETONS[label], strict=True)
        (group,) = self._rng.choices(groups, weights)
        parts = [str(self._rng.choice(group))]
        if self._rng.random() < _OPENER_SHARE:
            parts.insert(0, self._rng.choice(OPENERS))
        if self._rng.random() < _CLOSER_SHARE:
            parts.append(self._rng.choice(CLOSERS))
        return " ".join(parts)

    def _fill(self, skeleton: str, domain: Industry, label: Sentiment) -> str:
        """Puts clauses in the slots; no pair of clauses is used twice in one message."""
        good = label is Sentiment.POSITIVE
        if label is Sentiment.NEUTRAL:
            good = self._rng.random() < 0.5
        pairs = {
            "event": self._shuffled(domain.events),
            "feel": self._shuffled(FEELINGS),
            "deed": self._shuffled(domain.deeds),
        }
        phrases = {
            "thing": domain.things, "task": domain.tasks, "case": domain.cases, **FILLERS,
        }  # fmt: skip

        def clause(slot: re.Match[str]) -> str:
            name = slot.group(1)
            if name in phrases:
                return str(self._rng.choice(phrases[name]))
            opposite = name.startswith("un")
            pair = next(pairs[name.removeprefix("un")])
            return pair[0] if good is not opposite else pair[1]

        return _SLOT.sub(clause, _SLOT.sub(clause, skeleton))  # clauses have slots of their own

    def _shuffled(self, pairs: tuple[tuple[str, str], ...]) -> Iterator[tuple[str, str]]:
        return iter(self._rng.sample(pairs, len(pairs)))

    def _point(self, text: str) -> str:
        """Contractions, capital letters and full stops, as careful or careless as people are."""
        if self._rng.random() < _CONTRACTED_SHARE:
            for long, short in _CONTRACTIONS:
                text = re.sub(rf"\b{long}\b", short, text)
        text = _SENTENCE.sub(lambda start: start.group().upper(), text)
        manner = self._rng.random()
        if manner < _LOWER_SHARE:
            text = text.lower()
        elif manner < _LOWER_SHARE + _UPPER_SHARE:
            text = text.upper()
        if self._rng.random() < _UNPOINTED_SHARE:
            text = re.sub(r"[.,:!']", "", text)
        return text

    def _mistype(self, text: str) -> str:
        if self._rng.random() >= _TYPING_ERRORS_SHARE:
            return text
        for _ in range(self._rng.choice((1, 1, 2, 3))):
            text = self._slip(text, self._rng.randrange(len(text) - 1))
        return " ".join(text.split())

    def _slip(self, text: str, at: int) -> str:
        """Two characters swapped, one dropped or one doubled."""
        first, second = text[at], text[at + 1]
        slips = (second + first, second, first + first + second)
        return text[:at] + self._rng.choice(slips) + text[at + 2 :]


def _invented(rng: random.Random, kind: str) -> str:
    """Personal data of nobody: test-card prefixes, reserved domains and fictional phone ranges."""

    def digits(count: int) -> str:
        return "".join(rng.choices("0123456789", k=count))

    if kind == "card":
        body = rng.choice(("411111", "555555", "400000")) + digits(9)
        number = body + luhn.calc_check_digit(body)
        return rng.choice(("", " ", "-")).join(number[i : i + 4] for i in range(0, 16, 4))
    if kind == "iban":
        body = "WEST" + digits(14)
        return str(iban.format(f"GB{iban.calc_check_digits(f'GB00{body}')}{body}"))
    if kind == "email":
        user = rng.choice(FILLERS["name"]).lower() + digits(2)
        return user + rng.choice(("@example.com", "@example.org", " (at) example.net"))
    if kind == "phone":
        areas = rng.choice(("202-555-01", "+1 415 555 01", "020 7946 09", "+44 20 7946 09"))
        return areas + digits(2)
    return rng.choice("123456789") + digits(7)


# --- The door -------------------------------------------------------------------------------------


def generate(
    rows: int, seed: int, *, label_noise_share: float = 0.02, pii_share: float = 0.04
) -> Iterator[Sample]:
    """`rows` messages, no two alike but for case and white space.

    Labels are drawn evenly, then `label_noise_share` of them are replaced by a wrong one;
    `pii_share` of the messages carry invented personal data. Neither share changes the rest of the
    stream: the same seed without noise gives the true labels of the same texts.
    """
    if rows < 0:
        raise ConfigError(f"rows is {rows}; expected 0 or more.")
    for name, share in (("label_noise_share", label_noise_share), ("pii_share", pii_share)):
        if not 0.0 <= share <= 1.0:
            raise ConfigError(f"{name} is {share}; expected a share between 0 and 1.")
    return islice(_stream(seed, label_noise_share, pii_share), rows)


def _stream(seed: int, label_noise_share: float, pii_share: float) -> Iterator[Sample]:
    labels, texts, noise, pii = (
        random.Random(f"{seed}/{use}")  # noqa: S311 - reproducible on purpose
        for use in ("labels", "texts", "noise", "pii")
    )
    writer, discloser = _Writer(texts), _Writer(pii)
    seen: set[str] = set()
    while True:
        label = labels.choice(tuple(Sentiment))
        text = _unseen(writer, label, seen)
        disclosed = discloser.personal()
        if pii.random() < pii_share:
            text = f"{text} {disclosed}"
        wrong = noise.choice([other for other in Sentiment if other is not label])
        yield Sample(text, wrong if noise.random() < label_noise_share else label)


def _unseen(writer: _Writer, label: Sentiment, seen: set[str]) -> str:
    for _ in range(_MAX_REPEATS):
        text = writer.message(label)
        key = dedup_key(text)
        if key not in seen:
            seen.add(key)
            return text
    raise ConfigError(
        f"After {len(seen)} messages the generator repeats itself. Ask for fewer rows."
    )


def write_csv(
    path: Path, rows: int, seed: int, *, label_noise_share: float = 0.02, pii_share: float = 0.04
) -> None:
    """Writes `text,label` rows, the whole file or nothing."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("text", "label"))
    samples = generate(rows, seed, label_noise_share=label_noise_share, pii_share=pii_share)
    writer.writerows((sample.text, sample.label.value) for sample in samples)
    write_text(path, buffer.getvalue())
