"""Which weights the reranker `blend` has, and whether each of its measures earns its time.

    python benchmarks/choose_blend.py read DATA SET [--queries N]
    python benchmarks/choose_blend.py likelihood DATA SET [--queries N]
    python benchmarks/choose_blend.py choose DATA
    python benchmarks/choose_blend.py run FOLDER RUN
    python benchmarks/choose_blend.py test RESULT…

DATA holds the folders `scifact` (SciFact with queries.train.jsonl and qrels.train.tsv) and `qa_nq_train` (train.jsonl).
SET is `scifact_train`, `nq_held` (the 200 questions that our pruner was not trained on) or `nq_seen` (others, which it
was trained on: its score is too good there, and they choose nothing).

`read` keeps what each measure says of the first passages of two first stages, BM25 and the hybrid (`blend_data.py`), so
that `choose` reads none. Query likelihood is slow: `likelihood` reads the hybrid's first 25 of fewer queries. `choose`
writes `results/choose_blend.json`. `run` writes BM25's run of a collection for `triptych eval rerank`, and `test` sets
the blend beside the cosine in results of that: `results/choose_blend_test.json`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from blend_data import DEPTH, HELD, LIKELY, SEED, SETS, Data, Run, cached, data_of, likelihood, read, trec_run

from triptych.rerankers._pointwise import first_stage
from triptych.rerankers.finetuned import maxsim
from triptych.rerankers.finetuned.blend import WEIGHTS, Told, Weights, of, standard
from triptych.rerankers.finetuned.triptych_reranker import FADE
from triptych.rerankers.prompted.query_likelihood import PRIOR
from triptych.tools.evaluation import compare
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, Comparison, DataInfo, Result

RESULTS = Path(__file__).resolve().parent / "results"
CHOOSING = ("scifact_train", "nq_held")
STAGES = ("bm25", "hybrid")
METRIC = "nDCG@10"
BASELINE = "cosine"
UNREAD = {"cosine": 0.0, "maxsim": 0.0, "pruner": 0.0, "tokens": 0}
GRID = {
    "rank": (0.0, 0.3, 0.5, 1.0),
    "score": (0.0, 0.3, 0.5),
    "cosine": (0.0, 0.5, 1.0),
    "maxsim": (0.0, 0.5, 1.0),
    "pruner": (0.0, 0.5, 1.0, 1.5, 2.0),
}
LIKELIHOOD = (0.3, 0.5, 1.0)
"""Weights of query likelihood that are tried beside the package's."""


# --- the grid --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One query's candidates of one first stage, in its order.

    Attributes:
        gains, ideal: grades (n,), and the discounted gain of the best order that the judgements allow.
        measures: standard scores (len(GRID), n).
        judged: (n,) whether it is in the query's language.
        below: (n,) whether `blend` puts it behind the others.
        plain: measure → values (n,), the first stage's scores and MiniLM's own cosine among them.
    """

    query: str
    gains: np.ndarray
    ideal: float
    measures: np.ndarray
    judged: np.ndarray
    below: np.ndarray
    plain: Mapping[str, np.ndarray]

    def ndcg(self, scores: np.ndarray) -> float:
        """nDCG@10 of the order by `scores` (n,), ties as they stand; what is not judged keeps its place."""
        order, places = np.arange(len(scores)), np.flatnonzero(self.judged)
        order[places] = places[np.argsort(-scores[places], kind="stable")]
        return _dcg(self.gains[order]) / self.ideal

    def blended(self, weights: Weights, more: np.ndarray | float = 0.0) -> float:
        """nDCG@10 of the order of the reranker `blend`; `more` is added to its weighted sum."""
        shares = np.array([getattr(weights, name) for name in GRID])
        return self.ndcg(shares @ self.measures + more - 1000 * self.below)


def _dcg(gains: np.ndarray) -> float:
    top = gains[:10]
    return float((top / np.log2(np.arange(2, 2 + len(top)))).sum())


def cases(
    rows: Sequence[Mapping[str, Any]], qrels: Mapping[str, Mapping[str, int]], stage: str, depth: int = DEPTH
) -> list[Case]:
    """One for each row of `blend_data.read`, with the first `depth` passages of `stage`."""
    return [_case(row, qrels[row["query"]], row["runs"][stage][:depth]) for row in rows]


def _case(row: Mapping[str, Any], grades: Mapping[str, int], run: Run) -> Case:
    judged = np.array([row["told"][name] is not None for name, _ in run])
    told = [Told(**(row["told"][name] or UNREAD)) for name, _ in run]
    scores = [score for _, score in run]
    says = np.array(first_stage(scores))
    plain = {
        "rank": says,
        "score": np.array(scores),
        **{name: of(name, told) for name in ("cosine", "maxsim", "pruner")},
        "encoded": np.array([row["encoded"][name] for name, _ in run]),
    }
    measures = np.zeros((len(GRID), len(run)))
    measures[:, judged] = [standard(plain[name][judged]) for name in GRID]
    return Case(
        query=row["query"],
        gains=np.array([max(grades.get(name, 0), 0) for name, _ in run], float),
        ideal=_dcg(np.array(sorted(grades.values(), reverse=True), float)),
        measures=measures,
        judged=judged,
        below=plain["maxsim"] * (1 - maxsim.FADE * (1 - says)) < maxsim.FLOOR,
        plain=plain,
    )


def tried(lists: Mapping[Any, Sequence[Case]]) -> dict[Weights, dict[Any, float]]:
    """Every distinct proportion of the grid's weights, with the mean nDCG@10 of each list of cases."""
    every = [Weights(**dict(zip(GRID, shares, strict=True))) for shares in product(*GRID.values()) if any(shares)]
    # The package's own last, so that they stand for their proportion.
    distinct = {_proportion(weights): weights for weights in [*every, WEIGHTS]}
    return {
        weights: {key: float(np.mean([case.blended(weights) for case in some])) for key, some in lists.items()}
        for weights in distinct.values()
    }


