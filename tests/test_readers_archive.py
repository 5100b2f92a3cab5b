"""Archives: opened only when asked, member by member, within limits; what is in them is a file as any other."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import sys
import tarfile
import tempfile
import time
import wave
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from triptych import BadInput, Settings, StaleId, Triptych, UnreadableFile
from triptych.retrievers.base import MediaRef, Where
from triptych.retrievers.readers import archive, read, read_open
from triptych.retrievers.readers._members import safe_name
from triptych.retrievers.readers.base import Limits
from triptych.retrievers.readers.picture import drawn
from triptych.server import cli
from triptych.tools.catalog import Catalog, FileRow

sys.path.append(str(Path(__file__).parent))
from made_files import word, zipped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

FACTS: dict[str, bytes] = {
    "lantern.md": b"# Lantern\n\nThe lantern at Oster Point burns whale oil until 1871.",
    "sub/ferry.txt": b"The ferry to Hallow leaves at a quarter past seven from the north pier.",
    "sub/rules.docx": word(),
}


def tarred(parts: Mapping[str, bytes], *more: tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as made:
        for name, content in parts.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
        for info in more:
            made.addfile(info)
    return out.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def picture(colour: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (90, 60), colour).save(out, "PNG")
    return out.getvalue()


PACKED: dict[str, Callable[[Mapping[str, bytes]], bytes]] = {
    "a.zip": zipped,
    "stored.zip": lambda parts: zipped(parts, zipfile.ZIP_STORED),
    "bzip2.zip": lambda parts: zipped(parts, zipfile.ZIP_BZIP2),
    "a.tar": tarred,
    "gnu.tar": lambda parts: tarred(parts, form=tarfile.GNU_FORMAT),
    "old.tar": lambda parts: tarred(parts, form=tarfile.USTAR_FORMAT),
    "a.tar.gz": lambda parts: gzip.compress(tarred(parts)),
    "a.tgz": lambda parts: gzip.compress(tarred(parts)),
    "a.tar.bz2": lambda parts: bz2.compress(tarred(parts)),
    "a.tar.xz": lambda parts: lzma.compress(tarred(parts)),
}


def opened(folder: Path, content: bytes, limits: Limits | None = None, name: str = "a.zip") -> archive.Archive:
    (folder / name).write_bytes(content)
    found = archive.at(folder / name, f"box/{name}", limits or Limits())
    assert found is not None
    return found


def held(content: bytes, limits: Limits | None = None, name: str = "a.zip") -> tuple[dict[str, bytes], list[str]]:
    """What is in an archive, and what it says was left out."""
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder), content, limits, name) as made:
        parts = {}
        for member in made.names:
            with made.opened(member) as file:
                parts[member] = file.read()
        return parts, [message for message, _ in made.left_out()]


def refused(content: bytes, limits: Limits | None = None, name: str = "a.zip") -> UnreadableFile:
    start = time.monotonic()
    with pytest.raises(UnreadableFile) as caught:
        held(content, limits, name)
    assert time.monotonic() - start < 5
    assert f"`box/{name}" in caught.value.message
    assert caught.value.hint
    return caught.value


# --- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PACKED)
def test_what_is_in_an_archive(name: str) -> None:
    assert held(PACKED[name](FACTS), name=name) == (FACTS, [])


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_file_is_an_archive_of_one(compress: Callable[[bytes], bytes]) -> None:
    suffix = {gzip.compress: "gz", bz2.compress: "bz2", lzma.compress: "xz"}[compress]
    text = b"The ferry leaves at seven.\n" * 100_000
    assert held(compress(text), name=f"log.txt.{suffix}") == ({"log.txt": text}, [])
    assert held(compress(text) + compress(b"And returns."), name="log") == ({"log": text + b"And returns."}, [])
    assert held(compress(b"x"), name=f"LOG.{suffix.upper()}") == ({"LOG": b"x"}, [])


def test_documents_that_are_zip_archives_and_other_files_are_none(tmp_path: Path) -> None:
    odt = zipped({"mimetype": "application/vnd.oasis.opendocument.text", "content.xml": "<x/>"})
    others = {"b.7z": b"7z\xbc\xaf\x27\x1c" + bytes(99), "c.rar": b"Rar!\x1a\x07\x01\x00", "d.zst": b"\x28\xb5\x2f\xfd"}
    texts = {"e.txt": b"words", "f.bin": bytes(2000), "g.zip": b"PK\x03\x04 and no more"}
    for name, content in {"a.docx": word(), "h.odt": odt, **others, **texts}.items():
        (tmp_path / name).write_bytes(content)
        assert archive.at(tmp_path / name, name, Limits()) is None


def test_names_are_shown_clean() -> None:
    assert list(held(zipped({"a\\b.txt": b"1", "./c//d.txt": b"2", "e\u200b\u202e.txt": b"3"}))[0]) == [
        "a/b.txt",
        "c/d.txt",
        "e.txt",
    ]
    unmarked = zipped({"größe.txt": b"x"}).replace(b"\0\x08", b"\0\0")  # UTF-8, and no flag that says so
    assert list(held(unmarked)[0]) == ["größe.txt"]


# --- names and kinds of members ---------------------------------------------------------------------------------------


def test_names_that_lead_out_links_and_devices_are_left_out(tmp_path: Path) -> None:
    outside = {"../../a.txt": b"x", "/etc/b.txt": b"x", "C:\\c.txt": b"x", "d/..\\../e.txt": b"x", "..": b"x"}
    parts, left = held(zipped({**outside, "fine.txt": b"fine"}))
    assert parts == {"fine.txt": b"fine"}
    told = "has members whose names lead out of it or are no names of files (5), such as `../../a.txt`: left out."
    assert left == [f"`box/a.zip` {told}"]
    kinds = {"s": tarfile.SYMTYPE, "h": tarfile.LNKTYPE, "c": tarfile.CHRTYPE, "f": tarfile.FIFOTYPE}
    links = [special(name, kind, "/etc/passwd") for name, kind in kinds.items()]
    parts, left = held(tarred({"../x": b"x", "fine.txt": b"fine"}, special("folder", tarfile.DIRTYPE), *links))
    assert parts == {"fine.txt": b"fine"}
    assert [("links, devices or sparse files (4)" in one, "names of files (1)" in one) for one in left] == [
        (False, True),
        (True, False),
    ]
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        made.writestr(link, "/etc/passwd")
    told = "has members that are links, devices or sparse files (1), such as `link`: left out."
    assert held(out.getvalue()) == ({}, [f"`box/a.zip` {told}"])


def test_members_that_are_encrypted_or_packed_otherwise_are_named() -> None:
    locked = bytearray(zipped({"a.txt": b"a", "b.txt": b"b"}))
    at = locked.index(b"PK\x01\x02")
    locked[at + 8] |= 1
    told = "`box/a.zip` has members that are encrypted (1), such as `a.txt`: left out."
    assert held(bytes(locked)) == ({"b.txt": b"b"}, [told])
    locked[at + 8] &= 0xFE
    locked[at + 10] = 9  # deflate64
    parts, [left] = held(bytes(locked))
    assert (list(parts), "packed by a method not known here" in left) == (["b.txt"], True)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_of_members_with_one_name_the_last_counts() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        for name, text in (("a.txt", "old"), ("a.txt", "new"), ("b", "file"), ("b/c.txt", "inside a file")):
            made.writestr(name, text)
    parts, left = held(out.getvalue())
    assert parts == {"a.txt": b"new", "b": b"file"}
    assert len(left) == 1 and "stand in it twice, or are both file and folder (2)" in left[0]


NAMES = st.one_of(
    st.text(max_size=40),
    st.lists(
        st.sampled_from(["..", ".", "", "a", "..\u200b", " ..", "\\", "C:", "~", "con", "\x00", "é"]), max_size=9
    ).map("/".join),
)


@given(name=NAMES)
@example(name=".\u200b./a")
@example(name="a/" * 600 + "b")
def test_a_name_that_passes_is_a_path_below_the_archive(name: str) -> None:
    safe = safe_name(name)
    if safe is None:
        return
    path = PurePosixPath("/box/a.zip") / safe
    assert str(path) == f"/box/a.zip/{safe}"
    assert os.path.normpath(path) == str(path)
    assert safe.encode() and not set(safe) & set("\\\n\t\0\u200b")
    assert safe_name(safe) == safe


@settings(max_examples=40)
@given(names=st.lists(NAMES, min_size=1, max_size=6, unique=True), data=st.data())
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_whatever_the_names_what_is_listed_is_safe_and_can_be_read(names: list[str], data: st.DataObject) -> None:
    named = {name: b"x" for name in names if "\0" not in name and name.isprintable()} or {"a": b"x"}
    parts, _ = held(data.draw(st.sampled_from([zipped, tarred]))(named))
    assert set(parts.values()) <= {b"x"}
    assert all(safe_name(name) == name for name in parts)
    assert not any(str(above) in parts for name in parts for above in PurePosixPath(name).parents)


# --- limits and damage ------------------------------------------------------------------------------------------------

SMALL = Limits(max_members=3, max_unpacked=2_000_000)
ZEROS = bytes(30_000_000)


@pytest.mark.parametrize(
    ("content", "limits", "told"),
    [
        (zipped({str(n): b"x" for n in range(4)}), SMALL, "max_members"),
        (tarred({str(n): b"x" for n in range(4)}), SMALL, "max_members"),
        (zipped({"a": ZEROS}), Limits(), "`max_ratio` = 200"),
        (gzip.compress(ZEROS), Limits(), "`max_ratio` = 200"),
        (bz2.compress(ZEROS), Limits(), "`max_ratio` = 200"),
        (lzma.compress(ZEROS), Limits(), "`max_ratio` = 200"),
        (gzip.compress(tarred({"a": ZEROS})), Limits(), "`max_ratio` = 200"),
        (zipped({"a": os.urandom(2_100_000)}), SMALL, "`max_unpacked` = 2000000"),
        (tarred({"a": ZEROS}), SMALL, "`max_unpacked` = 2000000"),
        (gzip.compress(os.urandom(2_100_000)), SMALL, "`max_unpacked` = 2000000"),
        (tarred({"a": b"x" * 2000})[:1500], Limits(), "damaged or truncated tar archive"),
        (tarred({"a": b"x"})[:1024] + b"rubbish" * 200, Limits(), "damaged or truncated tar archive"),
        (gzip.compress(tarred(FACTS))[:-9], Limits(), "damaged or truncated gzip file"),
        (lzma.compress(os.urandom(9000))[:-900], Limits(), "damaged or truncated xz file"),
        (bz2.compress(os.urandom(9000))[:-900], Limits(), "damaged or truncated bzip2 file"),
    ],
)
def test_what_is_too_much_or_damaged_is_refused_as_a_whole(content: bytes, limits: Limits, told: str) -> None:
    assert told in refused(content, limits).message


def test_headers_that_say_how_long_they_are_are_not_believed() -> None:
    long = special("x", b"x")
    long.size = 2**31
    damaged = long.tobuf(tarfile.PAX_FORMAT) + bytes(3_000_000)
    assert "damaged or truncated tar" in refused(damaged).message
    chain = special("x", b"L").tobuf() + bytes(0)
    assert "damaged or truncated tar" in refused(chain * 3000).message
    sparse = special("x", tarfile.GNUTYPE_SPARSE)
    sparse.size = 2**40
    assert "damaged or truncated tar" in refused(sparse.tobuf(tarfile.GNU_FORMAT) + bytes(2000)).message


def test_a_member_that_is_damaged_does_not_lose_the_others(tmp_path: Path) -> None:
    content = bytearray(zipped(FACTS, zipfile.ZIP_STORED))
    content[content.index(b"ferry to Hallow")] ^= 1
    with opened(tmp_path, bytes(content)) as made:
        with pytest.raises(UnreadableFile, match=r"`box/a\.zip/sub/ferry\.txt` is a damaged or truncated file in an"):
            made.opened("sub/ferry.txt")
        with made.opened("lantern.md") as file:
            assert file.read() == FACTS["lantern.md"]
    with (
        opened(tmp_path, zipped(FACTS), Limits(max_media_bytes=70)) as made,
        pytest.raises(UnreadableFile, match="`max_media_bytes` = 70"),
    ):
        made.opened("sub/ferry.txt")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_damaged_archives_end_in_a_named_error_or_in_what_is_left(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(PACKED[data.draw(st.sampled_from(list(PACKED)))](FACTS))
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(content)), st.integers(1, len(content))))
    (tmp_path / "a").write_bytes(bytes(content[:cut]))
    try:
        made = archive.at(tmp_path / "a", "box/a", Limits())
        for name in [] if made is None else made.names:
            assert made is not None
            assert safe_name(name) == name
            try:
                made.opened(name).close()
            except UnreadableFile as error:
                assert f"`box/a/{name}`" in error.message
        if made is not None:
            made.__exit__(None, None, None)
    except UnreadableFile as error:
        assert "`box/a`" in error.message and error.hint


# --- a path below an archive ------------------------------------------------------------------------------------------


def test_a_path_below_an_archive_is_that_of_a_file_in_it(tmp_path: Path) -> None:
    inner = PACKED["a.tar.gz"](FACTS)
    (tmp_path / "a.zip").write_bytes(zipped({**FACTS, "red.png": picture("red"), "deep/b.tgz": inner}))
    assert "quarter past seven" in read(tmp_path / "a.zip/sub/ferry.txt", "a.zip/sub/ferry.txt").sections[0].text
    document = read(tmp_path / "a.zip/deep/b.tgz/sub/rules.docx", "a.zip/deep/b.tgz/sub/rules.docx")
    assert "allowance" in "".join(section.text for section in document.sections)
    shown = drawn(MediaRef(str(tmp_path / "a.zip/red.png"), "image/png"), 64)
    assert (shown.size, shown.getpixel((3, 3))) == ((64, 43), (255, 0, 0))
    for gone in ("a.zip/nowhere.md", "a.zip/sub/ferry.txt/x", "a.zip/deep/b.tgz/nowhere", "a.zip/sub"):
        with pytest.raises(UnreadableFile, match="not in its archive any more"):
            read(tmp_path / gone, gone)
    (tmp_path / "plain.txt").write_text("words", "utf-8")
    with pytest.raises(UnreadableFile, match="not in its archive any more"):
        read(tmp_path / "plain.txt/x", "plain.txt/x")
    assert {path.name for path in tmp_path.iterdir()} == {"a.zip", "plain.txt"}


def test_sound_in_an_archive_is_read_without_a_path(tmp_path: Path) -> None:
    out = io.BytesIO()
    with wave.open(out, "wb") as sound:
        sound.setparams((1, 2, 16_000, 0, "NONE", ""))
        sound.writeframes(bytes(64_000))
    with opened(tmp_path, gzip.compress(tarred({"silence.wav": out.getvalue()}))) as made:
        document = read_open(made.opened("silence.wav"), "box/a.zip/silence.wav")
    assert (document.mime, document.meta["seconds"]) == ("audio/wav", 2.0)


# --- libraries --------------------------------------------------------------------------------------------------------


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "bees.md").write_text("# Bees\n\nThe apiary holds fourteen hives of black bees.", "utf-8")
    (folder / "box.zip").write_bytes(zipped(FACTS))
    return folder


@pytest.fixture
def library(bare_home: Path) -> Iterator[Triptych]:
    with Triptych("packed", Settings.load(archives=True)) as session:
        yield session


def uris(library: Triptych) -> set[str]:
    return {uri for uri in (row.uri for row in library._open()._catalog.files()) if library._open()._catalog.live(uri)}


INSIDE = {f"docs/box.zip/{name}" for name in FACTS}


def found(library: Triptych, query: str) -> str:
    return library.search(query).hits[0].uri


def test_an_archive_is_not_opened_unless_asked(bare_home: Path, docs: Path) -> None:
    (docs / "old.7z").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(99))
    (docs / "big.tar").write_bytes(tarred({"a": bytes(100_000)}))
    (docs / "many.zip").write_bytes(zipped({str(n): b"" for n in range(11_000)}))
    with Triptych("packed", Settings.load()) as library:
        result = library.index(docs)
        assert uris(library) == {"docs/bees.md"}
    told = {problem.uri: (problem.message, problem.hint) for problem in result.problems}
    ask = "Run `triptych index PATH --archives`, or unpack it and index the folder."
    assert told == {
        "docs/box.zip": ("`docs/box.zip` is an archive (ZIP), and archives are not opened unless asked.", ask),
        "docs/big.tar": ("`docs/big.tar` is an archive (tar), and archives are not opened unless asked.", ask),
        "docs/many.zip": ("`docs/many.zip` is an archive (ZIP), and archives are not opened unless asked.", ask),
        "docs/old.7z": (
            "`docs/old.7z` is an archive of a kind that is not opened (7z).",
            "Unpack it and index the folder.",
        ),
    }


def test_an_archive_too_large_to_be_read_as_a_file_is_named_too(tmp_path: Path) -> None:
    for name, content in {"a.zip": zipped(FACTS), "a.tar": tarred(FACTS), "b.txt": b"x" * 999}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableFile, match="too large" if name == "b.txt" else "not opened unless asked"):
            read(tmp_path / name, name, Limits(max_bytes=99))


def test_what_is_in_an_archive_is_found_fetched_and_left_alone(library: Triptych, docs: Path) -> None:
    first = library.index(docs)
    assert (first.files, first.indexed, first.unchanged, first.problems) == (5, 5, 0, [])
    assert uris(library) == {"docs/bees.md", *INSIDE}
    [hit, *_] = library.search("ferry pier").hits
    assert (hit.uri, hit.title) == ("docs/box.zip/sub/ferry.txt", "ferry.txt")
    assert "quarter past seven" in library.fetch(hit.id).text
    assert library.retrieve("lantern whale oil", 400).passages[0].uri == "docs/box.zip/lantern.md"
    assert library.verify().whole and library.verify().stale == []
    again = library.index(docs)
    assert (again.files, again.indexed, again.unchanged, again.items) == (5, 0, 5, first.items)
    os.utime(docs / "box.zip")
    assert library.index(docs).unchanged == 5


def test_an_archive_that_changed_brings_what_changed_in_it(library: Triptych, docs: Path) -> None:
    library.index(docs)
    old = library.search("ferry pier").hits[0].id
    parts = {
        **FACTS,
        "sub/ferry.txt": b"The ferry to Hallow now leaves at eight from the south pier.",
        "new.md": b"Moss",
    }
    del parts["lantern.md"]
    (docs / "box.zip").write_bytes(zipped(parts))
    assert [(row.uri, row.why) for row in library.verify().stale] == [("docs/box.zip", "changed")]
    result = library.index(docs)
    assert (result.indexed, result.unchanged, result.removed) == (3, 2, 1)  # the archive, new.md, ferry.txt
    assert uris(library) == {"docs/bees.md", *(f"docs/box.zip/{name}" for name in parts)}
    with pytest.raises(StaleId) as stale:
        library.fetch(old)
    assert library.search("ferry south pier").hits[0].id in stale.value.hint
    assert library.verify().whole


def test_an_archive_that_is_gone_takes_what_was_in_it_along(library: Triptych, docs: Path) -> None:
    library.index(docs)
    (docs / "box.zip").unlink()
    assert {row.uri for row in library.verify().stale} == {"docs/box.zip", *INSIDE}
    assert library.index(docs).removed == 0
    result = library.index(docs, prune=True)
    assert (result.removed, uris(library)) == (4, {"docs/bees.md"})
    assert library.index(docs, prune=True).removed == 0


def test_pruning_keeps_what_is_in_an_archive_that_is_there(library: Triptych, docs: Path) -> None:
    library.index(docs)
    assert library.index(docs, prune=True).removed == 0
    assert uris(library) == {"docs/bees.md", *INSIDE}


def test_what_was_opened_once_is_opened_again_and_other_archives_are_not(bare_home: Path, docs: Path) -> None:
    with Triptych("packed", Settings.load(archives=True)) as library:
        library.index(docs)
    (docs / "box.zip").write_bytes(zipped({**FACTS, "new.md": b"Moss grows on the north face."}))
    (docs / "other.zip").write_bytes(zipped(FACTS))
    with Triptych("packed", Settings.load()) as library:
        result = library.index(docs)
        assert [problem.uri for problem in result.problems] == ["docs/other.zip"]
        assert found(library, "moss north face") == "docs/box.zip/new.md"
        assert library.index(docs, rebuild=True).files == 7
        assert uris(library) == {"docs/bees.md", "docs/box.zip/new.md", *INSIDE}
        assert library.delete(uri_prefix="docs/box.zip/").deleted > 0  # and this is how it is no longer asked for
        assert {problem.uri for problem in library.index(docs).problems} == {"docs/box.zip", "docs/other.zip"}
        assert uris(library) == {"docs/bees.md"}


def test_an_archive_that_can_no_longer_be_opened_or_is_none_any_more(library: Triptych, docs: Path) -> None:
    library.index(docs)
    (docs / "box.zip").write_bytes(zipped(FACTS)[:-20])
    [problem] = library.index(docs).problems
    assert (problem.uri, "damaged" in problem.message) == ("docs/box.zip", True)
    assert uris(library) == {"docs/bees.md"}
    (docs / "box.zip").write_bytes(zipped(FACTS))
    library.index(docs)
    assert uris(library) == {"docs/bees.md", *INSIDE}
    (docs / "box.zip").write_text("now it is words", "utf-8")
    assert library.index(docs).problems == []
    assert uris(library) == {"docs/bees.md", "docs/box.zip"}
    (docs / "box.zip").unlink()
    (docs / "box.zip").mkdir()
    (docs / "box.zip" / "lantern.md").write_bytes(FACTS["lantern.md"])
    library.index(docs, prune=True)
    assert uris(library) == {"docs/bees.md", "docs/box.zip/lantern.md"}


def bomb(levels: int) -> bytes:
    made = bytes(900_000)
    for _ in range(levels):
        made = zipped({f"{n}.zip": made for n in range(8)})
    return made


def test_bombs_and_bad_members_end_in_named_problems_and_the_others_are_read(library: Triptych, docs: Path) -> None:
    three = zipped({"three.txt": b"three levels down"})
    parts = {
        "fine.txt": b"The marmalade is made in February.",
        "empty.txt": b"",
        "broken.pdf": b"%PDF-1.7 and no more",
        "old.7z": b"7z\xbc\xaf\x27\x1c" + bytes(99),
        "../out.txt": b"out",
        ".hidden.txt": b"hidden",
        "__MACOSX/._fine.txt": b"resource",
        "node_modules/x.md": b"skipped",
        "pkg/__init__.py": b"",
        "one.zip": zipped({"two.zip": three, "inside.txt": b"Samphire grows inside the second archive."}),
        "ratio.gz": gzip.compress(ZEROS),
    }
    (docs / "mixed.zip").write_bytes(zipped(parts))
    (docs / "bomb.zip").write_bytes(bomb(5))
    (docs / "flat.zip").write_bytes(zipped({"zeros": ZEROS}))
    (docs / "last.md").write_text("last of all", "utf-8")
    start = time.monotonic()
    result = library.index(docs)
    assert time.monotonic() - start < 20
    told = {problem.uri: problem.message for problem in result.problems}
    expected = {
        "docs/flat.zip": "max_ratio",
        "docs/mixed.zip": "lead out of it",
        "docs/mixed.zip/empty.txt": "is empty",
        "docs/mixed.zip/broken.pdf": "truncated",
        "docs/mixed.zip/old.7z": "(7z)",
        "docs/mixed.zip/one.zip/two.zip": "`max_nesting` = 2",
        "docs/mixed.zip/ratio.gz": "max_ratio",
    }
    for uri, words in expected.items():
        assert words in told.pop(uri)
    assert len(told) > 0 and all(uri.startswith("docs/bomb.zip/") for uri in told)
    assert {"docs/last.md", "docs/mixed.zip/fine.txt", "docs/mixed.zip/one.zip/inside.txt"} <= uris(library)
    assert not any("hidden" in uri or "MACOSX" in uri or "modules" in uri or "pkg" in uri for uri in uris(library))
    assert library.verify().whole
    assert found(library, "samphire") == "docs/mixed.zip/one.zip/inside.txt"
    assert {path.name for path in docs.iterdir()} >= {"mixed.zip", "bomb.zip"} and not (docs / "mixed").exists()


def test_pictures_in_archives_are_shown(library: Triptych, docs: Path) -> None:
    (docs / "pictures.tgz").write_bytes(gzip.compress(tarred({"trip/red harbour.png": picture("red")})))
    library.index(docs)
    [hit] = [hit for hit in library.search("red harbour").hits if hit.uri.endswith(".png")]
    assert hit.uri == "docs/pictures.tgz/trip/red harbour.png"
    shown = library.view(hit.id, 64)
    assert (shown.width, shown.height) == (64, 43)
    (docs / "pictures.tgz").write_bytes(gzip.compress(tarred({"trip/other.png": picture("red")})))
    with pytest.raises(UnreadableFile, match="not in its archive any more"):
        library.view(hit.id, 64)


def test_a_damaged_library_is_mended_from_the_archive(bare_home: Path, docs: Path) -> None:
    with Triptych("packed", Settings.load(archives=True)) as library:
        library.index(docs)
        items = library.status().items
        lost = tuple(library._open()._catalog.live("docs/box.zip/lantern.md"))
    with Triptych("packed", Settings.load()) as library:
        library._open()._store.delete(Where(ids=lost))
        library._open()._store.flush()
        assert not library.verify().whole
        rebuilt = library.rebuild()
        assert (rebuilt.problems, rebuilt.items) == ([], items)
        assert library.verify().whole
    for end in ("", "-wal", "-shm"):
        (bare_home / "libraries" / "packed" / f"catalog.sqlite{end}").unlink(missing_ok=True)
    with Triptych("packed", Settings.load()) as library:
        rebuilt = library.rebuild(docs)
        assert (rebuilt.problems, rebuilt.items) == ([], items)
        assert library.verify().whole and uris(library) == {"docs/bees.md", *INSIDE}


def test_a_catalogue_knows_what_is_inside(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    for uri in ("d/a.zip", "d/a.zip/x", "d/a.zip/y/z", "d/a.zip0", "d/a.zi", "d/a.zip-b/x", "d/a.zip/é"):
        catalog.put(FileRow(uri, "h", 1, 1))
    assert [row.uri for row in catalog.inside("d/a.zip")] == ["d/a.zip/x", "d/a.zip/y/z", "d/a.zip/é"]
    catalog.close()


def test_watching_follows_archives(library: Triptych, docs: Path) -> None:
    library.index(docs)
    collection = library._open()
    (docs / "box.zip").write_bytes(zipped({"only.md": b"Thyme."}))
    assert collection.follow({docs: {docs / "box.zip"}}).removed == 3
    assert uris(library) == {"docs/bees.md", "docs/box.zip/only.md"}
    (docs / "box.zip").rename(docs / "moved.zip")
    collection.follow({docs: {docs / "box.zip", docs / "moved.zip"}})
    assert uris(library) == {"docs/bees.md", "docs/moved.zip/only.md"}
    (docs / "moved.zip").unlink()
    collection.follow({docs: {docs / "moved.zip"}})
    assert uris(library) == {"docs/bees.md"}


# --- asking -----------------------------------------------------------------------------------------------------------


def test_asking_by_setting(tmp_path: Path) -> None:
    environ = {"TRIPTYCH_HOME": str(tmp_path)}
    assert Settings.load(environ=environ).archives is False
    assert Settings.load(environ={**environ, "TRIPTYCH_ARCHIVES": "1"}).archives is True
    assert Settings.load(environ={**environ, "TRIPTYCH_ARCHIVES": "1"}, archives=False).archives is False
    with pytest.raises(BadInput, match="Setting `archives` is `maybe`"):
        Settings.load(environ={**environ, "TRIPTYCH_ARCHIVES": "maybe"})


def test_the_command_line(bare_home: Path, docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> Any:
        assert cli.main([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    [problem] = run("index", str(docs))["problems"]
    assert "--archives" in problem["hint"]
    made = run("index", str(docs), "--archives")
    assert (made["problems"], made["indexed"]) == ([], 4)
    [hit, *_] = run("search", "ferry pier")["hits"]
    assert hit["uri"] == "docs/box.zip/sub/ferry.txt"
    assert "quarter past seven" in run("fetch", hit["id"])["text"]
    assert run("verify")["whole"] is True
    assert run("status")["files"] == 5
    assert run("search", "lantern", "--uri-prefix", "docs/box.zip/")["hits"][0]["uri"] == "docs/box.zip/lantern.md"
