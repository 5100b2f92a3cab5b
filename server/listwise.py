"""What `llm_rerank` asks the assistant's own model, and what it makes of the reply. The transport is `sampling.py`.

One question about up to 20 passages, with the prompt and the parser of RankGPT. Without a usable reply the passages
come back in the order given, and the answer says why. The prompt's module is imported late: it needs numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..tools import answers, calls

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..retrievers.lm import Turn
    from ..tools.answers import Answer
    from ..tools.arguments import LLMRerankArguments
    from ..tools.library import Triptych
    from ..tools.schemas import RerankOut

REPLY_CHARACTERS = 4000
"""So much of a reply is read."""
NAME = "llm_rerank"


@dataclass(frozen=True)
class Question:
    """Passages that wait for a model's ranking.

    Attributes:
        found: the passages in the order given.
        turns: the conversation that ends in the question; empty where there is nothing to rank.
        room: tokens that the reply may take.
        budget, tokenizer: of the answer.
    """

    found: RerankOut
    turns: Sequence[Turn]
    room: int
    budget: int
    tokenizer: str

    @classmethod
    def of(cls, session: Triptych, given: LLMRerankArguments) -> Question:
        """The question that a tool call asks.

        Raises:
            BadInput: no passages, or both ids and texts; a query or budget that the session refuses.
            NotFound: an unknown id.
        """
        from ..rerankers.prompted import _listwise

        budget = calls.budget_of(session, given.max_tokens)
        found = session.rerank(given.query, calls.candidates(given), reranker="no_rerank")
        passages = [_listwise.passage(f"{hit.title}\n{hit.text}") for hit in found.hits]
        query = _listwise.line(found.query, _listwise.QUERY_CHARACTERS)
        turns = _listwise.conversation(query, passages) if len(passages) > 1 else ()
        return cls(found, turns, _listwise.room(len(passages)), budget, session.settings.tokenizer)

    def ranked(self, reply: str) -> Answer:
        """The answer in the order that the model wrote, mended where it had to be."""
        from ..rerankers.prompted import _listwise

        hits = self.found.hits
        verdict = _listwise.parse(reply[:REPLY_CHARACTERS], len(hits))
        tokens = _listwise.tokens_of(self.turns) + len(reply) // _listwise.CHARACTERS_PER_TOKEN
        told = {"calls": 1, "tokens": tokens, "repaired": int(verdict.repairs > 0)}
        if not verdict.usable:
            return self._answer("The model's reply ranked no passage", told)
        ordered = [
            hits[at].model_copy(update={"n": place, "score": round(1 - (place - 1) / len(hits), 6)})
            for place, at in enumerate(verdict.order, 1)
        ]
        return self._answer("", {**told, "hits": ordered})

    def unranked(self, why: str = "") -> Answer:
        """The answer in the order given; `why` nobody ranked it, where somebody could have."""
        return self._answer(why, {"calls": 0, "tokens": 0, "repaired": 0})

    def _answer(self, why: str, update: Mapping[str, object]) -> Answer:
        reason = f"{why}: the order is the one that was given." if why else None
        told = {**update, "reranker": NAME, "complete": reason is None, "reason": reason}
        result = self.found.model_copy(update=told)
        note, _ = answers.room_for(reason, self.budget, self.tokenizer)
        return answers.of_hits(result, self.budget, self.tokenizer, note)
