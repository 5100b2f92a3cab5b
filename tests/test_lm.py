"""Language models: the local one agrees with a plain computation however it is batched; the scripted one keeps to its
script; what a model cannot do is refused when a system is built."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triptych import progress
from triptych.errors import BadInput, Cancelled, MissingWeights, Unsupported
from triptych.manifests import weights
from triptych.retrievers.base import MediaRef
from triptych.retrievers.lm import LM, LogProbs, ScriptedLM, TransformersLM, cut, joined, require
from triptych.retrievers.loading import batches, dtype

PROMPTS = [["The capital of France is"], ["2 + 2 ="], ["Once upon"], [""], ["中文：", "你好"], ["x" * 300]]
RANDOM = TransformersLM.tiny(3)
TARGETS = [" Paris.", " 4", " a time there was a king", "And", "世界", "y"]


@pytest.fixture(scope="module")
def tiny() -> TransformersLM:
    return TransformersLM.tiny(0)


@pytest.fixture(scope="module")
def small(weights_home: Path) -> TransformersLM:
    return TransformersLM.from_folder(weights.folder("smollm2_135m_instruct", weights_home / "weights"), "float32")


def naive(lm: TransformersLM, prompt: str, target: str) -> list[float]:
    """Softmax over the whole vocabulary at every position, one pair at a time, tokens split at the border."""
    before = lm.tokenizer(prompt, add_special_tokens=False).input_ids or [lm.tokenizer.bos_token_id]
    after = lm.tokenizer(target, add_special_tokens=False).input_ids
    with torch.no_grad():
        scores = torch.log_softmax(lm.model(torch.tensor([before + after])).logits[0].float(), dim=-1)
    return [float(scores[len(before) + n - 1, token]) for n, token in enumerate(after)]


def close(found: LogProbs, wanted: list[float]) -> None:
    assert len(found.tokens) == len(wanted)
    assert found.tokens == pytest.approx(wanted, abs=1e-3)


# --- log-probabilities -----------------------------------------------------------------------------------------------


def test_logprobs_equal_a_full_softmax(tiny: TransformersLM) -> None:
    for found, prompt, target in zip(tiny.logprobs(PROMPTS, TARGETS), PROMPTS, TARGETS, strict=True):
        close(found, naive(tiny, joined(prompt), target))
        assert found.sum == pytest.approx(sum(found.tokens))
        assert found.mean == pytest.approx(found.sum / len(found.tokens))


def test_logprobs_of_the_real_model_equal_a_full_softmax(small: TransformersLM) -> None:
    prompts, targets = PROMPTS[:3], TARGETS[:3]
    for found, prompt, target in zip(small.logprobs(prompts, targets), prompts, targets, strict=True):
        close(found, naive(small, joined(prompt), target))
    likely, unlikely = small.logprobs([["The capital of France is"]] * 2, [" Paris", " Oslo"])
    assert likely.sum > unlikely.sum + 1


def test_batching_and_padding_change_nothing(tiny: TransformersLM) -> None:
    together = tiny.logprobs(PROMPTS, TARGETS)
    for found, prompt, target in zip(together, PROMPTS, TARGETS, strict=True):
        [alone] = tiny.logprobs([prompt], [target])
        close(found, list(alone.tokens))


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=5))
def test_every_text_has_logprobs_that_do_not_depend_on_its_neighbours(pairs: list[tuple[str, str]]) -> None:
    found = RANDOM.logprobs([[prompt] for prompt, _ in pairs], [target for _, target in pairs])
    for one, (prompt, target) in zip(found, pairs, strict=True):
        assert all(value <= 0 for value in one.tokens)
        close(RANDOM.logprobs([[prompt]], [target])[0], list(one.tokens))


def test_logprobs_of_nothing(tiny: TransformersLM) -> None:
    assert tiny.logprobs([], []) == []
    [empty] = tiny.logprobs([["abc"]], [""])
    assert (empty.tokens, empty.sum, empty.mean) == ((), 0.0, 0.0)
    with pytest.raises(BadInput, match="`1` targets for `2` prompts"):
        tiny.logprobs([["a"], ["b"]], ["c"])


def test_a_prompt_beyond_the_context_is_refused(tiny: TransformersLM) -> None:
    with pytest.raises(BadInput, match="`8201` tokens"):
        tiny.logprobs([["a" * 8200]], ["b"])


def test_a_media_part_is_refused_by_a_model_without_eyes(tiny: TransformersLM) -> None:
    with pytest.raises(Unsupported, match="image/png"):
        tiny.logprobs([["see ", MediaRef("a.png", "image/png")]], ["x"])


# --- the next token and answers --------------------------------------------------------------------------------------


def test_next_token_logits_are_those_of_the_whole_forward_pass(tiny: TransformersLM) -> None:
    prompts = [["abc"], ["a longer prompt"], [""]]
    found = tiny.next_token_logits(prompts, ["y", "no"])
    assert found.shape == (3, 2)
    assert found.dtype == np.float32
    ids = tiny.tokenizer("a longer prompt", add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        wanted = tiny.model(ids).logits[0, -1, [tiny.tokenizer.convert_tokens_to_ids(token) for token in "yn"]]
    assert found[1] == pytest.approx(wanted.numpy(), abs=1e-4)
    for row, prompt in zip(found, prompts, strict=True):
        assert tiny.next_token_logits([prompt], ["y", "no"])[0] == pytest.approx(row, abs=1e-4)


def test_candidates_that_cannot_be_told_apart_are_refused(tiny: TransformersLM) -> None:
    with pytest.raises(BadInput, match="share a first token"):
        tiny.next_token_logits([["a"]], ["no", "never"])


def test_generation_is_greedy_the_same_alone_and_in_a_batch(tiny: TransformersLM) -> None:
    prompts = [["abc"], ["a longer prompt than the first"], ["z"]]
    together = tiny.generate(prompts, 6)
    assert together == [tiny.generate([prompt], 6)[0] for prompt in prompts]
    assert tiny.generate([], 3) == []
    with pytest.raises(BadInput, match="max_tokens is `0`"):
        tiny.generate([["a"]], 0)


def test_the_real_model_answers_and_stops(small: TransformersLM) -> None:
    [answer] = small.generate([["What is the capital of France?"]], 16, stop=["."])
    assert "Paris" in answer
    assert "." not in answer


# --- one instance, many callers --------------------------------------------------------------------------------------


def test_eight_threads_get_the_answers_of_serial_calls(tiny: TransformersLM) -> None:
    serial = [tiny.logprobs([prompt], [target]) for prompt, target in zip(PROMPTS, TARGETS, strict=True)]
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(tiny.logprobs, [PROMPTS[n % 6]], [TARGETS[n % 6]]) for n in range(24)]
        for n, job in enumerate(jobs):
            close(job.result()[0], list(serial[n % 6][0].tokens))


def test_padding_set_by_another_user_of_the_tokenizer_changes_nothing(tiny: TransformersLM) -> None:
    before = tiny.logprobs(PROMPTS[:2], TARGETS[:2])
    tiny.tokenizer(["a", "bcd"], padding="max_length", max_length=64, truncation=True)
    assert tiny.logprobs(PROMPTS[:2], TARGETS[:2]) == before


def test_work_stops_between_batches(tiny: TransformersLM) -> None:
    cancelled = Event()
    seen: list[int] = []

    def on_step(done: int, total: int | None, what: str) -> None:
        seen.append(done)
        if done:
            cancelled.set()

    with progress.reporting(on_step, cancelled=cancelled), pytest.raises(Cancelled):
        tiny.logprobs([["a" * 1500]] * 4, ["b"] * 4)
    assert seen == [0, 1]


# --- formats ---------------------------------------------------------------------------------------------------------


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match="no safetensors or gguf"):
        TransformersLM.from_folder(tmp_path)


def test_a_saved_model_comes_back_the_same(tiny: TransformersLM, tmp_path: Path) -> None:
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    again = TransformersLM.from_folder(tmp_path, "float32")
    close(again.logprobs(PROMPTS[:1], TARGETS[:1])[0], list(tiny.logprobs(PROMPTS[:1], TARGETS[:1])[0].tokens))
    assert TransformersLM.from_folder(tmp_path, "bfloat16").model.dtype == torch.bfloat16


def test_models_that_scale_their_logits_are_refused(tiny: TransformersLM) -> None:
    other = TransformersLM.tiny(0).model
    other.config.logits_scaling = 8.0
    with pytest.raises(Unsupported, match="logits_scaling"):
        TransformersLM(other, tiny.tokenizer)


def test_the_same_seed_gives_the_same_model() -> None:
    pair = ([["abc"]], ["def"])
    assert TransformersLM.tiny(1).logprobs(*pair) == TransformersLM.tiny(1).logprobs(*pair)
    assert TransformersLM.tiny(1).logprobs(*pair) != TransformersLM.tiny(2).logprobs(*pair)


def test_tiny_leaves_the_global_seed_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    TransformersLM.tiny(0)
    assert torch.equal(torch.rand(1), wanted)


# --- precision and batches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "wanted"), [({"avx512_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)]
)
def test_auto_precision_follows_the_processor(
    found: dict[str, bool], wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert dtype("auto") == wanted
    assert dtype("float32") == torch.float32
    assert dtype("bfloat16") == torch.bfloat16


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(BadInput, match="`int3`"):
        dtype("int3")


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 100))
def test_batches_hold_every_index_once_within_the_budget(lengths: list[int], budget: int) -> None:
    found = list(batches(lengths, budget))
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[n] for n in batch) <= budget for batch in found)


# --- the scripted model ----------------------------------------------------------------------------------------------


def test_a_script_is_answered_in_turn_and_runs_out() -> None:
    lm = ScriptedLM(["[2] > [1]", "yes. no"])
    assert lm.generate([["a"], ["b"]], 9, stop=["."]) == ["[2] > [1]", "yes"]
    assert lm.calls == [("generate", 2)]
    with pytest.raises(BadInput, match="no answer left"):
        lm.generate([["c"]], 5)


def test_a_script_can_be_a_function_of_the_prompt() -> None:
    lm = ScriptedLM(lambda prompt: prompt.upper())
    assert lm.generate([["a b", "c"]], 2) == ["A B"]


def test_scripted_logprobs_prefer_known_words() -> None:
    lm = ScriptedLM()
    near, far = lm.logprobs([["the cat sat"], ["stocks fell"]], ["cat sat", "cat sat"])
    assert (near.tokens, far.tokens) == ((-1.0, -1.0), (-5.0, -5.0))
    assert lm.next_token_logits([["yes yes no"]], ["Yes", " no"]).tolist() == [[2.0, 1.0]]
    assert [name for name, _ in lm.calls] == ["logprobs", "next_token_logits"]


def test_a_missing_ability_is_refused_when_asked_for() -> None:
    lm = ScriptedLM(can=["generate"])
    require(lm, "generate")
    with pytest.raises(Unsupported, match="`ScriptedLM` cannot do `logprobs`") as caught:
        require(lm, "generate", "logprobs")
    assert caught.value.hint == "It can: generate."
    with pytest.raises(Unsupported, match="logits"):
        lm.next_token_logits([["a"]], ["b"])


@pytest.mark.parametrize("call", [lambda lm: lm.generate([], 1), lambda lm: lm.logprobs([], [])])
def test_a_bare_model_can_do_nothing(call: Any) -> None:
    with pytest.raises(Unsupported, match="`LM` cannot do"):
        call(LM())


@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=3), max_size=3))
def test_a_cut_text_holds_no_stop(text: str, stop: list[str]) -> None:
    assert text.startswith(cut(text, stop))
    assert not any(mark in cut(text, stop) for mark in stop)
