"""The held-out corpus, written before any failure of the detector was seen.

Its first figures stand in docs/guard.md. Its failures were looked at once, after those were taken;
what has been measured since then is measured on a corpus that is known. Other spellings, frames,
carriers, names and countries than in planted.py's DEV.
"""

import random
from typing import Final

from tests.support.planted import (
    Corpus,
    Make,
    Spelling,
    Value,
    address,
    an_iban,
    birth_date,
    card,
    card_digits,
    compact,
    email,
    escaped,
    identity,
    in_code,
    mistyped_card,
    named_entities,
    number,
    one_of,
    phrase,
    private_key,
    ssn_of,
    then,
    token,
)

_PEOPLE = ("agnieszka wrobel", "desmond achterberg", "yolanda figueroa", "callum mcteague")
_HOSTS = ("example.net", "example.edu", "shop.example.com", "outlook.com", "example.de")
_STREETS = ("Hawthorne", "Lower Quarry", "Eisenhower", "Saint Anselm", "Peachtree")
_DE = ("Schiller", "Rosen", "Bahnhof", "M\u00fchlen")
_ES = ("Velazquez", "de Goya", "San Anton")
_NL = ("Prinsen", "Tulpen", "Dorps")
_GB_CODES = ("CF## #EH", "G# #NP", "NE## #HW", "W#D #JJ", "PO# #RX")


def _glued(rng: random.Random) -> Value:
    digits = card_digits(rng, 16)
    return Value(f"card{digits}", digits)


def _words(rng: random.Random) -> Value:
    """Digits in words; only the words betray it."""
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    digits = card_digits(rng, 16)
    text = " ".join(names[int(digit)] for digit in digits)
    return Value(text, words=(compact(text),))


def _reversed(rng: random.Random) -> Value:
    digits = card_digits(rng, 16)
    return Value(digits[::-1], digits[::-1])


