"""What a model sees of a result: one text block inside a token budget, and beside it what only programs read.

The MCP server and the LangChain tools both answer with these, so the same call gives the same bytes in either.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import BadInput
from ..refiners.tokens import count
from .operations import NOTE_SHARE, block_dict, rows_of, view_dict
from .schemas import CompressOut, Evidence, FetchOut, HitOut, PassageOut, RerankOut, SearchOut, Shape, ViewOut, visible

WORD_REACH = 200
_JOINING = "\u200d\ufe0e\ufe0f\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"


@dataclass(frozen=True)
class Answer:
    """One tool result.

    Attributes:
        data: what the model sees; `text` is its compact JSON.
        trace: what programs read: spans, boxes, scores, the drop list, the token report, milliseconds.
        image, mime: a picture to show beside the text, or None.
        clip: the address of a WAV file to listen to, or None; `sound` is the file itself where it was asked for.
    """

    data: dict[str, Any]
    trace: dict[str, Any] = field(default_factory=dict)
    image: bytes | None = None
    mime: str = ""
    clip: str | None = None
    sound: bytes | None = None

    @property
    def text(self) -> str:
        """The one text block, byte-identical for identical results."""
        return compact(self.data)


def compact(data: Any) -> str:
    """JSON without optional spaces, characters as they are."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def room_for(note: str | None, budget: int, tokenizer: str) -> tuple[str | None, int]:
    """The note that may be added to a block of `budget` tokens, and the tokens to leave free for it."""
    if not note:
        return None, 0
    cost = count(compact({"note": f" {note}"}), tokenizer) + 4
    return (note, cost) if cost * NOTE_SHARE <= budget else (None, 0)


def note_of(result: RerankOut, budget: int, tokenizer: str) -> str | None:
    """What kept a reranker from its order: in few words where the budget has no room for the reason."""
    if result.reason is None:
        return None
    if result.complete:
        return room_for(f"{result.reason}.", budget, tokenizer)[0]
    return room_for(f"Not reranked as asked: {result.reason}.", budget, tokenizer)[0] or "Not reranked as asked."


def joined(*notes: str | None) -> str | None:
    """Notes in one line, without repeats; None when there are none."""
    return " ".join(dict.fromkeys(note for note in notes if note)) or None


def of_passages(result: Evidence | CompressOut, budget: int, note: str | None = None) -> Answer:
    """The answer of `retrieve` and `compress`: `budget` is what the caller asked, `note` has room by `room_for`."""
    own = result.note if isinstance(result, Evidence) else None
    data = block_dict(rows_of(result.passages), len(result.dropped), joined(own, note))
    used = count(compact(data), result.tokens.tokenizer)
    saved = max(0, result.tokens.original - used)
    tokens = result.tokens.model_copy(update={"budget": budget, "used": used, "saved": saved})
    return Answer(data, _trace(result.model_copy(update={"tokens": tokens}), result.passages))


def of_hits(result: SearchOut | RerankOut, budget: int, tokenizer: str, note: str | None = None) -> Answer:
    """The answer of `search` and `rerank`: whole passages from the top, as many as fit into `budget` tokens.

    Raises:
        BadInput: not even the first passage fits; the message names the smallest budget that would do.
    """
    own = result.note if isinstance(result, SearchOut) else None
    rows = [(hit.id, hit.title, hit.where, hit.text) for hit in result.hits]

    def made(kept: int) -> dict[str, Any]:
        return block_dict(rows[:kept], len(rows) - kept, joined(own, note))

    kept = _most(len(rows), lambda n: count(compact(made(n)), tokenizer) <= budget)
    if kept < min(1, len(rows)):
        least = count(compact(made(1)), tokenizer)
        raise BadInput(f"max_tokens is `{budget}`.", f"The first passage alone takes {least:,}.")
    data = made(kept)
    left = rows[kept][0] if kept < len(rows) else None
    used = count(compact(data), tokenizer)
    unused = f"the next passage, `{left}`, is larger than what is left" if left and used < 0.9 * budget else None
    tokens = {"tokenizer": tokenizer, "budget": budget, "used": used, "unused": unused}
    read = {"model_tokens": result.tokens} if isinstance(result, RerankOut) else {}
    return Answer(data, {**_trace(result, result.hits), **read, "tokens": tokens})


def of_document(result: FetchOut, budget: int, tokenizer: str) -> Answer:
    """The answer of `fetch`: the text, or its beginning with a note that says which span comes next.

    Raises:
        BadInput: the budget has no room for any text.
    """
    start = _start(result)

    def made(kept: int) -> dict[str, Any]:
        data = {"id": result.id, "title": result.title, "where": _place(result), "span": [start, start + kept]}
        return {**data, "text": result.text[:kept], **_more(result, kept)}

    data = made(_cut(result.text, made, budget, tokenizer))
    tokens = {"tokenizer": tokenizer, "budget": budget, "used": count(compact(data), tokenizer)}
    return Answer(data, {"uri": result.uri, "metadata": result.metadata, "tokens": tokens})


