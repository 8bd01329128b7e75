"""Messages with invented personal data: (corpus, count, seed) -> Planted, the same every time.

    DEV         looked at, failure by failure, while the detector was improved
    HELD_OUT    (planted_held_out.py) other spellings, frames and carriers; for final figures only

Nothing in it belongs to anyone: numbers are drawn at random under the rules of their kind, and
e-mail domains are reserved ones or a provider's with a made-up mailbox. A spelling that no one
would call fair to a pattern matcher is marked so and counted apart.
"""

import random
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from stdnum import iban, luhn
from stdnum.util import get_cc_module


@dataclass(frozen=True)
class Value:
    """Something invented, as written, and what of it must not survive masking.

    Args:
        digits: no four of these in a row may survive.
        words: compact strings (letters and digits, case folded), none of which may survive.
    """

    text: str
    digits: str = ""
    words: tuple[str, ...] = ()


Make = Callable[[random.Random], Value]


@dataclass(frozen=True)
class Spelling:
    """One way to write one kind. `own` frames replace the frames of the kind."""

    kind: str
    name: str
    make: Make
    own: tuple[str, ...] = ()
    fair: bool = True


@dataclass(frozen=True)
class Corpus:
    spellings: tuple[Spelling, ...]
    frames: Mapping[str, tuple[str, ...]]
    carriers: tuple[str, ...]


@dataclass(frozen=True)
class Planted:
    """A message, what was planted in it, and the rest of it."""

    kind: str
    spelling: str
    fair: bool
    text: str
    value: Value
    rest: str


def plant(
    corpus: Corpus, count: int, seed: int, carriers: Sequence[str] = (), fair: bool | None = None
) -> Iterator[Planted]:
    """`count` messages, spelling after spelling in turn, so that each has its share.

    Args:
        carriers: messages to plant in, in place of the corpus's own.
        fair: only the fair spellings, or only the others.
    """
    rng = random.Random(seed)
    chosen = [s for s in corpus.spellings if fair is None or s.fair == fair]
    for number in range(count):
        spelling = chosen[number % len(chosen)]
        frame = rng.choice(spelling.own or corpus.frames[spelling.kind])
        carrier = rng.choice(carriers or corpus.carriers)
        yield _planted(rng, spelling, frame, carrier)


def _planted(rng: random.Random, spelling: Spelling, frame: str, carrier: str) -> Planted:
    value = spelling.make(rng)
    layout = rng.choice(("{0} {1}", "{1} {0}", "{0}\n{1}", "{1}. {0}", "{1}"))
    text = layout.format(carrier, frame.replace("{}", value.text))
    rest = layout.format(carrier, frame.replace("{}", " "))
    return Planted(spelling.kind, spelling.name, spelling.fair, text, value, rest)


# ---- whether it survived ------------------------------------------------------------------------

_WINDOW: Final = 4


def digits_of(text: str) -> str:
    """The digits of any script, in order, as ASCII."""
    known = unicodedata.normalize("NFKC", text)
    return "".join(str(unicodedata.decimal(c)) for c in known if c.isdecimal())


def compact(text: str) -> str:
    """Letters and digits only, case folded."""
    known = unicodedata.normalize("NFKC", text).casefold()
    return "".join(
        str(unicodedata.decimal(c)) if c.isdecimal() else c for c in known if c.isalnum()
    )


def needles(value: Value) -> tuple[str, ...]:
    """Every compact string that betrays a value: its words, and its digits as a whole."""
    return value.words + ((value.digits,) if value.digits else ())


def survives(planted: Planted, masked: str) -> bool:
    """Whether part of the value is left in the masked text that was not in the rest anyway."""
    left, rest = digits_of(masked), digits_of(planted.rest)
    digits = planted.value.digits
    windows = {digits[i : i + _WINDOW] for i in range(max(0, len(digits) - _WINDOW + 1))}
    if any(window in left and window not in rest for window in windows):
        return True
    left, rest = compact(masked), compact(planted.rest)
    return any(word in left and word not in rest for word in planted.value.words)


# ---- makers -------------------------------------------------------------------------------------


def fill(rng: random.Random, pattern: str) -> str:
    """`#` -> a digit, `%` -> 2-9, `@` -> a capital letter; the rest stays."""
    drawn = {"#": "0123456789", "%": "23456789", "@": "ABCDEFGHJKLMNPRSTUVWXYZ"}
    return "".join(rng.choice(drawn[c]) if c in drawn else c for c in pattern)


