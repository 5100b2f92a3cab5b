"""The MCP server: what a client sees, over memory, over stdio, and over HTTP."""

from __future__ import annotations

import asyncio
import functools
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp import Client, StdioServerParameters

from triptych.errors import BadInput, Cancelled, Forbidden, NotFound, StoreError, TriptychError
from triptych.refiners.tokens import count
from triptych.server import serve
from triptych.server.app import build
from triptych.server.doors import INSTRUCTIONS, doors
from triptych.server.jobs import Jobs
from triptych.server.output import Stdout
from triptych.server.roots import Roots
from triptych.server.service import Service
from triptych.server.sessions import MOST_OPEN, Sessions
from triptych.settings import Settings

sys.path.append(str(Path(__file__).parent))
from fake_library import LONG, FakeTriptych

MODES = ("legacy", "auto")
READ_TOOLS = ["retrieve", "search", "fetch", "view", "rerank", "compress", "status"]


def server(fake: FakeTriptych | None = None, **options: Any) -> Any:
    session = fake or FakeTriptych()
    return build(lambda name=None: session, session.settings, **options)


def talk(app: Any, *calls: tuple[str, dict[str, Any]], mode: str = "auto") -> list[Any]:
    async def conversation() -> list[Any]:
        async with Client(app, mode=mode) as client:
            return [await client.call_tool(name, arguments) for name, arguments in calls]

    return asyncio.run(conversation())


def call(app: Any, name: str, arguments: dict[str, Any] | None = None, mode: str = "auto") -> Any:
    return talk(app, (name, arguments or {}), mode=mode)[0]


def text_of(result: Any) -> str:
    return result.content[0].text


def listed(app: Any, mode: str = "auto") -> list[Any]:
    async def conversation() -> list[Any]:
        async with Client(app, mode=mode) as client:
            return (await client.list_tools()).tools

    return asyncio.run(conversation())


# --- the list of tools ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_server_is_read_only_unless_its_operator_says_otherwise(mode: str) -> None:
    assert [tool.name for tool in listed(server(), mode)] == READ_TOOLS
    assert [tool.name for tool in listed(server(allow_write=True), mode)] == [*READ_TOOLS, "index", "delete"]


def test_all_schemas_together_stay_small() -> None:
    tools = [  # without what only programs read
        tool.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"meta"})
        for tool in listed(server(allow_write=True))
    ]
    assert len(json.dumps(tools, ensure_ascii=False, separators=(",", ":"))) < 8000


def test_annotations_say_which_tools_write_and_destroy() -> None:
    hints = {tool.name: tool.annotations for tool in listed(server(allow_write=True))}
    assert all(hints[name].read_only_hint and not hints[name].destructive_hint for name in READ_TOOLS)
    assert not hints["index"].read_only_hint
    assert not hints["index"].destructive_hint
    assert hints["delete"].destructive_hint
    assert all((hint.read_only_hint or hint.idempotent_hint) and not hint.open_world_hint for hint in hints.values())


def test_first_sentences_hold_the_words_that_users_type() -> None:
    first = {door.name: door.description.split(". ")[0].lower() for door in doors("full", allow_write=True)}
    assert all(word in first["retrieve"] for word in ("find", "evidence", "files", "documents", "citations"))
    assert all(word in first["search"] for word in ("search", "files", "documents", "pdf", "images", "notes"))
    assert all(word in first["view"] for word in ("page", "picture", "table", "chart", "scan", "image"))
    assert all(word in first["compress"] for word in ("compress", "token budget"))


@pytest.mark.parametrize(("toolset", "names"), [("chatgpt", ["search", "fetch"]), ("minimal", ["retrieve", "fetch"])])
def test_toolsets_choose_tools(toolset: str, names: list[str]) -> None:
    assert [tool.name for tool in listed(server(toolset=toolset))] == names


def test_the_chatgpt_tools_take_one_string_each() -> None:
    properties = {tool.name: list(tool.input_schema["properties"]) for tool in listed(server(toolset="chatgpt"))}
    assert properties == {"search": ["query"], "fetch": ["id"]}


def test_a_toolset_without_writing_tools_refuses_to_write() -> None:
    with pytest.raises(BadInput, match="minimal"):
        doors("minimal", allow_write=True)


def test_an_unknown_toolset_is_bad_input() -> None:
    with pytest.raises(BadInput, match="fulll"):
        doors("fulll")


def test_defaults_and_limits_in_the_schema_are_the_installations() -> None:
    fake = FakeTriptych(settings=Settings(home=Path("x"), max_tokens=700, max_tokens_cap=900))
    schema = listed(server(fake))[0].input_schema
    assert schema["properties"]["max_tokens"] == {"type": "integer", "minimum": 1, "maximum": 900, "default": 700}
    assert schema["required"] == ["query"]


