"""Query likelihood, ours and a plain loop over the same language model.

Job: as in `_rerank_speed.py`; a system has an `engine` ("transformers" or "triptych") and a `precision`.
"""

from typing import Any

import torch
from _rerank_speed import Score, measured
from _worker import Out, peak_rss_mb, read

from triptych import Settings
from triptych.manifests.weights import folder
from triptych.rerankers.prompted.query_likelihood import PASSAGE_CHARACTERS, PROMPT, QueryLikelihood
from triptych.retrievers.base import Hit, Item, Query, Source
from triptych.retrievers.lm_transformers import TransformersLM

LM = "smollm2_135m_instruct"


def main() -> None:
    job, out = read(), Out()
    measured(job, out, made)
    out.put("peak_rss_mb", peak_rss_mb())


def made(name: str, asked: dict[str, Any]) -> Score:
    where = folder(LM, Settings.load().weights)
    if asked["engine"] == "triptych":
        return ours(QueryLikelihood(TransformersLM.from_folder(where, asked["precision"]), prior=0.0))
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = getattr(torch, asked["precision"])
    model = AutoModelForCausalLM.from_pretrained(where, dtype=dtype, local_files_only=True)
    return loop(model.eval(), AutoTokenizer.from_pretrained(where, local_files_only=True))


def ours(reranker: QueryLikelihood) -> Score:
    """By a ranking without the first stage's say, put back into the order of the passages."""

    def score(query: str, passages: list[str]) -> list[float]:
        hits = [Hit(Item(str(n), text, Source("")), 0.0) for n, text in enumerate(passages)]
        found = {hit.item.id: hit.score for hit in reranker.rank(Query(text=query), hits).hits}
        return [found[str(n)] for n in range(len(passages))]

    return score


def loop(model: Any, tokenizer: Any) -> Score:
    """One passage at a time, the softmax of every position, no cache."""

    def one(query: str, passage: str) -> float:
        prompt = PROMPT.format(passage=passage[:PASSAGE_CHARACTERS])
        start = len(tokenizer(prompt).input_ids)
        ids = tokenizer(f"{prompt} {query}", return_tensors="pt").input_ids
        with torch.inference_mode():
            scores = torch.log_softmax(model(ids).logits.float(), dim=-1)
        target = ids[0, start:]
        return float(scores[0, start - 1 : -1].gather(1, target[:, None]).mean())

    return lambda query, passages: [one(query, passage) for passage in passages]


if __name__ == "__main__":
    main()
