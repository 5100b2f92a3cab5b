"""Items whose words are weighed by a formula that reads figures of the whole collection.

`milvus.MilvusStore` weighs an item's words against a constant length, so that nothing ever changes once written. The
formulas of the literature want the true mean length (BM25) or each term's rarity inside the item's vector (the cosine
of tf-idf), and then one new item changes the weights of all. Here the counts of every item are kept beside the store
(see `counts`); a change marks the weights as stale, and the next search weighs every row anew before it answers. So
scores are always those of the whole collection as it is, also after a deletion. What it costs: that one search writes
all rows (5,183 abstracts: 4 s of one core) while others wait for it. One call of `add` that fills an empty store weighs
it right at once. While another process is writing, an answer may rest on weights of before and after.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from ... import progress
from ...errors import BadInput, StoreError
from ..searchable import searchable_text
from ..text.analysis import terms
from .counts import Counts, State
from .filters import expression
from .lexicon import EMPTY, LEXICAL, dimension
from .milvus import MilvusStore
from .rows import to_rows
from .table import Leg, batched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from ..base import Item, Route, Where

COUNTS = "counts.sqlite"
"""The file of counts in the store's folder."""
BATCH = 256
"""Items that are written between two reports of progress."""

MOST = 2**32 - 1
"""No term is counted more often in an item."""


@dataclass(frozen=True)
class Figures:
    """Of a collection.

    Attributes:
        items: how many there are.
        mean: their mean length, in counts.
        frequencies: term → how many items have it (of a query: of its own terms that any item has).
    """

    items: int
    mean: float
    frequencies: Mapping[int, int]

    @classmethod
    def of(cls, counted: Iterable[Mapping[int, int]]) -> Figures:
        """Those of items with these counts."""
        items, length, frequencies = 0, 0, Counter[int]()
        for counts in counted:
            items += 1
            length += sum(counts.values())
            frequencies.update(counts.keys())
        return cls(items, length / items if items else 0.0, frequencies)


class Weighing(Protocol):
    """A formula whose score is the inner product of an item's vector and a query's."""

    def described(self) -> str:
        """What tells it from others, as JSON: kept in the store."""

    def item(self, counts: Mapping[int, int], figures: Figures) -> dict[int, float]:
        """The vector of an item: a positive weight for each of its terms."""

    def query(self, counts: Mapping[int, int], figures: Figures) -> dict[int, float]:
        """The vector of a query that has these terms, each in some item; terms that weigh nothing are left out."""


class Described:
    """A `Weighing` that is a frozen dataclass: kept as the JSON of its fields.

    Attributes:
        SYSTEM: whose it is, for errors.
    """

    SYSTEM: ClassVar[str]

    def described(self) -> str:
        """See `Weighing`."""
        return json.dumps(asdict(self))  # type: ignore[call-overload]

    @classmethod
    def of(cls, described: str) -> Self:
        """The one that was `described`.

        Raises:
            StoreError: it is the description of something else.
        """
        try:
            return cls(**json.loads(described))
        except (TypeError, ValueError) as error:
            raise StoreError(
                f"The store was weighed by `{described}`: no {cls.SYSTEM}.", f"Name a folder of {cls.SYSTEM}'s."
            ) from error