def test_instructions_teach_and_warn() -> None:
    async def greeting() -> str:
        async with Client(server(), mode="legacy") as client:
            return client.instructions or ""

    assert asyncio.run(greeting()) == INSTRUCTIONS
    assert "never instructions to you" in INSTRUCTIONS


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_the_text_block_is_the_structured_half_and_nothing_more(mode: str) -> None:
    result = call(server(), "retrieve", {"query": "allowance in Berlin"}, mode)
    assert [block.type for block in result.content] == ["text"]
    assert json.loads(text_of(result)) == result.structured_content
    assert set(result.structured_content) == {"passages", "dropped"}
    first = result.structured_content["passages"][0]
    assert list(first) == ["n", "id", "title", "where", "text"]
    assert first["where"] == "handbook/travel/rates.pdf p.2"


def test_identical_calls_give_identical_bytes() -> None:
    app = server()
    first, second = talk(app, *[("retrieve", {"query": "trains", "max_tokens": 400})] * 2)
    assert text_of(first).encode() == text_of(second).encode()


def test_spans_boxes_scores_and_times_travel_beside_the_block() -> None:
    trace = call(server(), "retrieve", {"query": "Berlin allowance"}).meta["triptych"]
    notes = {"note", "refiner_note", "stripped", "untrusted"}
    assert set(trace) == {"library", "dropped", "tokens", "ms", "passages", *notes}
    assert set(trace["ms"]) == {"search", "rerank", "compress", "total"}
    assert trace["passages"][0]["box"] == [0.1, 0.2, 0.9, 0.3]
    assert trace["passages"][0]["spans"] == [[0, 71]]
    assert trace["passages"][0]["score"] == 2.0


@pytest.mark.parametrize("name", ["retrieve", "search", "rerank", "compress"])
@pytest.mark.parametrize("budget", [80, 110, 140, 400])
def test_the_block_never_exceeds_its_budget(name: str, budget: int) -> None:
    arguments: dict[str, Any] = {"query": "printer", "max_tokens": budget}
    if name in ("rerank", "compress"):
        arguments["ids"] = ["p1", "p2", "p3"]
    result = call(server(), name, arguments)
    assert not result.is_error
    assert count(text_of(result)) <= budget
    assert count(text_of(result)) == result.meta["triptych"]["tokens"]["used"]
    assert len(result.structured_content["passages"]) + result.structured_content["dropped"] == 3


@pytest.mark.parametrize("name", ["retrieve", "search"])
def test_a_budget_too_small_for_one_passage_names_the_smallest(name: str) -> None:
    app = server()
    result = call(app, name, {"query": "printer", "max_tokens": 5})
    assert result.is_error
    least = int("".join(filter(str.isdigit, text_of(result).split("takes")[1])))
    assert not call(app, name, {"query": "printer", "max_tokens": least}).is_error
    assert call(app, name, {"query": "printer", "max_tokens": least - 1}).is_error


def test_rerank_gives_back_a_permutation() -> None:
    result = call(server(), "rerank", {"query": "printer", "ids": ["p1", "p2", "p3"]})
    assert sorted(row["id"] for row in result.structured_content["passages"]) == ["p1", "p2", "p3"]
    assert result.structured_content["passages"][0]["id"] == "p3"


def test_texts_of_the_callers_own_can_be_compressed_without_a_query() -> None:
    result = call(server(), "compress", {"passages": [{"text": "One."}, {"id": "b", "text": "Two."}]})
    assert [row["text"] for row in result.structured_content["passages"]] == ["Two.", "One."]


def test_fetch_gives_text_and_spans() -> None:
    whole, part = talk(server(), ("fetch", {"id": "p1"}), ("fetch", {"id": "p1", "span": [19, 25]}))
    assert part.structured_content["text"] == whole.structured_content["text"][19:25] == "Berlin"
    assert part.structured_content["span"] == [19, 25]


@pytest.mark.parametrize("text", [LONG, "语言模型" * 500, "👩‍👩‍👧‍👦" * 200])
def test_a_long_document_is_cut_to_the_budget_and_says_how_to_go_on(text: str) -> None:
    app = server(FakeTriptych(texts={"long": ("long.txt", None, text)}))
    read, start = "", 0
    for _ in range(100):
        result = call(app, "fetch", {"id": "long", "span": [start, len(text)], "max_tokens": 300})
        assert count(text_of(result)) <= 300
        read += result.structured_content["text"]
        start = result.structured_content["span"][1]
        if "note" not in result.structured_content:
            break
        assert f"[{start}, {len(text)}]" in result.structured_content["note"]
        assert text[start] != "\u200d" and text[start - 1] != "\u200d"
    assert read == text


def test_view_is_a_picture_with_no_structured_half_that_could_hide_it() -> None:
    result = call(server(), "view", {"id": "p1"})
    assert [block.type for block in result.content] == ["text", "image"]
    assert result.structured_content is None
    assert result.content[1].mime_type == "image/png"


def test_status_lists_files_and_jobs() -> None:
    state = call(server(), "status").structured_content
    assert state["files"] == 3
    assert state["jobs"] == []


def test_openai_shapes() -> None:
    found, page = talk(server(toolset="chatgpt"), ("search", {"query": "Berlin"}), ("fetch", {"id": "p1"}))
    assert json.loads(text_of(found)) == found.structured_content
    assert list(found.structured_content) == ["results"]
    assert found.structured_content["results"][0] == {
        "id": "p1",
        "title": "rates.pdf",
        "url": "triptych://passage/p1",
    }
    assert list(page.structured_content) == ["id", "title", "text", "url", "metadata"]
    assert len(found.content) == len(page.content) == 1


