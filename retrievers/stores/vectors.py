"""The vectors of one further space of a library (multilingual, visual, token vectors), beside its base collection.

A collection of its own in the same backend, with the ids of the items whose vectors it holds and the fields that
filters read; the items themselves are in the base collection (see `milvus`). It holds vectors of some or all items, and
may be made, filled and thrown away without touching anything else.

A multi-vector space is searched by MaxSim (Khattab and Zaharia 2020, arXiv:2004.12832): the sum, over the query's
vectors, of each one's best match among the item's. Where the backend cannot do that, all vectors are held in memory
while they take at most `HELD_BYTES`, each read once, and every item that matches is scored: the answer is exact. (On
Milvus Lite a list of neighbours among some ten thousand token vectors takes seconds, for each vector of the query.)

Of a space that is larger, the nearest token vectors of each query vector name candidates, whose MaxSim is then computed
from all of their vectors. An item that no list names cannot score more than the sum of the lists' last scores: once the
k-th candidate beats that, the answer is exact (Fagin, Lotem and Naor 2003, doi:10.1016/S0022-0000(03)00026-6).
Otherwise the lists grow, until `MOST_CANDIDATES` items are named, and the answer is the best of so many.
"""

from __future__ import annotations

from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import BadInput
from ..base import Where
from ..fusion import best_first
from .connection import Connection
from .filters import expression
from .layouts import KEY, MAX_TOKENS, TOKEN, TOKENS, VECTOR, Vectors
from .rows import METRICS, checked, to_filter_row
from .table import BATCH, CALL_S, MAX_K, OWN_WRITES, Leg, Table, batched

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ..base import Item, Space
    from ..fusion import Ranked

FLUSH_ROWS = 5_000
HELD_BYTES = 512 * 2**20
"""A million token vectors of 128 numbers: some seven thousand passages, or a thousand pages."""
MOST_CANDIDATES = 2_000
_FIRST_LIST = 256
_SLACK = 1e-3
"""What the backend's scores may be off from ours."""


