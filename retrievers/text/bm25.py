"""BM25. The Probabilistic Relevance Framework: BM25 and Beyond. Robertson & Zaragoza 2009, doi:10.1561/1500000019

Lexical search over a store, without any model: terms as `analysis` makes them for items and queries alike. Titles and
headings count as text. Which BM25 the store says:

- a `MilvusStore`: that of a library (k1 = 1.2, b = 0.75, Lucene's non-negative idf, a constant mean length, see
  `lexicon`), whose weights never change once written. The default.
- a `Weighed` store with a `Formula`: one of the literature's, with the collection's true mean length. The setting
  `bm25` names it (see `formula_of`).

The formulas differ in two places (Kamphuis et al. 2020, doi:10.1007/978-3-030-45442-5_4). With n how often the item
has the term, v = 1 - b + b·length/mean, N items of which df have the term:

    robertson   n / (n + k1·v)                          max(0, ln((N - df + 0.5) / (df + 0.5)))
    lucene      n / (n + k1·v)                          ln(1 + (N - df + 0.5) / (df + 0.5))
    atire       (k1 + 1)·n / (n + k1·v)                 ln(N / df)
    bm25l       (k1 + 1)·(n/v + d) / (k1 + n/v + d)     ln((N + 1) / (df + 0.5))
    bm25plus    (k1 + 1)·n / (n + k1·v) + d             ln((N + 1) / df)

A term counts once for each time that the query has it. Robertson's idf is cut at 0, as everybody does: a term of more
than half of the items says nothing, and in a collection of one item no term does (nor by `atire`), so that nothing is
found there. BM25L (Lv & Zhai 2011, doi:10.1145/2009916.2010070) and BM25+ (doi:10.1145/2063576.2063584) sum over the
terms that an item has, which is what their lower bound is about. Some programs, bm25s and rank_bm25 among them, give
items that lack a term the weight of n = 0, too; in BM25+ that takes the bound away again, since d is then added to
every item. `Formula(…, absent=True)` does so, to compare with them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ... import progress
from ...errors import BadInput
from .._stored import BATCH, ByWords, store_in, weighed_in
from ..stores.lexicon import EMPTY
from ..stores.milvus import batched
from ..stores.weighed import Described, Weighed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from ...manifests.registry import Card
    from ...settings import Settings
    from ..base import Item
    from ..parts import Parts
    from ..stores.weighed import Figures


CONSTANTS = ("k1", "b", "delta")


class _Variant(NamedTuple):
    """How often (n, v, formula) and how rare (N, df)."""

    frequency: Callable[[float, float, Formula], float]
    idf: Callable[[int, int], float]


@dataclass(frozen=True)
class Formula(Described):
    """One BM25, as `weighed.Weighed` takes it.

    Attributes:
        variant: a key of `FORMULAS`.
        k1: 0 or more: how slowly more of a term stops counting more; 0: at once.
        b: 0 to 1: how much of the length is divided out.
        delta: 0 or more: d of `bm25l` and `bm25plus`; the others do without.
        absent: whether terms that an item lacks count as in bm25s; every item is a hit then.

    Raises:
        BadInput: a value outside its range.
    """

    SYSTEM: ClassVar[str] = "BM25"

    variant: str
    k1: float = 1.2
    b: float = 0.75
    delta: float = 0.0
    absent: bool = False

    def __post_init__(self) -> None:
        if self.variant not in _VARIANTS:
            raise BadInput(f"There is no BM25 `{self.variant}`.", f"Choose one of {', '.join(_VARIANTS)}.")
        right = {"k1": 0 <= self.k1 < math.inf, "b": 0 <= self.b <= 1, "delta": 0 <= self.delta < math.inf}
        for name, holds in right.items():
            if not holds:
                raise BadInput(f"BM25 with {name} = `{getattr(self, name)}`.", "k1, delta: 0 or more; b: 0 to 1.")

    def item(self, counts: Mapping[int, int], figures: Figures) -> dict[int, float]:
        """See `weighed.Weighing`."""
        length = sum(counts.values())
        nothing = self.nothing()
        weights = {term: self.weight(n, length, figures.mean) - nothing for term, n in counts.items()}
        return {EMPTY: 1.0, **weights} if self.absent else weights

    def query(self, counts: Mapping[int, int], figures: Figures) -> dict[int, float]:
        """See `weighed.Weighing`."""
        known = figures.frequencies
        weights = {term: n * self.idf(figures.items, known[term]) for term, n in counts.items()}
        found = {term: weight for term, weight in weights.items() if weight > 0}
        everywhere = self.nothing() * sum(found.values())
        return {EMPTY: everywhere, **found} if everywhere > 0 else found

    def weight(self, n: float, length: float, mean: float) -> float:
        """The first column of the module's table.

        Args:
            n: how often the item has the term, more than 0.
            length, mean: of this and of all items, in terms; `mean` is more than 0.
        """
        return _VARIANTS[self.variant].frequency(n, 1 - self.b + self.b * length / mean, self)

    def idf(self, items: int, frequency: int) -> float:
        """The second column, 0 or more, for a term that 1 to `items` items have."""
        return _VARIANTS[self.variant].idf(items, frequency)

    def nothing(self) -> float:
        """What an item that lacks a term gets for it, before the idf; 0 unless `absent`."""
        if not self.absent or self.delta == 0:
            return 0.0
        shifted = (self.k1 + 1) * self.delta / (self.k1 + self.delta)
        return {"bm25l": shifted, "bm25plus": self.delta}.get(self.variant, 0.0)


class BM25(ByWords):
    """The lexical route of `store`.

    Args:
        store: opened on first use; its dense spaces, if it has any, stay empty.
    """

    @classmethod
    def load(cls, card: Card, parts: Parts, folder: Path | None = None, formula: Formula | None = None) -> BM25:
        """Over a store in `folder`, or in a temporary folder that goes when the retriever does.

        Args:
            formula: default: that of the settings.

        Raises:
            BadInput: the settings name none that there is.
        """
        settings = parts.settings
        formula = formula or formula_of(settings.bm25)
        if formula is None:
            return cls(store_in(folder, (), settings.store_uri, settings.store_token))
        return cls(weighed_in(folder, formula, settings.store_uri, settings.store_token))

    @classmethod
    def mark(cls, settings: Settings) -> str:
        formula = formula_of(settings.bm25)
        return "" if formula is None else formula.described()

    @classmethod
    def tiny(cls, seed: int = 0, formula: Formula | None = None) -> BM25:
        """Over an empty temporary store."""
        return cls(store_in(None, ()) if formula is None else weighed_in(None, formula))

    def add(self, items: Sequence[Item]) -> None:
        if isinstance(self.store, Weighed):
            self.store.upsert(items, {})  # at once: an empty store is then weighed right from the start
            return
        for done, part in enumerate(batched(items, BATCH)):
            progress.step(done * BATCH, len(items), "passages")
            self.store.upsert(part, {})

    @classmethod
    def open(cls, folder: Path) -> BM25:
        return cls(Weighed.existing(folder, Formula.of))


def formula_of(told: str) -> Formula | None:
    """The formula `VARIANT [k1=N] [b=N] [delta=N]`; None for `""`: as a library weighs.

    Raises:
        BadInput: another variant or constant, or a value outside its range.

    >>> formula_of("lucene k1=0.9")
    Formula(variant='lucene', k1=0.9, b=0.75, delta=0.0, absent=False)
    """
    if not told.strip():
        return None
    variant, *constants = told.replace(",", " ").split()
    given: dict[str, Any] = {}
    for one in constants:
        name, _, value = one.partition("=")
        try:
            given[name] = float(value)
        except ValueError:
            name = ""
        if name not in CONSTANTS:
            raise BadInput(f"`{one}` is no constant of BM25.", "Write for example `lucene k1=0.9 b=0.4`.")
    return replace(FORMULAS.get(variant) or Formula(variant), **given)


def _saturated(n: float, v: float, formula: Formula) -> float:
    """Grows with n towards 1."""
    return n / (n + formula.k1 * v)


def _scaled(n: float, v: float, formula: Formula) -> float:
    """Grows towards k1 + 1, and is 1 for one occurrence in an item of mean length."""
    return (formula.k1 + 1) * _saturated(n, v, formula)


def _shifted(n: float, v: float, formula: Formula) -> float:
    """Never less than that of n/v = 0, however long the item."""
    shifted = n / v + formula.delta
    return (formula.k1 + 1) * shifted / (formula.k1 + shifted)


def _bounded(n: float, v: float, formula: Formula) -> float:
    """Never less than delta."""
    return _scaled(n, v, formula) + formula.delta


def _odds(items: int, frequency: int) -> float:
    return (items - frequency + 0.5) / (frequency + 0.5)


_VARIANTS = {
    "robertson": _Variant(_saturated, lambda items, frequency: max(0.0, math.log(_odds(items, frequency)))),
    "lucene": _Variant(_saturated, lambda items, frequency: math.log1p(_odds(items, frequency))),
    "atire": _Variant(_scaled, lambda items, frequency: math.log(items / frequency)),
    "bm25l": _Variant(_shifted, lambda items, frequency: math.log((items + 1) / (frequency + 0.5))),
    "bm25plus": _Variant(_bounded, lambda items, frequency: math.log((items + 1) / frequency)),
}

FORMULAS: Mapping[str, Formula] = {
    "robertson": Formula("robertson"),
    "lucene": Formula("lucene"),
    "atire": Formula("atire"),
    "bm25l": Formula("bm25l", delta=0.5),
    "bm25plus": Formula("bm25plus", delta=1.0),
}
"""Each with its authors' delta; `dataclasses.replace(FORMULAS["lucene"], k1=0.9, b=0.4)` changes a constant."""
