"""PLAID as a retriever of a library: what it finds, how its index grows, and what a damaged file or a stop leaves."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch

from triptych import Settings, Triptych, progress
from triptych.errors import BadInput, Cancelled, MissingWeights, NotFound, StoreError, Unsupported
from triptych.retrievers.base import Item, Query, Source, Where
from triptych.retrievers.searchable import searchable_text
from triptych.retrievers.stores.vectors import max_sim
from triptych.retrievers.text._plaid import Depth, Plaid
from triptych.retrievers.text._plaid_index import AGAIN, FILE, LATER, Index
from triptych.retrievers.text._plaid_parts import Coded, Whole
from triptych.retrievers.text.colbert import ColBERT
from triptych.retrievers.text.plaid import PLAID
from triptych.server.cli import main

ALL = Depth(10**6, -1.0, 10**6)
"""Nothing is pruned."""
WORDS = ("owl", "barn", "ferry", "noon", "hotel", "desk", "fox", "moon", "rain", "salt")
TEXTS = [f"The {a} saw {b}, and the {b} saw no {a}{b}." for a in WORDS for b in WORDS if a < b]
ITEMS = [Item(f"i{n:03}", text, Source(f"notes/{n % 5}/{n}.md"), meta={"year": n}) for n, text in enumerate(TEXTS)]
ASKED = [Query("where did the owl see the barn"), Query("ferry at noon"), Query("salt fox")]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index is compressed from 200 token vectors on."""
    monkeypatch.setattr(PLAID, "whole", 200)


@pytest.fixture
def made() -> Iterator[Any]:
    """Makes retrievers that nothing is pruned of, and closes them."""
    all_: list[PLAID] = []

    def make(folder: Path | None = None, depth: Depth | None = ALL) -> PLAID:
        tiny = PLAID.tiny(0)
        all_.append(tiny if folder is None else PLAID.open(folder, tiny.encoder))
        all_[-1]._depth = depth
        return all_[-1]

    yield make
    for one in all_:
        one.store.close()


@pytest.fixture
def library(bare_home: Path) -> Iterator[Triptych]:
    """With a tiny ColBERT where a user puts one."""
    ColBERT.tiny(0).save(bare_home / "weights" / "colbert")
    with Triptych("mine", Settings.load()) as opened:
        yield opened


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for number, text in enumerate(TEXTS[:12]):
        (folder / f"{number}.md").write_text(text, "utf-8")
    return folder


def index_of(library: Triptych) -> Path:
    return library.folder / "retrievers" / "plaid" / "index"


def exact(retriever: PLAID, query: Query, k: int = 10) -> dict[str, float]:
    """MaxSim by a plain loop with every vector as the index has it."""
    [asked] = retriever.encoder.encode([query], "query")
    main = retriever.index.state().main
    assert main is not None
    vectors = main.vectors if isinstance(main, Whole) else main.plaid.codec.decode(main.plaid.codes)
    passages = np.split(vectors, np.cumsum(main.lengths)[:-1])
    scores = {id_: max_sim(asked, one, "ip") for id_, one in zip(main.ids, passages, strict=True)}
    best = sorted(scores, key=lambda id_: (-round(scores[id_], 5), id_))[:k]
    return {id_: scores[id_] for id_ in best}


def scores(retriever: PLAID, query: Query, k: int = 10, where: Where | None = None) -> dict[str, float]:
    return {hit.item.id: hit.score for hit in retriever.search(query, k, where)}


def coded(retriever: PLAID) -> Coded:
    main = retriever.index.state().main
    assert isinstance(main, Coded)
    return main


# --- what it finds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [0, 10**6])
def test_at_full_depth_it_finds_what_exact_search_finds(whole: int, made: Any, tmp_path: Path) -> None:
    retriever = made()
    retriever.index.whole = whole
    retriever.add(ITEMS)
    before = [scores(retriever, query) for query in ASKED]
    retriever.save(retriever.store.folder)
    assert (retriever.stats().compressed == len(ITEMS)) is (whole == 0)
    for query, found in zip(ASKED, before, strict=True):
        assert scores(retriever, query) == found  # compressed in memory before it was saved
        assert found == pytest.approx(exact(retriever, query), abs=1e-4)
        assert list(found) == list(exact(retriever, query))


def test_two_bits_keep_most_of_what_whole_vectors_find(made: Any) -> None:
    one, other = made(), made(depth=None)
    one.add(ITEMS)
    other.index.whole = 0
    other.add(ITEMS)
    same = [len(scores(one, query).keys() & scores(other, query).keys()) for query in ASKED]
    assert sum(same) >= 0.7 * 10 * len(ASKED)


