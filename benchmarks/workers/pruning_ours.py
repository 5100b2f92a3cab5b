"""Our `decide` on the texts that the untouched package gets, in one mode and precision.

Job: as for `pruning_stock.py`, and `mode`, `precision`.
"""

from functools import partial
from importlib.metadata import version
from pathlib import Path

import regex
import torch
from _pruning import measured
from _worker import Out, read

from triptych.refiners.hard._llmlingua_compat import Decisions, OfflineCompressor
from triptych.retrievers.lm_transformers import TransformersLM

STOCK_FRAME = 3
"""Tokens by which the package's count of a lone context is larger than the text, when it works out its ratio."""


def main() -> None:
    job, out = read(), Out()
    out.put("versions", {name: version(name) for name in ("llmlingua", "transformers", "torch")})
    torch.set_num_threads(job["threads"])
    lm = TransformersLM.from_folder(Path(job["model"]), job["precision"])
    out.put("dtype", str(lm.model.dtype).removeprefix("torch."))
    compressor = OfflineCompressor(lm.model, lm.tokenizer)

    def decided(text: str) -> Decisions:
        tokens = compressor.get_token_length(text)
        keep = job["rate"] * tokens / (tokens + STOCK_FRAME)
        return compressor.decide([text], keep, fast=job["mode"] == "fast")

    decided(job["warm_up"])
    for name, text in job["texts"].items():
        found, figures = measured(partial(decided, text), job["repeats"][name])
        ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        kept = [one for one, holds in zip(ids, found.kept, strict=True) if holds]
        told = {"text": lm.tokenizer.decode(kept), "words": words(text, found), "tokens": len(ids)}
        out.put(name, {**figures, **told})


def words(text: str, found: Decisions) -> list[int]:
    """Numbers of the words, runs without white space, of which a token is kept."""
    spans = found.spans[found.kept]
    return [
        n
        for n, match in enumerate(regex.finditer(r"\S+", text))
        if ((spans[:, 0] < match.end()) & (spans[:, 1] > match.start())).any()
    ]


if __name__ == "__main__":
    main()
