"""The search behind `co_prompt`'s shipped instruction, and what that is worth on other questions.

    TRIPTYCH_HOME=… python benchmarks/search_prompt.py DATA OUT [--held 100] [--ranked 30]

DATA is a file of lines `{"question", "passage": {"title", "text"}}` (the shipped one: questions of Natural Questions,
CC BY-SA 3.0). OUT keeps the search, which goes on there when it is started again; the figures go to OUT/figures.json.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from triptych import Settings
from triptych.manifests.weights import folder
from triptych.rerankers.prompted._demonstrations import vectors
from triptych.rerankers.prompted.co_prompt import CoPrompt, Search
from triptych.retrievers.base import Hit, Item, Query, Source
from triptych.retrievers.lm_transformers import TransformersLM
from triptych.retrievers.text.all_minilm_l6_v2 import WEIGHTS, AllMiniLM

if TYPE_CHECKING:
    from triptych.retrievers.lm import LM

SEARCH = Search(steps=5, beam=12, kept=4, pairs=24, characters=400)
SHUFFLE = 5
HELD_FROM = 1000
RIVALS = 9
BY_HAND = "Please write a question based on this passage."

Pairs = Sequence[tuple[str, str]]


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    asked.add_argument("data", type=Path)
    asked.add_argument("out", type=Path)
    asked.add_argument("--held", type=int, default=100, help="questions whose likelihood is taken")
    asked.add_argument("--ranked", type=int, default=30, help="of these, questions whose passage is ranked")
    told = asked.parse_args()
    rows = [json.loads(line) for line in told.data.read_text("utf-8").splitlines()]
    random.Random(SHUFFLE).shuffle(rows)
    pairs = [(row["question"], f"{row['passage']['title']}\n{row['passage']['text']}") for row in rows]
    settings = Settings.load()
    lm = TransformersLM.load(settings)
    found = CoPrompt.fit(lm, pairs[: SEARCH.pairs], told.out, SEARCH)
    held = pairs[HELD_FROM : HELD_FROM + told.held]
    lists = candidates(AllMiniLM.from_folder(folder(WEIGHTS, settings.weights)), pairs, held[: told.ranked])
    figures = {}
    for instruction in (found.instruction, BY_HAND, ""):
        ranks = np.array(places(lm, instruction, held, lists))
        figures[instruction] = {"log_likelihood": likelihood(lm, instruction, held), "mrr": float((1 / ranks).mean())}
    content = {"search": found.__dict__, "held": len(held), "ranked": len(lists), "figures": figures}
    (told.out / "figures.json").write_text(json.dumps(content, ensure_ascii=False, indent=1), "utf-8")


def candidates(encoder: AllMiniLM, pairs: Pairs, held: Pairs) -> list[list[str]]:
    """For each question its own passage, then those of other questions that are nearest to the question."""
    passages = list(dict.fromkeys(passage for _, passage in pairs))
    near = vectors(encoder, [query for query, _ in held]) @ vectors(encoder, passages).T
    made = []
    for (_, own), row in zip(held, near, strict=True):
        others = [passages[n] for n in np.argsort(-row, kind="stable") if passages[n] != own]
        made.append([own, *others[:RIVALS]])
    return made


def places(lm: LM, instruction: str, held: Pairs, lists: Sequence[Sequence[str]]) -> list[int]:
    """From 1, the place of each question's own passage."""
    reranker = CoPrompt(lm, instruction)
    made = []
    for (query, _), texts in zip(held, lists, strict=False):
        # The right one comes in last, so that a tie is not in its favour.
        hits = [Hit(Item(str(n), texts[n], Source("")), 0.0) for n in reversed(range(len(texts)))]
        made.append(1 + [hit.item.id for hit in reranker.rank(Query(query), hits).hits].index("0"))
    return made


def likelihood(lm: LM, instruction: str, held: Pairs) -> float:
    """Mean log-probability per token of the questions after their own passages, cut as in the search."""
    prompts = [[f"Passage: {' '.join(passage.split())[: SEARCH.characters]}\n{instruction}\n"] for _, passage in held]
    found = lm.logprobs(prompts, [query for query, _ in held])
    return float(np.mean([one.mean for one in found]))


if __name__ == "__main__":
    main()
