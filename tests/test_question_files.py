"""Question files for `triptych eval compress`, made from data sets of another form."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from triptych.tools.evaluation import datasets
from triptych.tools.evaluation.survival import read, survives

ROOT = Path(__file__).resolve().parent.parent
LAMP = (
    "The lighthouse on Vessey Holm was lit in 1871. Its lamp burned rape oil at first. "
    "Keeper Ada Lindqvist counted 1,945 puffins that summer. Paraffin came later, in 1889."
)
GOLD = "Its lamp burned rape oil at first."


def made(script: str, *arguments: str) -> list[datasets.Question]:
    """What a script of `benchmarks/` makes; its last argument is the new file."""
    spec = importlib.util.spec_from_file_location(script, ROOT / "benchmarks" / f"{script}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[script] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    module.main(list(arguments))
    return list(datasets.questions(Path(arguments[-1])).rows)


def write(folder: Path, files: dict[str, list[dict[str, Any]]]) -> None:
    for name, rows in files.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def prepared(kind: str, folder: Path, files: dict[str, list[dict[str, Any]]]) -> list[datasets.Question]:
    write(folder, files)
    return made("prepare", kind, str(folder), str(folder / "out.jsonl"))


def gold(question: datasets.Question) -> list[str]:
    return [context.text[start:end] for context in question.contexts for start, end in context.evidence]


def test_meetings_become_passages_with_relevant_turns(tmp_path: Path) -> None:
    turns = [f"Speaker {n}: " + "word " * 50 + f"end{n}" for n in range(7)]
    meeting = {"id": "m", "turns": turns, "specific": [{"query": "What of it?", "relevant_turns": [[1, 2], [4, 4]]}]}
    [question] = prepared("qmsum", tmp_path, {"meetings.jsonl": [meeting]})
    assert gold(question) == [turns[1], turns[2], turns[4]]
    assert "\n".join(context.text for context in question.contexts) == "\n".join(turns)
    assert [len(context.text.split()) for context in question.contexts] == [106, 106, 106, 53]
    assert question.answers == ()


def test_claims_become_abstracts_with_gold_sentences(tmp_path: Path) -> None:
    corpus = [{"id": str(n), "title": f"Study {n}", "text": f"{LAMP} Study {n} ends."} for n in range(14)]
    evidence = [
        {"id": "1", "text": "Lamps burned rape oil.", "doc": "3", "label": "SUPPORT", "sentences": "[1 3]"},
        {"id": "1", "text": "Lamps burned rape oil.", "doc": "99", "label": "SUPPORT", "sentences": "[0]"},
    ]
    [question] = prepared("scifact", tmp_path, {"corpus.jsonl": corpus, "evidence.jsonl": evidence})
    assert len({context.id for context in question.contexts}) == 10
    assert gold(question) == [GOLD, "Paraffin came later, in 1889."]
    assert [context.id for context in question.contexts if context.evidence] == ["3"]


def test_training_questions_get_passages_that_do_not_answer(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"q{n}",
            "question": f"When was lighthouse number {n} lit?",
            "answers": [f"{1800 + n}"],
            "passage": {
                "id": f"d{n}",
                "title": f"Lighthouse {n}",
                "text": f"Lighthouse {n} was lit in {1800 + n % 25}.",
            },
        }
        for n in range(30)
    ]
    questions = prepared("nq_train", tmp_path, {"train.jsonl": rows})
    assert len(questions) == 25  # the others' passages do not hold the answer
    for place, question in enumerate(questions):
        holders = [survives(question.answers, [read(context.text)]) for context in question.contexts]
        assert len(holders) == 20
        assert [n for n, holds in enumerate(holders) if holds] == [place % 20]


def test_paragraphs_of_a_collection_stand_among_those_that_do_not_answer(tmp_path: Path) -> None:
    corpus = [{"id": f"d{n}", "title": "Lights", "text": f"第{n}号灯塔建于{1800 + n % 13}年。"} for n in range(15)]
    queries = [{"id": f"q{n}", "text": f"第{n}号灯塔建于哪年？", "answers": [f"{1800 + n}年"]} for n in range(15)]
    qrels = "".join(f"q{n}\td{n}\t1\n" for n in range(15))
    (tmp_path / "qrels.tsv").write_text(f"query-id\tcorpus-id\tscore\n{qrels}", "utf-8")
    questions = prepared("paragraphs", tmp_path, {"corpus.jsonl": corpus, "queries.jsonl": queries})
    assert len(questions) == 13  # two paragraphs do not hold the answer
    for place, question in enumerate(questions):
        holders = [n for n, one in enumerate(question.contexts) if survives(question.answers, [read(one.text)])]
        assert holders == [place % 10]
        assert len(question.contexts) == 10
        assert {context.title for context in question.contexts} == {""}


BALANCE = (
    "Consolidated Balance Sheets (in millions) At December 31, 2022 2021 Cash and cash equivalents $ 2,605 $ 2,921 "
    "Inventories 2,388 3,055 Total current assets (1) 37,857 36,728 Goodwill 28,671 — Total liabilities 50,171 (47,160)"
)
REPORT = "We sold lamps. Revenue grew by 3.6% over the year. Margins fell to 12.5% in 2022. The outlook is good."


def filed(folder: Path, asked: list[dict[str, Any]], relevant: str = "acme_p2", pages: int = 12) -> None:
    """A filing, and another one."""
    texts = {2: BALANCE, 5: REPORT}
    corpus = [
        {"id": f"{doc}_p{n}", "doc": doc, "page": n, "text": texts.get(n, f"Page {n} of the notes. Nothing counts.")}
        for doc in ("acme", "other")
        for n in range(pages)
    ]
    queries = [{"doc": "acme", "justification": None, **row} for row in asked]
    write(folder, {"corpus.jsonl": corpus, "queries.jsonl": queries})
    qrels = "".join(f"{row['id']}\t{relevant}\t1\n" for row in asked)
    (folder / "qrels.tsv").write_text(f"query-id\tcorpus-id\tscore\n{qrels}", "utf-8")


def filings(folder: Path) -> list[datasets.Question]:
    return made("prepare_financebench", str(folder), str(folder / "out.jsonl"))


def test_a_filings_contexts_are_its_evidence_page_neighbours_and_likely_pages(tmp_path: Path) -> None:
    filed(tmp_path, [{"id": "q", "text": "What of the outlook on revenue?", "answer": "$2605.00"}])
    [question] = filings(tmp_path)
    pages = [context.id.rpartition("-")[0] for context in question.contexts]
    assert {"acme_p1", "acme_p2", "acme_p3", "acme_p5"} <= set(pages)
    assert len(set(pages)) == 6
    assert all(page.startswith("acme") for page in pages)
    assert list(dict.fromkeys(pages)) != sorted(set(pages))  # shuffled


@pytest.mark.parametrize(
    ("row", "rows", "answers"),
    [
        ({"answer": "$2605.00"}, ["Cash and cash equivalents $ 2,605 $ 2,921"], ("2,605",)),
        ({"answer": "It was 3055 million in 2021."}, ["Inventories 2,388 3,055"], ("3,055",)),
        ({"answer": "0.75", "justification": "37857 / 50171"},
         ["Total current assets (1) 37,857 36,728", "Total liabilities 50,171 (47,160)"], ()),
        ({"answer": "0.9", "justification": "The line item name, as seen in the 10K, was: TotalÂ\xa0Liabilities."},
         ["Total liabilities 50,171 (47,160)"], ()),
        ({"answer": "1.1", "justification":
          "Metric 1: A. Located as a single line item named: Goodwill. Metric 2: Located as a single line item named: "
          "Inventories. "}, ["Inventories 2,388 3,055", "Goodwill 28,671 —"], ()),
    ],
)  # fmt: skip
def test_gold_rows_of_a_table(row: dict[str, Any], rows: list[str], answers: tuple[str, ...], tmp_path: Path) -> None:
    filed(tmp_path, [{"id": "q", "text": "What is asked for?", **row}])
    [question] = filings(tmp_path)
    assert gold(question) == rows
    assert question.answers == answers


def test_gold_numbers_of_a_sentence_keep_what_stands_before_them(tmp_path: Path) -> None:
    filed(tmp_path, [{"id": "q", "text": "How did revenue grow?", "answer": "By 3.6%."}], relevant="acme_p5")
    [question] = filings(tmp_path)
    assert gold(question) == ["Revenue grew by 3.6%"]


def test_years_small_counts_and_numbers_of_no_page_are_no_gold(tmp_path: Path) -> None:
    filed(tmp_path, [{"id": "q", "text": "Of 2022?", "answer": "In 2022, 31 and 2,389, as Acme says."},
                     {"id": "kept", "text": "Goodwill?", "answer": "28,671"}])  # fmt: skip
    assert [question.id for question in filings(tmp_path)] == ["kept"]
