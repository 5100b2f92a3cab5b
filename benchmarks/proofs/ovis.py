"""Ovis' visual words on drawn things, against a connector of as many weights that is not bound to a table.

    make prove ID=ovis

Pictures are found by texts that name a colour, a shape and a place. Both arms are the package's Ovis, the same toy
network from the same random weights: a linear layer and a layer norm give a number for each row of the table. One makes
them probabilities (softmax), so that the language model reads a mean of rows; the other puts them through a GELU, which
makes linear layer, GELU and table a perceptron. Told are how often each finds, how sure the visual words become, and
whether a word stands for one colour or shape.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _shapes
import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from triptych.retrievers.base import Query
from triptych.retrievers.fitting import Course
from triptych.retrievers.universal._contrastive_training import Adapters, Lesson
from triptych.retrievers.universal._ovis_tiny import toy
from triptych.retrievers.universal.ovis import Ovis

if TYPE_CHECKING:
    from triptych.tools.evaluation.result import Arm

WORDS = 128
"""Rows of the table."""
LEARNED, SHOTS = 90, 8
"""Things of 120 that are learned from, and pictures of each."""
COURSE = Course(epochs=8, batch=12, rate=1e-3, every=10**6, decay=0.0)
METRICS = ("recall@1", "recall@5")
ARMS = ("ovis", "perceptron")


def start(name: str, seed: int) -> Ovis:
    model, processor = toy(seed, tiles=False, words=WORDS)
    if name == "perceptron":
        model.vision_tower.register_forward_hook(_unbound)
    return Ovis(model, processor)


def _unbound(tower: Any, _: Any, found: Any) -> Any:
    """In place of probabilities, the same numbers through a GELU."""
    found.pooler_output = functional.gelu(tower.head_norm(tower.head_linear(found.last_hidden_state)))
    return found


def lessons(folder: Path, things: Sequence[_shapes.Thing]) -> list[Lesson]:
    """The pictures of a thing are one item in several shapes: none is wrong for its name."""
    made = []
    for thing in things:
        for shot in range(SHOTS):
            right = replace(_shapes.shown(folder, thing, shot), id=thing.name)
            made.append(Lesson(Query(thing.name), right))
    return made


def arms(encoder: Ovis, folder: Path, name: str, costs: dict[str, float], seed: int) -> list[Arm]:
    """Of new things and of those that were learned from, among new pictures of all."""
    things = _shapes.things(corners=True)
    found = _shapes.scores(
        encoder.encode([Query(thing.name) for thing in things], "query"),
        encoder.encode([_shapes.shown(folder, thing, 1000) for thing in things], "document"),
    )
    places = _shapes.places(found, [[number] for number in range(len(things))])
    made = []
    for split, own in (("new", places[LEARNED:]), ("learned", places[:LEARNED])):
        values = {METRICS[0]: [float(place < 1) for place in own], METRICS[1]: [float(place < 5) for place in own]}
        made.append(_shapes.arm(name, values, costs, split=split, seed=seed))
    return made


# --- what the visual words are ---------------------------------------------------------------------------------------


def told_by_words(encoder: Ovis, folder: Path) -> dict[str, float]:
    """Of the tokens of new pictures: their mean entropy (nats; the most there could be beside it), how many words ever
    are a token's likeliest, and for the token in which most of a thing stands, how often its likeliest word is that of
    its commonest colour, or shape; `…_by_chance`: the same with the things shuffled."""
    things = _shapes.things(corners=True)
    entropies, words = [], []
    for thing in things:
        for shot in (1000, 1001, 1002):
            picture = Image.open(_shapes.picture(folder, thing, shot).uri)
            chances = encoder.visual_tokens(picture).double()
            entropies.append(float(-(chances * chances.clamp(min=1e-12).log()).sum(dim=1).mean()))
            words.append((int(chances[_fullest(picture, len(chances))].argmax()), thing))
    drawn = random.Random(0).sample([thing for _, thing in words], len(words))
    told = {"entropy": float(np.mean(entropies)), "words_used": float(len({word for word, _ in words}))}
    for quality in ("colour", "shape"):
        own = [(word, getattr(thing, quality)) for word, thing in words]
        shuffled = [(word, getattr(thing, quality)) for (word, _), thing in zip(words, drawn, strict=True)]
        told |= {f"pure_{quality}": pure(own), f"pure_{quality}_by_chance": pure(shuffled)}
    return told


def pure(pairs: Sequence[tuple[int, str]]) -> float:
    """The share of pairs whose label is the commonest of their word."""
    counts: dict[int, Counter[str]] = {}
    for word, label in pairs:
        counts.setdefault(word, Counter())[label] += 1
    return sum(own.most_common(1)[0][1] for own in counts.values()) / len(pairs)


def _fullest(picture: Image.Image, tokens: int) -> int:
    """The token of the part of a picture that is least even."""
    side = round(tokens**0.5)
    pixels = np.asarray(picture.convert("RGB"), float)
    step = len(pixels) // side
    parts = [pixels[y * step : (y + 1) * step, x * step : (x + 1) * step] for y in range(side) for x in range(side)]
    return int(np.argmax([part.std(axis=(0, 1)).sum() for part in parts]))


def main() -> None:
    given = _shapes.asked(__doc__)
    torch.set_num_threads(1)
    things = _shapes.things(corners=True)
    every: list[Arm] = []
    with _shapes.workplace(given) as folder:
        told = lessons(folder / "shown", things[:LEARNED])
        drawn = [one.right for one in told]
        world = _shapes.data("drawn_things", drawn, things=len(things), learned=LEARNED, pictures=len(drawn))
        for seed in range(given.seeds):
            for name in ARMS:
                begun, first = time.perf_counter(), start(name, seed)
                course = replace(COURSE, seed=seed, epochs=COURSE.epochs * given.share)
                encoder = first.fit(told, folder / f"{name}_{seed}", course=course, adapters=Adapters(rank=0))
                costs = {"seconds": time.perf_counter() - begun}
                costs["weights"] = float(sum(one.numel() for one in encoder.model.parameters()))
                if name == "ovis":
                    before = told_by_words(first, folder / "shown")
                    costs |= told_by_words(encoder, folder / "shown")
                    costs |= {"entropy_before": before["entropy"], "words_used_before": before["words_used"]}
                every += arms(encoder, folder / "shown", name, costs, seed)
    most = float(np.log(WORDS - 5))
    notes = (
        f"A toy Ovis from random weights, {COURSE.epochs:g} epochs over {len(told)} pairs in batches of "
        f"{COURSE.batch}, learning rate {COURSE.rate:g}, all weights, InfoNCE; not a released Ovis, "
        "which nobody trained to retrieve.",
        "`perceptron` has the same weights, and a GELU where Ovis has the softmax.",
        f"`entropy` in nats, at most {most:.2f}. `pure_colour`, `pure_shape`: of the tokens in which most of a thing "
        "stands, those whose likeliest word has their colour or shape as its commonest; beside it the same of shuffled "
        "things, for a word that is rare is pure by chance.",
    )
    title = "Ovis' visual words from nothing on drawn things, against a perceptron of as many weights"
    _shapes.conclude(given, "ovis", title, every, {"system": "ovis"}, METRICS, world, notes)


if __name__ == "__main__":
    main()
