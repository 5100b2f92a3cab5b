"""`triptych demo`: the sample library, a real MCP client and server, seven questions, and a check of every answer."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import progress
from ..errors import MissingExtra, StoreError, TriptychError
from ..manifests import weights
from ..refiners.tokens import count
from .sessions import open_library

if TYPE_CHECKING:
    from mcp import Client
    from rich.console import Console

    from ..settings import Settings

LIBRARY = "demo"
POLL_S = 0.2
STAGES = ("search", "rerank", "compress", "total")
_MODULES = {"office": "openpyxl", "audio": "av", "video": "scenedetect"}
_TIMES = re.compile(r" [\d.]+-[\d.]+s$")


@dataclass(frozen=True)
class Question:
    """What is asked, and what must come back: all of `answers` in a passage from one of `sources`.

    `needs` is the extra of this package that reads those files, empty where every installation does.
    """

    ask: str
    answers: tuple[str, ...]
    sources: tuple[Mapping[str, Any], ...]
    needs: str = ""


@dataclass(frozen=True)
class Asked:
    """One question with what came back.

    Attributes:
        passages: the block's `{n, id, title, where, text}`, each with the `box` around what was kept (or None).
        tokens: `used` is counted anew over the text that the client received.
        cited: an expected source is among the passages.
        answered: one of those passages still holds every answer string.
    """

    question: str
    passages: Sequence[Mapping[str, Any]]
    tokens: Mapping[str, Any]
    ms: Mapping[str, float]
    cited: bool
    answered: bool

    @property
    def passed(self) -> bool:
        """Cited, answered, and inside the budget."""
        return self.cited and self.answered and self.tokens["used"] <= self.tokens["budget"]

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "question": self.question,
            "cited": self.cited,
            "answered": self.answered,
            "passages": list(self.passages),
            "tokens": dict(self.tokens),
            "ms": dict(self.ms),
        }


@dataclass(frozen=True)
class Demo:
    """All questions: those that were asked, and those that were left out because an extra is not installed."""

    questions: tuple[Asked, ...]
    left_out: tuple[Question, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every question that was asked passed."""
        return all(asked.passed for asked in self.questions)

    def as_dict(self) -> dict[str, Any]:
        """`demo --json`."""
        left_out = [{"question": one.ask, "needs": one.needs} for one in self.left_out]
        return {"questions": [asked.as_dict() for asked in self.questions], "left_out": left_out}


def run(settings: Settings) -> Demo:
    """Pull what is missing (who asks for the demo asks for that), index the sample, ask.

    Raises:
        MissingExtra: the package `mcp` is not installed.
        MissingWeights: the models cannot be had.
        TriptychError: indexing failed, or the server answered with an error.
    """
    try:
        import mcp  # noqa: F401 (asked for now, so that a lack is told before anything is downloaded)
    except ModuleNotFoundError:
        raise MissingExtra("The package `mcp` is not installed.", "Run `pip install 'triptych[mcp]'`.") from None
    folder, budget, questions = sample()
    lacking = [name for name in weights.wanted_by(settings) if weights.state(name, settings.weights) != "present"]
    if lacking:
        sys.stderr.write(f"The demo needs model weights ({', '.join(lacking)}); fetching them once.\n")
        weights.pull(lacking, settings.weights)
    readable, left_out = _readable(questions)
    sample_folder = _copied(folder, settings.home)
    renew(settings, sample_folder)
    shown = asyncio.run(_conversation(settings, sample_folder, budget, readable))
    return Demo(shown.questions, left_out)


def _readable(questions: Sequence[Question]) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """The questions whose files this installation can read, and the others."""
    there = {extra for extra, module in _MODULES.items() if find_spec(module) is not None}
    can = [not one.needs or one.needs in there for one in questions]
    pairs = list(zip(questions, can, strict=True))
    return tuple(one for one, yes in pairs if yes), tuple(one for one, yes in pairs if not yes)


def renew(settings: Settings, folder: Path) -> bool:
    """Make the demo's library anew where an earlier version left one that cannot be opened; answers whether it did.

    Only a library that holds nothing but the sample in `folder` is touched: one of that name may be a user's own.

    Raises:
        StoreError: it cannot be opened, and is somebody's.
    """
    from ..tools.catalog import folders_of

    with open_library(LIBRARY, settings) as library:
        if not library.exists():
            return False
        try:
            library.status()
        except StoreError:
            if folders_of(library.folder) != [folder.resolve()]:
                raise
            sys.stderr.write("The demo's library is of another version, or damaged: it is made anew.\n")
            library.index(folder, rebuild=True)
            return True
    return False


def _copied(folder: Path, home: Path) -> Path:
    """A copy of the sample in the home folder: there it stays in place when the installation moves."""
    target = home / "sample" / folder.name
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(folder, target)
    return target


def sample() -> tuple[Path, int, tuple[Question, ...]]:
    """The sample library's folder, the budget of its questions, and the questions."""
    home = Path(str(resources.files("triptych.sample")))
    table = tomllib.loads((home / "questions.toml").read_text("utf-8"))
    asked = tuple(
        Question(row["ask"], tuple(row["answers"]), tuple(row["sources"]), row.get("needs", ""))
        for row in table["question"]
    )
    return home / table["library"], int(table["max_tokens"]), asked