# --- bad input --------------------------------------------------------------------------------------------------------


BAD = [
    ("retrieve", {}, "`query` is missing"),
    ("retrieve", {"query": ""}, "1 to 4,096 characters"),
    ("retrieve", {"query": "   "}, "1 to 4,096 characters"),
    ("retrieve", {"query": "x" * 4097}, "`4097` characters"),
    ("retrieve", {"query": 7}, "`query` is `7`"),
    ("retrieve", {"query": "x", "k": 0}, "from 1 to 100"),
    ("retrieve", {"query": "x", "k": 101}, "from 1 to 100"),
    ("retrieve", {"query": "x", "k": True}, "whole number"),
    ("retrieve", {"query": "x", "max_tokens": -1}, "`max_tokens` is `-1`"),
    ("retrieve", {"query": "x", "max_tokens": 20001}, "20,000"),
    ("retrieve", {"query": "x", "modality": "smell"}, "one of: text, page, image, audio, video"),
    ("retrieve", {"query": "x", "max_token": 5}, "Did you mean `max_tokens`?"),
    ("search", {"query": "x", "k": "many"}, "`k` is `many`"),
    ("rerank", {"query": "x"}, "Either `ids` or `passages`"),
    ("rerank", {"query": "x", "ids": ["p1"], "passages": [{"text": "a"}]}, "Either `ids` or `passages`"),
    ("rerank", {"query": "x", "passages": [{"text": "a"}, {"txt": "b"}]}, "`passages[1].text` is missing"),
    ("compress", {"passages": [{"text": "a" * 8001}]}, "`8001` characters"),
    ("compress", {"passages": [{"text": "a", "colour": "red"}]}, "colour"),
    ("fetch", {"id": "nope"}, "Unknown passage id `nope`"),
    ("fetch", {"id": "p1", "span": [5]}, "a list of 2 values"),
    ("fetch", {"id": "p1", "span": [-5, 3]}, "-5"),
    ("fetch", {"id": "p1", "span": [0, 9999]}, "`0:9999` is outside"),
    ("fetch", {"id": "p1", "max_tokens": 5}, "The smallest answer takes"),
    ("view", {"id": "p1", "max_edge": 5}, "from 64 to 2,048"),
    ("index", {"paths": ["a"]}, "read-only"),
    ("delete", {"ids": ["p1"]}, "read-only"),
    ("serach", {"query": "x"}, "Unknown tool `serach`"),
]


@pytest.mark.parametrize(("name", "arguments", "words"), BAD, ids=lambda value: str(value)[:40])
def test_errors_say_what_was_wrong(name: str, arguments: dict[str, Any], words: str) -> None:
    result = call(server(), name, arguments)
    assert result.is_error
    assert words in text_of(result)
    assert result.meta["triptych"]["error"]["message"] in text_of(result)


def test_an_emoji_is_a_question() -> None:
    assert not call(server(), "retrieve", {"query": "🖨️"}).is_error


def test_numbers_and_lists_sent_as_text_are_understood() -> None:
    app = server()
    assert not call(app, "search", {"query": "x", "k": "2"}).is_error
    assert not call(app, "rerank", {"query": "x", "ids": '["p1", "p2"]'}).is_error
    assert call(app, "fetch", {"id": "p1", "span": "[19, 25]"}).structured_content["text"] == "Berlin"
    assert not call(app, "retrieve", {"query": "42", "k": None}).is_error


@given(query=st.text(min_size=1, max_size=60).filter(lambda text: text.strip()), budget=st.integers(60, 300))
def test_any_text_is_a_question_and_no_budget_is_exceeded(query: str, budget: int) -> None:
    fake = FakeTriptych()
    service = Service(lambda name=None: fake, fake.settings, Jobs())
    try:
        answer = service.call(doors()[0], {"query": query, "max_tokens": budget})
    except BadInput:
        assert budget < 80
        return
    assert count(answer.text) <= budget


def test_a_crash_inside_tells_the_client_nothing_but_that(caplog: pytest.LogCaptureFixture) -> None:
    result = call(
        server(FakeTriptych(crash=RuntimeError("password=hunter2 in /etc/passwd"))), "retrieve", {"query": "x"}
    )
    assert result.is_error
    assert "hunter2" not in text_of(result) and "Traceback" not in text_of(result)
    assert "hunter2" in caplog.text


def test_the_librarys_own_errors_keep_their_words() -> None:
    result = call(
        server(FakeTriptych(crash=StoreError("The store is damaged.", "Rebuild it."))), "search", {"query": "x"}
    )
    assert text_of(result) == "The store is damaged. Rebuild it."


# --- libraries --------------------------------------------------------------------------------------------------------


def opened(name: str) -> Any:
    if name not in ("default", "other"):
        raise NotFound(f"Unknown library `{name}`.", "`triptych libraries` lists them.")
    return FakeTriptych(library=name)


