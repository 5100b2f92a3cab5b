"""What proofs of UniME's second stage share: the three losses, and what the filter takes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.retrievers.universal._contrastive_training import Adapters, Lesson
from triptych.retrievers.universal.unime import BEYOND, HARD, UniME
from triptych.tools.evaluation.compare import against

if TYPE_CHECKING:
    import numpy as np

    from triptych.retrievers.fitting import Course
    from triptych.tools.evaluation.result import Arm, Comparison

NEVER = 2.0
"""The largest difference of cosines: nothing is beyond it."""
SELDOM = 10**6
"""Steps between checkpoints: none before the end."""
FILTERED, RIVALS = "hard_negatives_filtered", ("info_nce", "hard_negatives")


def ways(batch: int) -> Mapping[str, tuple[float, int]]:
    """`beyond` and `hard` of `fit_pairs` for each loss on batches of so many lessons."""
    losses = ((NEVER, batch), (NEVER, HARD), (BEYOND, HARD))
    return dict(zip((*RIVALS, FILTERED), losses, strict=True))


def taught(
    start: UniME, lessons: Sequence[Lesson], out_dir: Path, way: tuple[float, int], course: Course, run: int = 1
) -> UniME:
    """A copy of which all weights learned by one of the `ways`."""
    beyond, hard = way
    whole = Adapters(rank=0)
    return start.fit_pairs(lessons, out_dir, course=course, adapters=whole, beyond=beyond, hard=hard, run=run)


def outranking(similar: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Which candidates the filter takes for right beside a query's own, bool.

    Args:
        similar: cosines (queries, candidates); own: of each query with its own candidate.
    """
    taken: np.ndarray = similar > own[:, None] + BEYOND
    return taken


def compared(means: Mapping[str, Arm], metrics: Iterable[str]) -> list[Comparison]:
    """The filter against either loss without it."""
    return [one for other in RIVALS for one in against([means[FILTERED]], means[other], tuple(metrics))]
