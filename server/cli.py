"""The command line. Each command is a few lines: read the options, do the work, show the answer.

Nothing heavy is imported here; a command imports what it needs when it runs.
"""

from __future__ import annotations

import functools
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .. import __version__
from ..errors import BadInput, Cancelled, Forbidden, TriptychError, Unsupported
from .command import filtered, output_of, register
from .connect import connecting
from .convert import converting
from .evaluate import evaluation
from .output import Output, ReaderGone, Stdout
from .serving import serving
from .train import training
from .upkeep import upkeep

if TYPE_CHECKING:
    from ..retrievers.base import Where
    from ..tools.schemas import Given, ViewOut
    from .command import Run

INTERNAL = 70
READER_GONE = 141
SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "audio/wav": ".wav"}
EPILOG = """\b
Exit codes:
  0    done (files that could not be indexed are listed in the summary)
  1    the demo or another check failed
  2    bad input or usage: an unknown option, library or id, a file that cannot be read
  3    model weights or an optional package are missing
  4    the store failed, is damaged, or was built with another model
  5    a combination that a system or model cannot do
  6    the deadline passed
  70   a fault of Triptych's own
  130  stopped by Ctrl-C; what was acknowledged is kept
  141  the reader of stdout went away

With --json a command writes exactly one JSON document to stdout, also when it fails:
{"error": {"type", "message", "hint"}}. Progress goes to stderr.
"""


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="triptych", message="%(prog)s %(version)s")
def cli() -> None:
    """Search, rerank, compress: cited evidence from your files, inside a token budget."""


cli.add_command(evaluation)
for group in (upkeep, connecting, serving, training, converting):
    for part in group.commands.values():
        cli.add_command(part)
command = functools.partial(register, cli)

max_tokens_option = click.option("--max-tokens", type=int, help="Most tokens in the answer (default: the profile's).")
ids_option = click.option("--ids", multiple=True, metavar="A,B,C", help="Passage ids; can be repeated.")
protect_option = click.option(
    "--protect", multiple=True, metavar="REGEX", help="Never tear what this matches; can be repeated."
)
strict_option = click.option("--strict", is_flag=True, help="Fail where the reranker's language model fails.")
retriever_option = click.option("--retriever", metavar="ID", help="Search with this system of the library's alone.")
quality_option = click.option("--quality", type=click.Choice(["default", "high"]), help="high: better and slower.")


@command("retrieve")
@click.argument("query")
@max_tokens_option
@click.option("-k", "--k", type=int, help="Most passages.")
@protect_option
@quality_option
@strict_option
@retriever_option
@filtered
def retrieve(
    run: Run,
    query: str,
    max_tokens: int | None,
    k: int | None,
    protect: tuple[str, ...],
    quality: str | None,
    strict: bool,
    retriever: str | None,
    where: Where | None,
) -> None:
    """Search, rerank and compress: evidence for QUERY inside a token budget."""
    from . import render

    with run.out.working(), run.open(quality=quality, rerank_strict=strict or None) as library:
        result = library.retrieve(query, max_tokens, k=k, where=where, protect=protect, retriever=retriever)
    run.show(result, render.evidence)


@command("search")
@click.argument("query", required=False)
@click.option("-k", "--k", type=int, default=10, show_default=True, help="Most passages.")
@click.option("--like", metavar="ID|FILE", help="Find what looks like this passage's picture, or the picture in FILE.")
@retriever_option
@filtered
def search(run: Run, query: str | None, k: int, like: str | None, retriever: str | None, where: Where | None) -> None:
    """Whole passages that match QUERY, or a picture, best first."""
    from . import render

    picture = Path(like) if like is not None and Path(like).is_file() else like
    with run.out.working(), run.open() as library:
        result = library.search(query, k, where=where, like=picture, retriever=retriever)
    run.show(result, render.found)


@command("rerank")
@click.argument("query")
@click.argument("file", required=False)
@ids_option
@click.option("--reranker", metavar="ID", help="A system id (see `triptych systems`).")
@strict_option
def rerank(run: Run, query: str, file: str | None, ids: tuple[str, ...], reranker: str | None, strict: bool) -> None:
    """Put passages into a better order for QUERY.

    They come from --ids, or from FILE (- for stdin) as JSON lines {"id"?, "text", "uri"?}.
    """
    from . import render

    with run.out.working():
        given = _candidates(file, ids)
        with run.open_known(rerank_strict=strict or None) as library:
            result = library.rerank(query, given, reranker=reranker)
    run.show(result, render.ranked)


