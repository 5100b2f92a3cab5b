"""DeepCT. Context-Aware Sentence/Passage Term Importance Estimation. Dai & Callan 2019, arXiv:1910.10687

A BERT encoder with one linear unit over each word's first piece tells how much every word of a passage matters there
(`_term_weights`); the passage is then indexed as if it had each term so often, and searched by ordinary BM25 with the
statistics of that rewritten collection:

    TF(t, d) = round(100·y)    or    round(100·sqrt(y))      y: the largest of t's places in d, at least 0

The unit learns query term recall, the share of a passage's queries that hold the term, by mean squared error
(`_term_training`). Nothing of this is paid for when a query comes.

What differs from the paper. Terms are those of `analysis`, stems without stop words, for targets and index alike; title
and headings count as text; words that the index has no term of (stop words, punctuation) have no target, where the
authors' have target 0; what a passage has beyond 256 word pieces is read in further windows and not cut. The authors'
program also drops what comes to less than 1 before it is rounded; here .5 and more stays.

No weights come with the package: `fit` makes them from pairs of query and passage. The authors' checkpoint (trained on
MS MARCO; their code is BSD-3) is TensorFlow's and nobody here has seen it: its variables, saved as safetensors under
their own names next to `config.json` and `tokenizer.json`, are read by `TermWeights.from_folder`. Give k1 and b that
were tuned: the defaults are the authors' for MS MARCO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...errors import BadInput, StoreError, Unsupported
from .._stored import ByWords, weighed_in
from ..searchable import searchable_text
from ..stores.weighed import Described, Weighed
from ._term_weights import TermWeights, counts
from .bm25 import Formula

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ...manifests.registry import Card
    from ..base import Item
    from ..parts import Parts
    from ..stores.milvus import MilvusStore
    from ..stores.weighed import Figures
    from ._term_training import Example, Training

N = 100
"""What a weight of 1 becomes."""


@dataclass(frozen=True)
class Rewriting(Described):
    """How weights become counts, and how BM25 weighs these; as `weighed.Weighed` takes it.

    Attributes:
        scale: N, 1 or more.
        root: the square root of y: weights differ less.
        keep_all: a term that comes to 0 stays, once, so that whatever the text holds can be found.
        k1, b: as in BM25; counts go up to `scale`, and k1 with them.

    Raises:
        BadInput: a value outside its range.
    """

    SYSTEM: ClassVar[str] = "DeepCT"

    scale: int = N
    root: bool = False
    keep_all: bool = False
    k1: float = 10.0
    b: float = 0.9

    def __post_init__(self) -> None:
        if self.scale < 1:
            raise BadInput(f"Weights times `{self.scale}`.", "Multiply them by 1 or more.")
        self._formula()

    def counts(self, weights: Mapping[str, float]) -> dict[str, int]:
        """Term → TF, for terms of one passage with their weights."""
        return counts(weights, self.scale, root=self.root, keep_all=self.keep_all)

    def item(self, counts: Mapping[int, int], figures: Figures) -> dict[int, float]:
        """See `weighed.Weighing`."""
        return self._formula().item(counts, figures)

    def query(self, counts: Mapping[int, int], figures: Figures) -> dict[int, float]:
        """See `weighed.Weighing`."""
        return self._formula().query(counts, figures)

    def _formula(self) -> Formula:
        return Formula("lucene", self.k1, self.b)


ROOT = Rewriting(root=True, k1=18.0, b=0.7)
"""The authors' other choice; without arguments a `Rewriting` is the first."""


class DeepCT(ByWords):
    """BM25 over terms counted as often as they matter.

    Args:
        store: weighed by a `Rewriting`; opened on first use.
        weigher: None for a store that is searched only.

    Raises:
        StoreError: another store.
    """

    store: Weighed

    def __init__(self, store: MilvusStore, weigher: TermWeights | None) -> None:
        if not (isinstance(store, Weighed) and isinstance(store.weighing, Rewriting)):
            raise StoreError("The store is not one of DeepCT.", "Give a `Weighed` store with a `Rewriting`.")
        self.store = store
        self.rewriting = store.weighing
        self.weigher = weigher

    @classmethod
    def load(cls, card: Card, parts: Parts, folder: Path | None = None, rewriting: Rewriting | None = None) -> DeepCT:
        """With the weights in `weights/deepct` of the home folder, over a store in `folder` or in a temporary one.

        Raises:
            MissingWeights: there are none.
            BadInput: they are of another model.
        """
        weigher, settings = TermWeights.load(card, parts), parts.settings
        store = weighed_in(folder, rewriting or Rewriting(), settings.store_uri, settings.store_token)
        return cls(store, weigher)

    @classmethod
    def tiny(cls, seed: int = 0, rewriting: Rewriting | None = None) -> DeepCT:
        """A random model over an empty temporary store."""
        return cls(weighed_in(None, rewriting or Rewriting()), TermWeights.tiny(seed))

    @staticmethod
    def fit(
        data: Sequence[tuple[str, str]] | Sequence[Example],
        out_dir: Path,
        start: Path,
        training: Training | None = None,
        held: Sequence[tuple[str, str]] | Sequence[Example] = (),
    ) -> TermWeights:
        """Learn from (query, passage) pairs and write into `out_dir`; run again, it goes on where it stopped.

        Args:
            data: passages as `searchable_text` has them; or passages whose targets are known.
            start: a folder of a BERT encoder in safetensors with its `tokenizer.json`.
            held: is not learned from; tells which steps were best, and when to stop.

        Raises:
            MissingWeights, BadInput: `start` is no BERT, there is nothing to learn, or `out_dir` holds another fit.
            Cancelled, TimedOut: see `progress`; what a checkpoint has is kept.
        """
        from ._term_training import fitted

        return fitted(data, out_dir, start, training, held)

    def add(self, items: Sequence[Item]) -> None:
        """See `Retriever`.

        Raises:
            Unsupported: it was opened without a model.
            BadInput: the model gives NaN or infinity; nothing is written then.
        """
        if self.weigher is None:
            raise Unsupported("This DeepCT was opened without its model.", "Give `open` the model, or use `load`.")
        weights = self.weigher.weights([searchable_text(item) for item in items])
        self.store.add(items, [self.rewriting.counts(one) for one in weights])

    @classmethod
    def open(cls, folder: Path, weigher: TermWeights | None = None) -> DeepCT:
        """What was saved in `folder`; without the model it can be searched but not added to."""
        return cls(Weighed.existing(folder, Rewriting.of), weigher)
