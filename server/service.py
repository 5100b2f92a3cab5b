"""The tools as plain functions: arguments in, an `Answer` out. No transport and no event loop; those are `app.py`'s."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Semaphore
from typing import TYPE_CHECKING, Any, Protocol

from .. import progress
from ..errors import BadInput, TimedOut
from ..tools import answers, calls
from ..tools.answers import Answer
from ..tools.arguments import (
    CompressArguments,
    DeleteArguments,
    FetchArguments,
    IndexArguments,
    InLibrary,
    LLMRerankArguments,
    OpenAIFetchArguments,
    OpenAISearchArguments,
    RerankArguments,
    RetrieveArguments,
    SearchArguments,
    StatusArguments,
    ViewArguments,
    parse,
)
from .limits import Limits, checked_arguments
from .listwise import Question
from .roots import Roots
from .spans import traced
from .tallies import Tallies

if TYPE_CHECKING:
    from ..settings import Settings
    from ..tools.library import Triptych
    from ..tools.schemas import IndexOut
    from .doors import Door
    from .jobs import Job, Jobs

HEAVY_CALLS = 2
"""How many calls run models at the same time; the others wait their turn."""
OPENAI_RESULTS = 10
WAIT_S = 20.0
"""How long a call waits for models that are still loading before it answers with a note."""
LOADING = "The models are still loading; ask again in a few seconds."


class Open(Protocol):
    """Opens a library by name (None: the default one); raises `NotFound` for an unknown one."""

    def __call__(self, name: str | None = None) -> Triptych: ...


class Service:
    """Everything the tools of one server share.

    Args:
        sessions: opens libraries.
        roots: where the `index` tool may read.
        wait_s: how long a call waits for models.
    """

    def __init__(
        self, sessions: Open, settings: Settings, jobs: Jobs, roots: Roots | None = None, wait_s: float = WAIT_S
    ) -> None:
        self.sessions = sessions
        self.settings = settings
        self.jobs = jobs
        self.roots = roots or Roots()
        self.wait_s = wait_s
        self.limits = Limits(settings)
        self.tallies = Tallies()
        self._turns = Semaphore(HEAVY_CALLS)

    def call(self, door: Door, given: Mapping[str, Any]) -> Answer:
        """The answer of `door` to the raw arguments `given`. Reports through `progress`.

        Raises:
            TriptychError: whatever was wrong, in words for the caller.
        """
        with self.limits.crowd.entered(), self.tallies.counted(door.name) as tally:
            answer = traced(door.name, lambda: self._called(door, given))
            tally.ms = answer.trace.get("ms", {})
            self.limits.checked_text(answer.text)
            return answer

    def _called(self, door: Door, given: Mapping[str, Any]) -> Answer:
        session, arguments = self.opened(door, given)
        if not door.heavy:
            return door.answer(self, session, arguments)
        if not self._models_ready():
            if not door.evidence:
                raise TimedOut("The models are still loading.", "Ask again in a few seconds.")
            return answers.nothing(LOADING)
        with self._turn():
            return door.answer(self, session, arguments)

    def opened(self, door: Door, given: Mapping[str, Any]) -> tuple[Triptych, Any]:
        """The library that the raw arguments `given` name, and the door's own arguments.

        Raises:
            BadInput: an argument that is none of the door's, or out of range.
            NotFound: a library is named that is not there.
        """
        checked_arguments(given)
        own = dict(given)
        library = parse(InLibrary, {"library": own.pop("library", None)}).library if door.scoped else None
        arguments = parse(door.arguments, own)
        session = self.sessions(library)
        if library is not None and not door.writes:  # also where the caller brings all that the tool reads
            session.must_exist()
        return session, arguments

    def retrieve(self, session: Triptych, given: RetrieveArguments) -> Answer:
        return calls.retrieve(session, given, self._unfinished(session)).answer

    def search(self, session: Triptych, given: SearchArguments) -> Answer:
        return calls.search(session, given, self._unfinished(session)).answer

    def rerank(self, session: Triptych, given: RerankArguments) -> Answer:
        return calls.rerank(session, given).answer

    def llm_rerank(self, session: Triptych, given: LLMRerankArguments) -> Answer:
        """What there is to say where no client can be asked."""
        return Question.of(session, given).unranked("There is no client to ask")

    def compress(self, session: Triptych, given: CompressArguments) -> Answer:
        return calls.compress(session, given).answer

    def fetch(self, session: Triptych, given: FetchArguments) -> Answer:
        return calls.fetch(session, given).answer

    def view(self, session: Triptych, given: ViewArguments) -> Answer:
        return calls.view(session, given).answer

    def status(self, session: Triptych, given: StatusArguments) -> Answer:
        jobs = [job.as_dict() for job in self.jobs.list(session.name)]
        data = calls.status(session, given, self._unfinished(session)).answer.data
        return Answer({**data, "jobs": jobs, "server": self.tallies.as_dict()})

    def index(self, session: Triptych, given: IndexArguments) -> Answer:
        paths = [self.roots.inside(path) for path in given.paths]
        job = self.start_index(session, paths, prune=given.prune)
        return Answer({"job": job.id, "state": job.state, "note": "`status` reports how far it is."})

    def delete(self, session: Triptych, given: DeleteArguments) -> Answer:
        if bool(given.ids) == bool(given.uri_prefix):
            raise BadInput("Either `ids` or `uri_prefix` is needed.", "Give one of the two.")
        gone = session.delete(ids=given.ids or (), uri_prefix=given.uri_prefix or "")
        return Answer(gone.model_dump(mode="json"))

    def openai_search(self, session: Triptych, given: OpenAISearchArguments) -> Answer:
        found = session.search(given.query, OPENAI_RESULTS)
        return answers.of_results(found, calls.budget_of(session), session.settings.tokenizer)

    def openai_fetch(self, session: Triptych, given: OpenAIFetchArguments) -> Answer:
        return answers.of_page(session.fetch(given.id), calls.budget_of(session), session.settings.tokenizer)

    def start_index(self, session: Triptych, paths: Sequence[Any], *, prune: bool = False) -> Job:
        """Index `paths` in the background."""

        return self.jobs.start("index", lambda: summary(session.index(paths, prune=prune)), session.name)

    def _unfinished(self, session: Triptych) -> str | None:
        """What is not ready yet: an unfinished pull or index of this library."""
        pull = self.jobs.pending("pull")
        index = self.jobs.pending("index", session.name)
        fetching = "Model weights are being downloaded; until then search is BM25 only." if pull else None
        if index is None:
            return fetching
        done, total = index.counted.get("files", (0, None))
        counted = f"{done} of {total} files indexed." if total else "Indexing has begun."
        return answers.joined(fetching, counted)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until fewer than `HEAVY_CALLS` calls are at work; a cancelled caller stops waiting."""
        while not self._turns.acquire(timeout=0.1):
            progress.step(0, None, "waiting for a turn")
        try:
            yield
        finally:
            self._turns.release()

    def _models_ready(self) -> bool:
        """Wait for a running warm-up, in steps that report and can be cancelled. A pull is not waited for."""
        warm = self.jobs.pending("warm")
        if warm is None or self.jobs.pending("pull") is not None:
            return True
        tenths = int(self.wait_s * 10)
        for done in range(tenths):
            progress.step(done, tenths, "loading models")
            if warm.ended.wait(0.1):
                return True
        return False


def summary(done: IndexOut) -> dict[str, Any]:
    """What a finished index job says: the counts; `status` names the files that could not be read."""
    counts: dict[str, Any] = done.model_dump(mode="json", exclude={"problems", "library"})
    return {**counts, "problems": len(done.problems)}
