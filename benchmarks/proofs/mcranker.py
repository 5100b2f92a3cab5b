"""MCRanker: a team with criteria of its own against one plain judge, with the same language model.

    TRIPTYCH_LM=FOLDER make prove ID=mcranker DATA=trec_dl19

The plain judge is MCRanker's own prompt with one member and one criterion, that the passage answers the query: one call
a passage. The model has to follow instructions, which the profile's does not: name one of half a billion parameters or
more. Models answer greedily, so that asking the plain judge three times is asking it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import _proof
import _reranking

from triptych.rerankers import _pointwise
from triptych.rerankers._pointwise import Read, as_data
from triptych.rerankers.base import Cost, Limits, Ranking, Reranker
from triptych.rerankers.prompted.mcranker import (
    PASSAGE_CHARACTERS,
    PLAIN,
    SCORE_TOKENS,
    UNKNOWN,
    MCRanker,
    score_of,
    scoring,
)
from triptych.retrievers.searchable import searchable_text
from triptych.tools.evaluation.compare import against
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Result
from triptych.tools.evaluation.resume import language_model

if TYPE_CHECKING:
    from triptych.retrievers.base import Hit, Item, Query
    from triptych.retrievers.lm import LM

TOP = 10
LIMIT = 8


class Plain(Reranker):
    """Orders hits by one member's score, 0 to 10."""

    def __init__(self, lm: LM) -> None:
        self._lm = lm

    def rank(self, query: Query, hits: Sequence[Hit], limits: Limits | None = None) -> Ranking:
        unusable = 0

        def read(items: Sequence[Item]) -> list[Read]:
            nonlocal unusable
            texts = [as_data(searchable_text(item), PASSAGE_CHARACTERS) for item in items]
            answers = self._lm.generate([[scoring(PLAIN[0], str(query.text), text)] for text in texts], SCORE_TOKENS)
            scores = [score_of(answer) for answer in answers]
            unusable += scores.count(None)
            return [Read(UNKNOWN if score is None else score, 0) for score in scores]

        found = _pointwise.rank(hits, limits, read, lambda score, say: score, 8)
        return Ranking(found.hits, calls=found.calls, repaired=unusable)

    def estimate(self, n: int) -> Cost:
        return Cost(n, 0)


def main() -> None:
    given = _reranking.asked(__doc__, LIMIT, learns=False)
    stages = _proof.stages()
    lm = stages.local_lm()
    lists = _reranking.Lists.of(given.data, given.limit, TOP, given.seed)
    arms = [lists.before(), lists.measured("plain_judge", Plain(lm)), lists.measured("mcranker", MCRanker(lm))]
    result = Result(
        name="mcranker",
        kind="proof",
        title="A recruited team with criteria against one plain judge",
        command=_reranking.command("mcranker", given),
        seed=given.seed,
        data=(lists.collection.info,),
        environment=environment(),
        arms=tuple(arms),
        comparisons=tuple(
            row for baseline in arms[:2] for row in against([arms[2]], baseline, _reranking.METRICS, given.seed)
        ),
        notes=(
            f"Language model: {language_model(stages.settings)}. The paper has GPT-4.",
            f"{TOP} candidates of the BM25 run per query. `ties`: the share of hits that have the score of the hit "
            "before them; these stand in the run's order.",
            "`repaired`: recruits, criteria and scores that the model did not say, per query.",
        ),
    )
    _proof.write(result, given.out)


if __name__ == "__main__":
    main()