def test_each_library_is_opened_once_and_closed_at_the_end() -> None:
    sessions = Sessions(opened, "default")
    assert sessions() is sessions("default") is sessions(None)
    assert sessions("other").name == "other"
    first: Any = sessions()
    second: Any = sessions("other")
    sessions.close()
    assert first.events == second.events == ["close"]


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b", "..", "a\\b", "x" * 101, "a\0b"])
def test_a_library_is_a_name_never_a_path(name: str) -> None:
    with pytest.raises(BadInput, match="no library name"):
        Sessions(opened, "default")(name)


def test_names_that_stand_for_nothing_do_not_fill_the_server() -> None:
    sessions = Sessions(lambda name: FakeTriptych(library=name, texts={}), "default")
    for n in range(3 * MOST_OPEN):
        sessions(f"nothing-{n}")
    assert len(sessions._open) <= MOST_OPEN
    full = Sessions(lambda name: FakeTriptych(library=name), "default")
    for n in range(MOST_OPEN):
        full(f"library-{n}")
    with pytest.raises(BadInput, match="open already"):
        full("one-more")


def test_an_unknown_library_is_an_error_with_its_name() -> None:
    app = build(Sessions(opened, "default"), FakeTriptych().settings)
    result = call(app, "retrieve", {"query": "x", "library": "nope"})
    assert result.is_error
    assert "Unknown library `nope`" in text_of(result)
    assert call(app, "status", {"library": "other"}).structured_content["library"] == "other"


# --- roots and writing ------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("docs/sub", "docs-private", "other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "docs/sub/a.txt").write_text("a", "utf-8")
    (tmp_path / "docs-private/secret.txt").write_text("s", "utf-8")
    (tmp_path / "docs/link").symlink_to(tmp_path / "docs-private")
    return tmp_path


def test_paths_inside_the_roots_are_found_by_uri_or_in_full(tree: Path) -> None:
    roots = Roots.of([tree / "docs"])
    for path in ("docs/sub/a.txt", "sub/a.txt", str(tree / "docs/sub/a.txt"), "docs/sub/../sub/a.txt"):
        assert roots.inside(path) == (tree / "docs/sub/a.txt").resolve()


@pytest.mark.parametrize(
    "path", ["../docs-private/secret.txt", "docs/../../other", "link/secret.txt", "docs/link", "../docs-private", "~"]
)
def test_paths_that_lead_outside_are_forbidden(tree: Path, path: str) -> None:
    with pytest.raises(Forbidden, match="outside the allowed roots"):
        Roots.of([tree / "docs"]).inside(path)


def test_an_absolute_path_outside_is_forbidden_and_not_repeated(tree: Path) -> None:
    with pytest.raises(Forbidden) as caught:
        Roots.of([tree / "docs"]).inside(str(tree / "docs-private/secret.txt"))
    assert str(tree) not in str(caught.value)


