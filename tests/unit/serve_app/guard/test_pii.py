"""Personal data: what must be found in how many spellings, and what must be left alone."""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serve_app.guard.config import PiiKind
from serve_app.guard.pii import Finding, find, redact
from serve_app.guard.prepare import normalise, prepare
from tests.support.planted import DEV, Corpus, plant, survives
from tests.support.planted_held_out import HELD_OUT

CARDS = [
    "4111111111111111",
    "4111 1111 1111 1111",
    "4111-1111-1111-1111",
    "4111.1111.1111.1111",
    "4111  1111 - 1111  1111",
    "3782 822463 10005",
    "30569309025904",
    "5555 5555 5555 4444",
    "6011000990139424",
    "4222222222222",
    "6304000000000000000",
    "4111, 1111, 1111, 1111",
    "4111 then 1111 then 1111 then 1111",
    "4111 1111 1111 1112",  # mistyped: the checksum is wrong
    "4111111111111112",
    "card number 4111 1111 1111 112",  # a digit is missing
    "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
    "4111 1111 1111 1111".translate({ord(d): ord(d) + 0xFEE0 for d in "14"}),  # full width
    "4111 1111 1111 1111".translate({ord(d): ord(d) + 0x0630 for d in "14"}),  # Arabic-Indic
    "4111–1111–1111–1111",  # noqa: RUF001
]
IBANS = [
    "GB82 WEST 1234 5698 7654 32",
    "GB82WEST12345698765432",
    "gb82west12345698765432",
    "gb82 west 1234 5698 7654 32",
    "DE89-3704-0044-0532-0130-00",
    "FR14 2004 1010 0505 0001 3M02 606",
    "NO93 8601 1117 947",
    "GB82 WEST 1234 5698 7654 33",  # mistyped
    "BE12 3456 7890 1234",  # of a bank that checks its own digits too
]
SSNS = ["536-90-4399", "536 90 4399", "536.90.4399"]
SSN_MESSAGES = [
    "my ssn is 536904399",
    "SSN: 536904399",
    "s.s.n. 536904399",
    "my social security number is 536904399",
    "social security no 536904399",
    "536904399 is my social security number",
    "my ssn is 900-12-3456",  # no valid one, but named as one
]
EMAILS = [
    "jo.smith@example.com",
    "Jo+tag@mail.example.co.uk",
    "o'brien@example.org",
    "jürgen@exämple.de",
    "jo @ example . com",
    "jo@example dot com",
    "jo(at)example.com",
    "jo (at) example (dot) com",
    "jo [at] example [dot] org",
    "jo {AT} example.net",
    "jo at example dot com",
    "jo dot smith at example dot co dot uk",
    "JO AT EXAMPLE DOT COM",
    "jo at gmail.com",
    "jo@gmail",
    "jo -at- example -dot- org",
    "jo underscore smith at example dot com",
    "jo.smith at example.com",
    "my email is jo at example.com",
]
PHONES = [
    "202-555-0143",
    "(202) 555-0143",
    "202.555.0143",
    "2025550143",
    "1-202-555-0143",
    "+1 202 555 0143",
    "+44 20 7946 0958",
    "+44 7700 900123",
    "0044 20 7946 0958",
    "020 7946 0958",
    "07700 900123",
    "07700900123",
    "+49 30 901820",
    "06 12 34 56 78",
    "98765 43210",
    "0161 496 0123",
    "(0117) 496 0123",
    "+1 202 555 0143 ext. 22",
    "202-555-0143 x22",
]
PHONE_MESSAGES = ["call me on 555-0142", "my mobile number is 0171 55501", "Tel: 555 0142"]
ACCOUNTS = [
    "account number 12345678",
    "Account Number: 1234-5678",
    "my account number with you is 12345678",
    "acct no. 12345678",
    "acct #12345678",
    "a/c 12345678",
    "account 12345678",
    "sort code 12-34-56",
    "sort code: 123456",
    "customer id 48213",
    "customer ID is C48213X",
    "policy number AB-12345",
    "policy no PL 12 34 56",
    "routing number 021000021",
    "membership number 99887766",
    "12345678 is my account number",
    "passport number X1234567",
    "iban GB82WEST123456987654",  # too short for one
    "sort code 20-34-56 12345678",
    "PIN is 48213",
    "security code: 48213",
    "my NI number is AB 12 34 56 C",
    "AB 12 34 56 C",
]
ADDRESSES = [
    "12 Maple Street",
    "12 maple street, apt 4b, springfield, il 62704",
    "221B Baker Street",
    "350 5th Ave, New York, NY 10118",
    "14 Orchard Close",
    "14 orchard close, leeds ls1 4qz",
    "Flat 3, 14 Orchard Gardens, Leeds LS1 4QZ",
    "my address is 14 The Larches",
    "I live at 14 orchard way",
    "SW1A 1AA",
    "M5V 2T6",
    "Springfield, IL 62704-1234",
    "zip code 94105",
    "P.O. Box 1234",
    "Postfach 12 34",
    "Hauptstraße 12, 10115 Berlin",
    "Berliner Str. 3a",
    "Lindenweg 5",
    "12 bis rue de la Paix, 75002 Paris",
    "Calle Mayor 12, 28013 Madrid",
    "Via Roma 3, 00184 Roma",
    "Keizersgracht 123, 1015 CJ Amsterdam",
]
BIRTH_DATES = [
    "born on 12/03/1984",
    "DOB: 1984-03-12",
    "d.o.b. 12.3.84",
    "my date of birth is 12th of March, 1984",
    "birthday: March 12, 1984",
]

