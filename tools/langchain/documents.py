"""Passages as LangChain documents, and documents as what the session takes.

In a document's metadata `shown[i]`, characters of its `page_content`, are the characters `spans[i]` of a text behind
it: what `fetch(id)` returns for documents of ours. None stands for a joiner or generated text. Compression reads these
places and writes them again, so that they lead home through any number of panels.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document
from pydantic import TypeAdapter, ValidationError

from ...errors import BadInput
from ..answers import joined
from ..schemas import Given, PassageOut

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..schemas import HitOut

Span = tuple[int, int]
Trail = list[tuple[Span, Span | None]]
"""Places in a document's text, each with its place in the text behind it."""

_read = TypeAdapter(Trail).validate_python


def document(row: HitOut | PassageOut, *notes: str | None) -> Document:
    """A hit or passage, with everything that is known of it as metadata, and what there is to know of the answer."""
    known = row.model_dump(mode="json", exclude={"n", "id", "text", "pieces"})
    whole: list[tuple[int, Span | None]] = [(len(row.text), (0, len(row.text)))]
    runs = [(len(piece.text), piece.span) for piece in row.pieces] if isinstance(row, PassageOut) else whole
    metadata = {**known, "source": row.uri, "cite": row.where, **_placed(runs), **noted(*notes)}
    return Document(id=row.id, page_content=row.text, metadata=metadata)


def given(documents: Sequence[Document]) -> list[Given]:
    """Documents as passages of the caller's, under ids of our own: theirs may be missing or stand twice.

    Raises:
        BadInput: one that is no document, or whose text or uri UTF-8 cannot write.
    """
    return [_given_one(n, one) for n, one in enumerate(documents, 1)]


def _given_one(n: int, one: Document) -> Given:
    if not isinstance(one, Document):
        raise BadInput(f"Document `{n}` is a `{type(one).__name__}`.", "Give documents of LangChain's.")
    uri = one.metadata.get("uri") or one.metadata.get("source")
    try:
        return Given(text=one.page_content, id=f"document-{n:06d}", uri=None if uri is None else str(uri))
    except ValidationError:
        raise BadInput(f"Document `{n}` is no text that UTF-8 can write.", "Decode its file again.") from None


def shrunk(original: Document, passage: PassageOut, note: str | None = None) -> Document:
    """What `passage` keeps of a document."""
    trail = _trail(original)
    runs = [run for piece in passage.pieces for run in _runs(trail, piece.span, len(piece.text))]
    return changed(original, passage.text, tokens=passage.tokens, **_placed(runs), **noted(note))


def changed(original: Document, text: str | None = None, **added: Any) -> Document:
    """A copy with another text, where one is given, and further metadata."""
    content = original.page_content if text is None else text
    return Document(id=original.id, page_content=content, metadata={**original.metadata, **added})


def noted(*notes: str | None) -> dict[str, str]:
    """The metadata `note`: what fell short (models that are missing, a reranker that failed), where something did."""
    note = joined(*notes)
    return {"note": note} if note else {}


def _placed(runs: Sequence[tuple[int, Span | None]]) -> dict[str, Any]:
    """`shown` and `spans` of a text made of runs: their lengths, and where they come from."""
    bounds = accumulate((length for length, _ in runs), initial=0)
    return {"shown": list(pairwise(bounds)), "spans": [span for _, span in runs]}


def _trail(original: Document) -> Trail:
    """The places that a document came with, where they fit its text; else the text itself is what lies behind."""
    size = len(original.page_content)
    itself: Trail = [((0, size), (0, size))]
    shown, spans = (original.metadata.get(name) for name in ("shown", "spans"))
    try:
        trail: Trail = _read(list(zip(shown, spans, strict=True)))  # type: ignore[arg-type]
    except (TypeError, ValueError):  # there are none, or somebody else's metadata has these names
        return itself
    bounds = [0, *(end for (_, end), _ in trail)]
    fits = [place for place, _ in trail] == list(pairwise(bounds)) and bounds[-1] == size
    verbatim = all(span is None or span[1] - span[0] == end - start for (start, end), span in trail)
    return trail if fits and verbatim else itself


def _runs(trail: Trail, span: Span | None, length: int) -> Iterator[tuple[int, Span | None]]:
    """The parts of a kept `span` of a document's text: their lengths, and their places behind it."""
    if span is None:
        yield length, None
        return
    for (start, end), place in trail:
        low, high = max(start, span[0]), min(end, span[1])
        if low < high:
            yield high - low, None if place is None else (place[0] + low - start, place[0] + high - start)
