"""What encoders of a mixed space read of an item or a query: its words, and what it shows.

A passage of text is read as text, a page as its picture alone, and a picture or video as what it shows with the words
that belong to it. A query is read as whatever it has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...errors import BadInput, Unsupported
from ..base import Item, Query
from ..readers.picture import drawn
from ..searchable import searchable_text

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..base import MediaRef, Modality

READS: tuple[Modality, ...] = ("text", "page", "image", "video")
"""The modalities of an encoder that reads text and pictures."""
STEEPEST = 100
"""How many times longer than the other the longer side of a picture may be: beyond it a network sees only a line."""


@dataclass(frozen=True)
class Seen:
    """What one input has.

    Attributes:
        text: without the instruction; empty for none.
        pictures: upright, in RGB; several are the frames of a video, in their order.
    """

    text: str
    pictures: tuple[Image, ...] = ()


def seen(given: Item | Query, edge: int, frames: int = 1) -> Seen:
    """What `given` has; its `media.uri` is **a path on this machine**, which the caller has resolved and allowed.

    Args:
        edge: pixels that the longer side of a picture has at most.
        frames: so many of a video.

    Raises:
        Unsupported: it has neither text nor anything to show.
        UnreadableFile: what it shows is gone, damaged, too large, or cannot be shown as a picture.
        BadInput: a picture that is a line.
    """
    if isinstance(given, Query):
        text, media = given.text or "", given.media
    else:
        alone = given.modality == "page" and given.media is not None
        text = "" if alone else searchable_text(given) if given.modality == "text" else given.text
        media = None if given.modality == "text" else given.media
    if media is not None:
        return Seen(text, tuple(_upright(part, edge) for part in _frames(media, frames)))
    if isinstance(given, Query) and given.text is None:
        raise Unsupported("The query has no text and no media.", "Ask with words, with a picture, or with both.")
    return Seen(text)


def _frames(media: MediaRef, count: int) -> list[MediaRef]:
    """The key frames of `count` equal parts of a scene; of anything else, itself."""
    if media.start_s is None or media.end_s is None or count < 2:
        return [media]
    part = (media.end_s - media.start_s) / count
    starts = [media.start_s + part * number for number in range(count)]
    return [replace(media, start_s=start, end_s=start + part) for start in starts]


def _upright(media: MediaRef, edge: int) -> Image:
    shown = drawn(media, edge)
    if max(shown.size) > STEEPEST * min(shown.size):
        size = f"{shown.width} × {shown.height}"
        raise BadInput(f"The picture has `{size}` pixels: it is a line.", "Leave it out, or crop it.")
    return shown
