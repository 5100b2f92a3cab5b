"""How LLMLingua-2 learns: what a teacher keeps of a text, as a label for every word, and cross-entropy over tokens.

Pan et al. 2024, arXiv:2403.12968, sections 3 and 4: texts are cut into chunks, a teacher compresses each, what it kept
is found in the source again, doubtful pairs are left out, and an encoder learns to tell the words that stay. The
teacher of the paper is GPT-4. Here any refiner is one; where it says which spans it kept, nothing has to be aligned and
nothing can be doubtful, so that the paper's two measures are 0 without being counted. Only generated text is aligned,
as the paper does it. On `fitting`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import BadInput
from ...progress import step
from ...retrievers.base import Hit, Item, Source
from ...retrievers.chunking import sentences
from ...retrievers.fitting import Course, claim, trained
from ...retrievers.loading import encodable, quiet
from ...retrievers.text.analysis import terms
from ..base import Budget
from ..tokens import count
from ..units import words
from .llmlingua2 import CHUNK, FRINGE, KEEP, LLMLingua2, chunks

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer
    from torch import Tensor

    from ...retrievers.fitting import Fitted
    from ..base import Refined, Refiner
    from ..fit import Span

WINDOW = 150
"""Words of the source among which a generated word is looked for, half of them on either side (section 3.2)."""
DOUBTFUL = 10.0
"""Per cent of the examples that each measure of quality leaves out, as in the authors' code."""
IGNORED = -100
"""The label of what frames a chunk or fills it up."""


@dataclass(frozen=True)
class Example:
    """A chunk and what of it stays.

    Attributes:
        kept: half-open character spans, in order.
        variation: the share of the teacher's words that the chunk does not hold, 0 to 1.
        gap: how much larger the share of the chunk's words is that the teacher said than the share that was labelled.
    """

    text: str
    kept: tuple[Span, ...]
    variation: float = 0.0
    gap: float = 0.0


PAPER = Course(epochs=10.0, batch=10, rate=1e-5, patience=3)
"""Epochs, batch and rate of the paper, for MeetingBank and encoders of 178 and 560 million."""


# --- examples --------------------------------------------------------------------------------------------------------


def distilled(teacher: Refiner, texts: Iterable[str], tokenizer: Tokenizer, keep: float = 0.5) -> Iterator[Example]:
    """What `teacher` keeps of each chunk of `texts` without a question; made one by one, so that they can be stored.

    Args:
        tokenizer: the student's: chunks end with a sentence and have at most `CHUNK` of its tokens.
        keep: the share of a chunk's tokens that the teacher has room for.

    Raises:
        BadInput: `keep` does not lie between 0 and 1; or what the teacher raises.
    """
    if not 0 < keep < 1:
        raise BadInput(f"The share to keep is `{keep}`.", "It lies between 0 and 1.")
    for done, text in enumerate(texts):
        step(done, None, "texts compressed by the teacher")
        for start, end in _chunks(tokenizer, text):
            yield told(text[start:end], teacher, keep)


def told(chunk: str, teacher: Refiner, keep: float) -> Example:
    """The example that the teacher makes of one chunk."""
    hit = Hit(Item("chunk", chunk, Source("chunk", start=0, end=len(chunk))), 0.0)
    refined = teacher.refine(None, [hit], Budget(max(1, round(keep * count(chunk)))))
    spans = _spans(refined)
    if spans is None:
        return aligned(chunk, "\n".join(passage.text for passage in refined.passages))
    return Example(chunk, spans)


