"""What was tried for the order in which a budget is filled (`refiners/relevance.py`), on three kinds of evidence.

    python benchmarks/compress_choices.py --data FOLDER --encoder MINILM_FOLDER

FOLDER holds `qa_nq_train`, `qa_qmsum` and `scifact`. None of it is what `compress_qa.py` reports on:

- `nq`: 20 passages per question, made here from the training questions: the gold passage and 19 that BM25 ranks next
  and that do not hold the answer. Share of questions whose answer string survives.
- `qmsum`: a meeting in passages of about 150 words. Share of the budget (or, if less, of the relevant turns) that is
  text of relevant turns.
- `scifact`: a claim with its evidence abstracts among ten. Share of gold evidence sentences that survive whole.

Each variant changes one thing of the chosen order. `framed` counts the product's JSON block, else passages alone.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from compress_qa import survives
from harness import rows, write

from triptych.refiners import relevance as order
from triptych.refiners.base import Budget, Passage, Refined, plain
from triptych.refiners.hard.extractive import Extractive
from triptych.refiners.hard.truncate import Truncate
from triptych.refiners.relevance import TokenRelevance
from triptych.refiners.tokens import count
from triptych.retrievers.base import Hit, Item, Query, Source
from triptych.retrievers.chunking import sentences
from triptych.retrievers.searchable import searchable_text
from triptych.retrievers.text.all_minilm_l6_v2 import AllMiniLM

FLOORS = (0.05, 0.1, 0.15, 0.2)
Span = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """A question over evidence; `wanted[i]`: gold spans of hit i; `row`: gold answers where they are strings."""

    measure: str
    query: str
    hits: list[Hit]
    wanted: list[list[Span]]
    row: dict[str, Any]


def framed(passages: Sequence[Passage], dropped: int) -> str:
    """The product's block: see `triptych.tools.operations.block`."""
    table = [
        {"n": n, "id": p.item.id, "title": p.item.title, "where": p.item.source.uri, "text": p.text}
        for n, p in enumerate(passages, 1)
    ]
    return json.dumps({"passages": table, "dropped": dropped}, ensure_ascii=False, separators=(",", ":"))


def item(name: str, title: str, text: str) -> Item:
    return Item(name, text, Source(f"library/{name}.md"), meta={"title": title} if title else {})


def nq(folder: Path, n: int) -> list[Case]:
    table = rows(folder / "qa_nq_train" / "train.jsonl")
    passages = {row["passage"]["id"]: row["passage"] for row in table}
    texts = list(passages.values())
    random.Random(0).shuffle(table)
    cases: list[Case] = []
    for row in table:
        gold = row["passage"]
        if len(cases) == n:
            break
        if not survives(row, gold["text"]):
            continue
        ranking = np.argsort(-order._bm25(row["question"], [f"{p['title']} {p['text']}" for p in texts]), kind="stable")
        others = [
            texts[i] for i in ranking[:100] if texts[i]["id"] != gold["id"] and not survives(row, texts[i]["text"])
        ]
        chosen = others[:19]
        chosen.insert(len(cases) % 20, gold)
        found = [Hit(item(p["id"], p["title"], p["text"]), 0.0) for p in chosen]
        cases.append(Case("answer", row["question"], found, [], row))
    return cases


def qmsum(folder: Path, n: int) -> list[Case]:
    meetings = rows(folder / "qa_qmsum" / "meetings.jsonl")
    random.Random(0).shuffle(meetings)
    return [case for meeting in meetings[:n] for case in _meeting(meeting)]


def _meeting(meeting: dict[str, Any]) -> list[Case]:
    groups: list[list[int]] = []
    words = 0
    for turn, text in enumerate(meeting["turns"]):
        if not groups or words + len(text.split()) > 150:
            groups.append([])
            words = 0
        groups[-1].append(turn)
        words += len(text.split())
    items = [
        item(f"{meeting['id']}-{i}", "", "\n".join(meeting["turns"][turn] for turn in group))
        for i, group in enumerate(groups)
    ]
    cases = []
    for asked in meeting["specific"]:
        relevant = {turn for a, b in asked["relevant_turns"] for turn in range(a, b + 1)}
        wanted = []
        for group in groups:
            at, spans = 0, []
            for turn in group:
                spans += [(at, at + len(meeting["turns"][turn]))] if turn in relevant else []
                at += len(meeting["turns"][turn]) + 1
            wanted.append(spans)
        cases.append(Case("share", asked["query"], [Hit(one, 0.0) for one in items], wanted, {}))
    return cases


