"""CPC, context-aware prompt compression. Liskavets et al. 2024, arXiv:2409.01227

A causal language model whose attention sees both ways reads the whole evidence once; a sentence's vector is the mean of
its token states, so that `It opened in 1931` knows what opened. The question is read alone, mean-pooled the same way,
and sentences are kept by cosine until the budget is full, in their order. The authors' adapters (see the card) are on a
model hub only: put the base model into `weights/cpc/base` of the home folder and the adapter into
`weights/cpc/adapter`. It is merged into the matrices while it is loaded; `peft` is not needed.

What differs from the authors' code. The budget is exact: the sentence at its edge is cut at a word, and a table row is
kept or dropped whole. A sentence longer than a chunk is read in pieces and stays one sentence. Sentences preferred by a
pattern are not offered. Without a question sentences stay in reading order. `fit` learns an adapter of one's own, see
`_cpc_training.py` for what of the paper's training it leaves out.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import regex

from ...errors import BadInput, Unsupported
from ...progress import step
from ...retrievers.given import given_folder
from ...retrievers.loading import dtype, encodable, quiet
from ..base import Refiner
from ..fit import Plan, fit, head
from ..relevance import blank, by_relevance
from ._coarse import parts_read

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

    from ...manifests.registry import Card
    from ...retrievers.base import Hit, Query
    from ...retrievers.parts import Parts
    from ..base import Budget, Refined
    from ..fit import Evidence, Span
    from ._cpc_training import Example

CHUNK = 6144
"""Tokens that are read at once: the length the adapters were trained with (authors' configuration)."""
BASE = ("config.json", "tokenizer.json")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")

_KEY = regex.compile(r"base_model\.model\.(?:model\.)?(?P<module>.+)\.lora_(?P<half>[AB])\.weight")
_PLAIN = {"use_dora": False, "fan_in_fan_out": False, "bias": "none"}
_EMPTY = ("modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication")


class CPC(Refiner):
    """Sentences by the cosine of their vectors in context and the question's. Safe from many threads.

    Args:
        model: the decoder of a transformers causal LM (without its head) in evaluation mode, adapter merged.
        tokenizer: its `tokenizers.Tokenizer`; truncation and padding are turned off here.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.model = model
        self.tokenizer = tokenizer
        self.chunk = min(CHUNK, getattr(model.config, "max_position_embeddings", CHUNK))

    @classmethod
    def load(cls, card: Card, parts: Parts) -> CPC:
        """From `weights/cpc` of the home folder.

        Raises:
            MissingWeights: a file of `BASE` (in `base`) or of `ADAPTER` (in `adapter`) is not there.
        """
        settings = parts.settings
        needed = [*(f"base/{name}" for name in BASE), *(f"adapter/{name}" for name in ADAPTER)]
        folder = given_folder(card, settings, *needed)
        return cls.from_folder(folder / "base", folder / "adapter", settings.precision, parts.device)

    @classmethod
    def from_folder(cls, base: Path, adapter: Path | None, precision: str = "auto", device: str = "cpu") -> CPC:
        """From local folders; without an adapter, the base model as it is.

        Raises:
            Unsupported: the adapter is more than plain LoRA.
            BadInput: it does not belong to the base model.
        """
        from safetensors.torch import load_file
        from tokenizers import Tokenizer
        from transformers import AutoModel

        with quiet():
            model = AutoModel.from_pretrained(
                base,
                dtype=dtype(precision, device),
                attn_implementation="sdpa",
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
            )
        if adapter is not None:
            config = json.loads((adapter / ADAPTER[0]).read_text("utf-8"))
            merge(model, load_file(adapter / ADAPTER[1]), config)
        return cls(model.eval().to(device), Tokenizer.from_file(str(base / "tokenizer.json")))

    @classmethod
    def tiny(cls, seed: int = 0) -> CPC:
        """Two random layers over bytes."""
        from tokenizers import Tokenizer

        from ...retrievers.lm_transformers import TransformersLM

        lm = TransformersLM.tiny(seed)
        return cls(lm.model.base_model, Tokenizer.from_str(lm.tokenizer.backend_tokenizer.to_str()))

    def fit(self, examples: Sequence[Example], out_dir: Path, **how: Any) -> CPC:
        """This model under an adapter that was trained on questions; both are saved in `out_dir`, in folders `base` and
        `adapter`, which `from_folder` takes back.

        Args:
            examples, how: see `example` and `fit` in `_cpc_training.py`; what it raises. Needs the extra `train`.
        """
        from ._cpc_training import fit

        fit(self.model, self.tokenizer, examples, out_dir, **how)
        precision = str(self.model.dtype).removeprefix("torch.")
        return CPC.from_folder(out_dir / "base", out_dir / "adapter", precision, str(self.model.device))

    def refine(self, query: Query | None, hits: Sequence[Hit], budget: Budget) -> Refined:
        """See `Refiner`; the model is not asked when the evidence fits."""
        question = query.text if query is not None else None
        if not question or not question.strip():
            return fit(hits, budget, by_relevance(None), head)

        def plan(evidence: Evidence) -> Plan:
            parts = parts_read(evidence)
            scores = self.scores(question, [evidence.text(part) for part in parts])
            order = np.lexsort((np.arange(len(parts)), -scores))
            return Plan(tuple(parts[n] for n in order), blank(evidence))

        return fit(hits, budget, plan, head)

    def scores(self, question: str, sentences: Sequence[str]) -> np.ndarray:
        """Cosine of each sentence, read among all of them, and the question, read alone: float64 (sentences,).

        A sentence without tokens scores 0.
        """
        ids = [self._ids(sentence) for sentence in sentences]
        bounds = list(accumulate(map(len, ids), initial=0))
        flat = [token for sentence in ids for token in sentence]
        asked = self.states(self._ids(question)[: self.chunk]).sum(0)
        sums = np.zeros((len(sentences), len(asked)), np.float32)
        for start, end in balanced(bounds[1:], self.chunk):
            step(start, len(flat), "tokens")
            first, last = bisect_right(bounds, start) - 1, bisect_left(bounds, end)
            inside = [(max(a, start) - start, min(b, end) - start) for a, b in pairwise(bounds[first : last + 1])]
            sums[first:last] += pooled(self.states(flat[start:end]), inside)
        return cosines(sums, asked)

    def states(self, ids: Sequence[int]) -> np.ndarray:
        """Last hidden states of one sequence whose every token sees all others: float32 (tokens, dim)."""
        import torch

        given = torch.tensor([list(ids)], dtype=torch.long, device=self.model.device)
        if not given.numel():
            return np.zeros((0, self.model.config.hidden_size), np.float32)
        seen = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=given.device).expand(1, 1, *2 * given.shape[1:])
        with torch.inference_mode():
            output = self.model(input_ids=given, attention_mask=seen, use_cache=False)
        states: np.ndarray = output.last_hidden_state[0].float().cpu().numpy()
        return states

    def _ids(self, text: str) -> list[int]:
        """Each sentence is tokenised alone and without special tokens, as in training."""
        return list(self.tokenizer.encode(encodable(text), add_special_tokens=False).ids)


def pooled(states: np.ndarray, bounds: Sequence[Span]) -> np.ndarray:
    """Sums of token states over half-open token ranges, (ranges, dim); their directions are those of the means.

    Args:
        states: (tokens, dim), of tokens that were read in context.

    >>> pooled(np.array([[1, 0], [0, 1], [0, 3]]), [(0, 2), (2, 3), (3, 3)]).tolist()
    [[1, 1], [0, 3], [0, 0]]
    """
    sums = [states[start:end].sum(0) for start, end in bounds]
    return np.stack(sums) if sums else np.zeros((0, states.shape[1]), states.dtype)


def cosines(rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Cosine of each row (n, dim) and `vector` (dim,), from -1 to 1; 0 where either is zero. Float64 (n,).

    >>> cosines(np.array([[3, 4], [0, 0]]), np.array([3, 4])).tolist()
    [1.0, 0.0]
    """
    wide, asked = rows.astype(np.float64), vector.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1) * np.linalg.norm(asked)
    found: np.ndarray = wide @ asked / np.where(lengths > 0, lengths, 1)
    return found