def number(*patterns: str) -> Make:
    """One of the patterns; its digits are the secret."""

    def make(rng: random.Random) -> Value:
        text = fill(rng, rng.choice(patterns))
        return Value(text, digits_of(text))

    return make


_BRANDS: Final = (
    ("4", 16), ("4", 16), ("51", 16), ("55", 16), ("2221", 16), ("2720", 16), ("34", 15),
    ("37", 15), ("36", 14), ("301", 14), ("6011", 16), ("65", 16), ("3530", 16), ("62", 16),
    ("5018", 16), ("6304", 19), ("4", 13),
)  # fmt: skip


def card_digits(rng: random.Random, length: int | None = None) -> str:
    """A number that the checksum fits, of any brand or of those with that length."""
    known = [brand for brand in _BRANDS if length in (None, brand[1])]
    prefix, total = rng.choice(known)
    body = prefix + fill(rng, "#" * (total - 1 - len(prefix)))
    return body + str(luhn.calc_check_digit(body))


def grouped(digits: str, separator: str, size: int = 4) -> str:
    if len(digits) == 15 and size == 4:  # as printed on the card: 4-6-5
        return separator.join((digits[:4], digits[4:10], digits[10:]))
    return separator.join(digits[i : i + size] for i in range(0, len(digits), size))


def card(separator: str, size: int = 4, length: int | None = None, zero: str = "0") -> Make:
    """Args: zero: the first digit of the script that it is written in."""
    table = {ord("0") + i: chr(ord(zero) + i) for i in range(10)}

    def make(rng: random.Random) -> Value:
        digits = card_digits(rng, length)
        return Value(grouped(digits, separator, size).translate(table), digits)

    return make


def mistyped_card(separator: str) -> Make:
    """The last digit is one too high."""

    def make(rng: random.Random) -> Value:
        right = card_digits(rng, 16)
        digits = right[:-1] + str((int(right[-1]) + 1) % 10)
        return Value(grouped(digits, separator), digits)

    return make


_BBANS: Final = {
    "DE": "#" * 18, "GB": "@@@@" + "#" * 14, "FR": "#" * 10 + "#@#@#######" + "##",
    "ES": "#" * 20, "IT": "@" + "#" * 22, "NL": "@@@@" + "#" * 10, "NO": "#" * 11, "CH": "#" * 17,
    "SE": "#" * 20, "PL": "#" * 24, "BE": "#" * 12, "IE": "@@@@" + "#" * 14, "AT": "#" * 16,
    "PT": "#" * 21, "DK": "#" * 14,
}  # fmt: skip


def iban_of(rng: random.Random, countries: Sequence[str]) -> str:
    country = rng.choice(countries)
    body = fill(rng, _BBANS[country])
    return f"{country}{iban.calc_check_digits(f'{country}00{body}')}{body}"


def an_iban(separator: str, countries: str, lower: bool = False) -> Make:
    def make(rng: random.Random) -> Value:
        known = iban_of(rng, countries.split())
        text = grouped(known, separator)
        return Value(text.lower() if lower else text, digits_of(known), (known.casefold(),))

    return make


def ssn_of(pattern: str) -> Make:
    """`{a}`, `{g}`, `{s}`: area, group, serial."""

    def make(rng: random.Random) -> Value:
        area = rng.choice([a for a in range(1, 900) if a != 666])
        digits = f"{area:03d}{rng.randint(1, 99):02d}{rng.randint(1, 9999):04d}"
        return Value(pattern.format(a=digits[:3], g=digits[3:5], s=digits[5:]), digits)

    return make


def email(pattern: str, people: Sequence[str], hosts: Sequence[str]) -> Make:
    """`{first}`, `{last}`, `{n}`, `{host}`, `{tld}`: no local part is a word of the carriers."""

    def make(rng: random.Random) -> Value:
        first, last = rng.choice(people).split()
        host, _, tld = rng.choice(hosts).partition(".")
        tag = str(rng.randint(10, 99))
        parts = {"first": first, "last": last, "n": tag, "host": host, "tld": tld}
        return Value(pattern.format(**parts), words=(compact(first), compact(last)))

    return make