FRAMES = ["{}", "Hello, {} is mine.", "please check ({}), thanks", "It is {}", "{} - {}"]


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *((PiiKind.CARD, value) for value in CARDS),
        *((PiiKind.IBAN, value) for value in IBANS),
        *((PiiKind.SSN, value) for value in SSNS),
        *((PiiKind.EMAIL, value) for value in EMAILS),
        *((PiiKind.PHONE, value) for value in PHONES),
        *((PiiKind.ACCOUNT, value) for value in ACCOUNTS),
        *((PiiKind.ADDRESS, value) for value in ADDRESSES),
        *((PiiKind.BIRTH_DATE, value) for value in BIRTH_DATES),
    ],
)
def test_found_wherever_it_stands_and_nothing_of_it_is_left(
    kind: PiiKind, value: str, frame: str
) -> None:
    masked, kinds = redact(normalise(frame.replace("{}", value, 1).replace("{}", "bye")))
    assert kinds == (kind.value,)
    assert kind.placeholder in masked
    assert not any(character.isdecimal() or character == "@" for character in masked)


@pytest.mark.parametrize("text", SSN_MESSAGES)
def test_nine_digits_count_as_an_ssn_where_they_are_called_one(text: str) -> None:
    masked, kinds = redact(text)
    assert kinds == ("ssn",)
    assert not any(map(str.isdigit, masked))


@pytest.mark.parametrize("text", PHONE_MESSAGES)
def test_a_short_number_counts_as_a_phone_where_it_is_called_one(text: str) -> None:
    assert redact(text)[1] == ("phone",)


@pytest.mark.parametrize(
    "text",
    [
        "I was charged $1,234.56 on 12/03/2024",
        "order 48213",
        "where is order number 2025550143?",
        "order #2025550143 has not arrived",
        "tracking number 1Z999AA10123456784",
        "you are open 24/7, right?",
        "my card ending 1234 was declined",
        "the card ending in 1234 expires 12/26",
        "at 10:30 on 2024-05-01, again at 18:45:10",
        "2024-05-01 12:30 and 2024-05-01 13:30",
        "between 01.02.2024 and 03.02.2024",
        "the flight on 3-4-2025 was BA2490, seat 14C",
        "I sent 150000 dollars from my account",
        "my account has been short of 250000 euros since 12/03/24",
        "I owe 1.234.567,89 EUR and 12 345 678 points",
        "$2025550143 is a lot of money",
        "the balance went from 1000 to 2000 to 3000",
        "app version 10.15.7.1, build 19284",
        "I have an account. No 5 is alive.",
        "10000 in the account no one can see",
        "my account number is not working since 12/03/2024",
        "which customer id do you need?",
        "what is the sort code of your branch?",
        "I ordered it at amazon.com",
        "I was at the shop. Company policy says no.",
        "@firstline help me, I am @ home",
        "536904399 is on the label of the parcel",
        "000-12-3456 is not issued, 666-12-3456 neither",
        "order 4111111111111112 has not arrived",
        "0000000000000000",
        "I bought 2 tickets to St Louis",
        "the 3 new stores on Main Street",
        "it is a 24 hour drive from here",
        "a 2 way street and a 4 lane highway",
        "gate 12, please close it",
        "in 2024 I moved house",
        "I moved 300 gbp to another place",
        "send via PayPal 2 days ago",
        "my email address is wrong in 2 places",
        "ship my 3 orders home on the way",
        "flight BA2490 seat 14C on 12 May 2024",
        "iphone s8 64gb for 300",
        "During 2020 I moved",
        "call me in 10 minutes or dial 1234",
        "the PIN was entered 3 times",
        "I was there in 1984 and born to run",
        "error code 500123",
        "[CARD] and [ACCOUNT] number, [PHONE] call [EMAIL], [ADDRESS] [BIRTH_DATE] [NUMBERS]",
    ],
)
def test_left_alone(text: str) -> None:
    assert redact(text) == (text, ())


def test_the_words_around_a_finding_survive() -> None:
    text = (
        "Pay GB82 WEST 1234 5698 7654 32 please from 4111 1111 1111 1111 12/26, or ring 2025550143!"
    )
    assert redact(text) == (
        "Pay [IBAN] please from [CARD] 12/26, or ring [PHONE]!",
        ("card", "iban", "phone"),
    )


@pytest.mark.parametrize("corpus", [DEV, HELD_OUT], ids=["dev", "held out"])
def test_of_a_thousand_planted_messages_hardly_one_is_missed(corpus: Corpus) -> None:
    missed = [
        (planted.kind, planted.spelling)
        for planted in plant(corpus, 1000, 7, fair=True)
        if survives(planted, redact(normalise(planted.text))[0])
    ]
    assert len(missed) <= 5, missed


