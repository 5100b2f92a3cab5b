"""From the states of a model to the vectors of a space: which token counts, how long, and never one that is no number.

States are (inputs, tokens, width), masks (inputs, tokens) with 1 for a token and 0 for padding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from ...errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor


def last(states: Tensor, mask: Tensor) -> Tensor:
    """The state of each input's last token, (inputs, width), whichever side is padded."""
    places = torch.arange(mask.shape[1], device=mask.device)
    found: Tensor = states[torch.arange(len(states), device=states.device), (mask * places).argmax(dim=1)]
    return found


def mean(states: Tensor, mask: Tensor) -> Tensor:
    """The mean over each input's tokens, (inputs, width)."""
    weights = mask[..., None].to(states.dtype)
    found: Tensor = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    return found


def unit(vectors: Tensor, dim: int = 0) -> np.ndarray:
    """Float32 of length 1 along the last axis, computed in float32.

    Args:
        dim: only so many of the first numbers count (Matryoshka, arXiv:2205.13147); 0 for all.

    Raises:
        BadInput: one has NaN or infinity, or is all zeros.
    """
    kept = vectors.float()[..., : dim or None]
    made: np.ndarray = functional.normalize(kept, dim=-1).cpu().numpy()
    if not np.isfinite(made).all() or not bool(kept.abs().amax(dim=-1).gt(0).all()):
        raise BadInput("The model gave a vector with `nan`, `inf` or only zeros.", "Put its weights here again.")
    return made
