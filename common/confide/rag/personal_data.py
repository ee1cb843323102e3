"""Personal data with a form that can be checked: found before a document is stored, and masked, refused or kept.

E-mail addresses, telephone numbers (phonenumbers), IBANs, payment cards, and national identity numbers with a check
digit or a date in them: of the US (social security), Germany (tax, insured persons), Spain, France, Poland, Sweden,
Italy and Switzerland (AHV), and behind their names of the United Kingdom (NHS) and the Netherlands (BSN). Names,
addresses of houses, birthdays and whatever is told in words are NOT found: a document without findings is not free of
personal data.

>>> found = findings("Write to ann@example.org, IBAN DE89 3704 0044 0532 0130 00.")
>>> [(one.kind, one.stop - one.start) for one in found]
[('e-mail', 15), ('IBAN', 27)]
>>> masked("Write to ann@example.org now.", findings("Write to ann@example.org now."))
'Write to [e-mail] now.'
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

from confide.errors import StateError
from confide.text import line

Handling = Literal["mask", "refuse", "keep"]
HANDLINGS: tuple[Handling, ...] = ("mask", "refuse", "keep")


@dataclass(frozen=True)
class Finding:
    """Characters [start, stop) of a text are personal data of this kind."""

    kind: str
    start: int
    stop: int


def findings(text: str, region: str | None = None) -> list[Finding]:
    """All that is found, in order, without overlaps (of two the one that begins first, or else is longer).

    region: two letters of the country whose national telephone numbers are meant; None finds those with a + only.
    """
    found = [*_by_pattern(text), *_telephones(text, region)]
    kept: list[Finding] = []
    for one in sorted(found, key=lambda finding: (finding.start, -finding.stop)):
        if not kept or one.start >= kept[-1].stop:
            kept.append(one)
    return kept


def masked(text: str, found: Sequence[Finding]) -> str:
    """The text with [kind] in the place of each finding."""
    parts, place = [], 0
    for one in found:
        parts += [text[place : one.start], f"[{one.kind}]"]
        place = one.stop
    return "".join([*parts, text[place:]])


def counts(found: Sequence[Finding]) -> dict[str, int]:
    """How many of each kind, for a report: the values are in no report."""
    return dict(sorted(Counter(one.kind for one in found).items()))


def check_region(region: str) -> None:
    """Raises StateError for a country whose telephone numbers are not known: none would be found, without a word."""
    import phonenumbers

    if region not in phonenumbers.SUPPORTED_REGIONS:
        raise StateError(
            f"the country {line(region, 20)!r} is not known; write two capital letters as DE, FR or GB (ISO 3166)"
        )


def _by_pattern(text: str) -> Iterator[Finding]:
    for kind, pattern, holds in _PATTERNS:
        place, named = 0, "it" in pattern.groupindex
        while match := pattern.search(text, place):
            start, stop = match.span("it" if named else 0)
            found = holds(text[start:stop])
            if found:
                yield Finding(kind, start, stop)
            # What holds may begin within what does not.
            place = stop if found else match.start() + 1


_PHONE = re.compile(
    r"(?<![\w+./-])(?:\+|\(?0|\(?[1-9])[0-9](?:[ ./()–-]{0,3}[0-9]){5,14}(?![\w/-]|[.,][0-9])", re.ASCII
)
_DATE = re.compile(
    r"(?:19|20)[0-9]{2}-[01][0-9]-[0-3][0-9]|[0-3]?[0-9][./-][0-3]?[0-9][./-](?:19|20)[0-9]{2}"
    r"|(?:19|20)[0-9]{2} ?[–-] ?(?:19|20)[0-9]{2}(?![0-9])",
    re.ASCII,
)


def _telephones(text: str, region: str | None) -> Iterator[Finding]:
    place = 0
    while match := _PHONE.search(text, place):
        start = match.start()
        day = _DATE.match(text, start)
        length = _dialled(match[0], region) if day is None else 0
        if length:
            yield Finding("telephone", start, start + length)
        # A number may begin behind a time, or within what is none.
        place = start + max(1, length if day is None else day.end() - start)


def _dialled(number: str, region: str | None) -> int:
    """How many characters of it are a telephone number, which a date or another number may follow; 0 for none."""
    if region is None and not number.startswith(("+", "00")):
        return 0
    while not _dials(number, region):
        shorter = number.rstrip("0123456789").rstrip(" ./()–-")
        # What has no zero in front is taken whole or not at all.
        if not number.startswith(("+", "0", "(0")) or len(_digits(shorter)) < 7:
            return 0
        number = shorter
    return len(number)


def _dials(number: str, region: str | None) -> bool:
    import phonenumbers

    # 00 is how most countries dial abroad; a region says what its own does.
    written = f"+{number[2:]}" if region is None and number.startswith("00") else number
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(written, region))
    except phonenumbers.NumberParseException:
        return False


def _digits(text: str) -> list[int]:
    return [int(char) for char in text if char.isascii() and char.isdigit()]


def _luhn(digits: Sequence[int]) -> bool:
    """ISO/IEC 7812-1, annex B."""
    doubled = [sum(divmod(2 * digit, 10)) if place % 2 else digit for place, digit in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _iban(text: str) -> bool:
    """ISO 13616: length by country, remainder 1 modulo 97."""
    packed = re.sub(r"[ -]", "", text).upper()
    if _IBAN_LENGTHS.get(packed[:2]) != len(packed):
        return False
    return int("".join(str(int(char, 36)) for char in packed[4:] + packed[:4])) % 97 == 1


_CARDS = re.compile(
    r"4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})|5[1-5][0-9]{14}|2[2-7][0-9]{14}|3[47][0-9]{13}|3[068][0-9]{12}|6[0-9]{15,18}"
)


def _card(text: str) -> bool:
    digits = _digits(text)
    return bool(_CARDS.fullmatch("".join(map(str, digits)))) and len(set(digits)) > 1 and _luhn(digits)


def _day(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


def _us_social_security(text: str) -> bool:
    """No check digit; areas 000, 666 and 900-999, group 00 and serial 0000 were never given out."""
    packed = "".join(map(str, _digits(text)))
    area, group, serial = packed[:3], packed[3:5], packed[5:]
    return area not in {"000", "666"} and area < "900" and group != "00" and serial != "0000"


def _german_tax(text: str) -> bool:
    """ISO 7064 MOD 11,10 over ten digits, of which one comes two or three times."""
    digits = _digits(text)
    product = 10
    for digit in digits[:10]:
        product = ((digit + product) % 10 or 10) * 2 % 11
    repeats = sorted(Counter(digits[:10]).values())
    return (11 - product) % 10 == digits[10] and repeats[-1] in {2, 3} and digits[0] != 0


def _spanish(text: str) -> bool:
    number = text.translate(str.maketrans("XYZxyz", "012012")) if text[0] in "XYZxyz" else text
    packed = re.sub(r"[.-]", "", number).upper()
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(packed[:8]) % 23] == packed[8]


def _french(text: str) -> bool:
    """Remainder modulo 97; Corsica's departments 2A and 2B count as 19 and 18."""
    packed = text.replace(" ", "").upper().replace("2A", "19").replace("2B", "18")
    return 97 - int(packed[:13]) % 97 == int(packed[13:])


