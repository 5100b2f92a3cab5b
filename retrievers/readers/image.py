"""Pictures: the text that can be recognised in them, with its boxes, the file's own caption, and what they show; the
words of the file's name where there is neither text nor caption."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO, cast

from ... import progress
from ...errors import UnreadableFile
from ..base import MediaRef
from ._exif import said_of
from ._layout import text_of
from ._tags import noted, seen_in, shows
from .base import Document, Limits, Reader, Section, file_name, name_words, unreadable

if TYPE_CHECKING:
    from PIL.Image import Image

    from ...errors import MissingWeights
    from ._exif import Said

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
        image = _opened(file, uri, mime, limits)
        frames = _frames(image, uri, mime) if mime == _PAGED else 1
        if frames > limits.max_pages:
            raise unreadable(uri, f"has {frames} pages, more than `max_pages` = {limits.max_pages}", "Split the file.")
        sections = []
        untagged: MissingWeights | None = None
        for frame in range(frames):
            progress.step(frame, frames, "pages")
            page = frame + 1 if frames > 1 else None
            picture = _decoded(image, frame, uri, limits)
            section, missing = _section(picture, said_of(image), MediaRef(uri, mime, page=page), limits)
            sections.append(section)
            untagged = untagged or missing
        meta = {"stripped": 0, "pages": frames, **noted({}, untagged)}
        return Document(uri, file_name(uri), mime, tuple(sections), meta)


def _section(picture: Image, said: Said, media: MediaRef, limits: Limits) -> tuple[Section, MissingWeights | None]:
    """A picture as a section: its text first, so that the offsets of its lines hold, then its caption and its tags."""
    from ._ocr import read_picture

    text, lines = text_of(read_picture(picture, limits.ocr_edge))
    tags, missing = seen_in(picture, limits)
    words = [text, said.caption] if text or said.caption else [name_words(media.uri)]
    meta = {
        **({"ocr": True} if text else {} if said.caption else {"named": True}),
        **said.meta,
        **({"tags": [list(tag) for tag in tags]} if tags else {}),
    }
    whole = "\n\n".join(filter(None, (*words, shows(tags))))
    return Section(whole, "image", media.page, lines=lines, media=media, meta=meta), missing


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
    try:
        if frame:
            image.seek(frame)
            _check_size(image, uri, limits)
        image.load()
        upright = _upright(image)
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


def _upright(image: Image) -> Image:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # as above, but it only says how the camera was held
        return image


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
