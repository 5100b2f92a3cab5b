"""LLMLingua-2. Pan et al. 2024, arXiv:2403.12968

A bidirectional encoder reads the evidence in chunks that end with a sentence and says of every token how likely a large
model would have kept it; words are kept by the mean over their tokens. It does not read the query. The authors' two
checkpoints (see the card) are on a model hub only: put one into `weights/llmlingua2` of the home folder, or what `fit`
has learned from a teacher of yours (`_llmlingua2_training.py`).

What differs from the authors' package. Words are those of `refiners.units`, runs without white space, so that what is
kept stands in the source character by character: the package builds its text from tokens and returns `API_KEY` as
`API _ KEY`. `decide` is the paper's rule, a threshold for each chunk; `refine` fills the budget exactly instead, with
words by probability over all passages. A table row or a line of code is kept or dropped whole, by the mean over its
tokens, and no sentence loses its numbers, negations and names as long as one of its words stays.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import regex

from ...errors import BadInput, Unsupported
from ...progress import step
from ...retrievers.chunking import sentences
from ...retrievers.given import given_folder
from ...retrievers.loading import batches, dtype, encodable, quiet
from ..base import Refiner
from ..fit import Plan, Words, fit
from ..protected import protected
from ..relevance import blank
from ..tokens import count
from ..units import words
from ._coarse import parts_read

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

    from ...manifests.registry import Card
    from ...retrievers.base import Hit, Query
    from ...retrievers.parts import Parts
    from ..base import Budget, Refined
    from ..fit import Evidence, Part, Span
    from ._llmlingua2_training import Example

CHUNK = 510
"""Tokens that are read at once, without the two that frame them (section 4.3)."""
KEEP = 1
"""The label that means keep."""
BATCH_TOKENS = 4096
"""Padded tokens in one forward pass."""
FILTERED = 2
"""The passage filter leaves this many times the budget, as in the authors' package."""
FILES = ("config.json", "model.safetensors", "tokenizer.json")

_DIGIT = regex.compile(r"\p{N}")
FRINGE = regex.compile(r"^\W+|\W+$")
"""What is around a word and does not belong to it."""


class Judged(NamedTuple):
    """What the classifier thinks of spans of one text.

    Attributes:
        probabilities: float32 (spans,), from 0 to 1: the mean over the tokens that touch a span, 0 without any.
        chunks: int64 (spans,), the number of the chunk in which a span begins.
    """

    probabilities: np.ndarray
    chunks: np.ndarray


@dataclass(frozen=True)
class Decisions:
    """The paper's decisions about the words of one text.

    Attributes:
        spans: half-open character offsets of the words, in order.
        probabilities: float32 (words,), 1 for words that are forced.
        kept: bool (words,).
    """

    spans: tuple[Span, ...]
    probabilities: np.ndarray
    kept: np.ndarray