@command("compress")
@click.argument("query", required=False)
@click.argument("file", required=False)
@ids_option
@max_tokens_option
@click.option("--refiner", metavar="ID", help="A system id (see `triptych systems`).")
@protect_option
@quality_option
def compress(
    run: Run,
    query: str | None,
    file: str | None,
    ids: tuple[str, ...],
    max_tokens: int | None,
    refiner: str | None,
    protect: tuple[str, ...],
    quality: str | None,
) -> None:
    """Shrink passages into a token budget, keeping what matters for QUERY.

    They come from --ids, or from FILE (- for stdin) as JSON lines {"id"?, "text", "uri"?}. A single argument that is
    - or an existing file is the FILE.
    """
    from . import render

    with run.out.working():
        if not file and not ids and query is not None and (query == "-" or Path(query).is_file()):
            query, file = None, query
        given = _candidates(file, ids)
        with run.open_known(quality=quality) as library:
            result = library.compress(query, given, max_tokens, refiner=refiner, protect=protect)
    run.show(result, render.compressed)


@command("fetch")
@click.argument("id")
@click.option("--span", metavar="A:B", help="Only the characters from A to B.")
def fetch(run: Run, id: str, span: str | None) -> None:
    """The full text behind a passage id."""
    from . import render

    with run.out.working():
        wanted = _span(span)
        with run.open() as library:
            result = library.fetch(id, wanted)
    run.show(result, render.document)


@command("view")
@click.argument("id")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write it (default: ID.png, .jpg or .wav).")
@click.option("--max-edge", type=int, default=1024, show_default=True, help="Longest edge in pixels, 64 to 2048.")
@max_tokens_option
@click.option("--formula", metavar="NAME", help="What the picture's tokens are counted by (default: the profile's).")
def view(run: Run, id: str, out: Path | None, max_edge: int, max_tokens: int | None, formula: str | None) -> None:
    """The page, picture or key frame behind a passage id, or its sound where there is no picture, written to a file."""
    from . import render
    from .output import saved

    with run.out.working(), run.open(image_tokens=formula) as library:
        result = library.view(id, max_edge, max_tokens)
        if not result.image:
            result = library.view(id, max_edge, max_tokens, sound=True)
        file = saved(_content(result), out or Path(id + SUFFIXES[result.mime]))
    shown = {**result.model_dump(mode="json", exclude={"image", "sound"}), "file": str(file)}
    run.out.show(shown, lambda to: render.viewed(to, result, str(file)))


@command("explain")
@click.argument("id")
@click.argument("query")
@click.option("--token", type=int, metavar="N", help="One token of the query, from 0 (default: the mean of all).")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write the picture (default: ID.map.png).")
def explain(run: Run, id: str, query: str, token: int | None, out: Path | None) -> None:
    """Where on the page behind a passage id the words of QUERY are found, by the retriever `colpali`."""
    from . import render
    from .output import saved

    with run.out.working(), run.open() as library:
        result = library.explain(id, query, token)
        file = saved(result.image, out or Path(f"{id}.map.png"))
    shown = {**result.model_dump(mode="json", exclude={"image"}), "file": str(file)}
    run.out.show(shown, lambda to: render.explained(to, result, str(file)))


def _content(result: ViewOut) -> bytes:
    """The picture, else the sound."""
    if not result.image and not result.sound:
        raise Unsupported(result.note or "There is nothing to see or hear.", "Use `triptych fetch` for the text.")
    return result.image or result.sound


@command("libraries", library=False)
def libraries(run: Run) -> None:
    """The libraries in the home folder."""
    from . import render

    with run.out.working():
        from ..tools.library import libraries as listed

        rows = listed(run.settings())
    run.out.show([row.model_dump(mode="json") for row in rows], lambda to: render.libraries(to, rows))


@command("status")
def status(run: Run) -> None:
    """What a library holds, and which models are there."""
    from . import render

    with run.out.working(), run.open() as library:
        result = library.status()
    run.show(result, render.status)


@command("delete")
@ids_option
@click.option("--uri-prefix", default="", help="Every passage whose uri starts with this.")
def delete(run: Run, ids: tuple[str, ...], uri_prefix: str) -> None:
    """Delete passages from a library; the files themselves stay."""
    from . import render

    with run.out.working():
        wanted = _ids(ids)
        if bool(wanted) == bool(uri_prefix):
            raise BadInput("Either --ids or --uri-prefix is needed.", "Give one of the two.")
        with run.open() as library:
            result = library.delete(ids=wanted, uri_prefix=uri_prefix)
    run.show(result, render.deleted)


