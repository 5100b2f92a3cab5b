"""Reciprocal rank fusion of lists that no single store can fuse: hits of several collections or several systems.

Cormack, Clarke and Buettcher 2009, doi:10.1145/1571941.1572114. Inside one collection Milvus does the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import BadInput
from .base import Hit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .base import Item

RRF_K = 60


def rrf(lists: Sequence[Sequence[Hit]], k: int = RRF_K, weights: Sequence[float] | None = None) -> list[Hit]:
    """All hits of `lists` (each best first), scored by the sum of weight / (k + rank), best first, ties by id.

    Ranks count from 1. An item that several lists have is taken from the first of them.

    Raises:
        BadInput: k below 0, or not one weight for each list.
    """
    if k < 0:
        raise BadInput(f"The constant of rank fusion is `{k}`.", "Use 0 or more; 60 is usual.")
    if weights is not None and len(weights) != len(lists):
        raise BadInput(f"There are `{len(weights)}` weights for {len(lists)} lists.", "Give one for each.")
    scores: dict[str, float] = {}
    items: dict[str, Item] = {}
    for n, hits in enumerate(lists):
        for rank, hit in enumerate(hits, start=1):
            items.setdefault(hit.item.id, hit.item)
            scores[hit.item.id] = scores.get(hit.item.id, 0.0) + (weights[n] if weights else 1.0) / (k + rank)
    ranked = sorted(scores, key=lambda id_: (-scores[id_], id_))
    return [Hit(items[id_], scores[id_]) for id_ in ranked]
