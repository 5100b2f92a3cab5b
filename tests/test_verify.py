"""Damage is found, told apart from change, and mended without encoding again what is intact."""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from triptych import BadInput, NotFound, Settings, StoreError, Triptych
from triptych.server import cli, demo
from triptych.tools import mending
from triptych.tools.catalog import FILE

sys.path.append(str(Path(__file__).parent))
from counting import Counting, counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from triptych.tools.schemas import VerifyOut

PARAGRAPHS = 12


def text_of(n: int) -> str:
    return "\n\n".join(
        f"# Part {at} of {n}\n\n" + f"Petrel {n}-{at} flies over the sound. " * 20 for at in range(PARAGRAPHS)
    )


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for n in range(4):
        (folder / f"note-{n}.md").write_text(text_of(n), "utf-8")
    return folder


@pytest.fixture
def made(bare_home: Path, docs: Path) -> Iterator[tuple[Triptych, Counting]]:
    session, encoder = counted()
    session.index(docs)
    encoder.ids.clear()
    yield session, encoder
    session.close()


def store_of(library: Triptych) -> Any:
    return library._open()._store


def change(library: Triptych, passage: str, **fields: Any) -> None:
    """Write fields of a stored row behind everybody's back."""
    connection = store_of(library)._connection
    client, name = connection.link.client, connection.collection
    [row] = client.query(name, filter=f'id == "{passage}"', output_fields=["*"])
    client.upsert(name, [{**row, **fields}])


def passages(library: Triptych, uri: str) -> list[str]:
    return list(library._open()._catalog.live(uri))


def snapshot(library: Triptych) -> dict[str, tuple[str, tuple[float, ...]]]:
    store = store_of(library)
    space = store.spaces[0].name
    return {row["id"]: (row["text"], tuple(row[space])) for row in store.rows(["text", space])}


def damage(found: VerifyOut) -> dict[str, dict[str, int]]:
    return {row.uri: row.what for row in found.damaged}


def whole(library: Triptych) -> VerifyOut:
    found = library.verify()
    assert found.whole, found
    assert (found.damaged, found.extra, found.terms, found.catalogue) == ([], 0, 0, [])
    return found


def test_a_fresh_library_is_whole(made: tuple[Triptych, Counting]) -> None:
    library, encoder = made
    found = whole(library)
    assert (found.files, found.stale) == (4, [])
    assert found.passages == library.status().items > 8
    assert encoder.ids == []


def test_changes_on_disk_are_no_damage(made: tuple[Triptych, Counting], docs: Path) -> None:
    library, _ = made
    (docs / "note-0.md").write_text("Another text.", "utf-8")
    (docs / "note-1.md").unlink()
    (docs / "note-2.md").touch()
    found = whole(library)
    assert [(row.uri, row.why) for row in found.stale] == [("docs/note-0.md", "changed"), ("docs/note-1.md", "gone")]


FIELDS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "another text": ({"text": "The petrel was sold."}, {"text", "words"}),
    "a vector of zeros": ({"vector": 0.0}, {"vector"}),
    "not a number": ({"vector": float("nan")}, {"vector"}),
    "a flag without a vector": ({"flag": False}, {"vector"}),
    "no vector any more": ({"flag": False, "vector": 0.0}, {"vector"}),
    "other words": ({"lexical": {7: 1.0}}, {"words"}),
    "a payload that is no JSON": ({"payload": "{"}, {"payload"}),
    "another file": ({"uri": "docs/note-3.md"}, {"payload"}),
}


def changed_fields(library: Triptych, fields: dict[str, Any]) -> dict[str, Any]:
    space = store_of(library).spaces[0]
    names = {"vector": space.name, "flag": f"has_{space.name}"}
    return {names.get(name, name): [value] * space.dim if name == "vector" else value for name, value in fields.items()}


@pytest.mark.parametrize("harm", FIELDS)
def test_a_changed_row_is_found_and_nothing_else_is_encoded_again(made: tuple[Triptych, Counting], harm: str) -> None:
    library, encoder = made
    before = snapshot(library)
    victim = passages(library, "docs/note-1.md")[1]
    fields, faults = FIELDS[harm]
    change(library, victim, **changed_fields(library, fields))
    found = library.verify()
    assert not found.whole
    assert damage(found) == {"docs/note-1.md": dict.fromkeys(sorted(faults), 1)}

    mended = library.rebuild()
    assert encoder.ids == [victim]
    assert (mended.anew, mended.encoded, mended.kept, mended.problems) == (False, 1, len(before) - 1, [])
    whole(library)
    assert snapshot(library) == before


