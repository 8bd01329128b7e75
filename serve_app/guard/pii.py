"""Find and mask personal data: prepared text -> the text with placeholders, and the kinds found.

Recall comes before precision where the two conflict, since a miss sends a customer's data to the
cloud and a false alarm only costs a second opinion. What has a checksum is believed anywhere (card,
IBAN); what is only a number is believed by its shape (SSN, phone, address) or by the words around
it (account, date of birth). What is found, what is not, and how often: docs/guard.md.

A text is looked at as it stands and as it decodes (views.py); masks fall on the text as it stands.

Pure and thread-safe. A text without a digit, an at-sign or a word of a secret costs a few
microseconds. One that has more of them than anyone writes is masked as a whole, unread: closed on
failure.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from serve_app.guard.config import BUILT_IN, GuardConfig, PiiKind
from serve_app.guard.context import FILL, START, Spans, ascii_view, without_dates
from serve_app.guard.credentials import may_have_token, names_a_secret, secrets, tokens
from serve_app.guard.emails import emails, may_have_email
from serve_app.guard.identity import identities
from serve_app.guard.numbers import accounts, card_secrets, cards, ibans, ssns
from serve_app.guard.phones import phones
from serve_app.guard.places import addresses, birth_dates
from serve_app.guard.views import may_have_escapes, views


@dataclass(frozen=True, slots=True)
class Finding:
    """Where something stands: `text[start:end]`. It has no field for what it says."""

    kind: PiiKind
    start: int
    end: int


_DIGIT = re.compile(r"\d")
_SUSPECT = re.compile(r"[\d@%&=\\]")


def _is_plain(text: str) -> bool:
    """Whether nothing stands in the text that any detector starts from: most messages."""
    if _DIGIT.search(text) is not None or may_have_escapes(text):
        return False
    lowered = text.lower()
    return not (names_a_secret(lowered) or may_have_email(lowered) or may_have_token(text))


class _TooMuchError(Exception):
    """More was to be looked at than the text's length allows."""


@dataclass(slots=True)
class _Budget:
    """Characters that may still be looked at closely, over all rounds and views of one text."""

    left: int

    def spend(self, characters: int) -> None:
        self.left -= characters
        if self.left < 0:
            raise _TooMuchError


# What is looked at takes libphonenumber about 0.1 ms per number, on the router's event loop. Four
# cards, four phones and an IBAN have 130 digits.
MAX_DIGITS: Final = 160
_MIN_DIGITS: Final = 5  # no other kind of number has fewer
_MAX_ROUNDS: Final = 8
# A message is looked at twice, again after masking; escapes make that four times. So a long text
# may not be all numbers and escapes, and whatever it is, its cost is in proportion to its length.
_LOOKS: Final = 3
_LOOKS_EXTRA: Final = 3_000
# A longer text is looked at in pieces, so that only those with a digit or a word of a secret cost
# much. They overlap by more than any finding and its context is long; what may be longer (a token,
# a private key) is looked for in the whole.
_PIECE: Final = 2_400
_OVERLAP: Final = 400
_BACK: Final = 100  # how far a cut may move to fall on a space


