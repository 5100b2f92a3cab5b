"""The operations as assistants call them: checked arguments in, the block inside its budget out.

The MCP server and the LangChain tools are thin shells around these functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..errors import BadInput
from ..retrievers.base import Where
from ..retrievers.filters import filter_of
from . import answers
from .operations import checked_budget
from .viewing import small_enough

if TYPE_CHECKING:
    from .answers import Answer
    from .arguments import (
        CompressArguments,
        FetchArguments,
        LLMRerankArguments,
        RerankArguments,
        RetrieveArguments,
        SearchArguments,
        StatusArguments,
        ViewArguments,
    )
    from .library import Triptych
    from .schemas import Given, Shape


SHOWN_PROBLEMS = 20
"""How many unreadable files `status` names."""


class Called(NamedTuple):
    """The block that a model sees, and the whole result behind it."""

    answer: Answer
    result: Shape


def retrieve(session: Triptych, given: RetrieveArguments, note: str | None = None) -> Called:
    """Evidence; a `note` of the caller's own is added where the budget has room for it."""
    budget = budget_of(session, given.max_tokens)
    note, room = answers.room_for(note, budget, session.settings.tokenizer)
    result = session.retrieve(given.query, budget - room, k=given.k, where=_where(given))
    return Called(answers.of_passages(result, budget, note), result)


def search(session: Triptych, given: SearchArguments, note: str | None = None) -> Called:
    """Whole passages, best first, as many as fit."""
    budget = budget_of(session, given.max_tokens)
    note, _ = answers.room_for(note, budget, session.settings.tokenizer)
    result = session.search(given.query, given.k, where=_where(given), like=given.like)
    return Called(answers.of_hits(result, budget, session.settings.tokenizer, note), result)


def rerank(session: Triptych, given: RerankArguments) -> Called:
    """The candidates in a better order, as many as fit."""
    budget = budget_of(session, given.max_tokens)
    result = session.rerank(given.query, candidates(given))
    note = answers.note_of(result, budget, session.settings.tokenizer)
    return Called(answers.of_hits(result, budget, session.settings.tokenizer, note), result)


def compress(session: Triptych, given: CompressArguments) -> Called:
    """The candidates inside the budget."""
    budget = budget_of(session, given.max_tokens)
    result = session.compress(given.query, candidates(given), budget)
    return Called(answers.of_passages(result, budget), result)


def fetch(session: Triptych, given: FetchArguments) -> Called:
    """The text behind an id, or its beginning."""
    budget = budget_of(session, given.max_tokens)
    result = session.fetch(given.id, (given.span[0], given.span[1]) if given.span else None)
    return Called(answers.of_document(result, budget, session.settings.tokenizer), result)


def view(session: Triptych, given: ViewArguments) -> Called:
    """The picture behind an id, as large as fits, and the address of its clip."""
    budget, most = budget_of(session, given.max_tokens), session.settings.image_bytes
    result = small_enough(session, given.id, given.max_edge, budget, most, sound=given.sound)
    return Called(answers.of_view(result, budget, session.settings.tokenizer), result)


def status(session: Triptych, given: StatusArguments, note: str | None = None) -> Called:
    """What a library holds, with the first of its problems; a `note` of the caller's own is added."""
    state = session.status()
    more = len(state.problems) - SHOWN_PROBLEMS
    hidden = f"{more} more files could not be read." if more > 0 else None
    shown = {"note": answers.joined(state.note, note, hidden), "problems": state.problems[:SHOWN_PROBLEMS]}
    result = state.model_copy(update=shown)
    return Called(answers.Answer(result.model_dump(mode="json")), result)


def budget_of(session: Triptych, max_tokens: int | None = None) -> int:
    """The budget asked for, or the session's default; above its cap is `BadInput`."""
    return checked_budget(max_tokens, session.settings.max_tokens, session.settings.max_tokens_cap)


def _where(given: RetrieveArguments | SearchArguments) -> Where | None:
    where = Where(
        modalities=(given.modality,) if given.modality else (),
        uri_prefix=given.uri_prefix or "",
        filter=filter_of(given.where) if given.where else None,
    )
    return None if where == Where() else where


def candidates(given: RerankArguments | CompressArguments | LLMRerankArguments) -> list[str | Given]:
    """The ids or texts of a call; both or neither is `BadInput`."""
    if bool(given.ids) == bool(given.passages):
        raise BadInput("Either `ids` or `passages` is needed.", "Give one of the two.")
    return [*(given.ids or ()), *(given.passages or ())]