def _proportion(weights: Weights) -> tuple[float, ...]:
    shares = asdict(weights)
    return tuple(round(shares[name] / sum(shares.values()), 6) for name in GRID)


# --- the result ------------------------------------------------------------------------------------------------------


def choose(folder: Path) -> Result:
    """The grid on `CHOOSING`, and what stands in the package beside its measures alone, on every set."""
    sets = [data_of(folder, name) for name in SETS if cached(name)]
    lists = {(data.name, stage): cases(cached(data.name), data.qrels, stage) for data in sets for stage in STAGES}
    grid = tried({key: some for key, some in lists.items() if key[0] in CHOOSING})
    ordered = sorted(grid, key=lambda weights: -_mean(grid[weights]))
    arms = [arm for key, some in lists.items() for arm in _alone(*key, some)]
    arms += [_arm("blend", *key, some, [case.blended(WEIGHTS) for case in some]) for key, some in lists.items()]
    arms += [
        _arm("blend", *key, some, [case.blended(one) for case in some], without=name)
        for name, one in _without(WEIGHTS)
        for key, some in lists.items()
    ]
    arms += [arm for data in sets for arm in _likelihood(data)]
    return Result(
        name="choose_blend",
        kind="choose_blend",
        title="Weights of the reranker blend",
        command="python benchmarks/choose_blend.py choose DATA",
        seed=SEED,
        data=tuple(_read_of(data) for data in sets),
        environment=environment(),
        arms=tuple(arms),
        comparisons=tuple(_tested(arms)),
        notes=tuple(_notes(grid, ordered)),
    )


def _alone(name: str, stage: str, some: Sequence[Case]) -> Iterator[Arm]:
    """The first stage, and each measure as the system of its name has it."""
    for system, scores in {
        "no_rerank": lambda case: -np.arange(len(case.gains)),
        "cosine": lambda case: case.plain["encoded"],
        "mean_token_cosine": lambda case: case.plain["cosine"],
        "maxsim": lambda case: case.plain["maxsim"] * (1 - maxsim.FADE * (1 - case.plain["rank"])),
        "triptych_reranker": lambda case: _share(case.plain["pruner"]) * (1 - FADE * (1 - case.plain["rank"])),
    }.items():
        yield _arm(system, name, stage, some, [case.ndcg(scores(case)) for case in some])


def _likelihood(data: Data) -> Iterator[Arm]:
    """Query likelihood alone and beside the package's measures, and these without it, on the same passages."""
    known = {row["query"]: row for row in cached(f"{data.name}_likelihood")}
    rows = [row for row in cached(data.name) if row["query"] in known]
    if not rows:
        return
    some = cases(rows, data.qrels, "hybrid", LIKELY)
    likely = [
        np.array([known[row["query"]]["told"][name] for name, _ in row["runs"]["hybrid"][:LIKELY]]) for row in rows
    ]
    told = {"depth": LIKELY}
    seconds = float(np.mean([known[row["query"]]["seconds"] for row in rows]))
    say = [case.plain["rank"] * PRIOR for case in some]
    alone = [case.ndcg(one + own) for case, one, own in zip(some, likely, say, strict=True)]
    arm = _arm("query_likelihood", data.name, "hybrid", some, alone, **told)
    yield arm.model_copy(update={"metrics": {**arm.metrics, "s_per_query": seconds}})
    yield _arm("blend", data.name, "hybrid", some, [case.blended(WEIGHTS) for case in some], **told)
    for weight in LIKELIHOOD:
        values = [case.blended(WEIGHTS, weight * standard(one)) for case, one in zip(some, likely, strict=True)]
        yield _arm("blend", data.name, "hybrid", some, values, **told, query_likelihood=weight)


def _share(logits: np.ndarray) -> np.ndarray:
    made: np.ndarray = 1 / (1 + np.exp(-logits))
    return made


