"""Retrievers beside a library's own search: they follow its items, are asked by name alone, and what goes wrong with
one of them stops neither the library nor the others."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from triptych import BadInput, NotFound, Settings, StoreError, Triptych, UnknownSystem
from triptych.errors import Cancelled, MissingWeights, Unsupported
from triptych.manifests import registry
from triptych.retrievers.base import (
    Encoder,
    Hit,
    Item,
    MediaRef,
    Query,
    Retriever,
    Side,
    Source,
    Space,
    StoreStats,
    Where,
)
from triptych.retrievers.stores.milvus import MilvusStore
from triptych.server.cli import cli
from triptych.tools import own_index
from triptych.tools.given import given_hash
from triptych.tools.langchain import TriptychRetriever
from triptych.tools.stages import Stages


class Log:
    """What the systems of this file were asked to do, and what they are to do wrong."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.fails: Exception | None = None
        self.nan = False


LOG = Log()


class Longest(Retriever):
    """The items with most letters of the query; its index is one file, which `save` writes."""

    def __init__(self, items: dict[str, Item]) -> None:
        self.items = items

    @classmethod
    def load(cls, card: Any, parts: Any, folder: Path) -> Longest:
        if not (parts.settings.weights / "longest").is_dir():
            raise MissingWeights("`longest` has no weights.", "Have them written.")
        file = folder / "ids.json"
        LOG.calls.append(("load", folder.is_dir()))
        try:
            known = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        except ValueError as error:
            raise StoreError("The index of `longest` is damaged.", "Make it anew.") from error
        return cls({id_: Item(id_, text, Source(uri)) for id_, (text, uri) in known.items()})

    @classmethod
    def tiny(cls, seed: int = 0) -> Longest:
        return cls({})

    def add(self, items: Sequence[Item]) -> None:
        LOG.calls.append(("add", [item.source.uri for item in items]))
        for number, item in enumerate(items):
            if LOG.fails is not None and number:
                raise LOG.fails
            self.items[item.id] = item

    def delete(self, where: Where) -> int:
        gone = [id_ for id_ in where.ids if self.items.pop(id_, None) is not None]
        LOG.calls.append(("delete", len(gone)))
        return len(gone)

    def search(self, query: Query, k: int, where: Where | None = None) -> list[Hit]:
        letters = set(query.text or "")
        allowed = [one for one in self.items.values() if where is None or one.id in where.ids]
        hits = [Hit(replace(one, text="its own copy"), float(sum(map(one.text.count, letters)))) for one in allowed]
        return sorted(hits, key=lambda hit: (-hit.score, hit.item.id))[:k]

    def stats(self) -> StoreStats:
        return StoreStats(len(self.items), {}, (), "file")

    def save(self, folder: Path) -> None:
        rows = {id_: [item.text, item.source.uri] for id_, item in self.items.items()}
        (folder / "ids.json").write_text(json.dumps(rows), "utf-8")

    @classmethod
    def open(cls, folder: Path) -> Longest:
        raise NotImplementedError


class Vowels(Encoder):
    """How often each vowel stands in a text."""

    space = Space("vowels", "dense", 5)

    @classmethod
    def load(cls, card: Any, parts: Any) -> Vowels:
        return cls()

    @classmethod
    def tiny(cls, seed: int = 0) -> Vowels:
        return cls()

    def encode(self, inputs: Sequence[Item] | Sequence[Query], side: Side) -> np.ndarray:
        LOG.calls.append((side, len(inputs)))
        counts = [[(one.text or "").count(vowel) + 0.01 for vowel in "aeiou"] for one in inputs]
        return np.full((len(inputs), 5), np.nan, np.float32) if LOG.nan else np.array(counts, np.float32).reshape(-1, 5)


@pytest.fixture(autouse=True)
def cards(monkeypatch: pytest.MonkeyPatch) -> None:
    made = ModuleType("triptych_of_this_test")
    made.Longest, made.Vowels = Longest, Vowels  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, made.__name__, made)
    model = registry.packaged()["tfidf"]
    own = {
        name: replace(model, id=name, entry=f"{made.__name__}:{kind}", weights=())
        for name, kind in (("longest", "Longest"), ("vowels", "Vowels"))
    }
    monkeypatch.setattr(registry, "cards", lambda: {**registry.packaged(), **own})
    monkeypatch.setattr(sys.modules[__name__], "LOG", Log())


@pytest.fixture
def home(bare_home: Path) -> Path:
    brought = bare_home / "weights" / "longest"
    brought.mkdir(parents=True)
    (brought / "model.bin").write_bytes(b"1")
    return bare_home


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for name, text in {"a": "the owl sleeps", "b": "aaa uuu", "c": "zzz zz z"}.items():
        (folder / f"{name}.txt").write_text(text, "utf-8")
    return folder


