"""Single vectors of multimodal language models: how an input is written and cut, how pictures become tokens, left
padding, and which state is the vector.

Four backbones, each transformers' own class without the head that predicts words. A system says in what words an input
is put (`Said`); marks of the model in an input's own text are broken up first, for retrieved text is data. Text that
is too long is cut where it stands in the prompt, never the pictures or what follows it: the last token is the vector.

Memory beside the weights: at most `WINDOW` inputs are prepared at once (a picture of 1,280 tokens is 24 MB of pixels),
and one pass reads at most `BATCH_TOKENS` padded tokens, or a single input that is longer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...errors import BadInput
from ...progress import step
from ..given import given_folder
from ..loading import CONFIG, TOKENIZER, batches, encodable, quiet, read_tokenizer
from ._loading import ADAPTER, adapted, kind_of, loaded, processor
from ._vectors import last, unit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from PIL.Image import Image
    from tokenizers import Tokenizer
    from torch import Tensor

    from ...manifests.registry import Card
    from ..parts import Parts

REMOTE = "remote code"
"""The `format` of a card's checkpoint whose architecture transformers lacks: it is never loaded."""
EDGE = 2048
"""Pixels of a picture's longer side before the model's own processor scales it: no backbone sees more."""
WINDOW = 32
BATCH_TOKENS = 8192
PATCHES, GRIDS, SQUARES = "patches (size, merged, frames) of", "grids of", "squares of"
"""How a picture processor and a model have to agree."""


@dataclass(frozen=True)
class Kind:
    """What one architecture needs.

    Attributes:
        model: the transformers class without head; pictures: that of its picture processor.
        mark: the token that stands for what is seen; pad: the one that fills up.
        adapters: how keys of an adapter begin that was made for the class with the head, older or newer → here.
        renamed: the same of a whole model, where transformers does not know it.
    """

    model: str
    pictures: str
    mark: str
    pad: str
    adapters: Mapping[str, str]
    renamed: Mapping[str, str] = field(default_factory=dict)


_QWEN = {r"^model\.(language_model|visual)\.": r"\1.", r"^model\.": "language_model."}
_LLAVA = {
    r"^language_model\.model\.": "language_model.",
    r"^model\.(language_model|vision_tower|multi_modal_projector)\.": r"\1.",
}
_SIGHT = {r"^model\.visual\.": "visual."}
"""Of checkpoints saved by transformers 4.52 to 4.57, which the class without head takes for the language part's."""
_SEEN_BY_QWEN = ("Qwen2VLImageProcessorPil", "<|image_pad|>", "<|endoftext|>", _QWEN, _SIGHT)
KINDS: Mapping[str, Kind] = {
    "qwen2_vl": Kind("Qwen2VLModel", *_SEEN_BY_QWEN),
    "qwen2_5_vl": Kind("Qwen2_5_VLModel", *_SEEN_BY_QWEN),
    "llava_next": Kind("LlavaNextModel", "LlavaNextImageProcessorPil", "<image>", "<pad>", _LLAVA),
    "llava_onevision": Kind(
        "LlavaOnevisionModel", "LlavaOnevisionImageProcessorPil", "<image>", "<|endoftext|>", _LLAVA
    ),
}
"""By `model_type`."""


@dataclass(frozen=True)
class Said:
    """One input as a model is to read it: `before`, `text` and `after` in one string; only `text` is ever cut.

    Attributes:
        pictures: one for each mark in `before` and `after`, in their order.
    """

    before: str = ""
    text: str = ""
    after: str = ""
    pictures: tuple[Image, ...] = ()


@dataclass(frozen=True)
class Read:
    """An input as numbers: `ids` with every mark repeated, and the tensors of its pictures."""

    ids: list[int]
    seen: Mapping[str, Tensor] = field(default_factory=dict)


