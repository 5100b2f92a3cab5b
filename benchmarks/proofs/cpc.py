"""Context-aware sentence vectors against isolated ones, the same model for both.

    make prove ID=cpc
    make prove ID=cpc TRAIN=qa_nq_train/train.jsonl QUESTIONS=qa_nq_multidoc/multidoc20.jsonl

CPC's claim is that a sentence must be read in its context to be found. No adapter of its authors can be had without a
model hub, so the claim is tested with the embedded encoder (all-MiniLM-L6-v2) and the pooling of
`triptych.refiners.hard.cpc`: documents of our own in which everything after the first sentence speaks of `it` and
`she`, four on the same theme beside each other, so that without context the right sentence is told from its three
likenesses by luck. A question names the document's subject; its evidence is one sentence.

With TRAIN an adapter of our own is trained instead, on SmolLM2-135M-Instruct and questions of Natural Questions whose
answer stands in one sentence of their passage, and the sentence that answers is looked for in held-out passages: with
the adapter and without, in context and alone. With `--keep FOLDER` what was learned stays in `FOLDER/cpc`, for
`weights/cpc` of a home folder.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import _proof
import numpy as np
from _learned import Namespace, asked_for, command

from triptych.manifests.weights import folder
from triptych.refiners.hard._cpc_training import Example, Training, example
from triptych.refiners.hard.cpc import CPC, cosines, pooled
from triptych.refiners.relevance import bm25
from triptych.retrievers.chunking import sentences
from triptych.retrievers.loading import dtype
from triptych.tools.evaluation import datasets
from triptych.tools.evaluation.compare import against, paired
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, DataInfo, Result
from triptych.tools.evaluation.resume import sha256
from triptych.tools.evaluation.survival import read, survives

THEMES = [
    (
        "{0} founded a bakery in {1}. It burned down in {2} and was rebuilt in brick. Its best known loaf is made of "
        "{3}. She left it to {4} in the end.",
        ["When did {0}'s bakery burn down?", "What is the best loaf of {0} made of?", "Who got {0}'s bakery?"],
        ["Marta Olsen;Bergen;1911;rye;a nephew", "Ines Duarte;Porto;1924;maize;two apprentices",
         "Ruth Keller;Basel;1937;spelt;the parish", "Nora Walsh;Cork;1948;oats;a rival"],
    ),
    (
        "The {0} bridge crosses the river {1}. Work on it began in {2}. It is painted {3} every ten years. Its middle "
        "pier leans, because {4}.",
        ["When did work on the {0} bridge begin?", "What colour is the {0} bridge?", "Why does the {0} bridge lean?"],
        ["Harrow;Leam;1852;dark green;the ground is clay", "Tolle;Aare;1871;grey;a barge struck it",
         "Vendel;Fyris;1889;red;the ice moved it", "Quarry;Tamar;1903;black;it was built in haste"],
    ),
    (
        "The {0} was a sailing ship from {1}. She carried {3} most of her life. A storm broke her mast in {2}. Her "
        "last captain was {4}.",
        ["What did the ship {0} carry?", "When did the {0} lose her mast?", "Who was captain of the {0} at the end?"],
        ["Albatross;Bremen;1866;guano;a Dane", "Fortuna;Genoa;1879;marble;the owner's son",
         "Northern Light;Leith;1884;coal;a former whaler", "Mirabel;Nantes;1892;sugar;Yves Coat"],
    ),
    (
        "{0} leads the youth orchestra of {1}. It meets in {3}. It played abroad for the first time in {2}. Its "
        "instruments were paid for by {4}.",
        ["Where does {0}'s orchestra meet?", "When did {0}'s orchestra first play abroad?",
         "Who paid for the instruments of {0}'s orchestra?"],
        ["Pavel Hron;Brno;1994;a disused tram depot;a brewery", "Lucia Serra;Cagliari;2001;the old market;the port",
         "Amy Teller;Leeds;2006;a school gymnasium;a lottery", "Tomas Rask;Turku;2012;the castle cellar;a shipyard"],
    ),
    (
        "The observatory on {0} was built by {1}. Its mirror was ground in {2}. It found {3} in its first year. Today "
        "it is kept open by {4}.",
        ["When was the mirror of the observatory on {0} ground?", "What did the observatory on {0} find first?",
         "Who keeps the observatory on {0} open?"],
        ["Mount Ardel;a count;1908;a comet;pensioners", "Pico Bravo;the navy;1926;two asteroids;a university",
         "Kestrel Hill;an engineer;1933;a faint nova;school classes", "Saddle Rock;monks;1951;nothing new;a hotel"],
    ),
    (
        "{0} is a village with a festival of {1}. It lasts {2} days. Strangers are given {3} on arrival. It was "
        "forbidden once, because {4}.",
        ["How many days does the festival of {0} last?", "What are strangers given at the festival of {0}?",
         "Why was the festival of {0} forbidden?"],
        ["Orsk Dale;kites;two;a ribbon;a barn burned", "Belmonte;bells;three;dark bread;the bishop was mocked",
         "Little Marsh;scarecrows;five;a wooden spoon;of a fever", "Sankt Veit;lanterns;nine;a candle;of the war"],
    ),
    (
        "{0} Rovers are a football club from {1}. They wear {3}. They were relegated in {2} by a single goal. Their "
        "ground belongs to {4}.",
        ["What do {0} Rovers wear?", "When were {0} Rovers relegated?", "Who owns the ground of {0} Rovers?"],
        ["Ashby;the Midlands;1958;brown and gold;a cricket club", "Denholm;the Borders;1969;all white;the council",
         "Porthmoor;Cornwall;1983;violet;a dairy", "Skell;Yorkshire;1997;orange stripes;their supporters"],
    ),
    (
        "{0} wrote a library for {1}. She gave it away in {2}. It is now written in {3}. Most of its bugs were found "
        "by {4}.",
        ["When did {0} give her library away?", "What language is {0}'s library written in?",
         "Who found the bugs in {0}'s library?"],
        ["Hana Mori;parsing dates;2004;Rust;a bank", "Eva Lindt;drawing maps;2009;Zig;students",
         "Joan Pryce;reading scans;2014;C++;an archive", "Sara Okoye;planning routes;2018;Go;bus drivers"],
    ),
]  # fmt: skip
TOP = (1, 2, 4)

LM = "smollm2_135m_instruct"
SHUFFLE = 7
STEPS = 24
TRAINING = Training(batch=6, rate=5e-4, negatives=8, longest=256, every=8)
"""Short, for a processor; the authors take 132 steps of 32 with two negatives."""
CHARACTERS = 600
"""Passages above it are not learned from."""
TESTED = ("recall@1", "MRR")


# --- the pooling -----------------------------------------------------------------------------------------------------


def documents() -> list[list[list[str]]]:
    """Themes of documents of sentences."""
    return [
        [[f"{one.rstrip('.')}." for one in text.format(*names.split(";")).split(". ")] for names in subjects]
        for text, _, subjects in THEMES
    ]


def bounds(offsets: np.ndarray, sentences: list[str]) -> list[tuple[int, int]]:
    """Token ranges of sentences that stand in a text with one blank between two."""
    found, at = [], 0
    for sentence in sentences:
        start, at = at, at + len(sentence) + 1
        found.append((int(np.searchsorted(offsets[:, 0], start)), int(np.searchsorted(offsets[:, 0], at - 1))))
    return found


def ranks(encoder: object, read: str) -> dict[str, int]:
    """By question: the rank of its evidence among the sentences of its theme, from 1.

    Args:
        read: what is read at once: a `"sentence"`, a `"document"`, or all of a `"theme"`.
    """
    found = {}
    for number, (theme, docs) in enumerate(zip(THEMES, documents(), strict=True)):
        groups = {
            "sentence": [[s] for doc in docs for s in doc],
            "document": docs,
            "theme": [[s for doc in docs for s in doc]],
        }[read]
        rows = []
        for group in groups:
            [told] = encoder.token_vectors([" ".join(group)])  # type: ignore[attr-defined]
            rows.append(pooled(told.vectors.astype(np.float32), bounds(told.offsets, group)))
        vectors = np.concatenate(rows)
        for subject, names in enumerate(theme[2]):
            for kind, question in enumerate(theme[1]):
                text = question.format(*names.split(";"))
                [told] = encoder.token_vectors([text], "query")  # type: ignore[attr-defined]
                scores = cosines(vectors, told.vectors.astype(np.float32).sum(0))
                right = 4 * subject + kind + 1
                found[f"{number}.{subject}.{kind} {text}"] = 1 + int((scores > scores[right]).sum())
    return found


def arm(encoder: object, read: str) -> Arm:
    place = ranks(encoder, read)
    values = {f"recall@{k}": {key: float(rank <= k) for key, rank in place.items()} for k in TOP}
    means: dict[str, float | int | None] = {name: float(np.mean(list(own.values()))) for name, own in values.items()}
    means["MRR"] = float(np.mean([1 / rank for rank in place.values()]))
    return Arm(system="all_minilm_l6_v2", settings={"read": read}, metrics=means, per_query=values)


def pooling(given: Namespace) -> Result:
    """The pooling alone, by the embedded encoder."""
    encoder = _proof.stages().encoder()
    arms = [arm(encoder, read) for read in ("sentence", "document", "theme")]
    questions = list(arms[0].per_query["recall@1"])
    texts = [sentence for theme in documents() for doc in theme for sentence in doc]
    return Result(
        name="cpc",
        kind="proof",
        title="Sentence vectors pooled in context against sentences read alone, pronouns in every evidence sentence",
        command=command("cpc", given),
        seed=given.seed,
        data=(_proof.own("pronouns", [*texts, *questions], questions=len(questions), sentences=len(texts)),),
        environment=environment(),
        arms=tuple(arms),
        comparisons=tuple(against(arms, arms[0], ["recall@1", "recall@4"], given.seed)),
        notes=(
            "Each question competes with the 16 sentences of its theme; by luck recall@1 is 1/16, and 1/4 for one who "
            "knows what kind of sentence answers.",
            "Documents and questions were written for this. `read` is what the encoder sees at once; a `theme` is four "
            "documents, as CPC reads all of its evidence.",
            "The encoder is the embedded one: the pooling is CPC's, its weights are not.",
        ),
    )


# --- an adapter of our own -------------------------------------------------------------------------------------------


def answering(text: str, answers: Sequence[str]) -> list[int]:
    """The sentences of `text` in which an answer stands."""
    return [n for n, (start, end) in enumerate(sentences(text)) if survives(answers, [read(text[start:end])])]


def learnable(path: Path, measured: set[str], wanted: int) -> list[Example]:
    """Questions of which one sentence of their passage answers and none of whose passages is measured on."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    random.Random(SHUFFLE).shuffle(rows)
    found = []
    for row in rows:
        text = row["passage"]["text"]
        right = answering(text, row["answers"]) if text not in measured and len(text) <= CHARACTERS else []
        if len(right) == 1 and len(sentences(text)) > 2:
            found.append(example(row["question"], text, sentences(text)[right[0]]))
    return found[:wanted]


