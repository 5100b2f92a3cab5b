"""Writes the data of the first-stage cells, once: passages, queries, and their MiniLM vectors (npy without pickle).

A job with `collection` prepares a real collection. One with `pool` prepares `items` passages for measuring cost: those
of prepared collections and, once these are used up, seeded copies. A copy's text recombines sentences of the pool, its
vector is a passage's, turned by a random angle. The exact nearest neighbours are written down, too.
"""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _first_stage import Data, loaded, spans
from _worker import Out, read

from triptych.retrievers.base import Item, Query, Source
from triptych.retrievers.chunking import sentences
from triptych.retrievers.searchable import searchable_text
from triptych.settings import Settings
from triptych.tools.evaluation import datasets
from triptych.tools.stages import Stages

COSINE = (0.6, 0.95)
"""Between a copy's vector and the one that it was made from: drawn uniformly."""
BATCH = 512


def main() -> None:
    job, out = read(), Out()
    data = real(job, out) if "collection" in job else grown(job)
    write(data, Path(job["into"]))
    out.put("items", len(data.ids))
    if "pool" in job:
        out.put("exact", exact(data, int(job["k"])))


def real(job: dict[str, Any], out: Out) -> Data:
    """All passages that have text, and the queries."""
    collection = datasets.collection(Path(job["collection"]))
    items = [
        Item(row.id, row.text, Source(""), meta={"title": row.title} if row.title else {})
        for row in collection.passages.values()
        if row.title or row.text.strip()
    ]
    encoder = Stages(Settings.load()).encoder()
    parts = []
    for part in spans(len(items), BATCH):
        parts.append(encoder.encode(items[part], "document"))
        out.put("encoded", part.stop)
    queries = list(collection.queries.values())
    asked = encoder.encode([Query(row.text) for row in queries], "query")
    return Data(
        [item.id for item in items], [searchable_text(item) for item in items], np.concatenate(parts),
        [row.id for row in queries], [row.text for row in queries], asked,
    )  # fmt: skip


def grown(job: dict[str, Any]) -> Data:
    """`items` passages and `queries` queries out of the pool."""
    pool = [loaded(Path(folder)) for folder in job["pool"]]
    texts = [text for data in pool for text in data.texts]
    vectors = np.concatenate([data.vectors for data in pool])
    n, rng = int(job["items"]), random.Random(job["seed"])
    order = rng.sample(range(len(texts)), len(texts))
    chosen = [order[row % len(order)] for row in range(n)]
    copies = max(n - len(order), 0)
    made = recombined([texts[row] for row in chosen[n - copies :]], texts, rng) if copies else []
    turned_ = turned(vectors[chosen[n - copies :]], np.random.default_rng(job["seed"]))
    asked, asked_vectors = queries(pool, int(job["queries"]), rng)
    return Data(
        [f"{row:07d}" for row in range(n)],
        [texts[row] for row in chosen[: n - copies]] + made,
        np.concatenate([vectors[chosen[: n - copies]], turned_]),
        [f"q{row}" for row in range(len(asked))], asked, asked_vectors,
    )  # fmt: skip


def recombined(like: Sequence[str], texts: Sequence[str], rng: random.Random) -> list[str]:
    """For each of `like` a text of as many sentences, drawn from all of `texts`."""
    cut = {text: [text[start:end] for start, end in sentences(text)] for text in dict.fromkeys(texts)}
    drawn = [sentence for parts in cut.values() for sentence in parts]
    return [" ".join(rng.choices(drawn, k=max(len(cut[text]), 1))) for text in like]


def turned(vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Float32 (n, dim), unit length: each vector turned towards a random direction at right angles to it."""
    made = np.empty_like(vectors)
    for part in spans(len(vectors), BATCH):
        v = vectors[part]
        aside = rng.normal(size=v.shape).astype(np.float32)
        aside -= (aside * v).sum(1, keepdims=True) * v
        aside /= np.linalg.norm(aside, axis=1, keepdims=True)
        cosine = rng.uniform(*COSINE, size=(len(v), 1)).astype(np.float32)
        made[part] = cosine * v + np.sqrt(1 - cosine**2) * aside
    unit: np.ndarray = made / np.linalg.norm(made, axis=1, keepdims=True)
    return unit


def queries(pool: Sequence[Data], n: int, rng: random.Random) -> tuple[list[str], np.ndarray]:
    """`n` queries of the pool with their vectors; when it has fewer, sentences of its passages with the passage's."""
    asked = [pair for data in pool for pair in zip(data.queries, data.query_vectors, strict=True)]
    if len(asked) < n:
        told = [pair for data in pool for pair in zip(data.texts, data.vectors, strict=True)]
        for text, vector in rng.choices(told, k=n - len(asked)):
            start, end = rng.choice(sentences(text) or [(0, len(text))])
            asked.append((text[start:end], vector))
    chosen = rng.sample(asked, n)
    return [text for text, _ in chosen], np.stack([vector for _, vector in chosen])


def exact(data: Data, k: int) -> dict[str, list[str]]:
    """The ids of the `k` nearest passages of each query."""
    scores = data.query_vectors @ data.vectors.T
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return {key: [data.ids[row] for row in rows] for key, rows in zip(data.query_ids, best, strict=True)}


def write(data: Data, folder: Path) -> None:
    """`folder`, with the file `done` last."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    np.save(folder / "corpus.npy", data.vectors.astype(np.float32), allow_pickle=False)
    np.save(folder / "queries.npy", data.query_vectors.astype(np.float32), allow_pickle=False)
    for name, ids, texts in (("corpus", data.ids, data.texts), ("queries", data.query_ids, data.queries)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as lines:
            for id_, text in zip(ids, texts, strict=True):
                lines.write(json.dumps({"id": id_, "text": text}, ensure_ascii=False) + "\n")
    (folder / "done").touch()


if __name__ == "__main__":
    main()