class LLMLingua2(Refiner):
    """Words by their probability of being kept. Safe from many threads.

    Args:
        model: a transformers token classifier of two labels in evaluation mode; the second label means keep.
        tokenizer: its `tokenizers.Tokenizer`; truncation and padding are turned off here.
        force: words that are always wanted first, compared without the punctuation around them.
        digits: whether words with a digit are, too.
        contexts: whether passages of low mean probability are left out first, down to `FILTERED` times the budget.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        *,
        force: Sequence[str] = (),
        digits: bool = False,
        contexts: bool = False,
    ) -> None:
        if model.config.num_labels != 2:
            raise Unsupported(f"The classifier has `{model.config.num_labels}` labels.", "It needs 2: drop and keep.")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        frame = tokenizer.encode("").ids
        if len(frame) != 2:
            raise Unsupported(f"The tokenizer frames a text with `{len(frame)}` tokens.", "It needs 2.")
        self.model = model
        self.tokenizer = tokenizer
        self.force = frozenset(force)
        self.digits = digits
        self.contexts = contexts
        self._first, self._last = frame

    @classmethod
    def load(cls, card: Card, parts: Parts) -> LLMLingua2:
        """From `weights/llmlingua2` of the home folder.

        Raises:
            MissingWeights: one of `FILES` is not there.
        """
        settings = parts.settings
        return cls.from_folder(given_folder(card, settings, *FILES), settings.precision, parts.device)

    @classmethod
    def from_folder(cls, folder: Path, precision: str = "auto", device: str = "cpu", **options: Any) -> LLMLingua2:
        """From a local folder with `FILES`; `options` are those of the class.

        Raises:
            Unsupported: the model is no token classifier of two labels.
        """
        from tokenizers import Tokenizer
        from transformers import AutoConfig, AutoModelForTokenClassification

        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        config = AutoConfig.from_pretrained(folder, **local)
        named = config.architectures or ["nothing"]
        if not any(name.endswith("ForTokenClassification") for name in named):
            raise Unsupported(f"The model is `{named[0]}`.", "Give a `…ForTokenClassification`.")
        with quiet():
            model = AutoModelForTokenClassification.from_pretrained(
                folder, config=config, dtype=dtype(precision, device), use_safetensors=True, **local
            )
        return cls(model.eval().to(device), Tokenizer.from_file(str(folder / "tokenizer.json")), **options)

    @classmethod
    def tiny(cls, seed: int = 0) -> LLMLingua2:
        """Two random layers over single characters."""
        from transformers import BertConfig, BertForTokenClassification

        from ...retrievers.towers import seeded

        tokenizer = _character_tokenizer()
        config = BertConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=CHUNK + 2,
            num_labels=2,
            initializer_range=0.3,
        )
        return cls(seeded(seed, lambda: BertForTokenClassification(config)).eval(), tokenizer)

    def fit(self, examples: Sequence[Example], out_dir: Path, **how: Any) -> LLMLingua2:
        """A copy of this classifier, trained on what a teacher keeps; saved in `out_dir` for `from_folder`.

        Args:
            examples, how: see `distilled`, `untrained` and `fit` in `_llmlingua2_training.py`; what it raises.
        """
        from ._llmlingua2_training import fit

        made = LLMLingua2(deepcopy(self.model).float(), self.tokenizer)
        fit(made.model, made.tokenizer, examples, out_dir, **how)
        return made

    def refine(self, query: Query | None, hits: Sequence[Hit], budget: Budget) -> Refined:
        """See `Refiner`; the query is not read, and the model is not asked when the evidence fits."""
        found: dict[Part, np.ndarray] = {}

        def plan(evidence: Evidence) -> Plan:
            found.update(self._judged(evidence))
            means = {part: float(values[0]) for part, values in found.items()}
            chosen = self._chosen(evidence, means)
            ordered = sorted((part for part in means if part.hit in chosen), key=lambda part: (-means[part], part))
            return Plan(tuple(ordered), blank(evidence))

        def tail(evidence: Evidence, parts: Sequence[Part], sizes: Sequence[int], n: int) -> tuple[int, list[Words]]:
            return 0, ranked(evidence, parts, found)

        return fit(hits, budget, plan, tail)

    def decide(self, text: str, keep: float, tokenizer: str = "cl100k_base") -> Decisions:
        """The paper's own decisions about the words of `text`, before any budget of ours.

        Args:
            keep: the share of tokens of `tokenizer` (the target model's) that stays, above 0, at most 1.

        Raises:
            BadInput: `keep` lies outside that.
        """
        if not 0 < keep <= 1:
            raise BadInput(f"The share to keep is `{keep}`.", "It lies above 0, at most at 1.")
        spans = tuple(words(text, 0, len(text)))
        [judged] = self.judge([text], [spans])
        kept = np.zeros(len(spans), bool)
        for chunk in np.unique(judged.chunks):
            here = np.flatnonzero(judged.chunks == chunk)
            lengths = [count(text[spans[n][0] : spans[n][1]], tokenizer) for n in here]
            limit = threshold(judged.probabilities[here], lengths, keep)
            values = judged.probabilities[here]
            kept[here] = (values > limit) | ((limit >= 1) & (values >= limit)) | (keep == 1)
        return Decisions(spans, judged.probabilities, kept)

    def judge(self, texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> list[Judged]:
        """What the classifier thinks of `spans[i]` of `texts[i]`, in the order given."""
        encodings = self.tokenizer.encode_batch([encodable(text) for text in texts], add_special_tokens=False)
        values = [np.zeros(len(encoding.ids), np.float32) for encoding in encodings]
        numbers = [np.zeros(len(encoding.ids), np.int64) for encoding in encodings]
        jobs: list[tuple[int, int, int]] = []
        for n, encoding in enumerate(encodings):
            starts = [start for start, _ in encoding.offsets]
            ends = [int(np.searchsorted(starts, end, "left")) for _, end in sentences(texts[n])]
            for number, (first, last) in enumerate(chunks([*ends, len(starts)], CHUNK)):
                jobs.append((n, first, last))
                numbers[n][first:last] = number
        done = 0
        for rows in batches([last - first for _, first, last in jobs], BATCH_TOKENS):
            step(done, len(jobs), "chunks")
            read = self._read([encodings[jobs[row][0]].ids[jobs[row][1] : jobs[row][2]] for row in rows])
            for row, found in zip(rows, read, strict=True):
                n, first, last = jobs[row]
                values[n][first:last] = found
            done += len(rows)
        return [
            self._over(text, asked, encoding.offsets, value, number)
            for text, asked, encoding, value, number in zip(texts, spans, encodings, values, numbers, strict=True)
        ]

    def _read(self, ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """P(keep) of each token of each chunk."""
        import torch

        longest = max(map(len, ids)) + 2
        given = torch.full((len(ids), longest), self.model.config.pad_token_id or 0, dtype=torch.long)
        mask = torch.zeros_like(given)
        for row, chunk in enumerate(ids):
            given[row, : len(chunk) + 2] = torch.tensor([self._first, *chunk, self._last])
            mask[row, : len(chunk) + 2] = 1
        device = self.model.device
        with torch.inference_mode():
            logits = self.model(input_ids=given.to(device), attention_mask=mask.to(device)).logits
            values = logits.float().softmax(-1)[..., KEEP].cpu().numpy()
        return [values[row, 1 : len(chunk) + 1] for row, chunk in enumerate(ids)]

    def _over(
        self, text: str, spans: Sequence[Span], offsets: Sequence[Span], values: np.ndarray, numbers: np.ndarray
    ) -> Judged:
        """Means over the tokens that touch each span; 1 for a forced word."""
        begins = np.array([start for start, _ in offsets], np.int64)
        ends = np.maximum.accumulate(np.array([end for _, end in offsets], np.int64))
        first = np.searchsorted(ends, [start for start, _ in spans], "right")
        last = np.searchsorted(begins, [end for _, end in spans], "left")
        means, chunk = np.zeros(len(spans), np.float32), np.zeros(len(spans), np.int64)
        for n, (a, b) in enumerate(zip(first, last, strict=True)):
            if a < b:
                means[n], chunk[n] = values[a:b].mean(), numbers[a]
            elif len(numbers):
                chunk[n] = numbers[min(a, len(numbers) - 1)]
            if self._forced(text[spans[n][0] : spans[n][1]]):
                means[n] = 1
        return Judged(means, chunk)

    def _forced(self, word: str) -> bool:
        if self.digits and _DIGIT.search(word):
            return True
        return bool(self.force) and (word in self.force or FRINGE.sub("", word) in self.force)

    def _judged(self, evidence: Evidence) -> dict[Part, np.ndarray]:
        """For each part in reading order: its own probability, then those of its words."""
        parts = [list(own) for _, own in groupby(parts_read(evidence), key=lambda part: part.hit)]
        spans = [[_spans(evidence, part) for part in found] for found in parts]
        texts = [evidence.hits[found[0].hit].item.text for found in parts]
        judged = self.judge(texts, [[span for part in found for span in part] for found in spans])
        made: dict[Part, np.ndarray] = {}
        for found, asked, one in zip(parts, spans, judged, strict=True):
            cuts = np.cumsum([len(part) for part in asked])[:-1]
            made |= dict(zip(found, np.split(one.probabilities, cuts), strict=True))
        return made

    def _chosen(self, evidence: Evidence, means: Mapping[Part, float]) -> set[int]:
        """The hits that are not left out by the passage filter."""
        hits = sorted({part.hit for part in means})
        if not self.contexts or len(hits) < 2:
            return set(hits)
        values = [float(np.mean([means[part] for part in means if part.hit == n])) for n in hits]
        share = min(1.0, FILTERED * evidence.budget.tokens / max(1, sum(evidence.tokens)))
        return {n for n, holds in zip(hits, fullest(values, share), strict=True) if holds}


def threshold(probabilities: Sequence[float] | np.ndarray, lengths: Sequence[int], keep: float) -> float:
    """The probability above which words are kept, so that about the share `keep` of the tokens stays (section 4.3).

    A percentile over words, each as often as it has tokens in the target model, one point higher as in the authors'
    package; 1 is a threshold that words of probability 1 pass.

    Args:
        probabilities: (words,), from 0 to 1.
        lengths: (words,), tokens of each word in the target model's vocabulary.
        keep: above 0, at most 1.

    >>> round(threshold([0.1, 0.9, 0.5, 0.3], [1, 1, 1, 1], 0.5), 3)
    0.406
    """
    if not sum(lengths):
        return 0.0
    percent = min(100, int(100 * max(0.0, 1 - keep) + 1))
    return float(np.percentile(np.repeat(np.asarray(probabilities), lengths), percent))


def fullest(means: Sequence[float], share: float) -> list[bool]:
    """The passage filter: which of the passages are among the share with the highest mean probability.

    >>> fullest([0.2, 0.6, 0.4, 0.5], 0.5)
    [False, True, False, True]
    """
    limit = np.percentile(means, int(100 * (1 - share)))
    return [bool(mean >= limit) for mean in means]


def chunks(ends: Sequence[int], size: int) -> Iterator[Span]:
    """Half-open token ranges that tile `[0, ends[-1])`.

    Each holds as many whole sentences as fit into `size` tokens, or `size` tokens of a sentence that does not.

    Args:
        ends: where the sentences end, ascending; the last is the number of tokens.

    >>> list(chunks([4, 9, 12], 9)), list(chunks([7], 3))
    ([(0, 9), (9, 12)], [(0, 3), (3, 6), (6, 7)])
    """
    start = 0
    while start < ends[-1]:
        end = ends[max(0, bisect_right(ends, start + size) - 1)]
        if not start < end <= start + size:
            end = min(start + size, ends[-1])
        yield start, end
        start = end


def ranked(evidence: Evidence, parts: Sequence[Part], found: Mapping[Part, np.ndarray]) -> list[Words]:
    """The words of all parts, most probable first, each with those that its sentence may not lose; rows whole."""
    groups: list[tuple[float, Words]] = []
    for part in parts:
        mean, *values = found[part].tolist()
        if evidence.unit(part).whole:
            groups.append((mean, evidence.closed(part)))
            continue
        text = evidence.hits[part.hit].item.text
        spans = [word.spans[0] for word in evidence.words(part)]
        needed = protected([text[start:end] for start, end in spans], evidence.budget.protect)
        core = [span for span, holds in zip(spans, needed, strict=True) if holds]
        groups += [
            (value, Words(part.hit, tuple(sorted({*core, span})))) for span, value in zip(spans, values, strict=True)
        ]
    groups.sort(key=lambda group: (-group[0], group[1]))
    return [group for _, group in groups]


def _spans(evidence: Evidence, part: Part) -> list[Span]:
    unit = evidence.unit(part)
    return [(unit.start, unit.end), *(word.spans[0] for word in evidence.words(part))]


def _character_tokenizer() -> Tokenizer:
    from tokenizers.decoders import WordPiece as Decoder
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.processors import TemplateProcessing

    from ...retrievers.towers import characters

    tokenizer = characters("bert")
    tokenizer.normalizer = BertNormalizer(lowercase=False)
    tokenizer.decoder = Decoder()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer
