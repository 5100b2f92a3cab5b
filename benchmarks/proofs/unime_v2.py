"""UniME-V2: negatives mined from all passages, under labels of one and none, and under a judge's scores.

    make prove ID=unime_v2

A made-up world: passages name things of four properties, a query names three of them in another language, and only one
of the passages that answer it is known. A tiny network (two layers, vectors of 64 numbers, random at first) learns from
such pairs by InfoNCE; it mines each query's negatives from the whole collection, among them others that answer. From
there it learns on, once with the known passage as the only right one (cross-entropy), once from a judge that is asked
about each candidate and errs now and then. Measured is the search of all passages for queries that were not learned
from, with all passages that answer.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

import _dense
import _proof
import _words
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from triptych.retrievers.base import Item, Query
from triptych.retrievers.fitting import Course
from triptych.retrievers.lm import LM, Ability, Prompt
from triptych.retrievers.universal._contrastive_training import Adapters, Lesson
from triptych.retrievers.universal.unime_v2 import TEMPERATURE, UniMEV2, judged, mined
from triptych.retrievers.universal.vlm2vec import VLM2Vec
from triptych.tools.evaluation import ranking
from triptych.tools.evaluation.compare import against
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, Result

PASSAGES, LEARNED, HELD = 300, 300, 100
NAMED = _words.PROPERTIES - 1
"""Properties that a query names."""
FIRST = Course(12, 24, 2e-3, every=10**6)
THEN = Course(4, 24, 5e-4, every=10**6)
KEPT = 8
"""Of the mined passages, so many are negatives, as the authors take."""
SURE, SPREAD = 2.5, 1.25
"""The judge's logit of Yes for a passage that answers (of No for others), and its noise."""
TOLD = "Find:"
METRICS = ("nDCG@10", "MRR@10")
ALL = Adapters(rank=0)


@dataclass(frozen=True)
class Asked:
    """A query; `right` is the passage that is known to answer, `answers` are all that do."""

    query: Query
    right: Item
    answers: frozenset[str]


class World:
    """Passages and queries of a seed."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(f"queries {seed}")
        self.asks, self.tells = _words.Language(0, seed), _words.Language(1, seed)
        self.things = _words.things(seed)[:PASSAGES]
        self.items = [self.tells.item(thing) for thing in self.things]
        drawn: dict[tuple[str, ...], Asked] = {}
        while len(drawn) < LEARNED + HELD:
            number = chance.randrange(PASSAGES)
            places = sorted(chance.sample(range(_words.PROPERTIES), NAMED))
            words = tuple(self.asks.says(self.things[number], places).split())
            drawn.setdefault(words, self._asked(number, places))
        rows = list(drawn.values())
        self.learned, self.held = rows[:LEARNED], rows[LEARNED:]

    def _asked(self, number: int, places: Sequence[int]) -> Asked:
        own = self.things[number]
        answers = [
            item.id
            for item, thing in zip(self.items, self.things, strict=True)
            if all(thing[place] == own[place] for place in places)
        ]
        return Asked(Query(self.asks.says(own, places), instruction=TOLD), self.items[number], frozenset(answers))

    def answers(self, query: str, passage: str) -> bool:
        """Whether a passage has what each word of a query means."""
        meant = {
            asked: told
            for asks, tells in zip(self.asks.words, self.tells.words, strict=True)
            for asked, told in zip(asks, tells, strict=True)
        }
        return all(meant[word] in passage.split() for word in query.split())


class Judge(LM):
    """Says Yes or No as the world has it, with noise that is the same for the same pair."""

    can: frozenset[Ability] = frozenset({"logits"})

    def __init__(self, world: World) -> None:
        self._world = world

    def next_token_logits(self, prompts: Sequence[Prompt], candidates: Sequence[str]) -> np.ndarray:
        found = np.zeros((len(prompts), len(candidates)), np.float32)
        for row, (_, _, query, _, passage) in enumerate(prompts):
            noise = np.random.default_rng(crc32(f"{query} {passage}".encode())).standard_normal() * SPREAD
            found[row, 0] = (SURE if self._world.answers(str(query), str(passage)) else -SURE) + noise
        return found


def one_hot(cosines: Tensor, scores: Tensor) -> Tensor:
    """Cross-entropy of the known passage among its negatives; the judge is not asked."""
    return functional.cross_entropy(cosines / TEMPERATURE, torch.zeros(len(cosines), dtype=torch.long))


def lessons(world: World, start: VLM2Vec) -> list[Lesson]:
    """Each query with the passages that `start` mines, and the judge's scores."""
    similar = start.encode([one.query for one in world.learned], "query") @ start.encode(world.items, "document").T
    judge, made = Judge(world), []
    for one, row in zip(world.learned, similar, strict=True):
        wrong = tuple(world.items[n] for n in mined(row, row[world.items.index(one.right)])[:KEPT])
        if len(wrong) == KEPT:
            scores = judged(judge, one.query, [one.right, *wrong])
            made.append(Lesson(one.query, one.right, wrong, scores=tuple(scores.tolist())))
    return made


