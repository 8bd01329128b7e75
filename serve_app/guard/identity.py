"""Where identity numbers of other countries stand in a text: by their shape and checksum, or by
their name.

python-stdnum knows the checksums. A number whose shape is its own (a Spanish DNI, a Brazilian CPF,
an Italian codice fiscale) is believed anywhere; one that any nine digits might be (a Dutch BSN) is
believed next to its name, and there also mistyped. US social security numbers: numbers.py.
"""

import re
from collections.abc import Callable
from typing import Final

from stdnum.be import nn
from stdnum.ch import ssn
from stdnum.de import idnr
from stdnum.dk import cpr
from stdnum.es import dni, nie
from stdnum.fi import hetu
from stdnum.fr import nir
from stdnum.ie import pps
from stdnum.in_ import aadhaar, pan
from stdnum.it import codicefiscale
from stdnum.mx import curp
from stdnum.no import fodselsnummer
from stdnum.pt import cc
from stdnum.se import personnummer
from stdnum.us import itin

from serve_app.guard.context import FILL, NUMBER_WORD, START, Spans, is_reference

# ---- by shape -----------------------------------------------------------------------------------

_ALWAYS: Final = lambda number: True  # noqa: E731 - written as nothing else is, so mistyped ones too


def _shape(
    pattern: str, is_valid: Callable[[str], bool]
) -> tuple[re.Pattern[str], Callable[[str], bool]]:
    return re.compile(rf"{pattern}(?![\w])(?![.-]\d)", re.I), is_valid


_NOT_INSIDE: Final = r"(?<![\w][-./]\d)(?<![\w]\d)"
_DIGIT: Final = rf"\d{_NOT_INSIDE}"  # the digit first, so that the search skips to digits
_SHAPES: Final = (
    _shape(rf"{_DIGIT}\d{{7}}[ -]?[a-hj-np-tv-z]", dni.is_valid),
    _shape(rf"{_DIGIT}\d{{6}}[a-w][abhwtx]?", pps.is_valid),
    _shape(rf"{_DIGIT}\d\d\.\d{{3}}\.\d{{3}}-\d\d", _ALWAYS),  # BR: CPF
    _shape(rf"{_DIGIT}\d\.\d\d\.\d\d-\d{{3}}\.\d\d", _ALWAYS),  # BE: national number
    _shape(rf"{_DIGIT}\d{{10}}", lambda n: nn.is_valid(n) or fodselsnummer.is_valid(n)),
    _shape(rf"{_DIGIT}\d(?: ?\d{{3}}){{3}}", idnr.is_valid),
    _shape(rf"{_DIGIT}\d{{5}} \d{{5}}", fodselsnummer.is_valid),
    _shape(rf"{_DIGIT}\d{{5}}-\d{{4}}", lambda n: cpr.is_valid(n) or personnummer.is_valid(n)),
    _shape(rf"{_DIGIT}(?:\d\d)?\d{{5}}[+-]\d{{4}}", personnummer.is_valid),
    _shape(rf"{_DIGIT}\d{{5}}[a+-]\d{{3}}[\da-y]", hetu.is_valid),
    _shape(rf"[12]{_NOT_INSIDE} ?\d\d ?\d\d ?(?:\d\d|2[ab]) ?\d{{3}} ?\d{{3}} ?\d\d", nir.is_valid),
    _shape(
        rf"[2-9]{_NOT_INSIDE}(?<!\d[ -]\d)\d{{3}}([ -])\d{{4}}\1\d{{4}}(?![ -]\d)", aadhaar.is_valid
    ),
    _shape(rf"7{_NOT_INSIDE}56[. ]?\d{{4}}[. ]?\d{{4}}[. ]?\d\d", ssn.is_valid),
    _shape(rf"9{_NOT_INSIDE}\d\d-\d\d-\d{{4}}", itin.is_valid),
    _shape(rf"{_DIGIT}\d{{7}} ?\d ?[a-z\d]{{2}}\d", cc.is_valid),
)
# Those that start with a letter.
_LETTER_SHAPES: Final = (
    _shape(r"\b[xyz][ -]?\d{7}[ -]?[a-z]", nie.is_valid),
    _shape(r"\b(?-i:[A-Z]{3}[ABCFGHJLPT][A-Z]\d{4}[A-Z])", pan.is_valid),
    _shape(r"\b[a-z]{6}[\dlmnp-v]{2}[a-ehlmprst][\dlmnp-v]{2}[a-z][\dlmnp-v]{3}[a-z]",
           codicefiscale.is_valid),
    _shape(r"\b[a-z]{4}\d{6}[hmx][a-z]{5}[a-z\d]\d", curp.is_valid),
)  # fmt: skip
_LETTER_THEN_DIGITS: Final = re.compile(r"[a-zA-Z](?<!\w\w)[a-zA-Z]{0,5}[ -]?\d")
# Digits: of what starts with one, of what starts with a letter (the Indian PAN has four), and of a
# number that is called an identity number.
_SHORTEST: Final = 7
_SHORTEST_OF_LETTERS: Final = 4


