"""Our encoder and sentence-transformers' own `encode` over the same texts, in turns in one process.

Job: `collection` (a folder), `kind` ("long": texts as they are; "short": their first words), `texts`, `rounds`,
`queries`, `systems` (name → `engine` "triptych" with `precision`, or "sentence_transformers" with `dtype` and
`batch_size`; the one named `reference` gives the vectors that others are compared with), `seed`.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _worker import Out, peak_rss_mb, read

from triptych import Settings
from triptych.errors import Unsupported
from triptych.manifests.weights import folder
from triptych.retrievers.base import Item, Source
from triptych.retrievers.loading import set_threads
from triptych.retrievers.text.all_minilm_l6_v2 import WEIGHTS, AllMiniLM
from triptych.tools.evaluation import datasets

SHORT = 100
"""Characters, up to the last whole word, of a short text."""
WARM_UP = 8

Encode = Callable[[list[str]], np.ndarray]


def main() -> None:
    job, out = read(), Out()
    out.put("threads", set_threads(Settings.load().threads))
    texts = texts_of(job)
    out.put("texts", {"count": len(texts), "characters": float(np.mean([len(text) for text in texts]))})
    systems: dict[str, Encode] = {}
    refused: dict[str, str] = {}
    for name, asked in job["systems"].items():
        try:
            systems[name] = system(asked)
        except Unsupported as error:
            refused[name] = str(error)
    out.put("refused", refused)
    for encode in systems.values():
        encode(texts[:WARM_UP])
    out.put("query_ms", {name: query_ms(encode, texts, job["queries"]) for name, encode in systems.items()})
    per_s: dict[str, list[float]] = {name: [] for name in systems}
    for number in range(job["rounds"]):
        vectors = {}
        for name, encode in systems.items():
            start = time.perf_counter()
            vectors[name] = encode(texts)
            per_s[name].append(len(texts) / (time.perf_counter() - start))
        out.put("per_s", {name: figures for name, figures in per_s.items() if len(figures) > number})
        if not number:
            out.put("cosine", {name: cosines(found, vectors[job["reference"]]) for name, found in vectors.items()})
    out.put("peak_rss_mb", peak_rss_mb())
    out.put("load_average", os.getloadavg()[0])


def texts_of(job: dict[str, Any]) -> list[str]:
    """The collection's texts in an order drawn from the seed, at most as many as the job asks for."""
    data = datasets.collection(Path(job["collection"]), limit=1, seed=job["seed"])
    found = [f"{row.title}\n{row.text}".strip() for row in data.passages.values() if row.text.strip()]
    order = np.random.default_rng(job["seed"]).permutation(len(found))[: job["texts"]]
    chosen = [found[number] for number in order]
    return chosen if job["kind"] == "long" else [text[:SHORT].rsplit(maxsplit=1)[0] for text in chosen]


def system(asked: dict[str, Any]) -> Encode:
    """Texts → unit vectors, the way each side's own documentation encodes."""
    where = folder(WEIGHTS, Settings.load().weights)
    if asked["engine"] == "triptych":
        ours = AllMiniLM.from_folder(where, asked["precision"])
        return lambda texts: ours.encode([Item("", text, Source("")) for text in texts], "document")
    import torch
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(
        str(where), device="cpu", local_files_only=True, model_kwargs={"dtype": getattr(torch, asked["dtype"])}
    )
    return lambda texts: theirs.encode(texts, batch_size=asked["batch_size"], normalize_embeddings=True)


def query_ms(encode: Encode, texts: list[str], queries: int) -> list[float]:
    """Milliseconds of one short text alone, none of them twice."""
    made = []
    for text in texts[:queries]:
        start = time.perf_counter()
        encode([text[:SHORT]])
        made.append((time.perf_counter() - start) * 1000)
    return made


def cosines(found: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Mean and least over the texts."""
    each = (found.astype(np.float64) * wanted).sum(axis=1)
    return {"mean": float(each.mean()), "min": float(each.min())}


if __name__ == "__main__":
    main()
