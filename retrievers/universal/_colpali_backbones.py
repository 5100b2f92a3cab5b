"""The three networks of the ColPali family: how each reads a page and a query, with transformers' own processors.

All give one vector of 128 numbers per token. PaliGemma sees a page as one square of patches and attends in both
directions; Qwen2-VL (and 2.5) sees it at its own proportions; Idefics3 (SmolVLM) as tiles with the whole page behind.
Apart from `colpali`, so that who only lists systems imports no torch.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from math import isqrt
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Idefics3Model, Idefics3PreTrainedModel

from ...errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from PIL.Image import Image

DIM = 128
QUERY_TOKENS = 512
"""That are read of a query, with what stands around it; the published code has no limit."""
AUGMENTATION = 10
"""Tokens at a query's end that mean nothing by themselves: the model writes there what else could be meant."""


@dataclass(frozen=True)
class Read:
    """A page or query as a network reads it, alone.

    Attributes:
        ids: int64 (tokens,).
        pixels: what the processor made of the page.
        patches: (rows, columns) of the places in `ids` that the page's patches have; (0, 0) of a query.
    """

    ids: Tensor
    pixels: Mapping[str, Tensor] = field(default_factory=dict)
    patches: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.int64))


class Backbone(ABC):
    """A network with its processor, behind a lock: tokenizers cannot be asked by two threads at a time.

    Args:
        network: in evaluation mode, its dtype and device used as they are.
        processor: transformers' own.

    Raises:
        BadInput: the network's vectors have another size.
    """

    model_type: ClassVar[str]
    projection: ClassVar[str]
    """Of the linear layer that gives the vectors: its name in the network."""

    def __init__(self, network: Any, processor: Any) -> None:
        found = getattr(network, self.projection).out_features
        if found != DIM:
            raise BadInput(f"The network gives vectors of `{found}` numbers.", f"Give one of the family: {DIM}.")
        self.network = network
        self.processor = processor
        self._marks = [str(one) for one in processor.tokenizer.added_tokens_decoder.values() if one.special]
        self._lock = threading.Lock()

    def page(self, picture: Image) -> Read:
        """A page, upright and in RGB."""
        with self._lock:
            return self._page(picture)

    def query(self, text: str) -> Read:
        """A query; a longer one is cut, and what stands behind stays. Marks of the model in its text are no marks."""
        before, behind = self.around
        for mark in self._marks:
            text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        with self._lock:
            ids, tail = (
                self.processor.tokenizer(one, add_special_tokens=False)["input_ids"]
                for one in (f"{before}{text}{behind}", behind)
            )
        if len(ids) > QUERY_TOKENS:
            ids = [*ids[: QUERY_TOKENS - len(tail)], *ids[-len(tail) :]]
        return Read(torch.tensor(ids))

    @property
    @abstractmethod
    def around(self) -> tuple[str, str]:
        """What stands before and behind a query's text."""

    @abstractmethod
    def _page(self, picture: Image) -> Read: ...

    @abstractmethod
    def _vectors(self, ids: Tensor, mask: Tensor, batch: Sequence[Read]) -> Tensor: ...

    def vectors(self, batch: Sequence[Read]) -> tuple[Tensor, Tensor]:
        """Vectors (inputs, tokens, 128) of pages, or of queries, and the mask (inputs, tokens) of those that count.

        Padding stands on the right, where no row is without anything to attend to. The published processors of Qwen
        and Idefics3 put it on the left: with positions that only count relative to one another it is the same.
        """
        with torch.inference_mode():
            return self.states(batch)

    def states(self, batch: Sequence[Read]) -> tuple[Tensor, Tensor]:
        """The same, with what gradients need."""
        device = self.network.device
        ids, mask = padded([one.ids for one in batch], self.processor.tokenizer.pad_token_id)
        return self._vectors(ids.to(device), mask.to(device), batch), mask.to(device)

    def tokens(self, read: Read) -> tuple[str, ...]:
        """The text of each token."""
        return tuple(self.processor.tokenizer.decode([int(one)]) for one in read.ids)

    def _stacked(self, name: str, batch: Sequence[Read]) -> Tensor:
        """One tensor of the batch, filled up with zeros along its first axis."""
        parts = [one.pixels[name] for one in batch]
        return nn.utils.rnn.pad_sequence(parts, batch_first=True).to(self.network.device)

    def _places(self, ids: Tensor) -> Tensor:
        found: Tensor = (ids == self.processor.image_token_id).nonzero()[:, 0]
        return found


