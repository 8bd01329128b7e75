"""Where postal addresses and dates of birth stand in a text.

A street needs a house number: "I live in Maple Street" is not found. These patterns are our own
since of the libraries pyap takes 50 ms for a sentence and misses "14 oak avenue", and libpostal
needs 2 GB of data.
"""

import re
from typing import Final

from serve_app.guard.context import FILL, START, Spans, values

# ---- the parts of an address --------------------------------------------------------------------

# What follows a number that counts or measures something, and what no street is called.
_STOP = (
    r"(?:min(?:ute)?s?|hours?|hrs?|days?|nights?|weeks?|months?|years?|miles?|km|met(?:er|re)s?|"
    r"feet|am|pm|o'?clock|dollars?|euros?|pounds?|bucks?|percent|people|times?|of|to|the|in|on|at|"
    r"from|for|and|or|is|was|are|a|an|my|your|our|their|with|per|by|via|if|that|this|not|but|"
    r"bed(?:room)?s?|tickets?|items?|lane|star|door|way|cards?|accounts?|payments?|transfers?|"
    r"different|more|other|i|it|you|we|which|what|when|where|has|have|can|will|would)\b"
)
_WORD = r"[a-z\u00df-\u00ff][\w'’-]{0,30}"  # noqa: RUF001
_CAPITAL = r"(?-i:[A-Z\u00c0-\u00de])[\w'’-]{0,30}"  # noqa: RUF001
_NAME = rf"(?!{_STOP})(?:{_WORD}\.?|\d{{1,3}}(?:st|nd|rd|th)\b)"
# The digit stands first, and what may not stand before it second: so the search skips to digits.
_HOUSE = (
    r"\d(?<![\w$£€¥₹]\d)(?<!\d[.,:/-]\d)\d{0,4}(?:[a-z]\b|(?!\w))(?: ?[-/] ?\d{1,4}[a-z]?\b)?"
    r"(?: (?:bis|ter)\b)?,?"
)
_NUMBER = (
    r"(?:n[º°o]\.? ?)?\d{1,4}(?:-\d{1,4})?(?: ?[a-z]\b)?(?!\w)"  # a house number after its street
)
_UNIT = (
    r"(?:\b(?:apt|apartment|unit|suite|ste|flat|floor|room)\b|#)\.? ?#?(?=\w{0,5}\d|[a-z]\b)\w{1,6}"
)
_STREET = (
    r"(?:street|avenue|ave|road|rd|boulevard|blvd|lane|ln|terrace|crescent|cres|parkway|pkwy|drive|"
    r"mews|gardens|grove|highway|hwy|turnpike|esplanade|quay|wharf|circle|court)\b\.?"
)
# Words that mean something else as often: believed in capitals, before a postcode, after "live at".
_MAYBE_STREET = (
    r"(?:st|dr|ct|cir|pl|sq|close|place|square|way|trail|hill|rise|green|park|view|loop|plaza|path|"
    r"walk|row|alley|parade|gate|meadows?|fields?|point|ridge|heights)\b\.?"
)
_AREAS = (
    "AB|AL|BA|BB|BD|BH|BL|BN|BR|BS|BT|B|CA|CB|CF|CH|CM|CO|CR|CT|CV|CW|DA|DD|DE|DG|DH|DL|DN|DT|DY|"
    "EC|EH|EN|EX|E|FK|FY|GL|GU|GY|G|HA|HD|HG|HP|HR|HS|HU|HX|IG|IM|IP|IV|JE|KA|KT|KW|KY|LA|LD|LE|"
    "LL|LN|LS|LU|L|ME|MK|ML|M|NE|NG|NN|NP|NR|NW|N|OL|OX|PA|PE|PH|PL|PO|PR|RG|RH|RM|SA|SE|SG|SK|"
    "SL|SM|SN|SO|SP|SR|SS|ST|SW|SY|S|TA|TD|TF|TN|TQ|TR|TS|TW|UB|WA|WC|WD|WF|WN|WR|WS|WV|W|YO|ZE"
)
_GB = (
    rf"(?<!\w)(?:{_AREAS})\d[a-z\d]? ?\d(?!st\b|nd\b|rd\b|th\b|gb\b|tb\b)"
    r"[abd-hjlnp-uw-z]{2}(?!\w)"
)
_CA = r"(?<!\w)[abceghj-nprstvxy]\d[abceghj-nprstv-z][ -]?\d[abceghj-nprstv-z]\d(?!\w)"
_STATE = (
    r"\b(?:A[LKZR]|C[AOT]|DE|DC|FL|GA|HI|I[DLNA]|K[SY]|LA|M[EDAINSOT]|N[EVHJMYCD]|O[HKR]|PA|RI|"
    r"S[CD]|T[NX]|UT|V[TA]|W[AVIY])"
)
_ZIP = r"\d{5}(?:-\d{4})?(?!\d)"
_CODE = rf"(?:{_GB}|{_CA}|{_ZIP}|\d{{4}}(?: ?[a-z]{{2}}\b)?(?!\d))"
_CITY = rf"(?:,? (?!(?:and|but|please|i)\b){_WORD}\.?){{0,4}}"
_UP_TO_CODE = rf"(?:,? {_UNIT})?{_CITY},? {_CODE}"
_TAIL = rf"(?:{_UP_TO_CODE}|,? {_UNIT})?"
_POSTAL = r"(?<!e-mail )(?<!email )(?<!mail )(?<!ip )(?<!web )address"
_LIVE = (
    rf"(?:{_POSTAL}|(?:live[ds]?|living|reside|staying|based) (?:at|in|on)|moved|moving|relocated|"
    r"ship(?:ped)?|deliver(?:ed|y)?|send|sent|home|house|place)\b"
)
_LIVE_AT = rf"(?:{_POSTAL}|live[ds]? at|living at|reside at)\b"

