"""The picture of a page or image, downscaled for a model to look at."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from ...errors import UnreadableFile, Unsupported

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

_POINTS_PER_INCH = 72


@dataclass(frozen=True)
class Picture:
    """JPEG bytes with their size in pixels."""

    image: bytes
    width: int
    height: int
    mime: str = "image/jpeg"


def picture(path: Path, uri: str, mime: str, page: int | None, max_edge: int) -> Picture:
    """`page` (1-based) of a PDF, or an image file, with its longer edge at most `max_edge` pixels.

    Raises:
        Unsupported: the file has no pages and is no image.
        UnreadableFile: it cannot be decoded, or has no such page.
    """
    if mime == "application/pdf":
        image = _pdf_page(path, uri, page or 1, max_edge)
    elif mime.startswith("image/"):
        image = _image_file(path, uri)
    else:
        raise Unsupported(f"`{uri}` is `{mime}` and has nothing to look at.", "Use `fetch` for its text.")
    image.thumbnail((max_edge, max_edge))
    out = BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=80)
    return Picture(out.getvalue(), image.width, image.height)


def _pdf_page(path: Path, uri: str, page: int, max_edge: int) -> Image:
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        raise UnreadableFile(f"`{uri}` cannot be opened as a PDF: {error}.", "Index it again.") from None
    try:
        if not 1 <= page <= len(document):
            raise UnreadableFile(f"`{uri}` has no page `{page}`.", f"It has {len(document)}.")
        sheet = document[page - 1]
        scale = min(max_edge / max(sheet.get_size()), 300 / _POINTS_PER_INCH)
        made: Image = sheet.render(scale=scale).to_pil()
        return made
    finally:
        document.close()


def _image_file(path: Path, uri: str) -> Image:
    from PIL import Image as images
    from PIL import ImageOps, UnidentifiedImageError

    try:
        with images.open(path) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (UnidentifiedImageError, OSError, images.DecompressionBombError) as error:
        raise UnreadableFile(f"`{uri}` cannot be decoded: {error}.", "Index it again.") from None
