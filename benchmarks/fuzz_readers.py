"""Damaged files of every kind given to the readers until a time is over: each must be read, or refused by name.

    python benchmarks/fuzz_readers.py --seconds 600 [--only pdf] [--seed 1] [--keep FOLDER]

A file is a whole one with damage that depends on its seed alone. It is read and cut into passages in a worker process
whose memory is limited. What is reported, as one line of JSON with the seed: an error that is no `TriptychError`, a
passage that does not stand at its offsets, a worker that died, more than `SECONDS` or more than `MEMORY`. The last line
sums up. Exit status 1 if anything was reported. Seconds are those of the processor, so that other work on the machine
does not count; a worker that is silent for `SILENT` seconds by the clock hangs.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
import mutants
from made_files import FILES, saved

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

SECONDS = 10
SILENT = 120
MEMORY = 1_500_000_000
_TEXTS = {
    "a.txt": "The ferry leaves at nine.\n\nIt carries 142 people; the crossing takes two hours.\n" * 5,
    "a.md": "---\ntitle: Rates\n---\n# Rates\n\n| City | Night |\n|---|---|\n| Oslo | 142 |\n\n```\nx = 1\n```\n- a\n",
    "a.html": "<html><head><title>Rates</title></head><body><h1>Rates</h1><p>The <b>new</b> rate</p><ul><li>a<li>b</ul>"
    "<table><caption>By city</caption><tr><th>City<th>Night<tr><td rowspan=2>Oslo<td>142</table>"
    "<figure><img src=a.png alt='A seal'><figcaption>On the ice</figcaption></figure><pre>x</pre></body></html>",
    "a.js": "// Rates\nexport class Rates { night(city) { return 142 } }\nfunction total(n) { return n + 1 }\n",
    "a.c": "#include <stdio.h>\nstatic int total(int n) { return n + 1; }\nint main(void) { return total(142); }\n",
}
_PICTURES = {f"a.{name.lower()}": name for name in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")}


def whole_files() -> dict[str, bytes]:
    """A file of each kind by its name."""
    files = {name: made() for name, made in FILES.items()} | {name: text.encode() for name, text in _TEXTS.items()}
    files |= {"a.pdf": _pdf(), "b.docx": _word(), "b.pptx": _slides()}
    return files | {name: _picture(kind) for name, kind in _PICTURES.items()}


def _pdf() -> bytes:
    from fpdf import FPDF
    from PIL import Image

    made = FPDF()
    made.set_creation_date(datetime(2024, 1, 1, tzinfo=UTC))
    made.set_font("Helvetica", size=11)
    for _ in range(2):
        made.add_page()
        made.multi_cell(0, 6, "The allowance covers the hotel and the train of all members of staff. " * 4)
        with made.table() as table:
            for row in (("City", "Night"), ("Oslo", "142.50"), ("Rome", "118.00")):
                cells = table.row()
                for cell in row:
                    cells.cell(cell)
        made.image(Image.new("RGB", (64, 48), (90, 120, 160)), w=40)
        made.cell(0, 8, "Figure 1. A seal on the ice.")
    return bytes(made.output())


def _word() -> bytes:
    import docx

    made = docx.Document()
    made.add_heading("Rates", 1)
    made.add_picture(io.BytesIO(_picture("PNG")))
    made.add_paragraph("Figure 1. A board at the desk")
    return saved(made)


def _slides() -> bytes:
    import pptx

    made = pptx.Presentation()
    slide = made.slides.add_slide(made.slide_layouts[5])
    slide.shapes.title.text = "Rates"
    slide.shapes.add_picture(io.BytesIO(_picture("JPEG")), 9000, 9000)
    return saved(made)


def _picture(kind: str) -> bytes:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (160, 60), "white")
    ImageDraw.Draw(image).text((10, 20), "Oslo 142", fill="black")
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def damaged(name: str, content: bytes, seed: int) -> bytes:
    """`content` with the damage that belongs to `seed`."""
    chance = random.Random(f"{name} {seed}")
    if name == "a.pdf":
        return mutants.mutated_pdf(content, chance)
    if name in _PICTURES:
        return mutants.mutated(content, chance)
    is_text = not content.startswith(b"PK")
    return (mutants.mutated_words if is_text and chance.random() < 0.7 else _file(name))(content, chance)


def _file(name: str) -> Any:
    return lambda content, chance: mutants.mutated_file(name, content, chance)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of the first file; the next file has the next seed")
    parser.add_argument("--only", default="", help="part of a name, such as `pdf`")
    parser.add_argument("--keep", type=Path, help="folder for the files that were reported, as SEED-NAME")
    asked = parser.parse_args()
    files = {name: content for name, content in whole_files().items() if asked.only in name}
    tally = _run(files, asked.seed, asked.seconds, asked.keep)
    print(json.dumps({"ended": dict(sorted(tally.items()))}))
    return 1 if any(outcome.startswith("FAULT") for _, outcome in (key.split(" ", 1) for key in tally)) else 0


def _run(files: dict[str, bytes], seed: int, seconds: float, keep: Path | None) -> Counter[str]:
    tally: Counter[str] = Counter()
    end = time.monotonic() + seconds
    worker = _Worker()
    names = sorted(files)
    while time.monotonic() < end:
        name = names[seed % len(names)]
        content = damaged(name, files[name], seed)
        outcome = worker.ask(name, content)
        kind = outcome["kind"]
        tally[f"{name} {kind}"] += 1
        if kind.startswith("FAULT"):
            print(json.dumps({"name": name, "seed": seed, **outcome}), flush=True)
            if keep:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{seed}-{name}").write_bytes(content)
            worker.end()
            worker = _Worker()
        seed += 1
    worker.end()
    return tally


class _Worker:
    """A process that reads one file after the other."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=False)
        self._process.start()
        theirs.close()
        self._pipe.recv()

    def ask(self, name: str, content: bytes) -> dict[str, str]:
        """What became of the file: `read`, the name of an error of ours, or a `FAULT`."""
        self._pipe.send((name, content))
        try:
            if not self._pipe.poll(SILENT):
                return {"kind": "FAULT hang", "detail": f"more than {SILENT} s"}
            answer: dict[str, str] = self._pipe.recv()
        except EOFError:
            self._process.join()
            return {"kind": "FAULT died", "detail": f"exit code {self._process.exitcode}"}
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection) -> None:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    for name, content in whole_files().items():  # what the readers load once counts for none of the files
        _outcome(folder, name, content)
    size = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    pipe.send("ready")
    while True:
        name, content = pipe.recv()
        before, start = _peak(), time.process_time()
        outcome = _outcome(folder, name, content)
        if _peak() - before > 0.8 * MEMORY:
            outcome = {"kind": "FAULT memory", "detail": f"{_peak() - before} bytes more; {outcome}"}
        elif (took := time.process_time() - start) > SECONDS:
            outcome = {"kind": "FAULT slow", "detail": f"{took:.1f} s; {outcome}"}
        pipe.send(outcome)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _outcome(folder: Path, name: str, content: bytes) -> dict[str, str]:
    from triptych.errors import TriptychError
    from triptych.retrievers.chunking import chunk
    from triptych.retrievers.readers import read

    path = folder / name
    path.write_bytes(content)
    try:
        document = read(path, f"box/{name}")
        texts: dict[int | None, str] = {}
        for section in document.sections:
            texts[section.page] = texts.get(section.page, "") + section.text
        for item in chunk(document, "hash"):
            if texts[item.source.page][item.source.start : item.source.end] != item.text:
                return {"kind": "FAULT offsets", "detail": repr(item.text[:200])}
    except TriptychError as error:
        return {"kind": type(error).__name__}
    except BaseException as error:
        return {"kind": f"FAULT {type(error).__name__}", "detail": traceback.format_exc()[-1500:]}
    return {"kind": "read"}


if __name__ == "__main__":
    sys.exit(main())
