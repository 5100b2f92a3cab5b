"""Rows of one collection: reading them by filter and in pages, the nearest of them, writing, and when to flush.

`milvus.MilvusStore` and `vectors.VectorStore` say what the rows mean.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ...errors import StoreError
from ...progress import step
from ..fusion import best_first
from .filters import quoted
from .layouts import KEY, TENANT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ..fusion import Ranked
    from .connection import Connection

MAX_K = 16_384
"""Milvus' own limit of one search."""

BATCH = 500
"""Rows that are written, or ids that are asked for, in one call."""

CALL_S = 120.0
_PAGE = 2_000

OWN_WRITES = "Session"
"""What searches and reads by id see on a server: all that this process wrote, and what others wrote a moment ago.
Everything else asks for the newest state, for which a server waits 0.2 s."""

LARGE = 10_000
"""Rows from which on dense fields have an HNSW index (Malkov and Yashunin 2020, arXiv:1603.09320) instead of `FLAT`,
which is exact. Measured: see `make bench ONLY=store`."""

_BUILD = {"M": 16, "efConstruction": 200}
_EF = 128
_FEW = 2_000
"""Rows that match a filter and are compared one by one, where an index would lose some."""

T = TypeVar("T")


@dataclass(frozen=True)
class Leg:
    """A route in the backend's words.

    Attributes:
        width: how many rows an index has to look at to find one that the filter lets through.
    """

    field: str
    data: Any
    metric: str
    filter: str
    weight: float = 1.0
    least: float = 0.0
    is_dense: bool = False
    width: float = 1.0


