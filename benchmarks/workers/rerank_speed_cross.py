"""A cross-encoder, ours and sentence-transformers' `predict`, with the same weights.

No package carries an MS MARCO one. The encoder and the passage score of `triptych_pruner`, which have their size and
arithmetic and were trained to order passages, are put into the form of a BERT sequence classifier. They are shipped as
8-bit integers; were these taken as they are, int8 would lose nothing by rounding them again. So each weight is drawn
anew, evenly from all that were rounded to its integer, and the rivals get that model.
Job: as in `_rerank_speed.py`; a system has an `engine` ("sentence-transformers" or "triptych") and a `precision`.
"""

import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _rerank_speed import Score, measured
from _worker import Out, peak_rss_mb, read

from triptych import Settings
from triptych.manifests.weights import folder
from triptych.rerankers import finetuned
from triptych.rerankers.finetuned.monobert import MonoBERT
from triptych.rerankers.finetuned.triptych_pruner import FOLDER, MAX_PIECES
from triptych.retrievers.base import Hit, Item, Query, Source
from triptych.retrievers.loading import set_threads

ENCODER = "all_minilm_l6_v2"
STRAIGHT = 64.0
"""The pooler divides by it before its tanh, which is a straight line there, and the classifier multiplies."""


def main() -> None:
    job, out = read(), Out()
    with tempfile.TemporaryDirectory() as where:
        save(Path(where), job["seed"])
        measured(job, out, lambda name, asked: made(Path(where), asked))
    out.put("peak_rss_mb", peak_rss_mb())


def save(where: Path, seed: int) -> None:
    """A cross-encoder with one label, in the form of a model hub."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    pulled = folder(ENCODER, Settings.load().weights)
    config = BertConfig.from_pretrained(pulled, num_labels=1, max_position_embeddings=MAX_PIECES, local_files_only=True)
    model = BertForSequenceClassification(config)
    model.load_state_dict({name: torch.from_numpy(values) for name, values in weights(seed).items()})
    model.save_pretrained(where)
    AutoTokenizer.from_pretrained(pulled, local_files_only=True, model_max_length=MAX_PIECES).save_pretrained(where)


def weights(seed: int) -> dict[str, np.ndarray]:
    """Of a `BertForSequenceClassification`, float32 by name."""
    import onnx
    from onnx.numpy_helper import to_array

    shipped = onnx.load_model_from_string((resources.files(finetuned) / FOLDER / "model.onnx").read_bytes())
    given = {tensor.name: to_array(tensor) for tensor in shipped.graph.initializer}
    chance = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    for name, values in given.items():
        if name.endswith(".int8"):
            made[f"{name.removesuffix('.int8')}.weight"] = drawn(values, given[f"{name[:-5]}.scales"], chance).T
        elif "layer." in name and not name.endswith(".scales"):
            made[name] = values
    first, second = given["positions"][:MAX_PIECES], given["positions"][MAX_PIECES:]
    kinds = np.stack([np.zeros_like(first[0]), (second - first).mean(0)])
    width = len(kinds[0])
    whole = {
        "embeddings.word_embeddings.weight": drawn(given["words"].T, given["word.scales"][:, 0], chance).T,
        "embeddings.position_embeddings.weight": first,
        "embeddings.token_type_embeddings.weight": kinds,
        **{name: given[name] for name in given if name.startswith("embeddings.LayerNorm")},
        **joined(made),
        "pooler.dense.weight": np.eye(width) / STRAIGHT,
        "pooler.dense.bias": np.zeros(width),
    }
    head = {"classifier.weight": given["relevance.weight"][None] * STRAIGHT, "classifier.bias": given["relevance.bias"]}
    named = {f"bert.{name}": values for name, values in whole.items()} | head
    return {name: np.array(values, np.float32, order="C") for name, values in named.items()}


def drawn(integers: np.ndarray, scales: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """(inputs, outputs) evenly from what is rounded to these integers (inputs, outputs) at these scales (outputs,)."""
    found: np.ndarray = (integers + chance.uniform(-0.5, 0.5, integers.shape)) * scales
    return found


def joined(made: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The two parts of each feed-forward layer as one; in which order its units stand is the same to all others."""
    whole = {name: values for name, values in made.items() if ".loud." not in name and ".rest." not in name}
    for name in [name for name in made if name.endswith(".loud.in.weight")]:
        layer = name.removesuffix(".loud.in.weight")
        part = {end: (made[f"{layer}.loud.{end}"], made[f"{layer}.rest.{end}"]) for end in ("in.weight", "in.bias")}
        whole[f"{layer}.intermediate.dense.weight"] = np.concatenate(part["in.weight"])
        whole[f"{layer}.intermediate.dense.bias"] = np.concatenate(part["in.bias"])
        outs = [made[f"{layer}.{half}.out.weight"] for half in ("loud", "rest")]
        whole[f"{layer}.output.dense.weight"] = np.concatenate(outs, axis=1)
        whole[f"{layer}.output.dense.bias"] = made[f"{layer}.loud.out.bias"] + made[f"{layer}.rest.out.bias"]
    return whole


def made(where: Path, asked: dict[str, Any]) -> Score:
    if asked["engine"] == "triptych":
        ours = MonoBERT.from_folder(where, asked["precision"], threads=set_threads(0))
        return lambda query, passages: ranked(ours, query, passages)
    from sentence_transformers import CrossEncoder

    dtype = getattr(torch, asked["precision"])
    theirs = CrossEncoder(str(where), device="cpu", local_files_only=True, model_kwargs={"dtype": dtype})

    def score(query: str, passages: list[str]) -> list[float]:
        pairs = [(query, passage) for passage in passages]
        found: list[float] = theirs.predict(pairs, activation_fn=torch.nn.Identity()).tolist()
        return found

    return score


def ranked(ours: MonoBERT, query: str, passages: list[str]) -> list[float]:
    """The score of each passage, as a user of the reranker gets them."""
    hits = [Hit(Item(str(n), text, Source("")), 0.0) for n, text in enumerate(passages)]
    scores = {hit.item.id: hit.score for hit in ours.rank(Query(query), hits).hits}
    return [scores[str(n)] for n in range(len(passages))]


if __name__ == "__main__":
    main()
