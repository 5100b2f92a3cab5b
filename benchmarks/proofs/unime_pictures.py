"""UniME's second stage on photographs: three losses, captions that look for a photograph.

    make prove ID=unime_pictures DATA=flickr8k_100

The photographs are divided once, at random. In turn each part is held back: a network learns from the captions of all
others, and the captions of the part look for their photograph in it, so that every caption is a query once for each
seed. The losses are those of `unime` on the same batches: all others are negatives; the most alike ones; these without
those that the filter takes for right. Each begins twice: with random weights, and after some epochs of InfoNCE, for
the paper's second stage has a first one before it. `random_order` knows nothing.

The network is a tiny LLaVA-NeXT. It reads in pieces of words of all-MiniLM-L6-v2, whose vectors begin as that model has
them, cut to their main directions; all else, what looks included, begins at random, and all of it learns. Nothing that
is learned here is kept.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import _proof
import _shapes
import _unime
import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from tokenizers import AddedToken, Tokenizer, processors

from triptych.errors import BadInput
from triptych.manifests.weights import folder
from triptych.retrievers.base import Item, MediaRef, Query, Source
from triptych.retrievers.fitting import LOG, Course
from triptych.retrievers.loading import quiet
from triptych.retrievers.universal._contrastive_training import Lesson
from triptych.retrievers.universal._mllm import Backbone
from triptych.retrievers.universal.unime import HARD, UniME
from triptych.tools.evaluation import datasets
from triptych.tools.evaluation.compare import against
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, Result

if TYPE_CHECKING:
    from triptych.settings import Settings

WORDS = "all_minilm_l6_v2"
MARKS, TOKENS = ("<s>", "<image>", "<pad>"), 96
"""What a LLaVA-NeXT's vocabulary has beside words; tokens of an input."""
EDGE = 56
"""Pixels of a photograph's longer side."""
PARTS, BATCH = 5, 40
FIRST, THEN = (4, 2e-3), (6, 1e-3)
"""Epochs and rate of InfoNCE before, and of each loss. They were chosen by the losses of what is learned from."""
METRICS = ("recall@1", "recall@5", "MRR", "MRR of a photograph")
CHANCE = "random_order"
STARTS = ("random", "info_nce")


# --- what learns -----------------------------------------------------------------------------------------------------


def network(settings: Settings, seed: int) -> UniME:
    """`UniME.tiny` with the vocabulary and the word vectors of a text encoder."""
    source, tiny = folder(WORDS, settings.weights), UniME.tiny().backbone
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    begin = (MARKS[0], tokenizer.token_to_id(MARKS[0]))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{MARKS[0]} $A", special_tokens=[begin])
    config = deepcopy(tiny.model.config)
    config.image_token_id = tokenizer.token_to_id(tiny.mark)
    config.text_config.vocab_size = tokenizer.get_vocab_size()
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        model = type(tiny.model)(config).eval()
    size, scale = config.text_config.hidden_size, config.text_config.initializer_range
    words = word_vectors(source, size)
    with torch.no_grad():
        model.language_model.embed_tokens.weight[: len(words)] = words * (scale * size**0.5)
    return UniME(Backbone(model, tokenizer, tiny.pictures), TOKENS)


def word_vectors(source: Path, size: int) -> torch.Tensor:
    """The text encoder's, (words, size): their main directions, of length 1 in the mean."""
    with safe_open(source / "model.safetensors", "pt") as file:
        name = next(key for key in file.keys() if key.endswith("word_embeddings.weight"))
        every = file.get_tensor(name).float()
    every = every - every.mean(dim=0)
    _, directions = torch.linalg.eigh(every.T @ every)  # the main ones come last
    cut = every @ directions[:, -size:]
    return cut / cut.norm(dim=1).mean()


# --- what it learns from ---------------------------------------------------------------------------------------------


