"""A language model that fails while it reranks: the run ends in bounded time with the best order so far and a named
reason in every door, or with the model's own error where that is asked for."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.documents import Document
from mcp import Client

from triptych import progress
from triptych.errors import BadInput, EndpointError, TimedOut, Unsupported
from triptych.manifests.registry import cards
from triptych.refiners.tokens import count
from triptych.rerankers.base import Limits
from triptych.rerankers.prompted.demorank import DemoRank
from triptych.rerankers.prompted.first import FIRST
from triptych.rerankers.prompted.prp_allpair import PRPAllPair
from triptych.rerankers.prompted.prp_graph import PRPGraph
from triptych.rerankers.prompted.query_likelihood import QueryLikelihood
from triptych.rerankers.prompted.rankgpt import RankGPT
from triptych.rerankers.prompted.setwise import Setwise
from triptych.retrievers.base import Hit, Item, Query, Source
from triptych.retrievers.endpoint import Endpoint
from triptych.retrievers.lm import LM
from triptych.retrievers.lm_endpoint import EndpointLM
from triptych.retrievers.lm_transformers import TransformersLM
from triptych.server import cli
from triptych.server.app import build
from triptych.settings import Settings
from triptych.tools.langchain import TriptychReranker, TriptychRetriever
from triptych.tools.library import Triptych
from triptych.tools.ranking import limits_of
from triptych.tools.schemas import Given

sys.path.append(str(Path(__file__).parent))
from openai_server import Fault, Handler, Served, serving

if TYPE_CHECKING:
    import numpy as np

    from triptych.rerankers.base import Ranking, Reranker
    from triptych.retrievers.lm import Ability, LogProbs

ALL: tuple[Ability, ...] = ("generate", "logprobs", "logits")
QUERY = Query("what do petrels eat")
LOCAL = TransformersLM.tiny(0)
LONGEST_S = 30
"""Every run ends within so many seconds on a busy machine, where all attempts of a request may take 0.9 or 3."""


class After(deque[Any]):
    """Lets `passed` requests through, and then does `fault` to each."""

    def __init__(self, fault: Fault, passed: int = 0) -> None:
        super().__init__([None])
        self._fault = fault
        self._passed = passed

    def popleft(self) -> Any:
        self._passed -= 1
        return self._fault if self._passed < 0 else None


def refusing(status: int) -> Fault:
    return lambda handler: handler.refuse(status, "Not now.")


def saying(data: bytes, kind: str = "application/json", length: int = 0) -> Fault:
    return lambda handler: handler.send(200, data, kind, length)


def slow(handler: Handler, seconds: float = 1.5) -> None:
    time.sleep(seconds)
    with suppress(OSError):  # nobody waits any more
        handler.refuse(500, "Late.")


FAULTS: dict[str, tuple[Fault | None, str]] = {
    "down": (None, "cannot be reached"),
    "slow": (slow, r"did not answer within `0\.3` s"),
    "429": (refusing(429), "status `429`: `Not now.`"),
    "500": (refusing(500), "status `500`: `Not now.`"),
    "page": (saying(b"<!doctype html><title>Sign in</title>", "text/html"), "a web page, not"),
    "truncated JSON": (saying(b'{"choices": [{"mess'), "broken JSON"),
    "half an answer": (saying(b'{"choices": [{"mess', length=500), "cannot be reached, or breaks off"),
    "another shape": (saying(b'{"answer": 42}'), "answers without `choices`"),
}
SYSTEMS: dict[str, Callable[[LM], Reranker]] = {
    "pointwise": QueryLikelihood,
    "pairwise": PRPAllPair,
    "listwise": RankGPT,
}
PROMPTED = [one.id for one in cards().values() if one.family == "prompted" and one.id != "tiger"]
"""Every reranker that asks an `LM`."""


@pytest.fixture
def served() -> Iterator[Served]:
    with serving(LOCAL) as found:
        yield found


def nobody() -> str:
    """An address at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


def model(url: str, timeout_s: float = 10) -> EndpointLM:
    return EndpointLM(Endpoint(url, timeout_s=timeout_s, pause_s=0.01, at_once=1), "tiny", ALL)


def hits(n: int) -> list[Hit]:
    made = [Item(f"p{place:02}", f"Petrels eat {place} fish.", Source("a.md")) for place in range(n)]
    return [Hit(item, 1 / (place + 1)) for place, item in enumerate(made)]


def ids(found: Ranking) -> list[str]:
    return [hit.item.id for hit in found.hits]