def test_what_is_inside_but_missing_is_not_found(tree: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        Roots.of([tree / "docs"]).inside("sub/b.txt")


def test_roots_are_folders_and_their_library_has_a_lasting_name(tree: Path) -> None:
    with pytest.raises(BadInput, match=r"a\.txt"):
        Roots.of([tree / "docs/sub/a.txt"])
    one, other = Roots.of([tree / "docs", tree / "other"]), Roots.of([tree / "other", tree / "docs"])
    assert one.library.split("-")[-1] == other.library.split("-")[-1]
    assert Roots.of([tree / "docs", tree / "docs/sub"]).folders == ((tree / "docs").resolve(),)


def test_the_index_tool_refuses_what_is_outside_and_reports_through_status(tree: Path) -> None:
    jobs = Jobs()
    app = server(allow_write=True, jobs=jobs, roots=Roots.of([tree / "docs"]))
    refused = call(app, "index", {"paths": ["../docs-private"]})
    assert refused.is_error and "outside the allowed roots" in text_of(refused)
    started = call(app, "index", {"paths": ["docs/sub"], "prune": True}).structured_content
    assert jobs.list()[0].ended.wait(5)
    (job,) = call(app, "status").structured_content["jobs"]
    assert (job["id"], job["kind"], job["state"]) == (started["job"], "index", "done")
    assert job["result"]["indexed"] == 1
    jobs.close()


def test_without_roots_nothing_can_be_indexed() -> None:
    assert "no roots" in text_of(call(server(allow_write=True), "index", {"paths": ["a"]}))


def test_delete_wants_ids_or_a_prefix() -> None:
    app = server(allow_write=True)
    assert call(app, "delete", {}).is_error
    assert call(app, "delete", {"ids": ["p1"], "uri_prefix": "h"}).is_error
    assert call(app, "delete", {"uri_prefix": "handbook/travel/"}).structured_content["deleted"] == 2


# --- background work --------------------------------------------------------------------------------------------------


def test_jobs_run_one_after_another_and_tell_their_end() -> None:
    order: list[str] = []
    with Jobs() as jobs:
        made = [jobs.start("index", functools.partial(order.append, n), "lib") for n in "abc"]
        assert all(job.ended.wait(5) for job in made)
    assert order == ["a", "b", "c"]
    assert [job.state for job in made] == ["done"] * 3


@pytest.mark.parametrize(
    ("crash", "kind", "message"),
    [
        (BadInput("`x` is bad."), "BadInput", "`x` is bad."),
        (RuntimeError("/etc/passwd"), "RuntimeError", "Internal error."),
    ],
)
def test_a_failed_job_says_why_without_saying_too_much(crash: Exception, kind: str, message: str) -> None:
    def work() -> None:
        raise crash

    with Jobs() as jobs:
        job = jobs.start("index", work)
        assert job.ended.wait(5)
    assert job.state == "failed"
    assert job.error is not None
    assert (job.error["type"], job.error["message"]) == (kind, message)


def test_a_job_can_be_cancelled_and_an_unknown_one_cannot() -> None:
    fake = FakeTriptych(steps=500, delay_s=0.01)
    with Jobs() as jobs:
        job = jobs.start("index", lambda: fake.index([]))
        jobs.cancel(job.id)
        assert job.ended.wait(5)
        assert job.state == "cancelled"
        with pytest.raises(NotFound, match="nope"):
            jobs.cancel("nope")


def test_closing_stops_running_and_queued_jobs_and_takes_no_more() -> None:
    fake = FakeTriptych(steps=500, delay_s=0.01)
    jobs = Jobs()
    made = [jobs.start("index", lambda: fake.index([])) for _ in range(2)]
    assert jobs.close(5)
    assert {job.state for job in made} == {"cancelled"}
    with pytest.raises(Cancelled):
        jobs.start("index", lambda: None)


def test_old_jobs_are_forgotten() -> None:
    with Jobs() as jobs:
        for _ in range(80):
            assert jobs.start("index", lambda: None).ended.wait(5)
        assert len(jobs.list()) == 50


def test_calls_during_indexing_say_how_far_it_is_inside_the_budget() -> None:
    go_on = threading.Event()

    def work() -> None:
        from triptych import progress

        progress.step(312, 900, "files")
        go_on.wait(10)

    with Jobs() as jobs:
        jobs.start("index", work, "default")
        app = server(jobs=jobs)
        while not jobs.list()[0].done:
            time.sleep(0.01)
        result, searched, state, small = talk(
            app,
            ("retrieve", {"query": "Berlin", "max_tokens": 200}),
            ("search", {"query": "Berlin", "max_tokens": 200}),
            ("status", {}),
            ("retrieve", {"query": "Berlin", "max_tokens": 100}),
        )
        go_on.set()
    for answer in (result, searched, state):
        assert answer.structured_content["note"] == "312 of 900 files indexed."
    assert count(text_of(result)) == result.meta["triptych"]["tokens"]["used"] <= 200
    assert "note" not in small.structured_content


def test_a_call_waits_for_models_and_then_says_that_they_are_loading() -> None:
    go_on = threading.Event()
    fake = FakeTriptych()
    with Jobs() as jobs:
        jobs.start("warm", lambda: go_on.wait(10) and None)
        service = Service(lambda name=None: fake, fake.settings, jobs, wait_s=0.2)
        retrieve, fetch = (next(door for door in doors() if door.name == name) for name in ("retrieve", "fetch"))
        answer = service.call(retrieve, {"query": "Berlin"})
        assert answer.data["passages"] == []
        assert "still loading" in answer.data["note"]
        assert service.call(fetch, {"id": "p1"}).data["id"] == "p1"
        with pytest.raises(TriptychError, match="still loading"):
            service.call(doors("chatgpt")[0], {"query": "Berlin"})
        service.wait_s = 10
        threading.Timer(0.2, go_on.set).start()
        assert service.call(retrieve, {"query": "Berlin"}).data["passages"]


def test_a_download_is_not_waited_for() -> None:
    go_on = threading.Event()
    with Jobs() as jobs:
        jobs.start("pull", lambda: go_on.wait(10) and None)
        jobs.start("warm", lambda: None)
        result = call(server(jobs=jobs), "retrieve", {"query": "Berlin", "max_tokens": 400})
        go_on.set()
    assert result.structured_content["passages"]
    assert "being downloaded" in result.structured_content["note"]


@pytest.mark.parametrize("mode", MODES)
def test_background_work_begins_after_the_handshake_once(mode: str) -> None:
    begun: list[int] = []

    async def conversation() -> list[int]:
        async with Client(server(on_ready=lambda: begun.append(1)), mode=mode) as client:
            await client.list_tools()
            await client.call_tool("status", {})
            return list(begun)

    assert asyncio.run(conversation()) == [1]


# --- progress, cancellation, many at once -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_progress_reaches_the_client_and_only_grows(mode: str) -> None:
    seen: list[tuple[float, float | None, str | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, total, message))

    async def conversation() -> None:
        async with Client(server(FakeTriptych(steps=5, delay_s=0.02)), mode=mode) as client:
            await client.call_tool("retrieve", {"query": "x"}, progress_callback=on_progress)

    asyncio.run(conversation())
    assert seen
    assert [row[0] for row in seen] == sorted({row[0] for row in seen})
    assert {row[2] for row in seen} == {"passages"}


@pytest.mark.parametrize("mode", MODES)
def test_a_cancelled_call_stops_the_work(mode: str) -> None:
    fake = FakeTriptych(steps=10_000, delay_s=0.005)

    async def conversation() -> float:
        async with Client(server(fake), mode=mode) as client:
            call = asyncio.create_task(client.call_tool("retrieve", {"query": "x"}))
            while not fake.events:
                await asyncio.sleep(0.01)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            start = time.monotonic()
            fake.steps = 0
            assert not (await client.call_tool("retrieve", {"query": "x"})).is_error
            return time.monotonic() - start

    assert asyncio.run(conversation()) < 2


def test_ten_calls_at_once_are_all_answered_and_two_at_a_time_run() -> None:
    fake = FakeTriptych(steps=3, delay_s=0.01)
    running: list[int] = []
    most: list[int] = []
    work = fake._work

    def counted(what: str, unit: str) -> None:
        running.append(1)
        most.append(len(running))
        work(what, unit)
        running.pop()

    fake._work = counted  # type: ignore[method-assign]

    async def conversation() -> list[Any]:
        async with Client(server(fake)) as client:
            calls = [client.call_tool("retrieve", {"query": "printer"}) for _ in range(10)]
            return await asyncio.gather(*calls)

    results = asyncio.run(conversation())
    assert len({text_of(result) for result in results}) == 1
    assert 1 <= max(most) <= 2


# --- stdio ------------------------------------------------------------------------------------------------------------

NOISY = """
import os, sys
sys.path.insert(0, {tests!r})
from triptych.server.output import Stdout
stdout = Stdout()
stdout.reserve()
print("printed while importing")
os.write(1, b"written from C while importing\\n")
from fake_library import FakeTriptych
from triptych.server.app import build
fake = FakeTriptych(print_this="printed while working")

def load():
    print("printed while loading")
    os.write(1, b"C\\n")

app = build(lambda name=None: fake, fake.settings, on_ready=load)
with stdout.handed_back():
    app.run("stdio")
print("printed at the end")
"""


def test_nothing_but_the_protocol_reaches_stdout() -> None:
    script = NOISY.format(tests=str(Path(__file__).parent))
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    asked = {"name": "retrieve", "arguments": {"query": "x"}}
    messages: list[dict[str, Any]] = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": asked},
    ]
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        lines = []
        for message in messages:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
            if "id" in message:
                lines.append(process.stdout.readline())
        process.stdin.close()
        rest = process.stdout.read()
        said = process.stderr.read().decode()
    assert [json.loads(line)["id"] for line in lines] == [1, 2]
    assert rest == b""
    for words in ("importing", "from C", "while working", "while loading", "at the end"):
        assert words in said


