"""One text preparation: what it removes, what it keeps, and what happens when the guard fails."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serve_app.contracts import RouteReason
from serve_app.guard.prepare import dedup_key, normalise, prepare
from serve_app.model.tokenizer import TextTokenizer
from tests.support.toys import make_bundle

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates included
INVISIBLE = {"Cc", "Cf", "Cs", "Co"}


@given(ANY_TEXT)
@example("\u1100\u200d\u1161")  # removing what stands between lets two letters compose
@example("e\u200b\u0301")
@example("\u00a8 \u0301")
@example("\ufdfa" * 3)
def test_normalising_twice_is_normalising_once(raw: str) -> None:
    once = normalise(raw)
    assert normalise(once) == once


@given(ANY_TEXT)
def test_nothing_invisible_is_left_and_spaces_are_single(raw: str) -> None:
    text = normalise(raw)
    assert not {unicodedata.category(c) for c in text} & INVISIBLE
    assert text == " ".join(text.split())
    assert unicodedata.is_normalized("NFKC", text)
    text.encode("utf-8")


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1))
def test_plain_words_pass_as_they_are(text: str) -> None:
    assert normalise(text) == text


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("  where\tis\r\nmy\x0bcard\u2028?  ", "where is my card ?"),  # none of them may vanish
        ("pay\u202eever\u202c back", "payever back"),  # text that reads backwards on a screen
        ("can\u200bcel", "cancel"),  # a word hidden from a filter
        ("\ufeffhello", "hello"),
        ("soft\u00adhyphen", "softhyphen"),
        ("broken \ud83d emoji", "broken emoji"),
        ("null\x00byte\x1b[31m", "nullbyte[31m"),
        ("Ｈｅｌｌｏ ４１１１", "Hello 4111"),  # noqa: RUF001 - full width, as card numbers hide
        ("caf\u0065\u0301", "café"),
        ("\u00a0\u3000", ""),
        ("", ""),
    ],
)
def test_what_normalising_does(raw: str, expected: str) -> None:
    assert normalise(raw) == expected


def test_personal_data_is_masked_and_pins() -> None:
    message = prepare("my card is 4111 1111 1111 1111, help")
    assert "4111" not in message.text
    assert message.pinned is RouteReason.PII_PINNED
    assert prepare("where is my card?").pinned is None


def test_two_numbers_in_a_row_do_not_hide_each_other() -> None:
    """The end of this IBAN and the beginning of the card pass for a card: the rest was shown."""
    message = prepare("IBAN GB35 WEST 0614 3649 8901 02 4111 1111 1111 1111")
    assert "1111" not in message.text


def test_personal_data_behind_invisible_characters_is_found() -> None:
    """The guard sees what the models see, so it cannot be dodged by a zero-width space."""
    message = prepare("card ４１１１\u200b1111\u200b1111\u200b1111")  # noqa: RUF001
    assert message.pinned is RouteReason.PII_PINNED
    assert "1111" not in message.text


@pytest.mark.parametrize("error", [RuntimeError, RecursionError, UnicodeError, MemoryError])
def test_a_detector_that_fails_pins_the_message(error: type[Exception]) -> None:
    def failing(text: str) -> tuple[str, tuple[str, ...]]:
        raise error(text)

    message = prepare(" some  text ", failing)
    assert message.text == "some text"
    assert message.detector_failed
    assert message.pinned is RouteReason.DETECTOR_FAILED


def test_a_message_does_not_show_its_text() -> None:
    assert "secret" not in repr(prepare("a secret"))


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_equal_but_for_case_and_space_is_equal(text: str) -> None:
    key = dedup_key(normalise(text))
    assert key == dedup_key(normalise(text.upper()))
    assert key == dedup_key(normalise(text.replace(" ", "  \t")))


def test_different_texts_have_different_keys() -> None:
    assert dedup_key("refund me") != dedup_key("refund us")
    assert dedup_key("STRASSE") == dedup_key("Straße")


def test_tokens_are_cut_and_never_padded(tmp_path: Path) -> None:
    file = make_bundle(tmp_path, "edge").tokenizer_path
    tokenizer = TextTokenizer.from_file(file, 3)
    short, long, empty = tokenizer.encode(["great", "great love fast thanks perfect", ""])
    assert (len(short), len(long), len(empty)) == (1, 3, 0)
    assert long[0] == short[0]


def test_a_tokenizer_file_may_not_pad_or_cut_by_itself(tmp_path: Path) -> None:
    """Saved tokenizers carry their own padding; a fixed 256 tokens cost ten times the latency."""
    from tokenizers import Tokenizer

    file = make_bundle(tmp_path, "edge").tokenizer_path
    padded = Tokenizer.from_file(str(file))
    padded.enable_padding(length=256)
    padded.enable_truncation(1)
    padded.save(str(file))
    assert len(TextTokenizer.from_file(file, 8).encode(["great love"])[0]) == 2
