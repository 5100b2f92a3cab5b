"""CREAM-style retrieval in a long document: rounds of groups against vectors alone, and against one round.

    make prove ID=cream DATA=qa_nq_multidoc

Documents of forty chunks: a question's twenty passages, which share words with it, and twenty of other questions, none
of which has the answer; or, with DATA=qa_qmsum, a meeting cut into forty parts, of which its annotators marked those
that a query is about. Vectors of all-MiniLM-L6-v2 sort the chunks. The listwise ranker is the package's small
cross-encoder, which sorts a group by its scores. Sorting by scores never contradicts itself, so rounds can find no more
than one sort of all forty does, and shuffles only matter where scores are equal. A language model is not like that: so
every arm stands here with noise, too, drawn anew for each call, half or wholly as large as a document's scores differ.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _proof
import _retrieval
import numpy as np

from triptych.progress import reporting
from triptych.rerankers.finetuned.triptych_pruner import Pruner
from triptych.retrievers.base import Item, Query, Source
from triptych.retrievers.searchable import searchable_text
from triptych.retrievers.universal.cream import GROUP, KEPT, TOP, Listed, Played, split, tournament
from triptych.tools.evaluation.compare import against
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, DataInfo, Result

CHUNKS, LIMIT, DRAWN = 40, 150, 11
"""Of a document; questions; the seed that draws them."""
NOISES = (0.0, 0.5, 1.0)
"""Of a call's scores, in standard deviations of the document's scores."""
METRICS = ("recall@3", "first_right")
FILES = {"multidoc20.jsonl": "passages", "meetings.jsonl": "meeting"}


@dataclass(frozen=True)
class Document:
    """A question about forty chunks.

    Attributes:
        right: numbers of the chunks that answer it.
    """

    key: str
    query: str
    texts: tuple[str, ...]
    right: frozenset[int]


@dataclass(frozen=True)
class Judged:
    """What the models say of a document's chunks, in the order of its vectors, best first.

    Attributes:
        scores: the cross-encoder's logits (chunks,).
        right: places of the right chunks in that order.
    """

    key: str
    scores: np.ndarray
    right: frozenset[int]


# --- documents -------------------------------------------------------------------------------------------------------


def passages(rows: Sequence[Mapping[str, Any]]) -> Iterator[Document]:
    """A question's own passages, then those of the questions after it, until there are forty."""
    for number, row in enumerate(rows):
        answers = [answer.casefold() for answer in row["answers"]]
        chunks = {one["id"]: one for one in row["contexts"]}
        for other in (*rows[number + 1 :], *rows[:number]):
            for one in other["contexts"]:
                if len(chunks) < CHUNKS and not any(answer in one["text"].casefold() for answer in answers):
                    chunks.setdefault(one["id"], one)
        gold = [one["id"] for one in row["contexts"] if one["gold"]]
        texts = tuple(_text(one["title"], one["text"]) for one in chunks.values())
        yield Document(row["id"], row["question"], texts, frozenset(list(chunks).index(one) for one in gold))


