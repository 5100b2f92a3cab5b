"""`triptych eval`: measure a stage, or all of them, on a data set of the user's.

Each command reads and checks the data before any model is loaded, measures, and shows a table. With `--out` it writes
the result as JSON, the table as Markdown, and plots.
"""

from __future__ import annotations

import functools
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import BadInput, MissingExtra
from .command import register

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..tools.evaluation.result import Result
    from .command import Run

DATA = click.argument("data", type=click.Path(path_type=Path))


@click.group("eval")
def evaluation() -> None:
    """Measure search, reranking and compression on a data set."""


def evaluator(name: str) -> Callable[[Callable[..., Result]], click.Command]:
    """Register `function(run, data, seed, limit, command, …) -> Result` with the options that all evaluations share."""

    def made(function: Callable[..., Result]) -> click.Command:
        @functools.wraps(function)
        def body(run: Run, out: Path | None, **options: Any) -> None:
            with run.out.working():
                _need_extra()
                result = function(run, command=_command(), **options)
                written = _written(result, out) if out else []
            run.out.show(result.as_dict(), functools.partial(_shown, result, written))

        shared = [
            click.option("--limit", type=int, metavar="N", help="Only N queries, drawn with the seed."),
            click.option("--seed", type=int, default=0, show_default=True),
            click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Write JSON, table and plots."),
        ]
        for option in reversed(shared):
            body = option(body)
        return register(evaluation, name, library=False)(DATA(body))

    return made


@evaluator("retrieval")
@click.option(
    "--retriever", "retrievers", multiple=True, metavar="ID|PROFILE",
    help="Can be repeated; PROFILE+ENCODER searches that encoder's space, too.",
)  # fmt: skip
@click.option(
    "--rerank", "rerankers", multiple=True, metavar="ID", help="Rerank the first one's hits; can be repeated."
)
@click.option("--part", default="", help="A part of the data, such as `train` (queries.train.jsonl, qrels.train.tsv).")
@click.option(
    "--passages", "side", default="", metavar="text|media|media_text",
    help="Which half of a passage counts: its text, its media file, or the text of those that have a file.",
)  # fmt: skip
def retrieval(
    run: Run, data: Path, retrievers: tuple[str, ...], rerankers: tuple[str, ...], part: str, side: str,
    limit: int | None, seed: int, command: str,
) -> Result:  # fmt: skip
    """How well passages are found: nDCG@10, MRR@10, recall. DATA is a folder in BEIR's layout."""
    from ..tools.evaluation import datasets, retrieval

    collection = datasets.collection(data, part=part, side=side, limit=limit, seed=seed)
    return retrieval.evaluate(
        collection, retrievers or (run.settings().profile,), rerankers, settings=run.settings(), seed=seed,
        command=command,
    )  # fmt: skip


@evaluator("rerank")
@click.option("--run", "run_file", type=click.Path(path_type=Path), required=True, help="Candidates, in TREC's format.")
@click.option("--rerank", "rerankers", multiple=True, metavar="ID", help="Can be repeated (default: the profile's).")
@click.option("--top", type=int, default=100, show_default=True, help="How many of each query's candidates are read.")
@click.option("--part", default="", help="A part of the data, such as `train`.")
@click.option(
    "--orders", default="given,reversed,shuffled", show_default=True, help="What is done to the run's order first."
)
@click.option(
    "--resume", type=click.Path(path_type=Path), metavar="DIR", help="Keep every query done there, and go on from it."
)
@click.option("--minutes", type=float, metavar="N", help="Begin no query after N minutes; 0: show what is done so far.")
@click.option("--name", default="", help="Added to the name of the result's file.")
@click.option("--note", "notes", multiple=True, metavar="TEXT", help="Added to the result's notes; can be repeated.")
def rerank(
    run: Run, data: Path, run_file: Path, rerankers: tuple[str, ...], top: int, part: str, orders: str,
    resume: Path | None, minutes: float | None, name: str, notes: tuple[str, ...], limit: int | None, seed: int,
    command: str,
) -> Result:  # fmt: skip
    """What rerankers make of a run: before, after, cost, and the same run reversed and shuffled."""
    from ..tools.evaluation import datasets, rerank

    if top < 1:
        raise BadInput(f"--top is `{top}`.", "Use at least 1.")
    if minutes is not None and minutes < 0:
        raise BadInput(f"--minutes is `{minutes:g}`.", "Use 0 or more.")
    collection = datasets.collection(data, part=part, limit=limit, seed=seed)
    candidates = datasets.run_file(run_file, collection)
    return rerank.evaluate(
        collection, candidates, run_file.stem, rerankers or (run.settings().reranker,), top=top,
        settings=run.settings(), seed=seed, command=command, orders=[one.strip() for one in orders.split(",")],
        resume=resume, minutes=minutes, name=name, notes=notes,
    )  # fmt: skip


