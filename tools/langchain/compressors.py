"""The last two panels as LangChain's document compressors, which are Runnables as well."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import RunnableSerializable
from pydantic import PrivateAttr
from typing_extensions import TypedDict

from ...errors import BadInput
from .documents import changed, given, noted, shrunk
from .libraries import opened
from .runs import awaited, worked

if TYPE_CHECKING:
    from langchain_core.callbacks import (
        AsyncCallbackManagerForChainRun,
        CallbackManagerForChainRun,
        Callbacks,
    )
    from langchain_core.runnables import RunnableConfig


class Ranked(TypedDict):
    """What goes in. Other keys are ignored, so that `RunnablePassthrough.assign` can carry more along."""

    documents: Sequence[Document]
    query: str


class _Panel(RunnableSerializable[dict[str, Any], list[Document]], BaseDocumentCompressor):
    """Documents and a query in, documents out: `invoke({"documents": …, "query": …})`, or `compress_documents`."""

    library: Any = "default"
    _session: Any = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        self._session = opened(self.library)

    @property
    def InputType(self) -> Any:
        """What `get_input_schema` tells of."""
        return Ranked

    def invoke(self, input: dict[str, Any], config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        def made(asked: dict[str, Any], run_manager: CallbackManagerForChainRun) -> list[Document]:
            return worked(lambda: self._made(*_pair(asked)), run_manager)

        return self._call_with_config(made, input, config, **kwargs)

    async def ainvoke(
        self, input: dict[str, Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document]:
        async def made(asked: dict[str, Any], run_manager: AsyncCallbackManagerForChainRun) -> list[Document]:
            return await awaited(lambda: self._made(*_pair(asked)), run_manager)

        return await self._acall_with_config(made, input, config, **kwargs)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """`invoke`, as LangChain's `ContextualCompressionRetriever` wants it."""
        return self.invoke({"documents": documents, "query": query}, {"callbacks": callbacks})

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """`ainvoke`, as LangChain's `ContextualCompressionRetriever` wants it."""
        return await self.ainvoke({"documents": documents, "query": query}, {"callbacks": callbacks})

    @abstractmethod
    def _made(self, documents: Sequence[Document], query: str) -> list[Document]: ...


class TriptychReranker(_Panel):
    """Puts documents in a better order, each with `relevance_score` in its metadata, and `note` where that failed.

    Attributes:
        library: whose models rerank; its passages are not looked at.
        top_n: how many are given back, None for all.
        reranker: a system id, None for the profile's.
    """

    top_n: int | None = None
    reranker: str | None = None

    def _made(self, documents: Sequence[Document], query: str) -> list[Document]:
        if not documents:
            return []
        candidates = given(documents)
        ranked = self._session.rerank(query, candidates, reranker=self.reranker)
        originals = {one.id: document for one, document in zip(candidates, documents, strict=True)}
        note = noted(ranked.reason)
        return [changed(originals[hit.id], relevance_score=hit.score, **note) for hit in ranked.hits[: self.top_n]]


class TriptychCompressor(_Panel):
    """Shrinks documents into a token budget, in their order; what is left of each is verbatim.

    The metadata says where what is left stands (`shown` and `spans`, see `documents`): in the text that came in, or for
    documents of `TriptychRetriever` in what `fetch(id)` returns.

    Attributes:
        library: whose models compress; its passages are not looked at.
        max_tokens: the budget over all documents together, None for the profile's.
        refiner: a system id, None for the profile's.
    """

    max_tokens: int | None = None
    refiner: str | None = None

    def _made(self, documents: Sequence[Document], query: str) -> list[Document]:
        if not documents:
            return []
        candidates = given(documents)
        kept = self._session.compress(query, candidates, self.max_tokens, refiner=self.refiner)
        originals = {one.id: document for one, document in zip(candidates, documents, strict=True)}
        return [shrunk(originals[passage.id], passage, kept.refiner_note) for passage in kept.passages]


def _pair(asked: Any) -> tuple[Sequence[Document], str]:
    for name in ("documents", "query"):
        if not isinstance(asked, Mapping) or name not in asked:
            raise BadInput(f"The input has no `{name}`.", 'Give {"documents": [...], "query": "..."}.')
    return asked["documents"], asked["query"]
