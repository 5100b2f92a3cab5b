"""What `triptych_pruner` is trained on: annotated passages, and what is drawn of them for each step.

A sentence that holds an answer stays, the more the better it fits the question; of its words the answer's stay most,
then those of the question, then other content. The teacher scores sentences by the cosine of MiniLM token vectors; or a
language model is the teacher, by one of two readings of the same thing, how much question and sentence say of each
other: log P(question | sentence), or LongLLMLingua's contrast log P(sentence | question) - log P(sentence).
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import regex
from tqdm import tqdm

from triptych.refiners.relevance import _STOP, TokenRelevance, bm25
from triptych.rerankers.finetuned._pruner_training import Example
from triptych.rerankers.prompted.query_likelihood import PASSAGE_CHARACTERS, PROMPT
from triptych.retrievers.chunking import sentences
from triptych.retrievers.text.all_minilm_l6_v2 import AllMiniLM
from triptych.settings import Settings
from triptych.tools.evaluation.survival import read, survives

if TYPE_CHECKING:
    from triptych.retrievers.lm import LM

DEV = 200
"""Questions that are held out, the first ones of the file (which is shuffled)."""
TEMPERATURE = 0.1
"""Of the teacher's cosines, that of the sentence and that of the passage added."""
ANSWER, ASKED, CONTENT, FUNCTION, TITLE = 1.0, 0.85, 0.7, 0.4, 0.6
"""How much words stay in a sentence that stays whole."""
OTHERS, LIKELY = 3, 10
"""Further passages for one step: two of the likeliest, the rest anything."""
PARTS = ("hard", "teacher", "augmentation")
"""What an ablation can leave out."""
TEACHERS = ("cosine", "likelihood", "contrast")
"""Who can teach: MiniLM, or a language model in two ways."""
TAUGHT = 5
"""Passages of a question that a language model reads: the one that answers it, and the likeliest others."""
ASKING = "Question: {query}?\nPassage: {title}."
"""What a sentence follows where the question is known."""

_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")


@dataclass(frozen=True)
class Known:
    """A passage and what is known about it for one question; arrays as in `Example`, for the text without title."""

    title: str
    text: str
    spans: list[tuple[int, int]]
    levels: np.ndarray
    targets: np.ndarray
    teacher: np.ndarray


@dataclass(frozen=True)
class Asked:
    """A question, the passage that answers it, and others from the likeliest on."""

    id: str
    query: str
    answers: list[str]
    gold: Known
    gold_id: str
    others: list[Known]
    other_ids: list[str]


# --- annotation ------------------------------------------------------------------------------------------------------


def annotate(source: Path, work: Path) -> None:
    """`work/annotated.jsonl`: for each passage its sentences, how much they should stay, and the teacher's scores."""
    work.mkdir(parents=True, exist_ok=True)
    teacher = TokenRelevance(AllMiniLM.from_folder(Settings.load().weights / "all_minilm_l6_v2", "float32"))
    with source.open(encoding="utf-8") as lines, (work / "annotated.jsonl").open("w", encoding="utf-8") as file:
        for line in lines:
            row = json.loads(line)
            for context in row["contexts"]:
                context |= _annotated(row["question"], row["answers"], context, teacher)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _annotated(query: str, answers: list[str], context: dict[str, Any], teacher: TokenRelevance) -> dict[str, Any]:
    text, shift = context["text"], len(context["title"]) + 1
    spans = [(start, start + len(text[start:end].rstrip())) for start, end in sentences(text)]
    whole = f"{context['title']}\n{text}"
    *cosines, passage = teacher.sentence_scores(
        query, whole, [*((start + shift, end + shift) for start, end in spans), (0, len(whole))]
    )
    held = [survives(answers, [read(text[start:end])]) for start, end in spans]
    fits = np.array(cosines) + 0.1 * bm25(query, [text[start:end] for start, end in spans])
    best = max((fit for fit, holds in zip(fits, held, strict=True) if holds), default=1.0)
    targets = [
        float(np.clip(fit / max(best, 1e-3), 0.2, 1.0)) if holds else 0.0 for fit, holds in zip(fits, held, strict=True)
    ]
    return {
        "spans": spans,
        "targets": [round(one, 3) for one in targets],
        "teacher": [round((one + passage) / TEMPERATURE, 3) for one in cosines],
        "gold": survives(answers, [read(text)]),
    }


def load(work: Path) -> list[Asked]:
    """The annotated questions, in the order of the file."""
    with (work / "annotated.jsonl").open(encoding="utf-8") as lines:
        return [_asked(json.loads(line)) for line in lines]


def taught(asked: Sequence[Asked], work: Path, teacher: str) -> list[Asked]:
    """Questions as `split` gives them, with the scores of one of `TEACHERS`."""
    if teacher == "cosine":
        return list(asked)
    with (work / "taught.jsonl").open(encoding="utf-8") as lines:
        scores = {row["id"]: row[teacher] for row in map(json.loads, lines)}
    return [_taught(one, scores.get(one.id, [])) for one in asked]


