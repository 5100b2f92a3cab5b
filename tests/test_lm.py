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
from triptych.retrievers.lm import LM, LogProbs, ScriptedLM, cut, joined, require
from triptych.retrievers.lm_transformers import TransformersLM
from triptych.retrievers.loading import SHARED, alike, batches, dtype

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


# --- shared beginnings ----------------------------------------------------------------------------------------------

BEGINNING = "A long instruction that every prompt of a call begins with. "


def positions_read(lm: TransformersLM, work: Any) -> int:
    """How many padded positions go through the model's first layer."""
    seen: list[int] = []
    hook = lm.model.base_model.layers[0].register_forward_pre_hook(
        lambda module, given, named: seen.append((given or (named["hidden_states"],))[0].shape[:2].numel()),
        with_kwargs=True,
    )
    try:
        work()
    finally:
        hook.remove()
    return sum(seen)


def test_a_shared_beginning_is_read_once_and_changes_nothing(tiny: TransformersLM) -> None:
    prompts = [[BEGINNING * 5 + str(n) * n] for n in range(1, 7)] + [["another"]]
    targets = [f" answer {n}" for n in range(7)]
    for found, prompt, target in zip(tiny.logprobs(prompts, targets), prompts, targets, strict=True):
        close(found, naive(tiny, joined(prompt), target))
    alone = [tiny.next_token_logits([prompt], ["y", "no"])[0] for prompt in prompts]
    assert tiny.next_token_logits(prompts, ["y", "no"]) == pytest.approx(np.array(alone), abs=1e-4)
    assert positions_read(tiny, lambda: tiny.logprobs(prompts, targets)) < 2 * len(BEGINNING) * 5
    assert positions_read(tiny, lambda: tiny.next_token_logits(prompts, ["y"])) < 2 * len(BEGINNING) * 5


@given(st.lists(st.tuples(st.integers(0, 40), st.text("ab", max_size=4)), max_size=8))
def test_logits_do_not_depend_on_what_prompts_share(made: list[tuple[int, str]]) -> None:
    prompts = [["x" * n + rest] for n, rest in made]
    found = RANDOM.next_token_logits(prompts, ["y", "no"])
    assert found.shape == (len(prompts), 2)
    for row, prompt in zip(found, prompts, strict=True):
        assert RANDOM.next_token_logits([prompt], ["y", "no"])[0] == pytest.approx(row, abs=1e-4)


def test_the_real_model_reads_a_shared_beginning_once(small: TransformersLM) -> None:
    prompts = [[BEGINNING * 5 + question] for question in ("Who?", "Where was it?", "What?")]
    for found, prompt in zip(small.logprobs(prompts, [" Me"] * 3), prompts, strict=True):
        close(found, naive(small, joined(prompt), " Me"))
    assert positions_read(small, lambda: small.logprobs(prompts, [" Me"] * 3)) < 110


@given(st.lists(st.tuples(st.integers(30, 40), st.text("ab", max_size=4)), max_size=5))
def test_answers_do_not_depend_on_what_prompts_share(made: list[tuple[int, str]]) -> None:
    prompts = [["x" * n + rest] for n, rest in made]
    assert RANDOM.generate(prompts, 5) == [RANDOM.generate([prompt], 5)[0] for prompt in prompts]


def test_answers_to_prompts_with_a_shared_beginning_read_it_once(small: TransformersLM) -> None:
    questions = ("Who wrote Hamlet?", "What is the capital of France?", "Name a fruit.")
    prompts = [[BEGINNING * 5 + question] for question in questions]
    together = small.generate(prompts, 8)
    assert together == [small.generate([prompt], 8)[0] for prompt in prompts]
    alone = sum(positions_read(small, lambda prompt=prompt: small.generate([prompt], 8)) for prompt in prompts)
    assert positions_read(small, lambda: small.generate(prompts, 8)) < alone / 1.5


def test_a_model_that_looks_back_over_a_window_only_shares_no_beginning_of_answers(tiny: TransformersLM) -> None:
    model = TransformersLM.tiny(0).model
    model.config.sliding_window = 16
    prompts = [[BEGINNING + "a"], [BEGINNING + "b"]]
    other = TransformersLM(model, tiny.tokenizer)
    assert positions_read(other, lambda: other.generate(prompts, 1)) == 2 * (len(BEGINNING) + 1)
    assert positions_read(tiny, lambda: tiny.generate(prompts, 1)) == len(BEGINNING) + 2