def address(pattern: str, streets: Sequence[str], postcodes: Sequence[str] = ("",)) -> Make:
    """`{no}`, `{street}`, `{code}`: house number, street name without its type, postcode."""

    def make(rng: random.Random) -> Value:
        street = rng.choice(streets)
        house = str(rng.randint(2, 899))
        code = fill(rng, rng.choice(postcodes))
        text = fill(rng, pattern.format(no=house, street=street, code=code))
        # A spelling without a street name (a postcode alone) must lose its postcode.
        shown = ((street,) if "{street}" in pattern else ()) + ((code,) if code else ())
        return Value(text, words=tuple(compact(part) for part in shown))

    return make


def birth_date(pattern: str) -> Make:
    """`{d}`, `{m}`, `{month}`, `{y}`, `{yy}`."""

    def make(rng: random.Random) -> Value:
        day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1931, 2007)
        name = _MONTHS[month - 1]
        text = pattern.format(d=f"{day:02d}", m=f"{month:02d}", month=name, y=year, yy=year % 100)
        return Value(text, words=(compact(text),))

    return make


_MONTHS: Final = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip


# ---- encodings ----------------------------------------------------------------------------------

Encode = Callable[[str], str]
_SAFE: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")


def escaped(form: str, every: bool = False) -> Encode:
    """Args: form: `{b:02X}` of each UTF-8 byte, or `{c}` of each code point; every: letters too."""

    def encode(text: str) -> str:
        def of(character: str) -> str:
            if character in _SAFE and not every:
                return character
            if "{b" in form:
                return "".join(form.format(b=byte) for byte in character.encode())
            return form.format(c=ord(character))

        return "".join(map(of, text))

    return encode


def named_entities(names: Mapping[str, str]) -> Encode:
    return lambda text: "".join(f"&{names[c]};" if c in names else c for c in text)


def then(*steps: Encode) -> Encode:
    def encode(text: str) -> str:
        for step in steps:
            text = step(text)
        return text

    return encode


def in_code(make: Make, encode: Encode) -> Make:
    """The value as encoded; neither it nor what it stands for may survive."""

    def made(rng: random.Random) -> Value:
        value = make(rng)
        text = encode(value.text)
        return Value(text, value.digits, (*value.words, compact(text)))

    return made


# ---- identity numbers and secrets ---------------------------------------------------------------


def identity(country: str, module: str, *patterns: str) -> Make:
    """Drawn until the country's checksum fits. `{d}`, `{m}`, `{y}`: a date of birth."""
    known = get_cc_module(country, module)

    def make(rng: random.Random) -> Value:
        while True:
            pattern = rng.choice(patterns)
            day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(40, 99)
            text = fill(rng, pattern.format(d=f"{day:02d}", m=f"{month:02d}", y=year))
            if known.is_valid(text):
                return Value(text, words=(compact(text),))

    return make


_TOKEN: Final = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz0123456789"


def token(prefix: str, length: int, alphabet: str = _TOKEN) -> Make:
    """A public prefix and so many random characters."""

    def make(rng: random.Random) -> Value:
        body = "".join(rng.choice(alphabet) for _ in range(length))
        return Value(prefix + body, words=(compact(body),))

    return make


def one_of(*words: str) -> Make:
    """A password of a list, all of it the secret."""

    def make(rng: random.Random) -> Value:
        text = rng.choice(words)
        return Value(text, words=(compact(text),))

    return make


def private_key(label: str, join: str, lines: int = 4, end: bool = True) -> Make:
    def make(rng: random.Random) -> Value:
        body = ["".join(rng.choice(_TOKEN + "+/") for _ in range(64)) for _ in range(lines)]
        closing = [f"-----END {label}-----"] if end else []
        text = join.join([f"-----BEGIN {label}-----", *body, *closing])
        return Value(text, words=tuple(map(compact, body)))

    return make


