"""One text system on one collection: indexed by its own `add` into its own store, then asked query by query.

Job: `system`, `collection` (a folder), `limit` (queries), `seed`, `k`, `ask_s` (after so long no more are asked),
`warm` (so many are asked before), `model` (the folder of a trained system, else null), `vectors` (a file in which the
cells of ColBERT keep token vectors).

A route's times are those of the clock and of the processor, of which other work on the machine takes nothing.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pymilvus  # noqa: F401 (loaded late by the stores; no time here holds it)
from _worker import Out, read

from triptych.manifests.registry import card
from triptych.retrievers.base import Encoder, Hit, Item, Query, Retriever
from triptych.retrievers.further import Further
from triptych.retrievers.fusion import rrf
from triptych.retrievers.loading import set_threads
from triptych.retrievers.stores.milvus import DEPTH, MilvusStore
from triptych.retrievers.stores.vectors import VectorStore
from triptych.retrievers.stores.weighed import Weighed
from triptych.retrievers.text._term_weights import TermWeights
from triptych.retrievers.text.all_minilm_l6_v2 import AllMiniLM
from triptych.retrievers.text.ance import ANCE
from triptych.retrievers.text.bm25 import BM25
from triptych.retrievers.text.colbert import ColBERT
from triptych.retrievers.text.deepct import DeepCT, Rewriting
from triptych.retrievers.text.dpr import DPR
from triptych.retrievers.text.hdct import DOCUMENTS, HDCT, PASSAGES, Aggregation
from triptych.retrievers.text.hybrid import Hybrid
from triptych.retrievers.text.poly_encoder import MODEL, PolyEncoder
from triptych.retrievers.text.tfidf import Scheme, TfIdf
from triptych.settings import Settings
from triptych.tools.evaluation import datasets
from triptych.tools.evaluation.first_stages import Dense, Exhaustive
from triptych.tools.evaluation.passages import Corpus, corpus
from triptych.tools.stages import Stages

WORDS = 8
"""Of a passage, that warm a route up: no query that is timed has been read before."""
TOLD_EVERY_S = 5.0

Search = Callable[[Query, int], list[Hit]]


class System:
    """What a cell measures; empty at first.

    Attributes:
        stores: that are closed before the folder is weighed.
        routes: name → a search; called when the turn of the route has come, so that no route finds another's caches.
        more: further figures, once all is added; `in_memory` are bytes.
    """

    def __init__(
        self,
        add: Callable[[Sequence[Item]], Any],
        stores: Sequence[Any],
        routes: dict[str, Callable[[], Search]],
        more: Callable[[], dict[str, float]] = dict,
    ) -> None:
        self.add = add
        self.stores = stores
        self.routes = routes
        self.more = more


def main() -> None:
    job, out = read(), Out()
    out.put("threads", set_threads(Settings.load().threads))
    data = datasets.collection(Path(job["collection"]), limit=job["limit"], seed=job["seed"])
    cut = job["system"] == "hdct"
    found = corpus(datasets.collection(data.folder, side="text") if cut else data)
    items = list(in_documents(found)) if cut else found.items
    out.put("items", len(items))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "index")
        folder.mkdir()
        system = SYSTEMS[job["system"]](job, folder)
        with Clock() as clock:
            system.add(items)
            for store in system.stores:
                store.settle()
        out.put("index_s", clock.wall)
        out.put("index_cpu_s", clock.cpu)
        for store in system.stores:
            store.close()  # so that what is on disk is what a reader needs
        more = system.more()
        out.put("index_bytes", size(folder) + more.pop("in_memory", 0))
        for key, value in more.items():
            out.put(key, value)
        warm = [" ".join(item.text.split()[:WORDS]) for item in items if item.text.strip()][: job["warm"]]
        for route, opened in system.routes.items():
            ask(route, opened(), data, found, warm, job, out)
    out.put("load_average", os.getloadavg()[0])


class Clock:
    """Seconds by the clock and of the processor, of all threads of this process."""

    def __enter__(self) -> "Clock":
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *exc: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu


def in_documents(found: Corpus) -> Iterator[Item]:
    """Items that name the passage of the collection as their document."""
    for key, items in found.items_of.items():
        for ordinal, item in enumerate(items):
            yield replace(item, meta={**item.meta, "document": key, "ordinal": ordinal})


def size(folder: Path) -> int:
    """Bytes of all files, those of a model left out."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files if MODEL not in path.relative_to(folder).parts)


