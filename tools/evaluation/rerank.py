"""What rerankers make of a run: quality before and after, cost, and whether the order they are given matters.

Each reranker sees the same candidates three times: as the run has them, reversed, and shuffled. The run's scores stay
where they are, best first, and the passages change places below them, so that a reranker that lets the first stage have
a say is told a wrong order and not a wrong scale. Every arm has models and caches of its own.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ... import progress
from ...errors import BadInput
from ...manifests.registry import Card, card
from ...retrievers.base import Hit, Item, Query, Source
from . import compare, ranking
from .environment import environment
from .passages import Corpus, corpus, limits
from .result import Arm, Comparison, Result, file_name
from .retrieval import PACKAGES, precision_of, prepared

if TYPE_CHECKING:
    from ...rerankers.base import Ranking
    from ...settings import Settings
    from .datasets import Collection, Run

ORDERS = ("given", "reversed", "shuffled")
BEFORE = "run"
"""The arms that rerank nothing."""


def evaluate(
    collection: Collection,
    run: Run,
    run_name: str,
    rerankers: Sequence[str],
    *,
    top: int,
    settings: Settings,
    seed: int,
    command: str,
) -> Result:
    """The run itself and each of `rerankers`, in each of `ORDERS`.

    Args:
        run: candidates of the collection's queries (`datasets.run_file`); a query without any counts 0.
        top: so many of each query's candidates are seen, by the run's arms as well.

    Raises:
        UnknownSystem: an id that no reranker has.
        BadInput: no candidate holds anything that one of the rerankers reads.
        MissingWeights: a model is not on this machine.
        Unsupported: a query that a reranker cannot do.
    """
    if not rerankers:
        raise BadInput("No reranker is given.", "Name at least one.")
    systems = [card(name, "reranker") for name in dict.fromkeys(rerankers)]
    candidates = {query: run[query][:top] for query in collection.queries if run.get(query)}
    if not candidates:
        raise BadInput(f"`{run_name}` has none of the queries of `{collection.info.name}`.", "Give a run of this data.")
    needed = {key for rows in candidates.values() for key, _ in rows}
    library = corpus(collection, needed, limits(settings))
    for system in systems:
        library.check(system.id, system.modalities)
    lists = {
        order: {query: ordered(query, rows, order, seed) for query, rows in candidates.items()} for order in ORDERS
    }
    arms = [_before(lists[order], collection, order) for order in ORDERS]
    for system in systems:
        arms += [_after(system, lists[order], library, collection, settings, order) for order in ORDERS]
    return Result(
        name=file_name("rerank", collection.info.name, run_name),
        kind="rerank",
        title=f"Reranking {run_name} on {collection.info.name}",
        command=command,
        seed=seed,
        data=(collection.info,),
        environment=environment(PACKAGES, precision_of(settings)),
        arms=tuple(arms),
        comparisons=tuple(_comparisons(arms, seed)),
        notes=(*_about(candidates, top, collection), *library.notes()),
    )


def ordered(query: str, rows: Sequence[tuple[str, float]], order: str, seed: int) -> list[tuple[str, float]]:
    """The passages of `rows` in `order`, under the scores as they stand.

    >>> ordered("q", [("a", 3.0), ("b", 2.0), ("c", 1.0)], "reversed", 0)
    [('c', 3.0), ('b', 2.0), ('a', 1.0)]
    """
    passages = [key for key, _ in rows]
    if order == "reversed":
        passages.reverse()
    elif order == "shuffled":
        random.Random(f"{seed} {query}").shuffle(passages)
    return [(key, score) for key, (_, score) in zip(passages, rows, strict=True)]


def _before(lists: Mapping[str, Sequence[tuple[str, float]]], collection: Collection, order: str) -> Arm:
    values = ranking.per_query(
        collection.qrels, {query: [key for key, _ in rows] for query, rows in lists.items()}, ranking.COMPARED
    )
    return _arm(BEFORE, order, values, {})


def _after(
    system: Card,
    lists: Mapping[str, Sequence[tuple[str, float]]],
    library: Corpus,
    collection: Collection,
    settings: Settings,
    order: str,
) -> Arm:
    reranker = prepared(system, settings)
    rankings: list[Ranking] = []
    found: dict[str, list[str]] = {}
    start = time.perf_counter()
    for done, (query, rows) in enumerate(lists.items()):
        progress.step(done, len(lists), f"queries, {system.id}, {order}")
        made = reranker.rank(Query(collection.queries[query].text), _hits(rows, library))
        found[query] = list(dict.fromkeys(library.passage_of.get(hit.item.id, hit.item.id) for hit in made.hits))
        rankings.append(made)
    spent = time.perf_counter() - start
    cost = {
        "calls": sum(one.calls for one in rankings) / len(rankings),
        "tokens": sum(one.tokens for one in rankings) / len(rankings),
        "s_per_query": spent / len(rankings),
        "repaired": sum(one.repaired for one in rankings) / len(rankings),
    }
    return _arm(system.id, order, ranking.per_query(collection.qrels, found, ranking.COMPARED), cost)


def _hits(rows: Sequence[tuple[str, float]], library: Corpus) -> list[Hit]:
    """Hits of all items of each passage; a passage that says nothing stays a candidate."""
    return [Hit(item, score) for key, score in rows for item in library.items_of[key] or (Item(key, "", Source("")),)]


def _arm(system: str, order: str, values: Mapping[str, Mapping[str, float]], cost: Mapping[str, float]) -> Arm:
    return Arm(
        system=system,
        settings={"order": order},
        metrics={**ranking.means(values), **cost},
        per_query={name: dict(by_query) for name, by_query in values.items()},
    )


def _comparisons(arms: Sequence[Arm], seed: int) -> Iterator[Comparison]:
    """Every arm with the run, then each reranker's answers to a wrong order with its answer to the given one."""
    yield from compare.against(arms, arms[0], ranking.COMPARED, seed)
    for given in arms[len(ORDERS) :: len(ORDERS)]:
        own = [arm for arm in arms if arm.system == given.system]
        yield from compare.against(own, given, ranking.COMPARED, seed)


def _about(candidates: Run, top: int, collection: Collection) -> Iterator[str]:
    most = max(len(rows) for rows in candidates.values())
    yield f"Up to {min(top, most)} candidates per query, the same in every arm. Grades from 1 upwards are relevant."
    yield "calls, tokens, s_per_query and repaired are means over the queries that have candidates."
    if without := len(collection.queries) - len(candidates):
        yield f"{without:,} of {len(collection.queries):,} queries have no candidates and count 0."
