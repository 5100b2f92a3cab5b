"""Make the data set `data/station`: `python benchmarks/make_data.py [FOLDER]`.

A small collection and a question file of our own making, so that the harness can be tried and tested anywhere. The
texts are those of the sample library, the questions stand in `data/station.toml`. The texts are cut here, at blank
lines and headings, and not by the product, so that a change of its chunking does not change the data.
"""

from __future__ import annotations

import json
import random
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORDS = ROOT / "docs" / "sample_text"
LIBRARY = ROOT / "docs" / "sample" / "vessey-holm"
QUESTIONS = ROOT / "benchmarks" / "data" / "station.toml"
STATION = ROOT / "benchmarks" / "data" / "station"

LEAST, BYTES = 200, 900
"""In UTF-8, where a Chinese sentence is about as long as its translation: shorter than `LEAST` no passage is closed
before the end of its file, and once it has `BYTES` it is."""
CONTEXTS = 10

SOURCE = """\
The collection `station`: texts of Triptych's sample library (docs/sample and docs/sample_text) and questions about
them (benchmarks/data/station.toml), all written for Triptych. Island, people and figures are invented.
Licence: Apache-2.0, like the rest of the repository.

Made by `python benchmarks/make_data.py`; change the questions or the script, never these files.

corpus.jsonl     passages, cut at headings and blank lines
queries.jsonl    questions with their answers
qrels.tsv        2: the passage holds an answer, 1: it bears on the question
questions.jsonl  each question with ten passages in random order: those that hold an answer, with the spans of the
                 evidence, and others that hold none
"""


@dataclass(frozen=True)
class Passage:
    """A cut of one text."""

    id: str
    title: str
    text: str


def make(folder: Path = STATION) -> list[Path]:
    """Write the data set into `folder`; returns its files, sorted.

    Raises:
        ValueError: evidence that stands in no passage or in several, or a passage of evidence without an answer.
    """
    passages = [passage for path in texts() for passage in cut(path)]
    asked = tomllib.loads(QUESTIONS.read_text("utf-8"))["question"]
    judged = {row["id"]: _judged(row, passages) for row in asked}
    folder.mkdir(parents=True, exist_ok=True)
    corpus = [{"id": one.id, "title": one.title, "text": one.text} for one in passages]
    queries = [{"id": row["id"], "text": row["ask"], "answers": row["answers"]} for row in asked]
    grades = [f"{key}\t{passage}\t{grade}\n" for key, row in judged.items() for passage, grade in row.items()]
    made = {
        "corpus.jsonl": _lines(corpus),
        "queries.jsonl": _lines(queries),
        "qrels.tsv": "query-id\tcorpus-id\tscore\n" + "".join(grades),
        "questions.jsonl": _lines([_question(row, judged[row["id"]], passages) for row in asked]),
        "SOURCE.txt": SOURCE,
    }
    for name, text in made.items():
        (folder / name).write_text(text, "utf-8", newline="\n")
    return sorted(folder / name for name in made)


def texts() -> list[Path]:
    """The files that passages are cut from: Markdown and plain text, and the words of what is PDF or picture."""
    return sorted([*WORDS.glob("*.txt"), *LIBRARY.rglob("*.md"), *LIBRARY.rglob("radio-*.txt")], key=lambda p: p.stem)


def cut(path: Path) -> Iterator[Passage]:
    """Passages of a file: blocks between blank lines, joined until `BYTES`; a heading begins a new one."""
    blocks = [block.strip("\n") for block in re.split(r"\n\s*\n", path.read_text("utf-8"))]
    blocks = [block.removeprefix("===\n").strip("\n") for block in blocks if block.strip() not in ("", "===")]
    title = _title(blocks, path)
    held: list[str] = []
    number = 0
    for block in [*blocks, None]:
        size = sum(len(one.encode()) for one in held)
        if held and (block is None or size >= BYTES or (size >= LEAST and block.startswith("#"))):
            number += 1
            yield Passage(f"{path.stem}-{number:02d}", title, "\n\n".join(held))
            held = []
        held.append(block or "")


def _title(blocks: Sequence[str], path: Path) -> str:
    headings = [block.splitlines()[0].lstrip("# ") for block in blocks if block.startswith("#")]
    return headings[0] if headings else path.stem.replace("-", " ")


def _judged(row: Mapping[str, Any], passages: Sequence[Passage]) -> dict[str, int]:
    """Passage id → grade."""
    found: dict[str, int] = {}
    for grade, texts in ((2, row["evidence"]), (1, row.get("related", ()))):
        for text in texts:
            holders = [one for one in passages if text in one.text]
            if len(holders) != 1:
                raise ValueError(f"{row['id']}: {len(holders)} passages hold {text!r}")
            [holder] = holders
            if grade == 2 and not any(answer in holder.text for answer in row["answers"]):
                raise ValueError(f"{row['id']}: no answer stands in {holder.id}")
            found.setdefault(holder.id, grade)
    return found


def _question(row: Mapping[str, Any], grades: Mapping[str, int], passages: Sequence[Passage]) -> dict[str, Any]:
    """A row of the question file; which passages it gets beside its own hangs on its id alone."""
    rng = random.Random(f"station {row['id']}")
    own = [one for one in passages if grades.get(one.id) == 2]
    answers = [_plain(answer) for answer in row["answers"]]
    others = [
        one for one in passages if one.id not in grades and not any(answer in _plain(one.text) for answer in answers)
    ]
    contexts = [*own, *rng.sample(others, CONTEXTS - len(own))]
    rng.shuffle(contexts)
    return {
        "id": row["id"],
        "question": row["ask"],
        "answers": row["answers"],
        "contexts": [
            {"id": one.id, "title": one.title, "text": one.text}
            | ({"evidence": spans} if (spans := _spans(one.text, row["evidence"])) else {})
            for one in contexts
        ],
    }


def _spans(text: str, evidence: Sequence[str]) -> list[list[int]]:
    return sorted([start, start + len(one)] for one in evidence if (start := text.find(one)) >= 0)


def _plain(text: str) -> str:
    """Letters and digits only, so that `19:30` is found in `1930` too."""
    return "".join(filter(str.isalnum, text.casefold()))


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    for path in make(*map(Path, sys.argv[1:2])):
        print(path.name)
