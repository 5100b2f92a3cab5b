"""A library session: everything one can do with a library, over the stages of one profile.

    >>> from triptych import Triptych
    >>> Triptych("my-library").name
    'my-library'

Making a session touches nothing; the first call that needs the library opens it. Reading is safe from many threads;
writing takes the library's write lock, and a second writer waits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, NotFound, Unsupported
from ..refiners.base import Budget
from ..refiners.protected import checked_patterns
from ..refiners.tokens import TOKENIZERS
from ..retrievers.base import Hit, MediaRef, Query, Where
from ..settings import Settings
from . import operations as op
from .explaining import explained
from .image_cost import formula_of
from .listening import heard_of
from .lookup import MAX_CANDIDATES, candidates_of, item_of, looked_at
from .ranking import Ranked, limits_of, ranked
from .results import id_of, metadata_of, rerank_out
from .roots import existing
from .schemas import (
    CompressOut,
    DeleteOut,
    Evidence,
    ExplainOut,
    FetchOut,
    Given,
    IndexOut,
    LibraryOut,
    RebuildOut,
    RerankOut,
    RetrieveMs,
    SearchOut,
    StatusOut,
    VerifyOut,
    ViewOut,
    visible,
)
from .stages import STAGES, Stages
from .viewing import DEFAULT_EDGE, checked_edge, viewed
from .watching import changes, followed

if TYPE_CHECKING:
    from types import TracebackType

    from ..refiners.base import Render
    from .collection import Collection

__all__ = ["MAX_CANDIDATES", "NAME", "Triptych", "libraries"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


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
        formula_of(self.settings.image_tokens)
        self.folder = _folder_of(library, self.settings)
        self.name = self.folder.name
        self.stages = stages or Stages(self.settings)
        self._collection: Collection | None = None
        self._lock = RLock()

    def index(
        self,
        paths: str | Path | Sequence[str | Path],
        *,
        prune: bool = False,
        rebuild: bool = False,
        spaces: Sequence[str] = (),
        routes: Sequence[str] | None = None,
        retrievers: Sequence[str] = (),
    ) -> IndexOut:
        """Bring `paths` (files and folders) into the library; what has not changed is left alone.

        Args:
            prune: also remove indexed files below `paths` that are gone.
            rebuild: throw the store away and read everything anew, these paths and all files indexed before. Mends a
                damaged store, and is how a library changes its encoder.
            spaces: ids of encoders whose spaces the library gains; what is indexed already is encoded from the store.
            routes: names of the spaces that searches ask from now on (`lexical`, `minilm`, …); empty: all of them.
            retrievers: ids of systems that the library gains beside its own search, to be asked by name: an encoder's
                space, or an index of the system's own. From then on they follow the library.

        Raises:
            BadInput: a path that is not there. Files that cannot be read do not raise: they are in `problems`.
        """
        given = _listed(paths)
        collection = self._open(create=True, rebuild=rebuild)
        wanted = [Path(path) for path in given]
        return collection.index(
            wanted, prune=prune, rebuild=rebuild, spaces=spaces, routes=routes, retrievers=retrievers
        )

    def watch(self, paths: str | Path | Sequence[str | Path], *, poll: bool | None = None) -> Iterator[IndexOut]:
        """Index `paths` as `index(prune=True)` does, and then every change in them as it comes; never ends by itself.

        Gives one result for each round in which something changed. A file that cannot be read is a problem of its
        round; a round that fails as a whole is tried again. While a watched folder is gone its passages stay.

        Args:
            poll: look through the files again and again; default: only where the file system tells no events.

        Raises:
            BadInput: a path that is not there, or cannot be watched.
            Cancelled: see `progress.reporting`.
        """
        tops = [existing(Path(path)) for path in _listed(paths)]
        rounds = changes(tops, poll=poll, apart=[self.folder.resolve(), self.settings.libraries.resolve()])
        next(rounds)
        yield self.index(tops, prune=True)
        yield from followed(rounds, lambda changed: self._open().follow(changed))

    def verify(self) -> VerifyOut:
        """Whether the library is whole: every text, vector and term statistic is as it was written. Changes nothing,
        waits for a writer.

        Raises:
            StoreError: catalogue or store cannot be read at all.
        """
        return self._open().verify()

    def rebuild(self, paths: str | Path | Sequence[str | Path] = ()) -> RebuildOut:
        """Mend what `verify` finds, from the library's files; what is intact is not encoded again.

        `index(rebuild=True)` is another thing: it throws everything away, and may take another encoder.

        Args:
            paths: files and folders to index as well: needed when the catalogue is so damaged that it does not say
                any more where the files lie.

        Raises:
            StoreError: it was built with another encoder; nothing says where its files lie; its server does not answer.
            MissingWeights: the encoder's, when the library has vectors.
        """
        from .collection import Collection
        from .mending import sound_catalog
        from .writing import writing

        targets = [existing(Path(path)) for path in ([paths] if isinstance(paths, str | Path) else paths)]
        with self._lock:
            self.close()
            if not self.exists() and not (self.folder / "store.json").is_file():
                self._open()
            with writing(self.folder):
                adopt = sound_catalog(self.folder, targets)
                self._collection = Collection.open(self.folder, self.stages, rebuild=True)
                return self._collection.rebuild(targets, adopt=adopt)

    def retrieve(
        self,
        query: str,
        max_tokens: int | None = None,
        *,
        k: int | None = None,
        where: Where | Mapping[str, Any] | None = None,
        protect: Sequence[str] = (),
        retriever: str | None = None,
    ) -> Evidence:
        """Search, rerank and compress: cited evidence of at most `max_tokens` tokens.

        Args:
            query: 1 to 4,096 characters.
            max_tokens: the budget, over the block that `operations.block` renders; default and cap from the settings.
            k: at most this many passages are considered after reranking (default: all that were searched).
            where: only items that match: a `Where`, or fields with what they must be, as in
                `{"author": "Bob", "year": {"ge": 2020}}` (see `retrievers.filters.filter_of`).
            protect: regular expressions next to those of the settings: what they match is never torn, and reported
                where it is lost.
            retriever: the id of the system that searches, of those that the library has; default: its own search.

        Raises:
            BadInput: an argument out of range, or a budget below the smallest block.
            NotFound: there is no such library, or it has no such retriever.
        """
        text = op.checked_query(query)
        budget = op.checked_budget(max_tokens, self.settings.max_tokens, self.settings.max_tokens_cap)
        top = self.settings.depth if k is None else op.checked_k(k)
        chosen, collection, clock, asked = op.checked_where(where), self._open(), op.Clock(), Query(text=text)
        with clock.stage("search"):
            hits = collection.search(asked, max(self.settings.depth, top), chosen, retriever)
        with clock.stage("rerank"):
            found = self._ranked(asked, hits, depth=self.settings.rerank_depth)
        with clock.stage("compress"):
            refiner = self.stages.refiner()  # first, or the note would not know that its weights are missing
            note = self._note(collection, budget, text, found.notes)
            kept, below = op.above_floor(found.ranking.hits[:top], found.floor, self.settings.tokenizer)
            frame = self._frame(budget, op.renderer(note, len(below)), protect)
            refined = refiner.refine(asked, kept, frame)
        passages = op.passages_out(refined)
        return Evidence(
            query=text,
            library=self.name,
            passages=passages,
            stripped=op.stripped_in(passages),
            dropped=[*op.dropped_out(refined), *below],
            tokens=op.tokens_out(refined, budget, self.settings.tokenizer),
            ms=RetrieveMs(**clock.total()),
            note=note,
            refiner_note=refined.note,
        )

    def search(
        self,
        query: str | None = None,
        k: int = 10,
        *,
        where: Where | Mapping[str, Any] | None = None,
        like: str | Path | None = None,
        retriever: str | None = None,
    ) -> SearchOut:
        """The best `k` passages of the first stage, whole, not reranked.

        Args:
            where: see `retrieve`.
            like: the id of a passage with a picture, or its `triptych://` address; the uri of a picture below the
                library's folders; or the path of a picture: finds what looks like it, with a `query` or without one.
                The passage itself is left out.
            retriever: see `retrieve`; the scores are its own.

        Raises:
            BadInput: an argument out of range, or neither `query` nor `like`.
            NotFound: there is no such library, it has no such retriever, or there is no such passage.
            Unsupported: nothing to look at behind `like`, or the library has no space of pictures.
        """
        text = op.checked_query(query) if query is not None or like is None else None
        top, collection, clock = op.checked_k(k), self._open(), op.Clock()
        asked = Query(text=text, media=None if like is None else looked_at(collection, like, retriever))
        with clock.stage("search"):
            hits = collection.search(asked, top if like is None else top + 1, op.checked_where(where), retriever)
            hits = [hit for hit in hits if hit.item.id != like][:top]
        note = self._note(collection, self.settings.max_tokens, text, stages=("encoder",))
        found = op.hits_out(hits)
        stripped = op.stripped_in(found)
        return SearchOut(query=text, library=self.name, hits=found, ms=clock.total(), note=note, stripped=stripped)

    def rerank(self, query: str, candidates: Sequence[str | Given], *, reranker: str | None = None) -> RerankOut:
        """Passages (ids of this library, or texts the caller brings) in a better order for `query`.

        Where the language model behind the reranker fails, what it had not ordered follows as it was given, and
        `reason` says so; with the setting `rerank_strict` its error is raised instead.
        """
        text, clock = op.checked_query(query), op.Clock()
        hits = candidates_of(candidates, self._open)
        with clock.stage("rerank"):
            found = self._ranked(Query(text=text), hits, reranker)
        return rerank_out(text, reranker or found.system or self.settings.reranker, found, clock)

    def _ranked(
        self, query: Query, hits: Sequence[Hit], reranker: str | None = None, depth: int | None = None
    ) -> Ranked:
        def located(media: MediaRef) -> MediaRef:
            return self._open().located(media)

        limits, strict = limits_of(self.settings, depth), self.settings.rerank_strict
        return ranked(lambda: self.stages.reranker(reranker), query, hits, limits, located, strict=strict)

    def compress(
        self,
        query: str | None,
        candidates: Sequence[str | Given],
        max_tokens: int | None = None,
        *,
        refiner: str | None = None,
        protect: Sequence[str] = (),
    ) -> CompressOut:
        """Passages inside a budget, in the order given; with a query, what answers it is kept first.

        Args:
            protect: see `retrieve`.
        """
        text = op.checked_query(query) if query is not None else None
        budget = op.checked_budget(max_tokens, self.settings.max_tokens, self.settings.max_tokens_cap)
        hits, clock = candidates_of(candidates, self._open), op.Clock()
        system = self.stages.refiner(refiner)
        with clock.stage("compress"):
            frame = self._frame(budget, op.renderer(), protect)
            refined = system.refine(Query(text=text) if text else None, hits, frame)
        passages = op.passages_out(refined)
        return CompressOut(
            query=text,
            refiner=refiner or id_of(system),
            passages=passages,
            stripped=op.stripped_in(passages),
            dropped=op.dropped_out(refined),
            tokens=op.tokens_out(refined, budget, self.settings.tokenizer),
            ms=clock.total(),
            refiner_note=refined.note,
        )

    def _frame(self, budget: int, render: Render, protect: Sequence[str]) -> Budget:
        patterns = checked_patterns((*self.settings.protected, *protect))
        return Budget(budget, self.settings.tokenizer, render, patterns)

    def fetch(self, id: str, span: tuple[int, int] | None = None) -> FetchOut:
        """The whole text of a passage, or its part `span` (half-open character offsets).

        Raises:
            NotFound: no such id; `StaleId` where its document has changed since, naming the successor.
            BadInput: a span that does not lie inside the text.
        """
        item = item_of(self._open(), id)
        start, end = (0, len(item.text)) if span is None else span
        if not 0 <= start < end <= len(item.text):
            raise BadInput(f"The span `{start}:{end}` is out of range.", f"The text has {len(item.text)} characters.")
        metadata = {**metadata_of(item), **({"span": [start, end]} if span is not None else {})}
        title, text = visible(item.title), item.text[start:end]
        return FetchOut(id=item.id, title=title, text=text, uri=item.source.uri, metadata=metadata)

    def view(
        self, id: str, max_edge: int = DEFAULT_EDGE, max_tokens: int | None = None, *, sound: bool = False
    ) -> ViewOut:
        """The picture behind a passage: its page or image, as large as two limits allow; the clip behind what is heard.

        Args:
            max_edge: pixels of the longer edge, 64 to 2,048.
            max_tokens: the budget for the picture and the text block beside it; default and cap from the settings,
                as is the formula that the picture is counted by.
            sound: give the clip itself, too, where it is no larger than `image_bytes` and takes at most half of the
                budget.

        Raises:
            BadInput: an argument out of range, or a budget that no picture fits.
            NotFound: no such id.
            Unsupported: nothing to look at.
        """
        edge = checked_edge(max_edge)
        budget = op.checked_budget(max_tokens, self.settings.max_tokens, self.settings.max_tokens_cap)
        item = item_of(self._open(), id)
        if item.media is None:
            raise Unsupported(f"`{item.source.uri}` has nothing to look at.", "Use `fetch` for its text.")
        path = self._open().path_of(item.media.uri)
        heard = heard_of(item, path, self._named, budget, self.settings.image_bytes if sound else 0)
        return viewed(item, item.media, path, edge, budget, self.settings, heard)

    def explain(self, id: str, query: str, token: int | None = None) -> ExplainOut:
        """Where on the page of a passage the words of `query` are found, by the retriever `colpali`.

        Args:
            token: of the query, from 0; None: the mean of all.

        Raises:
            BadInput: a query without words, or no such token.
            NotFound: no such id.
            Unsupported: the passage shows no page.
            MissingWeights: those of `colpali` are not here.
        """
        item = item_of(self._open(), id)
        if item.media is None:
            raise Unsupported(f"`{item.source.uri}` has nothing to look at.", "Name a passage with a page.")
        return explained(replace(item, media=self._open().located(item.media)), query, token, self.stages)

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

    def must_exist(self) -> None:
        """Make sure that the library has been made.

        Raises:
            NotFound: it has not; the hint names those that were.
        """
        if not self.exists():
            known = ", ".join(f"`{row}`" for row in _names(self.settings)) or "none yet"
            raise NotFound(
                f"There is no library `{self.name}`.",
                f"Known: {known}. Make it with `triptych index PATH --library {self.name}`.",
            )

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
        from .collection import Collection

        with self._lock:
            if rebuild:
                self.close()
            if self._collection is None:
                if not create:
                    self.must_exist()
                self._collection = Collection.open(self.folder, self.stages, rebuild=rebuild)
            return self._collection

    @property
    def _named(self) -> str | None:
        """The name that the library can be asked for by; None for one that is known by its folder."""
        return self.name if self.folder == self.settings.libraries / self.name else None

    def _note(
        self,
        collection: Collection,
        budget: int,
        query: str | None = None,
        ranking: tuple[str, str] = ("", ""),
        stages: Sequence[str] = STAGES,
    ) -> str | None:
        """What is missing of `stages`, and what `ranking` went wrong: in few words where the budget has room for no
        more."""
        own, tokenizer = collection.note(query), self.settings.tokenizer
        known: list[list[str | None]] = [[self.stages.note(stages, short=short), own] for short in (False, True)]
        tried = (op.fitting_note([said, *more], budget, tokenizer) for said in ranking for more in [*known, []])
        return next(filter(None, tried), None)


def libraries(settings: Settings) -> list[LibraryOut]:
    """Every named library of the home folder, by name."""
    from .collection import summary

    return [summary(settings.libraries / name) for name in _names(settings)]


def _names(settings: Settings) -> list[str]:
    from .collection import is_library

    if not settings.libraries.is_dir():
        return []
    return sorted(folder.name for folder in settings.libraries.iterdir() if is_library(folder))


def _listed(paths: str | Path | Sequence[str | Path]) -> list[str | Path]:
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise BadInput("No path is given.", "Name files or folders to index.")
    return given


def _folder_of(library: str | Path, settings: Settings) -> Path:
    if isinstance(library, str) and NAME.fullmatch(library) and ".." not in library:
        return settings.libraries / library
    if isinstance(library, Path) or "/" in library or "\\" in library:
        return Path(library).expanduser().absolute()
    raise BadInput(f"`{library}` is no library name.", "Use letters, digits, `.`, `_` and `-`, or a folder's path.")