_BIP39: Final = [
    "abandon",
    "ability",
    "able",
    "about",
    "above",
    "absent",
    "absorb",
    "abstract",
    "absurd",
    "abuse",
    "access",
    "accident",
    "acid",
    "acoustic",
    "acquire",
    "across",
    "act",
    "action",
    "actor",
    "actress",
    "actual",
    "adapt",
    "add",
    "addict",
    "address",
    "adjust",
    "gallery",
    "game",
    "gap",
    "garage",
    "garbage",
    "garden",
    "garlic",
    "garment",
    "gas",
    "gasp",
    "gate",
    "gather",
    "gauge",
    "gaze",
    "general",
    "meadow",
    "mean",
    "measure",
    "meat",
    "mechanic",
    "medal",
    "media",
    "melody",
    "melt",
    "member",
    "memory",
    "mention",
    "menu",
    "mercy",
    "shoulder",
    "shove",
    "shrimp",
    "shrug",
    "shuffle",
    "shy",
    "sibling",
    "sick",
    "side",
    "siege",
    "sight",
    "sign",
    "silent",
    "silk",
    "silly",
    "wolf",
    "woman",
    "wonder",
    "wood",
    "wool",
    "word",
    "work",
    "world",
    "worry",
    "worth",
    "wrap",
    "wreck",
    "wrestle",
    "wrist",
    "write",
    "wrong",
]


def phrase(words: int, join: str = " ", numbered: bool = False) -> Make:
    """A wallet's recovery phrase; three of its words in a row must not survive."""

    def make(rng: random.Random) -> Value:
        drawn = [rng.choice(_BIP39) for _ in range(words)]
        shown = [f"{n}. {word}" for n, word in enumerate(drawn, 1)] if numbered else drawn
        return Value(join.join(shown), words=(compact(join.join(shown[1:4])),))

    return make


# ---- the corpus to develop on -------------------------------------------------------------------

