"""Decoded views of a text: what a link, a mail, a page or a log writes in other characters.

A view is the text with its escapes decoded, and the way back: each place in it stands for a place
in the text. Escapes of escapes are decoded too. Two families are kept apart, since a link's
`id=4111...` reads as quoted-printable, and would lose its first digits to it:

    links, pages, JSON   %40  %u0040  &#64;  &#x40;  &commat;  \\u0040  \\x40, a `+` between digits,
                         and a header's word, =?utf-8?B?...?=
    mail                 =40, and a line that ends in `=`, beside all of those

A view is never longer than its text, and making it takes time in proportion to its length.
"""

import re
import unicodedata
from base64 import b64decode
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.entities import html5
from typing import Final

_HEX: Final = "[0-9a-fA-F]"
# One character of UTF-8 in escaped bytes, or else one byte, which is read as Latin-1.
_BYTES: Final = (
    "(?:{0}[0-7]{1}"
    "|{0}[cdCD]{1}{0}[89abAB]{1}"
    "|{0}[eE]{1}(?:{0}[89abAB]{1}){{2}}"
    "|{0}[fF][0-7](?:{0}[89abAB]{1}){{3}}"
    "|{0}{1}{{2}})"
)
_PERCENT: Final = _BYTES.format("%", _HEX)
_PLUS: Final = r"(?<=[0-9])\+(?=[0-9(%])"
_ENTITY: Final = rf"&#[0-9]{{1,9}};?|&#[xX]{_HEX}{{1,8}};?|&[a-zA-Z][a-zA-Z0-9]{{1,31}};"
_BACKSLASH: Final = (
    rf"\\u[dD][89abAB]{_HEX}{{2}}\\u[dD][c-fC-F]{_HEX}{{2}}|\\u{_HEX}{{4}}|\\U{_HEX}{{8}}|\\u\{{{_HEX}{{1,6}}\}}"
    rf"|\\x{_HEX}{{2}}|\\[\\/\"'nrtbf]"
)
_WORD: Final = r"=\?[\w-]{2,20}\?[bB]\?[A-Za-z0-9+/]{4,100}={0,2}\?="  # RFC 2047, Base64
_LINK: Final = re.compile(f"%u{_HEX}{{4}}|{_PERCENT}|{_PLUS}|{_ENTITY}|{_BACKSLASH}|{_WORD}")
_SOFT_BREAK: Final = r"(?<=\S)= (?=\S)"
_QUOTED: Final = re.compile(f"{_BYTES.format('=', _HEX)}|{_SOFT_BREAK}")
_MAIL: Final = re.compile(f"{_BYTES.format('=', _HEX)}|{_SOFT_BREAK}|(?<=\\S)=$|{_LINK.pattern}")
_DEPTH: Final = 4  # escapes of escapes of ...: mail programs and redirects nest two or three
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Co"})


@dataclass(frozen=True, slots=True)
class View:
    """A decoded text. `layers` lead back: for each piece where it starts, in the view and in what
    it was decoded from, and where it ends there, or -1 if it is a copy."""

    text: str
    layers: tuple[tuple[list[int], list[int], list[int]], ...]

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Where in the text `view.text[start:end]` stands, whole escapes only."""
        for starts, sources, ends in reversed(self.layers):
            first = bisect_right(starts, start) - 1
            last = bisect_right(starts, end - 1) - 1
            copied = ends[first] < 0
            start = sources[first] + (start - starts[first] if copied else 0)
            end = sources[last] + end - starts[last] if ends[last] < 0 else ends[last]
        return start, end


def may_have_escapes(text: str) -> bool:
    return "%" in text or "&" in text or "\\" in text or "=" in text


def views(text: str) -> Iterator[View]:
    """The decoded views that differ from the text: of links, pages and JSON; of mail."""
    if "%" in text or "&" in text or "\\" in text or "+" in text or "=?" in text:
        view = _decoded(text, _LINK)
        if view is not None:
            yield view
    if "=" in text and _QUOTED.search(text) is not None:
        view = _decoded(text, _MAIL)
        if view is not None:
            yield view


def _decoded(text: str, escape: re.Pattern[str]) -> View | None:
    layers = []
    for _ in range(_DEPTH):
        text, layer = _layer(text, escape)
        if layer is None:
            break
        layers.append(layer)
    return View(text, tuple(layers)) if layers else None


def _layer(
    text: str, escape: re.Pattern[str]
) -> tuple[str, tuple[list[int], list[int], list[int]] | None]:
    parts: list[str] = []
    starts, sources, ends = [], [], []
    done = at = 0
    for match in escape.finditer(text):
        found = match.group()
        shown = _shown(found)
        if shown == found:
            continue
        start, end = match.span()
        if start > done:
            parts.append(text[done:start])
            starts.append(at)
            sources.append(done)
            ends.append(-1)
            at += start - done
        if shown:
            parts.append(shown)
            starts.append(at)
            sources.append(start)
            ends.append(end)
            at += len(shown)
        done = end
    if not done:
        return text, None
    if done < len(text) or not starts:
        parts.append(text[done:])
        starts.append(at)
        sources.append(done)
        ends.append(-1)
    return "".join(parts), (starts, sources, ends)


def _shown(escape: str) -> str:
    """What an escape stands for, normalised as the text is; itself where it stands for nothing."""
    kind = escape[0]
    if kind == "+" or escape == "= ":
        return " " if kind == "+" else ""
    try:
        character = _OF[kind](escape)
    except (ValueError, OverflowError, LookupError):
        return escape
    composed = unicodedata.normalize("NFKC", character)
    if len(composed) > len(escape):  # a view that grew could be made to grow without end
        return character
    return "".join(
        " " if c.isspace() else c
        for c in composed
        if c.isspace() or unicodedata.category(c) not in _UNSEEN
    )


def _of_percent(escape: str) -> str:
    return chr(int(escape[2:], 16)) if escape[1] in "uU" else _of_bytes(escape)


def _of_bytes(escape: str) -> str:
    data = bytes.fromhex(escape.replace(escape[0], ""))
    return data.decode("utf-8") if len(data) > 1 or data[0] < 0x80 else data.decode("latin-1")


def _of_mail(escape: str) -> str:
    if escape.startswith("=?"):
        return b64decode(escape.split("?")[3]).decode("utf-8", "replace")
    return "" if escape == "=" else _of_bytes(escape)


def _of_entity(escape: str) -> str:
    if escape[1] != "#":
        return html5[escape[1:]]
    digits = escape[2:].rstrip(";")
    return chr(int(digits[1:], 16) if digits[0] in "xX" else int(digits))


_CONTROLS: Final = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}


def _of_backslash(escape: str) -> str:
    if escape[1] == "U":
        return chr(int(escape[2:], 16))
    if escape[1] not in "ux":
        return _CONTROLS.get(escape[1], escape[1])
    codes = [int(code, 16) for code in re.findall(rf"{_HEX}{{1,6}}", escape.replace("\\u", " "))]
    if len(codes) == 2:
        return chr(0x10000 + ((codes[0] - 0xD800) << 10) + codes[1] - 0xDC00)
    return chr(codes[0])


_OF: Final[dict[str, Callable[[str], str]]] = {
    "%": _of_percent, "=": _of_mail, "&": _of_entity, "\\": _of_backslash,
}  # fmt: skip
