"""Co-Prompt: the reranker, and a search that an oracle can follow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from threading import Event

import pytest

from triptych.errors import BadInput, Cancelled, MissingWeights, Unsupported
from triptych.progress import reporting
from triptych.rerankers.base import Limits
from triptych.rerankers.prompted.co_prompt import START, CoPrompt, Found, Search
from triptych.retrievers.base import Hit, Item, Query, Source
from triptych.retrievers.lm import LM, LogProbs, Prompt, ScriptedLM, joined
from triptych.retrievers.lm_transformers import TransformersLM

DATA = [(f"question {n}", f"passage {n}") for n in range(20)]


class Oracle(LM):
    """Proposes from a small vocabulary; `write`, `a` and `question` in this order make every query likelier."""

    can = frozenset({"logprobs", "logits"})
    words = (" the", "\n", " write", " a", " question", " ")
    target = f"{START} write a question"

    def __init__(self) -> None:
        self.scored: list[str] = []
        self.proposed: list[str] = []

    def logprobs(self, prompts: Sequence[Prompt], targets: Sequence[str]) -> list[LogProbs]:
        self.scored += [joined(prompt) for prompt in prompts]
        return [LogProbs((-2.0 - self._distance(joined(prompt)),)) for prompt in prompts]

    def top_next(self, prompts: Sequence[Prompt], k: int) -> list[list[str]]:
        self.proposed += [joined(prompt) for prompt in prompts]
        return [list(self.words[:k]) for _ in prompts]

    def _distance(self, prompt: str) -> float:
        instruction = prompt.rstrip("\n").rpartition("\n")[2]
        same = next((n for n, (a, b) in enumerate(zip(instruction, self.target, strict=False)) if a != b), None)
        same = min(len(instruction), len(self.target)) if same is None else same
        return (len(self.target) - same + len(instruction) - same) / 10


def search(**changed: int) -> Search:
    return Search(**{"steps": 5, "beam": 6, "kept": 2, "pairs": 4, **changed})


# --- the search ------------------------------------------------------------------------------------------------------


def test_the_search_finds_the_prompt_and_the_best_length(tmp_path: Path) -> None:
    oracle = Oracle()
    found = CoPrompt.fit(oracle, DATA, tmp_path, search())
    assert found.instruction == Oracle.target
    assert found.score == pytest.approx(-2.0)
    assert CoPrompt.from_folder(oracle, tmp_path).instruction == Oracle.target
    assert found.tried * 4 == len(oracle.scored)
    assert all("\n" not in prompt and prompt.strip() == prompt for prompt in state(tmp_path))


def test_only_proposed_tokens_and_kept_prompts_go_on(tmp_path: Path) -> None:
    oracle = Oracle()
    CoPrompt.fit(oracle, DATA, tmp_path, search(kept=1, steps=2, beam=3))
    assert set(state(tmp_path)) == {
        START,
        f"{START} the",
        f"{START} write",
        f"{START} write the",
        f"{START} write write",
    }
    assert len(oracle.proposed) == 2
    assert oracle.proposed[0].startswith("Passage: passage ")
    assert oracle.proposed[0].endswith(f"\n{START}")
    assert oracle.proposed[1].endswith(f"\n{START} write")
    assert oracle.proposed[0].partition("\n")[0] != oracle.proposed[1].partition("\n")[0]


def test_an_interrupted_search_goes_on_to_the_same_end(tmp_path: Path) -> None:
    whole = CoPrompt.fit(Oracle(), DATA, tmp_path / "whole", search())
    oracle, cancelled = Oracle(), Event()

    def on_step(done: int, total: int | None, what: str) -> None:
        if what == "tokens" and done == 3:
            cancelled.set()

    with reporting(on_step, cancelled=cancelled), pytest.raises(Cancelled):
        CoPrompt.fit(oracle, DATA, tmp_path / "cut", search())
    before = len(oracle.scored)
    with pytest.raises(MissingWeights, match=r"Run `CoPrompt\.fit"):
        CoPrompt.from_folder(oracle, tmp_path / "cut")
    again = CoPrompt.fit(oracle, DATA, tmp_path / "cut", search())
    assert again == whole
    assert 0 < before < len(oracle.scored) == whole.tried * 4


def test_a_longer_search_goes_on_where_a_shorter_one_ended(tmp_path: Path) -> None:
    oracle = Oracle()
    short = CoPrompt.fit(oracle, DATA, tmp_path, search(steps=1))
    assert short.instruction == f"{START} write"
    assert CoPrompt.fit(oracle, DATA, tmp_path, search()).instruction == Oracle.target
    with pytest.raises(BadInput, match="holds another search"):
        CoPrompt.fit(oracle, DATA, tmp_path, search(seed=1))


def test_the_seed_draws_the_pairs(tmp_path: Path) -> None:
    seen = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        oracle = Oracle()
        CoPrompt.fit(oracle, DATA, tmp_path / name, search(seed=seed, steps=1))
        seen.append(oracle.scored)
    assert seen[0] == seen[1] != seen[2]


def test_a_real_model_proposes_and_scores(tmp_path: Path) -> None:
    lm = TransformersLM.tiny(0)
    found = CoPrompt.fit(lm, DATA, tmp_path, search(steps=2, beam=3))
    assert found == Found(**json.loads((tmp_path / "prompt.json").read_text("utf-8")))
    assert found.instruction.startswith(START)
    assert found.tried > 4


def test_what_the_search_needs(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="`0` pairs"):
        CoPrompt.fit(Oracle(), [], tmp_path)
    with pytest.raises(Unsupported, match="cannot do `logits`"):
        CoPrompt.fit(ScriptedLM(can=["logprobs"]), DATA, tmp_path)


def state(folder: Path) -> dict[str, float]:
    scored: dict[str, float] = json.loads((folder / "search.json").read_text("utf-8"))["scored"]
    return scored


# --- tokens that a model proposes ------------------------------------------------------------------------------------


def test_proposed_tokens_are_the_likeliest_ones() -> None:
    lm = TransformersLM.tiny(0)
    [found, other] = lm.top_next([["abc"], ["a longer text"]], 5)
    assert len(set(found)) == len(found) == 5
    scores = lm.next_token_logits([["abc"]], [chr(code) for code in range(33, 127)])[0]
    printable = [text for text in lm.top_next([["abc"]], 999)[0] if text in map(chr, range(33, 127))]
    assert printable[0] == chr(33 + int(scores.argmax()))
    assert lm.top_next([["a longer text"]], 5) == [other]
    assert lm.top_next([], 3) == []
    assert ScriptedLM().top_next([["b a b"]], 1) == [[" b"]]
    with pytest.raises(Unsupported, match="cannot do `logits`"):
        LM().top_next([["a"]], 1)


# --- the reranker ----------------------------------------------------------------------------------------------------


def test_hits_are_ordered_by_the_likelihood_of_the_query_after_the_instruction() -> None:
    made = [Item(f"p{n}", text, Source("f.txt")) for n, text in enumerate(["stocks fell", "cats sleep", "dogs bark"])]
    given_hits = [Hit(item, -n) for n, item in enumerate(made)]
    lm = ScriptedLM()
    found = CoPrompt(lm).rank(Query("cats sleep"), given_hits)
    assert [hit.item.id for hit in found.hits] == ["p1", "p0", "p2"]
    assert [hit.score for hit in found.hits] == [-1, -5, -5]
    assert CoPrompt(lm, "cats").rank(Query("cats sleep"), given_hits).hits[1].score == -3
    limited = CoPrompt(lm).rank(Query("cats sleep"), given_hits, Limits(depth=1))
    assert (limited.calls, limited.complete) == (1, False)
    with pytest.raises(Unsupported, match="Co-Prompt needs text"):
        CoPrompt(lm).rank(Query(None), given_hits)
