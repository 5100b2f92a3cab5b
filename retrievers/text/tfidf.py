"""tf-idf and cosine. Term-weighting in text retrieval: Salton & Buckley 1988, doi:10.1016/0306-4573(88)90021-0

The cosine of two vectors of term weights, over an inverted index (Milvus' sparse vectors), without any model:

    weight   (1 + ln n) · (ln((1 + N) / (1 + df)) + 1)      n times in the text; df of all N items have the term
    score    Σ q·d / (|q|·|d|), 0 to 1

The idf is of the collection as it is (Sparck Jones 1972, doi:10.1108/eb026526), also inside the items' vectors and
their lengths: see `weighed` for what a change costs. `Scheme` has the variants; all of them are scikit-learn's
`TfidfVectorizer` with the same switches. Terms are those of `analysis`, for items and queries alike; titles and
headings count as text. A term that no item has counts for nothing, not even in the query's length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...errors import BadInput, StoreError
from .._stored import ByWords, weighed_in
from ..stores.weighed import Described, Weighed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ...manifests.registry import Card
    from ..base import Item
    from ..parts import Parts
    from ..stores.milvus import MilvusStore
    from ..stores.weighed import Figures

IDFS = ("smooth", "plain", "none")


@dataclass(frozen=True)
class Scheme(Described):
    """How a term is weighed, as `weighed.Weighed` takes it.

    Attributes:
        sublinear: 1 + ln n instead of n.
        idf: `"smooth"` ln((1 + N) / (1 + df)) + 1; `"plain"` ln(N / df) + 1; `"none"` 1.

    Raises:
        BadInput: another idf.
    """

    SYSTEM: ClassVar[str] = "tf-idf"

    sublinear: bool = True
    idf: str = "smooth"

    def __post_init__(self) -> None:
        if self.idf not in IDFS:
            raise BadInput(f"There is no idf `{self.idf}`.", f"Choose one of {', '.join(IDFS)}.")

    def item(self, counts: Mapping[int, int], figures: Figures) -> dict[int, float]:
        """See `weighed.Weighing`. Unit length."""
        return _unit({term: self._weight(n, figures, term) for term, n in counts.items()})

    def query(self, counts: Mapping[int, int], figures: Figures) -> dict[int, float]:
        """See `weighed.Weighing`. Unit length."""
        return self.item(counts, figures)

    def rarity(self, items: int, frequency: int) -> float:
        """The idf, 1 or more, of a term that `frequency` of `items` items have (1 to all)."""
        if self.idf == "none":
            return 1.0
        return 1 + math.log((1 + items) / (1 + frequency) if self.idf == "smooth" else items / frequency)

    def _weight(self, n: int, figures: Figures, term: int) -> float:
        often = 1 + math.log(n) if self.sublinear else float(n)
        return often * self.rarity(figures.items, figures.frequencies[term])


class TfIdf(ByWords):
    """The cosine of tf-idf.

    Args:
        store: weighed by a `Scheme`; opened on first use.
    """

    store: Weighed

    def __init__(self, store: MilvusStore) -> None:
        if not (isinstance(store, Weighed) and isinstance(store.weighing, Scheme)):
            raise StoreError("The store is not weighed by tf-idf.", "Give a `Weighed` store with a `Scheme`.")
        self.store = store

    @classmethod
    def load(cls, card: Card, parts: Parts, folder: Path | None = None, scheme: Scheme | None = None) -> TfIdf:
        """Over a store in `folder`, or in a temporary folder that goes when the retriever does."""
        settings = parts.settings
        return cls(weighed_in(folder, scheme or Scheme(), settings.store_uri, settings.store_token))

    @classmethod
    def tiny(cls, seed: int = 0, scheme: Scheme | None = None) -> TfIdf:
        """Over an empty temporary store."""
        return cls(weighed_in(None, scheme or Scheme()))

    def add(self, items: Sequence[Item]) -> None:
        self.store.upsert(items, {})

    @classmethod
    def open(cls, folder: Path) -> TfIdf:
        return cls(Weighed.existing(folder, Scheme.of))


def _unit(weights: Mapping[int, float]) -> dict[int, float]:
    length = math.sqrt(sum(weight * weight for weight in weights.values()))
    return {term: weight / length for term, weight in weights.items()}
