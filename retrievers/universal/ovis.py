"""Ovis: Structural Embedding Alignment for Multimodal Large Language Model. Lu et al. 2024, arXiv:2405.20797

**Not a retriever**: Ovis is a model that talks about pictures; nobody trained it, or published it, for vectors. Here it
is an encoder all the same, as a backbone to learn from and to compare with: the state of the last token (or the mean
of all), of unit length, of text, pictures, or both in one prompt, which is ours.

What makes it Ovis is how a picture becomes tokens. The vision tower's features go through a linear layer and a layer
norm to one logit per word of a *visual vocabulary*; their softmax, **in float32**, is a probabilistic visual token p;
and what the language model reads is p @ table, a mean of the rows of an embedding table, as text is read by rows of
another. Marks around a picture (start, grid, row, column, end) are rows of the same table that p never reaches: their
columns are zero. A connector that maps features to the language model's width (an MLP) is another thing: its outputs
are not bound to the table.

Any checkpoint of transformers' type `ovis2` loads from `weights/ovis` of the home folder; the authors' own files of
Ovis 1.6, 2 and 2.5 need code from the hub and do not. transformers computes the softmax in the model's number format,
so in bfloat16 what is read here is more exact; its tiles are set upright (see `_ovis_tiles`). Text beyond 2,048 tokens
is cut. `fit` is ours, too: InfoNCE over pairs; the authors train it to speak.
"""

from __future__ import annotations

import threading
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import BadInput, MissingWeights
from ...progress import step
from ..base import Encoder, Item, Modality, Query, Side, Space
from ..given import given_folder
from ..loading import CONFIG, batches, encodable, quiet, set_threads
from ._inputs import READS, seen
from ._loading import PROCESSOR, kind_of, loaded, processor
from ._vectors import last, mean, unit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from PIL.Image import Image

    from ...manifests.registry import Card
    from ..fitting import Course
    from ..parts import Parts
    from ._contrastive_training import Adapters, Lesson

Pooling = Literal["last", "mean"]
DIM = 1536
BEFORE, PICTURE, BEHIND = "<|im_start|>user\n", "<image>\n", "<|im_end|>\n<|im_start|>assistant\n"
TEXT_TOKENS = 2048
FRAMES = 4
"""Of a scene of a video."""
EDGE = 2048
"""Pixels that the longer side of a picture has at most before the model's own processor."""
BATCH_TOKENS = 4096
AT_ONCE = 16
"""Inputs whose pixels are held at a time."""
INDICATORS = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
PATCH = "<IMG_ATOM>"


@dataclass(frozen=True)
class Read:
    """One input: ids int64 (tokens,), and the pixels of its tiles (tiles, 3, height, width) where it shows any."""

    ids: Tensor
    pixels: Tensor | None = None