class Backbone:
    """A multimodal language model with its tokenizer and picture processor. Safe from many threads.

    Args:
        model: of one of `KINDS`, in evaluation mode; tokenizer: a private copy is used.
        pictures: the picture processor of that kind.

    Attributes:
        kind: its `model_type`; mark: how a picture is written; pad: the token that fills up; size: numbers of a state.

    Raises:
        BadInput: another architecture, or a tokenizer or picture processor of another model.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, pictures: Any) -> None:
        from tokenizers import Tokenizer as Copy

        self.kind = str(model.config.model_type)
        if self.kind not in KINDS:
            raise BadInput(f"A model of type `{self.kind}` is given.", f"Give one of type {' or '.join(KINDS)}.")
        known = KINDS[self.kind]
        if type(pictures).__name__ != known.pictures:
            raise BadInput(f"`{type(pictures).__name__}` prepares the pictures.", f"Use `{known.pictures}`.")
        self.model, self.pictures, self.mark = model, pictures, known.mark
        self.size = int(model.config.text_config.hidden_size)
        self.tokenizer = Copy.from_str(tokenizer.to_str())
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self._mark, self.pad = self.token(known.mark), self.token(known.pad)
        added = self.tokenizer.get_added_tokens_decoder().values()
        self._special = sorted((one.content for one in added if one.special or one.content == self.mark), key=len)
        self._fits()

    def _fits(self) -> None:
        one = "Use the files of one model."
        wanted = int(self.model.config.image_token_id)
        if self._mark != wanted:
            raise BadInput(f"The tokenizer's `{self.mark}` is token `{self._mark}`, and the model's `{wanted}`.", one)
        prepared, has = self._prepared(), self._looks_at()
        odd = next((what for what in has if prepared[what] != has[what]), None)
        if odd is not None:
            raise BadInput(f"Pictures are prepared for {odd} `{prepared[odd]}` and the model has `{has[odd]}`.", one)

    def _prepared(self) -> dict[str, list[Any]]:
        """What the picture processor makes of a picture."""
        made = self.pictures
        if self.kind.startswith("qwen"):
            return {PATCHES: [int(made.patch_size), int(made.merge_size), int(made.temporal_patch_size)]}
        # OneVision scales to its square, NeXT cuts it out.
        square = made.size if self.kind == "llava_onevision" else made.crop_size
        return {GRIDS: _grids(made), SQUARES: [int(square["height"]), int(square["width"])]}

    def _looks_at(self) -> dict[str, list[Any]]:
        """The same, as the model's configuration has it."""
        sight = self.model.config.vision_config
        if self.kind.startswith("qwen"):
            return {PATCHES: [int(sight.patch_size), int(sight.spatial_merge_size), int(sight.temporal_patch_size)]}
        return {GRIDS: _grids(self.model.config), SQUARES: [int(sight.image_size)] * 2}

    # --- doors -------------------------------------------------------------------------------------------------------

    @classmethod
    def from_folder(cls, folder: Path, kinds: Sequence[str], precision: str = "auto", device: str = "cpu") -> Backbone:
        """From a folder with a model of one of `kinds`, its tokenizer and picture processor; an adapter that lies
        beside them is merged into it.

        Raises:
            MissingWeights: a file is not there.
            BadInput: another architecture, or key names or shapes that are not its own; names the first.
        """
        import transformers

        known = KINDS[kind_of(folder, *kinds)["model_type"]]
        tokenizer = read_tokenizer(folder)
        pictures = processor(getattr(transformers, known.pictures), folder)
        made = getattr(transformers, known.model)
        model = loaded(made, folder, precision, device, renamed=known.renamed, spare=("lm_head.",))
        if (folder / ADAPTER).is_file():
            model = adapted(model, folder, renamed=known.adapters)
        return cls(model, tokenizer, pictures)

    @classmethod
    def load(cls, card: Card, parts: Parts, kinds: Sequence[str]) -> Backbone:
        """From `weights/ID` of the home folder.

        Raises:
            MissingWeights: it lacks a file; names the checkpoints that would serve.
            BadInput: as `from_folder`.
        """
        serving = " or ".join(f"`{one['name']}`" for one in card.checkpoints if one["format"] != REMOTE)
        hint = f"Put the files of {serving} into `weights/{card.id}` of the home folder (`TRIPTYCH_HOME`)."
        folder = given_folder(card, parts.settings, CONFIG, hint=hint)
        return cls.from_folder(folder, kinds, parts.settings.precision, parts.device)

    def save(self, folder: Path) -> None:
        """Write what `from_folder` reads, as transformers names it: the model without head, an adapter merged."""
        with quiet():
            self.model.save_pretrained(folder)
            self.pictures.save_pretrained(folder)
        self.tokenizer.save(str(folder / TOKENIZER))

    @classmethod
    def tiny(cls, kind: str, seed: int = 0) -> Backbone:
        """Two random layers over bytes behind one or two that look, with the real picture processor: for tests."""
        from ._mllm_tiny import tiny

        return cls(*tiny(kind, seed))

    def bound(self, least: int, most: int) -> None:
        """Have every picture become `least` to `most` tokens; for Qwen, whose pictures keep their shape."""
        pixels = (self.pictures.patch_size * self.pictures.merge_size) ** 2
        bounds = {"shortest_edge": least * pixels, "longest_edge": most * pixels}
        self.pictures = type(self.pictures)(**{**self.pictures.to_dict(), "size": bounds})

    # --- prompts -----------------------------------------------------------------------------------------------------

    def token(self, mark: str) -> int:
        """The id of a special token.

        Raises:
            BadInput: the tokenizer has none.
        """
        found = self.tokenizer.token_to_id(mark)
        if found is None:
            raise BadInput(f"The tokenizer has no `{mark}`.", f"Use the tokenizer of a {self.kind} model.")
        return int(found)

    def plain(self, text: str) -> str:
        """`text` with a space inside of everything that the tokenizer would take for a mark of the model."""
        clean = encodable(text)
        for mark in self._special:
            if mark in clean:
                clean = clean.replace(mark, f"{mark[0]} {mark[1:]}")
        return clean

    def read(self, said: Said, longest: int) -> Read:
        """`said` in at most `longest` tokens; more only if what must not be cut is longer.

        Raises:
            BadInput: not as many pictures as marks, or nothing to read at all.
        """
        counts, seen = self._looked(said.pictures)
        text = self.plain(said.text)
        ids = self._ids(said.before + text + said.after)
        room = longest - sum(counts) + len(counts)
        while len(ids) > room and text:
            text = self._shorter(text, len(ids) - room)
            ids = self._ids(said.before + text + said.after)
        if ids.count(self._mark) != len(counts):
            raise BadInput(
                f"`{ids.count(self._mark)}` marks stand for `{len(counts)}` pictures.", "Write one for each."
            )
        repeats = iter(counts)
        whole = [token for one in ids for token in [one] * (next(repeats) if one == self._mark else 1)]
        if not whole:
            raise BadInput("The prompt is ``: there is no last token.", "Give a text or a picture.")
        return Read(whole, seen)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text).ids)

    def _shorter(self, text: str, excess: int) -> str:
        """`text` without about its last `excess` tokens, and at least one character shorter."""
        offsets = self.tokenizer.encode(text, add_special_tokens=False).offsets
        kept = len(offsets) - excess
        return text[: min(offsets[kept][0], len(text) - 1)] if kept > 0 else ""

    # --- pictures ----------------------------------------------------------------------------------------------------

    def _looked(self, pictures: Sequence[Image]) -> tuple[list[int], dict[str, Tensor]]:
        """How many tokens each of the pictures of one input becomes, and what the model is given of them."""
        if not pictures:
            return [], {}
        if self.kind.startswith("qwen"):
            made = self.pictures(images=list(pictures), return_tensors="pt")
            grid = made["image_grid_thw"]
            return (grid.prod(dim=1) // self.pictures.merge_size**2).tolist(), {
                "pixel_values": made["pixel_values"],
                "image_grid_thw": grid,
            }
        several = self.kind == "llava_onevision"
        made = self.pictures(images=[list(pictures)] if several else list(pictures), do_pad=False)
        sizes = [(int(high), int(wide)) for high, wide in made["image_sizes"]]
        seen = {
            "pixel_values": torch.cat([torch.as_tensor(np.asarray(one)) for one in made["pixel_values"]]),
            "image_sizes": torch.tensor(sizes),
        }
        if several:
            seen["batch_num_images"] = torch.tensor([len(sizes)])
        tiles = not several or len(sizes) == 1
        return [packed(size, self.model.config, tiles=tiles) for size in sizes], seen

    # --- vectors -----------------------------------------------------------------------------------------------------

    def vectors(self, given: Sequence[Any], say: Callable[[Any], Said], longest: int, dim: int = 0) -> np.ndarray:
        """Float32 (inputs, dim) of length 1: the state of the last token of each, in their order.

        Args:
            say: how the model is to read one of `given`.
            dim: so many of the first numbers; 0 for all.

        Raises:
            BadInput: as `read`, or the model gives NaN or infinity.
            Cancelled, TimedOut: see `progress`.
        """
        made = np.empty((len(given), dim or self.size), np.float32)
        done = 0
        for start in range(0, len(given), WINDOW):
            step(done, len(given), "inputs")
            read = [self.read(say(one), longest) for one in given[start : start + WINDOW]]
            for rows in batches([len(one.ids) for one in read], BATCH_TOKENS):
                step(done, len(given), "inputs")
                with torch.inference_mode():
                    states, mask = self.states([read[row] for row in rows])
                    made[[start + row for row in rows]] = unit(last(states, mask), dim)
                done += len(rows)
        step(len(given), len(given), "inputs")
        return made

    def states(self, read: Sequence[Read]) -> tuple[Tensor, Tensor]:
        """States behind the last layer and its norm, (inputs, tokens, size), and the mask, both padded on the left."""
        device = self.model.device
        longest = max(len(one.ids) for one in read)
        ids = torch.tensor([[self.pad] * (longest - len(one.ids)) + one.ids for one in read], device=device)
        mask = torch.tensor([[0] * (longest - len(one.ids)) + [1] * len(one.ids) for one in read], device=device)
        names = next((one.seen for one in read if one.seen), {})
        seen = {name: torch.cat([one.seen[name] for one in read if one.seen]).to(device) for name in names}
        if seen:
            seen["pixel_values"] = seen["pixel_values"].to(self.model.dtype)
        found = self.model(
            input_ids=ids, attention_mask=mask, position_ids=self._places(ids, mask, seen), use_cache=False, **seen
        )
        return found.last_hidden_state, mask

    def _places(self, ids: Tensor, mask: Tensor, seen: Mapping[str, Tensor]) -> Tensor:
        """Positions that do not count the padding. Qwen's forward pass would keep its own in the model, where another
        thread finds them."""
        if self.kind.startswith("qwen"):
            kinds = (ids == self._mark).int()
            places: Tensor = self.model.get_rope_index(
                ids, mm_token_type_ids=kinds, image_grid_thw=seen.get("image_grid_thw"), attention_mask=mask
            )[0]
            return places
        return (mask.cumsum(dim=1) - 1).clamp(min=0)