@pytest.fixture
def library(home: Path) -> Iterator[Triptych]:
    with Triptych("mine", Settings.load()) as session:
        yield session


def names(found: Any) -> list[str]:
    return [hit.uri.rsplit("/", 1)[-1] for hit in found.hits]


def index_of(library: Triptych, name: str = "longest") -> Path:
    return library.folder / "retrievers" / name


# --- asked by name ---------------------------------------------------------------------------------------------------


def test_a_retriever_with_an_index_of_its_own(library: Triptych, docs: Path) -> None:
    done = library.index(docs, retrievers=["longest"])
    assert (done.indexed, done.problems) == (3, [])
    found = library.search("z", 2, retriever="longest")
    assert names(found)[0] == "c.txt"
    assert (found.hits[0].score, found.hits[0].text) == (6.0, "zzz zz z")  # its score, the library's text
    assert names(library.search("owl")) == ["a.txt"]
    assert library.status().store["retrievers"] == {"longest": 3}
    assert library.verify().whole
    only = library.search("z", retriever="longest", where=Where(ids=(found.hits[1].id,)))
    assert [hit.id for hit in only.hits] == [found.hits[1].id]


def test_an_encoder_is_a_space_that_only_its_name_asks(library: Triptych, docs: Path) -> None:
    library.index(docs)
    before = library.search("aaa owl").hits
    assert library.index(docs, retrievers=["vowels"]).indexed == 0
    assert names(library.search("u a", 1, retriever="vowels")) == ["b.txt"]
    assert library.search("aaa owl").hits == before
    assert library.status().store["retrievers"] == {"vowels": 3}
    some = Where(uri_prefix="docs/c")
    assert names(library.search("u a", 3, retriever="vowels", where=some)) == ["c.txt"]
    library.index(docs, spaces=["vowels"])  # now the library's own search asks it, too
    assert "retrievers" not in library.status().store
    assert library.search("aaa owl").hits != before
    library.index(docs, retrievers=["vowels"])
    assert library.search("aaa owl").hits != before


def test_a_library_has_its_own_search_by_name(library: Triptych, docs: Path) -> None:
    library.index(docs, retrievers=["hybrid", "all_minilm_l6_v2"])
    assert "retrievers" not in library.status().store
    assert library.search("owl", retriever="hybrid").hits == library.search("owl").hits
    with pytest.raises(MissingWeights):
        library.search("owl", retriever="all_minilm_l6_v2")


def test_a_name_that_it_does_not_have(library: Triptych, docs: Path) -> None:
    library.index(docs)
    with pytest.raises(UnknownSystem, match="Unknown retriever `longes`") as unknown:
        library.search("owl", retriever="longes")
    assert unknown.value.hint == "Did you mean `longest`?"
    with pytest.raises(NotFound, match=r"`mine` has no retriever `longest`; it has `hybrid`") as lacking:
        library.retrieve("owl", retriever="longest")
    assert "triptych index PATH --retriever longest" in lacking.value.hint
    with pytest.raises(UnknownSystem):
        library.index(docs, retrievers=["maxsim"])


def test_what_it_does_not_read_is_refused(library: Triptych, docs: Path) -> None:
    library.index(docs, retrievers=["vowels"])
    with pytest.raises(Unsupported, match="`vowels` does not read"):
        library._open().search(Query(media=MediaRef("x.png", "image/png")), 3, None, "vowels")


def test_evidence_by_one_retriever(library: Triptych, docs: Path) -> None:
    library.index(docs, retrievers=["longest"])
    found = library.retrieve("z", 200, k=1, retriever="longest")
    assert [passage.uri for passage in found.passages] == ["docs/c.txt"]
    documents = TriptychRetriever(library=library, k=1, retriever="longest").invoke("z")
    assert [one.metadata["uri"] for one in documents] == ["docs/c.txt"]


# --- following -------------------------------------------------------------------------------------------------------


def test_it_follows_by_ids_and_survives_a_restart(library: Triptych, docs: Path) -> None:
    library.index(docs, retrievers=["longest", "vowels"])
    LOG.calls.clear()
    assert library.index(docs).unchanged == 3
    assert LOG.calls == []
    (docs / "a.txt").unlink()
    (docs / "d.txt").write_text("zzz zzz zzz", "utf-8")
    library.close()
    library.index(docs, prune=True)
    assert ("add", ["docs/d.txt"]) in LOG.calls
    assert ("delete", 1) in LOG.calls
    assert ("document", 1) in LOG.calls
    assert names(library.search("z", 5, retriever="longest")) == ["d.txt", "c.txt", "b.txt"]
    assert len(library.search("z", 5, retriever="vowels").hits) == 3
    (docs / "b.txt").write_text("zzzzzzzzz eee", "utf-8")
    library.index(docs)  # as many items as before
    assert names(library.search("z", 5, retriever="longest"))[0] == "b.txt"
    assert library.search("e", 5, retriever="vowels").hits[0].text == "zzzzzzzzz eee"
    (docs / "b.txt").write_text("aaa uuu", "utf-8")
    library.index(docs)
    library.delete(uri_prefix="docs/d")
    assert names(library.search("z", 5, retriever="longest")) == ["c.txt", "b.txt"]
    assert library.verify().whole


