"""Looking for silent damage in a store: every row is read with its vectors and held against what it should be.

A row says itself what most of it must look like: the words of its text give its sparse vector, and a flag says whether
it has a dense one. Whether the text is the one that was written only the library's catalogue knows.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..searchable import searchable_text
from ..text.analysis import terms
from .lexicon import LEXICAL, item_weights
from .rows import ITEM_FIELDS, booked, flag, to_item

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..base import Item, Space
    from .milvus import MilvusStore

_TOLERANCE = 1e-4
"""Of weights that the backend keeps as float32."""


@dataclass(frozen=True)
class Audited:
    """One row of a store.

    Attributes:
        uri: of the file, as filters see it.
        item: None when the row's payload cannot be read.
        spaces: the dense spaces that it has a vector of.
        faults: what is wrong: `payload` (not to be read, or of another file), `words` (the sparse vector is not that
            of the text), `vector` (zero, not finite, or not zero though the flag says that there is none).
    """

    id: str
    uri: str
    item: Item | None
    spaces: frozenset[str]
    faults: frozenset[str]


class Audit:
    """One pass over `store`; read `rows` to its end before `terms_off`.

    Rows come by id, in pages, so that memory is bounded by the distinct terms of the library.
    """

    def __init__(self, store: MilvusStore) -> None:
        self._store = store
        self._counts: Counter[int] = Counter()
        self._items = 0

    def rows(self) -> Iterator[Audited]:
        """Every row of the store.

        Raises:
            StoreError: the store cannot be opened or read.
        """
        spaces, lexical = self._store.spaces, self._store.lexical
        fields = [*ITEM_FIELDS, "uri", *(name for space in spaces for name in (space.name, flag(space)))]
        for row in self._store.rows([*fields, LEXICAL.name] if lexical else fields):
            self._items += 1
            self._counts.update(booked(row, spaces) if lexical else ())
            yield _audited(row, spaces, lexical)

    def terms_off(self) -> int:
        """How many terms (and the number of items) have other figures in the term statistics than in the rows."""
        return self._store.statistics().differences(self._counts, self._items) if self._store.lexical else 0


def _audited(row: Mapping[str, Any], spaces: tuple[Space, ...], lexical: bool) -> Audited:
    faults = set()
    item = _item(row)
    if item is None:
        faults.add("payload")
    elif lexical and not _same(row[LEXICAL.name], item_weights(terms(searchable_text(item)))):
        faults.add("words")
    if any(_is_wrong(row[space.name], row[flag(space)]) for space in spaces):
        faults.add("vector")
    has = frozenset(space.name for space in spaces if row[flag(space)])
    return Audited(str(row["id"]), str(row["uri"]), item, has, frozenset(faults))


def _item(row: Mapping[str, Any]) -> Item | None:
    try:
        item = to_item(row)
    except (ValueError, KeyError, TypeError):
        return None
    return item if item.source.uri == row["uri"] else None


def _same(stored: Mapping[int, float], right: Mapping[int, float]) -> bool:
    return stored.keys() == right.keys() and all(
        math.isclose(stored[term], weight, rel_tol=_TOLERANCE) for term, weight in right.items()
    )


def _is_wrong(vector: Any, has: bool) -> bool:
    """Zeros stand for a vector that is not there yet, and for nothing else."""
    array = np.asarray(vector, np.float32)
    return not np.isfinite(array).all() or bool(array.any()) != has
