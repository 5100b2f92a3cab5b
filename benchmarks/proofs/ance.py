"""ANCE: negatives of the encoder's own index, refreshed with every epoch, against those that BM25 finds once.

    make prove ID=ance DATA=scifact

No RoBERTa weights come with the package, so a small RoBERTa is trained from nothing, on the titles of SciFact's
abstracts: find the abstract, which is read without its title. All arms go on from the same warm start, for as many
steps with the same loss; only the negatives differ: of BM25, of the own index once or in every epoch, or any passages.
Measured are titles that were not learned from, among all abstracts.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _dense
import _proof

from triptych.retrievers.text._training import Fitting, Question, mined, nearest
from triptych.retrievers.text.ance import ANCE, DEPTH, NEGATIVES
from triptych.tools.evaluation import datasets
from triptych.tools.evaluation.compare import against
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, Result

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from triptych.retrievers.base import Item

LEARNED, TUNED, HELD = 4000, 200, 900
"""Titles to learn from, others on which learning rates were tried, and others to measure on; what is left `--full`
learns from, too."""
LIMIT = 3400
"""Of the first, without `--full`."""
SHUFFLE = 3
CHARACTERS = 200
"""Abstracts are cut here for every arm, BM25 too."""
VOCABULARY = 4000
SIZES = {"hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 256}
DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
"""At first the state of `<s>` hardly depends on the text: with dropout all vectors become one, and stay so."""
LONGEST = 96
SPAN = 8
"""Words of an abstract that ask for it in the warm start: titles alone are learned by heart."""
WARM = Fitting(epochs=6, batch=64, rate=1e-3, hard=0)
COURSE = Fitting(epochs=3, batch=64, rate=3e-4)
FULL_WARM, FULL = replace(WARM, epochs=24, batch=128), replace(COURSE, epochs=12, batch=128)
Train = Callable[[Path, Fitting], ANCE]


def pieces(texts: Sequence[str]) -> Tokenizer:
    """RoBERTa's kind of tokenizer, learned from `texts`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        show_progress=False,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator((text.lower() for text in texts), trainer)
    return made


def known(folder: Path) -> tuple[datasets.Collection, list[Item], dict[str, str]]:
    """The collection, its abstracts in a drawn order, and their titles by id."""
    collection = datasets.collection(folder)
    rows = [one for one in collection.passages.values() if one.title and one.text]
    random.Random(SHUFFLE).shuffle(rows)
    # A title that the text begins with is not read.
    items = [_dense.item(one.id, one.text.split()[0], one.text[:CHARACTERS]) for one in rows]
    return collection, items, {one.id: one.title for one in rows}


def spans(items: Sequence[Item], seed: int) -> list[Question]:
    """For each abstract, some words of it in a row."""
    chance = random.Random(seed)
    made = []
    for one in items:
        words = one.text.split()
        first = chance.randrange(max(1, len(words) - SPAN))
        made.append(Question(" ".join(words[first : first + SPAN]), (one,)))
    return made


def ways(
    warm: ANCE, plain: Sequence[Question], found: Sequence[Sequence[Item]], items: Sequence[Item], seed: int
) -> dict[str, Train]:
    """Each arm's training, from the warm start on."""
    chance = random.Random(seed)
    once = nearest(warm, plain, items, DEPTH)
    static = {
        "bm25_negatives": found,
        "own_negatives_once": [chance.sample(row, len(row)) for row in once],
        "random_negatives": [chance.sample(list(items), NEGATIVES + 1) for _ in plain],
    }
    made: dict[str, Train] = {}
    for name, rankings in static.items():
        questions = mined(plain, rankings, NEGATIVES)
        made[name] = lambda out, fitting, questions=questions: warm.warm(questions, out, fitting=fitting)  # type: ignore[misc]
    made["ance"] = lambda out, fitting: warm.fit(plain, out, items=items, fitting=fitting)
    return made