def scifact(folder: Path, n: int) -> list[Case]:
    corpus = {row["id"]: row for row in rows(folder / "scifact" / "corpus.jsonl")}
    gold: dict[str, dict[str, set[int]]] = {}
    for row in rows(folder / "scifact" / "evidence.jsonl"):
        found = gold.setdefault(row["text"], {}).setdefault(str(row["doc"]), set())
        found |= {int(number) for number in row["sentences"].strip("[]").split()}
    claims = sorted(gold)
    random.Random(0).shuffle(claims)
    pool = random.Random(1).sample(sorted(corpus), 1000)
    cases = []
    for claim in claims[:n]:
        own = [name for name in gold[claim] if name in corpus]
        rest = [name for name in pool if name not in own]
        likely = np.argsort(-order._bm25(claim, [corpus[name]["text"] for name in rest]), kind="stable")
        names = own + [rest[i] for i in likely[: 10 - len(own)]]
        random.Random(claim).shuffle(names)
        found_hits = [Hit(item(name, corpus[name]["title"], corpus[name]["text"]), 0.0) for name in names]
        wanted = []
        for name in names:
            text = corpus[name]["text"]
            spans = [(a, a + len(text[a:b].rstrip())) for a, b in sentences(text)]
            wanted.append([spans[i] for i in sorted(gold[claim].get(name, ())) if i < len(spans)])
        cases.append(Case("sentences", claim, found_hits, wanted, {}))
    return [case for case in cases if any(case.wanted)]


def score(case: Case, refined: Refined, tokens: int) -> float:
    """The collection's measure, 0 to 1."""
    if case.measure == "answer":
        return float(survives(case.row, "\n\n".join(p.text for p in refined.passages)))
    kept = {p.item.id: [piece.span for piece in p.pieces if piece.span] for p in refined.passages}
    gold = [(hit.item, span) for hit, spans in zip(case.hits, case.wanted, strict=True) for span in spans]
    if case.measure == "sentences":
        whole = [any(a <= s and e <= b for a, b in kept.get(one.id, [])) for one, (s, e) in gold]
        return statistics.mean(whole)
    inside = total = 0
    for one, (start, end) in gold:
        total += count(one.text[start:end])
        for a, b in kept.get(one.id, []):
            inside += count(one.text[max(a, start) : min(b, end)]) if max(a, start) < min(b, end) else 0
    return inside / min(total, tokens)


class PassageOnly:
    """Every sentence is worth what its passage is."""

    def __init__(self, inner: TokenRelevance) -> None:
        self._inner = inner

    def sentence_scores(self, query_text: str, item_text: str, spans: Sequence[Span]) -> list[float]:
        return self._inner.sentence_scores(query_text, item_text, [(0, len(item_text))]) * len(spans)


def scored(cases: Sequence[Case], relevance: TokenRelevance) -> list[Case]:
    """Hits by the cosine of their whole text, best first."""
    made = []
    for case in cases:
        texts = [searchable_text(hit.item) for hit in case.hits]
        values = [relevance.sentence_scores(case.query, text, [(0, len(text))])[0] for text in texts]
        ranking = sorted(range(len(texts)), key=lambda n: -values[n])
        hits = [Hit(case.hits[n].item, values[n]) for n in ranking]
        wanted = [case.wanted[n] for n in ranking] if case.wanted else []
        made.append(Case(case.measure, case.query, hits, wanted, case.row))
    return made


