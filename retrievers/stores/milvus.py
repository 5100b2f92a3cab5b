"""Items in one Milvus collection: dense spaces next to BM25, fused by rank in Milvus' own hybrid search.

Without a URI the collection lives in a Milvus Lite folder inside the library and any number of processes may use it at
once (see `lite`); with one it lives on that server. Beside it, in the library's folder, stand `store.json` (see
`connection`) and the term statistics (see `lexicon`, which also says why BM25 is computed here and not by the
backend's function).

What differs between backends is asked of them once (see `capabilities`). One without sparse vectors is not searched by
words, and one without a hybrid search has its routes fused here.

A library may be indexed before its model's weights are on the machine. Every row has its vector fields from the start;
a row without a vector of a space has zeros there and `has_<space>` false, and routes of that space search only rows
where it is true. `upsert` with vectors later fills them in; nothing else changes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...errors import BadInput, StoreError, Unsupported
from ..base import MODALITIES, Hit, Item, Space, Store, StoreStats, Where
from ..filters import AllOf
from ..fusion import RRF_K, by_rank, by_score
from ..text.analysis import terms
from .connection import LITE, Connection
from .databases import remove
from .filters import expression
from .layouts import Items
from .lexicon import LEXICAL, Lexicon
from .rows import ITEM_FIELDS, METRICS, booked, booked_fields, checked, flag, to_item, to_rows
from .table import BATCH, CALL_S, MAX_K, OWN_WRITES, Leg, Table, batched, parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from ..base import Route
    from ..fusion import Ranked

__all__ = ["LEXICAL", "LITE", "MilvusStore", "batched"]

DEPTH = 100
"""Each route of a hybrid search offers at least this many candidates: a small k gets the head of a large one."""

TERMS = "lexicon.sqlite"
"""The file of term statistics in the library's folder."""

FLUSH_ROWS = 1_000
"""Milvus Lite indexes rows that are not yet in a segment anew for every query, 0.15 ms each."""

_LEAST = {"cosine": -1.0, "ip": 0.0}
"""For weighted fusion: inner products below 0 count as 0."""