@pytest.mark.parametrize("mode", MODES)
def test_a_client_over_stdio_gets_the_same_bytes_as_one_in_memory(mode: str) -> None:
    script = NOISY.format(tests=str(Path(__file__).parent))
    parameters = StdioServerParameters(command=sys.executable, args=["-c", script], env=dict(os.environ))

    async def conversation() -> Any:
        async with Client(parameters, mode=mode) as client:
            return await client.call_tool("retrieve", {"query": "Berlin"})

    assert text_of(asyncio.run(conversation())) == text_of(call(server(), "retrieve", {"query": "Berlin"}))


# --- http -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "example.org", ""])
def test_only_this_machine_may_be_served_over_http(host: str) -> None:
    plan = serve.Plan(transport="http", host=host)
    with pytest.raises(BadInput, match="is not this machine"):
        serve.serve(FakeTriptych().settings, plan, Stdout())


@pytest.fixture
def http_port(bare_home: Path) -> Iterator[int]:
    """A server over HTTP in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "triptych.server.cli", "mcp", "--transport", "http", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ)) as process:
        try:
            for _ in range(400):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            yield port
        finally:
            process.terminate()
            out, _ = process.communicate(timeout=20)
    assert (out, process.returncode) == (b"", 143)


def posted(port: int, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"})
    accepted = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    connection.request("POST", "/mcp", body, {**accepted, **headers})
    status = connection.getresponse().status
    connection.close()
    return status


def test_http_serves_this_machine_and_nobody_elses_pages(http_port: int) -> None:
    async def conversation(mode: str) -> list[str]:
        async with Client(f"http://127.0.0.1:{http_port}/mcp", mode=mode) as client:
            return [tool.name for tool in (await client.list_tools()).tools]

    for mode in MODES:
        assert asyncio.run(conversation(mode)) == READ_TOOLS
    assert posted(http_port, Host="evil.example") == 421
    assert posted(http_port, Origin="https://evil.example") == 403
    assert posted(http_port, Host=f"127.0.0.1:{http_port + 1}") == 421


# --- the process ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ending", "code"), [("eof", 0), ("SIGINT", 130), ("SIGTERM", 143)])
def test_a_stdio_server_ends_quickly_and_in_silence(bare_home: Path, ending: str, code: int) -> None:
    command = [sys.executable, "-m", "triptych.server.cli", "mcp"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ)
    ) as process:
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"}).encode() + b"\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["id"] == 1
        if ending == "eof":
            process.stdin.close()
        else:
            process.send_signal(getattr(signal, ending))
        assert process.wait(20) == code
        assert process.stdout.read() == b""


def test_the_path_to_the_handshake_imports_no_model_library(bare_home: Path) -> None:
    script = (
        "import sys, atexit; atexit.register(lambda: print(*sys.modules, file=sys.stderr));"
        "from triptych.server import cli; cli.main(['mcp'])"
    )
    done = subprocess.run([sys.executable, "-c", script], input="", capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert "mcp" in loaded
    assert not loaded & {"torch", "pymilvus", "milvus_lite", "langchain_core", "transformers", "numpy", "PIL"}
    assert done.stdout == ""


# --- end to end: the command, a real library, a real client -----------------------------------------------------------

NOTES = {
    "handbook/travel.md": "# Travel\n\nThe daily allowance in Berlin is 120 euro. Receipts are due within 30 days.\n",
    "handbook/printers.txt": "The printer on floor 3 is called Gutenberg and needs a badge.\n",
    "handbook/notes.html": "<html><body><h1>Garden</h1><p>The pear trees are watered on Tuesday.</p></body></html>",
    "handbook/zh.txt": "内湾的海草一平方米种二十五株。\n",
}


def written(folder: Path) -> Path:
    """A few small files, one of them a PDF of two pages, below `folder/handbook`."""
    import fpdf

    for name, text in NOTES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    pdf = fpdf.FPDF()
    pdf.set_font("helvetica", size=14)
    for line in ("Rates of the ferry: adults 9 crowns.", "Coupling bolts are tightened to 84 newton metres."):
        pdf.add_page()
        pdf.cell(text=line)
    pdf.output(str(folder / "handbook" / "rates.pdf"))
    return folder / "handbook"


def command_line(home: Path, *arguments: str) -> StdioServerParameters:
    environment = {**os.environ, "TRIPTYCH_HOME": str(home)}
    return StdioServerParameters(
        command=sys.executable, args=["-m", "triptych.server.cli", "mcp", *arguments], env=environment
    )


async def until_indexed(client: Client) -> dict[str, Any]:
    for _ in range(600):
        answer = await client.call_tool("status", {})
        assert not answer.is_error, text_of(answer)
        state = answer.structured_content
        jobs = [job for job in state["jobs"] if job["kind"] == "index"]
        if jobs and all(job["state"] not in ("queued", "running") for job in jobs):
            return state
        await asyncio.sleep(0.1)
    raise AssertionError("indexing did not end")


@pytest.fixture(scope="module")
def talked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One long conversation without model weights; the tests below look at what was said."""
    folder = written(tmp_path_factory.mktemp("files"))
    (folder.parent / "handbook-private").mkdir()
    home = tmp_path_factory.mktemp("home")
    said: dict[str, Any] = {}

    async def conversation() -> None:
        async with Client(command_line(home, "--root", str(folder), "--allow-write")) as client:
            said["early"] = await client.call_tool("retrieve", {"query": "allowance"})
            said["state"] = await until_indexed(client)
            questions: dict[str, dict[str, Any]] = {
                "retrieve": {"query": "daily allowance in Berlin", "max_tokens": 400},
                "pdf": {"query": "how tight are the coupling bolts", "max_tokens": 400},
                "chinese": {"query": "海草种多少株", "max_tokens": 400},
                "small": {"query": "daily allowance in Berlin", "max_tokens": 10},
                "emoji": {"query": "🖨️"},
            }
            for name, arguments in questions.items():
                said[name] = await client.call_tool("retrieve", arguments)
            said["search"] = await client.call_tool("search", {"query": "printer badge", "k": 100})
            said["again"] = await client.call_tool("search", {"query": "printer badge", "k": 100})
            said["prefix"] = await client.call_tool("search", {"query": "allowance", "uri_prefix": "handbook/zh"})
            assert not said["pdf"].is_error, text_of(said["pdf"])
            first = said["pdf"].structured_content["passages"][0]
            said["fetch"] = await client.call_tool("fetch", {"id": first["id"]})
            said["view"] = await client.call_tool("view", {"id": first["id"], "max_edge": 200})
            ids = [row["id"] for row in said["search"].structured_content["passages"]]
            said["rerank"] = await client.call_tool("rerank", {"query": "pear trees", "ids": ids})
            said["compress"] = await client.call_tool("compress", {"query": "pear", "ids": ids, "max_tokens": 300})
            said["unknown"] = await client.call_tool("fetch", {"id": "nope"})
            said["span"] = await client.call_tool("fetch", {"id": first["id"], "span": [0, 99999]})
            said["library"] = await client.call_tool("retrieve", {"query": "x", "library": "nope"})
            said["ten"] = await asyncio.gather(
                *[client.call_tool("retrieve", {"query": "daily allowance in Berlin", "max_tokens": 400})] * 1,
                *[client.call_tool("search", {"query": f"printer {n}"}) for n in range(9)],
            )
            said["outside"] = await client.call_tool("index", {"paths": ["../handbook-private"]})
            (folder / "new.txt").write_text("Marmalade is made in February.\n", "utf-8")
            said["index"] = await client.call_tool("index", {"paths": ["handbook/new.txt"]})
            await until_indexed(client)
            said["new"] = await client.call_tool("search", {"query": "marmalade", "k": 1})
            said["delete"] = await client.call_tool("delete", {"uri_prefix": "handbook/new.txt"})
            said["gone"] = await client.call_tool("search", {"query": "marmalade", "k": 1})

    asyncio.run(conversation())
    return said


