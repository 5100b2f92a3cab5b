"""Results of every operation, one model each: what the command line prints as JSON, LangChain carries as artifact,
and the MCP server puts into `_meta`. These shapes are stable; tests pin them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict


def _writable(text: str) -> str:
    text.encode()  # half of a surrogate pair is a UnicodeEncodeError, so a ValueError, so a validation error
    return text


Text = Annotated[str, AfterValidator(_writable)]
"""Text that UTF-8 can write."""


class Shape(BaseModel):
    """Base of all results: frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Given(Shape):
    """A passage the caller brings to `rerank` or `compress`: one JSONL line `{id?, text, uri?}`."""

    text: Text
    id: Text | None = None
    uri: Text | None = None


class PieceOut(Shape):
    """A run of kept text; `span` are offsets in what `fetch(id)` returns.

    Null for joiners and generated text: then `made_from` are the spans that it stands for.
    """

    text: str
    span: tuple[int, int] | None
    why: str = "kept"
    made_from: list[tuple[int, int]] = []


class CutOut(Shape):
    """A part of a kept passage that is not shown: `fetch(id, span)` gives it back.

    `why` is `"budget"`, `"pruned"` or `"duplicate"`; `protected` are the numbers, dates, negations, … lost with it.
    """

    span: tuple[int, int]
    why: str
    tokens: int
    protected: list[str] = []


class Placed(Shape):
    """A text and where it stands; `box` is x0, y0, x1, y1 as fractions of the page.

    `stripped` counts the invisible characters (zero-width, bidirectional, tags, controls) that were removed from its
    document when that was read. So does an answer's own `stripped`, over the documents that it shows.
    """

    n: int
    id: str
    title: str
    uri: str
    modality: str
    page: int | None
    box: tuple[float, float, float, float] | None
    start_s: float | None
    end_s: float | None
    text: str
    stripped: int = 0

    @property
    def where(self) -> str:
        """The citation a reader needs: file, page, times."""
        return place(self.uri, self.page, self.start_s, self.end_s)


class HitOut(Placed):
    """One hit of `search` and `rerank`, with its whole text."""

    score: float


class PassageOut(Placed):
    """One cited passage: `text` is what is left of the hit's, `box` stands around the kept pieces.

    `tokens` is its share of the budget, of the `original` tokens that the hit's text has.
    """

    pieces: list[PieceOut]
    score: float
    tokens: int = 0
    original: int = 0
    cut: list[CutOut] = []


def place(uri: str, page: int | None, start_s: float | None, end_s: float | None) -> str:
    """A citation in one line.

    >>> place("talks/opening.mp4", None, 61.25, 70.0)
    'talks/opening.mp4 61.2-70.0s'
    """
    shown = visible(uri) if page is None else f"{visible(uri)} p.{page}"
    if start_s is None:
        return shown
    return f"{shown} {start_s:.1f}-{start_s if end_s is None else end_s:.1f}s"


def visible(text: str) -> str:
    """A title or the name of a file, on one line and without invisible characters: strangers give files names, too.

    >>> visible("gar\\u202eden.txt")
    'garden.txt'
    """
    if text.isascii() and text.isprintable():
        return text
    from ..retrievers.readers.base import clean

    return clean(text)[0].replace("\n", " ").replace("\t", " ")


class DroppedOut(Shape):
    id: str
    reason: str
    tokens: int


class TokensOut(Shape):
    """`used` counts the one text block that a model sees; `original` the full texts of all hits considered.

    `saved` is what the model need not read of them, 0 where the block's frame takes more than was saved.
    """

    tokenizer: str
    budget: int
    used: int
    original: int
    unused: str | None = None
    saved: int = 0


class RetrieveMs(Shape):
    search: float
    rerank: float
    compress: float
    total: float


class Evidence(Shape):
    """`retrieve --json`."""

    query: str
    library: str
    passages: list[PassageOut]
    dropped: list[DroppedOut]
    tokens: TokensOut
    ms: RetrieveMs
    note: str | None = None
    refiner_note: str | None = None
    stripped: int = 0


class SearchOut(Shape):
    """`search --json`."""

    query: str | None
    library: str
    hits: list[HitOut]
    ms: dict[str, float]
    note: str | None = None
    stripped: int = 0


class RerankOut(Shape):
    """`rerank --json`: a permutation of what came in. `tokens` are those the reranker read."""

    query: str
    reranker: str
    hits: list[HitOut]
    calls: int
    tokens: int
    repaired: int
    complete: bool
    reason: str | None
    ms: dict[str, float]
    stripped: int = 0


