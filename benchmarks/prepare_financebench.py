"""FinanceBench (arXiv:2311.11944) as a question file: questions over filings whose answers are numbers in tables.

    python benchmarks/prepare_financebench.py FOLDER OUT.jsonl [--limit N]

FOLDER holds a collection of pages: `corpus.jsonl` with `doc` and `page`, `queries.jsonl` with `doc`, `answer` and
`justification`, `qrels.tsv` with the evidence pages. A question's contexts are passages, cut as a library cuts a text,
of its evidence pages, of the pages before and behind them, and of those of the filing that BM25 ranks first, `PAGES` in
all; the pages are shuffled.

The data names pages, not places. The gold evidence is found on them by rule, and never by what a system of ours does:

- rows whose label the justification names as a line item,
- rows with a number that answer or justification give (a decimal point, or three digits and no year); of several, the
  one whose label has most words in common with question, answer and justification, then the first.

A row is a label and the numbers behind it. The texts have no line breaks: the label is at most `LABEL_WORDS` words,
back to the number before or the end of a sentence. A row that two passages share is no evidence. Where one number of
the answer stands in a gold row, its spelling there is the answer that must survive; what is computed from several has
none. Questions without a gold row are left out.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from triptych.refiners.relevance import bm25
from triptych.retrievers.chunking import chunk
from triptych.retrievers.readers.base import Document, Section

Row = dict[str, Any]
PAGES = 6
LABEL_WORDS = 8

_DIGITS = r"\d++(?:,\d++)*+(?:\.\d++)?+"
_CELL = rf"[$€£(]*\s?[$€£(]*{_DIGITS}(?:\s?%)?\)?%?"
_CELLS = rf"(?<![\w.,]){_CELL}(?:\s+(?:{_CELL}|[$€£]?\s?[—–-](?=\s)))*(?!\w)"
_RUN = re.compile(_CELLS)
_NUMBER = re.compile(rf"(?<![\w.,]){_DIGITS}")
_YEAR = re.compile(r"(?:19|20)\d\d")
_ENDS = re.compile(r"[.;:!?]\s")
_LINE_ITEM = re.compile(r"(?:in the 10K, was|line item named): (.+?)\.(?=\s+[A-Z]|\s*$)")
_BLANK = re.compile(r"[Â\s]+")
"""White space, and what is left of a no-break space that was read in the wrong encoding."""


@dataclass(frozen=True)
class _Line:
    """A row of a table: where it stands in its page, its label, and its numbers as they are written."""

    start: int
    end: int
    label: str
    numbers: tuple[str, ...]


def financebench(folder: Path) -> Iterator[Row]:
    pages = {row["id"]: row for row in _rows(folder / "corpus.jsonl")}
    gold: dict[str, list[str]] = {}
    for line in (folder / "qrels.tsv").read_text("utf-8").splitlines()[1:]:
        query, page, _ = line.split("\t")
        gold.setdefault(query, []).append(page)
    asked = [row for row in _rows(folder / "queries.jsonl") if row["id"] in gold]
    for row in random.Random(0).sample(asked, len(asked)):
        made = _question(row, gold[row["id"]], pages)
        if any("evidence" in context for context in made["contexts"]):
            yield made


def _question(row: Row, evidence: Sequence[str], pages: Mapping[str, Row]) -> Row:
    lines = _gold(row, {key: pages[key]["text"] for key in evidence})
    chosen = _chosen(row, evidence, pages)
    random.Random(row["id"]).shuffle(chosen)
    contexts = [context for key in chosen for context in _contexts(pages[key], lines.get(key, []))]
    given = {_value(number) for number in _NUMBER.findall(row["answer"])}
    found = [number for some in lines.values() for line in some for number in line.numbers if _value(number) in given]
    answers = sorted(set(found)) if len({_value(number) for number in found}) == 1 else []
    return {"id": row["id"], "question": row["text"], "answers": answers, "contexts": contexts}


def _gold(row: Row, texts: Mapping[str, str]) -> dict[str, list[_Line]]:
    """The gold rows by page."""
    told = _BLANK.sub(" ", f"{row['answer']} {row['justification'] or ''}")
    known = [(key, line) for key, text in texts.items() for line in _lines(text)]
    found = [_named(label, texts) for label in _LINE_ITEM.findall(told)]
    wanted = _words(f"{row['text']} {told}")
    for number in dict.fromkeys(_value(one) for one in _NUMBER.findall(told) if _tells(one)):
        holding = [one for one in known if number in map(_value, one[1].numbers)]
        found += [max(holding, key=lambda one: len(wanted & _words(one[1].label)))] if holding else []
    by_page: dict[str, list[_Line]] = {}
    for key, line in dict.fromkeys(one for one in found if one is not None):
        by_page.setdefault(key, []).append(line)
    return by_page


def _named(label: str, texts: Mapping[str, str]) -> tuple[str, _Line] | None:
    """The first row of this label: on one of the pages it stands before numbers."""
    words = r"\s+".join(map(re.escape, label.split()))
    wanted = re.compile(rf"(?i)(?<!\w){words}(?:\s*\(\w+\))?[\s:]*(?P<cells>{_CELLS})")
    for key, text in texts.items():
        if match := wanted.search(text):
            return key, _Line(match.start(), match.end(), label, tuple(_NUMBER.findall(match["cells"])))
    return None


def _lines(text: str) -> Iterator[_Line]:
    """All rows of a page."""
    before = 0
    for run in _RUN.finditer(text):
        begin = max([before, *(match.end() for match in _ENDS.finditer(text, before, run.start()))])
        words = [match.start() for match in re.finditer(r"\S+", text[begin : run.start()])][-LABEL_WORDS:]
        label = text[begin + words[0] : run.start()] if words else ""
        if re.search(r"[^\W\d_]{2}", label):
            yield _Line(begin + words[0], run.end(), label, tuple(_NUMBER.findall(run.group())))
        before = run.end()


def _chosen(row: Row, evidence: Sequence[str], pages: Mapping[str, Row]) -> list[str]:
    """The evidence pages, their neighbours, and what BM25 finds in the filing."""
    filing = [key for key, page in pages.items() if page["doc"] == row["doc"]]
    near = {pages[key]["page"] + step for key in evidence for step in (-1, 1)}
    scores = bm25(row["text"], [pages[key]["text"] for key in filing])
    likely = sorted(range(len(filing)), key=lambda n: (-scores[n], n))
    wanted = [*evidence, *(key for key in filing if pages[key]["page"] in near), *(filing[n] for n in likely)]
    return list(dict.fromkeys(wanted))[: max(PAGES, len(evidence))]


def _contexts(page: Row, lines: Sequence[_Line]) -> Iterator[Row]:
    """The passages of a page with the gold rows that stand whole in them."""
    title = f"{page['doc']}, page {page['page'] + 1}"
    passages = chunk(Document(page["id"], title, "text/plain", (Section(page["text"]),)), page["id"])
    for number, passage in enumerate(passages):
        start, end = passage.source.start, passage.source.end
        spans = sorted({(one.start - start, one.end - start) for one in lines if start <= one.start and one.end <= end})
        found = {"evidence": [list(span) for span in spans]} if spans else {}
        yield {"id": f"{page['id']}-{number}", "title": title, "text": passage.text, **found}


def _tells(number: str) -> bool:
    """Whether it is more than a year or a small count."""
    value = _value(number)
    return "." in value or (len(value) > 2 and not _YEAR.fullmatch(number))


def _value(number: str) -> str:
    """The same for all spellings of a number: no commas, no zeros at the end of a fraction."""
    plain = number.replace(",", "")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]{3,}", text.lower()))


def _rows(path: Path) -> list[Row]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=int, help="only the first N questions")
    given = parser.parse_args(arguments)
    with given.out.open("w", encoding="utf-8") as file:
        for row in islice(financebench(given.folder), given.limit):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