# --- systems ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_failing_endpoint_leaves_the_first_stages_order(served: Served, system: str, fault: str) -> None:
    what, words = FAULTS[fault]
    if what is not None:
        served.faults = After(what)
    start, given_hits = time.monotonic(), hits(5)
    found = SYSTEMS[system](model(served.url if what else nobody(), 0.3)).rank(QUERY, given_hits)
    assert time.monotonic() - start < LONGEST_S
    assert [hit.item.id for hit in given_hits] == ids(found)
    assert [hit.score for hit in given_hits] == [hit.score for hit in found.hits]
    assert (found.complete, found.calls) == (False, 0)
    assert isinstance(found.failure, EndpointError | TimedOut)
    assert found.reason is not None and found.reason.startswith("the model failed after 0 of ")
    assert found.failure.message.rstrip(".") in found.reason
    with pytest.raises(type(found.failure), match=words):
        raise found.failure


class Failing(LM):
    """Another language model that fails after so many calls."""

    def __init__(self, lm: LM, passed: int) -> None:
        self.can = lm.can
        self._lm = lm
        self._left = passed

    def _asked(self) -> LM:
        self._left -= 1
        if self._left < 0:
            raise EndpointError("`http://lm` answers with status `503`: `Busy.`.", "Try again later.", 503)
        return self._lm

    def generate(self, *given: Any) -> list[str]:
        return self._asked().generate(*given)

    def logprobs(self, *given: Any) -> list[LogProbs]:
        return self._asked().logprobs(*given)

    def next_token_logits(self, *given: Any) -> np.ndarray:
        return self._asked().next_token_logits(*given)


@pytest.mark.parametrize("passed", [0, 1, 3])
@pytest.mark.parametrize("name", PROMPTED)
def test_what_was_ordered_before_a_failure_stands(name: str, passed: int) -> None:
    made, given_hits = cards()[name].resolve().tiny(0), hits(45)
    made._lm = Failing(made._lm, passed)
    found = made.rank(QUERY, given_hits, Limits(seconds=600))  # so that few are asked about at once
    assert sorted(ids(found)) == [hit.item.id for hit in given_hits]
    scores = [hit.score for hit in found.hits]
    assert scores == sorted(scores, reverse=True)
    assert not found.complete
    assert isinstance(found.failure, EndpointError | Unsupported)
    assert found.reason is not None and "the model failed after" in found.reason and "`Busy.`" in found.reason
    if found.calls == 0:
        assert found.hits == tuple(given_hits)


def test_the_part_that_was_read_has_the_models_order() -> None:
    made = QueryLikelihood(Failing(LOCAL, 2))
    found, local = made.rank(QUERY, hits(20), Limits(seconds=600)), QueryLikelihood(LOCAL).rank(QUERY, hits(16))
    assert (found.calls, ids(found)) == (16, [*ids(local), "p16", "p17", "p18", "p19"])
    assert found.reason == "the model failed after 16 of 20 hits: `http://lm` answers with status `503`: `Busy.`"


def test_the_callers_own_deadline_is_no_failure_of_the_model(served: Served) -> None:
    served.delay_s = 0.2
    for made in SYSTEMS.values():
        with progress.reporting(timeout_s=0.1), pytest.raises(TimedOut, match="passed its deadline"):
            made(model(served.url)).rank(QUERY, hits(5))


def test_a_slow_request_ends_before_its_callers_deadline_and_the_order_so_far_stands(served: Served) -> None:
    served.faults = After(slow, 1)
    start = time.monotonic()
    with progress.reporting(timeout_s=1.2):
        found = RankGPT(model(served.url), window=4, step=2).rank(QUERY, hits(6))
        left_s = 1.2 - (time.monotonic() - start)
    assert 0 < left_s < 0.5
    assert (found.calls, found.complete, type(found.failure)) == (1, False, TimedOut)
    assert "did not answer within" in (found.reason or "")
    assert sorted(ids(found)) == sorted(hit.item.id for hit in hits(6))


def test_time_that_may_be_taken_ends_before_the_deadline() -> None:
    assert progress.left_s() == math.inf
    with progress.reporting():
        assert progress.left_s() == math.inf
    for timeout_s, left_s in ((120.0, 120 - progress.RESERVE_S), (8.0, 6.0)):
        with progress.reporting(timeout_s=timeout_s):
            assert progress.left_s() == pytest.approx(left_s, abs=0.1)
            limits = limits_of(Settings.load(environ={}, lm_endpoint="http://127.0.0.1:1/v1", lm_model="m"), 25)
            assert limits.depth == 25
            assert limits.seconds == pytest.approx(min(60, left_s), abs=0.1)
    assert limits_of(Settings.load(environ={}), 25).seconds is None


