"""monoBERT. Passage Re-ranking with BERT, Nogueira and Cho 2019, arXiv:1901.04085

A cross-encoder reads `[CLS] query [SEP] passage [SEP]`, two segments, and says how relevant the passage is: the
log-softmax of the positive label of two, or the one logit of models with one label, such as the MS MARCO MiniLM
cross-encoders. Any sequence classifier that sentence-transformers' `CrossEncoder` loads from a folder will do; no
package carries one, so put one into `weights/monobert` of the home folder (the card names two), or give a folder to
`from_folder`. Weights have to be safetensors; a checkpoint of another format has to be saved as such first.

What differs from the paper. A passage longer than the model reads is read in overlapping windows, and the best of them
counts (the paper cuts). BERT models also run in 8-bit integers (`_int8_cross`, written from the weights while they are
loaded), and then read the best again in full; the others run in torch. The first stage has no say beyond equal scores.
Training is not offered here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import BadInput, Unsupported
from ...progress import step
from ...retrievers.base import Hit
from ...retrievers.given import given_folder
from ...retrievers.loading import batches, dtype, encodable, in_int8, quiet, set_threads
from ...retrievers.searchable import searchable_text
from .. import _pointwise
from .._pointwise import Read
from ..base import Cost, Limits, Ranking, Reranker
from ._int8_cross import NEEDED, Int8Cross, Pair

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

    from ...manifests.registry import Card
    from ...retrievers.base import Item, Query
    from ...retrievers.parts import Parts

QUERY_TOKENS = 64
LONGEST = 512
"""Tokens of query and passage with the tokens around them; both figures are section 3's."""
OVERLAP = 1 / 8
"""What two neighbouring windows of a passage share, of `LONGEST`."""
WINDOWS = 16
"""A passage is read as far as so many windows go: about 6,000 tokens."""
BATCH_TOKENS = 2048
"""Padded tokens in one forward pass: larger batches leave the processor's cache and are slower."""
AT_ONCE = 32
"""Passages between two looks at the clock."""
AGAIN = 14
"""So many of the best by 8-bit integers are read again in full: of 30 or 40 passages, they held the right first ten for
95 % of questions or more (60 of Natural Questions), the best 15 for all."""
PASSAGE_TOKENS = 200
"""For estimates only."""
FILES = ("config.json", "model.safetensors")