def meetings(rows: Sequence[Mapping[str, Any]]) -> Iterator[Document]:
    """A meeting's turns in forty parts of like length; a part is right if most of a marked turn's letters are in it."""
    for row in rows:
        ends = np.cumsum([len(turn) for turn in row["turns"]])
        parts = np.minimum((ends - 1) * CHUNKS // ends[-1], CHUNKS - 1)  # a turn belongs where it ends
        if len(set(parts.tolist())) < CHUNKS:
            continue  # a turn that is longer than a part
        texts = tuple(" ".join(row["turns"][n] for n in np.flatnonzero(parts == part)) for part in range(CHUNKS))
        for number, asked in enumerate(row["specific"]):
            marked = {int(parts[n]) for start, end in asked["relevant_turns"] for n in range(start, end + 1)}
            if 0 < len(marked) <= CHUNKS // 4:
                yield Document(f"{row['id']}.{number}", asked["query"], texts, frozenset(marked))


def documents(folder: Path, limit: int) -> tuple[list[Document], Path]:
    """So many, drawn with `DRAWN`, and the file that they stand in."""
    name = next(name for name in FILES if (folder / name).is_file())
    rows = [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]
    found = list((passages if FILES[name] == "passages" else meetings)(rows))
    return random.Random(DRAWN).sample(found, min(limit, len(found))), folder / name


def _text(title: str, text: str) -> str:
    return searchable_text(Item("", text, Source("", 0, len(text)), meta={"title": title}))


# --- models ----------------------------------------------------------------------------------------------------------


def judged(found: Sequence[Document]) -> Iterator[Judged]:
    """Each document under both models; every text is encoded once."""
    encoder, cross = _proof.stages().encoder(), Pruner.shipped(threads=1)
    texts = sorted({text for one in found for text in one.texts})
    items = [Item(str(n), text, Source("x", 0, len(text)), meta={"title": text[:40]}) for n, text in enumerate(texts)]
    vectors = dict(zip(texts, encoder.encode(items, "document"), strict=True))
    for one in found:
        [query] = encoder.encode([Query(one.query)], "query")
        coarse = np.argsort([-float(query @ vectors[text]) for text in one.texts], kind="stable").tolist()
        chances = np.array([read.score for read in cross.read(one.query, [one.texts[n] for n in coarse])])
        clipped = np.clip(chances, 1e-6, 1 - 1e-6)
        right = frozenset(coarse.index(n) for n in one.right)
        yield Judged(one.key, np.log(clipped / (1 - clipped)), right)


def sorter(one: Judged, noise: float, seed: int) -> Callable[[Sequence[int]], Listed]:
    """The cross-encoder as the ranker of a group; its noise is drawn anew for every call."""
    drawn = np.random.default_rng([seed, *one.key.encode()])
    spread = noise * float(one.scores.std())

    def sort(group: Sequence[int]) -> Listed:
        scores = one.scores[list(group)] + spread * drawn.standard_normal(len(group))
        return Listed(tuple(np.argsort(-scores, kind="stable").tolist()))

    return sort


# --- arms ------------------------------------------------------------------------------------------------------------

Way = Callable[[Judged, float, int], tuple[Sequence[int], int]]
"""A document, noise and seed to the first chunks and the calls that they took."""


def vectors_alone(one: Judged, noise: float, seed: int) -> tuple[Sequence[int], int]:
    return range(TOP), 0


def one_round(one: Judged, noise: float, seed: int) -> tuple[Sequence[int], int]:
    """The first of each group, in the order of their vectors, then the second ones."""
    sort = sorter(one, noise, seed)
    groups = split(range(len(one.scores)), GROUP)
    ordered = [[group[place] for place in sort(group).order] for group in groups]
    places = {chunk: place for group in ordered for place, chunk in enumerate(group)}
    return sorted(places, key=lambda chunk: (places[chunk], chunk))[:TOP], len(groups)


def one_sort(one: Judged, noise: float, seed: int) -> tuple[Sequence[int], int]:
    """All chunks in one call, which no listwise ranker of eight can."""
    return sorter(one, noise, seed)(range(len(one.scores))).order[:TOP], 1


def cream(one: Judged, noise: float, seed: int) -> tuple[Sequence[int], int]:
    played = _played(one, noise, seed, TOP)
    return played.order[:TOP], sum(played.rounds)


def as_printed(one: Judged, noise: float, seed: int) -> tuple[Sequence[int], int]:
    """The loop to its end, which leaves two."""
    played = _played(one, noise, seed, 1)
    return played.order[:2], sum(played.rounds)


def _played(one: Judged, noise: float, seed: int, top: int) -> Played:
    chance = np.random.default_rng([seed, 1, *one.key.encode()])
    return tournament(len(one.scores), sorter(one, noise, seed), chance, GROUP, KEPT, top)


WAYS: Mapping[str, Way] = {
    "vectors": vectors_alone,
    "one_round": one_round,
    "cream": cream,
    "loop_as_printed": as_printed,
    "one_sort_of_all": one_sort,
}


def arm(system: str, found: Sequence[Judged], noise: float, seed: int) -> Arm:
    """One way over all documents; recall@3 is of at most three right chunks."""
    recall: dict[str, float | None] = {}
    first: dict[str, float | None] = {}
    calls = []
    for one in found:
        best, spent = WAYS[system](one, noise, seed)
        recall[one.key] = len(one.right & set(best)) / min(TOP, len(one.right))
        first[one.key] = float(best[0] in one.right)
        calls.append(spent)
    per_query = {METRICS[0]: recall, METRICS[1]: first}
    means = {
        name: float(np.mean([value for value in by.values() if value is not None])) for name, by in per_query.items()
    }
    settings: dict[str, str | int | float | bool] = {} if system == "vectors" else {"noise": noise, "seed": seed}
    return Arm(system=system, settings=settings, metrics={**means, "calls": float(np.mean(calls))}, per_query=per_query)


def main() -> None:
    given = _retrieval.asked(__doc__, LIMIT)
    drawn, path = documents(given.data, given.limit)
    with reporting(lambda *_: None):
        found = list(judged(drawn))
    arms = [arm("vectors", found, 0.0, 0)]
    for noise in NOISES:
        for system in WAYS:
            if system != "vectors":
                arms.append(_proof.over_seeds([arm(system, found, noise, seed) for seed in range(given.seeds)]))
    comparisons = []
    for noise in NOISES:
        [ours] = [one for one in arms if one.system == "cream" and one.settings["noise"] == noise]
        others = [one for one in arms if one.system != "cream" and one.settings.get("noise", noise) == noise]
        for other in others:
            comparisons += against([ours], other, METRICS)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    name = "cream" if FILES[path.name] == "passages" else "cream_meetings"
    result = Result(
        name=name,
        kind="proof",
        title=f"CREAM-style rounds of groups over {CHUNKS} chunks ({given.data.name})",
        command=_retrieval.command("cream", given),
        seed=DRAWN,
        data=(DataInfo(name=given.data.name, sha256=sha256, sizes={"questions": len(found), "chunks": CHUNKS}),),
        environment=environment(),
        arms=tuple(arms),
        comparisons=tuple(comparisons),
        notes=(
            "The ranker of a group is a cross-encoder that sorts by its scores, with noise drawn for each call: no "
            "language model was asked. `one_sort_of_all` sees forty chunks in one call.",
            f"Means of {given.seeds} seeds, which draw the shuffles and the noise.",
        ),
    )
    _proof.write(result, given.out)


if __name__ == "__main__":
    main()
