"""One system that learns, trained once, small, by its own `fit`; a folder that holds the training is left as it is.

Job: `system`, `train` (JSON lines with `question`, `answers`, and a `passage` or `contexts` with `evidence`), `limit`,
`characters` (where passages are cut), `how` (settings of the fit), `seed`, `into`. The model lies in `into/model`,
what it cost in `into/trained.json`, which is written last.
"""

import json
import random
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from _worker import Out, read

from triptych.manifests.weights import folder
from triptych.retrievers.base import Item
from triptych.retrievers.loading import computed_in, set_threads
from triptych.retrievers.searchable import searchable_text
from triptych.retrievers.text import ance as ance_
from triptych.retrievers.text import colbert as colbert_
from triptych.retrievers.text import dpr as dpr_
from triptych.retrievers.text._colbert_training import Fitting as LateFitting
from triptych.retrievers.text._colbert_training import Lesson
from triptych.retrievers.text._poly_training import Fitting as PolyFitting
from triptych.retrievers.text._term_training import Training
from triptych.retrievers.text._training import Fitting, Question
from triptych.retrievers.text.all_minilm_l6_v2 import WEIGHTS
from triptych.retrievers.text.deepct import DeepCT, Rewriting
from triptych.retrievers.text.poly_encoder import Example, PolyEncoder, Shape
from triptych.settings import Settings

sys.path.append(str(Path(__file__).resolve().parent.parent / "proofs"))  # what the proofs train with, too

DONE, MODEL = "trained.json", "model"
DEPTH = 20
"""Of so many passages that BM25 finds for a question, those that do not answer it are its hard negatives."""


class Lessons(NamedTuple):
    """What all learn from. `start` is the folder of the encoder that they begin as."""

    questions: list[Any]
    items: list[Item]
    start: Path
    seed: int
    bf16: bool


def main() -> None:
    job, out = read(), Out()
    into = Path(job["into"])
    if not (into / DONE).is_file():
        shutil.rmtree(into, ignore_errors=True)  # a training that was stopped: its time would not be known
        into.mkdir(parents=True)
        told = trained(job, into)
        scratch = into / f"{DONE}.part"
        scratch.write_text(json.dumps(told), "utf-8")
        scratch.replace(into / DONE)
    for key, value in json.loads((into / DONE).read_text("utf-8")).items():
        out.put(key, value)


def trained(job: dict[str, Any], into: Path) -> dict[str, Any]:
    """Do it, and tell what it cost: `train_s` by the clock, `train_cpu_s` of the processor, negatives included."""
    settings = Settings.load()
    threads = set_threads(settings.threads)
    start, cpu = time.perf_counter(), time.process_time()
    known = lessons(job, folder(WEIGHTS, settings.weights), "bfloat16" in computed_in(settings.precision))
    told = SYSTEMS[job["system"]](known, into / MODEL, job["how"])
    cost = {"train_s": time.perf_counter() - start, "train_cpu_s": time.process_time() - cpu}
    for path in [*into.rglob("checkpoints"), *into.rglob("checkpoint-*")]:
        shutil.rmtree(path, ignore_errors=True)
    return {**told, **cost, "questions": len(known.questions), "passages": len(known.items), "threads": threads}


def lessons(job: dict[str, Any], start: Path, bf16: bool) -> Lessons:
    """The first `limit` questions of a drawn order, and the passages that answer them."""
    import dpr as proof

    rows = [json.loads(line) for line in Path(job["train"]).read_text("utf-8").splitlines()]
    pairs = [(row, passage) for row in rows if (passage := passage_of(row)) is not None]
    random.Random(job["seed"]).shuffle(pairs)
    pairs = pairs[: job["limit"]]
    items = {passage["id"]: item(passage, job["characters"]) for _, passage in pairs}
    asked = [proof.Asked(str(row["id"]), row["question"], items[own["id"]], row["answers"]) for row, own in pairs]
    return Lessons(asked, list(items.values()), start, job["seed"], bf16)


def passage_of(row: dict[str, Any]) -> dict[str, Any] | None:
    """The passage that answers: the row's own, or the first of its contexts with evidence."""
    own: dict[str, Any] | None = row.get("passage")
    return own or next((one for one in row.get("contexts", ()) if one.get("evidence")), None)


def item(passage: dict[str, Any], characters: int) -> Item:
    import _dense

    return _dense.item(passage["id"], passage.get("title", ""), passage["text"][:characters])


def with_negatives(known: Lessons) -> list[Question]:
    """Questions with what BM25 finds among all passages and what does not hold the answer."""
    import _dense
    import dpr as proof

    found = _dense.by_words(_dense.lexical(known.items), {one.id: one.text for one in known.questions}, DEPTH)
    return proof.with_negatives(known.questions, found)


