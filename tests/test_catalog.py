"""The catalogue: what is acknowledged, what a crash leaves, and who follows an outdated id."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from triptych.errors import StoreError
from triptych.retrievers.base import Item, Source
from triptych.tools.catalog import FILE, Catalog, FileRow, digest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def items(uri: str, version: str, n: int) -> list[Item]:
    return [
        Item(f"{uri}-{version}-{at}", f"text {version} {at}", Source(uri, 0, 1), meta={"ordinal": at})
        for at in range(n)
    ]


def row(uri: str, version: str) -> FileRow:
    return FileRow(uri, content_hash=version, size=1, mtime_ns=1, encoded=True)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    made = Catalog(tmp_path / "library")
    yield made
    made.close()


def test_a_file_counts_only_when_it_is_acknowledged(catalog: Catalog) -> None:
    new = items("a.md", "v1", 3)
    catalog.begin(new)
    assert catalog.counts() == {}
    assert sorted(catalog.leftovers()) == sorted(item.id for item in new)
    assert catalog.acknowledge(row("a.md", "v1"), [item.id for item in new]) == []
    assert catalog.counts() == {"text": 3}
    assert catalog.leftovers() == []
    assert catalog.live("a.md") == {item.id: digest(item) for item in new}


def test_a_new_version_retires_the_old_one_and_names_the_successor(catalog: Catalog) -> None:
    for version, n in (("v1", 4), ("v2", 2)):
        new = items("a.md", version, n)
        catalog.begin(new)
        old = catalog.acknowledge(row("a.md", version), [item.id for item in new])
        catalog.retired(old)
    assert list(catalog.live("a.md")) == ["a.md-v2-0", "a.md-v2-1"]
    assert catalog.successor("a.md-v1-0") == "a.md-v2-0"
    assert catalog.successor("a.md-v1-3") == "a.md-v2-1"
    assert catalog.successor("a.md-v2-1") is None
    assert catalog.successor("never-seen") is None


def test_what_a_crash_leaves_is_found_after_opening_again(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    first = items("a.md", "v1", 2)
    catalog.begin(first)
    catalog.acknowledge(row("a.md", "v1"), [item.id for item in first])
    second = items("a.md", "v2", 2)
    catalog.begin(second)  # killed here: the store may have any part of v2
    catalog.close()

    again = Catalog(tmp_path)
    assert sorted(again.leftovers()) == ["a.md-v2-0", "a.md-v2-1"]
    again.retired(again.leftovers())
    assert list(again.live("a.md")) == ["a.md-v1-0", "a.md-v1-1"]
    assert again.leftovers() == []
    again.close()


def test_writing_the_same_version_again_never_hides_it(catalog: Catalog) -> None:
    same = items("a.md", "v1", 2)
    for _ in range(2):
        catalog.begin(same)
        assert catalog.acknowledge(row("a.md", "v1"), [item.id for item in same]) == []
    catalog.begin(same)
    assert catalog.counts() == {"text": 2}
    assert catalog.leftovers() == []


def test_files_are_listed_by_prefix_without_wildcards(catalog: Catalog) -> None:
    for uri in ("docs/a_b.md", "docs/axb.md", "docs/sub/c.md", "other/d.md"):
        catalog.put(row(uri, "v1"))
    assert [found.uri for found in catalog.files("docs/a_")] == ["docs/a_b.md"]
    assert [found.uri for found in catalog.files("docs/")] == ["docs/a_b.md", "docs/axb.md", "docs/sub/c.md"]
    assert catalog.files("%") == []


def test_a_failed_file_keeps_its_reason(catalog: Catalog) -> None:
    failed = FileRow(
        "x.pdf", "h", 1, 1, error_type="UnreadableFile", error_message="`x.pdf` is empty.", error_hint="No."
    )
    catalog.put(failed)
    assert catalog.file("x.pdf") == failed
    catalog.forget_empty()
    assert catalog.file("x.pdf") == failed


def test_a_broken_catalogue_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreError, match="cannot be read"):
        Catalog(tmp_path)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    Catalog(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute("UPDATE facts SET value = '99' WHERE name = 'format'")
    db.close()
    with pytest.raises(StoreError, match="format `99`"):
        Catalog(tmp_path)


AT_ONCE = """
import sys, time
from pathlib import Path
from triptych.tools.catalog import Catalog
for turn in range(40):
    time.sleep(max(0.0, float(sys.argv[2]) + turn / 40 - time.time()))
    Catalog(Path(sys.argv[1], str(turn))).close()
"""


def test_many_processes_make_one_catalogue(tmp_path: Path) -> None:
    start = str(time.time() + 2.0)
    several = [
        subprocess.Popen([sys.executable, "-c", AT_ONCE, str(tmp_path), start], stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [process.communicate(timeout=60)[1] for process in several] == [""] * 4
    assert all(process.returncode == 0 for process in several)
