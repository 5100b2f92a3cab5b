"""Fusion of lists that no single store can fuse: hits of several collections, of several systems, of an old server.

By ranks: Cormack, Clarke and Buettcher 2009, doi:10.1145/1571941.1572114; inside one collection Milvus does the same.
By weighted scores: Bruch, Gai and Ingber 2023, doi:10.1145/3596512, each score as a share of the way from the least
that its route can give to the best that it gave. That is ours on every backend, because they scale scores differently:
Milvus by a fixed curve, Milvus Lite between the least and the best score of a list, so that what stands at the end of
a long list counts for nothing and a small k is not the head of a large one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import BadInput
from .base import Hit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RRF_K = 60

Ranked = list[tuple[str, float]]
"""Ids with their scores, best first."""


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
    items = {hit.item.id: hit.item for hits in reversed(lists) for hit in hits}
    ranked = by_rank([[hit.item.id for hit in hits] for hits in lists], k, weights)
    return [Hit(items[id_], score) for id_, score in ranked]


def by_rank(lists: Sequence[Sequence[str]], k: int = RRF_K, weights: Sequence[float] | None = None) -> Ranked:
    """As `rrf`, of ids."""
    scores: dict[str, float] = {}
    for n, ids in enumerate(lists):
        for rank, id_ in enumerate(ids, start=1):
            scores[id_] = scores.get(id_, 0.0) + (weights[n] if weights else 1.0) / (k + rank)
    return best_first(scores)


def by_score(lists: Sequence[Ranked], weights: Sequence[float], least: Sequence[float]) -> Ranked:
    """All ids of `lists` (each best first) by the weighted sum of their scaled scores, best first, ties by id.

    A score s of a list whose best is b is worth (s - least) / (b - least), from 0 to 1; an id that a list lacks gets 0
    from it, and so does a score below `least`.

    Args:
        weights: one for each list.
        least: the lowest score that each list's route can give: -1 for a cosine, 0 for BM25.
    """
    scores: dict[str, float] = {}
    for ranked, weight, floor in zip(lists, weights, least, strict=True):
        span = max((score for _, score in ranked), default=floor) - floor
        for id_, score in ranked:
            share = max(0.0, score - floor) / span if span > 0 else 0.0
            scores[id_] = scores.get(id_, 0.0) + weight * share
    return best_first(scores)


def best_first(scores: Mapping[str, float]) -> Ranked:
    """By score, ties by id."""
    return sorted(scores.items(), key=lambda row: (-row[1], row[0]))