_PEOPLE = ("marlon quigley", "tabitha oyelaran", "henrik vosloo", "priya natesan", "lukas brandl")
_HOSTS = ("example.com", "example.org", "example.co.uk", "mail.example.net", "gmail.com")
_US = ("Maple", "Old Mill", "Jefferson", "Birchwood", "Martin Luther King")
_DE = ("Linden", "Goethe", "Garten", "Kirch")
_FR = ("de la Fontaine", "Lafayette", "des Lilas")
_GB_CODES = ("M# #AB", "LS## #QZ", "SW#A #AA", "EH# #YL", "B## #TT")
_CARDS = (
    ("plain", card("")), ("spaces", card(" ")), ("dashes", card("-")), ("dots", card(".")),
    ("no-break spaces", card("\u00a0")), ("thin spaces", card("\u2009")),
    ("en dashes", card("\u2013")), ("full width", card(" ", zero="\uff10")),
    ("Arabic-Indic digits", card("", zero="\u0660")), ("line break", card("\n", 8, 16)),
    ("then", card(" then ", 4, 16)), ("and then", card(", and then ", 4, 16)),
    ("digit by digit", card(" ", 1)), ("mistyped, in groups", mistyped_card(" ")),
)  # fmt: skip
_IBANS = (
    ("plain", an_iban("", "DE GB FR ES IT")), ("spaces", an_iban(" ", "DE GB NL NO CH")),
    ("dashes", an_iban("-", "DE FR SE PL")), ("lower case", an_iban("", "DE GB IE AT", True)),
    ("lower case, spaces", an_iban(" ", "GB ES BE", True)),
    ("no-break spaces", an_iban("\u00a0", "DE IT PT DK")),
)  # fmt: skip
_SSN_NAMED = ("my ssn is {}", "SSN: {}", "my social security number is {}", "social security {}")
_SSNS = (
    ("dashes", ssn_of("{a}-{g}-{s}"), ()), ("spaces", ssn_of("{a} {g} {s}"), ()),
    ("dots, named", ssn_of("{a}.{g}.{s}"), _SSN_NAMED),
    ("plain, named", ssn_of("{a}{g}{s}"), _SSN_NAMED),
    ("en dashes", ssn_of("{a}\u2013{g}\u2013{s}"), ()),
)  # fmt: skip
_EMAILS = (
    ("plain", "{first}.{last}@{host}.{tld}"), ("plus tag", "{first}.{last}+{n}@{host}.{tld}"),
    ("capitals", "{first}{last}{n}@{host}.{tld}"), ("subdomain", "{first}_{last}@eu.{host}.{tld}"),
    ("at dot", "{first}.{last} at {host} dot {tld}"),
    ("[at] [dot]", "{first}{last} [at] {host} [dot] {tld}"),
    ("(at)", "{first}{last}(at){host}.{tld}"), ("spaced", "{first}{last} @ {host} . {tld}"),
    ("dot in words", "{first} dot {last} at {host} dot {tld}"),
    ("umlaut", "{first}.m\u00fcller.{last}@{host}.{tld}"),
)  # fmt: skip
_PHONES = (
    ("US, dashes", number("202-555-01##", "415-555-01##")),
    ("US, parentheses", number("(212) 555-01##")), ("US, dots", number("312.555.01##")),
    ("US, plain", number("20255501##")), ("+1", number("+1 202 555 01##", "+1-415-555-01##")),
    ("+44", number("+44 20 7946 0###", "+447700900###")), ("+49", number("+49 30 2345 6###")),
    ("GB", number("020 7946 0###", "07700 900###", "07700900###")),
    ("FR", number("06 12 34 ## ##")), ("DE", number("030 2345 67##", "0171 55501##")),
    ("extension", number("(202) 555-01## ext. 204")),
)  # fmt: skip
_PHONE_CALLED = ("call me on {}", "my mobile is {}", "Tel: {}", "you can reach me at {}")
_ADDRESSES = (
    ("US street", address("{no} {street} Street", _US)),
    ("US street, abbreviated", address("{no} {street} Ave.", _US)),
    ("US, with city and ZIP", address("{no} {street} Rd, Springfield, IL {code}", _US, ["627##"])),
    ("US, apartment", address("{no} {street} Blvd Apt 4B, Austin TX {code}", _US, ["787##"])),
    ("US, lower case", address("{no} {street} lane", [name.lower() for name in _US])),
    ("GB, with postcode", address("{no} {street} Road, Leeds {code}", _US, _GB_CODES)),
    ("GB postcode", address("{code}", [""], _GB_CODES)),
    ("DE", address("{street}stra\u00dfe {no}, {code} Berlin", _DE, ["10###"])),
    ("DE, abbreviated", address("{street}str. {no} in {code} K\u00f6ln", _DE, ["50###"])),
    ("FR", address("{no} rue {street}, {code} Paris", _FR, ["750##"])),
)  # fmt: skip
_BOX = ("PO Box ####", "P.O. Box ###", "po box ####")
_ACCOUNTS = (
    ("account number", number("%#######"), ("my account number is {}", "Account number: {}")),
    ("acct", number("%########"), ("acct # {}", "acct no. {}", "a/c {}")),
    ("account", number("%#######"), ("the money left account {} twice",)),
    ("sort code", number("12-%#-##", "20##%#"), ("sort code {}", "my sort code is {}")),
    ("routing", number("0%#######"), ("routing number {}", "ABA routing: {}")),
    ("customer id", number("%####", "C-%######"), ("customer id {}", "my customer number is {}")),
    ("policy", number("PL %####%", "AB-%#####"), ("policy number {}", "policy no {}")),
)  # fmt: skip
_DOCUMENTS = (
    ("passport", number("X%######", "%########"), ("my passport number is {}", "passport no {}")),
    ("licence", number("D%######-##"), ("driver's license number {}", "my licence number is {}")),
)  # fmt: skip
_BORN = ("I was born on {}", "date of birth: {}", "my dob is {}", "DOB {}")
_BIRTHS = (
    ("slashes", birth_date("{d}/{m}/{y}")), ("ISO", birth_date("{y}-{m}-{d}")),
    ("in words", birth_date("{d} {month} {y}")), ("US, in words", birth_date("{month} {d}, {y}")),
)  # fmt: skip
_URL_PERCENT = (
    "https://shop.example/reset?email={}",
    "http://example.com/?lang=en&user={}&x=1",
    "/login?next=%2Fhome&mail={}",
)
_EMAIL = email("{first}.{last}@{host}.{tld}", _PEOPLE, _HOSTS)
_PHONE = number("+44 7700 900###", "+49 30 2345 6###", "+1 202 555 01##")
_UPPER = escaped("%{b:02X}")
_QUOTED = escaped("={b:02X}")
_JSON = escaped("\\u{c:04x}")
_DECIMAL, _HEX = escaped("&#{c};"), escaped("&#x{c:X};")
_IN_CODE = (
    ("percent", _EMAIL, _UPPER, _URL_PERCENT), ("percent, phone", _PHONE, _UPPER, _URL_PERCENT),
    ("percent twice", _EMAIL, then(_UPPER, _UPPER), _URL_PERCENT),
    ("percent three times", _EMAIL, then(_UPPER, _UPPER, _UPPER), _URL_PERCENT),
    ("percent, IBAN", an_iban(" ", "DE GB FR"), _UPPER, ("iban={}&bic=X", "to={}")),
    ("percent, every letter", _EMAIL, escaped("%{b:02x}", every=True), _URL_PERCENT),
    ("entities", _EMAIL, _DECIMAL, ("{}", "<b>{}</b>", "from {} to you")),
    ("entities, hexadecimal", _PHONE, _HEX, ("ring {}", "<i>{}</i>")),
    ("entities, named", _EMAIL, named_entities({"@": "commat", ".": "period"}),
     ("{}", "<b>{}</b>")),
    ("entities, named, phone", _PHONE, named_entities({"+": "plus", " ": "nbsp"}), ("{}",)),
    ("entities, no semicolon", _EMAIL, escaped("&#{c}"), ("<b>{}</b>", "mail {}")),
    ("entities of entities", _EMAIL, then(_DECIMAL, lambda t: t.replace("&", "&amp;")), ("{}",)),
    ("quoted-printable", _EMAIL, _QUOTED, ("From: {}", "reply {} =E2=82=AC5")),
    ("quoted-printable, card", card(" ", 4, 16), _QUOTED, ("paid with {}",)),
    ("JSON", _EMAIL, _JSON, ('{"email":"{}"}', '"user": "{}",')),
    ("JSON, phone", _PHONE, _JSON, ('{"tel":"{}"}',)),
    ("backslash x", _EMAIL, escaped("\\x{b:02x}"), ("b'{}'",)),
    ("mailto", _EMAIL, lambda t: t, ("mailto:{}", "[mail](mailto:{}?cc=)")),
    ("tel", _PHONE, lambda t: t.replace(" ", ""), ("tel:{}", '<a href="tel:{};ext=12">')),
    ("tel, percent", _PHONE, _UPPER, ("tel={}", "tel:{}")),
    ("full width in percent", card(" ", 4, 16, "\uff10"), _UPPER, ("card={}",)),
)  # fmt: skip
_IDENTITIES = (
    ("US ITIN", identity("us", "itin", "9##-%#-####"), ("my ITIN is {}",)),
    ("GB NHS", identity("gb", "nhs", "##########", "###-###-####"), ("NHS number {}", "NHS: {}")),
    ("GB UTR", identity("gb", "utr", "##########"), ("my UTR is {}", "UTR number {}")),
    ("CA SIN", identity("ca", "sin", "###-###-###"),
     ("my SIN is {}", "social insurance number {}")),
    ("AU TFN", identity("au", "tfn", "### ### ###"), ("my TFN: {}", "tax file no {}")),
    ("IE PPS", identity("ie", "pps", "#######@"), ("my PPS is {}", "{}")),
    ("FR NIR", identity("fr", "nir", "2 {y} {m} 69 ### ### ##"), ("numéro de sécu {}", "{}")),
    ("DE IdNr", identity("de", "idnr", "## ### ### ###"),
     ("meine Steuer-ID ist {}", "Steuernummer {}", "{}")),
    ("ES DNI", identity("es", "dni", "########@", "########-@"), ("mi DNI: {}", "{}")),
    ("ES NIE", identity("es", "nie", "X#######@"), ("mi NIE es {}", "{}")),
    ("IT codice fiscale", identity("it", "codicefiscale", "@@@@@@{y}C##@###@"),
     ("il codice fiscale è {}", "{}")),
    ("NL BSN", identity("nl", "bsn", "#########"), ("mijn BSN is {}", "burgerservicenummer {}")),
    ("IN Aadhaar", identity("in_", "aadhaar", "%### #### ####"), ("my aadhaar number is {}", "{}")),
    ("IN PAN", identity("in_", "pan", "@@@P@####@"), ("my PAN is {}", "{}")),
    ("PT NIF", identity("pt", "nif", "#########"), ("o meu NIF é {}", "contribuinte {}")),
    ("PL PESEL", identity("pl", "pesel", "{y}{m}{d}#####"), ("mój PESEL: {}", "nr PESEL {}")),
    ("PL NIP", identity("pl", "nip", "##########"), ("NIP: {}",)),
    ("BR CPF", identity("br", "cpf", "###.###.###-##"), ("meu CPF é {}", "{}")),
    ("AT SVNR", identity("at", "vnr", "####{d}{m}{y}"), ("Sozialversicherungsnummer: {}",)),
    ("CH AHV", identity("ch", "ssn", "756.####.####.##"), ("AHV {}", "{}")),
    ("BE NN", identity("be", "nn", "{y}.{m}.{d}-###.##"), ("NISS {}", "{}")),
    ("DK CPR", identity("dk", "cpr", "{d}{m}{y}-####"), ("mit CPR-nummer er {}",)),
    ("SE personnummer", identity("se", "personnummer", "{y}{m}{d}-####"),
     ("mitt personnummer är {}", "{}")),
    ("NO fødselsnummer", identity("no", "fodselsnummer", "{d}{m}{y}#####"),
     ("mitt fødselsnummer er {}", "{}")),
    ("FI HETU", identity("fi", "hetu", "{d}{m}{y}-###@"), ("henkilötunnukseni on {}", "{}")),
    ("MX CURP", identity("mx", "curp", "@A@@{y}{m}{d}HDF@@@##"), ("mi CURP: {}", "{}")),
)  # fmt: skip
_BORN_ABROAD = (
    ("German", birth_date("{d}.{m}.{y}"), ("geboren am {}", "mein Geburtsdatum ist {}")),
    ("French", birth_date("{d}/{m}/{y}"), ("né le {}", "ma date de naissance est le {}")),
    ("Spanish", birth_date("{d}/{m}/{y}"), ("nací el {}", "mi fecha de nacimiento es {}")),
    ("Italian", birth_date("{d}.{m}.{y}"), ("nato il {}", "la mia data di nascita è {}")),
    ("Dutch", birth_date("{d}-{m}-{y}"), ("ik ben geboren op {}", "geboortedatum: {}")),
    ("Portuguese", birth_date("{d}-{m}-{y}"), ("nasci em {}", "data de nascimento: {}")),
    ("Polish", birth_date("{d}.{m}.{y}"), ("urodzony {}", "data urodzenia {}")),
    ("Nordic", birth_date("{d}.{m}.{y}"), ("født {}", "fødselsdato {}", "syntynyt {}")),
)  # fmt: skip
_SECRETS = (
    ("password", one_of("hunter2", "S3cret!pass", "green-Tomato7", "letmein99", "Passw0rd"), (
        "my password is {}", "password: {}", "Passwort {}", "the pw is {}", "pwd: {}",
        "mi contraseña es {}", "mon mot de passe est {}", "wachtwoord: {}",
    )),
    ("password of a word", one_of("sommerregen", "tomatosoup"), (
        "my password is {}", "password: {}", "I set the password to {}",
    )),
    ("code", number("######", "#### ##"), (
        "the verification code you sent is {}", "verification code {}", "my OTP is {}",
        "the code you sent me, {}, does not work", "SMS code: {}", "{} is my verification code",
        "your code is {}", "der Bestätigungscode lautet {}",
    )),
    ("GitHub", token("ghp_", 36), ()), ("Stripe", token("sk_live_", 24), ()),
    ("Slack", token("xoxb-", 40), ()),
    ("AWS", token("AKIA", 16, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"), ()),
    ("OpenAI", token("sk-proj-", 48), ()), ("Google", token("AIza", 35), ()),
    ("GitLab", token("glpat-", 20), ()), ("PyPI", token("pypi-AgEIcHlwaS5vcmc", 60), ()),
    ("Shopify", token("shpat_", 32, "0123456789abcdef"), ()),
    ("JSON Web Token", token("eyJhbGciOiJub25lIn0.eyJ", 30), ("{}.", "Bearer {}.c2ln")),
    ("named", token("", 40), ("my api key: {}", "token={}", "the secret key is {}")),
    ("private key", private_key("PRIVATE KEY", "\n"), ()),
    ("RSA key", private_key("RSA PRIVATE KEY", " "), ()),
    ("recovery phrase", phrase(12), ("my seed phrase is {}", "recovery words: {}")),
)  # fmt: skip
_TOKENS_IN = ("{}", "I use {} in the app", "token {} was refused")
_UNFAIR = (
    Spelling("card", "letters for digits", lambda rng: _with_letters(rng), fair=False),
    Spelling("phone", "seven digits, no context", number("555 01##"), ("so {} then",), fair=False),
    Spelling(
        "account", "no context", number("%#######"), ("it is {}", "{}, as I said"), fair=False
    ),
)


def _with_letters(rng: random.Random) -> Value:
    digits = card_digits(rng, 16)
    return Value(digits.replace("0", "O").replace("1", "l"), digits)


def _caps(spelling: str, make: Make) -> Make:
    def upper(rng: random.Random) -> Value:
        value = make(rng)
        return Value(value.text.upper(), value.digits, value.words)

    return upper if spelling == "capitals" else make


DEV: Final = Corpus(
    spellings=(
        *(Spelling("card", name, make) for name, make in _CARDS),
        Spelling(
            "card", "mistyped, named", mistyped_card(""), ("my card number is {}", "card no: {}")
        ),
        *(Spelling("iban", name, make) for name, make in _IBANS),
        *(Spelling("ssn", *row) for row in _SSNS),
        *(
            Spelling("email", name, _caps(name, email(pattern, _PEOPLE, _HOSTS)))
            for name, pattern in _EMAILS
        ),
        *(Spelling("phone", name, make) for name, make in _PHONES),
        Spelling("phone", "local, called one", number("555 01##", "555-01##"), _PHONE_CALLED),
        *(Spelling("address", name, make) for name, make in _ADDRESSES),
        Spelling("address", "PO box", number(*_BOX)),
        *(Spelling("account", *row) for row in _ACCOUNTS),
        *(Spelling("document", *row) for row in _DOCUMENTS),
        *(Spelling("birth date", name, make, _BORN) for name, make in _BIRTHS),
        *(Spelling("in code", name, in_code(make, how), own) for name, make, how, own in _IN_CODE),
        *(Spelling("identity", *row) for row in _IDENTITIES),
        *(Spelling("birth date", name, make, own) for name, make, own in _BORN_ABROAD),
        *(Spelling("secret", name, make, own or _TOKENS_IN) for name, make, own in _SECRETS),
        *_UNFAIR,
    ),
    frames={
        "card": ("my card is {}", "I paid with {}", "card {} was declined", "here: {}", "{}",
                 "please block {} now", "it says {} exp 12/29 cvv 123", "({}) is the one"),
        "iban": ("my IBAN is {}", "send it to {}", "{}", "pay {} please", "iban: {}, thanks"),
        "ssn": ("my ssn is {}", "it's {}", "{}", "for verification: {}."),
        "email": ("mail me at {}", "my email is {}", "{}", "write to {} please", "email: {}"),
        "phone": ("call me on {}", "my number is {}", "{}", "ring {} after work", "tel. {}"),
        "address": ("I live at {}", "my address is {}", "ship it to {}", "{}", "I moved to {}."),
    },
    carriers=(
        "Hi there, my card has been declined twice today", "I want my money back",
        "why has the transfer not arrived", "please help me with this", "thanks in advance",
        "The parcel never came and nobody answers", "I can't log in any more",
        "could you update my details", "this is the third time I ask", "HELLO???",
        "I was charged 25 euros twice", "You are open 24/7, aren't you?", "ok",
    ),
)  # fmt: skip


# ---- numbers that are nobody's ------------------------------------------------------------------

HARMLESS: Final = {
    "order": ("order number {} is late",
     ("################", "####-#######-#######", "##########")),
    "tracking": ("tracking {} has not moved",
     ("1Z999AA1##########", "####################", "#### #### #### ####", "JD##################")),
    "ticket": ("about ticket {}", ("########", "##########", "############", "INC#######")),
    "device": ("the IMEI is {}", ("###############", "35#############", "SN##############")),
    "timestamp": ("error at {}", ("179##########", "179#######", "1790######.###")),
    "bare": ("{} is what I see", ("################", "###########", "#############")),
}  # fmt: skip


def harmless(kind: str, count: int, seed: int) -> Iterator[str]:
    """Messages with a number that is an order's, a parcel's, a device's, or a time."""
    rng = random.Random(seed)
    frame, patterns = HARMLESS[kind]
    for _ in range(count):
        yield frame.format(fill(rng, rng.choice(patterns)))
