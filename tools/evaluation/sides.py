"""Which half of a passage counts, where passages have a text and a media file.

    text         their text and title, cut as a library cuts a text
    media        what the readers find in the file itself; text, title and the file's name do not count
    media_text   the texts of those passages that have a file: what `media` would find if it were read without a fault

Passages that lack the half are not in the corpus, and queries without a relevant passage in it are not asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ...errors import BadInput

if TYPE_CHECKING:
    from .datasets import Passage

SIDES = ("text", "media", "media_text")

COUNTED = {
    "text": "Of each passage only text and title count, cut as a library cuts a text",
    "media": "Of each passage only what is read from its media file counts, without text, title and the file's name",
    "media_text": "Of each passage that has a media file only text and title count, cut as a library cuts a text",
}

Judgements = Mapping[str, Mapping[str, int]]


def halved(
    side: str, passages: Mapping[str, Passage], qrels: Judgements
) -> tuple[dict[str, Passage], dict[str, dict[str, int]], str]:
    """The passages that have `side`, without the rest of what they hold; their judgements; what was left out.

    Raises:
        BadInput: no such side.
    """
    if side not in SIDES:
        raise BadInput(f"There is no half `{side}` of a passage.", f"Use one of: {', '.join(SIDES)}.")
    kept = {key: _half(side, passage) for key, passage in passages.items() if _has(side, passage)}
    left = {query: {key: grade for key, grade in grades.items() if key in kept} for query, grades in qrels.items()}
    asked, still = (sum(map(is_judged, some.values())) for some in (qrels, left))
    told = f"{COUNTED[side]}. {len(kept):,} of {len(passages):,} passages have that"
    more = f"; {asked - still:,} of {asked:,} queries have no relevant one among them and are not asked."
    return kept, left, told + (more if still < asked else ".")


def is_judged(grades: Mapping[str, int]) -> bool:
    """Whether a query with these grades has a relevant passage."""
    return any(grade > 0 for grade in grades.values())


def _has(side: str, passage: Passage) -> bool:
    said = bool(passage.text.strip() or passage.title.strip())
    there = passage.media is not None
    return {"text": said, "media": there, "media_text": there and said}[side]


def _half(side: str, passage: Passage) -> Passage:
    if side == "media":
        return replace(passage, text="", title="")
    return replace(passage, media=None, modality="text")
