"""Which passages a model reads when there is far more evidence than room."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..fit import Part

if TYPE_CHECKING:
    from ..fit import Evidence

COARSE = 16
"""Passages are read, best first, until they hold this many times the budget (or `LEAST` tokens), no further."""
LEAST = 4096


def parts_read(evidence: Evidence) -> list[Part]:
    """The units of the passages that are read, in reading order."""
    before = np.cumsum([0, *evidence.tokens])
    limit = max(COARSE * evidence.budget.tokens, LEAST)
    hits = [n for n in range(len(evidence.hits)) if before[n] < limit]
    return [Part(n, unit) for n in hits for unit in range(len(evidence.units(n)))]


def blank(evidence: Evidence) -> dict[int, str]:
    """Why hits that hold nothing leave nothing."""
    empty = (n for n, hit in enumerate(evidence.hits) if not hit.item.text.strip() and hit.item.media is None)
    return dict.fromkeys(empty, "empty")
