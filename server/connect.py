"""`triptych connect`: the snippet that makes an assistant start Triptych, shown or put into its settings."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import BadInput, Cancelled, NotFound
from ..settings import Settings
from .command import register

if TYPE_CHECKING:
    from rich.console import Console

    from ..manifests.clients import Client, Launch, System
    from .command import Run

SYSTEMS: Mapping[str, System] = {"darwin": "macos", "win32": "windows"}
LARGEST = 10_000_000
"""Settings of more bytes than this are not an assistant's."""

connecting = click.Group()
command = functools.partial(register, connecting)


@command("connect", library=False)
@click.argument("client_name", metavar="[CLIENT]", required=False)
@click.option("--root", "roots", multiple=True, metavar="DIR", help="Folder to serve; can be repeated.")
@click.option("--library", help="Library to serve (default: the one of the roots, else `default`).")
@click.option("--write", is_flag=True, help="Put it into the assistant's settings; everything else in them stays.")
@click.option("--path", type=click.Path(path_type=Path), help="With --write: the settings file, if not the usual one.")
@click.option("--yes", is_flag=True, help="With --write: replace an entry `triptych` without asking.")
@click.option("--link", is_flag=True, help="Print the link that installs the server instead (vscode, cursor, goose).")
def connect(
    run: Run,
    client_name: str | None,
    roots: tuple[str, ...],
    library: str | None,
    write: bool,
    path: Path | None,
    yes: bool,
    link: bool,
) -> None:
    """Print what makes an assistant start Triptych, or write it into its settings. Without CLIENT: list them."""
    from ..manifests import clients

    if (path or yes) and not write:
        raise BadInput("`--path` and `--yes` are about `--write`.", "Add `--write`.")
    if link and write:
        raise BadInput("`--link` writes nothing.", "Leave `--link` or `--write` out.")
    if client_name is None:
        rows = [_row(one) for one in clients.clients().values()]
        run.out.show(rows, lambda to: _draw_list(to, rows))
        return
    client = clients.client(client_name)
    launch = launch_of(run.settings(), roots, library)
    if link:
        address = clients.link(client.id, launch)
        run.out.show({"client": client.id, "link": address}, lambda to: _draw(to, f"{address}\n"))
        return
    snippet, place = client.snippet(launch), str(path) if path else place_of(client)
    shown = {"client": client.id, "snippet": snippet, "path": place, "then": client.then}
    if not write:
        run.out.show({**shown, "written": False, "backup": None}, lambda to: _draw(to, snippet))
        if not run.out.as_json:
            sys.stderr.write((f"It belongs into {place}\n" if place else "") + f"{client.then}\n")
        return
    if place is None:
        raise BadInput(f"{client.title} keeps its servers in no settings file.", client.then)
    done = put(client, launch, Path(place).expanduser(), replace=yes, ask=None if run.out.as_json else _asked)
    backup = str(done.backup) if done.backup else None
    run.out.show({**shown, "written": done.written, "backup": backup}, lambda to: _draw(to, _told(done, place, client)))


@dataclass(frozen=True)
class Done:
    """What `put` did. Attributes: `written` is False where the entry stood there already; `backup` is the old file."""

    written: bool
    backup: Path | None = None


def launch_of(settings: Settings, roots: Sequence[str], library: str | None) -> Launch:
    """The command line for an assistant, which knows neither this shell's folder nor its environment.

    Raises:
        BadInput: a root that is no folder.
        NotFound: no such library.
    """
    from ..manifests.clients import Launch
    from .roots import Roots

    folders = Roots.of(roots).folders
    if library is not None and not folders and not _library_exists(settings, library):
        raise NotFound(
            f"There is no library `{library:.80}`.", "`triptych libraries` lists them; or give `--root DIR`."
        )
    words = ["mcp"]
    words += [word for folder in folders for word in ("--root", str(folder))]
    if library is not None:
        words += ["--library", str(Path(library).resolve()) if _is_path(library) else library]
    plain = Settings.load(environ={})
    if settings.home.resolve() != plain.home.resolve():
        words += ["--home", str(settings.home.resolve())]
    if settings.profile != plain.profile:
        words += ["--profile", settings.profile]
    program, *first = own_command()
    return Launch(program, (*first, *words))


