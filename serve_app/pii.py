"""Find and mask personal data: prepared text -> the text with placeholders, and the kinds found.

Recall comes before precision where the two conflict, since a miss sends a customer's data to the
cloud and a false alarm only costs a second opinion. What has a checksum is believed anywhere (card,
IBAN); what is only a number is believed by its shape (SSN, phone) or by the words around it
(account, a mistyped card). Numbers in words ("four one one one") are not found.

Pure and thread-safe. Every pattern is linear: the parts of each repetition start with different
characters, or the repetition is bounded. A text with neither a digit nor an at-sign costs a few
microseconds.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import phonenumbers
from stdnum import iban, luhn
from stdnum.us import ssn


class PiiKind(StrEnum):
    """What was found; where two findings overlap, the one named first here gives the kind."""

    CARD = "card"
    IBAN = "iban"
    SSN = "ssn"
    EMAIL = "email"
    ACCOUNT = "account"
    PHONE = "phone"

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


def find(text: str) -> list[Finding]:
    """All findings in a prepared text, in order, none overlapping another."""
    plain = text if text.isascii() else "".join(map(_ascii_like, text))
    found: list[Finding] = []
    if _has_at(plain):
        found += _of(PiiKind.EMAIL, _emails(plain))
    if len(_DIGIT.findall(plain)) >= _MIN_DIGITS:
        found += _numbers(_DATE_OR_TIME.sub(_blank, plain))
    return _merged(found)


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


Spans = Iterator[tuple[int, int]]


def _of(kind: PiiKind, spans: Spans) -> list[Finding]:
    return [Finding(kind, start, end) for start, end in spans]


def _numbers(text: str) -> list[Finding]:
    return [
        *_of(PiiKind.CARD, _cards(text)),
        *_of(PiiKind.IBAN, _ibans(text)),
        *_of(PiiKind.SSN, _ssns(text)),
        *_of(PiiKind.ACCOUNT, _accounts(text)),
        *_of(PiiKind.PHONE, _phones(text)),
    ]


# --- What every detector sees: the text, one ASCII character for each of its characters ----------

_MIN_DIGITS = 5  # no kind of number has fewer
_DIGIT = re.compile(r"\d")
# Dates and times are the most common groups of digits in messages, and belong to no kind. A date
# needs a four-digit year or slashes: 12-34-56 and 12.34.56 are sort codes.
_DATE_OR_TIME = re.compile(
    r"(?<![\d./-])(?:"
    r"[0-3]?\d([./-])[0-3]?\d\1(?:19|20)\d\d"
    r"|(?:19|20)\d\d([./-])[01]?\d\2[0-3]?\d"
    r"|[0-3]?\d/[0-3]?\d/\d\d"
    r"|[0-2]?\d:[0-5]\d(?::[0-5]\d)?"
    r")(?![./-]?\d)"
)


def _blank(match: re.Match[str]) -> str:
    return "|" * len(match.group())


def _ascii_like(character: str) -> str:
    """Digits of any script, and dashes of any length, as ASCII; the rest as it is."""
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    return "-" if character == "−" or unicodedata.category(character) == "Pd" else character  # noqa: RUF001


# --- E-mail -------------------------------------------------------------------------------------

_TLD = r"(?:com|net|org|edu|gov|info|biz|co|io|eu|uk|de|fr|ca|au)\b"
_PROVIDER = r"(?:gmail|googlemail|yahoo|hotmail|outlook|icloud|aol|proton(?:mail)?|gmx)\b"
_DOT_WORD = r"(?: dot | ?[(\[{] ?dot ?[)\]}] ?)"
_LOCAL = rf"(?<![\w.+%'-])[\w+%'-]+(?:(?: \. |\.|{_DOT_WORD})[\w+%'-]+){{0,4}}"
_DOMAIN = rf"(?:[\w-]+(?:\.[\w-]+| ?\. ?{_TLD}|{_DOT_WORD}{_TLD}){{1,4}}|{_PROVIDER})"
_SPOKEN_DOMAIN = rf"[\w-]+(?:(?:\.|{_DOT_WORD})[\w-]+){{0,3}}{_DOT_WORD}{_TLD}"
_EMAILS: Final = (
    re.compile(r"(?<![\w.+%'-])[\w.+%'-]+@[\w-]+(?:\.[\w-]+)+"),
    # "jo @ mail . com", "jo@mail dot com", "jo@gmail", "jo(at)mail.com", "jo [at] mail [dot] org".
    re.compile(rf"{_LOCAL}(?: ?@ ?| ?[(\[{{<] ?(?:at|@) ?[)\]}}>] ?){_DOMAIN}", re.I),
    # "jo at mail dot com", "jo at gmail.com"; but "I ordered at shop.com" is no address.
    re.compile(rf"{_LOCAL} at (?:{_SPOKEN_DOMAIN}|{_PROVIDER} ?\. ?{_TLD})", re.I),
)
_AT_WORD = re.compile(r" at [\w-]+(?: ?\.|[ (\[{]+dot\b)|[(\[{<] ?at ?[)\]}>]", re.I)


def _has_at(text: str) -> bool:
    return "@" in text or _AT_WORD.search(text) is not None


def _emails(text: str) -> Spans:
    return (match.span() for pattern in _EMAILS for match in pattern.finditer(text))


# --- Numbers with a checksum --------------------------------------------------------------------

_RUN = re.compile(r"\d(?:[ ./_-]{0,3}\d)*")
_GROUP = re.compile(r"\d+")
_PAN_LENGTHS = range(13, 20)  # ISO/IEC 7812-1
# What payment cards start with. Asked only of a number inside a longer run of digits, where there
# are many places to look and each has one chance in ten of a right checksum.
_ISSUER = re.compile(r"[3456]|2[2-7]")


def _cards(text: str) -> Spans:
    for run in _RUN.finditer(text):
        if run.end() - run.start() < _PAN_LENGTHS.start:
            continue
        digits = _digits(run.group())
        if len(digits) in _PAN_LENGTHS and digits[0] != "0" and luhn.is_valid(digits):
            yield run.span()
        else:
            yield from _cards_within(text, [m.span() for m in _GROUP.finditer(text, *run.span())])


def _cards_within(text: str, groups: list[tuple[int, int]]) -> Spans:
    """Cards among other numbers ("1 x 4111 1111 1111 1111 12/26"), made of whole groups.

    Overlapping ones too: the end of an IBAN and the first group of a card that follows it may pass
    for a card, and must not hide the real one.
    """
    for first in range(len(groups)):
        last = _card_end(text, groups, first)
        if last is not None:
            yield groups[first][0], groups[last][1]


def _card_end(text: str, groups: list[tuple[int, int]], first: int) -> int | None:
    """The last group of a card that starts with group `first`, or None."""
    if not _ISSUER.match(text, groups[first][0]):
        return None
    digits = ""
    for last in range(first, len(groups)):
        digits += text[slice(*groups[last])]
        if len(digits) >= _PAN_LENGTHS.stop:
            break
        if len(digits) in _PAN_LENGTHS and luhn.is_valid(digits):
            return last
    return None


def _digits(text: str) -> str:
    return "".join(_GROUP.findall(text))


_IBAN = re.compile(r"(?<![a-z0-9])[a-z]{2}[ .-]?\d{2}(?:[ .-]?[a-z0-9]){11,30}", re.I)
_IBAN_END = re.compile(r"[a-z0-9](?![a-z0-9])", re.I)
_IBAN_SEPARATORS = str.maketrans("", "", " .-")


def _ibans(text: str) -> Spans:
    """The pattern runs on into the words that follow; the checksum says where the IBAN ends."""
    at = 0
    while match := _IBAN.search(text, at):
        start, at = match.start(), match.start() + 2
        for last in reversed(list(_IBAN_END.finditer(text, start, match.end()))):
            compact = text[start : last.end()].translate(_IBAN_SEPARATORS)
            if len(compact) >= 15 and iban.is_valid(compact):
                yield start, last.end()
                at = last.end()
                break


# --- Numbers that the words around them give away -----------------------------------------------

# What may stand between "account number" and the number: "... with you guys is: ".
_FILL = (
    r"(?:[\s:=#.,;\"'()-]|\b(?:is|was|are|as|for|my|with|you|guys|your|the|this|that|of|at|here|"
    r"it|its|in|on|question|follows|reads|below|and|please|bank|number|no|s)\b){0,16}"
)
_START = r"(?<![\w\[])"  # of a context word; a placeholder is none
_NUMBER_WORD = r"(?:numbers?|nos?\b|nr\b|num\b|ids?\b|code|ref(?:erence)?\b|#)"
_SSN_WORD = (
    r"(?:s\.?s\.?n|social security(?: (?:number|no|num|#))?|soc(?:ial)? sec|social|itin|"
    r"tax(?:payer)? id)\b"
)
_SSN_VALUE = r"(?P<value>\d{3}[ .-]?\d{2}[ .-]?\d{4})(?!\d)"
_SSN_SHAPED = re.compile(r"(?<![\d-])(\d{3})([ .-])(\d{2})\2(\d{4})(?![ .-]?\d)")
_SSN_IN_CONTEXT: Final = (
    re.compile(rf"{_START}{_SSN_WORD}{_FILL}{_SSN_VALUE}", re.I),
    re.compile(rf"(?<!\d){_SSN_VALUE}{_FILL}{_SSN_WORD}", re.I),
)


def _ssns(text: str) -> Spans:
    for match in _SSN_SHAPED.finditer(text):
        if ssn.is_valid("-".join(match.group(1, 3, 4))):
            yield match.span()
    # Next to its name any nine digits count: a mistyped number is still somebody's.
    for pattern in _SSN_IN_CONTEXT:
        yield from (match.span("value") for match in pattern.finditer(text))


_HOLDER = (
    r"(?:account|acct?|a/c|customer|client|user|login|member(?:ship)?|policy|routing|transit|aba|"
    r"card|iban|passport|licen[cs]e|insurance)"
)
# Five digits or more, in groups or not, a few letters before ("PL-12 34 56"), or any one word of
# five or more with three digits in it ("X7Q-20B").
_DIGITS_VALUE = r"(?:[a-z]{1,4}[ -]?)?\d(?:[ ./-]?\d){4,33}(?!\d)"
_WORD_VALUE = r"(?=[a-z0-9-]{5})(?=(?:[a-z-]{0,34}\d){3})[a-z0-9-]{5,40}"
_ACCOUNTS: Final = (
    re.compile(
        rf"{_START}(?:{_HOLDER}\.? ?{_NUMBER_WORD}|sort(?:ing)? code|acct?\b\.?|a/c\b|iban\b)"
        rf"{_FILL}(?P<value>{_DIGITS_VALUE}|{_WORD_VALUE})",
        re.I,
    ),
    re.compile(
        rf"{_START}(?P<value>\d(?:[ -]?\d){{4,33}}){_FILL}{_HOLDER}\.? (?:number|num|id)\b", re.I
    ),
    # Without "number": six digits in one piece, and no sum of money.
    re.compile(
        rf"{_START}(?:account|policy|routing|iban|sort){_FILL}"
        r"(?P<value>\d{6,34}|\d\d-\d\d-\d\d)"
        r"(?![\d%]|[.,]\d| ?(?:usd|eur|gbp|inr|dollar|euro|pound|yen|rupee|buck|point|mile|[$€£]))",
        re.I,
    ),
)
_AND_ANOTHER = re.compile(r" ?(?:,|and|or|to|&|/) ?(?P<value>\d(?:[ -]?\d){4,33})(?!\d)", re.I)


def _accounts(text: str) -> Spans:
    for pattern in _ACCOUNTS:
        for match in pattern.finditer(text):
            yield match.span("value")
            end = match.end("value")
            while another := _AND_ANOTHER.match(text, end):
                yield another.span("value")
                end = another.end()


# --- Phones -------------------------------------------------------------------------------------

# Whose national spellings are believed without a "+": with a leading 0, and without.
_TRUNK_REGIONS = ("GB", "AU", "FR", "DE")
_OPEN_REGIONS = ("US", "IN")
_PHONE_RUN = re.compile(r"[+(]{0,2}\d(?:[ ./()-]{0,3}\d){6,}")
_LONGEST_PHONE = 15  # digits, E.164; a longer run holds several numbers, of either sort
_UK_MOBILE = re.compile(r"(?<!\d)07\d{3}[ -]?\d{3}[ -]?\d{3}(?!\d)")  # Ofcom's fictional ones too
_NOT_A_PHONE = re.compile(
    r"(?:\b(?:order|reference|ref|invoice|tracking|parcel|package|shipment|delivery|ticket|case|"
    r"transaction|booking|confirmation|receipt|claim|serial|model|item|product|sku|version|"
    r"voucher|coupon|isbn|barcode)s?\b(?:\W|number|num|no|nr|id|code|is|was|the|my)*|[$£€¥₹]\s?)$",
    re.I,
)
_LOOK_BACK = 40  # characters before a number in which the word that says "no phone" is looked for
_PHONE_IN_CONTEXT = re.compile(
    rf"{_START}(?:(?:tele|cell ?)?phone|tel|mobile|mob|cell|whatsapp|landline|contact number|"
    r"my number|(?:call|ring|text|reach|phone|contact)(?: (?:me|us))?(?: back)?(?: (?:on|at))?)\b"
    rf"{_FILL}(?P<value>\+?\(?\d(?:[ ./()-]{{0,2}}\d){{6,14}})(?!\d)",
    re.I,
)


def _phones(text: str) -> Spans:
    yield from (match.span("value") for match in _PHONE_IN_CONTEXT.finditer(text))
    for run in _PHONE_RUN.finditer(text):
        before = text[max(0, run.start() - _LOOK_BACK) : run.start()]
        if run.group().startswith("+") or not _NOT_A_PHONE.search(before):
            yield from _phones_within(text, run.start(), run.end())


def _phones_within(text: str, start: int, end: int) -> Spans:
    """The phones in a run of digits and phone punctuation, as libphonenumber sees them."""
    run = text[start:end]
    yield from ((start + m.start(), start + m.end()) for m in _UK_MOBILE.finditer(run))
    # One character more on either side: a letter or a currency sign there means "no phone".
    offset = max(0, start - 1)
    around = text[offset : end + 1]
    leniency = phonenumbers.Leniency.POSSIBLE if "+" in run else phonenumbers.Leniency.VALID
    for region in _regions(_digits(run)):
        matcher = phonenumbers.PhoneNumberMatcher(around, region, leniency)
        yield from ((offset + match.start, offset + match.end) for match in matcher)


def _regions(digits: str) -> tuple[str, ...]:
    if len(digits) > _LONGEST_PHONE:
        return _TRUNK_REGIONS + _OPEN_REGIONS
    return _TRUNK_REGIONS if digits.startswith("0") else _OPEN_REGIONS
