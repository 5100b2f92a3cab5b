"""LLMLingua-2: the package's decisions, and text from offsets against text from tokens.

    make prove ID=llmlingua2
    make prove ID=llmlingua2 TRAIN=qa_nq_train/train.jsonl QUESTIONS=qa_nq_multidoc/multidoc20.jsonl LIMIT=100

No checkpoint of the authors can be had without a model hub, so nothing is said here of how well they choose words. What
can be shown without them, on random classifiers: where a word of ours is a word of the `llmlingua` package, both keep
or drop it alike; and what comes back stands in its source, which is not so for text that is joined from word pieces.

With TRAIN a classifier of our own is trained instead: all-MiniLM-L6-v2 learns from passages of Natural Questions which
words `llmlingua` keeps of them (its exact mode in the paper's form, SmolLM2-135M-Instruct, half of the tokens; the
paper's teacher is GPT-4), and answers of held-out questions are looked for in what is left of the passages that hold
them: after the classifier, after its teacher, after words by TF-IDF, and after words by chance. With `--keep FOLDER`
what was learned stays in `FOLDER/llmlingua2`, for `weights/llmlingua2` of a home folder.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import _proof
import numpy as np
from _learned import Namespace, asked_for, command
from llmlingua import PromptCompressor
from sklearn.metrics import roc_auc_score
from transformers import PreTrainedTokenizerFast

from triptych.manifests.weights import folder
from triptych.refiners.base import Budget, Refined, Refiner
from triptych.refiners.hard._llmlingua2_training import PAPER, Example, distilled, untrained
from triptych.refiners.hard.llmlingua import LLMLingua
from triptych.refiners.hard.llmlingua2 import FILES, FRINGE, Judged, LLMLingua2
from triptych.refiners.tokens import count
from triptych.refiners.units import words
from triptych.retrievers.text.all_minilm_l6_v2 import WEIGHTS
from triptych.tools.evaluation import datasets
from triptych.tools.evaluation.compare import against, paired
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, DataInfo, Result
from triptych.tools.evaluation.resume import sha256
from triptych.tools.evaluation.survival import read, survives

RATES = (0.33, 0.5)
SEEDS = 3
PIECES = 500
"""Passages of at most this many letters and marks, so that both read them in one chunk."""

KEEP = 0.5
SHUFFLE = 7
LEARNED, HELD, SHORTEST = 180, 20, 20
"""Passages to learn from and those that tell the best epoch; with fewer words than the last none is used."""
TRAINING = replace(PAPER, epochs=4, rate=1e-4)
"""Short, for a processor; the paper's is ten epochs with 1e-5 over a thousand times as many words."""
TIE = 1e-6
TESTED = ("answers_kept", "answers_by_rule", "as_teacher")


# --- the package beside it -------------------------------------------------------------------------------------------


