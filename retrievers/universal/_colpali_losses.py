"""ColPali's losses over the MaxSim scores of a batch: the hardest wrong page of the batch, or all of them.

`pairwise` is the published training's (`ColbertPairwiseCELoss` of colpali-engine), not InfoNCE: only the wrong page
that scores highest counts. Pages that a query was given as wrong ones count by `beside`, and `doubted` trusts wrong
pages less that score almost as the right one does. Scores are computed in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ...errors import BadInput

PAIRWISE_TEMPERATURE, NCE_TEMPERATURE = 1.0, 0.02
SMOOTH = 0.1
"""Of the smooth maximum of colpali-engine."""
NEAR, HALVED = 0.95, 0.5
"""Wrong pages with more than this share of the right one's score, and what becomes of their scores."""


def scores(queries: Tensor, pages: Tensor, asked: Tensor, kept: Tensor, *, smooth: float = 0.0) -> Tensor:
    """MaxSim of every query with every page, over the number of the query's vectors: (queries, pages), at most 1.

    Args:
        queries: (queries, q, dim), of unit length.
        pages: (pages, t, dim), of unit length.
        asked, kept: bool (queries, q) and (pages, t): which vectors each has; the others count for nothing.
        smooth: the maximum is this times the log of the sum of exponentials; 0 for the maximum itself.
    """
    products = torch.einsum("aqd,btd->abqt", queries.float(), pages.float())
    products = products.masked_fill(~kept[None, :, None], -torch.inf)
    best = smooth * torch.logsumexp(products / smooth, -1) if smooth else products.amax(-1)
    found = best.masked_fill(~asked[:, None], 0).sum(-1)
    return found / asked.sum(-1, keepdim=True).clamp(min=1)


def pairwise(found: Tensor, temperature: float = PAIRWISE_TEMPERATURE, offset: int = 0) -> Tensor:
    """Mean over queries of softplus((s_hardest - s_right) / T).

    Args:
        found: (queries, pages), as `scores` gives them; the right page of query a at column offset + a, every other
            column a wrong one.
        offset: with pages gathered from several processes, where this one's begin.

    Raises:
        BadInput: fewer than two pages, or a query without a right one.
    """
    right = _right(found, offset)
    positive = found.gather(1, right[:, None])[:, 0]
    hardest = found.scatter(1, right[:, None], -torch.inf).amax(1)
    return functional.softplus((hardest - positive) / temperature).mean()


def info_nce(found: Tensor, temperature: float = NCE_TEMPERATURE, offset: int = 0) -> Tensor:
    """Mean cross-entropy of each query's right page among all pages of the batch; arguments as of `pairwise`."""
    return functional.cross_entropy(found / temperature, _right(found, offset))


def doubted(found: Tensor, near: float = NEAR, factor: float = HALVED) -> Tensor:
    """`found` with the scores of those wrong pages times `factor` that have more than `near` of the right one's: they
    may be right, too. The right page of query a is column a."""
    right = found.diagonal()[:, None]
    own = torch.eye(*found.shape, dtype=torch.bool, device=found.device)
    return torch.where((found > near * right) & ~own, found * factor, found)


def own_scores(queries: Tensor, pages: Tensor, asked: Tensor, kept: Tensor, *, smooth: float = 0.0) -> Tensor:
    """As `scores`, of each query with pages of its own: (queries, k).

    Args:
        pages, kept: (queries * k, t, dim) and (queries * k, t), those of one query beside each other.
    """
    count = len(queries)
    parts = zip(queries, pages.chunk(count), asked, kept.chunk(count), strict=True)
    rows = [scores(query[None], own, words[None], there, smooth=smooth) for query, own, words, there in parts]
    return torch.cat(rows)


def beside(right: Tensor, wrong: Tensor, temperature: float = PAIRWISE_TEMPERATURE) -> Tensor:
    """Mean of softplus((s_wrong - s_right) / T) over the wrong pages that each query was given.

    Args:
        right, wrong: scores (queries,) and (queries, k).
    """
    return functional.softplus((wrong - right[:, None]) / temperature).mean()


def _right(found: Tensor, offset: int) -> Tensor:
    queries, pages = found.shape
    if pages < 2 or offset < 0 or offset + queries > pages:
        raise BadInput(f"There are `{pages}` pages for {queries} queries.", "Give each its own, at least two in all.")
    return torch.arange(queries, device=found.device) + offset
