"""How good rankings are, by trec_eval's definitions.

ir-measures asks pytrec_eval for nDCG and recall and MS MARCO's script for the reciprocal rank. A passage is relevant
from grade 1 upwards and not if nobody judged it. The gain of nDCG is the grade itself (grades below 1: 0), discounted
by log2(rank + 1), as in trec_eval's `ndcg_cut`; with the gain 2**grade - 1 of other papers, graded judgements give
other figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

METRICS = {
    "nDCG@10": "nDCG@10",
    "MRR@10": "RR@10",
    "recall@1": "R@1",
    "recall@5": "R@5",
    "recall@10": "R@10",
    "recall@100": "R@100",
}
"""Our names → those of ir-measures."""

COMPARED = ("nDCG@10", "MRR@10", "recall@10")
"""The metrics that are tested for differences."""


def per_query(
    qrels: Mapping[str, Mapping[str, int]], found: Mapping[str, Sequence[str]], metrics: Iterable[str] = METRICS
) -> dict[str, dict[str, float]]:
    """Metric → query id → value from 0 to 1, for every query of `qrels`, in its order.

    Args:
        qrels: query id → passage id → grade.
        found: query id → passage ids, best first, each once. Their order is what counts, so that ties stand as they
            are. A query that is missing, or has an empty list, has 0 everywhere.
    """
    import ir_measures

    measures = {ir_measures.parse_measure(METRICS[name]): name for name in metrics}
    judged = [ir_measures.Qrel(query, key, grade) for query, rows in qrels.items() for key, grade in rows.items()]
    ranked = [
        ir_measures.ScoredDoc(query, key, -float(place))
        for query, keys in found.items()
        for place, key in enumerate(keys)
    ]
    values: dict[str, dict[str, float]] = {name: dict.fromkeys(qrels, 0.0) for name in measures.values()}
    for one in ir_measures.iter_calc(measures, judged, ranked):
        values[measures[one.measure]][one.query_id] = float(one.value)
    return values


def means(values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over its queries; at least one query."""
    return {name: sum(by_query.values()) / len(by_query) for name, by_query in values.items()}
