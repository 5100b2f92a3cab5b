"""UniIR: Training and Benchmarking Universal Multimodal Information Retrievers. Wei et al. 2024, arXiv:2311.17136

Words, a picture, or a picture with words become one vector of one space, on both sides, and an instruction before the
words of a query says what is looked for ("Find a picture that ..."). Documents have no instruction. As in the authors'
data a text begins with a capital and ends with `.`, `?` or `!`, after the instruction has been put before it.

- CLIP_SF: the sum of CLIP's two vectors, made of unit length; what is missing is left out, so words alone and a picture
  alone have CLIP's own vectors. 77 pieces.
- CLIP_FF: both towers' states, not pooled, go through two layers of a T5 encoder, and the mean is taken over all of
  them; a missing text is the empty one, a missing picture all zeros, and no mask says so. 77 places, always.
- BLIP_FF: BLIP's text encoder with cross-attention to the picture's states, pooled; the same stands for what is
  missing. 100 pieces.

Which of them it is, the folder `weights/uniir` of the home folder says: a CLIP's files are CLIP_SF; with a `fusion`
folder beside them (a T5 encoder) CLIP_FF; `vision` and `text` folders (transformers' two halves of BLIP) are BLIP_FF.
The published `clip_sf_large.pth` and `blip_ff_large.pth` (MIT) are pickles, into which the authors' trainer writes its
own objects, too; they are not opened here. Whoever has their `model` as safetensors puts it there as
`model.safetensors`, beside the other files of `openai/clip-vit-large-patch14`, or beside a BERT's `tokenizer.json` and
BLIP's processor of 224 pixels: the names, OpenAI's and BLIP's own, are read as the authors' code has them; no such file
was at hand.

`fit` is the in-batch loss for the CLIP variants, see `_uniir_training`, and that with a slow copy of the network and a
queue for BLIP_FF, see `_uniir_momentum`. The code is ours. A scene of a video is its one key frame; a page is its
picture alone.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...errors import BadInput
from ...progress import step
from ..base import Encoder, Item, Modality, Query, Side, Space
from ..given import given_folder
from ..loading import TOKENIZER, batches, quiet, read_tokenizer, set_threads
from ._dual import BATCH_TOKENS, EDGE, fits, framing, squares
from ._inputs import READS, seen, shows, words
from ._loading import PROCESSOR, processor
from ._uniir_fusion import Batch, FeatureFusion, ScoreFusion
from ._uniir_names import SIGHT, named
from ._uniir_parts import PIECES, TEXT, VISION, blip_of, clip_of, t5_of, tiny_blip, tiny_t5
from ._vectors import unit
from .clip import WORDS, check_marks, tiny_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tokenizers import Tokenizer

    from ...manifests.registry import Card
    from ..parts import Parts
    from ._uniir_training import Fitting, Lesson

DIM = 768
FUSION = "fusion"
"""Folder of the encoder over a CLIP's states."""
VARIANTS = ("CLIP_SF", "CLIP_FF", "BLIP_FF")


