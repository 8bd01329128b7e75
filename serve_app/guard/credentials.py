"""Where secrets stand in a text: passwords, one-time codes, tokens, private keys, recovery phrases.

A token or a key is known by its public prefix or its header; a password, a code and a phrase by the
words before it. A password that nothing names is any word, and is not found.
"""

import re
from typing import Final

from serve_app.guard.context import FILL, START, Spans, values

# ---- passwords ----------------------------------------------------------------------------------

_NAMES: Final = (
    r"(?:pass ?(?:word|code|phrase|wort)s?|pass?w(?:or|r|ro|ar)d|passowrd|"
    r"passwd|pwd|pw|(?<=my )pass|pass(?= ?[:=])|kennwort|"
    r"contrase(?:ñ|n)a|clave|"
    r"mot de passe|senha|palavra-passe|wachtwoord|lösenord(?:et)?|adgangskode|passord(?:et)?|"
    r"salasana(?:ni)?|has[łl]o)\b"
)
_IS: Final = (
    r"(?: ?[:=] ?| - | (?:is|was|ist|war|lautet|es|era|est|è|é|jest|är|er|on)(?::? | ?= ?))"
)
_QUOTES: Final = "\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb"
_SECRET: Final = (
    rf"(?P<value>[{_QUOTES}][^{_QUOTES}\[\]]{{3,64}}[{_QUOTES}]|[^\s\[\]<>,;{_QUOTES}]{{4,64}})"
)
_ABOUT: Final = (
    r"(?: (?:for|of|to|on|in|at) (?:(?:my|the|your|our|this|that) )?"
    r"(?:[\w-]{1,20} ){0,3}?[\w-]{1,20})?"
)
_CALLED: Final = re.compile(
    rf"{START}{_NAMES}{_ABOUT}{_IS}(?:(?:now|still|just|currently|set to) )?{_SECRET}",
    re.I,
)
_CHANGED: Final = re.compile(
    rf"\b(?:changed?|set|reset|updated?) (?:the|my|our|its|this) {_NAMES}{_ABOUT} to {_SECRET}",
    re.I,
)
_BESIDE: Final = re.compile(rf"{START}{_NAMES} ?{_SECRET}", re.I)
# With any words between, what follows must look like a password.
_FAR: Final = re.compile(rf"{START}{_NAMES}(?: [\w'-]{{1,20}}){{1,6}}?{_IS}{_SECRET}", re.I)
_SYMBOL: Final = re.compile(r"[^\w'’-]")  # noqa: RUF001
# What follows "my password is" and is none; and everything in -ed and -ing.
_OTHER_WORDS: Final = (
    "wrong incorrect invalid correct right fine good okay valid weak strong short long simple "
    "same different gone lost known unknown unsafe secure safe stolen broken stuck missing "
    "available unavailable always never often still just only also already really very quite "
    "rather actually apparently probably maybe perhaps definitely currently temporarily "
    "suddenly again needed necessary mandatory optional impossible possible easy hard difficult "
    "there here that this what where when which something anything nothing everything someone "
    "about because based case kept sent done forgotten mine yours ours theirs with without from "
    "into like than then they your more less most least being does doesn't isn't please help "
    "error unable able falsch richtig weg nicht leider incorrecta incorrecto incorrecte erroné "
    "correcta correcto verkeerd fout niet feil felaktigt vergessen abgelaufen oublié pero mais "
    "aber maar before after until unless while during under over hopeless useless pointless "
    "enough empty public shared personal private default temporary permanent "
)
_NO_PASSWORD: Final = frozenset(_OTHER_WORDS.split())


def _passwords(text: str) -> Spans:
    for pattern in (_CALLED, _CHANGED):
        for match in pattern.finditer(text):
            if span := _password(text, *match.span("value"), plain=True):
                yield span
    for pattern in (_BESIDE, _FAR):
        for match in pattern.finditer(text):
            if span := _password(text, *match.span("value"), plain=False):
                yield span


