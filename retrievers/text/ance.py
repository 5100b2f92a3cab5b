"""ANCE. Approximate Nearest Neighbor Negative Contrastive Learning for Dense Text Retrieval, arXiv:2007.00808

Xiong et al. 2020 (ICLR 2021). One RoBERTa encoder reads both sides: the state of `<s>` → a linear layer → layer norm;
the score is the raw inner product. Byte-level pieces, lower-cased as in the authors' code; no segments; positions are
counted from the padding's id on, so 512 of 514 are usable. Questions have 64 pieces at most, passages 512.

`fit` is the paper's training: from some warm start (usually negatives of BM25, `warm`) on, every epoch begins with the
encoder's own index over all passages, from whose first `DEPTH` the negatives of the epoch are drawn; the loss is that
of pairs. What differs: the index is refreshed at once and not by a second process beside the training, and it is
searched exactly (as the authors' code does, too); AdamW and not LAMB.

The released checkpoint of MS MARCO passages, `castorini/ance-msmarco-passage` (English, roberta-base), loads from
`weights/ance` of the home folder, once it is there as safetensors; parts of its classifier that nobody needs are left
out. RoBERTa models of other sizes start with `from_roberta`. The code is written from the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ...errors import BadInput, Unsupported
from ..base import Encoder, Item, Query, Side, Space
from ..given import given_folder
from ..loading import dtype, quiet
from ..scripts import latin_share
from ..searchable import searchable_text

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from tokenizers import Tokenizer

    from ...manifests.registry import Card
    from ..parts import Parts
    from ._training import Fitting, Question

DIM = 768
QUERY_PIECES, MAX_PIECES = 64, 512
"""The authors' settings for passages."""
QUERY_CACHE = 1024
DEPTH, NEGATIVES = 200, 20
"""Of the first so many passages of the index, so many negatives are drawn for each question and epoch."""
MARKS = {"bos": "<s>", "eos": "</s>", "pad": "<pad>"}
RENAMED = {"ance_encoder.": "", "module.": ""}
SPARE = ("classifier.", ".pooler.", "position_ids", "lm_head.")
"""Parts of keys that files have beyond the encoder's."""


