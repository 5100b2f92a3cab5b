"""How well passages are found: first stages side by side, and rerankers on the hits of the first one.

Every arm works for itself, with models and caches of its own, so that what one has read does not make the next look
fast; only the hits of the first one are handed on to the rerankers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import progress
from ...errors import BadInput
from ...manifests.registry import Card, card
from ...rerankers.base import Limits, Reranker, measured
from ...retrievers.base import Hit, Item, Query, Source
from ...retrievers.loading import computed_in
from ...retrievers.stores.milvus import MilvusStore
from ..stages import Stages
from . import compare, ranking
from .environment import environment
from .first_stages import AsLibrary, Dense, Exhaustive, FirstStage, Searching
from .passages import Corpus, corpus, limits
from .result import Arm, Result, file_name

if TYPE_CHECKING:
    from ...settings import Settings
    from .datasets import Collection

HITS = 100
"""Passages per query that a first stage gives."""
KEPT = (*ranking.COMPARED, "recall@100")
"""Metrics whose values per query stand in the result."""
PACKAGES = ("ir-measures", "pytrec-eval-terrier")
WARM = "warm"


@dataclass(frozen=True)
class Found:
    """What a first stage found.

    Attributes:
        hits: query id → (item id, score), best first.
        ms: query id → milliseconds.
        index_s: seconds of encoding and storing all items, with the models loaded.
        spaces: names of those that a profile searched, joined by ` + `; `""` where the system's own name says it.
    """

    hits: Mapping[str, Sequence[tuple[str, float]]]
    ms: Mapping[str, float]
    index_s: float
    spaces: str = ""

    @property
    def settings(self) -> dict[str, str | int | float | bool]:
        """What tells the arm from others of the same system."""
        return {"spaces": self.spaces} if self.spaces else {}


def evaluate(
    collection: Collection,
    retrievers: Sequence[str],
    rerankers: Sequence[str],
    *,
    settings: Settings,
    seed: int,
    command: str,
) -> Result:
    """One arm for each of `retrievers`, and one for each of `rerankers` on the first one's hits.

    Args:
        retrievers: ids of retrievers, of encoders (their vectors alone) or names of profiles (their first stage).
        rerankers: ids; each reads the first `settings.rerank_depth` hits.

    Raises:
        UnknownSystem: a name that nothing has.
        BadInput: no passage holds anything that one of the systems reads.
        MissingWeights: a model is not on this machine.
        Unsupported: a query that a system cannot do.
    """
    if not retrievers:
        raise BadInput("No retriever is given.", "Name a retriever or a profile.")
    asked = [FirstStage.named(name, settings) for name in dict.fromkeys(retrievers)]
    orders = [card(name, "reranker") for name in dict.fromkeys(rerankers)]
    library = corpus(collection, within=limits(settings))
    for name, system in [*((stage.name, stage.system) for stage in asked), *((system.id, system) for system in orders)]:
        library.check(name, system.modalities)
    first, notes = search(asked[0], library, collection)
    arms = [_searched(asked[0], first, library, collection)]
    for stage in asked[1:]:
        found, said = search(stage, library, collection)
        arms.append(_searched(stage, found, library, collection))
        notes += said
    for system in orders:
        arms.append(_reranked(asked[0], system, first, library, collection, settings))
    return Result(
        name=file_name("retrieval", collection.info.name),
        kind="retrieval",
        title=f"Retrieval on {collection.info.name}",
        command=command,
        seed=seed,
        data=(collection.info,),
        environment=environment(PACKAGES, precision_of(settings)),
        arms=tuple(arms),
        comparisons=tuple(compare.against(arms, arms[0], ranking.COMPARED, seed)),
        notes=(*_about(settings, asked, orders), *collection.notes, *library.notes(), *notes),
    )


def search(stage: FirstStage, library: Corpus, collection: Collection) -> tuple[Found, list[str]]:
    """Index `library` and ask every query of `collection`; and what a reader must know of how it went."""
    stages = Stages(replace(stage.settings, store_uri="", store_token=""))
    hits: dict[str, list[tuple[str, float]]] = {}
    ms: dict[str, float] = {}
    with stage.opened(stages, collection.folder) as retriever:
        start = time.perf_counter()
        retriever.add(library.items)
        _settle(retriever)
        index_s = time.perf_counter() - start
        retriever.search(Query(WARM), 1)
        for done, asked in enumerate(collection.queries.values()):
            progress.step(done, len(collection.queries), f"queries, {stage.name}")
            start = time.perf_counter()
            hits[asked.id] = _best(retriever, Query(asked.text), library)
            ms[asked.id] = 1000 * (time.perf_counter() - start)
        said = list(_said(stage, stages, retriever, hits, collection))
        spaces = ""
        if isinstance(retriever, AsLibrary):
            searched, idle = retriever.asked(Query(asked.text) for asked in collection.queries.values())
            spaces = " + ".join(searched)
            said += [f"`{stage.name}` has the space `{name}`, which none of the queries asks." for name in idle]
    return Found(hits, ms, index_s, spaces), said


def prepared(system: Card, settings: Settings) -> Reranker:
    """A reranker with models and caches of its own, used once.

    Raises:
        MissingWeights: a model is not on this machine.
    """
    made = Stages(settings).reranker(system.id)
    made.rank(Query(WARM), [Hit(Item(f"warm-{n}", WARM, Source("")), 1.0 - n) for n in range(2)])
    return made


def precision_of(settings: Settings) -> str:
    """What models compute in under `settings`."""
    return computed_in(settings.precision)


def _best(retriever: Searching, query: Query, library: Corpus) -> list[tuple[str, float]]:
    """Item ids and scores of `HITS` passages, or of as many as it finds; several items may be one passage's."""
    k = HITS
    while True:
        hits = [(hit.item.id, hit.score) for hit in retriever.search(query, k)]
        if len(hits) < k or len(library.passages([key for key, _ in hits])) >= HITS:
            return hits
        k *= 2


