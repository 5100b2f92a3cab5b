"""The server over HTTP: who may come in, with what token, what it tells, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import date
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from triptych import BadInput, Forbidden
from triptych.server import serve, tokens, web
from triptych.server.cli import main
from triptych.server.output import Stdout
from triptych.settings import Settings

sys.path.append(str(Path(__file__).parent))
from served import MODES, PING, asked, free_port, library, serving, shelf

TOKEN = "correct-horse-battery-staple-0001"
OTHER = "correct-horse-battery-staple-0002"


def refused(**given: Any) -> BadInput:
    with pytest.raises(BadInput) as caught:
        web.Access.of(**{"host": "127.0.0.1", "port": 8000, **given})
    return caught.value


def token_file(folder: Path, text: str) -> str:
    path = folder / "tokens.toml"
    path.write_text(text, "utf-8")
    return str(path)


def line(client: str, token: str, more: str = "") -> str:
    return f'[{client}]\nsha256 = "{tokens.digest_of(token).hex()}"\n{more}\n'


# --- who may come in --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org", ""])
def test_other_machines_are_served_only_with_hosts_and_tokens(host: str) -> None:
    both = refused(host=host)
    assert "--allow-host" in both.hint
    assert "--token-file" in both.hint
    assert "--allow-host" in refused(host=host, environ={tokens.VARIABLE: TOKEN}).hint
    without_token = refused(host=host, hosts=("docs.example",))
    assert "--allow-host" not in without_token.hint
    assert "--token-file" in without_token.hint
    allowed = web.Access.of(host, 8000, hosts=("docs.example",), environ={tokens.VARIABLE: TOKEN})
    assert allowed.address == "http://docs.example/mcp"


@pytest.mark.parametrize("host", ["*", "a/b", "http://x", "a b", ""])
def test_a_host_is_a_name(host: str) -> None:
    assert f"`{host}` is no host" in refused(hosts=(host,)).message


@pytest.mark.parametrize("origin", ["*", "null", "chat.example", "https://chat.example/", "ftp://x", "https://"])
def test_an_origin_is_scheme_and_host(origin: str) -> None:
    assert f"`{origin}` is no origin" in refused(origins=(origin,)).message


def test_a_public_address_is_one() -> None:
    assert "`nowhere` is none" in refused(public_url="nowhere").message


def test_the_lists_are_always_in_force() -> None:
    for host, port in (("127.0.0.1", 8000), ("0.0.0.0", 9000)):
        access = web.Access.of(host, port, hosts=("docs.example", "a.example:444"), environ={tokens.VARIABLE: TOKEN})
        security = access.security()
        assert security.enable_dns_rebinding_protection
        assert f"127.0.0.1:{port}" in security.allowed_hosts
        assert {"docs.example", "docs.example:*", "a.example:444"} <= set(security.allowed_hosts)
        assert "a.example:444:*" not in security.allowed_hosts


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_token_file_names_clients_scopes_audience_and_end(tmp_path: Path) -> None:
    more = 'scopes = ["read", "write"]\naudience = "https://a.example/mcp"\nexpires = 2030-01-31'
    file = token_file(tmp_path, line("laptop", TOKEN) + line("robot", OTHER, more))
    laptop, robot = tokens.known({}, Path(file))
    assert (laptop.client, laptop.scopes, laptop.audience, laptop.expires) == ("laptop", (tokens.READ,), "", None)
    assert robot.scopes == (tokens.READ, tokens.WRITE)
    assert robot.audience == "https://a.example/mcp"
    assert time.gmtime(robot.expires)[:3] == (2030, 1, 31)
    assert tokens.with_audience((laptop,), "https://own/mcp")[0].audience == "https://own/mcp"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no client"),
        ("x = 1", "unknown key `x`"),
        ("not toml", "not valid TOML"),
        ('[a]\nsha256 = "abc"', "not 64 hexadecimal digits"),
        (line("a", TOKEN, 'token = "x"'), "unknown key `token`"),
        (line("a", TOKEN, 'scopes = ["admin"]'), "`scopes` of the client `a`"),
        (line("a", TOKEN, "scopes = []"), "`scopes` of the client `a`"),
        (line("a", TOKEN, 'audience = "here"'), "`audience` of the client `a`"),
        (line("a", TOKEN, 'expires = "soon"'), "`expires` of the client `a`"),
        (line("a", TOKEN) + line("b", TOKEN), "have the same token"),
    ],
)
def test_a_wrong_token_file_says_what_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        tokens.known({}, Path(token_file(tmp_path, text)))
    assert words in caught.value.message


def test_a_token_file_that_cannot_be_read_is_forbidden(tmp_path: Path) -> None:
    with pytest.raises(Forbidden, match=r"`nothing\.toml` cannot be read"):
        tokens.known({}, tmp_path / "nothing.toml")


@pytest.mark.parametrize("token", ["short", "x" * 5000, "ümlaut-and-long-enough-token", f" {TOKEN}"])
def test_a_weak_token_is_refused_and_not_repeated(token: str) -> None:
    error = refused(environ={tokens.VARIABLE: token})
    assert tokens.VARIABLE in error.message
    assert token.strip() not in str(error)


def test_a_token_is_known_by_its_hash_until_it_ends() -> None:
    holders = (
        tokens.Holder("a", tokens.digest_of(TOKEN)),
        tokens.Holder("b", tokens.digest_of(OTHER), expires=1000),
    )
    assert tokens.holder_of(TOKEN, holders, 0.0) == holders[0]
    assert tokens.holder_of(OTHER, holders, 999.0) == holders[1]
    assert tokens.holder_of(OTHER, holders, 1000.0) is None
    for wrong in ("", TOKEN[:-1], TOKEN + "x", "x" * 10_000, "\udcff", tokens.digest_of(TOKEN).hex()):
        assert tokens.holder_of(wrong, holders, 0.0) is None


def test_every_holder_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    whole = tokens.hmac.compare_digest

    def noted(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return whole(one, other)

    monkeypatch.setattr(tokens.hmac, "compare_digest", noted)
    holders = tuple(tokens.Holder(str(n), tokens.digest_of(f"{TOKEN}{n}")) for n in range(5))
    tokens.holder_of(f"{TOKEN}0", holders, 0.0)
    assert compared == [holder.digest for holder in holders]


def test_a_made_token_is_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    token, lines = tokens.made("my-laptop", ("read", "write"), "https://a.example/mcp", date(2030, 1, 31))
    (holder,) = tokens.known({}, Path(token_file(tmp_path, lines)))
    assert tokens.holder_of(token, (holder,), 0.0) == holder
    assert token not in lines
    assert main(["token", "phone", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert tokens.known({}, Path(token_file(tmp_path, said["lines"])))[0].scopes == (tokens.READ,)
    assert main(["token", "../x"]) == 2


# --- a real server ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server with tokens that lists documents, over a library without weights."""
    home, files = tmp_path_factory.mktemp("home"), shelf(tmp_path_factory.mktemp("files"))
    library(home, files).close()
    port = free_port()
    elsewhere = 'audience = "https://other.example/mcp"'
    text = line("reader", TOKEN) + line("stranger", OTHER, elsewhere) + line("old", TOKEN + "3", "expires = 2020-01-01")
    text += line("writer", TOKEN + "4", 'scopes = ["read", "write"]')
    file = token_file(tmp_path_factory.mktemp("tokens"), text)
    options = ["--library", "shelf", "--root", str(files), "--no-index", "--allow-write", "--token-file", file]
    options += ["--allow-origin", "https://chat.example", "--allow-host", "docs.example"]
    with serving(home, *options, port=port, TRIPTYCH_MESSAGE_BYTES="200000") as process:
        yield process
    out, err = process.said
    assert (out, process.returncode) == (b"", 143)
    assert TOKEN not in err
    assert "Traceback" not in err


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_only_the_right_token_is_let_in(guarded: Any) -> None:
    assert asked(guarded.port, body=PING, **bearer(TOKEN))[0] == 200
    for headers in ({}, bearer(OTHER), bearer(TOKEN + "3"), bearer("x"), {"Authorization": TOKEN}):
        status, body = asked(guarded.port, body=PING, **headers)
        assert status == 401
        assert TOKEN not in body


