"""GME: Improving Universal Multimodal Retrieval by Multimodal LLMs. Zhang et al. 2024, arXiv:2412.16855

Qwen2-VL reads a conversation: the instruction in the system turn, picture and words in the user turn, and an assistant
turn that consists of `<|endoftext|>`; the vector is the last layer's state of that token, of unit length. A query's
instruction names the task (`Find an image that matches the given text.`); without one, and for every document, it is
`DEFAULT`. A picture becomes 256 to 1,280 tokens, an input has at most 1,800.

The released `Alibaba-NLP/gme-Qwen2-VL-2B-Instruct` (1,536 numbers) and `-7B-Instruct` (3,584) load from `weights/gme`
of the home folder once they are there as safetensors: Apache-2.0 by their page. Their own code is not run; it is ours,
over transformers' classes.

It differs: what is too long loses the end of its words, not the `<|endoftext|>` whose state is wanted (the released
code cuts at 1,800 tokens whatever stands there, as we read it); of a video one key frame is read; pictures of more than
2,048 pixels are first drawn that large. Not here: training, its balanced data, and the mining of negatives.
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

    from ...manifests.registry import Card
    from ..parts import Parts

DIM = 1536
BACKBONES = ("qwen2_vl",)
LONGEST = 1800
DEFAULT = "You are a helpful assistant."
TOKENS = (256, 1280)
"""Of a picture, at least and at most."""
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
        longest: tokens of an input.

    Raises:
        BadInput: a backbone of another architecture, or a tokenizer without the marks of a conversation.
    """

    space = Space("gme", "dense", DIM, "cosine")
    modalities: tuple[Modality, ...] = READS
    looks = True
    mixed = True
    many_languages = True

    def __init__(self, backbone: Backbone, longest: int = LONGEST, tokens: tuple[int, int] = TOKENS) -> None:
        if backbone.kind not in BACKBONES:
            raise BadInput(f"The backbone is `{backbone.kind}`.", f"Give one of type {' or '.join(BACKBONES)}.")
        for mark in ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|endoftext|>"):
            backbone.token(mark)
        backbone.bound(*tokens)
        self.backbone, self.longest = backbone, longest
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
        return cls(Backbone.tiny("qwen2_vl", seed), longest=256, tokens=(4, 16))

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
        told = given.instruction if side == "query" and isinstance(given, Query) else None
        before, after = TEMPLATE
        filled = before.format(
            instruction=self.backbone.plain(told or DEFAULT),
            pictures=SHOWN.format(mark=self.backbone.mark) * len(has.pictures),
        )
        return Said(filled, has.text, after, has.pictures)