def test_an_endpoint_that_shows_no_candidate_has_said_nothing(served: Served) -> None:
    shown = {"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": "?", "logprob": -0.1}]}]}}]}
    served.faults = After(lambda handler: handler.answer(shown))
    given_hits = hits(4)
    demorank = DemoRank.tiny(0)
    demorank._lm = model(served.url)
    for made in (FIRST, Setwise, PRPAllPair, PRPGraph, lambda lm: demorank):
        found = made(model(served.url)).rank(QUERY, given_hits)
        assert ids(found) == [hit.item.id for hit in given_hits]
        assert (found.complete, type(found.failure)) == (False, Unsupported)
        assert found.calls > 0


# --- a session, in every door ----------------------------------------------------------------------------------------

WORDS = ("krill", "squid", "small fish", "offal")


def library(home: Path, url: str, **more: Any) -> Triptych:
    """A library without weights (so that it is quick) whose reranker asks the endpoint at `url`."""
    chosen = {"reranker": "query_likelihood", "lm_can": "logprobs", "lm_timeout": 1, **more}
    made = Settings.load(home=home, environ={}, lm_endpoint=url, lm_model="tiny", **chosen)
    folder = home / "notes"
    folder.mkdir(exist_ok=True)
    for n, word in enumerate(WORDS):
        (folder / f"{n}.md").write_text(f"# Petrels {n}\n\nPetrels eat {word} at night, near the ice.\n", "utf-8")
    session = Triptych("birds", made)
    session.index(folder)
    return session


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """One attempt per request: what five of them take is tested above."""
    monkeypatch.setattr("triptych.retrievers.endpoint.ATTEMPTS", 1)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", FAULTS)
def test_retrieve_gives_the_searchs_order_and_says_why(served: Served, bare_home: Path, fault: str) -> None:
    what, words = FAULTS[fault]
    if what is not None:
        served.faults = After(what)
    with library(bare_home, served.url if what else nobody()) as session:
        start = time.monotonic()
        found = session.retrieve(QUERY.text or "", 2000)
        assert time.monotonic() - start < LONGEST_S
        assert len(found.passages) == len(WORDS)
        wanted = [hit.id for hit in session.search(QUERY.text, 10).hits]
    assert [passage.id for passage in found.passages] == wanted
    assert found.note is not None
    assert "Not reranked: `http://127.0.0.1:" in found.note
    assert words.replace("\\.", ".").replace("0.3", "1") in found.note


@pytest.mark.usefixtures("impatient")
def test_the_note_is_short_where_the_budget_is(bare_home: Path) -> None:
    with library(bare_home, nobody()) as session:
        for budget in (100, 150, 400, 1000):
            found = session.retrieve(QUERY.text or "", budget)
            assert found.tokens.used <= budget
            assert found.note is not None
            assert found.note.startswith("Not reranked")
            assert count(found.note) * 8 <= budget


@pytest.mark.usefixtures("impatient")
def test_an_endpoint_that_fails_before_it_says_what_it_can_is_a_note_too(bare_home: Path) -> None:
    with library(bare_home, nobody(), lm_can="") as session:
        found = session.retrieve(QUERY.text or "", 2000)
        assert "Not reranked: `http://127.0.0.1:" in (found.note or "")
        given_texts: list[str | Given] = [Given(text="one"), Given(text="two")]
        ranked = session.rerank("two", given_texts, reranker="rankgpt")
        assert [hit.text for hit in ranked.hits] == ["one", "two"]
        assert (ranked.complete, ranked.reranker, ranked.calls) == (False, "rankgpt", 0)
        assert "cannot be reached" in (ranked.reason or "")
        with progress.reporting(timeout_s=0), pytest.raises(TimedOut, match="passed its deadline"):
            session.rerank("two", given_texts)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("can", ["logprobs", ""])
def test_strict_raises_the_models_error(bare_home: Path, can: str) -> None:
    with library(bare_home, nobody(), lm_can=can, rerank_strict=True) as session:
        with pytest.raises(EndpointError, match="cannot be reached"):
            session.retrieve(QUERY.text or "", 2000)
        with pytest.raises(EndpointError, match="cannot be reached"):
            session.rerank("two", [Given(text="one"), Given(text="two")])


def test_strict_raises_where_no_verdict_is_usable(served: Served, bare_home: Path) -> None:
    given_texts: list[str | Given] = [Given(text="one"), Given(text="two"), Given(text="three")]
    served.faults = After(saying(b'{"choices": [{"message": {"content": "As a model, I cannot."}}]}'))
    options = {"reranker": "rankgpt", "lm_can": "generate"}
    with library(bare_home, served.url, rerank_strict=True, **options) as session:
        with pytest.raises(Unsupported, match="1 of 1 answers had no usable verdict"):
            session.rerank("two", given_texts)
    with library(bare_home, served.url, **options) as session:
        assert session.rerank("two", given_texts).reason == "1 of 1 answers had no usable verdict"
        assert "not up to its task" in (session.retrieve(QUERY.text or "", 2000).note or "")


