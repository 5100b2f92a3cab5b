"""Sigmoid Loss for Language Image Pre-Training. Zhai, Mustafa, Kolesnikov and Beyer 2023, arXiv:2303.15343 (SigLIP)

Two towers as in CLIP, learned with one yes-or-no question for each pair of a batch instead of one softmax over it; for
search that leaves the cosine. What a text is differs: lower-cased, punctuation removed, the end mark `</s>`, and then
**always** filled up with `</s>` to the model's 64 pieces, which it attends to: there is no mask, and the vector is the
state of the 64th. A picture is squeezed into the model's square, not cropped, and pooled by attention.

SigLIP 2 (Tschannen et al. 2025, arXiv:2502.14786) is read, too. Its checkpoints of fixed size have the type `siglip`
and a Gemma tokenizer: lower-cased, punctuation kept, `<eos>`, filled up with `<pad>`. Those of type `siglip2` (NaFlex)
keep the shape of a picture: as many patches as their processor allows, the rest masked. It reads many languages.

An item with something to show is read by that alone, any other by its text (title, headings, text); a scene of a video
is the mean of its frames' unit vectors. A query has words or a picture; one with both is refused: `uniir` reads both.

A checkpoint of either type loads from `weights/siglip` of the home folder once it is there as safetensors with its
`tokenizer.json`; Google's are Apache-2.0. The code is ours, over transformers' own classes; the marks, the case and the
padding are set here, whatever the tokenizer's file says. Pictures of more than 1,024 pixels are first drawn that large.
"""

from __future__ import annotations

from string import punctuation
from typing import TYPE_CHECKING, Any

import torch

from ...errors import BadInput
from ..base import Encoder, Item, Modality, Query, Side, Space
from ..given import given_folder
from ..loading import CONFIG, TOKENIZER, quiet, read_tokenizer, set_threads
from ._dual import FRAMES, Dual, fits, framing, reads_one, refuse_both, squares
from ._inputs import READS
from ._loading import PROCESSOR, kind_of, loaded, processor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from PIL.Image import Image
    from tokenizers import Tokenizer

    from ...manifests.registry import Card
    from ..parts import Parts

DIM = 768
FIXED, FLEXIBLE = "siglip", "siglip2"
"""The two types of transformers: pictures of one size, and of any shape."""
OWN, GEMMA = ("</s>", "</s>"), ("<eos>", "<pad>")
"""What ends a text and what fills it up, in SigLIP's own tokenizer and in the second version's."""


