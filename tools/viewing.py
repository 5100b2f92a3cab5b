"""What `view` shows of an item: its page, picture or key frame, as large as a token budget allows."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from ..errors import BadInput
from ..refiners.tokens import count
from .image_cost import SMALLEST_EDGE, formula_of, largest_edge
from .operations import view_block, where_of
from .schemas import ViewOut

if TYPE_CHECKING:
    from pathlib import Path

    from ..retrievers.base import Item, MediaRef
    from ..retrievers.readers.picture import Picture
    from ..settings import Settings

LARGEST_EDGE = 2048
DEFAULT_EDGE = 1024


def checked_edge(max_edge: int) -> int:
    """The longer side asked for, in pixels, else `BadInput`."""
    if not SMALLEST_EDGE <= max_edge <= LARGEST_EDGE:
        raise BadInput(f"max_edge is `{max_edge}`.", f"Use {SMALLEST_EDGE} to {LARGEST_EDGE:,}.")
    return max_edge


def viewed(item: Item, media: MediaRef, path: Path, max_edge: int, budget: int, settings: Settings) -> ViewOut:
    """The largest picture of `media` that, with the text block beside it, takes at most `budget` tokens.

    Args:
        media: what of the file at `path` is shown.
        max_edge: its longer side has at most so many pixels, whatever the budget.
        settings: `tokenizer` counts the text block, `image_tokens` the picture (see `image_cost.FORMULAS`).

    Raises:
        BadInput: not even a picture of `SMALLEST_EDGE` pixels fits; the message names the smallest budget.
        UnreadableFile: see `readers.picture.picture`.
    """
    formula, tokenizer = settings.image_tokens, settings.tokenizer
    cost = formula_of(formula)

    @cache
    def words(tokens: int) -> int:
        return count(view_block(item.id, item.title, where_of(item), tokens, formula), tokenizer)

    def spent(width: int, height: int) -> int:
        return cost(width, height) + words(cost(width, height))

    seen = _seen(path, media, max_edge)
    while spent(seen.width, seen.height) > budget:  # again where a renderer rounded the shorter side up
        seen = _seen(path, media, largest_edge(seen.width, seen.height, spent, budget))
    return ViewOut(
        id=item.id,
        title=item.title,
        where=where_of(item),
        mime=seen.mime,
        image=seen.image,
        width=seen.width,
        height=seen.height,
        tokens=cost(seen.width, seen.height),
        formula=formula,
    )


def _seen(path: Path, media: MediaRef, edge: int) -> Picture:
    from ..retrievers.readers.picture import picture

    return picture(path, media.uri, media.mime, media.page, edge, start_s=media.start_s, end_s=media.end_s)
