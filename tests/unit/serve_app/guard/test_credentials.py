"""Secrets: which words give them away, and which sentences about them hold none."""

import pytest

from serve_app.guard.pii import redact
from serve_app.guard.prepare import normalise

_BODY = "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("my password is hunter2", "hunter2"),
        ("my password is marmalade.", "marmalade"),
        ("Passwort: Elefant7!", "Elefant7!"),
        ('the password is "correct horse battery"', "correct horse battery"),
        ("mon mot de passe est S3cret!", "S3cret!"),
        ("login jo / password Tr0ub4dor&3", "Tr0ub4dor&3"),
        ("the verification code you sent is 483920", "483920"),
        ("my OTP: 48 39 20", "48 39 20"),
        ("my OTP is 4 8 3 9 2 0", "4 8 3 9 2 0"),
        ("483920 is your security code", "483920"),
        ("der Bestätigungscode lautet 483920", "483920"),
        ("use 483920 to verify", "483920"),
        ("Password - hunter2", "hunter2"),
        ("the password I use is hunter2", "hunter2"),
        ("my passwrd is hunter2", "hunter2"),
        ("code 483920 does not work", "483920"),
        ("the SMS says 483920", "483920"),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCY", "wJalrXUtnFEMI"),
        ("my 12 words are " + "abandon ability able about above absent " * 2, "abandon"),
        (f"ghp_{_BODY}", _BODY),
        (f"sk_live_{_BODY} fails", _BODY),
        ("key AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
        (f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIx.{_BODY}", _BODY),
        (f"my API key is {_BODY}", _BODY),
        (f"Authorization: Bearer {_BODY}", _BODY),
        (f"-----BEGIN RSA PRIVATE KEY-----\n{_BODY}\n-----END RSA PRIVATE KEY-----", _BODY),
        (f"-----BEGIN PRIVATE KEY-----\n{_BODY}\n{_BODY}", _BODY),
        ("seed phrase: " + "abandon ability able about above absent " * 2, "abandon"),
    ],
)
def test_secrets_are_masked(text: str, secret: str) -> None:
    masked, kinds = redact(normalise(f"Hello, {text}"))
    assert "secret" in kinds
    assert secret not in masked
    assert masked.startswith("Hello, ")


@pytest.mark.parametrize(
    "text",
    [
        "my password is not working", "the password is wrong", "I forgot my password.",
        "password reset please", "my password was changed by someone", "is my password safe?",
        "change my password to something else", "how do I set a new passcode?",
        "the verification code never arrived, I waited 20 minutes", "error code 500123",
        "promo code 20264 gives 10%", "what is the code for?", "my passport is expired",
        "I lost my recovery phrase and the support does not help me with the wallet at all",
        "the API key page is empty", "a token of appreciation", "key-value-store-configuration",
        "sk-learn and scikit-learn-contrib-packages", "the secret is that nobody knows about it",
    ],
)  # fmt: skip
def test_sentences_about_secrets_are_left(text: str) -> None:
    assert redact(text) == (text, ())
