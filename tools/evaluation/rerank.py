"""What rerankers make of a run: quality before and after, cost, and whether the order they are given matters.

Each reranker sees the same candidates three times: as the run has them, reversed, and shuffled. The run's scores stay
where they are, best first, and the passages change places below them, so that a reranker that lets the first stage have
a say is told a wrong order and not a wrong scale. Every arm has models and caches of its own.

Queries are taken in an order drawn with the seed, so that what is done when time is up is a random sample of them, and
that of a slower system is a part of that of a faster one. An arm that was ended so says on how many queries it stands,
and what the run has on these.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from ... import progress
from ...errors import BadInput
from ...manifests.registry import Card, card
from ...rerankers.base import measured
from ...retrievers.base import Hit, Item, Query, Source
from . import compare, ranking
from .environment import environment
from .passages import Corpus, corpus, limits
from .result import Arm, Comparison, Result, file_name
from .resume import Done, Notes, identity, language_model
from .retrieval import PACKAGES, precision_of, prepared

if TYPE_CHECKING:
    from pathlib import Path

    from ...rerankers.base import Reranker
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
    orders: Sequence[str] = ORDERS,
    resume: Path | None = None,
    minutes: float | None = None,
    name: str = "",
    notes: Sequence[str] = (),
) -> Result:
    """The run itself and each of `rerankers`, in each of `orders`.

    Args:
        run: candidates of the collection's queries (`datasets.run_file`); a query without any counts 0.
        top: so many of each query's candidates are seen, by the run's arms as well.
        orders: some of `ORDERS`; the run's first one is what all arms are compared with.
        resume: the folder that keeps what is done (see `resume`); what it holds is not done again.
        minutes: after so many no further query is begun; what `resume` holds counts in any case.
        name: what tells this result's file from others of the run.
        notes: what a reader has to know beside that, such as what else the machine did.

    Raises:
        UnknownSystem: an id that no reranker has.
        BadInput: no candidate holds anything that one of the rerankers reads, or an unknown order.
        MissingWeights: a model is not on this machine.
        Unsupported: a query that a reranker cannot do.
    """
    if not rerankers:
        raise BadInput("No reranker is given.", "Name at least one.")
    if not orders or (unknown := [order for order in orders if order not in ORDERS]):
        raise BadInput(f"`{', '.join(unknown if orders else orders)}` is no order.", f"Use: {', '.join(ORDERS)}.")
    systems = [card(one, "reranker") for one in dict.fromkeys(rerankers)]
    candidates = {query: run[query][:top] for query in collection.queries if run.get(query)}
    if not candidates:
        raise BadInput(f"`{run_name}` has none of the queries of `{collection.info.name}`.", "Give a run of this data.")
    needed = {key for rows in candidates.values() for key, _ in rows}
    library = corpus(collection, needed, limits(settings))
    for system in systems:
        library.check(system.id, system.modalities)
    drawn = random.Random(seed).sample(list(candidates), len(candidates))
    lists = {
        order: {query: ordered(query, candidates[query], order, seed) for query in drawn}
        for order in dict.fromkeys(orders)
    }
    made_on = environment(PACKAGES, precision_of(settings))
    arms = [_before(rows, collection, order) for order, rows in lists.items()]
    identities = {system.id: identity(system, settings, collection.info) for system in systems}
    watch = _Watch(minutes, f"{made_on['commit']}{' with changes' if made_on['uncommitted_changes'] else ''}")
    for system in systems:
        for order, rows in lists.items():
            kept = Notes(resume / f"{system.id}-{order}.jsonl" if resume else None, identities[system.id])
            arms.append(_after(system, rows, library, collection, settings, order, kept, watch))
    return Result(
        name=file_name("rerank", collection.info.name, run_name, *([name] if name else [])),
        kind="rerank",
        title=f"Reranking {run_name} on {collection.info.name}",
        command=command,
        seed=seed,
        data=(collection.info,),
        environment=made_on,
        arms=tuple(arms),
        comparisons=tuple(_comparisons(arms, len(lists), seed)),
        notes=(
            *_about(candidates, top, collection),
            *library.notes(),
            *_models(systems, settings),
            *watch.notes(),
            *notes,
        ),
    )


class _Watch:
    """When time is up, and whose work was taken over.

    Args:
        minutes: from now on; None: never.
        commit: of the code that runs.
    """

    def __init__(self, minutes: float | None, commit: str) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * minutes
        self._taken: Counter[str] = Counter()
        self.commit = commit

    def is_over(self) -> bool:
        return self._end is not None and time.monotonic() >= self._end

    def took(self, done: Done) -> None:
        """A ranking that an earlier run has made."""
        self._taken[done.commit] += 1

    def notes(self) -> Iterator[str]:
        if self._taken:
            told = ", ".join(f"{n:,} at commit {commit}" for commit, n in sorted(self._taken.items()))
            yield f"Rankings that earlier runs had made and this one took over: {told}."


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
    notes: Notes,
    watch: _Watch,
) -> Arm:
    reranker: Reranker | None = None
    done: dict[str, Done] = {}
    for n, (query, rows) in enumerate(lists.items()):
        progress.step(n, len(lists), f"queries, {system.id}, {order}")
        text = collection.queries[query].text
        if (known := notes.get(text, rows)) is not None:
            done[query] = known
            watch.took(known)
        elif not watch.is_over():
            reranker = reranker or prepared(system, settings)
            done[query] = _reranked(reranker, text, rows, library, watch.commit)
            notes.add(text, rows, done[query])
    found = {query: one.found for query, one in done.items()}
    if len(done) == len(lists):
        return _arm(system.id, order, ranking.per_query(collection.qrels, found, ranking.COMPARED), _cost(done))
    return _ended(_before(lists, collection, order), found, len(lists), system, order, collection, _cost(done))


def _reranked(
    reranker: Reranker, text: str | None, rows: Sequence[tuple[str, float]], library: Corpus, commit: str
) -> Done:
    start = time.perf_counter()
    made = measured(reranker.rank(Query(text), _hits(rows, library)))
    return Done(
        found=list(dict.fromkeys(library.passage_of.get(hit.item.id, hit.item.id) for hit in made.hits)),
        calls=made.calls,
        tokens=made.tokens,
        repaired=made.repaired,
        complete=made.complete,
        seconds=time.perf_counter() - start,
        commit=commit,
    )


def _cost(done: Mapping[str, Done]) -> dict[str, float]:
    """Means over the queries that were reranked."""
    rows = list(done.values())
    return (
        {}
        if not rows
        else {
            "calls": fmean(one.calls for one in rows),
            "tokens": fmean(one.tokens for one in rows),
            "s_per_query": fmean(one.seconds for one in rows),
            "repaired": fmean(one.repaired for one in rows),
            "incomplete": fmean(not one.complete for one in rows),
        }
    )


def _ended(
    before: Arm,
    found: Mapping[str, Sequence[str]],
    wanted: int,
    system: Card,
    order: str,
    collection: Collection,
    cost: Mapping[str, float],
) -> Arm:
    """The arm of a system for which time was up: its values are those of the queries that it had done."""
    if not found:
        return Arm(system=system.id, settings={"order": order}, status="timeout", reason="ended before the first query")
    judged = {query: collection.qrels[query] for query in collection.qrels if query in found}
    arm = _arm(system.id, order, ranking.per_query(judged, found, ranking.COMPARED), cost)
    first = fmean(before.per_query["nDCG@10"][query] or 0.0 for query in judged)
    reason = f"ended after {len(found)} of {wanted} queries, on which the run has nDCG@10 {first:.3f}"
    return arm.model_copy(update={"status": "timeout", "reason": reason})


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


def _comparisons(arms: Sequence[Arm], orders: int, seed: int) -> Iterator[Comparison]:
    """Every arm with the run, then each reranker's answers to a wrong order with its answer to the given one."""
    yield from compare.against(arms, arms[0], ranking.COMPARED, seed)
    for given in arms[orders::orders]:
        own = [arm for arm in arms if arm.system == given.system]
        yield from compare.against(own, given, ranking.COMPARED, seed)


def _about(candidates: Run, top: int, collection: Collection) -> Iterator[str]:
    most = max(len(rows) for rows in candidates.values())
    yield f"Up to {min(top, most)} candidates per query, the same in every arm. Grades from 1 upwards are relevant."
    yield (
        "calls, tokens, s_per_query and repaired are means over the queries that have candidates; incomplete is the "
        "share of these for which no verdict, or not every one, could be used."
    )
    if without := len(collection.queries) - len(candidates):
        yield f"{without:,} of {len(collection.queries):,} queries have no candidates and count 0."


def _models(systems: Sequence[Card], settings: Settings) -> Iterator[str]:
    if any(system.family == "prompted" for system in systems):
        yield f"Language model: {language_model(settings)}."