class SigLIP(Encoder):
    """Dense encoder of the space `siglip`, cosine. Safe from many threads.

    `media.uri` of what it looks at must be **a path on this machine**, which the caller has resolved and allowed.

    Args:
        model: transformers' `SiglipModel` or `Siglip2Model` in evaluation mode, its dtype and device used as they are.
        tokenizer: with the marks of `OWN` or of `GEMMA`; a private copy is used.
        pictures: transformers' `SiglipImageProcessorPil` or `Siglip2ImageProcessorPil`, as the model's type asks.
        frames: so many pictures are taken of a scene of a video.

    Raises:
        BadInput: the tokenizer or the processor is not this model's.
    """

    space = Space("siglip", "dense", DIM, "cosine")
    modalities: tuple[Modality, ...] = READS
    looks = True
    mixed = True

    def __init__(self, model: Any, tokenizer: Tokenizer, pictures: Any, frames: int = FRAMES) -> None:
        words, sight = model.config.text_config, model.config.vision_config
        fits(tokenizer, words.vocab_size)
        self.many_languages = tokenizer.token_to_id(GEMMA[0]) is not None
        self.space = Space("siglip", "dense", words.projection_size or words.hidden_size, "cosine")
        self.model, self.tokenizer, self.pictures = model, tokenizer, pictures
        patches = _patches(pictures, sight)
        self._frame = framed(tokenizer, words.max_position_embeddings)
        self._dual = Dual(self._frame, self._of_texts, self._of_pictures, patches, frames)

    # --- doors -------------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, card: Card, parts: Parts) -> SigLIP:
        """From `weights/siglip` of the home folder.

        Raises:
            MissingWeights: a file is not there.
            BadInput: they are not those of a SigLIP.
        """
        set_threads(parts.settings.threads)
        folder = given_folder(card, parts.settings, CONFIG, PROCESSOR, TOKENIZER)
        return cls.from_folder(folder, parts.settings.precision, parts.device)

    @classmethod
    def from_folder(cls, folder: Path, precision: str = "auto", device: str = "cpu") -> SigLIP:
        """From a local folder with the files and names of the published checkpoints.

        Raises:
            MissingWeights, BadInput: as `load`.
        """
        import transformers

        kind = kind_of(folder, FIXED, FLEXIBLE)["model_type"]
        name = "Siglip" if kind == FIXED else "Siglip2"
        pictures = processor(getattr(transformers, f"{name}ImageProcessorPil"), folder)
        tokenizer = read_tokenizer(folder)
        model = loaded(getattr(transformers, f"{name}Model"), folder, precision, device, spare=("position_ids",))
        return cls(model, tokenizer, pictures)

    @classmethod
    def tiny(cls, seed: int = 0, kind: str = FIXED) -> SigLIP:
        """One random layer in each tower, with a tokenizer and the real processor of the given type: for tests."""
        import transformers

        from ..towers import seeded

        fixed = kind == FIXED
        tokenizer = _letters() if fixed else _bytes()
        tower: dict[str, Any] = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
        ends: dict[str, Any] = {f"{mark}_token_id": None for mark in ("bos", "eos", "pad")}
        words: dict[str, Any] = tower | ends | {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 64}
        sight: dict[str, Any] = tower | {"patch_size": 8} | ({"image_size": 32} if fixed else {"num_patches": 16})
        name = "Siglip" if fixed else "Siglip2"
        config = getattr(transformers, f"{name}Config")(text_config=words, vision_config=sight)
        with quiet():
            model = seeded(seed, lambda: getattr(transformers, f"{name}Model")(config).eval())
        size: dict[str, Any] = (
            {"size": {"height": 32, "width": 32}} if fixed else {"patch_size": 8, "max_num_patches": 16}
        )
        return cls(model, tokenizer, getattr(transformers, f"{name}ImageProcessorPil")(**size))

    def save(self, folder: Path) -> None:
        """Write what `from_folder` reads, with the published key names."""
        with quiet():
            self.model.save_pretrained(folder)
            self.pictures.save_pretrained(folder)
        self.tokenizer.save(str(folder / TOKENIZER))

    # --- vectors -----------------------------------------------------------------------------------------------------

    def reads(self, query: Query) -> bool:
        """Whether the query has words or a picture, not both."""
        return reads_one(query)

    def encode(self, inputs: Sequence[Item] | Sequence[Query], side: Side) -> np.ndarray:
        """Float32 (n, dim) of unit length, in the order of `inputs`; queries and documents are encoded alike.

        Raises:
            Unsupported: a query with words and a picture, or with neither.
            UnreadableFile: a picture is gone, damaged, or cannot be shown.
            BadInput: a picture that is a line, or a model that gives NaN.
            Cancelled, TimedOut: see `progress`.
        """
        refuse_both(inputs, "siglip")
        return self._dual.encode(inputs, self.space.dim)

    def _of_texts(self, ids: Sequence[list[int]]) -> torch.Tensor:
        """What the last piece of each full row says, (texts, dim)."""
        rows = torch.tensor(ids, device=self.model.device)
        found: torch.Tensor = self.model.get_text_features(input_ids=rows).pooler_output
        return found

    def _of_pictures(self, pictures: Sequence[Image]) -> torch.Tensor:
        """Pooled by attention, (pictures, dim)."""
        made = self.pictures(images=list(pictures), return_tensors="pt").to(self.model.device)
        made["pixel_values"] = made["pixel_values"].to(self.model.dtype)
        found: torch.Tensor = self.model.get_image_features(**made).pooler_output
        return found


def framed(tokenizer: Tokenizer, longest: int) -> Callable[[Sequence[str]], list[list[int]]]:
    """Texts to `longest` ids each: the words, cut where they are too long, the end mark, and what fills up.

    Raises:
        BadInput: the tokenizer has the marks neither of `OWN` nor of `GEMMA`.
    """
    from tokenizers import Tokenizer as Copy
    from tokenizers.processors import TemplateProcessing

    marks = GEMMA if tokenizer.token_to_id(GEMMA[0]) is not None else OWN
    for mark in marks:
        if tokenizer.token_to_id(mark) is None:
            raise BadInput(f"The tokenizer has no `{mark}`.", "Give SigLIP's own.")
    own = Copy.from_str(tokenizer.to_str())
    own.post_processor = TemplateProcessing(f"$A {marks[0]}", special_tokens=[(marks[0], own.token_to_id(marks[0]))])
    frame = framing(own, longest, padded=marks[1])
    clean = str.lower if marks == GEMMA else canonical
    return lambda texts: frame([clean(text) for text in texts])


def canonical(text: str) -> str:
    """Lower-cased, without ASCII punctuation, spaces single and none at the ends: what SigLIP was trained on.

    >>> canonical(" A photo, of a  Cat! ")
    'a photo of a cat'
    """
    return " ".join(text.lower().translate(str.maketrans("", "", punctuation)).split())


def _patches(pictures: Any, sight: Any) -> int:
    """Tokens that a picture is to the model.

    Raises:
        BadInput: the processor is another model's.
    """
    if hasattr(sight, "num_patches"):
        if pictures.patch_size != sight.patch_size:
            wrong = (
                f"The processor makes patches of `{pictures.patch_size}` pixels, the model reads `{sight.patch_size}`."
            )
            raise BadInput(wrong, "Give the model's own `preprocessor_config.json`.")
        return int(pictures.max_num_patches)
    squares(pictures, sight.image_size)
    return int((sight.image_size // sight.patch_size) ** 2)


def _letters() -> Tokenizer:
    """SigLIP's own kind: Unigram, here of single characters, with T5's first three ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = [chr(code) for code in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in letters)]
    made = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    return made


def _bytes() -> Tokenizer:
    """Gemma's kind, here of bytes."""
    from transformers import Siglip2Tokenizer

    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    made: Tokenizer = Siglip2Tokenizer(vocab={name: place for place, name in enumerate(names)}).backend_tokenizer
    return made
