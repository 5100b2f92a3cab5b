"""What a system's `load` door may ask for: settings, and models that several systems share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..settings import Settings
    from .base import Encoder
    from .lm import LM
    from .lm_transformers import TransformersLM


class Parts(Protocol):
    """Given to `System.load(card, parts)`. Each model is loaded once and shared by all who ask.

    Raises:
        MissingWeights: from `encoder`, `lm` and `local_lm`, when the profile's model is not on this machine.
    """

    @property
    def settings(self) -> Settings:
        """The settings of the session."""

    @property
    def device(self) -> str:
        """The torch device, `"cpu"` or `"cuda"`."""

    def encoder(self) -> Encoder:
        """The profile's dense encoder."""

    def lm(self) -> LM:
        """The language model that prompted systems ask: an endpoint's where the settings name one, else `local_lm`."""

    def local_lm(self) -> TransformersLM:
        """The profile's small language model, in this process."""