class Table:
    """See the module. Safe from many threads, as far as `connection` is.

    Args:
        flush_rows: rows that may wait outside a segment (Milvus Lite only).
    """

    def __init__(self, connection: Connection, flush_rows: int) -> None:
        self.connection = connection
        self._flush_rows = flush_rows
        self._unflushed = 0
        self._unsealed = False

    def write(self, what: str, work: Callable[[Any, str], None], rows: int = 0) -> None:
        """Do `work(client, collection)`, which touches `rows` rows, and flush when many wait. Only inside a turn."""
        try:
            self.connection.call(what, work)
        except StoreError:
            self.connection.replay()
            raise
        self._unflushed += rows
        self._unsealed = self._unsealed or rows > 0
        if self._unflushed >= self._flush_rows:
            self._flush()

    def put(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert or replace rows by their key. Only inside a turn."""
        tenant = self.connection.tenant
        if tenant:
            rows = [{**row, TENANT: tenant, KEY: f"{tenant}/{row.get(KEY, row['id'])}"} for row in rows]
        if tenant and not self.connection.backend.sparse:  # Milvus 2.3 puts what it upserts into a wrong partition
            keys = ", ".join(quoted(row[KEY]) for row in rows)
            self.remove(f"{KEY} in [{keys}]", 0)
            self.write("add items", lambda client, name: client.insert(name, rows, timeout=CALL_S) and None, len(rows))
        else:
            self.write("add items", lambda client, name: client.upsert(name, rows, timeout=CALL_S) and None, len(rows))

    def within(self, filter_: str) -> str:
        """`filter_`, among the rows of this library."""
        tenant = self.connection.tenant
        if not tenant:
            return filter_
        own = f'{TENANT} == "{tenant}"'
        return f"{own} and ({filter_})" if filter_ else own

    def flush(self) -> None:
        """Move rows that wait in the log into a segment, where searches are fast (a server does so by itself)."""
        if self._unflushed:
            with self.connection.turn():
                self._flush()

    def _flush(self) -> None:
        self._unflushed = 0
        if self.connection.is_lite:
            with self.connection.quiet():
                self.write("be flushed", lambda client, collection: client.flush(collection, timeout=CALL_S))

    def remove(self, filter_: str, rows: int) -> None:
        """Delete the rows that match. Only inside a turn."""
        self.write(
            "delete items",
            lambda client, name: client.delete(name, filter=self.within(filter_), timeout=CALL_S) and None,
            rows,
        )

    def rows(self, filter_: str, fields: list[str], **options: Any) -> list[dict[str, Any]]:
        """The fields of all rows that match (few: see `scan`)."""
        return self._query("be read", filter_, fields, **options)

    def count(self, filter_: str = "", **options: Any) -> int:
        """How many rows match; without a filter this is cheap."""
        return int(self._query("be counted", filter_, ["count(*)"], **options)[0]["count(*)"])

    def scan(self, filter_: str, fields: list[str], key: str = "id") -> Iterator[dict[str, Any]]:
        """All rows that match, by their primary key (`key`, unless the collection is shared), in pages. (pymilvus' own
        iterator puts ids into its filter unquoted.)"""
        page, key = filter_, KEY if self.connection.tenant else key
        options = {"limit": _PAGE, "iterator": "True", "reduce_stop_for_best": True}
        while rows := self._query("be read", page, list({*fields, key}), **options):
            yield from rows
            beyond = f"{key} > {quoted(rows[-1][key])}"
            page = f"{filter_} and {beyond}" if filter_ else beyond

    def _query(self, what: str, filter_: str, fields: list[str], **options: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.connection.call(
            what,
            lambda client, name: client.query(
                name, filter=self.within(filter_), output_fields=fields, timeout=CALL_S, **options
            ),
        )
        return found

    def settle(self, fields: Mapping[str, str]) -> None:
        """Flush, and where there are `LARGE` rows, give these dense fields (name → metric) their index.

        On Milvus Lite searches go on meanwhile. A server answers none until it is done.
        """
        self.flush()
        if self.count() < LARGE:
            return
        if self._unsealed and not self.connection.is_lite:
            # What is not in a sealed segment has an index of the server's own, which found 65 % under a filter.
            self.write("be flushed", lambda client, collection: client.flush(collection, timeout=CALL_S))
            self._unsealed = False
        with self.connection.turn():
            for field, metric in fields.items():
                if self._index_of(field) == "FLAT":
                    step(0, None, "making the index of vectors")
                    self.write("be indexed", partial(self._index, field, metric))

    def _index_of(self, field: str) -> str:
        found = self.connection.call("be described", lambda client, name: client.describe_index(name, field))
        return str(found["index_type"])

    def _index(self, field: str, metric: str, client: Any, name: str) -> None:
        made = client.prepare_index_params()
        made.add_index(field, index_type="HNSW", metric_type=metric, params=_BUILD)
        client.release_collection(name)
        client.drop_index(name, field)
        if self.connection.is_lite:  # it also searches without an index, and makes one while it does
            client.load_collection(name)
            client.create_index(name, made)
        else:
            client.create_index(name, made)
            client.load_collection(name)

    def needs_care(self, leg: Leg) -> bool:
        """Whether a search would lose hits: Milvus Lite walks its index as if there were no filter."""
        return leg.is_dense and bool(leg.filter) and self.connection.is_lite and self.count() >= LARGE

    def nearest(self, leg: Leg, k: int, fields: Sequence[str] = (), rows: dict[str, Any] | None = None) -> Ranked:
        """The `k` ids with the highest scores, ties by id.

        Args:
            fields, rows: what the search itself can say of the rows that it finds is put into `rows`, by id.
        """
        if self.needs_care(leg):
            # Milvus Lite reads every row for each filter: so the rows come with the answer to how many there are.
            few = self.rows(leg.filter, ["id", leg.field], limit=_FEW + 1)
            if len(few) <= _FEW:
                return _compared(few, leg)[:k]
            leg = replace(leg, width=self.count() / self.count(leg.filter))
        # Ask for more until the hits tied with the last one are all there, or "ties by id" would be up to the backend.
        limit = min(k + 4, MAX_K)
        while True:
            ranked = self.hits(self._searching(leg, limit, ["id", *fields]), rows)
            if len(ranked) < limit or ranked[-1][1] < ranked[k - 1][1] or limit == MAX_K:
                return ranked[:k]
            limit = min(limit * 4, MAX_K)

    def _searching(self, leg: Leg, limit: int, fields: list[str]) -> Callable[[Any, str], Any]:
        return lambda client, collection: client.search(
            collection,
            [leg.data],
            anns_field=leg.field,
            filter=self.within(leg.filter),
            limit=limit,
            output_fields=fields,
            search_params=parameters(leg, limit),
            consistency_level=OWN_WRITES,
            timeout=CALL_S,
        )

    def hits(self, work: Callable[[Any, str], Any], rows: dict[str, Any] | None = None) -> Ranked:
        """What the search `work` found, best first."""
        found = self.connection.call("be searched", work)[0]
        if rows is not None:
            rows.update({hit["entity"]["id"]: hit["entity"] for hit in found})
        return best_first({hit["entity"]["id"]: float(hit["distance"]) for hit in found})


def _compared(rows: Sequence[Mapping[str, Any]], leg: Leg) -> Ranked:
    """`rows` by the score of their vectors, ties by id."""
    if not rows:
        return []
    vectors = np.array([row[leg.field] for row in rows], np.float32)
    scores = vectors @ np.asarray(leg.data, np.float32)
    if leg.metric == "COSINE":
        scores /= np.maximum(np.linalg.norm(vectors, axis=1) * np.linalg.norm(leg.data), 1e-12)
    return best_first({row["id"]: float(score) for row, score in zip(rows, scores, strict=True)})


def parameters(leg: Leg, limit: int) -> dict[str, Any]:
    """How `limit` hits of `leg` are searched: an index looks at more than twice as many rows, `FLAT` at all."""
    if not leg.is_dense:
        return {"metric_type": leg.metric}
    return {"metric_type": leg.metric, "params": {"ef": max(_EF, int(2 * limit * leg.width))}}


def batched(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    """`rows` in lists of at most `size`."""
    left = iter(rows)
    while part := list(islice(left, size)):
        yield part
