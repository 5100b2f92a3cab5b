"""VLM2Vec: Training Vision-Language Models for Massive Multimodal Embedding Tasks. Jiang et al. 2024, arXiv:2410.05160

And V2, for videos and pages: Meng et al. 2025, arXiv:2507.04590. A multimodal language model reads an instruction, what
is shown and the words; the vector is the last layer's state of the last token, of unit length. There is no chat
template: a picture is its bare mark and a space, then come the instruction and the words. The instruction stands in the
query and says what is looked for; a document has words of its own or `REPRESENT`, whatever it is asked for.

`Query.instruction` should name the task, as in the training data (MMEB); `ASKED` are the words of the repository's
examples, taken where a query has none. Those of `REPRESENT` are of its examples (picture, video), its page data and,
for a picture with words, of MMEB's EDIS. The paper's data end most prompts with a line break and put one after the
mark; the examples do not, nor do we.

The released `TIGER-Lab/VLM2Vec-Qwen2VL-2B` and `-7B`, `VLM2Vec/VLM2Vec-V2.0` (Qwen2-VL) and
`TIGER-Lab/VLM2Vec-LLaVa-Next` load from `weights/vlm2vec` of the home folder once they are there as safetensors; where
one is an adapter, it lies beside the files of its base model and is merged into them. Licences: see their own pages.
`TIGER-Lab/VLM2Vec-Full` stands on Phi-3.5-Vision, which transformers lacks: its code would be the checkpoint's, so it
is never loaded. The code here is ours, over transformers' own classes.

It differs: frames of a video are read as so many pictures, not by the model's tokens for video; pictures are scaled as
the checkpoint's own processor says, after those beyond 2,048 pixels were drawn that large; a text beyond the window is
cut at its end. `fit` is InfoNCE with GradCache and V2's interleaved sub-batches; the authors' adapters are DoRA, ours
LoRA, and a candidate that stands in a batch twice is no negative of itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import BadInput
from ..base import Encoder, Item, Modality, Query, Side, Space
from ..loading import set_threads
from ._inputs import READS, seen
from ._mllm import EDGE, Backbone, Said, instructed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

    from ...manifests.registry import Card
    from ..fitting import Course
    from ..parts import Parts
    from ._contrastive_training import Adapters, Lesson

DIM = 1536
"""Of Qwen2-VL-2B; other backbones have their own."""
BACKBONES = ("qwen2_vl", "llava_next")
LONGEST = 4096
"""Tokens of an input. Ours: the examples cut nothing, and the evaluation of UniME gives this flag for LLaVA."""
FRAMES = 8
"""Of a video (V2, section 4)."""
RUN = 64
"""Lessons of one data set that stand together in a batch (V2's script)."""
ASKED = {
    "text": "Find me an everyday image that matches the given caption:",
    "shown": "Find a day-to-day image that looks similar to the provided image.",
    "both": "Represent the given image with the following question:",
}
"""What a query of words, of pictures, or of both asks for where it does not say."""
REPRESENT = {
    "image": "Represent the given image.",
    "both": "Represent the given image with related text information:",
    "page": "Understand the content of the provided document image.",
    "video": "Represent the given video.",
}


class VLM2Vec(Encoder):
    """Dense encoder of the space `vlm2vec`, cosine. Safe from many threads.

    `media.uri` of what it looks at must be **a path on this machine**, which the caller has resolved and allowed.

    Args:
        backbone: of one of `BACKBONES`.
        longest: tokens of an input; frames: so many pictures are taken of a scene of a video.

    Raises:
        BadInput: a backbone of another architecture.
    """

    space = Space("vlm2vec", "dense", DIM, "cosine")
    modalities: tuple[Modality, ...] = READS
    looks = True
    mixed = True

    def __init__(self, backbone: Backbone, longest: int = LONGEST, frames: int = FRAMES) -> None:
        if backbone.kind not in BACKBONES:
            raise BadInput(f"The backbone is `{backbone.kind}`.", f"Give one of type {' or '.join(BACKBONES)}.")
        self.backbone, self.longest, self.frames = backbone, longest, frames
        self.space = Space("vlm2vec", "dense", backbone.size, "cosine")

    # --- doors -------------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, card: Card, parts: Parts) -> VLM2Vec:
        """From `weights/vlm2vec` of the home folder.

        Raises:
            MissingWeights: a file is not there.
            BadInput: they are not those of one of `BACKBONES`.
            MissingExtra: they are an adapter, and peft is not installed.
        """
        set_threads(parts.settings.threads)
        return cls(Backbone.load(card, parts, BACKBONES))

    @classmethod
    def from_folder(cls, folder: Path, precision: str = "auto", device: str = "cpu") -> VLM2Vec:
        """From a local folder with the files and names of the published checkpoints; raises as `load`."""
        return cls(Backbone.from_folder(folder, BACKBONES, precision, device))

    @classmethod
    def tiny(cls, seed: int = 0, kind: str = "qwen2_vl") -> VLM2Vec:
        """Two random layers over bytes, with the real picture processor: for tests."""
        return cls(Backbone.tiny(kind, seed), longest=256, frames=2)

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
        text = has.text.strip()
        kind = "text" if not has.pictures else given.modality if isinstance(given, Item) else _shown(given)
        if side == "query":
            own = given.instruction if isinstance(given, Query) else None
            return instructed(self.backbone, own or asked(text, kind), text, has.pictures)
        return instructed(self.backbone, represented(text, kind), text, has.pictures)

    # --- learning ----------------------------------------------------------------------------------------------------

    def fit(
        self,
        lessons: Sequence[Lesson],
        out_dir: Path,
        *,
        held: Sequence[Lesson] = (),
        course: Course | None = None,
        adapters: Adapters | None = None,
        run: int = RUN,
    ) -> VLM2Vec:
        """A copy that learned which item answers which query, by InfoNCE over the batch of all processes; saved in
        `out_dir`, for `from_folder`. A fit that was stopped goes on from its last checkpoint. It computes in float32.

        Args:
            held: other lessons, whose loss tells which checkpoint is kept.
            run: lessons of one group that stand together in a batch: interleaved sub-batches. 1: all mixed; the batch:
                each batch of one group.

        Raises:
            BadInput, UnreadableFile, MissingExtra, Cancelled, TimedOut: see `_contrastive_training.backbone_fitted`.
        """
        from ..fitting import Course
        from ._contrastive_training import Adapters, backbone_fitted, info_nce

        made, _ = backbone_fitted(
            self.backbone,
            lessons,
            out_dir,
            lambda one, side: self.backbone.read(self.said(one, side), self.longest),
            info_nce,
            course or Course(epochs=1, batch=1024, rate=5e-5, warmup=0.02),
            adapters or Adapters(chunk=8),
            held=held,
            run=run,
        )
        fitted = VLM2Vec(made, self.longest, self.frames)
        fitted.save(out_dir)
        return fitted


def _shown(query: Query) -> str:
    return "video" if query.media is not None and query.media.mime.startswith("video/") else "image"


def asked(text: str, kind: str) -> str:
    """The instruction of a query that has none; `kind` is what it shows, `"text"` for nothing."""
    if kind == "video":
        return REPRESENT["video"]
    return ASKED["text" if kind == "text" else "both" if text else "shown"]


def represented(text: str, kind: str) -> str:
    """What stands before the words of a document: nothing where it shows nothing."""
    if kind == "text":
        return ""
    return REPRESENT["both" if text and kind != "video" else kind]