class PaliGemma(Backbone):
    """ColPali. Every token sees every other: the network's mask is causal unless token types say that all of it is
    prefix. The query's augmentation tokens are padding tokens, which are attended to and kept."""

    model_type = "colpali"
    projection = "embedding_proj_layer"

    @property
    def around(self) -> tuple[str, str]:
        tokenizer = self.processor.tokenizer
        behind = self.processor.query_augmentation_token * AUGMENTATION + "\n"
        return f"{tokenizer.bos_token}{self.processor.query_prefix}", behind

    def _page(self, picture: Image) -> Read:
        made = self.processor(images=[picture])
        places = self._places(made["input_ids"][0]).numpy()
        side = isqrt(len(places))
        return Read(made["input_ids"][0], {"pixel_values": made["pixel_values"][0]}, places.reshape(side, side))

    def _vectors(self, ids: Tensor, mask: Tensor, batch: Sequence[Read]) -> Tensor:
        shown = {}
        if batch[0].pixels:
            shown["pixel_values"] = torch.stack([one.pixels["pixel_values"] for one in batch]).to(ids.device)
        found: Tensor = self.network(
            input_ids=ids, attention_mask=mask, token_type_ids=torch.zeros_like(ids), use_cache=False, **shown
        ).embeddings
        return found


class Qwen(Backbone):
    """ColQwen2, or 2.5 where that is the network inside. transformers' class counts the tokens of a page one after the
    other; the published weights were trained with rows and columns (M-RoPE), so these positions are given here."""

    model_type = "colqwen2"
    projection = "embedding_proj_layer"

    @property
    def around(self) -> tuple[str, str]:
        return self.processor.query_prefix, self.processor.query_augmentation_token * AUGMENTATION + "\n"

    def _page(self, picture: Image) -> Read:
        made = self.processor(images=[picture])
        grid = made["image_grid_thw"][0]
        rows, columns = (int(n) // self.processor.image_processor.merge_size for n in grid[1:])
        places = self._places(made["input_ids"][0]).numpy()
        pixels = {"pixel_values": made["pixel_values"][0], "image_grid_thw": grid}
        return Read(made["input_ids"][0], pixels, places.reshape(rows, columns))

    def _vectors(self, ids: Tensor, mask: Tensor, batch: Sequence[Read]) -> Tensor:
        shown = {}
        if batch[0].pixels:
            grid = torch.stack([one.pixels["image_grid_thw"] for one in batch]).to(ids.device)
            kinds = (ids == self.processor.image_token_id).int()
            places, _ = self.network.vlm.get_rope_index(
                ids, mm_token_type_ids=kinds, image_grid_thw=grid, attention_mask=mask
            )
            pixels = self._stacked("pixel_values", batch).to(self.network.dtype)
            shown = {"pixel_values": pixels, "image_grid_thw": grid, "position_ids": places}
        found: Tensor = self.network(input_ids=ids, attention_mask=mask, use_cache=False, **shown).embeddings
        return found


class Smol(Backbone):
    """ColSmol. The page's prompt and the query's augmentation token are those of colpali-engine."""

    model_type = "idefics3"
    projection = "linear"
    prompt = "<|im_start|>User:<image>Describe the image.<end_of_utterance>\nAssistant:"

    @property
    def around(self) -> tuple[str, str]:
        return "Query: ", "<end_of_utterance>" * AUGMENTATION

    def _page(self, picture: Image) -> Read:
        made = self.processor(text=[self.prompt], images=[[picture]], return_tensors="pt")
        ids = made["input_ids"][0]
        pixels = {name: made[name][0] for name in ("pixel_values", "pixel_attention_mask")}
        return Read(ids, pixels, self._tiled(ids))

    def _tiled(self, ids: Tensor) -> np.ndarray:
        """Places of the patches of all tiles, side by side as they lie on the page; of a page that was not cut into
        tiles, those of its only picture."""
        side = isqrt(self.processor.image_seq_len)
        pictures = self._places(ids).numpy().reshape(-1, side, side)
        if len(pictures) == 1:
            whole: np.ndarray = pictures[0]
            return whole
        columns = next(n for n in range(1, len(pictures)) if not self._has(ids, 1, n + 1))
        rows = (len(pictures) - 1) // columns
        tiles = pictures[:-1].reshape(rows, columns, side, side)
        tiled: np.ndarray = tiles.transpose(0, 2, 1, 3).reshape(rows * side, columns * side)
        return tiled

    def _has(self, ids: Tensor, row: int, column: int) -> bool:
        name = f"<row_{row}_col_{column}>"
        return bool((ids == self.processor.tokenizer.convert_tokens_to_ids(name)).any())

    def _vectors(self, ids: Tensor, mask: Tensor, batch: Sequence[Read]) -> Tensor:
        shown = {}
        if batch[0].pixels:
            shown = {name: self._stacked(name, batch) for name in ("pixel_values", "pixel_attention_mask")}
        found: Tensor = self.network(input_ids=ids, attention_mask=mask, **shown)
        return found


class ColIdefics3(Idefics3PreTrainedModel):  # type: ignore[misc]
    """Idefics3 without its language-modelling head, and a linear layer; names are those of colpali-engine."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = Idefics3Model(config)
        self.linear = nn.Linear(config.text_config.hidden_size, DIM)
        self.post_init()

    def forward(self, **given: Any) -> Tensor:
        """Vectors (inputs, tokens, 128), not of unit length yet."""
        found: Tensor = self.linear(self.model(**given, use_cache=False).last_hidden_state)
        return found


def padded(sequences: Sequence[Tensor], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, int64 (inputs, longest)."""
    ids = nn.utils.rnn.pad_sequence(list(sequences), batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(one) for one in sequences])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()
