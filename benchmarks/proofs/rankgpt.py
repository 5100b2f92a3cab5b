"""RankGPT and Setwise on a model that judges many passages at once: windows, orders of the first stage, bad answers.

    make prove ID=rankgpt

No language model: 100 documents of known quality, graded, and a judge that sees up to twenty of them, knows each one's
quality with noise, and likes what stands first. A part of its answers is malformed: cut off, repeating, inventing,
refusing, empty. RankGPT's windows, each half over the one before, stand beside windows that do not overlap; Setwise's
heap of sets beside RankGPT and beside a heap of pairs (PRP-Sorting). Each seed is one query; those that were looked at
while this was built are not among them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from zlib import crc32

import _proof
import numpy as np
from _comparator import BETA, BIAS, NOISE, QUERY, UNSEEN, World, hits, order_of
from prp_allpair import GRADES, ORDERS, SEEDS, N, ndcg10

from triptych.rerankers.prompted.first import FIRST
from triptych.rerankers.prompted.prp_sorting import PRPSorting
from triptych.rerankers.prompted.rankgpt import RankGPT
from triptych.rerankers.prompted.setwise import Setwise
from triptych.retrievers.lm import LM, Prompt, joined
from triptych.tools.evaluation.compare import against
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, Comparison, Result

if TYPE_CHECKING:
    from triptych.rerankers.base import Ranking, Reranker

SHARP = 3.0
"""A sharp judge counts quality by so much more, and has so much less noise."""
RATES = (0.1, 0.2, 0.3)
METRICS = ("ndcg10",)
Made = Callable[[LM], "Reranker"]

_SHOWN = re.compile(r"(?:\[(\w+)\]|Passage [AB]:) document number (\d+)")


class Judge(LM):
    """Utility of a shown passage = BETA x quality + BIAS x (1 - place / shown) + noise, the same for the same prompt.

    Args:
        quality: of documents by their numbers (n,).
        sharp: quality counts three times as much, with a third of the noise.
        malformed: the share of written answers that are broken, and how.
    """

    can = frozenset({"generate", "logits"})

    def __init__(self, quality: np.ndarray, seed: int, sharp: bool, malformed: float = 0.0) -> None:
        self._quality = quality
        self._seed = seed
        self._scale = SHARP if sharp else 1.0
        self._malformed = malformed
        self.written = 0
        """Tokens of all answers, four characters each."""

    def _told(self, prompt: Prompt) -> tuple[list[str], np.ndarray, np.random.Generator]:
        shown = _SHOWN.findall(joined(prompt))
        numbers = [int(number) for _, number in shown]
        random = np.random.default_rng([self._seed, crc32(repr(numbers).encode())])
        noise = NOISE / self._scale * random.standard_normal(len(numbers))
        bias = BIAS * (1 - np.arange(len(numbers)) / len(numbers))
        return [name for name, _ in shown], self._scale * BETA * self._quality[numbers] + bias + noise, random

    def next_token_logits(self, prompts: Sequence[Prompt], candidates: Sequence[str]) -> np.ndarray:
        return np.array([self._told(prompt)[1] for prompt in prompts], np.float32)

    def generate(self, prompts: Sequence[Prompt], max_tokens: int, stop: Sequence[str] = ()) -> list[str]:
        answers = [self._answer(*self._told(prompt)) for prompt in prompts]
        self.written += sum(map(len, answers)) // 4
        return answers

    def _answer(self, names: list[str], utility: np.ndarray, random: np.random.Generator) -> str:
        ids = [f"[{names[place]}]" for place in np.argsort(-utility, kind="stable")]
        if random.random() >= self._malformed:
            return " > ".join(ids)
        broken = (
            " > ".join(ids)[: len(ids) * 2],
            " > ".join([*ids[:5], *ids[:5], *ids[7:]]),
            " > ".join(["[99]", *ids, "[0]"]),
            f"I am sorry, but I cannot rank these {len(ids)} passages.",
            "",
        )
        return broken[int(random.integers(len(broken)))]


SYSTEMS: dict[str, Made] = {
    "rankgpt": RankGPT,
    "rankgpt_disjoint": lambda lm: RankGPT(lm, step=20),
    "first": FIRST,
    "setwise": Setwise,
    "setwise_wide": lambda lm: Setwise(lm, children=9),
    "setwise_bubbles": lambda lm: Setwise(lm, sort="bubblesort"),
    "prp_sorting": PRPSorting,
}


def arm(system: str, judge: str, order: str, seed: int, malformed: float = 0.0) -> Arm:
    """One system on one order of the first stage; values per seed."""
    values: dict[str, float] = {}
    found: list[Ranking] = []
    written = 0
    for number in range(UNSEEN + seed, UNSEEN + seed + SEEDS):
        world = World.made(N, number)
        model = Judge(world.quality, number, judge == "sharp", malformed)
        first = ORDERS[order](world)
        ranking = SYSTEMS[system](model).rank(QUERY, hits(first))
        if sorted(order_of(ranking.hits)) != list(range(N)):
            raise RuntimeError(f"{system} gave no permutation")
        values[f"seed {number}"] = ndcg10(order_of(ranking.hits), world.quality)
        found.append(ranking)
        written += model.written
    settings: dict[str, str | int | float | bool] = {"judge": judge, "order": order, "malformed": malformed}
    return Arm(
        system=system,
        settings=settings,
        metrics={
            "ndcg10": float(np.mean(list(values.values()))),
            "calls": float(np.mean([one.calls for one in found])),
            "tokens_read": float(np.mean([one.tokens for one in found])),
            "tokens_written": written / len(found),
            "repaired": float(np.mean([one.repaired for one in found])),
        },
        per_query={"ndcg10": values},
    )


def before(order: str, seed: int) -> Arm:
    """The first stage's own order."""
    worlds = {f"seed {number}": World.made(N, number) for number in range(UNSEEN + seed, UNSEEN + seed + SEEDS)}
    values = {key: ndcg10(ORDERS[order](world), world.quality) for key, world in worlds.items()}
    mean = float(np.mean(list(values.values())))
    return Arm(system="first_stage", settings={"order": order}, metrics={"ndcg10": mean}, per_query={"ndcg10": values})


