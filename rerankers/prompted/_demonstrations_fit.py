"""How demonstrations are learned to be chosen: feedback of a frozen language model, then two small networks.

The order of arXiv:2406.16332: one-shot feedback about candidates trains the retriever (section 3.2); what it retrieves
is scored beside demonstrations already selected, which trains the reranker (section 3.3, dependency-aware samples).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...errors import BadInput
from ...progress import step
from ...retrievers.lm import LM, require
from ._demonstrations import (
    Chooser,
    Demonstration,
    as_input,
    as_known,
    chances,
    features,
    other_queries,
    prompt,
    vectors,
)

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from ...retrievers.base import Encoder

TEMPERATURE = 0.01
CONTRASTIVE = 0.2
"""Weight of the contrastive loss beside RankNet (both figures: the authors' code)."""
FEEDBACK = "feedback.json"


@dataclass(frozen=True)
class Fitting:
    """The paper's sizes, but for the training of the two small networks.

    Attributes:
        inputs: queries with passages that feedback is asked about, drawn with `seed`.
        near, drawn: candidates of each for the retriever: the nearest by the encoder, and others at random.
        candidates, shots: for the reranker: what the retriever finds, and how many are selected one by one.
        epochs, rate: of both networks, each epoch over all samples at once.
    """

    inputs: int = 300
    near: int = 25
    drawn: int = 25
    candidates: int = 50
    shots: int = 4
    epochs: int = 200
    rate: float = 1e-3
    seed: int = 0


class Sample(NamedTuple):
    """For input number `asked`: how likely the right answer is with each candidate behind those `chosen`."""

    asked: int
    chosen: tuple[int, ...]
    candidates: tuple[int, ...]
    scores: tuple[float, ...]


def fit(lm: LM, encoder: Encoder, known: Sequence[Demonstration], out: Path, fitting: Fitting) -> Chooser:
    """Learn to choose from `known`, and save that in `out`. What the model was asked before an interruption is kept.

    Raises:
        BadInput: fewer than two different queries, or `out` holds another fit.
        Unsupported: the model gives no logits.
        Cancelled, TimedOut: see `progress`.
    """
    require(lm, "logits")
    if not known or not other_queries(known, known[0].query).any():
        raise BadInput("The demonstrations have `1` query or none.", "Give some of at least two queries.")
    out.mkdir(parents=True, exist_ok=True)
    texts = [as_input(one.query, one.passage) for one in known]
    asked, pool = vectors(encoder, texts), vectors(encoder, [as_known(one) for one in known])
    notes = _Notes(out / FEEDBACK, hashlib.sha256(json.dumps([asdict(fitting), texts]).encode()).hexdigest())
    drawn = random.Random(fitting.seed).sample(range(len(known)), min(fitting.inputs, len(known)))
    chooser = Chooser.random(pool.shape[1], fitting.seed)
    first = []
    for done, n in enumerate(drawn):
        step(done, len(drawn), "inputs for the retriever")
        first += notes.kept(f"one {n}", lambda n=n: [_one_shot(lm, known, asked, pool, chooser, n, fitting)])
    chooser = _trained_retriever(chooser, asked, pool, first, fitting)
    second = []
    for done, n in enumerate(drawn):
        step(done, len(drawn), "inputs for the reranker")
        near = chooser.nearest(asked[n], pool, other_queries(known, known[n].query), fitting.candidates)
        second += notes.kept(f"many {n}", lambda n=n, near=near: dependent(lm, known, n, near, fitting))
    chooser = _trained_reranker(chooser, asked, pool, second, fitting)
    chooser.save(out, encoder.space.name, known)
    return chooser


def right(lm: LM, known: Sequence[Demonstration], n: int, choices: Sequence[Sequence[int]]) -> list[float]:
    """How likely the model finds the right answer of demonstration `n` behind each choice of others."""
    one = known[n]
    yes = chances(lm, [prompt([known[m] for m in choice], one.query, one.passage) for choice in choices])
    return [float(chance) for chance in (yes if one.relevant else 1 - yes)]


def dependent(lm: LM, known: Sequence[Demonstration], n: int, near: Sequence[int], fitting: Fitting) -> list[Sample]:
    """Dependency-aware samples: candidates are scored behind those selected; the next is drawn by 1 / rank."""
    chance = random.Random(f"{fitting.seed} {n}")
    samples: list[Sample] = []
    chosen: tuple[int, ...] = ()
    while len(chosen) < min(fitting.shots, len(near)):
        left = tuple(m for m in near if m not in chosen)
        scores = right(lm, known, n, [(*chosen, m) for m in left])
        samples.append(Sample(n, chosen, left, tuple(scores)))
        ranked = sorted(range(len(left)), key=lambda place: -scores[place])
        [drawn] = chance.choices(ranked, [1 / (rank + 1) for rank in range(len(ranked))])
        chosen = (*chosen, left[drawn])
    return samples


def ranknet(scores: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean over pairs with `wanted[i] > wanted[j]` of log(1 + exp(scores[j] - scores[i])); equal ones make no pair.

    Args:
        scores, wanted: (candidates,).
    """
    import torch

    better = wanted[:, None] > wanted[None, :]
    gaps = torch.nn.functional.softplus(scores[None, :] - scores[:, None])
    return gaps[better].mean() if better.any() else scores.sum() * 0


class _Notes:
    """Samples by key, in a file that is written after each of them."""

    def __init__(self, path: Path, of: str) -> None:
        self._path = path
        self._content: dict[str, Any] = {"of": of, "samples": {}}
        if path.is_file():
            known = json.loads(path.read_text("utf-8"))
            if known["of"] != of:
                raise BadInput(f"`{path.parent.name}` holds another fit.", "Choose another folder, or remove this one.")
            self._content = known

    def kept(self, key: str, made: Any) -> list[Sample]:
        samples = self._content["samples"]
        if key not in samples:
            samples[key] = [list(one) for one in made()]
            scratch = self._path.with_suffix(".part")
            scratch.write_text(json.dumps(self._content), "utf-8")
            scratch.replace(self._path)
        return [Sample(n, tuple(chosen), tuple(found), tuple(scores)) for n, chosen, found, scores in samples[key]]


def _one_shot(
    lm: LM,
    known: Sequence[Demonstration],
    asked: np.ndarray,
    pool: np.ndarray,
    chooser: Chooser,
    n: int,
    fitting: Fitting,
) -> Sample:
    allowed = other_queries(known, known[n].query)
    near = chooser.nearest(asked[n], pool, allowed, fitting.near)
    rest = [int(m) for m in np.flatnonzero(allowed) if m not in near]
    drawn = random.Random(f"{fitting.seed} {n}").sample(rest, min(fitting.drawn, len(rest)))
    found = (*near, *drawn)
    return Sample(n, (), found, tuple(right(lm, known, n, [(m,) for m in found])))


def _trained_retriever(
    chooser: Chooser, asked: np.ndarray, pool: np.ndarray, samples: Sequence[Sample], fitting: Fitting
) -> Chooser:
    import torch
    from torch.nn.functional import cross_entropy, normalize

    matrix = torch.tensor(chooser.retriever, requires_grad=True)
    given, known = torch.from_numpy(asked), torch.from_numpy(pool)

    def loss(sample: Sample) -> torch.Tensor:
        query, found = (
            normalize(rows @ matrix.T, dim=-1) for rows in (given[sample.asked], known[[*sample.candidates]])
        )
        scores, wanted = found @ query / TEMPERATURE, torch.tensor(sample.scores)
        return ranknet(scores, wanted) + CONTRASTIVE * cross_entropy(scores, wanted.argmax())

    _descend([matrix], samples, loss, fitting)
    return Chooser(matrix.detach().numpy(), chooser.into, chooser.bias, chooser.out)


def _trained_reranker(
    chooser: Chooser, asked: np.ndarray, pool: np.ndarray, samples: Sequence[Sample], fitting: Fitting
) -> Chooser:
    import torch
    from torch.nn.functional import gelu

    into, bias, out = (torch.tensor(one, requires_grad=True) for one in (chooser.into, chooser.bias, chooser.out))
    seen = {
        one: torch.from_numpy(features(asked[one.asked], pool[[*one.chosen]], pool[[*one.candidates]]))
        for one in samples
    }

    def loss(sample: Sample) -> torch.Tensor:
        scores = gelu(seen[sample] @ into.T + bias, approximate="tanh") @ out
        return ranknet(scores, torch.tensor(sample.scores))

    _descend([into, bias, out], samples, loss, fitting)
    return Chooser(chooser.retriever, *(one.detach().numpy() for one in (into, bias, out)))


def _descend(weights: Sequence[torch.Tensor], samples: Sequence[Sample], loss: Any, fitting: Fitting) -> None:
    """AdamW, each step over all samples; nothing in it is random."""
    import torch

    optimizer = torch.optim.AdamW(weights, lr=fitting.rate, weight_decay=0.01)
    for epoch in range(fitting.epochs):
        step(epoch, fitting.epochs, "epochs")
        optimizer.zero_grad()
        torch.stack([loss(sample) for sample in samples]).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
