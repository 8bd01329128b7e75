"""What of a text can be told before it is paid for: what the service would say."""

import sys

from hypothesis import given
from hypothesis import strategies as st

from serve_app.guard.prepare import normalise
from serve_app.request_limits import MAX_CHARS, fault_of


@given(st.text(st.characters(), max_size=8))
def test_a_text_without_a_visible_character_is_what_normalising_leaves_empty(text: str) -> None:
    assert (fault_of(text) == "no visible character") == (normalise(text) == "")


def test_so_is_every_single_character() -> None:
    for code in range(sys.maxunicode + 1):
        text = chr(code)
        if 0xD800 <= code <= 0xDFFF:
            assert fault_of(text) == fault_of(" "), "alone, it is no character at all"
        elif not text.isprintable():  # of the others all are visible
            assert (fault_of(text) is None) == bool(normalise(text)), hex(code)


def test_every_fault_has_its_words_and_none_repeats_the_text() -> None:
    assert fault_of("a") is None
    assert fault_of("\U0001f600" * MAX_CHARS) is None
    assert fault_of("a" * 10_001) == "10,001 characters, of which 10,000 are the limit"
    assert fault_of(" \u200b\t") == "no visible character"
    assert fault_of("secret \ud83d") == "half of a surrogate pair, which is no character"
    assert fault_of(b"secret") == "a bytes, not a string"
    assert fault_of(None) == "a NoneType, not a string"
