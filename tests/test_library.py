"""The session, end to end with the pulled weights and no network but loopback: evidence that fits, and leads home."""

from __future__ import annotations

import io
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from triptych import BadInput, NotFound, Settings, Triptych, Unsupported
from triptych.refiners.tokens import count
from triptych.tools.library import libraries
from triptych.tools.operations import block, rows_of
from triptych.tools.schemas import Evidence, Given
from triptych.tools.stages import Stages

if TYPE_CHECKING:
    from collections.abc import Iterator

QUESTION = "What did repairs after storm Agda cost?"
CHINESE = "储存海草种子时应该用什么温度?"


@pytest.fixture(scope="module")
def library(weights_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triptych]:
    """The sample library, indexed once with the embedded profile."""
    home = tmp_path_factory.mktemp("home")
    (home / "weights").symlink_to(weights_home / "weights", target_is_directory=True)
    with Triptych("sample", Settings.load(home=home)) as session:
        done = session.index(Path(str(resources.files("triptych.sample") / "vessey-holm")))
        assert done.problems == []
        yield session


def rendered(found: Evidence) -> str:
    return block(rows_of(found.passages), len(found.dropped), found.note)


def test_the_sample_holds_every_modality_this_step_reads(library: Triptych) -> None:
    status = library.status()
    assert status.healthy
    assert status.files >= 24
    assert set(status.by_modality) == {"text", "page", "image", "audio", "video"}
    assert status.note is None


@pytest.mark.parametrize("budget", [150, 400, 1000, 4000])
@pytest.mark.parametrize("question", [QUESTION, CHINESE, "🦭"])
def test_the_block_never_exceeds_the_budget_and_uses_it(library: Triptych, question: str, budget: int) -> None:
    found = library.retrieve(question, budget)
    used = count(rendered(found))
    assert used == found.tokens.used <= budget
    if found.dropped and any(row.reason == "budget" for row in found.dropped):
        assert used >= 0.9 * budget or found.tokens.unused


def test_every_piece_leads_home(library: Triptych) -> None:
    for question in (QUESTION, CHINESE):
        for passage in library.retrieve(question, 500).passages:
            assert passage.text == "".join(piece.text for piece in passage.pieces)
            whole = library.fetch(passage.id)
            assert whole.uri == passage.uri
            for piece in passage.pieces:
                if piece.span is not None:
                    assert whole.text[slice(*piece.span)] == piece.text
                    assert library.fetch(passage.id, piece.span).text == piece.text


def test_the_same_question_gives_the_same_bytes(library: Triptych) -> None:
    assert rendered(library.retrieve(QUESTION, 700)) == rendered(library.retrieve(QUESTION, 700))


def test_passages_of_pages_and_pictures_say_where_they_stand(library: Triptych) -> None:
    found = library.retrieve("receipt from the chandler, total paid", 3000)
    placed = [passage for passage in found.passages if passage.modality in ("page", "image")]
    assert placed
    for passage in placed:
        assert passage.box is not None
        x0, y0, x1, y1 = passage.box
        assert 0 <= x0 < x1 <= 1
        assert 0 <= y0 < y1 <= 1


def test_pictures_can_be_looked_at_and_texts_cannot(library: Triptych) -> None:
    from PIL import Image

    hits = library.search("receipt total chandler", 50).hits
    shown = next(hit for hit in hits if hit.modality == "image")
    view = library.view(shown.id, max_edge=256)
    with Image.open(io.BytesIO(view.image)) as image:
        assert image.size == (view.width, view.height)
        assert max(image.size) <= 256
    text = next(hit for hit in hits if hit.uri.endswith(".md"))
    with pytest.raises(Unsupported, match="nothing to look at"):
        library.view(text.id)


def test_evidence_about_other_things_never_fills_the_budget(library: Triptych) -> None:
    found = library.retrieve("quarterly derivatives hedging strategy of the bank", 4000)
    assert found.tokens.used < 2000
    below = [row for row in found.dropped if row.reason == "below floor"]
    assert below
    assert len(found.passages) + len(found.dropped) == library.settings.depth