def test_hosts_and_origins_are_looked_at_before_the_token(guarded: Any) -> None:
    def status(token: str = TOKEN, **headers: str) -> int:
        return asked(guarded.port, body=PING, **{**bearer(token), **headers})[0]

    assert status(Host="docs.example") == status(Host=f"localhost:{guarded.port}") == 200
    assert status(Host="evil.example") == status("wrong", Host="evil.example") == 421
    assert status(Host=f"127.0.0.1:{guarded.port + 1}") == 421
    assert status(Origin="https://evil.example") == status(Origin="null") == 403
    assert status(Origin="https://chat.example") == 200


def test_an_allowed_page_may_ask_and_no_other(guarded: Any) -> None:
    def preflight(origin: str) -> Any:
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        return httpx2.options(f"http://127.0.0.1:{guarded.port}/mcp", headers=headers)

    assert preflight("https://chat.example").headers["access-control-allow-origin"] == "https://chat.example"
    refusal = preflight("https://evil.example")
    assert refusal.status_code == 400
    assert "access-control-allow-origin" not in refusal.headers


def test_the_states_are_open_and_say_nothing_else(guarded: Any) -> None:
    assert asked(guarded.port, "/health", method="GET") == (200, '{"status":"ok"}')
    for _ in range(300):
        status, body = asked(guarded.port, "/ready", method="GET")
        assert (status, body) in ((200, '{"status":"ready"}'), (503, '{"status":"loading"}'))
        if status == 200:
            break
        time.sleep(0.1)
    assert status == 200
    answer = httpx2.get(f"http://127.0.0.1:{guarded.port}/health")
    assert "server" not in answer.headers


