"""What one client may ask of a server: how often, how much at once, how long, how large; and what a log may say."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.shared.exceptions import MCPError
from opentelemetry import trace

from triptych import BadInput, StoreError
from triptych.server import limits, lines, logs, spans, threads
from triptych.server.limits import Crowd, Rate, TooMany, checked_arguments
from triptych.server.tallies import Tallies
from triptych.settings import Settings

sys.path.append(str(Path(__file__).parent))
from fake_library import PIXEL, FakeTriptych
from served import MODES, app_over, spoken

if TYPE_CHECKING:
    from triptych.tools.schemas import ViewOut


def fake(**settings: Any) -> FakeTriptych:
    return FakeTriptych(settings=Settings(home=Path("nowhere"), **settings))


def called(session: Any, name: str, arguments: dict[str, Any], mode: str = "auto") -> Any:
    async def conversation(client: Any) -> Any:
        return await client.call_tool(name, arguments)

    return spoken(app_over(session), conversation, mode)


# --- how often --------------------------------------------------------------------------------------------------------


def test_a_bucket_empties_and_fills_again() -> None:
    now = [0.0]
    rate = Rate(60, lambda: now[0])
    for _ in range(limits.LEAST_BURST):
        rate.take("a")
    with pytest.raises(TooMany, match="`60` calls a minute") as caught:
        rate.take("a")
    assert caught.value.hint == "Ask again in 1 s."
    rate.take("b")
    now[0] = 1.0
    rate.take("a")
    with pytest.raises(TooMany):
        rate.take("a")
    now[0] = 10_000.0
    for _ in range(limits.LEAST_BURST):
        rate.take("a")


@given(st.integers(1, 3000), st.lists(st.floats(0, 2), min_size=1, max_size=200))
def test_no_minute_has_more_than_its_calls_and_a_burst(per_minute: int, waits: list[float]) -> None:
    now, taken = [0.0], 0
    rate = Rate(per_minute, lambda: now[0])
    for wait in waits:
        now[0] += wait
        try:
            rate.take("a")
        except TooMany:
            continue
        taken += 1
    assert taken <= max(limits.LEAST_BURST, per_minute // limits.BURST_SHARE) + now[0] * per_minute / 60 + 1


def test_no_rate_is_no_limit_and_clients_are_not_remembered_for_ever() -> None:
    free = Rate(0)
    for _ in range(10_000):
        free.take("a")
    rate = Rate(60)
    for n in range(limits.KNOWN_CLIENTS + 50):
        rate.take(str(n))
    assert len(rate._left) == limits.KNOWN_CLIENTS


@pytest.mark.parametrize("mode", MODES)
def test_a_client_that_asks_too_often_is_told_when_to_ask_again(mode: str) -> None:
    async def conversation(client: Any) -> Any:
        answers = [await client.call_tool("status", {}) for _ in range(limits.LEAST_BURST + 2)]
        with pytest.raises(MCPError) as caught:
            await client.read_resource("triptych://passage/p1")
        return answers, caught.value.error

    answers, error = spoken(app_over(fake(call_rate=20)), conversation, mode)
    assert [answer.is_error for answer in answers].count(True) == 2
    assert "Ask again in" in answers[-1].content[0].text
    assert answers[-1].meta["triptych"]["error"]["type"] == "TooMany"
    assert error.code == -32029


# --- how much at once, how long ---------------------------------------------------------------------------------------


def test_a_crowd_is_never_larger_than_it_may_be() -> None:
    crowd, most = Crowd(4), []

    def enter() -> None:
        try:
            with crowd.entered():
                most.append(crowd.inside)
                time.sleep(0.02)
        except TooMany:
            most.append(0)

    entering = [threading.Thread(target=enter) for _ in range(30)]
    for thread in entering:
        thread.start()
    for thread in entering:
        thread.join()
    assert max(most) <= 4
    assert 0 in most
    assert crowd.inside == 0


def test_a_full_server_refuses_one_more_call() -> None:
    async def conversation(client: Any) -> Any:
        return await asyncio.gather(*[client.call_tool("retrieve", {"query": "printer"}) for _ in range(8)])

    session = fake(calls_at_once=3)
    session.steps, session.delay_s = 20, 0.02
    answers = spoken(app_over(session), conversation)
    refused = [answer for answer in answers if answer.is_error]
    assert 1 <= len(refused) <= 5
    assert all("under way already" in answer.content[0].text for answer in refused)


@pytest.mark.parametrize("mode", MODES)
def test_a_call_that_takes_too_long_is_given_up_at_its_next_step(mode: str) -> None:
    session = fake(call_timeout=1)
    session.steps, session.delay_s = 10_000, 0.01
    start = time.monotonic()
    answer = called(session, "retrieve", {"query": "printer"}, mode)
    assert answer.is_error
    assert "deadline" in answer.content[0].text
    assert time.monotonic() - start < 20


def test_a_call_that_never_comes_to_a_step_is_answered_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "GRACE_S", 0.1)
    go_on = threading.Event()

    class Stuck(FakeTriptych):
        def fetch(self, id: str, span: tuple[int, int] | None = None) -> Any:
            go_on.wait(60)
            return super().fetch(id, span)

    try:
        answer = called(Stuck(settings=fake(call_timeout=1).settings), "fetch", {"id": "p1"})
    finally:
        go_on.set()
    assert answer.is_error
    assert "longer than `1` s" in answer.content[0].text


# --- how large --------------------------------------------------------------------------------------------------------


def nested(depth: int) -> Any:
    return {"a": nested(depth - 1)} if depth else 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (nested(20), "nested more than"),
        ({"ids": ["a"] * 6000}, "more than `5000` values"),
        ({"query": "x" * 30_000}, "a text of `30000` characters"),
        ({"x" * 30_000: 1}, "a text of `30000` characters"),
        ({"k": 10**30}, "more than `18` digits"),
    ],
)
def test_arguments_that_no_tool_means_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        checked_arguments(arguments)
    answer = called(fake(), "retrieve", {"query": "x", **arguments})
    assert answer.is_error
    assert words in answer.content[0].text


def test_the_largest_arguments_that_are_meant_pass() -> None:
    checked_arguments({"query": "q" * 4096, "passages": [{"text": "t" * 8000, "id": str(n)} for n in range(200)]})


def test_a_result_is_never_longer_than_it_may_be() -> None:
    session = fake(result_chars=300)
    session.texts = {"p1": ("a.txt", None, " " * 5000 + "word")}
    answer = called(session, "fetch", {"id": "p1"})
    assert answer.is_error
    assert "at most 300" in answer.content[0].text


def test_a_picture_is_made_smaller_or_refused() -> None:
    class Album(FakeTriptych):
        def view(self, id: str, max_edge: int = 1024, max_tokens: int | None = None, *, sound: bool = False) -> ViewOut:
            seen = super().view(id, max_edge, max_tokens)
            return seen.model_copy(update={"image": PIXEL + bytes(max_edge * 100), "width": max_edge})

    fits = called(Album(settings=fake(image_bytes=50_000).settings), "view", {"id": "p1"})
    assert not fits.is_error
    assert len(fits.content[1].data) * 3 / 4 <= 50_002
    refused = called(Album(settings=fake(image_bytes=1000).settings), "view", {"id": "p1"})
    assert refused.is_error
    assert "at most 1,000" in refused.content[0].text


# --- lines of stdin ---------------------------------------------------------------------------------------------------


def read_lines(content: bytes, most: int, part: int = 7) -> list[bytes]:
    source = io.BytesIO(content)
    return list(io.BufferedReader(lines.Lines(lambda size: source.read(min(size, part)), most)))


@given(st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")), max_size=12), st.integers(1, 9))
def test_short_lines_pass_unchanged(content: list[bytes], part: int) -> None:
    whole = b"".join(line + b"\n" for line in content)
    assert b"".join(read_lines(whole, 40, part)) == whole


def test_a_long_line_is_replaced_and_the_next_one_is_read() -> None:
    long = b'{"jsonrpc":"2.0","id":7,"method":"x","params":"' + b"y" * 500 + b'"}'
    found = read_lines(b"a\n" + long + b"\nb\n" + long, 100)
    assert [found[0], found[2]] == [b"a\n", b"b\n"]
    assert json.loads(found[1]) == json.loads(found[3]) == {"jsonrpc": "2.0", "id": 7, "method": lines.TOO_LONG}


@pytest.mark.parametrize(
    ("head", "known"),
    [
        (b'{"id": "a-1"', "a-1"),
        (b'{"id":-3,', -3),
        (b'{"method":"x"', None),
        (b'{"id":null', None),
        (b"\xff\xfe", None),
    ],
)
def test_the_id_of_what_was_too_long(head: bytes, known: object) -> None:
    made = json.loads(lines.instead_of(head))
    assert made.get("id") == known
    assert made["method"] == lines.TOO_LONG


SERVED = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from triptych.server import serve
from triptych.server.output import Stdout
from triptych.settings import Settings
stdout = Stdout()
stdout.reserve()
serve.serve(Settings(home=Path({home!r})), serve.Plan(), stdout)
"""