def variants(relevance: TokenRelevance) -> dict[str, tuple[Callable[[], Any], dict[str, float], bool]]:
    """Name → refiner, constants changed, and whether hits carry their scores."""
    chosen = lambda: Extractive(relevance)  # noqa: E731
    return {
        "chosen": (chosen, {}, True),
        "all hit scores equal": (chosen, {}, False),
        "token vectors only": (chosen, {"LEXICAL": 0.0}, True),
        "lexical overlap half as much": (chosen, {"LEXICAL": 0.5}, True),
        "lexical overlap as much": (chosen, {"LEXICAL": 1.0}, True),
        "lexical overlap only": (Extractive, {}, True),
        "lexical overlap only, hit scores equal": (Extractive, {}, False),
        "passages free to open": (chosen, {"OPENING": 0.0}, True),
        "passages dearer to open": (chosen, {"OPENING": 2.0}, True),
        "whole passages by score": (lambda: Extractive(PassageOnly(relevance)), {"LEXICAL": 0.0}, True),  # type: ignore[arg-type]
        "no floor": (lambda: Extractive(relevance, floor=-2.0), {}, True),
        "floor 0.2": (lambda: Extractive(relevance, floor=0.2), {}, True),
        "head": (Truncate, {}, False),
        "head, ranked": (Truncate, {}, True),
    }


def measured(cases: Sequence[Case], ranked: Sequence[Case], relevance: TokenRelevance) -> dict[str, dict[str, float]]:
    """Mean score of every variant at 1/4, 1/8 and 1/16 of the text, and framed at 1/8."""
    found: dict[str, dict[str, float]] = {}
    for name, (make, constants, with_scores) in variants(relevance).items():
        before = {key: getattr(order, key) for key in constants}
        for key, value in constants.items():
            setattr(order, key, value)
        refiner = make()
        found[name] = {}
        for label, ratio, render in (("4x", 4, plain), ("8x", 8, plain), ("16x", 16, plain), ("8x framed", 8, framed)):
            values = []
            for case in ranked if with_scores else cases:
                everything = [Passage(hit.item, ()) for hit in case.hits]
                tokens = (sum(count(hit.item.text) for hit in case.hits) + count(render(everything, 0))) // ratio
                refined = refiner.refine(Query(case.query), case.hits, Budget(tokens, render=render))
                values.append(score(case, refined, tokens))
            found[name][label] = round(statistics.mean(values), 4)
        for key, value in before.items():
            setattr(order, key, value)
        print(f"  {name:40s}", *(f"{label} {value:.3f}" for label, value in found[name].items()), flush=True)
    return found


def floors(cases: Sequence[Case], relevance: TokenRelevance) -> dict[str, dict[str, float]]:
    """For each floor: share of questions that lose every passage with an answer, and of other passages left out."""
    lost: dict[float, list[bool]] = {floor: [] for floor in FLOORS}
    junk: dict[float, list[bool]] = {floor: [] for floor in FLOORS}
    for case in cases:
        best = []
        for hit in case.hits:
            text = searchable_text(hit.item)
            shift = len(text) - len(hit.item.text)
            spans = [(a + shift, b + shift) for a, b in sentences(hit.item.text)]
            best.append(max(relevance.sentence_scores(case.query, text, spans)))
        holds = [survives(case.row, hit.item.text) for hit in case.hits]
        for floor in FLOORS:
            lost[floor].append(all(value < floor for value, gold in zip(best, holds, strict=True) if gold))
            junk[floor] += [value < floor for value, gold in zip(best, holds, strict=True) if not gold]
    return {
        str(floor): {
            "questions_lost": round(statistics.mean(lost[floor]), 4),
            "other_passages_left_out": round(statistics.mean(junk[floor]), 4),
        }
        for floor in FLOORS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--nq", type=int, default=100, help="questions")
    parser.add_argument("--qmsum", type=int, default=6, help="meetings")
    parser.add_argument("--scifact", type=int, default=60, help="claims")
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    if given.threads:
        import torch

        torch.set_num_threads(given.threads)
    relevance = TokenRelevance(AllMiniLM.from_folder(given.encoder, "float32"))
    result: dict[str, Any] = {
        "command": f"compress_choices.py --nq {given.nq} --qmsum {given.qmsum} --scifact {given.scifact}",
        "collections": {},
    }
    made = {"nq": nq(given.data, given.nq), "qmsum": qmsum(given.data, given.qmsum)}
    made["scifact"] = scifact(given.data, given.scifact)
    for name, cases in made.items():
        print(name, len(cases), flush=True)
        result["collections"][name] = {
            "n": len(cases),
            "variants": measured(cases, scored(cases, relevance), relevance),
        }
        if name == "nq":
            result["floors"] = floors(cases, relevance)
    write("compress_choices", result)


if __name__ == "__main__":
    main()