class Stock(PromptCompressor):  # type: ignore[misc]
    """The package's LLMLingua-2 path over a model that is already there; its constructor would download."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
        self.model = model
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
        self.model_name = "bert-base-multilingual-cased"
        self.device = "cpu"
        self.max_batch_size, self.max_seq_len, self.max_force_token = 50, 512, 100
        self.special_tokens = set(names.values())
        self.added_tokens: list[str] = []
        self.oai_tokenizer = SimpleNamespace(encode=lambda text: range(count(text, "cl100k_base")))

    def told(self, text: str, rate: float) -> tuple[str, list[tuple[str, bool]]]:
        """What it returns, and its words with whether it keeps them."""
        found = self.compress_prompt_llmlingua2([text], rate=rate, return_word_label=True)
        pairs = [pair.rpartition(" ") for pair in found["fn_labeled_original_prompt"].split("\t\t|\t\t")]
        return found["compressed_prompt"], [(word, label == "1") for word, _, label in pairs]


def passages() -> list[tuple[str, str]]:
    """Our own passages in ASCII (the random models' vocabulary), from the collection of the checkout."""
    lines = (_proof.STATION / "corpus.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    texts = [(row["id"], row["text"][:PIECES].strip()) for row in rows]
    return [(key, text) for key, text in texts if text.isascii() and len(text.split()) > 5]


def verbatim(told: str, source: str) -> float:
    """The share of the words of `told` that are words of the source, each as often as there."""
    words, there = Counter(told.split()), Counter(source.split())
    return (words & there).total() / max(1, words.total())


def agreement(words: Sequence[tuple[str, bool]], others: Sequence[tuple[str, bool]]) -> tuple[int, int]:
    """How many decisions about the same words are alike, of how many; texts whose words differ are left out."""
    if [word for word, _ in words] != [word for word, _ in others]:
        return 0, 0
    return sum(a == b for a, b in zip(words, others, strict=True)), len(words)


def plain(text: str) -> str:
    """`text` without what is not a letter, a digit or a blank: its words are the same for both."""
    return " ".join("".join(one if one.isalnum() else " " for one in text).split())


def decisions(given: Namespace) -> Result:
    """Ours beside the package's, on random classifiers."""
    texts = passages()
    kept: dict[str, dict[str, list[float]]] = {"llmlingua2": {}, "llmlingua": {}}
    same = total = 0
    for seed in range(given.seed, given.seed + SEEDS):
        ours = LLMLingua2.tiny(seed)
        stock = Stock(ours.model, ours.tokenizer)
        for key, text in texts:
            for rate in RATES:
                decided = ours.decide(text, rate)
                chosen = (text[a:b] for (a, b), holds in zip(decided.spans, decided.kept, strict=True) if holds)
                kept["llmlingua2"].setdefault(key, []).append(verbatim(" ".join(chosen), text))
                kept["llmlingua"].setdefault(key, []).append(verbatim(stock.told(text, rate)[0], text))
                easy = plain(text)
                decided = ours.decide(easy, rate)
                words = [(easy[a:b], bool(h)) for (a, b), h in zip(decided.spans, decided.kept, strict=True)]
                found = agreement(words, stock.told(easy, rate)[1])
                same, total = same + found[0], total + found[1]
    arms = [
        Arm(
            system=name,
            metrics={
                "words_verbatim": float(np.mean([np.mean(own) for own in values.values()])),
                "same_decisions": same / total,
                "decisions": total,
            },
            per_query={"words_verbatim": {key: float(np.mean(own)) for key, own in values.items()}},
        )
        for name, values in kept.items()
    ]
    return Result(
        name="llmlingua2",
        kind="proof",
        title="LLMLingua-2's decisions beside the package's, and whether what comes back stands in its source",
        command=command("llmlingua2", given),
        seed=given.seed,
        data=(_proof.own("station", [text for _, text in texts], passages=len(texts)),),
        environment=environment(("llmlingua",)),
        arms=tuple(arms),
        comparisons=tuple(against(arms, arms[1], ["words_verbatim"], given.seed)),
        notes=(
            f"{SEEDS} random classifiers over single characters, both sides the same; rates {RATES}.",
            "`same_decisions` is over texts without punctuation, where words are the same on both sides.",
            "Nothing here says how well the authors' checkpoints choose: they cannot be had without a model hub.",
        ),
    )


# --- a classifier of our own -----------------------------------------------------------------------------------------


class ByRule(LLMLingua2):
    """LLMLingua-2 with a rule in place of the classifier: all else is the same, what is protected and the budget too.

    Of equal words the earlier one counts more, so that no threshold drops them all.

    Args:
        score: what each word of a text is worth, 0 to 1.
    """

    def __init__(self, score: Callable[[str, Sequence[str]], Sequence[float]]) -> None:
        self._score = score
        self.force, self.digits, self.contexts = frozenset(), False, False

    def judge(self, texts: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]]) -> list[Judged]:
        return [self._judged_one(text, own) for text, own in zip(texts, spans, strict=True)]

    def _judged_one(self, text: str, spans: Sequence[tuple[int, int]]) -> Judged:
        own = list(words(text, 0, len(text)))
        values = np.array(self._score(text, [text[start:end] for start, end in own])) - TIE * np.arange(len(own))
        starts, ends = np.array(own).T
        inside = [values[(starts < end) & (ends > start)] for start, end in spans]
        means = np.array([one.mean() if len(one) else 0.0 for one in inside], np.float32)
        return Judged(means, np.zeros(len(spans), np.int64))