def test_sixty_four_megabytes_in_one_line_are_answered_and_not_kept(bare_home: Path) -> None:
    script = SERVED.format(tests=str(Path(__file__).parent), home=str(bare_home))
    # Models that load meanwhile would be counted as if the line had been kept.
    script = script.replace("stdout = Stdout()", "serve.Startup.begin = lambda self: None\nstdout = Stdout()")
    assert "begin" in script
    ping = b'{"jsonrpc":"2.0","id":%d,"method":"ping"}\n'
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        process.stdin.write(ping % 1)
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["id"] == 1
        memory = []
        for _ in range(3):  # the buffers of the first one are not counted
            process.stdin.write(b'{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"')
            for _ in range(64):
                process.stdin.write(b"x" * 1_000_000)
            process.stdin.write(b'"}}\n')
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            memory.append(psutil.Process(process.pid).memory_info().rss)
        process.stdin.write(ping % 3)
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["id"] == 3
        process.stdin.close()
        assert process.wait(60) == 0
    assert answer["id"] == 2
    assert answer["error"]["code"] == -32600
    assert "longer than this server takes" in answer["error"]["message"]
    assert memory[-1] - memory[0] < 32_000_000


# --- what is told -----------------------------------------------------------------------------------------------------

SECRET = "the-garden-key-is-under-the-pot"