async def _conversation(settings: Settings, folder: Path, budget: int, questions: Sequence[Question]) -> Demo:
    from mcp import Client, MCPError, StdioServerParameters

    arguments = ["-m", "triptych.server.cli", "mcp", "--root", str(folder), "--library", LIBRARY]
    environment = {**os.environ, "TRIPTYCH_HOME": str(settings.home), "TRIPTYCH_PROFILE": settings.profile}
    server = StdioServerParameters(command=sys.executable, args=arguments, env=environment)
    try:
        async with Client(server) as client:
            await _indexed(client)
            asked = []
            for n, one in enumerate(questions):
                progress.step(n, len(questions), "questions")
                asked.append(await _ask(client, one, budget))
            return Demo(tuple(asked))
    except* TriptychError as group:
        raise _first(group) from None
    except* MCPError as group:
        raise TriptychError(f"The demo's server ended: {_first(group)}.", "stderr says why.") from None


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    """The first exception inside nested groups."""
    inside = group.exceptions[0]
    return _first(inside) if isinstance(inside, BaseExceptionGroup) else inside


async def _indexed(client: Client) -> None:
    """Wait until the server has read the sample."""
    while True:
        state = _data(await client.call_tool("status", {}))
        jobs = [job for job in state["jobs"] if job["kind"] == "index"]
        ended = [job for job in jobs if job["state"] in ("done", "failed", "cancelled")]
        if ended:
            break
        now = jobs[0] if jobs else {}
        progress.step(now.get("done", 0), now.get("total"), "reading the sample")
        await asyncio.sleep(POLL_S)
    problem = ended[0].get("error")
    if problem:
        raise TriptychError(f"The sample could not be indexed: {problem['message']}", problem["hint"])


async def _ask(client: Client, question: Question, budget: int) -> Asked:
    result = await client.call_tool("retrieve", {"query": question.ask, "max_tokens": budget})
    data = _data(result)
    trace = (result.meta or {})["triptych"]
    boxes = {row["n"]: row["box"] for row in trace["passages"]}
    passages = [{**row, "box": boxes[row["n"]]} for row in data["passages"]]
    right = [row for row in passages if any(_stands_in(source, row["where"]) for source in question.sources)]
    used = count(_text(result), trace["tokens"]["tokenizer"])
    tokens = {key: trace["tokens"][key] for key in ("tokenizer", "budget", "original")}
    return Asked(
        question=question.ask,
        passages=passages,
        tokens={**tokens, "budget": budget, "used": used},
        ms={stage: trace["ms"][stage] for stage in STAGES},
        cited=bool(right),
        answered=any(all(answer in row["text"] for answer in question.answers) for row in right),
    )


def _text(result: Any) -> str:
    return str(result.content[0].text)


def _data(result: Any) -> dict[str, Any]:
    if result.is_error:
        raise TriptychError(f"The server answered: {_text(result)}")
    data: dict[str, Any] = json.loads(_text(result))
    return data


def _stands_in(source: Mapping[str, Any], where: str) -> bool:
    """Whether a citation names the source: the end of its uri, and the page where it has one; times may follow."""
    expected = source["uri"] + (f" p.{source['page']}" if "page" in source else "")
    return _TIMES.sub("", where).endswith(expected)


def draw(shown: Demo, to: Console) -> None:
    """For people: question, evidence with citations, tokens before and after, milliseconds per stage."""
    for n, asked in enumerate(shown.questions, 1):
        to.print(f"{n}. {asked.question}", style="bold")
        for row in asked.passages:
            to.print(f"   [{row['n']}] {row['where']}{_box(row['box'])}", style="cyan")
            to.print(f"       {' '.join(row['text'].split())}")
        used, budget, original = (asked.tokens[key] for key in ("used", "budget", "original"))
        times = ", ".join(f"{stage} {value:,.0f} ms" for stage, value in asked.ms.items())
        to.print(f"   tokens {original:,} → {used:,} of {budget:,} · {times} · {_verdict(asked)}\n", style="dim")
    for one in shown.left_out:
        to.print(f"Left out: {one.ask} Run `pip install 'triptych[{one.needs}]'` to read that file.")
    right = sum(asked.passed for asked in shown.questions)
    to.print(f"{right} of {len(shown.questions)} answers have their source cited, their words kept, their budget held.")


def _box(box: Sequence[float] | None) -> str:
    """The place on the page, as fractions from its top left corner."""
    return "" if box is None else f" box {' '.join(f'{edge:.2f}' for edge in box)}"


def _verdict(asked: Asked) -> str:
    faults = {
        "the expected source is not cited": asked.cited,
        "the answer was lost": asked.answered or not asked.cited,
        "the budget was exceeded": asked.tokens["used"] <= asked.tokens["budget"],
    }
    return "; ".join(fault for fault, fine in faults.items() if not fine) or "source cited"
