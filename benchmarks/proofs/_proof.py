"""What the proofs share: their command line, and where their results go."""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

from triptych.settings import Settings
from triptych.tools.evaluation import report
from triptych.tools.evaluation.result import DataInfo, Result
from triptych.tools.stages import Stages

BENCHMARKS = Path(__file__).resolve().parent.parent
RESULTS = BENCHMARKS / "results"
STATION = BENCHMARKS / "data" / "station"
HOME = BENCHMARKS.parent / ".triptych"


def asked(description: str | None) -> argparse.Namespace:
    """`--questions FILE`, `--limit N`, `--seed N`, `--out FOLDER`; a proof reads of them what it needs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=Path, default=STATION, help="a question file; our own without one")
    parser.add_argument("--limit", type=int, help="that many questions, drawn at random with the seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def command(system: str, given: argparse.Namespace) -> str:
    """The line that makes this result again; files are told by their names."""
    words = ["make", "prove", f"ID={system}"]
    words += [f"QUESTIONS={given.questions.name}"] if given.questions != STATION else []
    words += [f"LIMIT={given.limit}"] if given.limit else []
    return " ".join(words)


def stages() -> Stages:
    """The stages of the embedded profile, with the weights of `TRIPTYCH_HOME` or of the checkout."""
    settings = Settings.load("embedded")
    return Stages(settings if settings.weights.is_dir() else Settings.load("embedded", home=HOME))


def own(name: str, texts: list[str], **sizes: int) -> DataInfo:
    """Data that a proof makes itself."""
    return DataInfo(
        name=name, sha256=hashlib.sha256("\n".join(texts).encode()).hexdigest(), sizes=sizes, synthetic=True
    )


def write(result: Result, out: Path) -> None:
    """Into the results, and as a table to stdout."""
    path = result.write(out)
    sys.stdout.write(f"{report.markdown(result)}\n{path.parent.name}/{path.name}\n")
