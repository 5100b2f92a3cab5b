"""Encoders of a mixed space in a library: pages found by words, pictures found by pictures with words, and where on a
page the words are. The models are tiny and random: what is tested is the way from a file to an answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych import Settings, Triptych
from triptych.errors import BadInput, Forbidden, MissingWeights, NotFound, Unsupported
from triptych.manifests.registry import card
from triptych.server import cli

PAGES = ["Rates of the ferry", "Times of the ferry"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pages, three pictures, a text."""
    from fpdf import FPDF

    folder = tmp_path_factory.mktemp("mixed") / "docs"
    folder.mkdir()
    document = FPDF()
    document.set_font("Helvetica", size=24)
    for text in PAGES:
        document.add_page()
        document.cell(text=text)
    document.output(str(folder / "ferry.pdf"))
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (60 + number, 40), colour).save(folder / f"{colour}.png")
    (folder / "note.md").write_text("The owl sleeps in the barn.", "utf-8")
    return folder


@pytest.fixture
def library(bare_home: Path, files: Path) -> Iterator[Triptych]:
    for name in ("colpali", "uniir", "clip"):
        card(name, "retriever").resolve().tiny(0).save(bare_home / "weights" / name)
    with Triptych("mixed", Settings.load(home=bare_home)) as session:
        session.index(files)
        assert session.index(files, retrievers=["colpali", "uniir", "clip"]).problems == []
        yield session


def uris(hits: list) -> list[str]:
    return [hit.uri for hit in hits]


def test_pages_are_found_by_words_and_can_be_viewed(library: Triptych) -> None:
    hits = library.search("ferry", 9, retriever="colpali").hits
    assert all(hit.uri.endswith((".pdf", ".png")) for hit in hits)
    pages = [hit for hit in hits if hit.uri == "docs/ferry.pdf"]
    assert sorted(hit.page for hit in pages if hit.page is not None) == [1, 2]
    shown = library.view(pages[0].id, max_edge=128)
    with Image.open(BytesIO(shown.image)) as image:
        assert max(image.size) <= 128


def test_a_picture_finds_itself_and_words_beside_it_change_the_scores(library: Triptych, files: Path) -> None:
    plain = library.search(k=9, like=files / "red.png", retriever="uniir").hits
    assert plain[0].uri == "docs/red.png"
    told = library.search("the owl", 9, like=files / "red.png", retriever="uniir").hits
    assert {hit.id: hit.score for hit in told} != {hit.id: hit.score for hit in plain}
    with pytest.raises(Unsupported, match="does not read such a query"):
        library.search("the owl", 9, like=files / "red.png", retriever="clip")


def test_a_picture_is_named_by_id_address_and_uri(library: Triptych) -> None:
    by_uri = library.search(k=9, like="docs/red.png", retriever="clip").hits
    assert by_uri[0].uri == "docs/red.png"
    red = by_uri[0].id
    for like in (red, f"triptych://page/{red}", f"triptych://passage/{red}?library=mixed"):
        found = library.search(k=9, like=like, retriever="clip").hits
        assert [hit.score for hit in found if hit.id != red] == [hit.score for hit in by_uri[1:]][: len(found)]
    for like, error in (("docs/gone.png", NotFound), ("docs/../../etc/passwd", Forbidden), ("other/a.png", NotFound)):
        with pytest.raises(error):
            library.search(k=9, like=like, retriever="clip")


def test_a_retriever_of_words_cannot_be_asked_with_a_picture(library: Triptych) -> None:
    with pytest.raises(Unsupported, match="does not read such a query"):
        library.search(k=3, like="docs/red.png", retriever="colpali")


def test_where_on_a_page_the_words_are(library: Triptych, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = next(hit for hit in library.search("ferry", 9, retriever="colpali").hits if hit.page == 1)
    made = library.explain(page.id, "ferry")
    assert len(made.tokens) == len(made.similarities) == len(made.peaks) > len("ferry") // 2
    assert all(-1 <= value <= 1.001 for value in made.similarities)
    assert all(0 < x < 1 and 0 < y < 1 for x, y in made.peaks)
    one = library.explain(page.id, "ferry", 0)
    with Image.open(BytesIO(made.image)) as mean, Image.open(BytesIO(one.image)) as alone:
        assert mean.size == alone.size
        assert not np.array_equal(np.asarray(mean), np.asarray(alone))
    with pytest.raises(BadInput, match="no token"):
        library.explain(page.id, "ferry", 999)
    with pytest.raises(BadInput, match="no text"):
        library.explain(page.id, "  ")
    note = next(hit for hit in library.search("owl barn", 9).hits if hit.uri == "docs/note.md")
    with pytest.raises(Unsupported, match="nothing to look at"):
        library.explain(note.id, "owl")
    library.close()
    file = tmp_path / "map.png"
    arguments = ["explain", page.id, "ferry", "--library", "mixed", "--out", str(file), "--json"]
    assert cli.main([*arguments, "--home", str(library.settings.home)]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == made.tokens
    assert file.read_bytes() == made.image


def test_without_its_weights_it_says_what_is_missing(bare_home: Path, files: Path) -> None:
    with Triptych("mixed", Settings.load(home=bare_home)) as session:
        session.index(files)
        page = next(hit for hit in session.search("ferry", 9).hits if hit.page == 1)
        with pytest.raises(MissingWeights, match="colpali"):
            session.explain(page.id, "ferry")