def test_a_long_body_is_refused(guarded: Any) -> None:
    assert asked(guarded.port, body=b"x" * 200_001, **bearer(TOKEN))[0] == 413
    assert asked(guarded.port, body=b"not json", **bearer(TOKEN))[0] == 400
    assert asked(guarded.port, "/", body=PING, **bearer(TOKEN))[0] == 404


def conversation_with(port: int, token: str, talk: Any, mode: str = "auto") -> Any:
    async def held() -> Any:
        async with httpx2.AsyncClient(headers=bearer(token), timeout=60) as http:
            transport = streamable_http_client(f"http://127.0.0.1:{port}/mcp", http_client=http)
            async with Client(transport, mode=mode) as client:
                return await talk(client)

    return asyncio.run(held())


@pytest.mark.parametrize("mode", MODES)
def test_a_client_with_a_token_works_as_over_stdio(guarded: Any, mode: str) -> None:
    steps: list[Any] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        steps.append(message)

    async def talk(client: Any) -> Any:
        asked_for = {"query": "daily allowance in Berlin", "max_tokens": 400}
        evidence = await client.call_tool("retrieve", asked_for, progress_callback=on_progress)
        page = await client.read_resource("triptych://doc/shelf/printers.txt")
        return evidence, page.contents[0].text

    evidence, text = conversation_with(guarded.port, TOKEN, talk, mode)
    assert "120 euro" in evidence.content[0].text
    assert "Gutenberg" in text


def test_a_token_that_may_only_read_cannot_write(guarded: Any) -> None:
    async def talk(client: Any) -> Any:
        return await client.call_tool("delete", {"uri_prefix": "shelf/nothing"})

    refusal = conversation_with(guarded.port, TOKEN, talk)
    assert refusal.is_error
    assert "may not call `delete`" in refusal.content[0].text
    assert conversation_with(guarded.port, TOKEN + "4", talk).structured_content["deleted"] == 0


