"""What collections look like: the base collection with whole items, and those of further spaces with vectors alone.

Both have the fields that filters need, so that one expression (see `filters`) means the same in each.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ...errors import BadInput
from .filters import FACETS
from .lexicon import LEXICAL
from .rows import FILTERED, LIMITS, METRICS, check_spaces, flag

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..base import Space
    from .capabilities import Capabilities

MAX_TOKENS = 4096
"""Vectors that one item has in a multi-vector space: the longest array of a Milvus server."""

TOKENS, VECTOR, TOKEN = "tokens", "vector", "token"
KEY, TENANT = "key", "tenant"
_SPACE_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")


class Layout(Protocol):
    """One kind of collection."""

    @property
    def file(self) -> str:
        """Its description in the library's folder."""

    @property
    def prefix(self) -> str:
        """How its name begins."""

    @property
    def spaces(self) -> tuple[Space, ...]:
        """The spaces of vectors in it."""

    @property
    def has_words(self) -> bool:
        """Whether it has the lexical field, where the backend has sparse vectors."""

    def build(self, client: Any, backend: Capabilities, *, lexical: bool, shared: bool, dense_index: str) -> Any:
        """pymilvus' schema and index parameters.

        Args:
            lexical: whether this collection has the lexical field.
            shared: whether it holds several tenants.
            dense_index: the index of dense fields.
        """


@dataclass(frozen=True)
class Items:
    """Whole items with the vectors of `spaces`."""

    spaces: tuple[Space, ...]
    file: str = field(default="store.json", init=False)
    prefix: str = field(default="items", init=False)
    has_words: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        check_spaces(self.spaces)

    def build(self, client: Any, backend: Capabilities, *, lexical: bool, shared: bool, dense_index: str) -> Any:
        from pymilvus import DataType

        schema, index = _filterable(client, list(LIMITS), KEY if shared else "id", shared)
        if lexical:
            schema.add_field(LEXICAL.name, DataType.SPARSE_FLOAT_VECTOR)
            index.add_index(LEXICAL.name, index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
        for space in self.spaces:
            schema.add_field(space.name, DataType.FLOAT_VECTOR, dim=space.dim)
            schema.add_field(flag(space), DataType.BOOL)
            index.add_index(space.name, index_type=dense_index, metric_type=METRICS[space.metric])
        return schema, index


@dataclass(frozen=True)
class Vectors:
    """The vectors of one further space, with the ids of their items.

    A dense space has one row for each item. A multi-vector space has one too, with an array of vectors, where the
    backend finds items by MaxSim; elsewhere one row for each token vector, with its place in the item.
    """

    space: Space
    has_words: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        space = self.space
        if not (space.kind in ("dense", "multi") and _SPACE_NAME.fullmatch(space.name) and space.metric in METRICS):
            raise BadInput(
                f"Space `{space.name}` ({space.kind}) cannot be a collection.",
                "Dense or multi-vector, in snake_case, cosine or ip.",
            )

    @property
    def file(self) -> str:
        return f"store.{self.space.name}.json"

    @property
    def prefix(self) -> str:
        return f"vectors_{self.space.name}"

    @property
    def spaces(self) -> tuple[Space, ...]:
        return (self.space,)

    def by_token(self, backend: Capabilities) -> bool:
        """Whether there is a row for each token vector."""
        return self.space.kind == "multi" and not backend.multi_vector

    def build(self, client: Any, backend: Capabilities, *, lexical: bool, shared: bool, dense_index: str) -> Any:
        from pymilvus import DataType

        metric, by_token = METRICS[self.space.metric], self.by_token(backend)
        schema, index = _filterable(client, ["id", *FILTERED], KEY if shared or by_token else "id", shared)
        if self.space.kind == "dense":
            schema.add_field(VECTOR, DataType.FLOAT_VECTOR, dim=self.space.dim)
            index.add_index(VECTOR, index_type=dense_index, metric_type=metric)
        elif by_token:
            schema.add_field(TOKEN, DataType.INT64)
            schema.add_field(VECTOR, DataType.FLOAT_VECTOR, dim=self.space.dim)
            index.add_index(VECTOR, index_type=dense_index, metric_type=metric)
        else:
            token = client.create_struct_field_schema()
            token.add_field(VECTOR, DataType.FLOAT_VECTOR, dim=self.space.dim)
            schema.add_field(
                TOKENS,
                datatype=DataType.ARRAY,
                element_type=DataType.STRUCT,
                struct_schema=token,
                max_capacity=MAX_TOKENS,
            )
            index.add_index(
                f"{TOKENS}[{VECTOR}]", index_name=TOKENS, index_type="HNSW", metric_type=f"MAX_SIM_{metric}"
            )
            # A collection needs a plain vector as well.
            schema.add_field(VECTOR, DataType.FLOAT_VECTOR, dim=2)
            index.add_index(VECTOR, index_type="FLAT", metric_type="IP")
        return schema, index


def _filterable(client: Any, texts: Sequence[str], key: str, shared: bool) -> tuple[Any, Any]:
    """A schema whose primary key is `key`, with these text fields and the facets; and no index yet."""
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    for name in dict.fromkeys((key, *texts)):
        size = LIMITS.get(name, LIMITS["id"] + 64)  # a key is an id with a tenant before it and a token's number after
        schema.add_field(name, DataType.VARCHAR, max_length=size, is_primary=name == key)
    if shared:
        schema.add_field(TENANT, DataType.VARCHAR, max_length=64, is_partition_key=True)
    schema.add_field(FACETS, DataType.JSON)
    return schema, client.prepare_index_params()
