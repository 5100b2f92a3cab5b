"""What a picture file says of itself: its caption, when the picture was taken, and where.

Read from EXIF, IPTC, XMP and the text chunks of PNG, as far as Pillow takes them apart. All of it is written by whoever
made the file, so it is cleaned, cut to a length, and anything broken counts as not said.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from .base import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from PIL.ImageFile import ImageFile

_LONGEST = 2000  # characters of one caption
_DESCRIPTION, _XP_TITLE, _XP_COMMENT = 0x010E, 0x9C9B, 0x9C9C
_EXIF, _GPS = 0x8769, 0x8825
_TAKEN = ((0x9003, 0x9011), (0x9004, 0x9012))  # when it was taken, when it was digitised, each with its offset from UTC
_LATITUDE, _LONGITUDE = (1, 2), (3, 4)  # the hemisphere, then degrees, minutes and seconds
_IPTC_TITLE, _IPTC_CAPTION = (2, 5), (2, 120)

_MADE_BY_A_MACHINE = re.compile(
    r".*\bdigital( still)? camera|sony dsc|dcim\W.*|default|untitled|screenshot"
    r"|(created|made|edited|processed|generated) (with|by|using) .*|imagej=.*|[<{\[].*",
    re.IGNORECASE | re.DOTALL,
)

Got = TypeVar("Got")


@dataclass(frozen=True)
class Said:
    """What a file says of its picture.

    Attributes:
        caption: its title and its description, one per line, each once; often empty.
        taken: `2024-05-01T08:00:30Z` in UTC where the file gives the offset of its clock, else local time without the
            `Z`; empty where it says nothing.
        place: latitude and longitude in degrees, north and east positive.
    """

    caption: str = ""
    taken: str = ""
    place: tuple[float, float] | None = None

    @property
    def meta(self) -> dict[str, Any]:
        """`taken`, `latitude` and `longitude` as a section's `meta` has them, where they are known."""
        made: dict[str, Any] = {"taken": self.taken} if self.taken else {}
        if self.place is not None:
            made["latitude"], made["longitude"] = self.place
        return made


def said_of(image: ImageFile) -> Said:
    """What the file says of the frame that `image`, as Pillow opened it, stands at; never an error."""
    exif = _tried(image.getexif, None)
    if exif is None:
        return Said(_caption(_others(image)))
    return Said(
        _caption([*_of_exif(exif), *_others(image)]),
        _tried(lambda: _taken(exif.get_ifd(_EXIF)), ""),
        _tried(lambda: _place(exif.get_ifd(_GPS)), None),
    )


def _tried(read: Callable[[], Got], otherwise: Got) -> Got:
    try:
        return read()
    except Exception:  # decoders raise what they like on hostile bytes, and a picture is there without its caption
        return otherwise


def _caption(told: list[str]) -> str:
    """What people wrote, each once: the same words stand in several places of a file, shortened in some."""
    kept: list[str] = []
    for text in (one_line(one[: 10 * _LONGEST])[:_LONGEST].strip() for one in told):
        if not text or _MADE_BY_A_MACHINE.fullmatch(text) or any(text.casefold() in one.casefold() for one in kept):
            continue
        kept = [*(one for one in kept if one.casefold() not in text.casefold()), text]
    return "\n".join(kept)


def _of_exif(exif: Any) -> list[str]:
    return [
        _tried(lambda: _from_utf16(exif.get(_XP_TITLE)), ""),
        _tried(lambda: _from_ascii(exif.get(_DESCRIPTION)), ""),
        _tried(lambda: _from_utf16(exif.get(_XP_COMMENT)), ""),
    ]


def _others(image: ImageFile) -> list[str]:
    """Titles and descriptions of IPTC, XMP and PNG."""
    nothing: list[str] = []
    of_png = [str(image.info[key]) for key in ("Title", "Description") if isinstance(image.info.get(key), str)]
    return [
        *_tried(lambda: _of_iptc(image), nothing),
        *_tried(lambda: list(_of_xmp(image.getxmp())), nothing),
        *of_png,
    ]


def _from_ascii(value: Any) -> str:
    """Text that the standard wants in ASCII and that everybody writes in UTF-8; Pillow reads it as Latin-1."""
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value or "")
    try:
        return text.encode("latin-1").decode("utf-8").partition("\0")[0]
    except UnicodeError:
        return text.partition("\0")[0]


def _from_utf16(value: Any) -> str:
    return bytes(value or b"").decode("utf-16-le", errors="ignore").partition("\0")[0]


def _of_iptc(image: ImageFile) -> list[str]:
    from PIL.IptcImagePlugin import getiptcinfo

    found = getiptcinfo(image) or {}
    values = [found.get(key) for key in (_IPTC_TITLE, _IPTC_CAPTION)]
    return [_from_ascii(value) for value in values if isinstance(value, bytes)]


def _of_xmp(part: Any, key: str = "") -> Iterator[str]:
    """Every `title` and `description` in XMP as Pillow gives it: dictionaries and lists by the local names of tags."""
    if key in ("title", "description"):
        yield _first_text(part)
    elif isinstance(part, dict):
        for name, inner in part.items():
            yield from _of_xmp(inner, name)
    elif isinstance(part, list):
        for inner in part:
            yield from _of_xmp(inner)


def _first_text(part: Any) -> str:
    """The text of an alternative of languages: the one that the writer put first."""
    while not isinstance(part, str):
        if isinstance(part, list):
            part = part[0] if part else ""
        elif isinstance(part, dict):
            part = next((part[name] for name in ("text", "Alt", "Seq", "Bag", "li") if name in part), "")
        else:
            return ""
    return part


def _taken(exif: Any) -> str:
    for tag, offset_tag in _TAKEN:
        stamp = _from_ascii(exif.get(tag)).strip()
        offset = _from_ascii(exif.get(offset_tag)).strip()
        if re.fullmatch(r"\d{4}:\d\d:\d\d \d\d:\d\d:\d\d", stamp) and not stamp.startswith("0000"):
            local = datetime.strptime(stamp, "%Y:%m:%d %H:%M:%S")
            if not re.fullmatch(r"[+-]\d\d:\d\d", offset):
                return local.isoformat()
            known = datetime.fromisoformat(f"{local.isoformat()}{offset}")
            return known.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return ""


def _place(gps: Any) -> tuple[float, float] | None:
    latitude, longitude = (_degrees(gps, *keys) for keys in (_LATITUDE, _LONGITUDE))
    if latitude is None or longitude is None or not (abs(latitude) <= 90 and abs(longitude) <= 180):
        return None
    return (latitude, longitude) if (latitude, longitude) != (0, 0) else None  # a receiver that has not found itself


def _degrees(gps: Any, hemisphere: int, parts: int) -> float | None:
    found = gps.get(parts)
    if not found or len(found) != 3:
        return None
    degrees, minutes, seconds = (float(part) for part in found)
    sign = -1 if _from_ascii(gps.get(hemisphere)).strip().upper() in ("S", "W") else 1
    return sign * round(degrees + minutes / 60 + seconds / 3600, 6)