class Guard:
    """The detectors, as a site has set them. Immutable."""

    def __init__(self, config: GuardConfig = BUILT_IN) -> None:
        self.config = config
        self._off = frozenset(config.off)
        self._harmless = _harmless(config)
        self._words = _site_words(config)

    def redact(self, text: str) -> tuple[str, tuple[str, ...]]:
        """A prepared text -> (the text with each finding masked, the kinds found, sorted).

        Masking can bring the neighbours of a finding together, so it is repeated until nothing is
        left. A text that takes too much of that loses every word that anything could be in.
        """
        if _is_plain(text):
            return text, ()
        kinds: set[str] = set()
        budget = _Budget(_LOOKS * len(text) + _LOOKS_EXTRA)
        for _ in range(_MAX_ROUNDS):
            try:
                findings = self._find(text, budget)
            except _TooMuchError:
                break
            if not findings:
                return text, tuple(sorted(kinds))
            kinds.update(finding.kind.value for finding in findings)
            text = _mask(text, findings)
        text = _mask(text, _of(PiiKind.NUMBERS, _words_with(_SUSPECT, text)))
        kept = PiiKind.NUMBERS.placeholder if self.find(text) else text
        return kept, tuple(sorted({*kinds, PiiKind.NUMBERS.value}))

    def find(self, text: str) -> list[Finding]:
        """All findings in a prepared text, in order, none overlapping another."""
        try:
            return self._find(text, _Budget(_LOOKS * len(text) + _LOOKS_EXTRA))
        except _TooMuchError:
            return _of(PiiKind.NUMBERS, _words_with(_SUSPECT, text))

    def _find(self, text: str, budget: _Budget) -> list[Finding]:
        """Raises _TooMuchError if the budget is used up."""
        found = self._look(text, budget)
        for view in views(text):
            for item in self._look(view.text, budget):
                found.append(Finding(item.kind, *view.span(item.start, item.end)))
        return _merged(found) if found else found

    def _look(self, text: str, budget: _Budget) -> list[Finding]:
        text = self._plain(text)
        found = _of(PiiKind.SECRET, tokens(text))
        digits = len(_DIGIT.findall(text))
        if digits > MAX_DIGITS:
            found += _of(PiiKind.NUMBERS, _words_with(_DIGIT, text))
        if len(text) <= _PIECE:
            found += self._look_closely(text, digits, budget)
        else:
            for start, end in _pieces(text):
                piece = text[start:end]
                count = digits and len(_DIGIT.findall(piece))
                if digits > MAX_DIGITS:
                    count = MAX_DIGITS + 1 if count else 0
                for item in self._look_closely(piece, count, budget):
                    found.append(Finding(item.kind, item.start + start, item.end + start))
        return [item for item in found if item.kind not in self._off] if self._off else found

    def _look_closely(self, text: str, digits: int, budget: _Budget) -> list[Finding]:
        """Args: digits: how many there are; more than MAX_DIGITS: they are masked already."""
        lowered = text.lower()
        has_secret, has_email = names_a_secret(lowered), may_have_email(lowered)
        if not (digits or has_secret or has_email):
            return []
        budget.spend(len(text))
        found = _of(PiiKind.SECRET, secrets(text, lowered, digits)) if has_secret or digits else []
        if has_email:
            found += _of(PiiKind.EMAIL, emails(text))
        if 0 < digits <= MAX_DIGITS:
            found += self._numbers(text, lowered, digits)
        return found

    def _plain(self, text: str) -> str:
        """In ASCII digits, what is harmless blanked; of the same length."""
        plain = ascii_view(text)
        return plain if self._harmless is None else self._harmless.sub(_blank, plain)

    def _numbers(self, text: str, lowered: str, digits: int) -> list[Finding]:
        dateless = without_dates(text)
        found = _of(PiiKind.ADDRESS, addresses(dateless, lowered))
        found += _of(PiiKind.ACCOUNT, card_secrets(dateless))
        found += _of(PiiKind.IDENTITY, identities(dateless, lowered, digits))
        if digits < _MIN_DIGITS:
            return found
        found += [
            *_of(PiiKind.CARD, cards(dateless)),
            *_of(PiiKind.IBAN, ibans(dateless)),
            *_of(PiiKind.SSN, ssns(dateless)),
            *_of(PiiKind.ACCOUNT, accounts(dateless)),
            *_of(PiiKind.PHONE, phones(dateless)),
            *_of(PiiKind.BIRTH_DATE, birth_dates(text, lowered)),
        ]
        for kind, pattern in self._words:
            found += _of(kind, (match.span("value") for match in pattern.finditer(dateless)))
        return found


# ---- what a site has set ------------------------------------------------------------------------

