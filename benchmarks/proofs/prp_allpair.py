"""PRP: the three ways to aggregate, and PRP-Graph, when the first stage's order is right, reversed, or shuffled.

    make prove ID=prp_allpair

No language model: 100 documents of known quality, graded, and two Bradley-Terry comparators that like the passage shown
first, one with much noise and one that is sharper. Each arm is also run as if only one order were asked, the passage
that the first stage has higher being shown first: what asking both orders is good for. Each seed is one query; those
that were looked at while this was built are not among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import _proof
import numpy as np
from _comparator import BETA, BIAS, NOISE, QUERY, UNSEEN, Comparator, World, hits, order_of

from triptych.rerankers.prompted.prp_allpair import PRPAllPair
from triptych.rerankers.prompted.prp_graph import PRPGraph
from triptych.rerankers.prompted.prp_sliding import PRPSliding
from triptych.rerankers.prompted.prp_sorting import PRPSorting
from triptych.tools.evaluation.compare import against
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, Comparison, Result

if TYPE_CHECKING:
    from triptych.rerankers.base import Reranker
    from triptych.retrievers.lm import LM

N = 100
SEEDS = 30
GRADES = ((4, 3), (12, 2), (28, 1))
"""The best 4 documents have grade 3, those down to place 12 grade 2, those down to 28 grade 1, the others 0."""
ORDERS: dict[str, Callable[[World], list[int]]] = {
    "given": lambda world: world.informed,
    "reversed": lambda world: world.informed[::-1],
    "shuffled": lambda world: world.blind,
}
COMPARATORS = ("soft", "sharp")
SYSTEMS: dict[str, Callable[[LM], Reranker]] = {
    "prp_allpair": PRPAllPair,
    "prp_sorting": PRPSorting,
    "prp_sliding": PRPSliding,
    "prp_graph": PRPGraph,
}


def ndcg10(order: Sequence[int], quality: np.ndarray) -> float:
    """nDCG@10 with linear gains of the grades."""
    places = np.empty(len(quality), int)
    places[np.argsort(-quality)] = np.arange(len(quality))
    grades = np.array([next((grade for most, grade in GRADES if place < most), 0) for place in places])
    discounts = 1 / np.log2(np.arange(2, 12))
    best = np.sort(grades)[::-1][:10]
    return float((grades[list(order)[:10]] * discounts).sum() / (best * discounts).sum())


def arm(system: str, comparator: str, order: str, asked: str, seed: int) -> Arm:
    """One system on one order of the first stage; values per seed."""
    values: dict[str, float] = {}
    calls = []
    for number in range(UNSEEN + seed, UNSEEN + seed + SEEDS):
        world = World.made(N, number)
        first = ORDERS[order](world)
        places = {document: place for place, document in enumerate(first)}
        model = Comparator(getattr(world, comparator), places if asked == "one order" else None)
        made = SYSTEMS[system](model)
        found = made.rank(QUERY, hits(first))
        if found.calls > made.estimate(N).calls or not found.complete:
            raise RuntimeError(f"{system} made {found.calls} calls")
        values[f"seed {number}"] = ndcg10(order_of(found.hits), world.quality)
        calls.append(found.calls // 2 if asked == "one order" else found.calls)
    return _arm(system, {"comparator": comparator, "order": order, "asked": asked}, values, calls)


def before(order: str, seed: int) -> Arm:
    """The first stage's own order."""
    worlds = {f"seed {number}": World.made(N, number) for number in range(UNSEEN + seed, UNSEEN + seed + SEEDS)}
    values = {key: ndcg10(ORDERS[order](world), world.quality) for key, world in worlds.items()}
    return _arm("first_stage", {"order": order}, values, [0])


def _arm(system: str, settings: Mapping[str, str], values: dict[str, float], calls: Sequence[int]) -> Arm:
    return Arm(
        system=system,
        settings=dict(settings),
        metrics={"ndcg10": float(np.mean(list(values.values()))), "calls": float(np.mean(calls))},
        per_query={"ndcg10": dict(values)},
    )