@evaluator("compress")
@click.option(
    "--refiner", "refiners", multiple=True, metavar="ID|all",
    help="Can be repeated (default: the profile's); `all`: each one whose weights are here.",
)  # fmt: skip
@click.option("--max-tokens", "budgets", type=int, multiple=True, help="A budget in tokens; can be repeated.")
@click.option("--rate", "rates", type=float, multiple=True, help="A share of the tokens to keep, 0 to 1; repeatable.")
@click.option("--rerank", "reranker", metavar="ID", help="Put the contexts in this order first (default: as given).")
@click.option("--name", default="", help="Added to the name of the result's file.")
@click.option("--note", "notes", multiple=True, metavar="TEXT", help="Added to the result's notes; can be repeated.")
def compress(
    run: Run, data: Path, refiners: tuple[str, ...], budgets: tuple[int, ...], rates: tuple[float, ...],
    reranker: str | None, name: str, notes: tuple[str, ...], limit: int | None, seed: int, command: str,
) -> Result:  # fmt: skip
    """What survives compression: answers, evidence, numbers, names. DATA is a JSONL file of questions with contexts."""
    from ..tools.evaluation import compress, datasets

    if not budgets and not rates:
        raise BadInput("Neither --max-tokens nor --rate is given.", "Give one of them; both can be repeated.")
    if any(budget < 1 for budget in budgets) or any(not 0 < rate <= 1 for rate in rates):
        raise BadInput(f"A budget of {[*budgets, *rates]} is out of range.", "Tokens from 1, rates above 0 up to 1.")
    return compress.evaluate(
        datasets.questions(data, limit=limit, seed=seed), refiners or (run.settings().refiner,), budgets=budgets,
        rates=rates, reranker=reranker, settings=run.settings(), seed=seed, command=command, name=name, notes=notes,
    )  # fmt: skip


@evaluator("pipeline")
@click.option(
    "--max-tokens", "budgets", type=int, multiple=True, default=(500, 1000, 2000, 4000), show_default=True,
    help="A budget in tokens; can be repeated.",
)  # fmt: skip
@click.option("--part", default="", help="A part of the data, such as `train`.")
def pipeline(
    run: Run, data: Path, budgets: tuple[int, ...], part: str, limit: int | None, seed: int, command: str
) -> Result:
    """Search, rerank, compress under a budget: which answers survive, and where the others were lost.

    DATA is a folder in BEIR's layout whose queries have answers, or a JSONL file of questions with contexts, all of
    which together are the library.
    """
    from ..tools.evaluation import datasets, pipeline

    whole = data.is_dir() and (data / "corpus.jsonl").is_file()
    source = (
        datasets.collection(data, part=part, limit=limit, seed=seed)
        if whole
        else datasets.questions(data, limit=limit, seed=seed)
    )
    return pipeline.evaluate(source, budgets=budgets, settings=run.settings(), seed=seed, command=command)


def _need_extra() -> None:
    try:
        import ir_measures  # noqa: F401 (asked for now, so that a lack is told before an hour of work)
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"The package `{error.name}` is not installed.", "Run `pip install 'triptych[eval]'`."
        ) from None


def _command() -> str:
    """The command line of this run, files and folders by their names alone."""
    options = (word.partition("=") for word in sys.argv[1:])
    words = (f"{Path(name).name}{sign}{Path(value).name}" for name, sign, value in options)
    return shlex.join(["triptych", *words])


def _written(result: Result, out: Path) -> list[str]:
    from ..tools.evaluation import plots, report

    table = out / f"{result.name}.md"
    files = [result.write(out), table, *plots.draw(result, out)]
    table.write_text(report.markdown(result), "utf-8")
    return [path.name for path in files]


def _shown(result: Result, written: list[str], to: Any) -> None:
    from ..tools.evaluation import report

    to.print(report.markdown(result))
    if written:
        to.print(f"Written: {', '.join(written)}")
