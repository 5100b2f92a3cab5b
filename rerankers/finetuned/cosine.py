"""Cosine. Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks. Reimers and Gurevych 2019, arXiv:1908.10084

The baseline that other rerankers of one passage at a time are measured against: the similarity of the query's vector
and the passage's, by the profile's dense encoder (all-MiniLM-L6-v2, Apache-2.0), on the candidates of any first stage.
The first stage has no say beyond equal scores. A hit keeps its place where the encoder does not read the query, or
reads one language and the passage is in another. What is in the store already is encoded again: hits bring no vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import Unsupported
from ...retrievers.languages import across
from ...retrievers.searchable import searchable_text
from .. import _pointwise
from .._pointwise import Read
from ..base import Cost, Limits, Ranking, Reranker

if TYPE_CHECKING:
    from ...manifests.registry import Card
    from ...retrievers.base import Encoder, Hit, Item, Query
    from ...retrievers.parts import Parts

AT_ONCE = 32
"""Passages between two looks at the clock."""
PASSAGE_TOKENS = 200
"""For estimates only."""
CHARACTERS_PER_TOKEN = 4
"""For counts only."""


class Cosine(Reranker):
    """Orders hits by the similarity of vectors: for encoders of unit length their cosine, -1 to 1.

    Args:
        encoder: of one vector for each text.

    Raises:
        Unsupported: it has several for each, or reads pictures and not text.
    """

    def __init__(self, encoder: Encoder) -> None:
        if encoder.space.kind != "dense" or encoder.looks:
            raise Unsupported(f"`{encoder.space.name}` has no vectors of texts.", "Choose a dense encoder of text.")
        self._encoder = encoder

    @classmethod
    def load(cls, card: Card, parts: Parts) -> Cosine:
        """With the profile's encoder.

        Raises:
            MissingWeights: its weights are not on this machine.
        """
        return cls(parts.encoder())

    @classmethod
    def tiny(cls, seed: int = 0) -> Cosine:
        from ...retrievers.text.all_minilm_l6_v2 import AllMiniLM

        return cls(AllMiniLM.tiny(seed))

    def rank(self, query: Query, hits: Sequence[Hit], limits: Limits | None = None) -> Ranking:
        """A permutation of `hits`; a time limit is looked at before every 32 passages.

        `tokens` is a guess, of four characters each: an encoder does not say how many it reads.

        Raises:
            Unsupported: a query without text.
        """
        if query.text is None:
            raise Unsupported("The cosine reads text, and the query has `None`.", "Ask with text.")

        def read(items: Sequence[Item]) -> list[Read]:
            return self._read(query, query.text or "", items)

        return _pointwise.rank(hits, limits, read, lambda score, say: score, AT_ONCE)

    def _read(self, query: Query, asked: str, items: Sequence[Item]) -> list[Read]:
        reads, many = self._encoder.reads(query), self._encoder.many_languages
        judged = [reads and (many or not across(asked, item.text)) for item in items]
        texts = [searchable_text(item) for item in items]
        # Each text once: the same text twice in one batch may differ in the last digit, and so in its place.
        distinct = {text: item for text, item, holds in zip(texts, items, judged, strict=True) if holds}
        if not distinct:
            return [Read(None, 0) for _ in items]
        [wanted] = self._encoder.encode([query], "query")
        found = dict(zip(distinct, self._encoder.encode(list(distinct.values()), "document") @ wanted, strict=True))
        sizes = [len(text) // CHARACTERS_PER_TOKEN for text in texts]
        told = zip(texts, judged, sizes, strict=True)
        return [Read(float(found[text]), size) if holds else Read(None, 0) for text, holds, size in told]

    def estimate(self, n: int) -> Cost:
        """One call and about 200 tokens per hit."""
        return Cost(calls=n, tokens=n * PASSAGE_TOKENS) if n > 1 else Cost(calls=0, tokens=0)
