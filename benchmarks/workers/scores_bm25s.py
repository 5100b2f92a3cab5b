"""Scores of bm25s for every passage and query, from terms that are given, by each formula that is asked for.

The job: `texts` and `queries` (lists of term numbers), `vocabulary` (its size), `formulas` (keywords of `bm25s.BM25`),
`scores` (the file that gets float64 (formulas, queries, texts), as npy).
"""

from typing import Any

import bm25s
import numpy as np
from _worker import Out, read


def main() -> None:
    job, out = read(), Out()
    made = np.zeros((len(job["formulas"]), len(job["queries"]), len(job["texts"])))
    vocabulary = {str(number): number for number in range(job["vocabulary"])}
    for place, formula in enumerate(job["formulas"]):
        index: Any = bm25s.BM25(dtype="float64", **formula)
        index.index((job["texts"], vocabulary), show_progress=False)
        for row, query in enumerate(job["queries"]):
            if query:
                made[place, row] = index.get_scores_from_ids(query)
    np.save(job["scores"], made)
    out.put("version", bm25s.__version__)


if __name__ == "__main__":
    main()
