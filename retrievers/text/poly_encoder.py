"""Poly-encoders: Transformer Architectures and Pre-training Strategies. Humeau et al. 2020, arXiv:1905.01969

A passage is one vector y, computed once and kept in the store. A query is m vectors: m learnt codes attend over its
token states (or its first m states serve). For each passage its vector attends over those m, and the score is the inner
product of y with what it attends to:

    s_i = ctx_i · y        score(q, y) = Σ_i softmax(s)_i s_i

With m = 1 that is a bi-encoder. For m > 1 the query's vector depends on the passage, so no index of inner products
finds the best directly. But a score is a mean of the s_i and never above the greatest of them: the nearest passages of
each of the m vectors are the shortlist (not those of their mean, which can miss what only one vector finds), and once
the k-th best of it beats the greatest s_i that a passage outside can have, the answer is exact. Otherwise the lists
grow, up to `MOST_CANDIDATES` passages. Scoring C candidates is one product of (C, d) with (d, m).

Attention is the paper's plain dot product or scaled by √d; the multi-head form of the authors' code is not here. What
else differs: the beginning of a long query is read (of a dialogue it would be the end), passages that are known to
answer a query are no negatives for it, and there is no pre-training. Published weights (ParlAI's `model_poly`, MIT) are
pickled, for dialogue, and named in a way that could not be seen: none are mapped, `fit` makes them from any BERT.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import progress
from ...errors import BadInput, MissingWeights
from .._stored import BATCH, store_in, text_of
from ..base import Hit, Item, Query, Retriever, Space, StoreStats, Where
from ..fusion import Ranked, best_first
from ..loading import batches
from ..searchable import searchable_text
from ..stores.filters import expression
from ..stores.milvus import MilvusStore, batched
from ..stores.rows import checked
from ..stores.table import MAX_K
from ..stores.vectors import VectorStore
from ._poly_shape import Example, Shape

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tokenizers import Tokenizer

    from ...manifests.registry import Card
    from ..fitting import Fitted
    from ..parts import Parts
    from ._poly_network import PolyNetwork
    from ._poly_training import Fitting

__all__ = ["Example", "PolyEncoder", "Shape", "poly_scores"]

SHORTLIST = 64
"""Passages that each context vector names at first, or twice as many as are asked for."""
MOST_CANDIDATES = 2_000
BATCH_PIECES = 2_048
"""Padded word pieces in one forward pass: larger batches leave the processor's cache and are slower."""
QUERY_CACHE = 256
MODEL = "model"
"""The folder of the network in one that `save` wrote."""
_SLACK = 1e-4
"""What the backend's inner products may be off from ours, as a share."""
_DIGITS = 6


