"""Breaking the Modality Barrier: Universal Embedding Learning with Multimodal LLMs. Gu et al. 2025, arXiv:2504.17432

UniME. A multimodal language model is asked for one word that sums up what stands above (`[INST] … Summary above image
in one word: [/INST]`), and the vector is the last layer's state of the last token, of unit length: one space for text,
pictures, and both.

It is made in two stages, whose losses are here. `distillation`: the language part alone learns from a text encoder, by
the distribution of similarities within a batch, so that their vectors may have different sizes. `hard_negative_loss`:
each query is told from the `HARD` candidates of the batch that are most like it, those left out that outrank its own by
more than `BEYOND` (they are taken to be right, too). Only that far: a copy of the right candidate does not outrank it
and stays. The released code re-admits filtered candidates where fewer than `HARD` are left; here their places stay
empty.

The released `DeepGlint-AI/UniME-LLaVA-1.6-7B` and `DeepGlint-AI/UniME-LLaVA-OneVision-7B` load from `weights/unime` of
the home folder once they are there as safetensors; licences: see their pages and those of their base models.
`DeepGlint-AI/UniME-Phi3.5-V-4.2B` stands on Phi-3.5-Vision, which transformers lacks: its code would be the
checkpoint's, so it is never loaded. The code here is ours, over transformers' own classes.

The prompts for a text and for a picture are the repository's, for LLaVA-1.6. It has none for OneVision, which gets the
same words in the conversation of its base model, none for a picture with words (`BOTH`: ours) and none for an
instruction, which stands before the words. Of a video one key frame is read, and pictures of more than 2,048 pixels are
first drawn that large. What is too long loses the end of its words. `fit` is the first stage, `fit_pairs` the second;
neither quantises weights, as the authors did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from ...errors import BadInput
from ..base import Encoder, Item, Modality, Query, Side, Space
from ..loading import set_threads
from ._inputs import READS, seen
from ._mllm import EDGE, Backbone, Said

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from torch import Tensor

    from ...manifests.registry import Card
    from ..fitting import Course
    from ..parts import Parts
    from ._contrastive_training import Adapters, Lesson

DIM = 4096
"""Of LLaVA-1.6-7B; other backbones have their own."""
LONGEST = 4096
TURNS = {
    "llava_next": ("[INST] ", " [/INST]"),
    "llava_onevision": ("<|im_start|>user ", "<|im_end|><|im_start|>assistant\n"),
}
"""What stands around the request, by backbone."""
ONE_WORD = "\nSummary above {what} in one word:"
TEXT, SHOWN, BOTH = "sentence", "image", "image and sentence"
TEMPERATURE, BEYOND, HARD = 0.02, 0.1, 8
"""tau of both stages, beta and k of the second (section 3)."""


class UniME(Encoder):
    """Dense encoder of the space `unime`, cosine. Safe from many threads.

    `media.uri` of what it looks at must be **a path on this machine**, which the caller has resolved and allowed.

    Args:
        backbone: one of `TURNS`.
        longest: tokens of an input.

    Raises:
        BadInput: a backbone of another architecture.
    """

    space = Space("unime", "dense", DIM, "cosine")
    modalities: tuple[Modality, ...] = READS
    looks = True
    mixed = True

    def __init__(self, backbone: Backbone, longest: int = LONGEST) -> None:
        if backbone.kind not in TURNS:
            raise BadInput(f"The backbone is `{backbone.kind}`.", f"Give one of type {' or '.join(TURNS)}.")
        self.backbone, self.longest = backbone, longest
        self.space = Space("unime", "dense", backbone.size, "cosine")

    # --- doors -------------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, card: Card, parts: Parts) -> UniME:
        """From `weights/unime` of the home folder.

        Raises:
            MissingWeights: a file is not there.
            BadInput: they are not those of one of `TURNS`.
            MissingExtra: they are an adapter, and peft is not installed.
        """
        set_threads(parts.settings.threads)
        return cls(Backbone.load(card, parts, tuple(TURNS)))

    @classmethod
    def from_folder(cls, folder: Path, precision: str = "auto", device: str = "cpu") -> UniME:
        """From a local folder with the files and names of the published checkpoints; raises as `load`."""
        return cls(Backbone.from_folder(folder, tuple(TURNS), precision, device))

    @classmethod
    def tiny(cls, seed: int = 0, kind: str = "llava_next") -> UniME:
        """Two random layers over bytes, with the real picture processor: for tests."""
        return cls(Backbone.tiny(kind, seed), longest=256)

    def save(self, folder: Path) -> None:
        """Write what `from_folder` reads."""
        self.backbone.save(folder)

    # --- vectors -----------------------------------------------------------------------------------------------------

    def encode(self, inputs: Sequence[Item] | Sequence[Query], side: Side) -> np.ndarray:
        """Float32 (n, dim) of unit length, in the order of `inputs`; without instructions both sides are alike.

        Raises:
            Unsupported: a query with neither text nor media.
            UnreadableFile: a picture is gone, damaged, or cannot be shown.
            BadInput: a picture that is a line, or a model that gives NaN.
            Cancelled, TimedOut: see `progress`.
        """
        return self.backbone.vectors(inputs, self.said, self.longest)

    def said(self, given: Item | Query) -> Said:
        """What the model reads of `given`."""
        has = seen(given, EDGE)
        told = self.backbone.plain((given.instruction or "") if isinstance(given, Query) else "")
        shown, words = self.backbone.mark * len(has.pictures), bool(has.text or not has.pictures)
        before, after = TURNS[self.backbone.kind]
        joint = "\n" if shown and (told or words) else ""
        asked = ONE_WORD.format(what=(BOTH if words else SHOWN) if shown else TEXT)
        space = " " if told and words else ""
        return Said(f"{before}{shown}{joint}{told}{space}", has.text, asked + after, has.pictures)

    # --- learning ----------------------------------------------------------------------------------------------------

    def fit(
        self,
        texts: Sequence[str],
        teacher: Path,
        out_dir: Path,
        *,
        course: Course | None = None,
        adapters: Adapters | None = None,
    ) -> UniME:
        """Stage 1: a copy whose language part learned from a text encoder; saved in `out_dir`, for `from_folder`.

        A fit that was stopped goes on from its last checkpoint. The copy computes in float32.

        Args:
            texts: sentences; they stand in the prompt for a text.
            teacher: a folder with the encoder's vectors of `texts`, written by `_unime_training.taught`.

        Raises:
            BadInput: fewer than two texts, a teacher of other texts, or `out_dir` holds another fit.
            MissingExtra: peft is not installed.
            Cancelled, TimedOut: see `progress`.
        """
        from ..fitting import Course
        from ._contrastive_training import Adapters
        from ._unime_training import distilled

        ids = [self.backbone.read(self.said(Query(text)), self.longest).ids for text in texts]
        course, adapters = course or Course(epochs=2, batch=768, rate=5e-4), adapters or Adapters()
        made, _ = distilled(self.backbone, ids, texts, teacher, out_dir, distillation, course, adapters)
        fitted = UniME(made, self.longest)
        fitted.save(out_dir)
        return fitted

    def fit_pairs(
        self,
        lessons: Sequence[Lesson],
        out_dir: Path,
        *,
        held: Sequence[Lesson] = (),
        course: Course | None = None,
        adapters: Adapters | None = None,
        beyond: float = BEYOND,
        hard: int = HARD,
        run: int = 1,
    ) -> UniME:
        """Stage 2: a copy that learned which item answers which query, by `hard_negative_loss`; saved in `out_dir`, for
        `from_folder`. A fit that was stopped goes on from its last checkpoint. The copy computes in float32.

        The paper's numbers, as we know them, are batches of 1,024 and 2,000 steps at a rate of 2e-5 for LLaVA-1.6.

        Args:
            held: other lessons, whose loss tells which checkpoint is kept.
            beyond: from 2 on, the largest difference of cosines, nothing is taken to be right that is not known to be.
            hard: as many as a batch has: then it is InfoNCE, but for what is `beyond`.
            run: lessons of one group that stand together in a batch.

        Raises:
            BadInput, UnreadableFile, MissingExtra, Cancelled, TimedOut: see `_contrastive_training.backbone_fitted`.
        """
        from ..fitting import Course
        from ._contrastive_training import Adapters, backbone_fitted

        made, _ = backbone_fitted(
            self.backbone,
            lessons,
            out_dir,
            lambda one, side: self.backbone.read(self.said(one), self.longest),
            lambda asked, told, right: hard_negative_loss(asked, told, beyond, hard, right=right),
            course or Course(epochs=1, batch=1024, rate=2e-5),
            adapters or Adapters(chunk=8),
            held=held,
            run=run,
            beyond=beyond,
            hard=hard,
        )
        fitted = UniME(made, self.longest)
        fitted.save(out_dir)
        return fitted


def distillation(student: Tensor, teacher: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Stage 1: how far the student's similarities within a batch are from the teacher's, a number of 0 or more.

    The mean over texts i of KL(softmax_j(t_ij / tau) || softmax_j(s_ij / tau)) with cosines s and t; i is among the j.

    Args:
        student: (texts, any size); teacher: (texts, any other size), in the same order; it gets no gradient.

    Raises:
        BadInput: they are not of the same texts.
    """
    if len(student) != len(teacher):
        raise BadInput(f"There are `{len(student)}` vectors and `{len(teacher)}` to learn from.", "Give one for each.")
    learned, wanted = (functional.normalize(one.float(), dim=-1) for one in (student, teacher.detach()))
    logs = [functional.log_softmax(one @ one.T / temperature, dim=-1) for one in (learned, wanted)]
    return functional.kl_div(logs[0], logs[1], reduction="batchmean", log_target=True)


