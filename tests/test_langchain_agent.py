"""An agent loop of LangChain's own over our tools; its model follows a script, and reads what the tools say."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field

from triptych import Settings, Triptych
from triptych.refiners.tokens import count
from triptych.tools.langchain import triptych_tools

sys.path.append(str(Path(__file__).parent))
from fake_library import LONG, FakeTriptych

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLE = Path(__file__).resolve().parent.parent / "docs" / "sample" / "vessey-holm"
QUESTION = "How long was the power out after storm Agda, and what did the water report show?"
Turn = Callable[[list[BaseMessage]], AIMessage]


class Scripted(BaseChatModel):
    """Takes one turn of its script after another; each turn sees the whole conversation."""

    script: list[Turn]
    offered: list[Any] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **_: Any) -> Any:
        self.offered[:] = [convert_to_openai_tool(tool)["function"] for tool in tools]
        return self

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self.script.pop(0)(messages))])


def calling(*calls: tuple[str, dict[str, Any]]) -> AIMessage:
    made = [{"name": name, "args": args, "id": f"call-{name}-{n}"} for n, (name, args) in enumerate(calls)]
    return AIMessage(content="", tool_calls=made)


def told(messages: list[BaseMessage], name: str) -> ToolMessage:
    return next(one for one in reversed(messages) if isinstance(one, ToolMessage) and one.name == name)


def asks(messages: list[BaseMessage]) -> AIMessage:
    assert messages[-1].content == QUESTION
    return calling(
        ("retrieve", {"query": "How long was the power out after storm Agda?", "max_tokens": 600}),
        ("search", {"query": "water quality", "k": 20}),
    )


def mistakes_an_id_and_looks_at_a_page(messages: list[BaseMessage]) -> AIMessage:
    pages = [row for row in json.loads(told(messages, "search").text)["passages"] if " p." in row["where"]]
    return calling(("fetch", {"ident": "x"}), ("fetch", {"id": "nope"}), ("view", {"id": pages[0]["id"]}))


def reads_the_errors_and_fetches(messages: list[BaseMessage]) -> AIMessage:
    unknown, missing = [one for one in messages if isinstance(one, ToolMessage) and one.name == "fetch"]
    assert (unknown.status, missing.status) == ("error", "error")
    assert unknown.text == "Unknown argument `ident`. Use: id, span, max_tokens."
    assert "Take ids from" in missing.text
    return calling(("fetch", {"id": json.loads(told(messages, "retrieve").text)["passages"][0]["id"]}))


def answers_with_citations(messages: list[BaseMessage]) -> AIMessage:
    cited = json.loads(told(messages, "retrieve").text)["passages"]
    source = next(row for row in cited if "61 hours" in row["text"])
    page = json.loads(told(messages, "view").content_blocks[0]["text"])  # type: ignore[typeddict-item]
    return AIMessage(content=f"61 hours [{source['where']}]; see [{page['where']}].")


SCRIPT: list[Turn] = [
    *(asks, mistakes_an_id_and_looks_at_a_page, reads_the_errors_and_fetches, answers_with_citations),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triptych]:
    with Triptych("reports", Settings(home=tmp_path_factory.mktemp("home"))) as session:
        session.index([SAMPLE / "incidents", SAMPLE / "reports" / "water-quality-2024.pdf"])
        yield session


def conversation(agent: Any, how: str) -> list[BaseMessage]:
    asked = {"messages": [("user", QUESTION)]}
    ended = asyncio.run(agent.ainvoke(asked)) if how == "async" else agent.invoke(asked)
    messages: list[BaseMessage] = ended["messages"]
    return messages


@pytest.mark.parametrize("how", ["sync", "async"])
def test_an_agent_asks_looks_recovers_from_errors_and_cites(library: Triptych, how: str) -> None:
    model = Scripted(script=list(SCRIPT))
    tools = triptych_tools(library)
    messages = conversation(create_agent(model, tools), how)
    assert model.script == []
    cited = r"61 hours \[incidents/2022-11-storm-agda\.md\]; see \[reports/water-quality-2024\.pdf p\.\d\]\."
    assert re.fullmatch(cited, messages[-1].text)
    assert [one["name"] for one in model.offered] == [tool.name for tool in tools]
    assert [one["parameters"] for one in model.offered] == [tool.args_schema for tool in tools]

    retrieved, viewed, fetched = (told(messages, name) for name in ("retrieve", "view", "fetch"))
    assert count(retrieved.text) <= 600
    kept = retrieved.artifact["passages"][0]
    for piece in kept["pieces"]:
        if piece["span"]:
            assert json.loads(fetched.text)["text"][slice(*piece["span"])] == piece["text"]
    assert [block["type"] for block in viewed.content_blocks] == ["text", "image"]
    picture: Any = viewed.content_blocks[1]
    assert picture["mime_type"] in ("image/png", "image/jpeg") and len(picture["base64"]) > 1000


def test_a_long_document_stays_under_the_cap_and_says_how_to_go_on() -> None:
    fake = FakeTriptych(texts={"long": ("long.txt", None, " ".join([LONG] * 60))})
    limit = fake.settings.max_tokens_cap
    assert count(fake.texts["long"][2]) > 25_000

    def goes_on(messages: list[BaseMessage]) -> AIMessage:
        page = json.loads(told(messages, "fetch").text)
        start = page["span"][1]
        assert f"[{start}, " in page["note"]
        return calling(("fetch", {"id": "long", "span": [start, start + 500]}))

    script: list[Turn] = [
        lambda _: calling(("fetch", {"id": "long", "max_tokens": limit})),
        goes_on,
        lambda messages: AIMessage(content=json.loads(told(messages, "fetch").text)["text"][:4]),
    ]
    messages = conversation(create_agent(Scripted(script=script), triptych_tools(fake, ["fetch"])), "sync")  # type: ignore[arg-type]
    first = next(one for one in messages if isinstance(one, ToolMessage))
    assert 0.9 * limit < count(first.text) <= limit
    assert messages[-1].text.strip()


def test_steps_of_a_tool_reach_whoever_streams_the_agent() -> None:
    script: list[Turn] = [lambda _: calling(("retrieve", {"query": "printer"})), lambda _: AIMessage(content="Done.")]
    agent: Any = create_agent(Scripted(script=script), triptych_tools(FakeTriptych(steps=3, delay_s=0.02)))  # type: ignore[arg-type]

    async def heard() -> list[Any]:
        stream = agent.astream_events({"messages": [("user", "x")]}, version="v2")
        return [event["data"] async for event in stream if event["name"] == "triptych_progress"]

    steps = asyncio.run(heard())
    assert steps and all(step["what"] == "passages" and step["total"] == 3 for step in steps)
