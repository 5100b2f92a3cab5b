"""DSE on drawn pages with tables, against BM25 over what a poor reader recognises of them.

    make prove ID=dse

Pages of words of one letter have lines above and a table below. A question is three words of the lines, or three of the
table, which stand on no other page together. The reader takes every fifth letter for another and leaves the table out,
as `bm25_ocr` then does; `bm25_ocr_tables` is the same reader with the table, `bm25_text` one without fault, which no
page of pixels has. DSE, a toy Qwen2-VL from random weights, learns to read from pages of one word each, then from
questions and their pages, once at 112 pixels (4 x 4 tokens a page) and once at 56 (2 x 2).
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import _shapes
import torch

from triptych.retrievers.base import Query
from triptych.retrievers.fitting import Course
from triptych.retrievers.text.bm25 import BM25
from triptych.retrievers.universal._contrastive_training import Adapters, Lesson
from triptych.retrievers.universal.dse import DSE

if TYPE_CHECKING:
    from triptych.tools.evaluation.result import Arm

LEARNED, HELD = 1200, 160
"""Pages to learn from, a question each, and others to measure on."""
ASKED = 3
"""Words of a question."""
ERRORS = 0.2
"""Of the letters that are recognised."""
EDGES = (_shapes.SIDE * _shapes.CELL, _shapes.SIDE * _shapes.CELL // 2)
PRIMER, READING = 21, 6
"""Pages of one word for each word, and epochs over them."""
COURSE = Course(epochs=6, batch=12, rate=1e-3, every=10**6, decay=0.0)
SPLITS = ("table", "lines")
METRICS = ("nDCG@5", "recall@1")


def lessons(pages: Sequence[_shapes.Page]) -> list[Lesson]:
    """A question of each page, of its table and of its lines in turn."""
    drawn, made = random.Random("lessons"), []
    for number, page in enumerate(pages):
        words = drawn.sample(getattr(page, SPLITS[number % 2]), ASKED)
        made.append(Lesson(Query(" ".join(words)), page.item))
    return made


def arm(system: str, places: Sequence[int], seconds: float, split: str, seed: int) -> Arm:
    values = {METRICS[0]: [_shapes.ndcg(place) for place in places], METRICS[1]: [float(not one) for one in places]}
    return _shapes.arm(system, values, {"seconds": seconds}, split=split, seed=seed)


def by_words(search: BM25, count: int, asked: Sequence[tuple[Query, _shapes.Page]]) -> list[int]:
    """At which place of `count` BM25 has each question's page; one past the last where it shares no word."""
    made = []
    for query, page in asked:
        found = [hit.item.id for hit in search.search(query, count)]
        made.append(found.index(page.item.id) if page.item.id in found else count)
    return made


def lexical(pages: Sequence[_shapes.Page], asked: dict[str, list[tuple[Query, _shapes.Page]]], seed: int) -> list[Arm]:
    """BM25 over three readings; the seed draws the reader's errors."""
    readings = {"bm25_ocr": (ERRORS, False), "bm25_ocr_tables": (ERRORS, True), "bm25_text": (0.0, True)}
    made = []
    for system, (errors, tables) in readings.items():
        begun = time.perf_counter()
        search = BM25.tiny()
        search.add([_shapes.recognised(page, seed, errors, tables=tables) for page in pages])
        search.store.flush()
        places = {split: by_words(search, len(pages), asked[split]) for split in SPLITS}
        seconds = time.perf_counter() - begun
        made += [arm(system, places[split], seconds, split, seed) for split in SPLITS]
    return made


def seen(encoder: DSE, pages: Sequence[_shapes.Page], asked: Sequence[tuple[Query, _shapes.Page]]) -> list[int]:
    items = [page.item for page in pages]
    found = _shapes.scores(encoder.encode([query for query, _ in asked], "query"), encoder.encode(items, "document"))
    return _shapes.places(found, [[items.index(page.item)] for _, page in asked])


def main() -> None:
    given = _shapes.asked(__doc__)
    torch.set_num_threads(1)
    every: list[Arm] = []
    with _shapes.workplace(given) as folder:
        learned = _shapes.pages(folder / "pages", LEARNED, 0)
        primer = [Lesson(*one) for one in _shapes.primer(folder / "pages", PRIMER)]
        met = {page.words for page in learned}
        held = [page for page in _shapes.pages(folder / "pages", HELD, 1) if page.words not in met]
        asked = {split: _shapes.questions(held, 1, ASKED, split) for split in SPLITS}
        sizes = {"learned": len(learned), "pages": len(held), **{split: len(asked[split]) for split in SPLITS}}
        world = _shapes.data("drawn_pages", [page.item for page in (*learned, *held)], **sizes)
        for seed in range(given.seeds):
            every += lexical(held, asked, seed)
            for edge in EDGES:
                begun = time.perf_counter()
                encoder = DSE(DSE.tiny(seed).backbone, edge=edge)
                for number, (told, epochs) in enumerate(((primer, READING), (lessons(learned), COURSE.epochs))):
                    course = replace(COURSE, seed=seed, epochs=epochs * given.share)
                    out = folder / f"dse_{edge}_{seed}_{number}"
                    encoder = encoder.fit(told, out, course=course, adapters=Adapters(rank=0))
                seconds = time.perf_counter() - begun
                name = "dse" if edge == EDGES[0] else "dse_small_pages"
                every += [arm(name, seen(encoder, held, asked[split]), seconds, split, seed) for split in SPLITS]
    notes = (
        f"A toy Qwen2-VL from random weights, {READING} epochs over {len(primer)} pages of one word, then "
        f"{COURSE.epochs:g} over {len(learned)} questions, in batches of {COURSE.batch}, learning rate "
        f"{COURSE.rate:g}, all weights, without hard negatives. Not the released DSE.",
        f"The reader: {ERRORS:.0%} of the letters are others, drawn anew for each seed. The test pages have words that "
        "were learned, together as on no page that was learned from.",
        "`bm25_text` has what no reader has: all words, without a fault.",
    )
    title = "DSE from nothing on drawn pages with tables, against BM25 over what is recognised"
    _shapes.conclude(given, "dse", title, every, {"system": "dse"}, METRICS, world, notes)


if __name__ == "__main__":
    main()
