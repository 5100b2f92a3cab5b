"""The library as a LangChain retriever."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, PrivateAttr

from ..operations import checked_where
from .documents import document
from .libraries import opened
from .runs import awaited, worked

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document


class TriptychRetriever(BaseRetriever):
    """Whole passages, or with `max_tokens` compressed evidence.

    A document's id is the passage's. Its metadata holds the place (`uri`, `page`, `box`, `start_s`, `end_s`), the
    citation in one line (`cite`), `source` (the uri again, under LangChain's name), `title`, `modality`, `score`, and
    where the text stands (`shown` and `spans`, see `documents`). Compressed ones also say `tokens`, `original` and
    `cut`, as `schemas.PassageOut` does. `note` says what fell short, such as models that are missing.

    Attributes:
        library: a library's name or folder, or an open `Triptych`.
        k: how many documents; `invoke(query, k=…)` wins over it.
        max_tokens: a budget makes the documents reranked and compressed ones.
        where: only passages that match, as in `{"author": "Bob"}`; `invoke(query, where=…)` wins over it.
        retriever: the id of the system that searches, of those that the library has; None for the library's own search.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    library: Any = "default"
    k: int = 10
    max_tokens: int | None = None
    where: dict[str, Any] | None = None
    retriever: str | None = None
    _session: Any = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        self._session = opened(self.library)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        where: dict[str, Any] | None = None,
    ) -> list[Document]:
        return worked(lambda: self._found(query, k, where), run_manager)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        where: dict[str, Any] | None = None,
    ) -> list[Document]:
        return await awaited(lambda: self._found(query, k, where), run_manager)

    def _found(self, query: str, k: int | None, where: dict[str, Any] | None) -> list[Document]:
        wanted = self.k if k is None else k
        chosen = checked_where(self.where if where is None else where)
        if self.max_tokens is None:
            searched = self._session.search(query, wanted, where=chosen, retriever=self.retriever)
            return [document(hit, searched.note) for hit in searched.hits]
        found = self._session.retrieve(query, self.max_tokens, k=wanted, where=chosen, retriever=self.retriever)
        return [document(passage, found.note, found.refiner_note) for passage in found.passages]
