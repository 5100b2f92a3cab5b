"""Several real processes on one library: readers beside a writer, writers one after another, and writers that die."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from mcp import Client, StdioServerParameters

from triptych import Settings, Triptych
from triptych.tools.writing import LOCK

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_S = 60.0
CLI = [sys.executable, "-m", "triptych.server.cli"]


def notes(folder: Path, first: int, count: int, *, paragraphs: int = 4) -> Path:
    folder.mkdir(exist_ok=True)
    for n in range(first, first + count):
        text = "\n\n".join(f"Paragraph {at} of note {n} tells of petrel number {n}-{at}." for at in range(paragraphs))
        (folder / f"note-{n:03}.md").write_text(text, "utf-8")
    return folder


def spawned(home: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "TRIPTYCH_HOME": str(home)}
    return subprocess.Popen(
        [*CLI, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def answer(process: subprocess.Popen[str], code: int = 0) -> Any:
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, out + err
    assert "Traceback" not in err
    return json.loads(out)


@pytest.fixture
def library(bare_home: Path, tmp_path: Path) -> Iterator[Triptych]:
    with Triptych("default", Settings.load()) as session:
        session.index(notes(tmp_path / "docs", 0, 10))
        yield session


def test_a_server_answers_while_another_process_indexes(bare_home: Path, tmp_path: Path) -> None:
    docs = notes(tmp_path / "docs", 0, 10)
    assert answer(spawned(bare_home, "index", str(docs), "--json"))["indexed"] == 10
    notes(docs, 10, 40)
    server = StdioServerParameters(
        command=sys.executable, args=[*CLI[1:], "mcp", "--library", "default"],
        env={**os.environ, "TRIPTYCH_HOME": str(bare_home)},
    )  # fmt: skip

    async def conversation() -> tuple[int, Any, list[Any]]:
        async with Client(server) as client:
            await client.call_tool("search", {"query": "petrel"})
            writer = spawned(bare_home, "index", str(docs), "--json")
            asked = 0
            while writer.poll() is None:
                found = await client.call_tool("search", {"query": "petrel number 3-2", "k": 5})
                assert not found.is_error, found.content
                assert found.structured_content["passages"]
                asked += 1
                await asyncio.sleep(0.1)
            new = await client.call_tool("search", {"query": "petrel 47-1", "k": 1})
            return asked, answer(writer), new.structured_content["passages"]

    asked, done, new = asyncio.run(conversation())
    assert asked >= 5
    assert (done["indexed"], done["problems"]) == (40, [])
    assert new[0]["where"].startswith("docs/note-047.md")


READER = """
import sys
from triptych import Settings, Triptych
with Triptych("default", Settings.load()) as library:
    for n in range(5):
        print([hit.id for hit in library.search(f"petrel number {n}-1", 5).hits])
"""


def test_readers_in_many_processes_answer_as_one(library: Triptych) -> None:
    readers = [subprocess.Popen([sys.executable, "-c", READER], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [reader.communicate(timeout=PATIENCE_S)[0].splitlines() for reader in readers]
    expected = [str([hit.id for hit in library.search(f"petrel number {n}-1", 5).hits]) for n in range(5)]
    assert said == [expected] * 2


def test_a_reader_that_was_there_before_sees_what_a_writer_brings(library: Triptych, bare_home: Path) -> None:
    docs = Path(library._open()._catalog.roots()["docs"])
    notes(docs, 10, 5)
    (docs / "note-003.md").unlink()
    assert answer(spawned(bare_home, "index", str(docs), "--prune", "--json"))["removed"] == 1
    assert library.search("petrel number 12-3", 1).hits[0].uri == "docs/note-012.md"
    assert all(hit.uri != "docs/note-003.md" for hit in library.search("petrel number 3-1", 20).hits)
    assert library.status().files == 14
    assert library.verify().whole


def test_a_second_writer_says_that_it_waits_and_then_goes_on(library: Triptych, bare_home: Path) -> None:
    docs = Path(library._open()._catalog.roots()["docs"])
    notes(docs, 10, 2)
    library.close()
    with FileLock(library.folder / LOCK):
        second = spawned(bare_home, "index", str(docs), "--json")
        assert second.stderr is not None
        assert second.stderr.readline() == "waiting for another writer\n"
        assert second.poll() is None
    assert answer(second)["indexed"] == 2


def test_a_waiting_writer_can_be_stopped(library: Triptych, bare_home: Path) -> None:
    library.close()
    with FileLock(library.folder / LOCK):
        second = spawned(bare_home, "delete", "--uri-prefix", "docs/", "--json")
        time.sleep(2.0)
        second.send_signal(signal.SIGINT)
        assert answer(second, 130)["error"]["type"] == "Cancelled"
    assert library.status().files == 10


def test_two_writers_at_once_both_get_their_files_in(bare_home: Path, tmp_path: Path) -> None:
    folders = [notes(tmp_path / name, first, 20) for name, first in (("one", 0), ("two", 20))]
    writers = [spawned(bare_home, "index", str(folder), "--json") for folder in folders]
    assert [answer(writer)["indexed"] for writer in writers] == [20, 20]
    with Triptych("default", Settings.load()) as library:
        assert library.status().files == 40
        assert library.verify().whole


def test_a_reader_outlives_the_writer_that_held_the_store(bare_home: Path, tmp_path: Path) -> None:
    docs = notes(tmp_path / "docs", 0, 10)
    assert answer(spawned(bare_home, "index", str(docs), "--json"))["indexed"] == 10
    notes(docs, 10, 150, paragraphs=12)
    writer = spawned(bare_home, "index", str(docs), "--json")
    address = bare_home / "libraries" / "default" / "milvus.db.address"
    until = time.monotonic() + PATIENCE_S
    while not address.exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    with Triptych("default", Settings.load()) as library:
        assert library.search("petrel number 3-2", 5).hits
        writer.kill()
        writer.communicate(timeout=PATIENCE_S)
        assert library.search("petrel number 3-2", 5).hits
        assert library.verify().whole
        assert library.index(docs).problems == []
        assert library.status().files == 160
        assert library.verify().whole


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1])
import triptych.tools.writing as w
w.BATCH = 8
from counting import counted
from triptych.tools.catalog import Catalog
library, _ = counted("default")
left = int(sys.argv[2])
def counting_down(name):
    real = getattr(Catalog, name)
    def call(*given):
        global left
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), 9)
        return real(*given)
    setattr(Catalog, name, call)
for name in ("adopt", "begin", "acknowledge", "put", "set_fact", "retired"):
    counting_down(name)
library.rebuild(sys.argv[3])
print("done")
"""


@pytest.mark.parametrize("at", [2, 7, 25])
def test_a_rebuild_that_is_killed_can_be_done_again(bare_home: Path, tmp_path: Path, at: int) -> None:
    sys.path.append(str(Path(__file__).parent))
    from counting import counted

    docs = notes(tmp_path / "docs", 0, 20)
    library, encoder = counted("default")
    library.index(docs)
    before = library.status().items
    library.close()
    (library.folder / "catalog.sqlite").write_bytes(b"no database" * 99)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(at), str(docs)], capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    encoder.ids.clear()
    mended = library.rebuild(docs)
    assert (mended.items, mended.problems, encoder.ids) == (before, [], [])
    assert library.verify().whole
    library.close()