class World:
    """Captions and small copies of their photographs.

    Attributes:
        photographs: by id; captions: of each photograph, id → text; parts: the photographs, divided.
    """

    def __init__(self, data: datasets.Collection, scratch: Path) -> None:
        self.photographs: dict[str, Item] = {}
        for key, passage in data.passages.items():
            if passage.modality != "image" or passage.media is None:
                raise BadInput(f"`{key}` of `{data.folder.name}` is no picture.", "Give a collection of photographs.")
            self.photographs[key] = small(key, passage.media, scratch)
        self.captions: dict[str, dict[str, str]] = {key: {} for key in self.photographs}
        for query, one in data.queries.items():
            right = max(data.qrels[query], key=lambda key: data.qrels[query][key])
            self.captions[right][query] = one.text
        mixed = random.Random("parts").sample(sorted(self.photographs), len(self.photographs))
        self.parts = [mixed[start::PARTS] for start in range(PARTS)]

    def turns(self) -> Iterator[tuple[list[str], list[str]]]:
        """The photographs that are learned from, and those held back."""
        for held in self.parts:
            yield [key for part in self.parts if part is not held for key in part], held

    def lessons(self, keys: Sequence[str]) -> list[Lesson]:
        return [Lesson(Query(text), self.photographs[key]) for key in keys for text in self.captions[key].values()]

    def similar(self, system: UniME, keys: Sequence[str]) -> tuple[np.ndarray, list[int]]:
        """Cosines of the captions of `keys` with their photographs, and which is whose."""
        texts = [(text, place) for place, key in enumerate(keys) for text in self.captions[key].values()]
        queries = system.encode([Query(text) for text, _ in texts], "query")
        cosines = queries @ system.encode([self.photographs[key] for key in keys], "document").T
        return cosines, [place for _, place in texts]


def small(key: str, path: Path, scratch: Path) -> Item:
    """A photograph as an item, scaled once and not at each reading."""
    copy = scratch / f"{key}.png"
    with Image.open(path) as picture:
        shown = picture.convert("RGB")
    shown.thumbnail((EDGE, EDGE))
    shown.save(copy)
    return Item(key, "", Source(key), "image", MediaRef(str(copy), "image/png"))


# --- the arms --------------------------------------------------------------------------------------------------------


def arms(world: World, settings: Settings, seed: int) -> list[Arm]:
    """Of each loss from each start, and chance."""
    places: dict[tuple[str, str], dict[str, int]] = {}
    costs: dict[tuple[str, str], list[dict[str, float]]] = {}
    for known, held in world.turns():
        with tempfile.TemporaryDirectory() as scratch:
            for key, system, came in fitted(world.lessons(known), settings, seed, Path(scratch)):
                places.setdefault(key, {}).update(placed(world, held, *world.similar(system, held)))
                costs.setdefault(key, []).append({**came, **remembered(*world.similar(system, known))})
    made = []
    for (start, way), own in costs.items():
        means = {name: float(np.mean([one[name] for one in own])) for name in own[0]}
        made.append(arm(way, world, places[start, way], means, start=start, seed=seed))
    return [*made, arm(CHANCE, world, by_chance(world, seed), {}, start="none", seed=seed)]


def fitted(
    lessons: Sequence[Lesson], settings: Settings, seed: int, scratch: Path
) -> Iterator[tuple[tuple[str, str], UniME, dict[str, float]]]:
    """Start and loss, what learned so, and what that came to: losses are means of the first and the last ten steps."""
    ways, raw = _unime.ways(BATCH), network(settings, seed)
    first = Course(FIRST[0], BATCH, FIRST[1], every=_unime.SELDOM, seed=seed)
    course = Course(THEN[0], BATCH, THEN[1], every=_unime.SELDOM, seed=seed)
    begun = _unime.taught(raw, lessons, scratch / "first", ways["info_nce"], first)
    for start, system in zip(STARTS, (raw, begun), strict=True):
        for way, loss in ways.items():
            at, out = time.perf_counter(), scratch / start / way
            made = _unime.taught(system, lessons, out, loss, course)
            told = [json.loads(line) for line in (out / LOG).read_text("utf-8").splitlines()]
            losses = [one["loss"] for one in told if "loss" in one] or [told[-1]["train_loss"]]
            came = {"first_loss": losses[0], "last_loss": losses[-1], "seconds": time.perf_counter() - at}
            yield (start, way), made, came


def by_chance(world: World, seed: int) -> dict[str, int]:
    """What `placed` gives for an order that knows nothing."""
    chance, places = np.random.default_rng(seed), {}
    for _, held in world.turns():
        own = [place for place, key in enumerate(held) for _ in world.captions[key]]
        places |= placed(world, held, chance.random((len(own), len(held))), own)
    return places


def placed(world: World, keys: Sequence[str], similar: np.ndarray, own: Sequence[int]) -> dict[str, int]:
    """Caption → at which place, from 0, its photograph stands among those of `keys`."""
    captions = [query for key in keys for query in world.captions[key]]
    return dict(zip(captions, _shapes.places(similar, [[place] for place in own]), strict=True))