def balanced(ends: Sequence[int], limit: int) -> Iterator[Span]:
    """Half-open token ranges of about the same length that tile `[0, ends[-1])`, none above `limit`.

    Ranges end with a sentence, except inside one that is longer than `limit`.

    Args:
        ends: where the sentences end, ascending; the last is the number of tokens.

    >>> list(balanced([3, 5, 8, 10], 8)), list(balanced([7], 4))
    ([(0, 5), (5, 10)], [(0, 4), (4, 7)])
    """
    total = ends[-1] if ends else 0
    aim = -(-total // max(1, -(-total // limit)))
    start = 0
    while start < total:
        reached = ends[min(bisect_left(ends, start + aim), len(ends) - 1)]
        if reached > start + limit:
            reached = ends[max(0, bisect_right(ends, start + limit) - 1)]
        end = reached if start < reached <= start + limit else min(start + limit, total)
        yield start, end
        start = end


def merge(model: Any, tensors: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """Add a LoRA adapter to the matrices of `model`: W + (α/r)·B·A, or α/√r where it says so. Answers how many.

    Args:
        model: what the adapter was trained around, or the causal LM that holds it.
        tensors: by the names `peft` saves: `base_model.model.` + module + `.lora_A.weight` (r, in) and `.lora_B.weight`
            (out, r).
        config: the adapter's `adapter_config.json`.

    Raises:
        Unsupported: the adapter is more than plain LoRA.
        BadInput: a tensor has no counterpart, or does not fit the model.
    """
    import torch

    odd = [name for name, plain in _PLAIN.items() if config.get(name, plain) not in (plain, None)]
    odd += [name for name in _EMPTY if config.get(name)]
    if odd or config.get("peft_type", "LORA") != "LORA":
        raise Unsupported(f"The adapter uses `{(odd or [config['peft_type']])[0]}`.", "Plain LoRA can be merged.")
    rank, alpha = config["r"], config["lora_alpha"]
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    halves: dict[str, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise BadInput(f"The adapter holds `{key}`.", "Its tensors are `base_model.model.….lora_A.weight` and B.")
        halves.setdefault(match["module"], {})[match["half"]] = tensor
    for name, pair in halves.items():
        weight = _weight(model, name)
        if set(pair) != {"A", "B"} or weight.shape != (pair["B"].shape[0], pair["A"].shape[1]):
            raise BadInput(f"The adapter does not fit `{name}` of the base model.", "Use the base it was trained on.")
        with torch.no_grad():
            weight.add_((scale * (pair["B"].float() @ pair["A"].float())).to(weight))
    if not halves:
        raise BadInput("The adapter holds `0` matrices.", "Give an adapter of the base model.")
    return len(halves)


def _weight(model: Any, name: str) -> Any:
    decoder = getattr(model, "model", model)
    try:
        return decoder.get_submodule(name).weight
    except AttributeError:
        raise BadInput(f"The base model has no `{name}`.", "Use the base it was trained on.") from None