# ---- addresses ----------------------------------------------------------------------------------

_FRENCH = (
    r"(?:rue|all[ée]e|chemin|impasse|quai|boulevard|bd|avenue|av\.|cours|place d\w+|route d\w+)"
)
_ROMANCE = (
    r"(?:calle|c/|avenida|avda\.?|paseo|carrer|viale|corso|rua|travessa|ul\.|ulica|"
    r"(?-i:Via|Piazza|Plaza|Largo|Am|Im|Zum|Zur|An der|An den|Auf der|Unter den))"
)
_COMPOUND = (
    r"(?:\w{0,30}(?:stra(?:ß|ss)e|str\.)"
    r"|\w{3,30}(?:str|weg|platz|allee|gasse|straat|laan|gracht|singel|gatan)"
    rf"|{_CAPITAL} (?:stra(?:ß|ss)e|str\.?|weg|platz|allee|damm)"
    r"|(?-i:[A-Z])\w{2,30}(?:plein|dijk|kade|damm|ufer|gade|vej|vei))"
)
_BOX = (
    r"(?:p\.? ?o\.? ?box|post(?:al)?(?: ?office)? ?box|gpo box|postfach|apartado|casella postale|"
    r"bo[iî]te postale)"
)
_NAMES = rf"(?:{_NAME} ){{1,4}}?"
_STREETS: Final = (
    # 12 Maple Street, Apt 4B, Springfield, IL 62704; 12 old mill road, leeds ls1 4qz
    rf"(?P<value>{_HOUSE} {_NAMES}{_STREET}{_TAIL})",
    # 12 Orchard Close; 12 N. Main St; 12 orchard close, ls1 4qz; I live at 12 orchard close
    rf"(?P<value>{_HOUSE} (?:{_CAPITAL}\.? ){{1,4}}?(?=(?-i:[A-Z])){_MAYBE_STREET}{_TAIL})",
    rf"(?P<value>{_HOUSE} {_NAMES}{_MAYBE_STREET}{_UP_TO_CODE})",
    rf"{START}{_LIVE}{FILL}(?P<value>{_HOUSE} {_NAMES}{_MAYBE_STREET}{_TAIL})",
    # my address is 14 The Larches
    rf"{START}{_LIVE_AT}{FILL}(?P<value>{_HOUSE} (?:(?-i:The) )?(?!{_STOP}){_WORD}"
    rf"(?: {_CAPITAL})*{_TAIL})",
    # 12 bis rue de la Paix, 75002 Paris
    rf"(?P<value>{_HOUSE} {_FRENCH} (?:(?:de|du|des|la|le|les|saint|sainte)[ -]){{0,3}}"
    rf"{_WORD}(?:[ -]{_CAPITAL}){{0,3}}{_TAIL})",
    # Calle Mayor 12, 28013 Madrid; Via Roma 3; Am Markt 5; ul. Polna 7
    rf"\b(?P<value>{_ROMANCE} (?:(?:de|del|della|dei|do|da|la|las|los) ){{0,2}}"
    rf"(?:{_CAPITAL} ?){{1,4}},? ?(?!{_NUMBER} {_STOP}){_NUMBER}{_TAIL})",
    # Hauptstrasse 12, 10115 Berlin; Berliner Str. 3; Keizersgracht 5
    rf"(?<!\w)(?P<value>{_COMPOUND} ?{_NUMBER}(?:{_UP_TO_CODE})?)",
    rf"\b(?P<value>{_BOX} ?(?:no\.?|number|nr\.?|#)? ?[a-z]?\d[\d -]{{0,6}}(?!\w))",
    rf"{START}(?:zip|post ?code|postal code|plz|eircode)\b(?: ?code)?{FILL}"
    r"(?P<value>(?=[a-z -]{0,4}\d)[a-z\d]{2,5}(?:[ -]\d[a-z\d]{2}|-\d{4})?)(?!\w)",
)
# For each of them substrings, one of which it has: to look for those costs a hundredth.
_HINTS: Final = tuple(
    tuple(line.split())
    for line in (
        "st ave road rd boulevard blvd lane ln terrace cres parkw pkwy drive mews garden grove "
        "highway hwy turnpike esplanade quay wharf circle court",
        *["st dr ct cir pl sq close way trail hill rise green park view loop path walk row alley "
          "parade gate meadow field point ridge height"] * 3,
        "address liv resid",
        "rue all chemin impasse quai boulevard bd av cours place route",
        "calle c/ avenida avda paseo carrer via corso rua travessa ul piazza plaza largo am im zu "
        "an auf unter",
        "str weg platz allee gass laan gracht singel gatan damm plein dijk kade ufer gade vej vei",
        "box postfach apartado postale",
        "zip post plz eircode",
    )
)  # fmt: skip
_ADDRESSES: Final = tuple(
    (hints, re.compile(pattern, re.I)) for hints, pattern in zip(_HINTS, _STREETS, strict=True)
)
# A gate that starts with a digit, so the search skips to digits; what it lets in is looked for.
_CODES: Final = tuple(
    (re.compile(gate, re.I), re.compile(rf"(?P<value>{pattern})", re.I))
    for gate, pattern in (
        (r"\d[a-z]{2}(?!\w)", _GB),
        (r"\d[a-z]\d(?!\w)", _CA),
        (r"\d{5}(?!\d)", rf"(?:(?-i:{_STATE})|(?<=, ){_STATE}),? {_ZIP}"),
    )
)
_UNIT_BEFORE: Final = re.compile(rf"{_UNIT},? $", re.I)
_LOOK_BACK: Final = 20