class MonoBERT(Reranker):
    """Orders hits by how relevant a cross-encoder finds `searchable_text`. Safe from many threads.

    Scores are log-probabilities (at most 0) of models with two labels, and logits of models with one; both mean the
    same in every list that one model has scored.

    Args:
        model: a transformers sequence classifier in evaluation mode, its dtype and device used as they are; or an
            `Int8Cross`.
        tokenizer: its `tokenizers.Tokenizer`, of which private copies are used.
        longest: most tokens that the model reads at once.

    Raises:
        BadInput: `longest` leaves a passage no room.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, longest: int = LONGEST) -> None:
        from tokenizers import Tokenizer as Copy

        if longest < 2 * QUERY_TOKENS:
            raise BadInput(f"The model reads `{longest}` tokens.", f"It needs {2 * QUERY_TOKENS} or more.")
        self.model = model
        self.longest = longest
        self.full: MonoBERT | None = None
        self._plain, self._windows = (Copy.from_str(tokenizer.to_str()) for _ in range(2))
        for copy in (self._plain, self._windows):
            copy.no_padding()
        self._plain.no_truncation()
        self._windows.enable_truncation(longest, stride=int(longest * OVERLAP), strategy="only_second")

    @classmethod
    def load(cls, card: Card, parts: Parts) -> MonoBERT:
        """From `weights/monobert` of the home folder.

        Raises:
            MissingWeights: one of `FILES` is not there.
        """
        settings = parts.settings
        folder = given_folder(card, settings, *FILES)
        return cls.from_folder(folder, settings.precision, parts.device, set_threads(settings.threads))

    @classmethod
    def from_folder(
        cls, folder: Path, precision: str = "auto", device: str = "cpu", threads: int | None = None
    ) -> MonoBERT:
        """From a local folder of a sequence classifier in safetensors, with its tokenizer.

        Args:
            precision: see `loading.in_int8`, which for `auto` holds for BERT models only, and `loading.dtype`.
            threads: how many passages are read at the same time in int8; as many as torch has threads by default.

        Raises:
            Unsupported: no sequence classifier of one or two labels; or int8 for another model or machine.
        """
        from sentence_transformers import CrossEncoder

        whole = in_int8(precision, device)
        with quiet():
            made = CrossEncoder(
                str(folder),
                device=device,
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True, "dtype": "float32" if whole else dtype(precision, device)},
            )
        if made.model is None:
            raise Unsupported(f"`{folder.name}` holds no sequence classifier.", "Give a cross-encoder's folder.")
        longest = min(LONGEST, int(made.tokenizer.model_max_length))
        reranker = cls(made.model.eval(), made.tokenizer.backend_tokenizer, longest)
        if whole and (precision == "int8" or made.model.config.model_type == NEEDED["model_type"]):
            return reranker.in_int8(threads or set_threads(0))
        return reranker

    @classmethod
    def tiny(cls, seed: int = 0) -> MonoBERT:
        """One random layer over single characters, two labels: for tests."""
        import torch
        from tokenizers.processors import BertProcessing
        from transformers import BertConfig, BertForSequenceClassification

        from ._pruner_export import random_weights

        config, _, tokenizer = random_weights(seed)
        sep, mark = (int(tokenizer.token_to_id(name) or 0) for name in ("[SEP]", "[CLS]"))
        tokenizer.post_processor = BertProcessing(("[SEP]", sep), ("[CLS]", mark))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = BertForSequenceClassification(BertConfig(**config, num_labels=2, initializer_range=0.2))
        return cls(model.eval(), tokenizer)

    def in_int8(self, threads: int) -> MonoBERT:
        """The same cross-encoder in 8-bit integers, which keeps this one for the best of each list.

        Raises:
            Unsupported: it is not a BERT with GELU.
        """
        weights = {name: values.float().cpu().numpy() for name, values in self.model.state_dict().items()}
        model = Int8Cross(self.model.config.to_dict(), weights, self.longest, threads)
        small = MonoBERT(model, self._plain, self.longest)
        small.full = self
        return small

    def rank(self, query: Query, hits: Sequence[Hit], limits: Limits | None = None) -> Ranking:
        """A permutation of `hits`; a time limit is looked at before every 32 passages.

        Raises:
            Unsupported: a query without text, or a model with more than two labels.
        """
        if query.text is None:
            raise Unsupported("monoBERT reads text, and the query has `None`.", "Ask with text.")
        asked = query.text

        def read(items: Sequence[Item]) -> list[Read]:
            return self.read(asked, [searchable_text(item) for item in items])

        start = time.monotonic()
        ranked = _pointwise.rank(hits, limits, read, lambda score, say: score, AT_ONCE)
        if self.full is None or not ranked.complete or len(hits) < 2:
            return ranked
        left = (limits or Limits()).less(calls=ranked.calls, seconds=time.monotonic() - start, tokens=ranked.tokens)
        return _joined(ranked, self.full.rank(query, ranked.hits[:AGAIN], left))

    def read(self, query: str, texts: Sequence[str]) -> list[Read]:
        """The score of each text, the best of its windows, and how many tokens of it and the query were read."""
        windows = self._pairs(query, texts)
        scores = relevance(self._logits([pair for pairs in windows for pair in pairs]))
        found, start = [], 0
        for pairs in windows:
            end = start + len(pairs)
            found.append(Read(float(scores[start:end].max()), sum(len(pair.ids) for pair in pairs)))
            start = end
        return found

    def estimate(self, n: int) -> Cost:
        """One call and about 200 tokens per hit, and again for those that are read twice."""
        calls = n + (min(n, AGAIN) if self.full is not None else 0)
        return Cost(calls=calls, tokens=calls * PASSAGE_TOKENS) if n > 1 else Cost(calls=0, tokens=0)

    def _pairs(self, query: str, texts: Sequence[str]) -> list[list[Pair]]:
        """The windows of each text, each with the query in front."""
        asked = encodable(query)
        spans = self._plain.encode(asked, add_special_tokens=False).offsets
        asked = asked[: spans[QUERY_TOKENS - 1][1]] if len(spans) > QUERY_TOKENS else asked
        encodings = self._windows.encode_batch([(asked, encodable(text)) for text in texts])
        return [
            [Pair(one.ids, one.type_ids) for one in (first, *first.overflowing[: WINDOWS - 1])] for first in encodings
        ]

    def _logits(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Float32 (pairs, labels)."""
        if isinstance(self.model, Int8Cross):
            return self.model(pairs)
        import torch

        logits = np.empty((len(pairs), self.model.config.num_labels), np.float32)
        done = 0
        for rows in batches([len(pair.ids) for pair in pairs], BATCH_TOKENS):
            step(done, len(pairs), "windows")
            fed = self._padded([pairs[row] for row in rows])
            with torch.inference_mode():
                logits[rows] = self.model(**fed).logits.float().cpu().numpy()
            done += len(rows)
        return logits

    def _padded(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """What the model is given; segments only where it has them."""
        import torch

        shape = (len(pairs), max(len(pair.ids) for pair in pairs))
        ids = torch.full(shape, self.model.config.pad_token_id or 0)
        mask, segments = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        for row, pair in enumerate(pairs):
            size = len(pair.ids)
            ids[row, :size], mask[row, :size] = torch.tensor(pair.ids), 1
            segments[row, :size] = torch.tensor(pair.segments)
        fed = {"input_ids": ids, "attention_mask": mask}
        if getattr(self.model.config, "type_vocab_size", 0) > 1:
            fed["token_type_ids"] = segments
        return {name: values.to(self.model.device) for name, values in fed.items()}


def _joined(ranked: Ranking, again: Ranking) -> Ranking:
    """`again`, the first hits of `ranked` in a better order, and behind them the others, none above the last one."""
    least = again.hits[-1].score
    rest = [Hit(hit.item, min(hit.score, least)) for hit in ranked.hits[len(again.hits) :]]
    return replace(
        again, hits=(*again.hits, *rest), calls=ranked.calls + again.calls, tokens=ranked.tokens + again.tokens
    )


def relevance(logits: np.ndarray) -> np.ndarray:
    """Float64 (pairs,): the logit of one label, or the log-softmax of the second of two.

    Raises:
        Unsupported: (pairs, labels) with another number of labels.
    """
    wide = logits.astype(np.float64)
    if wide.shape[1] == 1:
        return wide[:, 0]
    if wide.shape[1] != 2:
        raise Unsupported(f"The model has `{wide.shape[1]}` labels.", "Use a cross-encoder with one or two.")
    found: np.ndarray = -np.logaddexp(0, wide[:, 0] - wide[:, 1])
    return found