def mined_right(world: World, made: Sequence[Lesson]) -> tuple[float, float]:
    """The share of the negatives that answer, and how often the judge is right about them."""
    by_query = {one.query.text: one.answers for one in world.learned}
    pairs = [
        (item.id in by_query[lesson.query.text], score > 0.5)
        for lesson in made
        for item, score in zip(lesson.wrong, lesson.scores[1:], strict=True)
    ]
    return float(np.mean([right for right, _ in pairs])), float(np.mean([right == said for right, said in pairs]))


def arm(system: str, encoder: VLM2Vec | UniMEV2, world: World, begun: float, seed: int, **more: float) -> Arm:
    """The held queries, on all passages."""
    similar = encoder.encode([one.query for one in world.held], "query") @ encoder.encode(world.items, "document").T
    orders = {
        f"q{n}": [world.items[place].id for place in np.argsort(-row, kind="stable")[: _dense.TOP]]
        for n, row in enumerate(similar)
    }
    qrels: Mapping[str, Mapping[str, int]] = {
        f"q{n}": dict.fromkeys(one.answers, 1) for n, one in enumerate(world.held)
    }
    values = ranking.per_query(qrels, orders, METRICS)
    return Arm(
        system=system,
        settings={"seed": seed},
        metrics={**ranking.means(values), **more, "seconds": time.perf_counter() - begun},
        per_query={name: dict(by_query) for name, by_query in values.items()},
    )


def seeded(seed: int, scratch: Path) -> list[Arm]:
    """The start, and what either loss makes of it."""
    world, begun = World(seed), time.perf_counter()
    pairs = [Lesson(one.query, one.right) for one in world.learned]
    start = VLM2Vec.tiny(seed).fit(
        pairs, scratch / f"start{seed}", course=replace(FIRST, seed=seed), adapters=ALL, run=1
    )
    made = lessons(world, start)
    share, agreed = mined_right(world, made)
    arms = [arm("start", start, world, begun, seed, mined_that_answer=share, judge_right=agreed)]
    for system, loss in (("one_hot", one_hot), ("judge", None)):
        begun = time.perf_counter()
        fitted = UniMEV2(start.backbone, start.longest).fit(
            made, scratch / f"{system}{seed}", course=replace(THEN, seed=seed), adapters=ALL, loss=loss
        )
        arms.append(arm(system, fitted, world, begun, seed))
    return arms


def main() -> None:
    given = _dense.asked(__doc__, LEARNED)
    with tempfile.TemporaryDirectory() as scratch:
        singles = [one for seed in _dense.SEEDS[: given.seeds] for one in seeded(seed, Path(scratch))]
    means = {
        system: _proof.over_seeds([one for one in singles if one.system == system])
        for system in ("start", "one_hot", "judge")
    }
    tests = [test for other in ("one_hot", "start") for test in against([means["judge"]], means[other], METRICS)]
    words = [word for number in range(2) for row in _words.Language(number, 0).words for word in row]
    result = Result(
        name="unime_v2",
        kind="proof",
        title="UniME-V2 from nothing in a made-up world: mined negatives under one right label, and under a judge",
        command="make prove ID=unime_v2",
        seed=0,
        data=(_proof.own("things and queries", words, passages=PASSAGES, learned=LEARNED, held=HELD),),
        environment=environment(),
        arms=(*means.values(), *singles),
        comparisons=tuple(tests),
        notes=(
            f"Tiny Qwen2-VL networks, all weights learn: {FIRST.epochs} epochs of InfoNCE over {LEARNED} pairs at "
            f"{FIRST.rate:g}, then {THEN.epochs} with {KEPT} mined negatives each at {THEN.rate:g}, batches of "
            f"{THEN.batch}; the same start, negatives and steps for both losses.",
            f"The judge is no language model but the world's own answer as a logit of {SURE:g} with normal noise of "
            f"{SPREAD:g}; it is asked through the product's prompt. `mined_that_answer`: the share of the negatives "
            "that answer; `judge_right`: how often the judge is right about the negatives.",
        ),
    )
    _proof.write(result, given.out)


if __name__ == "__main__":
    main()
