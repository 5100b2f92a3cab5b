"""Numbers and dates as a spreadsheet shows them: the common part of the format codes of ECMA-376, part 1, 18.8.31.

Left out are fractions, conditions and the languages of month names (English here). A number under a code that is not
understood is shown as it is, a date as ISO 8601.
"""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta
from decimal import ROUND_HALF_UP, Context, Decimal
from functools import lru_cache

_LITERAL = r'"[^"]*"|\\.|\[[^\]]*\]|[_*].'
_SECTION = re.compile(rf"((?:{_LITERAL}|[^;])*)(?:;|$)", re.DOTALL)
_NUMBER = re.compile(
    rf"(?P<literal>{_LITERAL})|(?P<places>[#0?][#0?,]*(?:\.[#0?]*)?,*|\.[#0?]+,*)|(?P<other>.)", re.DOTALL
)
_MOMENT = re.compile(rf"(?P<literal>{_LITERAL})|(?P<field>AM/PM|A/P|y+|m+|d+|h+|s+(?:\.0+)?)|(?P<other>.)", re.I | re.S)
_SYSTEM_DATE = re.compile(r"mm-dd-yy|m/d/yy(?: h:mm)?|\[\$-F[48]00\].*", re.IGNORECASE)
_DIGITS = 15  # what a cell keeps of a number
_LARGEST_EXPONENT = 40
_EXACTLY = Context(prec=4 * _LARGEST_EXPONENT)
"""Room for every number that is shown; with the usual 28 digits, larger ones cannot be rounded."""


def shown(value: object, code: str) -> str:
    """`value` (None, bool, number, date, time, duration or text) under the format `code`.

    >>> shown(0.256, "0.0%"), shown(-1234.5, '#,##0.00 "EUR"'), shown(3.0, "General")
    ('25.6%', '-1,234.50 EUR', '3')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, (int, float)):
        return _number(value, code)
    if isinstance(value, timedelta):
        return _duration(value)
    if isinstance(value, (datetime, date, time)):
        return _moment(value, code)
    return str(value)


def _number(value: float, code: str) -> str:
    if not code:
        return _plain(value)
    sections = _sections(code)
    section = sections[0]
    if value < 0 and len(sections) > 1:
        value, section = -value, sections[1]
    elif not value and len(sections) > 2:
        section = sections[2]
    text = _written(value, section)
    return _plain(value) if text is None else text


@lru_cache(maxsize=1024)
def _sections(code: str) -> tuple[str, ...]:
    parts = _SECTION.findall(code)
    return tuple(parts[:-1]) or ("",)  # the last match is the empty one at the end


def _plain(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.{_DIGITS}g}"


def _written(value: float, section: str) -> str | None:
    """`value` under one section of a code; None if that is not understood."""
    parts: list[str] = []
    places: str | None = None
    percent = 0
    if section.lower() in ("general", "@"):
        return None
    for match in _NUMBER.finditer(section):
        if match["literal"]:
            parts.append(_literal(match["literal"]))
        elif match["places"]:
            if places is not None:
                return None
            places = match["places"]
            parts.append("\0")
        elif match["other"].isalpha() or match["other"] in "/@":
            return None
        else:
            percent += match["other"] == "%"
            parts.append(match["other"])
    digits = "" if places is None else _rounded(value, places, percent)
    if digits is None:
        return None
    sign = "-" if digits.startswith("-") else ""
    return sign + "".join(parts).replace("\0", digits.removeprefix("-")).strip()


def _literal(mark: str) -> str:
    """What a quoted, escaped or bracketed part of a code shows: of `[$€-407]` the currency, of a colour nothing."""
    if mark.startswith("["):
        return mark[2:-1].partition("-")[0] if mark.startswith("[$") else ""
    return mark.strip('"') if mark.startswith('"') else mark[1] if mark.startswith("\\") else ""


def _rounded(value: float, places: str, percent: int) -> str | None:
    """`value` with the digits that `places` (such as `#,##0.00`) asks for; None for a number of endless length."""
    scale = 2 * percent - 3 * (len(places) - len(places.rstrip(",")))
    whole, _, fraction = places.rstrip(",").partition(".")
    exact = Decimal(_plain(value))
    if not exact.is_finite() or abs(exact.adjusted()) > _LARGEST_EXPONENT or len(fraction) > _LARGEST_EXPONENT:
        return None
    rounded = exact.scaleb(scale, _EXACTLY).quantize(Decimal(1).scaleb(-len(fraction)), ROUND_HALF_UP, _EXACTLY)
    number, _, decimals = f"{abs(rounded):f}".partition(".")
    number = number.lstrip("0").rjust(whole.count("0"), "0")
    if "," in whole:
        number = re.sub(r"(?<=\d)(?=(?:\d{3})+$)", ",", number)
    least = len(fraction.rstrip("#?"))
    decimals = decimals[:least] + decimals[least:].rstrip("0")
    return "-" * (rounded < 0) + (number or "0") + f".{decimals}" * bool(decimals)


def _moment(value: datetime | date | time, code: str) -> str:
    section = _sections(code)[0]
    fields = [match["field"] for match in _MOMENT.finditer(section) if match["field"]]
    if not fields or _SYSTEM_DATE.fullmatch(section):
        return _iso(value)
    moment = value if isinstance(value, datetime) else _full(value)
    halves = any(field.upper() in ("AM/PM", "A/P") for field in fields)
    parts: list[str] = []
    before, rest = "", fields[1:]
    for match in _MOMENT.finditer(section):
        if match["field"]:
            after = rest.pop(0) if rest else ""
            field = match["field"].lower()
            minutes = field in ("m", "mm") and (before.startswith("h") or after.startswith(("s", "S")))
            parts.append(_field(moment, field, halves=halves, minutes=minutes))
            before = field
        else:
            parts.append(_literal(match["literal"]) if match["literal"] else match["other"])
    return "".join(parts).strip()


def _field(moment: datetime, field: str, *, halves: bool, minutes: bool) -> str:
    """One field of a date code; `minutes` tells `m` for minutes from `m` for months."""
    if field in ("am/pm", "a/p"):
        return "AM" if moment.hour < 12 else "PM"
    letter, padded = field[0], len(field) > 1
    if letter == "y":
        return f"{moment.year:04d}" if len(field) > 2 else f"{moment.year % 100:02d}"
    if letter in "md" and len(field) > 2 and not minutes:
        name = f"{moment:%B}" if letter == "m" else f"{moment:%A}"
        return name[:3] if len(field) == 3 else name[:1] if len(field) == 5 else name
    if letter == "m" and not minutes:
        number = moment.month
    else:
        hour = (moment.hour % 12 or 12) if halves else moment.hour
        number = {"d": moment.day, "h": hour, "m": moment.minute, "s": moment.second}[letter]
    return f"{number:02d}" if padded else str(number)


def _full(value: date | time) -> datetime:
    return datetime.combine(date(1900, 1, 1), value) if isinstance(value, time) else datetime.combine(value, time())


def _iso(value: datetime | date | time) -> str:
    if isinstance(value, datetime) and value.time() == time():
        value = value.date()
    return value.isoformat(" ", "seconds") if isinstance(value, datetime) else value.isoformat()


def _duration(value: timedelta) -> str:
    """Hours, minutes and seconds, the hours without end."""
    seconds = round(value.total_seconds())
    hours, rest = divmod(abs(seconds), 3600)
    return f"{'-' * (seconds < 0)}{hours}:{rest // 60:02d}:{rest % 60:02d}"