def test_more_digits_than_anyone_writes_are_all_masked_unread() -> None:
    text = (
        "the statement: " + "12.50 coffee, " * 40 + "my card is 4111x1111x1111x1111, jo@example.com"
    )
    masked, kinds = redact(text)
    assert kinds == ("email", "numbers")
    assert not any(map(str.isdigit, masked))
    assert masked.count("coffee") == 40


def test_several_numbers_after_one_context_word() -> None:
    assert redact("account numbers 12345678, 23456789 and 34567890")[0] == (
        "account numbers [ACCOUNT], [ACCOUNT] and [ACCOUNT]"
    )


def test_a_finding_points_into_the_text_and_holds_none_of_it() -> None:
    text = "é – mail jo@example.com"  # noqa: RUF001
    (finding,) = find(text)
    assert text[finding.start : finding.end] == "jo@example.com"
    assert {field.name for field in dataclasses.fields(Finding)} == {"kind", "start", "end"}


def test_prepare_marks_the_message_as_pinned() -> None:
    message = prepare("  my card:\n4111 1111\t1111 1111 ")
    assert message.text == "my card: [CARD]"
    assert message.pinned == "pii_pinned"


# --- Properties ----------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *CARDS, *IBANS, *SSNS, *EMAILS, *PHONES, *ACCOUNTS, *ADDRESSES, *BIRTH_DATES,
        *SSN_MESSAGES, "[CARD]", "[ACCOUNT]", "[ADDRESS]", "street", "12 Main", "flat 3", "address",
        "account", "account number", "customer", "card", "ssn", "call me", "at", "dot", "com", "@",
        "is", "my", "and", "order", "+", "(", ")", "-", "/", ".", ",", "0", "1", "12", "123456",
        "2024-05-01", "10:30", "$", "gb82", "jo",
    ]
)  # fmt: skip
MESSAGES = st.one_of(
    st.text(max_size=200),
    st.text(alphabet="0123456789 .-/()+@atdoc[]", max_size=120),
    st.lists(PIECES, max_size=12).map(" ".join),
    st.lists(PIECES, max_size=12).map("".join),
)


@given(MESSAGES)
@example("[CARD] number 123456")
@example("card 4111111111111111 number 123456")
def test_redact_leaves_nothing_to_find_and_is_idempotent(raw: str) -> None:
    text = normalise(raw)
    masked, kinds = redact(text)
    assert find(masked) == []
    assert redact(masked) == (masked, ())
    assert bool(kinds) == (masked != text)
    assert list(kinds) == sorted(set(kinds))
    assert normalise(masked) == masked


@given(MESSAGES)
def test_findings_are_ordered_disjoint_and_within_the_text(text: str) -> None:
    edges = [edge for finding in find(text) for edge in (finding.start, finding.end)]
    assert edges == sorted(edges)
    assert all(finding.start < finding.end for finding in find(text))
    assert not edges or (edges[0] >= 0 and edges[-1] <= len(text))


@given(
    st.text(max_size=200).filter(
        lambda text: (
            "@" not in text
            and "at" not in normalise(text).lower()
            and not any(character.isdecimal() for character in normalise(text))
        )
    )
)
def test_without_digits_or_an_at_sign_there_is_nothing_to_find(text: str) -> None:
    assert redact(text) == (text, ())


@pytest.mark.parametrize(
    "unit",
    [
        "1", "1 ", "4 ", "0-", "1.", "aa11 ", "GB82 WEST 1234 ", "2025550143 ", "07700 ", "+1 ",
        "a.", "a@", "a at b dot ", "a dot ", "(at)", "account is my ", "ssn it's ", "12-34-", "(0)",
        "account number 12345 and ", "order is my ", "4111111111111112 ", "+44 7700 900123,",
        "\u0661", "_at_", "- at ", "* ", "a", "a ", "é ", "12 Aa Aa ", "my address is ", "live at ",
        "rue de la ", "98765 43210 x ", "Via Aa ", "flat 1, ",
    ],
)  # fmt: skip
def test_hostile_characters_take_no_more_than_their_length(unit: str) -> None:
    """Four times the length takes four times as long; what backtracks takes sixteen at least."""
    for end in "", " 12345 end":
        texts = [(unit * size)[: size - len(end)] + end for size in (2_500, 10_000)]
        # In turns, and the quickest of five: the machine may be busy, or slow for a while.
        turns = [[_cpu_s(text) for text in texts] for _ in range(5)]
        short_s, long_s = (min(turn[i] for turn in turns) for i in range(2))
        assert long_s < 8 * short_s
        assert long_s < 0.5


def _cpu_s(text: str) -> float:
    started = time.thread_time()
    redact(text)
    return time.thread_time() - started


def test_threads_agree() -> None:
    texts = [*CARDS, *IBANS, *SSNS, *EMAILS, *PHONES, *ACCOUNTS] * 5
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(redact, texts)) == [redact(text) for text in texts]
