"""Decoded views: what is written in escapes is found, and masked where it stands."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serve_app.guard.pii import redact
from serve_app.guard.prepare import normalise
from serve_app.guard.views import views

PIECES = st.sampled_from(
    ["%40", "%2540", "%C3%A9", "%FF", "%", "&#64;", "&#x40;", "&commat;", "&amp;#64;", "&bogus;",
     "&#99999999;", "&#65018;", "\\u0040", "\\\\u0040", "\\x40", "\\ud835\\udfce", "\\ud835", "\\",
     "=40", "=", "= ", "+", "1", "jo", "mail.example", " ", "\ufdfa", "é"]
)  # fmt: skip
TEXTS = st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=20).map("".join))


@pytest.mark.parametrize(
    ("text", "masked", "kind"),
    [
        ("reset?email=jo.marsh%40mail.example&x=1", "reset?email=[EMAIL]&x=1", "email"),
        ("reset?email=jo.marsh%2540mail.example", "reset?email=[EMAIL]", "email"),
        ("jo.marsh&#64;mail.example", "[EMAIL]", "email"),
        ("jo.marsh&#x40;mail.example", "[EMAIL]", "email"),
        ("jo.marsh&commat;mail&period;example", "[EMAIL]", "email"),
        ("jo.marsh&amp;#64;mail.example", "[EMAIL]", "email"),
        ("tel=%2B44%207700%20900123", "tel=[PHONE]", "phone"),
        ("tel=%2B44+7700+900123", "tel=[PHONE]", "phone"),
        ("tel:+44-7700-900123", "tel:[PHONE]", "phone"),
        ("mailto:jo.marsh@mail.example?subject=x", "mailto:[EMAIL]?subject=x", "email"),
        ("jo.marsh=40mail.example", "[EMAIL]", "email"),
        ("jo.marsh%u0040mail.example", "[EMAIL]", "email"),
        ("jo.marsh\\U00000040mail.example", "[EMAIL]", "email"),
        ("From: =?utf-8?B?am8ubWFyc2hAbWFpbC5leGFtcGxl?= re", "From: [EMAIL] re", "email"),
        ("tel=+44+7700+900123", "tel=[PHONE]", "phone"),
        ("https://wa.me/447700900123", "https://wa.me/[PHONE]", "phone"),
        ("jo.marsh@mail.exa=\nmple", "[EMAIL]", "email"),
        ('{"user": "jo.marsh\\u0040mail.example"}', '{"user": "[EMAIL]"}', "email"),
        ("paid by 4111%201111%201111%201111", "paid by [CARD]", "card"),
        ("%34%31%31%31%20%31%31%31%31%20%31%31%31%31%20%31%31%31%31", "[CARD]", "card"),
        ("card=%EF%BC%94111 1111 1111 1111", "card=[CARD]", "card"),
        ("password%3A%20hunter2", "password[SECRET]", "secret"),
    ],
)
def test_what_is_written_in_escapes_is_masked_whole(text: str, masked: str, kind: str) -> None:
    assert redact(normalise(text)) == (masked, (kind,))


@pytest.mark.parametrize(
    "text",
    [
        "save 50%20 off", "a&b", "AT&T; me", "100% of =20 or more", "C:\\new\\table",
        "https://shop.example/?q=red%20shoes&page=2", "a + b = c", "x%zz &#; \\u00",
    ],
)  # fmt: skip
def test_escapes_of_nothing_personal_are_left(text: str) -> None:
    assert redact(normalise(text)) == (normalise(text), ())


def test_a_link_is_not_read_as_a_mail() -> None:
    """`=41` is an "A" in a mail; the card that begins with 41 would have lost its first digits."""
    assert redact("card=4111%201111%201111%201111")[0] == "card=[CARD]"


@given(TEXTS)
@example("%%%2525252540")
@example("= = =40")
def test_a_view_is_no_longer_than_its_text_and_leads_back(text: str) -> None:
    for view in views(text):
        assert len(view.text) <= len(text)
        last = 0
        for place in range(len(view.text)):
            start, end = view.span(place, place + 1)
            assert last <= start < end <= len(text)
            last = end
            if end == start + 1 and text[start:end] not in "+=\\":
                assert view.text[place] == text[start]
