"""The only normalising code: raw text -> Message, its personal data masked.

Training, calibration, gate, sweep and serving all come through here, so what a model learns from
is what it is asked about.
"""

import unicodedata
from collections.abc import Callable

from serve_app.contracts import Message
from serve_app.guard.pii import redact

# Categories with no glyph: control, format (bidirectional marks too), lone surrogate, private use.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co"})

Redactor = Callable[[str], tuple[str, tuple[str, ...]]]


def normalise(raw: str) -> str:
    """NFKC, no invisible characters, single spaces. Idempotent; may return an empty string."""
    composed = unicodedata.normalize("NFKC", raw)
    if not composed.isascii() or not composed.isprintable():
        # White space of category Cc (tab, newline) must become a space, not vanish.
        composed = "".join(
            " " if c.isspace() else c
            for c in composed
            if c.isspace() or unicodedata.category(c) not in _INVISIBLE
        )
        composed = unicodedata.normalize("NFKC", composed)
    return " ".join(composed.split())


def prepare(raw: str, redactor: Redactor = redact) -> Message:
    """Normalises a text and masks its personal data.

    A detector that raises does not stop the answer: the message is marked, and stays at the edge.
    """
    text = normalise(raw)
    try:
        masked, kinds = redactor(text)
    except Exception:  # noqa: BLE001 - decided once: an unreadable message counts as sensitive
        return Message(text, detector_failed=True)
    return Message(masked, kinds)


def dedup_key(text: str) -> str:
    """Equal for prepared texts that differ in case or white space only."""
    return " ".join(text.split()).casefold()