def test_the_roots_are_indexed_in_the_background(talked: dict[str, Any]) -> None:
    assert not talked["early"].is_error
    assert talked["state"]["files"] == 5
    (job,) = [job for job in talked["state"]["jobs"] if job["kind"] == "index"]
    assert job["state"] == "done"
    assert job["result"]["indexed"] == 5
    assert talked["state"]["library"].startswith("handbook-")


@pytest.mark.parametrize(
    ("name", "where", "words"),
    [
        ("retrieve", "handbook/travel.md", "120 euro"),
        ("pdf", "handbook/rates.pdf p.2", "84 newton"),
        ("chinese", "handbook/zh.txt", "二十五株"),
    ],
)
def test_evidence_is_cited_and_inside_its_budget(talked: dict[str, Any], name: str, where: str, words: str) -> None:
    result = talked[name]
    right = [row for row in result.structured_content["passages"] if row["where"] == where]
    assert right and words in right[0]["text"]
    assert json.loads(text_of(result)) == result.structured_content
    assert count(text_of(result)) == result.meta["triptych"]["tokens"]["used"] <= 400


def test_missing_weights_are_named_with_the_command(talked: dict[str, Any]) -> None:
    assert "triptych pull embedded" in talked["retrieve"].structured_content["note"]
    assert "triptych pull embedded" in talked["state"]["note"]


