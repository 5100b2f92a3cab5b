"""The command line of proofs that learn a refiner first: with what, and on what it is measured."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path

import _proof


def asked_for(described: str | None, seeds: int) -> Namespace:
    """What was asked; without `train` and `questions`, the part that learns nothing.

    Args:
        described: the module's docstring.
        seeds: so many fits, where nothing else is said.
    """
    parser = ArgumentParser(description=described, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="questions with the passages that answer them, to learn from")
    parser.add_argument("--questions", type=Path, help="questions with contexts, to measure on")
    parser.add_argument("--limit", type=int, help="so many of them, drawn at random with the seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=seeds, help="so many fits")
    parser.add_argument("--keep", type=Path, help="a folder for what was learned, and to go on from")
    parser.add_argument("--out", type=Path, default=_proof.RESULTS)
    parser.add_argument("--full", action=_proof.OneSize)
    given = parser.parse_args()
    if (given.train is None) != (given.questions is None):
        parser.error("--train and --questions go together")
    return given


def command(system: str, given: Namespace) -> str:
    """The `make prove` of what was asked."""
    words = ["make", "prove", f"ID={system}"]
    words += [f"TRAIN={given.train.name}", f"QUESTIONS={given.questions.name}"] if given.train else []
    words += [f"LIMIT={given.limit}"] if given.limit else []
    return " ".join(words)