def _password(text: str, start: int, end: int, *, plain: bool) -> tuple[int, int] | None:
    """The value without the sentence's punctuation, if it may be a password.

    Args:
        plain: whether a word of small letters may be one.
    """
    value = text[start:end]
    if value[0] in _QUOTES:
        return (start, end) if plain or any(map(str.isdecimal, value)) else None
    value = value.rstrip(".,:)/?")
    end = start + len(value)
    if len(value) < 4:
        return None
    has_digit = any(map(str.isdecimal, value))
    has_letter = any(map(str.isalpha, value))
    odd = _SYMBOL.search(value.rstrip("!")) is not None or not value[1:].islower()
    if not plain:
        return (start, end) if (has_digit and has_letter) or (odd and has_digit) else None
    if has_digit or (has_letter and odd and not value.isupper()):
        return start, end
    word = value.lower().rstrip("!")
    if not word.isalpha() or word in _NO_PASSWORD or word.endswith(("ed", "ing", "ly")):
        return None
    return start, end


# ---- one-time codes -----------------------------------------------------------------------------

_CODE: Final = (
    r"(?:(?:verification|security|confirmation|authenti(?:cation|cator)|activation|log-?in|"
    r"sign-?in|access|one[- ]time|two[- ]factor|2-?step|2fa|mfa|sms|text|otp|recovery|backup|"
    r"reset|unlock)[ -](?:pass)?(?:code|pin|password|number|key)s?|m?otp|m?(?-i:TAN)|(?-i:PUK)|"
    r"(?:bestätigungs|sicherheits|verifizierungs|anmelde|einmal|sms-)code|"
    r"code de (?:v[ée]rification|confirmation|s[ée]curit[ée]|validation)|"
    r"c[óo]digo de (?:verificaci[óo]n|confirmaci[óo]n|seguridad|verifica[çc][ãa]o|seguran[çc]a)|"
    r"codice di (?:verifica|conferma|sicurezza)|(?:verificatie|bevestigings|beveiligings)code|"
    r"kod (?:weryfikacyjny|potwierdzaj[ąa]cy)|"
    r"(?:verifikations|bekr[æe]ftelses|s[äa]kerhets)kode?n?|"
    r"(?<!promo )(?<!zip )(?:my|your|the|a|this|that|der|le|el|il)(?: last| new)? code)\b"
)
_SAID: Final = (
    r"(?:[\s:=#.,;\"'()<>*-]|\b(?:is|was|are|as|for|my|with|you|guys|i|we|they|he|she|it|your|the|"
    r"this|that|which|of|at|on|in|by|via|to|from|me|us|and|but|sent|texted|mailed|gave|got|get|"
    r"received|have|has|had|came|come|just|sms|text|message|e?-?mail|phone|app|says|said|shows|"
    r"showed|reads|read|now|here|below|entered|enter|typed|tried|used|using|use|number|no|nr|"
    r"ist|lautet|est|es|è|é|jest|är|er)\b){0,16}"
)
_DIGITS: Final = (
    r"(?:[a-z]-)?(?:\d{3}[ -]\d{3}|\d{4} \d{2,4}|\d\d(?:[ -]\d\d){2,3}|\d(?:[ -]\d){3,7}|\d{4,8})"
    r"(?![\d%]|[.,:/]\d| ?(?:usd|eur|gbp|[$€£]))"
)
_CODES: Final = (
    re.compile(rf"{START}{_CODE}{_SAID}(?P<value>{_DIGITS})", re.I),
    # "code 483920", but "error code 500123" is no secret.
    re.compile(r"(?<![a-z\d] )\bcode:? (?P<value>\d{6})(?![\d%]|[.,:/]\d)", re.I),
    re.compile(
        r"\b(?:sms|text|message|authenticator|app) (?:\w{1,12} ){0,2}?"
        r"(?:says|said|shows|showed|shown|reads|contains|contained) (?:the |this )?(?:code )?"
        rf"(?P<value>{_DIGITS})",
        re.I,
    ),
    # An alphanumeric one, where it is called one outright.
    re.compile(
        rf"{START}{_CODE}(?: ?[:=] ?| (?:is|was|ist|lautet) | )"
        r"(?P<value>(?=[a-z-]{0,9}\d)(?=[\da-z-]*[a-z])[\da-z-]{4,12})(?![\w-])",
        re.I,
    ),
    re.compile(
        rf"(?<![\w.,/-])(?P<value>{_DIGITS}) (?:is|was|as) (?:(?:your|my|the|a|our) )?"
        rf"(?:[\w'-]{{1,20}} ){{0,2}}?{_CODE}",
        re.I,
    ),
    re.compile(
        rf"\b(?:got|received|sent|texted|gave|entered?|typed|use|with) (?:(?:me|us|you|in) )?"
        rf"(?:(?:the|a|this|that|my) )?code{_SAID}(?P<value>{_DIGITS})",
        re.I,
    ),
    re.compile(
        rf"\bcode (?P<value>{_DIGITS}) (?:by|via|in|from) (?:an? )?(?:sms|text|e?-?mail|app)", re.I
    ),
    re.compile(
        rf"\b(?:use|enter) (?P<value>{_DIGITS}) to (?:verify|confirm|log|sign|authenticate)", re.I
    ),
)

