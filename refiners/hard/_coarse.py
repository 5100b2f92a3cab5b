"""Which passages a model reads when there is far more evidence than room."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..fit import Part
from ..relevance import COARSE, COARSE_LEAST

if TYPE_CHECKING:
    from ..fit import Evidence


def parts_read(evidence: Evidence) -> list[Part]:
    """The units of the passages that are read, in reading order."""
    before = np.cumsum([0, *evidence.tokens])
    limit = max(COARSE * evidence.budget.tokens, COARSE_LEAST)
    hits = [n for n in range(len(evidence.hits)) if before[n] < limit]
    return [Part(n, unit) for n in hits for unit in range(len(evidence.units(n)))]
