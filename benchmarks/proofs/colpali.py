"""ColPali on drawn pages: a vector for each patch and MaxSim, against one vector, of the same network and trained so.

    make prove ID=colpali

Pages of 112 pixels have six words of one letter in sixteen cells; a question is three of them that stand on no other
page of the collection. Toy networks (two layers of width 32, a patch for each cell) learn to read from pages of one
word each, then from questions and their pages. The pages that are measured on have words that stand together on none
that was learned from.
`mean_of_vectors` is the mean of what `colpali` gives, `one_vector` the same network trained for such a mean (a
bi-encoder's head). `factor` is hierarchical token pooling.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _shapes
import numpy as np
import torch
from torch.nn import functional

from triptych.retrievers.base import Item, Query
from triptych.retrievers.fitting import Course
from triptych.retrievers.universal._colpali_files import toy
from triptych.retrievers.universal._colpali_training import Kind, Objective
from triptych.retrievers.universal._contrastive_training import (
    Adapters,
    Contrast,
    Lesson,
    adapt,
    begun,
    contrasted,
    info_nce,
)
from triptych.retrievers.universal._vectors import mean
from triptych.retrievers.universal.colpali import ColPali, Options

if TYPE_CHECKING:
    from torch import Tensor

    from triptych.retrievers.universal._colpali_backbones import Read
    from triptych.tools.evaluation.result import Arm

LEARNED, HELD = 1200, 160
"""Pages to learn from, one question each, and others to measure on."""
ASKED = 3
"""Words of a question."""
PRIMER, READING = 21, 6
"""Pages of one word for each word, and epochs over them."""
COURSE = Course(epochs=8, batch=12, rate=2e-3, every=10**6, decay=0.0)
WHOLE = Adapters(rank=0)
FACTORS = (1, 2, 3)
METRICS = ("nDCG@5", "recall@1")


class OneVector:
    """A network of ColPali's whose vectors are averaged: trained by the same loss as DSE."""

    def __init__(self, start: ColPali) -> None:
        self.inner = ColPali(type(start.backbone)(deepcopy(start.backbone.network), start.backbone.processor))

    def fit(self, lessons: Sequence[Lesson], folder: Path, course: Course) -> OneVector:
        begun(lessons, (), folder, course, 1)
        network = self.inner.backbone.network
        adapt(network, network, WHOLE, course.seed)
        contrasted(Contrast(network, self._vectors, info_nce), lessons, (), folder, course, self._read)
        return self

    def encode(self, inputs: Sequence[Any], side: str) -> np.ndarray:
        return averaged(self.inner.encode(inputs, "query" if side == "query" else "document"))

    def _read(self, given: Any, side: str) -> Read:
        return self.inner.read(given)

    def _vectors(self, inputs: Sequence[Read]) -> Tensor:
        states, mask = self.inner.backbone.states(inputs)
        return mean(functional.normalize(states.float(), dim=-1), mask)


