"""PLAID: An Efficient Engine for Late Interaction Retrieval. Santhanam et al. 2022, arXiv:2205.09707

The token vectors of `colbert`, compressed to a centroid's number and two bits a dimension (`_residual`), and searched
in four stages, each on fewer passages than the one before (`_plaid`): the score of the last is MaxSim of the
decompressed vectors. How far each stage looks follows from k and not from how many passages there are (`Depth.of`, the
published numbers), so the vectors that a search decompresses stay as many.

The items are in a store; beside it stand the codes and their passages' ids (`_plaid_index`). What differs from the
paper, which builds an index once:

- Up to `whole` token vectors (some 350 passages) stay as they are and are searched exactly: so few teach no centroids.
- Later passages are compressed with the centroids that are there. Once the index has more than twice the vectors that
  these were learned from, they are learned anew, and the network reads the older passages again.
- A search whose cells name fewer than k passages looks into more cells, and one among few passages (a narrow filter,
  64 of them where k is at most 10) is exact.
- It is numpy on the processor; the codes are held in memory. The authors' kernels are not here.

Scores are of codes, a little below those of `colbert`, and so are not comparable with them. Weights are `colbert`'s, in
its folder. A passage without text has the vectors of its title and of the marks around it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ... import progress
from ...errors import BadInput, StoreError, Unsupported
from ...manifests.carriers import sha256
from ...manifests.registry import card as card_of
from .._stored import BATCH, store_in, text_of
from ..base import Hit, Item, Query, Retriever, StoreStats, Where
from ..given import given_folder
from ..loading import set_threads
from ..stores.filters import expression
from ..stores.milvus import MilvusStore, batched
from ..stores.table import MAX_K
from ._plaid import REBUILD
from ._plaid_index import FILE, Index
from ._plaid_parts import Coded
from .colbert import FILES, LENGTHS, ColBERT

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from ...manifests.registry import Card
    from ...settings import Settings
    from ..parts import Parts
    from ._plaid import Depth

WEIGHTS = "colbert"
"""The card whose weights it reads."""
WHOLE = 2**16


@dataclass(frozen=True)
class IndexStats(StoreStats):
    """What a PLAID holds.

    Attributes:
        index_bytes: of the files beside the store.
        compressed: how many of the items are codes; the others have whole vectors.
    """

    index_bytes: int = 0
    compressed: int = 0


class PLAID(Retriever):
    """ColBERT by four stages over `store`, with the codes in files beside it. Safe from many threads.

    Args:
        store: keeps the items.
        encoder: makes the token vectors.
        depth: how far each stage looks; default: `Depth.of(k)`.
    """

    whole: ClassVar[int] = WHOLE
    """Token vectors that an index may have before it is compressed."""

    def __init__(self, store: MilvusStore, encoder: ColBERT, depth: Depth | None = None) -> None:
        self.store = store
        self.encoder = encoder
        self.index = Index(store.folder, self.whole)
        self._depth = depth

    @classmethod
    def load(cls, card: Card, parts: Parts, folder: Path | None = None) -> PLAID:
        """With the weights in `weights/colbert` of the home folder, over a store in `folder` or in a temporary one.

        Raises:
            MissingWeights: one of `colbert.FILES` is not there.
            Unsupported: they are of another model.
        """
        settings = parts.settings
        set_threads(settings.threads)
        given = given_folder(card_of(WEIGHTS), settings, *FILES)
        encoder = ColBERT.from_folder(given, settings.precision, parts.device)
        return cls(store_in(folder, (), settings.store_uri, settings.store_token), encoder)

    @classmethod
    def tiny(cls, seed: int = 0) -> PLAID:
        """The tiny ColBERT over an empty temporary store."""
        return cls(store_in(None, ()), ColBERT.tiny(seed))

    @classmethod
    def mark(cls, settings: Settings) -> str:
        """The hashes of the weights, which stand under another card's name."""
        files = [settings.weights / WEIGHTS / name for name in (*FILES, LENGTHS)]
        told = [(path, path.stat()) for path in files if path.is_file()]
        return " ".join(f"{path.name}:{_hash_of(path, seen.st_size, seen.st_mtime_ns)}" for path, seen in told)

    def add(self, items: Sequence[Item]) -> None:
        """See `Retriever`.

        Raises:
            BadInput: the network gives NaN; nothing of that batch is written then.
            StoreError: a file of the index is damaged.
        """
        self.index.state()
        wanted = list({item.id: item for item in items}.values())
        for done, part in enumerate(batched(wanted, BATCH)):
            progress.step(done * BATCH, len(wanted), "passages")
            vectors = self.encoder.encode(part, "document")
            ids = [item.id for item in part]
            # The store first: an item without vectors is not found, vectors without their item would take a place.
            self.index.remove(ids)
            self.store.upsert(part, {})
            self.index.put(ids, vectors)

    def delete(self, where: Where) -> int:
        if expression(where):  # an empty one the store refuses
            self.index.remove(self.store.ids(where))
        return self.store.delete(where)

    def search(self, query: Query, k: int, where: Where | None = None) -> list[Hit]:
        """See `Retriever`.

        Raises:
            Unsupported: the network does not read such a query.
            StoreError: a file of the index is damaged or gone.
        """
        text = text_of(query)
        if not 1 <= k <= MAX_K:
            raise BadInput(f"k is `{k}`.", f"Ask for 1 to {MAX_K}.")
        if not self.encoder.reads(query):
            raise Unsupported("`plaid` does not read the script of this query.", "Search without `--retriever`.")
        if not self.index.state().ids and self.store.count():
            raise StoreError(f"`{FILE}` is gone, or was never whole.", REBUILD)
        allowed = None if where is None else set(self.store.ids(where))
        [vectors] = self.encoder.encode([Query(text)], "query")
        return self.store.hits(self.index.search(vectors, k, self._depth, allowed))

    def stats(self) -> IndexStats:
        """What can be found, and how large the index is."""
        state, stored = self.index.state(), asdict(self.store.stats())
        compressed = len(state.main.ids) if isinstance(state.main, Coded) else 0
        told = {"items": len(state.ids), "spaces": (self.encoder.space.name,)}
        return IndexStats(**{**stored, **told}, index_bytes=self.index.nbytes, compressed=compressed)

    def save(self, folder: Path) -> None:
        """Compress what is not yet, by the module's rule, and write items and index into `folder`; not the network.

        Raises:
            Cancelled, TimedOut: see `progress`; nothing is lost then.
        """
        self.index.settle(self._again)
        self.store.save(folder)
        if folder.resolve() != self.store.folder.resolve():
            self.index.copy(folder)

    @classmethod
    def open(cls, folder: Path, encoder: ColBERT | None = None) -> PLAID:
        """What was saved in `folder`, with the network that it was built with.

        Raises:
            BadInput: without it.
        """
        if encoder is None:
            raise BadInput("The `encoder` is `None`.", "The network is not saved: give that of before.")
        return cls(MilvusStore.existing(folder), encoder)

    def _again(self, ids: Sequence[str]) -> tuple[list[str], list[np.ndarray]]:
        items = self.store.get(ids)
        return [item.id for item in items], self.encoder.encode(items, "document")


@lru_cache(maxsize=64)
def _hash_of(path: Path, size: int, mtime_ns: int) -> str:
    return sha256(path)