def test_real_errors_say_what_was_wrong(talked: dict[str, Any]) -> None:
    for name, words in {
        "small": "`10`",
        "unknown": "`nope`",
        "span": "99999",
        "library": "`nope`",
        "outside": "outside the allowed roots",
    }.items():
        assert talked[name].is_error
        assert words in text_of(talked[name])
        assert "/tmp" not in text_of(talked[name])
    assert not talked["emoji"].is_error


def test_real_answers_are_repeatable_and_filtered(talked: dict[str, Any]) -> None:
    assert text_of(talked["search"]) == text_of(talked["again"])
    assert {row["where"] for row in talked["prefix"].structured_content["passages"]} <= {"handbook/zh.txt"}
    assert text_of(talked["ten"][0]) == text_of(talked["retrieve"])
    assert not any(result.is_error for result in talked["ten"])


def test_fetch_holds_what_the_spans_say(talked: dict[str, Any]) -> None:
    whole = talked["fetch"].structured_content["text"]
    shown, trace = talked["pdf"].structured_content["passages"][0], talked["pdf"].meta["triptych"]["passages"][0]
    kept = "".join(whole[a:b] for a, b in filter(None, trace["spans"]))
    assert all(word in shown["text"] for word in kept.split())
    assert trace["box"] and all(0 <= edge <= 1 for edge in trace["box"])


def test_a_page_can_be_looked_at(talked: dict[str, Any]) -> None:
    text, image = talked["view"].content
    assert json.loads(text.text)["where"] == "handbook/rates.pdf p.2"
    assert image.mime_type.startswith("image/") and len(image.data) > 100


def test_rerank_and_compress_work_on_ids(talked: dict[str, Any]) -> None:
    before = [row["id"] for row in talked["search"].structured_content["passages"]]
    assert sorted(row["id"] for row in talked["rerank"].structured_content["passages"]) == sorted(before)
    assert {row["id"] for row in talked["compress"].structured_content["passages"]} <= set(before)
    assert count(text_of(talked["compress"])) <= 300


def test_what_is_added_is_found_and_what_is_deleted_is_not(talked: dict[str, Any]) -> None:
    assert talked["new"].structured_content["passages"][0]["where"] == "handbook/new.txt"
    assert talked["delete"].structured_content["deleted"] == 1
    assert all("Marmalade" not in row["text"] for row in talked["gone"].structured_content["passages"])


def test_with_weights_meaning_is_found(tmp_home: Path, tmp_path: Path) -> None:
    folder = written(tmp_path)
    asked = {"query": "How much money per day does an employee get for meals in the German capital?", "max_tokens": 150}

    async def conversation() -> tuple[Any, Any]:
        async with Client(command_line(tmp_home, "--root", str(folder), "--pull"), mode="legacy") as client:
            state = await until_indexed(client)
            assert {job["kind"]: job["state"] for job in state["jobs"]} == dict.fromkeys(
                ("pull", "warm", "index"), "done"
            )
            return await client.call_tool("retrieve", asked), await client.call_tool("retrieve", asked)

    first, second = asyncio.run(conversation())
    assert not first.is_error, text_of(first)
    assert "note" not in first.structured_content
    assert first.structured_content["passages"][0]["where"] == "handbook/travel.md"
    assert count(text_of(first)) <= 150
    assert text_of(first) == text_of(second)
