"""What a passage sounds like, for `view`: the address of its clip, and the clip itself where it was asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import quote

from ..errors import Unsupported

if TYPE_CHECKING:
    from pathlib import Path

    from ..retrievers.base import Item

WAV = "audio/wav"
HEARD_KINDS = ("audio/", "video/")
TOKENS_PER_S = 32
"""What a second of sound costs a model: Gemini's figure, the dearest that a vendor publishes (ai.google.dev, "Audio
understanding", 2026); OpenAI's models take 10."""
SHARE = 2
"""Sound takes at most one part in so many of the budget."""
_CUT_S = 0.1
"""A clip that comes so near to the longest there is was cut."""


@dataclass(frozen=True)
class Heard:
    """A clip.

    Attributes:
        address: under which clients of the MCP server read it.
        seconds: of the passage's stretch; None where it is the whole file and nobody has said how long that is.
        sound: WAV, empty where it was not asked for, or is too large; then `note` says so.
        tokens: what `sound` costs.
    """

    address: str
    seconds: float | None
    sound: bytes = b""
    tokens: int = 0
    note: str | None = None


def heard_of(item: Item, path: Path, library: str | None, budget: int, most_bytes: int) -> Heard | None:
    """The clip behind `item`; None where there is nothing to hear.

    Args:
        path: its file.
        library: the name in the address, None for the server's own library.
        budget: tokens of the whole answer.
        most_bytes: how large the clip itself may be, 0 where only its address is wanted.

    Raises:
        UnreadableFile: the file is damaged.
    """
    from ..retrievers.readers.clip import has_sound

    media = item.media
    if media is None or not media.mime.startswith(HEARD_KINDS):
        return None
    if not has_sound(path, media.uri, media.mime):
        return None
    start_s, end_s = item.source.start_s or 0.0, item.source.end_s
    seconds = None if end_s is None else round(end_s - start_s, 2)
    address = f"triptych://clip/{quote(item.id, safe='')}" + (f"?library={quote(library, safe='')}" if library else "")
    if not most_bytes:
        return Heard(address, seconds)
    return _with_sound(Heard(address, seconds), item, path, budget, most_bytes)


def _with_sound(known: Heard, item: Item, path: Path, budget: int, most_bytes: int) -> Heard:
    from ..retrievers.readers.clip import clip, longest

    media, source, most_s = item.media, item.source, longest(most_bytes)
    assert media is not None
    start_s = source.start_s or 0.0
    too_long = f"The clip is longer than the {most_s:.0f} s that are handed over."
    if known.seconds is not None and known.seconds > most_s:
        return replace(known, note=too_long)
    try:
        made = clip(path, media.uri, media.mime, start_s, source.end_s, most_bytes)
    except Unsupported as error:  # a film that has sound elsewhere
        return replace(known, note=error.message)
    length_s = made.end_s - made.start_s
    if known.seconds is None and length_s > most_s - _CUT_S:
        return replace(known, note=too_long)
    tokens = math.ceil(length_s * TOKENS_PER_S)
    if tokens * SHARE > budget:
        note = f"The sound takes {tokens:,} tokens, which is more than half of max_tokens."
        return replace(known, note=note)
    return replace(known, seconds=round(length_s, 2), sound=made.wav, tokens=tokens)