def test_the_text_is_taken_from_the_store_where_it_is_right(made: tuple[Triptych, Counting], docs: Path) -> None:
    library, encoder = made
    victim = passages(library, "docs/note-1.md")[0]
    change(library, victim, **changed_fields(library, {"vector": 0.0}))
    shutil.rmtree(docs)
    mended = library.rebuild()
    assert (mended.files, mended.problems, encoder.ids) == (0, [], [victim])
    whole(library)


def test_rows_that_no_file_has_are_found_and_go(made: tuple[Triptych, Counting]) -> None:
    from dataclasses import replace

    library, encoder = made
    [item] = store_of(library).get([passages(library, "docs/note-0.md")[0]])
    store_of(library).upsert([replace(item, id="stranger")], {})
    assert library.verify().extra == 1
    assert library.rebuild().encoded == 0
    whole(library)
    assert encoder.ids == []


def lose_segment(folder: Path) -> None:
    files = sorted((folder / "milvus.db").rglob("data_*.parquet"), key=lambda file: file.stat().st_size)
    files[0].unlink()


def test_a_lost_segment_is_read_again_from_the_files(
    made: tuple[Triptych, Counting], docs: Path, tmp_path: Path
) -> None:
    library, encoder = made
    (docs / "late.md").write_text(text_of(9), "utf-8")
    library.index(docs)
    before = snapshot(library)
    late = passages(library, "docs/late.md")
    encoder.ids.clear()
    library.close()
    lose_segment(library.folder)
    found = library.verify()
    assert damage(found) == {"docs/late.md": {"missing": len(late)}}
    assert library.rebuild().problems == []
    assert sorted(encoder.ids) == sorted(late)
    whole(library)
    assert snapshot(library) == before


def test_of_a_file_that_is_gone_the_intact_passages_stay(made: tuple[Triptych, Counting], docs: Path) -> None:
    library, encoder = made
    first, second, *rest = passages(library, "docs/note-2.md")
    change(library, first, text="Nothing of the kind.")
    store_of(library).delete(_where(second))
    kept = (docs / "note-2.md").read_bytes()
    (docs / "note-2.md").unlink()
    mended = library.rebuild()
    [problem] = mended.problems
    assert problem.uri == "docs/note-2.md"
    assert f"2 of {len(rest) + 2} passages" in problem.message and "gone" in problem.message
    assert encoder.ids == []
    assert passages(library, "docs/note-2.md") == rest
    assert [problem.uri for problem in library.status().problems] == ["docs/note-2.md"]
    assert library.status().files == 4
    whole(library)

    (docs / "note-2.md").write_bytes(kept)
    assert library.index(docs).indexed == 1
    assert passages(library, "docs/note-2.md") == [first, second, *rest]
    assert library.status().problems == []


def test_of_a_file_that_cannot_be_read_the_intact_passages_stay(
    made: tuple[Triptych, Counting], monkeypatch: pytest.MonkeyPatch
) -> None:
    library, _ = made
    first, *rest = passages(library, "docs/note-2.md")
    change(library, first, text="Nothing of the kind.")

    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("triptych.tools.indexing.read", broken)
    [problem] = library.rebuild().problems
    assert f"1 of {len(rest) + 1} passages" in problem.message
    assert passages(library, "docs/note-2.md") == rest


def test_a_changed_file_among_the_damaged_is_indexed_as_it_is_now(made: tuple[Triptych, Counting], docs: Path) -> None:
    library, _ = made
    store_of(library).delete(_where(passages(library, "docs/note-0.md")[0]))
    (docs / "note-0.md").write_text("The shearwater nests on the north face.", "utf-8")
    assert library.rebuild().encoded == 1
    whole(library)
    assert library.search("shearwater").hits[0].uri == "docs/note-0.md"


# --- term statistics -------------------------------------------------------------------------------------------------


def truncate(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)


HARM: dict[str, Callable[[Path], object]] = {
    "half": truncate,
    "empty": lambda file: file.write_bytes(b""),
    "garbage": lambda file: file.write_bytes(b"no database " * 999),
    "gone": lambda file: file.unlink(),
}


