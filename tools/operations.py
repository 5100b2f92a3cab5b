"""The stages in order: search → rerank → compress, and the one text block that a model sees.

Everything here works on contracts (`Retriever`, `Reranker`, `Refiner`), never on a certain system; the session in
`library.py` decides which systems they are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import BadInput
from ..refiners.tokens import count
from ..retrievers.base import Where
from ..retrievers.filters import filter_of
from .schemas import CutOut, DroppedOut, HitOut, PassageOut, PieceOut, TokensOut, place, visible

if TYPE_CHECKING:
    from ..refiners.base import Cut, Passage, Piece, Refined, Render
    from ..retrievers.base import Box, Hit, Item
    from .schemas import ViewOut

MAX_QUERY = 4096
MAX_K = 100
NOTE_SHARE = 8


def checked_where(where: Where | Mapping[str, Any] | None) -> Where | None:
    """A filter as `retrievers.filters.filter_of` reads it, or one that is made already.

    Raises:
        BadInput: it says something that no filter is.
    """
    if where is None or isinstance(where, Where):
        return where
    return Where(filter=filter_of(where))


class Clock:
    """Milliseconds by stage name."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.ms: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.ms[name] = round((time.perf_counter() - start) * 1000, 1)

    def total(self) -> dict[str, float]:
        """Every stage, and `total` since the clock was made."""
        return {**self.ms, "total": round((time.perf_counter() - self._start) * 1000, 1)}


def checked_query(query: object) -> str:
    """The query without surrounding space; 1 to 4,096 characters that UTF-8 can write, else `BadInput`."""
    if not isinstance(query, str) or not query.strip():
        raise BadInput(f"The query is `{query}`.", "Ask with 1 to 4,096 characters of text.")
    if len(query) > MAX_QUERY:
        raise BadInput(f"The query has `{len(query)}` characters.", f"Ask with at most {MAX_QUERY:,}.")
    try:
        query.encode()
    except UnicodeEncodeError:
        shown = query.encode(errors="backslashreplace").decode()
        raise BadInput(f"The query is `{shown}`, which is no text.", "Ask in UTF-8.") from None
    return query.strip()


def checked_k(k: object) -> int:
    """`k` as a whole number from 1 to 100, else `BadInput`."""
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= MAX_K:
        raise BadInput(f"k is `{k}`.", f"Use a whole number from 1 to {MAX_K}.")
    return k


def checked_budget(max_tokens: object, default: int, cap: int) -> int:
    """The budget in tokens: `default` when None, from 1 to `cap`, else `BadInput`."""
    if max_tokens is None:
        return min(default, cap)
    if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 1:
        raise BadInput(f"max_tokens is `{max_tokens}`.", f"Use a whole number from 1 to {cap:,}.")
    if max_tokens > cap:
        raise BadInput(f"max_tokens is `{max_tokens}`.", f"This installation gives at most {cap:,} at once.")
    return max_tokens


def where_of(item: Item) -> str:
    """The place a reader is sent to: file, page, times."""
    return place(item.source.uri, item.source.page, item.source.start_s, item.source.end_s)


def block(rows: Sequence[tuple[str, str, str, str]], dropped: int, note: str | None = None) -> str:
    """The text block: compact JSON of `(id, title, where, text)` rows, the number left out, and a note.

    >>> block([("p1", "Rates", "rates.pdf p.2", "Berlin 120")], 1)
    '{"passages":[{"n":1,"id":"p1","title":"Rates","where":"rates.pdf p.2","text":"Berlin 120"}],"dropped":1}'
    """
    return json.dumps(block_dict(rows, dropped, note), ensure_ascii=False, separators=(",", ":"))


def block_dict(rows: Sequence[tuple[str, str, str, str]], dropped: int, note: str | None = None) -> dict[str, object]:
    """What `block` writes, as a dict (the structured half of a tool result)."""
    names = ("id", "title", "where", "text")
    passages = [{"n": n, **dict(zip(names, row, strict=True))} for n, row in enumerate(rows, 1)]
    return {"passages": passages, "dropped": dropped, **({"note": note} if note else {})}


def view_block(seen: ViewOut) -> str:
    """The text block beside a picture, as `block` writes it: what is shown, and what it costs by which formula."""
    return json.dumps(view_dict(seen), ensure_ascii=False, separators=(",", ":"))


def view_dict(seen: ViewOut) -> dict[str, object]:
    """What `view_block` writes, as a dict: of what is heard also the address of its clip and its length."""
    picture = {"tokens": seen.tokens, "formula": seen.formula} if seen.tokens else {}
    heard = {"clip": seen.clip, "seconds": seen.seconds, "sound_tokens": seen.sound_tokens, "note": seen.note}
    told = {name: value for name, value in heard.items() if value}
    return {"id": seen.id, "title": seen.title, "where": seen.where, **picture, **told}


