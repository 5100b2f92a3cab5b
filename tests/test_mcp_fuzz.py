"""Calls drawn from the tools' schemas, right and wrong: no crash, no traceback, no path of this machine.

`python benchmarks/fuzz_mcp.py` makes 10,000 of them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio.from_thread
import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcp import Client

from triptych.server.doors import doors
from triptych.server.jobs import Jobs
from triptych.server.roots import Roots
from triptych.settings import Settings
from triptych.tools.evaluation.result import Result

sys.path += [str(Path(__file__).parent), str(Path(__file__).resolve().parent.parent / "benchmarks")]
from fuzzing import arguments, fault_in, of_schema
from served import app_over, library, shelf

DOORS = {door.name: door for door in doors("full", allow_write=True, llm_rerank=True)}
OPENAI = {f"chatgpt {door.name}": door for door in doors("chatgpt")}
PLAIN = Settings(home=Path("nowhere"))


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Clients that stay connected, ids that exist, and what must never be seen."""
    home, files = tmp_path_factory.mktemp("home"), shelf(tmp_path_factory.mktemp("files"))
    session = library(home, files, call_rate=0)
    ids = [hit.id for hit in session.search("berlin printer tide bolts garden tone", 20).hits]
    with Jobs() as jobs, anyio.from_thread.start_blocking_portal() as portal:
        full = app_over(session, allow_write=True, llm_rerank=True, jobs=jobs, roots=Roots.of([files]))
        with (
            portal.wrap_async_context_manager(Client(full)) as client,
            portal.wrap_async_context_manager(Client(app_over(session, toolset="chatgpt"))) as openai,
        ):
            yield portal, {"full": client, "chatgpt": openai}, ids, [str(home), str(files)]
    session.close()


@pytest.mark.parametrize("name", [*DOORS, *OPENAI])
def test_no_arguments_break_a_tool(fuzzed: Any, name: str) -> None:
    portal, clients, ids, private = fuzzed
    door = {**DOORS, **OPENAI}[name]
    client = clients["chatgpt" if name in OPENAI else "full"]

    @settings(max_examples=25, suppress_health_check=list(HealthCheck))
    @given(arguments(door.input_schema(PLAIN), st.sampled_from([*ids, "nope"])))
    def calls(given_: dict[str, Any]) -> None:
        if door.name == "delete":
            given_ = {key: value for key, value in given_.items() if value not in (ids, "")}
        answer = portal.call(client.call_tool, door.name, given_)
        assert fault_in(answer, private, given_) is None

    calls()


@pytest.mark.parametrize("name", DOORS)
@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_is_drawn_as_right_is_right(name: str, data: st.DataObject) -> None:
    schema = DOORS[name].input_schema(PLAIN)
    jsonschema.validate(data.draw(of_schema(schema, st.just("nope"))), schema)


def test_the_long_fuzz_counts_every_call_in_its_result(tmp_path: Path) -> None:
    fuzz = importlib.import_module("fuzz_mcp")
    told = fuzz.run(tmp_path, 40, 1)
    found = Result.read(fuzz.result(told).write(tmp_path / "results"))
    whole, *by_tool = found.arms
    assert (found.name, whole.metrics["calls"], whole.metrics["faults"]) == ("bench_fuzz_mcp", 40, 0)
    assert sum(arm.metrics["calls"] or 0 for arm in by_tool) == 40
    assert {arm.settings["tool"] for arm in by_tool} == set(DOORS)