def test_the_only_hit_is_kept(tmp_home: Path, tmp_path: Path) -> None:
    (tmp_path / "note.md").write_text("# Ferry\n\nThe ferry leaves at 14:15 on Thursdays.\n", "utf-8")
    with Triptych("one", Settings.load(home=tmp_home)) as session:
        session.index(tmp_path / "note.md")
        found = session.retrieve("When does the ferry leave?", 400)
    assert ["14:15" in passage.text for passage in found.passages] == [True]
    assert found.dropped == []


def test_k_beyond_the_library_gives_what_there_is(library: Triptych) -> None:
    found = library.search("seal", 100)
    assert 0 < len(found.hits) <= 100
    assert [hit.n for hit in found.hits] == list(range(1, len(found.hits) + 1))


@pytest.mark.parametrize("query", ["", "   ", "x" * 4097])
def test_queries_out_of_range_are_refused(library: Triptych, query: str) -> None:
    with pytest.raises(BadInput, match="query"):
        library.retrieve(query)


@pytest.mark.parametrize("k", [0, -1, 101, True])
def test_k_out_of_range_is_refused(library: Triptych, k: int) -> None:
    with pytest.raises(BadInput, match="k is"):
        library.search("seal", k)


@pytest.mark.parametrize("budget", [0, -5, 20001])
def test_budgets_out_of_range_are_refused(library: Triptych, budget: int) -> None:
    with pytest.raises(BadInput, match=f"`{budget}`"):
        library.retrieve(QUESTION, budget)


def test_a_budget_too_small_for_one_passage_names_the_smallest(library: Triptych) -> None:
    with pytest.raises(BadInput, match="smallest block") as caught:
        library.retrieve(QUESTION, 5)
    least = int("".join(letter for letter in caught.value.hint if letter.isdigit()))
    found = library.retrieve(QUESTION, least)
    assert count(rendered(found)) <= least


@pytest.mark.parametrize("span", [(0, 10**6), (5, 5), (-1, 4), (9, 3)])
def test_spans_out_of_range_are_refused(library: Triptych, span: tuple[int, int]) -> None:
    [hit] = library.search("seal", 1).hits
    with pytest.raises(BadInput, match="out of range"):
        library.fetch(hit.id, span)


def test_unknown_ids_and_libraries_are_named(library: Triptych) -> None:
    with pytest.raises(NotFound, match="`nope`"):
        library.fetch("nope")
    with pytest.raises(NotFound, match="`nope`") as caught, Triptych("nope", library.settings) as other:
        other.search("seal")
    assert "`sample`" in caught.value.hint
    assert [row.name for row in libraries(library.settings)] == ["sample"]


@pytest.mark.parametrize("name", ["", "..", "a b", "-x", "ü"])
def test_names_that_are_no_names_are_refused(library: Triptych, name: str) -> None:
    with pytest.raises(BadInput, match="library name"):
        Triptych(name, library.settings)


def test_given_passages_are_ranked_and_compressed(library: Triptych) -> None:
    given = [
        Given(id="a", text="Bread is baked on Tuesdays."),
        Given(text="The generator burns nine litres of diesel an hour.", uri="power.txt"),
        Given(id="c", text="Puffins return in April."),
    ]
    ranked = library.rerank("How much fuel does the generator use?", given)
    assert sorted(hit.id for hit in ranked.hits) == ["a", "c", "given-2"]
    assert ranked.hits[0].id == "given-2"
    pressed = library.compress("How much fuel does the generator use?", given, 60)
    assert pressed.tokens.used <= 60
    assert "nine litres" in " ".join(passage.text for passage in pressed.passages)
    with pytest.raises(BadInput, match="`a` is given twice"):
        library.rerank("x", [given[0], given[0]])


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(min_size=1, max_size=400), min_size=1, max_size=6), budget=st.integers(1, 500))
@example(texts=["\u200b\x00\ud7ff🏳️‍🌈 الأول 123", "| a | b |\n|---|---|\n| 1 | 2 |"], budget=60)
def test_any_text_fits_any_budget_or_is_refused(library: Triptych, texts: list[str], budget: int) -> None:
    given = [Given(text=text) for text in texts]
    try:
        pressed = library.compress(None, given, budget)
    except BadInput as error:
        assert "smallest block" in error.message
        return
    assert count(block(rows_of(pressed.passages), len(pressed.dropped))) == pressed.tokens.used <= budget
    for passage in pressed.passages:
        whole = texts[int(passage.id.removeprefix("given-")) - 1]
        for piece in passage.pieces:
            assert piece.span is None or whole[slice(*piece.span)] == piece.text


