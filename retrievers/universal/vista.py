"""VISTA: Visualized Text Embedding For Universal Multi-Modal Retrieval. Zhou et al. 2024, arXiv:2406.04292

A text embedder (BGE) is left as it is and learns to read pictures: the states of a vision tower's patches, without its
class token, go through one linear layer, get the embedder's own position embeddings 1 to P and its layer norm, and
stand between `[CLS]` and the words, whose positions move on by P. The vector is the state of `[CLS]`, of unit length. A
picture alone is a picture with an empty text. A text alone never meets any of it: its vector is, to the last bit, the
text embedder's own.

`weights/vista` of the home folder holds `text` (transformers' BERT or XLM-RoBERTa), `vision` (a ViT, or a CLIP for its
vision tower) and `visual_proj.safetensors`. The published weights (`BAAI/bge-visualized`, MIT) have
EVA-CLIP towers, which transformers lacks, and are pickles: they cannot be loaded. The same mechanism over towers that
transformers has starts from `from_parts`, with a linear layer that has learned nothing yet.

What differs: the vision towers; patches are taken after their tower's last layer norm. A text is cut to what positions
are left. An instruction of a query is put before its words, as BGE's is; the paper has none. A scene of a video is its
one key frame, a page its picture alone. `fit` is InfoNCE over the vision tower and the projection, the text embedder as
it is: the paper's second stage, whose data is not here. The code is ours.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import BadInput, MissingWeights
from ...progress import step
from ..base import Encoder, Item, Modality, Query, Side, Space
from ..given import given_folder
from ..loading import CONFIG, TOKENIZER, batches, dtype, quiet, read_tokenizer, set_threads
from ..towers import characters, framing, padded, read_weights, seeded
from ._dual import BATCH_TOKENS, EDGE, fits, squares
from ._inputs import READS, seen, shows, words
from ._loading import kind_of, loaded, processor
from ._vectors import unit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from PIL.Image import Image
    from tokenizers import Tokenizer

    from ...manifests.registry import Card
    from ..fitting import Course
    from ..parts import Parts
    from ._contrastive_training import Lesson

DIM = 768
TEXT, VISION, PROJECTION = "text", "vision", "visual_proj.safetensors"
SPARE = ("pooler.", "position_ids", "cls.", "classifier.", "lm_head.")
"""Parts of keys that checkpoints of the towers have and that are not read here."""
OF_CLIP = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
MARKS = {"bert": "bert", "xlm-roberta": "roberta"}
"""`model_type` of the embedder → how `towers.framing` marks a text."""


@dataclass(frozen=True)
class Towers:
    """The parts of a VISTA, in evaluation mode.

    Attributes:
        text: transformers' `BertModel` or `XLMRobertaModel` without pooler.
        vision: transformers' `ViTModel` without pooler, or `CLIPVisionModel`.
        projection: from the vision tower's width to the embedder's.
    """

    text: Any
    vision: Any
    projection: nn.Linear

    def of_words(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The embedder's own `[CLS]` states, (texts, dim)."""
        found: Tensor = self.text(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
        return found

    def of_pictures(self, ids: Tensor, mask: Tensor, pixels: Tensor) -> Tensor:
        """`[CLS]` states (inputs, dim) of pictures (inputs, 3, edge, edge) with their words."""
        from transformers.masking_utils import create_bidirectional_mask

        patches, embeddings = self._patches(pixels), self.text.embeddings
        count, pieces = patches.shape[1], ids.shape[1]
        places = torch.arange(1, count + pieces, device=ids.device)
        shown = embeddings.LayerNorm(patches + embeddings.position_embeddings(places[:count]))
        after = torch.cat([places.new_zeros(1), places[count:]])[None].expand(len(ids), -1)
        said = embeddings(input_ids=ids, position_ids=after, token_type_ids=torch.zeros_like(ids))
        states = torch.cat([said[:, :1], shown, said[:, 1:]], dim=1)
        whole = torch.cat([mask.new_ones(len(ids), count), mask], dim=1)
        allowed = create_bidirectional_mask(config=self.text.config, inputs_embeds=states, attention_mask=whole)
        found: Tensor = self.text.encoder(states, attention_mask=allowed).last_hidden_state[:, 0]
        return found

    def _patches(self, pixels: Tensor) -> Tensor:
        states = self.vision(pixel_values=pixels).last_hidden_state
        if hasattr(self.vision, "post_layernorm"):  # CLIP's tower leaves it to the pooled state
            states = self.vision.post_layernorm(states)
        found: Tensor = self.projection(states[:, 1:])
        return found


class VISTA(Encoder):
    """Dense encoder of the space `vista`, cosine. Safe from many threads.

    `media.uri` of what it looks at must be **a path on this machine**, which the caller has resolved and allowed.

    Args:
        towers: their dtype and device are used as they are.
        tokenizer: the embedder's; a private copy is used.
        pictures: transformers' `ViTImageProcessorPil` or `CLIPImageProcessorPil`, as the vision tower needs.

    Raises:
        BadInput: parts of different models, or more patches than the embedder has positions for.
    """

    space = Space("vista", "dense", DIM, "cosine")
    modalities: tuple[Modality, ...] = READS
    looks = True
    mixed = True

    def __init__(self, towers: Towers, tokenizer: Tokenizer, pictures: Any) -> None:
        text, sight = towers.text.config, towers.vision.config
        widths = (sight.hidden_size, text.hidden_size)
        if (towers.projection.in_features, towers.projection.out_features) != widths:
            made = f"`{towers.projection.in_features}` to `{towers.projection.out_features}`"
            raise BadInput(f"The projection goes from {made}, the towers need {widths}.", "Give parts of one model.")
        squares(pictures, sight.image_size)
        fits(tokenizer, text.vocab_size)
        self.towers, self.tokenizer, self.pictures = towers, tokenizer, pictures
        self.space = Space("vista", "dense", text.hidden_size, "cosine")
        self._count = (sight.image_size // sight.patch_size) ** 2
        longest = text.max_position_embeddings
        if longest - self._count < 2:
            told = f"A picture has `{self._count}` patches, the text embedder `{longest}` positions."
            raise BadInput(told, "Give a vision tower with fewer.")
        marks, kept = MARKS[text.model_type], 2 if text.model_type == "xlm-roberta" else 0
        self._alone, self._pad = framing(tokenizer, marks, longest - kept)
        self._beside, _ = framing(tokenizer, marks, longest - self._count)

    # --- doors -------------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, card: Card, parts: Parts) -> VISTA:
        """From `weights/vista` of the home folder.

        Raises:
            MissingWeights: a file is not there.
            BadInput: they are not those of a VISTA.
        """
        set_threads(parts.settings.threads)
        hint = (
            f"`VISTA.from_parts(…)` with folders of a BERT and a ViT makes one to start from; save it into "
            f"`weights/{card.id}` of the home folder (`TRIPTYCH_HOME`)."
        )
        folder = given_folder(card, parts.settings, f"{TEXT}/{CONFIG}", f"{VISION}/{CONFIG}", PROJECTION, hint=hint)
        return cls.from_folder(folder, parts.settings.precision, parts.device)

    @classmethod
    def from_folder(cls, folder: Path, precision: str = "auto", device: str = "cpu") -> VISTA:
        """From a local folder with `text`, `vision` and the projection.

        Raises:
            MissingWeights, BadInput: as `load`.
        """
        if not (folder / PROJECTION).is_file():
            raise MissingWeights(f"`{folder.name}` has no `{PROJECTION}`.", "Put it there, or use `from_parts`.")
        made = cls.from_parts(folder / TEXT, folder / VISION, precision=precision, device=device)
        read_weights(nn.ModuleDict({"visual_proj": made.towers.projection}), folder / PROJECTION, {})
        return made

    @classmethod
    def from_parts(
        cls, text: Path, vision: Path, seed: int = 0, *, precision: str = "auto", device: str = "cpu"
    ) -> VISTA:
        """What training starts from: two folders as they are published, and a random projection.

        Args:
            text: of a BERT or XLM-RoBERTa, such as `BAAI/bge-base-en-v1.5`.
            vision: of a ViT or CLIP, such as `google/vit-base-patch16-224`.

        Raises:
            MissingWeights, BadInput: as `load`.
        """
        import transformers

        kind = kind_of(text, *MARKS)["model_type"]
        model = transformers.BertModel if kind == "bert" else transformers.XLMRobertaModel
        embedder = loaded(_unpooled(model), text, precision, device, spare=SPARE)
        if kind_of(vision, "vit", "clip", "clip_vision_model")["model_type"] == "vit":
            tower = loaded(_unpooled(transformers.ViTModel), vision, precision, device, spare=SPARE)
            pictures = processor(transformers.ViTImageProcessorPil, vision)
        else:
            tower = loaded(transformers.CLIPVisionModel, vision, precision, device, spare=(*SPARE, *OF_CLIP))
            pictures = processor(transformers.CLIPImageProcessorPil, vision)
        projection = seeded(seed, lambda: nn.Linear(tower.config.hidden_size, embedder.config.hidden_size))
        tokenizer = read_tokenizer(text, ("vocab.txt",) if kind == "bert" else (), "BertTokenizer")
        return cls(Towers(embedder, tower, projection.to(device, dtype(precision, device))), tokenizer, pictures)

    @classmethod
    def tiny(cls, seed: int = 0) -> VISTA:
        """A random BERT of letters and a random ViT of pictures of 32 pixels, with the real processor: for tests."""
        from transformers import BertConfig, BertModel, ViTConfig, ViTImageProcessorPil, ViTModel

        tokenizer = characters("bert")
        tower: dict[str, Any] = {
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "initializer_range": 0.2,
        }
        size: dict[str, Any] = {
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 32,
            "max_position_embeddings": 128,
        }
        sight: dict[str, Any] = {"hidden_size": 24, "image_size": 32, "patch_size": 8}
        with quiet():
            text, vision, projection = seeded(
                seed,
                lambda: (
                    BertModel(BertConfig(**tower, **size), add_pooling_layer=False).eval(),
                    ViTModel(ViTConfig(**tower, **sight), add_pooling_layer=False).eval(),
                    nn.Linear(24, 32),
                ),
            )
        return cls(Towers(text, vision, projection), tokenizer, ViTImageProcessorPil(size={"height": 32, "width": 32}))

    def save(self, folder: Path) -> None:
        """Write what `from_folder` reads."""
        from safetensors.torch import save_file

        with quiet():
            self.towers.text.save_pretrained(folder / TEXT)
            self.towers.vision.save_pretrained(folder / VISION)
            self.pictures.save_pretrained(folder / VISION)
        self.tokenizer.save(str(folder / TEXT / TOKENIZER))
        weights = {f"visual_proj.{name}": values for name, values in self.towers.projection.state_dict().items()}
        save_file(weights, folder / PROJECTION)

    # --- vectors -----------------------------------------------------------------------------------------------------

    def encode(self, inputs: Sequence[Item] | Sequence[Query], side: Side) -> np.ndarray:
        """Float32 (n, dim) of unit length, in the order of `inputs`; queries and documents are encoded alike.

        Raises:
            Unsupported: a query with neither words nor a picture.
            UnreadableFile: a picture is gone, damaged, or cannot be shown.
            BadInput: a picture that is a line, or a model that gives NaN.
            Cancelled, TimedOut: see `progress`.
        """
        vectors = np.empty((len(inputs), self.space.dim), np.float32)
        texts = [_said(inputs[row]) for row in range(len(inputs))]
        done = 0
        for pictured in (False, True):
            kept = [row for row in range(len(inputs)) if shows(inputs[row]) == pictured]
            ids = (self._beside if pictured else self._alone)([texts[row] for row in kept])
            for places in batches([len(one) + self._count * pictured for one in ids], BATCH_TOKENS):
                step(done, len(inputs), "inputs")
                rows = [kept[place] for place in places]
                shots = [seen(inputs[row], EDGE).pictures[0] for row in rows] if pictured else []
                with torch.inference_mode():
                    vectors[rows] = unit(self._states([ids[place] for place in places], shots))
                done += len(rows)
        return vectors

    def _states(self, ids: Sequence[list[int]], shots: Sequence[Image]) -> Tensor:
        weight = self.towers.projection.weight
        rows, mask = (part.to(weight.device) for part in padded(ids, self._pad))
        if not shots:
            return self.towers.of_words(rows, mask)
        pixels = self.pictures(images=list(shots), return_tensors="pt")["pixel_values"]
        return self.towers.of_pictures(rows, mask, pixels.to(weight.device, weight.dtype))

    # --- learning ----------------------------------------------------------------------------------------------------

    def fit(
        self,
        lessons: Sequence[Lesson],
        out_dir: Path,
        *,
        held: Sequence[Lesson] = (),
        course: Course | None = None,
        chunk: int = 8,
        only_projection: bool = False,
        run: int = 1,
    ) -> VISTA:
        """A copy that learned which item answers which query, by InfoNCE over the batch of all processes and the wrong
        items that lessons name; saved in `out_dir`, for `from_folder`. A fit that was stopped goes on from its last
        checkpoint. The copy computes in float32. The text embedder stays as it is.

        Args:
            chunk: inputs that are read at once within a batch (GradCache); 0: all of it.
            only_projection: leave the vision tower as it is, too.
            held: other lessons, whose loss tells which checkpoint is kept.
            run: lessons of one group that stand together in a batch.

        Raises:
            BadInput, UnreadableFile, Cancelled, TimedOut: see `_contrastive_training`.
            Unsupported: as `encode`.
        """
        from ..fitting import Course
        from ._contrastive_training import Contrast, begun, contrasted, info_nce

        course = course or Course(epochs=5, batch=80, rate=2e-5)
        begun(lessons, held, out_dir, course, run, chunk=chunk, only_projection=only_projection)
        own = self.towers
        towers = Towers(*(deepcopy(one).float() for one in (own.text, own.vision, own.projection)))
        towers.text.requires_grad_(False)
        towers.vision.requires_grad_(not only_projection)
        made = VISTA(towers, self.tokenizer, self.pictures)
        # The embedder is no part of what is trained: its dropout stays out, too.
        network = Contrast(nn.ModuleList([towers.vision, towers.projection]), made._vectors, info_nce, chunk)
        contrasted(network, lessons, held, out_dir, course, lambda one, side: made._read(one), run)
        made.save(out_dir)
        return made

    def _read(self, given: Item | Query) -> tuple[list[int], Image | None]:
        """The pieces of an input, and what it shows."""
        if not shows(given):
            return self._alone([_said(given)])[0], None
        return self._beside([_said(given)])[0], seen(given, EDGE).pictures[0]

    def _vectors(self, inputs: Sequence[tuple[list[int], Image | None]]) -> Tensor:
        """What is learned from, of inputs with pictures and without, in their order: (inputs, dim)."""
        made = self.towers.projection.weight.new_zeros(len(inputs), self.space.dim)
        for pictured in (False, True):
            rows = [row for row, (_, shot) in enumerate(inputs) if (shot is not None) == pictured]
            if rows:
                shots = [shot for _, shot in (inputs[row] for row in rows) if shot is not None]
                made[rows] = self._states([inputs[row][0] for row in rows], shots)
        return made


def _said(given: Item | Query) -> str:
    instruction = given.instruction if isinstance(given, Query) else None
    return f"{instruction} {words(given)}".strip() if instruction else words(given)


def _unpooled(model: Any) -> Any:
    """What `loaded` takes for a class, without the layer that nothing here reads."""
    return SimpleNamespace(from_pretrained=partial(model.from_pretrained, add_pooling_layer=False))
