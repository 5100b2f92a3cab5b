"""Where on a page a query's words are found, by the retriever of pages that the library has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import BadInput, Unsupported
from .schemas import ExplainOut

if TYPE_CHECKING:
    from ..retrievers.base import Item
    from .stages import Stages

SYSTEM = "colpali"
"""The one system whose vectors have a place on the page."""


def explained(item: Item, query: str, token: int | None, stages: Stages) -> ExplainOut:
    """The page of `item` under the similarities of the query's tokens.

    Args:
        item: its `media.uri` is a path on this machine.
        token: one of them, from 0; None: the mean of all.

    Raises:
        MissingWeights: the system's.
        Unsupported: `item` shows no page.
        BadInput: no such token.
    """
    from ..retrievers.universal._colpali_maps import similarity_map
    from ..retrievers.universal.colpali import ColPali

    encoder = stages.further(SYSTEM, required=True)
    if not isinstance(encoder, ColPali):
        raise Unsupported(f"`{SYSTEM}` is `{type(encoder).__name__}` here.", "Remove the package that replaces it.")
    if not query.strip():
        raise BadInput("The query has no text.", "Ask with at least one word.")
    found = similarity_map(encoder, item, query)
    rows, columns = found.grids.shape[1:]
    best = [divmod(int(grid.argmax()), columns) for grid in found.grids]
    peaks = [((x + 0.5) / columns, (y + 0.5) / rows) for y, x in best]
    return ExplainOut(
        id=item.id,
        query=query,
        retriever=SYSTEM,
        tokens=list(found.tokens),
        similarities=[round(float(grid.max()), 4) for grid in found.grids],
        peaks=[(round(x, 4), round(y, 4)) for x, y in peaks],
        image=found.png(token),
    )