def test_a_model_that_remembers_otherwise_shares_nothing(tiny: TransformersLM) -> None:
    model = TransformersLM.tiny(0).model
    model.config.layer_types = ["full_attention", "linear_attention"]
    prompts = [[BEGINNING + "a"], [BEGINNING + "b"]]
    other = TransformersLM(model, tiny.tokenizer)
    assert positions_read(other, lambda: other.next_token_logits(prompts, ["y"])) == 2 * (len(BEGINNING) + 1)


def test_prompts_are_grouped_where_that_saves_most() -> None:
    common, first, second = [0] * 40, [1] * 300, [2] * 300
    rows = [common + middle + [n] for middle in (first, second) for n in range(5)]
    assert alike(rows, [len(row) - 1 for row in rows]) == [([0, 1, 2, 3, 4], 340), ([5, 6, 7, 8, 9], 340)]
    assert alike(rows[:2], [10, 10]) == [([0, 1], 0)]
    assert alike([], []) == []


@given(st.lists(st.tuples(st.integers(0, 90), st.integers(0, 3)), max_size=12))
def test_what_is_shared_is_shared_and_every_row_comes_once(made: list[tuple[int, int]]) -> None:
    rows = [[0] * n + [last] for n, last in made]
    needed = [len(row) - 1 for row in rows]
    found = alike(rows, needed)
    assert sorted(row for group, _ in found for row in group) == list(range(len(rows)))
    for group, shared in found:
        assert len({tuple(rows[row][:shared]) for row in group}) == 1
        assert all(shared <= needed[row] for row in group)
        assert shared == 0 or shared >= SHARED


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


@pytest.mark.parametrize("end", ["Answer with one letter, A or B.", "the form [B] > [A]: [", "Relevant: ", "?\n", ""])
def test_the_real_model_has_the_same_candidates_behind_every_prompt(small: TransformersLM, end: str) -> None:
    for names in ("ABCDEFGHIJKLMNOPQRST", ("A", "B"), ("Yes", "No"), (" yes", " no")):
        alone = [small._ids(name, special=False)[0] for name in names]
        assert small._first_tokens(end, names) == alone
        assert small._first_tokens(small._told([end])[0][-200:], names) == alone


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
        tiny.logprobs([[letter * 1500] for letter in "abcd"], ["e"] * 4)
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


def as_gguf(lm: TransformersLM, path: Path) -> None:
    """The model's weights, its bytes as a byte-level vocabulary, and its shape, in one gguf file of float32."""
    from gguf import GGUFWriter, TokenType

    config, tokens = lm.model.config, lm.tokenizer.convert_ids_to_tokens(range(lm.model.config.vocab_size))
    # A vocabulary without a merge cannot be read: what stood for the byte 2 is now the bytes 0 and 1.
    tokens = ["Āā" if token == "Ă" else token for token in tokens]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token.startswith("<|") else TokenType.NORMAL for token in tokens])
    writer.add_token_merges(["Ā ā"])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attn_output"}
    names |= {f"self_attn.{one}_proj": f"attn_{one}" for one in "qkv"}
    names |= {f"mlp.{one}_proj": f"ffn_{one}" for one in ("gate", "up", "down")}
    names |= {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers": "blk",
    }
    for name, tensor in lm.model.state_dict().items():
        told = tensor.float().numpy()
        if (one := name.removesuffix("_proj.weight")[-1]) in heads and "self_attn" in name:
            # The two halves that turn together stand beside each other in this format.
            told = told.reshape(heads[one], 2, -1, told.shape[1]).swapaxes(1, 2).reshape(told.shape)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, np.ascontiguousarray(told))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_gives_the_same_model(tmp_path: Path) -> None:
    lm = TransformersLM.tiny(0)
    as_gguf(lm, tmp_path / "tiny.gguf")
    again = TransformersLM.from_folder(tmp_path, "float32")
    assert again._ids("a xyz") == lm._ids("a xyz")
    prompts = [[BEGINNING + "abc"], [BEGINNING + "x"]]
    found, wanted = again.logprobs(prompts, ["def", "yz"]), lm.logprobs(prompts, ["def", "yz"])
    for one, other in zip(found, wanted, strict=True):
        close(one, list(other.tokens))


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