class VectorStore:
    """Vectors of `space` by item id. Nothing is opened before the first call.

    Args:
        folder: the library's folder.
        space: dense or multi-vector.
        uri, token, shared: as for `MilvusStore`.

    Raises:
        BadInput: a space that cannot be a collection.
        StoreError: from every method, when the backend fails.
    """

    def __init__(
        self,
        folder: Path,
        space: Space,
        uri: str = "",
        *,
        token: str = "",
        shared: str = "",
        flush_rows: int = FLUSH_ROWS,
    ) -> None:
        self.space = space
        self._layout = Vectors(space)
        self._connection = Connection(folder, self._layout, uri, "FLAT", token, shared)
        self._table = Table(self._connection, flush_rows)
        self._held: dict[str, np.ndarray] = {}
        self._held_rows = -1
        self._holding = Lock()

    @property
    def _by_token(self) -> bool:
        return self._layout.by_token(self._connection.backend)

    def upsert(self, items: Sequence[Item], vectors: Any) -> None:
        """Insert or replace by id.

        Args:
            items: each id once.
            vectors: dense: float32 (len(items), dim); multi: as many arrays of float32 (1 to 4,096, dim). Finite.

        Raises:
            BadInput: anything else; nothing is written then.
        """
        rows = self._rows(items, vectors)
        with self._connection.turn(), self._changing():
            if self._by_token:
                self._remove([item.id for item in items])
            for part in batched(rows, BATCH):
                self._table.put(part)

    def delete(self, where: Where) -> None:
        """Delete the vectors of all items that match. An empty `Where` is `BadInput`."""
        if not expression(where):
            raise BadInput("The filter of `delete` is empty.", "Name ids, documents, modalities or a uri prefix.")
        with self._connection.turn(), self._changing():
            if where.ids:
                self._remove(where.ids)
            else:
                self._table.remove(expression(where), 1)

    def search(self, vector: Any, k: int, where: Where | None = None) -> Ranked:
        """The ids of the best `k` items with their scores, ties by id.

        Args:
            vector: of the query: float32 (dim,), or (tokens, dim) in a multi-vector space.

        Raises:
            BadInput: k outside 1..16,384, or a vector of the wrong size or not finite.
        """
        if not 1 <= k <= MAX_K:
            raise BadInput(f"k is `{k}`.", f"Ask for 1 to {MAX_K}.")
        query = np.atleast_2d(np.asarray(vector, np.float32))
        query = checked(query, self.space, len(query) if self.space.kind == "multi" else 1)
        filter_ = expression(where)
        if self.space.kind == "dense":
            return self._table.nearest(Leg(VECTOR, query[0], METRICS[self.space.metric], filter_, is_dense=True), k)
        if not self._by_token:
            return self._by_backend(query, k, filter_)
        rows = self._table.count()
        if rows * 4 * self.space.dim > HELD_BYTES:
            return self._by_candidates(query, k, filter_)
        held = self._all(filter_, rows)
        return best_first({id_: max_sim(query, own, self.space.metric) for id_, own in held.items()})[:k]

    def vectors(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """What is stored for `ids`: float32 (dim,) or (tokens, dim) each; ids without vectors are left out."""
        found: dict[str, np.ndarray] = {}
        for part in batched(ids, BATCH):
            found.update(self._stored(expression(Where(ids=tuple(part)))))
        return found

    def ids(self) -> list[str]:
        """The ids of all items that have vectors, sorted."""
        first = f"{TOKEN} == 0" if self._by_token else ""
        return sorted(row["id"] for row in self._table.scan(first, ["id"], KEY if self._by_token else "id"))

    def count(self) -> int:
        """How many items have vectors."""
        return self._table.count(f"{TOKEN} == 0" if self._by_token else "")

    def erase(self) -> None:
        """Throw all vectors away and begin anew, whatever state the collection is in."""
        with self._connection.turn(), self._changing():
            self._connection.erase()

    def settle(self) -> None:
        """See `MilvusStore.settle`. Rows of token vectors stay without an index: their lists must be exact."""
        self._table.settle({VECTOR: METRICS[self.space.metric]} if self.space.kind == "dense" else {})

    def close(self) -> None:
        """Release files and connection; the next call opens them again."""
        self._let_go()
        self._connection.close()

    def _rows(self, items: Sequence[Item], vectors: Any) -> list[dict[str, Any]]:
        """Rows for the collection, everything checked."""
        if len({item.id for item in items}) != len(items):
            raise BadInput("An item is given twice.", "Give each id once.")
        if self.space.kind == "dense":
            array = checked(vectors, self.space, len(items))
            return [{**to_filter_row(item), VECTOR: row} for item, row in zip(items, array, strict=True)]
        if len(vectors) != len(items):
            raise BadInput(f"There are `{len(vectors)}` arrays for {len(items)} items.", "Give one for each.")
        made: list[dict[str, Any]] = []
        for item, given in zip(items, vectors, strict=True):
            tokens = checked(given, self.space, max(1, min(len(given), MAX_TOKENS)))
            made += self._token_rows(to_filter_row(item), tokens)
        return made

    def _token_rows(self, row: dict[str, Any], tokens: np.ndarray) -> list[dict[str, Any]]:
        if self._by_token:
            return [{**row, KEY: f"{row['id']}#{n}", TOKEN: n, VECTOR: vector} for n, vector in enumerate(tokens)]
        return [{**row, TOKENS: [{VECTOR: vector.tolist()} for vector in tokens], VECTOR: [1.0, 0.0]}]

    def _remove(self, ids: Sequence[str]) -> None:
        for part in batched(ids, BATCH):
            self._table.remove(expression(Where(ids=tuple(part))), len(part))

    def _stored(self, filter_: str) -> dict[str, np.ndarray]:
        if self._by_token:
            tokens: dict[str, dict[int, Any]] = {}
            for row in self._table.scan(filter_, ["id", TOKEN, VECTOR], KEY):
                tokens.setdefault(row["id"], {})[row[TOKEN]] = row[VECTOR]
            return {id_: np.array([rows[n] for n in sorted(rows)], np.float32) for id_, rows in tokens.items()}
        if self.space.kind == "multi":
            found = self._table.rows(filter_, ["id", TOKENS])
            return {row["id"]: np.array([token[VECTOR] for token in row[TOKENS]], np.float32) for row in found}
        return {row["id"]: np.array(row[VECTOR], np.float32) for row in self._table.rows(filter_, ["id", VECTOR])}

    def _by_backend(self, query: np.ndarray, k: int, filter_: str) -> Ranked:
        from pymilvus.client.embedding_list import EmbeddingList

        asked = EmbeddingList()
        for vector in query:
            asked.add(vector.tolist())
        return self._table.nearest(
            Leg(f"{TOKENS}[{VECTOR}]", asked, f"MAX_SIM_{METRICS[self.space.metric]}", filter_), k
        )

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """What is held is thrown away, before and after: a search may read in between."""
        self._let_go()
        try:
            yield
        finally:
            self._let_go()

    def _let_go(self) -> None:
        with self._holding:
            self._held, self._held_rows = {}, -1

    def _all(self, filter_: str, rows: int) -> dict[str, np.ndarray]:
        """The vectors of all items that match, each read once as long as nothing is written here.

        Args:
            rows: that the collection has: as long as they are as many as were read, all is as it was; another process
                that adds and deletes exactly as many is noticed when that changes. Items never change their vectors.
        """
        with self._holding:
            if not filter_ and rows == self._held_rows:
                return self._held
            first = f"{TOKEN} == 0"
            found = self._table.scan(f"({filter_}) and {first}" if filter_ else first, ["id"], KEY)
            ids = [row["id"] for row in found]
            missing = [id_ for id_ in ids if id_ not in self._held]
            if missing:
                self._held |= self.vectors(missing) if self._held or filter_ else self._stored("")
            chosen = {id_: self._held[id_] for id_ in ids if id_ in self._held}
            if not filter_:
                self._held, self._held_rows = chosen, rows
            return chosen

    def _by_candidates(self, query: np.ndarray, k: int, filter_: str) -> Ranked:
        size = min(max(_FIRST_LIST, 4 * k), MAX_K)
        while True:
            lists = self._token_lists(query, size, filter_)
            named = list(dict.fromkeys(id_ for found in lists for id_, _ in found))
            vectors = self.vectors(named)
            ranked = best_first({id_: max_sim(query, vectors[id_], self.space.metric) for id_ in vectors})
            seen_all = any(len(found) < size for found in lists)
            bound = sum(found[-1][1] for found in lists if found)
            if seen_all or (len(ranked) >= k and ranked[k - 1][1] > bound + _SLACK):
                return ranked[:k]
            if len(named) >= MOST_CANDIDATES or size == MAX_K:
                return ranked[:k]
            size = min(4 * size, MAX_K)

    def _token_lists(self, query: np.ndarray, size: int, filter_: str) -> list[Ranked]:
        """For each query vector, the items of the `size` nearest token vectors, best first, with repetitions."""
        found = self._connection.call(
            "be searched",
            lambda client, name: client.search(
                name,
                list(query),
                anns_field=VECTOR,
                filter=self._table.within(filter_),
                limit=size,
                output_fields=["id"],
                search_params={"metric_type": METRICS[self.space.metric]},
                consistency_level=OWN_WRITES,
                timeout=CALL_S,
            ),
        )
        return [[(hit["entity"]["id"], float(hit["distance"])) for hit in hits] for hits in found]


def max_sim(query: np.ndarray, item: np.ndarray, metric: str) -> float:
    """The sum over the rows of `query` (q, dim) of the highest similarity to a row of `item` (t, dim).

    >>> max_sim(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 2.0]]), "ip")
    3.0
    """
    similarities = (_unit(query) @ _unit(item).T) if metric == "cosine" else query @ item.T
    return float(similarities.max(axis=1).sum())


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    made: np.ndarray = rows / np.where(lengths > 0, lengths, 1.0)
    return made