# ---- tokens and keys ----------------------------------------------------------------------------

_BODY: Final = r"[A-Za-z0-9_-]"
# A digit, or small and capital letters, as chance has them and words have not.
_RANDOM: Final = rf"(?={_BODY}{{0,40}}?(?:\d|[a-z]{_BODY}{{0,20}}?[A-Z]))"
# Public prefixes, as the issuers (and secret scanners such as GitHub's and gitleaks') list them.
_TOKEN: Final = re.compile(
    r"(?<![A-Za-z0-9])(?P<value>"
    rf"(?:gh[pousr]_|github_pat_|gl(?:pat|ptt|dt|rt|cbt|ft|soat|agent)-|sk-|[srp]k_(?:live|test)_|"
    rf"whsec_|xox[abeoprs]-|xapp-|npm_|pypi-|hf_|AIza|ya29\.|shp(?:at|ca|pa|ss)_|do[por]_v1_|"
    rf"dckr_(?:pat|oat)_|ATATT|ATBB|lin_api_|sq0(?:atp|csp)-|EAAC|key-|rpa_|r8_|gsk_|xai-|pat_|"
    rf"secret_|ntn_|NRAK-|dapi|hvs\.|vault:|PMAK-|figd_|sbp_|fo1_|tskey-|AGE-SECRET-KEY-)"
    rf"{_RANDOM}{_BODY}{{16,}}(?:\.{_BODY}+)*"
    r"|(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}(?![A-Za-z0-9])"
    rf"|eyJ{_BODY}{{8,}}\.(?:eyJ)?{_BODY}{{4,}}(?:\.{_BODY}*)?"
    rf"|SG\.{_BODY}{{16,}}(?:\.{_BODY}+)?"
    rf"|\d{{8,10}}:A{_BODY}{{33,}}"
    r")"
)
_NAMED_TOKEN: Final = re.compile(
    rf"(?<![a-z0-9\[])(?:(?:api|access|secret|auth|client|refresh|private|session|webhook|signing|"
    r"encryption|service|account|bot|deploy|license|aws|app)[ _-]?(?:access[ _-]?)?"
    r"(?:key|token|secret)|apikey|token|secret|bearer|password)s?\b(?:[ _-]id\b)?"
    rf"{FILL}(?P<value>(?=[A-Za-z0-9_/+=.~-]{{0,40}}\d)[A-Za-z0-9_/+=.~-]{{16,}})",
    re.I,
)
_KEY_BEGIN: Final = re.compile(r"-{2,5} ?BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)? ?-{2,5}", re.I)
_KEY_END: Final = re.compile(r"-{2,5} ?END [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)? ?-{2,5}", re.I)