def test_the_later_stages_look_at_as_many_of_ten_times_the_passages() -> None:
    chance = np.random.default_rng(0)
    known = chance.normal(size=(300, 16))

    def passages(n: int) -> list[np.ndarray]:
        rows = [known[chance.integers(0, 300, 8)] + 0.3 * chance.normal(size=(8, 16)) for _ in range(n)]
        return [(one / np.linalg.norm(one, axis=1, keepdims=True)).astype(np.float32) for one in rows]

    kept = []
    for n in (400, 4000):
        given = passages(n)
        found = Plaid.build(given).search(given[7][:4], 10)
        assert found.passages[0] == 7
        kept.append(found.kept)
    assert kept[1][0] == 10 * kept[0][0]
    assert all(later[2] <= 256 and later[3] <= 64 for later in kept)


def test_a_narrow_filter_is_exact_and_no_filter_hides_hits(made: Any) -> None:
    retriever = made(depth=Depth(1, 0.9, 8))
    retriever.index.whole = 0
    retriever.add(ITEMS)
    retriever.save(retriever.store.folder)
    every = exact(retriever, ASKED[0], len(ITEMS))
    two = Where(ids=("i001", "i044", "nobody"))
    assert scores(retriever, ASKED[0], 5, two) == pytest.approx({id_: every[id_] for id_ in ("i001", "i044")}, abs=1e-4)
    assert len(scores(retriever, ASKED[0], 30)) == 30  # more than one cell of each query vector names
    fifth = scores(retriever, ASKED[0], 9, Where(uri_prefix="notes/1/"))
    assert len(fifth) == 9
    assert all(int(id_[1:]) % 5 == 1 for id_ in fifth)


# --- how it grows -----------------------------------------------------------------------------------------------------


def test_centroids_are_learned_anew_once_the_index_has_doubled(small: None, made: Any) -> None:
    retriever = made()
    read: list[str] = []
    encode = retriever.encoder.encode

    def counting(inputs: Sequence[Any], side: Any) -> Any:
        read.extend(one.id for one in inputs if isinstance(one, Item))
        return encode(inputs, side)

    retriever.encoder.encode = counting
    retriever.add(ITEMS[:2])
    retriever.save(retriever.store.folder)
    assert isinstance(retriever.index.state().main, Whole)
    for begin, end in ((2, 10), (10, 14), (14, 18)):
        retriever.add(ITEMS[begin:end])
        retriever.save(retriever.store.folder)
    first = coded(retriever)
    assert len(first.ids) == 18
    assert first.learned == int(first.lengths[:10].sum())
    assert read == [item.id for item in ITEMS[:18]]
    retriever.add(ITEMS[18:])
    before = coded(retriever)
    assert before.plaid.codec is first.plaid.codec
    retriever.save(retriever.store.folder)
    then = coded(retriever)
    assert then.learned == int(then.lengths.sum())
    assert len(then.plaid.codec.centroids) > len(first.plaid.codec.centroids)
    assert sorted(read[-18:]) == [item.id for item in ITEMS[:18]]  # read once again
    assert len(read) == len(ITEMS) + 18
    assert {path.name for path in retriever.store.folder.glob("plaid*")} == {FILE}
    for query in ASKED:
        assert list(scores(retriever, query)) == list(exact(retriever, query))


def test_a_stop_while_it_learns_leaves_everything(small: None, made: Any) -> None:
    retriever = made()
    retriever.add(ITEMS[:8])
    retriever.save(retriever.store.folder)
    retriever.add(ITEMS[8:])
    before = [scores(retriever, query) for query in ASKED]
    cancelled, told = Event(), []

    def on_step(done: int, total: int | None, what: str) -> None:
        told.append(what)
        if what == "parts compressed":
            cancelled.set()

    with progress.reporting(on_step, cancelled=cancelled), pytest.raises(Cancelled):
        retriever.save(retriever.store.folder)
    assert "passages compressed anew" in told
    folder = retriever.store.folder
    assert not (folder / AGAIN).exists()
    again = Index(folder, 200)
    assert again.state().ids == {item.id for item in ITEMS}
    assert [scores(retriever, query) for query in ASKED] == before
    retriever.save(folder)
    assert coded(retriever).learned == int(coded(retriever).lengths.sum())


def test_files_that_are_in_the_one_file_do_not_count_twice(small: None, made: Any, tmp_path: Path) -> None:
    retriever = made()
    retriever.add(ITEMS[:9])
    folder = retriever.store.folder
    shutil.copytree(folder / LATER, tmp_path / "later")
    retriever.save(folder)
    retriever.delete(Where(ids=("i003",)))
    shutil.copytree(tmp_path / "later", folder / LATER)  # as where a process was killed before it removed them
    reopened = Index(folder, 200)
    assert reopened.state().ids == {item.id for item in ITEMS[:9]} - {"i003"}
    reopened.put(["new"], retriever.encoder.encode([ITEMS[3]], "document"))
    assert Index(folder, 200).state().ids == reopened.state().ids