def comparisons(arms: Sequence[Arm], seed: int) -> list[Comparison]:
    """Each system against its baseline, in each order; each order against the one given; bad answers against good."""
    by = {(one.system, *one.settings.values()): one for one in arms}
    pairs = []
    for judge in ("noisy", "sharp"):
        for order in ORDERS:
            at = (judge, order, 0.0)
            pairs.append((by["rankgpt", *at], by["rankgpt_disjoint", *at]))
            pairs += [(by["setwise", *at], by[baseline, *at]) for baseline in ("prp_sorting", "rankgpt")]
            if order != "given":
                pairs += [(by[name, *at], by[name, judge, "given", 0.0]) for name in SYSTEMS]
        pairs += [(by["rankgpt", judge, "given", rate], by["rankgpt", judge, "given", 0.0]) for rate in RATES]
    return [told for one, baseline in pairs for told in against([one], baseline, METRICS, seed)]


def main() -> None:
    given = _proof.asked(__doc__)
    first = [before(order, given.seed) for order in ORDERS]
    arms = []
    for judge in ("noisy", "sharp"):
        for order in ORDERS:
            arms += [arm(name, judge, order, given.seed) for name in SYSTEMS]
        arms += [arm("rankgpt", judge, "given", given.seed, malformed=rate) for rate in RATES]
    told = f"{N} {SEEDS} {UNSEEN + given.seed} {BETA} {BIAS} {NOISE} {SHARP} {GRADES}"
    result = Result(
        name="rankgpt",
        kind="proof",
        title="Listwise and setwise ranking on a simulated judge that likes what stands first and answers badly",
        command=_proof.command("rankgpt", given),
        seed=given.seed,
        data=(_proof.own("judge_graded", [told], documents=N, seeds=SEEDS),),
        environment=environment(),
        arms=(*first, *arms),
        comparisons=tuple(comparisons(arms, given.seed)),
        notes=(
            f"{N} documents, {SEEDS} seeds. `noisy`: utility = {BETA:g} x quality + {BIAS:g} x (1 - place / shown) + "
            f"noise of {NOISE:g} for each prompt; `sharp`: {SHARP * BETA:g}, {BIAS:g} and {NOISE / SHARP:g}. Quality "
            f"is standard normal, graded by place {GRADES}.",
            "`given`: the first stage's score is quality plus noise of the same size; `shuffled`: a random order.",
            "`malformed`: the share of written answers that are cut off, repeat, invent, refuse or are empty; "
            "`repaired` counts those that had to be mended, per query.",
            "`first` reads the logits that `rankgpt` writes down, so it orders alike; it saves `tokens_written`.",
            "`rankgpt_disjoint`: windows that do not overlap. `setwise_wide`: nine children.",
        ),
    )
    _proof.write(result, given.out)


if __name__ == "__main__":
    main()