def own_command() -> list[str]:
    """How this installation is started by its full path: its script, or its interpreter."""
    beside = shutil.which("triptych", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("triptych")
    return [str(Path(found).absolute())] if found else [sys.executable, "-m", "triptych.server.cli"]


def place_of(client: Client) -> str | None:
    """Where the client's settings are on this machine, or None."""
    system = SYSTEMS.get(sys.platform, "linux")
    return client.place(system, str(Path.home()), str(Path.cwd()), os.environ)


def put(client: Client, launch: Launch, path: Path, *, replace: bool, ask: Any = None) -> Done:
    """Put the entry into the settings file `path`: a copy of the old one is kept, and the change is all or nothing.

    Args:
        replace: an entry of this server may be replaced.
        ask: called with the old and the new entry where `replace` is False; None where nobody can be asked.

    Raises:
        BadInput: the file is not what the client reads, or an entry may not be replaced.
        Unsupported: the file cannot be rewritten without a loss.
        Cancelled: the person said no.
    """
    from ..manifests import merge

    path = path.resolve()  # through a symbolic link: what it points to is what changes
    before = _read(path)
    text = _decoded(before or b"", path)
    entry = client.filled(launch)
    old = merge.existing(client, text, path.name)
    if old == entry:
        return Done(written=False)
    if old is not None and not replace:
        _allowed(old, entry, path.name, ask)
    after = merge.merged(client, text, entry, path.name).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        backup = _backed_up(path, before) if before is not None else None
        _swap(path, before, after)
    except OSError as error:
        raise BadInput(f"`{path.name}` cannot be written: {error.strerror}.", "Nothing in it was changed.") from None
    return Done(written=True, backup=backup)


def _allowed(old: Any, entry: Any, file: str, ask: Any) -> None:
    if ask is None or not sys.stdin.isatty():
        raise BadInput(f"`{file}` has another entry `triptych` already.", "Add `--yes` to replace it.")
    if not ask(old, entry):
        raise Cancelled("Nothing was written.", "The snippet is printed without `--write`.")


def _asked(old: Any, entry: Any) -> bool:
    click.echo(f"There is an entry already:\n{_compact(old)}\nThe new one:\n{_compact(entry)}", err=True)
    return click.confirm("Replace it?", err=True)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _read(path: Path) -> bytes | None:
    try:
        if path.stat().st_size > LARGEST:
            raise BadInput(f"`{path.name}` is too large for settings.", "Name another file: `--path FILE`.")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadInput(f"`{path.name}` cannot be read: {error.strerror}.", "Name another: `--path FILE`.") from None


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise BadInput(f"`{path.name}` is not UTF-8 text.", "Name another file: `--path FILE`.") from None


def _backed_up(path: Path, content: bytes) -> Path:
    """A copy under the first free name; earlier copies are never overwritten."""
    for number in itertools.count(1):
        backup = path.with_name(f"{path.name}.triptych-{number}.bak")
        with contextlib.suppress(FileExistsError):
            _write_new(backup, content, like=path)
            return backup
    raise AssertionError("unreachable")


def _swap(path: Path, before: bytes | None, after: bytes) -> None:
    fresh = path.with_name(f".{path.name}.triptych-{os.getpid()}")
    _write_new(fresh, after, like=path)
    try:
        if _read(path) != before:
            raise BadInput(f"`{path.name}` was changed by somebody else meanwhile.", "Run the command again.")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def _write_new(path: Path, content: bytes, like: Path) -> None:
    """Write a file that must not be there yet, readable by no more people than `like`."""
    mode = like.stat().st_mode & 0o777 if like.exists() else 0o600
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _is_path(library: str) -> bool:
    return any(sign in library for sign in ("/", os.sep)) or library in (".", "..")


def _library_exists(settings: Settings, library: str) -> bool:
    return Path(library).is_dir() if _is_path(library) else (settings.libraries / library).is_dir()


def _row(client: Client) -> dict[str, Any]:
    place = place_of(client)
    there = place is not None and Path(place).is_file()
    return {"client": client.id, "title": client.title, "path": place, "exists": there, "then": client.then}


def _told(done: Done, place: str, client: Client) -> str:
    if not done.written:
        return f"{place} has this entry already; nothing was written.\n"
    kept = f"The old file is kept as {done.backup}\n" if done.backup else ""
    return f"Written into {place}\n{kept}{client.then}\n"


def _draw(to: Console, text: str) -> None:
    to.print(text, end="", soft_wrap=True)


def _draw_list(to: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    wide = max(len(row["client"]) for row in rows)
    for row in rows:
        mark = "*" if row["exists"] else " "
        to.print(f"{mark} {row['client']:<{wide}}  {row['path'] or row['then']}", soft_wrap=True)
    to.print("* this file is there. `triptych connect CLIENT` prints the snippet.", soft_wrap=True)