def contradictions(comparator: str, seed: int) -> Arm:
    """The share of pairs whose two answers name the same letter, over all pairs and seeds."""
    shares = []
    for number in range(UNSEEN + seed, UNSEEN + seed + SEEDS):
        says_a = getattr(World.made(N, number), comparator) > 0
        shares.append(float(np.mean((says_a == says_a.T)[np.triu_indices(N, 1)])))
    settings: dict[str, str | int | float | bool] = {"comparator": comparator}
    return Arm(system="comparator", settings=settings, metrics={"contradictions": float(np.mean(shares))})


def against_allpair(arms: Sequence[Arm]) -> list[Arm]:
    """The same arms, each with its share of what PRP-Allpair reaches under the same setting."""
    best = {str(one.settings): mean(one) for one in arms if one.system == "prp_allpair"}
    shares = [mean(one) / best[str(one.settings)] for one in arms]
    return [
        one.model_copy(update={"metrics": {**one.metrics, "share_of_allpair": share}})
        for one, share in zip(arms, shares, strict=True)
    ]


def mean(one: Arm) -> float:
    """nDCG@10 over seeds."""
    return float(one.metrics["ndcg10"] or 0)


def comparisons(arms: Sequence[Arm], seed: int) -> list[Comparison]:
    """Both orders against one; reversed and shuffled against given; each system against PRP-Allpair."""
    by = {(one.system, *one.settings.values()): one for one in arms}
    pairs = []
    for comparator in COMPARATORS:
        for system in SYSTEMS:
            both = {order: by[system, comparator, order, "both orders"] for order in ORDERS}
            pairs += [(one, by[system, comparator, order, "one order"]) for order, one in both.items()]
            pairs += [(both[order], both["given"]) for order in ("reversed", "shuffled")]
            if system != "prp_allpair":
                pairs.append((both["given"], by["prp_allpair", comparator, "given", "both orders"]))
    return [told for one, baseline in pairs for told in against([one], baseline, ["ndcg10"], seed)]


def main() -> None:
    given = _proof.asked(__doc__)
    arms = against_allpair(
        [
            arm(system, comparator, order, asked, given.seed)
            for comparator in COMPARATORS
            for system in SYSTEMS
            for asked in ("both orders", "one order")
            for order in ORDERS
        ]
    )
    first = [before(order, given.seed) for order in ORDERS]
    told = f"{N} {SEEDS} {UNSEEN + given.seed} {BETA} {BIAS} {NOISE} {GRADES}"
    result = Result(
        name="prp_allpair",
        kind="proof",
        title="Pairwise ranking by all pairs, heapsort and passes, on a noisy comparator that likes what stands first",
        command=_proof.command("prp_allpair", given),
        seed=given.seed,
        data=(_proof.own("bradley_terry_graded", [told], documents=N, seeds=SEEDS),),
        environment=environment(),
        arms=(*first, *arms, *(contradictions(comparator, given.seed) for comparator in COMPARATORS)),
        comparisons=tuple(comparisons(arms, given.seed)),
        notes=(
            f"{N} documents, {SEEDS} seeds. `soft`: logit of A over B = {BETA:g} x difference in quality + {BIAS:g}, "
            f"and noise of {NOISE:g} for each prompt; `sharp`: {3 * BETA:g}, {BIAS:g} and {NOISE / 3:g}. Quality is "
            f"standard normal, graded by place {GRADES}.",
            "`given`: the first stage's score is quality plus noise of the same size.",
            "`one order`: the passage that the first stage has higher is shown first, once; half the calls.",
            "`contradictions`: the share of pairs whose two answers name the same letter.",
        ),
    )
    _proof.write(result, given.out)


if __name__ == "__main__":
    main()
