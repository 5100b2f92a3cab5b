"""The second panel of a session: hits in a better order, and in words whatever kept them from it.

Nothing here loses a hit. Where the reranker's model fails, the order is the best there was by then, and the answer says
so; with the setting `rerank_strict` the model's error is raised instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import EndpointError, Forbidden, NotFound, TimedOut
from ..manifests.registry import cards
from ..progress import left_s, step
from ..rerankers.base import Limits, Ranking, Reranker
from ..retrievers.base import Hit, MediaRef
from .results import id_of

if TYPE_CHECKING:
    from ..retrievers.base import Item, Query
    from ..settings import Settings

PICTURES = ("page", "image")
BLIND = "Pictures were ranked by their text: the language model reads no images."


def limits_of(settings: Settings, depth: int | None) -> Limits:
    """The limits of one ranking: with an endpoint its clock as well, which the caller's own deadline shortens."""
    if not settings.lm_endpoint:
        return Limits(depth=depth)
    seconds = min(float(settings.rerank_timeout) or math.inf, round(max(0.0, left_s()), 1))
    return Limits(depth=depth, seconds=None if seconds == math.inf else seconds)


@dataclass(frozen=True)
class Ranked:
    """What came of ranking.

    Attributes:
        ranking: its hits are those that came in.
        system: the reranker's id; empty where none could be built.
        floor: see `Reranker`; None where nobody read a hit, for then its score is the first stage's.
        notes: what whoever reads the hits should know, and the same in few words; both empty where all went well.
    """

    ranking: Ranking
    system: str = ""
    floor: float | None = None
    notes: tuple[str, str] = ("", "")


def ranked(
    build: Callable[[], Reranker],
    query: Query,
    hits: Sequence[Hit],
    limits: Limits,
    located: Callable[[MediaRef], MediaRef],
    *,
    strict: bool = False,
) -> Ranked:
    """`hits` as the reranker orders them.

    Args:
        build: makes the reranker; that may already ask an endpoint.
        located: gives the path behind media, for rerankers that look at it.
        strict: raises what else would be a note.

    Raises:
        TriptychError: the model's, when `strict`; an argument or a combination that a reranker refuses.
    """
    try:
        reranker = build()
    except (EndpointError, TimedOut) as error:
        step(0, len(hits), "hits")  # raises again where it was the caller's own deadline that passed
        if strict:
            raise
        if len(hits) < 2:
            return Ranked(Ranking(tuple(hits)))
        reason = f"the model cannot be asked: {error.message.rstrip('.')}"
        ranking = Ranking(tuple(hits), complete=False, reason=reason, failure=error)
        return Ranked(ranking, notes=_notes(ranking, hits))
    ranking = _timed(_seen(reranker, query, hits, limits, located), limits)
    if strict and ranking.failure is not None:
        raise ranking.failure
    notes = _notes(ranking, hits)
    if not notes[0] and _is_blind(reranker, ranking, hits[: limits.depth]):
        notes = (BLIND, BLIND)
    return Ranked(ranking, id_of(reranker), reranker.floor if ranking.calls else None, notes)


def _timed(ranking: Ranking, limits: Limits) -> Ranking:
    """A ranking that the clock ended has failed as well: it was not asked for, as a depth is."""
    if limits.seconds is None or ranking.failure or f"{limits.seconds:g} s passed" not in (ranking.reason or ""):
        return ranking
    hint = "Raise the setting `rerank_timeout`, or lower `rerank_depth`."
    return replace(ranking, failure=TimedOut(f"The reranker was not done in time: {ranking.reason}.", hint))


def _seen(
    reranker: Reranker, query: Query, hits: Sequence[Hit], limits: Limits, located: Callable[[MediaRef], MediaRef]
) -> Ranking:
    """The ranking, in which a reranker that looks is shown where the pictures lie."""
    if not reranker.looks or len(hits) < 2:
        return reranker.rank(query, hits, limits)
    shown = [Hit(_located(hit.item, located), hit.score) for hit in hits[: limits.depth]]
    ranking = reranker.rank(query, [*shown, *hits[len(shown) :]], limits)
    known = {hit.item.id: hit.item for hit in hits}
    return replace(ranking, hits=tuple(Hit(known[hit.item.id], hit.score) for hit in ranking.hits))


def _located(item: Item, located: Callable[[MediaRef], MediaRef]) -> Item:
    """`item` with the path of its picture; without a picture where its file is gone, so that its text is read."""
    if item.media is None or item.modality not in PICTURES:
        return item
    try:
        return replace(item, media=located(item.media))
    except (NotFound, Forbidden):
        return replace(item, media=None)


def _notes(ranking: Ranking, hits: Sequence[Hit]) -> tuple[str, str]:
    if ranking.failure is None:
        return "", ""
    what = "Not reranked" if ranking.hits == tuple(hits) else "Reranked in part"
    return f"{what}: {ranking.failure.message}", f"{what} ({type(ranking.failure).__name__})."


def _is_blind(reranker: Reranker, ranking: Ranking, hits: Sequence[Hit]) -> bool:
    """Whether a system for pictures had to read pictures by their text."""
    card = cards().get(id_of(reranker))
    reads = card is not None and "image" in card.modalities and ranking.calls > 0 and not reranker.looks
    return reads and any(hit.item.modality in PICTURES and hit.item.media is not None for hit in hits)