def _private_keys(text: str) -> Spans:
    """From the header to the footer; to the end of the text where that was cut off."""
    done = 0
    while begin := _KEY_BEGIN.search(text, done):
        end = _KEY_END.search(text, begin.end())
        done = end.end() if end else len(text)
        yield begin.start(), done


# ---- recovery phrases ---------------------------------------------------------------------------

# Of BIP 39's 2,048 words (three to eight letters) none is among these, and most sentences have one.
_FUNCTION_WORD: Final = (
    r"(?:the|and|was|not|for|are|but|his|her|has|had|were|been|please|its|did|does|from|your|my|"
    r"which|they|them|there|their|would|could|isn|wasn|don|didn|doesn)\b"
)
_WORD: Final = rf"(?:\d{{1,2}}[.):]? ?)?(?!{_FUNCTION_WORD})[a-z]{{3,8}}"
_PHRASE: Final = re.compile(
    rf"{START}(?:(?:(?:secret )?recovery|seed|backup|mnemonic|wallet|(?:12|18|24)[ -]words?)"
    r"[ -](?:phrase|words?|seed|key)|(?:12|15|18|21|24) (?:\w{4,8} )?words|"
    r"mnemonic(?: phrase)?|seedphrase|seed)\b"
    r"(?:[\s:=#.,;\"'()<>*-]|\b(?:is|are|was|were|the|my|here|as|follows|in|order|for|wallet|of|"
    r"these|this|it|to)\b){0,12}"
    rf"(?P<value>{_WORD}(?:[,;]? {{0,2}}[,;]? {_WORD}){{10,24}}(?![\w]))",
    re.I,
)

# ---- all of them --------------------------------------------------------------------------------

_CODE_HINTS: Final = (
    "code", "otp", "tan", "pin", "puk", "kod", "password", "digo", "n key", "y key", "s key",
    "p key", "t key", "k key", "n number", "y number", "s number", "use ",
    "enter ", "sms", "text", "message", "authent",
)  # fmt: skip
_SHORTEST_CODE: Final = 4
_NAMED_HINTS: Final = ("token", "secret", "key", "bearer", "password")
_LONG: Final = re.compile(r"[A-Za-z0-9_-]{16}")


def names_a_secret(lowered: str) -> bool:
    """Whether a text in small letters names a password or a recovery phrase, which have no digit.

    Spelled out, since every message comes through here: a loop over the words takes twice as long.
    """
    return (
        "pass" in lowered or "pw" in lowered or "kennw" in lowered or "contrase" in lowered
        or "clave" in lowered or "senha" in lowered or "wachtw" in lowered or "lösen" in lowered
        or "adgang" in lowered or "salas" in lowered or "hasł" in lowered or "haslo" in lowered
        or "seed" in lowered or "phrase" in lowered or "mnemonic" in lowered
        or "recovery" in lowered or " words" in lowered
    )  # fmt: skip


def may_have_token(text: str) -> bool:
    """Whether a text without a digit may have a token: few have none."""
    return "_" in text or "-" in text or "eyJ" in text or "AKIA" in text or "ASIA" in text


def secrets(text: str, lowered: str, digits: int) -> Spans:
    """Passwords, recovery phrases and codes.

    Args:
        lowered: the text in small letters.
        digits: how many of them it has.
    """
    if names_a_secret(lowered):
        yield from _passwords(text)
        yield from values(_PHRASE, text)
    if digits >= _SHORTEST_CODE and any(map(lowered.__contains__, _CODE_HINTS)):
        for pattern in _CODES:
            yield from values(pattern, text)


def tokens(text: str) -> Spans:
    """Tokens and private keys, of any length."""
    if _LONG.search(text) is not None:
        yield from values(_TOKEN, text)
        lowered = text.lower()
        if any(map(lowered.__contains__, _NAMED_HINTS)):
            yield from values(_NAMED_TOKEN, text)
        if "private key" in lowered:
            yield from _private_keys(text)
