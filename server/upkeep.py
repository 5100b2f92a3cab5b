"""The commands that keep a library whole: `index`, with `--watch`, `verify`, `rebuild`."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import BadInput, Cancelled
from .command import register

if TYPE_CHECKING:
    from ..tools.library import Triptych
    from ..tools.schemas import IndexOut, WatchOut
    from .command import Run

DAMAGED = 4
STOPPED = 130

upkeep = click.Group()
command = functools.partial(register, upkeep)


@command("index")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--prune", is_flag=True, help="Forget files under PATH that no longer exist.")
@click.option("--archives", is_flag=True, help="Also index what is in archives (zip, tar, gzip, bzip2, xz).")
@click.option("--rebuild", is_flag=True, help="Throw everything away and index it again: for a change of model.")
@click.option("--space", "spaces", multiple=True, metavar="ID", help="Add the space of this encoder; can be repeated.")
@click.option("--retriever", "retrievers", multiple=True, metavar="ID", help="Add this system beside; can be repeated.")
@click.option("--routes", metavar="A,B", help="Spaces that searches ask from now on; `all` for all of them.")
@click.option("--watch", is_flag=True, help="Stay, and index every change as it comes (with --prune) until Ctrl-C.")
@click.option("--poll", is_flag=True, help="With --watch: look for changes instead of waiting to be told of them.")
def index(
    run: Run,
    paths: tuple[str, ...],
    prune: bool,
    archives: bool,
    rebuild: bool,
    spaces: tuple[str, ...],
    retrievers: tuple[str, ...],
    routes: str | None,
    watch: bool,
    poll: bool,
) -> int:
    """Index files and folders; unchanged files are skipped."""
    from . import render

    if watch and rebuild:
        raise BadInput("`--watch` and `--rebuild` do not go together.", "Run `triptych index --rebuild` first.")
    if watch and (spaces or retrievers):
        raise BadInput("`--watch` adds no space and no retriever.", "Add it with `triptych index` first.")
    if poll and not watch:
        raise BadInput("`--poll` is about `--watch`.", "Give both.")
    if watch:
        library = run.open(archives=archives or None)
        run.show(_watched(run, library, [Path(path) for path in paths], poll or None), render.watched)
        return STOPPED
    with run.out.working(), run.open(archives=archives or None) as library:
        result = library.index(
            [Path(path) for path in paths],
            prune=prune,
            rebuild=rebuild,
            spaces=spaces,
            routes=_routes(routes),
            retrievers=retrievers,
        )
    run.show(result, render.indexed)
    return 0


def _routes(given: str | None) -> list[str] | None:
    if given is None:
        return None
    return [] if given == "all" else [name.strip() for name in given.split(",") if name.strip()]


def _watched(run: Run, library: Triptych, paths: list[Path], poll: bool | None) -> WatchOut:
    """What all rounds did, once Ctrl-C has stopped them."""
    from ..tools.schemas import WatchOut

    done = WatchOut(library=library.name, rounds=0, indexed=0, removed=0, items=0, problems=[])
    try:
        with run.out.working(), library:
            for result in library.watch(paths, poll=poll):
                sums = {"indexed": done.indexed + result.indexed, "removed": done.removed + result.removed}
                done = done.model_copy(update={**sums, "rounds": done.rounds + 1, "items": result.items})
                _tell(result)
    except Cancelled:
        if not done.rounds:
            raise
    with library:
        return done.model_copy(update={"problems": library.status().problems})


def _tell(result: IndexOut) -> None:
    """One line (and the problems) about a round, on stderr."""
    done = f"{result.indexed:,} indexed, {result.removed:,} removed, {result.items:,} passages in all"
    problems = [f"problem: {problem.message} {problem.hint}".rstrip() for problem in result.problems]
    sys.stderr.write("\n".join([done, *problems]) + "\n")
    sys.stderr.flush()


@command("verify")
def verify(run: Run) -> int:
    """Whether a library is whole: every text, vector and term statistic is as it was written. Exit code 4 if not."""
    from . import render

    with run.out.working(), run.open() as library:
        result = library.verify()
    run.show(result, render.verified)
    return 0 if result.whole else DAMAGED


@command("rebuild")
@click.argument("paths", nargs=-1, metavar="[PATH...]")
def rebuild(run: Run, paths: tuple[str, ...]) -> None:
    """Mend a damaged library from its files; what is intact is not encoded again.

    PATH is needed only where the library does not know any more where its files lie. (`index --rebuild` throws
    everything away instead, and may take another model.)
    """
    from . import render

    with run.out.working(), run.open() as library:
        result = library.rebuild([Path(path) for path in paths])
    run.show(result, render.rebuilt)