def test_a_reader_goes_on_while_another_process_settles(small: None, made: Any) -> None:
    retriever = made()
    retriever.add(ITEMS[:9])
    reader = Index(retriever.store.folder, 200)
    assert len(reader.state().later) == 1
    retriever.save(retriever.store.folder)
    [asked] = retriever.encoder.encode(ASKED[:1], "query")
    assert len(reader.search(asked, 20, ALL, None)) == 9
    assert not reader.state().later
    later = Index(retriever.store.folder, 200)
    retriever.add(ITEMS[9:12])
    (retriever.store.folder / LATER / "00000002.npz").write_bytes(b"\x00 damaged")
    with pytest.raises(StoreError, match=r"`00000002\.npz` cannot be read"):
        later.search(asked, 20, ALL, None)


def test_what_is_replaced_or_deleted_is_gone_from_every_file(small: None, made: Any, tmp_path: Path) -> None:
    retriever = made()
    retriever.add(ITEMS[:10])
    retriever.save(retriever.store.folder)
    retriever.add(ITEMS[10:20])
    retriever.add([ITEMS[20]])
    assert retriever.delete(Where(ids=("i001", "i012", "i020", "nobody"))) == 3
    retriever.add([Item("i002", "A heron waded.", Source("notes/2/2.md"))])
    wanted = {item.id for item in ITEMS[:20]} - {"i001", "i012"}
    assert retriever.index.state().ids == Index(retriever.store.folder, 200).state().ids == wanted
    assert retriever.stats().items == len(wanted)
    found = {hit.item.id: hit.item.text for hit in retriever.search(Query("heron waded"), 20)}
    assert found.keys() == wanted
    assert found["i002"] == "A heron waded."
    retriever.save(tmp_path / "other")
    opened = made(tmp_path / "other")
    assert opened.stats().items == len(wanted)
    assert scores(opened, ASKED[0]) == scores(retriever, ASKED[0])
    retriever.delete(Where(uri_prefix="notes/"))
    assert retriever.search(ASKED[0], 5) == []
    assert retriever.stats().items == 0
    retriever.save(tmp_path / "other")
    assert made(tmp_path / "other").stats().items == 0


def test_stats_say_how_large_the_index_is(small: None, made: Any) -> None:
    retriever = made()
    assert (retriever.stats().index_bytes, retriever.stats().compressed) == (0, 0)
    retriever.add(ITEMS)
    whole = retriever.stats()
    retriever.save(retriever.store.folder)
    found = retriever.stats()
    assert found.index_bytes == (retriever.store.folder / FILE).stat().st_size
    assert found.compressed == found.items == len(ITEMS)
    assert found.spaces == ("colbert",)
    assert found.index_bytes < whole.index_bytes / 3


# --- in a library -----------------------------------------------------------------------------------------------------


def test_the_command_line_indexes_and_searches(
    library: Triptych, docs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["index", str(docs), "--library", "mine", "--retriever", "plaid"]) == 0
    assert main(["search", "owl barn", "--library", "mine", "--retriever", "plaid", "--json"]) == 0
    assert "docs/" in capsys.readouterr().out
    assert main(["systems", "show", "plaid"]) == 0
    assert "2205.09707" in capsys.readouterr().out


def test_a_small_library_answers_as_colbert_does(library: Triptych, docs: Path) -> None:
    assert library.index(docs, retrievers=["plaid", "colbert"]).problems == []
    for asked in ("owl and barn", "ferry noon"):
        one, other = (library.search(asked, 5, retriever=id_).hits for id_ in ("plaid", "colbert"))
        # A document may have got its vectors in another batch, and in bfloat16.
        assert [hit.score for hit in one] == pytest.approx([hit.score for hit in other], rel=5e-3)


def test_a_library_grows_shrinks_and_is_opened_again(small: None, library: Triptych, docs: Path) -> None:
    library.index(docs, retrievers=["plaid"])
    with np.load(index_of(library) / FILE) as file:
        assert "centroids" in file
    (docs / "3.md").unlink()
    (docs / "new.md").write_text("A heron waded in the harbour.", "utf-8")
    assert library.index(docs, prune=True).problems == []
    assert library.verify().whole
    gone = library.search("owl", 20, retriever="plaid").hits[0].id
    library.delete(ids=[gone])
    with Triptych("mine", Settings.load()) as again:
        hits = again.search("heron waded harbour", 20, retriever="plaid").hits
        assert "docs/new.md" in [hit.uri for hit in hits]
        assert len(hits) == again.status().items == 11
        assert gone not in [hit.id for hit in hits]
        assert "docs/3.md" not in [hit.uri for hit in hits]
        assert again.status().store["retrievers"] == {"plaid": 11}


