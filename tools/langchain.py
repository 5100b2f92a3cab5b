"""LangChain: the operations as tools, the library as a retriever, the last two panels as document compressors.

Tools answer with the same text block as the MCP server and carry the whole result as artifact.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables.config import run_in_executor
from langchain_core.tools import BaseTool, ToolException
from pydantic import ConfigDict, Field, PrivateAttr, ValidationError

from ..errors import BadInput, TriptychError
from . import calls
from .arguments import (
    Arguments,
    CompressArguments,
    FetchArguments,
    RerankArguments,
    RetrieveArguments,
    SearchArguments,
    description,
    explained,
    parse,
)
from .operations import checked_where
from .schemas import Given, HitOut, PassageOut

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun, Callbacks

    from .calls import Called
    from .library import Triptych


def _opened(library: Any) -> Triptych:
    """A session as it is, or the one of a library's name or folder."""
    if not isinstance(library, str | Path):
        return library  # type: ignore[no-any-return]
    from .library import Triptych

    return Triptych(library)


class TriptychTool(BaseTool):
    """One operation on one library. Errors come back as text that says what to do, so that an agent can go on."""

    library: Any = Field(repr=False, exclude=True)
    call: Callable[..., Any] = Field(repr=False, exclude=True)
    response_format: Literal["content", "content_and_artifact"] = "content_and_artifact"
    handle_tool_error: Any = True

    def model_post_init(self, context: Any, /) -> None:
        self.handle_validation_error = self._explained

    def _run(self, **given: Any) -> tuple[str, dict[str, Any]]:
        try:
            called: Called = self.call(self.library, parse(self._arguments, given))
        except TriptychError as error:
            raise ToolException(str(error)) from error
        return called.answer.text, called.result.model_dump(mode="json")

    @property
    def _arguments(self) -> type[Arguments]:
        return cast("type[Arguments]", self.args_schema)

    def _explained(self, error: Any) -> str:
        return str(explained(error, self._arguments))


_TOOLS: dict[str, tuple[type[Arguments], Callable[[Any, Any], Called]]] = {
    "retrieve": (RetrieveArguments, calls.retrieve),
    "search": (SearchArguments, calls.search),
    "fetch": (FetchArguments, calls.fetch),
    "rerank": (RerankArguments, calls.rerank),
    "compress": (CompressArguments, calls.compress),
}


def triptych_tools(library: str | Path | Triptych = "default", names: Sequence[str] | None = None) -> list[BaseTool]:
    """LangChain tools over one library, all sharing one session.

    Args:
        library: a library's name or folder, or an open `Triptych`.
        names: which of `retrieve`, `search`, `fetch`, `rerank`, `compress`; None for all, in this order.
    """
    wanted = list(_TOOLS) if names is None else list(names)
    for name in wanted:
        if name not in _TOOLS:
            raise BadInput(f"Unknown tool `{name}`.", f"Use: {', '.join(_TOOLS)}.")
    session = _opened(library)
    return [_tool(name, session) for name in wanted]


def _tool(name: str, session: Triptych) -> BaseTool:
    arguments, call = _TOOLS[name]
    return TriptychTool(
        name=name, description=description(arguments), args_schema=arguments, library=session, call=call
    )


class TriptychRetriever(BaseRetriever):
    """The library as a retriever: whole passages, or with `max_tokens` compressed evidence.

    Attributes:
        library: a library's name or folder, or an open `Triptych`.
        k: how many documents; `invoke(query, k=…)` wins over it.
        max_tokens: a budget makes the documents reranked and compressed ones.
        where: only passages that match, as in `{"author": "Bob"}`; `invoke(query, where=…)` wins over it.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    library: Any = "default"
    k: int = 10
    max_tokens: int | None = None
    where: dict[str, Any] | None = None
    _session: Any = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        self._session = _opened(self.library)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        where: dict[str, Any] | None = None,
    ) -> list[Document]:
        wanted = self.k if k is None else k
        chosen = checked_where(self.where if where is None else where)
        if self.max_tokens is None:
            return [_document(hit) for hit in self._session.search(query, wanted, where=chosen).hits]
        found = self._session.retrieve(query, self.max_tokens, k=wanted, where=chosen)
        return [_document(passage) for passage in found.passages]

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        where: dict[str, Any] | None = None,
    ) -> list[Document]:
        manager = run_manager.get_sync()
        found = functools.partial(self._get_relevant_documents, query, run_manager=manager, k=k, where=where)
        return await run_in_executor(None, found)


class TriptychReranker(BaseDocumentCompressor):
    """Puts documents in a better order.

    Attributes:
        library: whose models rerank; its passages are not looked at.
        top_n: how many are given back, None for all.
        reranker: a system id, None for the profile's.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    library: Any = "default"
    top_n: int | None = None
    reranker: str | None = None
    _session: Any = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        self._session = _opened(self.library)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """`documents`, best first, each with `relevance_score` in its metadata."""
        if not documents:
            return []
        given = _given(documents)
        ranked = self._session.rerank(query, list(given), reranker=self.reranker)
        originals = {one.id: document for one, document in zip(given, documents, strict=True)}
        return [_with(originals[hit.id], relevance_score=hit.score) for hit in ranked.hits[: self.top_n]]


class TriptychCompressor(BaseDocumentCompressor):
    """Shrinks documents into a token budget; what is left of each is verbatim, with its spans.

    Attributes:
        library: whose models compress; its passages are not looked at.
        max_tokens: the budget over all documents together, None for the profile's.
        refiner: a system id, None for the profile's.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    library: Any = "default"
    max_tokens: int | None = None
    refiner: str | None = None
    _session: Any = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        self._session = _opened(self.library)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """What fits of `documents`, in their order; `metadata["spans"]` are offsets in the original `page_content`."""
        if not documents:
            return []
        given = _given(documents)
        kept = self._session.compress(query, list(given), self.max_tokens, refiner=self.refiner)
        originals = {one.id: document for one, document in zip(given, documents, strict=True)}
        return [_with(originals[p.id], text=p.text, spans=_spans(p)) for p in kept.passages]


def _given(documents: Sequence[Document]) -> list[Given]:
    """Documents under numbers of our own: theirs may be missing or stand twice."""
    return [_given_one(n, document) for n, document in enumerate(documents, 1)]


def _given_one(n: int, document: Document) -> Given:
    try:
        return Given(text=document.page_content, id=f"document-{n:06d}", uri=_uri(document))
    except ValidationError:
        raise BadInput(f"Document `{n}` is no text that UTF-8 can write.", "Decode its file again.") from None


def _uri(document: Document) -> str | None:
    found = document.metadata.get("uri") or document.metadata.get("source")
    return None if found is None else str(found)


def _document(row: HitOut | PassageOut) -> Document:
    known = row.model_dump(mode="json", exclude={"n", "id", "text", "pieces"})
    spans = _spans(row) if isinstance(row, PassageOut) else [(0, len(row.text))]
    return Document(id=row.id, page_content=row.text, metadata={**known, "spans": spans})


def _spans(passage: PassageOut) -> list[tuple[int, int] | None]:
    return [piece.span for piece in passage.pieces]


def _with(document: Document, text: str | None = None, **added: Any) -> Document:
    content = document.page_content if text is None else text
    return Document(id=document.id, page_content=content, metadata={**document.metadata, **added})
