"""tf-idf: the cosines of scikit-learn from our index, and what idf, its logarithm and its lengths are worth.

    make prove ID=tfidf DATA=cranfield

Of the collection, 1,000 passages are drawn with each seed, and queries stay that have a right one among them. Arms
differ in the scheme of the same index alone: tf-idf, the same without idf, with plain counts, and plain counts without
idf; a drawn order is what chance gives. Every cosine is held against scikit-learn's.

Then each of the ten most frequent terms of the collection is written 2,000 times into a passage of its own, and the
same queries are asked again: `stuffed` is the share of queries for which such a passage comes first.
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import _proof
import _retrieval
import numpy as np
from _retrieval import Task

from triptych.retrievers.base import Item, Query, Source
from triptych.retrievers.searchable import searchable_text
from triptych.retrievers.stores.weighed import Weighed
from triptych.retrievers.text.analysis import terms
from triptych.retrievers.text.tfidf import Scheme, TfIdf
from triptych.tools.evaluation import datasets
from triptych.tools.evaluation.compare import paired
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.passages import corpus
from triptych.tools.evaluation.result import Arm, Result

PASSAGES = 1_000
STUFFED, TIMES = 10, 2_000
OFF = "largest_difference_millionths"

SCHEMES: Mapping[str, Scheme] = {
    "tf-idf": Scheme(),
    "no idf": Scheme(idf="none"),
    "plain counts": Scheme(sublinear=False),
    "plain counts, no idf": Scheme(sublinear=False, idf="none"),
}


def main() -> None:
    given = _retrieval.asked(__doc__)
    data = datasets.collection(given.data, limit=given.limit)
    whole = Task(corpus(data).items, {key: one.text for key, one in data.queries.items()}, data.qrels)
    by_name: dict[str, list[Arm]] = {}
    for seed in range(given.seeds):
        task = drawn(whole, seed)
        for name, scheme in SCHEMES.items():
            by_name.setdefault(name, []).append(measured(task, name, scheme, seed))
        by_name.setdefault("chance", []).append(task.arm("chance", by_chance(task, seed), seed=seed))
    means = {name: _proof.over_seeds(arms) for name, arms in by_name.items()}
    result = Result(
        name="tfidf",
        kind="proof",
        title="tf-idf: equal to scikit-learn, and what idf and the logarithm are worth",
        command=_retrieval.command("tfidf", given),
        seed=0,
        data=(data.info,),
        environment=environment(),
        arms=tuple(arm for name, arms in by_name.items() for arm in (*arms, means[name])),
        comparisons=tuple(
            paired(means["tf-idf"], rival, "nDCG@10") for name, rival in means.items() if name != "tf-idf"
        ),
        notes=(f"Of {PASSAGES:,} passages each. Tests are over the queries that have a right one in every draw.",),
    )
    _proof.write(result, given.out)


def drawn(whole: Task, seed: int) -> Task:
    """`PASSAGES` of the items, and the queries that want one of them."""
    items = random.Random(seed).sample(list(whole.items), min(PASSAGES, len(whole.items)))
    here = {item.id for item in items}
    qrels = {query: {key: grade for key, grade in rows.items() if key in here} for query, rows in whole.qrels.items()}
    asked = {query: text for query, text in whole.queries.items() if any(g > 0 for g in qrels[query].values())}
    return Task(items, asked, qrels)


def measured(task: Task, name: str, scheme: Scheme, seed: int) -> Arm:
    """One scheme: quality and cost, how far it is from scikit-learn, and how often a stuffed passage wins."""
    with tempfile.TemporaryDirectory() as scratch, Weighed(Path(scratch), scheme) as store:
        retriever = TfIdf(store)
        arm = task.measured("tfidf", retriever, Path(scratch), scheme=name, seed=seed)
        off = difference(task, retriever, scheme)
        retriever.add(stuffed(task))
        first = [retriever.search(Query(text), 1) for text in task.queries.values()]
        wins = float(np.mean([bool(hits) and hits[0].item.id.startswith("stuffed") for hits in first]))
    return arm.model_copy(update={"metrics": {**arm.metrics, OFF: off * 1e6, "stuffed": wins}})


def difference(task: Task, retriever: TfIdf, scheme: Scheme) -> float:
    """The largest of any score from the cosine of scikit-learn's vectors (for texts whose words have spaces)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    theirs = TfidfVectorizer(analyzer=terms, sublinear_tf=scheme.sublinear, use_idf=scheme.idf != "none")
    vectors = theirs.fit_transform([searchable_text(item) for item in task.items])
    cosines = (theirs.transform(task.queries.values()) @ vectors.T).toarray()
    place = {item.id: n for n, item in enumerate(task.items)}
    hits, _ = task.asked(retriever)
    off = [abs(hit.score - cosines[row, place[hit.item.id]]) for row, own in enumerate(hits.values()) for hit in own]
    return float(max(off))


def stuffed(task: Task) -> list[Item]:
    """A passage for each of the most frequent terms of the collection, made of that alone."""
    often = Counter(
        term for item in task.items for term in set(searchable_text(item).casefold().split()) if terms(term)
    )
    words = [word for word, _ in often.most_common(STUFFED)]
    return [
        Item(f"stuffed{n}", " ".join([word] * TIMES), Source(f"stuffed{n}.txt"), meta={"title": "-"})
        for n, word in enumerate(words)
    ]


def by_chance(task: Task, seed: int) -> dict[str, list[str]]:
    """A drawn order of all items for each query."""
    rng, ids = random.Random(seed), [item.id for item in task.items]
    return {query: rng.sample(ids, _retrieval.TOP) for query in task.queries}


if __name__ == "__main__":
    main()