@pytest.mark.parametrize("damage", ["cut", "noise", "flipped", "gone", "other"])
def test_a_damaged_file_is_told_and_nothing_else_is_lost(
    damage: str, small: None, library: Triptych, docs: Path
) -> None:
    library.index(docs, retrievers=["plaid"])
    wanted = [hit.id for hit in library.search("owl barn", 12, retriever="plaid").hits]
    library.close()
    path = index_of(library) / FILE
    content = path.read_bytes()
    half = len(content) // 2
    if damage == "gone":
        path.unlink()
    elif damage == "other":
        np.savez(path, ids=np.arange(3), through=np.array(1), vectors=np.zeros((3, 128)), lengths=np.ones(3, int))
    else:
        flipped = content[:half] + bytes([content[half] ^ 255]) + content[half + 1 :]
        path.write_bytes({"cut": content[:half], "noise": b"\x00 damaged", "flipped": flipped}[damage])
    with pytest.raises(StoreError, match=r"`plaid\.npz`") as caught:
        library.search("owl barn", retriever="plaid")
    assert "triptych rebuild" in caught.value.hint
    if damage != "gone":
        (docs / "new.md").write_text("A heron waded.", "utf-8")
        assert [problem.uri for problem in library.index(docs).problems] == ["retrievers/plaid"]
        (docs / "new.md").unlink()
        library.index(docs, prune=True)
    assert library.search("owl barn").hits
    assert not library.verify().whole
    library.rebuild()
    assert library.verify().whole
    assert [hit.id for hit in library.search("owl barn", 12, retriever="plaid").hits] == wanted


@pytest.mark.parametrize("text", ["owl", ""])
@pytest.mark.parametrize("compressed", [True, False])
def test_a_corpus_of_one_passage(text: str, compressed: bool, made: Any) -> None:
    retriever = made(depth=None)
    retriever.index.whole = 0 if compressed else 10**6
    retriever.add([Item("a", text, Source("owl.md"))])
    assert searchable_text(Item("a", text, Source("owl.md"))).strip() == "owl"
    retriever.save(retriever.store.folder)
    assert list(scores(retriever, Query("owl"), 9)) == ["a"]
    assert retriever.search(Query("owl"), 9, Where(ids=("b",))) == []


def test_one_file_and_an_empty_one(small: None, library: Triptych, tmp_path: Path) -> None:
    folder = tmp_path / "few"
    folder.mkdir()
    (folder / "owl.md").write_text("The owl sleeps.", "utf-8")
    (folder / "empty.md").write_text("", "utf-8")
    library.index(folder, retrievers=["plaid"])
    assert [hit.uri for hit in library.search("owl", retriever="plaid").hits] == ["few/owl.md"]
    with pytest.raises(BadInput):
        library.search("", retriever="plaid")


def test_without_weights_it_says_where_they_go(bare_home: Path, docs: Path) -> None:
    with Triptych("mine", Settings.load()) as library:
        library.index(docs)
        with pytest.raises(MissingWeights, match=r"`colbert` has no `config\.json`") as caught:
            library.index(docs, retrievers=["plaid"])
        assert "weights/colbert" in caught.value.hint
        with pytest.raises(NotFound, match="no retriever `plaid`"):
            library.search("owl", retriever="plaid")


def test_other_weights_make_the_index_stale(library: Triptych, docs: Path) -> None:
    library.index(docs, retrievers=["plaid"])
    ColBERT.tiny(1).save(library.settings.weights / "colbert")
    with pytest.raises(StoreError, match="other weights"):
        library.search("owl", retriever="plaid")
    library.rebuild()
    assert len(library.search("owl", 20, retriever="plaid").hits) == 12


def test_a_broken_network_writes_nothing(library: Triptych, docs: Path) -> None:
    library.index(docs)
    broken = ColBERT.tiny(0)
    with torch.no_grad():
        broken.network.linear.weight.fill_(torch.nan)
    broken.save(library.settings.weights / "colbert")
    with pytest.raises(BadInput, match="`nan`"):
        library.index(docs, retrievers=["plaid"])
    assert not index_of(library).exists()
    assert "retrievers" not in library.status().store


def test_what_it_does_not_read_is_refused(made: Any) -> None:
    retriever = made()
    retriever.add(ITEMS[:3])
    with pytest.raises(Unsupported, match="script"):
        retriever.search(Query("猫头鹰在哪里睡觉"), 3)
    with pytest.raises(BadInput, match="`encoder` is `None`"):
        PLAID.open(retriever.store.folder)
    with pytest.raises(StoreError, match="no store"):
        PLAID.open(Path("there/is/none"), retriever.encoder)
