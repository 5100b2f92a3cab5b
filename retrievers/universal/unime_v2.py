"""UniME-V2: MLLM-as-a-Judge for Universal Multimodal Embedding Learning. Gu et al. 2025, arXiv:2510.13515

The vector is the last layer's state of the last token, of unit length. As in VLM2Vec there is no chat template: the
picture's mark, a space, an instruction and the words. A picture alone, on either side, stands with `Find an image
caption describing the given image.`, a text alone without anything: the words of the repository's example. Those for
both are of the data that it learned from (MMEB). A query's own instruction replaces them.

What is new is how it learns, and the parts of that are here. `mined`: of all candidates of a corpus, as an encoder
ranks them, those that are less like the query than its right one, the `MINED` best. `judged`: a multimodal language
model is asked whether a candidate meets the query; its score is P(Yes) of Yes and No. `alignment`: the distribution of
cosines over the right candidate and the mined ones is drawn to that of the scores, both ways, with no label of right
and wrong.

The released `TianchengGu/UniME-V2-Qwen2VL-7B` and the other two of the collection `TianchengGu/unime-v2` (Qwen2-VL-2B,
LLaVA-OneVision) load from `weights/unime_v2` of the home folder once they are there as safetensors: Apache-2.0 by the
page of the first. The code is ours, over transformers' own classes.

Pictures are scaled to the squares of the training, 672 pixels for Qwen2-VL and 336 for OneVision (`edge`; the example
takes 1,344). It differs: of a video one key frame is read, and a text beyond the window is cut at its end. Not here:
the choice of negatives by their scores, and UniME-V2-Reranker, which is a reranker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...errors import BadInput
from ..base import Encoder, Item, MediaRef, Modality, Query, Side, Space
from ..lm import require
from ..loading import set_threads
from ..searchable import searchable_text
from ._inputs import READS, seen
from ._mllm import EDGE, Backbone, Said, instructed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from ...manifests.registry import Card
    from ..fitting import Course
    from ..lm import LM, Prompt
    from ..parts import Parts
    from ._contrastive_training import Adapters, Lesson

DIM = 3584
"""Of Qwen2-VL-7B; other backbones have their own."""
LONGEST = 4096
SQUARES = {"qwen2_vl": 672, "llava_onevision": 336}
"""Pixels of a picture's sides, by backbone."""
SHOWN = "Find an image caption describing the given image."
BOTH = {
    "query": "Represent the given image with the following question:",
    "document": "Represent the given image with related text information:",
}
TEMPERATURE, EPSILON = 0.02, 1e-8
MINED = 50
JUDGE = (
    "I will provide you with a query and a candidate. Please evaluate whether the candidate meets the requirements of "
    "the query. If it does, respond with 'Yes'; if it doesn't, respond with 'No'."
)
ANSWERS = ("Yes", "No")


