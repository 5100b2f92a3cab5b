"""A library session: everything one can do with a library, over the stages of one profile.

    >>> from triptych import Triptych
    >>> Triptych("my-library").name
    'my-library'

Making a session touches nothing; the first call that needs the library opens it. Reading is safe from many threads;
writing takes the library's write lock, and a second writer waits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, NotFound, StaleId, Unsupported
from ..refiners.base import Budget
from ..refiners.tokens import TOKENIZERS
from ..rerankers.base import Limits
from ..retrievers.base import Hit, Item, Query, Source, Where
from ..settings import Settings
from . import operations as op
from .schemas import (
    CompressOut,
    DeleteOut,
    Evidence,
    FetchOut,
    Given,
    IndexOut,
    LibraryOut,
    RerankOut,
    RetrieveMs,
    SearchOut,
    StatusOut,
    ViewOut,
)
from .stages import Stages

if TYPE_CHECKING:
    from types import TracebackType

    from ..rerankers.base import Ranking
    from .collection import Collection

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_CANDIDATES = 1000
PIXELS_PER_TOKEN = 750
"""A vision model's rough price of a picture: width × height / 750 tokens."""
SMALLEST_EDGE, LARGEST_EDGE = 64, 2048


class Triptych:
    """A session with one library.

    Args:
        library: a name (the library then lives in the home folder), or the path of a library's folder.
        settings: default `Settings.load()`.
        stages: the systems to use; default: those of `settings`. Sessions may share them.

    Raises:
        BadInput: a name with other characters than letters, digits, `.`, `_` and `-`.
    """

    def __init__(
        self, library: str | Path = "default", settings: Settings | None = None, *, stages: Stages | None = None
    ) -> None:
        self.settings = settings or Settings.load()
        if self.settings.tokenizer not in TOKENIZERS:
            raise BadInput(f"Unknown tokenizer `{self.settings.tokenizer}`.", f"Use one of: {', '.join(TOKENIZERS)}.")
        self.folder = _folder_of(library, self.settings)
        self.name = self.folder.name
        self.stages = stages or Stages(self.settings)
        self._collection: Collection | None = None
        self._lock = RLock()

    def index(
        self, paths: str | Path | Sequence[str | Path], *, prune: bool = False, rebuild: bool = False
    ) -> IndexOut:
        """Bring `paths` (files and folders) into the library; what has not changed is left alone.

        Args:
            prune: also remove indexed files below `paths` that are gone.
            rebuild: throw the store away and read everything anew, these paths and all files indexed before. Mends a
                damaged store, and is how a library changes its encoder.

        Raises:
            BadInput: a path that is not there. Files that cannot be read do not raise: they are in `problems`.
        """
        given = [paths] if isinstance(paths, str | Path) else list(paths)
        if not given:
            raise BadInput("No path is given.", "Name files or folders to index.")
        collection = self._open(create=True, rebuild=rebuild)
        return collection.index([Path(path) for path in given], prune=prune, rebuild=rebuild)

    def retrieve(
        self, query: str, max_tokens: int | None = None, *, k: int | None = None, where: Where | None = None
    ) -> Evidence:
        """Search, rerank and compress: cited evidence of at most `max_tokens` tokens.

        Args:
            query: 1 to 4,096 characters.
            max_tokens: the budget, over the block that `operations.block` renders; default and cap from the settings.
            k: at most this many passages are considered after reranking (default: all that were searched).
            where: only items that match.

        Raises:
            BadInput: an argument out of range, or a budget below the smallest block.
            NotFound: there is no such library.
        """
        text = op.checked_query(query)
        budget = op.checked_budget(max_tokens, self.settings.max_tokens, self.settings.max_tokens_cap)
        top = self.settings.depth if k is None else op.checked_k(k)
        collection, clock, asked = self._open(), op.Clock(), Query(text=text)
        with clock.stage("search"):
            hits = collection.search(asked, max(self.settings.depth, top), where)
        with clock.stage("rerank"):
            reranker = self.stages.reranker()
            ranking = reranker.rank(asked, hits, Limits(depth=self.settings.rerank_depth))
        with clock.stage("compress"):
            note = self._note(collection, budget)
            floor = reranker.floor if ranking.calls else None  # a hit that nobody read has the first stage's score
            kept, below = op.above_floor(ranking.hits[:top], floor, self.settings.tokenizer)
            frame = Budget(budget, self.settings.tokenizer, op.renderer(note, len(below)))
            refined = self.stages.refiner().refine(asked, kept, frame)
        return Evidence(
            query=text,
            library=self.name,
            passages=op.passages_out(refined),
            dropped=[*op.dropped_out(refined), *below],
            tokens=op.tokens_out(refined, budget, self.settings.tokenizer),
            ms=RetrieveMs(**clock.total()),
            note=note,
        )

    def search(self, query: str, k: int = 10, *, where: Where | None = None) -> SearchOut:
        """The best `k` passages of the first stage, whole, not reranked."""
        text, top = op.checked_query(query), op.checked_k(k)
        collection, clock = self._open(), op.Clock()
        with clock.stage("search"):
            hits = collection.search(Query(text=text), top, where)
        note = self._note(collection, self.settings.max_tokens)
        return SearchOut(query=text, library=self.name, hits=op.hits_out(hits), ms=clock.total(), note=note)

    def rerank(self, query: str, candidates: Sequence[str | Given], *, reranker: str | None = None) -> RerankOut:
        """Passages (ids of this library, or texts the caller brings) in a better order for `query`."""
        text, clock = op.checked_query(query), op.Clock()
        hits = self._candidates(candidates)
        system = self.stages.reranker(reranker)
        with clock.stage("rerank"):
            ranking = system.rank(Query(text=text), hits)
        return _rerank_out(text, reranker or _id_of(system), ranking, clock)

    def compress(
        self,
        query: str | None,
        candidates: Sequence[str | Given],
        max_tokens: int | None = None,
        *,
        refiner: str | None = None,
    ) -> CompressOut:
        """Passages inside a budget, in the order given; with a query, what answers it is kept first."""
        text = op.checked_query(query) if query is not None else None
        budget = op.checked_budget(max_tokens, self.settings.max_tokens, self.settings.max_tokens_cap)
        hits, clock = self._candidates(candidates), op.Clock()
        system = self.stages.refiner(refiner)
        with clock.stage("compress"):
            frame = Budget(budget, self.settings.tokenizer, op.renderer())
            refined = system.refine(Query(text=text) if text else None, hits, frame)
        return CompressOut(
            query=text,
            refiner=refiner or _id_of(system),
            passages=op.passages_out(refined),
            dropped=op.dropped_out(refined),
            tokens=op.tokens_out(refined, budget, self.settings.tokenizer),
            ms=clock.total(),
        )

    def fetch(self, id: str, span: tuple[int, int] | None = None) -> FetchOut:
        """The whole text of a passage, or its part `span` (half-open character offsets).

        Raises:
            NotFound: no such id; `StaleId` where its document has changed since, naming the successor.
            BadInput: a span that does not lie inside the text.
        """
        item = self._item(id)
        start, end = (0, len(item.text)) if span is None else span
        if not 0 <= start < end <= len(item.text):
            raise BadInput(f"The span `{start}:{end}` is out of range.", f"The text has {len(item.text)} characters.")
        metadata = {**_metadata(item), **({"span": [start, end]} if span is not None else {})}
        return FetchOut(id=item.id, title=item.title, text=item.text[start:end], uri=item.source.uri, metadata=metadata)

    def view(self, id: str, max_edge: int = 1024) -> ViewOut:
        """The picture behind a passage: its page or image, the longer edge at most `max_edge` pixels (64 to 2,048)."""
        from ..retrievers.readers.picture import picture

        if not SMALLEST_EDGE <= max_edge <= LARGEST_EDGE:
            raise BadInput(f"max_edge is `{max_edge}`.", f"Use {SMALLEST_EDGE} to {LARGEST_EDGE:,}.")
        item = self._item(id)
        if item.media is None:
            raise Unsupported(f"`{item.source.uri}` has nothing to look at.", "Use `fetch` for its text.")
        path = self._open().path_of(item.media.uri)
        shown = item.media
        seen = picture(path, shown.uri, shown.mime, shown.page, max_edge, start_s=shown.start_s, end_s=shown.end_s)
        return ViewOut(
            id=item.id,
            title=item.title,
            where=op.where_of(item),
            mime=seen.mime,
            image=seen.image,
            width=seen.width,
            height=seen.height,
            tokens=-(-seen.width * seen.height // PIXELS_PER_TOKEN),
        )

    def status(self) -> StatusOut:
        """What the library holds, whether it is whole, and which models are loaded."""
        collection = self._open()
        counted = collection.status()
        chosen = {name: str(getattr(self.settings, name)) for name in ("encoder", "reranker", "refiner", "lm")}
        return StatusOut(
            library=self.name,
            profile={"name": self.settings.profile, **chosen},
            models=self.stages.loaded(),
            note=self._note(collection, self.settings.max_tokens),
            **counted,
        )

    def delete(self, *, ids: Sequence[str] = (), uri_prefix: str = "") -> DeleteOut:
        """Remove passages by id, or all whose uri starts with `uri_prefix`. The files themselves stay."""
        if bool(ids) == bool(uri_prefix):
            raise BadInput("Either ids or a uri prefix is needed.", "Give one of the two.")
        deleted = self._open().delete(Where(ids=tuple(ids), uri_prefix=uri_prefix))
        return DeleteOut(library=self.name, deleted=deleted)

    def exists(self) -> bool:
        """Whether the library has been made."""
        from .collection import is_library

        return is_library(self.folder)

    def create(self) -> None:
        """Make the library now, empty, if it is not there yet."""
        self._open(create=True)

    def warm(self) -> None:
        """Load the models and open the library now, so that the first question is not slow."""
        self.stages.warm()
        if self.exists():
            self._open().warm()

    def close(self) -> None:
        """Let go of the library's files; the session opens them again when it is used again."""
        with self._lock:
            if self._collection is not None:
                self._collection.close()
                self._collection = None

    def __enter__(self) -> Triptych:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _open(self, *, create: bool = False, rebuild: bool = False) -> Collection:
        from .collection import Collection, is_library

        with self._lock:
            if rebuild:
                self.close()
            if self._collection is None:
                if not create and not is_library(self.folder):
                    known = ", ".join(f"`{row}`" for row in _names(self.settings)) or "none yet"
                    raise NotFound(
                        f"There is no library `{self.name}`.",
                        f"Known: {known}. Make it with `triptych index PATH --library {self.name}`.",
                    )
                self._collection = Collection.open(self.folder, self.stages, rebuild=rebuild)
            return self._collection

    def _item(self, id: str) -> Item:
        collection = self._open()
        found = collection.get([id])
        if found:
            return found[0]
        successor = collection.successor(id)
        if successor is not None:
            raise StaleId(f"The document of `{id}` has changed since.", f"Its text is now in `{successor}`.")
        raise NotFound(f"There is no passage `{id}`.", "Take ids from `search` or `retrieve`.")

    def _candidates(self, candidates: Sequence[str | Given]) -> list[Hit]:
        if not candidates:
            raise BadInput("No passages are given.", "Give ids of this library, or passages with a text.")
        if len(candidates) > MAX_CANDIDATES:
            raise BadInput(f"`{len(candidates)}` passages are given.", f"Give at most {MAX_CANDIDATES:,} at once.")
        items = [
            self._item(given) if isinstance(given, str) else _given_item(n, given)
            for n, given in enumerate(candidates, 1)
        ]
        twice, times = Counter(item.id for item in items).most_common(1)[0]
        if times > 1:
            raise BadInput(f"The passage `{twice}` is given twice.", "Give each passage once.")
        return [Hit(item, 0.0) for item in items]

    def _note(self, collection: Collection, budget: int) -> str | None:
        return op.fitting_note([self.stages.note(), collection.note()], budget, self.settings.tokenizer)


def libraries(settings: Settings) -> list[LibraryOut]:
    """Every named library of the home folder, by name."""
    from .collection import summary

    return [summary(settings.libraries / name) for name in _names(settings)]


def _names(settings: Settings) -> list[str]:
    from .collection import is_library

    if not settings.libraries.is_dir():
        return []
    return sorted(folder.name for folder in settings.libraries.iterdir() if is_library(folder))


def _folder_of(library: str | Path, settings: Settings) -> Path:
    if isinstance(library, str) and NAME.fullmatch(library) and ".." not in library:
        return settings.libraries / library
    if isinstance(library, Path) or "/" in library or "\\" in library:
        return Path(library).expanduser().absolute()
    raise BadInput(f"`{library}` is no library name.", "Use letters, digits, `.`, `_` and `-`, or a folder's path.")


def _given_item(n: int, given: Given) -> Item:
    uri = given.uri or f"given/{n}"
    return Item(id=given.id or f"given-{n}", text=given.text, source=Source(uri=uri, start=0, end=len(given.text)))


def _metadata(item: Item) -> dict[str, Any]:
    source = item.source
    placed = {
        "modality": item.modality,
        "page": source.page,
        "box": source.box,
        "start_s": source.start_s,
        "end_s": source.end_s,
        "source_span": [source.start, source.end],
    }
    kept = {key: value for key, value in item.meta.items() if key not in ("lines", "title")}
    return {**{key: value for key, value in placed.items() if value is not None}, **kept}


def _rerank_out(query: str, system_id: str, ranking: Ranking, clock: op.Clock) -> RerankOut:
    return RerankOut(
        query=query,
        reranker=system_id,
        hits=op.hits_out(ranking.hits),
        calls=ranking.calls,
        tokens=ranking.tokens,
        repaired=ranking.repaired,
        complete=ranking.complete,
        reason=ranking.reason,
        ms=clock.total(),
    )


def _id_of(system: Any) -> str:
    return str(type(system).__module__.rpartition(".")[2])
