"""Items in one Milvus collection: dense spaces next to BM25, fused by Milvus' own hybrid search.

Without a URI the collection lives in a Milvus Lite folder inside the library and any number of processes may use it at
once (see `lite`); with one it lives on that server. Beside it, in the library's folder, stand `store.json` (the
collection's name and spaces) and the term statistics (see `lexicon`, which also says why BM25 is computed here and not
by the backend's function).

A library may be indexed before its model's weights are on the machine. Every row has its vector fields from the start;
a row without a vector of a space has zeros there and `has_<space>` false, and routes of that space search only rows
where it is true. `upsert` with vectors later fills them in; nothing else changes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from uuid import uuid4

import numpy as np

from ...errors import BadInput, StoreError
from ..base import MODALITIES, Hit, Item, MediaRef, Source, Space, Store, StoreStats, Where
from ..text.analysis import searchable, terms
from . import lite
from .lexicon import LEXICAL, Lexicon, item_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from ..base import Route

FORMAT = 1
MAX_K = 16_384
"""Milvus' own limit of one search."""

RRF_K = 60
DEPTH = 100
"""Each route of a hybrid search offers at least this many candidates: a small k gets the head of a large one."""

MAX_BYTES = 65_535
"""What one VARCHAR field holds, in UTF-8."""

_BATCH = 500
_PAGE = 2_000
_LOCK_S = 60.0
_CALL_S = 120.0
_FLUSH_ROWS = 1_000
# Milvus Lite scores rows that are not yet in a segment by building their index anew for every query.
_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
_METRICS = {"cosine": "COSINE", "ip": "IP"}
_REBUILD = "Build the library anew: `triptych index --rebuild PATH…`."
_GONE = ("StatusCode.UNAVAILABLE", "StatusCode.CANCELLED", "Fail connecting", "closed channel")
_REPLACED = ("does not exist", "can't find collection")
_FIELDS = ["id", "text", "modality", "payload"]
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})

T = TypeVar("T")


