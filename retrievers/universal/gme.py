"""GME: Improving Universal Multimodal Retrieval by Multimodal LLMs. Zhang et al. 2024, arXiv:2412.16855

Qwen2-VL reads a conversation: the instruction in the system turn, picture and words in the user turn, and an assistant
turn that consists of `<|endoftext|>`; the vector is the last layer's state of that token, of unit length. A query's
instruction names the task (`Find an image that matches the given text.`); without one, and for every document, it is
`DEFAULT`. A picture becomes 256 to 1,280 tokens, an input has at most 1,800.

The released `Alibaba-NLP/gme-Qwen2-VL-2B-Instruct` (1,536 numbers) and `-7B-Instruct` (3,584) load from `weights/gme`
of the home folder once they are there as safetensors: Apache-2.0 by their page. Their own code is not run; it is ours,
over transformers' classes.

It differs: what is too long loses the end of its words, not the `<|endoftext|>` whose state is wanted (the released
code cuts at 1,800 tokens whatever stands there, as we read it); pictures of more than 2,048 pixels are first drawn that
large. The paper has no videos: that `FRAMES` key frames of a scene stand one behind the other, and together have as
many tokens as one picture may, is ours. `fit` is the paper's loss; not here: its balanced data and the mining of
negatives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import BadInput
from ..base import Encoder, Item, Modality, Query, Side, Space
from ..loading import set_threads
from ._inputs import READS, seen
from ._mllm import EDGE, Backbone, Said

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from PIL.Image import Image

    from ...manifests.registry import Card
    from ..fitting import Course
    from ..parts import Parts
    from ._contrastive_training import Adapters, Lesson

DIM = 1536
BACKBONES = ("qwen2_vl",)
LONGEST = 1800
DEFAULT = "You are a helpful assistant."
TEMPERATURE = 0.03
TOKENS = (256, 1280)
"""Of a picture, at least and at most."""
FRAMES = 4
"""Of a scene of a video."""
TEMPLATE = (
    "<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n{pictures}",
    "<|im_end|>\n<|im_start|>assistant\n<|endoftext|>",
)
"""Before and behind the words."""
SHOWN = "<|vision_start|>{mark}<|vision_end|>"


class GME(Encoder):
    """Dense encoder of the space `gme`, cosine. Safe from many threads.

    `media.uri` of what it looks at must be **a path on this machine**, which the caller has resolved and allowed.

    Args:
        backbone: of one of `BACKBONES`; its picture processor is given the bounds `tokens`.
        longest: tokens of an input; frames: so many pictures are taken of a scene of a video.

    Raises:
        BadInput: a backbone of another architecture, or a tokenizer without the marks of a conversation.
    """

    space = Space("gme", "dense", DIM, "cosine")
    modalities: tuple[Modality, ...] = READS
    looks = True
    mixed = True
    many_languages = True

    def __init__(
        self, backbone: Backbone, longest: int = LONGEST, tokens: tuple[int, int] = TOKENS, frames: int = FRAMES
    ) -> None:
        if backbone.kind not in BACKBONES:
            raise BadInput(f"The backbone is `{backbone.kind}`.", f"Give one of type {' or '.join(BACKBONES)}.")
        for mark in ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|endoftext|>"):
            backbone.token(mark)
        backbone.bound(*tokens)
        self.backbone, self.longest, self.tokens, self.frames = backbone, longest, tokens, frames
        self.space = Space("gme", "dense", backbone.size, "cosine")

    # --- doors -------------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, card: Card, parts: Parts) -> GME:
        """From `weights/gme` of the home folder.

        Raises:
            MissingWeights: a file is not there.
            BadInput: they are not those of a Qwen2-VL.
            MissingExtra: they are an adapter, and peft is not installed.
        """
        set_threads(parts.settings.threads)
        return cls(Backbone.load(card, parts, BACKBONES))

    @classmethod
    def from_folder(cls, folder: Path, precision: str = "auto", device: str = "cpu") -> GME:
        """From a local folder with the files and names of the published checkpoints; raises as `load`."""
        return cls(Backbone.from_folder(folder, BACKBONES, precision, device))

    @classmethod
    def tiny(cls, seed: int = 0) -> GME:
        """Two random layers over bytes, with the real picture processor at 4 to 16 tokens: for tests."""
        return cls(Backbone.tiny("qwen2_vl", seed), longest=256, tokens=(4, 16), frames=2)

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
        has = seen(given, EDGE, self.frames)
        told = given.instruction if side == "query" and isinstance(given, Query) else None
        before, after = TEMPLATE
        filled = before.format(
            instruction=self.backbone.plain(told or DEFAULT),
            pictures=SHOWN.format(mark=self.backbone.mark) * len(has.pictures),
        )
        return Said(filled, has.text, after, self._sharing(has.pictures))

    def _sharing(self, pictures: tuple[Image, ...]) -> tuple[Image, ...]:
        """Several pictures so small that together they have no more tokens than one may, or the least that one has."""
        if len(pictures) < 2:
            return pictures
        side = self.backbone.pictures.patch_size * self.backbone.pictures.merge_size
        return tuple(_within(one, self.tokens[1] * side**2 // len(pictures)) for one in pictures)

    # --- learning ----------------------------------------------------------------------------------------------------

    def fit(
        self,
        lessons: Sequence[Lesson],
        out_dir: Path,
        *,
        held: Sequence[Lesson] = (),
        course: Course | None = None,
        adapters: Adapters | None = None,
        run: int = 1,
    ) -> GME:
        """A copy that learned which item answers which query, by InfoNCE over the batch of all processes and the wrong
        items that lessons name; saved in `out_dir`, for `from_folder`. A fit that was stopped goes on from its last
        checkpoint. The copy computes in float32. Rank, rate and temperature are the paper's, as we know
        them.

        Args:
            held: other lessons, whose loss tells which checkpoint is kept.
            run: lessons of one group that stand together in a batch.

        Raises:
            BadInput, UnreadableFile, MissingExtra, Cancelled, TimedOut: see `_contrastive_training`.
            Unsupported: as `encode`.
        """
        from ..fitting import Course
        from ._contrastive_training import Adapters, backbone_fitted, info_nce

        made, _ = backbone_fitted(
            self.backbone,
            lessons,
            out_dir,
            lambda one, side: self.backbone.read(self.said(one, side), self.longest),
            lambda queries, items, right: info_nce(queries, items, right, TEMPERATURE),
            course or Course(epochs=1, batch=128, rate=1e-4),
            adapters or Adapters(rank=8, chunk=4),
            held=held,
            run=run,
        )
        fitted = GME(made, self.longest, self.tokens, self.frames)
        fitted.save(out_dir)
        return fitted


def _within(picture: Image, pixels: int) -> Image:
    """`picture` with at most so many pixels."""
    scale = (pixels / (picture.width * picture.height)) ** 0.5
    if scale >= 1:
        return picture
    return picture.resize((max(1, int(picture.width * scale)), max(1, int(picture.height * scale))))