def record(message: str, *args: Any, error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("triptych", logging.ERROR, "x.py", 1, message, args, info)


def raised() -> BaseException:
    try:
        try:
            raise KeyError(SECRET)
        except KeyError as cause:
            raise ValueError(f"cannot parse {SECRET}") from cause
    except ValueError as error:
        return error


def test_a_log_tells_where_and_not_what_an_exception_says() -> None:
    for formatter in (logs.Lines(), logs.JSONLines()):
        line = formatter.format(record("job %s failed: %s", "7", raised(), error=raised()))
        assert SECRET not in line
        assert "ValueError at test_mcp_limits.py:" in line
        assert "KeyError at" in line
        assert "job 7 failed: ValueError" in line
    own = logs.Lines().format(record("failed: %s", StoreError("The store is damaged.", "Rebuild it.")))
    assert own == "ERROR triptych: failed: The store is damaged. Rebuild it."


def test_a_json_log_is_one_object_a_line() -> None:
    row = json.loads(logs.JSONLines().format(record("two\nlines %d", 3)))
    assert (row["level"], row["logger"], row["message"]) == ("ERROR", "triptych", "two lines 3")
    assert row["time"].endswith("+00:00")


NOISY = """
import sys
sys.path.insert(0, {tests!r})
from triptych.server import logs
from triptych.server.app import build
from fake_library import FakeTriptych
logs.begin(as_json={as_json})
class Leaky(FakeTriptych):
    def fetch(self, id, span=None):
        raise ValueError("{secret}")
fake = Leaky(texts={{"p1": ("a.md", None, "{secret}")}})
build(lambda name=None: fake, fake.settings).run("stdio")
"""


@pytest.mark.parametrize("as_json", [True, False])
def test_no_word_of_a_document_or_of_a_question_is_logged(as_json: bool, tmp_path: Path) -> None:
    script = NOISY.format(tests=str(Path(__file__).parent), as_json=as_json, secret=SECRET)
    called = {"name": "retrieve", "arguments": {"query": SECRET, "k": 5}}
    broken = {"name": "fetch", "arguments": {"id": "p1"}}
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    messages: list[dict[str, Any]] = [
        {"id": 1, "method": "initialize", "params": hello},
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/call", "params": called},
        {"id": 3, "method": "tools/call", "params": broken},
        {"id": 4, "method": "resources/read", "params": {"uri": "triptych://passage/p1"}},
    ]
    said = ""
    with (
        (tmp_path / "log").open("wb") as sink,
        subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sink,
            env=dict(os.environ),
        ) as process,
    ):
        assert process.stdin and process.stdout
        for message in messages:
            process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
            process.stdin.flush()
            said += process.stdout.readline().decode() if "id" in message else ""
        process.stdin.close()
        process.wait(60)
    log = (tmp_path / "log").read_text("utf-8")
    assert SECRET in said  # the client does get the passage
    assert "ValueError" in log
    assert SECRET not in log
    if as_json:
        assert all(json.loads(line)["level"] for line in log.splitlines())


