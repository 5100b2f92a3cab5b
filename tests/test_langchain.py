"""LangChain: the same blocks as over MCP, artifacts for programs, errors an agent can read."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from langchain_core.utils.function_calling import convert_to_openai_tool
from mcp import Client

from triptych.errors import BadInput, StoreError
from triptych.refiners.tokens import count
from triptych.retrievers.base import Where
from triptych.retrievers.filters import filter_of
from triptych.server.app import build
from triptych.tools.langchain import TriptychCompressor, TriptychReranker, TriptychRetriever, triptych_tools
from triptych.tools.schemas import Evidence

sys.path.append(str(Path(__file__).parent))
from fake_library import FakeTriptych

CALLS: list[tuple[str, dict[str, Any]]] = [
    ("retrieve", {"query": "allowance in Berlin", "max_tokens": 120}),
    ("retrieve", {"query": "打印机 🖨️", "uri_prefix": "handbook/it/"}),
    ("search", {"query": "printer", "k": 2}),
    ("fetch", {"id": "p1", "span": [19, 25]}),
    ("rerank", {"query": "printer", "ids": ["p1", "p3"]}),
    ("compress", {"query": "one", "passages": [{"text": "One."}, {"id": "b", "text": "Two."}], "max_tokens": 90}),
]


def tool(name: str, fake: FakeTriptych | None = None) -> Any:
    return triptych_tools(fake or FakeTriptych(), [name])[0]


def called(name: str, arguments: dict[str, Any], fake: FakeTriptych | None = None) -> Any:
    return tool(name, fake).invoke({"name": name, "args": arguments, "id": "1", "type": "tool_call"})


def over_mcp(name: str, arguments: dict[str, Any]) -> Any:
    async def conversation() -> Any:
        fake = FakeTriptych()
        async with Client(build(lambda name=None: fake, fake.settings)) as client:
            return await client.call_tool(name, arguments)

    return asyncio.run(conversation())


def test_the_five_tools_share_one_session_and_describe_their_arguments() -> None:
    tools = triptych_tools(FakeTriptych())
    assert [one.name for one in tools] == ["retrieve", "search", "fetch", "rerank", "compress"]
    for one in tools:
        made = convert_to_openai_tool(one)["function"]
        assert made["name"] == one.name
        assert made["description"] == one.description
        assert "library" not in made["parameters"]["properties"]


def test_an_unknown_tool_is_bad_input() -> None:
    with pytest.raises(BadInput, match="serach"):
        triptych_tools(FakeTriptych(), ["serach"])


@pytest.mark.parametrize(("name", "arguments"), CALLS)
def test_content_is_the_text_block_of_the_mcp_tool(name: str, arguments: dict[str, Any]) -> None:
    message = called(name, arguments)
    assert message.status == "success"
    assert message.content == over_mcp(name, arguments).content[0].text


def test_the_artifact_is_the_whole_result() -> None:
    message = called("retrieve", {"query": "allowance", "max_tokens": 90})
    assert set(message.artifact) == set(Evidence.model_fields)
    assert message.artifact["passages"][0]["pieces"][0]["span"] == [0, 71]
    assert count(message.content) <= 90


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("retrieve", {"query": ""}, "1 to 4,096 characters"),
        ("retrieve", {}, "`query` is missing"),
        ("retrieve", {"query": "x" * 4097}, "`4097` characters"),
        ("retrieve", {"query": "x", "max_tokens": 99999}, "20,000"),
        ("search", {"query": "x", "k": 0}, "from 1 to 100"),
        ("search", {"query": "x", "kk": 1}, "kk"),
        ("fetch", {"id": "nope"}, "Unknown passage id `nope`"),
        ("rerank", {"query": "x"}, "Either `ids` or `passages`"),
    ],
)
def test_errors_come_back_as_words(name: str, arguments: dict[str, Any], words: str) -> None:
    message = called(name, arguments)
    assert message.status == "error"
    assert words in message.content
    assert "pydantic" not in message.content


def test_a_crash_is_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="boom"):
        called("retrieve", {"query": "x"}, FakeTriptych(crash=RuntimeError("boom")))
    message = called("retrieve", {"query": "x"}, FakeTriptych(crash=StoreError("Damaged.", "Rebuild.")))
    assert message.content == "Damaged. Rebuild."


def test_tools_work_asynchronously_and_in_a_batch() -> None:
    one = tool("search")
    alone = one.invoke({"query": "printer"})
    assert asyncio.run(one.ainvoke({"query": "printer"})) == alone
    assert one.batch([{"query": "printer"}] * 3) == [alone] * 3


# --- retriever --------------------------------------------------------------------------------------------------------


def test_the_retriever_gives_k_documents_with_their_sources() -> None:
    documents = TriptychRetriever(library=FakeTriptych(), k=2).invoke("printer")
    assert len(documents) == 2
    first = documents[0]
    assert first.id == "p3"
    assert {"score", "uri", "modality", "page", "spans", "title"} <= set(first.metadata)
    assert first.metadata["spans"] == [(0, len(first.page_content))]


def test_k_of_the_call_wins() -> None:
    retriever = TriptychRetriever(library=FakeTriptych())
    assert len(retriever.invoke("printer", k=1)) == 1
    assert len(asyncio.run(retriever.ainvoke("printer", k=2))) == 2


@pytest.mark.parametrize("budget", [None, 100])
def test_the_retriever_filters_and_the_filter_of_the_call_wins(budget: int | None) -> None:
    fake = FakeTriptych()
    retriever = TriptychRetriever(library=fake, max_tokens=budget, where={"author": "Ann"})
    retriever.invoke("printer")
    assert fake.asked_where == Where(filter=filter_of({"author": "Ann"}))
    asyncio.run(retriever.ainvoke("printer", where={"author": "Bob"}))
    assert fake.asked_where == Where(filter=filter_of({"author": "Bob"}))


def test_with_a_budget_the_retriever_gives_compressed_evidence() -> None:
    fake = FakeTriptych()
    documents = TriptychRetriever(library=fake, max_tokens=100).invoke("printer")
    assert fake.events == ["retrieve"]
    assert [document.id for document in documents] == ["p3"]


def test_the_retriever_stands_in_a_chain() -> None:
    chain = TriptychRetriever(library=FakeTriptych(), k=1) | RunnableLambda(lambda found: found[0].id)
    assert chain.invoke("printer") == "p3"


# --- document compressors ---------------------------------------------------------------------------------------------

DOCUMENTS = [
    Document(id="x", page_content="Trains are slow.", metadata={"source": "a.txt"}),
    Document(page_content="Printers jam.", metadata={"source": "b.txt", "kept": True}),
    Document(id="x", page_content="Printers and printers jam.", metadata={}),
]


def test_the_reranker_orders_documents_and_keeps_what_they_carry() -> None:
    ranked = TriptychReranker(library=FakeTriptych()).compress_documents(DOCUMENTS, "printers")
    assert [document.page_content[:8] for document in ranked] == ["Printers", "Printers", "Trains a"]
    assert ranked[0].metadata == {"source": "b.txt", "kept": True, "relevance_score": 1.0}
    assert ranked[2].id == "x"


def test_the_reranker_can_keep_the_top() -> None:
    reranker = TriptychReranker(library=FakeTriptych(), top_n=1)
    assert len(reranker.compress_documents(DOCUMENTS, "printers")) == 1
    assert reranker.compress_documents([], "printers") == []


def test_the_compressor_keeps_what_fits_with_its_spans() -> None:
    kept = TriptychCompressor(library=FakeTriptych(), max_tokens=100).compress_documents(DOCUMENTS, "printers")
    assert kept
    for document in kept:
        original = next(one for one in DOCUMENTS if one.page_content.startswith(document.page_content))
        assert "".join(original.page_content[a:b] for a, b in document.metadata["spans"]) == document.page_content
    assert TriptychCompressor(library=FakeTriptych()).compress_documents([], "x") == []


def test_inputs_are_left_as_they_were() -> None:
    before = [document.model_copy(deep=True) for document in DOCUMENTS]
    TriptychReranker(library=FakeTriptych()).compress_documents(DOCUMENTS, "printers")
    TriptychCompressor(library=FakeTriptych(), max_tokens=200).compress_documents(DOCUMENTS, "printers")
    assert before == DOCUMENTS


def test_it_works_without_the_mcp_package_and_loads_no_model_library() -> None:
    script = "import sys; sys.modules['mcp'] = None; import triptych.tools.langchain; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