def addresses(text: str, lowered: str) -> Spans:
    """Args: lowered: the text in small letters."""
    for hints, pattern in _ADDRESSES:
        if any(map(lowered.__contains__, hints)):
            yield from (_with_unit(text, *span) for span in values(pattern, text))
    for gate, pattern in _CODES:
        if gate.search(text):
            yield from values(pattern, text)


def _with_unit(text: str, start: int, end: int) -> tuple[int, int]:
    """Flat 3, before the house number belongs to it."""
    unit = _UNIT_BEFORE.search(text, max(0, start - _LOOK_BACK), start)
    return (unit.start() if unit else start), end


# ---- dates of birth -----------------------------------------------------------------------------

_MONTH = (
    r"(?:jan(?:uary|uar|vier|uari|eiro)?|ene(?:ro)?|gennaio|styczni\w|feb(?:ruary|ruar|rero|braio|"
    r"ruari)?|f[ée]v(?:rier|ereiro)?|lut\w{2,5}|mar(?:ch|s|zo|ço|t|ca)?|märz|maart|marzec|apr(?:il|ile|iel)?|"
    r"avr(?:il)?|abr(?:il)?|kwietnia|ma[iyjg]o?|maggio|maja|june?|juni|juin|junio|giugno|junho|"
    r"czerwca|july?|juli|juil(?:let)?|julio|luglio|julho|lipca|aug(?:ust|ustus|usti)?|ao[ûu]t|"
    r"agosto|sierpnia|sep(?:t(?:ember|embre|iembre)?)?|settembre|setembro|wrze[śs]nia|o[ck]t(?:ober|"
    r"obre|ubre)?|ottobre|outubro|pa[źz]dziernika|nov(?:ember|embre|iembre|embro)?|listopada|"
    r"d[eéi][czs](?:ember|embre|iembre|embro)?|grudnia)\.?"
)
_DAY = r"\d{1,2}(?:st|nd|rd|th|er|\.|º)?"
_DATE = (
    r"(?:\d{1,4}[ ./-]{1,2}\d{1,2}[ ./-]{1,2}\d{2,4}|"
    rf"{_DAY}(?: (?:of|de))?[ -]{_MONTH},?(?: de)?[ -]\d{{2,4}}|{_MONTH} {_DAY},? \d{{2,4}}|"
    r"\d{8})(?!\d)"
)
_BIRTH = (
    r"(?:born|d\.? ?o\.? ?b|date of birth|birth ?da(?:te|y)|geboren|geb(?=\.)|"
    r"geburtsdatum|geburtstag|"
    r"n[ée]e? le|naissance|nac(?:í|i|ido|ida)|nacimiento|nat[oa]|nascita|geboortedatum|nasci|"
    r"nascid[oa]|nascimento|urodz(?:on[ya]|iłem|iłam)|urodzenia|f[öøo]dd?t?|f[öø]delse(?:s)?dat(?:um|o)|"
    r"fødselsdato|fødselsdag|syntyn(?:yt|eet)|syntymäaika)"
)
_ON = (
    r"(?:[\s:=.,-]|\b(?:am|le|el|il|em|op|den|d|dnia|in|ist|est|es|é|è|jest|er|är|was|war)\b){0,6}"
)
_BORN: Final = (
    re.compile(rf"{START}{_BIRTH}\b\.?(?:{FILL}{_ON})(?P<value>{_DATE})", re.I),
    re.compile(rf"(?<![\w.,/-])(?P<value>{_DATE}) (?:in [\w-]{{1,30}} )?{_BIRTH}\b", re.I),
)
_BORN_HINTS: Final = (
    "born", "birth", "ob", "o.b", "o b", "geb", "naissance", "né", "nee", "nac", "nat", "nasc",
    "urodz", "föd", "fød", "fod", "synt",
)  # fmt: skip


def birth_dates(text: str, lowered: str) -> Spans:
    if any(map(lowered.__contains__, _BORN_HINTS)):
        for pattern in _BORN:
            yield from values(pattern, text)
