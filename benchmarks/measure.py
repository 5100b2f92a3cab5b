"""Every measurement of search that README and docs quote, one `triptych eval retrieval` after the other.

    python benchmarks/measure.py DATA [--only NAME]… [--fresh] [--list]

DATA holds the collections as folders (`DATA/scifact`, `DATA/xquad/en`, …). Each measurement is a process of its own and
writes `results/retrieval_NAME.json`. What is there already, made by the same command, is not measured again unless
`--fresh`; so a run that was stopped goes on where it stood. Ends with 1 when a measurement failed; the others go on.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prepare_xquad import pairs

from triptych.errors import BadInput
from triptych.tools.evaluation.result import Result

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PREPARED = HERE / ".cache" / "data"
ROUTES = ("bm25", "all_minilm_l6_v2", "use_multilingual")
MEDIA = ("embedded", "embedded+use_multilingual", *ROUTES)
XQUAD_QUERIES = 200


@dataclass(frozen=True)
class Measurement:
    """One run over one collection.

    Attributes:
        retrievers: the first is what the others are tested against.
        side: see `tools/evaluation/sides.py`.
        limit: of queries; 0 for all.
    """

    data: str
    retrievers: Sequence[str]
    side: str = ""
    rerankers: Sequence[str] = ()
    limit: int = 0

    @property
    def name(self) -> str:
        """The result's, without `retrieval_`."""
        return "_".join(filter(None, (self.data, self.side)))

    def words(self, folder: Path, out: Path) -> list[str]:
        """The command line after `triptych`."""
        asked = [word for name in self.retrievers for word in ("--retriever", name)]
        asked += [word for name in self.rerankers for word in ("--rerank", name)]
        asked += ["--passages", self.side] if self.side else []
        asked += ["--limit", str(self.limit)] if self.limit else []
        return ["eval", "retrieval", str(folder), *asked, "--out", str(out)]

    def command(self, folder: Path, out: Path) -> str:
        """The command line as a result tells it."""
        return " ".join(["triptych", *(Path(word).name for word in self.words(folder, out))])


MEASUREMENTS = (
    Measurement("scifact", ("hybrid", *ROUTES), rerankers=("maxsim",)),
    Measurement("cranfield", ("embedded", "embedded+use_multilingual", *ROUTES)),
    *(
        Measurement(f"xquad_{pair}", ("embedded", "embedded+use_multilingual", "hybrid", *ROUTES), limit=XQUAD_QUERIES)
        for pair in ("en_en", "zh_en", "en_zh", "zh_zh")
    ),
    Measurement("cook_zh", ("embedded", "hybrid", *ROUTES), side="text"),
    Measurement("cook_zh", MEDIA, side="media"),
    Measurement("flickr8k_100", MEDIA, side="media"),
    Measurement("esc50_subset", MEDIA, side="media"),
    Measurement("video_tiny", MEDIA, side="media"),
    Measurement("financebench_pages", ("embedded", *ROUTES), side="media"),
    Measurement("financebench_pages", ("embedded", *ROUTES), side="media_text"),
    Measurement("financebench_pages", ("embedded", *ROUTES), side="text"),
)


def main(arguments: list[str] | None = None) -> int:
    """Measure what is asked for and not there yet."""
    given = _parsed(arguments)
    chosen = [one for one in MEASUREMENTS if not given.only or one.name in given.only]
    if given.list:
        print("\n".join(one.name for one in chosen))
        return 0
    failed = []
    for number, one in enumerate(chosen, start=1):
        start = time.monotonic()
        folder = _folder(given.data, one.data)
        there = not given.fresh and is_there(one, folder, given.out)
        done = there or measured(one, folder, given.out)
        told = "there already" if there else "done" if done else "FAILED"
        print(f"{number}/{len(chosen)} {one.name}: {told} ({time.monotonic() - start:.0f} s)", flush=True)
        failed += [] if done else [one.name]
    if failed:
        print(f"Failed: {', '.join(failed)}.")
    return int(bool(failed))


def is_there(one: Measurement, folder: Path, out: Path) -> bool:
    """Whether its result is there and was made by this command."""
    path = out / f"retrieval_{one.name}.json"
    if not path.is_file():
        return False
    try:
        return Result.read(path).command == one.command(folder, out)
    except BadInput:
        return False


def measured(one: Measurement, folder: Path, out: Path) -> bool:
    """Run it; whether it went well. What it says goes to stderr."""
    home = os.environ.get("TRIPTYCH_HOME") or str(HERE.parent / ".triptych")
    program = Path(sys.executable).with_name("triptych")
    ended = subprocess.run(
        [str(program), *one.words(folder, out)],
        env={**os.environ, "TRIPTYCH_HOME": home, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
    )
    return ended.returncode == 0


def _folder(data: Path, name: str) -> Path:
    """Where the collection is; those of XQuAD are made from its languages."""
    if not name.startswith("xquad_"):
        return data / name
    if not (PREPARED / name).is_dir() and (data / "xquad").is_dir():
        pairs(data / "xquad", PREPARED)
    return PREPARED / name


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", choices=[one.name for one in MEASUREMENTS]
    )
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument("--list", action="store_true", help="only name the measurements")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results go instead")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
