"""A session with the facade's signatures and small, deterministic answers: no store, no models, no files."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych import progress
from triptych.errors import BadInput, NotFound
from triptych.refiners.tokens import count
from triptych.settings import Settings
from triptych.tools.operations import block, checked_budget, checked_k, checked_query, rows_of
from triptych.tools.schemas import (
    CompressOut,
    DeleteOut,
    DroppedOut,
    Evidence,
    FetchOut,
    Given,
    HitOut,
    IndexOut,
    PassageOut,
    PieceOut,
    RebuildOut,
    RerankOut,
    RetrieveMs,
    SearchOut,
    StatusOut,
    TokensOut,
    VerifyOut,
    ViewOut,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from triptych.retrievers.base import Where

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)
TEXTS = {
    "p1": ("handbook/travel/rates.pdf", 2, "Daily allowance in Berlin is 120 euro. Receipts are due within 30 days."),
    "p2": ("handbook/travel/rules.md", None, "Trains are preferred below 600 km. Flights need an approval."),
    "p3": ("handbook/it/printers.md", None, "The printer on floor 3 is called Gutenberg. 打印机 🖨️ needs a badge."),
}
WORDS = 400
LONG = " ".join(f"word{n}" for n in range(WORDS))


def hits(query: str, texts: dict[str, tuple[str, int | None, str]]) -> list[HitOut]:
    """Texts by how many of the query's words they hold, ties by id."""
    wanted = query.lower().split()
    scored = sorted((-sum(word in text.lower() for word in wanted), key) for key, (_, _, text) in texts.items())
    rows = [(key, float(-score), *texts[key]) for score, key in scored]
    return [
        HitOut(
            n=n,
            id=key,
            title=uri.rsplit("/", 1)[-1],
            uri=uri,
            modality="text" if page is None else "page",
            page=page,
            box=None if page is None else (0.1, 0.2, 0.9, 0.3),
            start_s=None,
            end_s=None,
            text=text,
            score=score,
        )
        for n, (key, score, uri, page, text) in enumerate(rows, 1)
    ]


