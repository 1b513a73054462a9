"""Numbers and names as people read them, the same in the page, in the tables and in the terminal."""

import math
import re
import unicodedata

MISSING = "–"
"""Stands where a number is unknown."""

_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def number(value: int | float | None) -> str:
    """A plain number with three decimals, fewer when it is large, in powers of ten when it is tiny or huge.

    >>> number(0.5), number(1234.5), number(0.00001), number(None)
    ('0.500', '1,234', '1.0e-05', '–')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    size = abs(value)
    if size >= 1e9 or 0 < size < 5e-4:
        return f"{value:.1e}"
    decimals = 3 if size < 100 else 1 if size < 1000 else 0
    return f"{value:,.{decimals}f}"


def percent(share: int | float | None) -> str:
    """A share of a whole, with three digits that count.

    >>> percent(0.0625), percent(1.0), percent(0), percent(0.0001), percent(None)
    ('6.25 %', '100 %', '0 %', '< 0.1 %', '–')
    """
    if share is None:
        return MISSING
    return "< 0.1 %" if 0 < share < 0.001 else f"{100 * share:.3g} %"


def change(before: int | float | None, after: int | float | None) -> str:
    """The difference with its sign; empty if one side is unknown.

    >>> change(0.25, 0.75), change(2.0, 1.5), change(None, 1.0)
    ('+0.500', '−0.500', '')
    """
    if before is None or after is None:
        return ""
    sign = "−" if after < before else "+"
    return sign + number(abs(after - before))


def num_bytes(value: int | float | None) -> str:
    """Bytes in decimal units.

    >>> num_bytes(999), num_bytes(1_500_000), num_bytes(None)
    ('999 B', '1.5 MB', '–')
    """
    if value is None:
        return MISSING
    power = 0
    while power < len(_BYTE_UNITS) - 1 and abs(value) >= 999.5:
        value, power = value / 1000, power + 1
    return f"{value:.{1 if power and abs(value) < 99.95 else 0}f} {_BYTE_UNITS[power]}"


def seconds(value: int | float | None) -> str:
    """A duration in the two units that matter.

    >>> seconds(0.0123), seconds(12.34), seconds(75), seconds(3 * 3600 + 120), seconds(None)
    ('12 ms', '12.3 s', '1 min 15 s', '3 h 02 min', '–')
    """
    if value is None:
        return MISSING
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(value / 60), 60)
    return f"{hours} h {minutes:02d} min"


def words(name: str) -> str:
    """A name from the records as words.

    >>> words("exact_match")
    'exact match'
    """
    return clean(name.replace("_", " "))


def plural(count: int, noun: str) -> str:
    """A count and its noun.

    >>> plural(1, "client"), plural(4, "client")
    ('1 client', '4 clients')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts names by the numbers in them.

    >>> sorted(["home-10", "home-2", "attic"], key=natural)
    ['attic', 'home-2', 'home-10']
    """
    parts = re.findall(r"([0-9]{1,18})|([^0-9]+)", name)
    return [(0, int(digits), "") if digits else (1, 0, rest) for digits, rest in parts]


def clean(text: str) -> str:
    r"""The text on one line, without anything that could steer a terminal or turn the direction of writing.

    Clients, owners and models choose these texts, so a terminal must never see them raw.

    >>> clean("lamp\x1b[2J\non")
    'lamp�[2J on'
    """
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character in "\n\r\t\u2028\u2029":
        return " "
    if character in _BIDIRECTIONAL or unicodedata.category(character) in ("Cc", "Cs"):
        return "\N{REPLACEMENT CHARACTER}"
    return character