def _grids(where: Any) -> list[list[int]]:
    return [list(map(int, one)) for one in where.image_grid_pinpoints]


def instructed(backbone: Backbone, told: str, text: str, pictures: tuple[Image, ...]) -> Said:
    """A prompt without chat template, as VLM2Vec (arXiv:2410.05160) writes it: marks, instruction and words, a space
    between them. Of nothing at all it is a space, for there has to be a token."""
    before = " ".join([*[backbone.mark] * len(pictures), *([backbone.plain(told)] if told else [])])
    if not text:
        return Said(before or " ", pictures=pictures)
    return Said(f"{before} " if before else "", text, pictures=pictures)


def packed(size: tuple[int, int], config: Any, *, tiles: bool = True) -> int:
    """How many tokens LLaVA-NeXT or LLaVA-OneVision makes of a picture: the whole of it in one square, and its tiles
    without what pads them, each row of these ending with a token of its own.

    Args:
        size: height and width; tiles: False for one of several pictures of OneVision, which are seen in one square.
    """
    from transformers.image_processing_utils import select_best_resolution

    side = config.vision_config.image_size // config.vision_config.patch_size
    if not tiles:
        return int(side * side + 1)
    best = select_best_resolution(size, config.image_grid_pinpoints)
    high, wide = (edge // config.vision_config.image_size * side for edge in best)
    if size[1] / size[0] > wide / high:
        high -= (high - int(round(size[0] * (wide / size[1]), 7))) // 2 * 2
    else:
        wide -= (wide - int(round(size[1] * (high / size[0]), 7))) // 2 * 2
    most = str(getattr(config, "vision_aspect_ratio", "")).removeprefix("anyres_max_")
    if most.isdecimal():
        ratio = (high * wide / (int(most) * side**2)) ** 0.5
        if ratio > 1.1:
            high, wide = int(high // ratio), int(wide // ratio)
    return int(side * side + high * (wide + 1))