def teach(asked: Sequence[Asked], work: Path, lm: LM, others: int = TAUGHT - 1) -> None:
    """`work/taught.jsonl`: what a language model says of the sentences; questions that are there are not asked again.

    Args:
        asked: questions as `split` gives them.
        others: passages read beside the one that answers the question.
    """
    path = work / "taught.jsonl"
    done = {json.loads(line)["id"] for line in path.open(encoding="utf-8")} if path.exists() else set()
    with path.open("a", encoding="utf-8") as file:
        for one in tqdm([one for one in asked if one.id not in done], "questions"):
            passages = [one.gold, *one.others[:others]]
            told = [_said_by(lm, one.query, passage) for passage in passages]
            row = {"id": one.id} | {key: [passage[key] for passage in told] for key in TEACHERS[1:]}
            file.write(json.dumps(row) + "\n")
            file.flush()


def _said_by(lm: LM, query: str, passage: Known) -> dict[str, list[float]]:
    """What question and each sentence of a passage say of each other, natural logarithms."""
    texts = [passage.text[start:end] for start, end in passage.spans]
    read = [[PROMPT.format(passage=f"{passage.title}. {text}"[:PASSAGE_CHARACTERS])] for text in texts]
    likely = lm.logprobs(read, [f" {query}?"] * len(texts))
    said = [f" {text}" for text in texts]
    asked = lm.logprobs([[ASKING.format(query=query, title=passage.title)]] * len(texts), said)
    plain = lm.logprobs([[f"{passage.title}."]] * len(texts), said)
    return {
        "likelihood": [round(one.sum, 3) for one in likely],
        "contrast": [round(one.sum - other.sum, 3) for one, other in zip(asked, plain, strict=True)],
    }


def _taught(asked: Asked, scores: Sequence[Sequence[float]]) -> Asked:
    """A question with these scores, its own passage's first; what has none is untaught. The best is set to 0: only
    differences count, and their exponentials have to be numbers."""
    best = max((score for own in scores for score in own), default=0.0)
    passages = [
        replace(one, teacher=np.array(own, np.float32) - best if own else np.full(len(one.spans), np.nan, np.float32))
        for one, own in zip_longest([asked.gold, *asked.others], scores)
    ]
    return replace(asked, gold=passages[0], others=passages[1:])


def _asked(row: dict[str, Any]) -> Asked:
    known = [_known(row["question"], row["answers"], context) for context in row["contexts"]]
    [place] = [n for n, context in enumerate(row["contexts"]) if context["gold"]]
    ids = [context["id"] for context in row["contexts"]]
    return Asked(row["id"], row["question"], row["answers"], known.pop(place), ids.pop(place), known, ids)


def _known(query: str, answers: list[str], context: dict[str, Any]) -> Known:
    text, spans = context["text"], [tuple(span) for span in context["spans"]]
    targets = np.array(context["targets"], np.float32)
    if context["gold"] and not targets.any():
        targets = np.full(len(spans), np.nan, np.float32)  # the answer stands across two sentences: nobody knows which
    levels = _levels(text, query, answers, spans, np.nan_to_num(targets))
    return Known(context["title"], text, spans, levels, targets, np.array(context["teacher"], np.float32))


def _levels(
    text: str, query: str, answers: Sequence[str], spans: Sequence[tuple[int, int]], targets: np.ndarray
) -> np.ndarray:
    """How much each character's word should stay, float32 (characters,)."""
    levels = np.zeros(len(text), np.float32)
    asked = {word.lower()[:5] for word in _WORD.findall(query)} - {stop[:5] for stop in _STOP}
    for (start, end), target in zip(spans, targets, strict=True):
        if not target:
            continue
        levels[start:end] = FUNCTION * target
        for match in _WORD.finditer(text, start, end):
            word = match.group().lower()
            level = FUNCTION if word in _STOP else ASKED if word[:5] in asked else CONTENT
            levels[slice(*match.span())] = level * target
        for answer in answers:
            words = _WORD.findall(answer)
            if words:
                for match in regex.finditer(r"\W+".join(map(regex.escape, words)), text, regex.I, start, end):
                    levels[slice(*match.span())] = ANSWER * target
    return levels


# --- what is drawn for one step --------------------------------------------------------------------------------------


class Drawn:
    """Every epoch's questions as examples, drawn anew for each with the seed.

    Args:
        without: parts of `PARTS` that are left out.
    """

    def __init__(self, asked: Sequence[Asked], epochs: int, seed: int, without: Sequence[str] = ()) -> None:
        self._asked = asked
        self._epochs = epochs
        self._seed = seed
        self._without = frozenset(without)
        self._anything = [one.gold for one in asked]

    def __len__(self) -> int:
        return len(self._asked) * self._epochs

    def __getitem__(self, place: int) -> list[Example]:
        chance = random.Random(f"{self._seed}/{place}")
        asked = self._asked[place % len(self._asked)]
        likely = asked.others[:LIKELY] if "hard" not in self._without else []
        hard = chance.sample(likely, min(2, len(likely)))
        drawn = chance.sample(self._anything, OTHERS - len(hard))
        other = [_strange(one) for one in drawn if one.text != asked.gold.text]
        query, gold = asked.query, asked.gold
        plain = "augmentation" in self._without
        if not plain:
            query, gold = _requeried(query, gold, chance)
        is_titled = plain or chance.random() < 0.7
        made = [gold, *hard, *other]
        texts = [example(query, _shuffled(one, chance, plain), is_titled, n == 0) for n, one in enumerate(made)]
        if not plain and chance.random() < 0.3:
            texts = [_merged(texts[:2], chance), *texts[2:]]
        if "teacher" in self._without or query != asked.query:
            texts = [_untaught(one) for one in texts]
        return texts


