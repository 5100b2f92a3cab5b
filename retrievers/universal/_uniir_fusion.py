"""UniIR's three networks (arXiv:2311.17136): words and a picture become one vector, by sum, by a small encoder over
both towers' tokens, or by cross-attention. All read the same `Batch` and give (inputs, dim), not of unit length.

What is missing is not the same thing to each: the sum leaves it out, the other two read an empty text or a picture of
zeros in its place, and nothing tells them that they do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import BadInput


@dataclass(frozen=True)
class Batch:
    """Inputs of one forward pass.

    Attributes:
        ids, mask: int64 (inputs, pieces), padded on the right; an input without words has those of the empty text.
        worded: bool (inputs): which have words.
        pixels: (pictures, 3, edge, edge), of those inputs that have one, in their order.
        shown: bool (inputs): which have a picture.
    """

    ids: Tensor
    mask: Tensor
    worded: Tensor
    pixels: Tensor
    shown: Tensor


class ScoreFusion(nn.Module):
    """CLIP_SF: the sum of what CLIP's towers give, each only where there is something to read.

    Args:
        clip: transformers' `CLIPModel`.
    """

    wide = 0
    """Pieces that every text is filled up to; 0 for the longest of the batch."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip
        self.dim = int(clip.config.projection_dim)

    def forward(self, batch: Batch) -> Tensor:
        made = torch.zeros(len(batch.ids), self.dim, dtype=self.clip.dtype, device=batch.ids.device)
        if batch.worded.any():
            ids, mask = batch.ids[batch.worded], batch.mask[batch.worded]
            made[batch.worded] += self.clip.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
        if batch.shown.any():
            made[batch.shown] += self.clip.get_image_features(pixel_values=batch.pixels).pooler_output
        return made


class FeatureFusion(nn.Module):
    """CLIP_FF: the mean over what a T5 encoder makes of CLIP's 77 text states and all projected patch states.

    The text's states are those of all 77 places, whatever fills them up, without projection; no mask is used.

    Args:
        clip: transformers' `CLIPModel`.
        fusion: transformers' `T5EncoderModel` of two layers.

    Raises:
        BadInput: states of three sizes.
    """

    def __init__(self, clip: Any, fusion: Any) -> None:
        super().__init__()
        sizes = clip.config.text_config.hidden_size, clip.config.projection_dim, fusion.config.d_model
        if len(set(sizes)) > 1:
            told = "Text states, projected patches and the fusing encoder have `{}`, `{}` and `{}` dimensions."
            raise BadInput(told.format(*sizes), "Give parts of one size.")
        self.clip, self.fusion = clip, fusion
        self.dim = int(clip.config.projection_dim)
        self.wide = int(clip.config.text_config.max_position_embeddings)

    def forward(self, batch: Batch) -> Tensor:
        words = self.clip.text_model(input_ids=batch.ids).last_hidden_state
        patches = _or_black(batch, self._patches, self.clip.config.vision_config.image_size)
        found: Tensor = self.fusion(inputs_embeds=torch.cat([words, patches], dim=1)).last_hidden_state.mean(dim=1)
        return found

    def _patches(self, pixels: Tensor) -> Tensor:
        tower = self.clip.vision_model
        found: Tensor = self.clip.visual_projection(tower.post_layernorm(tower(pixel_values=pixels).last_hidden_state))
        return found


class CrossFusion(nn.Module):
    """BLIP_FF: the pooled first state of BLIP's text encoder, whose layers also attend to all states of the picture.

    Args:
        vision: transformers' `BlipVisionModel`.
        text: transformers' `BlipTextModel` with pooler and cross-attention.

    Raises:
        BadInput: it has no cross-attention, or to states of another size.
    """

    wide = 0

    def __init__(self, vision: Any, text: Any) -> None:
        super().__init__()
        if not text.config.is_decoder or text.config.encoder_hidden_size != vision.config.hidden_size:
            sizes = f"`{text.config.encoder_hidden_size}` and `{vision.config.hidden_size}`"
            raise BadInput(f"The text encoder attends to states of {sizes} dimensions.", "Give parts of one model.")
        self.vision, self.text = vision, text
        self.dim = int(text.config.hidden_size)

    def forward(self, batch: Batch) -> Tensor:
        states = _or_black(batch, self._states, self.vision.config.image_size)
        made = self.text(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            encoder_hidden_states=states,
            encoder_attention_mask=torch.ones(states.shape[:2], dtype=torch.long, device=states.device),
        )
        found: Tensor = made.pooler_output
        return found

    def _states(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.vision(pixel_values=pixels).last_hidden_state
        return found


def _or_black(batch: Batch, tower: Any, edge: int) -> Tensor:
    """States (inputs, tokens, width) of each input's picture; of a picture of zeros, read once, where it has none."""
    black = torch.zeros(1, 3, edge, edge, dtype=batch.pixels.dtype, device=batch.pixels.device)
    seen = tower(torch.cat([black, batch.pixels]) if not batch.shown.all() else batch.pixels)
    if batch.shown.all():
        return seen  # type: ignore[no-any-return]
    places = torch.where(batch.shown, batch.shown.long().cumsum(0), 0)
    return seen[places]  # type: ignore[no-any-return]
