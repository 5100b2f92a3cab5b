"""Co-Prompt. Discrete Prompt Optimization via Constrained Generation, Cho et al. 2023, arXiv:2305.13729

A passage is as good as the query is likely after it and an instruction (mean log-probability per token). The
instruction is searched for and not learned: a language model proposes next tokens, the mean reranking score over known
pairs of query and passage decides which prompts go on, and the best of all lengths is taken. No gradient, no change of
weights, and what comes out can be read.

What differs from the paper. One model, the profile's, both proposes and scores. As in the authors' code, and unlike the
paper's product, the proposals are limited by the model's probability and chosen by the score alone. Tokens are proposed
where the instruction will stand, behind one of the passages, for after `Please` alone a small model proposes nothing
that is about a text. The prompts that are compared are scored passage by passage, so that a model that keeps a shared
beginning reads each passage once.
`INSTRUCTION` says where the shipped one comes from. The authors publish no weights and need none.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ...errors import BadInput, MissingWeights, Unsupported
from ...progress import step
from ...retrievers.lm import LM, require
from ...retrievers.searchable import searchable_text
from .. import _pointwise
from .._failing import fitting
from .._pointwise import Read, as_data
from ..base import Cost, Limits, Ranking, Reranker

if TYPE_CHECKING:
    from pathlib import Path

    from ...manifests.registry import Card
    from ...retrievers.base import Hit, Item, Query
    from ...retrievers.parts import Parts

START = "Please"
"""Where the search begins, as in the authors' code."""
INSTRUCTION = "Please add this answer:"
"""Found by `fit` with SmolLM2-135M-Instruct on 24 questions of Natural Questions (`benchmarks/search_prompt.py`).

100 other questions have a mean log-probability of -3.12 after it, -3.26 after `Please write a question based on this
passage.`, and -3.42 after none.
"""
PASSAGE_CHARACTERS = 1600
QUERY_CHARACTERS = 1000
"""Longer ones are cut here; both together stay within 8,192 tokens in every script."""
PASSAGE_TOKENS = 250
"""For estimates only."""
AT_ONCE = 8
"""Passages in one call of the model."""
PROMPT, STATE = "prompt.json", "search.json"


@dataclass(frozen=True)
class Search:
    """How the instruction is searched for; the defaults are the authors'.

    Attributes:
        steps: how many tokens are added to `START` at most.
        beam: next tokens proposed for each prompt, behind the passage of another pair at each step.
        kept: prompts that go on.
        pairs: pairs of query and passage that are scored, drawn with `seed`.
        characters: a passage is cut after so many.
    """

    steps: int = 10
    beam: int = 10
    kept: int = 10
    pairs: int = 1500
    characters: int = PASSAGE_CHARACTERS
    seed: int = 0


@dataclass(frozen=True)
class Found:
    """The best instruction of a search, and its mean reranking score over the pairs; `tried` prompts were scored."""

    instruction: str
    score: float
    tried: int


