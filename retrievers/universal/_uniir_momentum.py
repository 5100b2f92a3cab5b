"""How UniIR's BLIP_FF learns (arXiv:2311.17136, section 4; the loss is BLIP's, arXiv:2201.12086): beside the network a
slow copy of it, whose vectors of this batch and of the last ones (a queue) are what the network's are told apart from.
Targets are the right ones, mixed with what the slow copy finds itself; queries look for candidates and candidates for
queries.

It differs in that the vectors of a batch's other processes are read as they are, not from the queue alone; in that an
empty place of the queue is left out (the authors: a random vector, wrong for all); and in that what is held back is
judged by the network alone, without queue and slow copy, by what is right: so epochs can be compared. No picture is cut
or turned at random, and hard negatives are not read.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import BadInput
from ..fitting import gathered, of_all
from ._uniir_training import Fitting, units

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Pair = tuple[Tensor, Tensor]

TEMPERATURE, COLDEST, HOTTEST = 0.07, 0.001, 0.5
"""What the learned temperature begins with, and what it is held between."""
LONGEST = 57_960
"""Places of the published queue: 63 steps of 8 GPUs."""


@dataclass(frozen=True)
class MomentumFitting(Fitting):
    """Settings of a fit of BLIP_FF; those of the published one.

    Attributes:
        decay: of all but norms and biases (the authors: of all).
        momentum: share of itself that the slow copy keeps in each step, below 1. With the default it lags some 200
            steps behind: a fit that has not many more needs less.
        queue: places for older vectors; 0: as many as there are lessons, at most `LONGEST`.
        distilled: share of the slow copy's opinion in the targets; it rises to it over the first epoch.
    """

    batch: int = 115
    decay: float = 0.05
    momentum: float = 0.995
    queue: int = 0
    distilled: float = 0.4


class MomentumContrast(nn.Module):
    """A fusing network under the loss. A batch has its queries first, then in the same order their candidates.

    What it goes on from is all of its state: the slow copy and the queue, too. It takes twice the network's memory,
    without gradients for the second, and 2 · dim · 4 bytes a place.

    Args:
        network: that learns; gives (inputs, `dim`).
        lessons: of an epoch.

    Raises:
        BadInput: a setting is out of its range.
    """

    asked: Tensor
    told: Tensor
    keys: Tensor
    put: Tensor

    def __init__(self, network: Any, lessons: int, fitting: MomentumFitting) -> None:
        super().__init__()
        _check(fitting)
        self.network, self.slow = network, deepcopy(network).requires_grad_(False)
        self.temperature = nn.Parameter(torch.tensor(TEMPERATURE))
        self.lessons, self.fitting = lessons, fitting
        size = fitting.queue or min(LONGEST, lessons)
        self.register_buffer("asked", torch.zeros(size, network.dim))
        self.register_buffer("told", torch.zeros(size, network.dim))
        self.register_buffer("keys", torch.zeros(size, dtype=torch.long))
        self.register_buffer("put", torch.zeros((), dtype=torch.long))

    def forward(
        self, ids: Tensor, mask: Tensor, worded: Tensor, pixels: Tensor, shown: Tensor, keys: Tensor
    ) -> dict[str, Tensor]:
        given = ids, mask, worded, pixels, shown
        with torch.no_grad():
            self.temperature.clamp_(COLDEST, HOTTEST)
        own = units(self.network, self.fitting.chunk, *given).chunk(2)
        # Divided before they are gathered: of all processes, each learns the temperature from its own rows.
        fast, keys = pair(own, lambda one: gathered(one / self.temperature)), gathered(keys)
        if not self.training:
            every = pair(own, gathered)
            return {"loss": of_all(both_ways(fast, fast, every, keys, keys, 0.0))}
        with torch.no_grad():
            approach(self.slow, self.network, self.fitting.momentum)
            old = pair(units(self.slow, self.fitting.chunk, *given).chunk(2), gathered)
        filled = min(int(self.put), len(self.keys))
        every = torch.cat([old[0], self.asked[:filled]]), torch.cat([old[1], self.told[:filled]])
        theirs = torch.cat([keys, self.keys[:filled]])
        slow = pair(old, lambda one: one / self.temperature.detach())
        loss = both_ways(fast, slow, every, keys, theirs, self.share())
        self._enqueue(*old, keys)
        return {"loss": of_all(loss)}

    def share(self) -> float:
        """Of the slow copy's opinion in the targets, now."""
        return self.fitting.distilled * min(1.0, int(self.put) / self.lessons)

    @torch.no_grad()
    def _enqueue(self, asked: Tensor, told: Tensor, keys: Tensor) -> None:
        """In the places of the oldest; of more than there are places, the last."""
        size, behind = len(self.keys), int(self.put) + len(keys)
        kept = min(size, len(keys))
        places = torch.arange(behind - kept, behind, device=keys.device) % size
        self.asked[places], self.told[places], self.keys[places] = asked[-kept:], told[-kept:], keys[-kept:]
        self.put.fill_(behind)


def both_ways(fast: Pair, slow: Pair, every: Pair, keys: Tensor, theirs: Tensor, share: float) -> Tensor:
    """Mean of what queries lose that look for candidates, and candidates that look for queries.

    Args:
        fast, slow: queries and candidates (n, dim), by the network and by its slow copy, of unit length and divided by
            the temperature.
        every: queries and candidates (m, dim) of unit length that they are told apart from.
        keys: int64 (n,), equal for the same candidate.
        theirs: the same of `every`, (m,).
        share: see `lost`.
    """
    with torch.autocast(keys.device.type, enabled=False):
        right = keys[:, None].eq(theirs[None])
        return (lost(fast[0], slow[0], every[1], right, share) + lost(fast[1], slow[1], every[0], right, share)) / 2


def lost(fast: Tensor, slow: Tensor, others: Tensor, right: Tensor, share: float) -> Tensor:
    """Mean cross-entropy of what `fast` finds among `others` to its targets: all right ones alike, mixed with what
    `slow` finds.

    Args:
        fast, slow: (n, dim); their inner products with others are logits.
        others: (m, dim).
        right: bool (n, m), at least one in each row.
        share: of what `slow` finds, 0 to 1.
    """
    with torch.no_grad():
        own = functional.softmax(slow @ others.T, dim=1)
        targets = share * own + (1 - share) * right / right.sum(1, keepdim=True)
    return functional.cross_entropy(fast @ others.T, targets)


def pair(both: Sequence[Tensor], made: Callable[[Tensor], Tensor]) -> Pair:
    """What is made of the queries, and of the candidates."""
    asked, told = both
    return made(asked), made(told)


def approach(slow: nn.Module, network: nn.Module, momentum: float) -> None:
    """Every weight of `slow` keeps `momentum` of itself and takes the rest of the network's."""
    for kept, new in zip(slow.parameters(), network.parameters(), strict=True):
        kept.lerp_(new, 1 - momentum)


def _check(fitting: MomentumFitting) -> None:
    for name, value, ends in (
        ("momentum", fitting.momentum, 0 <= fitting.momentum < 1),
        ("distilled", fitting.distilled, 0 <= fitting.distilled <= 1),
        ("queue", fitting.queue, fitting.queue >= 0),
    ):
        if not ends:
            told = "Give `momentum` from 0 to below 1, `distilled` from 0 to 1, and a `queue` of 0 or more."
            raise BadInput(f"The setting `{name}` is `{value}`.", told)