class Watched(Refiner):
    """A refiner, and by text what it kept last."""

    def __init__(self, refiner: Refiner) -> None:
        self._refiner = refiner
        self.kept: dict[str, Example] = {}

    def refine(self, query: Any, hits: Sequence[Any], budget: Budget) -> Refined:
        refined = self._refiner.refine(query, hits, budget)
        for hit, passage in zip(hits, refined.passages, strict=True):
            spans = tuple(piece.span for piece in passage.pieces if piece.span is not None)
            self.kept[hit.item.text] = Example(hit.item.text, spans)
        return refined


def tf_idf(texts: Sequence[str]) -> Callable[[str, Sequence[str]], Sequence[float]]:
    """Words by how often they stand in their text and in how few of `texts`; divided by the largest value there is."""
    seen = Counter(key for text in texts for key in set(map(_key, text.split())))

    def score(text: str, found: Sequence[str]) -> Sequence[float]:
        keys = list(map(_key, found))
        times = Counter(keys)
        most = max(times.values()) * (1 + math.log(1 + len(texts)))
        return [times[key] * (1 + math.log((1 + len(texts)) / (1 + seen[key]))) / most for key in keys]

    return score


def by_chance(seed: int) -> Callable[[str, Sequence[str]], Sequence[float]]:
    """Words by a draw that is fixed for each text."""
    return lambda text, found: np.random.default_rng([seed, zlib.crc32(text.encode())]).random(len(found))


def _key(word: str) -> str:
    return FRINGE.sub("", word).casefold() or word


