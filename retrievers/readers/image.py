"""Pictures: the text that can be recognised in them, with its boxes; else the words of the file's name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO, cast

from ... import progress
from ...errors import UnreadableFile
from ..base import MediaRef
from ._layout import text_of
from .base import Document, Limits, Reader, Section, file_name, name_words, unreadable

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/webp": "WEBP",
    "image/gif": "GIF",
    "image/tiff": "TIFF",
    "image/bmp": "BMP",
}
_PAGED = "image/tiff"


class ImageReader(Reader):
    """One section per picture (per page of a TIFF), of modality `image`. An animation counts as its first frame."""

    mimes = frozenset(FORMATS)

    def read(self, file: BinaryIO, uri: str, mime: str, limits: Limits) -> Document:
        from ._ocr import read_picture

        image = _opened(file, uri, mime, limits)
        frames = _frames(image, uri, mime) if mime == _PAGED else 1
        if frames > limits.max_pages:
            raise unreadable(uri, f"has {frames} pages, more than `max_pages` = {limits.max_pages}", "Split the file.")
        sections = []
        for frame in range(frames):
            progress.step(frame, frames, "pages")
            page = frame + 1 if frames > 1 else None
            text, lines = text_of(read_picture(_decoded(image, frame, uri, limits), limits.ocr_edge))
            media = MediaRef(uri, mime, page=page)
            if text:
                sections.append(Section(text, "image", page, lines=lines, media=media, meta={"ocr": True}))
            else:
                sections.append(Section(name_words(uri), "image", page, media=media, meta={"named": True}))
        return Document(uri, file_name(uri), mime, tuple(sections), {"stripped": 0, "pages": frames})


def render(file: BinaryIO, uri: str, mime: str, page: int, edge: int, limits: Limits) -> Image:
    """The picture in `file` (page `page` of a TIFF, 1-based) as RGB, its longer side at most `edge` pixels.

    Raises:
        UnreadableFile: damaged, above a limit, or it has no such page.
    """
    image = _opened(file, uri, mime, limits)
    frames = _frames(image, uri, mime)
    if not 1 <= page <= frames:
        raise unreadable(uri, f"has no page `{page}`", f"It has {frames}.")
    picture = _decoded(image, page - 1, uri, limits)
    picture.thumbnail((edge, edge))
    return picture


def _opened(file: BinaryIO, uri: str, mime: str, limits: Limits) -> Any:
    from PIL import Image as pillow

    bombs = (pillow.DecompressionBombError, pillow.DecompressionBombWarning)
    try:
        image = pillow.open(file, formats=[FORMATS[mime]])
    except bombs:
        raise _too_large(uri, limits) from None
    except Exception as error:  # decoders raise what they like on hostile bytes
        raise _damaged(uri, mime) from error
    _check_size(image, uri, limits)
    return image


def _frames(image: Any, uri: str, mime: str) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception as error:  # as above
        raise _damaged(uri, mime) from error


def _decoded(image: Any, frame: int, uri: str, limits: Limits) -> Image:
    """Frame `frame` as it is meant to be seen: turned as its camera says, on white, eight bits per colour."""
    from PIL import ImageOps

    try:
        if frame:
            image.seek(frame)
            _check_size(image, uri, limits)
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith(("I", "F")):
            low, high = cast("tuple[float, float]", upright.getextrema())
            scale = 255 / max(high - low, 1e-6)
            upright = upright.convert("F").point(lambda value: value * scale - low * scale)
        if upright.has_transparency_data:
            upright = _on_white(upright.convert("RGBA"))
        return upright.convert("RGB")
    except UnreadableFile:
        raise
    except Exception as error:  # as above
        raise _damaged(uri, image.get_format_mimetype() or "") from error


def _on_white(layer: Image) -> Image:
    from PIL import Image as pillow

    return pillow.alpha_composite(pillow.new("RGBA", layer.size, "white"), layer)


def _check_size(image: Any, uri: str, limits: Limits) -> None:
    if image.width * image.height > limits.max_pixels:
        raise _too_large(uri, limits, image.width, image.height)


def _too_large(uri: str, limits: Limits, *size: int) -> UnreadableFile:
    what = "is a picture of {} × {} pixels".format(*size) if size else "is a picture of far too many pixels"
    return unreadable(uri, f"{what}, more than `max_pixels` = {limits.max_pixels}", "Scale it down.")


def _damaged(uri: str, mime: str) -> UnreadableFile:
    return unreadable(uri, f"is a damaged picture ({mime})", "Open it in a viewer and save it anew, or copy it again.")
