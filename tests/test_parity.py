"""One schema, two doors: a tool over MCP and the same tool in LangChain have equal names, words and JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.utils.function_calling import convert_to_openai_tool
from mcp import Client

from triptych import Settings, Triptych
from triptych.errors import StoreError, TriptychError
from triptych.server.app import build
from triptych.server.sessions import Sessions
from triptych.tools.langchain import triptych_tools

sys.path.append(str(Path(__file__).parent))
from fake_library import FakeTriptych

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLE = Path(__file__).resolve().parent.parent / "docs" / "sample" / "vessey-holm"
TEXTS = [{"text": "The tower leans. It is old."}, {"id": "b", "text": "Two boats.", "uri": "boats.md"}]
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("retrieve", {"query": "How long was the power out after the storm?"}),
    ("retrieve", {"query": "nitrate", "max_tokens": 400, "k": 3, "uri_prefix": "reports/"}),
    ("retrieve", {"query": "暴风雨 🌊", "where": {"uri": ["a.md"]}}),
    ("search", {"query": "storm", "k": 4}),
    ("search", {"query": "storm", "k": "4", "modality": "text", "library": "fixed"}),
    ("fetch", {"id": "PASSAGE"}),
    ("fetch", {"id": "PASSAGE", "span": [3, 40]}),
    ("fetch", {"id": "PASSAGE", "max_tokens": 120}),
    ("view", {"id": "PAGE", "max_edge": 200}),
    ("rerank", {"query": "tower", "passages": TEXTS}),
    ("rerank", {"query": "water", "ids": ["PAGE", "PASSAGE"]}),
    ("compress", {"query": "tower", "passages": TEXTS, "max_tokens": 120}),
    ("compress", {"ids": '["PASSAGE", "PAGE"]', "max_tokens": 200}),
    ("status", {}),
]
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("retrieve", {}),
    ("retrieve", {"query": "x", "max_tokens": 7}),
    ("retrieve", {"query": "x", "max_tokens": 10**9}),
    ("retrieve", {"query": "x", "library": "nowhere"}),
    ("retrieve", {"query": "x", "library": "../fixed"}),
    ("retrieve", {"query": "x", "where": {"year": {"about": 1}}}),
    ("search", {"query": "x", "kk": 1}),
    ("search", {"query": "x", "k": True}),
    ("fetch", {"id": "nope"}),
    ("fetch", {"id": "PASSAGE", "span": [40, 3]}),
    ("view", {"id": "PASSAGE", "max_edge": 5}),
    ("view", {"id": "MARKDOWN"}),
    ("rerank", {"query": "x"}),
    ("rerank", {"query": "x", "ids": ["PASSAGE", "PASSAGE"]}),
    ("compress", {"passages": [{"text": 1}]}),
    ("rerank", {"query": "x", "passages": TEXTS, "library": "nowhere"}),
    ("compress", {"passages": TEXTS, "library": "nowhere"}),
    ("status", {"verbose": True}),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triptych]:
    with Triptych("fixed", Settings(home=tmp_path_factory.mktemp("home"))) as session:
        session.index([SAMPLE / "incidents", SAMPLE / "reports" / "water-quality-2024.pdf"])
        session.retrieve("storm")  # from the first question on, answers say which weights are missing
        yield session


@pytest.fixture(scope="module")
def ids(library: Triptych) -> dict[str, str]:
    hits = library.search("storm water", 50).hits
    page = next(hit.id for hit in hits if hit.page is not None)
    words = next(hit.id for hit in hits if hit.page is None)
    return {"PASSAGE": words, "PAGE": page, "MARKDOWN": words}


def filled(arguments: dict[str, Any], ids: dict[str, str]) -> dict[str, Any]:
    text = json.dumps(arguments)
    for name, value in ids.items():
        text = text.replace(name, value)
    filled_in: dict[str, Any] = json.loads(text)
    return filled_in


def app_of(session: Any) -> Any:
    def opened(name: str) -> Any:
        return session if name == session.name else Triptych(name, session.settings)

    return build(Sessions(opened, session.name), session.settings)


def over_mcp(session: Any, name: str, arguments: dict[str, Any]) -> Any:
    async def conversation() -> Any:
        async with Client(app_of(session)) as client:
            return await client.call_tool(name, arguments)

    return asyncio.run(conversation())


def in_langchain(session: Any, name: str, arguments: dict[str, Any]) -> Any:
    call = {"name": name, "args": arguments, "id": "1", "type": "tool_call"}
    return triptych_tools(session, [name])[0].invoke(call)


def blocks_of(content: str | list[Any]) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def blocks_over_mcp(result: Any) -> list[Any]:
    kinds = {
        "text": lambda block: {"type": "text", "text": block.text},
        "image": lambda block: {"type": "image", "base64": block.data, "mime_type": block.mime_type},
    }
    return [kinds[block.type](block) for block in result.content]


def without_the_servers_own(blocks: list[Any]) -> list[Any]:
    """`status` over MCP also tells of the server: its jobs, and how long its calls took."""
    told = json.loads(blocks[0]["text"])
    return [{**told, "server": None, "jobs": None}, *blocks[1:]]


def exact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# --- what is offered --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [{}, {"max_tokens": 900, "max_tokens_cap": 700}], ids=["default", "small"])
def test_names_descriptions_and_schemas_are_equal_byte_for_byte(tmp_path: Path, limits: dict[str, int]) -> None:
    session = Triptych("fixed", Settings(home=tmp_path, **limits))  # type: ignore[arg-type]

    async def listed() -> Any:
        async with Client(app_of(session)) as client:
            return (await client.list_tools()).tools

    offered, tools = asyncio.run(listed()), triptych_tools(session)
    assert [one.name for one in offered] == [tool.name for tool in tools]
    for one, tool in zip(offered, tools, strict=True):
        made = convert_to_openai_tool(tool)["function"]
        assert made["description"] == tool.description == one.description
        assert exact(made["parameters"]) == exact(tool.args_schema) == exact(one.input_schema)
        assert tool.args == one.input_schema["properties"]


# --- what comes back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "arguments"), CALLS)
def test_the_same_call_gives_the_same_json(
    library: Triptych, ids: dict[str, str], name: str, arguments: dict[str, Any]
) -> None:
    asked = filled(arguments, ids)
    there, here = over_mcp(library, name, asked), in_langchain(library, name, asked)
    assert (there.is_error, here.status) == (False, "success")
    theirs, ours = blocks_over_mcp(there), blocks_of(here.content)
    if name == "status":
        theirs, ours = without_the_servers_own(theirs), without_the_servers_own(ours)
    assert exact(ours) == exact(theirs)
    if there.structured_content is not None and name != "status":
        assert ours[0]["text"] == json.dumps(there.structured_content, ensure_ascii=False, separators=(",", ":"))


@pytest.mark.parametrize(("name", "arguments"), [call for call in CALLS if call[0] in ("retrieve", "search", "rerank")])
def test_what_programs_read_beside_the_block_is_equal_but_for_time(
    library: Triptych, ids: dict[str, str], name: str, arguments: dict[str, Any]
) -> None:
    asked = filled(arguments, ids)
    trace = over_mcp(library, name, asked).meta["triptych"]
    artifact = in_langchain(library, name, asked).artifact
    rows = artifact.get("passages", artifact.get("hits"))
    assert rows is not None and len(rows) == len(trace["passages"])
    for row, told in zip(rows, trace["passages"], strict=True):
        spans = {"spans": [piece["span"] for piece in row["pieces"]]} if "pieces" in row else {}
        shown = {key: value for key, value in {**row, **spans}.items() if key not in ("text", "pieces", "title")}
        assert exact(shown) == exact(told)
    for key in ("library", "dropped", "note", "reranker", "calls", "complete"):
        assert artifact.get(key) == trace.get(key)
    assert artifact["ms"].keys() == trace["ms"].keys()


@pytest.mark.parametrize(("name", "arguments"), WRONG)
def test_the_same_mistake_gives_the_same_words(
    library: Triptych, ids: dict[str, str], name: str, arguments: dict[str, Any]
) -> None:
    asked = filled(arguments, ids)
    there, here = over_mcp(library, name, asked), in_langchain(library, name, asked)
    assert (there.is_error, here.status) == (True, "error")
    assert here.content == there.content[0].text
    assert str(library.folder) not in here.content


@settings(max_examples=25)
@given(
    query=st.text(max_size=40), budget=st.none() | st.integers(-1, 400), name=st.sampled_from(["retrieve", "search"])
)
def test_any_question_and_budget_is_answered_or_refused_in_the_same_words(
    query: str, budget: int | None, name: str
) -> None:
    asked = {"query": query, "max_tokens": budget}
    there, here = over_mcp(FakeTriptych(), name, asked), in_langchain(FakeTriptych(), name, asked)
    assert here.content == there.content[0].text
    assert (here.status == "error") == bool(there.is_error)


@pytest.mark.parametrize("crash", [StoreError("The store is damaged.", "Rebuild it."), TriptychError("No.")])
def test_errors_of_the_library_keep_their_words_in_both(crash: Exception) -> None:
    there = over_mcp(FakeTriptych(crash=crash), "retrieve", {"query": "x"})
    here = in_langchain(FakeTriptych(crash=crash), "retrieve", {"query": "x"})
    assert here.content == there.content[0].text == str(crash)