def labels(path: Path, teacher: LLMLingua, texts: Sequence[str], tokenizer: Any) -> Iterator[Example]:
    """What the teacher keeps of `texts`, stored in `path` one by one and read from there the next time."""
    known = {}
    if path.is_file():
        for line in path.read_text("utf-8").splitlines():
            row = json.loads(line)
            known[row["text"]] = Example(row["text"], tuple((a, b) for a, b in row["kept"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for text in texts:
            if text in known:
                yield known[text]
                continue
            for one in distilled(teacher, [text], tokenizer, KEEP):
                file.write(json.dumps({"text": one.text, "kept": one.kept}, ensure_ascii=False) + "\n")
                file.flush()
                yield one


def learnable(path: Path, measured: set[str]) -> list[str]:
    """Passages of the file that are not measured on, shuffled."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    texts = dict.fromkeys(row["passage"]["text"] for row in rows)
    found = [text for text in texts if text not in measured and len(text.split()) >= SHORTEST]
    random.Random(SHUFFLE).shuffle(found)
    return found


def golden(rows: Sequence[datasets.Question]) -> list[datasets.Question]:
    """The questions with the one passage that holds their answer."""
    found = []
    for row in rows:
        gold = [context for context in row.contexts if survives(row.answers, [read(context.text)])]
        if len(gold) == 1:
            found.append(replace(row, contexts=(gold[0],)))
    return found


def measured(
    system: str,
    refiner: LLMLingua2,
    asked: Sequence[datasets.Question],
    kept: Sequence[Example],
    seed: int | None = None,
) -> Arm:
    """What `refiner` leaves of the answers, also by the paper's rule alone, which protects nothing, and how well it
    tells the words that the teacher keeps (area under the curve)."""
    arm = _proof.survival(system, refiner, KEEP, asked)
    rule: dict[str, float | None] = {}
    order: dict[str, float | None] = {}
    shares = []
    for question, example in zip(asked, kept, strict=True):
        text = example.text
        decided = refiner.decide(text, KEEP)
        left = [text[a:b] for (a, b), holds in zip(decided.spans, decided.kept, strict=True) if holds]
        shares.append(sum(map(count, left)) / count(text))
        rule[question.id] = float(survives(question.answers, [read(" ".join(left))]))
        stays = [any(a < end and start < b for start, end in example.kept) for a, b in decided.spans]
        order[question.id] = float(roc_auc_score(stays, decided.probabilities)) if len(set(stays)) > 1 else None
    own = {"answers_by_rule": rule, "as_teacher": order}
    means = {name: float(np.mean([v for v in values.values() if v is not None])) for name, values in own.items()}
    means["rate_by_rule"] = float(np.mean(shares))
    arm = arm.model_copy(update={"metrics": arm.metrics | means, "per_query": arm.per_query | own})
    settings = arm.settings if seed is None else {**arm.settings, "seed": seed}
    return arm.model_copy(update={"settings": settings})


def trained(given: Namespace) -> Result:
    """A classifier that was trained here, its teacher, and two rules."""
    with tempfile.TemporaryDirectory() as scratch:
        return _trained(given, (given.keep or Path(scratch)) / "work" / "llmlingua2")


def _trained(given: Namespace, work: Path) -> Result:
    questions = datasets.questions(given.questions, limit=given.limit, seed=given.seed)
    everything = datasets.questions(given.questions).rows
    asked = golden(questions.rows)
    texts = learnable(given.train, {context.text for row in everything for context in row.contexts})
    stages = _proof.stages()
    lm = stages.local_lm()
    teacher = LLMLingua(lm.model, lm.tokenizer, mode="exact", reach="all")
    start = folder(WEIGHTS, stages.settings.weights)
    tokenizer = untrained(start).tokenizer
    known = list(labels(work / "labels.jsonl", teacher, texts[: LEARNED + HELD], tokenizer))
    fits = []
    for seed in range(given.seeds):
        out, begun = work / f"seed_{seed}", time.process_time()
        is_new, how = not out.exists(), replace(TRAINING, seed=seed)
        made = untrained(start, seed).fit(known[:LEARNED], out, held=known[LEARNED:], course=how)
        fits.append((made, {"train_s": time.process_time() - begun} if is_new else {}))
        if given.keep is not None and not seed:
            keep(work / "seed_0", given.keep / "llmlingua2")
    watched = Watched(teacher)
    by_teacher = _proof.survival("llmlingua", watched, KEEP, asked)
    kept = [watched.kept[question.contexts[0].text] for question in asked]
    runs = []
    for seed, (made, cost) in enumerate(fits):
        arm = measured("llmlingua2_minilm", made, asked, kept, seed)
        runs.append(arm.model_copy(update={"metrics": {**arm.metrics, **cost}}))
    own = _proof.over_seeds(runs)
    arms = [
        by_teacher,
        measured("tf_idf", ByRule(tf_idf(texts)), asked, kept),
        measured("random", ByRule(by_chance(given.seed)), asked, kept),
        *(runs if len(runs) > 1 else []),
        own,
    ]
    return Result(
        name="llmlingua2_trained",
        kind="proof",
        title="An LLMLingua-2 classifier of our own, its teacher LLMLingua, words by TF-IDF and by chance: half of the "
        "tokens",
        command=command("llmlingua2", given),
        seed=given.seed,
        data=(
            DataInfo(name=given.train.stem, sha256=sha256(given.train), sizes={"passages": len(known)}),
            questions.info.model_copy(update={"sizes": {"questions": len(asked), "contexts": len(asked)}}),
        ),
        environment=environment(("llmlingua",)),
        arms=tuple(arms),
        comparisons=tuple(
            paired(own, arm, name, given.seed) for arm in arms[:3] for name in TESTED if arm.per_query.get(name)
        ),
        notes=(
            f"all-MiniLM-L6-v2 learned in {TRAINING.epochs:g} epochs (learning rate {TRAINING.rate:g}, "
            f"{given.seeds} seed(s)) from {min(LEARNED, len(known))} passages which words `llmlingua` keeps of them, "
            "the paper's form of it, by SmolLM2-135M-Instruct: not from GPT-4, as the authors' checkpoints.",
            "Each question has the one passage that holds its answer. `answers_kept`: in the result of the refiner, "
            "exactly inside half of the tokens, which keeps numbers, negations and names of every sentence first, "
            "in all arms alike, so that the teacher's labels say so, too. `answers_by_rule`: among the words that the "
            "paper's threshold keeps, nothing protected; their tokens, counted word by word, are `rate_by_rule`. "
            "`as_teacher`: area under the curve of the word scores against what the teacher keeps.",
            "No passage of the measured file is learned from. `ms_p50`: one passage; `train_s`: processor time "
            "without that of the labels, told where all of it was spent in this run.",
        ),
    )


def keep(fitted: Path, out: Path) -> None:
    """What `from_folder` reads of a fit, without its checkpoints."""
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(fitted / name, out / name)


def main() -> None:
    given = asked_for(__doc__, 3)
    _proof.write(trained(given) if given.train else decisions(given), given.out)


if __name__ == "__main__":
    main()
