"""UniME's first stage (arXiv:2504.17432, section 3.1): the language part learns the similarities of a text encoder,
whose vectors were written to disk before, by low-rank adapters; what looks is not touched.

It differs from the paper in that nothing is quantised. The paper's numbers are a rank of 16, batches of 768, a rate of
5e-4 and two epochs over 273,000 sentences, as we know them.
"""

from __future__ import annotations

import hashlib
import json
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...errors import BadInput
from ...progress import step
from ..fitting import claim, gathered, in_parts, of_all, trained
from ._contrastive_training import Learner, adapt
from ._mllm import Backbone
from ._vectors import last

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ..base import Encoder
    from ..fitting import Course, Fitted
    from ._contrastive_training import Adapters

TEACHER, TEACHES = "teacher.npy", "teacher.json"
"""Vectors of a teacher, one row for each text, and of which texts they are."""
PART = 256


def taught(encoder: Encoder, texts: Sequence[str], folder: Path) -> Path:
    """Write the vectors that `encoder`, the teacher, has of `texts` as queries into `folder`; answers with `folder`.

    Raises:
        BadInput: it gives no dense vectors.
        Cancelled, TimedOut: see `progress`.
    """
    from ..base import Query

    if encoder.space.kind != "dense":
        raise BadInput(f"The space `{encoder.space.name}` is `{encoder.space.kind}`.", "Take a dense encoder.")
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for start in range(0, len(texts), PART):
        step(start, len(texts), "texts")
        parts.append(encoder.encode([Query(text) for text in texts[start : start + PART]], "query"))
    np.save(folder / TEACHER, np.concatenate(parts) if parts else np.zeros((0, encoder.space.dim), np.float32))
    (folder / TEACHES).write_text(lesson_of(encoder, texts), "utf-8")
    return folder


def lesson_of(encoder: Encoder, texts: Sequence[str]) -> str:
    """What stands in `teacher.json` when `encoder` taught `texts`."""
    return json.dumps({"texts": _digest(texts), "space": encoder.space.name, "count": len(texts)}) + "\n"


def vectors_of(folder: Path, texts: Sequence[str]) -> np.ndarray:
    """What `taught` wrote, (texts, size), read from disk as it is needed.

    Raises:
        BadInput: it is not there, or of other texts.
    """
    if not (folder / TEACHER).is_file() or not (folder / TEACHES).is_file():
        raise BadInput(f"`{folder.name}` has no `{TEACHER}` or no `{TEACHES}`.", "Write them with `taught`.")
    told = json.loads((folder / TEACHES).read_text("utf-8"))
    vectors: np.ndarray = np.load(folder / TEACHER, mmap_mode="r", allow_pickle=False)
    if told.get("texts") != _digest(texts) or len(vectors) != len(texts):
        raise BadInput(f"`{folder.name}` holds vectors of other texts.", "Write them again with `taught`.")
    return vectors


def distilled(
    backbone: Backbone,
    ids: Sequence[list[int]],
    texts: Sequence[str],
    teacher: Path,
    out_dir: Path,
    loss: Callable[[Tensor, Tensor], Tensor],
    course: Course,
    adapters: Adapters,
) -> tuple[Backbone, Fitted]:
    """A copy of `backbone` in float32 whose language part was trained, its adapters merged, and what it came to.

    Args:
        ids: the tokens of each text's prompt.
        loss: of the vectors of a batch and the teacher's.

    Raises:
        BadInput: fewer than two texts, a teacher of other texts, or `out_dir` holds another fit.
        MissingExtra: peft is not installed.
        Cancelled, TimedOut: see `progress`; the next call with the same arguments goes on.
    """
    if len(texts) < 2:
        raise BadInput(f"There are `{len(texts)}` texts.", "Give two at least: their similarities are learned.")
    wanted = vectors_of(teacher, texts)
    claim(out_dir, [_digest(texts), _digest_of(wanted)], course=course, adapters=adapters)
    model = deepcopy(backbone.model).float()
    merge = adapt(model, model.language_model, adapters, course.seed)
    pad = backbone.pad

    def collate(rows: Sequence[tuple[list[int], np.ndarray]]) -> dict[str, Tensor]:
        longest = max(len(one) for one, _ in rows)
        return {
            "input_ids": torch.tensor([[pad] * (longest - len(one)) + one for one, _ in rows]),
            "attention_mask": torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one, _ in rows]),
            "teacher": torch.from_numpy(np.stack([np.asarray(vector, np.float32) for _, vector in rows])),
        }

    student = Student(model.language_model, loss, adapters.chunk)
    came = trained(student, course, out_dir, collate, list(zip(ids, wanted, strict=True)), label="teacher")
    merge()
    return Backbone(model.to(backbone.model.device).eval(), backbone.tokenizer, backbone.pictures), came


class Student(Learner):
    """A language model, with adapters or without, that gives the loss of a batch.

    Args:
        language: gives the states of tokens.
        chunk: texts that are read at once; 0: the batch.
    """

    def __init__(self, language: Any, loss: Callable[[Tensor, Tensor], Tensor], chunk: int = 0) -> None:
        super().__init__()
        self.language, self.chunk, self._loss = language, chunk, loss

    def forward(self, input_ids: Tensor, attention_mask: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        vectors = in_parts(self.read, self.chunk, input_ids, attention_mask)
        return {"loss": of_all(self._loss(gathered(vectors), gathered(teacher)))}

    def read(self, ids: Tensor, mask: Tensor) -> Tensor:
        """States of the last tokens, (texts, size)."""
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)
        found = self.language(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False)
        return last(found.last_hidden_state, mask)


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def _digest_of(vectors: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(vectors).tobytes()).hexdigest()