def held_out(rows: Sequence[datasets.Question]) -> dict[str, Example]:
    """By question: the sentences of its passage, three or more, of which one answers."""
    found = {}
    for row in rows:
        gold = [n for n, context in enumerate(row.contexts) if survives(row.answers, [read(context.text)])]
        if len(gold) != 1:
            continue
        text = row.contexts[gold[0]].text
        right = answering(text, row.answers)
        if len(right) == 1 and len(sentences(text)) > 2:
            found[row.id] = example(row.text, text, sentences(text)[right[0]])
    return found


def found_by(
    system: str, score: Callable[[str, Sequence[str]], np.ndarray], asked: dict[str, Example], **of: str
) -> Arm:
    """Where the answering sentence stands among all by `score`."""
    place, seconds = {}, []
    for key, one in asked.items():
        begun = time.perf_counter()
        scores = np.asarray(score(one.question, one.sentences))
        seconds.append(time.perf_counter() - begun)
        place[key] = 1 + int((np.delete(scores, one.right) >= scores[one.right]).sum())
    values: dict[str, dict[str, float | None]] = {
        **{f"recall@{k}": {key: float(rank <= k) for key, rank in place.items()} for k in TOP},
        "MRR": {key: 1 / rank for key, rank in place.items()},
    }
    means: dict[str, float | int | None] = {name: float(np.mean(list(own.values()))) for name, own in values.items()}
    means["ms_p50"] = float(np.percentile(seconds, 50)) * 1000
    return Arm(system=system, settings=dict(of), metrics=means, per_query=values)


