"""VISTA on drawn things: a picture with words that change it, against picture, words, and sums of vectors.

    make prove ID=vista

A toy BERT first learns from texts alone what names and changes of things mean ("red ring but blue" is "blue ring").
Then it stays as it is, and the vision tower and the projection learn from pictures with their names, and from pictures
with a change whose answer is a picture. Asked is with a picture and a change, for pictures of things that were never
learned from. `sum_of_vectors` adds the same VISTA's vectors of the two halves; `uniir_sf` is the package's CLIP_SF,
trained on the same pairs.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _shapes
import numpy as np
import torch
from torch import nn

from triptych.retrievers.base import Item, Query
from triptych.retrievers.fitting import Course
from triptych.retrievers.towers import seeded
from triptych.retrievers.universal import _uniir_training
from triptych.retrievers.universal._contrastive_training import Contrast, Lesson, begun, contrasted, info_nce
from triptych.retrievers.universal.uniir import UniIR
from triptych.retrievers.universal.vista import VISTA, Towers

if TYPE_CHECKING:
    from triptych.tools.evaluation.result import Arm

HELD = 8
"""Things of 30 that no answer shows while it is learned."""
TIMES = 60
"""Pairs of each thing, for each of the two stages."""
TEXTS = Course(epochs=2, batch=12, rate=1e-3, every=10**6, decay=0.0)
PICTURES = Course(epochs=8, batch=12, rate=1e-3, every=10**6, decay=0.0)
METRICS = ("recall@1", "recall@5")
WORDS = (*_shapes.COLOURS, *_shapes.SHAPES, "but", "a", "picture", "of", "the", ".")


def start(seed: int) -> VISTA:
    """A BERT of two layers over words, and a ViT of two over pictures of 32 pixels."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import BertConfig, BertModel, ViTConfig, ViTImageProcessorPil, ViTModel

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tower: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 4, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    words = BertConfig(**tower, vocab_size=len(names), max_position_embeddings=64, initializer_range=0.1)
    sight = ViTConfig(**tower, image_size=_shapes.EDGE, patch_size=8, initializer_range=0.1)
    text, vision, projection = seeded(
        seed,
        lambda: (
            BertModel(words, add_pooling_layer=False).eval(),
            ViTModel(sight, add_pooling_layer=False).eval(),
            nn.Linear(48, 48),
        ),
    )
    size = {"height": _shapes.EDGE, "width": _shapes.EDGE}
    return VISTA(Towers(text, vision, projection), tokenizer, ViTImageProcessorPil(size=size))


# --- what is learned -------------------------------------------------------------------------------------------------


def changes(thing: _shapes.Thing, drawn: random.Random) -> tuple[_shapes.Thing, str]:
    """Another thing, and in what way `thing` is it: another colour, or another shape."""
    if drawn.random() < 0.5:
        colour = drawn.choice([one for one in _shapes.COLOURS if one != thing.colour])
        return replace(thing, colour=colour), f"but {colour}"
    shape = drawn.choice([one for one in _shapes.SHAPES if one != thing.shape])
    return replace(thing, shape=shape), f"but a {shape}"


def of_texts(things: Sequence[_shapes.Thing], seed: int) -> list[Lesson]:
    """Names and changed names → names; of all things, for texts tell nothing of pictures."""
    drawn, made = random.Random(f"texts {seed}"), []
    for thing in things:
        for time_ in range(TIMES):
            asked, right = (f"a picture of the {thing.name}", thing)
            if time_ % 3:
                right, change = changes(thing, drawn)
                asked = f"{thing.name} {change}"
            made.append(Lesson(Query(asked), _shapes.told(right.name, right.name)))
    return made


def of_pictures(folder: Path, known: Sequence[_shapes.Thing], seed: int) -> list[Lesson]:
    """Names, and pictures with a change → pictures, of known things only."""
    drawn, made = random.Random(f"pictures {seed}"), []
    for thing in known:
        for time_ in range(TIMES):
            query, right = Query(thing.name), thing
            if time_ % 3:
                right, change = changes(thing, drawn)
                while right not in known:
                    right, change = changes(thing, drawn)
                query = Query(change, _shapes.picture(folder, thing, drawn.randrange(0, 40, 2)))
            item = _shapes.shown(folder, right, drawn.randrange(1, 40, 2))
            made.append(Lesson(query, replace(item, id=right.name)))
    return made


def read_first(vista: VISTA, told: Sequence[Lesson], folder: Path, course: Course) -> VISTA:
    """The text embedder, trained by texts alone, with vision tower and projection as they were."""
    text = deepcopy(vista.towers.text)
    made = VISTA(Towers(text, vista.towers.vision, vista.towers.projection), vista.tokenizer, vista.pictures)
    begun(told, (), folder, course, 1)
    contrasted(Contrast(text, made._vectors, info_nce), told, (), folder, course, lambda one, side: made._read(one))
    return made


