"""The only normalising code: raw text -> Message, its personal data masked.

Training, calibration, gate, sweep and serving all come through here, so what a model learns from
is what it is asked about.
"""

import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, Final

from serve_app.contracts import Message
from serve_app.guard.config import guard_config
from serve_app.guard.pii import Guard, redact

# Categories with no glyph: control, format (bidirectional marks too), lone surrogate, private use.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co"})

_MAY_GROW: Final = 300  # characters, beside half the length

Redactor = Callable[[str], tuple[str, tuple[str, ...]]]


def normalise(raw: str) -> str:
    """NFKC, no invisible characters, single spaces. Idempotent; may return an empty string."""
    composed = unicodedata.normalize("NFKC", raw)
    if not composed.isprintable():
        # White space of category Cc (tab, newline) must become a space, not vanish.
        shown = {
            ord(c): " " if c.isspace() else None
            for c in set(composed)
            if c.isspace() or unicodedata.category(c) in _INVISIBLE
        }
        composed = unicodedata.normalize("NFKC", composed.translate(shown))
    return " ".join(composed.split())


def redactor_of(guard: Mapping[str, Any] | None) -> Redactor:
    """Of a release's guard.json; None is the built-in guard."""
    return redact if guard is None else Guard(guard_config(guard)).redact


def prepare(raw: str, redactor: Redactor = redact) -> Message:
    """Normalises a text and masks its personal data.

    A detector that raises does not stop the answer: the message is marked, and stays at the edge.
    So does one that normalising has blown up (one character may become eighteen): it is cut, and
    what is not looked at leaves nowhere.
    """
    text = normalise(raw)
    most = len(raw) + len(raw) // 2 + _MAY_GROW
    if len(text) > most:
        return Message(text[:most].rstrip(), detector_failed=True)
    try:
        masked, kinds = redactor(text)
    except Exception:  # noqa: BLE001 - decided once: an unreadable message counts as sensitive
        return Message(text, detector_failed=True)
    return Message(masked, kinds)


def dedup_key(text: str) -> str:
    """Equal for prepared texts that differ in case or white space only."""
    return " ".join(text.split()).casefold()