# --- beginning and end ------------------------------------------------------------------------------------------------

SLOW = """
import sys
sys.path.insert(0, {tests!r})
from fake_library import FakeTriptych
from triptych.server import web
from triptych.server.app import build
fake = FakeTriptych(steps=10, delay_s=0.05)
work = fake._work
def told(what, unit):
    print("at work", file=sys.stderr, flush=True)
    work(what, unit)
fake._work = told
app = build(lambda name=None: fake, fake.settings)
access = web.Access.of("127.0.0.1", {port})
web.serve(web.application(app, access, lambda: "ready", 10**6), access)
"""


@pytest.mark.parametrize("mode", MODES)
def test_a_call_under_way_is_answered_before_the_end(mode: str) -> None:
    port = free_port()
    script = SLOW.format(tests=str(Path(__file__).parent), port=port)
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE) as process:
        assert process.stderr
        assert b"Serving" in process.stderr.readline()

        async def talk() -> Any:
            assert process.stderr
            async with Client(f"http://127.0.0.1:{port}/mcp", mode=mode) as client:
                await client.list_tools()  # else the client asks for the schemas when the answer is there
                call = asyncio.create_task(client.call_tool("retrieve", {"query": "printer"}))
                assert await asyncio.to_thread(process.stderr.readline) == b"at work\n"
                process.send_signal(signal.SIGTERM)
                return await call, time.monotonic()

        try:
            answer, answered = asyncio.run(talk())
        finally:
            code = process.wait(30)
        took = time.monotonic() - answered
    assert not answer.is_error
    assert code == 143
    assert took < web.GRACE_S  # the streams on which the client only listens are ended


def test_a_taken_port_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(BadInput, match=f"`127.0.0.1:{port}`"):
            web.serve(lambda: None, web.Access.of("127.0.0.1", port))  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("plan", "option"),
    [
        (serve.Plan(transport="http", workers=2, allow_write=True), "--allow-write"),
        (serve.Plan(transport="http", workers=2, llm_rerank=True), "--llm-rerank"),
        (serve.Plan(transport="http", workers=2, roots=(".",)), "--root without --no-index"),
        (serve.Plan(workers=2), "--workers"),
    ],
)
def test_several_processes_only_read(plan: serve.Plan, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve.logs, "begin", lambda **_: None)
    with pytest.raises(BadInput, match=option):
        serve.serve(Settings(home=Path("nowhere")), plan, Stdout())


def ready(port: int) -> int:
    """The status of `/ready`, 0 while a process that loads its models answers nothing."""
    try:
        return asked(port, "/ready", method="GET")[0]
    except TimeoutError:
        return 0


def test_two_processes_share_a_library_and_end_together(tmp_path: Path) -> None:
    library(tmp_path / "home", shelf(tmp_path)).close()
    with serving(tmp_path / "home", "--library", "shelf", "--workers", "2") as process:
        answers: list[str] = []
        for _ in range(20):  # each process answers for itself
            while ready(process.port) != 200:
                time.sleep(0.2)

        async def talk() -> None:
            async with Client(f"http://127.0.0.1:{process.port}/mcp") as client:
                for _ in range(3):
                    found = await client.call_tool("retrieve", {"query": "daily allowance in Berlin"})
                    answers.append(str(getattr(found.content[0], "text", "")))

        threads = [threading.Thread(target=lambda: asyncio.run(talk())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        workers = [
            child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())
        ]
    assert len(answers) == 12
    assert all("120 euro" in answer for answer in answers)
    assert len(workers) == 2
    assert process.returncode == 143
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in workers)
    assert "Traceback" not in process.said[1]


def test_no_token_stands_among_the_options() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "triptych.server.cli", "mcp", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    assert "--token-file" in done.stdout
    assert "--token " not in done.stdout
