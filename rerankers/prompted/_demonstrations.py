"""Demonstrations of relevance for a prompt, and who chooses them: a retriever, then a reranker that sees the choice.

Both are small and stand on the vectors of a frozen text encoder (arXiv:2406.16332, sections 3.2 and 3.3, has a text
encoder and a cross-encoder trained as a whole).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...errors import BadInput, MissingWeights, Unsupported
from ...retrievers.base import Encoder, Item, Source
from .._pointwise import as_data

if TYPE_CHECKING:
    from pathlib import Path

    from ...retrievers.lm import LM

PASSAGE_CHARACTERS, QUERY_CHARACTERS = 800, 300
"""Longer ones are cut here: four passages and queries then fit into 8,192 tokens in every script."""
ANSWERS = ("Yes", "No")
QUESTION = "Passage: {passage}\nQuery: {query}\nIs the passage relevant to the query? Answer Yes or No.\nAnswer:"
HIDDEN = 64
"""Hidden units of the reranker."""
WEIGHTS, KNOWN = "demorank.safetensors", "demonstrations.json"


@dataclass(frozen=True)
class Demonstration:
    """A query, a passage, and whether that is relevant to it."""

    query: str
    passage: str
    relevant: bool

    @property
    def answer(self) -> str:
        return ANSWERS[not self.relevant]


@dataclass(frozen=True)
class Chooser:
    """What was learned. Vectors are rows of unit length, (n, dim).

    Attributes:
        retriever: (dim, dim), through which inputs and demonstrations go before their cosine is taken.
        into, bias, out: (HIDDEN, 4 dim), (HIDDEN,) and (HIDDEN,) of the reranker.
    """

    retriever: np.ndarray
    into: np.ndarray
    bias: np.ndarray
    out: np.ndarray

    @classmethod
    def random(cls, dim: int, seed: int) -> Chooser:
        """One that has learned nothing: its retriever is the encoder's own cosine, its reranker arbitrary."""
        chance = np.random.default_rng(seed)
        into = chance.normal(0, (4 * dim) ** -0.5, (HIDDEN, 4 * dim))
        out = chance.normal(0, HIDDEN**-0.5, HIDDEN)
        return cls(*(one.astype(np.float32) for one in (np.eye(dim), into, np.zeros(HIDDEN), out)))

    def cosines(self, asked: np.ndarray, pool: np.ndarray) -> np.ndarray:
        """Float32 (inputs, demonstrations)."""
        made: np.ndarray = unit(asked @ self.retriever.T) @ unit(pool @ self.retriever.T).T
        return made

    def nearest(self, asked: np.ndarray, pool: np.ndarray, allowed: np.ndarray, count: int) -> list[int]:
        """The `count` demonstrations nearest to one input (dim,), best first, of those that are `allowed`."""
        [cosines] = self.cosines(asked[None], pool)
        order = np.argsort(-cosines, kind="stable")
        return [int(n) for n in order[allowed[order]][:count]]

    def picked(self, asked: np.ndarray, pool: np.ndarray, candidates: Sequence[int], shots: int) -> list[int]:
        """Up to `shots` of `candidates`, each the best beside those picked before (equal ones: the nearer)."""
        chosen: list[int] = []
        while len(chosen) < min(shots, len(candidates)):
            left = [n for n in candidates if n not in chosen]
            hidden = gelu(features(asked, pool[chosen], pool[left]) @ self.into.T + self.bias)
            chosen.append(left[int(np.argmax(hidden @ self.out))])
        return chosen

    def save(self, folder: Path, space: str, known: Sequence[Demonstration]) -> None:
        """With the demonstrations that it chooses from, and the space of the vectors it was trained on."""
        from safetensors.numpy import save_file

        save_file({name: getattr(self, name) for name in self.__dataclass_fields__}, folder / WEIGHTS)
        content = {"space": space, "demonstrations": [asdict(one) for one in known]}
        (folder / KNOWN).write_text(json.dumps(content, ensure_ascii=False), "utf-8")

    @classmethod
    def open(cls, folder: Path, space: str) -> tuple[Chooser, list[Demonstration]]:
        """What `save` wrote.

        Raises:
            MissingWeights: it was fitted on vectors of another space.
        """
        from safetensors.numpy import load_file

        content = json.loads((folder / KNOWN).read_text("utf-8"))
        if content["space"] != space:
            raise MissingWeights(f"`{folder.name}` was fitted in the space `{content['space']}`.", "Fit it again.")
        return cls(**load_file(folder / WEIGHTS)), [Demonstration(**one) for one in content["demonstrations"]]