@dataclass
class FakeTriptych:
    """What `triptych.Triptych` looks like from outside; every field of test interest can be set."""

    library: str | Path = "default"
    settings: Settings = field(default_factory=lambda: Settings(home=Path("nowhere")))
    texts: dict[str, tuple[str, int | None, str]] = field(default_factory=lambda: dict(TEXTS))
    note: str | None = None
    delay_s: float = 0.0
    steps: int = 0
    print_this: str = ""
    crash: Exception | None = None
    events: list[str] = field(default_factory=list)
    asked_where: Where | None = None

    @property
    def name(self) -> str:
        return Path(self.library).name

    @property
    def folder(self) -> Path:
        return self.settings.libraries / self.name

    def __enter__(self) -> FakeTriptych:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def index(
        self,
        paths: Any,
        *,
        prune: bool = False,
        rebuild: bool = False,
        spaces: Sequence[str] = (),
        routes: Sequence[str] | None = None,
        retrievers: Sequence[str] = (),
    ) -> IndexOut:
        self._work("index", "files")
        files = len(list(paths))
        return IndexOut(
            library=self.name,
            files=files,
            indexed=files,
            unchanged=0,
            removed=0,
            items=len(self.texts),
            problems=[],
            ms={"total": 1.0},
        )

    def verify(self) -> VerifyOut:
        self._work("verify", "passages")
        return VerifyOut(
            library=self.name,
            whole=True,
            files=len(self.texts),
            passages=len(self.texts),
            damaged=[],
            extra=0,
            terms=0,
            catalogue=[],
            stale=[],
            ms={"total": 1.0},
        )

    def rebuild(self, paths: Any = ()) -> RebuildOut:
        self._work("rebuild", "files")
        return RebuildOut(
            library=self.name,
            anew=False,
            items=len(self.texts),
            kept=len(self.texts),
            encoded=0,
            files=len(list(paths)),
            problems=[],
            ms={"total": 1.0},
        )

    def retrieve(
        self,
        query: str,
        max_tokens: int | None = None,
        *,
        k: int | None = None,
        where: Where | None = None,
        protect: Sequence[str] = (),
        retriever: str | None = None,
    ) -> Evidence:
        query = checked_query(query)
        budget = checked_budget(max_tokens, self.settings.max_tokens, self.settings.max_tokens_cap)
        self._work("retrieve", "passages")
        found = self._filtered(query, where)[: checked_k(k) if k is not None else None]
        passages, dropped, tokens = self._fitted(found, budget, self.note)
        ms = RetrieveMs(search=1.0, rerank=2.0, compress=3.0, total=6.0)
        return Evidence(
            query=query, library=self.name, passages=passages, dropped=dropped, tokens=tokens, ms=ms, note=self.note
        )

    def search(
        self,
        query: str | None,
        k: int = 10,
        *,
        where: Where | None = None,
        like: str | Path | None = None,
        retriever: str | None = None,
    ) -> SearchOut:
        query = checked_query(query) if query is not None or like is None else "Berlin"
        self._work("search", "passages")
        found = self._filtered(query, where)[: checked_k(k)]
        return SearchOut(query=query, library=self.name, hits=found, ms={"total": 1.0}, note=self.note)

    def rerank(self, query: str, candidates: Sequence[str | Given], *, reranker: str | None = None) -> RerankOut:
        query = checked_query(query)
        self._work("rerank", "passages")
        return RerankOut(
            query=query,
            reranker=reranker or "fake",
            hits=hits(query, self._given(candidates)),
            calls=1,
            tokens=10,
            repaired=0,
            complete=True,
            reason=None,
            ms={"total": 1.0},
        )

    def compress(
        self,
        query: str | None,
        candidates: Sequence[str | Given],
        max_tokens: int | None = None,
        *,
        refiner: str | None = None,
        protect: Sequence[str] = (),
    ) -> CompressOut:
        budget = checked_budget(max_tokens, self.settings.max_tokens, self.settings.max_tokens_cap)
        self._work("compress", "passages")
        passages, dropped, tokens = self._fitted(hits(query or "", self._given(candidates)), budget, None)
        return CompressOut(
            query=query,
            refiner=refiner or "fake",
            passages=passages,
            dropped=dropped,
            tokens=tokens,
            ms={"total": 1.0},
        )

    def fetch(self, id: str, span: tuple[int, int] | None = None) -> FetchOut:
        uri, page, text = self._text(id)
        if span and not 0 <= span[0] < span[1] <= len(text):
            raise BadInput(f"The span `{span[0]}:{span[1]}` is outside.", f"The text has {len(text)} characters.")
        metadata: dict[str, Any] = {"page": page, **({"span": list(span)} if span else {})}
        shown = text[span[0] : span[1]] if span else text
        return FetchOut(id=id, title=uri.rsplit("/", 1)[-1], text=shown, uri=uri, metadata=metadata)

    def view(self, id: str, max_edge: int = 1024, max_tokens: int | None = None, *, sound: bool = False) -> ViewOut:
        uri, page, _ = self._text(id)
        return ViewOut(
            id=id,
            title=uri.rsplit("/", 1)[-1],
            where=f"{uri} p.{page}",
            mime="image/png",
            image=PIXEL,
            width=1,
            height=1,
            tokens=1,
            formula=self.settings.image_tokens,
        )

    def status(self) -> StatusOut:
        return StatusOut(
            library=self.name,
            files=len(self.texts),
            items=len(self.texts),
            by_modality={"text": len(self.texts)},
            store={"backend": "fake"},
            profile={"name": self.settings.profile},
            models={},
            healthy=True,
            problems=[],
            note=self.note,
        )

    def delete(self, *, ids: Sequence[str] = (), uri_prefix: str = "") -> DeleteOut:
        gone = [key for key, row in self.texts.items() if key in ids or (uri_prefix and row[0].startswith(uri_prefix))]
        for key in gone:
            del self.texts[key]
        return DeleteOut(library=self.name, deleted=len(gone))

    def exists(self) -> bool:
        return bool(self.texts)

    def must_exist(self) -> None:
        if not self.exists():
            raise NotFound(f"There is no library `{self.name}`.", "Known: none yet.")

    def create(self) -> None:
        self.events.append("create")

    def warm(self) -> None:
        self._work("warm", "models")

    def close(self) -> None:
        self.events.append("close")

    def _work(self, what: str, unit: str) -> None:
        self.events.append(what)
        if self.print_this:
            print(self.print_this)
        if self.crash:
            raise self.crash
        for done in range(self.steps):
            progress.step(done, self.steps, unit)
            time.sleep(self.delay_s)

    def _filtered(self, query: str, where: Where | None) -> list[HitOut]:
        self.asked_where = where
        prefix = where.uri_prefix if where else ""
        return hits(query, {key: row for key, row in self.texts.items() if row[0].startswith(prefix)})

    def _text(self, id: str) -> tuple[str, int | None, str]:
        if id not in self.texts:
            raise NotFound(f"Unknown passage id `{id}`.", "Take ids from an answer of `search` or `retrieve`.")
        return self.texts[id]

    def _given(self, candidates: Sequence[str | Given]) -> dict[str, tuple[str, int | None, str]]:
        return {
            **{one: self._text(one) for one in candidates if isinstance(one, str)},
            **{
                one.id or f"given-{n}": (one.uri or f"given/{n}", None, one.text)
                for n, one in enumerate(candidates, 1)
                if isinstance(one, Given)
            },
        }

    def _fitted(
        self, found: list[HitOut], budget: int, note: str | None
    ) -> tuple[list[PassageOut], list[DroppedOut], TokensOut]:
        rows = [
            PassageOut(**hit.model_dump(), pieces=[PieceOut(text=hit.text, span=(0, len(hit.text)))]) for hit in found
        ]
        kept = len(rows)
        while kept and count(block(rows_of(rows[:kept]), len(rows) - kept, note)) > budget:
            kept -= 1
        used = count(block(rows_of(rows[:kept]), len(rows) - kept, note))
        if used > budget or (rows and not kept):
            least = count(block(rows_of(rows[:1]), len(rows) - 1, note))
            raise BadInput(f"max_tokens is `{budget}`.", f"The smallest answer takes {least}.")
        dropped = [DroppedOut(id=row.id, reason="budget", tokens=count(row.text)) for row in rows[kept:]]
        original = sum(count(row.text) for row in rows)
        return rows[:kept], dropped, TokensOut(tokenizer="o200k_base", budget=budget, used=used, original=original)