class ANCE(Encoder):
    """Dense encoder of the space `ance`, inner product. Safe from many threads.

    Args:
        tower: a `towers.NormedRoberta` in evaluation mode.
        tokenizer: of RoBERTa; a private copy is used.

    Raises:
        BadInput: a tokenizer without RoBERTa's marks.
    """

    space = Space("ance", "dense", DIM, "ip")

    def __init__(self, tower: Any, tokenizer: Tokenizer) -> None:
        from ..towers import framing

        config = tower.roberta.config
        room = config.max_position_embeddings - config.pad_token_id - 1
        self.space = Space("ance", "dense", tower.norm.normalized_shape[0], "ip")
        self.tower, self.tokenizer = tower, tokenizer
        self._asked, self._pad = framing(tokenizer, "roberta", min(QUERY_PIECES, room))
        self._told, _ = framing(tokenizer, "roberta", min(MAX_PIECES, room))
        if self._pad != config.pad_token_id:  # it is where positions are counted from
            raise BadInput(f"The tokenizer pads with `{self._pad}`.", f"The model's is {config.pad_token_id}.")
        self._query = lru_cache(QUERY_CACHE)(lambda text: self._vectors(self._asked([text]))[0])

    # --- doors -------------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, card: Card, parts: Parts) -> ANCE:
        """From `weights/ance` of the home folder.

        Raises:
            MissingWeights: one of its files is not there.
            BadInput: they are not those of ANCE.
        """
        folder = given_folder(card, parts.settings, "config.json", "model.safetensors")
        return cls.from_folder(folder, parts.settings.precision, parts.device)

    @classmethod
    def from_folder(cls, folder: Path, precision: str = "auto", device: str = "cpu") -> ANCE:
        """From `config.json`, `model.safetensors`, and `tokenizer.json` or `vocab.json` with `merges.txt`.

        Raises:
            MissingWeights: a file is not there.
            BadInput: another architecture, or key names or shapes that are not ANCE's; names the first.
        """
        from ..towers import read_config, read_tokenizer, read_weights

        config = read_config(folder, "roberta")
        tower = _tower(config, int(config.get("embedding_size", DIM)))
        read_weights(tower, folder / "model.safetensors", RENAMED, SPARE)
        return cls(tower.eval().to(device, dtype(precision, device)), read_tokenizer(folder, "roberta"))

    @classmethod
    def from_roberta(cls, folder: Path, dim: int = DIM, seed: int = 0) -> ANCE:
        """What a warm start begins with: a RoBERTa model's folder (`roberta-base`, as in the paper), a new head.

        Raises:
            MissingWeights, BadInput: as for `from_folder`.
        """
        from ..towers import read_config, read_tokenizer, read_weights, seeded

        tower = seeded(seed, lambda: _tower(read_config(folder, "roberta"), dim))
        read_weights(tower.roberta, folder / "model.safetensors", {"roberta.": ""}, ("pooler.", *SPARE))
        return cls(tower.eval(), read_tokenizer(folder, "roberta"))

    @classmethod
    def random(cls, tokenizer: Tokenizer, seed: int = 0, dim: int = DIM, **sizes: float) -> ANCE:
        """Untrained, for the tokenizer's vocabulary; `sizes` are fields of transformers' `RobertaConfig`."""
        from ..towers import seeded

        marks = {f"{name}_token_id": tokenizer.token_to_id(mark) for name, mark in MARKS.items()}
        config = {"vocab_size": tokenizer.get_vocab_size(), "type_vocab_size": 1, **marks, **sizes}
        return cls(seeded(seed, lambda: _tower(config, dim)).eval(), tokenizer)

    @classmethod
    def tiny(cls, seed: int = 0) -> ANCE:
        """One random layer over bytes, 768 dimensions: for tests, in well under a second."""
        from ..towers import characters

        sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
        return cls.random(characters("roberta"), seed, max_position_embeddings=MAX_PIECES + 2, **sizes)

    # --- vectors -----------------------------------------------------------------------------------------------------

    def reads(self, query: Query) -> bool:
        """Whether at least half the letters of the query are Latin: the released encoder is English."""
        return query.text is not None and latin_share(query.text) >= 0.5

    def encode(self, inputs: Sequence[Item] | Sequence[Query], side: Side) -> np.ndarray:
        """Float32 (n, dim), in the order of `inputs`, not of unit length; the vector of a query asked alone is cached.

        Raises:
            Unsupported: a query without text.
            BadInput: the model gives NaN or infinity.
        """
        texts = [lowered(one) for one in inputs]
        if side == "document":
            return self._vectors(self._told(texts))
        return self._query(texts[0])[None].copy() if len(texts) == 1 else self._vectors(self._asked(texts))

    def _vectors(self, pieces: Sequence[Sequence[int]]) -> np.ndarray:
        from ..towers import embedded

        return embedded(self.tower, pieces, self._pad, self.space.dim)

    # --- learning ----------------------------------------------------------------------------------------------------

    def warm(self, questions: Sequence[Question], out_dir: Path, **more: Any) -> ANCE:
        """A copy, trained with the negatives that the questions have (usually of BM25); else as `fit`."""
        return self._fitted(questions, out_dir, None, **more)

    def fit(
        self, questions: Sequence[Question], out_dir: Path, *, items: Sequence[Item], depth: int = DEPTH, **more: Any
    ) -> ANCE:
        """A copy of this encoder, trained with negatives of its own, refreshed with every epoch.

        It is saved in `out_dir`, from where `from_folder` takes it back. A fit that was stopped goes on where its last
        epoch ended.

        Args:
            items: all passages, from which negatives are mined.
            depth: see `DEPTH`.
            more: `held`, other questions, whose loss tells the best epoch (with the negatives that they have);
                `fitting`, a `_training.Fitting`; `in_batch` for the loss of DPR, which an encoder that begins with
                random weights needs.

        Raises:
            BadInput: no questions, no negatives, or `out_dir` holds a fit with other settings or data.
        """
        return self._fitted(questions, out_dir, (items, depth), **more)

    def _fitted(
        self,
        questions: Sequence[Question],
        out_dir: Path,
        mine: tuple[Sequence[Item], int] | None,
        *,
        held: Sequence[Question] = (),
        fitting: Fitting | None = None,
        in_batch: bool = False,
    ) -> ANCE:
        from ..fitting import in_batch_nll
        from ._training import Fitting, Sides, Towers, fit, mined, nearest, pair_nll

        made = ANCE(deepcopy(self.tower).float(), self.tokenizer)
        fitting = fitting or Fitting(epochs=10, batch=16, rate=1e-5)
        seed = fitting.seed

        def refreshed(epoch: int) -> Sequence[Question]:
            items, depth = mine or ((), 0)
            made._query.cache_clear()
            return against(
                mined(questions, nearest(made, questions, items, depth), NEGATIVES, seed=seed * 1000 + epoch)
            )

        def against(learned: Sequence[Question]) -> Sequence[Question]:
            if not in_batch and not any(question.others for question in learned):
                raise BadInput(f"`{len(learned)}` questions, and none has a negative.", "Give more passages.")
            return learned

        if mine is None:
            against(questions)
        sides = Sides(
            lambda texts: made._asked([text.lower() for text in texts]),
            lambda passages: made._told([lowered(item) for item in passages]),
            made._pad,
        )
        network = Towers(made.tower, made.tower, in_batch_nll if in_batch else pair_nll, fitting.chunk)
        fit(network, questions, out_dir, sides, held=held, fitting=fitting, refresh=refreshed if mine else None)
        made.tower.eval()
        made._query.cache_clear()
        made.save(out_dir)
        return made

    def save(self, folder: Path) -> None:
        """Write what `from_folder` reads, with the published key names."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        config = self.tower.roberta.config
        config.embedding_size = self.space.dim
        with quiet():
            config.save_pretrained(folder)
        weights = {key: values.contiguous() for key, values in self.tower.state_dict().items()}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        self.tokenizer.save(str(folder / "tokenizer.json"))


def lowered(given: Item | Query) -> str:
    """What is read of a query, or of an item: title, headings and text in one line, in lower case."""
    if isinstance(given, Item):
        whole = searchable_text(given)
        head = whole[: len(whole) - len(given.text)].split()
        return " ".join([*head, given.text]).lower()
    if given.text is None:
        raise Unsupported("ANCE reads text, and the query has `None`.", "Ask with text.")
    return given.text.lower()


def _tower(config: dict[str, Any], dim: int) -> Any:
    from transformers import RobertaConfig, RobertaModel

    from ..towers import NormedRoberta

    with quiet():
        return NormedRoberta(RobertaModel(RobertaConfig(**config), add_pooling_layer=False), dim)
