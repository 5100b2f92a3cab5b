"""CREAM's reader: it begins as its language model, weighs pages, and learns in the named places only."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from triptych.errors import BadInput, MissingWeights, UnreadableFile
from triptych.retrievers.base import Item, MediaRef, Source
from triptych.retrievers.fitting import Course
from triptych.retrievers.universal._cream_network import CreamNetwork, Pages, Shape, Tuned
from triptych.retrievers.universal._cream_reader import CreamReader, ReaderLesson
from triptych.retrievers.universal._cream_toy import SHAPE, language_model, page_encoder
from triptych.retrievers.universal._mllm_tiny import byte_tokenizer

TOKENIZER = byte_tokenizer(("<s>", "</s>"), begin="<s>")
READER = CreamReader.tiny(0)
COLOURS = {"red": (220, 20, 30), "blue": (20, 30, 220)}


@pytest.fixture
def pages(tmp_path: Path) -> dict[str, MediaRef]:
    made = {}
    for name, colour in COLOURS.items():
        path = tmp_path / f"{name}.png"
        page = Image.new("RGB", (60, 40), "white")
        page.paste(colour, (0, 0, 30 if name == "red" else 60, 40 if name == "red" else 15))
        page.save(path)
        made[name] = MediaRef(str(path), "image/png")
    Image.new("RGB", (60, 40), "white").save(tmp_path / "blank.png")
    return {**made, "blank": MediaRef(str(tmp_path / "blank.png"), "image/png")}


def random_pages(seed: int, texts: int = 2, count: int = 2) -> tuple[Tensor, Tensor]:
    """States (texts, pages, 5, 24) and their mask, the last patch of each page empty."""
    chance = torch.Generator().manual_seed(seed)
    mask = torch.ones(texts, count, 5)
    mask[:, :, -1] = 0
    return torch.randn(texts, count, 5, 24, generator=chance), mask


def opened(network: CreamNetwork, by: float = 0.7) -> CreamNetwork:
    """A copy whose gates let something through."""
    made = deepcopy(network)
    with torch.no_grad():
        for name, one in made.named_parameters():
            if name.endswith(".gate"):
                one.copy_(torch.linspace(-by, by, len(one)))
    return made


# --- the language model ----------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_it_begins_as_the_language_model_alone(pages: dict[str, MediaRef]) -> None:
    torch.manual_seed(1)
    alone = language_model(TOKENIZER)
    network = CreamNetwork(deepcopy(alone), page_encoder(), SHAPE).eval()
    patches, mask = READER._looked([pages["red"]])
    prompts = network.seen(patches[None], mask[None])
    ids = torch.tensor([[1, 5, 9, 200, 31]])
    wanted = alone(input_ids=ids).logits
    assert (network.lm(input_ids=ids, prompts=prompts).logits - wanted).abs().max() <= 1e-6
    assert (opened(network).lm(input_ids=ids, prompts=prompts).logits - wanted).abs().max() > 1e-3


@torch.inference_mode()
def test_what_the_gate_lets_through_is_attention_to_the_prompts() -> None:
    """Beside what the attention inside finds, head by head and token by token."""
    network = opened(READER.network)
    config, gated = network.lm.config, network.lm.model.layers[1].self_attn
    for part in (gated.inner.q_proj, gated.inner.o_proj):
        part.scale.mul_(1.5)
        part.bias.add_(0.2)
    states, prompts = torch.randn(1, 3, 32), torch.randn(1, 2, 4, 32)
    places = LlamaRotaryEmbedding(config)(states, torch.arange(3)[None])
    base, _ = gated.inner(hidden_states=states, position_embeddings=places)
    found, _ = gated(states, places, prompts)
    size = config.hidden_size // config.num_attention_heads
    queries = gated.inner.q_proj(states).view(1, 3, 4, size).transpose(1, 2)
    queries, _ = apply_rotary_pos_emb(queries, queries, *places)
    keys, values = (one(prompts[:, gated.place]).view(4, 2, size) for one in (gated.inner.k_proj, gated.inner.v_proj))
    added = torch.zeros(3, 4, size)
    for head in range(4):
        for token in range(3):
            scores = torch.stack([queries[0, head, token] @ keys[prompt, head // 2] for prompt in range(4)])
            chances = (scores / size**0.5).softmax(dim=0)
            read = torch.stack([chances[prompt] * values[prompt, head // 2] for prompt in range(4)]).sum(dim=0)
            added[token, head] = torch.tanh(gated.gate[head]) * read
    out = gated.inner.o_proj
    wanted = base[0] + out.scale * (added.flatten(1) @ out.linear.weight.T)
    torch.testing.assert_close(found[0], wanted, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_tuned_layer_is_scale_bias_and_low_rank() -> None:
    linear = torch.nn.Linear(6, 4, bias=False)
    tuned, given = Tuned(linear, 2, 4), torch.randn(3, 6)
    assert torch.equal(tuned(given), linear(given))
    for one in (tuned.bias, tuned.scale, tuned.up):
        one.copy_(torch.randn_like(one))
    wanted = tuned.scale * (given @ linear.weight.T + tuned.bias) + 2.0 * given @ (tuned.up @ tuned.down).T
    torch.testing.assert_close(tuned(given), wanted)


def test_another_architecture_or_too_many_layers_are_refused() -> None:
    with pytest.raises(BadInput, match="`4` layers"):
        CreamNetwork(language_model(TOKENIZER), page_encoder(), Shape(layers=4))
    mistral = transformers.MistralForCausalLM(
        transformers.MistralConfig(
            vocab_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
    )
    with pytest.raises(BadInput, match="`mistral`"):
        CreamNetwork(mistral, page_encoder(), SHAPE)
    assert (Shape().prefix, Shape().layers, Shape().rank, Shape().pages) == (65, 30, 8, 3)


# --- pages -----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_the_weights_of_pages_are_one_in_all_and_none_of_what_is_not_there() -> None:
    looks = READER.network.pages
    states, mask = random_pages(0, count=3)
    mask[1, 2] = 0
    weights = looks.weights(states, mask)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2))
    assert weights[1, 2] == 0 and (weights[0] > 0).all()
    assert torch.equal(looks.weights(states[:, :1], mask[:, :1]), torch.ones(2, 1))


@torch.inference_mode()
def test_pages_are_pooled_by_their_weights() -> None:
    """Against loops; what is behind the mask counts nothing."""
    looks = READER.network.pages
    states, mask = random_pages(1)
    seen: list[Tensor] = []
    with_hook = looks.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    looks(states, mask)
    with_hook.remove()
    for text in range(2):
        told = [states[text, page] + looks.number.weight[page] for page in range(2)]
        scores = torch.stack([looks.score(one[:4].mean(dim=0))[0] for one in told])
        for patch in range(4):
            wanted = sum(weight * one[patch] for weight, one in zip(scores.softmax(dim=0), told, strict=True))
            torch.testing.assert_close(seen[0][text, SHAPE.prefix + patch], wanted, atol=1e-5, rtol=1e-5)
    states[:, :, -1] = 9
    torch.testing.assert_close(looks(states, mask), looks(random_pages(1)[0], mask))


@torch.inference_mode()
def test_a_page_that_is_not_there_changes_nothing_and_numbers_do() -> None:
    looks: Pages = READER.network.pages
    states, mask = random_pages(2)
    padded = torch.cat([states, torch.randn(2, 1, 5, 24)], dim=1), torch.cat([mask, torch.zeros(2, 1, 5)], dim=1)
    torch.testing.assert_close(looks(*padded), looks(states, mask), atol=1e-5, rtol=1e-5)
    assert (looks(states.flip(1), mask) - looks(states, mask)).abs().max() > 1e-4


def test_pages_of_a_batch_are_read_as_alone(pages: dict[str, MediaRef]) -> None:
    lessons = [
        ReaderLesson("What colour?", ("A page.",), (pages["red"],), "red"),
        ReaderLesson("And here, which colour is it?", ("Two pages.", "More."), (pages["blue"], pages["red"]), "blue"),
    ]
    network = opened(READER.network)
    with torch.inference_mode():
        alone = [network(**READER._batch([one]))["loss"] for one in lessons]
        together = network(**READER._batch(lessons))["loss"]
    lengths = torch.tensor([float((READER._batch([one])["labels"] >= 0).sum()) for one in lessons])
    wanted = (torch.stack(alone) * lengths).sum() / lengths.sum()
    torch.testing.assert_close(together, wanted, atol=1e-5, rtol=1e-5)


# --- answers ---------------------------------------------------------------------------------------------------------


def test_an_answer_is_the_likeliest_token_again_and_again(pages: dict[str, MediaRef]) -> None:
    reader = CreamReader(opened(CreamReader.tiny(4).network), TOKENIZER, READER.pictures, 512)
    chunk = Item("a", "The owl sleeps.", Source("a.md"))
    said = reader.answer("Where?", [chunk, "In the barn."], [pages["red"]], 6)
    ids, chosen = reader._asked("Where?", ["The owl sleeps.", "In the barn."], 6), list[int]()
    with torch.inference_mode():
        prompts = reader.network.seen(*(one[None] for one in reader._looked([pages["red"]])))
        for _ in range(6):
            made = reader.network.lm(input_ids=torch.tensor([[*ids, *chosen]]), use_cache=False, prompts=prompts)
            chosen.append(int(made.logits[0, -1].argmax()))
    end = TOKENIZER.get_vocab()["</s>"]
    if end in chosen:
        chosen = chosen[: chosen.index(end)]
    assert said == TOKENIZER.decode(chosen).strip()
    assert len(chosen) > 1
    with ThreadPoolExecutor(8) as pool:
        assert set(
            pool.map(lambda _: reader.answer("Where?", [chunk, "In the barn."], [pages["red"]], 6), range(8))
        ) == {said}


def test_text_is_no_mark_and_too_much_of_it_is_cut_before_the_question() -> None:
    ids = READER._asked("</s> Which?", ["<s></s> owl " * 400], 8)
    assert len(ids) == READER.longest - 8
    begin, end = (TOKENIZER.get_vocab()[mark] for mark in ("<s>", "</s>"))
    assert ids.count(begin) == 1 and ids[0] == begin and end not in ids
    assert TOKENIZER.decode(ids).endswith("Question: </s> Which?\nAnswer:")


def test_what_cannot_be_answered_is_refused(pages: dict[str, MediaRef], tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    cut = MediaRef(str(tmp_path / "cut.png"), "image/png")
    for shown, said in (([], "`0` pages"), ([pages["red"]] * 4, "`4` pages")):
        with pytest.raises(BadInput, match=said):
            READER.answer("Where?", [], shown)
    with pytest.raises(BadInput, match="question is ``"):
        READER.answer(" ", [], [pages["red"]])
    with pytest.raises(UnreadableFile, match=r"`cut\.png`"):
        READER.answer("Where?", [], [pages["red"], cut])
    broken = CreamReader.tiny(0)
    with torch.no_grad():
        broken.network.lm.lm_head.weight.fill_(torch.nan)
    with pytest.raises(BadInput, match="`nan`"):
        broken.answer("Where?", [], [pages["red"]])


# --- learning --------------------------------------------------------------------------------------------------------

LEARNS = re.compile(
    r"prompts|pages\..+|lm\..+norm\.weight|lm\.model\.layers\.\d+\..+_proj\.(bias|scale)"
    r"|lm\.model\.layers\.\d+\.self_attn\.(inner\.)?[qv]_proj\.(up|down)|lm\.model\.layers\.[12]\.self_attn\.gate"
)
COURSE = Course(epochs=80, batch=4, rate=0.05, decay=0.0, every=40)


def test_only_the_named_parameters_learn() -> None:
    learn = READER.network.trainable()
    assert all(LEARNS.fullmatch(name) for name in learn)
    assert {name for name, _ in READER.network.named_parameters() if LEARNS.fullmatch(name)} == set(learn)
    per_layer = {name.split(".", 4)[4] for name in learn if name.startswith("lm.model.layers.0.")}
    assert {"bias", "scale", "down", "up"} <= {name.rpartition(".")[2] for name in learn}
    assert "gate" not in {name.rpartition(".")[2] for name in per_layer}


@pytest.fixture
def lessons(pages: dict[str, MediaRef]) -> list[ReaderLesson]:
    shown = {"red": (pages["red"], pages["blank"]), "blue": (pages["blank"], pages["blue"])}
    return [ReaderLesson("Colour?", ("A page.",), both, name) for name, both in shown.items()] * 2


def test_it_learns_from_pages_and_is_taken_back(lessons: list[ReaderLesson], tmp_path: Path) -> None:
    before = {name: one.clone() for name, one in READER.network.named_parameters()}
    learned = READER.fit(lessons, tmp_path / "fit", course=COURSE)
    for name, one in READER.network.named_parameters():
        assert torch.equal(one, before[name]), name
    for name, one in learned.network.named_parameters():
        assert torch.equal(one, before[name]) != bool(LEARNS.fullmatch(name)), name
    told = [learned.answer(one.question, one.chunks, one.pages, 6) for one in lessons[:2]]
    assert told == ["red", "blue"]
    again = CreamReader.from_folder(tmp_path / "fit", "float32")
    again.longest = learned.longest
    assert [again.answer(one.question, one.chunks, one.pages, 6) for one in lessons[:2]] == told
    checkpoint = next((tmp_path / "fit" / "checkpoints").glob("checkpoint-*/model.safetensors"))
    assert set(load_file(checkpoint)) == set(learned.network.trainable())
    with pytest.raises(BadInput, match="other settings or data"):
        READER.fit(lessons[:1], tmp_path / "fit", course=COURSE)


def test_a_fit_that_was_stopped_goes_on(lessons: list[ReaderLesson], tmp_path: Path) -> None:
    from triptych import progress
    from triptych.errors import Cancelled

    course = Course(epochs=3, batch=4, rate=0.01)
    whole = READER.fit(lessons, tmp_path / "whole", course=course)

    def stop(done: int, total: int | None, what: str) -> None:
        if done == 2 and what == "training steps":
            raise Cancelled("Stopped.")

    with progress.reporting(stop), pytest.raises(Cancelled):
        READER.fit(lessons, tmp_path / "stopped", course=course)
    resumed = READER.fit(lessons, tmp_path / "stopped", course=course)
    for name, one in whole.network.trainable().items():
        torch.testing.assert_close(resumed.network.trainable()[name], one, atol=1e-6, rtol=1e-5)
    with pytest.raises(BadInput, match="`0` lessons"):
        READER.fit([], tmp_path / "none")


# --- folders ---------------------------------------------------------------------------------------------------------


def test_two_published_folders_make_a_reader(pages: dict[str, MediaRef], tmp_path: Path) -> None:
    lm, looks = tmp_path / "llama", tmp_path / "pix2struct"
    torch.manual_seed(3)
    alone = language_model(TOKENIZER)
    alone.save_pretrained(lm)
    TOKENIZER.save(str(lm / "tokenizer.json"))
    vision = page_encoder()
    text = {"hidden_size": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 11}
    whole = transformers.Pix2StructForConditionalGeneration(
        transformers.Pix2StructConfig(
            text_config={**text, "encoder_hidden_size": 24}, vision_config=vision.config.to_dict()
        )
    )
    whole.save_pretrained(looks)
    READER.pictures.save_pretrained(looks)
    settings = json.loads((looks / "preprocessor_config.json").read_text())
    (looks / "preprocessor_config.json").write_text(json.dumps({**settings, "is_vqa": True}))
    made = CreamReader.from_parts(lm, looks, shape=SHAPE, precision="float32")
    for name, one in whole.encoder.state_dict().items():
        assert torch.equal(made.network.encoder.state_dict()[name], one)
    ids = torch.tensor([made._asked("Where?", ["An owl."], 4)])
    with torch.inference_mode():
        prompts = made.network.seen(*(one[None] for one in made._looked([pages["blue"]])))
        assert (
            made.network.lm(input_ids=ids, prompts=prompts).logits - alone(input_ids=ids).logits
        ).abs().max() <= 1e-6


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    READER.save(tmp_path / "reader")
    learned = load_file(tmp_path / "reader" / "reader.safetensors")
    save_file({**learned, "owl": torch.ones(1)}, tmp_path / "reader" / "reader.safetensors")
    with pytest.raises(BadInput, match="differ in `owl`"):
        CreamReader.from_folder(tmp_path / "reader")
    (tmp_path / "reader" / "reader.json").write_text('{"owl": 1}')
    with pytest.raises(BadInput, match=r"reader\.json` cannot be read"):
        CreamReader.from_folder(tmp_path / "reader")
    (tmp_path / "reader" / "reader.json").unlink()
    with pytest.raises(MissingWeights, match=r"no `reader\.json`"):
        CreamReader.from_folder(tmp_path / "reader")
    with pytest.raises(MissingWeights):
        CreamReader.from_parts(tmp_path / "reader", tmp_path / "reader")
