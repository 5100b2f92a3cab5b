"""Does the answer survive compression? Gold answer strings in what is left of 20 passages, at equal tokens.

    python benchmarks/compress_qa.py --data multidoc20.jsonl --encoder MINILM_FOLDER --lm SMOLLM2_FOLDER

Each line of the data is `{question, answers, contexts: [{id, title, text}]}`. The budget is the o200k tokens of all
passages, two line feeds between them, over 2 and over 4. An answer survives if one of its spellings, normalised as in
SQuAD (lower case, no punctuation, no articles), is in the normalised result. `given`: passages in the order of the
file, all scores equal; `ranked`: by cosine of MiniLM vectors, best first. `stock` is `llmlingua` through our
compatibility file, with its own budget control (`rate`), which may miss the budget: `used` and `over` say by how much.
Milliseconds are those of compression; reading the passages with the encoder, which the reranker does anyway, is apart.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import statistics
import string
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import percentiles, rows, write

from triptych.refiners.base import Budget, Refiner
from triptych.refiners.hard.extractive import Extractive
from triptych.refiners.hard.llmlingua import LLMLingua
from triptych.refiners.hard.truncate import Truncate
from triptych.refiners.relevance import TokenRelevance
from triptych.refiners.tokens import count
from triptych.retrievers.base import Hit, Item, Query, Source
from triptych.retrievers.lm import TransformersLM
from triptych.retrievers.searchable import searchable_text
from triptych.retrievers.text.all_minilm_l6_v2 import AllMiniLM

RATIOS = (2, 4)
RESAMPLES = 10_000
OURS = "llmlingua, ranked"
Row = dict[str, Any]
Compress = Callable[[Row, int], str]


def normalised(text: str) -> str:
    """SQuAD's normalisation."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(?:a|an|the)\b", " ", text).split())


def survives(row: Row, text: str) -> bool:
    left = normalised(text)
    return any(answer in left for answer in map(normalised, row["answers"]) if answer)


def joined(row: Row) -> str:
    return "\n\n".join(context["text"] for context in row["contexts"])


def hits(row: Row, scores: Sequence[float] | None = None) -> list[Hit]:
    """The passages in the order given, or by score."""
    items = [
        Item(context["id"], context["text"], Source(f"wiki/{context['id']}.md"), meta={"title": context["title"]})
        for context in row["contexts"]
    ]
    if scores is None:
        return [Hit(item, 0.0) for item in items]
    return sorted(map(Hit, items, scores), key=lambda hit: -hit.score)


def refined(refiner: Refiner, ranked: bool) -> Compress:
    def compress(row: Row, tokens: int) -> str:
        found = refiner.refine(Query(row["question"]), hits(row, row["scores"] if ranked else None), Budget(tokens))
        if found.used > tokens:
            raise SystemExit(f"{found.used} tokens for a budget of {tokens}")
        return "\n\n".join(passage.text for passage in found.passages)

    return compress


def random_words(seed: int) -> Compress:
    """Words at random, in their order, as many as fit."""

    def compress(row: Row, tokens: int) -> str:
        words = joined(row).split(" ")
        order = list(range(len(words)))
        random.Random(f"{seed} {row['id']}").shuffle(order)
        low, high = 0, len(words)
        while low < high:
            middle = (low + high + 1) // 2
            text = " ".join(words[n] for n in sorted(order[:middle]))
            low, high = (middle, high) if count(text) <= tokens else (low, middle - 1)
        return " ".join(words[n] for n in sorted(order[:low]))

    return compress


def stock(compressor: Any, **options: Any) -> Compress:
    """The package's own flow, context filter and token pruning."""

    def compress(row: Row, tokens: int) -> str:
        contexts = [context["text"] for context in row["contexts"]]
        question = row["question"] if options else ""
        found = compressor.compress_prompt(
            contexts, question=question, rate=tokens / count(joined(row)), concate_question=False, **options
        )
        return str(found["compressed_prompt"])

    return compress


