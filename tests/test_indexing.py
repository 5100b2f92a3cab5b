"""Indexing: what has not changed is left alone, what changed is replaced, and one bad file never stops the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from triptych import BadInput, Cancelled, Settings, StaleId, StoreError, Triptych, progress
from triptych.retrievers.base import Where
from triptych.tools.catalog import Catalog
from triptych.tools.writing import LOCK

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from triptych.retrievers.base import Item
    from triptych.retrievers.readers.base import Document

FACTS = {
    "lantern.md": "# Lantern\n\nThe lantern at Oster Point burns whale oil until 1871.",
    "ferry.txt": "The ferry to Hallow leaves at a quarter past seven from the north pier.",
    "sub/bees.html": "<html><title>Bees</title><p>The apiary holds fourteen hives of black bees.</p></html>",
}


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    for name, text in FACTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    return folder


@pytest.fixture
def library(bare_home: Path) -> Iterator[Triptych]:
    with Triptych("facts", Settings.load()) as session:
        yield session


def found(library: Triptych, query: str) -> list[str]:
    return [hit.uri for hit in library.search(query).hits]


def test_a_filter_is_a_mapping_or_a_where(library: Triptych, docs: Path) -> None:
    library.index(docs)
    narrow = {"uri": {"prefix": "docs/sub/"}, "modality": ["text", "page"]}
    assert {hit.uri for hit in library.search("the", where=narrow).hits} <= {"docs/sub/bees.html"}
    assert [hit.uri for hit in library.search("apiary hives", where=narrow).hits] == ["docs/sub/bees.html"]
    assert library.search("apiary hives", where=Where(uri_prefix="docs/ferry")).hits == []
    assert library.retrieve("apiary hives", where={"mime": "text/plain"}).passages == []
    with pytest.raises(BadInput, match="`a b`"):
        library.search("ferry", where={"a b": 1})


def test_unchanged_files_are_left_alone(library: Triptych, docs: Path) -> None:
    first = library.index(docs)
    assert (first.files, first.indexed, first.unchanged, first.problems) == (3, 3, 0, [])
    second = library.index(docs)
    assert (second.indexed, second.unchanged, second.items) == (0, 3, first.items)
    os.utime(docs / "ferry.txt")  # touched, same bytes
    assert library.index(docs).unchanged == 3


def test_a_changed_file_replaces_its_passages_and_old_ids_name_their_successor(library: Triptych, docs: Path) -> None:
    library.index(docs)
    [old] = library.search("ferry pier").hits[:1]
    (docs / "ferry.txt").write_text("The ferry to Hallow now leaves at eight from the south pier.", "utf-8")
    assert library.index(docs).indexed == 1
    [new] = library.search("ferry pier").hits[:1]
    assert "south pier" in new.text
    assert not any("quarter past seven" in hit.text for hit in library.search("quarter seven ferry").hits)
    with pytest.raises(StaleId, match=f"`{old.id}`") as caught:
        library.fetch(old.id)
    assert new.id in caught.value.hint


def test_deleted_files_go_with_prune_only(library: Triptych, docs: Path) -> None:
    library.index(docs)
    (docs / "sub" / "bees.html").unlink()
    assert library.index(docs).removed == 0
    assert "docs/sub/bees.html" in found(library, "apiary hives")
    assert library.index(docs, prune=True).removed == 1
    assert "docs/sub/bees.html" not in found(library, "apiary hives")
    assert library.status().files == 2


def test_pruning_a_file_leaves_those_whose_names_begin_alike(library: Triptych, docs: Path) -> None:
    (docs / "ferry.txt.md").write_text("The old timetable of the ferry.", "utf-8")
    library.index(docs)
    assert library.index(docs / "ferry.txt", prune=True).removed == 0
    assert library.status().files == 4


def test_a_large_file_is_written_in_parts_and_is_there_as_a_whole_or_not_at_all(
    library: Triptych, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triptych.tools.writing.BATCH", 4)
    library.index(docs)
    collection = library._open()
    sizes: list[int] = []
    real = collection.retriever().add

    def add(items: Sequence[Item]) -> None:
        sizes.append(len(items))
        if len(sizes) == 3:
            raise StoreError("The disk is full.", "Free some.")
        real(items)

    monkeypatch.setattr(collection.retriever(), "add", add)
    rows = "".join(f'{{"n": {n}, "text": "{f"Row {n} tells of a petrel. " * 30}"}}\n' for n in range(30))
    (docs / "rows.jsonl").write_text(rows, "utf-8")
    with pytest.raises(StoreError, match="full"):
        library.index(docs)
    assert sizes == [4, 4, 4]
    assert found(library, "petrel") == []
    assert library.verify().whole
    assert library.index(docs).indexed == 1
    assert max(sizes) == 4
    assert library.verify().whole


def test_a_reader_that_fails_in_mid_file_leaves_nothing_of_it(
    library: Triptych, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triptych.tools import indexing

    monkeypatch.setattr("triptych.tools.writing.BATCH", 2)
    real = indexing.chunks

    def failing(document: Document, content_hash: str) -> Iterator[Item]:
        for item in real(document, content_hash):
            yield item
            if item.meta["ordinal"] == 4:
                raise ZeroDivisionError

    monkeypatch.setattr(indexing, "chunks", failing)
    (docs / "long.md").write_text("\n\n".join(f"# Part {n}\n\n" + "A petrel. " * 80 for n in range(9)), "utf-8")
    done = library.index(docs)
    assert done.indexed == 3
    assert [problem.uri for problem in done.problems] == ["docs/long.md"]
    assert found(library, "petrel") == []
    assert library.verify().whole


def test_prune_stays_below_the_given_path(library: Triptych, docs: Path) -> None:
    library.index(docs)
    (docs / "ferry.txt").unlink()
    assert library.index(docs / "sub", prune=True).removed == 0
    assert library.status().files == 3


def test_a_file_and_its_folder_share_one_uri(library: Triptych, docs: Path) -> None:
    library.index(docs / "ferry.txt")
    library.index(docs)
    assert found(library, "ferry") == ["docs/ferry.txt"]


def test_bad_files_are_named_and_the_others_go_on(library: Triptych, docs: Path, tmp_path: Path) -> None:
    (docs / "empty.pdf").write_bytes(b"")
    (docs / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\x00" * 40)
    (docs / "binary.txt").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "secret.md").write_text("the secret word is xyzzy", "utf-8")
    (docs / "leak.md").symlink_to(tmp_path / "secret.md")
    with (docs / "huge.txt").open("wb") as huge:
        huge.truncate(200_000_000)
    done = library.index(docs)
    assert done.indexed == 3
    problems = {problem.uri: problem for problem in done.problems}
    assert set(problems) == {
        f"docs/{name}" for name in ("empty.pdf", "broken.png", "binary.txt", "leak.md", "huge.txt")
    }
    assert problems["docs/leak.md"].type == "Forbidden"
    assert all(str(tmp_path) not in problem.message + problem.hint for problem in done.problems)
    assert found(library, "xyzzy") == []
    assert library.status().problems == sorted(done.problems, key=lambda problem: problem.uri)


def test_a_file_that_became_readable_is_indexed(library: Triptych, docs: Path) -> None:
    (docs / "late.md").write_bytes(b"")
    assert [problem.uri for problem in library.index(docs).problems] == ["docs/late.md"]
    (docs / "late.md").write_text("A late note on marsh samphire.", "utf-8")
    assert library.index(docs).problems == []
    assert found(library, "samphire") == ["docs/late.md"]


def test_a_file_that_became_unreadable_loses_its_passages(library: Triptych, docs: Path) -> None:
    library.index(docs)
    (docs / "ferry.txt").write_bytes(bytes(range(256)) * 20)
    assert [problem.uri for problem in library.index(docs).problems] == ["docs/ferry.txt"]
    assert found(library, "ferry") == []


@pytest.mark.parametrize("path", ["nowhere", "docs/../nowhere.md"])
def test_missing_paths_are_refused_before_anything_is_done(library: Triptych, path: str) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        library.index(path)


def test_a_file_dated_far_ahead_is_read_like_any_other(library: Triptych, docs: Path) -> None:
    os.utime(docs / "ferry.txt", (10_413_792_000, 10_413_792_000))  # the year 2300
    assert library.index(docs).problems == []
    assert library.index(docs).unchanged == len(FACTS)
    assert "docs/ferry.txt" in found(library, "ferry pier")


def test_cancelling_keeps_what_was_acknowledged(library: Triptych, docs: Path) -> None:
    library.index(docs)
    for n in range(30):
        (docs / f"note-{n:02}.md").write_text(f"Note {n} about gannets.", "utf-8")
    stop = threading.Event()

    def on_step(done: int, total: int | None, what: str) -> None:
        if what == "files" and done == 20:
            stop.set()

    with pytest.raises(Cancelled), progress.reporting(on_step, cancelled=stop):
        library.index(docs)
    assert "docs/lantern.md" in found(library, "lantern")
    assert library.status().healthy
    assert library.index(docs).files == 33
    assert library.status().files == 33


def test_cancelling_inside_a_file_says_nothing_of_the_file(library: Triptych, docs: Path) -> None:
    from PIL import Image

    library.index(docs)
    Image.new("RGB", (64, 64), "white").save(docs / "ferry.txt", "PNG")
    stop = threading.Event()

    def on_step(done: int, total: int | None, what: str) -> None:
        if what == "pages":
            stop.set()

    with pytest.raises(Cancelled), progress.reporting(on_step, cancelled=stop):
        library.index(docs)
    assert "docs/ferry.txt" in found(library, "ferry pier")
    assert library.status().problems == []
    assert library.index(docs).indexed == 1


def test_a_second_writer_waits_its_turn(library: Triptych, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    library.index(docs)
    monkeypatch.setattr("triptych.tools.writing.LOCK_WAIT_S", 0.2)
    other = FileLock(library.folder / LOCK, thread_local=False, is_singleton=False)
    with other, pytest.raises(StoreError, match="Another process has been writing"):
        library.index(docs)


def test_a_store_that_lost_rows_is_noticed_and_mended(library: Triptych, docs: Path) -> None:
    library.index(docs)
    [lost] = library.search("ferry").hits[:1]
    library._open()._store.delete(_where(lost.id))  # behind the catalogue's back
    library.close()
    status = library.status()
    assert not status.healthy
    assert "lost 1 of" in (status.note or "")
    assert library.index(docs).indexed == 1
    assert library.status().healthy
    assert found(library, "ferry") == ["docs/ferry.txt"]


def test_rebuild_mends_a_broken_store_and_takes_a_new_encoder(library: Triptych, docs: Path) -> None:
    library.index(docs)
    [old] = library.search("ferry").hits[:1]
    library.close()
    catalog = Catalog(library.folder)
    catalog.set_fact("encoder", "some_other_encoder abc")
    catalog.close()
    for manifest in library.folder.rglob("*manifest*"):
        manifest.write_bytes(b"damaged")
    with pytest.raises(StoreError, match="some_other_encoder"):
        library.search("ferry")
    done = library.index(docs / "sub", rebuild=True)
    assert done.indexed == 3  # what was indexed before comes too
    assert library.status().healthy
    assert library.search("ferry").hits[0].id == old.id


def test_another_encoder_is_a_typed_error(library: Triptych, docs: Path) -> None:
    library.index(docs)
    library.close()
    catalog = Catalog(library.folder)
    catalog.set_fact("encoder", "some_other_encoder abc")
    catalog.close()
    with pytest.raises(StoreError, match="was built with `some_other_encoder`"):
        library.search("ferry")


KILLED = """
import sys, threading, os, time
from triptych import Settings, Triptych, progress
library = Triptych("facts", Settings.load(home=sys.argv[1]))
def on_step(done, total, what):
    print(done, what, flush=True)
