"""Identity numbers of other countries, and what only looks like one."""

import pytest

from serve_app.guard.pii import redact
from serve_app.guard.prepare import normalise
from tests.support.planted import HARMLESS, harmless


@pytest.mark.parametrize(
    "number",
    [
        "390.533.447-05", "54362315-K", "54362315K", "X-2482300W", "RCCMNL83S18D969H",
        "ACUPA7085R", "6433435F", "2 95 10 99 126 111 93", "36 574 261 809", "756.9217.0769.85",
        "85.07.30-033.28", "880320-0016", "211062-5629", "15108695088", "131052-308T",
        "BOXW310820HNERXN09", "2341 2341 2346", "912-90-3456",
    ],
)  # fmt: skip
def test_a_shape_of_its_own_is_found_anywhere(number: str) -> None:
    for text in (number, f"Hello, {number} is mine.", f"it says ({number})"):
        masked, kinds = redact(normalise(text))
        assert kinds == ("identity",)
        assert "[IDENTITY]" in masked


@pytest.mark.parametrize(
    "text",
    [
        "NHS number 943 476 5919", "my UTR is 1955839661", "SIN 123-456-782",
        "tax file number 123 456 782", "Steuernummer 18181508155", "mijn BSN is 111222333",
        "o meu contribuinte é 501964843", "PESEL 44051401359", "NIP: 525-000-77-38",
        "CPF 39053344705", "SVNR 1237 010180", "mit CPR-nummer er 2110625629",
        "my national id number is 12345678", "tax id number: 12-3456789",
    ],
)  # fmt: skip
def test_a_number_that_is_called_one_is_found(text: str) -> None:
    masked, kinds = redact(text)
    assert kinds
    assert not any(map(str.isdigit, masked))


@pytest.mark.parametrize(
    "text",
    [
        "geboren am 12.03.1984", "geb. 12.03.1984", "née le 12/03/1984", "nació el 12 de marzo",
        "fecha de nacimiento 12-03-1984", "nata il 12/03/1984", "geboren op 12-03-1984",
        "nascido em 12/03/1984", "urodzony 12.03.1984", "född 1984-03-12", "geboren 12. März 1984",
        "né le 1er mars 1984", "ich bin am 12.03.1984 geboren",
    ],
)  # fmt: skip
def test_dates_of_birth_in_their_languages(text: str) -> None:
    kinds = redact(text)[1]
    assert kinds == (("birth_date",) if "1984" in text else ())


@pytest.mark.parametrize(
    "text",
    [
        "order number 8020260712345007 is late", "error at 1790000123401", "error at 1790000123",
        "tracking 7093 0137 2873 3830", "the IMEI is 353464686958969", "ticket 54362315K",
        "nie wieder 12345", "a pan of 30 cm and 24 cm", "the sin of 2024", "case 12345678 is open",
    ],
)  # fmt: skip
def test_numbers_that_are_nobodys_are_left(text: str) -> None:
    assert redact(text) == (text, ())


@pytest.mark.parametrize("kind", [kind for kind in HARMLESS if kind != "bare"])
def test_of_a_thousand_numbers_that_are_nobodys_ten_at_most_are_found(kind: str) -> None:
    """Of 1,000 random order numbers of 16 digits, 106 passed for cards by their checksum."""
    assert sum(bool(redact(text)[1]) for text in harmless(kind, 1000, 11)) <= 10


def test_a_bare_run_needs_an_issuers_prefix_or_a_cards_word() -> None:
    assert redact("8020260712345007")[1] == ()
    assert redact("my card: 8020260712345007")[1] == ("card",)
    assert redact("4111111111111111")[1] == ("card",)
    assert redact("order 4111 1111 1111 1111")[1] == ("card",)