_NUMBER: Final = r"[a-z]{0,4}[ -]?\d(?:[ ./-]?[a-z\d]){3,33}(?!\w)"


def _any_of(words: Iterable[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


def _harmless(config: GuardConfig) -> re.Pattern[str] | None:
    """What is blanked before anything is looked for."""
    parts = []
    for value in config.harmless_values:
        # Not part of a longer one: 12345 hides nothing of 12345-678, nor help@a.example of
        # jo.help@a.example.org.
        before, after = r"(?<!\w)(?<!\d[ ./-])\+?", r"(?![ ./-]?\d|\w)"
        if "@" in value:
            before, after = r"(?<![\w.+%'-])", r"(?!\.?\w|-)"
        chunks = re.findall(r"[^\W_]+", ascii_view(value))
        parts.append(before + r"[\W_]{0,3}".join(chunks) + after)
    if config.harmless_domains:
        domains = _any_of(config.harmless_domains)
        parts.append(
            rf"(?<![\w.+%'-])[\w.+%'-]{{1,64}} ?@ ?(?:[\w-]+\.){{0,4}}(?:{domains})(?!\.?\w|-)"
        )
    if config.words.harmless:
        parts.append(
            rf"{START}(?:{_any_of(config.words.harmless)})(?:[\W_]|number|no|nr|is|was){{0,5}}{_NUMBER}"
        )
    return re.compile("|".join(parts), re.I) if parts else None


def _blank(match: re.Match[str]) -> str:
    return "|" * len(match.group())


def _site_words(config: GuardConfig) -> tuple[tuple[PiiKind, re.Pattern[str]], ...]:
    named = ((PiiKind.ACCOUNT, config.words.account), (PiiKind.IDENTITY, config.words.identity))
    return tuple(
        (kind, re.compile(rf"{START}(?:{_any_of(words)}){FILL}(?P<value>{_NUMBER})", re.I))
        for kind, words in named
        if words
    )


# ---- pieces -------------------------------------------------------------------------------------


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """Overlapping pieces that cover the text, cut at spaces where there are any."""
    start = 0
    while len(text) - start > _PIECE:
        end = start + _PIECE
        space = text.rfind(" ", end - _BACK, end)
        end = end if space < 0 else space
        yield start, end
        start = end - _OVERLAP
        space = text.find(" ", start, start + _BACK)
        start = start if space < 0 else space + 1
    yield start, len(text)


# ---- findings -----------------------------------------------------------------------------------

_WORD = re.compile(r"\S+")


def _words_with(sign: re.Pattern[str], text: str) -> Spans:
    return (word.span() for word in _WORD.finditer(text) if sign.search(word.group()))


def _of(kind: PiiKind, spans: Spans) -> list[Finding]:
    return [Finding(kind, start, end) for start, end in spans]


def _mask(text: str, findings: Iterable[Finding]) -> str:
    parts: list[str] = []
    done = 0
    for finding in findings:
        parts += (text[done : finding.start], finding.kind.placeholder)
        done = finding.end
    return "".join((*parts, text[done:]))


def _merged(found: list[Finding]) -> list[Finding]:
    """Sorted, with every chain of overlapping findings made one of its first-ranking kind."""
    rank = list(PiiKind).index
    merged: list[Finding] = []
    for finding in sorted(found, key=lambda finding: finding.start):
        if merged and finding.start < merged[-1].end:
            last = merged.pop()
            kind = min(last.kind, finding.kind, key=rank)
            finding = Finding(kind, last.start, max(last.end, finding.end))
        merged.append(finding)
    return merged


# ---- the built-in guard --------------------------------------------------------------------------

_BUILT_IN: Final = Guard()


def redact(text: str) -> tuple[str, tuple[str, ...]]:
    """`Guard.redact` of the built-in guard."""
    return _BUILT_IN.redact(text)


def find(text: str) -> list[Finding]:
    """`Guard.find` of the built-in guard."""
    return _BUILT_IN.find(text)