def _polish(text: str) -> bool:
    """PESEL: a birthday whose month says the century, and a check digit."""
    d = _digits(text)
    century, month = divmod(10 * d[2] + d[3], 20)
    year = (1900, 2000, 2100, 2200, 1800)[century] + 10 * d[0] + d[1]
    check = sum(weight * digit for weight, digit in zip((1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1), d, strict=True))
    return _day(year, month, 10 * d[4] + d[5]) and check % 10 == 0


def _swedish(text: str) -> bool:
    digits = _digits(text)[-10:]
    return _day(2000 + 10 * digits[0] + digits[1], 10 * digits[2] + digits[3], 10 * digits[4] + digits[5]) and _luhn(
        digits
    )


def _italian(text: str) -> bool:
    """Codice fiscale: the last letter checks the fifteen before it."""
    odd = "BAFHJNPRTVCESULDGIMOQKWZYX"
    total = 0
    for place, char in enumerate(text.upper()[:15]):
        value = int(char) if char.isdigit() else ord(char) - 65
        total += ord(odd[value]) - 65 if place % 2 == 0 else value
    return chr(65 + total % 26) == text[15].upper()


def _nhs(text: str) -> bool:
    """Modulo 11; asked only where the words say what the number is, since one in eleven numbers would pass."""
    digits = _digits(text)
    rest = 11 - sum((10 - place) * digit for place, digit in enumerate(digits[:9])) % 11
    return rest % 11 == digits[9] and rest != 10


def _dutch(text: str) -> bool:
    """BSN: the "eleven test"; asked only where the words say what the number is."""
    digits = _digits(text)
    return sum(weight * digit for weight, digit in zip((9, 8, 7, 6, 5, 4, 3, 2, -1), digits, strict=True)) % 11 == 0


def _swiss(text: str) -> bool:
    """AHV: an EAN-13."""
    digits = _digits(text)
    return sum(digit * (3 if place % 2 else 1) for place, digit in enumerate(digits)) % 10 == 0


def _german_insured(text: str) -> bool:
    """Krankenversichertennummer: a letter as two digits, then weights 1 and 2 and the sum of digits."""
    digits = [*divmod(ord(text[0]) - 64, 10), *_digits(text)]
    total = sum(sum(divmod(digit * (1 + place % 2), 10)) for place, digit in enumerate(digits[:-1]))
    return total % 10 == digits[-1]


def _always(_: str) -> bool:
    return True