_CARDS: tuple[tuple[str, Make], ...] = (
    ("plain", card("")), ("spaces", card(" ")), ("underscores", card("_")),
    ("two spaces", card("  ")), ("slashes", card("/")), ("narrow no-break", card("\u202f")),
    ("no-break hyphens", card("\u2011")), ("zero-width spaces", card("\u200b", 1)),
    ("Devanagari digits", card(" ", zero="\u0966")), ("bold digits", card("", zero="\U0001d7ce")),
    ("spaced dashes", card(" - ")), ("commas", card(", ", 4, 16)),
    ("dash in words", card(" dash ", 4, 16)), ("two halves", card(" ", 8, 16)),
    ("tabs", card("\t")),
    ("colons", card(":", 4, 16)), ("pairs", card(" ", 2, 16)), ("dots and spaces", card(". ")),
    ("followed by", card(" followed by ", 4, 16)), ("lines", card("\n", 4, 16)),
    ("glued to a word", _glued), ("mistyped, dashes", mistyped_card("-")),
)  # fmt: skip
_IBANS = (
    ("plain", an_iban("", "DE GB NL SE PL")), ("spaces", an_iban(" ", "ES IT PT DK IE")),
    ("lower case", an_iban("", "FR NL CH", True)), ("dots", an_iban(".", "DE AT BE")),
    ("narrow no-break", an_iban("\u202f", "FR NO GB")), ("two spaces", an_iban("  ", "DE ES")),
    ("spaced dashes", an_iban(" - ", "DE IT GB")), ("lines", an_iban("\n", "PL SE GB")),
)  # fmt: skip
_SSN_NAMED = (
    "social security no. {}", "the last thing you asked for, my SSN, is {}", "s.s.n. = {}",
    "{} is my social", "my social is {}", "SSN#{}", "ss# {}",
)  # fmt: skip
_SSNS = (
    ("dashes", ssn_of("{a}-{g}-{s}"), ()),
    ("no-break hyphens", ssn_of("{a}\u2011{g}\u2011{s}"), ()),
    ("plain, named", ssn_of("{a}{g}{s}"), _SSN_NAMED),
    ("spaces, named", ssn_of("{a} {g} {s}"), _SSN_NAMED),
    ("slashes, named", ssn_of("{a}/{g}/{s}"), _SSN_NAMED),
    ("spaced dashes", ssn_of("{a} - {g} - {s}"), ()),
)  # fmt: skip
_EMAILS = (
    ("plain", "{first}{last}@{host}.{tld}"),
    ("initials and digits", "{n}{first}-{last}@{host}.{tld}"),
    ("mailto", "<mailto:{first}.{last}@{host}.{tld}>"),
    ("{at}", "{first}{last}{{at}}{host}.{tld}"),
    ("-at- -dot-", "{first}{last} -at- {host} -dot- {tld}"),
    ("(at) (dot)", "{first}.{last} (at) {host} (dot) {tld}"),
    ("at, dot written", "{first}{last} at {host}.{tld}"),
    ("space before @", "{first}{last} @{host}.{tld}"),
    ("AT DOT", "{first}{last} AT {host} DOT {tld}"),
    ("full width @", "{first}{last}\uff20{host}.{tld}"),
    ("underscore in words", "{first} underscore {last} at {host} dot {tld}"),
    ("zero-width", "{first}{last}@\u200b{host}.{tld}"),
)  # fmt: skip
_PHONES = (
    ("US, spaces", number("503 555 01##", "617 555 01##")),
    ("US, slashes", number("212/555-01##")), ("US, leading 1", number("1 (646) 555-01##")),
    ("+33", number("+33 6 12 34 ## ##", "+33612##34##")), ("+34", number("+34 612 ## ## ##")),
    ("+39", number("+39 347 12# ####")), ("+31", number("+31 6 12345###", "+31(0)6-12345###")),
    ("+91", number("+91 98765 4####", "+91-98765-4####")), ("+61", number("+61 412 345 ###")),
    ("+81", number("+81 90-1234-5###")), ("+55", number("+55 11 91234-5###")),
    ("00 prefix", number("0049 30 2345 6###", "0033 6 12 34 ## ##")),
    ("GB, parentheses", number("(0117) 496 0###", "(020) 7946 0###")),
    ("GB, landline", number("0161 496 0###", "01632 960###")),
    ("extension", number("202-555-01## x 311", "(415) 555-01## extension 22")),
    ("no-break spaces", number("+44\u00a07700\u00a0900###")),
    ("dots", number("+49.171.555.01##", "06.12.34.##.##")),
    ("full width", lambda rng: _full_width(number("020 7946 0###")(rng))),
)  # fmt: skip
_PHONE_CALLED = (
    "text me on {}", "best number to get me is {}", "my cell: {}", "WhatsApp {}",
    "give me a ring on {}", "phone no. {}", "contact number - {}",
)  # fmt: skip
_ADDRESSES = (
    ("US street", address("{no} {street} Drive", _STREETS)),
    ("US, direction", address("{no} N. {street} St", _STREETS)),
    ("US, suite and ZIP+4", address("{no} {street} Parkway, Suite 210, Denver, CO {code}",
                                    _STREETS, ["802##-####"])),
    ("US, lower case", address("{no} {street} ct, tulsa ok {code}",
                               [name.lower() for name in _STREETS], ["741##"])),
    ("US, on lines", address("{no} {street} Terrace\nBoise, ID {code}", _STREETS, ["837##"])),
    ("US ZIP, named", address("zip code {code}", [""], ["941##", "606##"])),
    ("GB, flat", address("Flat 3, {no} {street} Gardens, Cardiff {code}", _STREETS, _GB_CODES)),
    ("GB, close", address("{no} {street} Close, {code}", _STREETS, _GB_CODES)),
    ("GB postcode, lower case", address("{code}", [""], [c.lower() for c in _GB_CODES])),
    ("CA", address("{no} {street} Crescent, Toronto ON {code}", _STREETS, ["M#V #K#"])),
    ("AU", address("{no} {street} Parade, Newtown NSW {code}", _STREETS, ["20##"])),
    ("DE", address("{street}weg {no}a, {code} Hamburg", _DE, ["20###"])),
    ("DE, two words", address("Am {street}platz {no}, {code} Bonn", _DE, ["53###"])),
    ("ES", address("Calle {street} {no}, {code} Madrid", _ES, ["280##"])),
    ("IT", address("Via {street} {no}, {code} Roma", _ES, ["001##"])),
    ("NL", address("{street}gracht {no}, {code} Amsterdam", _NL, ["10## @@"])),
    ("FR, avenue", address("{no} bis avenue {street}, {code} Lyon", _ES, ["690##"])),
)  # fmt: skip
_BOX = ("Post Office Box ####", "P O Box ###", "Postfach ####")
_ACCOUNTS = (
    ("account number", number("%#######", "%### ####"), (
        "the account number you have for me, {}, is wrong", "acc number {}", "account num: {}",
        "bank account {}", "my acc no is {}",
    )),
    ("savings, checking", number("%########"), ("savings account {}", "checking acct {}",
                                                "from my current account {}")),
    ("number first", number("%#######"), ("{} is my account number", "{} - that's my acct number")),
    ("sort code and account", number("20-%#-## %#######"), ("sort code and account: {}",
                                                            "s/c and a/c {}")),
    ("routing", number("0%#######"), ("routing no. {}", "the ABA is {}", "transit number {}")),
    ("member", number("%######", "M%#####"), ("membership no {}", "member id: {}", "user id {}")),
    ("loan, policy", number("%########", "LN-%######"), ("loan number {}", "my policy number's {}",
                                                         "insurance number: {}")),
)  # fmt: skip
_DOCUMENTS = (
    ("passport", number("@%######@", "%########"), ("passport: {}", "passport #{}",
                                                    "the number in my passport is {}")),
    ("licence", number("@###-%###-####", "%#######"), ("driving licence {}", "DL number {}",
                                                       "driver license no: {}")),
    ("national insurance", number("QQ %# ## ## C"), ("my national insurance number is {}",
                                                     "NI number: {}", "NINO {}")),
)  # fmt: skip
_BORN = ("born {}", "birthday: {}", "my date of birth is {}", "D.O.B. {}", "birthdate {}")
_BIRTHS = (
    ("dots", birth_date("{d}.{m}.{y}")), ("dashes", birth_date("{m}-{d}-{y}")),
    ("two-digit year", birth_date("{d}/{m}/{yy:02d}")),
    ("in words", birth_date("{d}th of {month} {y}")),
    ("US, in words", birth_date("{month} {d} {y}")),
)  # fmt: skip