class MilvusStore(Store):
    """A store on Milvus Lite or a Milvus server.

    Nothing is opened before the first call (or `open`). Reads may come from many threads; writes of all threads and
    processes take turns.

    Args:
        folder: the library's folder; made when missing.
        spaces: the dense spaces of every row, always in the same order.
        uri: `""` for Milvus Lite inside `folder`, else a server (`http://host:19530`).
        token: `user:password` or a key, where the server asks for one.
        shared: the start of the names of collections on that server that many libraries share, each as a tenant with
            a random name; `""`: the library has collections of its own.
        dense_index: `"FLAT"` (exact) or another index type of Milvus for the dense fields.
        flush_rows: rows that may wait outside a segment (Milvus Lite only).
    """

    def __init__(
        self,
        folder: Path,
        spaces: Sequence[Space] = (),
        uri: str = "",
        *,
        token: str = "",
        shared: str = "",
        dense_index: str = "FLAT",
        flush_rows: int = FLUSH_ROWS,
    ) -> None:
        self.folder = folder
        self.spaces = tuple(spaces)
        self._connection = Connection(folder, Items(self.spaces), uri, dense_index, token, shared)
        self._table = Table(self._connection, flush_rows)
        self._lexicon: Lexicon | None = None
        self._lexicon_lock = Lock()

    @classmethod
    def existing(cls, folder: Path) -> MilvusStore:
        """The Milvus Lite store that was made in `folder`, with the spaces it has.

        Raises:
            StoreError: there is none, or its description is damaged.
        """
        found = Connection(folder, Items(()), "", "").description()
        if found is None:
            raise StoreError(f"There is no store in `{folder.name}`.", "Name a folder that `save` wrote.")
        return cls(folder, [Space(name, "dense", dim, metric) for name, dim, metric in found.spaces])

    def open(self) -> MilvusStore:
        """Connect now, making the collection where there is none.

        Raises:
            StoreError: the store cannot be opened, is damaged, or has other spaces or a newer format.
        """
        if self._connection.lexical:
            self._terms()
        return self

    @property
    def lexical(self) -> bool:
        """Whether it can be searched by words (Milvus before 2.4 has no sparse vectors)."""
        return self._connection.lexical

    def close(self) -> None:
        """Release files and connection; the next call opens them again."""
        self._connection.close()
        with self._lexicon_lock:
            if self._lexicon is not None:
                self._lexicon.close()
                self._lexicon = None

    def __enter__(self) -> MilvusStore:
        return self.open()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def erase(self) -> None:
        """Throw all items away and begin anew with this store's spaces, whatever state the old one is in."""
        with self._connection.turn():
            self._connection.erase()
            if self._connection.lexical:
                self._terms().rewrite(())

    def upsert(self, items: Sequence[Item], vectors: Mapping[str, np.ndarray]) -> None:
        """Insert or replace by id; the last of several items with one id counts.

        Args:
            vectors: per space float32 (len(items), dim), finite. A space left out: no vectors of it yet.

        Raises:
            BadInput: a wrong shape, NaN or infinity, text or metadata that a row cannot hold.
            StoreError: the backend failed; nothing of this call is acknowledged, all of it may be repeated.
        """
        if not items:
            return
        rows = to_rows(items, self.spaces, vectors, lexical=self.lexical)
        with self._connection.turn():
            for part in batched(rows.values(), BATCH):
                self._put(part)

    def _put(self, rows: list[dict[str, Any]]) -> None:
        added = [booked(row, self.spaces) for row in rows] if self.lexical else []
        self._change([row["id"] for row in rows], added, lambda: self._table.put(rows))

    def delete(self, where: Where) -> int:
        """Delete what matches; returns how many. An empty `Where` is `BadInput`."""
        if where in (Where(), Where(filter=AllOf())):
            raise BadInput("The filter of `delete` is empty.", "Name ids, documents, modalities or a uri prefix.")
        with self._connection.turn():
            ids = self.ids(where)
            for part in batched(ids, BATCH):
                self._remove(part)
        return len(ids)

    def _remove(self, ids: list[str]) -> None:
        filter_ = expression(Where(ids=tuple(ids)))
        self._change(ids, [], lambda: self._table.remove(filter_, len(ids)))

    def _change(self, ids: Sequence[str], added: Sequence[Iterable[int]], write: Callable[[], None]) -> None:
        """One write with its booking in the term statistics, where there are any. Only inside a turn."""
        if not self.lexical:
            write()
            return
        lexicon = self._terms()
        if lexicon.interrupted:  # a writer died between its write and its booking
            lexicon.rewrite(self._dimensions())
        old = self._table.rows(expression(Where(ids=tuple(ids))), booked_fields(self.spaces))
        lexicon.begin()
        write()
        lexicon.commit(added, [booked(row, self.spaces) for row in old])

    def settle(self) -> None:
        """Flush after many writes, and give a collection that has grown large an index of its dense fields."""
        self._table.settle({space.name: METRICS[space.metric] for space in self.spaces})

    def flush(self) -> None:
        """Move rows that wait in the log into a segment, where searches are fast (a server does so by itself)."""
        self._table.flush()

    def search(
        self, routes: Sequence[Route], k: int, where: Where | None = None, fusion: Literal["rrf", "weighted"] = "rrf"
    ) -> list[Hit]:
        """The best `k` items over all routes, ties by id.

        One route gives its own scores (BM25; cosine or inner product). Several are fused: `"rrf"` with k = 60,
        `"weighted"` by the routes' weights over their scores scaled to 0..1 (see `fusion.by_score`). A lexical route
        beside others is left out where the backend cannot search by words.

        Raises:
            BadInput: k outside 1..16,384, no route, an unknown space, a vector of the wrong size or not finite.
            Unsupported: only lexical routes, and the backend cannot search by words.
        """
        if fusion == "weighted" and not all(0 <= route.weight <= 1 for route in routes):
            raise BadInput("A route's weight is outside 0..1.", "Divide the weights by their sum.")
        _check(routes, k)
        usable = self._usable(routes)
        legs = [leg for leg in (self._leg(route, where) for route in usable) if leg is not None]
        if not legs:
            return []
        rows: dict[str, Any] = {}
        with self._connection.quiet():
            if len(usable) == 1:
                ranked = self._table.nearest(legs[0], k, ITEM_FIELDS, rows)
            else:
                ranked = self._fused(legs, k, fusion)
        if rows:
            return [Hit(to_item(rows[id_]), score) for id_, score in ranked]
        return self.hits(ranked)

    def lists(self, routes: Sequence[Route], k: int, where: Where | None = None) -> dict[str, Ranked]:
        """By space the best `k` ids of each route, with its own scores, ties by id: for fusion with other collections.

        Raises:
            BadInput, Unsupported: as `search`.
        """
        _check(routes, k)
        legs = {route.space.name: self._leg(route, where) for route in self._usable(routes)}
        with self._connection.quiet():
            return {name: [] if leg is None else self._table.nearest(leg, k) for name, leg in legs.items()}

    def hits(self, ranked: Ranked) -> list[Hit]:
        """The items of `ranked`, in its order; ids that the store lacks are left out."""
        found = {item.id: item for item in self.get([id_ for id_, _ in ranked])}
        return [Hit(found[id_], score) for id_, score in ranked if id_ in found]

    def _usable(self, routes: Sequence[Route]) -> list[Route]:
        usable = [route for route in routes if route.space.name != LEXICAL.name or self.lexical]
        if not usable:
            raise Unsupported(
                f"The Milvus server ({self._connection.backend.version}) has no sparse vectors: no search by words.",
                "Search with a dense encoder (`triptych pull`), or use Milvus 2.4 or newer.",
            )
        return usable

    def get(self, ids: Sequence[str]) -> list[Item]:
        """Items by id, in the order asked; unknown ids are left out."""
        found: dict[str, Item] = {}
        for at in range(0, len(ids), BATCH):
            part = expression(Where(ids=tuple(ids[at : at + BATCH])))
            for row in self._table.rows(part, ITEM_FIELDS, consistency_level=OWN_WRITES):
                found[row["id"]] = to_item(row)
        return [found[id_] for id_ in ids if id_ in found]

    def ids(self, where: Where | None = None) -> list[str]:
        """The ids of all items that match, sorted."""
        if where is not None and where.ids:
            parts = batched(dict.fromkeys(where.ids), BATCH)
            found = (self._table.rows(expression(replace(where, ids=tuple(part))), ["id"]) for part in parts)
            return sorted(row["id"] for rows in found for row in rows)
        return [row["id"] for row in self._scan(where, ["id"])]

    def items(self, where: Where | None = None) -> Iterator[Item]:
        """All items that match, by id, read in pages."""
        return (to_item(row) for row in self._scan(where, ITEM_FIELDS))

    def rows(self, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
        """All rows as they are stored, by id, read in pages."""
        return self._scan(None, list(fields))

    def statistics(self) -> Lexicon:
        """The term statistics."""
        return self._terms()

    def recount(self) -> None:
        """Make the term statistics anew from the rows, whatever state their file is in."""
        with self._connection.turn():
            try:
                self._terms().rewrite(self._dimensions())
            except StoreError:
                with self._lexicon_lock:
                    if self._lexicon is not None:
                        self._lexicon.close()
                    self._lexicon = None
                    remove(self.folder / TERMS)
                self._terms().rewrite(self._dimensions())

    def _dimensions(self) -> Iterator[Iterable[int]]:
        return (booked(row, self.spaces) for row in self._scan(None, booked_fields(self.spaces)))

    def per_document(self) -> dict[str, int]:
        """How many items each document has (reads a field of every row)."""
        return dict(Counter(row["document"] for row in self._scan(None, ["document"])))

    def count(self, where: Where | None = None) -> int:
        """How many items match; without a filter this is cheap."""
        return self._table.count(expression(where))

    def _scan(self, where: Where | None, fields: list[str]) -> Iterator[dict[str, Any]]:
        return self._table.scan(expression(where), fields)

    def stats(self) -> StoreStats:
        """Exact counts of what can be found now."""
        total = self.count()
        # Milvus Lite counts a filter's matches by reading their rows, so the most frequent kind is what remains.
        others: dict[str, int] = {
            kind: self._table.count(expression(Where(modalities=(kind,))), consistency_level=OWN_WRITES)
            for kind in MODALITIES
            if kind != "text"
        }
        by_modality: dict[str, int] = {"text": total - sum(others.values()), **others}
        return StoreStats(
            items=total,
            by_modality={kind: n for kind, n in by_modality.items() if n},
            spaces=(*((LEXICAL.name,) if self.lexical else ()), *(space.name for space in self.spaces)),
            backend="milvus-lite" if self._connection.is_lite else "milvus",
            version=self._connection.backend.version,
            can=self._connection.backend.names,
        )

    def note(self) -> str | None:
        """What a reader of answers should know about the backend, or None."""
        if self.lexical:
            return None
        backend = self._connection.backend
        mend = "run `triptych index --rebuild`" if backend.sparse else "use Milvus 2.4 or newer"
        return f"This library has no sparse vectors (Milvus {backend.version}): search is dense only; {mend}."

    def save(self, folder: Path) -> None:
        """Write all rows into a new Milvus Lite store in `folder`; into its own folder: make them durable."""
        self.flush()
        if folder.resolve() == self.folder.resolve():
            return
        fields = [*ITEM_FIELDS, *(name for space in self.spaces for name in (space.name, flag(space)))]
        with MilvusStore(folder, self.spaces) as copy:
            for page in batched(self._scan(None, fields), BATCH):
                # `upsert` takes a space for all of its items or for none.
                for has in {self._has(row) for row in page}:
                    rows = [row for row in page if self._has(row) == has]
                    vectors = {name: np.array([row[name] for row in rows], np.float32) for name in has}
                    copy.upsert([to_item(row) for row in rows], vectors)
            copy.flush()

    def _has(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(space.name for space in self.spaces if row[flag(space)])

    def _leg(self, route: Route, where: Where | None) -> Leg | None:
        """One route made ready, or None when it cannot find anything (a query without any known term)."""
        filter_ = expression(where)
        if route.space.name == LEXICAL.name:
            if route.text is None:
                raise BadInput("The lexical route needs the query's text.")
            weights = self._terms().query_weights(terms(route.text, "query"))
            return Leg(LEXICAL.name, weights, "IP", filter_, route.weight, 0.0) if weights else None
        space = next((space for space in self.spaces if space.name == route.space.name), None)
        if space is None or route.vector is None:
            raise BadInput(f"No search in space `{route.space.name}`.", "Give a vector of a space the store has.")
        vector = checked(np.atleast_2d(route.vector), space, 1)[0]
        if self._lack(space):
            only = f"{flag(space)} == true"
            filter_ = f"{only} and {filter_}" if filter_ else only
        metric, least = METRICS[space.metric], _LEAST[space.metric]
        return Leg(space.name, vector, metric, filter_, route.weight, least, is_dense=True)

    def _lack(self, space: Space) -> bool:
        """Whether some rows may have no vector of `space`: only then are they filtered out, which is slow."""
        return not self.lexical or self._terms().lack(self.spaces.index(space))

    def _fused(self, legs: Sequence[Leg], k: int, fusion: str) -> Ranked:
        depth = min(max(k, DEPTH), MAX_K)
        by_backend = self._connection.backend.hybrid and not any(self._table.needs_care(leg) for leg in legs)
        if fusion == "rrf" and by_backend:
            return self._fused_by_backend(legs, depth)[:k]
        lists = [self._table.nearest(leg, depth) for leg in legs]
        if fusion == "rrf":
            return by_rank([[id_ for id_, _ in ranked] for ranked in lists])[:k]
        return by_score(lists, [leg.weight for leg in legs], [leg.least for leg in legs])[:k]

    def _fused_by_backend(self, legs: Sequence[Leg], depth: int) -> Ranked:
        from pymilvus import AnnSearchRequest, RRFRanker

        asked = [
            AnnSearchRequest(
                [leg.data], leg.field, parameters(leg, depth), limit=depth, expr=self._table.within(leg.filter) or None
            )
            for leg in legs
        ]
        limit = min(depth * len(legs), MAX_K)
        return self._table.hits(
            lambda client, collection: client.hybrid_search(
                collection,
                asked,
                RRFRanker(RRF_K),
                limit=limit,
                output_fields=["id"],
                consistency_level=OWN_WRITES,
                timeout=CALL_S,
            )
        )

    def _terms(self) -> Lexicon:
        """The term statistics, beside a connection that stands."""
        self._connection.open()
        with self._lexicon_lock:
            if self._lexicon is None:
                self._lexicon = Lexicon(self.folder / TERMS)
            return self._lexicon


def _check(routes: Sequence[Route], k: int) -> None:
    if not 1 <= k <= MAX_K:
        raise BadInput(f"k is `{k}`.", f"Ask for 1 to {MAX_K}.")
    if not routes:
        raise BadInput("A search needs at least one route.")
