"""Rivals side by side: every group of `benchmarks/groups`, same data, same machine, same run.

    python benchmarks/bench.py [--only GROUP]… [--data FOLDER]… [--questions FILE]… [--train FILE]
                               [--quick] [--fresh] [--seed 0]

A full run writes `benchmarks/results/bench_GROUP.json`; a quick one, which ends within five minutes, writes into the
cache instead. Each group is a list of cells (see `cells`); what was measured before is used again unless `--fresh`.
Progress goes to stderr, the tables to stdout, plots into the cache. `--out` names another folder for the results.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import cells
import envs
from cells import Cell, Outcome, Plan

from triptych.errors import BadInput, TriptychError
from triptych.tools.evaluation import datasets, plots, report

if TYPE_CHECKING:
    from triptych.tools.evaluation.result import Result

HERE = Path(__file__).resolve().parent
GROUPS = HERE / "groups"
RESULTS = HERE / "results"
CACHE = HERE / ".cache"
OWN_DATA = HERE / "data" / "station"
QUICK_S = 300.0
TABLES_S = 15.0
"""Of `QUICK_S`, what is left for making the tables."""


class Group(Protocol):
    """A module of `benchmarks/groups`."""

    def cells(self, plan: Plan) -> list[Cell]:
        """What to measure, in this order."""

    def result(self, plan: Plan, outcomes: dict[str, Outcome], command: str) -> Result:
        """What came of it, from the outcomes by the cells' keys."""


@dataclass(frozen=True)
class Asked:
    """The command line."""

    only: tuple[str, ...]
    fresh: bool
    command: str
    out: Path
    plan: Plan


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; the exit status is 2 when it cannot be done as asked."""
    start = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinding stops the worker, too
    try:
        asked = parsed(arguments)
        for name in asked.only:
            found = measure(name, asked, start + QUICK_S - TABLES_S if asked.plan.quick else None)
            path = found.write(asked.out)
            sys.stdout.write(f"{report.markdown(found)}\n")
            sys.stdout.flush()
            tell(f"{name}: written to {path.parent.name}/{path.name}")
            for plot in [*plots.draw(found, asked.plan.cache / "plots"), *drawn(name, found, asked.out)]:
                tell(f"{name}: drawn in {plot.parent.name}/{plot.name}")
    except TriptychError as error:
        tell(str(error))
        return error.exit_code
    return 0


def measure(name: str, asked: Asked, deadline: float | None = None) -> Result:
    """Run one group's cells, one after the other, and make its result."""
    group = load(name)
    todo = group.cells(asked.plan)
    outcomes: dict[str, Outcome] = {}
    for number, cell in enumerate(todo, start=1):
        tell(f"{name} {number}/{len(todo)} {cell.key} …")
        outcome = cells.run(cell, asked.plan, name, fresh=asked.fresh, deadline=deadline)
        told = f", {outcome.reason}" if outcome.reason else ""
        tell(f"{name} {number}/{len(todo)} {cell.key}: {outcome.status}{told} ({outcome.seconds:.1f} s)")
        outcomes[cell.key] = outcome
    found = group.result(asked.plan, outcomes, asked.command)
    return found.model_copy(update={"environment": {**found.environment, **rivals_of(todo)}})


def load(name: str) -> Group:
    """The group's module.

    Raises:
        BadInput: there is none of that name.
    """
    if name not in names():
        raise BadInput(f"There is no group `{name}`.", f"Use one of: {', '.join(names())}.")
    return cast("Group", importlib.import_module(f"groups.{name}"))


def drawn(name: str, found: Result, folder: Path) -> list[Path]:
    """The group's own plots of its result, in `folder`: of a group with a function `draw(found, folder)`."""
    draw: Callable[[Result, Path], list[Path]] = getattr(load(name), "draw", lambda found, folder: [])
    return draw(found, folder)


def names() -> list[str]:
    """All groups, by their files."""
    return sorted(path.stem for path in GROUPS.glob("*.py") if not path.stem.startswith("_"))


def rivals_of(todo: Sequence[Cell]) -> dict[str, Any]:
    """What was installed for the rivals of these cells: `{"rivals": {name: pins}}`."""
    known = envs.rivals()
    used = sorted({cell.env for cell in todo} & known.keys())
    return {"rivals": {name: list(known[name].pins) for name in used}} if used else {}


def parsed(arguments: Sequence[str] | None = None) -> Asked:
    """The command line, its data read and checked.

    Raises:
        BadInput: an unknown group, or data that cannot be used.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small, within five minutes, nothing to keep")
    parser.add_argument("--only", action="append", default=[], metavar="GROUP", help=f"one of: {', '.join(names())}")
    parser.add_argument("--data", action="append", default=[], type=Path, metavar="FOLDER")
    parser.add_argument("--questions", action="append", default=[], type=Path, metavar="FILE")
    parser.add_argument("--train", type=Path, metavar="FILE", help="questions with passages, for what learns")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where results go instead")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    for name in given.only:
        load(name)
    plan = Plan(
        quick=given.quick,
        data=collections(given.data or [OWN_DATA]),
        questions=tuple(path.resolve() for path in given.questions or [OWN_DATA / "questions.jsonl"]),
        home=Path(os.environ.get("TRIPTYCH_HOME") or HERE.parent / ".triptych").resolve(),
        cache=CACHE,
        seed=given.seed,
        train=given.train.resolve() if given.train else None,
    )
    for path in plan.questions:
        datasets.questions(path)
    if plan.train is not None and not plan.train.is_file():
        raise BadInput(f"There is no file `{plan.train.name}`.", "Give a JSONL file of questions with passages.")
    out = given.out or (CACHE / "quick" if plan.quick else RESULTS)
    return Asked(tuple(given.only or names()), given.fresh, command(given), out, plan)


def collections(folders: Sequence[Path]) -> tuple[Path, ...]:
    """Each folder that is a collection, or the collections in it, checked.

    Raises:
        BadInput: a folder that is neither, or wrong data.
    """
    found: list[Path] = []
    for folder in folders:
        inside = sorted(path.parent for path in folder.glob("*/corpus.jsonl"))
        found += [folder] if (folder / "corpus.jsonl").is_file() or not inside else inside
    for folder in found:
        datasets.collection(folder)
    return tuple(path.resolve() for path in dict.fromkeys(found))


def command(given: argparse.Namespace) -> str:
    """The command line again, with folders and files named by what they hold."""
    words = ["python benchmarks/bench.py", *(["--quick"] if given.quick else [])]
    words += [f"--only {name}" for name in given.only]
    words += [f"--data {path.name}" for path in given.data] + [f"--questions {path.name}" for path in given.questions]
    words += [f"--train {given.train.parent.name}/{given.train.name}"] if given.train else []
    return " ".join([*words, *([f"--seed {given.seed}"] if given.seed else [])])


def tell(line: str) -> None:
    """One line of progress."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    raise SystemExit(main())
