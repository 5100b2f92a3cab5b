"""Co-Prompt: a searched instruction against one written by hand, none, and one of random tokens.

    make prove ID=co_prompt TRAIN=qa_nq_train/train.jsonl DATA=trec_dl19

The instruction is searched for with the profile's language model on questions of Natural Questions and their passages,
and measured on the BM25 run of another collection. The search among random tokens has the same budget: as many tokens
are proposed to it, drawn from the words of the passages instead of by the model.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import _proof
import _reranking
import numpy as np

from triptych.rerankers.prompted.co_prompt import INSTRUCTION, CoPrompt, Found, Search, asked
from triptych.retrievers.lm import LM, LogProbs, Prompt
from triptych.tools.evaluation.compare import against
from triptych.tools.evaluation.datasets import DataInfo
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Result
from triptych.tools.evaluation.resume import language_model, sha256

if TYPE_CHECKING:
    from triptych.tools.evaluation.result import Arm

SEARCH = Search(steps=5, beam=8, kept=4, pairs=20, characters=400)
TOP = 20
LIMIT = 43
SHUFFLE = 11
HELD = slice(1000, 1060)
"""Questions that the search does not see, whose likelihood is taken."""
BY_HAND = "Please write a question based on this passage."
NONE = ""
Pairs = Sequence[tuple[str, str]]


class Random(LM):
    """The same model, but what it proposes are arbitrary words of the passages."""

    can = frozenset({"logprobs", "logits"})

    def __init__(self, lm: LM, words: Sequence[str], seed: int) -> None:
        self._lm = lm
        self._words = words
        self._random = random.Random(seed)

    def logprobs(self, prompts: Sequence[Prompt], targets: Sequence[str]) -> list[LogProbs]:
        return self._lm.logprobs(prompts, targets)

    def top_next(self, prompts: Sequence[Prompt], k: int) -> list[list[str]]:
        return [[f" {word}" for word in self._random.sample(self._words, k)] for _ in prompts]


def likelihood(lm: LM, instruction: str, held: Pairs) -> dict[str, float]:
    """Mean log-probability per token of each held-out question after its passage."""
    texts = [" ".join(passage.split())[: SEARCH.characters] for _, passage in held]
    found = lm.logprobs([[asked(text, instruction)] for text in texts], [query for query, _ in held])
    return {f"nq {n}": one.mean for n, one in enumerate(found)}


def arm(name: str, instruction: str, lm: LM, lists: _reranking.Lists, held: Pairs, tried: int) -> Arm:
    """An instruction's ranking, and how likely the held-out questions are behind it."""
    made = lists.measured(name, CoPrompt(lm, instruction), instruction=instruction, tried=tried)
    likely: dict[str, float | None] = dict(likelihood(lm, instruction, held))
    mean = float(np.mean([value for value in likely.values() if value is not None]))
    metrics = {**made.metrics, "log_likelihood": mean}
    return made.model_copy(update={"metrics": metrics, "per_query": {**made.per_query, "log_likelihood": likely}})


def searched(lm: LM, train: Pairs, work: Path, name: str) -> Found:
    """The best instruction of the search that `work/name` keeps."""
    return CoPrompt.fit(lm, train, work / name, SEARCH)


def main() -> None:
    given = _reranking.asked(__doc__, LIMIT)
    stages = _proof.stages()
    lm = stages.local_lm()
    rows = _reranking.pairs(given.train, SHUFFLE)
    train, held = rows[: SEARCH.pairs], rows[HELD]
    words = sorted({word for _, passage in rows[:200] for word in passage.split() if word.isalpha()})
    lists = _reranking.Lists.of(given.data, given.limit, TOP, given.seed)
    with tempfile.TemporaryDirectory() as scratch:
        work = given.work or Path(scratch)
        found = searched(lm, train, work, "model")
        arbitrary = searched(Random(lm, words, given.seed), train, work, "random")
    told = (
        ("searched", found.instruction, found.tried),
        ("by_hand", BY_HAND, 0),
        ("none", NONE, 0),
        ("random_search", arbitrary.instruction, arbitrary.tried),
        ("shipped", INSTRUCTION, 0),
    )
    arms = [lists.before(), *(arm(name, text, lm, lists, held, tried) for name, text, tried in told)]
    metrics = (*_reranking.METRICS, "log_likelihood")
    comparisons = [
        row for baseline in arms if baseline.system != "searched"
        for row in against([arms[1]], baseline, metrics, given.seed)
    ]  # fmt: skip
    result = Result(
        name="co_prompt",
        kind="proof",
        title="A searched instruction against one by hand, none, and one of random words",
        command=_reranking.command("co_prompt", given),
        seed=given.seed,
        data=(
            lists.collection.info,
            DataInfo(name=given.train.stem, sha256=sha256(given.train), sizes={"questions": len(rows)}),
        ),
        environment=environment(),
        arms=tuple(arms),
        comparisons=tuple(comparisons),
        notes=(
            f"{TOP} candidates of the BM25 run per query. Language model: {language_model(stages.settings)}.",
            f"Searched on {SEARCH.pairs} pairs of Natural Questions, {SEARCH.steps} tokens, {SEARCH.beam} proposals "
            f"for each of {SEARCH.kept} prompts; `tried` is how many were scored. `random_search` has the same budget, "
            "its proposals being arbitrary words of the passages.",
            f"`log_likelihood`: mean per token of {len(held)} other questions of the same data after their passages.",
            "`shipped`: the instruction in the package, of a longer search on other pairs of the same data.",
        ),
    )
    _proof.write(result, given.out)


if __name__ == "__main__":
    main()