def remembered(similar: np.ndarray, own: Sequence[int]) -> dict[str, float]:
    """How far a network came with what it learned from, and which part of the wrong photographs the filter takes out
    then."""
    first = [not place for place in _shapes.places(similar, [[one] for one in own])]
    taken = _unime.outranking(similar, similar[np.arange(len(own)), own])
    return {
        "learned_recall@1": float(np.mean(first)),
        "filtered_share": float(taken.sum() / (similar.size - len(own))),
    }


def arm(system: str, world: World, places: dict[str, int], costs: dict[str, float], **settings: str | int) -> Arm:
    """Of the places of all captions."""
    found: dict[str, dict[str, float | None]] = {
        "recall@1": {key: float(place < 1) for key, place in places.items()},
        "recall@5": {key: float(place < 5) for key, place in places.items()},
        "MRR": {key: 1 / (place + 1) for key, place in places.items()},
        "MRR of a photograph": {
            key: float(np.mean([1 / (places[query] + 1) for query in own])) for key, own in world.captions.items()
        },
    }
    means = {metric: float(np.mean(list(found[metric].values()))) for metric in METRICS[:-1]}
    return Arm(system=system, settings=settings, metrics={**means, **costs}, per_query=found)


def shorter(one: Arm) -> Arm:
    """With reciprocal ranks alone: recall can be told by them."""
    return one.model_copy(update={"per_query": {"MRR": one.per_query["MRR"]}})


# --- the result ------------------------------------------------------------------------------------------------------


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a collection of photographs and their captions")
    parser.add_argument("--seeds", type=int, default=_shapes.SEEDS, help="how often each arm is trained")
    parser.add_argument("--out", type=Path, default=_proof.RESULTS)
    parser.add_argument("--full", action=_proof.OneSize)
    return parser.parse_args()


def main() -> None:
    given = asked()
    torch.set_num_threads(1)
    data, settings = datasets.collection(given.data), _proof.stages().settings
    with tempfile.TemporaryDirectory() as scratch:
        world = World(data, Path(scratch))
        singles = [one for seed in range(given.seeds) for one in arms(world, settings, seed)]
    means = {(str(one.settings["start"]), one.system): one for one in _shapes.averages(singles)}
    chance = means.pop(("none", CHANCE))
    tests = [*against(list(means.values()), chance, METRICS)]
    for start in STARTS:
        tests += _unime.compared({way: one for (own, way), one in means.items() if own == start}, METRICS)
    held = len(world.parts[0])
    result = Result(
        name="unime_pictures",
        kind="proof",
        title="UniME's second stage on photographs: InfoNCE, hard negatives, hard negatives with the filter",
        command=f"make prove ID=unime_pictures DATA={given.data.name}",
        seed=0,
        data=(data.info,),
        environment=environment((), "float32"),
        arms=(*means.values(), chance, *(shorter(one) for one in singles)),
        comparisons=tuple(tests),
        notes=(
            "Tiny LLaVA-NeXT networks with the word vectors of all-MiniLM-L6-v2, cut to 64 numbers, all else random at "
            f"first; all weights learn: {THEN[0]} epochs at a rate of {THEN[1]:g} and batches of {BATCH} in every arm; "
            f"before them, where the start is `info_nce`, {FIRST[0]} epochs of that at {FIRST[1]:g}. Photographs have "
            f"{EDGE} pixels on the longer side.",
            f"Of {len(world.photographs)} photographs one part in {PARTS} is held back in turn: a caption looks for "
            f"its own among {held}. By chance recall@1 is {1 / held:.3f}, recall@5 {min(5, held) / held:.3f}, MRR "
            f"{sum(1 / place for place in range(1, held + 1)) / held:.3f}; `{CHANCE}` is one such order for each seed.",
            "`MRR of a photograph` is the mean of its captions, which are alike: the test over photographs is the "
            "careful one. `learned_recall@1`: captions that were learned from, among all the photographs that were; "
            "`filtered_share`: of wrong photographs for them, those that the filter takes out as the network ended; "
            "`first_loss`, `last_loss`: means of ten steps, which cannot be compared between losses: where nothing is "
            f"told apart they are {math.log(BATCH):.2f} of InfoNCE and {math.log(HARD + 1):.2f} of the others.",
        ),
    )
    _proof.write(result, given.out)


if __name__ == "__main__":
    main()