class MilvusStore(Store):
    """A store on Milvus Lite or a Milvus server.

    Nothing is opened before the first call (or `open`). Reads may come from many threads; writes of all threads and
    processes take turns.

    Args:
        folder: the library's folder; made when missing.
        spaces: the dense spaces of every row, in the order they were first given.
        uri: `""` for Milvus Lite inside `folder`, else a server (`http://host:19530`).
        dense_index: `"FLAT"` (exact) or another index type of Milvus for the dense fields.
        flush_rows: rows that may wait outside a segment (Milvus Lite only).
    """

    def __init__(
        self,
        folder: Path,
        spaces: Sequence[Space] = (),
        uri: str = "",
        *,
        dense_index: str = "FLAT",
        flush_rows: int = _FLUSH_ROWS,
    ) -> None:
        for space in spaces:
            if space.kind != "dense" or not _NAME.fullmatch(space.name) or space.metric not in _METRICS:
                raise BadInput(f"Space `{space.name}` cannot be a field.", "Dense spaces in snake_case, cosine or ip.")
        self.folder = folder
        self.spaces = tuple(spaces)
        self._uri = uri
        self._dense_index = dense_index
        self._flush_rows = flush_rows
        self._lock = RLock()
        self._write_lock = Lock()
        self._link: lite.Link | None = None
        self._lexicon: Lexicon | None = None
        self._collection = ""
        self._is_lite = not uri
        self._unflushed = 0

    # Opening and closing

    def open(self) -> MilvusStore:
        """Connect now, making the collection where there is none.

        Raises:
            StoreError: the store cannot be opened, is damaged, or has other spaces or a newer format.
        """
        self._connected()
        return self

    def close(self) -> None:
        """Release the connection; the store may be opened again."""
        with self._lock:
            link, self._link = self._link, None
            if link is not None:
                self._let_go(link)
            if self._lexicon is not None:
                self._lexicon.close()
                self._lexicon = None

    def __enter__(self) -> MilvusStore:
        return self.open()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def erase(self) -> None:
        """Throw all items away and begin anew with this store's spaces, whatever state the old one is in."""
        with self._turn():
            old = self._name_on_disk()
            self.close()
            link = self._dial()
            damaged = not old
            try:
                if old:
                    link.client.drop_collection(old)
            except _backend_errors() as error:
                damaged = True
                if self._uri or not link.holds:
                    raise self._failure("be erased", error) from error
            finally:
                self._let_go(link)
            if damaged and link.holds:
                shutil.rmtree(self._lite_folder)
            self._described.unlink(missing_ok=True)
            lexicon = Lexicon(self._lexicon_file)
            lexicon.rewrite(())
            lexicon.close()
        self.open()

    def _name_on_disk(self) -> str:
        try:
            return str(json.loads(self._described.read_text("utf-8"))["collection"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    @property
    def _lite_folder(self) -> Path:
        return self.folder / "milvus.db"

    @property
    def _described(self) -> Path:
        return self.folder / "store.json"

    @property
    def _lexicon_file(self) -> Path:
        return self.folder / "lexicon.sqlite"

    def _connected(self) -> lite.Link:
        with self._lock:
            if self._link is None:
                self._open_now()
            assert self._link is not None
            return self._link

    def _open_now(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"The library's folder cannot be made: {error.strerror}.", "Choose another.") from None
        self._read_description()
        link = self._dial()
        try:
            self._is_lite = link.client.get_server_version().startswith("milvus_lite")
            self._ready(link)
            if self._lexicon is None:
                self._lexicon = Lexicon(self._lexicon_file)
        except BaseException as error:
            self._let_go(link)
            if isinstance(error, _backend_errors()):
                raise self._failure("be opened", error) from error
            raise
        self._link = link

    def _dial(self) -> lite.Link:
        if not self._uri:
            return lite.connect(self._lite_folder, self._belongs)
        try:
            return lite.Link(lite.client_of(self._uri, 10.0), self._uri)
        except _backend_errors() as error:
            raise StoreError(
                f"No Milvus server answers at `{_without_secrets(self._uri)}`.", "Start it, or correct `store_uri`."
            ) from error

    def _let_go(self, link: lite.Link) -> None:
        if self._uri:
            link.client.close()
        else:
            lite.release(self._lite_folder, link)

    def _belongs(self, client: Any) -> bool:
        self._read_description()
        return bool(self._collection) and bool(client.has_collection(self._collection))

    def _read_description(self) -> None:
        if not self._described.exists():
            self._collection = ""
            return
        try:
            found = json.loads(self._described.read_text("utf-8"))
            version, collection, spaces = found["format"], found["collection"], found["spaces"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError("The store's description `store.json` is damaged.", _REBUILD) from error
        if version != FORMAT:
            raise StoreError(f"The store has format `{version}`, this version reads {FORMAT}.", _REBUILD)
        if spaces != self._described_spaces():
            names = ", ".join(str(space[0]) for space in spaces) or "none"
            raise StoreError(f"The store was built with other spaces than asked for: `{names}`.", _REBUILD)
        self._collection = collection

    def _described_spaces(self) -> list[list[Any]]:
        return [[space.name, space.dim, space.metric] for space in self.spaces]

    def _ready(self, link: lite.Link) -> None:
        """The collection exists and is loaded (Milvus Lite opens it unloaded)."""
        client = link.client
        if not (self._collection and client.has_collection(self._collection)):
            with _file_lock(self.folder / "create.lock"):
                self._read_description()
                if not self._collection:
                    self._describe()
                if not client.has_collection(self._collection):
                    self._create(client)
        client.load_collection(self._collection)
        if link.holds:
            # Rows that a killed process left in the log become a segment, or every search would index them anew.
            client.flush(self._collection)

    def _describe(self) -> None:
        self._collection = f"items_{uuid4().hex}"
        record = {"format": FORMAT, "collection": self._collection, "spaces": self._described_spaces()}
        draft = self._described.with_name(f"store.json.{os.getpid()}")
        draft.write_text(json.dumps(record), "utf-8")
        draft.replace(self._described)

    def _create(self, client: Any) -> None:
        from pymilvus import DataType

        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, max_length=256, is_primary=True)
        for name, length in (("uri", 4096), ("document", 256), ("modality", 16)):
            schema.add_field(name, DataType.VARCHAR, max_length=length)
        for name in ("text", "payload"):
            schema.add_field(name, DataType.VARCHAR, max_length=MAX_BYTES)
        index = client.prepare_index_params()
        schema.add_field(LEXICAL.name, DataType.SPARSE_FLOAT_VECTOR)
        index.add_index(LEXICAL.name, index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
        for space in self.spaces:
            schema.add_field(space.name, DataType.FLOAT_VECTOR, dim=space.dim)
            schema.add_field(f"has_{space.name}", DataType.BOOL)
            index.add_index(space.name, index_type=self._dense_index, metric_type=_METRICS[space.metric])
        client.create_collection(self._collection, schema=schema)
        client.create_index(self._collection, index, sync=False)

    # Calls to the backend

    def _call(self, what: str, work: Callable[[Any], T]) -> T:
        """`work(client)`, once more on a new connection when the process that held the folder is gone."""
        link = self._connected()
        try:
            return work(link.client)
        except _backend_errors() as error:
            gone, replaced = _says(error, _GONE), _says(error, _REPLACED)
            if not gone and not replaced:
                raise self._failure(what, error) from error
        with self._lock:
            if self._link is link:
                self._link = None
                if gone and not self._uri:
                    lite.lost(self._lite_folder, link)
                else:
                    self._let_go(link)
        try:
            return work(self._connected().client)
        except _backend_errors() as error:
            raise self._failure(what, error) from error

    def _failure(self, what: str, error: Exception) -> StoreError:
        reason = str(getattr(error, "message", "") or error).strip().split("\n")[0][:300]
        reason = reason.replace(str(self.folder.resolve()), self.folder.name).replace(
            str(self.folder), self.folder.name
        )
        hint = "Look at `triptych status`."
        if "No space left" in reason or "Errno 28" in reason or "File too large" in reason or "Errno 27" in reason:
            hint = "Free some disk space and run it again; what was acknowledged is kept."
        elif "manifest" in reason.lower() or "corrupt" in reason.lower():
            hint = _REBUILD
        return StoreError(f"The store could not {what}: {reason}.", hint)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """The right to write, one at a time over all threads and processes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._write_lock, _file_lock(self.folder / "store.lock"):
            yield

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Keep searches of Milvus Lite off its flushes: rows on their way to a segment are in neither place."""
        if not self._is_lite:
            yield
            return
        with self._connected().gate:
            yield

    @property
    def _terms(self) -> Lexicon:
        self._connected()
        assert self._lexicon is not None
        return self._lexicon

    # Writing

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
        rows = self._rows(items, vectors)
        ids = list(rows)
        with self._turn():
            lexicon = self._mended()
            for at in range(0, len(ids), _BATCH):
                part = ids[at : at + _BATCH]
                data = [rows[id_] for id_ in part]
                before = self._dimensions(part)
                lexicon.begin()
                self._write(
                    "add items",
                    lambda client, data=data: client.upsert(self._collection, data, timeout=_CALL_S),
                    len(part),
                )
                lexicon.commit([row[LEXICAL.name] for row in data], before)

    def delete(self, where: Where) -> int:
        """Delete what matches; returns how many. An empty `Where` is `BadInput`."""
        if where == Where():
            raise BadInput("The filter of `delete` is empty.", "Name ids, documents, modalities or a uri prefix.")
        with self._turn():
            ids = self.ids(where)
            lexicon = self._mended()
            for at in range(0, len(ids), _BATCH):
                part = ids[at : at + _BATCH]
                before = self._dimensions(part)
                lexicon.begin()
                filter_ = expression(Where(ids=tuple(part)))
                self._write(
                    "delete items",
                    lambda client, f=filter_: client.delete(self._collection, filter=f, timeout=_CALL_S),
                    len(part),
                )
                lexicon.commit((), before)
        return len(ids)

    def flush(self) -> None:
        """Move rows that wait in the log into a segment, where searches are fast (Milvus Lite; else nothing)."""
        if self._is_lite and self._unflushed:
            with self._turn():
                self._flush()

    def _flush(self) -> None:
        with self._quiet():
            self._write("be flushed", lambda client: client.flush(self._collection), 0)
        self._unflushed = 0

    def _write(self, what: str, work: Callable[[Any], Any], rows: int) -> None:
        try:
            self._call(what, work)
        except StoreError:
            self._replay()
            raise
        self._unflushed += rows
        if self._is_lite and self._unflushed >= self._flush_rows:
            self._unflushed = 0
            self._flush()

    def _replay(self) -> None:
        """After a failed write Milvus Lite's memory may lack rows that its log has: open the folder anew."""
        with self._lock:
            link = self._link
            if link is not None and link.holds:
                self._link = None
                lite.lost(self._lite_folder, link)

    def _mended(self) -> Lexicon:
        """The term statistics, counted anew if a writer died half-way. Only inside `_turn`."""
        if self._terms.interrupted:
            self._terms.rewrite(row[LEXICAL.name] for row in self._scan(None, [LEXICAL.name]))
        return self._terms

    def _dimensions(self, ids: Sequence[str]) -> list[list[int]]:
        rows = self._query(Where(ids=tuple(ids)), [LEXICAL.name])
        return [list(row[LEXICAL.name]) for row in rows]

    def _rows(self, items: Sequence[Item], vectors: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
        given = {
            space.name: _checked(vectors[space.name], space, len(items))
            for space in self.spaces
            if space.name in vectors
        }
        unknown = set(vectors) - set(given)
        if unknown:
            raise BadInput(
                f"The store has no space `{min(unknown)}`.", f"It has: {', '.join(s.name for s in self.spaces)}."
            )
        rows = {}
        for n, item in enumerate(items):
            row = _row(item)
            for space in self.spaces:
                row[f"has_{space.name}"] = space.name in given
                row[space.name] = given[space.name][n] if space.name in given else [0.0] * space.dim
            rows[item.id] = row
        return rows

    # Reading

    def search(
        self, routes: Sequence[Route], k: int, where: Where | None = None, fusion: Literal["rrf", "weighted"] = "rrf"
    ) -> list[Hit]:
        """The best `k` items over all routes, ties by id.

        One route gives its own scores (BM25; cosine or inner product). Several are fused by Milvus: `"rrf"` with
        k = 60, `"weighted"` by the routes' weights over scores that Milvus maps to 0..1.

        Raises:
            BadInput: k outside 1..16,384, no route, an unknown space, a vector of the wrong size or not finite.
        """
        if not 1 <= k <= MAX_K:
            raise BadInput(f"k is `{k}`.", f"Ask for 1 to {MAX_K}.")
        if not routes:
            raise BadInput("A search needs at least one route.")
        legs = [leg for leg in (self._leg(route, where) for route in routes) if leg is not None]
        if not legs:
            return []
        with self._quiet():
            ranked = self._one(legs[0], k) if len(routes) == 1 else self._fused(legs, k, fusion)
        found = {item.id: item for item in self.get([id_ for id_, _ in ranked])}
        return [Hit(found[id_], score) for id_, score in ranked if id_ in found]

    def get(self, ids: Sequence[str]) -> list[Item]:
        """Items by id, in the order asked; unknown ids are left out."""
        found: dict[str, Item] = {}
        for at in range(0, len(ids), _BATCH):
            for row in self._query(Where(ids=tuple(ids[at : at + _BATCH])), _FIELDS):
                found[row["id"]] = _item(row)
        return [found[id_] for id_ in ids if id_ in found]

    def ids(self, where: Where | None = None) -> list[str]:
        """The ids of all items that match, sorted."""
        if where is not None and where.ids:
            wanted = list(dict.fromkeys(where.ids))
            parts = [wanted[at : at + _BATCH] for at in range(0, len(wanted), _BATCH)]
            found = [row["id"] for part in parts for row in self._query(replace(where, ids=tuple(part)), ["id"])]
            return sorted(found)
        return sorted(row["id"] for row in self._scan(where, ["id"]))

    def items(self, where: Where | None = None) -> Iterator[Item]:
        """All items that match, in no particular order, a page at a time."""
        return (_item(row) for row in self._scan(where, _FIELDS))

    def per_document(self) -> dict[str, int]:
        """How many items each document has (reads a field of every row)."""
        return dict(Counter(row["document"] for row in self._scan(None, ["document"])))

    def count(self, where: Where | None = None) -> int:
        """How many items match; without a filter this is cheap."""
        filter_ = expression(where)
        rows = self._call(
            "be counted",
            lambda client: client.query(self._collection, filter=filter_, output_fields=["count(*)"], timeout=_CALL_S),
        )
        return int(rows[0]["count(*)"])

    def stats(self) -> StoreStats:
        """Exact counts of what can be found now."""
        total = self.count()
        # Milvus Lite counts a filter's matches by reading their rows, so the most frequent kind is what remains.
        others = {kind: self.count(Where(modalities=(kind,))) for kind in MODALITIES if kind != "text"}
        by_modality = {"text": total - sum(others.values()), **others}
        return StoreStats(
            items=total,
            by_modality={kind: n for kind, n in by_modality.items() if n},
            spaces=(LEXICAL.name, *(space.name for space in self.spaces)),
            backend="milvus-lite" if self._is_lite else "milvus",
        )

    def _leg(self, route: Route, where: Where | None) -> Leg | None:
        """One route made ready, or None when it cannot find anything (a query without any known term)."""
        filter_ = expression(where)
        if route.space.name == LEXICAL.name:
            if route.text is None:
                raise BadInput("The lexical route needs the query's text.")
            weights = self._terms.query_weights(terms(route.text, "query"))
            return Leg(LEXICAL.name, weights, "IP", filter_, route.weight) if weights else None
        space = next((space for space in self.spaces if space.name == route.space.name), None)
        if space is None or route.vector is None:
            raise BadInput(f"No search in space `{route.space.name}`.", "Give a vector of a space the store has.")
        vector = _checked(np.atleast_2d(route.vector), space, 1)[0]
        only = f"has_{space.name} == true"
        both = f"{only} and {filter_}" if filter_ else only
        return Leg(space.name, vector, _METRICS[space.metric], both, route.weight)

    def _one(self, leg: Leg, k: int) -> list[tuple[str, float]]:
        # Ask for more until the hits tied with the last one are all there, or "ties by id" would be up to the backend.
        limit = min(k + 16, MAX_K)
        while True:
            ranked = self._hits(
                lambda client, limit=limit: client.search(
                    self._collection,
                    [leg.data],
                    anns_field=leg.field,
                    filter=leg.filter,
                    limit=limit,
                    output_fields=["id"],
                    search_params={"metric_type": leg.metric},
                    timeout=_CALL_S,
                )
            )
            if len(ranked) < limit or ranked[-1][1] < ranked[k - 1][1] or limit == MAX_K:
                return ranked[:k]
            limit = min(limit * 4, MAX_K)

    def _fused(self, legs: Sequence[Leg], k: int, fusion: str) -> list[tuple[str, float]]:
        from pymilvus import AnnSearchRequest, RRFRanker, WeightedRanker

        depth = min(max(k, DEPTH), MAX_K)
        ranker = RRFRanker(RRF_K) if fusion == "rrf" else WeightedRanker(*(leg.weight for leg in legs))
        asked = [
            AnnSearchRequest([leg.data], leg.field, {"metric_type": leg.metric}, limit=depth, expr=leg.filter or None)
            for leg in legs
        ]
        limit = min(depth * len(legs), MAX_K)
        ranked = self._hits(
            lambda client: client.hybrid_search(
                self._collection, asked, ranker, limit=limit, output_fields=["id"], timeout=_CALL_S
            )
        )
        return ranked[:k]

    def _hits(self, work: Callable[[Any], Any]) -> list[tuple[str, float]]:
        found = self._call("be searched", work)[0]
        return sorted(((hit["id"], float(hit["distance"])) for hit in found), key=lambda hit: (-hit[1], hit[0]))

    def _query(self, where: Where, fields: list[str]) -> list[dict[str, Any]]:
        """Rows of at most `_BATCH` ids."""
        if not where.ids:
            return []
        filter_ = expression(where)
        rows: list[dict[str, Any]] = self._call(
            "be read",
            lambda client: client.query(self._collection, filter=filter_, output_fields=fields, timeout=_CALL_S),
        )
        return rows

    def _scan(self, where: Where | None, fields: list[str]) -> Iterator[dict[str, Any]]:
        filter_ = expression(where)
        pages = self._call(
            "be read",
            lambda client: client.query_iterator(
                self._collection, batch_size=_PAGE, filter=filter_, output_fields=fields
            ),
        )
        try:
            while page := pages.next():
                yield from page
        except _backend_errors() as error:
            raise self._failure("be read", error) from error
        finally:
            pages.close()


@dataclass(frozen=True)
class Leg:
    """A route in the backend's words."""

    field: str
    data: Any
    metric: str
    filter: str
    weight: float


def expression(where: Where | None) -> str:
    """`where` as a Milvus filter; `""` when there is nothing to filter."""
    if where is None:
        return ""
    parts = [
        f"{field} in [{', '.join(map(_quoted, values))}]"
        for field, values in (("id", where.ids), ("document", where.documents), ("modality", where.modalities))
        if values
    ]
    if where.uri_prefix:
        # A range, not `like`: there is no portable way to escape its wildcards.
        parts.append(f"uri >= {_quoted(where.uri_prefix)}")
        after = _after(where.uri_prefix)
        if after is not None:
            parts.append(f"uri < {_quoted(after)}")
    return " and ".join(parts)


def _quoted(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadInput(f"`{value!a}` is not valid Unicode.", "It has half of a surrogate pair.") from None
    return f'"{value.translate(_ESCAPES)}"'


def _after(prefix: str) -> str | None:
    """The least string above every string that starts with `prefix`."""
    for at in range(len(prefix) - 1, -1, -1):
        code = ord(prefix[at]) + 1
        if code == 0xD800:
            code = 0xE000
        if code <= 0x10FFFF:
            return prefix[:at] + chr(code)
    return None


def _checked(vectors: Any, space: Space, n: int) -> np.ndarray:
    array = np.asarray(vectors, dtype=np.float32)
    if array.shape != (n, space.dim):
        raise BadInput(
            f"Vectors of shape `{array.shape}` were given for space `{space.name}`.", f"It takes ({n}, {space.dim})."
        )
    if not np.isfinite(array).all():
        raise BadInput(f"A vector for space `{space.name}` has NaN or infinity.", "Check the encoder's output.")
    return array


def _row(item: Item) -> dict[str, Any]:
    media = None if item.media is None else asdict(item.media)
    try:
        payload = json.dumps(
            {"source": asdict(item.source), "media": media, "meta": dict(item.meta)},
            ensure_ascii=False,
            allow_nan=False,
            separators=(",", ":"),
        )
    except (TypeError, ValueError) as error:
        raise BadInput(f"The metadata of item `{item.id}` is not JSON: {error}.") from None
    row = {
        "id": item.id,
        "uri": item.source.uri,
        "document": str(item.meta.get("document", "")),
        "modality": item.modality,
        "text": item.text,
        "payload": payload,
    }
    limits = {"id": 256, "uri": 4096, "document": 256, "modality": 16, "text": MAX_BYTES, "payload": MAX_BYTES}
    for name, value in row.items():
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise BadInput(f"The {name} of item `{item.id!a}` is not valid Unicode.") from None
        if size > limits[name]:
            raise BadInput(
                f"The {name} of item `{item.id[:80]}` has {size:,} bytes.",
                f"A row holds {limits[name]:,}: cut it smaller.",
            )
    if not item.id:
        raise BadInput("An item has an empty id.")
    return {**row, LEXICAL.name: item_weights(terms(searchable(item)))}


def _item(row: Mapping[str, Any]) -> Item:
    stored = json.loads(row["payload"])
    source, media = stored["source"], stored["media"]
    if source["box"] is not None:
        source["box"] = tuple(source["box"])
    return Item(
        id=row["id"],
        text=row["text"],
        source=Source(**source),
        modality=row["modality"],
        media=None if media is None else MediaRef(**media),
        meta=stored["meta"],
    )


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    try:
        with FileLock(path, timeout=_LOCK_S):
            yield
    except Timeout:
        raise StoreError(
            f"Another process has been writing to this library for {_LOCK_S:.0f} s.", "Try again when it has finished."
        ) from None


def _backend_errors() -> tuple[type[Exception], ...]:
    """What calls through pymilvus raise: its own errors, gRPC's, and a closed channel's ValueError."""
    import grpc
    from pymilvus.exceptions import MilvusException

    return (MilvusException, grpc.RpcError, ValueError)


def _says(error: Exception, signs: tuple[str, ...]) -> bool:
    return any(sign in str(error) for sign in signs)


def _without_secrets(uri: str) -> str:
    return re.sub(r"//[^@/]*@", "//", uri)