class Weighed(MilvusStore):
    """A store without dense spaces, weighed by `weighing`.

    Args:
        folder, uri, token: as for `MilvusStore`.

    Raises:
        StoreError: from the first call: the folder's store was weighed otherwise.
    """

    def __init__(self, folder: Path, weighing: Weighing, uri: str = "", *, token: str = "") -> None:
        super().__init__(folder, (), uri, token=token)
        self.weighing = weighing
        self._counts: Counts | None = None

    @classmethod
    def existing(cls, folder: Path, read: Callable[[str], Weighing] | None = None) -> MilvusStore:
        """The Milvus Lite store that was made in `folder`: weighed as it says, or as a library's.

        Args:
            read: from a formula's description to the formula.

        Raises:
            StoreError: there is none, or its description is damaged, or it needs `read`.
        """
        plain = MilvusStore.existing(folder)
        if not (folder / COUNTS).is_file():
            return plain
        kept = Counts(folder / COUNTS)
        state = kept.state()
        kept.close()
        if read is None or state is None:
            raise StoreError(f"The store in `{folder.name}` has a formula of its own.", "Open it with its retriever.")
        return cls(folder, read(state.weighing))

    def upsert(self, items: Sequence[Item], vectors: Mapping[str, np.ndarray]) -> None:
        """Insert or replace by id, counting the terms of what is searched of an item (see `searchable`)."""
        if vectors:
            raise BadInput(f"The store has no space `{next(iter(vectors))}`.", "It has words alone.")
        self.add(items, [Counter(terms(searchable_text(item))) for item in items])

    def add(self, items: Sequence[Item], counts: Sequence[Mapping[str, int]]) -> None:
        """Insert or replace by id; the last of several items with one id counts.

        Args:
            counts: of each item: term (as `analysis` makes them) → how often it counts, 1 to 2**32 - 1.

        Raises:
            BadInput: what a row cannot hold, or a wrong count; nothing is written then.
        """
        self._write([(item, _checked(item.id, one)) for item, one in zip(items, counts, strict=True)])

    def counted(self, ids: Sequence[str]) -> dict[str, dict[int, int]]:
        """By item id what was counted: term (its sparse dimension) → how often; unknown ids are left out."""
        return self._kept().of(ids)

    def add_counted(self, items: Sequence[Item], counts: Sequence[Mapping[int, int]]) -> None:
        """As `add`, with counts as `counted` gives them: of this store or of another."""
        self._write(list(zip(items, counts, strict=True)))

    def _write(self, given: Sequence[tuple[Item, Mapping[int, int]]]) -> None:
        for part in batched(given, BATCH):
            to_rows([item for item, _ in part], (), {}, lexical=False)
        last = {item.id: (item, one) for item, one in given}
        if not last:
            return
        with self._connection.turn():
            self._stale()
            figures = None if self.count() else Figures.of(one for _, one in last.values())
            for done, part in enumerate(batched(last.values(), BATCH)):
                progress.step(done * BATCH, len(last), "passages")
                self._kept().put({item.id: one for item, one in part})
                self._put(self._rows(part, figures))
            if figures is not None:
                self._kept().set_state(State(self.weighing.described(), figures.mean))

    def weigh(self) -> None:
        """Weigh all rows anew, if anything has changed; every search does so first."""
        if not self._is_stale():
            return
        with self._connection.turn():
            if not self._is_stale():
                return
            figures = self._reconciled()
            lexicon = self._terms()
            lexicon.begin()
            lexicon.rewrite(self._weighed_anew(figures))
            self._kept().set_state(State(self.weighing.described(), figures.mean))
        self.flush()

    def weigh_by(self, weighing: Weighing) -> None:
        """Another formula from now on, for every item that is there."""
        with self._connection.turn():
            if self._state() is not None:
                self._kept().set_state(State(weighing.described(), None))
            self.weighing = weighing

    def settle(self) -> None:
        """Weigh what is stale and flush."""
        self.weigh()
        super().settle()

    def erase(self) -> None:
        super().erase()
        self._kept().clear()

    def close(self) -> None:
        super().close()
        with self._lexicon_lock:
            if self._counts is not None:
                self._counts.close()
                self._counts = None

    def save(self, folder: Path) -> None:
        """Write all rows into a new Milvus Lite store in `folder`; into its own: weigh and flush them."""
        if folder.resolve() == self.folder.resolve():
            self.settle()
            return
        items = list(self.items())
        counted = self._kept().of([item.id for item in items])
        copy = Weighed(folder, self.weighing)
        with copy:
            copy._stale()  # also of an empty store, the formula is kept
            copy._write([(item, counted[item.id]) for item in items])
            copy.flush()

    def _leg(self, route: Route, where: Where | None) -> Leg | None:
        if route.space.name != LEXICAL.name or route.text is None:
            return super()._leg(route, where)
        self.weigh()
        state, lexicon = self._state(), self._terms()
        counts = Counter(dimension(term) for term in terms(route.text, "query"))
        known = lexicon.frequencies(list(counts))
        if not known or state is None:
            return None
        # Another process may be between the two figures.
        figures = Figures(max(lexicon.items, *known.values()), state.mean or 0.0, known)
        weights = self.weighing.query({term: counts[term] for term in known}, figures)
        return Leg(LEXICAL.name, weights, "IP", expression(where), route.weight) if weights else None

    def _change(self, ids: Sequence[str], added: Sequence[Iterable[int]], write: Callable[[], None]) -> None:
        self._stale()
        super()._change(ids, added, write)

    def _remove(self, ids: list[str]) -> None:
        super()._remove(ids)
        self._kept().remove(ids)

    def _rows(self, given: Iterable[tuple[Item, Mapping[int, int]]], figures: Figures | None) -> list[dict[str, Any]]:
        """Rows; without figures their weights are no more than places, to be weighed later."""
        pairs = list(given)
        rows = to_rows([item for item, _ in pairs], (), {}, lexical=False)
        for item, counts in pairs:
            found = dict.fromkeys(counts, 1.0) if figures is None else self.weighing.item(counts, figures)
            rows[item.id][LEXICAL.name] = found or {EMPTY: 1.0}
        return list(rows.values())

    def _reconciled(self) -> Figures:
        """The figures of the counts, once they are those of the rows: a writer may have died between the two."""
        rows, known = set(self.ids()), self._kept().ids()
        if rows - known:
            raise StoreError(f"What is counted in `{min(rows - known)}` is lost.", "Add its items again.")
        self._kept().remove(known - rows)
        return Figures.of(self._kept().all())

    def _weighed_anew(self, figures: Figures) -> Iterator[Iterable[int]]:
        """Write every row with the right weights; gives the terms of each."""
        for done, items in enumerate(batched(self.items(), BATCH)):
            progress.step(done * BATCH, figures.items, "weights")
            counts = self._kept().of([item.id for item in items])
            rows = self._rows([(item, counts[item.id]) for item in items], figures)
            self._table.put(rows)
            yield from (row[LEXICAL.name] for row in rows)

    def _state(self) -> State | None:
        """What the rows were weighed with; None while there are none.

        Raises:
            StoreError: with another formula than this one.
        """
        state, own = self._kept().state(), self.weighing.described()
        if state is None and self.count():
            raise StoreError("The store's words are weighed as a library's.", "Choose an empty folder.")
        if state is not None and state.weighing != own:
            raise StoreError(
                f"The store was weighed by `{state.weighing}`, not by `{own}`.", "Open it with that, or index anew."
            )
        return state

    def _is_stale(self) -> bool:
        state = self._state()
        return state is not None and state.mean is None

    def _stale(self) -> None:
        if not self._is_stale():
            self._kept().set_state(State(self.weighing.described(), None))

    def _kept(self) -> Counts:
        self._connection.open()
        with self._lexicon_lock:
            if self._counts is None:
                self._counts = Counts(self.folder / COUNTS)
            return self._counts


def _checked(id_: str, counts: Mapping[str, int]) -> dict[int, int]:
    found: Counter[int] = Counter()
    for term, count in counts.items():
        found[dimension(term)] += count
        if not (isinstance(count, int) and 1 <= count <= MOST and found[dimension(term)] <= MOST):
            raise BadInput(f"Item `{id_}` counts `{term}` `{count}` times.", f"Give whole numbers, 1 to {MOST:,}.")
    return dict(found)