def test_passages_of_a_document_come_in_order(library: Triptych, tmp_path: Path) -> None:
    (tmp_path / "long").mkdir()
    for name in "abc":
        text = "\n\n".join(f"# Part {n}\n\n" + f"The {name} owl {n} sleeps. " * 80 for n in range(4))
        (tmp_path / "long" / f"{name}.md").write_text(text, "utf-8")
    library.index(tmp_path / "long", retrievers=["longest"])
    [added] = [value for what, value in LOG.calls if what == "add"]
    assert len(added) > 3
    assert added == sorted(added)


def test_another_session_sees_what_one_wrote(library: Triptych, docs: Path) -> None:
    library.index(docs, retrievers=["longest"])
    with Triptych("mine", Settings.load()) as other:
        assert len(other.search("z", 9, retriever="longest").hits) == 3
        (docs / "d.txt").write_text("zzzzzzzz", "utf-8")
        library.index(docs)
        assert names(other.search("z", 9, retriever="longest"))[0] == "d.txt"


def test_an_interrupted_change_is_made_good(library: Triptych, docs: Path) -> None:
    library.index(docs, retrievers=["longest"])
    (docs / "d.txt").write_text("zz zz", "utf-8")
    (docs / "e.txt").write_text("zzz zzz", "utf-8")
    (docs / "a.txt").unlink()
    LOG.fails = Cancelled("Stopped.", "")
    with pytest.raises(Cancelled):
        library.index(docs, prune=True)
    assert library.verify().spaces["longest"] == 3
    LOG.fails = None
    library.close()
    library.index(docs)
    assert names(library.search("z", 9, retriever="longest"))[:3] == ["c.txt", "e.txt", "d.txt"]
    assert library.verify().whole


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_one_that_fails_at_once_is_not_there(library: Triptych, docs: Path) -> None:
    library.index(docs)
    LOG.fails = StoreError("The model gives `nan`.", "Mend it.")
    with pytest.raises(StoreError, match="nan"):
        library.index(docs, retrievers=["longest"])
    LOG.nan = True
    with pytest.raises(BadInput):
        library.index(docs, retrievers=["vowels"])
    assert "retrievers" not in library.status().store
    assert not index_of(library).exists()
    assert library.verify().whole
    assert library.index(docs).problems == []


def test_one_that_fails_later_is_a_problem_and_no_more(library: Triptych, docs: Path) -> None:
    library.index(docs, retrievers=["longest", "vowels"])
    for number in range(2):
        (docs / f"new{number}.txt").write_text(f"brand new {number}", "utf-8")
    LOG.fails, LOG.nan = StoreError("It broke.", "Mend it."), True
    done = library.index(docs)
    assert (done.indexed, [problem.uri for problem in done.problems]) == (
        2,
        ["retrievers/vowels", "retrievers/longest"],
    )
    assert done.problems[1].message == "It broke."
    assert len(library.search("brand new").hits) == 2
    assert library.verify().spaces == {"longest": 2, "vowels": 2}
    LOG.fails, LOG.nan = None, False
    assert library.index(docs).problems == []
    assert library.verify().whole


def test_other_weights_are_refused_until_it_is_made_anew(library: Triptych, docs: Path, home: Path) -> None:
    library.index(docs, retrievers=["longest"])
    (home / "weights" / "longest" / "model.bin").write_bytes(b"22")
    for ask in (library.search, library.retrieve):
        with pytest.raises(StoreError, match="built with other weights") as caught:
            ask("z", retriever="longest")
        assert "triptych rebuild" in caught.value.hint
    assert library.search("owl").hits
    assert library.verify().spaces == {"longest": 3}
    (docs / "d.txt").write_text("zz", "utf-8")
    [problem] = library.index(docs).problems
    assert "other weights" in problem.message
    assert library.rebuild().problems == []
    assert len(library.search("z", 9, retriever="longest").hits) == 4
    assert library.verify().whole