def _arm(
    system: str, name: str, stage: str, some: Sequence[Case], values: Sequence[float], **settings: str | float
) -> Arm:
    per_query = {case.query: value for case, value in zip(some, values, strict=True)}
    return Arm(
        system=system,
        settings={"data": name, "first_stage": stage, **settings},
        metrics={METRIC: float(np.mean(values)), "queries": len(some)},
        per_query={METRIC: per_query},
    )


def _without(weights: Weights) -> Iterator[tuple[str, Weights]]:
    """`weights` with one of its measures left out, for each that weighs something."""
    for name in GRID:
        if getattr(weights, name):
            yield name, replace(weights, **{name: 0.0})


def _tested(arms: Sequence[Arm]) -> Iterator[Comparison]:
    """The blend against the cosine and against maxsim, and against itself without each of its measures."""
    for arm in arms:
        if arm.system == "blend" and arm.settings.keys() <= {"data", "first_stage", "depth"}:
            same = [one for one in arms if one is not arm and _beside(one, arm)]
            for one in same:
                if one.system in ("cosine", "maxsim", "blend", "query_likelihood"):
                    yield compare.paired(arm, one, METRIC, SEED)


def _beside(one: Arm, arm: Arm) -> bool:
    """Whether `one` was measured on the same passages."""
    return arm.settings.items() <= one.settings.items() and one.settings.get("depth") == arm.settings.get("depth")


def _mean(by_list: Mapping[Any, float]) -> float:
    """Each set counts the same, and in it each first stage."""
    return float(np.mean(list(by_list.values())))


def _notes(grid: Mapping[Weights, Mapping[Any, float]], ordered: Sequence[Weights]) -> Iterator[str]:
    yield f"Chosen on {', '.join(CHOOSING)}; the first {DEPTH} passages of each first stage are reranked."
    yield "The pruner was trained on the questions of nq_seen, not on those of nq_held; SciFact is another field."
    yield "Seconds of query likelihood are one core's, beside other work."
    yield f"Of {len(grid)} proportions of weights the best by the mean of four lists: " + "; ".join(
        f"{_told(one)} {_mean(grid[one]):.4f}" for one in ordered[:10]
    )
    yield f"In the package: {_told(WEIGHTS)} {_mean(grid[WEIGHTS]):.4f}, place {ordered.index(WEIGHTS) + 1}."
    for name in CHOOSING:
        own = {one: _mean({key: value for key, value in grid[one].items() if key[0] == name}) for one in grid}
        best = max(own, key=lambda one: own[one])
        rest = _mean({key: value for key, value in grid[best].items() if key[0] != name})
        yield f"Best on {name} alone: {_told(best)} {own[best]:.4f}; the other set with these weights: {rest:.4f}."


def _told(weights: Weights) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in asdict(weights).items() if value)


def _read_of(data: Data) -> DataInfo:
    """The data with how many of its queries were read."""
    return data.info.model_copy(update={"sizes": {**data.info.sizes, "queries": len(cached(data.name))}})


# --- on other data ---------------------------------------------------------------------------------------------------


def tested(paths: Sequence[Path]) -> Result:
    """Every reranker of results of `triptych eval rerank` against `BASELINE`, from the run's own order.

    Raises:
        ValueError: a result without the baseline.
    """
    results = [Result.read(path) for path in paths]
    arms: list[Arm] = []
    found: list[Comparison] = []
    for result in results:
        data = {"data": result.data[0].name}
        own = [arm.model_copy(update={"settings": data}) for arm in result.arms if arm.settings.get("order") == "given"]
        [baseline] = [arm for arm in own if arm.system == BASELINE]
        found += compare.against(own, baseline, (METRIC,), result.seed)
        arms += own
    return Result(
        name="choose_blend_test",
        kind="choose_blend",
        title="The reranker blend on data that chose nothing",
        command=f"python benchmarks/choose_blend.py test {' '.join(path.name for path in paths)}",
        seed=results[0].seed,
        data=tuple(one for result in results for one in result.data),
        environment=results[0].environment,
        arms=tuple(arms),
        comparisons=tuple(found),
        notes=tuple(f"{result.data[0].name}: {result.command}" for result in results),
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    steps = parser.add_subparsers(dest="step", required=True)
    for step in ("read", "likelihood"):
        made = steps.add_parser(step)
        made.add_argument("data", type=Path)
        made.add_argument("set", choices=SETS)
        made.add_argument("--queries", type=int, default=HELD)
    made = steps.add_parser("run")
    made.add_argument("data", type=Path)
    made.add_argument("run", type=Path)
    steps.add_parser("choose").add_argument("data", type=Path)
    steps.add_parser("test").add_argument("results", type=Path, nargs="+")
    given = parser.parse_args(arguments)
    if given.step in ("read", "likelihood"):
        {"read": read, "likelihood": likelihood}[given.step](data_of(given.data, given.set), given.queries)
    elif given.step == "run":
        trec_run(given.data, given.run)
    else:
        result = choose(given.data) if given.step == "choose" else tested(given.results)
        print(result.write(given.out).name)


if __name__ == "__main__":
    main()