def renderer(note: str | None = None, left_out: int = 0) -> Render:
    """`Budget.render` for the text block: what a budget is counted over. `left_out` hits were dropped before."""

    def render(passages: Sequence[Passage], dropped: int) -> str:
        rows = [(p.item.id, visible(p.item.title), where_of(p.item), p.text) for p in passages]
        return block(rows, dropped + left_out, note)

    return render


def rows_of(passages: Sequence[PassageOut]) -> list[tuple[str, str, str, str]]:
    """The block's rows, from results."""
    return [(p.id, p.title, p.where, p.text) for p in passages]


def passages_out(refined: Refined) -> list[PassageOut]:
    """Cited passages in order, numbered from 1."""
    return [_passage_out(n, passage) for n, passage in enumerate(refined.passages, 1)]


def _passage_out(n: int, passage: Passage) -> PassageOut:
    item = passage.item
    source = item.source
    return PassageOut(
        n=n,
        id=item.id,
        title=visible(item.title),
        uri=source.uri,
        modality=item.modality,
        page=source.page,
        box=kept_box(item, [piece.span for piece in passage.pieces if piece.span]),
        start_s=source.start_s,
        end_s=source.end_s,
        text=passage.text,
        pieces=[_piece_out(piece) for piece in passage.pieces],
        score=round(passage.score, 6),
        stripped=stripped_from(item),
        tokens=passage.tokens,
        original=passage.original,
        cut=[_cut_out(item.text, cut) for cut in passage.cut],
    )


def _piece_out(piece: Piece) -> PieceOut:
    return PieceOut(text=piece.text, span=piece.span, why=piece.why, made_from=list(piece.made_from))


def _cut_out(text: str, cut: Cut) -> CutOut:
    lost = [text[start:end] for start, end in cut.protected]
    return CutOut(span=cut.span, why=cut.why, tokens=cut.tokens, protected=lost)


def kept_box(item: Item, spans: Sequence[tuple[int, int]]) -> Box | None:
    """The smallest box around the lines that `spans` touch; the item's own box when its lines are not known."""
    lines = item.meta.get("lines") or ()
    touched = [line[2:] for line in lines if any(start < line[1] and line[0] < end for start, end in spans)]
    if not touched:
        return item.source.box
    x0, y0, x1, y1 = zip(*touched, strict=True)
    return (min(x0), min(y0), max(x1), max(y1))


def hits_out(hits: Sequence[Hit]) -> list[HitOut]:
    """Hits in order, numbered from 1, with their whole text."""
    return [
        HitOut(
            n=n,
            id=hit.item.id,
            title=visible(hit.item.title),
            uri=hit.item.source.uri,
            modality=hit.item.modality,
            page=hit.item.source.page,
            box=hit.item.source.box,
            start_s=hit.item.source.start_s,
            end_s=hit.item.source.end_s,
            text=hit.item.text,
            stripped=stripped_from(hit.item),
            score=round(hit.score, 6),
        )
        for n, hit in enumerate(hits, 1)
    ]


def stripped_from(item: Item) -> int:
    """How many invisible characters were removed from the item's document when it was read."""
    return int(item.meta.get("stripped") or 0)


def stripped_in(rows: Sequence[PassageOut] | Sequence[HitOut]) -> int:
    """The same over the documents of an answer, each counted once."""
    return sum({row.uri: row.stripped for row in rows}.values())


def above_floor(hits: Sequence[Hit], floor: float | None, tokenizer: str) -> tuple[list[Hit], list[DroppedOut]]:
    """The hits that say something about the query, and those that never fill a budget."""
    if floor is None:
        return list(hits), []
    kept = [hit for hit in hits if hit.score >= floor]
    below = [hit.item for hit in hits if hit.score < floor]
    return kept, [DroppedOut(id=one.id, reason="below floor", tokens=count(one.text, tokenizer)) for one in below]


def dropped_out(refined: Refined) -> list[DroppedOut]:
    """What left nothing behind, and why."""
    return [DroppedOut(id=d.id, reason=d.reason, tokens=d.tokens) for d in refined.dropped]


def tokens_out(refined: Refined, budget: int, tokenizer: str) -> TokensOut:
    """The token report of one refinement."""
    return TokensOut(
        tokenizer=tokenizer,
        budget=budget,
        used=refined.used,
        original=refined.original,
        unused=refined.unused,
        saved=max(0, refined.original - refined.used),
    )


def fitting_note(notes: Sequence[str | None], budget: int, tokenizer: str) -> str | None:
    """The notes in one line, or None where they would take more than one part in `NOTE_SHARE` of the budget."""
    joined = " ".join(dict.fromkeys(note for note in notes if note))
    return joined if joined and count(joined, tokenizer) * NOTE_SHARE <= budget else None