def hard_negatives(
    similarities: Tensor, beyond: float = BEYOND, hard: int = HARD, right: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Which candidates each query is told from: those most like it, without its own and without those that are more
    than `beyond` liker than its own.

    Args:
        similarities: cosines (queries, candidates), each query's own on the diagonal, further candidates behind.
        right: bool of that shape: candidates known to be right beside a query's own; they are never among them.

    Returns:
        Columns, (queries, k) with k = min(hard, candidates - 1), most alike first, and whether each counts: where fewer
        than k are left, the rest of a row does not.
    """
    own = similarities.diagonal()[:, None]
    apart = torch.eye(*similarities.shape, dtype=torch.bool, device=similarities.device) | (similarities > own + beyond)
    left = similarities.detach().masked_fill(apart if right is None else apart | right, -torch.inf)
    found = left.topk(min(hard, left.shape[1] - 1), dim=1)
    return found.indices, found.values.isfinite()


def hard_negative_loss(
    queries: Tensor,
    candidates: Tensor,
    beyond: float = BEYOND,
    hard: int = HARD,
    temperature: float = TEMPERATURE,
    right: Tensor | None = None,
) -> Tensor:
    """Stage 2: cross-entropy of each query's own candidate among itself and its `hard_negatives`, a mean.

    A query without any adds nothing. Of several processes, give the vectors of all of them.

    Args:
        queries, candidates: (n, size) and (m, size), of any length: first each query's own candidate, then others.
        right: bool (n, m), see `hard_negatives`.

    Raises:
        BadInput: fewer candidates than queries, or none.
    """
    if len(queries) > len(candidates) or not len(queries):
        wrong = f"There are `{len(queries)}` queries and `{len(candidates)}` candidates."
        raise BadInput(wrong, "Give each query its own candidate.")
    one, other = (functional.normalize(vectors.float(), dim=-1) for vectors in (queries, candidates))
    similarities = one @ other.T
    columns, counts = hard_negatives(similarities, beyond, hard, right)
    rivals = similarities.gather(1, columns).masked_fill(~counts, -torch.inf)
    logits = torch.cat([similarities.diagonal()[:, None], rivals], dim=1) / temperature
    return functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
