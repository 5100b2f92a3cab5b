"""BM25: the scores of bm25s from our index, and documents of very different lengths against the cosine of tf-idf.

    make prove ID=bm25 DATA=scifact

The first part asks the whole collection with each formula, and the program bm25s 0.3.16 (in an environment of its own)
with the same terms: every score that we give is held against its score for the same passage and query. bm25s counts
terms that a passage lacks in BM25L and BM25+, so for this comparison ours do, too (`absent`); both formulas as their
authors wrote them stand beside them.

The second part joins the passages, in an order drawn with each seed, to documents of 1 to 10 passages. A document is
right for a query as far as its best passage is. Nothing is tuned: k1, b and tf-idf's scheme are the systems' defaults.
`library` is the weighing of a library, whose constant mean length is meant for passages and not for such documents.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import _proof
import _retrieval
import numpy as np
from _retrieval import Task

from triptych.retrievers.base import Item, Source
from triptych.retrievers.searchable import searchable_text
from triptych.retrievers.stores.milvus import MilvusStore
from triptych.retrievers.stores.weighed import Weighed
from triptych.retrievers.text.analysis import terms
from triptych.retrievers.text.bm25 import BM25, FORMULAS, Formula
from triptych.retrievers.text.tfidf import Scheme, TfIdf
from triptych.tools.evaluation import datasets
from triptych.tools.evaluation.compare import paired
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.passages import corpus
from triptych.tools.evaluation.result import Arm, Result

JOINED = 10
"""The most passages of one document."""
TOLERANCE = 1e-5
OFF, SHARE = "largest_difference_millionths", "largest_share_millionths"
NAMES = {"bm25plus": "bm25+"}
"""Ours → those of bm25s."""


def main() -> None:
    given = _retrieval.asked(__doc__)
    data = datasets.collection(given.data, limit=given.limit)
    whole = Task(corpus(data).items, {key: one.text for key, one in data.queries.items()}, data.qrels)
    same, notes = parity(whole)
    by_name = lengths(whole, given.seeds)
    means = {name: _proof.over_seeds(arms) for name, arms in by_name.items()}
    joined_arms = [arm for name, arms in by_name.items() for arm in (*arms, means[name])]
    rivals = [means[name] for name in means if name != "lucene"]
    result = Result(
        name="bm25",
        kind="proof",
        title="BM25: equal to bm25s, and what its length normalisation is worth",
        command=_retrieval.command("bm25", given),
        seed=0,
        data=(data.info,),
        environment=environment(),
        arms=(*same, *joined_arms),
        comparisons=tuple(paired(means["lucene"], rival, "nDCG@10") for rival in rivals),
        notes=notes,
    )
    _proof.write(result, given.out)


# --- the same scores -------------------------------------------------------------------------------------------------


def parity(task: Task) -> tuple[list[Arm], tuple[str, ...]]:
    """Arms of every formula with how far they are from bm25s, those of bm25s, and what to know of both."""
    compared = [*(replace(one, absent=True) if one.delta else one for one in FORMULAS.values())]
    theirs, version = by_bm25s(task, compared)
    arms = []
    with tempfile.TemporaryDirectory() as scratch, Weighed(Path(scratch), compared[0]) as store:
        retriever = BM25(store)
        retriever.add(task.items)
        for formula, scores in zip(compared, theirs, strict=True):
            store.weigh_by(formula)
            arms += equal(task, retriever, formula, scores, version)
        for formula in FORMULAS.values():
            if formula.delta:
                store.weigh_by(formula)
                hits, _ = task.asked(retriever)
                orders = {key: [hit.item.id for hit in found] for key, found in hits.items()}
                arms.append(task.arm("bm25", orders, on="passages", formula=formula.variant, absent="no"))
    off, share = (max(arm.metrics[name] or 0.0 for arm in arms if name in arm.metrics) / 1e6 for name in (OFF, SHARE))
    return arms, (
        f"The largest difference of a score from bm25s is {off:.1e} of scores up to {theirs.max():.0f}; as a share of "
        f"the score, of at least 1, it is {share:.1e}: {'not ' * (share > TOLERANCE)}within 1e-5. Weights are float32.",
    )


def equal(task: Task, retriever: BM25, formula: Formula, scores: np.ndarray, version: str) -> list[Arm]:
    """Ours with the largest difference, and theirs, for one formula; `scores` are theirs (queries, items)."""
    place = {item.id: n for n, item in enumerate(task.items)}
    hits, seconds = task.asked(retriever)
    off, share, unseen = 0.0, 0.0, 0
    for own, found in zip(scores, hits.values(), strict=True):
        right = own[[place[hit.item.id] for hit in found]]
        gap = np.abs([hit.score for hit in found] - right)
        off, share = max(off, *gap, 0.0), max(share, *(gap / np.maximum(right, 1)), 0.0)
        least = found[-1].score if len(found) == _retrieval.TOP else 0.0
        given = {place[hit.item.id] for hit in found}
        unseen += sum(n not in given for n in np.flatnonzero(own > least + TOLERANCE * max(1, least)).tolist())
    ids = [item.id for item in task.items]
    ours = {key: [hit.item.id for hit in found] for key, found in hits.items()}
    theirs = {key: [ids[n] for n in best(own, ids)] for key, own in zip(task.queries, scores, strict=True)}
    settings = {"on": "passages", "formula": formula.variant, "absent": "yes" if formula.absent else "no"}
    cost = {
        OFF: float(off) * 1e6,
        SHARE: float(share) * 1e6,
        "missed": float(unseen),
        "ms_p50": float(np.percentile(seconds, 50)) * 1000,
    }
    return [task.arm("bm25", ours, cost, **settings), task.arm(f"bm25s {version}", theirs, None, **settings)]


def best(scores: np.ndarray, ids: Sequence[str]) -> list[int]:
    """The places of the highest scores above 0, ties by id."""
    order = sorted(np.flatnonzero(scores > 0).tolist(), key=lambda n: (-round(float(scores[n]), 5), ids[n]))
    return order[: _retrieval.TOP]


def by_bm25s(task: Task, formulas: Sequence[Formula]) -> tuple[np.ndarray, str]:
    """Its scores (formulas, queries, items), and its version."""
    sys.path.append(str(_proof.BENCHMARKS))
    from envs import python_of

    numbers: dict[str, int] = {}
    texts = [[numbers.setdefault(term, len(numbers)) for term in terms(searchable_text(one))] for one in task.items]
    queries = [[numbers[term] for term in terms(text, "query") if term in numbers] for text in task.queries.values()]
    with tempfile.TemporaryDirectory() as scratch:
        files = {name: Path(scratch) / name for name in ("job.json", "out.json", "scores.npy")}
        job = {"texts": texts, "queries": queries, "vocabulary": len(numbers), "scores": str(files["scores.npy"])}
        job["formulas"] = [keywords(one) for one in formulas]
        files["job.json"].write_text(json.dumps(job), "utf-8")
        worker = _proof.BENCHMARKS / "workers" / "scores_bm25s.py"
        python = python_of("bm25s", _proof.BENCHMARKS / ".cache")
        subprocess.run([str(python), str(worker), str(files["job.json"]), str(files["out.json"])], check=True)
        return np.load(files["scores.npy"]), json.loads(files["out.json"].read_text("utf-8"))["version"]


def keywords(formula: Formula) -> dict[str, Any]:
    """As bm25s calls them."""
    method = NAMES.get(formula.variant, formula.variant)
    return {"method": method, "k1": formula.k1, "b": formula.b, "delta": formula.delta}


# --- documents of 1 to 10 passages -----------------------------------------------------------------------------------


def lengths(whole: Task, seeds: int) -> dict[str, list[Arm]]:
    """By name of what was asked: one arm for each seed."""
    arms: dict[str, list[Arm]] = {}
    for seed in range(seeds):
        task = joined(whole, seed)
        for name, weighing in ASKED.items():
            kind: Any = TfIdf if isinstance(weighing, Scheme) else BM25
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                with Weighed(folder, weighing) if weighing is not None else MilvusStore(folder) as store:
                    own = {} if kind is TfIdf else {"formula": name}
                    arm = task.measured(kind.__name__.lower(), kind(store), folder, on="joined", **own, seed=seed)
            arms.setdefault(name, []).append(arm)
    return arms


ASKED: Mapping[str, Formula | Scheme | None] = {
    "tfidf": Scheme(),
    "lucene": FORMULAS["lucene"],
    "lucene, b = 0": replace(FORMULAS["lucene"], b=0.0),
    "bm25l": FORMULAS["bm25l"],
    "bm25plus": FORMULAS["bm25plus"],
    "library": None,
}
"""What the joined documents are asked with; None: as a library weighs them."""


def joined(whole: Task, seed: int) -> Task:
    """Documents of 1 to `JOINED` passages each, all passages in one of them."""
    rng = random.Random(seed)
    order = rng.sample(list(whole.items), len(whole.items))
    items, home = [], {}
    while order:
        part, order = order[: (many := rng.randint(1, JOINED))], order[many:]
        name = f"joined{len(items)}"
        text = "\n".join(searchable_text(one) for one in part)
        items.append(Item(name, text, Source(f"{name}.txt", 0, len(text)), meta={"title": "-"}))
        home |= {one.id: name for one in part}
    qrels: dict[str, dict[str, int]] = {}
    for query, rows in whole.qrels.items():
        own = qrels.setdefault(query, {})
        for key in rows.keys() & home.keys():  # a passage without any text is no item
            own[home[key]] = max(own.get(home[key], 0), rows[key])
    return Task(items, whole.queries, qrels)


if __name__ == "__main__":
    main()