class UniMEV2(Encoder):
    """Dense encoder of the space `unime_v2`, cosine. Safe from many threads.

    `media.uri` of what it looks at must be **a path on this machine**, which the caller has resolved and allowed.

    Args:
        backbone: one of `SQUARES`.
        longest: tokens of an input.
        edge: pixels of the square that a picture is scaled to; 0 for that of the training.

    Raises:
        BadInput: a backbone of another architecture.
    """

    space = Space("unime_v2", "dense", DIM, "cosine")
    modalities: tuple[Modality, ...] = READS
    looks = True
    mixed = True

    def __init__(self, backbone: Backbone, longest: int = LONGEST, edge: int = 0) -> None:
        if backbone.kind not in SQUARES:
            raise BadInput(f"The backbone is `{backbone.kind}`.", f"Give one of type {' or '.join(SQUARES)}.")
        self.backbone, self.longest, self.edge = backbone, longest, edge or SQUARES[backbone.kind]
        self.space = Space("unime_v2", "dense", backbone.size, "cosine")

    # --- doors -------------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, card: Card, parts: Parts) -> UniMEV2:
        """From `weights/unime_v2` of the home folder.

        Raises:
            MissingWeights: a file is not there.
            BadInput: they are not those of one of `SQUARES`.
            MissingExtra: they are an adapter, and peft is not installed.
        """
        set_threads(parts.settings.threads)
        return cls(Backbone.load(card, parts, tuple(SQUARES)))

    @classmethod
    def from_folder(cls, folder: Path, precision: str = "auto", device: str = "cpu") -> UniMEV2:
        """From a local folder with the files and names of the published checkpoints; raises as `load`."""
        return cls(Backbone.from_folder(folder, tuple(SQUARES), precision, device))

    @classmethod
    def tiny(cls, seed: int = 0, kind: str = "qwen2_vl") -> UniMEV2:
        """Two random layers over bytes and pictures of 112 pixels, with the real processor: for tests."""
        return cls(Backbone.tiny(kind, seed), longest=256, edge=112)

    def save(self, folder: Path) -> None:
        """Write what `from_folder` reads."""
        self.backbone.save(folder)

    # --- vectors -----------------------------------------------------------------------------------------------------

    def encode(self, inputs: Sequence[Item] | Sequence[Query], side: Side) -> np.ndarray:
        """Float32 (n, dim) of unit length, in the order of `inputs`.

        Raises:
            Unsupported: a query with neither text nor media.
            UnreadableFile: a picture is gone, damaged, or cannot be shown.
            BadInput: a picture that is a line, or a model that gives NaN.
            Cancelled, TimedOut: see `progress`.
        """
        return self.backbone.vectors(inputs, lambda one: self.said(one, side), self.longest)

    def said(self, given: Item | Query, side: Side) -> Said:
        """What the model reads of `given`."""
        has = seen(given, EDGE)
        text, pictures = has.text.strip(), tuple(one.resize((self.edge, self.edge)) for one in has.pictures)
        told = (given.instruction or "") if side == "query" and isinstance(given, Query) else ""
        if not told and pictures:
            told = BOTH[side] if text else SHOWN
        return instructed(self.backbone, told, text, pictures)

    # --- learning ----------------------------------------------------------------------------------------------------

    def fit(
        self,
        lessons: Sequence[Lesson],
        out_dir: Path,
        *,
        held: Sequence[Lesson] = (),
        course: Course | None = None,
        adapters: Adapters | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> UniMEV2:
        """A copy that learned the judge's scores by `alignment`; saved in `out_dir`, for `from_folder`. A fit that was
        stopped goes on from its last checkpoint. The copy computes in float32.

        Args:
            lessons: each with as many `mined` candidates (the authors: 8) and the scores of all (`judged`).
            held: other lessons, whose loss tells which checkpoint is kept.
            loss: another one of cosines and scores, (queries, 1 + mined); its name is kept in `fit.json`.

        Raises:
            BadInput, UnreadableFile, MissingExtra, Cancelled, TimedOut: see `_contrastive_training.backbone_fitted`.
        """
        from ..fitting import Course
        from ._contrastive_training import Adapters, backbone_fitted
        from ._unime_v2_training import Listed, scored, with_scores

        scored((*lessons, *held))
        chosen = loss or alignment
        made, _ = backbone_fitted(
            self.backbone,
            lessons,
            out_dir,
            lambda one, side: self.backbone.read(self.said(one, side), self.longest),
            chosen,
            course or Course(epochs=1, batch=512, rate=1e-4),
            adapters or Adapters(chunk=2),
            held=held,
            kind=Listed,
            collate=with_scores,
            loss_name=chosen.__name__,
            edge=self.edge,
        )
        fitted = UniMEV2(made, self.longest, self.edge)
        fitted.save(out_dir)
        return fitted


# --- how it learns ---------------------------------------------------------------------------------------------------


def mined(similarities: np.ndarray, right: float, most: int = MINED) -> np.ndarray:
    """Places of the `most` candidates that are most like a query and less than its right one, most alike first.

    Args:
        similarities: of the query to all candidates, (candidates,); the right one among them drops out by itself.
        right: that of the right one.
    """
    order = np.argsort(-np.asarray(similarities), kind="stable")
    return order[np.asarray(similarities)[order] < right][:most]


def judge_prompt(query: Query, candidate: Item) -> Prompt:
    """The question whether `candidate` meets `query`, for a model that answers Yes or No; the parts stand next to each
    other without a space, as the authors' template joins them."""
    text = searchable_text(candidate) if candidate.modality == "text" else candidate.text
    asked = [part for part in (query.media, query.text) if part]
    found = [part for part in (candidate.media if candidate.modality != "text" else None, text) if part]
    return [JUDGE, "Query:", *asked, "Candidate:", *found]


def judged(lm: LM, query: Query, candidates: Sequence[Item]) -> np.ndarray:
    """Float32 (candidates,): the probability of Yes, of Yes and No.

    Raises:
        Unsupported: `lm` gives no logits, or is shown pictures and reads none.
    """
    prompts = [judge_prompt(query, one) for one in candidates]
    pictures = any(isinstance(part, MediaRef) for prompt in prompts for part in prompt)
    require(lm, "logits", *(("images",) if pictures else ()))
    if not prompts:
        return np.zeros(0, np.float32)
    logits = lm.next_token_logits(prompts, ANSWERS).astype(np.float64)
    chances: np.ndarray = (0.5 * (1 + np.tanh((logits[:, 0] - logits[:, 1]) / 2))).astype(np.float32)
    return chances


def alignment(cosines: Tensor, scores: Tensor, temperature: float = TEMPERATURE, epsilon: float = EPSILON) -> Tensor:
    """Half of KL(t || p) + KL(p || t) with p = softmax(cosines / tau) and t = softmax(scores / tau), the mean over
    queries: 0 where they agree.

    As released, and so a candidate that is more than tau * ln(1 / epsilon) = 0.37 behind another hardly learns.

    Args:
        cosines: of each query to its right candidate and its negatives, (queries, candidates).
        scores: the judge's of the same, 0 to 1; they get no gradient.
        epsilon: is added to a probability before its logarithm is taken.

    Raises:
        BadInput: they have different shapes.
    """
    if cosines.shape != scores.shape:
        wrong = f"Cosines have the shape `{tuple(cosines.shape)}` and scores `{tuple(scores.shape)}`."
        raise BadInput(wrong, "Give a score for each.")
    made, wanted = ((one.float() / temperature).softmax(dim=-1) for one in (cosines, scores.detach()))
    apart = (made + epsilon).log() - (wanted + epsilon).log()
    return 0.5 * ((made - wanted) * apart).sum(dim=-1).mean()
