"""Make the sample library `docs/sample/vessey-holm`: `python docs/make_sample.py [FOLDER]`.

Markdown, HTML and UTF-8 text stand in that folder as they were written, and so does the voice note; this script leaves
them alone, or copies them when FOLDER is another one. Everything else (PDF, pictures, Office files, the film, texts in
older encodings) it makes from what stands in `docs/sample_text`, with fixed seeds and dates, so a second run gives the
same bytes.

Nobody spoke the voice note and the film's sound: they are `SPOKEN`, read by the synthesiser espeak-ng (GPL-3.0, whose
output is not under its licence) with `espeak-ng -v VOICE -s 145 -w a.wav WORDS` and coded as Opus at 16 kbit/s.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pypdfium2
from fpdf import FPDF
from make_film import film
from make_office import word, workbook
from PIL import Image, ImageDraw, ImageFilter, ImageFont

HERE = Path(__file__).resolve().parent
WORDS = HERE / "sample_text"
LIBRARY = HERE / "sample" / "vessey-holm"

INK = (34, 40, 49)
SEA = (214, 230, 238)
LAND = (226, 222, 196)
BLUE = (46, 104, 150)
RED = (178, 48, 44)
GREY = (120, 126, 134)

PUPS = {2019: 312, 2020: 298, 2021: 341, 2022: 367, 2023: 389, 2024: 402}
SEAGRASS = {2016: 6.2, 2018: 5.1, 2020: 4.4, 2022: 5.0, 2024: 5.8}

SPOKEN = {
    "sample/vessey-holm/radio/voice-note-2024-09-15.ogg": (
        "en-us+m3",
        "This is Tomas Breck, on Sunday evening. The wood pile was a bad hiding place, so I have moved the key to the "
        "boat shed. The key now hangs inside the yellow kayak, under the front seat. Please tell the new students. "
        "Also, somebody left a window open in the laboratory, and the wind has sorted all our papers.",
    ),
    "sample_text/lamp-change.ogg": (
        "en-us+f3",
        "Turn off the power and close the water valve. Wait fifteen minutes, because the lamp is hot. Never touch the "
        "new lamp with your fingers. Put on the white gloves from the green toolbox.",
    ),
}
"""Sound files below this folder: the synthesiser's voice, and the words."""

SLIDES = (
    (3.0, (32, 58, 92), ("Changing the UV lamp", "Plant room, by Anneke Voss", "Once in 12 months")),
    (3.5, (24, 84, 68), ("1. Let it cool", "Switch off at the red box", "Sleeve comes out to the left")),
    (3.5, (120, 54, 40), ("2. Clean the sleeve", "Vinegar, never soap", "Scratched? Use the spare")),
    (4.0, (70, 60, 96), ("3. Put it back", "Ring nut: 6 Nm, by hand key", "Hold RESET for 5 seconds")),
)

Block = str | list[list[str]]


def make(folder: Path = LIBRARY) -> list[Path]:
    """Write the whole library into `folder`; returns its files, sorted."""
    for source in sorted(path for path in LIBRARY.rglob("*") if path.is_file()):
        name = source.relative_to(LIBRARY)
        if name.as_posix() not in MADE and folder.resolve() != LIBRARY:
            _write(folder / name, source.read_bytes())
    for name, maker in MADE.items():
        _write(folder / name, maker())
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _words(name: str) -> str:
    return (WORDS / f"{name}.txt").read_text("utf-8")


def encoded(name: str, encoding: str) -> bytes:
    """A text in an encoding other than UTF-8."""
    return _words(name).encode(encoding)


def specification(name: str, date: datetime) -> bytes:
    """A Word document from the words of `name`."""
    return word(_words(name), date)


def spreadsheet(name: str, title: str, date: datetime) -> bytes:
    """An Excel workbook from the words of `name`."""
    return workbook(_words(name), title, date)


# Reports: PDF with a text layer


class _Report(FPDF):
    def footer(self) -> None:
        self.set_y(-14)
        self.set_font("Helvetica", size=8)
        self.cell(0, 6, f"{self.title} - page {self.page_no()}", align="C")


