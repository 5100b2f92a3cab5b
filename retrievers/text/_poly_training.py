"""How `poly_encoder` learns: pairs of a query and a passage, the other passages of a batch being wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ...errors import BadInput
from ...progress import step
from ..fitting import Course, Fitted, claim, trained
from ..towers import read_tokenizer
from ._poly_network import Pieces, PolyNetwork, write

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from ._poly_shape import Example, Shape

_AT_ONCE = 32
"""Passages that are encoded together before learning, where their encoder does not learn."""


@dataclass(frozen=True)
class Fitting(Course):
    """How a poly-encoder learns; every example is the negative of all others of its batch, and the paper has 256.

    Attributes:
        code_rate: the highest learning rate of the codes; `rate` is that of the encoders.
        layers: how many of the query encoder's last layers learn; None for all of it.
        candidates: whether the passage encoder learns; without, each passage is encoded once.
    """

    epochs: float = 1
    batch: int = 32
    rate: float = 5e-5
    every: int = 100
    patience: int = 3
    code_rate: float = 1e-3
    layers: int | None = None
    candidates: bool = True


class Collator:
    """Makes a batch of examples for `PolyNetwork.forward`.

    Args:
        vectors: of passages whose encoder does not learn, by text.
    """

    def __init__(self, pieces: Pieces, vectors: Mapping[str, Tensor]) -> None:
        self._pieces = pieces
        self._vectors = vectors

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        texts = [one.passage for one in examples]
        ids, mask = self._pieces.padded(self._pieces.queries([one.query for one in examples]))
        right = torch.tensor([[one.is_right(text) for text in texts] for one in examples])
        made = {"ids": ids, "mask": mask, "right": right}
        if self._vectors:
            return {**made, "vectors": torch.stack([self._vectors[text] for text in texts])}
        candidate_ids, candidate_mask = self._pieces.padded(self._pieces.passages(texts))
        return {**made, "candidate_ids": candidate_ids, "candidate_mask": candidate_mask}


def fit(
    data: Sequence[Example],
    out_dir: Path,
    start: Path,
    shape: Shape,
    held: Sequence[Example],
    how: Fitting,
    known: Mapping[str, Tensor] | None = None,
) -> Fitted:
    """See `PolyEncoder.fit`.

    Args:
        known: vectors of passages by text, of an encoder that does not learn; None to have them made.
    """
    _checked(data, how)
    claim(out_dir, [list(data), list(held)], shape=shape, fitting=how)
    network = PolyNetwork.started(start, shape, how.seed)
    pieces = Pieces(read_tokenizer(start, "bert"), shape)
    _freeze(network, how)
    vectors: Mapping[str, Tensor] = {}
    if not how.candidates:
        vectors = known or encoded(network, pieces, {one.passage for one in (*data, *held)})
    collate, groups = Collator(pieces, vectors), _groups(network, how)
    fitted = trained(network, how, out_dir, collate, list(data), list(held), label="right", groups=groups)
    write(out_dir, network, pieces.tokenizer)
    return fitted


def _checked(data: Sequence[Example], how: Fitting) -> None:
    if len({one.passage for one in data}) < 2 or how.batch < 2:
        raise BadInput(
            f"There are `{len(data)}` examples in batches of {how.batch}.", "Give two or more, of different passages."
        )
    for one in data:
        if not one.query.strip() or not one.passage.strip():
            raise BadInput(f"The example `{one.query[:80]}` has no query or no passage.", "Leave it out.")


def _freeze(network: PolyNetwork, how: Fitting) -> None:
    """Only what `how` names learns."""
    network.candidate.requires_grad_(how.candidates)
    if how.layers is None:
        return
    network.context.requires_grad_(False)
    layers = network.context.encoder.layer
    for layer in layers[max(0, len(layers) - how.layers) :]:
        layer.requires_grad_(True)


def _groups(network: PolyNetwork, how: Fitting) -> list[dict[str, Any]]:
    """Parameters for the optimiser, each group with its learning rate.

    Raises:
        BadInput: nothing learns.
    """
    rates: dict[float, list[Any]] = {}
    for name, values in network.named_parameters():
        if values.requires_grad:
            rates.setdefault(how.code_rate if name == "codes" else how.rate, []).append(values)
    if not rates:
        raise BadInput(f"Nothing learns with `{how}`.", "Let codes, layers or candidates learn.")
    return [{"params": group, "lr": rate} for rate, group in rates.items()]


def encoded(network: PolyNetwork, pieces: Pieces, texts: set[str]) -> dict[str, Tensor]:
    """The vector of each passage by the encoder as it is."""
    made: dict[str, Tensor] = {}
    ordered = sorted(texts, key=lambda text: (len(text), text))
    network.eval()
    for first in range(0, len(ordered), _AT_ONCE):
        step(first, len(ordered), "passages")
        part = ordered[first : first + _AT_ONCE]
        with torch.no_grad():
            found = network.candidates(*pieces.padded(pieces.passages(part)))
        made.update(zip(part, found, strict=True))
    return made
