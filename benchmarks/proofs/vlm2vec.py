"""VLM2Vec on made-up tasks: batches mixed, of one data set, and interleaved; and the instruction in the query.

    make prove ID=vlm2vec

Tiny networks (two layers, vectors of 64 numbers) that begin at random and learn by the product's own `fit`.

Sub-batches: a thing of four properties is named in one language, and its name in another is wanted; which of three, the
instruction says. They are three data sets whose passages share no word. Things that nobody learned from are found among
passages of the same language (`one_task`) and of all three (`all_tasks`).

Instruction: a picture of a coloured shape, and either its colour or its shape is asked for. Without instructions the
query is the same picture twice, and no network finds both answers first.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import _dense
import _proof
import _words
import numpy as np
from PIL import Image, ImageDraw

from triptych.retrievers.base import Item, MediaRef, Query
from triptych.retrievers.fitting import Course
from triptych.retrievers.universal._contrastive_training import Adapters, Lesson
from triptych.retrievers.universal.vlm2vec import VLM2Vec
from triptych.tools.evaluation.compare import against
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, Result

TASKS, LEARNED, HELD = 3, 300, 120
"""Languages that are asked for; things that each is learned from, and found."""
BATCH, EPOCHS, RATE = 24, 10, 2e-3
WAYS = {"mixed": 1, "interleaved": 8, "homogeneous": BATCH}
"""Lessons of one data set that stand together in a batch."""
COLOURS = {"red": "#d22", "green": "#2a3", "blue": "#24d", "yellow": "#ec2", "black": "#111"}
SHAPES = ("disc", "square", "bar", "pole", "cross")
SIDE, SHOWN, HELD_SHOWN, SHOWN_EPOCHS = 56, 240, 60, 12
ASKED = ("Which colour is it?", "Which shape is it?")
METRIC = "recall@1"
ALL = Adapters(rank=0)
SELDOM = 10**6
"""Steps between checkpoints: none before the end."""


def found(system: VLM2Vec, queries: Sequence[Query], items: Sequence[Item]) -> list[int]:
    """The place of the item that is most like each query."""
    similar = system.encode(queries, "query") @ system.encode(items, "document").T
    return [int(place) for place in similar.argmax(axis=1)]


def arm(system: str, right: Mapping[str, Mapping[str, float]], seconds: float, **settings: str | int) -> list[Arm]:
    """One for each pool of passages."""
    return [
        Arm(
            system=system,
            settings={"pool": pool, **settings},
            metrics={METRIC: float(np.mean(list(by_query.values()))), "seconds": seconds},
            per_query={METRIC: dict(by_query)},
        )
        for pool, by_query in right.items()
    ]


# --- sub-batches -----------------------------------------------------------------------------------------------------


def sub_batches(seed: int, scratch: Path) -> list[Arm]:
    """The three ways to put a batch together."""
    drawn = _words.things(seed)
    own, *others = (_words.Language(number, seed) for number in range(TASKS + 1))
    lessons = [
        Lesson(asked(own, language, thing), language.item(thing), group=str(language.number))
        for language in others
        for thing in drawn[:LEARNED]
    ]
    arms = []
    for way, run in WAYS.items():
        start = time.perf_counter()
        course = Course(EPOCHS, BATCH, RATE, every=SELDOM, seed=seed)
        made = VLM2Vec.tiny(seed).fit(lessons, scratch / f"{way}{seed}", course=course, adapters=ALL, run=run)
        right = measured(made, own, others, drawn[LEARNED : LEARNED + HELD])
        arms += arm(way, right, time.perf_counter() - start, seed=seed)
    return arms


def asked(own: _words.Language, wanted: _words.Language, thing: _words.Thing) -> Query:
    return Query(own.says(thing), instruction=f"In {wanted.number}:")


def measured(
    system: VLM2Vec, own: _words.Language, others: Sequence[_words.Language], held: Sequence[_words.Thing]
) -> dict[str, dict[str, float]]:
    """Pool → query → whether its passage came first."""
    queries = [asked(own, language, thing) for language in others for thing in held]
    items = [language.item(thing) for language in others for thing in held]
    keys = [f"{language.number}.{place}" for language in others for place in range(len(held))]  # the same of every seed
    similar = system.encode(queries, "query") @ system.encode(items, "document").T
    task = np.repeat(np.arange(len(others)), len(held))
    inside = np.where(task[:, None] == task[None], similar, -np.inf)
    places = np.arange(len(keys))
    return {
        "one_task": dict(zip(keys, (inside.argmax(axis=1) == places).astype(float).tolist(), strict=True)),
        "all_tasks": dict(zip(keys, (similar.argmax(axis=1) == places).astype(float).tolist(), strict=True)),
    }


# --- instructions ----------------------------------------------------------------------------------------------------


def instructions(seed: int, scratch: Path) -> list[Arm]:
    """With and without them, on the same pictures."""
    answers = [_words.passage(word, word) for word in (*COLOURS, *SHAPES)]
    by_word = {item.id: item for item in answers}
    chance = random.Random(f"pictures {seed}")
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    unseen = set(chance.sample(pairs, 5))
    arms = []
    pictures = {
        "learned": [
            drawn(scratch, f"l{n}", chance.choice([one for one in pairs if one not in unseen]), chance)
            for n in range(SHOWN)
        ],
        "held": [drawn(scratch, f"h{n}", chance.choice(pairs), chance) for n in range(HELD_SHOWN)],
    }
    for way, told in (("instruction", ASKED), ("no_instruction", (None, None))):
        start = time.perf_counter()
        lessons = [
            Lesson(Query(None, media, instruction), by_word[answer])
            for media, names in pictures["learned"]
            for instruction, answer in zip(told, names, strict=True)
        ]
        course = Course(SHOWN_EPOCHS, BATCH, RATE, every=SELDOM, seed=seed)
        made = VLM2Vec.tiny(seed).fit(lessons, scratch / f"{way}{seed}", course=course, adapters=ALL, run=1)
        wanted = [(media, one, names[one]) for media, names in pictures["held"] for one in range(2)]
        places = found(made, [Query(None, media, told[one]) for media, one, _ in wanted], answers)
        right = {
            f"{number // 2}{'cs'[one]}": float(answers[place].id == answer)
            for number, ((_, one, answer), place) in enumerate(zip(wanted, places, strict=True))
        }
        arms += arm(way, {"pictures": right}, time.perf_counter() - start, seed=seed)
    return arms


def drawn(folder: Path, key: str, names: tuple[str, str], chance: random.Random) -> tuple[MediaRef, tuple[str, str]]:
    """A coloured shape somewhere on a light ground, and what it is."""
    colour, shape = names
    picture = Image.new("RGB", (SIDE, SIDE), (chance.randint(215, 255),) * 3)
    size, x, y = (chance.randint(*bounds) for bounds in ((22, 34), (2, 18), (2, 18)))
    thin = size // 4
    boxes = {
        "square": [(x, y, x + size, y + size)],
        "bar": [(x, y + size // 2, x + size, y + size // 2 + thin)],
        "pole": [(x + size // 2, y, x + size // 2 + thin, y + size)],
    }
    boxes["cross"] = boxes["bar"] + boxes["pole"]
    pen = ImageDraw.Draw(picture)
    for box in boxes.get(shape, []):
        pen.rectangle(box, fill=COLOURS[colour])
    if shape == "disc":
        pen.ellipse((x, y, x + size, y + size), fill=COLOURS[colour])
    path = folder / f"{key}.png"
    picture.save(path)
    return MediaRef(str(path), "image/png"), names


def main() -> None:
    given = _dense.asked(__doc__, LEARNED)
    singles: list[Arm] = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in _dense.SEEDS[: given.seeds]:
            for number, part in enumerate((sub_batches, instructions)):
                folder = Path(scratch) / f"{number}{seed}"
                folder.mkdir()
                singles += part(seed, folder)
    by_kind: dict[tuple[str, str], list[Arm]] = {}
    for one in singles:
        by_kind.setdefault((one.system, str(one.settings["pool"])), []).append(one)
    means = {kind: _proof.over_seeds(own) for kind, own in by_kind.items()}
    pairs = [
        (("interleaved", "one_task"), ("mixed", "one_task")),
        (("interleaved", "all_tasks"), ("mixed", "all_tasks")),
        (("interleaved", "one_task"), ("homogeneous", "one_task")),
        (("interleaved", "all_tasks"), ("homogeneous", "all_tasks")),
        (("instruction", "pictures"), ("no_instruction", "pictures")),
    ]
    tests = [test for ours, other in pairs for test in against([means[ours]], means[other], [METRIC])]
    texts = [word for number in range(TASKS + 1) for row in _words.Language(number, 0).words for word in row]
    sizes = {"learned": LEARNED * TASKS, "held": HELD * TASKS, "pictures": SHOWN, "held_pictures": HELD_SHOWN}
    result = Result(
        name="vlm2vec",
        kind="proof",
        title="VLM2Vec from nothing on made-up tasks: interleaved sub-batches, and the instruction in the query",
        command="make prove ID=vlm2vec",
        seed=0,
        data=(_proof.own("words and shapes", texts, **sizes),),
        environment=environment(),
        arms=(*means.values(), *singles),
        comparisons=tuple(tests),
        notes=(
            f"Tiny Qwen2-VL networks, random at first, all weights learn: {EPOCHS} epochs over {LEARNED * TASKS} "
            f"lessons ({SHOWN_EPOCHS} over {SHOWN * 2} for pictures), batches of {BATCH}, rate {RATE:g} in every arm. "
            f"Runs of one data set in a batch: {', '.join(f'{way} {run}' for way, run in WAYS.items())}.",
            "Things and pictures that are searched were not learned from; seeds draw all, the networks, too.",
            "Without an instruction one query has two right answers: 0.5 is the most that it can reach.",
        ),
    )
    _proof.write(result, given.out)


if __name__ == "__main__":
    main()
