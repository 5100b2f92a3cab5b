"""DPR. Dense Passage Retrieval for Open-Domain Question Answering, Karpukhin et al. 2020, arXiv:2004.04906

Two BERT encoders, one of questions and one of passages; the vector is the state of `[CLS]`, without projection, and the
score their raw inner product. A passage is read as `[CLS] title [SEP] text [SEP]`, all of it segment 0 as in the
released training (transformers' own tokenizer would call the text segment 1), 256 pieces at most. Title here is what
`searchable_text` puts above the text: the document's title and the headings.

The released checkpoints `facebook/dpr-question_encoder-single-nq-base` and `facebook/dpr-ctx_encoder-single-nq-base`
(English, CC-BY-NC 4.0: not for commercial use) load from `weights/dpr/question_encoder` and `weights/dpr/ctx_encoder`
of the home folder, once they are there as safetensors. Key names of the authors' own checkpoint files are known, too.
The code is written from the paper.

`fit` is section 3.2: the likelihood of the right passage among all passages of the batch, one hard negative for each
question. It differs in that a passage that stands in a batch twice counts once, and that a passage known to be right
for a question is never its negative. With `tied` one encoder reads both sides, which the paper does not do.
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
MAX_PIECES = 256
"""Word pieces of a question or passage, the marks included (section 4.2 and the released configuration)."""
QUERY_CACHE = 1024
FOLDERS = ("question_encoder", "ctx_encoder")
"""Of the two encoders; also how all keys of their weights begin."""
AUTHORS_KEYS = {"question_encoder": "question_model.", "ctx_encoder": "ctx_model."}
"""How keys begin in the authors' own checkpoint file, which holds both encoders."""
SPARE = (".pooler.", "position_ids", "question_model.", "ctx_model.")
"""Parts of keys that files have beyond the encoder's: an unused pooler, a counter, the other encoder."""


