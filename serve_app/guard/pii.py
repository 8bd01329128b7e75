"""Find and mask personal data: prepared text -> the text with placeholders, and the kinds found.

Recall comes before precision where the two conflict, since a miss sends a customer's data to the
cloud and a false alarm only costs a second opinion. What has a checksum is believed anywhere (card,
IBAN); what is only a number is believed by its shape (SSN, phone, address) or by the words around
it (account, date of birth). What is found, what is not, and how often: docs/guard.md.

Pure and thread-safe. A text with neither a digit nor an at-sign costs a few microseconds, and one
with more digits than anyone writes is masked as a whole, unread: closed on failure.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from serve_app.guard.context import Spans, ascii_view, without_dates
from serve_app.guard.emails import emails
from serve_app.guard.numbers import accounts, card_secrets, cards, ibans, ssns
from serve_app.guard.phones import phones
from serve_app.guard.places import addresses, birth_dates


class PiiKind(StrEnum):
    """What was found; where two findings overlap, the one named first here gives the kind."""

    CARD = "card"
    IBAN = "iban"
    SSN = "ssn"
    EMAIL = "email"
    ACCOUNT = "account"
    PHONE = "phone"
    ADDRESS = "address"
    BIRTH_DATE = "birth_date"
    NUMBERS = "numbers"  # more digits than are looked at, so each of them counts

    @property
    def placeholder(self) -> str:
        return f"[{self.upper()}]"


@dataclass(frozen=True, slots=True)
class Finding:
    """Where something stands: `text[start:end]`. It has no field for what it says."""

    kind: PiiKind
    start: int
    end: int


def redact(text: str) -> tuple[str, tuple[str, ...]]:
    """A prepared text -> (the text with each finding masked, the kinds found, sorted).

    Masking can bring the neighbours of a finding together, so it is repeated until nothing is
    left. That ends: each round takes away a digit or an at-sign, and a placeholder has neither.
    """
    kinds: set[str] = set()
    while findings := find(text):
        kinds.update(finding.kind.value for finding in findings)
        text = _mask(text, findings)
    return text, tuple(sorted(kinds))


_DIGIT = re.compile(r"\d")
_AT = re.compile(r"@|\bat\b", re.I)
# What is looked at takes libphonenumber about 0.1 ms per number, on the router's event loop. Four
# cards, four phones and an IBAN have 130 digits.
MAX_DIGITS: Final = 160
_MIN_DIGITS: Final = 5  # no other kind of number has fewer


def find(text: str) -> list[Finding]:
    """All findings in a prepared text, in order, none overlapping another."""
    digits = len(_DIGIT.findall(text))
    if not digits and _AT.search(text) is None:
        return []
    plain = ascii_view(text)
    found = _of(PiiKind.EMAIL, emails(plain))
    if digits > MAX_DIGITS:
        found += _of(PiiKind.NUMBERS, _words_with_digits(text))
    elif digits:
        found += _numbers(plain, digits)
    return _merged(found)


def _numbers(text: str, digits: int) -> list[Finding]:
    dateless = without_dates(text)
    found = _of(PiiKind.ADDRESS, addresses(dateless))
    found += _of(PiiKind.ACCOUNT, card_secrets(dateless))
    if digits < _MIN_DIGITS:
        return found
    return [
        *found,
        *_of(PiiKind.CARD, cards(dateless)),
        *_of(PiiKind.IBAN, ibans(dateless)),
        *_of(PiiKind.SSN, ssns(dateless)),
        *_of(PiiKind.ACCOUNT, accounts(dateless)),
        *_of(PiiKind.PHONE, phones(dateless)),
        *_of(PiiKind.BIRTH_DATE, birth_dates(text)),
    ]


_WORD = re.compile(r"\S+")


def _words_with_digits(text: str) -> Spans:
    return (word.span() for word in _WORD.finditer(text) if _DIGIT.search(word.group()))


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