class CompressOut(Shape):
    """`compress --json`."""

    query: str | None
    refiner: str
    passages: list[PassageOut]
    dropped: list[DroppedOut]
    tokens: TokensOut
    ms: dict[str, float]
    refiner_note: str | None = None
    stripped: int = 0


class FetchOut(Shape):
    """`fetch --json`: `text` is the item's whole text, or its part `span` (given in `metadata["span"]`)."""

    id: str
    title: str
    text: str
    uri: str
    metadata: dict[str, Any]


class FileProblem(Shape):
    """A file that was not indexed, or only in part, and why."""

    uri: str
    type: str
    message: str
    hint: str


class IndexOut(Shape):
    """`index --json`."""

    library: str
    files: int
    indexed: int
    unchanged: int
    removed: int
    items: int
    problems: list[FileProblem]
    ms: dict[str, float]


class Damage(Shape):
    """A file with damaged passages. `what`: how many are `missing` from the store, have another `text`, a `payload`
    that cannot be read, a wrong `vector`, or are found by the wrong `words`."""

    uri: str
    passages: int
    what: dict[str, int]


class StaleFile(Shape):
    """A file that is `changed` or `gone` since it was indexed: no damage, `index` brings it in."""

    uri: str
    why: str


class VerifyOut(Shape):
    """`verify --json`.

    `extra` counts passages in the store that belong to no file, `terms` the term statistics that are off; `catalogue`
    says what is wrong with the list of files itself; `spaces` counts by further space the passages that lack a vector
    there, or have one and are gone. `stale` is reported, and does not make a library less whole.
    """

    library: str
    whole: bool
    files: int
    passages: int
    damaged: list[Damage]
    extra: int
    terms: int
    catalogue: list[str]
    spaces: dict[str, int] = {}
    stale: list[StaleFile]
    ms: dict[str, float]


class RebuildOut(Shape):
    """`rebuild --json`.

    `anew` when the store could not be read and everything was made again. Of the library's `items` the `kept` ones
    stayed as they were, `encoded` were encoded again (from their `files` where the text was lost). `problems` names
    what is lost for good.
    """

    library: str
    anew: bool
    items: int
    kept: int
    encoded: int
    files: int
    problems: list[FileProblem]
    ms: dict[str, float]


class WatchOut(Shape):
    """`index --watch --json`, once it was stopped: what all rounds together did, and the problems that are left."""

    library: str
    rounds: int
    indexed: int
    removed: int
    items: int
    problems: list[FileProblem]


class ViewOut(Shape):
    """What `view(id)` shows: an image, downscaled; `tokens` is its cost for a vision model by `formula`, one of
    `image_cost.FORMULAS`.

    What can be heard has the address of its `clip`, which clients of the MCP server read, and its length in `seconds`
    where that is known. `sound` is the clip itself as WAV where it was asked for, empty where it was not or is too
    large (then `note` says so); `sound_tokens` is its cost. Of sound alone `image` is empty, its size and cost 0, and
    `mime` that of the clip.
    """

    id: str
    title: str
    where: str
    mime: str
    image: bytes
    width: int
    height: int
    tokens: int
    formula: str
    clip: str | None = None
    seconds: float | None = None
    sound: bytes = b""
    sound_tokens: int = 0
    note: str | None = None


class ExplainOut(Shape):
    """What `explain(id, query)` shows: `image`, the page as PNG, coloured where it is like the query's words, and for
    each of the query's `tokens`, as the retriever reads them, its highest similarity to a part of the page (-1 to 1)
    and where on the page that is, x and y as fractions of the page from the top left."""

    id: str
    query: str
    retriever: str
    tokens: list[str]
    similarities: list[float]
    peaks: list[tuple[float, float]]
    image: bytes


class DeleteOut(Shape):
    """`delete --json`."""

    library: str
    deleted: int


class LibraryOut(Shape):
    """One row of `libraries --json`."""

    name: str
    files: int
    items: int
    healthy: bool


class StatusOut(Shape):
    """`status --json`."""

    library: str
    files: int
    items: int
    by_modality: dict[str, int]
    store: dict[str, Any]
    profile: dict[str, str]
    models: dict[str, str]
    healthy: bool
    problems: list[FileProblem]
    jobs: list[dict[str, Any]] = []
    note: str | None = None
