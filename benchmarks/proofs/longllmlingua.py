"""LongLLMLingua against LLMLingua in its published form at equal tokens, and what reordering does for a reader.

    make prove ID=longllmlingua QUESTIONS=multidoc20.jsonl LIMIT=10

Both prune the whole context with the same language model inside the same exact budget; only one reads the question. The
reader is that language model, too: the mean log-probability of the answer's tokens after the compressed passages and
the question, in the order of the hits, best first, and best at both ends. A question's place of the gold goes round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import _proof

from triptych.refiners.base import Refined, plain
from triptych.refiners.hard.llmlingua import LLMLingua
from triptych.refiners.hard.longllmlingua import ORDERS, LongLLMLingua
from triptych.tools.evaluation import datasets
from triptych.tools.evaluation.baselines import baselines
from triptych.tools.evaluation.compare import against
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Result

if TYPE_CHECKING:
    from triptych.retrievers.lm import LM

RATE = 0.25
METRICS = ("answers_kept", "answer_logprob")


def likelihood(lm: LM, question: datasets.Question, refined: Refined) -> float:
    """How well the reader knows the answer after what is left: the best of its spellings, per token."""
    prompt = f"{plain(refined.passages, 0)}\n\nQuestion: {question.text}\nAnswer:"
    told = lm.logprobs([[prompt]] * len(question.answers), [f" {answer}" for answer in question.answers])
    return max(one.mean for one in told)


def main() -> None:
    given = _proof.asked(__doc__)
    questions = datasets.questions(given.questions, limit=given.limit, seed=given.seed)
    stages = _proof.stages()
    lm = stages.lm()
    systems = {
        "random_words": baselines(given.seed)["random_words"](stages),
        "llmlingua": LLMLingua(lm.model, lm.tokenizer, reach="all"),
        **{f"longllmlingua, {order}": LongLLMLingua(lm.model, lm.tokenizer, reorder=order) for order in ORDERS},
    }
    arms = [
        _proof.survival(name, refiner, RATE, questions.rows, lambda question, made: likelihood(lm, question, made))
        for name, refiner in systems.items()
    ]
    long = arms[2]
    comparisons = [
        *against([long], arms[0], METRICS, given.seed),
        *against([long], arms[1], METRICS, given.seed),
        *against(arms[3:], long, METRICS[1:], given.seed),
    ]
    result = Result(
        name="longllmlingua",
        kind="proof",
        title="LongLLMLingua against LLMLingua at a quarter of the tokens, and its orders",
        command=_proof.command("longllmlingua", given),
        seed=given.seed,
        data=(questions.info,),
        environment=environment(("llmlingua",)),
        arms=tuple(arms),
        comparisons=tuple(comparisons),
        notes=(
            "One language model (SmolLM2-135M-Instruct) prunes and reads; every arm has the same exact budget.",
            "`longllmlingua, original` is the product's; the other orders put the best passage first, or at both ends.",
        ),
    )
    _proof.write(result, given.out)


if __name__ == "__main__":
    main()