def _settle(retriever: Searching) -> None:
    """As after `triptych index`: rows that wait in Milvus Lite's log would slow down every query."""
    store = getattr(retriever, "store", None)
    if isinstance(store, MilvusStore):
        store.flush()


def _searched(stage: FirstStage, found: Found, library: Corpus, collection: Collection) -> Arm:
    ranked = {query: [key for key, _ in hits] for query, hits in found.hits.items()}
    values = _values(ranked, library, collection)
    return Arm(
        system=stage.name,
        settings=found.settings,
        metrics={**ranking.means(values), **_times(found.ms), "index_s": found.index_s},
        per_query=_kept(values),
    )


def _reranked(
    stage: FirstStage, system: Card, first: Found, library: Corpus, collection: Collection, settings: Settings
) -> Arm:
    """`system` on the hits of `stage`; the time of a query is that of both."""
    reranker = prepared(system, settings)
    items = {item.id: item for item in library.items}
    ranked: dict[str, list[str]] = {}
    ms: dict[str, float] = {}
    for done, (query, pairs) in enumerate(first.hits.items()):
        progress.step(done, len(first.hits), f"queries, {system.id}")
        hits = [Hit(items[key], score) for key, score in pairs]
        start = time.perf_counter()
        limits = Limits(depth=settings.rerank_depth)
        order = measured(reranker.rank(Query(collection.queries[query].text), hits, limits))
        ms[query] = 1000 * (time.perf_counter() - start)
        ranked[query] = [hit.item.id for hit in order.hits]
    values = _values(ranked, library, collection)
    both = {query: first.ms[query] + spent for query, spent in ms.items()}
    return Arm(
        system=f"{stage.name} + {system.id}",
        settings=first.settings,
        metrics={**ranking.means(values), **_times(both), **_times(ms, "rerank_ms")},
        per_query=_kept(values),
    )


def _values(
    ranked: Mapping[str, Sequence[str]], library: Corpus, collection: Collection
) -> dict[str, dict[str, float]]:
    """All metrics per query, of item ids per query."""
    found = {query: library.passages(keys)[:HITS] for query, keys in ranked.items()}
    return ranking.per_query(collection.qrels, found)


def _kept(values: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    return {name: dict(values[name]) for name in KEPT}


def _times(ms: Mapping[str, float], name: str = "ms") -> dict[str, float]:
    low, high = np.percentile(list(ms.values()), (50, 95))
    return {f"{name}_p50": float(low), f"{name}_p95": float(high)}


def _about(settings: Settings, stages: Sequence[FirstStage], orders: Sequence[Card]) -> Iterator[str]:
    yield f"Up to {HITS} passages per query; a query without any counts 0. Grades from 1 upwards are relevant."
    if orders:
        yield (
            f"Rerankers read the first {settings.rerank_depth} hits of `{stages[0].name}`; their ms are those of both "
            "stages, rerank_ms those of the reranker alone."
        )
    if settings.bm25 and any(stage.name == "bm25" for stage in stages):
        yield f"`bm25` weighs by `{settings.bm25}`."
    if settings.store_uri:
        yield "Measured with Milvus Lite, not with the server that the settings name."


def _said(
    stage: FirstStage, stages: Stages, retriever: Searching, hits: Mapping[str, Sequence[Any]], data: Collection
) -> Iterator[str]:
    """What a reader must know of how one first stage went."""
    if missing := stages.note():
        yield f"`{stage.name}`: {missing}"
    encoder = getattr(retriever, "encoder", None)
    unread = sum(not encoder.reads(Query(one.text)) for one in data.queries.values()) if encoder is not None else 0
    if unread:
        how = "searched all the same" if isinstance(retriever, Dense | Exhaustive) else "searched without it"
        yield (
            f"`{stage.name}`: {unread:,} of {len(data.queries):,} queries are in a script or language that its encoder "
            f"cannot read, and were {how}."
        )
    if isinstance(retriever, Exhaustive):
        yield f"`{stage.name}`: MaxSim with every passage, in memory; a library's store has other times."
    if empty := sum(not found for found in hits.values()):
        yield f"`{stage.name}` found nothing for {empty:,} of {len(hits):,} queries."
