"""What a Milvus can do, found out by doing it: much is accepted by one or the other that it then ignores or dies of.

Milvus Lite takes any name of an index. Milvus 2.3.5 makes a collection with a sparse field, refuses to index it, and
crashes when that collection is loaded. So a feature counts when a small collection of ours gives right answers with it,
nothing is loaded whose indexes were not accepted, and a server that says it is older than a feature is not asked.
"""

from __future__ import annotations

import logging
import math
import re
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from ..fusion import RRF_K
from .lite import backend_errors, is_gone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LITE_VERSION = "milvus_lite"
_SPARSE_SINCE = (2, 4)
_STRUCTS_SINCE = (2, 6)
_CALL_S = 60.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Capabilities:
    """What the backend does.

    Attributes:
        version: as it says itself.
        sparse: sparse vectors next to dense ones, so that it can be searched by words.
        hybrid: rank fusion of both in one call.
        multi_vector: MaxSim over a field of several vectors.
    """

    version: str
    sparse: bool
    hybrid: bool
    multi_vector: bool

    @property
    def is_lite(self) -> bool:
        """Whether it is Milvus Lite, here or behind an address."""
        return self.version.startswith(LITE_VERSION)

    @property
    def names(self) -> tuple[str, ...]:
        """The features it has."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name) is True)


def probed(client: Any, version: str) -> Capabilities:
    """The capabilities of the server that `client` is connected to, which says it is `version`.

    Makes a collection of two rows for each feature and drops it: about 0.1 s on Milvus Lite, some seconds on a server.
    """
    is_lite = version.startswith(LITE_VERSION)
    said = None if is_lite else _numbers(version)
    sparse, hybrid = _sparse_and_hybrid(client) if said is None or said >= _SPARSE_SINCE else (False, False)
    multi_vector = (said is None or said >= _STRUCTS_SINCE) and _works(lambda: _max_sim(client))
    return Capabilities(version, sparse, hybrid, multi_vector)


def _numbers(version: str) -> tuple[int, int] | None:
    found = re.match(r"v?(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else None


def _sparse_and_hybrid(client: Any) -> tuple[bool, bool]:
    from pymilvus import DataType

    schema = _schema(client)
    schema.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
    index = _index(client)
    index.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
    rows = [
        {"id": "a", "dense": [1.0, 0.0], "sparse": {1: 1.0, 7: 2.0}},
        {"id": "b", "dense": [0.0, 1.0], "sparse": {7: 0.5, 9: 3.0}},
    ]
    try:
        with _scratch(client, schema, index, rows) as name:
            sparse = _works(lambda: _finds(_sparse_search(client, name), {"a": 4.0, "b": 1.0}))
            return sparse, sparse and _works(lambda: _finds(_hybrid_search(client, name), _FUSED))
    except backend_errors() as error:
        _refused(error)
        return False, False


# Both routes of the search below have `a` first and `b` second.
_FUSED = {"a": 2 / (RRF_K + 1), "b": 2 / (RRF_K + 2)}


def _sparse_search(client: Any, name: str) -> Any:
    return client.search(
        name,
        [{7: 2.0}],
        anns_field="sparse",
        limit=2,
        output_fields=["id"],
        search_params={"metric_type": "IP"},
        consistency_level="Strong",
        timeout=_CALL_S,
    )


def _hybrid_search(client: Any, name: str) -> Any:
    from pymilvus import AnnSearchRequest, RRFRanker

    asked = [
        AnnSearchRequest([[1.0, 0.5]], "dense", {"metric_type": "IP"}, limit=2),
        AnnSearchRequest([{7: 2.0}], "sparse", {"metric_type": "IP"}, limit=2),
    ]
    return client.hybrid_search(name, asked, RRFRanker(RRF_K), limit=2, output_fields=["id"], timeout=_CALL_S)


def _max_sim(client: Any) -> bool:
    from pymilvus import DataType
    from pymilvus.client.embedding_list import EmbeddingList

    schema = _schema(client)
    token = client.create_struct_field_schema()
    token.add_field("vector", DataType.FLOAT_VECTOR, dim=2)
    schema.add_field(
        "tokens", datatype=DataType.ARRAY, element_type=DataType.STRUCT, struct_schema=token, max_capacity=4
    )
    index = _index(client)
    index.add_index("tokens[vector]", index_name="tokens", index_type="HNSW", metric_type="MAX_SIM_IP")
    rows = [
        {"id": "a", "dense": [1.0, 0.0], "tokens": [{"vector": [1.0, 0.0]}, {"vector": [0.0, 2.0]}]},
        {"id": "b", "dense": [0.0, 1.0], "tokens": [{"vector": [0.5, 0.5]}]},
    ]
    query = EmbeddingList()
    query.add([1.0, 0.0])
    query.add([0.0, 1.0])
    with _scratch(client, schema, index, rows) as name:
        found = client.search(
            name,
            [query],
            anns_field="tokens[vector]",
            limit=2,
            output_fields=["id"],
            search_params={"metric_type": "MAX_SIM_IP"},
            consistency_level="Strong",
            timeout=_CALL_S,
        )
    return _finds(found, {"a": 3.0, "b": 1.0})


def _schema(client: Any) -> Any:
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.VARCHAR, max_length=8, is_primary=True)
    schema.add_field("dense", DataType.FLOAT_VECTOR, dim=2)
    return schema


def _index(client: Any) -> Any:
    index = client.prepare_index_params()
    index.add_index("dense", index_type="FLAT", metric_type="IP")
    return index


@contextmanager
def _scratch(client: Any, schema: Any, index: Any, rows: list[dict[str, Any]]) -> Iterator[str]:
    name = f"probe_{uuid4().hex}"
    client.create_collection(name, schema=schema, timeout=_CALL_S)
    try:
        client.create_index(name, index, sync=False, timeout=_CALL_S)
        client.load_collection(name, timeout=_CALL_S)
        client.insert(name, rows, timeout=_CALL_S)
        yield name
    finally:
        client.drop_collection(name, timeout=_CALL_S)


def _finds(found: Any, wanted: dict[str, float]) -> bool:
    hits = {hit["id"]: float(hit["distance"]) for hit in found[0]}
    return list(hits) == list(wanted) and all(math.isclose(hits[id_], wanted[id_], rel_tol=1e-4) for id_ in wanted)


def _works(what: Callable[[], bool]) -> bool:
    """Whether the answer was right. What cannot be done is said in many ways, by pymilvus or by the backend."""
    failures: tuple[type[Exception], ...] = (*backend_errors(), AttributeError, ImportError, LookupError, TypeError)
    try:
        return what()
    except failures as error:
        _refused(error)
        return False


def _refused(error: Exception) -> None:
    """Note why a feature does not count; an answer that did not come is no refusal, and is raised again."""
    if is_gone(error) or "DEADLINE_EXCEEDED" in str(error):
        raise error
    log.debug("not available: %s", error)