_IBAN_LENGTHS: Mapping[str, int] = {
    **dict.fromkeys(("NO",), 15),
    **dict.fromkeys(("BE",), 16),
    **dict.fromkeys(("DK", "FI", "NL", "FO", "GL"), 18),
    **dict.fromkeys(("MK", "SI"), 19),
    **dict.fromkeys(("AT", "BA", "EE", "KZ", "LT", "LU", "XK"), 20),
    **dict.fromkeys(("CH", "CR", "HR", "LI", "LV"), 21),
    **dict.fromkeys(("BG", "BH", "DE", "GB", "GE", "IE", "ME", "RS", "VA"), 22),
    **dict.fromkeys(("AE", "GI", "IL", "IQ", "TL"), 23),
    **dict.fromkeys(("AD", "CZ", "ES", "MD", "PK", "RO", "SA", "SE", "SK", "TN", "VG"), 24),
    **dict.fromkeys(("PT", "ST"), 25),
    **dict.fromkeys(("IS", "TR"), 26),
    **dict.fromkeys(("FR", "GR", "IT", "MC", "MR", "SM"), 27),
    **dict.fromkeys(("AL", "AZ", "BY", "CY", "DO", "GT", "HU", "LB", "PL", "SV"), 28),
    **dict.fromkeys(("BR", "EG", "PS", "QA", "UA"), 29),
    **dict.fromkeys(("JO", "KW", "MU"), 30),
    **dict.fromkeys(("MT", "SC"), 31),
}
_BY_LENGTH: dict[int, list[str]] = {}
for _country, _length in _IBAN_LENGTHS.items():
    _BY_LENGTH.setdefault(_length, []).append(_country)
_IBAN = "|".join(
    f"(?:{'|'.join(countries)})[0-9]{{2}}(?:[ -]?[A-Z0-9]){{{length - 4}}}" for length, countries in _BY_LENGTH.items()
)
"""Each country's length and no character more: a BIC, or a date, often stands behind."""
_SAID = r"(?:[ -]?(?:number|nummer|num|no|nr)\b\.?)?[ :|#-]{0,4}"
_CARD = r"(?<![\w.-])%s(?![\w-]|\.[0-9])"
_PATTERNS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    (
        "e-mail",
        re.compile(r"(?<!\w)\w[\w.+'’-]{0,63}@(?:[^\W_][\w-]{0,62}\.){1,8}[^\W\d_]{2,24}(?!\w)"),
        _always,
    ),
    ("IBAN", re.compile(rf"(?<!\w)(?:{_IBAN})(?!\w)", re.ASCII | re.IGNORECASE), _iban),
    *(
        # Each shape is asked by itself: of a card and what follows it, a longer one must not hide the shorter.
        ("card", re.compile(_CARD % shape, re.ASCII), _card)
        for shape in (
            r"[2-6][0-9]{3}(?:[ -]?[0-9]{4}){3}",
            r"[2-6][0-9]{3}(?:[ -]?[0-9]{4}){3}[ -]?[0-9]{3}",
            r"3[47][0-9]{2}[ -]?[0-9]{6}[ -]?[0-9]{5}",
            r"3[068][0-9]{2}[ -]?[0-9]{6}[ -]?[0-9]{4}",
            r"(?:4[0-9]{12}|6[0-9]{16,17})",
        )
    ),
    *(
        ("identity number", re.compile(pattern, re.ASCII), holds)
        for pattern, holds in (
            (r"(?<![\w-])[0-9]{3}-[0-9]{2}-[0-9]{4}(?![\w-])", _us_social_security),
            (r"(?<!\w)[1-9][0-9](?: ?[0-9]{3}){3}(?!\w)", _german_tax),
            (r"(?<!\w)[A-Z][0-9]{9}(?!\w)", _german_insured),
            (r"(?<!\w)(?:[XYZxyz][0-9]{7}|[0-9]{2}\.?[0-9]{3}\.?[0-9]{3})-?[A-Za-z](?!\w)", _spanish),
            (r"(?<!\w)[12] ?[0-9]{2} ?[0-9]{2} ?(?:[0-9]{2}|2[AB]) ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}(?!\w)", _french),
            (r"(?<!\w)[0-9]{11}(?!\w)", _polish),
            (r"(?<!\w)(?:19|20)?[0-9]{6}[-+][0-9]{4}(?!\w)", _swedish),
            (r"(?<!\w)[A-Z]{6}[0-9]{2}[ABCDEHLMPRST][0-9]{2}[A-Z][0-9]{3}[A-Z](?!\w)", _italian),
            (r"(?<![\w.])756\.[0-9]{4}\.[0-9]{4}\.[0-9]{2}(?!\w|\.[0-9])", _swiss),
            (rf"(?i:\bNHS{_SAID})(?P<it>[0-9]{{3}}[ -]?[0-9]{{3}}[ -]?[0-9]{{4}})(?!\w)", _nhs),
            (
                rf"(?i:\b(?:BSN|burgerservice){_SAID})"
                r"(?P<it>[0-9]{3}[. ]?[0-9]{3}[. ]?[0-9]{3}|[0-9]{4}[. ]?[0-9]{2}[. ]?[0-9]{3})(?!\w)",
                _dutch,
            ),
            (
                rf"(?i:\b(?:SSN|social security){_SAID})(?P<it>[0-9]{{3}}[ -]?[0-9]{{2}}[ -]?[0-9]{{4}})(?!\w)",
                _us_social_security,
            ),
        )
    ),
)