class DPR(Encoder):
    """Dense encoder of the space `dpr`, inner product. Safe from many threads.

    Args:
        question, passage: transformers' `DPRQuestionEncoder` and `DPRContextEncoder` in evaluation mode, or one encoder
            twice (tied); vectors have the size that the first one gives.
        tokenizer: of BERT; a private copy is used.

    Raises:
        BadInput: vectors of two sizes, or a tokenizer without BERT's marks.
    """

    space = Space("dpr", "dense", DIM, "ip")

    def __init__(self, question: Any, passage: Any, tokenizer: Tokenizer) -> None:
        from ..towers import framing

        sizes = [_size(tower) for tower in (question, passage)]
        if sizes[0] != sizes[1]:
            raise BadInput(f"The encoders' vectors have `{sizes[0]}` and `{sizes[1]}` dimensions.", "Give a pair.")
        self.space = Space("dpr", "dense", sizes[0], "ip")
        self.question, self.passage, self.tokenizer = question, passage, tokenizer
        self._frame, self._pad = framing(tokenizer, "bert", min(MAX_PIECES, question.config.max_position_embeddings))
        self._query = lru_cache(QUERY_CACHE)(lambda text: self._vectors(self.question, [text])[0])

    # --- doors -------------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, card: Card, parts: Parts) -> DPR:
        """From `weights/dpr` of the home folder.

        Raises:
            MissingWeights: one of its files is not there.
            BadInput: they are not those of DPR.
        """
        folder = given_folder(card, parts.settings, *(f"{name}/model.safetensors" for name in FOLDERS[:1]))
        return cls.from_folder(folder, parts.settings.precision, parts.device)

    @classmethod
    def from_folder(cls, folder: Path, precision: str = "auto", device: str = "cpu") -> DPR:
        """From a folder with `question_encoder` and `ctx_encoder`, or with the first alone if it says that it is tied.

        Raises:
            MissingWeights: a file is not there.
            BadInput: another architecture, or key names or shapes that are not DPR's; names the first.
        """
        from ..towers import read_tokenizer

        question, tied = _read(folder, FOLDERS[0])
        passage = question if tied else _read(folder, FOLDERS[1])[0]
        for tower in (question, passage):
            tower.eval().to(device, dtype(precision, device))
        return cls(question, passage, read_tokenizer(folder / FOLDERS[0], "bert"))

    @classmethod
    def from_bert(cls, folder: Path, *, tied: bool = False) -> DPR:
        """What `fit` starts from: a BERT model's folder (such as `bert-base-uncased`, as in the paper), for both sides.

        Raises:
            MissingWeights, BadInput: as for `from_folder`.
        """
        from transformers import DPRConfig, DPRContextEncoder, DPRQuestionEncoder

        from ..towers import read_config, read_tokenizer, read_weights

        config = DPRConfig(**{**read_config(folder, "bert"), "projection_dim": 0})
        with quiet():
            towers = [DPRQuestionEncoder(config), DPRContextEncoder(config)]
        for tower, name in zip(towers, FOLDERS, strict=True):
            bert = getattr(tower, name).bert_model
            read_weights(bert, folder / "model.safetensors", {"bert.": ""}, ("pooler.", "position_ids", "cls."))
        question, passage = (tower.eval() for tower in towers)
        return cls(question, question if tied else passage, read_tokenizer(folder, "bert"))

    @classmethod
    def tiny(cls, seed: int = 0) -> DPR:
        """Two random layers, one for each side, over single characters: for tests, in well under a second."""
        from transformers import DPRConfig, DPRContextEncoder, DPRQuestionEncoder

        from ..towers import characters, seeded

        tokenizer = characters("bert")
        config = DPRConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=DIM,
            num_hidden_layers=1,
            num_attention_heads=12,
            intermediate_size=64,
            initializer_range=0.05,  # with less, the state of `[CLS]` hardly depends on the text
            max_position_embeddings=MAX_PIECES,
        )
        question, passage = seeded(seed, lambda: (DPRQuestionEncoder(config), DPRContextEncoder(config)))
        return cls(question.eval(), passage.eval(), tokenizer)

    # --- vectors -----------------------------------------------------------------------------------------------------

    def reads(self, query: Query) -> bool:
        """Whether at least half the letters of the query are Latin: the released encoders are English."""
        return query.text is not None and latin_share(query.text) >= 0.5

    def encode(self, inputs: Sequence[Item] | Sequence[Query], side: Side) -> np.ndarray:
        """Float32 (n, dim), in the order of `inputs`, not of unit length; the vector of a query asked alone is cached.

        Raises:
            Unsupported: a query without text.
            BadInput: the model gives NaN or infinity.
        """
        if side == "document":
            return self._vectors(self.passage, [passage_text(one) for one in inputs])
        texts = [_text(one) for one in inputs]
        return self._query(texts[0])[None].copy() if len(texts) == 1 else self._vectors(self.question, texts)

    def _vectors(self, tower: Any, texts: Sequence[str | tuple[str, str]]) -> np.ndarray:
        from ..towers import embedded

        return embedded(tower, self._frame(texts), self._pad, self.space.dim)

    # --- learning ----------------------------------------------------------------------------------------------------

    def fit(
        self,
        questions: Sequence[Question],
        out_dir: Path,
        *,
        held: Sequence[Question] = (),
        fitting: Fitting | None = None,
    ) -> DPR:
        """A copy of this encoder, trained; saved in `out_dir`, from where `from_folder` takes it back.

        A fit that was stopped goes on where its last epoch ended.

        Args:
            questions: with their right passages and, as the paper has them, passages of BM25 that do not answer.
            held: other questions, whose loss tells the best epoch.

        Raises:
            BadInput: no questions, or `out_dir` holds a fit with other settings or data.
        """
        from ..fitting import in_batch_nll
        from ._training import Fitting, Sides, Towers, fit

        tied = self.question is self.passage
        question = deepcopy(self.question).float()
        passage = question if tied else deepcopy(self.passage).float()
        made = DPR(question, passage, self.tokenizer)
        fitting = fitting or Fitting()
        network = Towers(question, passage, in_batch_nll, fitting.chunk)
        sides = Sides(made._frame, lambda items: made._frame([passage_text(item) for item in items]), made._pad)
        fit(network, questions, out_dir, sides, held=held, fitting=fitting)
        question.eval(), passage.eval()
        made.save(out_dir)
        return made

    def save(self, folder: Path) -> None:
        """Write what `from_folder` reads, with the published key names."""
        tied = self.question is self.passage
        for name, tower in zip(FOLDERS, (self.question, self.passage), strict=True):
            if tied and name == FOLDERS[1]:
                continue
            tower.config.tied = tied
            with quiet():
                tower.save_pretrained(folder / name)
            self.tokenizer.save(str(folder / name / "tokenizer.json"))


def passage_text(given: Item | Query) -> str | tuple[str, str]:
    """Title with headings, and text; without a title the text alone."""
    if isinstance(given, Query):
        return _text(given)
    whole = searchable_text(given)
    title = whole[: len(whole) - len(given.text)].strip()
    return (title, given.text) if title else given.text


def _read(folder: Path, name: str) -> tuple[Any, bool]:
    """One encoder, and whether it is said to be both."""
    from transformers import DPRConfig, DPRContextEncoder, DPRQuestionEncoder

    from ..towers import read_config, read_weights

    config = read_config(folder / name, "dpr")
    with quiet():
        tower = (DPRQuestionEncoder if name == FOLDERS[0] else DPRContextEncoder)(DPRConfig(**config))
    read_weights(tower, folder / name / "model.safetensors", {AUTHORS_KEYS[name]: f"{name}.bert_model."}, SPARE)
    return tower, bool(config.get("tied"))


def _size(tower: Any) -> int:
    return int(tower.config.projection_dim or tower.config.hidden_size)


def _text(given: Item | Query) -> str:
    if given.text is None:
        raise Unsupported("DPR reads text, and the query has `None`.", "Ask with text.")
    return given.text
