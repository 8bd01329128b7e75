"""guard.json: a company's own footer pins nothing, and hides nothing of a customer's."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from cluster.errors import DataError
from serve_app.guard.config import BUILT_IN, GuardConfig, guard_config, read_guard
from serve_app.guard.pii import Guard, redact
from serve_app.guard.prepare import normalise
from tests.unit.serve_app.guard.test_pii import MESSAGES

OWN: dict[str, Any] = {
    "harmless_values": [
        "+49 30 1234567", "0800 123 4567", "12 Harbour Street, Leeds LS1 4QZ", "us@mail.example",
    ],
    "harmless_domains": ["acme.example"],
    "words": {"account": ["Kundennummer"], "harmless": ["Vorgangsnummer", "case key"]},
}  # fmt: skip
FOOTER = (
    "{} -- Acme Ltd, 12 Harbour Street, Leeds LS1 4QZ. Hotline: +49 30 1234567 or 0800 123 4567, "
    "write to help@acme.example or jobs@mail.acme.example"
)
GUARD = Guard(GuardConfig.model_validate(OWN))


def test_a_companys_own_footer_pins_no_message() -> None:
    """It pinned 300 of 300."""
    texts = [normalise(FOOTER.format(f"where is parcel {number}?")) for number in range(300)]
    assert all(redact(text)[1] for text in texts)
    assert [GUARD.redact(text) for text in texts] == [(text, ()) for text in texts]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("my number is +49 30 1234568", "my number is [PHONE]"),
        ("jo@acme.example.org", "[EMAIL]"),
        ("jo@notacme.example", "[EMAIL]"),
        ("help%40acme.example", "help%40acme.example"),
        ("mail jo%40mail.example", "mail [EMAIL]"),
        ("us@mail.example", "us@mail.example"),
        ("jo.us@mail.example", "[EMAIL]"),
        ("us@mail.example.org", "[EMAIL]"),
        ("Kundennummer: 48213", "Kundennummer: [ACCOUNT]"),
        ("Vorgangsnummer 4111111111111111", "Vorgangsnummer 4111111111111111"),
        ("case key: 202-555-0143", "case key: 202-555-0143"),
        ("call me on 0800 123 4567 89", "call me on [PHONE]"),
    ],
)
def test_what_is_not_the_companys_is_masked(text: str, masked: str) -> None:
    assert GUARD.redact(text)[0] == masked


def test_a_kind_can_be_off() -> None:
    guard = Guard(GuardConfig.model_validate({"off": ["birth_date"]}))
    text = "born on 12/03/1984, jo@mail.example"
    assert guard.redact(text) == ("born on 12/03/1984, [EMAIL]", ("email",))


@given(MESSAGES)
def test_a_sites_guard_leaves_nothing_to_find_either(raw: str) -> None:
    masked, kinds = GUARD.redact(normalise(raw))
    assert GUARD.redact(masked) == (masked, ())
    assert bool(kinds) == (masked != normalise(raw))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"harmles_values": []}, "harmles_values"),
        ({"harmless_values": ["12"]}, "fewer than 5"),
        ({"harmless_domains": ["acme"]}, "no domain"),
        ({"harmless_domains": ["@acme.example"]}, "no domain"),
        ({"off": ["names"]}, "off.0"),
        ({"off": ["numbers"]}, "cannot be off"),
        ({"words": {"card": ["x"]}}, "words.card"),
        ({"words": {"account": ["--"]}}, "words.account"),
        ([], "the file"),
    ],
)
def test_what_no_guard_has_is_refused_in_words(tmp_path: Path, given: Any, said: str) -> None:
    file = tmp_path / "guard.json"
    file.write_text(json.dumps(given))
    with pytest.raises(DataError, match=said):
        read_guard(file)


def test_a_file_that_is_not_there_or_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no file"):
        read_guard(tmp_path / "guard.json")
    (tmp_path / "guard.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        read_guard(tmp_path / "guard.json")


def test_what_was_read_is_what_a_release_gives(tmp_path: Path) -> None:
    file = tmp_path / "guard.json"
    file.write_text(json.dumps(OWN))
    made = read_guard(file)
    assert guard_config(made.model_dump(mode="json")) == made
    assert guard_config(None) == BUILT_IN