def report(name: str, date: datetime) -> bytes:
    """A PDF from the words of `name`: `#` title, `##` heading, `| a | b |` table rows, `===` page break."""
    pages = _words(name).split("\n===\n")
    pdf = _Report(format="A4")
    pdf.set_creation_date(date)
    pdf.set_margin(20)
    for page in pages:
        pdf.add_page()
        for block in _blocks(page):
            _lay(pdf, block)
    if pdf.page_no() != len(pages):
        raise ValueError(f"`{name}` has {len(pages)} pages of words and fills {pdf.page_no()}.")
    return bytes(pdf.output())


def _blocks(page: str) -> Iterator[Block]:
    for part in page.strip().split("\n\n"):
        lines = part.splitlines()
        if lines[0].startswith("|"):
            yield [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        else:
            yield " ".join(lines)


def _lay(pdf: FPDF, block: Block) -> None:
    if isinstance(block, list):
        _lay_table(pdf, block)
        return
    text = block.lstrip("# ")
    style, size, gap = {0: ("", 10.5, 3.0), 1: ("B", 17, 4.0), 2: ("B", 12.5, 2.0)}[len(block) - len(block.lstrip("#"))]
    if size == 17:
        pdf.set_title(text)
    pdf.set_font("Helvetica", style, size)
    pdf.multi_cell(0, size * 0.48, text, new_x="LMARGIN", new_y="NEXT")
    pdf.ln(gap)


def _lay_table(pdf: FPDF, rows: list[list[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) + 3 for column in range(len(rows[0]))]
    align = tuple("RIGHT" if _is_number(rows[1][column]) else "LEFT" for column in range(len(widths)))
    pdf.set_font("Helvetica", size=9)
    with pdf.table(
        col_widths=tuple(widths), text_align=align, line_height=5.6, borders_layout="HORIZONTAL_LINES"
    ) as table:
        for cells in rows:
            row = table.row()
            for cell in cells:
                row.cell(cell)
    pdf.ln(5)


def _is_number(cell: str) -> bool:
    return cell.strip("+-<").replace(",", "").replace(".", "").isdigit()


# Pages and pictures that only a reader with OCR can read


def scan(name: str, date: datetime, seed: int) -> bytes:
    """A PDF that holds nothing but the picture of a typed page: yellowed, askew, speckled."""
    page = _typed(_words(name), size=13, width=210, height=240, margin=24, scale=1.9)
    paper = _tinted(page, (243, 234, 208), (58, 50, 46)).rotate(
        -0.9, Image.Resampling.BICUBIC, fillcolor=(228, 217, 188)
    )
    picture = _grain(paper.filter(ImageFilter.GaussianBlur(0.5)), seed, spread=4.0, specks=160)
    pdf = FPDF(format=(210, 240))
    pdf.set_creation_date(date)
    pdf.set_title("Vessey Holm light station, log, page 118")
    pdf.add_page()
    pdf.image(io.BytesIO(_jpeg(picture, 62)), x=0, y=0, w=210, h=240)
    return bytes(pdf.output())


def receipt(name: str, seed: int) -> bytes:
    """A till receipt on a table, photographed by hand with the lamp at the left."""
    slip = _tinted(
        _typed(_words(name), size=11, width=92, height=132, margin=6, scale=2.6), (250, 249, 244), (52, 52, 60)
    )
    table = _planks(1100, 1400, seed)
    corners = ((190, 95), (905, 130), (935, 1300), (150, 1265))
    return _photograph(table, slip, corners, seed, light=(0.25, 0.3))


def label(seed: int) -> bytes:
    """The label of a specimen jar."""
    paper = Image.new("RGB", (760, 460), (247, 243, 228))
    draw = ImageDraw.Draw(paper)
    draw.rectangle((14, 14, 745, 445), outline=INK, width=3)
    _text(draw, (40, 34), "VESSEY HOLM FIELD STATION", 36)
    _text(draw, (40, 92), "Specimen VH-0417", 44, bold=True, fill=RED)
    for row, line in enumerate(
        ("Zostera marina L.", "Scarp Bay, depth 3.2 m", "14 July 2023   leg. Lin Mei", "Ethanol 70 %   Shelf 12, box C")
    ):
        _text(draw, (40, 172 + row * 62), line, 38)
    glass = _gradient(1000, 800, (120, 138, 132), (196, 208, 200))
    return _photograph(glass, paper, ((130, 150), (880, 190), (865, 640), (115, 615)), seed, light=(0.7, 0.25))


def sign(seed: int) -> bytes:
    """The notice above the South Slip, seen from a boat."""
    board = Image.new("RGB", (900, 640), (248, 248, 246))
    draw = ImageDraw.Draw(board)
    draw.rectangle((0, 0, 899, 150), fill=RED)
    _text(draw, (450, 76), "SOUTH SLIP", 96, bold=True, fill=(255, 255, 255), anchor="mm")
    lines = (
        "No landing when the lamp is red",
        "Keep 60 m from seals",
        "Greatest load on the ramp 900 kg",
        "Call Holm Two on channel 37",
    )
    for row, line in enumerate(lines):
        _text(draw, (450, 222 + row * 104), line, 52, bold=row == 0, anchor="mm")
    shore = _gradient(1200, 900, (178, 200, 214), (92, 112, 116))
    ImageDraw.Draw(shore).rectangle((565, 600, 640, 899), fill=(96, 82, 68))
    return _photograph(shore, board, ((170, 110), (1010, 165), (1000, 690), (185, 720)), seed, light=(0.4, 0.1))


def _typed(text: str, *, size: float, width: float, height: float, margin: float, scale: float) -> Image.Image:
    """Grey levels of `text` set in Courier on a page of `width` by `height` millimetres."""
    pdf = FPDF(format=(width, height))
    pdf.set_margin(margin)
    pdf.set_auto_page_break(False)
    pdf.add_page()
    pdf.set_font("Courier", size=size)
    for line in text.splitlines():
        pdf.cell(0, size * 0.47, line, new_x="LMARGIN", new_y="NEXT")
    document = pypdfium2.PdfDocument(bytes(pdf.output()))
    try:
        return document[0].render(scale=scale).to_pil().convert("L")
    finally:
        document.close()


def _tinted(grey: Image.Image, paper: tuple[int, int, int], ink: tuple[int, int, int]) -> Image.Image:
    level = np.asarray(grey, np.float32)[..., None] / 255
    return _image(level * np.array(paper) + (1 - level) * np.array(ink))


def _gradient(width: int, height: int, top: tuple[int, int, int], bottom: tuple[int, int, int]) -> Image.Image:
    level = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    rows = (1 - level) * np.array(top) + level * np.array(bottom)
    return _image(np.broadcast_to(rows, (height, width, 3)))


def _planks(width: int, height: int, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    grain = np.repeat(rng.integers(-14, 15, (height // 7 + 1, 1)), 7, axis=0)[:height]
    wave = 9 * np.sin(np.arange(width) / 90 + rng.integers(0, 40, (height, 1)) / 40)
    seams = np.where(np.arange(height) % 240 < 4, -60, 0)[:, None]
    return _image((grain + wave + seams)[..., None] + np.array((128, 92, 60))).filter(ImageFilter.GaussianBlur(1.4))


def _photograph(
    scene: Image.Image, flat: Image.Image, corners: tuple[tuple[int, int], ...], seed: int, light: tuple[float, float]
) -> bytes:
    """`flat` laid into `scene` at `corners` (clockwise from top left), lit from `light` (fractions), as a JPEG."""
    coefficients = _perspective(corners, flat.size)
    method = Image.Transform.PERSPECTIVE
    laid = flat.transform(scene.size, method, coefficients, Image.Resampling.BICUBIC)
    mask = Image.new("L", flat.size, 255).transform(scene.size, method, coefficients, Image.Resampling.BICUBIC)
    shadow = mask.filter(ImageFilter.GaussianBlur(14)).point([value // 3 for value in range(256)])
    ground = Image.composite(Image.new("RGB", scene.size), scene, shadow)
    picture = np.asarray(Image.composite(laid, ground, mask), np.float32)
    height, width = picture.shape[:2]
    y, x = np.mgrid[0:height, 0:width]
    distance = np.hypot(x / width - light[0], y / height - light[1])
    lit = _image(picture * (1.08 - 0.38 * distance)[..., None]).filter(ImageFilter.GaussianBlur(0.6))
    return _jpeg(_grain(lit, seed, spread=5.0, specks=0), 78)


def _perspective(corners: tuple[tuple[int, int], ...], size: tuple[int, int]) -> tuple[float, ...]:
    """The eight numbers with which Pillow maps points of the photograph back to points of the flat sheet."""
    sheet = ((0, 0), (size[0], 0), size, (0, size[1]))
    rows, wanted = [], []
    for (x, y), (u, v) in zip(corners, sheet, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        wanted += [u, v]
    return tuple(np.linalg.solve(np.array(rows, float), np.array(wanted, float)))


def _grain(picture: Image.Image, seed: int, spread: float, specks: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    pixels = np.asarray(picture, np.float32)
    pixels = pixels + spread * rng.standard_normal(pixels.shape[:2])[..., None]
    grey = _image(pixels)
    draw = ImageDraw.Draw(grey)
    for x, y in rng.integers(0, grey.size, (specks, 2)).tolist():
        draw.point((x, y), fill=(110, 98, 84))
    return grey


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return out.getvalue()


# Charts and the map


def _text(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: int,
    *,
    bold: bool = False,
    fill: tuple[int, int, int] = INK,
    anchor: str = "la",
) -> None:
    font = ImageFont.load_default(size)
    draw.text(at, text, fill=fill, font=font, anchor=anchor, stroke_width=1 if bold else 0, stroke_fill=fill)


def _sheet(width: int, height: int, title: str, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    picture = Image.new("RGB", (width, height), background)
    _text(ImageDraw.Draw(picture), (width / 2, 44), title, 36, anchor="mm")
    return picture


def _png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()


def _upright(picture: Image.Image, text: str, x: int, middle: int) -> None:
    """`text` as the title of a vertical axis, read from below."""
    strip = Image.new("RGB", (420, 40), (255, 255, 255))
    _text(ImageDraw.Draw(strip), (210, 20), text, 26, anchor="mm")
    picture.paste(strip.rotate(90, expand=True), (x, middle - 210))


def bars() -> bytes:
    """Pups by year, the number above each bar."""
    picture = _sheet(1000, 680, "Grey seal pups born on Vessey Holm, 2019 to 2024")
    draw = ImageDraw.Draw(picture)
    for mark in range(0, 401, 100):
        y = 570 - mark * 1.1
        draw.line((130, y, 960, y), fill=(222, 226, 230), width=2)
        _text(draw, (116, y), str(mark), 24, fill=GREY, anchor="rm")
    for place, (year, pups) in enumerate(PUPS.items()):
        x = 165 + place * 132
        draw.rectangle((x, 570 - pups * 1.1, x + 84, 570), fill=BLUE)
        _text(draw, (x + 42, 548 - pups * 1.1), str(pups), 30, bold=True, anchor="mm")
        _text(draw, (x + 42, 600), str(year), 28, anchor="mm")
    draw.line((130, 570, 960, 570), fill=INK, width=3)
    _upright(picture, "Pups born in the season", 20, 350)
    _text(draw, (545, 650), "Season", 26, anchor="mm")
    return _png(picture)


def line() -> bytes:
    """Area of the meadow by year, with the year in which anchoring was forbidden."""
    picture = _sheet(1000, 680, "Eelgrass meadow in Scarp Bay, area in hectares")
    draw = ImageDraw.Draw(picture)
    for mark in range(8):
        y = 580 - mark * 66
        draw.line((130, y, 960, y), fill=(222, 226, 230), width=2)
        _text(draw, (112, y), str(mark), 24, fill=GREY, anchor="rm")
    points = [(180 + (year - 2016) * 90, 580 - area * 66) for year, area in SEAGRASS.items()]
    ban = 180 + (2021.33 - 2016) * 90
    draw.line((ban, 130, ban, 580), fill=RED, width=3)
    _text(draw, (ban + 12, 480), "Anchoring ban,", 26, fill=RED)
    _text(draw, (ban + 12, 514), "1 May 2021", 26, fill=RED)
    draw.line(points, fill=BLUE, width=5)
    for (x, y), (year, area) in zip(points, SEAGRASS.items(), strict=True):
        draw.ellipse((x - 8, y - 8, x + 8, y + 8), fill=BLUE)
        _text(draw, (x, y - 34), f"{area:.1f}", 30, bold=True, anchor="mm")
        _text(draw, (x, 610), str(year), 28, anchor="mm")
    draw.line((130, 580, 960, 580), fill=INK, width=3)
    _upright(picture, "Area, ha", 20, 350)
    _text(draw, (545, 654), "Year of the towed camera survey", 26, anchor="mm")
    return _png(picture)


def chart_of_the_island() -> bytes:
    """A plan with names, heights and depths."""
    picture = _sheet(1100, 860, "Vessey Holm, plan for visitors", SEA)
    draw = ImageDraw.Draw(picture)
    shore = [(260, 300), (340, 190), (470, 150), (560, 190), (660, 170), (800, 240), (850, 340), (800, 450), (700, 520)]
    shore += [(640, 620), (560, 690), (470, 660), (400, 560), (420, 480), (330, 470), (250, 400)]
    draw.polygon(shore, fill=LAND, outline=INK, width=4)
    for box in ((560, 760, 610, 790), (650, 780, 684, 804)):
        draw.ellipse(box, fill=LAND, outline=INK, width=3)
    for x, y in ((600, 330), (640, 342), (680, 336)):
        draw.rectangle((x, y, x + 26, y + 18), fill=INK)
    draw.ellipse((716, 292, 744, 320), fill=(255, 255, 255), outline=RED, width=5)
    for at, text in {
        (400, 215): "North Geo",
        (440, 320): "Bell Hill 52 m",
        (660, 270): "Lighthouse 27 m",
        (650, 380): "Houses One to Three",
        (290, 540): "Scarp Bay",
        (600, 460): "Football pitch",
        (960, 330): "East Landing",
        (960, 362): "38 steps",
        (360, 640): "South Slip",
        (360, 672): "depth 1.4 m",
        (160, 350): "The Gullet",
        (740, 740): "The Calves",
    }.items():
        _text(draw, at, text, 26, anchor="mm")
    draw.line((90, 800, 290, 800), fill=INK, width=5)
    _text(draw, (190, 772), "200 metres", 26, anchor="mm")
    draw.polygon([(1000, 110), (980, 170), (1020, 170)], fill=INK)
    _text(draw, (1000, 190), "N", 30, bold=True, anchor="mm")
    _text(draw, (870, 610), "Path round the island 2.9 km", 26, anchor="mm")
    return _png(picture)


MADE: dict[str, Callable[[], bytes]] = {
    "archive/keepers-log-1931-scan.pdf": partial(scan, "keepers-log-1931", datetime(2016, 5, 9, tzinfo=UTC), 1931),
    "charts/seagrass-area.png": line,
    "charts/seal-pups.png": bars,
    "film/uv-lamp.mp4": partial(film, SLIDES, WORDS / "lamp-change.ogg", "Changing the UV lamp"),
    "letters/lefevre-2019.txt": partial(encoded, "letter-lefevre-2019", "latin-1"),
    "maps/island-plan.png": chart_of_the_island,
    "partner/letter-on-seeds.txt": partial(encoded, "letter-on-seeds", "gb18030"),
    "photos/landing-sign.jpg": partial(sign, 37),
    "photos/receipt-chandlery.jpg": partial(receipt, "receipt", 20931),
    "photos/specimen-label.jpg": partial(label, 417),
    "projects/tower-repointing.docx": partial(specification, "tower-repointing", datetime(2024, 9, 9, tzinfo=UTC)),
    "reports/annual-report-2023.pdf": partial(report, "annual-report-2023", datetime(2024, 4, 22, tzinfo=UTC)),
    "reports/sula-maintenance-schedule.pdf": partial(
        report, "sula-maintenance-schedule", datetime(2024, 3, 18, tzinfo=UTC)
    ),
    "reports/water-quality-2024.pdf": partial(report, "water-quality-2024", datetime(2024, 11, 4, tzinfo=UTC)),
    "stores/equipment-register.xlsx": partial(
        spreadsheet, "equipment-register", "Equipment register, November 2024", datetime(2024, 11, 1, tzinfo=UTC)
    ),
}


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else LIBRARY)