@pytest.mark.parametrize("harm", HARM)
def test_term_statistics_that_are_off_are_found_and_counted_anew(made: tuple[Triptych, Counting], harm: str) -> None:
    library, encoder = made
    before = [(hit.id, hit.score) for hit in library.search("petrel 2-3").hits]
    library.close()
    HARM[harm](library.folder / "lexicon.sqlite")
    found = library.verify()
    assert not found.whole and found.terms != 0 and found.damaged == []
    assert library.rebuild().encoded == 0
    whole(library)
    assert [(hit.id, hit.score) for hit in library.search("petrel 2-3").hits] == before
    assert encoder.ids == []


# --- the store as a whole --------------------------------------------------------------------------------------------

RUIN: dict[str, Callable[[Path], object]] = {
    "manifests": lambda folder: [file.write_bytes(b"{") for file in (folder / "milvus.db").rglob("manifest.json*")],
    "segments": lambda folder: [file.write_bytes(b"PAR1 no") for file in (folder / "milvus.db").rglob("*.parquet")],
    "folder": lambda folder: shutil.rmtree(folder / "milvus.db"),
    "description": lambda folder: (folder / "store.json").write_text("{"),
    "old format": lambda folder: (folder / "store.json").write_text('{"format": 1, "collection": "x", "spaces": []}'),
}


@pytest.mark.parametrize("ruin", RUIN)
def test_a_store_that_cannot_be_read_is_made_anew_from_the_list_of_files(
    made: tuple[Triptych, Counting], docs: Path, ruin: str
) -> None:
    library, _ = made
    before = snapshot(library)
    lost = passages(library, "docs/note-3.md")
    library.close()
    RUIN[ruin](library.folder)
    (docs / "note-3.md").unlink()
    try:
        assert not library.verify().whole
    except StoreError as error:
        assert "rebuild" in error.hint
    mended = library.rebuild()
    [problem] = mended.problems
    assert problem.uri == "docs/note-3.md" and "lost" in problem.message
    assert mended.encoded == len(before) - len(lost)
    whole(library)
    assert snapshot(library) == {one: row for one, row in before.items() if one not in lost}


# --- the catalogue ---------------------------------------------------------------------------------------------------


