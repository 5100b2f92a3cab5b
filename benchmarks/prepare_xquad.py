"""XQuAD (arXiv:1910.11856) as collections in which questions and paragraphs need not be in the same language.

    python benchmarks/prepare_xquad.py FOLDER OUT [--languages en,zh]

FOLDER holds a collection for each language, `FOLDER/en`, `FOLDER/zh`, …, with the same ids in all of them. OUT gets
one for each pair: `OUT/xquad_zh_en` asks in Chinese and searches English paragraphs. Titles are left out: they are in
English in every language, and would be found by an English question.
"""

from __future__ import annotations

import argparse
import json
import shutil
from itertools import product
from pathlib import Path

LANGUAGES = "en,zh"


def pair(folder: Path, out: Path, asked: str, held: str) -> Path:
    """Questions of the language `asked` about paragraphs of the language `held`; answers the new folder."""
    made = out / f"xquad_{asked}_{held}"
    made.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in (folder / held / "corpus.jsonl").read_text("utf-8").splitlines() if line]
    kept = [{"id": row["id"], "text": row["text"]} for row in rows]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
    (made / "corpus.jsonl").write_text(text, "utf-8")
    for name in ("queries.jsonl", "qrels.tsv"):
        shutil.copyfile(folder / asked / name, made / name)
    return made


def pairs(folder: Path, out: Path, languages: str = LANGUAGES) -> list[Path]:
    """Every pair of `languages` (codes with commas between); answers the new folders."""
    codes = languages.split(",")
    return [pair(folder, out, asked, held) for asked, held in product(codes, codes)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--languages", default=LANGUAGES)
    given = parser.parse_args(arguments)
    pairs(given.folder, given.out, given.languages)


if __name__ == "__main__":
    main()