def ask(
    route: str, search: Search, data: datasets.Collection, found: Corpus, warm: Sequence[str], job: dict[str, Any],
    out: Out,
) -> None:  # fmt: skip
    """Put `{route: {"ms": […], "cpu_ms": […], "run": {query id: [passage ids]}}}`, so far at any time."""
    for text in warm:
        search(Query(text), job["k"])
    told: dict[str, Any] = {"ms": [], "cpu_ms": [], "run": {}}
    begun = last = time.perf_counter()
    for key, asked in data.queries.items():
        with Clock() as clock:
            hits = search(Query(asked.text), job["k"])
        told["ms"].append(1000 * clock.wall)
        told["cpu_ms"].append(1000 * clock.cpu)
        told["run"][key] = found.passages([hit.item.id for hit in hits])
        now = time.perf_counter()
        if now - last > TOLD_EVERY_S:
            out.put(route, told)
            last = now
        if now - begun > job["ask_s"]:
            break
    out.put(route, told)


# --- systems ---------------------------------------------------------------------------------------------------------


def tfidf(job: dict[str, Any], folder: Path) -> System:
    return alone("tfidf", store := Weighed(folder, Scheme()), TfIdf(store))


def bm25(job: dict[str, Any], folder: Path) -> System:
    return alone("bm25", store := MilvusStore(folder), BM25(store))


def deepct(job: dict[str, Any], folder: Path) -> System:
    store = Weighed(folder, Rewriting(**trained(job)["rewriting"]))
    return alone("deepct", store, DeepCT(store, weigher(job)))


def hdct(job: dict[str, Any], folder: Path) -> System:
    """The weigher of DeepCT and the same counts, over documents cut into passages as a library cuts them."""
    aggregation = Aggregation(**trained(job)["rewriting"])
    stores = [Weighed(folder / name, aggregation) for name in (PASSAGES, DOCUMENTS)]
    retriever = HDCT(stores[0], stores[1], weigher(job))
    return System(retriever.add, stores, {"hdct": lambda: retriever.search})


def weigher(job: dict[str, Any]) -> TermWeights:
    return TermWeights.from_folder(model(job), Settings.load().precision)


def all_minilm_l6_v2(job: dict[str, Any], folder: Path) -> System:
    stages = Stages(Settings.load())
    return dense("all_minilm_l6_v2", lambda: AllMiniLM.load(card("all_minilm_l6_v2", "retriever"), stages), folder)


def dpr(job: dict[str, Any], folder: Path) -> System:
    return dense("dpr", lambda: DPR.from_folder(model(job), Settings.load().precision), folder)


def ance(job: dict[str, Any], folder: Path) -> System:
    return dense("ance", lambda: ANCE.from_folder(model(job), Settings.load().precision), folder)


def dense(name: str, load: Callable[[], Encoder], folder: Path) -> System:
    """Its vectors alone, and fused with BM25 over the same store by an encoder that has cached no query."""
    encoder = load()
    store = MilvusStore(folder, [encoder.space])
    alone = Dense(store, encoder)
    return System(alone.add, [store], {name: lambda: alone.search, "hybrid": lambda: Hybrid(store, load()).search})


def poly_encoder(job: dict[str, Any], folder: Path) -> System:
    poly = PolyEncoder.from_folder(model(job), folder, Settings.load().precision)
    return System(poly.add, [poly.store, poly.vectors], {"poly_encoder": lambda: poly.search})