def flip(file: Path, every: int) -> None:
    content = bytearray(file.read_bytes())
    for at in range(every // 2, len(content), every):
        content[at] ^= 0xFF
    file.write_bytes(bytes(content))


def settled(library: Triptych) -> Path:
    """The catalogue with its log written back."""
    library.close()
    with sqlite3.connect(library.folder / FILE) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    return library.folder / FILE


@pytest.mark.parametrize("every", [97, 1111, 5003])
def test_a_damaged_catalogue_is_made_anew_from_the_store(
    made: tuple[Triptych, Counting], docs: Path, every: int
) -> None:
    library, encoder = made
    before = snapshot(library)
    file = settled(library)
    flip(file, every)
    try:
        assert not library.verify().whole
    except StoreError as error:
        assert "triptych rebuild" in error.hint
    mended = library.rebuild(docs)
    assert (mended.encoded, mended.problems, encoder.ids) == (0, [], [])
    whole(library)
    assert snapshot(library) == before
    assert file.with_name(FILE + mending.ASIDE).exists()
    assert library.index(docs).unchanged == 4


def test_a_catalogue_that_says_nothing_needs_the_folders(made: tuple[Triptych, Counting], docs: Path) -> None:
    library, encoder = made
    settled(library).write_bytes(b"no database at all" * 99)
    with pytest.raises(StoreError, match="does not say where its files lie") as caught:
        library.rebuild()
    assert "triptych rebuild PATH" in caught.value.hint
    assert library.rebuild(docs).encoded == 0
    whole(library)
    assert encoder.ids == []


def test_a_catalogue_that_is_gone_needs_the_folders(made: tuple[Triptych, Counting], docs: Path) -> None:
    library, _ = made
    settled(library).unlink()
    with pytest.raises(NotFound):
        library.status()
    with pytest.raises(StoreError, match="does not say where"):
        library.rebuild()
    (docs / "note-1.md").write_text("The skua came back.", "utf-8")
    assert library.rebuild([docs]).encoded == 1
    whole(library)


def test_a_new_catalogue_keeps_passages_whose_files_are_gone_and_says_so(
    made: tuple[Triptych, Counting], docs: Path
) -> None:
    library, _ = made
    before = snapshot(library)
    settled(library).write_bytes(b"x" * 5000)
    (docs / "note-1.md").unlink()
    [problem] = library.rebuild(docs).problems
    assert problem.uri == "docs/note-1.md" and "nothing shows" in problem.message
    assert snapshot(library) == before
    assert [row.why for row in whole(library).stale] == ["gone"]


def test_neither_catalogue_nor_store(made: tuple[Triptych, Counting], docs: Path) -> None:
    library, _ = made
    with sqlite3.connect(settled(library)) as db:
        db.execute("UPDATE passages SET ordinal = 7")
    db.close()
    (library.folder / "store.json").write_text("{")
    for _ in range(2):  # the first has already made a new catalogue
        with pytest.raises(StoreError, match="description"):
            library.rebuild()
    mended = library.rebuild(docs)
    assert mended.anew and mended.encoded == library.status().items
    whole(library)


def test_an_entry_of_the_catalogue_that_contradicts_its_file_is_found(made: tuple[Triptych, Counting]) -> None:
    library, encoder = made
    with sqlite3.connect(settled(library)) as db:
        db.execute("UPDATE files SET content_hash = 'ab' || content_hash WHERE uri = 'docs/note-1.md'")
    db.close()
    assert library.verify().catalogue == ["`docs/note-1.md` has passages of another version of the file"]
    assert library.rebuild().encoded == 0
    whole(library)
    assert encoder.ids == []


def test_a_newer_catalogue_is_left_alone(made: tuple[Triptych, Counting], docs: Path) -> None:
    library, _ = made
    with sqlite3.connect(settled(library)) as db:
        db.execute("UPDATE facts SET value = '99' WHERE name = 'format'")
    db.close()
    with pytest.raises(StoreError, match="format `99`"):
        library.rebuild(docs)
    assert not (library.folder / (FILE + mending.ASIDE)).exists()


def test_another_encoder_is_refused(made: tuple[Triptych, Counting]) -> None:
    library, _ = made
    library._open()._catalog.set_fact("encoder", "some_other_encoder abc")
    library.close()
    with pytest.raises(StoreError, match="some_other_encoder"):
        library.rebuild()


def test_what_is_no_library_is_not_found(bare_home: Path, docs: Path) -> None:
    session, _ = counted("nowhere")
    with pytest.raises(NotFound):
        session.rebuild(docs)
    with pytest.raises(BadInput, match="does not exist"):
        session.rebuild(docs / "missing")
    assert not session.folder.exists()


# --- the command line ------------------------------------------------------------------------------------------------


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = cli.main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_exit_codes_and_words(bare_home: Path, docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "index", str(docs))[0] == 0
    code, found = said(capsys, "verify")
    assert (code, found["whole"]) == (0, True)
    home = bare_home / "libraries" / "default"
    lose_segment(home)
    code, found = said(capsys, "verify")
    assert (code, found["whole"]) == (4, False)
    assert len(found["damaged"]) == 4
    assert cli.main(["verify"]) == 4
    told = capsys.readouterr().out
    assert "docs/note-0.md" in told and "triptych rebuild" in told
    code, mended = said(capsys, "rebuild")
    assert (code, mended["problems"]) == (0, [])
    assert cli.main(["verify"]) == 0
    assert "whole" in capsys.readouterr().out
    assert cli.main(["rebuild"]) == 0
    assert "kept" in capsys.readouterr().out


def _where(passage: str) -> Any:
    from triptych.retrievers.base import Where

    return Where(ids=(passage,))


# --- the demo's own library -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ruin", ["old format", "manifests", "description"])
def test_the_demo_makes_its_own_library_anew(bare_home: Path, docs: Path, ruin: str) -> None:
    settings = Settings.load()
    assert demo.renew(settings, docs) is False
    with Triptych(demo.LIBRARY, settings) as library:
        library.index(docs)
        before = library.status().items
    assert demo.renew(settings, docs) is False
    RUIN[ruin](library.folder)
    assert demo.renew(settings, docs) is True
    with library:
        assert library.verify().whole
        assert library.status().items == before


def test_the_demo_never_touches_a_library_of_the_users(bare_home: Path, docs: Path, tmp_path: Path) -> None:
    sample = tmp_path / "sample"
    sample.mkdir()
    settings = Settings.load()
    with Triptych(demo.LIBRARY, settings) as library:
        library.index(docs)
    RUIN["old format"](library.folder)
    held = (library.folder / "store.json").read_bytes()
    with pytest.raises(StoreError, match="format `1`"):
        demo.renew(settings, sample)
    assert (library.folder / "store.json").read_bytes() == held