def aligned(chunk: str, compressed: str) -> Example:
    """Labels for text that a teacher wrote: each of its words is looked for around the place of the one before.

    Words are the same when their stems are. What is looked for next to a word comes after it first, and a word of the
    chunk is taken once.
    """
    spans = list(words(chunk, 0, len(chunk)))
    own = [_key(chunk[start:end]) for start, end in spans]
    said = [_key(word) for word in compressed.split()]
    taken = np.zeros(len(own), bool)
    at = 0
    for key in said:
        for distance in range(WINDOW // 2 + 1):
            places = [n for n in (at + distance, at - distance) if 0 <= n < len(own) and own[n] == key and not taken[n]]
            if places:
                at = places[0]
                taken[at] = True
                break
    known, wanted = set(own), set(said)
    variation = sum(key not in known for key in said) / max(1, len(said))
    gap = (sum(key in wanted for key in own) - int(taken.sum())) / max(1, len(own))
    return Example(chunk, tuple(span for span, holds in zip(spans, taken, strict=True) if holds), variation, gap)


def reliable(examples: Sequence[Example], percent: float = DOUBTFUL) -> list[Example]:
    """Without the `percent` of largest variation and without those of largest gap (section 3.3); ties stay."""
    if not examples:
        return []
    limits = [np.percentile([getattr(one, name) for one in examples], 100 - percent) for name in ("variation", "gap")]
    return [one for one in examples if one.variation <= limits[0] and one.gap <= limits[1]]


def _chunks(tokenizer: Tokenizer, text: str) -> Iterator[Span]:
    """Character spans of the chunks of `text`, without white space around them."""
    starts = [start for start, _ in tokenizer.encode(encodable(text), add_special_tokens=False).offsets]
    ends = [int(np.searchsorted(starts, end, "left")) for _, end in sentences(text)]
    for first, last in chunks([*ends, len(starts)], CHUNK):
        start, end = starts[first], starts[last] if last < len(starts) else len(text)
        yield start, start + len(text[start:end].rstrip())


def _spans(refined: Refined) -> tuple[Span, ...] | None:
    """What was kept of one hit; None where it was written anew."""
    pieces = [piece for passage in refined.passages for piece in passage.pieces]
    if any(piece.why == "generated" for piece in pieces):
        return None
    return tuple(piece.span for piece in pieces if piece.span is not None)


def _key(word: str) -> tuple[str, ...]:
    return tuple(terms(word)) or (FRINGE.sub("", word).casefold() or word,)


# --- learning --------------------------------------------------------------------------------------------------------


def untrained(folder: Path, seed: int = 0) -> LLMLingua2:
    """The BERT-type encoder in `folder` under a new head, in float32: where a fit begins."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForTokenClassification

    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForTokenClassification.from_pretrained(
            folder,
            num_labels=2,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    return LLMLingua2(model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json")))


def fit(
    model: Any,
    tokenizer: Tokenizer,
    data: Sequence[Example],
    out_dir: Path,
    course: Course = PAPER,
    held: Sequence[Example] = (),
) -> Fitted:
    """Train `model` and write it into `out_dir`, for `LLMLingua2.from_folder`.

    Interrupted, it goes on from its last checkpoint. With `held` examples the best model by their loss is kept, and it
    stops when that no longer falls.

    Raises:
        BadInput: no examples, or `out_dir` holds another fit.
        Cancelled, TimedOut: see `progress`.
    """
    if not data:
        raise BadInput("There are `0` chunks to learn from.", "Give what a teacher keeps of some.")
    claim(out_dir, [*data, *held], course=course)
    pad = model.config.pad_token_id or 0
    rows = [labelled(tokenizer, example) for example in (*data, *held)]
    done = trained(
        model, course, out_dir, lambda batch: _batch(batch, pad), rows[: len(data)], rows[len(data) :], label="labels"
    )
    with quiet():
        model.save_pretrained(out_dir)
    tokenizer.save(str(out_dir / "tokenizer.json"))
    return done


def labelled(tokenizer: Tokenizer, example: Example) -> dict[str, np.ndarray]:
    """One sequence, framed: `input_ids` and `labels`, int64 (tokens,). A token is kept when it touches what is kept."""
    given = tokenizer.encode(encodable(example.text), add_special_tokens=False)
    first, last = tokenizer.encode("").ids
    kept = np.zeros(len(example.text) + 1, bool)
    for start, end in example.kept:
        kept[start:end] = True
    labels = [KEEP if kept[start:end].any() else 1 - KEEP for start, end in given.offsets[:CHUNK]]
    return {
        "input_ids": np.array([first, *given.ids[:CHUNK], last], np.int64),
        "labels": np.array([IGNORED, *labels, IGNORED], np.int64),
    }


def _batch(rows: Sequence[dict[str, np.ndarray]], pad: int) -> dict[str, Tensor]:
    import torch

    longest = max(len(row["labels"]) for row in rows)
    made = {
        key: np.stack([np.pad(row[key], (0, longest - len(row[key])), constant_values=fill) for row in rows])
        for key, fill in (("input_ids", pad), ("labels", IGNORED))
    }
    mask = np.stack([np.arange(longest) < len(row["labels"]) for row in rows])
    return {key: torch.from_numpy(value) for key, value in {**made, "attention_mask": mask.astype(np.int64)}.items()}
