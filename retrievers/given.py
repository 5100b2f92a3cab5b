"""Weights that no package carries: a folder that the user fills, by hand or with `fit`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import MissingWeights

if TYPE_CHECKING:
    from pathlib import Path

    from ..manifests.registry import Card
    from ..settings import Settings


def given_folder(card: Card, settings: Settings, *files: str, hint: str = "") -> Path:
    """`weights/ID` of the home folder, with `files` (paths below it) in it. Nothing is downloaded.

    Args:
        hint: how to get them, where that is not to fetch one of the card's checkpoints.

    Raises:
        MissingWeights: a file is not there; says which, and what brings it.
    """
    folder = settings.weights / card.id
    for file in files:
        if not (folder / file).is_file():
            names = [point["name"] for point in card.checkpoints if "not loadable" not in point["name"]]
            known = " or ".join(f"`{name}`" for name in names) or "such a model"
            by_hand = f"Put the files of {known} into `weights/{card.id}` of the home folder (`TRIPTYCH_HOME`)."
            raise MissingWeights(f"`{card.id}` has no `{file}`.", hint or by_hand)
    return folder