def features(asked: np.ndarray, chosen: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """What the reranker sees of each candidate: float32 (candidates, 4 dim).

    Its vector, and the products of it with the input (dim,) and with the mean of those `chosen` (shots, dim), which
    stands fourth by itself.
    """
    so_far = chosen.mean(axis=0) if len(chosen) else np.zeros_like(asked)
    parts = [candidates, candidates * asked, candidates * so_far, np.broadcast_to(so_far, candidates.shape)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def gelu(values: np.ndarray) -> np.ndarray:
    """Its tanh form, which the training uses as well."""
    made: np.ndarray = 0.5 * values * (1 + np.tanh((2 / np.pi) ** 0.5 * (values + 0.044715 * values**3)))
    return made


def unit(rows: np.ndarray) -> np.ndarray:
    """Each row at unit length."""
    made: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    return made


def vectors(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    """Float32 (texts, dim), unit length; equal texts have equal vectors.

    Raises:
        Unsupported: the encoder has more than one vector for a text.
    """
    if encoder.space.kind != "dense":
        raise Unsupported(f"The space `{encoder.space.name}` is `{encoder.space.kind}`.", "Use a dense encoder.")
    once = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    found = encoder.encode([Item("", text, Source("")) for text in once], "document")
    return unit(np.asarray(found, np.float32).reshape(len(once), -1))[[once[text] for text in texts]]


def as_input(query: str, passage: str) -> str:
    """An input, or the beginning of a demonstration, as the encoder reads it."""
    return f"{as_data(query, QUERY_CHARACTERS)}\n{as_data(passage, PASSAGE_CHARACTERS)}"


def as_known(one: Demonstration) -> str:
    """A demonstration as the encoder reads it."""
    return f"{as_input(one.query, one.passage)}\n{one.answer}"


def other_queries(known: Sequence[Demonstration], query: str) -> np.ndarray:
    """Bool (demonstrations,): False where the query is the same but for case, spacing and punctuation.

    A demonstration with the same query would tell the answer instead of showing how to find it.
    """
    asked = _bare(query)
    return np.array([_bare(one.query) != asked for one in known], bool)


def prompt(shots: Sequence[Demonstration], query: str, passage: str) -> str:
    """The demonstrations with their answers, then the question about this passage."""
    solved = [f"{_question(one.query, one.passage)} {one.answer}" for one in shots]
    return "\n\n".join([*solved, _question(query, passage)])


def chances(lm: LM, prompts: Sequence[str]) -> np.ndarray:
    """Float64 (prompts,): P(Yes) among Yes and No, to six digits; equal prompts are asked once, and are equal."""
    once = list(dict.fromkeys(prompts))
    logits = lm.next_token_logits([[one] for one in once], ANSWERS).astype(np.float64)
    found = np.round((1 + np.tanh((logits[:, 0] - logits[:, 1]) / 2)) / 2, 6)
    known = dict(zip(once, found, strict=True))
    return np.array([known[one] for one in prompts])


def chooser_of(
    chooser: Chooser, encoder: Encoder, known: Sequence[Demonstration], shots: int, candidates: int
) -> Callable[[str, Sequence[str]], list[list[Demonstration]]]:
    """A function from a query and passages to the demonstrations for each of them.

    Raises:
        BadInput: there are no demonstrations.
    """
    if not known:
        raise BadInput("There are `0` demonstrations.", "Give at least one.")
    pool = vectors(encoder, [as_known(one) for one in known])

    def choose(query: str, passages: Sequence[str]) -> list[list[Demonstration]]:
        allowed = other_queries(known, query)
        found = []
        for asked in vectors(encoder, [as_input(query, passage) for passage in passages]):
            near = chooser.nearest(asked, pool, allowed, candidates)
            found.append([known[n] for n in chooser.picked(asked, pool, near, shots)])
        return found

    return choose


def _question(query: str, passage: str) -> str:
    return QUESTION.format(query=as_data(query, QUERY_CHARACTERS), passage=as_data(passage, PASSAGE_CHARACTERS))


def _bare(query: str) -> str:
    return " ".join("".join(one if one.isalnum() else " " for one in query.casefold()).split())
