"""Where e-mail addresses stand in a text, written with signs or in words."""

import re
from typing import Final

from serve_app.guard.context import START, Spans

# Top-level domains that are no English word, for a dot with spaces around it.
_TLD = (
    r"(?:com|net|org|edu|gov|info|biz|co|io|eu|app|dev|uk|us|de|fr|es|nl|ch|se|pl|dk|fi|pt|ie|ca|au|"
    r"nz|jp|br|mx|test|example)\b"
)
_PROVIDER = (
    r"(?:gmail|googlemail|yahoo|ymail|hotmail|outlook|live|msn|icloud|aol|proton(?:mail)?|gmx|web|"
    r"mail|fastmail|zoho|yandex)\b"
)
_DOT_WORD = r"(?: dot | ?[(\[{<] ?(?:dot|\.) ?[)\]}>] ?| [*_-] ?dot ?[*_-] )"
_DOT = rf"(?: ?\. ?|{_DOT_WORD})"
_JOIN = rf"(?: \. |\.|{_DOT_WORD}| (?:underscore|dash|hyphen|minus|plus) )"
_LOCAL = rf"(?<![\w.+%'-])[\w+%'-]+(?:{_JOIN}[\w+%'-]+){{0,4}}"
_DOMAIN = (
    rf"(?:[\w-]+(?:{_DOT}[\w-]+){{0,3}}?(?:\.[\w-]+|{_DOT}{_TLD}|{_DOT_WORD}[\w-]+)|{_PROVIDER})"
)
_SPOKEN_DOMAIN = (
    rf"[\w-]+(?:(?:\.|{_DOT_WORD})[\w-]+){{0,3}}?{_DOT_WORD}{_TLD}(?:{_DOT_WORD}{_TLD})?"
)
_AT = r"(?: ?@ ?| ?[(\[{<] ?(?:at|@) ?[)\]}>] ?| [*_-] ?at ?[*_-] | at[ -]sign )"

_EMAILS: Final = (
    re.compile(r"(?<![\w.+%'-])[\w.+%'-]+@[\w-]+(?:\.[\w-]+)+"),
    # "jo @ mail . com", "jo@mail dot com", "jo@gmail", "jo(at)mail.com", "jo [at] mail [dot] org".
    re.compile(rf"{_LOCAL}{_AT}{_DOMAIN}(?:{_DOT}{_TLD}){{0,2}}", re.I),
    # "jo at mail dot com", "jo at gmail.com"; but "I ordered at shop.com" is no address.
    re.compile(rf"{_LOCAL} at (?:{_SPOKEN_DOMAIN}|{_PROVIDER} ?\. ?{_TLD})", re.I),
    # ... unless its first half has a dot inside, or is called an e-mail address.
    re.compile(r"(?<![\w.+%'-])[a-z]+(?:[._][a-z]+)+\d{0,4} at [\w-]+(?:\.[\w-]+)+", re.I),
)
_CALLED_EMAIL = re.compile(
    rf"{START}(?:e-?mails?|mail|mailbox|write|reply|login|contact)\b"
    r"(?:[:=,]? (?:is|to|me|us|at|on|address|new|my|the|s)\b|['’]s\b|[:=]){0,4} ?"  # noqa: RUF001
    r"(?P<value>[\w.+%'-]+ at [\w-]+(?:\.[\w-]+)+)",
    re.I,
)
_MAYBE = re.compile(r"@| at[ -][\w-]+(?: ?\.|[ (\[{<*_-]+dot\b)|[(\[{<*_-] ?at ?[)\]}>*_-]", re.I)


def may_have_email(lowered: str) -> bool:
    """Whether a text in small letters has an at-sign, or an "at" that may stand for one.

    Spelled out, since every message comes through here: a loop over the signs takes twice as long.
    """
    return (
        "@" in lowered or " at" in lowered or "(at" in lowered or "[at" in lowered
        or "{at" in lowered or "<at" in lowered or "*at" in lowered or "_at" in lowered
        or "-at" in lowered
    )  # fmt: skip


def emails(text: str) -> Spans:
    if _MAYBE.search(text) is None:
        return
    for pattern in _EMAILS:
        yield from (match.span() for match in pattern.finditer(text))
    yield from (match.span("value") for match in _CALLED_EMAIL.finditer(text))