def alone(cpc: CPC) -> Callable[[str, Sequence[str]], np.ndarray]:
    """Scores of sentences that are read without their context."""

    def scores(question: str, sentences: Sequence[str]) -> np.ndarray:
        asked = cpc.states(cpc._ids(question)).sum(0)
        return cosines(np.stack([cpc.states(cpc._ids(one)).sum(0) for one in sentences]), asked)

    return scores


def trained(given: Namespace) -> Result:
    """An adapter that was trained here, on held-out questions."""
    questions = datasets.questions(given.questions, limit=given.limit, seed=given.seed)
    everything = datasets.questions(given.questions).rows
    asked = held_out(questions.rows)
    data = learnable(given.train, {one.text for row in everything for one in row.contexts}, STEPS * TRAINING.batch)
    settings = _proof.stages().settings
    base = CPC.from_folder(folder(LM, settings.weights), None, settings.precision)
    runs: list[Arm] = []
    singles: list[Arm] = []
    for seed in range(given.seeds):
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch if given.keep is None else given.keep / "work" / "cpc") / f"seed_{seed}"
            is_new, begun = not out.exists(), time.process_time()
            made = base.fit(data, out, training=replace(TRAINING, seed=seed))
            cost = {"train_s": time.process_time() - begun} if is_new else {}
            if given.keep is not None and not seed:
                keep(out, given.keep / "cpc")
        one = found_by("cpc_smollm2", made.scores, asked, adapter="own", read="context")
        runs.append(one.model_copy(update={"metrics": {**one.metrics, **cost}}))
        singles.append(found_by("cpc_smollm2", alone(made), asked, adapter="own", read="sentence"))
    arms = [
        found_by("bm25", lambda question, texts: np.array(bm25(question, texts)), asked),
        found_by("cpc_smollm2", base.scores, asked, adapter="none", read="context"),
        found_by("cpc_smollm2", alone(base), asked, adapter="none", read="sentence"),
    ]
    own = _proof.over_seeds(runs)
    arms += [own, _proof.over_seeds(singles)]
    return Result(
        name="cpc_trained",
        kind="proof",
        title="A CPC adapter of our own on SmolLM2-135M: the sentence that answers a held-out question",
        command=command("cpc", given),
        seed=given.seed,
        data=(
            DataInfo(name=given.train.stem, sha256=sha256(given.train), sizes={"questions": len(data)}),
            questions.info.model_copy(update={"sizes": {"questions": len(asked)}}),
        ),
        environment=environment(("peft",), str(dtype(settings.precision)).removeprefix("torch.")),
        arms=tuple(arms),
        comparisons=tuple(paired(own, arm, name, given.seed) for arm in arms if arm is not own for name in TESTED),
        notes=(
            f"SmolLM2-135M-Instruct, which is no model of the authors, under LoRA of rank {TRAINING.rank}: "
            f"{len(data)} questions once in steps of {TRAINING.batch}, learning rate {TRAINING.rate:g}, {given.seeds} "
            "seed(s); without masked next-token prediction, and on questions that were not written to need context.",
            "The sentence that answers is looked for among those of its passage, "
            f"{np.mean([len(one.sentences) for one in asked.values()]):.1f} on average. Questions count whose answer "
            "stands in one sentence of one passage with two others or more; a tie is a miss.",
            "No passage of the measured file is learned from. `train_s` is processor time, told where all of it was "
            "spent in this run.",
        ),
    )


def keep(fitted: Path, out: Path) -> None:
    """Base and adapter of a fit, without its checkpoints."""
    for part in ("base", "adapter"):
        shutil.copytree(fitted / part, out / part, dirs_exist_ok=True)


def main() -> None:
    given = asked_for(__doc__, 1)
    _proof.write(trained(given) if given.train else pooling(given), given.out)


if __name__ == "__main__":
    main()