def test_a_beside_encoder_with_other_weights_stops_nobody(library: Triptych, docs: Path, home: Path) -> None:
    library.index(docs, retrievers=["vowels"])
    (home / "weights" / "vowels").mkdir()
    (home / "weights" / "vowels" / "model.bin").write_bytes(b"1")
    assert names(library.search("owl")) == ["a.txt"]
    with pytest.raises(StoreError, match="other weights"):
        library.search("owl", retriever="vowels")
    [problem] = library.index(docs).problems
    assert problem.uri == "retrievers/vowels"
    library.rebuild()
    assert len(library.search("a", retriever="vowels").hits) == 3


def test_missing_weights_are_said_by_name_alone(library: Triptych, docs: Path, home: Path) -> None:
    brought = home / "weights" / "longest"
    kept = brought.rename(home / "kept")
    library.index(docs)
    with pytest.raises(MissingWeights):
        library.index(docs, retrievers=["longest"])
    assert not index_of(library).exists()
    kept.rename(brought)
    library.index(docs, retrievers=["longest"])
    brought.rename(kept)
    library.close()
    assert library.rebuild().problems[0].type == "StoreError"
    kept.rename(brought)
    assert len(library.search("z", retriever="longest").hits) == 3


@pytest.mark.parametrize("file", ["items.json", "changing.json", "index/ids.json"])
def test_a_damaged_index_is_told_and_made_anew(library: Triptych, docs: Path, file: str) -> None:
    library.index(docs, retrievers=["longest"])
    library.close()
    (index_of(library) / file).write_text("[1, {", "utf-8")
    assert library.verify().spaces == {"longest": 3}
    assert library.status().items == 3
    assert library.search("owl").hits
    library.rebuild()
    assert len(library.search("z", retriever="longest").hits) == 3
    assert library.verify().whole


def test_an_index_that_lost_items_is_told(library: Triptych, docs: Path) -> None:
    library.index(docs, retrievers=["tfidf"])
    library.close()
    with MilvusStore.existing(index_of(library, "tfidf") / "index") as store:
        store.delete(Where(uri_prefix="docs/a"))
    assert library.verify().spaces == {"tfidf": 1}
    library.rebuild()
    assert library.verify().whole
    assert names(library.search("owl", retriever="tfidf")) == ["a.txt"]


def test_everything_anew_keeps_the_retrievers(library: Triptych, docs: Path) -> None:
    library.index(docs, retrievers=["longest", "vowels", "tfidf"])
    library.index(docs, rebuild=True)
    assert library.status().store["retrievers"] == {"longest": 3, "vowels": 3, "tfidf": 3}
    assert library.verify().whole
    assert names(library.search("owl", retriever="tfidf")) == ["a.txt"]


def test_a_lost_catalogue_keeps_the_retrievers(library: Triptych, docs: Path) -> None:
    library.index(docs, retrievers=["longest", "vowels"])
    library.close()
    catalogue = library.folder / "catalog.sqlite"
    damaged = bytearray(catalogue.read_bytes())
    page = int.from_bytes(damaged[16:18], "big")
    damaged[-page:] = b"\xff" * page
    catalogue.write_bytes(bytes(damaged))
    library.rebuild([docs])
    assert set(library.status().store["retrievers"]) == {"longest", "vowels"}


# --- the command line, and weights that the user brought -------------------------------------------------------------


def test_the_command_line(home: Path, docs: Path) -> None:
    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli, list(words), standalone_mode=False, catch_exceptions=True)
        if done.exception is not None:
            raise done.exception
        return done.return_value or 0, done.output

    assert run("index", str(docs), "--retriever", "longest", "--retriever", "vowels", "--json")[0] == 0
    code, out = run("search", "z", "-k", "1", "--retriever", "longest")
    assert code == 0
    assert "docs/c.txt" in out
    assert "docs/c.txt" in run("retrieve", "z", "-k", "1", "--retriever", "longest", "--max-tokens", "300")[1]
    assert "'longest': 3" in run("status")[1]
    with pytest.raises(BadInput, match="--watch"):
        run("index", str(docs), "--watch", "--retriever", "tfidf")


def test_the_hash_of_brought_weights(tmp_path: Path) -> None:
    assert given_hash(tmp_path / "none") == ""
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "model.bin").write_bytes(b"1")
    first = given_hash(tmp_path)
    (tmp_path / "checkpoint-10" / "state").write_bytes(b"1")
    assert given_hash(tmp_path) == first
    (tmp_path / "model.bin").rename(tmp_path / "other.bin")
    assert given_hash(tmp_path) != first


def test_the_folder_of_an_index_that_cannot_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(folder: Path) -> None:
        raise PermissionError(13, "denied")

    made = own_index.OwnIndex(registry.packaged()["tfidf"], tmp_path, Stages(Settings.load()))
    monkeypatch.setattr(own_index.shutil, "rmtree", refused)
    with pytest.raises(StoreError, match="`tfidf` cannot be removed: denied"):
        made.clear()
