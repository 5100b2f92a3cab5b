"""HDCT. Context-Aware Document Term Weighting for Ad-Hoc Search. Dai & Callan 2020, doi:10.1145/3366423.3380258

DeepCT for documents longer than a passage. Every passage's terms are weighed in their context and counted as often as
round(100·sqrt(y)); the counts of a document's passages become one count per term, whole numbers, the passage's place i
counted from 1; BM25 with its statistics over documents does the rest:

    sum                   Σ tf              position_decay_sum    Σ tf / i
    avg                   Σ tf / n          position_decay_avg    Σ tf / i  ÷  Σ 1 / i
    max                   max tf            n: passages of the document, also those without the term

A document is the items with one `meta["document"]`, by `meta["ordinal"]`; an item without is a document of its own. A
hit is a document: its score with the one of its items that says most of what was asked (the largest Σ idf·tf, among the
items that a filter lets through). Ties are broken by document.

Weak labels, when nobody has asked: titles of or links to the document (`from_references`), or queries with what a first
stage finds for them (`from_feedback`). What differs from the paper: see `deepct`. Of the authors' code only the
aggregation was published; it keeps one passage more than it is told to and never writes the last document, neither of
which is repeated here. Their weights were not published: `fit` makes them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from ...errors import BadInput, StoreError, Unsupported
from .._stored import text_of, weighed_in
from ..base import Hit, Item, Query, Retriever, Route, Source, StoreStats, Where
from ..searchable import searchable_text
from ..stores.lexicon import LEXICAL, dimension
from ..stores.milvus import batched
from ..stores.table import MAX_K
from ..stores.weighed import Figures, Weighed
from ._term_weights import TermWeights
from .analysis import terms
from .deepct import Rewriting

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from ...manifests.registry import Card
    from ..parts import Parts
    from ._term_training import Example, Training

How = Literal["sum", "avg", "max", "position_decay_sum", "position_decay_avg"]
FEEDBACK = 10
"""Passages of a first stage that are taken to be what a query asks for."""
PASSAGES, DOCUMENTS = "passages", "documents"
_TOGETHER = 64
"""Documents that are counted anew together."""
_ROUNDING = 1e-9
"""A sum of fractions that should be a whole number may come out a little below it."""


@dataclass(frozen=True)
class Aggregation(Rewriting):
    """How weights become counts of passages, and these the counts of a document.

    Attributes:
        how: see the module.
        most: so many passages of a document count, from its beginning; 1 or more.

    Raises:
        BadInput: a value outside its range.
    """

    SYSTEM: ClassVar[str] = "HDCT"

    root: bool = True
    k1: float = 18.0
    b: float = 0.7
    how: How = "position_decay_sum"
    most: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.how not in get_args(How):
            raise BadInput(f"There is no aggregation `{self.how}`.", f"Choose one of {', '.join(get_args(How))}.")
        if self.most < 1:
            raise BadInput(f"`{self.most}` passages of a document.", "Take 1 or more.")

    def document(self, passages: Sequence[Mapping[int, int]]) -> dict[int, int]:
        """Term → count of a document, from those of its passages, in their order."""
        found: dict[int, list[tuple[int, int]]] = defaultdict(list)
        used = passages[: self.most]
        for place, counts in enumerate(used, 1):
            for term, tf in counts.items():
                found[term].append((tf, place))
        made = {term: aggregate(told, len(used), self.how) for term, told in found.items()}
        return {term: tf for term, tf in made.items() if tf}


def aggregate(told: Sequence[tuple[int, int]], passages: int, how: How) -> int:
    """One term's count in a document, cut to a whole number.

    Args:
        told: its count and place, from 1, for each passage that has it; at least one.
        passages: of the document.
    """
    if how == "max":
        return max(tf for tf, _ in told)
    decays = how.startswith("position")
    total: float = sum(tf / place if decays else tf for tf, place in told)
    if how == "avg":
        total /= passages
    if how == "position_decay_avg":
        total /= sum(1 / place for place in range(1, passages + 1))
    return int(total + _ROUNDING)


class HDCT(Retriever):
    """BM25 over documents whose terms count as much as they matter in their passages.

    A call that was stopped between passages and documents is mended by the same call again.

    Args:
        passages, documents: weighed by the same `Aggregation`; opened on first use.
        weigher: None for stores that are searched only.

    Raises:
        StoreError: other stores.
    """

    def __init__(self, passages: Weighed, documents: Weighed, weigher: TermWeights | None) -> None:
        if not isinstance(passages.weighing, Aggregation) or passages.weighing != documents.weighing:
            raise StoreError("The stores are not those of one HDCT.", "Give both the same `Aggregation`.")
        self.passages = passages
        self.documents = documents
        self.weigher = weigher
        self.aggregation = passages.weighing

    @classmethod
    def load(cls, card: Card, parts: Parts, folder: Path | None = None, aggregation: Aggregation | None = None) -> HDCT:
        """With the weights in `weights/hdct` of the home folder, over stores in `folder` or in temporary ones.

        Raises:
            MissingWeights: there are none.
            BadInput: they are of another model.
        """
        weigher, settings = TermWeights.load(card, parts), parts.settings
        return cls(*_stores(folder, aggregation or Aggregation(), settings.store_uri, settings.store_token), weigher)

    @classmethod
    def tiny(cls, seed: int = 0, aggregation: Aggregation | None = None) -> HDCT:
        """A random model over empty temporary stores."""
        return cls(*_stores(None, aggregation or Aggregation()), TermWeights.tiny(seed))

    @staticmethod
    def fit(
        data: Sequence[Example],
        out_dir: Path,
        start: Path,
        training: Training | None = None,
        held: Sequence[Example] = (),
    ) -> TermWeights:
        """Learn from passages with weak labels and write into `out_dir`; as `DeepCT.fit`."""
        from ._term_training import fitted

        return fitted(data, out_dir, start, training, held)

    def add(self, items: Sequence[Item]) -> None:
        """See `Retriever`.

        Raises:
            Unsupported: it was opened without a model.
            BadInput: the model gives NaN or infinity; nothing is written then.
        """
        if self.weigher is None:
            raise Unsupported("This HDCT was opened without its model.", "Give `open` the model, or use `load`.")
        weights = self.weigher.weights([searchable_text(item) for item in items])
        touched = {_key(item) for item in (*items, *self.passages.get([item.id for item in items]))}
        self.passages.add(items, [self.aggregation.counts(one) for one in weights])
        self._recount(touched)

    def delete(self, where: Where) -> int:
        touched = {_key(item) for item in self.passages.items(where)}
        deleted = self.passages.delete(where)
        self._recount(touched)
        return deleted

    def search(self, query: Query, k: int, where: Where | None = None) -> list[Hit]:
        """At most `k` documents, each by one item; see the module."""
        asked, found = Route(LEXICAL, text=text_of(query)), list[Hit]()
        rarity, seen, depth = self._rarity(text_of(query)), 0, k
        while True:
            ranked = self.documents.search([asked], depth)
            best = self._best([hit.item.id for hit in ranked[seen:]], rarity, where)
            found += [Hit(best[hit.item.id], hit.score) for hit in ranked[seen:] if hit.item.id in best]
            if len(found) >= k or len(ranked) < depth or depth == MAX_K:
                return found[:k]
            seen, depth = len(ranked), min(4 * depth, MAX_K)

    def _rarity(self, text: str) -> dict[int, float]:
        """What each known term of a query weighs, by its sparse dimension."""
        asked = Counter(dimension(term) for term in terms(text, "query"))
        lexicon = self.documents.statistics()
        known = lexicon.frequencies(list(asked))
        figures = Figures(max(lexicon.items, *known.values(), 0), 0.0, known)
        return self.aggregation.query({term: asked[term] for term in known}, figures)

    def _best(self, keys: Sequence[str], rarity: Mapping[int, float], where: Where | None) -> dict[str, Item]:
        """Of each document the item that says most of what was asked, if any does."""
        told: dict[str, tuple[float, Item]] = {}
        for part in batched(keys, _TOGETHER):
            items = self._items(part, where)
            counted = self.passages.counted([item.id for item in items])
            for item in items:
                score = sum(weight * counted[item.id].get(term, 0) for term, weight in rarity.items())
                if score > 0 and (_key(item) not in told or score > told[_key(item)][0]):
                    told[_key(item)] = (score, item)
        return {key: item for key, (_, item) in told.items()}

    def stats(self) -> StoreStats:
        """Of the items, not of the documents."""
        return self.passages.stats()

    def save(self, folder: Path) -> None:
        """Write items and counts into `folder`; the model is not saved."""
        self.passages.save(folder / PASSAGES)
        self.documents.save(folder / DOCUMENTS)

    @classmethod
    def open(cls, folder: Path, weigher: TermWeights | None = None) -> HDCT:
        """What was saved in `folder`; without the model it can be searched but not added to."""
        passages, documents = (Weighed.existing(folder / name, Aggregation.of) for name in (PASSAGES, DOCUMENTS))
        if not (isinstance(passages, Weighed) and isinstance(documents, Weighed)):
            raise StoreError(f"The stores in `{folder.name}` are not those of HDCT.", "Name a folder that it saved.")
        return cls(passages, documents, weigher)

    def _items(self, keys: Sequence[str], where: Where | None) -> list[Item]:
        """All items of these documents that match, by id."""
        where, found = where or Where(), list[Item]()
        if documents := _within(keys, "d:", where.documents):
            found += self.passages.items(replace(where, documents=documents))
        if ids := _within(keys, "i:", where.ids):
            found += self.passages.items(replace(where, ids=ids))
        return [item for item in sorted(found, key=lambda item: item.id) if _key(item) in keys]

    def _recount(self, keys: Iterable[str]) -> None:
        """Count these documents anew from their items, and drop those that have none."""
        heads, counts, empty = list[Item](), list[dict[int, int]](), list[str]()
        for part in batched(sorted(keys), _TOGETHER):
            of = defaultdict(list)
            for item in self._items(part, None):
                of[_key(item)].append(item)
            empty += [key for key in part if key not in of]
            for key, items in of.items():
                items.sort(key=lambda item: (item.meta.get("ordinal", 0), item.id))
                counted = self.passages.counted([item.id for item in items])
                heads.append(Item(key, "", Source(items[0].source.uri)))
                counts.append(self.aggregation.document([counted[item.id] for item in items]))
        self.documents.add_counted(heads, counts)
        if empty:
            self.documents.delete(Where(ids=tuple(empty)))


def from_references(documents: Iterable[tuple[Sequence[str], Sequence[str]]]) -> list[Example]:
    """Passages with the share of their document's references that hold a term: labels by content.

    Args:
        documents: references (titles, anchor texts of links) and passages of each; without references it is left out.
    """
    from ._term_training import Example, recall

    return [
        Example(passage, targets)
        for references, passages in documents
        if references
        for targets in [recall(references)]
        for passage in passages
    ]


def from_feedback(queries: Iterable[str], first_stage: Retriever, top: int = FEEDBACK) -> list[Example]:
    """Passages with the share of the queries that `first_stage` finds them for and that hold a term: nobody judged."""
    from ._term_training import examples

    return examples(
        (query, searchable_text(hit.item)) for query in queries for hit in first_stage.search(Query(query), top)
    )


def _stores(folder: Path | None, aggregation: Aggregation, uri: str = "", token: str = "") -> tuple[Weighed, Weighed]:
    """Of passages and of documents."""
    passages, documents = (None if folder is None else folder / name for name in (PASSAGES, DOCUMENTS))
    return weighed_in(passages, aggregation, uri, token), weighed_in(documents, aggregation, uri, token)


def _within(keys: Sequence[str], kind: str, may: Sequence[str]) -> tuple[str, ...]:
    """The names in keys of a kind, if there is a choice only those of it."""
    names = (key.removeprefix(kind) for key in keys if key.startswith(kind))
    return tuple(name for name in names if not may or name in may)


def _key(item: Item) -> str:
    """The id of an item's document among the documents: what is named so by its items, or the item itself."""
    document = str(item.meta.get("document", ""))
    return f"d:{document}" if document else f"i:{item.id}"
