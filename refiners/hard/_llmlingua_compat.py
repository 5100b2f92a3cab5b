"""The `llmlingua` package (Microsoft, MIT) on transformers 5, offline. Its decisions stay its own.

What this file changes in `PromptCompressor`, and nothing else:

- it is made from a model and a tokenizer that are already there: no download, no remote code;
- keys and values cross `get_ppl` as the list of pairs that the package cuts and joins, while the model sees the cache
  object that transformers 5 wants;
- losses are computed from hidden states, a slice of positions at a time, so that the logits of a whole context over a
  whole vocabulary never exist at once. They are float32 whatever the model computes in;
- positions ride along: `decide` hands the package token ids that carry their position in the upper half of each 64-bit
  id. The package only copies, cuts and joins ids, so those that come back say which tokens it kept, and `get_ppl`
  strips the positions before the model sees them;
- a text of one token, of which there is no loss, is kept (the package fails on it);
- between windows it calls `progress.step`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from llmlingua import PromptCompressor
from transformers import DynamicCache

from ...errors import Unsupported
from ...progress import step
from ..tokens import count

SEPARATOR = "\n\n"
"""What the package puts between contexts."""
WINDOW = 200
"""Tokens of one segment in the paper (section 4.2) and in the package."""
POSITIONS_AT_ONCE = 64
"""Rows of logits that exist at the same time."""
_TAG = 32
_IDS = (1 << _TAG) - 1


@dataclass(frozen=True)
class Decisions:
    """What the package decided about each token of the joined contexts.

    Attributes:
        spans: int64 (tokens, 2), half-open character offsets in `SEPARATOR.join(contexts)`.
        kept: bool (tokens,).
        losses: float32 (tokens,), nats, each conditioned on the compressed text before it; the first, which has
            nothing before it, is infinite.
    """

    spans: np.ndarray
    kept: np.ndarray
    losses: np.ndarray


class OfflineCompressor(PromptCompressor):  # type: ignore[misc]
    """`PromptCompressor` over a causal LM and its fast tokenizer. Safe from many threads through `decide`."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.device = model.device
        self.max_position_embeddings = model.config.max_position_embeddings
        self.model_name = getattr(model.config, "name_or_path", "")
        self.oai_tokenizer = _Counter()
        self.use_llmlingua2 = False
        self.retrieval_model = self.retrieval_model_name = None
        self.open_api_config: dict[str, Any] = {}
        self.cache_bos_num, self.prefix_bos_num = 10, 100
        self.context_idxs: list[list[int]] = []
        self._trace: _Trace | None = None

    def get_ppl(
        self,
        text: str,
        granularity: str = "sentence",
        input_ids: Any = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        return_kv: bool = False,
        end: int | None = None,
        condition_mode: str = "none",
        condition_pos_id: int = 0,
    ) -> Any:
        """Losses of the tokens after `past_key_values` up to `end`, float32, mean or each; see the package."""
        if input_ids is None:
            encoded = self.tokenizer(text, return_tensors="pt")
            input_ids = encoded["input_ids"].to(self.device)
            attention_mask = encoded["attention_mask"].to(self.device)
        past = 0 if past_key_values is None else past_key_values[0][0].shape[2]
        end = min(input_ids.shape[1] if end is None else end, past + self.max_position_embeddings)
        cache = DynamicCache([tuple(pair) for pair in past_key_values]) if past else DynamicCache()
        ids = input_ids[:, past:end]
        with torch.no_grad():
            output = self.model.base_model(
                ids & _IDS, attention_mask=attention_mask[:, :end], use_cache=True, **{cache_name(self.model): cache}
            )
            active = (attention_mask[:, past:end] == 1)[:, :-1]
            states = output.last_hidden_state[:, :-1][active]
            losses = _losses(self.model, states, (ids & _IDS)[:, 1:][active])
        if self._trace is not None:
            self._trace.record(ids[:, 1:][active], losses)
        if condition_mode == "before":
            losses = losses[:condition_pos_id]
        elif condition_mode == "after":
            losses = losses[condition_pos_id:]
        result = losses.mean() if granularity == "sentence" else losses
        pairs = [[layer.keys, layer.values] for layer in cache.layers]
        return (result, pairs) if return_kv else result

    def get_estimate_threshold_base_distribution(self, ppl: Any, ratio: float, condition_flag: bool = False) -> float:
        """The loss that splits `ppl` at `ratio`. Without losses (a text of one token) there is nothing to split."""
        if not (ppl != 10000).any():
            return float("-inf")
        found: float = super().get_estimate_threshold_base_distribution(ppl, ratio, condition_flag)
        return found

    def control_sentence_budget(self, *args: Any, **kwargs: Any) -> Any:
        """Not offered: the package's sentence filter wants a model of nltk that it would have to download."""
        raise Unsupported(
            "The sentence filter of `llmlingua` downloads its sentence splitter.",
            "Leave `use_sentence_level_filter` off; `triptych.refiners` selects sentences itself.",
        )

    def decide(self, contexts: Sequence[str], keep: float, window: int = WINDOW) -> Decisions:
        """The package's iterative token-level compression of `contexts`, as decisions about source characters.

        Args:
            contexts: texts, not all empty; joined with a blank line between them, as the package does.
            keep: the share of tokens to keep, above 0, at most 1.
            window: tokens of one segment. The package leaves a last segment shorter than this as it is.
        """
        lengths = [self.get_token_length(text, False) for text in contexts]
        run = copy.copy(self)
        run._trace = trace = _Trace(total=1 + sum(lengths) // window)
        run.tokenizer = _Tagging(self.tokenizer, trace)
        ids, _ = run.iterative_compress_prompt(
            list(contexts),
            keep * (sum(lengths) + 2 * len(contexts) + 1),
            iterative_size=window,
            dynamic_ratio=[0.0] * len(contexts),
        )
        kept = np.zeros(len(trace.spans), bool)
        kept[(ids[0] >> _TAG).cpu().numpy()] = True
        return Decisions(trace.spans, kept, trace.losses)


def cache_name(model: Any) -> str:
    """What `model` calls the argument that takes keys and values: transformers 5.24 renamed it."""
    known = inspect.signature(model.base_model.forward).parameters
    return "cache" if "cache" in known else "past_key_values"


class _Trace:
    """What one run of `decide` sees: where tokens stand, and the last loss of each."""

    def __init__(self, total: int) -> None:
        self.spans = np.empty((0, 2), np.int64)
        self.losses = np.empty(0, np.float32)
        self._done = 0
        self._total = total

    def begin(self, spans: np.ndarray) -> None:
        self.spans = spans
        self.losses = np.full(len(spans), np.inf, np.float32)

    def record(self, ids: Any, losses: Any) -> None:
        self.losses[(ids >> _TAG).cpu().numpy()] = losses.cpu().numpy()
        self._done += 1
        step(min(self._done, self._total), self._total, "windows")


class _Tagging:
    """The tokenizer that gives each id its position, where the package asks for tensors; elsewhere unchanged."""

    def __init__(self, tokenizer: Any, trace: _Trace) -> None:
        self._tokenizer = tokenizer
        self._trace = trace

    def __call__(self, text: str, **options: Any) -> Any:
        if options.get("return_tensors") != "pt":
            return self._tokenizer(text, **options)
        encoded = self._tokenizer(text, return_offsets_mapping=True, **options)
        self._trace.begin(encoded.pop("offset_mapping")[0].numpy())
        ids = encoded["input_ids"]
        encoded["input_ids"] = ids | (torch.arange(ids.shape[1]) << _TAG)
        return encoded


class _Counter:
    """Stands for the package's tiktoken encoding of `gpt-3.5-turbo`, of whose answers it only takes the length."""

    def encode(self, text: str) -> range:
        return range(count(text, "cl100k_base"))


def _losses(model: Any, states: Any, labels: Any) -> Any:
    """Cross-entropy of each label, float32 (positions,), from hidden states (positions, width)."""
    found = torch.empty(len(states), dtype=torch.float32, device=states.device)
    cap = getattr(model.config, "final_logit_softcapping", None)
    for start in range(0, len(states), POSITIONS_AT_ONCE):
        part = slice(start, start + POSITIONS_AT_ONCE)
        logits = model.get_output_embeddings()(states[part]).float()
        logits = torch.tanh(logits / cap) * cap if cap else logits
        found[part] = torch.nn.functional.cross_entropy(logits, labels[part], reduction="none")
    return found