class PolyEncoder(Retriever):
    """Poly-encoder over `store`, with the passages' vectors in a collection beside it. Safe from many threads.

    Args:
        network: a `PolyNetwork` in evaluation mode, its dtype and device used as they are.
        tokenizer: its `tokenizers.Tokenizer`, of which copies are used.
        store: keeps the items.
        vectors: of the space `space_of(network)`.
    """

    def __init__(self, network: PolyNetwork, tokenizer: Tokenizer, store: MilvusStore, vectors: VectorStore) -> None:
        from ._poly_network import Pieces

        self.network = network
        self.pieces = Pieces(tokenizer, network.shape)
        self.store = store
        self.vectors = vectors
        self._contexts = lru_cache(QUERY_CACHE)(self._read)

    @classmethod
    def load(cls, card: Card, parts: Parts, folder: Path | None = None) -> PolyEncoder:
        """From `weights/poly_encoder` of the home folder, which `fit` wrote, over a store in `folder`.

        Raises:
            MissingWeights: it is not there.
        """
        settings = parts.settings
        given = settings.weights / card.id
        if not given.is_dir():
            raise MissingWeights(
                f"`{card.id}` has no weights, and none that are published load here.",
                f"Have `PolyEncoder.fit` write them into `weights/{card.id}` of the home folder (`TRIPTYCH_HOME`).",
            )
        return cls.from_folder(
            given, folder, settings.precision, parts.device, settings.store_uri, settings.store_token
        )

    @classmethod
    def from_folder(
        cls,
        model: Path,
        folder: Path | None = None,
        precision: str | None = "auto",
        device: str = "cpu",
        uri: str = "",
        token: str = "",
    ) -> PolyEncoder:
        """From a folder that `fit` wrote, over a store in `folder`, or in a temporary one.

        Args:
            precision: see `loading.dtype`; None for the one of the file.

        Raises:
            MissingWeights, BadInput: it does not hold a whole poly-encoder; says what is wrong with it.
        """
        from ._poly_network import read

        network, tokenizer = read(model, precision, device)
        store = store_in(folder, (), uri, token)
        vectors = VectorStore(store.folder, space_of(network), uri if folder else "", token=token)
        return cls(network, tokenizer, store, vectors)

    @classmethod
    def tiny(cls, seed: int = 0, shape: Shape | None = None) -> PolyEncoder:
        """One random layer over single characters, 32 dimensions, four codes, over an empty temporary store."""
        from transformers import BertConfig

        from ..towers import characters, seeded
        from ._poly_network import PolyNetwork

        tokenizer = characters("bert")
        bert = BertConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=128,
            initializer_range=0.2,
        )
        wanted = shape or Shape(m=4, query_pieces=64, passage_pieces=128)
        network = seeded(seed, lambda: PolyNetwork(wanted, bert))
        network.candidate.load_state_dict(network.context.state_dict())
        store = store_in(None, ())
        return cls(network.eval(), tokenizer, store, VectorStore(store.folder, space_of(network)))

    @staticmethod
    def fit(
        data: Sequence[Example],
        out_dir: Path,
        start: Path,
        shape: Shape | None = None,
        held: Sequence[Example] = (),
        how: Fitting | None = None,
    ) -> Fitted:
        """Learn from `data` and write into `out_dir` what `from_folder` takes; run again, it goes on where it stopped.

        Args:
            start: a folder of a BERT encoder in safetensors with its `tokenizer.json`: both encoders begin as it.
            held: examples that are not learned from; with them, the network of the lowest loss on them is kept, and
                learning stops when it has not become lower for some time.

        Raises:
            MissingWeights, BadInput: `start` is no whole BERT; too few examples; a loss of NaN.
        """
        from ._poly_training import Fitting, fit

        return fit(data, out_dir, start, shape or Shape(), held, how or Fitting())

    def add(self, items: Sequence[Item]) -> None:
        """See `Retriever`.

        Raises:
            BadInput: the network's vectors have NaN or infinity; nothing of that batch is written then.
        """
        wanted = list({item.id: item for item in items}.values())
        for done, part in enumerate(batched(wanted, BATCH)):
            progress.step(done * BATCH, len(wanted), "passages")
            vectors = checked(self.candidates([searchable_text(item) for item in part]), self.vectors.space, len(part))
            self.store.upsert(part, {})
            self.vectors.upsert(part, vectors)

    def delete(self, where: Where) -> int:
        # Vectors first: an item without one is not found any more, a vector without its item would take a place.
        ids = self.store.ids(where) if expression(where) else ()  # an empty one the store refuses
        if ids:
            self.vectors.delete(Where(ids=tuple(ids)))
        return self.store.delete(where)

    def search(self, query: Query, k: int, where: Where | None = None) -> list[Hit]:
        if not 1 <= k <= MAX_K:
            raise BadInput(f"k is `{k}`.", f"Ask for 1 to {MAX_K}.")
        return self.store.hits(self._ranked(self.contexts(text_of(query)), k, where))

    def stats(self) -> StoreStats:
        return replace(self.store.stats(), spaces=(self.vectors.space.name,))

    def save(self, folder: Path) -> None:
        """Write items, vectors and the network into `folder`."""
        from ._poly_network import write

        self.store.save(folder)
        write(folder / MODEL, self.network, self.pieces.tokenizer)
        if folder.resolve() == self.store.folder.resolve():
            return
        copy = VectorStore(folder, self.vectors.space)
        for part in batched(self.vectors.ids(), BATCH):
            vectors = self.vectors.vectors(part)
            items = [item for item in self.store.get(part) if item.id in vectors]
            copy.upsert(items, np.stack([vectors[item.id] for item in items]))
        copy.close()

    @classmethod
    def open(cls, folder: Path) -> PolyEncoder:
        MilvusStore.existing(folder)
        return cls.from_folder(folder / MODEL, folder, None)

    def contexts(self, text: str) -> np.ndarray:
        """The vectors of a query: float32 (m, dim), fewer where it has fewer states than `first` takes; cached."""
        made: np.ndarray = self._contexts(text)
        return made

    def candidates(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of passages: float32 (n, dim)."""
        made, done = np.empty((len(texts), self.vectors.space.dim), np.float32), 0
        rows = self.pieces.passages(texts)
        for part in batches([len(row) for row in rows], BATCH_PIECES):
            progress.step(done, len(texts), "passages")
            made[part] = self._run(self.network.candidates, [rows[n] for n in part])
            done += len(part)
        return made

    def _read(self, text: str) -> np.ndarray:
        made: np.ndarray = self._run(
            lambda ids, mask: self.network.contexts(ids, mask)[0], self.pieces.queries([text])
        )[0]
        made.flags.writeable = False
        return made

    def _run(self, work: Callable[..., Any], rows: Sequence[Sequence[int]]) -> np.ndarray:
        import torch

        ids, mask = (one.to(self.network.context.device) for one in self.pieces.padded(rows))
        with torch.inference_mode():
            made: np.ndarray = work(ids, mask).float().cpu().numpy()
        return made

    def _ranked(self, contexts: np.ndarray, k: int, where: Where | None) -> Ranked:
        size = min(max(SHORTLIST, 2 * k), MAX_K)
        temperature = self.network.shape.temperature(self.vectors.space.dim)
        while True:
            lists = [self.vectors.search(context, size, where) for context in contexts]
            named = list(dict.fromkeys(id_ for found in lists for id_, _ in found))
            if not named:
                return []
            stored = self.vectors.vectors(named)
            scores = poly_scores(contexts, np.stack(list(stored.values())), temperature)
            ranked = best_first(dict(zip(stored, map(float, scores), strict=True)))
            if any(len(found) < size for found in lists):
                return ranked[:k]
            bound = max(found[-1][1] for found in lists)
            if ranked[k - 1][1] > bound + _SLACK * abs(bound) or len(named) >= MOST_CANDIDATES or size == MAX_K:
                return ranked[:k]
            size = min(4 * size, MAX_K)


def space_of(network: PolyNetwork) -> Space:
    """The space of its passages' vectors."""
    return Space("poly_encoder", "dense", int(network.config.hidden_size), "ip")


def poly_scores(contexts: np.ndarray, candidates: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """The score of each candidate, float64 (candidates,), to six digits so that equal passages stay equal.

    Section 4.4. With s = ctx·y for each context vector, Σ w·ctx of the paper's formula times y is Σ w·s: one matrix
    product of candidates · m · dim, and a softmax over m.

    Args:
        contexts: (m, dim).
        candidates: (candidates, dim).
        temperature: what s is divided by in the softmax.

    >>> poly_scores(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[40.0, 0.0], [3.0, 3.0]])).tolist()
    [40.0, 3.0]
    """
    each = candidates.astype(np.float64) @ contexts.astype(np.float64).T
    logits = each / temperature
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    made: np.ndarray = ((weights * each).sum(axis=1) / weights.sum(axis=1)).round(_DIGITS)
    return made
