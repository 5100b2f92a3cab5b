"""Our store beside the bare pymilvus calls that give the same answer, on one collection, query by query.

With `milvus` in the job the collection is on a Milvus 2.3.5 (MILVUS_ENV names its environment), else on Milvus Lite.
First without an index of vectors, then with the one that a large collection gets.
"""

import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _first_stage import Data, loaded, spans
from _worker import Out, peak_rss_mb, read

from triptych.retrievers.base import Item, Route, Source, Space, Where
from triptych.retrievers.fusion import RRF_K
from triptych.retrievers.stores import table
from triptych.retrievers.stores.lexicon import LEXICAL
from triptych.retrievers.stores.milvus import DEPTH, MilvusStore
from triptych.retrievers.stores.rows import ITEM_FIELDS
from triptych.retrievers.text.analysis import terms

SPACE = Space("minilm", "dense", 384)
BATCH = 500
FOLDERS = 100
WARM_UP = 3
K = 10

Search = Callable[[int], list[str]]


def main() -> None:
    job, out = read(), Out()
    data = loaded(Path(job["data"]))
    with server(bool(job.get("milvus"))) as (uri, token), tempfile.TemporaryDirectory() as scratch:
        store = MilvusStore(Path(scratch), [SPACE], uri, token=token)
        fill(store, data, out)
        asked = range(int(job["queries"]))
        flat = {
            "dense": lambda n: ours(store, [dense(data, n)]),
            "filtered": lambda n: ours(store, [dense(data, n)], where(n)),
        }
        interleaved(flat, asked, "flat", out)
        start = time.perf_counter()
        store.settle()
        out.put("index_s", time.perf_counter() - start)
        out.put("index", store._table._index_of(SPACE.name))
        interleaved(searches(store, data), asked, "indexed", out)
        store.close()
    out.put("peak_rss_mb", peak_rss_mb())


@contextmanager
def server(wanted: bool) -> Iterator[tuple[str, str]]:
    """URI and token of a Milvus 2.3.5, or two empty strings."""
    if not wanted:
        yield "", ""
        return
    sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
    from milvus_servers import USER, milvus

    with tempfile.TemporaryDirectory() as folder, milvus(Path(folder)) as uri:
        yield uri, USER


def fill(store: MilvusStore, data: Data, out: Out) -> None:
    """All passages, in a hundred folders."""
    start = time.perf_counter()
    for part in spans(len(data.ids), BATCH):
        rows = zip(range(part.start, part.stop), data.ids[part], data.texts[part], strict=True)
        items = [Item(id_, text, Source(f"files/{n % FOLDERS:02d}/{n}.txt", 0, len(text))) for n, id_, text in rows]
        store.upsert(items, {SPACE.name: data.vectors[part]})
        out.put("added", part.stop)
    store.flush()
    out.put("add_s", time.perf_counter() - start)


def where(n: int) -> Where:
    """One passage in a hundred."""
    return Where(uri_prefix=f"files/{n % FOLDERS:02d}/")


def dense(data: Data, n: int) -> Route:
    return Route(SPACE, vector=data.query_vectors[n])


def ours(store: MilvusStore, routes: list[Route], where: Where | None = None) -> list[str]:
    return [hit.item.id for hit in store.search(routes, K, where)]


def searches(store: MilvusStore, data: Data) -> dict[str, Search]:
    """Ours, and the calls that one would write by hand for the same: ids, scores and what an item is made of."""
    found: dict[str, Search] = {
        "dense": lambda n: ours(store, [dense(data, n)]),
        "filtered": lambda n: ours(store, [dense(data, n)], where(n)),
        "raw_dense": lambda n: raw_dense(store, data, n),
    }
    if store.lexical:
        found |= {
            "hybrid": lambda n: ours(store, [Route(LEXICAL, text=data.queries[n]), dense(data, n)]),
            "raw_hybrid": lambda n: raw_hybrid(store, data, n),
        }
    return found


def raw_dense(store: MilvusStore, data: Data, n: int) -> list[str]:
    found = store._connection.link.client.search(
        store._connection.collection, [data.query_vectors[n]], anns_field=SPACE.name, limit=K,
        output_fields=ITEM_FIELDS, search_params={"metric_type": "COSINE", "params": {"ef": table._EF}},
        consistency_level="Session",
    )  # fmt: skip
    return [hit["id"] for hit in found[0]]


def raw_hybrid(store: MilvusStore, data: Data, n: int) -> list[str]:
    from pymilvus import AnnSearchRequest, RRFRanker

    weights = store._terms().query_weights(terms(data.queries[n], "query"))
    parameters = {"metric_type": "COSINE", "params": {"ef": 2 * DEPTH}}
    asked = [AnnSearchRequest([data.query_vectors[n]], SPACE.name, parameters, limit=DEPTH)]
    if weights:
        asked.append(AnnSearchRequest([weights], LEXICAL.name, {"metric_type": "IP"}, limit=DEPTH))
    found = store._connection.link.client.hybrid_search(
        store._connection.collection, asked, RRFRanker(RRF_K), limit=K, output_fields=ITEM_FIELDS,
        consistency_level="Session",
    )  # fmt: skip
    return [hit["id"] for hit in found[0]]


def interleaved(searches: dict[str, Search], asked: range, name: str, out: Out) -> None:
    """Milliseconds and answers of every search for every query, in an order that changes from query to query."""
    for search in searches.values():
        for n in asked[:WARM_UP]:
            search(n)
    order, rng = list(searches), random.Random(0)
    told: dict[str, Any] = {route: {"ms": [], "run": []} for route in searches}
    for n in asked:
        rng.shuffle(order)
        for route in order:
            start = time.perf_counter()
            found = searches[route](n)
            told[route]["ms"].append(1000 * (time.perf_counter() - start))
            told[route]["run"].append(found)
        out.put(name, told)


if __name__ == "__main__":
    main()
