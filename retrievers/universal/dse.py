"""DSE: Unifying Multimodal Retrieval via Document Screenshot Embedding. Ma et al. 2024, arXiv:2406.11251

A page is embedded as its screenshot, without reading its text: one multimodal language model takes page and question,
and the vector is the last layer's state of the token at the end, of unit length. The paper's model is Phi-3-Vision;
here it is the authors' later Qwen2-VL. Page and question are the same user turn behind the default system turn, a
picture and words: the page with `What is shown in this image?`, the question with `Query: …` and a black picture of 28
pixels, so that both have the same shape. The assistant's turn is opened and is `<|endoftext|>`.

A page is scaled to a square of 748 pixels, which the model's patches make 756 and 729 tokens (`edge`: fewer are faster;
the page of the checkpoint shows 680); the black picture becomes 56 pixels and four tokens. A question has at most 128
tokens, a page 4,096. `dim` keeps the first numbers of a vector (Matryoshka): the checkpoint was trained for it.

The released `MrLight/dse-qwen2-2b-mrl-v1` loads from `weights/dse` of the home folder once it is there as safetensors;
licence: see its page. `Tevatron/dse-phi3-v1.0`, `Tevatron/dse-phi3-docmatix-v1`, `-v2`, `MrLight/dse-phi35-vidore-ft`
stand on Phi-3-Vision, which transformers lacks: their code would be the checkpoints', so they are never loaded. The
code here is ours, over transformers' own classes.

It differs: the limit of a question cuts its words and never the token at the end. The training example of the authors'
repository leaves the assistant's turn out, the checkpoint's page opens it: we follow the page. Documents are pages and
pictures; their text is not read, and plain text is not encoded. `fit` is InfoNCE over the pages of a batch and the
wrong ones that lessons name (the authors: one); its adapters are LoRA, theirs DoRA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import BadInput, Unsupported
from ..base import Encoder, Item, Modality, Query, Side, Space
from ..loading import set_threads
from ._inputs import pictured
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
    from ._mllm import Read

DIM = 1536
BACKBONES = ("qwen2_vl",)
LONGEST = {"query": 128, "document": 4096}
PAGE, DUMMY = 748, 28
"""Pixels of the squares that a page and the picture of a question are asked to be."""
LEAST, MOST = 4, 2560
"""Tokens of a picture."""
TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|>{mark}<|vision_end|>",
    "<|im_end|>\n<|im_start|>assistant\n<|endoftext|>",
)
TEMPERATURE = 0.02
ASKED, SHOWN = "Query: ", "What is shown in this image?"


class DSE(Encoder):
    """Dense encoder of the space `dse`, cosine: of pages, for questions in words. Safe from many threads.

    `media.uri` of an item must be **a path on this machine**, which the caller has resolved and allowed.

    Args:
        backbone: of one of `BACKBONES`.
        dim: so many numbers of a vector; 0 for all.
        edge: pixels of the square that a page is scaled to.

    Raises:
        BadInput: a backbone of another architecture, a tokenizer without the marks of a conversation, or a `dim` that
            the model does not have.
    """

    space = Space("dse", "dense", DIM, "cosine")
    modalities: tuple[Modality, ...] = ("page", "image")
    looks = True
    pages = True

    def __init__(self, backbone: Backbone, dim: int = 0, edge: int = PAGE) -> None:
        if backbone.kind not in BACKBONES:
            raise BadInput(f"The backbone is `{backbone.kind}`.", f"Give one of type {' or '.join(BACKBONES)}.")
        if not 0 <= dim <= backbone.size:
            raise BadInput(f"dim is `{dim}`.", f"A vector has {backbone.size} numbers; 0 takes all.")
        for mark in ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|endoftext|>"):
            backbone.token(mark)
        backbone.bound(1, MOST)
        self.backbone, self.dim, self.edge = backbone, dim, edge
        self.space = Space("dse", "dense", dim or backbone.size, "cosine")

    # --- doors -------------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, card: Card, parts: Parts) -> DSE:
        """From `weights/dse` of the home folder.

        Raises:
            MissingWeights: a file is not there.
            BadInput: they are not those of a Qwen2-VL.
            MissingExtra: they are an adapter, and peft is not installed.
        """
        set_threads(parts.settings.threads)
        return cls(Backbone.load(card, parts, BACKBONES))

    @classmethod
    def from_folder(cls, folder: Path, precision: str = "auto", device: str = "cpu", dim: int = 0) -> DSE:
        """From a local folder with the files and names of the published checkpoint; raises as `load`."""
        return cls(Backbone.from_folder(folder, BACKBONES, precision, device), dim)

    @classmethod
    def tiny(cls, seed: int = 0) -> DSE:
        """Two random layers over bytes and pages of 112 pixels, with the real picture processor: for tests."""
        return cls(Backbone.tiny("qwen2_vl", seed), edge=112)

    def save(self, folder: Path) -> None:
        """Write what `from_folder` reads."""
        self.backbone.save(folder)

    # --- vectors -----------------------------------------------------------------------------------------------------

    def reads(self, query: Query) -> bool:
        """Whether the query has words, and no picture beside them."""
        return query.text is not None and query.media is None

    def encode(self, inputs: Sequence[Item] | Sequence[Query], side: Side) -> np.ndarray:
        """Float32 (n, dim) of unit length, in the order of `inputs`.

        Raises:
            Unsupported: a query that is not words alone, or an item without a picture.
            UnreadableFile: a page is gone, damaged, or cannot be shown.
            BadInput: a page that is a line, or a model that gives NaN.
            Cancelled, TimedOut: see `progress`.
        """
        return self.backbone.vectors(inputs, self.said, LONGEST[side], self.dim)

    def said(self, given: Item | Query) -> Said:
        """What the model reads of a question or page."""
        from PIL import Image

        before, after = TEMPLATE
        before = before.format(mark=self.backbone.mark)
        if isinstance(given, Query):
            if given.text is None or given.media is not None:
                raise Unsupported("DSE finds pages by words, and the query is something else.", "Ask with text alone.")
            return Said(before + ASKED, given.text, after, (Image.new("RGB", squared(DUMMY)),))
        if given.modality not in self.modalities and given.modality != "text":  # a page's first passage may be text
            raise Unsupported(f"DSE reads pages and pictures, and `{given.id}` is {given.modality}.", "Leave it out.")
        page = pictured(given, EDGE)
        return Said(before + SHOWN, "", after, (page.resize(squared(self.edge)),))

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
    ) -> DSE:
        """A copy that learned which page answers which question, by InfoNCE over the batch of all processes and the
        wrong pages that lessons name; saved in `out_dir`, for `from_folder`. A fit that was stopped goes on from its
        last checkpoint. The copy computes in float32. The usual is what was published with DSE, for one GPU.

        Args:
            held: other lessons, whose loss tells which checkpoint is kept.
            run: lessons of one group that stand together in a batch.

        Raises:
            BadInput, UnreadableFile, MissingExtra, Cancelled, TimedOut: see `_contrastive_training`.
            Unsupported: as `encode`.
        """
        from ..fitting import Course
        from ._contrastive_training import Adapters, backbone_fitted, info_nce

        def prepare(given: Item | Query, side: Side) -> Read:
            return self.backbone.read(self.said(given), LONGEST[side])

        def loss(queries: Tensor, pages: Tensor, right: Tensor) -> Tensor:
            kept = self.dim or self.backbone.size
            return info_nce(queries[:, :kept], pages[:, :kept], right, TEMPERATURE)

        made, _ = backbone_fitted(
            self.backbone,
            lessons,
            out_dir,
            prepare,
            loss,
            course or Course(epochs=1, batch=8, rate=1e-4),
            adapters or Adapters(chunk=2),
            held=held,
            run=run,
            dim=self.dim,
        )
        fitted = DSE(made, self.dim, self.edge)
        fitted.save(out_dir)
        return fitted


def squared(edge: int) -> tuple[int, int]:
    """Width and height of a square of about `edge` pixels that Qwen's patches of 28 fill, four of them at least.

    >>> squared(748), squared(28)
    ((756, 756), (56, 56))
    """
    whole = max(round(edge / 28), round(LEAST**0.5)) * 28
    return whole, whole
