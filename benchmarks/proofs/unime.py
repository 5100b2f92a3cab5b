"""UniME's two stages: what a text encoder teaches a language model, and negatives that are none.

    make prove ID=unime TRAIN=qa_nq_train/train.jsonl DATA="scifact cranfield"

Stage 1, with real weights: the language part of SmolLM2-135M (behind an eye that is not used) learns by adapters from
all-MiniLM-L6-v2, on sentences of Wikipedia. Measured is the search of two collections, of which so many passages are
drawn, those that answer a query among them: before, after training on pairs of the same sentence under two dropouts,
and after the stage, on the same sentences and for as many steps. Without TRAIN and DATA this part is left out.

Stage 2, on tiny networks that begin at random: queries in one made-up language, passages in another. Batches hold
twins, which differ in one word, and planted duplicates: a query whose passage has a wrong word, and beside it another
one of the same meaning with the right passage. Three losses on the same batches: all others are negatives; the most
alike ones; these without those that the filter takes for right.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _dense
import _proof
import _unime
import _words
import numpy as np

from triptych.manifests.weights import folder
from triptych.retrievers.base import Encoder, Item, Query
from triptych.retrievers.fitting import Course
from triptych.retrievers.lm_transformers import TransformersLM
from triptych.retrievers.universal._contrastive_training import Adapters, Lesson
from triptych.retrievers.universal._mllm import Backbone
from triptych.retrievers.universal._mllm_tiny import GRID
from triptych.retrievers.universal._unime_training import taught
from triptych.retrievers.universal.unime import UniME
from triptych.tools.evaluation import datasets, ranking
from triptych.tools.evaluation.compare import against
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, Comparison, DataInfo, Result
from triptych.tools.evaluation.resume import sha256

if TYPE_CHECKING:
    from triptych.settings import Settings

SENTENCES, WORDS = 256, (6, 16)
"""How many are learned from, and how many words each may have."""
QUERIES, PASSAGES, TOKENS = 40, 120, 72
"""Of each collection; tokens of an input, its prompt among them."""
STAGE_1 = {"batch": 32, "rate": 5e-4}
LORA = Adapters(rank=16, dropout=0.1, chunk=8)
FULL = {"sentences": 20_000, "queries": 300, "passages": 5000}
GROUPS, IN_GROUP, DUPLICATES, HELD = 75, 4, 30, 100
BATCH, EPOCHS, RATE = 24, 12, 2e-3
WAYS = _unime.ways(BATCH)
NDCG, METRICS = "nDCG@10", ("recall@1", "clean_first")


# --- stage 1 ---------------------------------------------------------------------------------------------------------


def student(settings: Settings) -> UniME:
    """SmolLM2-135M as the language part of a LLaVA-OneVision, whose eye is random."""
    import torch
    import transformers
    from tokenizers import AddedToken, Tokenizer

    lm = TransformersLM.from_folder(folder("smollm2_135m_instruct", settings.weights), "float32")
    tokenizer = Tokenizer.from_str(lm.tokenizer.backend_tokenizer.to_str())
    tokenizer.add_special_tokens([AddedToken("<image>", special=True, normalized=False)])
    text = transformers.LlamaConfig(**{**lm.model.config.to_dict(), "vocab_size": tokenizer.get_vocab_size()})
    eye = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    eye |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14, "vision_use_head": False}
    config = transformers.LlavaOnevisionConfig(
        vision_config=eye,
        text_config=text,
        image_token_index=tokenizer.token_to_id("<image>"),
        video_token_index=tokenizer.token_to_id("<image>"),
        image_grid_pinpoints=GRID,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.LlavaOnevisionModel(config).float()
    learned = lm.model.model.state_dict()
    rows = model.language_model.embed_tokens.weight.shape[0] - len(learned["embed_tokens.weight"])
    unused = torch.zeros(rows, text.hidden_size)
    learned["embed_tokens.weight"] = torch.cat([learned["embed_tokens.weight"], unused])
    model.language_model.load_state_dict(learned)
    pictures = transformers.LlavaOnevisionImageProcessorPil(size={"height": 28, "width": 28}, image_grid_pinpoints=GRID)
    return UniME(Backbone(model.eval(), tokenizer, pictures), TOKENS)


def sentences(path: Path, count: int) -> list[str]:
    """So many of the passages of a file, drawn."""
    rows = [json.loads(line)["passage"]["text"] for line in path.read_text("utf-8").splitlines()]
    whole = {one.strip() for text in rows for one in re.split(r"(?<=[.!?])\s+", text)}
    fit = sorted(one for one in whole if WORDS[0] <= len(one.split()) <= WORDS[1])
    return random.Random(0).sample(fit, min(count, len(fit)))


def subset(path: Path, queries: int, passages: int) -> tuple[datasets.Collection, list[Item]]:
    """So many queries of a collection, and passages: all that are judged for them, others drawn."""
    data = datasets.collection(path, limit=queries, seed=0)
    judged = {key for rows in data.qrels.values() for key, grade in rows.items() if grade > 0}
    others = [key for key in data.passages if key not in judged]
    kept = sorted(judged) + random.Random(0).sample(others, max(0, min(passages - len(judged), len(others))))
    return data, [_dense.item(key, data.passages[key].title, data.passages[key].text) for key in kept]


def searched(encoder: Encoder, data: datasets.Collection, items: Sequence[Item]) -> dict[str, dict[str, float]]:
    """nDCG@10 of each query."""
    orders = _dense.by_vectors(encoder, {key: one.text for key, one in data.queries.items()}, items)
    found = {f"{key}": [one.id for one in order] for key, order in orders.items()}
    return ranking.per_query(data.qrels, found, [NDCG])


def distilled(given: argparse.Namespace, settings: Settings, scratch: Path) -> list[Arm]:
    """Stage 1: the student before, after either training, and its teacher."""
    sizes = FULL if given.full else {"sentences": SENTENCES, "queries": QUERIES, "passages": PASSAGES}
    texts = sentences(given.train, sizes["sentences"])
    data = {path.name: subset(path, sizes["queries"], sizes["passages"]) for path in given.data}
    teacher, start = _proof.stages().encoder(), student(settings)
    lesson = taught(teacher, texts, scratch / "teacher")
    pairs = [Lesson(Query(text), _words.passage(f"s{number}", text)) for number, text in enumerate(texts)]

    def arms(system: str, encoder: Encoder, begun: float, **settings: int) -> list[Arm]:
        made = []
        for name, (collection, items) in data.items():
            values = searched(encoder, collection, items)
            metrics = {**ranking.means(values), "seconds": time.perf_counter() - begun}
            told: dict[str, Any] = {"data": name, **settings}
            by_query: dict[str, dict[str, float | None]] = {key: dict(one) for key, one in values.items()}
            made.append(Arm(system=system, settings=told, metrics=metrics, per_query=by_query))
        return made

    found = arms("teacher", teacher, time.perf_counter()) + arms("before", start, time.perf_counter())
    for seed in _dense.SEEDS[: given.seeds]:
        course = Course(1, int(STAGE_1["batch"]), STAGE_1["rate"], every=_unime.SELDOM, seed=seed)
        for system in ("dropout_pairs", "stage_1"):
            begun, out = time.perf_counter(), scratch / f"{system}{seed}"
            if system == "stage_1":
                made = start.fit(texts, lesson, out, course=course, adapters=LORA)
            else:
                made = start.fit_pairs(pairs, out, course=course, adapters=LORA, beyond=_unime.NEVER, hard=course.batch)
            found += arms(system, made, begun, seed=seed)
    return found


# --- stage 2 ---------------------------------------------------------------------------------------------------------


class Planted:
    """Groups of things with two twins and either a third one or, `DUPLICATES` times, a duplicate.

    Attributes:
        lessons: with their groups; clean, damaged: of each duplicate the passage that is right, and the lesson whose
            passage has a wrong word.
        held: things that stand in no lesson.
    """

    def __init__(self, seed: int) -> None:
        chance = random.Random(f"planted {seed}")
        self.asked, self.told = _words.Language(0, seed), _words.Language(1, seed)
        every = _words.things(seed)
        self.held, base = every[:HELD], every[HELD : HELD + GROUPS]
        unseen = set(self.held)
        self.lessons: list[Lesson] = []
        self.damaged: list[Lesson] = []
        self.clean: list[Item] = []
        for number, thing in enumerate(base):
            near = chance.sample([one for one in _words.twins(thing) if one not in unseen], IN_GROUP)
            rows = [(self.asked.says(one), self.told.item(one)) for one in (thing, *near[: IN_GROUP - 1])]
            if number < DUPLICATES:
                right = rows[0][1]
                rows[-1] = (self.asked.says(thing, range(_words.PROPERTIES)[::-1]), right)
                rows[0] = (rows[0][0], self.told.item(near[-1], f"damaged{number}"))
                self.clean.append(right)
            made = [Lesson(Query(text), item, group=str(number)) for text, item in rows]
            self.lessons += made
            self.damaged += made[:1] if number < DUPLICATES else []


def stage_2(seed: int, scratch: Path) -> list[Arm]:
    """The three losses."""
    world = Planted(seed)
    arms = []
    for way, loss in WAYS.items():
        begun = time.perf_counter()
        course = Course(EPOCHS, BATCH, RATE, every=_unime.SELDOM, seed=seed)
        made = _unime.taught(UniME.tiny(seed), world.lessons, scratch / f"{way}{seed}", loss, course, IN_GROUP)
        # Named by place: seeds hold different things, and a test pairs what has the same name.
        recall = {f"thing {place}": first_of_twins(made, world, thing) for place, thing in enumerate(world.held)}
        clean, filtered, others = judged(made, world)
        metrics = {
            METRICS[0]: float(np.mean(list(recall.values()))),
            METRICS[1]: float(np.mean(clean)),
            "planted": len(clean),
            "planted_filtered": sum(filtered),
            "others_filtered_share": others,
            "seconds": time.perf_counter() - begun,
        }
        per_query: dict[str, dict[str, float | None]] = {
            METRICS[0]: dict(recall),
            METRICS[1]: {f"d{number}": one for number, one in enumerate(clean)},
        }
        arms.append(Arm(system=way, settings={"data": "planted", "seed": seed}, metrics=metrics, per_query=per_query))
    return arms


def first_of_twins(system: UniME, world: Planted, thing: _words.Thing) -> float:
    """Whether a thing that nobody learned is found before its sixteen twins."""
    items = [world.told.item(one) for one in (thing, *_words.twins(thing))]
    query = system.encode([Query(world.asked.says(thing))], "query")[0]
    return float((system.encode(items, "document") @ query).argmax() == 0)


def judged(system: UniME, world: Planted) -> tuple[list[float], list[bool], float]:
    """Of each planted duplicate whether its query has the right passage before the damaged one, and whether the filter
    would take it out, both for the network as it ended; and the share of other wrong passages that would go, too."""
    queries = system.encode([one.query for one in world.lessons], "query")
    items = [one.right for one in world.lessons]
    similar = queries @ system.encode(items, "document").T
    beyond = _unime.outranking(similar, similar.diagonal())
    rows = [world.lessons.index(one) for one in world.damaged]
    places = [next(n for n, item in enumerate(items) if item.id == one.id) for one in world.clean]
    clean = [float(similar[row, place] > similar[row, row]) for row, place in zip(rows, places, strict=True)]
    filtered = [bool(beyond[row, place]) for row, place in zip(rows, places, strict=True)]
    wrong = np.array([[one.id != other.id for other in items] for one in items])
    for row, one in zip(rows, world.clean, strict=True):
        wrong[row, [n for n, item in enumerate(items) if item.id == one.id]] = False
    return clean, filtered, float(beyond[wrong].mean())


# --- the result ------------------------------------------------------------------------------------------------------


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="questions with passages, whose sentences are learned from")
    parser.add_argument("--data", type=Path, nargs="+", help="collections to measure on")
    parser.add_argument("--seeds", type=int, default=len(_dense.SEEDS), help="how often each arm is trained")
    parser.add_argument("--full", action="store_true", help="more sentences, queries and passages; for a GPU")
    parser.add_argument("--out", type=Path, default=_proof.RESULTS)
    given = parser.parse_args()
    if (given.train is None) != (given.data is None):
        parser.error("--train and --data go together")
    return given


def compared(means: Mapping[tuple[str, str], Arm], given: argparse.Namespace) -> list[Comparison]:
    """The stages against what each has to beat."""
    found = []
    for path in given.data or []:
        for other in ("before", "dropout_pairs"):
            found += against([means["stage_1", path.name]], means[other, path.name], [NDCG])
    return found + _unime.compared({way: means[way, "planted"] for way in WAYS}, METRICS)


def main() -> None:
    given = asked()
    settings = _proof.stages().settings
    with tempfile.TemporaryDirectory() as scratch:
        singles = distilled(given, settings, Path(scratch)) if given.train else []
        for seed in _dense.SEEDS[: given.seeds]:
            singles += stage_2(seed, Path(scratch))
    by_kind: dict[tuple[str, str], list[Arm]] = {}
    for one in singles:
        by_kind.setdefault((one.system, str(one.settings["data"])), []).append(one)
    means = {key: _proof.over_seeds(own) if "seed" in own[0].settings else own[0] for key, own in by_kind.items()}
    words = [word for number in range(2) for row in _words.Language(number, 0).words for word in row]
    info = [_proof.own("planted duplicates", words, lessons=GROUPS * IN_GROUP, planted=DUPLICATES, held=HELD)]
    notes = [
        f"Stage 2: tiny LLaVA-NeXT networks, random at first, all weights learn: {EPOCHS} epochs, batches of {BATCH}, "
        f"rate {RATE:g} in every arm. `recall@1`: a thing that nobody learned, among its sixteen twins. "
        "`clean_first`: queries whose labelled passage has a wrong word and that have the right one before it. "
        "`planted_filtered`: of the planted duplicates, those that the filter takes out as the network ended.",
    ]
    command = "make prove ID=unime"
    if given.train:
        command += f' TRAIN={given.train.parent.name}/{given.train.name} DATA="{" ".join(p.name for p in given.data)}"'
        for path in given.data:
            one, items = subset(path, *([FULL["queries"], FULL["passages"]] if given.full else [QUERIES, PASSAGES]))
            info.append(replaced(one.info, len(items)))
        used = len(sentences(given.train, FULL["sentences"] if given.full else SENTENCES))
        info.append(DataInfo(name=given.train.stem, sha256=sha256(given.train), sizes={"sentences": used}))
        notes.append(
            f"Stage 1: SmolLM2-135M-Instruct learns by adapters of rank {LORA.rank} from all-MiniLM-L6-v2, one epoch "
            f"over {used} sentences of {WORDS[0]} to {WORDS[1]} words in batches of {STAGE_1['batch']} at "
            f"{STAGE_1['rate']:g}; `dropout_pairs`: the same sentences and steps, each with itself, a dropout of "
            f"{LORA.dropout:g} in the adapters. The paper: 273,000 sentences, a student and a teacher of seven billion "
            f"weights. Inputs are cut to {TOKENS} tokens. Of each collection only a part of the passages is searched, "
            "all that are judged right in it: "
            "figures cannot be compared with those over whole collections."
        )
    result = Result(
        name="unime" if given.train else "unime_stage_2",
        kind="proof",
        title="UniME: a text encoder teaches a language model (real weights), and duplicates among the negatives",
        command=command,
        seed=0,
        data=tuple(info),
        environment=environment(),
        arms=(*means.values(), *(one for one in singles if "seed" in one.settings)),
        comparisons=tuple(compared(means, given)),
        notes=tuple(notes),
    )
    _proof.write(result, given.out)


def replaced(info: DataInfo, passages: int) -> DataInfo:
    return info.model_copy(update={"sizes": {**info.sizes, "passages": passages}})


if __name__ == "__main__":
    main()