def measured(name: str, compress: Compress, sample: Sequence[Row]) -> dict[str, Any]:
    """One arm over `sample`, at every ratio."""
    found: dict[str, Any] = {"n": len(sample), "ratios": {}}
    for ratio in RATIOS:
        alive, used, milliseconds = [], [], []
        for row in sample:
            tokens = count(joined(row)) // ratio
            start = time.perf_counter()
            text = compress(row, tokens)
            milliseconds.append((time.perf_counter() - start) * 1000)
            alive.append(survives(row, text))
            used.append(count(text) / tokens)
        found["ratios"][str(ratio)] = {
            "survived": round(statistics.mean(alive), 4),
            "used": round(statistics.mean(used), 4),
            "over_budget": round(statistics.mean(share > 1 for share in used), 4),
            "ms": percentiles(milliseconds),
            "alive": alive,
        }
        print(f"{name:32s} {ratio}x n={len(sample)} {statistics.mean(alive):.3f} used {statistics.mean(used):.3f}")
        sys.stdout.flush()
    return found


def interval(ours: Sequence[bool], other: Sequence[bool], seed: int) -> list[float]:
    """95 % paired bootstrap interval of the difference of the two shares, on the questions both answered."""
    n = min(len(ours), len(other))
    difference = np.array(ours[:n], float) - np.array(other[:n], float)
    drawn = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    means = difference[drawn].mean(1)
    return [round(float(difference.mean()), 4), *(round(float(q), 4) for q in np.quantile(means, [0.025, 0.975]))]


def read(relevance: TokenRelevance, sample: Sequence[Row]) -> list[float]:
    """Give every row the cosine of each passage; the milliseconds that reading its 20 passages took."""
    milliseconds = []
    for row in sample:
        texts = [searchable_text(hit.item) for hit in hits(row)]
        start = time.perf_counter()
        row["scores"] = [relevance.sentence_scores(row["question"], text, [(0, len(text))])[0] for text in texts]
        milliseconds.append((time.perf_counter() - start) * 1000)
    return milliseconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--lm", type=Path, required=True)
    parser.add_argument("--n", type=int, default=300, help="questions for arms without a language model")
    parser.add_argument("--lm-n", type=int, default=100, help="questions for our arms with one")
    parser.add_argument("--stock-n", type=int, default=50, help="questions for the stock library")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.threads:
        import torch

        torch.set_num_threads(given.threads)
    from triptych.refiners.hard._llmlingua_compat import OfflineCompressor

    encoder = AllMiniLM.from_folder(given.encoder, given.precision)
    lm = TransformersLM.from_folder(given.lm, given.precision)
    relevance, compressor = TokenRelevance(encoder), OfflineCompressor(lm.model, lm.tokenizer)
    sample = rows(given.data)[: given.n]
    reading = read(relevance, sample)
    lingua, extractive = LLMLingua(lm.model, lm.tokenizer, relevance), Extractive(relevance)
    arms: dict[str, tuple[Compress, int]] = {
        OURS: (refined(lingua, True), given.lm_n),
        "llmlingua, given": (refined(lingua, False), given.lm_n),
        "extractive, ranked": (refined(extractive, True), given.n),
        "extractive, given": (refined(extractive, False), given.n),
        "extractive, no model, given": (refined(Extractive(), False), given.n),
        "truncate, given": (refined(Truncate(), False), given.n),
        "truncate, ranked": (refined(Truncate(), True), given.n),
        "random words": (random_words(given.seed), given.n),
        "stock llmlingua": (stock(compressor), given.stock_n),
        "stock llmlingua, question rank": (stock(compressor, rank_method="longllmlingua"), given.stock_n),
    }
    found = {name: measured(name, compress, sample[:n]) for name, (compress, n) in arms.items()}
    against = {
        name: {
            ratio: interval(found[OURS]["ratios"][ratio]["alive"], arm["ratios"][ratio]["alive"], given.seed)
            for ratio in arm["ratios"]
        }
        for name, arm in found.items()
        if name != OURS
    }
    for arm in found.values():
        for values in arm["ratios"].values():
            del values["alive"]
    write(
        "compress_qa",
        {
            "command": f"compress_qa.py --n {given.n} --lm-n {given.lm_n} --stock-n {given.stock_n} "
            f"--precision {given.precision} --threads {given.threads} --seed {given.seed}",
            "data": given.data.name,
            "load_average": [round(load, 1) for load in os.getloadavg()],
            "encoder_ms": percentiles(reading),
            "arms": found,
            "ours_minus_arm": against,
        },
        "llmlingua",
    )


if __name__ == "__main__":
    main()