# --- systems ---------------------------------------------------------------------------------------------------------


def deepct(known: Lessons, out: Path, how: dict[str, Any]) -> dict[str, Any]:
    """Passages that are not learned from choose how weights become counts, k1 and b."""
    from _counted import asked_terms, tuned

    held = {one.id for one in known.items[: how["held"]]}
    pairs = [(one.text, searchable_text(one.gold)) for one in known.questions if one.gold.id not in held]
    training = Training(how["epochs"], how["batch"], how["rate"], every=10_000, seed=known.seed, bf16=known.bf16)
    weigher = DeepCT.fit(pairs, out, known.start, training)
    weights = weigher.weights([searchable_text(one) for one in known.items])
    ways = {(root, keep): Rewriting(root=root, keep_all=keep) for root, keep in product((False, True), repeat=2)}
    places = {one.id: n for n, one in enumerate(known.items)}
    asked = [one for one in known.questions if one.gold.id in held]
    best = tuned(
        {key: [way.counts(one) for one in weights] for key, way in ways.items()},
        [asked_terms(one.text) for one in asked],
        [[places[one.gold.id]] for one in asked],
    )
    root, keep = best.made
    rewriting = Rewriting(root=root, keep_all=keep, k1=best.k1, b=best.b)
    return {"rewriting": asdict(rewriting), "steps": -(-len({text for _, text in pairs}) // how["batch"])}


def dpr(known: Lessons, out: Path, how: dict[str, Any]) -> dict[str, Any]:
    fitting = Fitting(how["epochs"], how["batch"], how["rate"], hard=how["hard"], seed=known.seed, bf16=known.bf16)
    dpr_.DPR.from_bert(known.start).fit(with_negatives(known), out, fitting=fitting)
    return {}


def ance(known: Lessons, out: Path, how: dict[str, Any]) -> dict[str, Any]:
    """A small RoBERTa from nothing: no weights of one are here. In the warm start spans of passages ask for them."""
    import ance as proof

    sizes = {
        "hidden_size": how["hidden"], "num_hidden_layers": how["layers"], "num_attention_heads": 4,
        "intermediate_size": 2 * how["hidden"], "max_position_embeddings": how["pieces"] + 2, **proof.DROPOUT,
    }  # fmt: skip
    tokenizer = proof.pieces([*map(searchable_text, known.items), *(one.text for one in known.questions)])
    plain = [Question(one.text, (one.gold,)) for one in known.questions]
    first = Fitting(how["warm"], how["batch"], how["warm_rate"], hard=0, seed=known.seed)
    untrained = ance_.ANCE.random(tokenizer, known.seed, how["hidden"], **sizes)
    spans = proof.spans(known.items, known.seed)
    warm = untrained.warm([*plain, *spans], out.with_name("warm"), fitting=first, in_batch=True)
    warm.fit(plain, out, items=known.items, fitting=Fitting(how["epochs"], how["batch"], how["rate"], seed=known.seed))
    return {}


def poly_encoder(known: Lessons, out: Path, how: dict[str, Any]) -> dict[str, Any]:
    """The passage encoder stays as it is."""
    fitting = PolyFitting(
        how["epochs"], how["batch"], how["rate"], code_rate=how["code_rate"], layers=how["layers"], candidates=False,
        every=10_000, seed=known.seed, bf16=known.bf16,
    )  # fmt: skip
    data = [Example(one.text, searchable_text(one.gold)) for one in known.questions]
    told = PolyEncoder.fit(data, out, known.start, Shape(m=how["m"]), how=fitting)
    return {"steps": told.steps, "loss": told.loss}


def colbert(known: Lessons, out: Path, how: dict[str, Any]) -> dict[str, Any]:
    """By pairs and by all passages of the batch."""
    fitting = LateFitting(
        in_batch=True, rate=how["rate"], linear_rate=how["linear_rate"], layers=how["layers"], batch=how["batch"],
        epochs=how["epochs"], held=0.0, every=10_000, document_pieces=how["pieces"], seed=known.seed, bf16=known.bf16,
    )  # fmt: skip
    data = [
        Lesson(one.text, (searchable_text(one.right[0]), searchable_text(one.others[0])))
        for one in with_negatives(known)
        if one.others
    ]
    colbert_.ColBERT.from_bert(known.start, known.seed).fit(data, out, fitting)
    return {}


SYSTEMS: dict[str, Callable[[Lessons, Path, dict[str, Any]], dict[str, Any]]] = {
    one.__name__: one for one in (deepct, dpr, ance, poly_encoder, colbert)
}

if __name__ == "__main__":
    main()