# --- what is asked ---------------------------------------------------------------------------------------------------


def questions(folder: Path, things: Sequence[_shapes.Thing], held: Sequence[_shapes.Thing]) -> list[tuple[Query, int]]:
    """Every way in which another thing becomes one of `held`, with the place of that among `things`."""
    made = []
    for number, right in enumerate(things):
        if right not in held:
            continue
        for other in things:
            if (other.colour == right.colour) != (other.shape == right.shape):
                change = f"but a {right.shape}" if other.shape != right.shape else f"but {right.colour}"
                made.append((Query(change, _shapes.picture(folder, other, 1000)), number))
    return made


def arm(name: str, vectors: Any, told: Any, right: Sequence[int], seconds: float, seed: int) -> Arm:
    places = _shapes.places(_shapes.scores(vectors, told), [[number] for number in right])
    values = {METRICS[0]: [float(place < 1) for place in places], METRICS[1]: [float(place < 5) for place in places]}
    return _shapes.arm(name, values, {"seconds": seconds}, seed=seed)


def arms(vista: VISTA, uniir: UniIR, folder: Path, held: Sequence[_shapes.Thing], times: Sequence[float], seed: int
) -> list[Arm]:  # fmt: skip
    things = _shapes.things()
    asked = questions(folder, things, held)
    right = [number for _, number in asked]
    items = [_shapes.shown(folder, thing, 1001) for thing in things]
    told = vista.encode(items, "document")
    both = [query for query, _ in asked]
    whole = vista.encode(both, "query")
    words = vista.encode([Query(one.text) for one in both], "query")
    sight = vista.encode([Query(None, one.media) for one in both], "query")
    summed = words + sight
    summed /= np.linalg.norm(summed, axis=1, keepdims=True)
    made = [
        arm(name, vectors, told, right, times[0], seed)
        for name, vectors in (
            ("vista", whole),
            ("picture_alone", sight),
            ("words_alone", words),
            ("sum_of_vectors", summed),
        )
    ]
    fused = uniir.encode(both, "query"), uniir.encode(items, "document")
    return [*made, arm("uniir_sf", *fused, right, times[1], seed)]


def unchanged(before: VISTA, after: VISTA) -> float:
    """The largest difference that a text's vector has."""
    texts = [Query(thing.name) for thing in _shapes.things()]
    return float(np.abs(before.encode(texts, "query") - after.encode(texts, "query")).max())


def main() -> None:
    given = _shapes.asked(__doc__)
    torch.set_num_threads(1)
    things = _shapes.things()
    held, known = things[:HELD], things[HELD:]
    every: list[Arm] = []
    differences = []
    with _shapes.workplace(given) as folder:
        shown = folder / "shown"
        drawn: list[Item] = [_shapes.shown(shown, thing, 1001) for thing in things]
        world = _shapes.data("drawn_things", drawn, things=len(things), held=HELD)
        for seed in range(given.seeds):
            begun_at = time.perf_counter()
            course = replace(TEXTS, seed=seed, epochs=TEXTS.epochs * given.share)
            read = read_first(start(seed), of_texts(things, seed), folder / f"texts_{seed}", course)
            course = replace(PICTURES, seed=seed, epochs=PICTURES.epochs * given.share)
            told = of_pictures(shown, known, seed)
            vista = read.fit(told, folder / f"vista_{seed}", course=course, chunk=0)
            differences.append(unchanged(read, vista))
            times = [time.perf_counter() - begun_at]
            begun_at = time.perf_counter()
            pairs = [_uniir_training.Lesson(one.query, one.right) for one in told]
            epochs = max(1, round(PICTURES.epochs * given.share))
            fitting = _uniir_training.Fitting(epochs=epochs, batch=PICTURES.batch, rate=5e-3, decay=0.0, seed=seed)
            uniir = UniIR.tiny(seed).fit(pairs, folder / f"uniir_{seed}", fitting=fitting)
            times.append(time.perf_counter() - begun_at)
            every += arms(vista, uniir, shown, held, times, seed)
    notes = (
        f"Toy towers from random weights. Texts: {TEXTS.epochs:g} epochs; pictures: {len(told)} pairs; batches of "
        f"{PICTURES.batch}, {PICTURES.epochs:g} epochs. Not the released VISTA.",
        f"Texts have the vectors of the text embedder alone: the largest difference is {max(differences):g}.",
        "`uniir_sf` begins from random weights, without the texts that VISTA's embedder was trained on first, and sees "
        "the pairs as often.",
    )
    title = "VISTA from nothing on drawn things: a picture with a change, against its halves and their sums"
    _shapes.conclude(given, "vista", title, every, {"system": "vista"}, METRICS, world, notes)


if __name__ == "__main__":
    main()