# ---- written before the detectors of these kinds: encodings, identity numbers, secrets -----------

_AN_EMAIL = email("{first}.{last}@{host}.{tld}", _PEOPLE, _HOSTS)
_A_PHONE = number("+44 7911 123###", "+49 151 2345####", "+33 6 98 76 ## ##")
_A_CARD = card(" ", 4, 16)
_URL = (
    "https://shop.example/confirm?lang=en&to={}&step=2",
    "the link was http://example.org/u/{}",
    "GET /account?user={} HTTP/1.1 500",
    "redirect_uri=https%3A%2F%2Fexample.org%2F%3Fid%3D{}",
)
_HTML = ("<td>{}</td>", "<p>Contact: {}</p>", "the mail shows {} in the footer")
_MAIL = ("Content: {} =20", "my mail program made this of it: {}", "X-Original-To: {}")
_JSON = (
    '{"status": "failed", "contact": "{}"}',
    'log line: user="{}" not found',
    'payload {\\"id\\": \\"{}\\"}',
)
_PERCENT_LOWER = escaped("%{b:02x}")
_PERCENT_ALL = escaped("%{b:02X}", every=True)
_TWICE = then(escaped("%{b:02X}"), escaped("%{b:02X}"))
_PLUS = then(escaped("%{b:02X}"), lambda text: text.replace("%20", "+"))
_NAMES = {"@": "commat", ".": "period", "+": "plus", " ": "nbsp", "-": "hyphen"}
_SOFT_BREAK = then(escaped("={b:02X}"), lambda text: text[:-4] + "=\n" + text[-4:])
_IN_CODE = (
    ("percent, lower case", _AN_EMAIL, _PERCENT_LOWER, _URL),
    ("percent, every letter", _AN_EMAIL, _PERCENT_ALL, _URL),
    ("percent twice", _AN_EMAIL, _TWICE, _URL),
    ("percent, phone", _A_PHONE, _PERCENT_LOWER, _URL),
    ("percent, plus for a space, phone", _A_PHONE, _PLUS, _URL),
    ("percent twice, phone", _A_PHONE, _TWICE, _URL),
    ("percent, card", _A_CARD, _PERCENT_LOWER, _URL),
    ("percent, every digit, card", _A_CARD, _PERCENT_ALL, _URL),
    ("entities, named", _AN_EMAIL, named_entities(_NAMES), _HTML),
    ("entities, named, phone", _A_PHONE, named_entities(_NAMES), _HTML),
    ("entities, decimal, every letter", _AN_EMAIL, escaped("&#{c};", every=True), _HTML),
    ("entities, decimal, zeros", _AN_EMAIL, escaped("&#{c:05d};"), _HTML),
    ("entities, hexadecimal", _AN_EMAIL, escaped("&#x{c:x};"), _HTML),
    ("entities, hexadecimal capital, phone", _A_PHONE, escaped("&#X{c:04X};"), _HTML),
    ("entities, twice", _AN_EMAIL, then(escaped("&#{c};"), lambda t: t.replace("&", "&amp;")),
     _HTML),
    ("entities, decimal, card", _A_CARD, escaped("&#{c};", every=True), _HTML),
    ("quoted-printable", _AN_EMAIL, escaped("={b:02X}"), _MAIL),
    ("quoted-printable, phone", _A_PHONE, escaped("={b:02X}"), _MAIL),
    ("quoted-printable, soft break", _AN_EMAIL, _SOFT_BREAK, _MAIL),
    ("JSON", _AN_EMAIL, escaped("\\u{c:04x}"), _JSON),
    ("JSON, every letter", _AN_EMAIL, escaped("\\u{c:04X}", every=True), _JSON),
    ("JSON, phone", _A_PHONE, escaped("\\u{c:04x}"), _JSON),
    ("JSON, card", _A_CARD, escaped("\\u{c:04x}", every=True), _JSON),
    ("JSON in JSON", _AN_EMAIL, escaped("\\\\u{c:04x}"), _JSON),
    ("mailto", _AN_EMAIL, escaped("%{b:02X}"), ("mailto:{}?subject=where%20is%20it",
                                              '<a href="mailto:{}">write</a>')),
    ("tel", _A_PHONE, lambda t: t.replace(" ", "-"), ("tel:{}", '<a href="tel:{}">ring</a>')),
    ("tel, percent", _A_PHONE, escaped("%{b:02X}"), ("tel:{}", "callto:{}", "sms:{}?body=hi")),
)  # fmt: skip
_IDENTITIES = (
    ("US ITIN", identity("us", "itin", "9##-%#-####"), ("taxpayer number {}", "ITIN: {}")),
    ("GB NHS", identity("gb", "nhs", "### ### ####", "##########"),
     ("NHS no {}", "my nhs number, {}")),
    ("GB UTR", identity("gb", "utr", "##########"), ("unique taxpayer reference {}", "UTR: {}")),
    ("CA SIN", identity("ca", "sin", "### ### ###", "#########"),
     ("SIN {}", "social insurance no. {}")),
    ("AU TFN", identity("au", "tfn", "### ### ###", "#########"),
     ("tax file number {}", "TFN is {}")),
    ("IE PPS", identity("ie", "pps", "#######@", "#######@A"),
     ("PPS number {}", "{} is my PPSN", "{}")),
    ("FR NIR", identity("fr", "nir", "1 {y} {m} 75 ### ### ##", "2{y}{m}13######"),
     ("numéro de sécurité sociale : {}", "mon numéro de sécu est {}", "NIR {}", "{}")),
    ("DE IdNr", identity("de", "idnr", "## ### ### ###", "###########"),
     ("Steuer-ID {}", "meine Steueridentifikationsnummer lautet {}", "IdNr. {}", "{}")),
    ("ES DNI", identity("es", "dni", "########-@", "########@"),
     ("mi DNI es {}", "DNI {}", "documento: {}", "{}")),
    ("ES NIE", identity("es", "nie", "X#######@", "Y-#######-@"), ("NIE {}", "mi NIE: {}", "{}")),
    ("IT codice fiscale", identity("it", "codicefiscale", "@@@@@@{y}A##@###@", "@@@@@@{y}H##@###@"),
     ("codice fiscale {}", "il mio C.F. è {}", "{}")),
    ("NL BSN", identity("nl", "bsn", "#########", "####.##.###"),
     ("BSN {}", "mijn burgerservicenummer is {}", "bsn-nummer: {}")),
    ("IN Aadhaar", identity("in_", "aadhaar", "%### #### ####", "%###########"),
     ("aadhar card {}", "Aadhaar: {}", "UID number {}")),
    ("IN PAN", identity("in_", "pan", "@@@P@####@"),
     ("PAN {}", "permanent account number {}", "{}")),
    ("PT NIF", identity("pt", "nif", "### ### ###", "#########"),
     ("NIF {}", "o meu contribuinte é {}", "número de contribuinte {}")),
    ("PL PESEL", identity("pl", "pesel", "{y}{m}{d}#####"), ("PESEL {}", "mój pesel to {}")),
    ("PL NIP", identity("pl", "nip", "###-###-##-##", "##########"), ("NIP {}", "nr NIP: {}")),
    ("BR CPF", identity("br", "cpf", "###.###.###-##", "###########"),
     ("CPF {}", "meu cpf é {}", "CPF nº {}")),
    ("BR CPF, bare", identity("br", "cpf", "###.###.###-##"), ("{}", "é {} mesmo")),
    ("AT SVNR", identity("at", "vnr", "#### {d}{m}{y}"),
     ("SVNR {}", "Sozialversicherungsnummer {}")),
    ("CH AHV", identity("ch", "ssn", "756.####.####.##", "756##########"),
     ("AHV-Nummer {}", "numéro AVS {}", "{}")),
    ("BE NN", identity("be", "nn", "{y}.{m}.{d}-###.##", "{y}{m}{d}#####"),
     ("rijksregisternummer {}", "numéro national {}", "INSZ {}", "{}")),
    ("DK CPR", identity("dk", "cpr", "{d}{m}{y}-####", "{d}{m}{y}####"),
     ("CPR-nummer {}", "mit cpr er {}")),
    ("SE personnummer", identity("se", "personnummer", "{y}{m}{d}-####", "19{y}{m}{d}-####"),
     ("personnummer {}", "mitt personnr är {}", "{}")),
    ("NO fødselsnummer", identity("no", "fodselsnummer", "{d}{m}{y} #####", "{d}{m}{y}#####"),
     ("fødselsnummer {}", "personnummeret mitt er {}", "{}")),
    ("FI HETU", identity("fi", "hetu", "{d}{m}{y}-###@", "{d}{m}{y}-####"),
     ("henkilötunnus {}", "hetu: {}", "{}")),
    ("MX CURP", identity("mx", "curp", "@A@@{y}{m}{d}HDF@@@##", "@E@@{y}{m}{d}MJC@@@##"),
     ("CURP {}", "mi CURP es {}", "{}")),
)  # fmt: skip
_BORN_ABROAD = (
    ("German", birth_date("{d}.{m}.{y}"), ("Geburtsdatum {}", "ich bin am {} geboren", "geb. {}")),
    ("French", birth_date("{d}/{m}/{y}"), ("née le {}", "date de naissance : {}")),
    ("Spanish", birth_date("{d}-{m}-{y}"), ("nacida el {}", "fecha de nacimiento {}")),
    ("Italian", birth_date("{d}/{m}/{y}"), ("nata il {}", "data di nascita: {}")),
    ("Dutch", birth_date("{d}-{m}-{y}"), ("geboren op {}", "geboortedatum {}")),
    ("Portuguese", birth_date("{d}/{m}/{y}"), ("nascida em {}", "data de nascimento {}")),
    ("Polish", birth_date("{d}.{m}.{y}"), ("urodzona {}", "data urodzenia: {}")),
    ("Swedish", birth_date("{y}-{m}-{d}"), ("född {}", "födelsedatum {}")),
)  # fmt: skip
_PASSWORDS = one_of(
    "Tr0ub4dor&3", "kW9#plm2", "sunflower-92", "Ilovemydog!", "zxcvb_2210", "blauerElefant7",
    "P@ssw0rd2024", "qwertz123456", "marmalade", "CorrectHorseBattery",
)  # fmt: skip
_CODES = number("######", "### ###", "####", "########")
_SECRETS = (
    ("password", _PASSWORDS, (
        "the password for my login is {}", "pwd = {}", "I changed my password to {}",
        "Passwort: {}", "mein Passwort ist {}", "mot de passe : {}", "contraseña: {}",
        "passphrase \"{}\"", "login jo / password {}", "my pass is {}",
    )),
    ("code", _CODES, (
        "the OTP was {}", "one-time passcode: {}", "my 2FA code is {}", "I got the code {} by SMS",
        "authentication code {}", "login code: {}", "{} is your security code",
        "you texted me the code {}", "Bestätigungscode {}", "the confirmation code is {}",
        "backup code {}", "the TAN {} was refused", "code de vérification : {}",
    )),
    ("GitHub token", token("gho_", 36), ()),
    ("GitHub fine-grained token", token("github_pat_", 60), ()),
    ("Stripe restricted key", token("rk_live_", 24), ()),
    ("Slack app token", token("xapp-1-", 40), ()),
    ("AWS temporary key", token("ASIA", 16, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"), ()),
    ("Anthropic key", token("sk-ant-api03-", 80), ()),
    ("Google OAuth token", token("ya29.", 60), ()),
    ("GitLab token", token("glptt-", 40), ()),
    ("npm token", token("npm_", 36), ()),
    ("SendGrid key", token("SG.", 22), ("{}.abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG",)),
    ("Hugging Face token", token("hf_", 34), ()),
    ("JSON Web Token", token("eyJhbGciOiJIUzI1NiJ9.eyJ", 40), ("{}.c2lnbmF0dXJlc2lnbmF0dXJl",)),
    ("Telegram bot token", token("5512345678:AA", 33), ()),
    ("API key, named", token("", 32), ("my API key is {}", "client secret: {}", "access token {}",
                                       "Authorization: Bearer {}", "api_key={}")),
    ("EC key", private_key("EC PRIVATE KEY", "\n", 3), ()),
    ("encrypted key, in one line", private_key("ENCRYPTED PRIVATE KEY", " ", 6), ()),
    ("OpenSSH key, cut off", private_key("OPENSSH PRIVATE KEY", "\n", 5, end=False), ()),
    ("PGP key", private_key("PGP PRIVATE KEY BLOCK", "\n", 4), ()),
    ("recovery phrase", phrase(12), ("my recovery phrase: {}", "the seed words are {}",
                                     "backup phrase {}", "here is the mnemonic {}")),
    ("recovery phrase, long", phrase(24), ("secret recovery phrase is {}", "wallet seed {}")),
    ("recovery phrase, commas", phrase(12, ", "), ("24-word phrase: {}", "seed phrase: {}")),
    ("recovery phrase, numbered", phrase(12, " ", numbered=True), ("my seed phrase is {}",)),
)  # fmt: skip
_TOKEN_FRAMES = ("it answers 401 with {}", "curl -H 'X-Auth: {}' fails", "{}", "I pasted {} there")


def _full_width(value: Value) -> Value:
    table = {ord("0") + i: 0xFF10 + i for i in range(10)}
    return Value(value.text.translate(table), value.digits)


HELD_OUT: Final = Corpus(
    spellings=(
        *(Spelling("card", name, make) for name, make in _CARDS),
        Spelling("card", "mistyped, named", mistyped_card(""), ("credit card {}", "card nr {}")),
        *(Spelling("iban", name, make) for name, make in _IBANS),
        *(Spelling("ssn", *row) for row in _SSNS),
        *(Spelling("email", name, email(pattern, _PEOPLE, _HOSTS)) for name, pattern in _EMAILS),
        *(Spelling("phone", name, make) for name, make in _PHONES),
        Spelling("phone", "local, called one", number("555 01##", "496 0###"), _PHONE_CALLED),
        *(Spelling("address", name, make) for name, make in _ADDRESSES),
        Spelling("address", "PO box", number(*_BOX)),
        *(Spelling("account", *row) for row in _ACCOUNTS),
        *(Spelling("document", *row) for row in _DOCUMENTS),
        *(Spelling("birth date", name, make, _BORN) for name, make in _BIRTHS),
        *(Spelling("in code", name, in_code(make, how), own) for name, make, how, own in _IN_CODE),
        *(Spelling("identity", *row) for row in _IDENTITIES),
        *(
            Spelling("birth date", f"{name}, abroad", make, own)
            for name, make, own in _BORN_ABROAD
        ),
        *(Spelling("secret", name, make, own or _TOKEN_FRAMES) for name, make, own in _SECRETS),
        Spelling("card", "digits in words", _words, fair=False),
        Spelling("card", "backwards", _reversed, fair=False),
        Spelling("account", "no context", number("%#######"), ("use {}", "{}?"), fair=False),
        Spelling(
            "address", "no street type",
            address("{no} {street}", _STREETS), ("going to {}", "{}"), fair=False,
        ),
    ),
    frames={
        "card": ("the number on the front is {}", "charge {} instead", "{}!!", "(visa) {}",
                 "I used {} at the shop", "num: {} valid thru 03/28", "\"{}\"", "is {} blocked?"),
        "iban": ("refund to {}", "bank details {} thx", "account {} at my bank", "{}?",
                 "transfer from {} failed"),
        "ssn": ("number {} for the tax form", "you have {} on file", "{}", "ID check - {}"),
        "email": ("contact {}", "login is {}", "{}", "my e-mail's {}, not the old one",
                  "reply to {}!"),
        "phone": ("number: {}", "or phone {}", "{}", "I'm on {} all day", "mob {}"),
        "address": ("deliver to {}", "new home: {}", "{}", "my place is {}", "the invoice says {}"),
    },
    carriers=(
        "Good morning, I would like to know why my payment is still pending",
        "where's my refund", "Listen, I have waited two weeks", "cheers", "regards, a customer",
        "The app crashed after the update to version 3.2", "is anybody there",
        "I ordered 2 shirts and got 1", "Please change it as soon as you can",
        "that's everything, isn't it", "so annoyed right now", "It was $49.99 on May 3",
    ),
)  # fmt: skip
