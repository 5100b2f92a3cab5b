"""What survives by where it stands: in the first, the second or the last third of a question's contexts.

Readers lose what stands in the middle (Liu et al. 2024, arXiv:2307.03172); a compressor that loses it as well, or that
only keeps the beginning, shows it here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .survival import evidence_kept, read, survives

if TYPE_CHECKING:
    from ...refiners.base import Passage
    from ...retrievers.base import Hit
    from .datasets import Context, Question

THIRDS = ("early", "middle", "late")
METRICS = tuple(f"{metric}_{third}" for metric in ("answers_kept", "evidence_kept") for third in THIRDS)


@dataclass(frozen=True)
class Places:
    """Where a question's gold stands.

    Attributes:
        answer: the third in which all contexts stand that hold the answer; None where they are in several, or none.
        contexts: those of each third, in the order in which systems get them.
    """

    answer: str | None
    contexts: Mapping[str, tuple[Context, ...]]

    @classmethod
    def of(cls, question: Question, hits: Sequence[Hit]) -> Places:
        """The places in `hits`, which are the question's contexts in some order."""
        known = {context.id: context for context in question.contexts}
        thirds: dict[str, tuple[Context, ...]] = dict.fromkeys(THIRDS, ())
        for n, hit in enumerate(hits):
            thirds[THIRDS[len(THIRDS) * n // len(hits)]] += (known[hit.item.id],)
        holding = [
            third
            for third, contexts in thirds.items()
            if survives(question.answers, (read(context.text) for context in contexts))
        ]
        return cls(holding[0] if len(holding) == 1 else None, thirds)

    def kept(self, answers_kept: float | None, passages: Sequence[Passage]) -> dict[str, float | None]:
        """Shares from 0 to 1 by name of `METRICS`; None where nothing of the kind stands in that third.

        Args:
            answers_kept: of the whole question.
        """
        answers = {f"answers_kept_{third}": answers_kept if third == self.answer else None for third in THIRDS}
        return answers | {
            f"evidence_kept_{third}": evidence_kept(contexts, passages) for third, contexts in self.contexts.items()
        }
