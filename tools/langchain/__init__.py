"""LangChain: the operations as tools, the library as a retriever, the last two panels as compressors and Runnables.

Tools answer with the same text block as the MCP server's and carry the whole result as artifact. In a program::

    from langchain_core.runnables import RunnablePassthrough

    from triptych.tools.langchain import TriptychCompressor, TriptychReranker, TriptychRetriever, triptych_tools

    find = {"documents": TriptychRetriever(library=library, k=20), "query": RunnablePassthrough()}
    order = RunnablePassthrough.assign(documents=TriptychReranker(library=library, top_n=5))
    shrink = TriptychCompressor(library=library, max_tokens=800)
    documents = (find | order | shrink).invoke("How long was the power out after the storm?")
    cited = [(document.page_content, document.metadata["cite"]) for document in documents]

    tools = triptych_tools(library)  # for `create_agent(model, tools)`, or any model's `bind_tools(tools)`

Asynchronous calls work on a thread, so that the event loop goes on; cancelling one stops its work at the next step of
`progress`. Steps of slow work are custom events named `triptych_progress`, with `done`, `total` and `what`.
"""

from __future__ import annotations

from .compressors import TriptychCompressor, TriptychReranker
from .retriever import TriptychRetriever
from .runs import PROGRESS_EVENT
from .toolkit import TriptychTool, triptych_tools

__all__ = [
    "PROGRESS_EVENT",
    "TriptychCompressor",
    "TriptychReranker",
    "TriptychRetriever",
    "TriptychTool",
    "triptych_tools",
]
