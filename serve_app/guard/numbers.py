"""Where cards, IBANs, social security numbers and account numbers stand in a text.

A number that is written as a card or an IBAN is written, but whose checksum is wrong, counts too:
a mistyped number is still somebody's.
"""

import re
from functools import cache
from typing import Final

from stdnum import iban, luhn
from stdnum.us import ssn

from serve_app.guard.context import FILL, NUMBER_WORD, START, Spans, is_reference, values

# ---- cards --------------------------------------------------------------------------------------

_RUN = re.compile(r"\d(?:[ ./_-]{0,3}\d)*")
_GROUP = re.compile(r"\d+")
_PAN_LENGTHS = range(13, 20)  # ISO/IEC 7812-1
# The issuers' prefixes and lengths (ISO/IEC 7812; Visa, Mastercard, Mir, American Express, Diners,
# JCB, Discover, RuPay, UnionPay, Maestro). One number in ten has a right checksum by chance, and an
# order's or a time's has seldom such a prefix.
_ISSUED = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"
    r"|220[0-4]\d{12,15}|3[47]\d{13}|(?:30[0-59]|3[689]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}"
    r"|(?:6011|64[4-9]\d|65\d\d|60\d\d|508\d|62\d\d)\d{12,15}"
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])\d{8,15}"
)
_MAY_START = re.compile(r"[3456]|2[2-7]")
_CARD_WORD = re.compile(
    r"cards?\b|visa|master ?card|amex|american express|maestro|discover|cvv|cvc|exp(?:ir|\b)|"
    r"\bpan\b",
    re.I,
)
_NEAR = 60  # characters around a number in which a card's word is looked for
# "4111 then 1111 then ...", "4111, 1111, ...": the groups of a card with anything short between.
_SPELLED: Final = (
    re.compile(r"(?<!\d)(?=(?P<value>\d{4}(?:\D{1,20}\d{4}){3}(?!\d)))"),
    re.compile(r"(?<!\d)(?=(?P<value>\d{8}\D{1,20}\d{8}(?!\d)))"),
    re.compile(r"(?<!\d)(?=(?P<value>3\d{3}\D{1,20}\d{6}\D{1,20}\d{5}(?!\d)))"),
    re.compile(r"(?<!\d)(?=(?P<value>\d(?:\D{1,3}\d){12,18}(?!\D{0,3}\d)))"),
)
_MISTYPED: Final = (
    re.compile(
        r"(?<!\d)(?P<value>(?:4\d|5[0-8]|2[2-7]|6\d|35)\d\d([ ./_-]{0,3})\d{4}\2\d{4}\2\d{4})(?!\d)"
    ),
    re.compile(r"(?<!\d)(?P<value>3[47]\d\d([ ./_-]{0,3})\d{6}\2\d{5})(?!\d)"),
)
_CALLED_CARD = re.compile(
    rf"{START}(?:(?:credit|debit|bank|charge)? ?cards?|visa|master ?card|amex|american express|"
    rf"maestro|discover|pan)\b(?: {NUMBER_WORD})?{FILL}"
    r"(?P<value>\d(?:[ ./_-]{0,3}\d){12,18})(?!\d)",
    re.I,
)


def cards(text: str) -> Spans:
    for run in _RUN.finditer(text):
        if run.end() - run.start() < _PAN_LENGTHS.start:
            continue
        digits = _digits(run.group())
        if len(digits) in _PAN_LENGTHS and luhn.is_valid(digits):
            if _is_believed(text, digits, *run.span()):
                yield run.span()
        else:
            yield from _cards_within(text, [m.span() for m in _GROUP.finditer(text, *run.span())])
    for pattern in _SPELLED:
        yield from (span for span in values(pattern, text) if _is_card(text[slice(*span)]))
    for pattern in _MISTYPED:
        yield from (span for span in values(pattern, text) if not is_reference(text, span[0]))
    yield from values(_CALLED_CARD, text)


def _is_card(text: str) -> bool:
    digits = _digits(text)
    return _ISSUED.fullmatch(digits) is not None and luhn.is_valid(digits)


def _is_believed(text: str, digits: str, start: int, end: int) -> bool:
    """A number whose checksum is right: of an issuer and not called an order, or beside a card's
    word."""
    if _CARD_WORD.search(text, max(0, start - _NEAR), end + _NEAR) is not None:
        return digits[0] != "0"
    if _ISSUED.fullmatch(digits) is None:
        return False
    return end - start > len(digits) or not is_reference(text, start)


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
    if not _MAY_START.match(text, groups[first][0]):
        return None
    digits = ""
    for last in range(first, len(groups)):
        digits += text[slice(*groups[last])]
        if len(digits) >= _PAN_LENGTHS.stop:
            break
        if len(digits) in _PAN_LENGTHS and luhn.is_valid(digits) and _ISSUED.fullmatch(digits):
            return last
    return None


def _digits(text: str) -> str:
    return "".join(_GROUP.findall(text))


# ---- IBANs --------------------------------------------------------------------------------------

_IBAN = re.compile(r"(?<![a-z0-9])[a-z]{2}[ ._-]{0,3}\d{2}(?:[ ._-]{0,3}[a-z0-9]){11,30}", re.I)
_IBAN_END = re.compile(r"[a-z0-9](?![a-z0-9])", re.I)
_IBAN_SEPARATORS = str.maketrans("", "", " ._-")
_STRUCTURE = re.compile(r"(\d+)!?[nace]")  # such as 4!a6!n8!n, after country and check digits


