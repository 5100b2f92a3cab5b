"""Learning Transferable Visual Models From Natural Language Supervision. Radford et al. 2021, arXiv:2103.00020 (CLIP)

Two towers, one of texts and one of pictures, learned so that a picture and its caption have like vectors. A text is
`<|startoftext|>` words `<|endoftext|>`, 77 pieces at most, and its vector the projected state of the **first**
`<|endoftext|>`, which only sees what stands before it; so what pads on the right changes nothing. A picture is scaled
until its shorter side fits, cropped to the middle square, and its vector the projected state of the class token. Both
are scaled to unit length: the score is their cosine.

An item with something to show is read by that alone, any other by its text (title, headings, text). A scene of a video
is `FRAMES` key frames, the mean of their unit vectors (CLIP4Clip's mean pooling). A query has words or a picture; one
with both is refused, for CLIP learned no such vectors: `uniir` did. It reads English.

Any checkpoint of transformers' type `clip` loads from `weights/clip` of the home folder, whatever its size, once it is
there as safetensors; OpenAI's are MIT. The code is ours, over transformers' own classes. It differs in that pictures
of more than 1,024 pixels are first drawn that large. It does not train, and knows nothing of position on a page or of
small print: the space is the baseline that the multimodal encoders of this family are measured against.
"""

from __future__ import annotations

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
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from PIL.Image import Image
    from tokenizers import Tokenizer

    from ...manifests.registry import Card
    from ..parts import Parts

DIM = 512
MARKS = ("<|startoftext|>", "<|endoftext|>")
WORDS = ("vocab.json", "merges.txt")
"""Of a checkpoint without `tokenizer.json`."""
OLD_END = 2
"""`eos_token_id` of configurations before 2023: transformers then takes the highest id of a text as its end."""


class CLIP(Encoder):
    """Dense encoder of the space `clip`, cosine. Safe from many threads.

    `media.uri` of what it looks at must be **a path on this machine**, which the caller has resolved and allowed.

    Args:
        model: transformers' `CLIPModel` in evaluation mode, its dtype and device used as they are.
        tokenizer: CLIP's; a private copy is used.
        pictures: transformers' `CLIPImageProcessorPil`.
        frames: so many pictures are taken of a scene of a video.

    Raises:
        BadInput: the tokenizer or the processor is not this model's.
    """

    space = Space("clip", "dense", DIM, "cosine")
    modalities: tuple[Modality, ...] = READS
    looks = True
    mixed = True

    def __init__(self, model: Any, tokenizer: Tokenizer, pictures: Any, frames: int = FRAMES) -> None:
        words, sight = model.config.text_config, model.config.vision_config
        check_marks(tokenizer, words.vocab_size, words.eos_token_id)
        squares(pictures, sight.image_size)
        self.space = Space("clip", "dense", model.config.projection_dim, "cosine")
        self.model, self.tokenizer, self.pictures = model, tokenizer, pictures
        self._pad = tokenizer.token_to_id(MARKS[1])
        frame = framing(tokenizer, words.max_position_embeddings)
        patches = (sight.image_size // sight.patch_size) ** 2 + 1
        self._dual = Dual(frame, self._of_texts, self._of_pictures, patches, frames)

    # --- doors -------------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, card: Card, parts: Parts) -> CLIP:
        """From `weights/clip` of the home folder.

        Raises:
            MissingWeights: a file is not there.
            BadInput: they are not those of a CLIP.
        """
        set_threads(parts.settings.threads)
        folder = given_folder(card, parts.settings, CONFIG, PROCESSOR)
        return cls.from_folder(folder, parts.settings.precision, parts.device)

    @classmethod
    def from_folder(cls, folder: Path, precision: str = "auto", device: str = "cpu") -> CLIP:
        """From a local folder with the files and names of the published checkpoints.

        Raises:
            MissingWeights, BadInput: as `load`.
        """
        from transformers import CLIPImageProcessorPil, CLIPModel

        kind_of(folder, "clip")
        pictures = processor(CLIPImageProcessorPil, folder)
        tokenizer = read_tokenizer(folder, WORDS, "CLIPTokenizer")
        return cls(loaded(CLIPModel, folder, precision, device, spare=("position_ids",)), tokenizer, pictures)

    @classmethod
    def tiny(cls, seed: int = 0) -> CLIP:
        """One random layer in each tower, over bytes and pictures of 32 pixels, with the real processor: for tests."""
        from transformers import CLIPImageProcessorPil, CLIPModel

        model, tokenizer = tiny_parts(seed, CLIPModel)
        pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        return cls(model, tokenizer, pictures)

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
        refuse_both(inputs, "clip")
        return self._dual.encode(inputs, self.space.dim)

    def _of_texts(self, ids: Sequence[list[int]]) -> torch.Tensor:
        """Projected states of the first end mark, (texts, dim)."""
        width = max(map(len, ids))
        padded = torch.tensor([[*one, *[self._pad] * (width - len(one))] for one in ids], device=self.model.device)
        mask = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in ids], device=self.model.device)
        found: torch.Tensor = self.model.get_text_features(input_ids=padded, attention_mask=mask).pooler_output
        return found

    def _of_pictures(self, pictures: Sequence[Image]) -> torch.Tensor:
        """Projected states of the class token, (pictures, dim)."""
        pixels = self.pictures(images=list(pictures), return_tensors="pt")["pixel_values"]
        made = self.model.get_image_features(pixel_values=pixels.to(self.model.device, self.model.dtype))
        found: torch.Tensor = made.pooler_output
        return found


def check_marks(tokenizer: Tokenizer, size: int, end: int) -> None:
    """Raise `BadInput` unless the tokenizer puts CLIP's marks around a text and the model knows the end mark."""
    fits(tokenizer, size)
    marks = [tokenizer.token_to_id(mark) for mark in MARKS]
    if tokenizer.encode("").ids != marks:
        raise BadInput(f"The tokenizer does not put `{MARKS[0]}` and `{MARKS[1]}` around a text.", "Give CLIP's own.")
    highest = max(tokenizer.get_vocab().values())
    if marks[1] != (highest if end == OLD_END else end):
        raise BadInput(f"The model ends texts with `{end}`, the tokenizer with `{marks[1]}`.", "Give the model's own.")


def tiny_parts(seed: int, model: Any, width: int = 32) -> tuple[Any, Tokenizer]:
    """A random toy of the class `model` that is configured as a CLIP, and its tokenizer of bytes.

    Args:
        width: of the states of texts.
    """
    from transformers import CLIPConfig, CLIPTokenizer

    from ..towers import seeded

    alphabet = _alphabet()
    names = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *MARKS]
    tokenizer = CLIPTokenizer(vocab={name: place for place, name in enumerate(names)}, merges=[]).backend_tokenizer
    tower: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    ends: dict[str, Any] = {
        "bos_token_id": len(names) - 2,
        "eos_token_id": len(names) - 1,
        "pad_token_id": len(names) - 1,
    }
    # With random weights as small as they are learned from, a vector would hardly depend on the text.
    random: dict[str, Any] = {"initializer_factor": 10.0}
    words: dict[str, Any] = {"vocab_size": len(names), "max_position_embeddings": 77, "projection_dim": 24} | ends
    sight: dict[str, Any] = {"image_size": 32, "patch_size": 8, "projection_dim": 24}
    words["hidden_size"] = width
    config = CLIPConfig(text_config=tower | words | random, vision_config=tower | sight | random, projection_dim=24)
    with quiet():
        return seeded(seed, lambda: model(config).eval()), tokenizer


def _alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())
