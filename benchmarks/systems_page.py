"""docs/systems.md, made from the cards and the results that they quote.

python benchmarks/systems_page.py [--check]  # write it, or exit 1 when it differs
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from triptych.manifests.registry import Card, packaged
from triptych.manifests.weights import models

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "systems.md"
LINKS = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}
MADE = {
    "released-weights": "as released",
    "from-paper": "from the paper",
    "reconstructed": "reconstructed",
    "ours": "ours",
    "baseline": "baseline",
}
COLUMNS = ("System", "What it is", "Paper", "Reads", "Weights", "Made", "Measured, with its baseline", "Use")

TOP = """\
# Systems

Made by `make results` from the cards in `manifests/systems/` and the result files that they quote. A figure stands \
there whichever way it went; the experiment behind `results/systems/ID.json` is `make prove ID=ID`, and what has no \
result file is not yet measured. How to add one, here or in a package of your own: \
[adding-a-system.md](adding-a-system.md). On the command line: `triptych systems`, `triptych systems show ID`.

Weights: *pulled* come with `triptych pull`, checked by their hash. *Your own* are files that you put, or that the \
system's `fit` writes, into `weights/ID` of the home folder; where checkpoints are named, these are the published ones \
that load from there."""

ROLES = {
    "retriever": (
        "Retrievers",
        "`triptych index PATH --retriever ID` gives a library any of them beside its own search, "
        "`triptych search QUERY --retriever ID` (or `retrieve`) asks it alone, and "
        "`triptych eval retrieval DATA --retriever ID` measures it. "
        "An encoder can also become a part of the library's own search: `triptych index PATH --space ID`.",
    ),
    "reranker": (
        "Rerankers",
        "`triptych rerank QUERY --ids A,B --reranker ID`, or the setting `reranker` (`TRIPTYCH_RERANKER=ID`) for "
        "`retrieve`; `triptych eval rerank` measures it.",
    ),
    "refiner": (
        "Refiners",
        "`triptych compress QUERY --ids A,B --refiner ID`, or the setting `refiner` (`TRIPTYCH_REFINER=ID`) for "
        "`retrieve`; `triptych eval compress` measures it.",
    ),
}


def page() -> str:
    """The whole page. The tables stand between the marks of what is generated: they hold figures."""
    parts = [TOP, "<!-- results:start -->"]
    for role, (title, use) in ROLES.items():
        rows = [row(card) for card in packaged().values() if card.role == role]
        parts += [f"## {title}\n\n{use}", "\n".join(table(rows))]
    return "\n\n".join([*parts, "<!-- results:end -->"]) + "\n"


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """As Markdown."""
    for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows):
        yield f"| {' | '.join(map(escaped, cells))} |"


def escaped(cell: str) -> str:
    """Text inside a cell."""
    return cell.replace("|", "\\|")


def row(card: Card) -> tuple[str, ...]:
    """One system, a cell for each of `COLUMNS`."""
    file = "/".join(card.entry.partition(":")[0].split(".")[1:]) + ".py"
    return (
        f"[`{card.id}`](../{file})",
        f"{card.title}: {card.kind}",
        paper(card),
        ", ".join(card.modalities),
        weights(card),
        MADE[card.fidelity],
        measured(card),
        use(card),
    )


def paper(card: Card) -> str:
    """Its address."""
    kind, _, number = card.paper.partition(":")
    return f"<{LINKS[kind]}{quote(number)}>" if number else "none"


def weights(card: Card) -> str:
    """Where they come from, and their licence."""
    unseen = [_named(point) for point in card.checkpoints if point["revision"] == "unseen"]
    shipped = any(point["revision"] != "unseen" and point["name"] not in models() for point in card.checkpoints)
    sources = [
        *(["pulled"] if card.weights else []),
        *(["in the package"] if shipped else []),
        *([f"your own: {', '.join(unseen)}"] if unseen else []),
    ]
    if not sources and not learns(card):
        return "none needed"
    licence = "" if card.licence_weights == "none" else f"; licence: {card.licence_weights}"
    return f"{'; '.join(sources) or 'your own'}{licence}"


def _named(point: Mapping[str, Any]) -> str:
    return f"{point['name']}{'' if point['native'] else ' (after conversion)'}"


def learns(card: Card) -> bool:
    """Whether its weights are what its `fit` writes."""
    return hasattr(card.resolve(), "fit")


def measured(card: Card) -> str:
    """The finding, with the file behind it."""
    if card.evidence == "pending":
        return "not yet measured"
    return f"{card.result} [{Path(card.evidence).name}](../{card.evidence})"


def use(card: Card) -> str:
    """The option that names it."""
    return f"`--{card.role} {card.id}`"


def main(arguments: Sequence[str]) -> int:
    """Write the page, or compare it; the exit status is 1 when it differs."""
    made = page()
    if "--check" not in arguments:
        PAGE.write_text(made, "utf-8")
        return 0
    same = PAGE.is_file() and PAGE.read_text("utf-8") == made
    print("Up to date." if same else "Run `make results`: systems.md differs from the cards.")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
