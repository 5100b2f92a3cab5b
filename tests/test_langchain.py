"""LangChain: the same blocks as over MCP, artifacts for programs, errors an agent can read."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_openai_tool

from triptych import NotFound, Settings, Triptych, progress
from triptych.errors import BadInput, Cancelled, StoreError, TimedOut
from triptych.refiners.tokens import count
from triptych.retrievers.base import Where
from triptych.retrievers.filters import filter_of
from triptych.tools import langchain
from triptych.tools.langchain import TriptychCompressor, TriptychReranker, TriptychRetriever, triptych_tools
from triptych.tools.langchain.documents import shrunk
from triptych.tools.schemas import Evidence, PassageOut, PieceOut, RerankOut

sys.path.append(str(Path(__file__).parent))
from fake_library import PIXEL, FakeTriptych

SAMPLE = Path(__file__).resolve().parent.parent / "docs" / "sample" / "vessey-holm"
STORM = SAMPLE / "incidents" / "2022-11-storm-agda.md"
QUESTION = "How long was the power out after the storm?"
TOOLS = ["retrieve", "search", "fetch", "view", "rerank", "compress", "status"]


def tool(name: str, fake: FakeTriptych | None = None) -> Any:
    return triptych_tools(fake or FakeTriptych(), [name])[0]


def called(name: str, arguments: dict[str, Any], fake: FakeTriptych | None = None) -> Any:
    return tool(name, fake).invoke({"name": name, "args": arguments, "id": "1", "type": "tool_call"})


def test_the_tools_share_one_session_and_describe_their_arguments() -> None:
    tools = triptych_tools(FakeTriptych())
    assert [one.name for one in tools] == TOOLS
    for one in tools:
        made = convert_to_openai_tool(one)["function"]
        assert made == {"name": one.name, "description": one.description, "parameters": one.args_schema}
        model: Any = one.get_input_schema()
        assert model.model_fields.keys() == made["parameters"]["properties"].keys()


def test_an_unknown_tool_is_bad_input() -> None:
    with pytest.raises(BadInput, match="serach"):
        triptych_tools(FakeTriptych(), ["serach"])


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
        ("rerank", {"query": None, "ids": ["p1"]}, "`query` is missing"),
        ("compress", {"passages": [{"text": "\ud800"}]}, "passages[0].text"),
        ("retrieve", {"query": "x", "self": 1}, "Unknown argument `self`"),
        ("retrieve", {"query": "x", "where": {"year": {"gt": []}}}, "year"),
        ("retrieve", {"query": "x", "library": "../secret"}, "`../secret` is no library name"),
        ("status", {"library": 7}, "`library` is `7`"),
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


def test_numbers_and_lists_sent_as_text_are_understood_as_over_mcp() -> None:
    assert (
        called("search", {"query": "printer", "k": "2"}).content
        == called("search", {"query": "printer", "k": 2}).content
    )
    assert called("rerank", {"query": "printer", "ids": '["p1", "p3"]'}).status == "success"


def test_a_text_alone_is_the_first_argument() -> None:
    assert tool("search").invoke("printer") == tool("search").invoke({"query": "printer"})
    assert tool("fetch").invoke("p1") == tool("fetch").invoke({"id": "p1"})


def test_view_gives_a_text_block_and_an_image_block() -> None:
    message = called("view", {"id": "p1", "max_edge": 128})
    words, picture = message.content
    assert words["type"] == "text" and json.loads(words["text"])["where"] == "handbook/travel/rates.pdf p.2"
    assert picture == {"type": "image", "base64": base64.b64encode(PIXEL).decode(), "mime_type": "image/png"}
    assert [block["type"] for block in message.content_blocks] == ["text", "image"]
    assert (message.artifact["width"], message.artifact["mime"]) == (1, "image/png")
    assert "image" not in message.artifact
    assert called("view", {"id": "p1"}).content == called("view", {"id": "p1"}).content


def test_status_says_what_is_there() -> None:
    told = json.loads(called("status", {}).content)
    assert (told["files"], told["healthy"], told["jobs"]) == (3, True, [])


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


# --- asynchronous calls: the loop goes on, cancellation stops the work, steps are events -----------------------------

Call = Callable[[FakeTriptych, Any], Coroutine[Any, Any, Any]]
WAYS: dict[str, Call] = {
    "tool": lambda fake, config: tool("retrieve", fake).ainvoke({"query": "printer"}, config),
    "retriever": lambda fake, config: TriptychRetriever(library=fake).ainvoke("printer", config),
    "evidence": lambda fake, config: TriptychRetriever(library=fake, max_tokens=500).ainvoke("printer", config),
    "reranker": lambda fake, config: TriptychReranker(library=fake).ainvoke(PAIR, config),
    "compressor": lambda fake, config: TriptychCompressor(library=fake, max_tokens=500).ainvoke(PAIR, config),
    "reranked": lambda fake, config: TriptychReranker(library=fake).acompress_documents(DOCUMENTS, "x", **config),
    "compressed": lambda fake, config: TriptychCompressor(library=fake).acompress_documents(DOCUMENTS, "x", **config),
}
PAIR: Any = {"documents": DOCUMENTS, "query": "printers"}
EVENTS = [{"done": done, "total": 4, "what": "passages"} for done in range(4)]


@dataclass
class Watched(FakeTriptych):
    """Says how its work ended."""

    ended: threading.Event = field(default_factory=threading.Event)
    ends: list[str] = field(default_factory=list)

    def _work(self, what: str, unit: str) -> None:
        try:
            super()._work(what, unit)
            self.ends.append("done")
        except BaseException as error:
            self.ends.append(type(error).__name__)
            raise
        finally:
            self.ended.set()


@pytest.mark.parametrize("way", WAYS)
def test_the_event_loop_goes_on_while_models_work(way: str) -> None:
    async def ticking() -> int:
        work = asyncio.ensure_future(WAYS[way](FakeTriptych(steps=20, delay_s=0.01), {}))
        ticks = 0
        while not work.done():
            await asyncio.sleep(0.005)
            ticks += 1
        await work
        return ticks

    assert asyncio.run(ticking()) >= 10


@pytest.mark.parametrize("way", WAYS)
def test_cancelling_an_awaited_call_stops_its_work(way: str) -> None:
    fake = Watched(steps=10_000, delay_s=0.005)

    async def cancelled() -> float:
        call = asyncio.ensure_future(WAYS[way](fake, {}))
        while not fake.events:
            await asyncio.sleep(0.005)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        start = time.monotonic()
        while not fake.ended.is_set():
            await asyncio.sleep(0.005)
        return time.monotonic() - start

    assert asyncio.run(cancelled()) < 2
    assert fake.ends == ["Cancelled"]


def test_a_timeout_of_asyncios_stops_the_work_too() -> None:
    fake = Watched(steps=10_000, delay_s=0.005)

    async def impatient() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(tool("retrieve", fake).ainvoke({"query": "printer"}), 0.05)

    asyncio.run(impatient())  # ends only when the thread has
    assert fake.ends == ["Cancelled"]


class Heard(BaseCallbackHandler):
    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.starts: list[Any] = []
        self.runs: set[Any] = set()

    def on_custom_event(self, name: str, data: Any, *, run_id: Any, **_: Any) -> None:
        self.events.append((name, data))
        self.runs.add(run_id)

    def on_tool_start(self, *_: Any, run_id: Any, **__: Any) -> None:
        self.starts.append(run_id)

    on_retriever_start = on_chain_start = on_tool_start


class HeardLater(AsyncCallbackHandler):
    """Takes its time with each event, on the loop that runs the call."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.loops: set[Any] = set()

    async def on_custom_event(self, name: str, data: Any, **_: Any) -> None:
        await asyncio.sleep(0.01)
        self.loops.add(asyncio.get_running_loop())
        self.events.append(data)


