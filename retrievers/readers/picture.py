"""What a passage looks like: its page or image, scaled down and encoded for a viewer."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from .base import Limits, unreadable
from .detect import kind_of, opened

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

_LARGEST_PNG = 400_000
_JPEG_QUALITY = 85


@dataclass(frozen=True)
class Picture:
    """An encoded image (`image/png` or `image/jpeg`) of `width` by `height` pixels."""

    mime: str
    image: bytes
    width: int
    height: int


def picture(
    path: Path,
    uri: str,
    mime: str,
    page: int | None,
    max_edge: int,
    limits: Limits | None = None,
    *,
    start_s: float | None = None,
    end_s: float | None = None,
) -> Picture:
    """Page `page` (1-based) of the PDF or picture at `path`, or the key frame of the video there from `start_s` to
    `end_s`; its longer side at most `max_edge` pixels.

    Drawings are given as PNG; photographs, and what would be large as PNG, as JPEG.

    Raises:
        UnreadableFile: as `read`; or the file is no longer of kind `mime`, or has no such page.
    """
    from . import image, pdf, video

    limits = limits or Limits()
    with opened(path, uri, limits) as file:
        found = kind_of(file, uri)
        if found != mime:
            raise unreadable(uri, f"was {mime} and is now {found}", "Index it again.")
        if mime == pdf.PDF:
            return _encoded(pdf.render(file.read(), uri, page or 1, max_edge), lossless=True)
        if mime in image.FORMATS:
            return _encoded(image.render(file, uri, mime, page or 1, max_edge, limits), lossless=mime != "image/jpeg")
        if mime in video.VideoReader.mimes:
            start, end = start_s or 0.0, end_s or start_s or 0.0
            return _encoded(video.render(file, uri, mime, start, end, max_edge, limits), lossless=False)
    raise unreadable(uri, f"is {mime}, which cannot be shown as a picture", "Read its text instead.")


def _encoded(picture: Image, *, lossless: bool) -> Picture:
    png, jpeg = BytesIO(), BytesIO()
    if lossless:
        picture.save(png, "PNG", optimize=True)
        if png.tell() <= _LARGEST_PNG:
            return Picture("image/png", png.getvalue(), picture.width, picture.height)
    picture.save(jpeg, "JPEG", quality=_JPEG_QUALITY)
    return Picture("image/jpeg", jpeg.getvalue(), picture.width, picture.height)
