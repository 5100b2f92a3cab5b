"""Small steps of a session between its values and its results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..retrievers.base import Item, Source
from .operations import hits_out, stripped_in
from .schemas import RerankOut

if TYPE_CHECKING:
    from .operations import Clock
    from .ranking import Ranked
    from .schemas import Given


def given_item(n: int, given: Given) -> Item:
    """The caller's passage `n` (from 1) as an item; without an id or uri it gets one from `n`."""
    uri = given.uri or f"given/{n}"
    return Item(id=given.id or f"given-{n}", text=given.text, source=Source(uri=uri, start=0, end=len(given.text)))


def metadata_of(item: Item) -> dict[str, Any]:
    """What `fetch` says of an item besides its text: its place, and what its file told of itself."""
    source = item.source
    placed = {
        "modality": item.modality,
        "page": source.page,
        "box": source.box,
        "start_s": source.start_s,
        "end_s": source.end_s,
        "source_span": [source.start, source.end],
    }
    kept = {key: value for key, value in item.meta.items() if key not in ("lines", "title")}
    return {**{key: value for key, value in placed.items() if value is not None}, **kept}


def rerank_out(query: str, system_id: str, ranked: Ranked, clock: Clock) -> RerankOut:
    """The result of `rerank`. Its `reason` also says what there is to know about a complete order."""
    ranking = ranked.ranking
    hits = hits_out(ranking.hits)
    return RerankOut(
        query=query,
        reranker=system_id,
        hits=hits,
        stripped=stripped_in(hits),
        calls=ranking.calls,
        tokens=ranking.tokens,
        repaired=ranking.repaired,
        complete=ranking.complete,
        reason=ranking.reason or ranked.notes[0].rstrip(".") or None,
        ms=clock.total(),
    )


def id_of(system: Any) -> str:
    """The id of a built system: the name of its module."""
    return str(type(system).__module__.rpartition(".")[2])