SYNC: dict[str, Callable[[FakeTriptych, Any], Any]] = {
    "tool": lambda fake, config: tool("retrieve", fake).invoke({"query": "printer"}, config),
    "retriever": lambda fake, config: TriptychRetriever(library=fake).invoke("printer", config),
    "reranker": lambda fake, config: TriptychReranker(library=fake).invoke(PAIR, config),
    "compressor": lambda fake, config: TriptychCompressor(library=fake).invoke(PAIR, config),
    "compressed": lambda fake, config: TriptychCompressor(library=fake).compress_documents(DOCUMENTS, "x", **config),
}


@pytest.mark.parametrize("way", SYNC)
def test_steps_are_custom_events_of_the_run(way: str) -> None:
    heard = Heard()
    SYNC[way](FakeTriptych(steps=4), {"callbacks": [heard]})
    assert heard.events == [("triptych_progress", step) for step in EVENTS]
    assert [*heard.runs] == heard.starts


@pytest.mark.parametrize("way", WAYS)
def test_steps_of_asynchronous_work_are_events_on_its_loop(way: str) -> None:
    heard, later = Heard(), HeardLater()

    async def listening() -> Any:
        await WAYS[way](FakeTriptych(steps=4, delay_s=0.02), {"callbacks": [heard, later]})
        return asyncio.get_running_loop()

    loop = asyncio.run(listening())
    assert later.events and later.events == [data for _, data in heard.events]
    assert [step for step in EVENTS if step in later.events] == later.events
    assert later.loops == {loop}


