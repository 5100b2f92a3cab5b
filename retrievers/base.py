"""Contracts of the first panel: what a retrievable unit is, and what finds it.

Values are frozen; scores are "higher is better" and comparable only inside one list of hits; the rank of a hit is
its position. Text spans are half-open character offsets, `text[start:end]`, in Python's code points.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from ..settings import Settings
    from .filters import Filter

Modality = Literal["text", "page", "image", "audio", "video"]
MODALITIES: tuple[Modality, ...] = ("text", "page", "image", "audio", "video")
Side = Literal["query", "document"]
Box = tuple[float, float, float, float]
PDF = "application/pdf"


@dataclass(frozen=True)
class MediaRef:
    """A picture, page, clip or file that an item can show: `page` is 1-based, times are seconds."""

    uri: str
    mime: str
    page: int | None = None
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class Source:
    """Where an item's text stands.

    Attributes:
        uri: root-relative, forward slashes, first part names the root (`handbook/travel/rates.pdf`).
        start, end: character offsets in the document's extracted text (for a PDF: in that page's text).
        page: 1-based page number.
        box: x0, y0, x1, y1 as fractions of the page or image, origin top left, 0 to 1.
        start_s, end_s: seconds in an audio or video file.
    """

    uri: str
    start: int = 0
    end: int = 0
    page: int | None = None
    box: Box | None = None
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class Item:
    """One retrievable unit. `meta` is JSON-serialisable; known keys:

    `title` (document title), `headings` (list of section titles above the text), `document` (id of its document),
    `ordinal` (position in the document, from 0), `mime`, `lines` (list of `[start, end, x0, y0, x1, y1]`: where on
    the page the characters `text[start:end]` stand), `stripped` (invisible characters removed when it was read),
    `modified` (when the file was last changed before it was read: UTC, `2024-05-01T08:00:30Z`).
    """

    id: str
    text: str
    source: Source
    modality: Modality = "text"
    media: MediaRef | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The document's title, else its file name."""
        return str(self.meta.get("title") or self.source.uri.rsplit("/", 1)[-1])


@dataclass(frozen=True)
class Query:
    """Any mix of text and media, with an optional instruction for encoders that take one."""

    text: str | None = None
    media: MediaRef | None = None
    instruction: str | None = None


@dataclass(frozen=True)
class Hit:
    """An item with its score in one list."""

    item: Item
    score: float


@dataclass(frozen=True)
class Where:
    """A filter: every given part must hold, each with any of its values.

    Attributes:
        ids: item ids.
        documents: document ids (`item.meta["document"]`).
        modalities: modalities.
        uri_prefix: start of `source.uri`.
        filter: anything else, see `filters`.
    """

    ids: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    uri_prefix: str = ""
    filter: Filter | None = None


@dataclass(frozen=True)
class Space:
    """A space of vectors: its name is the field or collection that holds it."""

    name: str
    kind: Literal["dense", "multi", "sparse"]
    dim: int
    metric: Literal["cosine", "ip", "bm25"] = "cosine"


Vectors = "np.ndarray | list[np.ndarray]"
"""dense: float32 (n, dim), unit length for `cosine`; multi: n arrays of float32 (tokens_i, dim)."""


@dataclass(frozen=True)
class Route:
    """One way into the store: a dense space with a query vector, or the lexical space with the query's text."""

    space: Space
    vector: np.ndarray | None = None
    text: str | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class StoreStats:
    """What a store holds.

    Attributes:
        version: the backend's own.
        can: what the backend was seen to do, of `sparse`, `hybrid`, `multi_vector`.
    """

    items: int
    by_modality: Mapping[str, int]
    spaces: tuple[str, ...]
    backend: str
    version: str = ""
    can: tuple[str, ...] = ()