def colbert(job: dict[str, Any], folder: Path) -> System:
    """MaxSim with every passage, in memory; fused with the BM25 of a store."""
    encoder = Kept(late(job), Path(job["vectors"]), writes=True)
    exact, store = Exhaustive(encoder), MilvusStore(folder)
    words = BM25(store)

    def add(items: Sequence[Item]) -> None:
        exact.add(items)
        words.add(items)

    def fused() -> Search:
        return lambda query, k: rrf([one.search(query, max(k, DEPTH)) for one in (words, exact)])[:k]

    return System(add, [store], {"colbert": lambda: exact.search, "hybrid": fused}, encoder.keep)


def colbert_store(job: dict[str, Any], folder: Path) -> System:
    """In a further space, as a library has it; the vectors are those that the cell before has made."""
    encoder = Kept(late(job), Path(job["vectors"]), writes=False)
    store, vectors = MilvusStore(folder), VectorStore(folder, encoder.space)
    library = Hybrid(store, None, [Further(encoder, vectors, lambda media: media)], [encoder.space.name])
    return System(library.add, [store, vectors], {"colbert_store": lambda: library.search})


def late(job: dict[str, Any]) -> ColBERT:
    return ColBERT.from_folder(model(job), Settings.load().precision)


def alone(name: str, store: MilvusStore, retriever: Retriever) -> System:
    return System(retriever.add, [store], {name: lambda: retriever.search})


def model(job: dict[str, Any]) -> Path:
    """The trained folder."""
    trained(job)
    return Path(job["model"])


def trained(job: dict[str, Any]) -> dict[str, Any]:
    """What its training has told.

    Raises:
        SystemExit: it has not ended.
    """
    told = Path(job["model"]).with_name("trained.json")
    if not told.is_file():
        raise SystemExit(f"The model of {job['system']} has not been trained, or is gone from the cache: use --fresh.")
    found: dict[str, Any] = json.loads(told.read_text("utf-8"))
    return found


class Kept(Encoder):
    """ColBERT, whose vectors of passages are written into a file, or read from it.

    Args:
        writes: or reads, and then only queries are encoded.

    Raises:
        SystemExit: there is no such file to read.
    """

    def __init__(self, encoder: ColBERT, path: Path, *, writes: bool) -> None:
        self.space = encoder.space
        self._encoder, self._path, self._writes = encoder, path, writes
        self._made: dict[str, np.ndarray] = {}
        self._spent: dict[str, float] = {"encode_s": 0.0, "encode_cpu_s": 0.0}
        if not writes:
            self._read()

    def reads(self, query: Query) -> bool:
        return self._encoder.reads(query)

    def encode(self, inputs: Any, side: Any) -> Any:
        if side == "query":
            return self._encoder.encode(inputs, side)
        if not self._writes:
            return [self._made[item.id].astype(np.float32) for item in inputs]
        with Clock() as clock:
            found = self._encoder.encode(inputs, side)
        self._spent["encode_s"] += clock.wall
        self._spent["encode_cpu_s"] += clock.cpu
        self._made |= {item.id: vectors.astype(np.float16) for item, vectors in zip(inputs, found, strict=True)}
        return found

    def keep(self) -> dict[str, float]:
        """Write what was encoded, in one step; what that took, and the bytes of the vectors as they are searched."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self._path.with_suffix(".part.npz")
        lengths, rows = [len(one) for one in self._made.values()], np.concatenate([*self._made.values()])
        np.savez(scratch, ids=np.array([*self._made]), lengths=lengths, vectors=rows)
        scratch.replace(self._path)
        self._made = {}
        return {**self._spent, "in_memory": 2 * rows.nbytes, "vectors": len(rows)}

    def _read(self) -> None:
        if not self._path.is_file():
            raise SystemExit("The token vectors of this collection are gone from the cache: use --fresh.")
        with np.load(self._path, allow_pickle=False) as file:
            ends = np.cumsum(file["lengths"])[:-1]
            self._made = dict(zip(file["ids"].tolist(), np.split(file["vectors"], ends), strict=True))


SYSTEMS: dict[str, Callable[[dict[str, Any], Path], System]] = {
    one.__name__: one
    for one in (tfidf, bm25, deepct, hdct, all_minilm_l6_v2, dpr, ance, poly_encoder, colbert, colbert_store)
}

if __name__ == "__main__":
    main()
