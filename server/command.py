"""What all commands share: their options, their settings, their library, their output."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import BadInput
from ..settings import Settings
from .output import Output, Stdout

if TYPE_CHECKING:
    from ..retrievers.base import Where
    from ..tools.library import Triptych
    from ..tools.schemas import Shape


DEFAULT_LIBRARY = "default"


class Run:
    """One command's settings, library and output."""

    def __init__(self, out: Output, profile: str | None, home: Path | None, library: str = DEFAULT_LIBRARY) -> None:
        self.out = out
        self.library = library
        self._profile = profile
        self._home = home

    def settings(self, **overrides: Any) -> Settings:
        """The settings that options, environment and profile come to."""
        return Settings.load(self._profile, home=self._home, **overrides)

    def open(self, **overrides: Any) -> Triptych:
        """The library of this command."""
        from .sessions import open_library

        return open_library(self.library, self.settings(**overrides))

    def open_known(self, **overrides: Any) -> Triptych:
        """The library of this command, for work that does without one: a library that was named has to be there.

        Raises:
            NotFound: it is not.
        """
        library = self.open(**overrides)
        if self.library != DEFAULT_LIBRARY:
            library.must_exist()
        return library

    def show(self, result: Shape, human: Callable[[Any, Any], None]) -> None:
        """Write a result."""
        self.out.show(result.model_dump(mode="json"), functools.partial(_late, human, result))


MODALITIES = ("text", "page", "image", "audio", "video")


def filtered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give `function` the options that say which passages count, as its argument `where` (None: all of them)."""

    @functools.wraps(function)
    def body(*given: Any, where: str | None, modality: tuple[str, ...], uri_prefix: str, **options: Any) -> Any:
        return function(*given, where=_where(where, modality, uri_prefix), **options)

    for option in (
        click.option("--uri-prefix", default="", help="Only passages whose uri starts with this."),
        click.option("--modality", multiple=True, type=click.Choice(MODALITIES), help="Only these; can be repeated."),
        click.option(
            "--where", metavar="JSON", help='Only what matches, e.g. \'{"author": "Ann", "year": {"ge": 2020}}\'.'
        ),
    ):
        body = option(body)
    return body


def _where(given: str | None, modalities: tuple[str, ...], uri_prefix: str) -> Where | None:
    if not (given or modalities or uri_prefix):
        return None
    from ..retrievers.base import Where
    from ..retrievers.filters import filter_of

    try:
        filter_ = filter_of(json.loads(given)) if given else None
    except (ValueError, RecursionError):
        raise BadInput(f"`{given!s:.80}` is not JSON.", 'Give an object such as {"author": "Ann"}.') from None
    return Where(modalities=modalities, uri_prefix=uri_prefix, filter=filter_)


def _late(human: Callable[[Any, Any], None], result: object, to: object) -> None:
    human(to, result)


def register(group: click.Group, name: str, *, library: bool = True) -> Callable[[Callable[..., Any]], click.Command]:
    """Register `function(run, …)` as a command of `group` with the options that all commands share."""

    def made(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def body(as_json: bool, profile: str | None, home: Path | None, **options: Any) -> Any:
            named = {"library": options.pop("library")} if library else {}
            return function(Run(output_of(as_json), profile, home, **named), **options)

        shared = [
            click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
            click.option("--profile", help="Which models to use (default: embedded)."),
            click.option("--home", type=click.Path(path_type=Path), help="Where libraries and weights are kept."),
        ]
        if library:
            shared.append(
                click.option("--library", default=DEFAULT_LIBRARY, show_default=True, help="Library name or folder.")
            )
        for option in reversed(shared):
            body = option(body)
        return group.command(name)(body)

    return made


def output_of(as_json: bool) -> Output:
    return Output(as_json, click.get_current_context().find_object(Stdout) or Stdout())
