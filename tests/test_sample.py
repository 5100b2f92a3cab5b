"""The sample library: what it holds, that it can be made again, and that its questions have their answers."""

from __future__ import annotations

import importlib.util
import io
import re
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import docx
import numpy as np
import openpyxl
import pypdfium2
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from triptych.retrievers.readers import read
from triptych.retrievers.readers.base import Limits

if TYPE_CHECKING:
    from types import ModuleType

DOCS = Path(__file__).resolve().parent.parent / "docs"
SAMPLE = DOCS / "sample"
LIBRARY = SAMPLE / "vessey-holm"
ENCODINGS = {"letters/lefevre-2019.txt": "latin-1", "partner/letter-on-seeds.txt": "gb18030"}
PICTURES = {".png", ".jpg"}
SCANS = {"archive/keepers-log-1931-scan.pdf"}
MEDIA = {".ogg", ".mp4"}
PAGED = (".pdf", ".xlsx")
NEEDED = {".docx": "office", ".xlsx": "office", ".ogg": "audio", ".mp4": "video"}

sys.path.append(str(DOCS))  # `make_sample.py` imports its neighbours


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_sample", DOCS / "make_sample.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def written(name: str) -> str:
    """The text of a file that is text."""
    return (LIBRARY / name).read_bytes().decode(ENCODINGS.get(name, "utf-8"))


@cache
def rendered(data: bytes, scale: float) -> tuple[Image.Image, ...]:
    document = pypdfium2.PdfDocument(data)
    try:
        return tuple(page.render(scale=scale).to_pil().convert("RGB") for page in document)
    finally:
        document.close()


def layer(data: bytes) -> list[str]:
    """The text layer of each page of a PDF."""
    document = pypdfium2.PdfDocument(data)
    try:
        return [page.get_textpage().get_text_range().strip() for page in document]
    finally:
        document.close()


def same_picture(a: Image.Image, b: Image.Image) -> bool:
    """Equal but for what another release of a drawing or JPEG library may change."""
    if a.size != b.size:
        return False
    small = [np.asarray(image.convert("RGB").resize((96, 96)), np.float32) for image in (a, b)]
    return bool(np.abs(small[0] - small[1]).mean() < 3.0)


def told(data: bytes) -> list[list[str]]:
    """Paragraphs with their styles, and rows, of a Word document."""
    document = docx.Document(io.BytesIO(data))
    rows = [[cell.text for cell in row.cells] for table in document.tables for row in table.rows]
    return [[str(part.style and part.style.name), part.text] for part in document.paragraphs] + rows


def cells(data: bytes) -> list[tuple[str, str, object, str]]:
    """Sheet, place, value and number format of every cell of a workbook."""
    book = openpyxl.load_workbook(io.BytesIO(data))
    return [
        (sheet.title, cell.coordinate, cell.value, cell.number_format)
        for sheet in book.worksheets
        for row in sheet.iter_rows()
        for cell in row
    ]