def test_without_weights_search_is_bm25_and_says_so(bare_home: Path, tmp_path: Path, weights_home: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("The lighthouse keeper was called Ruth Amberly.", "utf-8")
    with Triptych("bare", Settings.load()) as session:
        session.index(tmp_path / "docs")
        found = session.retrieve("Who kept the lighthouse?", 300)
        assert "Ruth Amberly" in found.passages[0].text
        assert "triptych pull embedded" in (found.note or "")
        assert count(rendered(found)) <= 300
    (bare_home / "weights").symlink_to(weights_home / "weights", target_is_directory=True)
    with Triptych("bare", Settings.load()) as session:
        assert session.index(tmp_path / "docs").indexed == 1  # it gains its vectors
        assert session.retrieve("Who kept the lighthouse?", 300).note is None
        assert session.index(tmp_path / "docs").unchanged == 1


def test_without_weights_the_first_answer_says_as_much_as_the_second(bare_home: Path, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("The lighthouse keeper was called Ruth Amberly.", "utf-8")
    with Triptych("bare", Settings.load()) as session:
        session.index(tmp_path / "docs")
    with Triptych("bare", Settings.load()) as session:
        before = session.search("lighthouse").note
        notes = [session.retrieve("Who kept the lighthouse?", 2000).note for _ in range(2)]
        assert session.search("lighthouse").note == before
    assert notes[0] == notes[1]
    for system in (session.settings.encoder, session.settings.refiner):
        assert system in (notes[0] or "")
    assert "search is BM25 only" in (before or "") and "compression" not in (before or "")


def test_what_no_pull_brings_is_sent_to_the_doctor(bare_home: Path) -> None:
    stages = Stages(Settings.load("standard"))
    stages.reranker()
    assert stages.note() == (
        "Weights missing (monobert): hits are not reranked. Run `triptych doctor --profile standard`."
    )
    stages.encoder_or_none()
    assert (stages.note() or "").endswith("Run `triptych pull standard`.")


def test_to_find_out_that_weights_are_missing_needs_no_torch(bare_home: Path) -> None:
    script = (
        "import sys; from triptych import Settings; from triptych.tools.stages import Stages; "
        "stages = Stages(Settings.load()); stages.warm(); print('torch' in sys.modules, stages.note())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False Weights missing")


def test_a_library_that_must_exist_is_named_where_it_does_not(library: Triptych) -> None:
    library.must_exist()
    with pytest.raises(NotFound, match="no library `nowhere`"):
        Triptych("nowhere", library.settings).must_exist()


SECOND = """
import sys
from triptych import Settings, Triptych
with Triptych("sample", Settings.load(home=sys.argv[1])) as library:
    print(len(library.search("seal", 5).hits), library.status().healthy)
"""


def test_a_second_process_works_beside_the_first(library: Triptych) -> None:
    assert len(library.search("seal", 5).hits) == 5
    home = library.settings.home
    found = subprocess.run(
        [sys.executable, "-c", SECOND, str(home)], capture_output=True, text=True, check=True, timeout=120
    )
    assert found.stdout.split() == ["5", "True"]
    assert len(library.search("seal", 5).hits) == 5