def main() -> None:
    given = _dense.asked(__doc__, LIMIT)
    collection, items, titles = known(given.data)
    last = LEARNED + TUNED + HELD
    learned = items[:LEARNED] + items[last:] if given.full else items[: given.limit]
    held = items[LEARNED : LEARNED + TUNED] if given.rate else items[LEARNED + TUNED : last]
    queries, gold = {one.id: titles[one.id] for one in held}, {one.id: one.id for one in held}
    measured = partial(_dense.arms, gold=gold, splits={"titles": list(queries)})
    search = _dense.lexical(items)
    plain = [Question(titles[one.id], (one,)) for one in learned]
    by_words = _dense.by_words(search, {one.id: titles[one.id] for one in learned}, NEGATIVES + 1)
    found = [by_words[one.id] for one in learned]
    tokenizer = pieces([one.text for one in items] + list(titles.values()))
    arms: dict[str, list[Arm]] = {}

    def put(system: str, ranked: Mapping[str, Sequence[Item]], begun: float, **settings: Any) -> None:
        arms.setdefault(system, []).extend(measured(system, ranked, start=begun, **settings).values())

    put("bm25", _dense.by_words(search, queries), time.perf_counter())
    first, course = (FULL_WARM, FULL) if given.full else (WARM, COURSE)
    course = replace(course, rate=given.rate or course.rate)
    sizes: dict[str, Any] = {**SIZES, **DROPOUT, "max_position_embeddings": LONGEST + 2}
    for seed in _dense.SEEDS[: given.seeds]:
        with tempfile.TemporaryDirectory() as scratch:
            work = (given.work or Path(scratch)) / f"{seed}_{course.rate:g}"
            begun = time.perf_counter()
            untrained = ANCE.random(tokenizer, seed, SIZES["hidden_size"], **sizes)
            untrained.tower.to(_proof.device())
            questions = [*plain, *spans(learned, seed)]
            warm = untrained.warm(questions, work / "warm", fitting=replace(first, seed=seed), in_batch=True)
            put("warm_start", _dense.by_vectors(warm, queries, items), begun, seed=seed)
            for system, train in ways(warm, plain, found, items, seed).items():
                begun = time.perf_counter()
                made = train(work / system, replace(course, seed=seed))
                put(system, _dense.by_vectors(made, queries, items), begun, seed=seed)
    means = {name: _proof.over_seeds(own) if "seed" in own[0].settings else own[0] for name, own in arms.items()}
    others = [name for name in means if name not in ("ance", "bm25")]
    result = Result(
        name=_proof.named("ance", given),
        kind="proof",
        title="ANCE's refreshed negatives against static ones: titles and abstracts of SciFact",
        command=_dense.command("ance", given),
        seed=0,
        data=(collection.info.model_copy(update={"sizes": {"abstracts": len(items), "held": len(held)}}),),
        environment=environment((), "float32"),
        arms=(*means.values(), *(arm for own in arms.values() for arm in own if "seed" in arm.settings)),
        comparisons=tuple(one for name in others for one in against([means["ance"]], means[name], _dense.METRICS)),
        notes=(
            f"A RoBERTa of {SIZES['num_hidden_layers']} layer and {SIZES['hidden_size']} dimensions over "
            f"{VOCABULARY:,} byte-level pieces, from random weights: it shows the mechanism, not what ANCE can do.",
            f"Warm start: {first.epochs:g} epochs over {len(learned):,} titles and as many spans with in-batch "
            f"negatives, rate {first.rate:g}; then each arm {course.epochs:g} epochs of pairs, rate {course.rate:g} in "
            f"all of them, {_dense.tried(given, f'{TUNED} other titles')}. Batches of {course.batch}, no dropout.",
            f"Abstracts cut to {CHARACTERS} characters in every arm.",
            "`seconds`: the fit and the search of the held titles. The warm start's are not in the other arms'.",
            "Exploratory: this set-up was chosen after three others had shown a collapse or a floor on these data.",
        ),
    )
    _proof.write(result, given.out)


if __name__ == "__main__":
    main()