class UniIR(Encoder):
    """Dense encoder of the space `uniir`, cosine. Safe from many threads.

    `media.uri` of what it looks at must be **a path on this machine**, which the caller has resolved and allowed.

    Args:
        network: `ScoreFusion`, `FeatureFusion` or `CrossFusion` in evaluation mode, its dtype and device as they are.
        tokenizer: CLIP's, or BERT's for BLIP; a private copy is used.
        pictures: transformers' `CLIPImageProcessorPil` or `BlipImageProcessorPil`.

    Raises:
        BadInput: the tokenizer or the processor is not this model's.
    """

    space = Space("uniir", "dense", DIM, "cosine")
    modalities: tuple[Modality, ...] = READS
    looks = True
    mixed = True

    def __init__(self, network: Any, tokenizer: Tokenizer, pictures: Any) -> None:
        sight = (network.vision if hasattr(network, "vision") else network.clip).config
        sight = getattr(sight, "vision_config", sight)
        squares(pictures, sight.image_size)
        self.network, self.tokenizer, self.pictures = network, tokenizer, pictures
        self.space = Space("uniir", "dense", network.dim, "cosine")
        self._edge = sight.image_size
        self._patches = (sight.image_size // sight.patch_size) ** 2 + 1
        if hasattr(network, "text"):
            fits(tokenizer, network.text.config.vocab_size)
            self._frame, self._fill = _bert_framing(tokenizer)
        else:
            text = network.clip.config.text_config
            check_marks(tokenizer, text.vocab_size, text.eos_token_id)
            self._frame, self._fill = framing(tokenizer, text.max_position_embeddings), 0

    # --- doors -------------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, card: Card, parts: Parts) -> UniIR:
        """From `weights/uniir` of the home folder.

        Raises:
            MissingWeights: a file is not there.
            BadInput: they are of none of the three networks.
        """
        set_threads(parts.settings.threads)
        folder = given_folder(card, parts.settings, PROCESSOR)
        return cls.from_folder(folder, parts.settings.precision, parts.device)

    @classmethod
    def from_folder(cls, folder: Path, precision: str = "auto", device: str = "cpu") -> UniIR:
        """From a local folder; which network it is, see above.

        Raises:
            MissingWeights, BadInput: as `load`.
        """
        from transformers import BlipImageProcessorPil, CLIPImageProcessorPil

        if (folder / TEXT).is_dir() or named(folder) == SIGHT:
            network: Any = blip_of(folder, precision, device)
            tokenizer = read_tokenizer(folder, ("vocab.txt",), "BertTokenizer")
            return cls(network.eval(), tokenizer, processor(BlipImageProcessorPil, folder))
        clip = clip_of(folder, precision, device)
        network = ScoreFusion(clip)
        if (folder / FUSION).is_dir():
            network = FeatureFusion(clip, t5_of(folder / FUSION, precision, device))
        tokenizer = read_tokenizer(folder, WORDS, "CLIPTokenizer")
        return cls(network.eval(), tokenizer, processor(CLIPImageProcessorPil, folder))

    @classmethod
    def tiny(cls, seed: int = 0, variant: str = VARIANTS[0]) -> UniIR:
        """A random toy of one of `VARIANTS`, over bytes or letters, with the real processor: for tests."""
        from transformers import BlipImageProcessorPil, CLIPImageProcessorPil, CLIPModel

        if variant == "BLIP_FF":
            return cls(*tiny_blip(seed), BlipImageProcessorPil(size={"height": 32, "width": 32}))
        pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        clip, tokenizer = tiny_parts(seed, CLIPModel, width=24 if variant == "CLIP_FF" else 32)
        network: Any = ScoreFusion(clip) if variant == "CLIP_SF" else FeatureFusion(clip, tiny_t5(seed, 24))
        return cls(network.eval(), tokenizer, pictures)

    def save(self, folder: Path) -> None:
        """Write what `from_folder` reads."""
        parts = {"clip": "", "fusion": FUSION, "vision": VISION, "text": TEXT}
        with quiet():
            for part, below in parts.items():
                if hasattr(self.network, part):
                    getattr(self.network, part).save_pretrained(folder / below)
            self.pictures.save_pretrained(folder)
        self.tokenizer.save(str(folder / TOKENIZER))

    # --- vectors -----------------------------------------------------------------------------------------------------

    def encode(self, inputs: Sequence[Item] | Sequence[Query], side: Side) -> np.ndarray:
        """Float32 (n, dim) of unit length, in the order of `inputs`. The instruction of a query counts, nothing else
        tells the sides apart. A query of nothing but an empty text is that text.

        Raises:
            Unsupported: a query with neither words nor a picture.
            UnreadableFile: a picture is gone, damaged, or cannot be shown.
            BadInput: a picture that is a line, or a model that gives NaN.
            Cancelled, TimedOut: see `progress`.
        """
        vectors = np.empty((len(inputs), self.space.dim), np.float32)
        pieces = self._frame([said(inputs[row]) for row in range(len(inputs))])
        lengths = [len(ids) + self._patches * shows(inputs[row]) for row, ids in enumerate(pieces)]
        done = 0
        for rows in batches(lengths, BATCH_TOKENS):
            step(done, len(inputs), "inputs")
            with torch.inference_mode():
                vectors[rows] = unit(self.network(self._batch([inputs[row] for row in rows])))
            done += len(rows)
        return vectors

    def _batch(self, inputs: Sequence[Item | Query]) -> Batch:
        """Padded and on the network's device; what has neither words nor a picture is taken to have words."""
        weight = next(self.network.parameters())
        texts = [said(one) for one in inputs]
        shots = [seen(one, EDGE).pictures[:1] for one in inputs]
        ids = self._frame(texts)
        width = self.network.wide or max(map(len, ids))
        filled = torch.tensor([[*one, *[self._fill] * (width - len(one))] for one in ids])
        mask = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in ids])
        shown = torch.tensor([bool(shot) for shot in shots])
        worded = torch.tensor([bool(text) for text in texts]) | ~shown
        pixels = torch.zeros(0, 3, self._edge, self._edge)
        if shown.any():
            pixels = self.pictures(images=[one for shot in shots for one in shot], return_tensors="pt")["pixel_values"]
        return Batch(*(part.to(weight.device) for part in (filled, mask, worded, pixels.to(weight.dtype), shown)))

    # --- learning ----------------------------------------------------------------------------------------------------

    def fit(
        self, lessons: Sequence[Lesson], out_dir: Path, *, held: Sequence[Lesson] = (), fitting: Fitting | None = None
    ) -> UniIR:
        """A copy of this encoder, trained; saved in `out_dir`, from where `from_folder` takes it back. A fit that was
        stopped goes on where its last epoch ended.

        Args:
            held: other lessons, whose loss tells the best epoch.
            fitting: `_uniir_momentum.MomentumFitting` for BLIP_FF; default: the published settings.

        Raises:
            BadInput: settings of the other networks; further, as UnreadableFile, Cancelled and TimedOut: see
                `_uniir_training.fit`.
        """
        from ._uniir_momentum import MomentumContrast, MomentumFitting
        from ._uniir_training import Contrast, Fitting, fit

        wanted = Fitting if hasattr(self.network, "clip") else MomentumFitting
        fitting = fitting or wanted()
        if type(fitting) is not wanted:
            given = f"The settings are a `{type(fitting).__name__}`."
            raise BadInput(given, f"Give this network a `{wanted.__name__}`.")
        made = UniIR(deepcopy(self.network).float(), self.tokenizer, self.pictures)
        learner: torch.nn.Module = Contrast(made.network, fitting.chunk)
        if isinstance(fitting, MomentumFitting):
            learner = MomentumContrast(made.network, len(lessons), fitting)
        fit(learner, lessons, out_dir, made._on_cpu, held=held, fitting=fitting)
        made.network.eval()
        made.save(out_dir)
        return made

    def _on_cpu(self, inputs: Sequence[Item | Query]) -> Batch:
        """For the trainer, which takes batches to its device itself."""
        batch = self._batch(inputs)
        return Batch(*(getattr(batch, part.name).cpu() for part in fields(batch)))


def said(given: Item | Query) -> str:
    """What is read as its text: for a query the instruction, a space and the words; as a sentence.

    Raises:
        Unsupported: a query with neither words nor a picture.
    """
    text = words(given)
    if isinstance(given, Query) and given.instruction:
        text = f"{given.instruction} {text}"
    return sentence(text)


def sentence(text: str) -> str:
    """As the authors write all texts: trimmed, without quotation marks at the ends, a capital first, a mark last.

    >>> sentence(' "an owl"'), sentence("Where is it?"), sentence(" ")
    ('An owl.', 'Where is it?', '')
    """
    bare = text.replace("\r", "").strip().strip('"')
    if not bare:
        return ""
    return bare[0].upper() + bare[1:] + ("" if bare[-1] in ".?!" else ".")


def _bert_framing(tokenizer: Tokenizer) -> tuple[Callable[[Sequence[str]], list[list[int]]], int]:
    """As BLIP was fine-tuned: BERT's own marks (not BLIP's `[ENC]`), at most `PIECES`."""
    from ..towers import framing as bert_framing

    return bert_framing(tokenizer, "bert", PIECES)
