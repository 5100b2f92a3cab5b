"""rank-bm25 as its own example shows it: words between spaces, an index in memory."""

from pathlib import Path

from _first_stage import Asked, Data, Search, Told, measured
from rank_bm25 import BM25Okapi


def build(data: Data, folder: Path, told: Told) -> dict[str, Search]:
    index = BM25Okapi([text.lower().split() for text in data.texts])

    def search(asked: Asked) -> list[str]:
        found: list[str] = index.get_top_n(asked.text.lower().split(), data.ids, n=asked.k)
        return found

    return {"bm25": search}


if __name__ == "__main__":
    measured(("bm25",), build)
