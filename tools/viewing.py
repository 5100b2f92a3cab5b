"""What `view` shows of an item: its page, picture or key frame as large as a token budget allows, and what is heard."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from ..errors import BadInput
from ..refiners.tokens import count
from .image_cost import SMALLEST_EDGE, formula_of, largest_edge, scaled
from .listening import WAV
from .operations import view_block, where_of
from .schemas import ViewOut, visible

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..retrievers.base import Item, MediaRef
    from ..retrievers.readers.picture import Picture
    from ..settings import Settings
    from .library import Triptych
    from .listening import Heard

LARGEST_EDGE = 2048
DEFAULT_EDGE = 1024


def checked_edge(max_edge: int) -> int:
    """The longer side asked for, in pixels, else `BadInput`."""
    if not SMALLEST_EDGE <= max_edge <= LARGEST_EDGE:
        raise BadInput(f"max_edge is `{max_edge}`.", f"Use {SMALLEST_EDGE} to {LARGEST_EDGE:,}.")
    return max_edge


def viewed(
    item: Item, media: MediaRef, path: Path, max_edge: int, budget: int, settings: Settings, heard: Heard | None = None
) -> ViewOut:
    """The largest picture of `media` that, with the text block and the sound beside it, takes at most `budget` tokens.

    Args:
        media: what of the file at `path` is shown; of sound alone there is no picture.
        max_edge: its longer side has at most so many pixels, whatever the budget.
        settings: `tokenizer` counts the text block, `image_tokens` the picture (see `image_cost.FORMULAS`).

    Raises:
        BadInput: not even a picture of `SMALLEST_EDGE` pixels fits; the message names the smallest budget.
        UnreadableFile: see `readers.picture.picture`.
    """
    cost = formula_of(settings.image_tokens)
    plain = _unseen(item, settings.image_tokens, heard)

    @cache
    def words(tokens: int) -> int:
        block = view_block(plain.model_copy(update={"tokens": tokens}))
        return count(block, settings.tokenizer) + plain.sound_tokens

    def spent(width: int, height: int) -> int:
        return cost(width, height) + words(cost(width, height))

    def fitted(width: int, height: int) -> tuple[int, int]:
        if spent(width, height) <= budget:
            return width, height
        return scaled(width, height, largest_edge(width, height, spent, budget))

    if media.mime.startswith("audio/"):
        if words(0) > budget:
            raise BadInput(f"max_tokens is `{budget}`.", f"The smallest answer takes {words(0):,}.")
        return plain
    seen = _seen(path, media, max_edge, fitted)
    size = {"width": seen.width, "height": seen.height, "tokens": cost(seen.width, seen.height)}
    return plain.model_copy(update={"mime": seen.mime, "image": seen.image, **size})


def small_enough(
    session: Triptych, name: str, edge: int, budget: int | None, most_bytes: int, *, sound: bool = False
) -> ViewOut:
    """What `view` shows of a passage, made smaller until the picture has at most `most_bytes` bytes.

    Raises:
        BadInput: it is still larger at the smallest size.
    """
    seen = session.view(name, edge, budget, sound=sound)
    while len(seen.image) > most_bytes and edge > SMALLEST_EDGE:
        edge = max(SMALLEST_EDGE, min(edge, max(seen.width, seen.height)) * 3 // 4)
        seen = session.view(name, edge, budget, sound=sound)
    if len(seen.image) > most_bytes:
        raise BadInput(f"The picture has `{len(seen.image)}` bytes.", f"This server shows at most {most_bytes:,}.")
    return seen


def _unseen(item: Item, formula: str, heard: Heard | None) -> ViewOut:
    """The answer without a picture."""
    return ViewOut(
        id=item.id,
        title=visible(item.title),
        where=where_of(item),
        mime=WAV,
        image=b"",
        width=0,
        height=0,
        tokens=0,
        formula=formula,
        clip=heard.address if heard else None,
        seconds=heard.seconds if heard else None,
        sound=heard.sound if heard else b"",
        sound_tokens=heard.tokens if heard else 0,
        note=heard.note if heard else None,
    )


def _seen(path: Path, media: MediaRef, edge: int, fitted: Callable[[int, int], tuple[int, int]]) -> Picture:
    from ..retrievers.readers.picture import picture

    start_s, end_s = media.start_s, media.end_s
    return picture(path, media.uri, media.mime, media.page, edge, start_s=start_s, end_s=end_s, fitted=fitted)