class Encoder(ABC):
    """Turns items or queries into vectors of one space, in the order of the input.

    Attributes:
        modalities: of the items that it encodes.
        looks: whether it reads their media and, unless it is mixed, not their text. Whoever calls it then gives it
            items and queries whose `media.uri` is a path on this machine.
        mixed: whether one that looks reads text, too: items and queries of text, of media, or of both.
        pages: whether one that looks reads every page of a document once, whatever its passages are: the first of these
            stands for it.
        many_languages: whether it is meant to compare texts of different languages.
    """

    space: Space
    modalities: tuple[Modality, ...] = MODALITIES
    looks: bool = False
    mixed: bool = False
    pages: bool = False
    many_languages: bool = False

    def encodes(self, item: Item) -> bool:
        """Whether `item` can have a vector."""
        if self.pages and item.media is not None and item.media.mime == PDF:
            return item.source.start == 0 and item.modality in ("page", "text")
        return item.modality in self.modalities and (item.media is not None or not self.looks or self.mixed)

    def reads(self, query: Query) -> bool:
        """Whether vectors of such a query mean anything; an English encoder says False to a Chinese one."""
        read = (query.text, query.media) if self.mixed else (query.media if self.looks else query.text,)
        return any(one is not None for one in read)

    @classmethod
    def mark(cls, settings: Settings) -> str:
        """What in the settings decides its vectors beside its weights: vectors made under another are stale."""
        return ""

    @abstractmethod
    def encode(self, inputs: Sequence[Item] | Sequence[Query], side: Side) -> Any:
        """Vectors of `inputs` (see `Vectors`). An empty input gives an empty array of shape (0, dim).

        One input that cannot be encoded gives an error and no vectors, of the others neither; who indexes many calls
        again without it (see `further`).

        Raises:
            UnreadableFile: what one of the inputs shows is gone, damaged, too large or no picture; names its file.
            Unsupported: one of the inputs is nothing that it reads.
            BadInput: the model gives NaN, which says nothing of the inputs.
            Cancelled, TimedOut: see `progress`.
        """


class Store(ABC):
    """Keeps items with their vectors. Every method raises `StoreError` when the backend fails."""

    @abstractmethod
    def upsert(self, items: Sequence[Item], vectors: Mapping[str, np.ndarray]) -> None:
        """Insert or replace by id; `vectors[space.name]` is float32 (len(items), dim), finite."""

    @abstractmethod
    def search(
        self, routes: Sequence[Route], k: int, where: Where | None = None, fusion: Literal["rrf", "weighted"] = "rrf"
    ) -> list[Hit]:
        """The best `k` items over all routes; one route: its own scores; several: fused. Ties by id."""

    @abstractmethod
    def delete(self, where: Where) -> int:
        """Delete what matches; returns how many. An empty `Where` is `BadInput`."""

    @abstractmethod
    def get(self, ids: Sequence[str]) -> list[Item]:
        """Items by id, in the order asked; unknown ids are left out."""

    @abstractmethod
    def stats(self) -> StoreStats:
        """Exact counts of what can be found now."""


class Retriever(ABC):
    """Finds items. `search` gives at most `k` hits, sorted, ties by id; an empty library gives []."""

    @classmethod
    def mark(cls, settings: Settings) -> str:
        """What in the settings decides its index beside its weights: one made under another is stale."""
        return ""

    @abstractmethod
    def add(self, items: Sequence[Item]) -> None:
        """Index `items`; an id already there is replaced."""

    @abstractmethod
    def delete(self, where: Where) -> int:
        """Remove what matches; returns how many."""

    @abstractmethod
    def search(self, query: Query, k: int, where: Where | None = None) -> list[Hit]:
        """At most `k` hits, best first. `k < 1` or a query without text and media is `BadInput`."""

    @abstractmethod
    def stats(self) -> StoreStats:
        """What it holds."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write everything `open` needs into `folder`."""

    @classmethod
    @abstractmethod
    def open(cls, folder: Path) -> Retriever:
        """The retriever that was saved in `folder`."""