def of_page(result: FetchOut, budget: int, tokenizer: str) -> Answer:
    """A document as OpenAI's connectors read it: `{"id", "title", "text", "url", "metadata"}`, cut to the budget."""

    def made(kept: int) -> dict[str, Any]:
        shown = {
            "id": result.id,
            "title": result.title,
            "text": result.text[:kept],
            "url": url_of(result.id, result.uri),
        }
        return {**shown, "metadata": {"where": _place(result), **_more(result, kept)}}

    data = made(_cut(result.text, made, budget, tokenizer))
    tokens = {"tokenizer": tokenizer, "budget": budget, "used": count(compact(data), tokenizer)}
    return Answer(data, {"uri": result.uri, "metadata": result.metadata, "tokens": tokens})


def of_view(result: ViewOut, budget: int, tokenizer: str) -> Answer:
    """The answer of `view`: a picture, sound where it was asked for, and a line that says what they show and cost, all
    of it in the budget."""
    data = view_dict(result)
    used = count(compact(data), tokenizer) + result.tokens + result.sound_tokens
    tokens = {"tokenizer": tokenizer, "budget": budget, "used": used}
    size = {"width": result.width, "height": result.height, "mime": result.mime}
    image, sound = result.image or None, result.sound or None
    return Answer(data, {**size, "tokens": tokens}, image=image, mime=result.mime, clip=result.clip, sound=sound)


def of_results(result: SearchOut, budget: int, tokenizer: str) -> Answer:
    """Hits as OpenAI's connectors read them: `{"results": [{"id", "title", "url"}]}`, as many as fit."""
    rows = [{"id": hit.id, "title": hit.title, "url": url_of(hit.id, hit.uri)} for hit in result.hits]
    kept = _most(len(rows), lambda n: count(compact({"results": rows[:n]}), tokenizer) <= budget)
    return Answer({"results": rows[:kept]}, _trace(result, result.hits))


def url_of(item_id: str, uri: str) -> str:
    """The address of a citation: the source's own where it has one on the web, else one of ours that stays the same."""
    return uri if uri.startswith(("https://", "http://")) else f"triptych://passage/{item_id}"


def nothing(note: str) -> Answer:
    """An empty block with a note that says why."""
    return Answer(block_dict([], 0, note))


def _trace(result: Shape, rows: Sequence[PassageOut] | Sequence[HitOut]) -> dict[str, Any]:
    """The whole result without the texts, which the block holds already."""
    full = result.model_dump(mode="json", exclude={"passages", "hits", "query"})
    return {**full, "passages": [_without_text(row) for row in rows]}


def _without_text(row: PassageOut | HitOut) -> dict[str, Any]:
    spans = {"spans": [piece.span for piece in row.pieces]} if isinstance(row, PassageOut) else {}
    return {**row.model_dump(mode="json", exclude={"text", "pieces", "title"}), **spans}


def _place(result: FetchOut) -> str:
    page, start_s, end_s = (result.metadata.get(key) for key in ("page", "start_s", "end_s"))
    place = visible(result.uri) if page is None else f"{visible(result.uri)} p.{page}"
    return place if start_s is None else f"{place} {start_s:.1f}–{start_s if end_s is None else end_s:.1f}s"


def _start(result: FetchOut) -> int:
    return int((result.metadata.get("span") or (0, 0))[0])


def _more(result: FetchOut, kept: int) -> dict[str, str]:
    start, end = _start(result) + kept, _start(result) + len(result.text)
    return {"note": f"Cut to max_tokens: fetch the span [{start}, {end}] for the rest."} if start < end else {}


def _cut(text: str, made: Callable[[int], dict[str, Any]], budget: int, tokenizer: str) -> int:
    """How many characters of `text` `made` can hold inside the budget, without cutting a word."""

    def fits(kept: int) -> bool:
        return count(compact(made(kept)), tokenizer) <= budget

    kept = _most(len(text), fits)
    if kept < len(text):
        kept = _boundary(text, kept)
    while kept and not fits(kept):  # a shorter text can have a token more where a word or a number now ends elsewhere
        kept = _boundary(text, kept - 1)
    if not kept and text:
        least = count(compact(made(_first_word(text))), tokenizer)
        raise BadInput(f"max_tokens is `{budget}`.", f"The smallest answer takes {least:,}.")
    return kept


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest n up to `limit` that fits, by bisection; 0 when none does."""
    if fits(limit):
        return limit
    low, high = 0, limit
    while low < high - 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _boundary(text: str, end: int) -> int:
    """The last place at or before `end` that cuts no word (or, where no space is near, no joined character)."""
    near = text.rfind(" ", max(0, end - WORD_REACH), end + 1)
    near = max(near, text.rfind("\n", max(0, end - WORD_REACH), end + 1))
    if near > 0:
        return near
    while end > 0 and (unicodedata.combining(text[end]) or text[end] in _JOINING or text[end - 1] == _JOINING[0]):
        end -= 1
    return end


def _first_word(text: str) -> int:
    words = text.split(maxsplit=1)
    return text.index(words[0]) + min(len(words[0]), WORD_REACH) if words else len(text)
