"""What the detectors of personal data share: a view of the text, and the words around a number.

Every pattern is linear: the parts of each repetition start with different characters, or the
repetition is bounded.
"""

import re
import unicodedata
from collections.abc import Iterator

Spans = Iterator[tuple[int, int]]

# What may stand between "account number" and the number: "... with you guys is: ".
FILL = (
    r"(?:[\s:=#.,;\"'()<>*-]|\b(?:is|was|are|as|for|my|with|you|guys|your|the|this|that|of|at|here|"
    r"it|its|in|on|question|follows|reads|below|and|please|bank|number|no|s|to|me|have|has|changed|"
    r"new|old|again|actually|ist|lautet|est|es|é|è|jest|är|er|o|meu|le|el|la|mon|mi|nr|nummer|"
    r"número|numéro|numero|nº)\b){0,16}"
)
START = r"(?<![\w\[])"  # of a context word; a placeholder is none
NUMBER_WORD = r"(?:numbers?|nos?\b|nr\b|num\b|ids?\b|code|ref(?:erence)?\b|#)"

# Dates and times are the most common groups of digits in messages, and belong to no kind of number.
# A date needs a four-digit year or slashes: 12-34-56 and 12.34.56 are sort codes.
_DATE_OR_TIME = re.compile(
    r"(?<![\d./-])(?:"
    r"[0-3]?\d([./-])[0-3]?\d\1(?:19|20)\d\d"
    r"|(?:19|20)\d\d([./-])[01]?\d\2[0-3]?\d"
    r"|[0-3]?\d/[0-3]?\d/\d\d"
    r"|[0-2]?\d:[0-5]\d(?::[0-5]\d)?"
    r")(?![./-]?\d)"
)

_REFERENCE = re.compile(
    r"(?:\b(?:order|reference|ref|invoice|tracking|parcel|package|shipment|delivery|ticket|case|"
    r"transaction|booking|confirmation|receipt|claim|serial|model|item|product|sku|version|"
    r"voucher|coupon|isbn|barcode|imei|device|timestamp)s?\b"
    r"(?:\W|number|num|no|nr|id|code|is|was|the|my)*(?:\d{4}[ -]){0,4}|[$£€¥₹]\s?)$",
    re.I,
)
_LOOK_BACK = 40  # characters before a number in which the word that names it is looked for


def is_reference(text: str, start: int) -> bool:
    """Whether the number at `start` is called an order, a parcel or the like, or is a sum."""
    return _REFERENCE.search(text[max(0, start - _LOOK_BACK) : start]) is not None


def ascii_view(text: str) -> str:
    """The text with one character for each of its own: digits of any script and dashes of any
    length become ASCII."""
    if text.isascii():
        return text
    return text.translate({ord(c): _ascii_like(c) for c in set(text) if not c.isascii()})


def _ascii_like(character: str) -> str:
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    return "-" if character == "−" or unicodedata.category(character) == "Pd" else character  # noqa: RUF001


def without_dates(text: str) -> str:
    """Dates and times blanked, at the same length."""
    return _DATE_OR_TIME.sub(lambda match: "|" * len(match.group()), text)


def values(pattern: re.Pattern[str], text: str) -> Spans:
    """Where the group `value` of each match stands."""
    return (match.span("value") for match in pattern.finditer(text))
