"""Where phone numbers stand in a text: by shape, by the words before, by libphonenumber."""

import re
from typing import Final

import phonenumbers

from serve_app.guard.context import FILL, START, Spans, is_reference, values

# Whose national spellings are believed without a "+": with a leading 0, and without.
_TRUNK_REGIONS = ("GB", "AU", "FR", "DE")
_OPEN_REGIONS = ("US", "IN")
_RUN = re.compile(r"[+(]{0,2}\d(?:[ ./()-]{0,3}\d){6,}")
_LONGEST = 15  # digits, E.164; a longer run holds several numbers, of either sort
# Seconds or milliseconds since 1970, of the years 2017 to 2033: an Indian landline's digits.
_EPOCH = re.compile(r"1[5-9]\d{8}(?:\.?\d{3,6})?(?!\d)")
_GROUP = re.compile(r"\d+")
# Written as nothing else is; fictional ranges and mistyped ones too.
_SHAPED: Final = (
    re.compile(  # 202-555-0143, (202) 555-0143, 1 202 555 0143
        r"(?<![\d./-])(?P<value>(?:\+?1[ ./-]{0,2})?(?:\([2-9]\d{2}\)|[2-9]\d{2})"
        r"[ ./-]{1,3}[2-9]\d{2}[ ./-]{1,3}\d{4})(?![\d-])"
    ),
    re.compile(r"(?<![\d+])(?P<value>07\d{3}[ -]?\d{3}[ -]?\d{3})(?!\d)"),
    re.compile(  # 0161 496 0123, (0117) 496 0123, 01632 960123, 020 7946 0958, 06 12 34 56 78
        r"(?<![\d./-])(?P<value>\(?0[1-9]\d{1,3}\)?[ ./-]{1,2}\d{3,4}[ ./-]{0,2}\d{3,4})(?!\d)"
    ),
    re.compile(r"(?<![\d./-])(?P<value>0[1-9](?:[ .-]\d\d){4})(?!\d)"),
    re.compile(r"(?<![\w+])(?P<value>(?:\+|00)[1-9](?:[ ./()-]{0,3}\d){7,14})(?!\d)"),
)
_IN_CONTEXT = re.compile(
    rf"{START}(?:(?:tele|cell ?)?phone|tel|mobile|mob|cell|whats ?app|landline|fax|handy|wa\.me/|"
    r"(?:contact|my|best|home|work|office|daytime|evening|new|old) (?:number|no|num)|"
    r"(?:call|ring|text|reach|phone|contact|dial|sms|message)(?: (?:me|us|him|her))?(?: back)?"
    r"(?: (?:on|at))?)\b"
    rf"{FILL}(?:(?:get|reach|back|a|ring|call|now|text) ?){{0,4}}{FILL}"
    r"(?P<value>\+?\(?\d(?:[ ./()-]{0,2}\d){6,14})(?!\d)",
    re.I,
)
_EXTENSION = re.compile(r",? ?(?:ext(?:ension|n)?\b\.?|x) ?[#:]? ?\d{1,6}\b", re.I)


def phones(text: str) -> Spans:
    for start, end in _bare(text):
        extension = _EXTENSION.match(text, end)
        yield start, extension.end() if extension else end


def _bare(text: str) -> Spans:
    yield from values(_IN_CONTEXT, text)
    spans = (span for pattern in _SHAPED for span in values(pattern, text))
    shaped = [span for span in spans if _is_phone(text, *span)]
    yield from shaped
    for run in _RUN.finditer(text):
        start, end = run.span()
        # What a shape covers is found; libphonenumber is fifty times slower.
        covered = any(a - 1 <= start and end <= b + 1 for a, b in shaped)
        if not covered and _is_phone(text, start, end):
            yield from _as_libphonenumber_sees(text, start, end)


def _is_phone(text: str, start: int, end: int) -> bool:
    return "+" in text[start:end] or not is_reference(text, start)


def _as_libphonenumber_sees(text: str, start: int, end: int) -> Spans:
    """The phones in a run of digits and phone punctuation."""
    # One character more on either side: a letter or a currency sign there means "no phone".
    offset = max(0, start - 1)
    around = text[offset : end + 1]
    leniency = phonenumbers.Leniency.POSSIBLE if "+" in around else phonenumbers.Leniency.VALID
    for region in _regions(_GROUP.findall(around)):
        matcher = phonenumbers.PhoneNumberMatcher(around, region, leniency)
        for match in matcher:
            if not _EPOCH.match(text, offset + match.start):
                yield offset + match.start, offset + match.end


def _regions(groups: list[str]) -> tuple[str, ...]:
    """Args: groups: of digits; a national number starts with one of them."""
    if sum(map(len, groups)) <= _LONGEST:
        groups = groups[:1]
    trunk = any(group[0] == "0" for group in groups)
    other = any(group[0] != "0" for group in groups)
    return _TRUNK_REGIONS * trunk + _OPEN_REGIONS * other
