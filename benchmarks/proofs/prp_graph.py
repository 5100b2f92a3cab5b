"""PRP-Graph: Swiss pairs and PageRank against counting wins and against random pairs, on a noisy comparator.

    make prove ID=prp_graph

No language model: 100 documents of known quality, and a Bradley-Terry comparator that likes the passage shown first.
Ten rounds, about 1,000 calls, for every arm but PRP-Allpair. Two comparators: one tells the outcome of a draw, the
other a probability with noise; two first stages: one knows something of quality, the other nothing. Each seed is one
query; those that were looked at while this was built are not among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import _proof
import numpy as np
from _comparator import BETA, BIAS, NOISE, QUERY, UNSEEN, Comparator, World, hits, order_of
from scipy.stats import kendalltau

from triptych.rerankers._pointwise import first_stage
from triptych.rerankers.prompted._pairwise import Pairs
from triptych.rerankers.prompted.prp_allpair import PRPAllPair
from triptych.rerankers.prompted.prp_graph import ROUNDS, PRPGraph, edges, pagerank, tournament
from triptych.tools.evaluation.compare import against
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, Result

N = 100
SEEDS = 30
METRICS = ("kendall_tau", "top10")
BASELINES = ("win_count", "random_pairs", "random_win_count")
Told = dict[str, tuple[list[int], int]]
"""Arm → documents, best first, and calls."""


def ranked(order: Sequence[int], scores: np.ndarray) -> list[int]:
    """Documents of `order` by `scores` (of its places), equal ones as they stood."""
    return [order[place] for place in np.argsort(-np.round(scores, 9), kind="stable")]


def wins(pairs: Pairs) -> np.ndarray:
    """Wins and half the ties of each passage (n,), over the pairs that were asked."""
    n = pairs.n
    return np.array([sum(pairs.points(i, j) for j in range(n) if pairs.known(i, j)) for i in range(n)])


def at_random(n: int, rounds: int, random: np.random.Generator) -> list[tuple[int, int]]:
    """As many pairs as `rounds` rounds have, each passage once in a round, without repetition but otherwise random."""
    pairs: set[tuple[int, int]] = set()
    for _ in range(rounds):
        free = [int(i) for i in random.permutation(n)]
        while free:
            one = free.pop()
            other = next((i for i in free if (min(one, i), max(one, i)) not in pairs), None)
            if other is not None:
                free.remove(other)
                pairs.add((min(one, other), max(one, other)))
    return sorted(pairs)


def told(world: World, margins: np.ndarray, order: list[int]) -> Told:
    """What each arm makes of one world."""
    model, items = Comparator(margins), hits(order)
    say = np.array(first_stage([hit.score for hit in items]))
    swiss, random = (Pairs(model, "score", "q", [hit.item for hit in items], None, N * ROUNDS) for _ in range(2))
    standing = tournament(swiss, ROUNDS)
    random.ask(at_random(N, ROUNDS, world.random))
    found = {
        "prp_graph": PRPGraph(model).rank(QUERY, items),
        "prp_graph_loops": PRPGraph(model, loops=True).rank(QUERY, items),
        "prp_allpair": PRPAllPair(model).rank(QUERY, items),
    }
    return {
        **{name: (order_of(one.hits), one.calls) for name, one in found.items()},
        "standing": (ranked(order, standing), swiss.calls),
        "win_count": (ranked(order, wins(swiss)), swiss.calls),
        "random_pairs": (ranked(order, pagerank(edges(random), say)), random.calls),
        "random_win_count": (ranked(order, wins(random)), random.calls),
        "first_stage": (order, 0),
    }


def values(world: World, order: Sequence[int]) -> Mapping[str, float]:
    """Kendall's tau with the true order, and the share of the true top 10 among the first 10."""
    best = np.argsort(-world.quality)[:10]
    return {
        "kendall_tau": float(kendalltau(np.arange(N), -world.quality[list(order)])[0]),
        "top10": len(set(order[:10]) & set(best.tolist())) / 10,
    }


def arms(comparator: str, first: str, seed: int) -> list[Arm]:
    """All arms under one condition; values per seed."""
    rows: dict[str, dict[str, Mapping[str, float]]] = {}
    calls: dict[str, list[int]] = {}
    for number in range(UNSEEN + seed, UNSEEN + seed + SEEDS):
        world = World.made(N, number)
        for name, (order, spent) in told(world, getattr(world, comparator), getattr(world, first)).items():
            rows.setdefault(name, {})[f"seed {number}"] = values(world, order)
            calls.setdefault(name, []).append(spent)
    return [
        Arm(
            system=name,
            settings={"comparator": comparator, "first_stage": first},
            metrics={
                **{metric: float(np.mean([row[metric] for row in own.values()])) for metric in METRICS},
                "calls": float(np.mean(calls[name])),
            },
            per_query={metric: {key: row[metric] for key, row in own.items()} for metric in METRICS},
        )
        for name, own in rows.items()
    ]


def main() -> None:
    given = _proof.asked(__doc__)
    made, comparisons = [], []
    for comparator in ("hard", "soft"):
        for first in ("informed", "blind"):
            same = arms(comparator, first, given.seed)
            made += same
            ours = [arm for arm in same if arm.system in ("prp_graph", "prp_graph_loops")]
            for baseline in (arm for arm in same if arm.system in BASELINES):
                comparisons += against(ours, baseline, METRICS, given.seed)
    world = _proof.own("bradley_terry", [f"{N} {SEEDS} {given.seed} {BETA} {BIAS} {NOISE}"], documents=N, seeds=SEEDS)
    result = Result(
        name="prp_graph",
        kind="proof",
        title="Swiss pairs and PageRank against win counts and random pairs, on a noisy comparator",
        command=_proof.command("prp_graph", given),
        seed=given.seed,
        data=(world,),
        environment=environment(),
        arms=tuple(made),
        comparisons=tuple(comparisons),
        notes=(
            f"{N} documents, {SEEDS} seeds, {ROUNDS} rounds. P(A) = sigmoid({BETA:g} x difference in quality + "
            f"{BIAS:g}); quality is standard normal.",
            f"`hard`: an outcome drawn with P(A). `soft`: P(A) itself, with noise of {NOISE:g} in logits.",
            "`informed`: the first stage's score is quality plus noise of the same size; `blind`: a random order.",
            "`win_count`: wins and half the ties on PRP-Graph's own pairs. `random_pairs`: PageRank on random pairs. "
            "`standing`: the tournament's scores, before the graph. `prp_graph_loops`: the option `loops`.",
        ),
    )
    _proof.write(result, given.out)


if __name__ == "__main__":
    main()
