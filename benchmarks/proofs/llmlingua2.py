"""LLMLingua-2: the package's decisions, and text from offsets against text from tokens.

    make prove ID=llmlingua2

No checkpoint of the authors can be had without a model hub, so nothing is said here of how well they choose words. What
can be shown without them, on random classifiers: where a word of ours is a word of the `llmlingua` package, both keep
or drop it alike; and what comes back stands in its source, which is not so for text that is joined from word pieces.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import _proof
import numpy as np
from llmlingua import PromptCompressor
from transformers import PreTrainedTokenizerFast

from triptych.refiners.hard.llmlingua2 import LLMLingua2
from triptych.refiners.tokens import count
from triptych.tools.evaluation.compare import against
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, Result

RATES = (0.33, 0.5)
SEEDS = 3
PIECES = 500
"""Passages of at most this many letters and marks, so that both read them in one chunk."""


class Stock(PromptCompressor):  # type: ignore[misc]
    """The package's LLMLingua-2 path over a model that is already there; its constructor would download."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
        self.model = model
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
        self.model_name = "bert-base-multilingual-cased"
        self.device = "cpu"
        self.max_batch_size, self.max_seq_len, self.max_force_token = 50, 512, 100
        self.special_tokens = set(names.values())
        self.added_tokens: list[str] = []
        self.oai_tokenizer = SimpleNamespace(encode=lambda text: range(count(text, "cl100k_base")))

    def told(self, text: str, rate: float) -> tuple[str, list[tuple[str, bool]]]:
        """What it returns, and its words with whether it keeps them."""
        found = self.compress_prompt_llmlingua2([text], rate=rate, return_word_label=True)
        pairs = [pair.rpartition(" ") for pair in found["fn_labeled_original_prompt"].split("\t\t|\t\t")]
        return found["compressed_prompt"], [(word, label == "1") for word, _, label in pairs]


def passages() -> list[tuple[str, str]]:
    """Our own passages in ASCII (the random models' vocabulary), from the collection of the checkout."""
    lines = (_proof.STATION / "corpus.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    texts = [(row["id"], row["text"][:PIECES].strip()) for row in rows]
    return [(key, text) for key, text in texts if text.isascii() and len(text.split()) > 5]


def verbatim(told: str, source: str) -> float:
    """The share of the words of `told` that are words of the source, each as often as there."""
    words, there = Counter(told.split()), Counter(source.split())
    return (words & there).total() / max(1, words.total())


def agreement(words: Sequence[tuple[str, bool]], others: Sequence[tuple[str, bool]]) -> tuple[int, int]:
    """How many decisions about the same words are alike, of how many; texts whose words differ are left out."""
    if [word for word, _ in words] != [word for word, _ in others]:
        return 0, 0
    return sum(a == b for a, b in zip(words, others, strict=True)), len(words)


def plain(text: str) -> str:
    """`text` without what is not a letter, a digit or a blank: its words are the same for both."""
    return " ".join("".join(one if one.isalnum() else " " for one in text).split())


def main() -> None:
    given = _proof.asked(__doc__)
    texts = passages()
    kept: dict[str, dict[str, list[float]]] = {"llmlingua2": {}, "llmlingua": {}}
    same = total = 0
    for seed in range(given.seed, given.seed + SEEDS):
        ours = LLMLingua2.tiny(seed)
        stock = Stock(ours.model, ours.tokenizer)
        for key, text in texts:
            for rate in RATES:
                decided = ours.decide(text, rate)
                chosen = (text[a:b] for (a, b), holds in zip(decided.spans, decided.kept, strict=True) if holds)
                kept["llmlingua2"].setdefault(key, []).append(verbatim(" ".join(chosen), text))
                kept["llmlingua"].setdefault(key, []).append(verbatim(stock.told(text, rate)[0], text))
                easy = plain(text)
                decided = ours.decide(easy, rate)
                words = [(easy[a:b], bool(h)) for (a, b), h in zip(decided.spans, decided.kept, strict=True)]
                found = agreement(words, stock.told(easy, rate)[1])
                same, total = same + found[0], total + found[1]
    arms = [
        Arm(
            system=name,
            metrics={
                "words_verbatim": float(np.mean([np.mean(own) for own in values.values()])),
                "same_decisions": same / total,
                "decisions": total,
            },
            per_query={"words_verbatim": {key: float(np.mean(own)) for key, own in values.items()}},
        )
        for name, values in kept.items()
    ]
    result = Result(
        name="llmlingua2",
        kind="proof",
        title="LLMLingua-2's decisions beside the package's, and whether what comes back stands in its source",
        command=_proof.command("llmlingua2", given),
        seed=given.seed,
        data=(_proof.own("station", [text for _, text in texts], passages=len(texts)),),
        environment=environment(("llmlingua",)),
        arms=tuple(arms),
        comparisons=tuple(against(arms, arms[1], ["words_verbatim"], given.seed)),
        notes=(
            f"{SEEDS} random classifiers over single characters, both sides the same; rates {RATES}.",
            "`same_decisions` is over texts without punctuation, where words are the same on both sides.",
            "Nothing here says how well the authors' checkpoints choose: they cannot be had without a model hub.",
        ),
    )
    _proof.write(result, given.out)


if __name__ == "__main__":
    main()