@cli.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def systems(context: click.Context, as_json: bool) -> None:
    """The published systems that are built in, and those of other packages."""
    if context.invoked_subcommand is not None:
        return
    from ..manifests.plugins import plugins
    from ..manifests.registry import cards
    from . import render

    rows = list(cards().values())
    sys.stderr.writelines(f"broken: {one.error}\n" for one in plugins().broken)
    output_of(as_json).show([card.as_dict() for card in rows], lambda to: render.cards(to, rows))


@systems.command("show")
@click.argument("id")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def show(id: str, as_json: bool) -> None:
    """Everything on one system's card."""
    from ..manifests.registry import card
    from . import render

    found = card(id)
    output_of(as_json).show(found.as_dict(), lambda to: render.card(to, found))


@command("pull", library=False)
@click.argument("profile_name", metavar="PROFILE", default="embedded")
@click.option("--from-dir", type=click.Path(path_type=Path), help="Take the files from this folder, use no network.")
def pull(run: Run, profile_name: str, from_dir: Path | None) -> None:
    """Download and verify the models of PROFILE. Nothing else ever downloads."""
    from . import render

    with run.out.working():
        from ..manifests import weights

        got = weights.pull(profile_name, run.settings().weights, from_dir=from_dir)
    rows = {"profile": profile_name, "pulled": [{"name": one.name, "carrier": one.carrier} for one in got]}
    run.out.show(rows, lambda to: render.pulled(to, rows))


@command("doctor", library=False)
@click.option("--deep", is_flag=True, help="Compute the SHA-256 of every model file.")
def doctor(run: Run, deep: bool) -> int:
    """What is here, what is missing, and the command that mends it. Exit code 3 when something is missing."""
    from dataclasses import asdict

    from . import render

    with run.out.working():
        from ..manifests.doctor import examine

        found = examine(run.settings(), full=deep)
    data = {"healthy": found.healthy, "checks": [asdict(check) for check in found.checks]}
    run.out.show(data, lambda to: render.report(to, found))
    return 0 if found.healthy else 3


@command("demo", library=False)
def demo(run: Run) -> int:
    """Index the sample library, ask seven questions through an MCP client, check the answers."""
    from . import demo as show_case

    with run.out.working():
        shown = show_case.run(run.settings())
    run.out.show(shown.as_dict(), functools.partial(show_case.draw, shown))
    return 0 if shown.passed else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    out = Output("--json" in given, Stdout())
    try:
        return _outcome(given, out)
    except ReaderGone:
        return READER_GONE


def _outcome(given: Sequence[str], out: Output) -> int:
    try:
        return int(cli.main(list(given), prog_name="triptych", standalone_mode=False, obj=out.stdout) or 0)
    except TriptychError as error:
        return _failed(out, error)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "triptych"
        message = re.sub(r"'([^']*)'", r"`\1`", error.format_message())
        return _failed(out, BadInput(message, f"See `{where} --help`."))
    except (click.Abort, KeyboardInterrupt):
        return _failed(out, Cancelled("Stopped by Ctrl-C.", "What was already acknowledged is kept."))
    except PermissionError as error:
        name = Path(error.filename).name if error.filename else "a file"
        return _failed(out, Forbidden(f"`{name}` cannot be accessed: {error.strerror}.", "Check its permissions."))
    except ReaderGone:
        raise
    except Exception:
        traceback.print_exc()
        _failed(out, TriptychError("Something went wrong inside Triptych.", "stderr says where; please report it."))
        return INTERNAL


def _failed(out: Output, error: TriptychError) -> int:
    out.fail(error)
    return error.exit_code


def _ids(given: Sequence[str]) -> list[str]:
    return [one.strip() for part in given for one in part.split(",") if one.strip()]


def _candidates(file: str | None, ids: Sequence[str]) -> list[str | Given]:
    wanted = _ids(ids)
    if bool(file) == bool(wanted):
        raise BadInput("Either --ids or a file of passages is needed.", "Give ids, a JSONL file, or `-` for stdin.")
    if wanted:
        return [*wanted]
    from . import jsonl

    return [*jsonl.read(str(file))]


def _span(given: str | None) -> tuple[int, int] | None:
    if given is None:
        return None
    start, colon, end = given.partition(":")
    if not colon or not start.isdecimal() or not end.isdecimal():
        raise BadInput(f"The span `{given}` is not A:B.", "Give two numbers, for instance `--span 120:480`.")
    return int(start), int(end)


if __name__ == "__main__":
    sys.exit(main())
