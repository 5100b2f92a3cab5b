"""A cross-encoder, ours and sentence-transformers' `predict`, with the same weights.

No package carries a trained one, so the weights are made: the pulled all-MiniLM-L6-v2 encoder under a head drawn by the
seed. That is the size and the arithmetic of the MS MARCO MiniLM-L6 cross-encoders; what it prefers means nothing.
Job: as in `_rerank_speed.py`; a system has an `engine` ("sentence-transformers" or "triptych") and a `precision`.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from _rerank_speed import Score, measured
from _worker import Out, peak_rss_mb, read

from triptych import Settings
from triptych.manifests.weights import folder
from triptych.rerankers.finetuned.monobert import MonoBERT
from triptych.retrievers.loading import set_threads

ENCODER = "all_minilm_l6_v2"
LONGEST = 512
HEAD_SPREAD = 0.05
"""Standard deviation of the head's weights."""


def main() -> None:
    job, out = read(), Out()
    with tempfile.TemporaryDirectory() as where:
        save(Path(where), job["seed"])
        measured(job, out, lambda name, asked: made(Path(where), asked))
    out.put("peak_rss_mb", peak_rss_mb())


def save(where: Path, seed: int) -> None:
    """A cross-encoder with one label, in the form of a model hub."""
    from transformers import AutoTokenizer, BertForSequenceClassification

    pulled = folder(ENCODER, Settings.load().weights)
    model = BertForSequenceClassification.from_pretrained(pulled, num_labels=1, local_files_only=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in (model.bert.pooler.dense, model.classifier):
            layer.weight.normal_(0, HEAD_SPREAD, generator=generator)
            layer.bias.zero_()
    model.save_pretrained(where)
    AutoTokenizer.from_pretrained(pulled, local_files_only=True, model_max_length=LONGEST).save_pretrained(where)


def made(where: Path, asked: dict[str, Any]) -> Score:
    if asked["engine"] == "triptych":
        ours = MonoBERT.from_folder(where, asked["precision"], threads=set_threads(0))
        return lambda query, passages: [one.score or 0.0 for one in ours.read(query, passages)]
    from sentence_transformers import CrossEncoder

    dtype = getattr(torch, asked["precision"])
    theirs = CrossEncoder(str(where), device="cpu", local_files_only=True, model_kwargs={"dtype": dtype})

    def score(query: str, passages: list[str]) -> list[float]:
        pairs = [(query, passage) for passage in passages]
        found: list[float] = theirs.predict(pairs, activation_fn=torch.nn.Identity()).tolist()
        return found

    return score


if __name__ == "__main__":
    main()