def _strange(one: Known) -> Known:
    """A passage that answers another question: nothing in it stays, and nobody scored it."""
    n = len(one.spans)
    nothing = np.full(n, np.nan, np.float32)
    return Known(one.title, one.text, one.spans, np.zeros_like(one.levels), np.zeros(n, np.float32), nothing)


def _requeried(query: str, gold: Known, chance: random.Random) -> tuple[str, Known]:
    """Another way to ask: a question mark, key words alone, words missing; or a sentence's words, which it answers."""
    draw = chance.random()
    words = query.split()
    content = [word for word in words if word.lower() not in _STOP]
    if draw < 0.35:
        return f"{query}?", gold
    if draw < 0.45 and len(content) > 2:
        return " ".join(content), gold
    if draw < 0.55 and len(words) > 5:
        gone = chance.randrange(len(words))
        return " ".join(word for n, word in enumerate(words) if n != gone), gold
    long = [n for n, (start, end) in enumerate(gold.spans) if len(gold.text[start:end].split()) > 8]
    if draw < 0.72 and long:
        return _said(gold, chance.choice(long), chance)
    return query, gold


def _said(gold: Known, number: int, chance: random.Random) -> tuple[str, Known]:
    """Some words of sentence `number` as the query, and the passage as it answers that."""
    start, end = gold.spans[number]
    share = chance.uniform(0.35, 0.7)
    words = [word for word in _WORD.findall(gold.text[start:end]) if chance.random() < share][:30]
    targets = np.zeros(len(gold.spans), np.float32)
    targets[number] = 1.0
    query = " ".join(words)
    levels = _levels(gold.text, query, [], gold.spans, targets)
    return query, Known(gold.title, gold.text, gold.spans, levels, targets, gold.teacher)


def _shuffled(known: Known, chance: random.Random, plain: bool) -> Known:
    """The passage with its sentences in another order, now and then."""
    if plain or chance.random() > 0.15 or len(known.spans) < 2:
        return known
    order = chance.sample(range(len(known.spans)), len(known.spans))
    text, spans, levels = "", [], []
    for number in order:
        start, end = known.spans[number]
        text += " " if text else ""
        levels += [np.zeros(len(text) - sum(map(len, levels)), np.float32), known.levels[start:end]]
        spans.append((len(text), len(text) + end - start))
        text += known.text[start:end]
    return Known(known.title, text, spans, np.concatenate(levels), known.targets[order], known.teacher[order])


def example(query: str, known: Known, is_titled: bool, positive: bool) -> Example:
    head = f"{known.title}\n" if is_titled and known.title else ""
    most = float(np.nan_to_num(known.targets).max(initial=0.0))
    text = head + known.text
    numbers = np.full(len(text), -1, np.int64)
    for n, (start, end) in enumerate(known.spans):
        numbers[start + len(head) : end + len(head)] = n
    levels = np.concatenate([np.full(len(head), TITLE * most, np.float32), known.levels])
    return Example(query, text, levels, numbers, known.targets, known.teacher, positive)


def _merged(examples: Sequence[Example], chance: random.Random) -> Example:
    """Passages as one longer text, in any order, which answers what one of them does."""
    one, two = chance.sample(list(examples), 2)
    numbers = np.where(two.sentences < 0, -1, two.sentences + len(one.targets))
    return Example(
        one.query,
        f"{one.text}\n{two.text}",
        np.concatenate([one.levels, np.zeros(1, np.float32), two.levels]),
        np.concatenate([one.sentences, np.full(1, -1), numbers]),
        np.concatenate([one.targets, two.targets]),
        np.concatenate([one.teacher, two.teacher]),
        one.positive or two.positive,
    )


def _untaught(one: Example) -> Example:
    nothing = np.full(len(one.teacher), np.nan, np.float32)
    return Example(one.query, one.text, one.levels, one.sentences, one.targets, nothing, one.positive)


def split(asked: Sequence[Asked]) -> tuple[list[Asked], list[Asked]]:
    """Questions to train on and those held out; no passage of the latter is in the former."""
    held = list(asked[:DEV])
    passages, titles = {one.gold_id for one in held}, {one.gold.title for one in held}
    rest = [one for one in asked[DEV:] if one.gold_id not in passages and one.gold.title not in titles]
    return [_apart(one, passages) for one in rest], held


def _apart(one: Asked, passages: set[str]) -> Asked:
    kept = [n for n, key in enumerate(one.other_ids) if key not in passages]
    return Asked(
        one.id,
        one.query,
        one.answers,
        one.gold,
        one.gold_id,
        [one.others[n] for n in kept],
        [one.other_ids[n] for n in kept],
    )