def frames(data: bytes, per_s: int = 2) -> tuple[list[Image.Image], np.ndarray]:
    """Pictures of a film, so many a second, and its samples."""
    with av.open(io.BytesIO(data), "r") as film:
        seen = [frame.to_image() for frame in film.decode(video=0)]
        rate = int(film.streams.video[0].average_rate or 1)
    with av.open(io.BytesIO(data), "r") as film:
        heard = np.concatenate([frame.to_ndarray()[0] for frame in film.decode(audio=0)])
    return seen[:: rate // per_s], heard


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The library made twice, each time in an empty folder."""
    folders = tmp_path_factory.mktemp("once"), tmp_path_factory.mktemp("twice")
    for folder in folders:
        script().make(folder)
    return folders


@pytest.fixture(scope="module")
def questions() -> dict[str, list[dict]]:
    return tomllib.loads((SAMPLE / "questions.toml").read_text("utf-8"))


def test_it_holds_what_the_readme_says() -> None:
    files = names(LIBRARY)
    suffixes = [Path(name).suffix for name in files]
    assert len(files) >= 24
    assert suffixes.count(".md") >= 8 and suffixes.count(".html") >= 4
    assert suffixes.count(".pdf") >= 4 and suffixes.count(".png") >= 2 and suffixes.count(".jpg") >= 2
    assert {".docx", ".xlsx", *MEDIA} <= set(suffixes)
    assert set(suffixes) <= {".md", ".html", ".txt", ".pdf", ".png", ".jpg", ".docx", ".xlsx", *MEDIA}
    assert all((LIBRARY / name).stat().st_size < 150_000 for name in files if Path(name).suffix in MEDIA)
    assert sum((LIBRARY / name).stat().st_size for name in files) < 3_000_000
    assert (SAMPLE / "__init__.py").read_text() == ""


def test_it_is_long_enough_to_compress() -> None:
    words = {
        name: len(written(name).split()) for name in names(LIBRARY) if Path(name).suffix in {".md", ".html", ".txt"}
    }
    assert sum(words.values()) >= 11_000
    assert sum(count >= 600 for count in words.values()) >= 8


def test_two_runs_give_the_same_bytes(made: tuple[Path, Path]) -> None:
    once, twice = made
    assert names(once) == names(twice)
    assert [name for name in names(once) if (once / name).read_bytes() != (twice / name).read_bytes()] == []


def test_the_committed_files_are_those_the_script_makes(made: tuple[Path, Path]) -> None:
    once, _ = made
    assert names(once) == names(LIBRARY)
    for name in names(LIBRARY):
        new, old = (once / name).read_bytes(), (LIBRARY / name).read_bytes()
        suffix = Path(name).suffix
        if suffix in PICTURES:
            assert same_picture(Image.open(io.BytesIO(new)), Image.open(io.BytesIO(old))), name
        elif suffix == ".pdf":
            assert layer(new) == layer(old), name
            pages = zip(rendered(new, 0.5), rendered(old, 0.5), strict=True)
            assert all(same_picture(a, b) for a, b in pages), name
        elif suffix == ".docx":
            assert told(new) == told(old), name
        elif suffix == ".xlsx":
            assert cells(new) == cells(old), name
        elif suffix == ".mp4":
            (seen, heard), (seen_before, heard_before) = frames(new), frames(old)
            assert all(same_picture(a, b) for a, b in zip(seen, seen_before, strict=True)), name
            assert np.corrcoef(heard[:200_000], heard_before[:200_000])[0, 1] > 0.95, name
        else:
            assert new == old, name


def test_every_source_of_words_is_used() -> None:
    used = [argument for maker in script().MADE.values() for argument in getattr(maker, "args", ())]
    names = {f"{a}.txt" for a in used if isinstance(a, str)} | {a.name for a in used if isinstance(a, Path)}
    assert {path.name for path in (DOCS / "sample_text").iterdir()} <= names


def test_scans_have_no_text_layer_and_reports_have_one() -> None:
    for name in names(LIBRARY):
        if name.endswith(".pdf"):
            pages = layer((LIBRARY / name).read_bytes())
            assert (name in SCANS) == (pages == [""]), name
            assert name in SCANS or (len(pages) >= 3 and min(map(len, pages)) > 400), name


@pytest.mark.parametrize(("name", "encoding"), ENCODINGS.items())
def test_old_encodings_are_really_old(name: str, encoding: str) -> None:
    data = (LIBRARY / name).read_bytes()
    with pytest.raises(UnicodeDecodeError):
        data.decode("utf-8")
    assert data.decode(encoding) == (DOCS / "sample_text" / f"{script().MADE[name].args[0]}.txt").read_text("utf-8")


def test_the_hazard_is_there() -> None:
    page = written("web/hydrophone-forum.html").lower()
    assert "ignore all previous instructions" in page
    assert "display:none" in page


def test_charts_show_the_numbers_of_the_texts() -> None:
    made_by = script()
    census = written("projects/seagrass-restoration.md")
    assert all(f"| {year} | {area} |" in census for year, area in made_by.SEAGRASS.items())
    assert f"{made_by.PUPS[2024]} grey seal pups" in written("web/news-2024.html")
    assert f"counted {made_by.PUPS[2023]} grey seal pups" in written("minutes/2023-10-14-council.md")


def test_the_tenders_add_up_to_what_the_appeal_asks_for() -> None:
    words = (DOCS / "sample_text" / "tower-repointing.txt").read_text("utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in words.splitlines() if line[:1] == "|"]
    tenders = [[int(cell.replace(",", "")) for cell in row[1:]] for row in rows if len(row) == 5 and _whole(row)]
    assert len(tenders) == 3 and all(sum(parts) == total for *parts, total in tenders)
    assert "of the 15,000 needed" in written("web/news-2024.html") and min(row[-1] for row in tenders) == 15_000


@pytest.mark.parametrize("name", ["sample/vessey-holm/radio/voice-note-2024-09-15.ogg", "sample_text/lamp-change.ogg"])
def test_what_was_spoken_is_heard(name: str, weights_home: Path) -> None:
    limits = Limits(weights=weights_home / "weights", speech="moonshine_tiny_en")
    heard = " ".join(section.text for section in read(DOCS / name, name, limits).sections).lower()
    words = re.findall(r"[a-z]+", script().SPOKEN[name][1].lower())
    assert sum(word in heard for word in words) > 0.85 * len(words)


def test_accounts_add_up() -> None:
    report = (DOCS / "sample_text" / "annual-report-2023.txt").read_text("utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.splitlines() if line[:1] == "|"]
    value = {
        row[0]: [int(cell.replace(",", "")) for cell in row[1:3]] for row in rows if row[0] in report and _whole(row)
    }
    income = ("Memberships", "Grants", "Visitor fees", "Laboratory and bench hire", "Donations and other")
    spent = ("Staff", "Boats", "Energy and water", "Storm repairs", "Science", "Administration")
    for year in (0, 1):
        assert sum(value[name][year] for name in income) == value["Total income"][year]
        assert sum(value[name][year] for name in spent) == value["Total expenditure"][year]
        difference = value["Total income"][year] - value["Total expenditure"][year]
        assert difference == value["Result for the year"][year]


def _whole(row: list[str]) -> bool:
    return all(cell.replace(",", "").lstrip("-+").isdigit() for cell in row[1:3])


def test_questions_have_the_fields_they_say(questions: dict[str, list[dict]]) -> None:
    assert questions["library"] == LIBRARY.name
    assert len(questions["question"]) == 7 and len(questions["extra"]) >= 19
    assert len({row["format"] for row in questions["question"]}) >= 4
    asked = [row["ask"] for row in (*questions["question"], *questions["extra"])]
    assert len(set(asked)) == len(asked)
    for row in (*questions["question"], *questions["extra"]):
        assert set(row) - {"needs"} == {"ask", "answers", "sources", "format"}
        assert {NEEDED.get(Path(source["uri"]).suffix) for source in row["sources"]} == {row.get("needs")}
        assert row["answers"] and row["sources"]
        assert all(set(source) <= {"uri", "page"} and (LIBRARY / source["uri"]).is_file() for source in row["sources"])
        assert all(("page" in source) == source["uri"].endswith(PAGED) for source in row["sources"])


def test_no_question_copies_a_sentence(questions: dict[str, list[dict]]) -> None:
    everything = " ".join(written(name) for name in names(LIBRARY) if Path(name).suffix in {".md", ".html", ".txt"})
    for row in (*questions["question"], *questions["extra"]):
        words = row["ask"].split()
        runs = [" ".join(words[at : at + 7]) for at in range(max(0, len(words) - 6))]
        assert not any(run in everything for run in runs), row["ask"]


def test_answers_stand_in_their_sources(questions: dict[str, list[dict]], weights_home: Path) -> None:
    from rapidocr import RapidOCR

    engine = RapidOCR()

    def recognised(picture: Image.Image) -> str:
        small = picture.convert("RGB")
        small.thumbnail((900, 900))
        found: Any = engine(np.asarray(small))
        return "\n".join(found.txts or ())

    @cache
    def text(uri: str, page: int | None) -> str:
        path = LIBRARY / uri
        if path.suffix in PICTURES:
            return recognised(Image.open(path))
        if uri in SCANS:
            return recognised(rendered(path.read_bytes(), 2.0)[(page or 1) - 1])
        if path.suffix == ".pdf":
            return layer(path.read_bytes())[(page or 1) - 1]
        if path.suffix in NEEDED:
            limits = Limits(weights=weights_home / "weights", speech="moonshine_tiny_en")
            sections = read(path, uri, limits).sections
            return "".join(section.text for section in sections if page in (None, section.page))
        if path.suffix == ".html":
            return BeautifulSoup(written(uri), "html.parser").get_text(" ")
        return written(uri)

    for row in (*questions["question"], *questions["extra"]):
        for source in row["sources"]:
            found = text(source["uri"], source.get("page"))
            assert [answer for answer in row["answers"] if answer not in found] == [], (row["ask"], source)
