"""Data sets of another form, as question files for `triptych eval compress` (see `tools/evaluation/datasets.py`).

    python benchmarks/prepare.py qmsum FOLDER OUT.jsonl [--limit N]

- `qmsum`: FOLDER holds `meetings.jsonl` (QMSum, arXiv:2104.05938: `turns`, and `specific` questions with
  `relevant_turns`). A meeting's contexts are its turns in passages of about 150 words; the evidence is the relevant
  turns. Its answers are summaries, which no text holds word by word: they are left out.
- `scifact`: FOLDER holds `corpus.jsonl` and `evidence.jsonl` (SciFact, arXiv:2004.14974). A claim's contexts are its
  evidence abstracts among the ten that BM25 ranks first, shuffled; the evidence is the gold sentences.
- `nq_train`: FOLDER holds `train.jsonl` (Natural Questions, doi:10.1162/tacl_a_00276, each with its gold passage). A
  question's contexts are the gold passage and the 19 of other questions that BM25 ranks first and that do not hold the
  answer; the gold passage's place goes round from 1 to 20. Questions whose passage does not hold the answer are left
  out.
- `paragraphs`: FOLDER is a collection whose queries have answers and one relevant passage (XQuAD, arXiv:1910.11856;
  CMRC 2018, arXiv:1810.07366). The same, with ten contexts; titles, which XQuAD has in English only, are left out.

Filings have a script of their own, `prepare_financebench.py`.

The order in which our refiners fill a budget was chosen on the first three (`refiners/relevance.py`). Rows come
shuffled, always in the same way.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from triptych.retrievers.base import Item, Query, Source
from triptych.retrievers.chunking import sentences
from triptych.retrievers.text.bm25 import BM25
from triptych.tools.evaluation.datasets import collection
from triptych.tools.evaluation.survival import read, survives

Row = dict[str, Any]
PASSAGE_WORDS = 150
CLAIM_CONTEXTS = 10
QUESTION_CONTEXTS = 20
PARAGRAPH_CONTEXTS = 10
LIKELY = 100
"""So many passages are looked at for those that do not hold the answer."""


def qmsum(folder: Path) -> Iterator[Row]:
    for meeting in _shuffled(_rows(folder / "meetings.jsonl")):
        groups = _passages(meeting["turns"])
        for number, asked in enumerate(meeting["specific"]):
            relevant = {turn for first, last in asked["relevant_turns"] for turn in range(first, last + 1)}
            contexts = [
                _context(f"{meeting['id']}-{n}", "", *_joined(meeting["turns"], group, relevant))
                for n, group in enumerate(groups)
            ]
            yield _question(f"{meeting['id']}-q{number}", asked["query"], [], contexts)


def _passages(turns: list[str]) -> list[list[int]]:
    """Numbers of neighbouring turns, until they have `PASSAGE_WORDS` words."""
    groups: list[list[int]] = []
    words = 0
    for turn, text in enumerate(turns):
        if not groups or words + len(text.split()) > PASSAGE_WORDS:
            groups.append([])
            words = 0
        groups[-1].append(turn)
        words += len(text.split())
    return groups


def _joined(turns: list[str], group: list[int], relevant: set[int]) -> tuple[str, list[list[int]]]:
    """The text of a passage, and the spans of the relevant turns in it."""
    text, spans = "", []
    for turn in group:
        text += "\n" if text else ""
        if turn in relevant and turns[turn]:
            spans.append([len(text), len(text) + len(turns[turn])])
        text += turns[turn]
    return text, spans


def scifact(folder: Path) -> Iterator[Row]:
    corpus = {str(row["id"]): row for row in _rows(folder / "corpus.jsonl")}
    gold: dict[str, dict[str, set[int]]] = {}
    for row in _rows(folder / "evidence.jsonl"):
        if str(row["doc"]) in corpus:
            found = gold.setdefault(row["text"], {}).setdefault(str(row["doc"]), set())
            found |= {int(number) for number in row["sentences"].strip("[]").split()}
    likely = _search({key: (row.get("title") or "", row["text"]) for key, row in corpus.items()})
    for number, claim in enumerate(_shuffled(sorted(gold))):
        own = list(gold[claim])
        names = [*own, *(key for key in likely(claim) if key not in own)][: max(CLAIM_CONTEXTS, len(own))]
        random.Random(claim).shuffle(names)
        contexts = [
            _context(key, corpus[key].get("title") or "", text, _sentences(text, gold[claim].get(key, set())))
            for key in names
            for text in [corpus[key]["text"]]
        ]
        if any("evidence" in context for context in contexts):
            yield _question(f"claim{number}", claim, [], contexts)


def _sentences(text: str, numbers: set[int]) -> list[list[int]]:
    """The spans of sentences by number, without the white space behind them."""
    spans = [[start, start + len(text[start:end].rstrip())] for start, end in sentences(text)]
    return [spans[number] for number in sorted(numbers) if number < len(spans)]


class _Asked(NamedTuple):
    """A question, spellings of its answer, and the id of the passage that holds it."""

    id: str
    text: str
    answers: list[str]
    gold: str


def nq_train(folder: Path) -> Iterator[Row]:
    rows = _rows(folder / "train.jsonl")
    passages = {row["passage"]["id"]: (row["passage"]["title"], row["passage"]["text"]) for row in rows}
    asked = [_Asked(str(row["id"]), row["question"], row["answers"], row["passage"]["id"]) for row in rows]
    yield from _among(asked, passages, QUESTION_CONTEXTS)


def paragraphs(folder: Path) -> Iterator[Row]:
    data = collection(folder)
    gold = {query: max(grades, key=lambda key: grades[key]) for query, grades in data.qrels.items()}
    asked = [_Asked(one.id, one.text, list(one.answers), gold[one.id]) for one in data.queries.values()]
    yield from _among(asked, {key: ("", one.text) for key, one in data.passages.items()}, PARAGRAPH_CONTEXTS)


def _among(asked: list[_Asked], passages: dict[str, tuple[str, str]], contexts: int) -> Iterator[Row]:
    """Each question with its gold passage, whose place goes round, among likely ones that do not hold the answer."""
    texts = {key: read(text) for key, (_, text) in passages.items()}
    likely = _search(passages)
    place = 0
    for one in _shuffled(asked):
        if not survives(one.answers, [texts[one.gold]]):
            continue
        others = (key for key in likely(one.text) if key != one.gold and not survives(one.answers, [texts[key]]))
        names = list(islice(others, contexts - 1))
        names.insert(place % contexts, one.gold)
        place += 1
        yield _question(one.id, one.text, one.answers, [_context(key, *passages[key], []) for key in names])


def _search(passages: dict[str, tuple[str, str]]) -> Callable[[str], list[str]]:
    """The product's BM25 over passages by id, as (title, text)."""
    retriever = BM25.tiny()
    retriever.add(
        [Item(key, text, Source(key), meta={"title": title or key}) for key, (title, text) in passages.items()]
    )
    retriever.store.flush()
    return lambda query: [hit.item.id for hit in retriever.search(Query(query), LIKELY)]


def _context(key: str, title: str, text: str, evidence: list[list[int]]) -> Row:
    return {"id": key, "title": title, "text": text, **({"evidence": evidence} if evidence else {})}


def _question(key: str, text: str, answers: list[str], contexts: list[Row]) -> Row:
    return {"id": key, "question": text, "answers": answers, "contexts": contexts}


def _rows(path: Path) -> list[Row]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def _shuffled(rows: list[Any]) -> list[Any]:
    return random.Random(0).sample(rows, len(rows))


KINDS = {"qmsum": qmsum, "scifact": scifact, "nq_train": nq_train, "paragraphs": paragraphs}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=int, help="only the first N questions")
    given = parser.parse_args(arguments)
    with given.out.open("w", encoding="utf-8") as file:
        for row in islice(KINDS[given.kind](given.folder), given.limit):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