class Recorder(trace.Tracer):
    """Keeps the spans that are begun."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    def start_span(self, name: str, *args: Any, **more: Any) -> Any:
        span = Kept(name, more.get("start_time"))
        self.spans.append(span)
        return span

    def start_as_current_span(self, name: str, *args: Any, **more: Any) -> Any:
        return trace.use_span(self.start_span(name), end_on_exit=True, record_exception=False)


class Kept(trace.NonRecordingSpan):
    def __init__(self, name: str, start: int | None) -> None:
        super().__init__(trace.INVALID_SPAN_CONTEXT)
        self.name, self.start = name, start
        self.ended: int | None = None
        self.attributes: dict[str, Any] = {}

    def is_recording(self) -> bool:
        return True

    def set_attribute(self, key: str, value: Any) -> None:
        self.attributes[key] = value

    def set_attributes(self, attributes: Any) -> None:
        self.attributes |= attributes

    def end(self, end_time: int | None = None) -> None:
        self.ended = end_time


def test_spans_tell_stages_and_counts_and_no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(spans, "tracer", lambda: recorder)
    called(fake(), "retrieve", {"query": "printer badge"})
    called(fake(), "fetch", {"id": "nope"})
    names = [span.name for span in recorder.spans]
    assert names[0] == "triptych.retrieve"
    assert {"triptych.stage.search", "triptych.stage.rerank", "triptych.stage.compress"} <= set(names)
    first = recorder.spans[0].attributes
    assert first["triptych.passages"] == 3
    assert first["triptych.tokens.used"] > 0
    assert recorder.spans[-1].attributes == {"error.type": "NotFound"}
    told = json.dumps([span.attributes for span in recorder.spans])
    assert not any(word in told for word in ("printer", "Gutenberg", "handbook", "nope"))


def test_status_counts_calls_and_their_times() -> None:
    async def conversation(client: Any) -> Any:
        await client.call_tool("retrieve", {"query": "x"})
        await client.call_tool("retrieve", {"query": "y"})
        await client.call_tool("fetch", {"id": "nope"})
        return (await client.call_tool("status", {})).structured_content["server"]

    told = spoken(app_over(fake()), conversation)
    assert told["calls"]["retrieve"]["calls"] == 2
    assert told["calls"]["retrieve"]["slowest_ms"] >= told["calls"]["retrieve"]["mean_ms"] > 0
    assert set(told["calls"]["retrieve"]["stages_ms"]) == {"search", "rerank", "compress"}
    assert told["calls"]["fetch"]["failed"] == 1


def test_tallies_count_failures() -> None:
    tallies = Tallies()
    with pytest.raises(KeyError), tallies.counted("x"):
        raise KeyError
    assert tallies.as_dict()["calls"]["x"]["failed"] == 1


def test_settings_name_the_limits(tmp_path: Path) -> None:
    told = {"TRIPTYCH_HOME": str(tmp_path), "TRIPTYCH_CALL_RATE": "5", "TRIPTYCH_CALL_TIMEOUT": "0"}
    made = limits.Limits(Settings.load(environ=told))
    assert made.timeout_s is None
    assert made.rate._per_second == pytest.approx(5 / 60)
