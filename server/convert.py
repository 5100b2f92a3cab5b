"""`triptych convert`: checkpoints that are pickles become safetensors."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .command import register

if TYPE_CHECKING:
    from .command import Run

converting = click.Group()
command = functools.partial(register, converting)


@command("convert", library=False)
@click.argument("source", metavar="FOLDER")
@click.option("--to", type=click.Path(path_type=Path), metavar="DIR", help="Write here (default: beside the pickles).")
def convert(run: Run, source: str, to: Path | None) -> None:
    """Write pickled checkpoints (.bin, .pt, .pth, .ckpt) as safetensors, without running what is in them.

    FOLDER is a folder, a single file, or the id of a system whose folder in `weights` of the home folder is meant.
    A file that holds anything but tensors is refused. The pickles stay; delete them when you no longer need them.
    """
    with run.out.working():
        from ..tools.converting import convert as converted
        from ..tools.converting import told_lines

        own = run.settings().weights / source
        meant = Path(source).expanduser()
        result = converted(own if not meant.exists() and own.is_dir() else meant, to)
    run.show(result, lambda to, shown: to.print("\n".join(told_lines(shown))))
