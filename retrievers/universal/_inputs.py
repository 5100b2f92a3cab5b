"""What encoders of a mixed space read of an item or a query: its words, and what it shows.

A passage of text is read as text, a page as its picture alone, and a picture or video as what it shows with the words
that belong to it. A query is read as whatever it has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import Unsupported
from ..base import Item, Query
from ..readers.base import unreadable
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
        UnreadableFile: what it shows is gone, damaged, too large, a line, or cannot be shown as a picture; names the
            file without its folder.
    """
    if given.media is not None and shows(given):
        return Seen(words(given), tuple(_upright(part, edge) for part in _frames(given.media, frames)))
    return Seen(words(given))


def shows(given: Item | Query) -> bool:
    """Whether `seen` finds a picture: there is media, and it is not that of a passage of text."""
    return given.media is not None and not (isinstance(given, Item) and given.modality == "text")


def words(given: Item | Query) -> str:
    """The text of `seen`, without opening what is shown.

    Raises:
        Unsupported: a query with neither text nor anything to show.
    """
    if isinstance(given, Query):
        if given.text is None and given.media is None:
            raise Unsupported("The query has no text and no media.", "Ask with words, with a picture, or with both.")
        return given.text or ""
    if given.modality == "text":
        return searchable_text(given)
    return "" if given.modality == "page" and given.media is not None else given.text


def pictured(item: Item, edge: int) -> Image:
    """What an item shows, whatever it says: of a passage of a document its page, of a video one key frame.

    Raises:
        Unsupported: it shows nothing.
        UnreadableFile: as `seen`.
    """
    if item.media is None:
        raise Unsupported(f"The item `{item.id}` has nothing to look at.", "Search its text otherwise.")
    return _upright(item.media, edge)


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
        what = f"has {shown.width} × {shown.height} pixels when it is drawn: it is a line"
        raise unreadable(Path(media.uri).name, what, "Leave it out, or crop it.")
    return shown
