"""`index --watch`: what changes on disk is in the library a moment later, whatever it is and however much."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from triptych import BadInput, Cancelled, Settings, StoreError, Triptych, progress
from triptych.tools import watching
from triptych.tools.roots import Roots, files_at, is_wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from triptych.tools.schemas import IndexOut

PATIENCE_S = 20.0


class Watch:
    """A library that watches a folder in a thread of its own, until `stop`."""

    def __init__(self, folder: Path, *, poll: bool | None = None) -> None:
        self.folder = folder
        self.library = Triptych("watched", Settings.load())
        self.rounds: list[IndexOut] = []
        self.ended: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(poll,), daemon=True)
        self._thread.start()
        self.until(lambda: bool(self.rounds))

    def _run(self, poll: bool | None) -> None:
        try:
            with progress.reporting(cancelled=self._stop):
                for result in self.library.watch(self.folder, poll=poll):
                    self.rounds.append(result)
        except BaseException as error:
            self.ended = error

    def until(self, true: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not true():
            assert self.ended is None, self.ended
            assert time.monotonic() < end, self.rounds
            time.sleep(0.05)

    def uris(self) -> set[str]:
        return {row.uri for row in self.library._open()._catalog.files() if row.was_read}

    def problems(self) -> set[str]:
        return {problem.uri for problem in self.library.status().problems}

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)
        self.library.close()
        assert isinstance(self.ended, Cancelled), self.ended


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    (folder / "ferry.txt").write_text("The ferry leaves at seven.", "utf-8")
    (folder / "sub" / "bees.md").write_text("# Bees\n\nThe apiary holds fourteen hives.", "utf-8")
    return folder


@pytest.fixture(params=[None, True], ids=["events", "polling"])
def watch(
    request: pytest.FixtureRequest, bare_home: Path, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Watch]:
    monkeypatch.setattr(watching, "POLL_MS", 200)
    watched = Watch(docs, poll=request.param)
    yield watched
    watched.stop()


def test_what_is_made_changed_and_deleted(watch: Watch) -> None:
    assert watch.uris() == {"docs/ferry.txt", "docs/sub/bees.md"}
    (watch.folder / "sub" / "new.md").write_text("Marmalade is made in February.", "utf-8")
    watch.until(lambda: "docs/sub/new.md" in watch.uris())
    assert watch.library.search("marmalade").hits[0].uri == "docs/sub/new.md"

    (watch.folder / "ferry.txt").write_text("The ferry leaves at half past nine.", "utf-8")
    # Between the two the new version is already found and the old one still is: nothing is ever missing.
    watch.until(lambda: any("nine" in hit.text for hit in watch.library.search("ferry").hits))
    watch.until(lambda: not any("seven" in hit.text for hit in watch.library.search("ferry").hits))

    (watch.folder / "ferry.txt").unlink()
    watch.until(lambda: "docs/ferry.txt" not in watch.uris())
    assert watch.library.verify().whole


def test_files_and_folders_that_are_renamed_or_moved_in(watch: Watch, tmp_path: Path) -> None:
    (watch.folder / "ferry.txt").rename(watch.folder / "boat.txt")
    (watch.folder / "sub").rename(watch.folder / "garden")
    watch.until(lambda: watch.uris() == {"docs/boat.txt", "docs/garden/bees.md"})
    (tmp_path / "aside" / "deep").mkdir(parents=True)
    (tmp_path / "aside" / "deep" / "moss.txt").write_text("Moss grows on the north face.", "utf-8")
    (tmp_path / "aside").rename(watch.folder / "aside")
    watch.until(lambda: "docs/aside/deep/moss.txt" in watch.uris())
    (watch.folder / "aside").rename(tmp_path / "away")
    watch.until(lambda: watch.uris() == {"docs/boat.txt", "docs/garden/bees.md"})


def test_a_burst_of_files_is_few_rounds(watch: Watch) -> None:
    before = len(watch.rounds)
    for n in range(200):
        (watch.folder / f"note-{n:03}.md").write_text(f"Note {n} about gannets.", "utf-8")
    watch.until(lambda: len(watch.uris()) == 202)
    assert len(watch.rounds) - before <= 8
    for n in range(200):
        (watch.folder / f"note-{n:03}.md").unlink()
    watch.until(lambda: len(watch.uris()) == 2)
    assert watch.library.status().healthy


def test_what_cannot_be_read_is_named_and_stops_nothing(watch: Watch) -> None:
    (watch.folder / "broken.pdf").write_bytes(b"%PDF-1.7 and no more")
    (watch.folder / "empty.md").write_bytes(b"")
    (watch.folder / "fine.md").write_text("Samphire.", "utf-8")
    watch.until(lambda: "docs/fine.md" in watch.uris())
    watch.until(lambda: watch.problems() == {"docs/broken.pdf", "docs/empty.md"})
    (watch.folder / "empty.md").write_text("No longer empty.", "utf-8")
    (watch.folder / "broken.pdf").unlink()
    watch.until(lambda: "docs/empty.md" in watch.uris() and watch.problems() == set())


def test_hidden_files_links_and_the_library_itself_make_no_round(watch: Watch, tmp_path: Path) -> None:
    (tmp_path / "secret.md").write_text("the secret word is xyzzy", "utf-8")
    (watch.folder / ".draft.md").write_text("hidden", "utf-8")
    (watch.folder / "node_modules").mkdir()
    (watch.folder / "node_modules" / "x.md").write_text("skipped", "utf-8")
    (watch.folder / "leak.md").symlink_to(tmp_path / "secret.md")
    (watch.folder / "last.md").write_text("last", "utf-8")
    watch.until(lambda: "docs/last.md" in watch.uris())
    watch.until(lambda: watch.problems() == {"docs/leak.md"})
    assert watch.uris() == {"docs/ferry.txt", "docs/sub/bees.md", "docs/last.md"}
    assert watch.library.search("xyzzy").hits == []


def test_a_round_that_fails_is_tried_again(
    bare_home: Path, docs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watching, "RETRY_S", 0.1)
    watch = Watch(docs)
    collection = watch.library._open()
    real, failures = (
        collection.follow,
        [StoreError("The disk is full.", "Free some."), OSError(5, "Input/output error")],
    )

    def follow(changed: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(changed)

    monkeypatch.setattr(collection, "follow", follow)
    (docs / "new.md").write_text("Marmalade.", "utf-8")
    watch.until(lambda: "docs/new.md" in watch.uris())
    assert "tried again" in caplog.text and "The disk is full" in caplog.text
    watch.stop()


def test_while_the_folder_is_gone_its_passages_stay(bare_home: Path, docs: Path, tmp_path: Path) -> None:
    watch = Watch(docs, poll=True)
    docs.rename(tmp_path / "elsewhere")
    time.sleep(1.0)
    assert watch.uris() == {"docs/ferry.txt", "docs/sub/bees.md"}
    watch.stop()


def test_what_is_not_there_cannot_be_watched(bare_home: Path, tmp_path: Path) -> None:
    with Triptych("watched", Settings.load()) as library, pytest.raises(BadInput, match="does not exist"):
        next(library.watch(tmp_path / "nowhere"))


def test_without_events_it_looks_again_and_again(
    docs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import watchfiles

    real = watchfiles.watch

    def limited(*paths: Path, force_polling: bool | None, **options: Any) -> Any:
        if not force_polling:
            raise OSError(28, "OS file watch limit reached")
        return real(*paths, force_polling=force_polling, **options)

    monkeypatch.setattr(watchfiles, "watch", limited)
    monkeypatch.setattr(watching, "POLL_MS", 100)
    rounds = watching.changes([docs])
    assert next(rounds) == {}
    assert "watch limit" in caplog.text
    (docs / "new.md").write_text("x", "utf-8")
    assert next(found for found in rounds if found) == {docs: {docs / "new.md"}}
    rounds.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("kind", "silent"), [("ext4", False), ("nfs4", True), ("fuse.sshfs", True), ("9p", True)])
def test_shared_file_systems_are_polled(monkeypatch: pytest.MonkeyPatch, kind: str, silent: bool) -> None:
    import psutil

    def mounts(all: bool) -> list[Any]:
        return [SimpleNamespace(mountpoint="/", fstype="ext4"), SimpleNamespace(mountpoint="/mnt/far", fstype=kind)]

    monkeypatch.setattr(psutil, "disk_partitions", mounts)
    assert watching.is_silent(Path("/mnt/far/docs")) is silent
    assert watching.is_silent(Path("/mnt/farther")) is False


def test_changed_paths_mean_the_same_files_as_a_walk(docs: Path, tmp_path: Path) -> None:
    (docs / "sub" / "beside.txt").symlink_to(docs / "ferry.txt")
    (docs / "linked").symlink_to(docs / "sub", target_is_directory=True)
    roots = Roots({"docs": docs})
    every = [path for path in docs.rglob("*") if path.is_file() and is_wanted(path, docs)]
    assert {file.uri for file in files_at(every, docs, roots)} == {file.uri for file in files_at([docs], docs, roots)}
    assert not is_wanted(docs / "linked" / "bees.md", docs)
    assert not is_wanted(tmp_path / "other", docs)


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "text"])
def test_ctrl_c_ends_it_with_a_summary(bare_home: Path, docs: Path, as_json: bool) -> None:
    command = [sys.executable, "-m", "triptych.server.cli", "index", str(docs), "--watch"]
    (docs / "empty.md").write_bytes(b"")
    process = subprocess.Popen(
        [*command, *(["--json"] if as_json else [])], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TRIPTYCH_HOME": str(bare_home)},
    )  # fmt: skip
    assert process.stderr
    assert "2 indexed, 0 removed" in next(line for line in process.stderr if "indexed" in line)
    assert "problem: `docs/empty.md`" in process.stderr.readline()
    (docs / "new.md").write_text("Marmalade.", "utf-8")
    assert "1 indexed" in next(line for line in process.stderr if "indexed" in line)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "Traceback" not in err
    if as_json:
        made = json.loads(out)
        assert (made["rounds"], made["indexed"], made["items"]) == (2, 3, 3)
        assert [problem["uri"] for problem in made["problems"]] == ["docs/empty.md"]
    else:
        assert "2 rounds, 3 indexed" in out and "problem: `docs/empty.md`" in out