def ibans(text: str) -> Spans:
    """The pattern runs on into the words that follow; the country's length says where it ends."""
    at = 0
    while match := _IBAN.search(text, at):
        start, at = match.start(), match.start() + 2
        length = _iban_length(text[start:at].upper())
        if not length:
            continue
        for last in _IBAN_END.finditer(text, start, match.end()):
            compact = text[start : last.end()].translate(_IBAN_SEPARATORS).upper()
            if len(compact) >= length:
                if len(compact) == length and _is_iban(compact):
                    yield start, last.end()
                    at = last.end()
                break


@cache
def _iban_length(country: str) -> int:
    """Of all of a country's IBANs, as python-stdnum's registry has it; 0 where there are none."""
    structure = iban._ibandb.info(country)[0][1].get("bban", "")
    return 4 + sum(map(int, _STRUCTURE.findall(structure))) if structure else 0


def _is_iban(compact: str) -> bool:
    """Of its country's length and structure; the check digits may be wrong."""
    right = compact[:2] + iban.calc_check_digits(compact) + compact[4:]
    return bool(iban.is_valid(right, check_country=False))


# ---- social security numbers --------------------------------------------------------------------

_SSN_WORD = (
    r"(?:s\.? ?s\.? ?n\b|ss ?#|social security\b(?: (?:number|no|num|#))?|soc(?:ial)? sec\b|"
    r"social\b|itin\b|tax(?:payer)? id\b)"
)
_SSN_VALUE = r"(?P<value>\d{3}[ ./-]{0,3}\d{2}[ ./-]{0,3}\d{4})(?!\d)"
_SSN_SHAPED = re.compile(r"(?<![\d-])(\d{3})( ?[-.] ?| )(\d{2})\2(\d{4})(?![ .-]?\d)")
_SSN_IN_CONTEXT: Final = (
    re.compile(rf"{START}{_SSN_WORD}{FILL}{_SSN_VALUE}", re.I),
    re.compile(rf"(?<!\d){_SSN_VALUE}{FILL}{_SSN_WORD}", re.I),
)


def ssns(text: str) -> Spans:
    for match in _SSN_SHAPED.finditer(text):
        if ssn.is_valid("-".join(match.group(1, 3, 4))):
            yield match.span()
    # Next to its name any nine digits count.
    for pattern in _SSN_IN_CONTEXT:
        yield from values(pattern, text)


# ---- numbers that the words around them give away -----------------------------------------------

_HOLDER = (
    r"(?:account|acct?|acc|a/c|savings|checking|customer|client|user|login|member(?:ship)?|policy|"
    r"loan|mortgage|contract|routing|transit|aba|card|iban|passport|licen[cs]e|insurance|dl|ni|tax|"
    r"medicare|nhs|iqama|aadhaar|pan|identity|id card|national id)"
)
# Documents and bank codes whose name alone says that a number follows.
_NAMED = (
    r"(?:sort(?:ing)? code|s/c|acct?\b\.?|acc\b\.?|a/c\b|iban\b|passport|aba\b|nino\b|bsb\b|"
    r"national insurance|driv(?:er'?s?|ers|ing) licen[cs]e)"
)
# Five digits or more, in groups or not, a few letters before ("PL-12 34 56"), or any one word of
# five or more with three digits in it ("X7Q-20B").
_DIGITS_VALUE = r"(?:[a-z]{1,4}[ -]?)?\d(?:[ ./-]?\d){4,33}(?!\d)"
_WORD_VALUE = r"(?=[a-z0-9-]{5})(?=(?:[a-z-]{0,34}\d){3})[a-z0-9-]{5,40}"
_ACCOUNTS: Final = (
    re.compile(
        rf"{START}(?:{_HOLDER}(?:'s)?\.? ?{NUMBER_WORD}|{_NAMED})"
        rf"{FILL}(?P<value>{_DIGITS_VALUE}|{_WORD_VALUE})",
        re.I,
    ),
    re.compile(
        rf"{START}(?P<value>\d(?:[ -]?\d){{4,33}}+){FILL}{_HOLDER}\.? (?:number|num|id)\b", re.I
    ),
    # Without "number": six digits in one piece, and no sum of money.
    re.compile(
        rf"{START}(?:account|savings|checking|policy|routing|iban|sort){FILL}"
        r"(?P<value>\d{6,34}|\d\d-\d\d-\d\d|\d{4} \d{4})"
        r"(?![\d%]|[.,]\d| ?(?:usd|eur|gbp|inr|dollar|euro|pound|yen|rupee|buck|point|mile|[$€£]))",
        re.I,
    ),
    # A national insurance number (UK), by its shape.
    re.compile(
        r"(?<![a-z0-9])(?P<value>[a-ceghj-prtw-z]{2} ?\d\d ?\d\d ?\d\d ?[a-d])(?![a-z0-9])", re.I
    ),
)
_CARD_SECRET = re.compile(
    rf"{START}(?:cvv2?|cvc2?|cvn|csc|pin|security code)\b(?: (?:code|number))?"
    r"[ :=#,-]{0,3}(?:(?:is|was|as) )?(?P<value>\d{3,6})(?![\d%]|[.,:/]\d)",
    re.I,
)
_AND_ANOTHER = re.compile(
    r"(?: ?(?:,|and|or|to|&|/) ?| )(?P<value>\d(?:[ -]?\d){4,33})(?!\d)", re.I
)


def accounts(text: str) -> Spans:
    for pattern in _ACCOUNTS:
        for match in pattern.finditer(text):
            yield match.span("value")
            end = match.end("value")
            while another := _AND_ANOTHER.match(text, end):
                yield another.span("value")
                end = another.end()


def card_secrets(text: str) -> Spans:
    """PINs and security codes, named as such."""
    return values(_CARD_SECRET, text)
