"""The setting `bm25`: how it is written, and a library whose index was made by another formula."""

from __future__ import annotations

from pathlib import Path

import pytest

from triptych import BadInput, Settings, StoreError, Triptych
from triptych.manifests.registry import card
from triptych.retrievers.text.bm25 import BM25, FORMULAS, Formula, formula_of
from triptych.tools.given import mark_of
from triptych.tools.stages import Stages


@pytest.mark.parametrize(
    ("told", "formula"),
    [
        ("", None),
        (" ", None),
        ("bm25plus", FORMULAS["bm25plus"]),
        ("bm25l delta=0.25", Formula("bm25l", delta=0.25)),
        ("lucene k1=0.9, b=.4", Formula("lucene", k1=0.9, b=0.4)),
    ],
)
def test_a_formula_as_it_is_written(told: str, formula: Formula | None) -> None:
    assert formula_of(told) == formula


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ("bm25+", "no BM25 `bm25\\+`"),
        ("k1=0.9", "no BM25 `k1=0.9`"),
        ("lucene k2=1", "`k2=1` is no constant"),
        ("lucene k1", "`k1` is no constant"),
        ("lucene k1=much", "`k1=much` is no constant"),
        ("lucene absent=1", "`absent=1` is no constant"),
        ("lucene k1=nan", "k1 = `nan`"),
        ("lucene b=1.5", "b = `1.5`"),
    ],
)
def test_what_is_no_formula_is_refused(told: str, named: str, bare_home: Path) -> None:
    with pytest.raises(BadInput, match=named):
        formula_of(told)
    with pytest.raises(BadInput, match=named):
        BM25.load(card("bm25"), Stages(Settings.load(bm25=told)))


def test_a_library_says_when_its_index_was_made_by_another_formula(bare_home: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for name, text in {"a": "owl owl owl cat", "b": "owl", "c": "cat dog", "d": "dog"}.items():
        (docs / f"{name}.txt").write_text(text, "utf-8")
    plain, plus = Settings.load(), Settings.load(bm25="bm25plus k1=0.5")
    with Triptych("mine", plus) as library:
        assert library.index(docs, retrievers=["bm25"]).problems == []
        by_plus = [hit.score for hit in library.search("owl", retriever="bm25").hits]
    with Triptych("mine", plain) as library:
        with pytest.raises(StoreError, match="`bm25` was built with other weights or settings"):
            library.search("owl", retriever="bm25")
        assert not library.verify().whole
        library.rebuild()
        by_default = [hit.score for hit in library.search("owl", retriever="bm25").hits]
        assert len(by_default) == len(by_plus) == 2
        assert by_default != by_plus
        assert library.verify().whole
    with Triptych("mine", plus) as library:
        library.rebuild()
        assert [hit.score for hit in library.search("owl", retriever="bm25").hits] == by_plus


def test_the_mark_is_the_formula_and_that_of_a_library_none(bare_home: Path) -> None:
    one, other = (mark_of("bm25", Settings.load(bm25=told)) for told in ("lucene", "lucene k1=1.2"))
    assert one == other == FORMULAS["lucene"].described()
    assert mark_of("bm25", Settings.load()) == ""
    assert mark_of("tfidf", Settings.load(bm25="lucene")) == ""