def averaged(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of each input's vectors, of unit length."""
    means = np.stack([one.mean(axis=0) for one in vectors])
    made: np.ndarray = means / np.linalg.norm(means, axis=1, keepdims=True)
    return made


def measured(
    system: str, asked: Any, told: Any, seconds: float, costs: dict[str, float] | None = None, **settings: Any
) -> Arm:
    """An arm of the vectors of questions and of their pages, in one order."""
    found = _shapes.places(_shapes.scores(asked, told), [[number] for number in range(len(asked))])
    values = {METRICS[0]: [_shapes.ndcg(place) for place in found], METRICS[1]: [float(not place) for place in found]}
    return _shapes.arm(system, values, {"seconds": seconds, **(costs or {})}, **settings)


def fitted(system: str, courses: Sequence[tuple[Sequence[Lesson], Course]], folder: Path) -> Any:
    """One system, trained by the courses in turn; its start is drawn by their seed."""
    seed = courses[0][1].seed
    edge = _shapes.SIDE * _shapes.CELL
    made: Any = ColPali(toy("colpali", seed, edge, _shapes.CELL))
    kind: Kind = "pairwise" if system == "colpali_pairwise" else "info_nce"
    how: dict[str, Any] = {"adapters": WHOLE, "objective": Objective(kind)}
    if system == "one_vector":
        made, how = OneVector(made), {}
    for number, (lessons, course) in enumerate(courses):
        made = made.fit(lessons, folder / f"{system}_{seed}_{number}", course=course, **how)
    return made


def arms(
    courses: Sequence[tuple[Sequence[Lesson], Course]], held: Sequence[tuple[Query, _shapes.Page]], folder: Path
) -> Iterator[Arm]:
    """All of one seed."""
    queries, pages, seed = [query for query, _ in held], [page.item for _, page in held], courses[0][1].seed
    for system in ("colpali", "colpali_pairwise", "one_vector"):
        begun_at = time.perf_counter()
        encoder = fitted(system, courses, folder)
        seconds = time.perf_counter() - begun_at
        asked = encoder.encode(queries, "query")
        if system != "colpali":
            yield measured(system, asked, encoder.encode(pages, "document"), seconds, seed=seed)
            continue
        for factor in FACTORS:
            told = ColPali(encoder.backbone, Options(factor)).encode(pages, "document")
            kept = {"vectors_per_page": float(np.mean([len(one) for one in told]))}
            yield measured(system, asked, told, seconds, kept, factor=factor, seed=seed)
            if factor == 1:
                yield measured("mean_of_vectors", averaged(asked), averaged(told), seconds, seed=seed)


def main() -> None:
    given = _shapes.asked(__doc__)
    torch.set_num_threads(1)
    every: list[Arm] = []
    with _shapes.workplace(given) as folder:
        learned = _shapes.pages(folder / "pages", LEARNED, 0)
        kept = _shapes.pages(folder / "pages", HELD, 1)
        seen = {page.words for page in learned}
        held = [one for one in _shapes.questions(kept, 1, ASKED) if one[1].words not in seen]
        primer = [Lesson(*one) for one in _shapes.primer(folder / "pages", PRIMER)]
        lessons = [Lesson(*one) for one in _questions(learned)]
        data = _shapes.data(
            "drawn_pages",
            [page.item for page in (*learned, *kept)],
            learned=len(lessons),
            questions=len(held),
            pages=len(held),
        )
        for seed in range(given.seeds):
            courses = [
                (told, replace(COURSE, seed=seed, epochs=epochs * given.share))
                for told, epochs in ((primer, READING), (lessons, COURSE.epochs))
            ]
            every += arms(courses, held, folder)
    means = {arm.settings.get("factor"): arm for arm in _shapes.averages(every) if arm.system == "colpali"}
    shares = [f"factor {factor} keeps {_share(means[factor], means[1]):.1%}" for factor in FACTORS[1:]]
    notes = (
        f"Toy networks from random weights, {READING} epochs over {len(primer)} pages of one word, then "
        f"{COURSE.epochs:g} over {len(lessons)} questions, in batches of {COURSE.batch}, learning rate "
        f"{COURSE.rate:g}, all weights; the same for every arm. None is the released ColPali.",
        "`colpali` is trained by InfoNCE at 0.02, `colpali_pairwise` by the published softplus of the hardest page, "
        "at 1, with scores over the number of a question's vectors.",
        f"Of nDCG@5, {' and '.join(shares)} (the bar is 95 % at factor 3).",
    )
    title = "ColPali from nothing on drawn pages: MaxSim against one vector, and token pooling"
    ours = {"system": "colpali", "factor": 1}
    _shapes.conclude(given, "colpali", title, every, ours, METRICS, data, notes)


def _questions(pages: Sequence[_shapes.Page]) -> list[tuple[Query, Item]]:
    """One of each page, in a drawn order of words; others of so many pages may have these words, too."""
    drawn = np.random.default_rng(7)
    return [
        (Query(" ".join(drawn.choice(sorted(page.words), ASKED, replace=False).tolist())), page.item) for page in pages
    ]


def _share(arm: Arm, whole: Arm) -> float:
    part, all_ = arm.metrics[METRICS[0]], whole.metrics[METRICS[0]]
    return float(part or 0) / float(all_ or 1)


if __name__ == "__main__":
    main()