def test_astream_events_shows_steps() -> None:
    async def listening() -> list[Any]:
        stream = tool("retrieve", FakeTriptych(steps=2, delay_s=0.02)).astream_events({"query": "x"}, version="v2")
        return [event["name"] async for event in stream if event["event"] == "on_custom_event"]

    assert "triptych_progress" in asyncio.run(listening())


def test_an_event_handler_that_insists_fails_the_call() -> None:
    class Insists(Heard):
        raise_error = True

        def on_custom_event(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        tool("retrieve", FakeTriptych(steps=4)).invoke({"query": "x"}, {"callbacks": [Insists()]})
    with pytest.raises(RuntimeError, match="no"):
        asyncio.run(WAYS["tool"](FakeTriptych(steps=4, delay_s=0.01), {"callbacks": [Insists()]}))


def test_a_callers_own_progress_and_cancellation_hold_inside() -> None:
    steps: list[int] = []
    with progress.reporting(lambda done, total, what: steps.append(done)):
        tool("retrieve", FakeTriptych(steps=3)).invoke({"query": "x"}, {"callbacks": [Heard()]})
        asyncio.run(WAYS["retriever"](FakeTriptych(steps=2), {}))
    assert steps == [0, 1, 2, 0, 1]
    stop = threading.Event()
    stop.set()
    with progress.reporting(cancelled=stop), pytest.raises(Cancelled):
        tool("retrieve", FakeTriptych(steps=3)).invoke({"query": "x"})
    with progress.reporting(timeout_s=0):
        assert called("retrieve", {"query": "x"}, FakeTriptych(steps=3)).content.startswith("The work passed")
        with pytest.raises(TimedOut):
            TriptychRetriever(library=FakeTriptych(steps=3)).invoke("x")


# --- Runnables --------------------------------------------------------------------------------------------------------


def test_the_panels_stand_in_a_chain() -> None:
    fake = FakeTriptych()
    find = {"documents": TriptychRetriever(library=fake), "query": RunnablePassthrough()}
    order = RunnablePassthrough.assign(documents=TriptychReranker(library=fake, top_n=2))
    chain = find | order | TriptychCompressor(library=fake, max_tokens=400)
    documents = chain.invoke("printer")
    assert [document.id for document in documents] == ["p3", "p1"]
    assert asyncio.run(chain.ainvoke("printer")) == documents
    assert chain.batch(["printer", "printer"]) == [documents, documents]
    assert documents[0].metadata["relevance_score"] == 1.0


@pytest.mark.parametrize("panel", [TriptychReranker, TriptychCompressor])
def test_a_panel_says_what_it_takes(panel: Any) -> None:
    made = panel(library=FakeTriptych())
    schema = made.get_input_jsonschema()["$defs"]["Ranked"]
    assert [*schema["properties"]] == schema["required"] == ["documents", "query"]
    assert made.get_name() == panel.__name__
    for wrong in ({"documents": DOCUMENTS}, {"query": "x"}, DOCUMENTS, None):
        with pytest.raises(BadInput, match="The input has no"):
            made.invoke(wrong)
    with pytest.raises(BadInput, match="Document `2` is a `str`"):
        made.invoke({"documents": [DOCUMENTS[0], "text"], "query": "x"})


def test_what_fell_short_stands_in_the_metadata() -> None:
    fake = FakeTriptych(note="Weights missing.")
    for budget in (None, 500):
        found = TriptychRetriever(library=fake, max_tokens=budget).invoke("printer")
        assert {document.metadata["note"] for document in found} == {"Weights missing."}
    rerank = fake.rerank

    def failing(*given: Any, **more: Any) -> RerankOut:
        return rerank(*given, **more).model_copy(update={"reason": "the model failed"})

    fake.rerank = failing  # type: ignore[method-assign]
    ranked = TriptychReranker(library=fake).invoke(PAIR)
    assert {document.metadata["note"] for document in ranked} == {"the model failed"}


# --- strange documents ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("panel", [TriptychReranker, TriptychCompressor])
def test_strange_documents_are_taken_or_named(panel: Any) -> None:
    made = panel(library=FakeTriptych())
    assert made.compress_documents([], "x") == []
    assert len(made.compress_documents([Document(page_content="Same.", id="a")] * 3, "x")) == 3
    assert len(made.compress_documents([Document(page_content="One.", metadata={"source": Path("a.txt")})], "x")) == 1
    for broken in (Document(page_content="a\ud800"), Document(page_content="a", metadata={"source": "\udcff"})):
        with pytest.raises(BadInput, match="Document `2` is no text that UTF-8 can write"):
            made.compress_documents([DOCUMENTS[0], broken], "x")


def test_a_thousand_documents_keep_their_ids_and_metadata() -> None:
    many = [Document(page_content=f"Passage {n}.", id=f"d{n % 7}", metadata={"n": n}) for n in range(1000)]
    ranked = TriptychReranker(library=FakeTriptych()).compress_documents(many, "999")
    assert ranked[0].metadata["n"] == 999
    assert sorted(document.metadata["n"] for document in ranked) == list(range(1000))
    assert all(document.id == f"d{document.metadata['n'] % 7}" for document in ranked)


def test_a_query_that_is_none_is_bad_input() -> None:
    nothing: Any = None
    with pytest.raises(BadInput, match="The query is `None`"):
        TriptychReranker(library=FakeTriptych()).compress_documents(DOCUMENTS, nothing)
    with pytest.raises(BadInput, match="The query is `None`"):
        TriptychRetriever(library=FakeTriptych()).invoke(nothing)
    with pytest.raises(BadInput, match="The query is `None`"):
        TriptychRetriever(library=FakeTriptych(), max_tokens=500).invoke(nothing)


# --- where words stand, through any number of panels ------------------------------------------------------------------


def passage(*pieces: PieceOut) -> PassageOut:
    text = "".join(piece.text for piece in pieces)
    placed: dict[str, Any] = dict.fromkeys(("page", "box", "start_s", "end_s"))
    return PassageOut(
        **placed, n=1, id="x", title="", uri="", modality="text", text=text, pieces=list(pieces), score=1, tokens=3
    )


def kept_of(text: str, spans: list[tuple[int, int]]) -> PassageOut:
    """Spans of a text with joiners between them."""
    pieces = [PieceOut(text=text[a:b], span=(a, b)) for a, b in spans]
    joined = [part for piece in pieces for part in (piece, PieceOut(text=" … ", span=None, why="joiner"))]
    return passage(*joined[:-1])


def leads_home(document: Document, source: str) -> bool:
    shown, spans = document.metadata["shown"], document.metadata["spans"]
    ends = [end for _, end in shown]
    return [start for start, _ in shown] == [0, *ends[:-1]][: len(ends)] and all(
        span is None or source[slice(*span)] == document.page_content[slice(*at)]
        for at, span in zip(shown, spans, strict=True)
    )


def some_spans(size: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    cuts = st.lists(st.integers(0, size), min_size=2, max_size=8, unique=True).map(sorted)
    return cuts.map(lambda ends: list(zip(ends[::2], ends[1::2], strict=False)))


@given(st.data())
def test_places_lead_home_through_three_compressions(data: st.DataObject) -> None:
    source = data.draw(st.text(min_size=2, max_size=60))
    document = Document(page_content=source, metadata={"kept": 1})
    for _ in range(3):
        if len(document.page_content) < 2:
            break
        text = document.page_content
        document = shrunk(document, kept_of(text, data.draw(some_spans(len(text)))))
        assert leads_home(document, source)
        assert document.metadata["shown"][-1][1] == len(document.page_content)
    assert document.metadata["kept"] == 1


STRANGE: list[dict[str, Any]] = [
    {"spans": [(5, 9)]},
    {"shown": [(0, 3)], "spans": [(5, 8)]},
    {"shown": [(0, 4), (5, 9)], "spans": [(0, 4), (5, 9)]},
    {"shown": [(0, 9)], "spans": [(0, 8)]},
    {"shown": "text", "spans": "text"},
    {"shown": None, "spans": 7},
    {"shown": [], "spans": []},
]


@pytest.mark.parametrize("metadata", STRANGE)
def test_places_that_do_not_fit_the_text_are_not_believed(metadata: dict[str, Any]) -> None:
    document = shrunk(Document(page_content="Nine char", metadata=metadata), kept_of("Nine char", [(0, 4)]))
    assert document.metadata["spans"] == [(0, 4)]


# --- one library of real files ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two libraries without weights: words are searched, sentences are kept."""
    folder = tmp_path_factory.mktemp("home")
    with Triptych("storm", Settings(home=folder)) as session:
        session.index([STORM, SAMPLE / "reports" / "water-quality-2024.pdf"])
        with Triptych("kitchen", session.settings, stages=session.stages) as other:
            other.index([SAMPLE / "kitchen"])
    return folder


@pytest.fixture
def library(home: Path) -> Any:
    with Triptych("storm", Settings(home=home)) as session:
        yield session


def test_the_usage_in_the_docstring_runs(library: Triptych) -> None:
    code = textwrap.dedent(
        "\n".join(line for line in (langchain.__doc__ or "").splitlines() if line.startswith("    "))
    )
    names: dict[str, Any] = {"library": library}
    exec(compile(code, "docstring", "exec"), names)
    assert any("61 hours" in text and cite.endswith("2022-11-storm-agda.md") for text, cite in names["cited"])
    assert [one.name for one in names["tools"]] == TOOLS


def test_documents_carry_citations_and_places_that_lead_home(library: Triptych) -> None:
    found = TriptychRetriever(library=library, k=20).invoke("water samples nitrate storm")
    again = TriptychRetriever(library=library, k=20).invoke("water samples nitrate storm")
    assert [(one.id, one.metadata) for one in found] == [(one.id, one.metadata) for one in again]
    for one in found:
        whole = library.fetch(str(one.id))
        assert one.page_content == whole.text
        assert one.metadata["source"] == one.metadata["uri"] == whole.uri
        page = one.metadata["page"]
        assert one.metadata["cite"] == (f"{whole.uri} p.{page}" if page else whole.uri)
        assert (one.metadata["box"] is None) == (page is None)
        json.dumps(one.metadata)
    assert {one.metadata["page"] is None for one in found} == {True, False}


@pytest.mark.parametrize("budget", [250, 700])
def test_evidence_compressed_twice_still_leads_home(library: Triptych, budget: int) -> None:
    evidence = TriptychRetriever(library=library, k=20, max_tokens=3000).invoke(QUESTION)
    compressor = TriptychCompressor(library=library, max_tokens=budget, refiner="extractive")
    twice = compressor.compress_documents(evidence, QUESTION)
    for one in (*evidence, *twice):
        assert one.page_content
        assert leads_home(one, library.fetch(str(one.id)).text)
    assert sum(one.metadata["tokens"] for one in twice) <= budget
    assert sum(len(one.page_content) for one in twice) < sum(len(one.page_content) for one in evidence)


def test_a_call_can_name_another_library_that_shares_the_models(library: Triptych) -> None:
    search, status = triptych_tools(library, ["search", "status"])
    kitchen = search.invoke({"query": "bread", "library": "kitchen"})
    assert "kitchen" in json.loads(kitchen)["passages"][0]["where"]
    assert json.loads(status.invoke("kitchen"))["library"] == "kitchen"
    own = search.invoke({"query": "storm", "library": "storm"})
    assert own == search.invoke({"query": "storm"})
    others: dict[str, Triptych] = search.libraries._others  # type: ignore[attr-defined]
    assert [*others] == ["kitchen"] and others["kitchen"].stages is library.stages
    opened = others["kitchen"]
    assert opened._collection is not None
    del search, status
    gc.collect()
    assert opened._collection is None
    assert library._collection is not None


def test_a_missing_library_is_named_with_those_that_are_there(library: Triptych, home: Path) -> None:
    search = triptych_tools(library, ["search"])[0]
    for _ in range(2):
        told = search.invoke({"query": "bread", "library": "kitchne"})
        assert told.startswith("There is no library `kitchne`. Known: `kitchen`, `storm`.")
        assert str(home) not in told
    missing = Triptych("nothing", Settings(home=home))
    assert called("retrieve", {"query": "x"}, missing).content.startswith("There is no library `nothing`.")  # type: ignore[arg-type]
    for retriever in (TriptychRetriever(library=missing), TriptychRetriever(library=missing, max_tokens=300)):
        with pytest.raises(NotFound, match="There is no library `nothing`"):
            retriever.invoke("x")
    with pytest.raises(BadInput, match="no library name"):
        TriptychRetriever(library="what a name")


def test_a_closed_library_opens_again_and_one_that_is_gone_says_so(tmp_path: Path) -> None:
    session = Triptych("short", Settings(home=tmp_path))
    session.index(STORM)
    retriever = TriptychRetriever(library=session, k=1)
    before = retriever.invoke(QUESTION)
    session.close()
    assert retriever.invoke(QUESTION) == before
    session.close()
    shutil.rmtree(session.folder)
    with pytest.raises(NotFound, match="There is no library `short`"):
        retriever.invoke(QUESTION)
    assert called("search", {"query": "x"}, session).status == "error"  # type: ignore[arg-type]


def test_a_thousand_real_documents_are_shrunk_into_the_budget(library: Triptych) -> None:
    sentences = STORM.read_text("utf-8").split(". ")
    many = [Document(page_content=f"{sentences[n % len(sentences)]}.") for n in range(1000)]
    kept = TriptychCompressor(library=library, max_tokens=600, refiner="extractive").compress_documents(many, QUESTION)
    assert 0 < sum(count(one.page_content) for one in kept) <= 600
    with pytest.raises(BadInput, match="`1001` passages are given"):
        TriptychReranker(library=library, reranker="no_rerank").compress_documents([*many, many[0]], QUESTION)
