"""What a request may hold at most. Every way in refuses by these numbers, and documents name
them. And what of a text can be told without a service, so that nothing is paid before.
"""

import unicodedata
from typing import Final

MAX_CHARS = 10_000  # of a raw text
MAX_TEXTS: Final = 256
MAX_SHADOWS: Final = 2  # each of them runs every message once more
MAX_DEADLINE_MS: Final = 60_000
# Categories with no glyph: control, format, lone surrogate, private use; as guard/prepare.py.
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Co"})


def fault_of(text: object) -> str | None:
    """Why a service would refuse a text, never what it says; None if it would not."""
    if not isinstance(text, str):
        return f"a {type(text).__name__}, not a string"
    if len(text) > MAX_CHARS:
        return f"{len(text):,} characters, of which {MAX_CHARS:,} are the limit"
    if not any(map(_is_visible, text)):
        return "no visible character"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "half of a surrogate pair, which is no character"
    return None


def _is_visible(character: str) -> bool:
    return not character.isspace() and unicodedata.category(character) not in _INVISIBLE