def test_an_endpoint_that_is_too_slow_for_the_whole_list_is_left_in_time(
    served: Served, bare_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.delay_s = 0.6
    monkeypatch.setattr("triptych.rerankers.prompted.query_likelihood.AT_ONCE", 1)
    options = {"rerank_timeout": 1, "lm_timeout": 30}
    with library(bare_home, served.url, **options) as session:
        found = session.retrieve(QUERY.text or "", 2000)
        assert "not done in time: 1 s passed after " in (found.note or "")
        assert len(found.passages) == len(WORDS)
        assert 0 < len(served.requests) < len(WORDS)
    with (
        library(bare_home, served.url, rerank_strict=True, **options) as session,
        pytest.raises(TimedOut, match="1 s passed after"),
    ):
        session.retrieve(QUERY.text or "", 2000)


def test_a_slow_endpoint_is_left_before_the_server_gives_the_call_up(served: Served, bare_home: Path) -> None:
    served.faults = After(partial(slow, seconds=3.5))
    with library(bare_home, served.url, lm_timeout=30, call_timeout=3) as session:
        app = build(lambda name=None: session, session.settings)

        async def conversation() -> Any:
            async with Client(app) as client:
                return await client.call_tool("retrieve", {"query": QUERY.text, "max_tokens": 2000})

        answer = asyncio.run(conversation())
    assert not answer.is_error
    assert len(answer.structured_content["passages"]) == len(WORDS)
    assert "Not reranked" in answer.structured_content["note"]


def test_the_setting_is_a_switch(bare_home: Path) -> None:
    assert Settings.load(environ={"TRIPTYCH_RERANK_STRICT": "1"}).rerank_strict is True
    assert Settings.load(environ={}).rerank_strict is False
    with pytest.raises(BadInput, match="`rerank_strict` is `maybe`"):
        Settings.load(environ={"TRIPTYCH_RERANK_STRICT": "maybe"})


@pytest.mark.usefixtures("impatient")
def test_the_command_says_why_or_fails(bare_home: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    library(bare_home, nobody()).close()
    for name, value in {"ENDPOINT": nobody(), "MODEL": "tiny", "TIMEOUT": "1", "CAN": "logprobs"}.items():
        monkeypatch.setenv(f"TRIPTYCH_LM_{name}", value)
    monkeypatch.setenv("TRIPTYCH_RERANKER", "query_likelihood")
    file = bare_home / "passages.jsonl"
    file.write_text('{"text": "one"}\n{"text": "two"}\n', "utf-8")
    for command in (["retrieve", "petrels", "--library", "birds"], ["rerank", "petrels", str(file)]):
        assert cli.main([*command, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert "cannot be reached" in (said["note"] if command[0] == "retrieve" else said["reason"])
        assert cli.main(command) == 0
        assert "cannot be reached" in capsys.readouterr().out.replace("\n", " ")
        assert cli.main([*command, "--strict", "--json"]) == 4
        assert json.loads(capsys.readouterr().out)["error"]["type"] == "EndpointError"


@pytest.mark.usefixtures("impatient")
def test_the_server_and_langchain_say_why(bare_home: Path) -> None:
    with library(bare_home, nobody()) as session:

        async def conversation() -> list[Any]:
            async with Client(build(lambda name=None: session, session.settings)) as client:
                given_texts = [{"text": "one"}, {"text": "two"}]
                return [
                    await client.call_tool("retrieve", {"query": "petrels"}),
                    await client.call_tool("rerank", {"query": "petrels", "passages": given_texts}),
                    await client.call_tool("rerank", {"query": "petrels", "passages": given_texts, "max_tokens": 90}),
                ]

        retrieved, ranked, short = asyncio.run(conversation())
        assert "Not reranked: " in retrieved.structured_content["note"]
        assert "cannot be reached" in ranked.structured_content["note"]
        assert ranked.meta["triptych"]["complete"] is False
        assert short.structured_content["note"] == "Not reranked as asked."
        documents = TriptychReranker(library=session).compress_documents([Document("one"), Document("two")], "petrels")
        assert [one.page_content for one in documents] == ["one", "two"]
        assert all("cannot be reached" in one.metadata["note"] for one in documents)
        found = TriptychRetriever(library=session, max_tokens=2000).invoke("petrels")
        assert found and all("Not reranked: " in one.metadata["note"] for one in found)