with progress.reporting(on_step):
    library.index(sys.argv[2])
"""


@pytest.mark.parametrize("after", [3, 9, 17])
def test_kill_9_leaves_everything_acknowledged_and_nothing_partial(
    bare_home: Path, docs: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    for n in range(24):
        text = "\n\n".join(f"Paragraph {at} of note {n} tells of petrel number {n}-{at}." for at in range(40))
        (docs / f"note-{n:02}.md").write_text(text, "utf-8")
    child = "import triptych.tools.writing as w; w.BATCH = 16\n" + KILLED
    with subprocess.Popen(
        [sys.executable, "-c", child, str(bare_home), str(docs)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(f"{after} files"):
                break
        time.sleep(0.02 * after)
        process.send_signal(signal.SIGKILL)
    with Triptych("facts", Settings.load()) as library:
        acknowledged = library._open()._catalog.live()
        assert library.status().healthy
        assert library.verify().whole
        assert sorted(library._open()._store.ids()) == sorted(acknowledged)
        done = library.index(docs)
        assert done.problems == []
        assert library.status().files == 27
        assert library.verify().whole
        assert sorted(library._open()._store.ids()) == sorted(library._open()._catalog.live())


def test_a_collection_is_closed_when_opening_fails(bare_home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "catalog.sqlite").write_bytes(b"no database" * 50)
    with Triptych(folder, Settings.load()) as session, pytest.raises(StoreError, match="cannot be read"):
        session.search("anything")


def _where(passage_id: str) -> Where:
    return Where(ids=(passage_id,))