class Ovis(Encoder):
    """Dense encoder of the space `ovis`, cosine. Safe from many threads.

    `media.uri` of what it looks at must be **a path on this machine**, which the caller has resolved and allowed.

    Args:
        model: transformers' `Ovis2Model` in evaluation mode, its dtype and device used as they are; its softmax is
            made one in float32.
        processor: transformers' `Ovis2Processor`.
        pooling: `last` token, or `mean` of all.

    Raises:
        BadInput: a model whose visual tokens are no probabilities, or a tokenizer without its marks.
    """

    space = Space("ovis", "dense", DIM, "cosine")
    modalities: tuple[Modality, ...] = READS
    looks = True
    mixed = True

    def __init__(self, model: Any, processor: Any, pooling: Pooling = "last") -> None:
        told = model.config.vision_config.tokenize_function
        if told != "softmax":
            raise BadInput(f"Its visual tokens are made by `{told}`.", "Give a model that makes them by `softmax`.")
        for mark in (PATCH, *INDICATORS):
            if processor.tokenizer.get_vocab().get(mark) is None:
                raise BadInput(f"The tokenizer has no `{mark}`.", "Use the tokenizer of the model.")
        self.space = Space("ovis", "dense", model.config.text_config.hidden_size, "cosine")
        self.model = in_float32(model)
        self.processor = processor
        self.pooling = pooling
        self._marks = [str(one) for one in processor.tokenizer.added_tokens_decoder.values() if one.special]
        self._lock = threading.Lock()

    # --- doors -------------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, card: Card, parts: Parts) -> Ovis:
        """From `weights/ovis` of the home folder.

        Raises:
            MissingWeights: a file is not there.
            BadInput: they are not those of an Ovis 2.
        """
        set_threads(parts.settings.threads)
        folder = given_folder(card, parts.settings, CONFIG, PROCESSOR)
        return cls.from_folder(folder, parts.settings.precision, parts.device)

    @classmethod
    def from_folder(cls, folder: Path, precision: str = "auto", device: str = "cpu", pooling: Pooling = "last") -> Ovis:
        """From a local folder with the files and names of the published checkpoints, with or without the head that
        predicts words.

        Raises:
            MissingWeights, BadInput: as `load`.
        """
        from transformers import AutoTokenizer, Ovis2ImageProcessorPil, Ovis2Model, Ovis2Processor

        from ._ovis_tiles import upright

        kind_of(folder, "ovis2")
        if not (folder / "tokenizer.json").is_file():
            raise MissingWeights(f"`{folder.name}` has no `tokenizer.json`.", "Put the model's own file there.")
        pictures = upright(processor(Ovis2ImageProcessorPil, folder))
        model = loaded(Ovis2Model, folder, precision, device, spare=("lm_head.",))
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return cls(model, Ovis2Processor(pictures, tokenizer, image_seq_length=tokens_of(model.config)), pooling)

    @classmethod
    def tiny(cls, seed: int = 0, pooling: Pooling = "last") -> Ovis:
        """Two random layers over bytes and 40 visual words, with the real processor: for tests."""
        from ._ovis_tiny import toy

        return cls(*toy(seed), pooling)

    def save(self, folder: Path) -> None:
        """Write what `from_folder` reads, under transformers' names of the model without head."""
        from ._ovis_tiles import published

        with quiet():
            self.model.save_pretrained(folder)
            published(self.processor.image_processor).save_pretrained(folder)
            self.processor.tokenizer.save_pretrained(folder)

    # --- vectors -----------------------------------------------------------------------------------------------------

    def encode(self, inputs: Sequence[Item] | Sequence[Query], side: Side) -> np.ndarray:
        """Float32 (n, dim) of unit length, in the order of `inputs`; queries and documents are encoded alike.

        Raises:
            Unsupported: a query with neither words nor a picture.
            UnreadableFile: a picture is gone, damaged, or cannot be shown.
            BadInput: a picture that is a line, or a model that gives NaN.
            Cancelled, TimedOut: see `progress`.
        """
        vectors = np.empty((len(inputs), self.space.dim), np.float32)
        for start in range(0, len(inputs), AT_ONCE):
            step(start, len(inputs), "inputs")
            reads = [self.read(one) for one in inputs[start : start + AT_ONCE]]
            for rows in batches([len(one.ids) for one in reads], BATCH_TOKENS):
                vectors[[start + row for row in rows]] = unit(self._pooled([reads[row] for row in rows]))
        return vectors

    def read(self, given: Item | Query) -> Read:
        """What the model reads of an input: pictures first, then its text, as one turn of a user."""
        what = seen(given, EDGE, FRAMES)
        text = encodable(what.text)
        for mark in (*self._marks, PICTURE.strip()):  # text is data: no mark of the model in it is one
            text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        with self._lock:
            before, pixels = self._shown(what.pictures)
            words, behind = (self._ids(one) for one in (text, BEHIND))
        return Read(torch.tensor([*before, *words[:TEXT_TOKENS], *behind]), pixels)

    def visual_tokens(self, picture: Image) -> Tensor:
        """The probabilistic visual tokens of a picture: float32 (patches, visual vocabulary), each row's sum 1, and 0
        for the marks, which are the last columns."""
        with self._lock:
            _, pixels = self._shown((picture,))
        tower = self.model.vision_tower
        with torch.inference_mode():
            found = tower(pixels.to(self.model.device)).pooler_output.flatten(0, 1)  # type: ignore[union-attr]
        return nn.functional.pad(found, (0, tower.num_visual_indicator_tokens))

    def _shown(self, pictures: Sequence[Image]) -> tuple[list[int], Tensor | None]:
        if not pictures:
            return self._ids(BEFORE), None
        prompt = BEFORE + PICTURE * len(pictures)
        made = self.processor(text=[prompt], images=[list(pictures)], add_special_tokens=False, return_tensors="pt")
        return made["input_ids"][0].tolist(), made["pixel_values"]

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def _pooled(self, batch: Sequence[Read]) -> Tensor:
        """Vectors (inputs, dim), not yet of unit length."""
        with torch.inference_mode():
            return self._states(batch)

    def _states(self, batch: Sequence[Read]) -> Tensor:
        """The same, with what gradients need. Padding stands on the right, behind what reads."""
        device = self.model.device
        pad = self.processor.tokenizer.pad_token_id
        ids = nn.utils.rnn.pad_sequence([one.ids for one in batch], batch_first=True, padding_value=pad).to(device)
        lengths = torch.tensor([len(one.ids) for one in batch], device=device)
        mask = (torch.arange(ids.shape[1], device=device) < lengths[:, None]).long()
        pixels = [one.pixels for one in batch if one.pixels is not None]
        shown = {"pixel_values": torch.cat(pixels).to(device)} if pixels else {}
        states = self.model(input_ids=ids, attention_mask=mask, use_cache=False, **shown).last_hidden_state
        return last(states, mask) if self.pooling == "last" else mean(states.float(), mask)

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
    ) -> Ovis:
        """A copy that learned which item answers which query, by InfoNCE over the batch of all processes and the wrong
        items that lessons name; saved in `out_dir`, for `from_folder`. A fit that was stopped goes on from its last
        checkpoint. The copy computes in float32. All of it is ours.

        Args:
            held: other lessons, whose loss tells which checkpoint is kept.
            run: lessons of one group that stand together in a batch.

        Raises:
            BadInput, UnreadableFile, MissingExtra, Cancelled, TimedOut: see `_contrastive_training`.
            Unsupported: as `encode`.
        """
        from ..fitting import Course
        from ._contrastive_training import Adapters, Contrast, adapt, begun, contrasted, info_nce

        course, adapters = course or Course(epochs=1, batch=64, rate=1e-4), adapters or Adapters(chunk=4)
        begun(lessons, held, out_dir, course, run, adapters=adapters, pooling=self.pooling)
        made = Ovis(deepcopy(self.model).float(), self.processor, self.pooling)
        merge = adapt(made.model, made.model.language_model, adapters, course.seed)
        network = Contrast(made.model, made._states, info_nce, adapters.chunk)
        contrasted(network, lessons, held, out_dir, course, lambda one, side: made.read(one), run)
        merge()
        made.model.to(self.model.device).eval()
        made.save(out_dir)
        return made


def in_float32(model: Any) -> Any:
    """`model`, its visual tokens computed in float32 whatever it computes in else; done twice, it is the same."""
    tower, table = model.vision_tower, model.visual_embeddings_table
    tower.head_norm.register_forward_hook(lambda _, __, logits: logits.float())
    table.register_forward_pre_hook(
        lambda own, given: (given[0].to(own.weight.dtype) if given[0].is_floating_point() else given[0],)
    )
    return model


def tokens_of(config: Any) -> int:
    """Visual tokens of one tile: patches, `hidden_stride` x `hidden_stride` of them merged into one."""
    vision = config.vision_config
    side = -(-(vision.image_size // vision.patch_size) // vision.hidden_stride)
    return int(side * side)