class CoPrompt(Reranker):
    """Orders hits by how likely the query is after each passage and the instruction.

    Scores are mean natural log-probabilities per query token, below 0. Safe from as many threads as the model is.

    Raises:
        Unsupported: the model gives no log-probabilities.
    """

    def __init__(self, lm: LM, instruction: str = INSTRUCTION) -> None:
        require(lm, "logprobs")
        self._lm = lm
        self.instruction = instruction

    @classmethod
    def load(cls, card: Card, parts: Parts) -> CoPrompt:
        """With the profile's language model and the shipped instruction.

        Raises:
            MissingWeights: the model is not on this machine.
        """
        return cls(parts.lm())

    @classmethod
    def from_folder(cls, lm: LM, folder: Path) -> CoPrompt:
        """With the instruction that `fit` has found there.

        Raises:
            MissingWeights: it has not ended there.
        """
        if not (folder / PROMPT).is_file():
            raise MissingWeights(f"`{folder.name}` has no `{PROMPT}`.", "Run `CoPrompt.fit(lm, data, folder)`.")
        return cls(lm, Found(**json.loads((folder / PROMPT).read_text("utf-8"))).instruction)

    @classmethod
    def tiny(cls, seed: int = 0) -> CoPrompt:
        from ...retrievers.lm_transformers import TransformersLM

        return cls(TransformersLM.tiny(seed))

    @staticmethod
    def fit(lm: LM, data: Sequence[tuple[str, str]], out: Path, search: Search | None = None) -> Found:
        """Search for an instruction; `out` then holds it. Run again after an interruption, it goes on where it was.

        Args:
            lm: proposes and scores.
            data: queries, each with a passage that answers it.

        Raises:
            BadInput: no pairs, or `out` holds another search.
            Unsupported: the model cannot propose tokens or give log-probabilities.
            Cancelled, TimedOut: see `progress`; the steps that are done are kept.
        """
        require(lm, "logprobs", "logits")
        search = search or Search()
        if not data:
            raise BadInput("There are `0` pairs of query and passage.", "Give at least one.")
        pairs = random.Random(search.seed).sample(list(data), min(search.pairs, len(data)))
        out.mkdir(parents=True, exist_ok=True)
        scored, kept, done = _resumed(out / STATE, _fingerprint(search, pairs))
        while done < search.steps and kept:
            step(done, search.steps, "tokens")
            example = as_data(pairs[done % len(pairs)][1], search.characters)
            longer = _proposed(lm, example, kept, search.beam) if scored else [START]
            new = [prompt for prompt in longer if prompt not in scored]
            scored |= dict(zip(new, _scores(lm, new, pairs, search.characters), strict=True))
            kept = sorted(new, key=lambda prompt: -scored[prompt])[: search.kept]
            done += longer != [START]
            state = {"of": _fingerprint(search, pairs), "scored": scored, "kept": kept, "done": done}
            _write(out / STATE, state)
        best = max(scored, key=lambda prompt: (scored[prompt], -len(prompt)))
        found = Found(best, scored[best], len(scored))
        _write(out / PROMPT, asdict(found))
        return found

    def rank(self, query: Query, hits: Sequence[Hit], limits: Limits | None = None) -> Ranking:
        """A permutation of `hits`; a time limit is looked at before every eighth passage.

        A passage longer than `PASSAGE_CHARACTERS`, or than the model reads, is read as far as that goes, from its
        beginning.

        Raises:
            Unsupported: a query without text.
        """
        if query.text is None:
            raise Unsupported("Co-Prompt needs text, and the query has `None`.", "Ask with text.")
        target = as_data(query.text, QUERY_CHARACTERS)

        def read(items: Sequence[Item], share: float) -> list[Read]:
            texts = [as_data(searchable_text(item), int(PASSAGE_CHARACTERS * share)) for item in items]
            found = self._lm.logprobs([[asked(text, self.instruction)] for text in texts], [target] * len(texts))
            return [Read(one.mean, len(text) // 4 + len(one.tokens)) for one, text in zip(found, texts, strict=True)]

        return _pointwise.rank(hits, limits, lambda items: fitting(items, read), lambda score, say: score, AT_ONCE)

    def estimate(self, n: int) -> Cost:
        """One call and about 250 tokens per hit."""
        return Cost(calls=n, tokens=n * PASSAGE_TOKENS) if n > 1 else Cost(calls=0, tokens=0)


def asked(passage: str, instruction: str) -> str:
    """What stands before the query."""
    return f"Passage: {passage}\n{instruction}\n"


def _proposed(lm: LM, passage: str, kept: Sequence[str], beam: int) -> list[str]:
    """Each of `kept` with each of the `beam` likeliest tokens that are text on one line, without repeats."""
    asked_for = [[asked(passage, prompt).rstrip("\n")] for prompt in kept]
    found = zip(kept, lm.top_next(asked_for, beam), strict=True)
    longer = [prompt + token for prompt, tokens in found for token in tokens if token.strip() and token.isprintable()]
    return list(dict.fromkeys(longer))


def _scores(lm: LM, prompts: Sequence[str], pairs: Sequence[tuple[str, str]], characters: int) -> list[float]:
    """The discriminator: of each prompt, the mean over the pairs of the score that the passage gets for its query."""
    totals = [0.0] * len(prompts)
    for query, passage in pairs:
        text, target = as_data(passage, characters), as_data(query, QUERY_CHARACTERS)
        found = lm.logprobs([[asked(text, prompt)] for prompt in prompts], [target] * len(prompts))
        totals = [total + one.mean for total, one in zip(totals, found, strict=True)]
    return [total / len(pairs) for total in totals]


def _fingerprint(search: Search, pairs: Sequence[tuple[str, str]]) -> str:
    """Of all that the scores depend on, and not of `steps`: a longer search goes on where a shorter one ended."""
    told = {**asdict(search), "steps": None}
    return hashlib.sha256(json.dumps([told, pairs]).encode()).hexdigest()


def _resumed(state: Path, of: str) -> tuple[dict[str, float], list[str], int]:
    """Scores so far, the prompts that go on, and how many tokens they have beyond `START`."""
    if not state.is_file():
        return {}, [START], 0
    known = json.loads(state.read_text("utf-8"))
    if known["of"] != of:
        raise BadInput(f"`{state.parent.name}` holds another search.", "Choose another folder, or remove this one.")
    return known["scored"], known["kept"], known["done"]


def _write(path: Path, content: object) -> None:
    scratch = path.with_suffix(".part")
    scratch.write_text(json.dumps(content, ensure_ascii=False, indent=1), "utf-8")
    scratch.replace(path)
