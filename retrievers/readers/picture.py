"""What a passage looks like: its page, image or key frame, scaled down; encoded for a viewer, or plain for a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from ..base import MediaRef
from .base import Limits, unreadable
from .detect import kind_of, opened

if TYPE_CHECKING:
    from collections.abc import Callable

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
    fitted: Callable[[int, int], tuple[int, int]] | None = None,
) -> Picture:
    """Page `page` (1-based) of the PDF or picture at `path`, or the key frame of the video there from `start_s` to
    `end_s`; its longer side at most `max_edge` pixels.

    Drawings are given as PNG; photographs, and what would be large as PNG, as JPEG.

    Args:
        fitted: is told width and height, and answers with those that it may have at most.

    Raises:
        UnreadableFile: as `read`; or the file is no longer of kind `mime`, or has no such page.
    """
    media = MediaRef(uri, mime, page, start_s, end_s)
    shown = _drawn(path, media, max_edge, limits or Limits())
    if fitted is not None and (size := fitted(*shown.size)) != shown.size:
        shown = shown.resize(size, reducing_gap=3.0)
    return _encoded(shown, lossless=mime != "image/jpeg" and not mime.startswith("video/"))


def drawn(media: MediaRef, max_edge: int, limits: Limits | None = None) -> Image:
    """What `media` shows, upright and in RGB, its longer side at most `max_edge` pixels.

    `media.uri` is **a path on this machine**, which the caller has resolved and allowed: a picture, of which a TIFF has
    pages; a PDF, page `media.page`; or a video, the key frame of the scene from `media.start_s` to `media.end_s`.

    Raises:
        UnreadableFile: as `picture`; it names the file without its folder.
    """
    path = Path(media.uri)
    return _drawn(path, replace(media, uri=path.name), max_edge, limits or Limits())


def reference(path: Path) -> MediaRef:
    """What is to be seen in the file at `path`, for `drawn`: the picture, the first page, the first key frame.

    Raises:
        UnreadableFile: no reader takes the file.
    """
    with opened(path, path.name, Limits()) as file:
        return MediaRef(str(path), kind_of(file, path.name))


def _drawn(path: Path, media: MediaRef, max_edge: int, limits: Limits) -> Image:
    from . import image, pdf, video

    uri, mime = media.uri, media.mime
    with opened(path, uri, limits) as file:
        found = kind_of(file, uri)
        if found != mime:
            raise unreadable(uri, f"was {mime} and is now {found}", "Index it again.")
        if mime == pdf.PDF:
            return pdf.render(file.read(), uri, media.page or 1, max_edge)
        if mime in image.FORMATS:
            return image.render(file, uri, mime, media.page or 1, max_edge, limits)
        if mime in video.VideoReader.mimes:
            start_s = media.start_s or 0.0
            return video.render(file, uri, mime, start_s, media.end_s or start_s, max_edge, limits)
    raise unreadable(uri, f"is {mime}, which cannot be shown as a picture", "Read its text instead.")


def _encoded(picture: Image, *, lossless: bool) -> Picture:
    png, jpeg = BytesIO(), BytesIO()
    if lossless:
        picture.save(png, "PNG", optimize=True)
        if png.tell() <= _LARGEST_PNG:
            return Picture("image/png", png.getvalue(), picture.width, picture.height)
    picture.save(jpeg, "JPEG", quality=_JPEG_QUALITY)
    return Picture("image/jpeg", jpeg.getvalue(), picture.width, picture.height)
