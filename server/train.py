"""`triptych train`: a system learns from a file of the user's."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .command import register

if TYPE_CHECKING:
    from .command import Run

training = click.Group()
command = functools.partial(register, training)


@command("train", library=False)
@click.argument("system", metavar="ID")
@click.option("--data", type=click.Path(path_type=Path), required=True, metavar="FILE", help="What it learns from.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Where the model goes.")
@click.option("--stage", type=click.IntRange(1, 2), help="Of unime: 1 from texts and a teacher, 2 from pairs.")
@click.option("--student", type=click.Path(path_type=Path), metavar="FOLDER", help="Begin from this model.")
@click.option("--teacher", default="all_minilm_l6_v2", show_default=True, metavar="ID", help="Text encoder of stage 1.")
@click.option("--epochs", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True, help="Rows in one step.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), default=1e-4, show_default=True, help="Learning rate.")
@click.option("--rank", type=click.IntRange(0), default=16, show_default=True, help="Of the adapters; 0: all weights.")
@click.option("--chunk", type=click.IntRange(0), default=8, show_default=True, help="Inputs in memory at once; 0: all.")
@click.option(
    "--run", "length", type=click.IntRange(1), default=1, show_default=True, help="Rows of one group together."
)
@click.option("--every", type=click.IntRange(0), default=0, show_default=True, help="Steps to a checkpoint; 0: epochs.")
@click.option("--seed", type=int, default=0, show_default=True)
def train(run: Run, system: str, data: Path, out: Path, length: int, **options: Any) -> None:
    """Train the system ID (colpali, dse, unime or vlm2vec) on a file of rows; the same again goes on.

    \b
    Rows, one JSON object a line:
      {"query": "…", "right": "…"}                            pairs; both can be objects:
      {"query": {"text", "image", "page", "instruction"},     any of them
       "right": {"id", "title", "text", "image", "page"},
       "wrong": ["…", {…}], "group": "name of a data set"}    optional
      {"text": "…"}                                           for unime's stage 1
    An image is a picture, a video, or a PDF (with its page), by its path from the file's folder; colpali and dse find
    images by words alone.
    """
    with run.out.working():
        from ..tools import training as learning

        plan = learning.Plan(system=system, run=length, **options)
        result = learning.train(plan, data, out, run.settings())

    run.show(result, lambda to, shown: to.print(_told(shown)))


def _told(result: Any) -> str:
    of = f", stage {result.stage}" if result.stage else ""
    loss = f", mean loss {result.loss:.4f}" if result.loss is not None else ""
    return f"{result.system}{of}: {result.steps} steps over {result.rows} rows{loss}. The model is in `{result.model}`."