# ---- by name ------------------------------------------------------------------------------------

# Words of their own, and those that mean something else in small letters or some other language.
_NAMED: Final = (
    r"(?:steuer-?id(?:entifikationsnummer|-?nr\.?)?|steuer(?:nummer|-?nr\.?)|idnr\b\.?|svnr\b|sv-?(?:nummer|nr)|"
    r"(?:sozial|renten)?versicherungs(?:nummer|-?nr\.?)|(?:personal)?ausweis(?:nummer|-?nr\.?)?|"
    r"s[ée]curit[ée] sociale|num[ée]ro (?:de )?(?:s[ée]cu|national|fiscal)|n[ºo°] (?:de )?s[ée]cu|"
    r"dni\b|n\.?i\.?f\b|documento(?: (?:nacional )?de identidad)?|codice fiscale|c\.f\.|"
    r"carta d'identit[àa]|burgerservicenummer|bsn(?:-?nummer)?\b|sofinummer|contribuinte|"
    r"cart[ãa]o de cidad[ãa]o|pesel\b|dow[óo]d(?: osobisty)?|person(?:nummer|nr|nummeret)\b|"
    r"cpr(?:-?(?:nummer|nr))?\b|f[øo]dselsnummer(?:et)?|henkil[öo]tunnu\w{1,6}|hetu(?:ni)?\b|"
    r"rijksregister(?:nummer)?|nis[sz]\b|insz\b|ahv(?:-?(?:nummer|nr))?\b|(?-i:AVS)\b|cpf\b|"
    r"(?-i:RG)\b|curp\b|aadh?aar(?: card)?|(?-i:UID)\b|(?-i:PAN)\b|permanent account|nhs\b|"
    r"utr\b|unique taxpayer|(?-i:SIN)\b|social insurance|tfn\b|tax file|ppsn?\b|ni[pf]\b|"
    r"(?-i:N[IS][ERS]|NSS|TIN|EIN)\b|itin\b|n[úu]mero (?:de )?contribuinte|medicare|"
    r"(?:tax(?:payer)?|fiscal|identity|identification|national(?: id(?:entity)?)?|id)"
    r"(?= (?:card )?(?:number|no\b|nr\b|id\b|reference|code)))"
)
_NAME: Final = re.compile(
    rf"{START}{_NAMED}(?: card)?(?:'?s)?\.? ?(?:{NUMBER_WORD}|reference|nummer|n[ºo°]\.?)?{FILL}"
    r"(?P<value>[a-z]{0,6}[ -]?\d\w{0,20}"
    r"(?:[ ./+-]{1,2}(?=[a-z]{0,2}\d|[a-z]{1,2}\b)\w{1,20}){0,8})"
    r"(?!\w)",
    re.I,
)
# One of these stands in whatever _NAME finds: to look for them costs a tenth of it.
_HINTS: Final = (
    "steuer", "idnr", "svnr", "sv-", "svnum", "versicherung", "ausweis", "sociale", "ro ",
    "sécu", "secu",
    "dni",
    "nif", "n.i.f", "document", "codice", "c.f.", "carta", "bsn", "service", "sofi", "contribu",
    "cidad", "pesel", "dow", "person", "cpr", "dselsnummer", "tunn", "hetu", "register", "nis",
    "insz", "ahv", "avs", "cpf", "rg", "curp", "aadh", "uid", "pan", "permanent", "nhs", "utr",
    "unique", "sin", "insurance", "tfn", "tax", "pps", "nip", "nie", "nir", "nss", "tin", "ein",
    "medicare", "fiscal", "ident", "national", "id ",
)  # fmt: skip
_AFTER: Final = re.compile(
    rf"{START}(?P<value>[a-z]?\d\w{{4,20}}(?:[ -]\d\w{{1,12}}){{0,4}}){FILL}{_NAMED}", re.I
)
_FEWEST: Final = 5


def identities(text: str, lowered: str, digits: int) -> Spans:
    """Args: lowered: the text in small letters; digits: how many of them it has."""
    if digits >= _SHORTEST:
        yield from _shaped(text, _SHAPES)
    if digits >= _SHORTEST_OF_LETTERS and _LETTER_THEN_DIGITS.search(text) is not None:
        yield from _shaped(text, _LETTER_SHAPES)
    if digits >= _FEWEST and any(map(lowered.__contains__, _HINTS)):
        for pattern in (_NAME, _AFTER):
            for match in pattern.finditer(text):
                if sum(map(str.isdecimal, match["value"])) >= _FEWEST:
                    yield match.span("value")


def _shaped(text: str, shapes: tuple[tuple[re.Pattern[str], Callable[[str], bool]], ...]) -> Spans:
    for pattern, is_valid in shapes:
        for match in pattern.finditer(text):
            if is_valid(match.group()) and not is_reference(text, match.start()):
                yield match.span()
