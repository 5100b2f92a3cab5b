"""The `llmlingua` package (Microsoft, MIT) on transformers 5, offline. Its decisions stay its own.

What this file changes in `PromptCompressor`, and nothing else:

- it is made from a model and a tokenizer that are already there: no download, no remote code;
- keys and values cross `get_ppl` as the list of pairs that the package cuts and joins, while the model sees the cache
  object that transformers 5 wants; where the package throws them away (the first pass), none are made;
- losses are computed from hidden states, a slice of positions at a time, so that the logits of a whole context over a
  whole vocabulary never exist at once. They are float32 whatever the model computes in;
- positions ride along: `decide` hands the package token ids that carry their position in the upper half of each 64-bit
  id. The package only copies, cuts and joins ids, so those that come back say which tokens it kept, and `get_ppl`
  strips the positions before the model sees them;
- a text of one token, of which there is no loss, is kept (the package fails on it);
- between windows it calls `progress.step`.

`decide(fast=True)` is an approximation of ours: the same loop without the first pass over the whole text, which the
package needs only for its thresholds; they come from glimpses of the text instead. A single pass, the surprisal of
Selective-Context (Li et al. 2023, arXiv:2310.06201), decides further from the package: what was dropped stays visible
to it, also where keys and values of what was dropped are taken out of the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from llmlingua import PromptCompressor
from transformers import DynamicCache

from ...errors import Unsupported
from ...progress import step
from ...retrievers.lm_transformers import cache_name
from ...retrievers.loading import encodable
from ..tokens import count

SEPARATOR = "\n\n"
"""What the package puts between contexts, and between the question and them."""
WINDOW = 200
"""Tokens of one segment in the paper (section 4.2) and in the package."""
LOGITS_AT_ONCE = 1 << 22
"""Scores over the vocabulary that exist at the same time: 16 MB of float32, which stay in the processor's cache."""
STRETCH, LEAD = 32, 8
"""Tokens of one glimpse, and those of its beginning that are too surprising to count: nothing stands before them."""
GLIMPSES = 4
"""Least number of glimpses; from a text of more segments, each gives one."""
DISCOUNT = 0.8
"""What a loss in a glimpse becomes, behind the whole text; found with SmolLM2-135M on English passages."""
_TAG = 32
_IDS = (1 << _TAG) - 1


@dataclass(frozen=True)
class Decisions:
    """What the package decided about each token of the joined contexts.

    Attributes:
        spans: int64 (tokens, 2), half-open character offsets in `SEPARATOR.join(contexts)`.
        kept: bool (tokens,).
        losses: float32 (tokens,), nats, each conditioned on the question, if there is one, and on the compressed text
            before it; infinite where nothing stands before it or, with `fast`, nothing has read it.
        alone: the same without the question, where there is one.
    """

    spans: np.ndarray
    kept: np.ndarray
    losses: np.ndarray
    alone: np.ndarray | None = None

    @property
    def wanted(self) -> np.ndarray:
        """What thresholds split, float32 (tokens,): the loss, or what the question takes off it (its contrast)."""
        if self.alone is None:
            return self.losses
        known = np.isfinite(self.alone) & np.isfinite(self.losses)
        wanted = np.full_like(self.losses, np.inf)
        wanted[known] = self.alone[known] - self.losses[known]
        return wanted


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
        past = _length(past_key_values)
        end = min(input_ids.shape[1] if end is None else end, past + self.max_position_embeddings)
        ids, mask = input_ids[:, past:end], attention_mask[:, :end]
        wanted = {"before": slice(condition_pos_id), "after": slice(condition_pos_id, None)}.get(
            condition_mode, slice(None)
        )
        with torch.no_grad():
            states, pairs = read(self.model, ids, past_key_values, mask, return_kv)
            active = (mask[:, past:] == 1)[:, :-1]
            losses = losses_of(self.model, states[:, :-1][active][wanted], ids[:, 1:][active][wanted])
        result = losses.mean() if granularity == "sentence" else losses
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

    def decide(
        self,
        contexts: Sequence[str],
        keep: float,
        window: int = WINDOW,
        *,
        fast: bool = False,
        question: str = "",
        deltas: Sequence[float] = (),
    ) -> Decisions:
        """The package's iterative token-level compression of `contexts`, as decisions about source characters.

        Args:
            contexts: texts, not all empty; joined with a blank line between them, as the package does.
            keep: the share of tokens to keep, above 0, at most 1.
            window: tokens of one segment. The package leaves a last segment shorter than this as it is.
            fast: with glimpses for the first pass over the whole text, an approximation; see above.
            question: with one, tokens stay by the contrast of their losses without it and with it (LongLLMLingua,
                section 4.1). One too long for the model beside two segments loses its end.
            deltas: for each context, what is added to its `keep`; the sum is cut to 0 to 1.
        """
        lengths = [self.get_token_length(encodable(text), False) for text in contexts]
        prefix = self._cut(encodable(question), self.max_position_embeddings - 2 * window) if question else ""
        before = [prefix] if prefix else []
        shift = len(prefix + SEPARATOR) if prefix else 0
        whole = SEPARATOR.join([*before, *map(encodable, contexts)])
        encoded = self.tokenizer(whole, return_tensors="pt", return_offsets_mapping=True, add_special_tokens=False)
        spans = encoded.pop("offset_mapping")[0].numpy()
        start = int((spans[:, 0] < shift).sum())
        run = (_Fast if fast else _Run)(self, encoded, start, 2 if prefix else 1, window)
        with torch.inference_mode():
            ids, _ = run.iterative_compress_prompt(
                [*before, *contexts],
                keep * (sum(lengths) + 2 * len(contexts) + 1),
                iterative_size=window,
                start=start,
                dynamic_ratio=list(deltas) or [0.0] * len(contexts),
                condition_compare=bool(prefix),
            )
        kept = np.zeros(len(spans), bool)
        kept[(ids[0] >> _TAG).cpu().numpy()] = True
        losses, *alone = (found.cpu().numpy()[start:] for found in run.losses)
        return Decisions(spans[start:] - shift, kept[start:], losses, *alone)

    def _cut(self, question: str, limit: int) -> str:
        """As much of the beginning of `question` as `limit` tokens (at least one) hold."""
        spans = self.tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        limit = max(1, limit)
        return question if len(spans) <= limit else question[: spans[limit - 1][1]]


class _Run(OfflineCompressor):
    """One call of `decide`: knows its ids by their positions, and notes the last loss of each.

    The package asks for losses with the question and, in turn with them, without it.

    Attributes:
        losses: float32 (tokens,) for each side, over all tokens, the question's too.
    """

    def __init__(self, of: OfflineCompressor, encoded: Any, start: int, sides: int, window: int) -> None:
        self.__dict__.update(of.__dict__)
        tokens = encoded["input_ids"].shape[1]
        encoded["input_ids"] = encoded["input_ids"] | (torch.arange(tokens) << _TAG)
        self.tokenizer = _Encoded(of.tokenizer, encoded)
        self.losses = [torch.full((tokens,), float("inf"), device=self.device) for _ in range(sides)]
        self._prefix = start
        self._calls = 0
        self._total = sides * (1 + (tokens - start) // window)

    def get_ppl(
        self,
        text: str,
        granularity: str = "token",
        input_ids: Any = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        return_kv: bool = True,
        end: int | None = None,
        condition_mode: str = "none",
        condition_pos_id: int = 0,
    ) -> Any:
        """Each loss after `past_key_values`, and keys and values. All ids are attended to."""
        side = self._calls % len(self.losses)
        past = _length(past_key_values)
        until = min(input_ids.shape[1] if end is None else end, past + self.max_position_embeddings)
        found, pairs = self._losses(input_ids[:, past:until], past_key_values, end is not None, side)
        self._calls += 1
        step(min(self._calls, self._total), self._total, "windows")
        unread = found.new_full((max(0, until - past - 1 - len(found)),), float("inf"))
        return torch.cat([found, unread]), pairs

    def _losses(self, ids: Any, pairs: Any, again: bool, side: int) -> tuple[Any, Any]:
        """Losses of `ids` (1, positions) but the first; the package uses the pairs only when it comes `again`."""
        plain = ids & _IDS
        states, made = read(self.model, plain, pairs, None, again)
        found = losses_of(self.model, states[0, :-1], plain[0, 1:])
        self.losses[side][ids[0, 1:] >> _TAG] = found
        return found, made


class _Fast(_Run):
    """Without the first pass over the whole text: what nobody has read yet is taken to be like glimpses of it.

    The first segment and a stretch of each other one are read together. Tokens that are read again, behind the
    compressed text, give keys and values only: in the thresholds they stand with the losses that they were judged by,
    those of the tokens behind them.
    """

    def __init__(self, of: OfflineCompressor, encoded: Any, start: int, sides: int, window: int) -> None:
        super().__init__(of, encoded, start, sides, window)
        self._window = window
        self._judged = [torch.full_like(losses, float("inf")) for losses in self.losses]
        self._glimpsed = [losses[:0] for losses in self.losses]
        self._stretches: tuple[list[int], int] = ([], 0)

    def get_estimate_threshold_base_distribution(self, ppl: Any, ratio: float, condition_flag: bool = False) -> float:
        """The loss (or contrast) that splits the text at `ratio`, the unread part with the spread of its glimpses, or,
        where segments are too short for them, of the read part."""
        if ratio >= 1.0:
            return float("-inf")
        known = ppl[torch.isfinite(ppl)]
        sides = self._glimpsed if len(self._glimpsed[0]) else self.losses
        like = sides[-1] - sides[0] if len(sides) > 1 else sides[0]
        like = like[torch.isfinite(like)]
        if not len(like):
            return float("-inf")
        unread = (len(ppl) - len(known)) / len(like)
        values, order = torch.cat([known, like]).sort(descending=True)
        weights = torch.cat([torch.ones_like(known), torch.full_like(like, unread)])[order].cumsum(0)
        at = int(torch.searchsorted(weights, ratio * weights[-1]))
        return float(values[min(at, len(values) - 1)])

    def _losses(self, ids: Any, pairs: Any, again: bool, side: int) -> tuple[Any, Any]:
        if not again:
            return self._first(ids, side), []
        plain, places = ids & _IDS, ids[0] >> _TAG
        states, made = read(self.model, plain, pairs, None, again)
        old = int(torch.isfinite(self.losses[side][places[1:]]).sum())
        new = losses_of(self.model, states[0, old:-1], plain[0, 1 + old :])
        self.losses[side][places[1 + old :]] = new
        found = torch.cat([self._judged[side][places[:old]], new])
        self._judged[side][places[old:-1]] = new
        return found, made

    def _first(self, ids: Any, side: int) -> Any:
        """Losses of the first segment; those of the glimpses, of the same tokens on both sides, are noted."""
        begins = 0 if side else self._prefix
        segment = min(ids.shape[1], begins + self._window)
        if not side:
            self._stretches = glimpses(self._window, ids.shape[1] - begins, self._window)
        starts, length = self._stretches
        taken = torch.cat([ids[:, :segment], *(ids[:, begins + at : begins + at + length] for at in starts)], 1)
        plain, places = taken & _IDS, taken[0] >> _TAG
        states, _ = read(self.model, plain, None, None, False)
        at = torch.arange(plain.shape[1], device=plain.device)
        wanted = at[((at < segment) & (at > 0)) | ((at >= segment) & ((at - segment) % max(1, length) >= LEAD))]
        losses = losses_of(self.model, states[0, wanted - 1], plain[0, wanted])
        found, self._glimpsed[side] = losses[: segment - 1], DISCOUNT * losses[segment - 1 :]
        self.losses[side][places[1:segment]] = found
        self._judged[side][places[: segment - 1]] = found
        return found


def glimpses(start: int, tokens: int, window: int) -> tuple[list[int], int]:
    """Where stretches of the text from `start` to `tokens` begin, and their length: one in the middle of each segment,
    or `GLIMPSES`, if that is more and the text has room for them; none where they would be all lead.

    >>> glimpses(200, 1000, 200)
    ([284, 484, 684, 884], 32)
    >>> glimpses(200, 220, 20)
    ([200], 20)
    """
    unread = tokens - start
    length = min(STRETCH, unread)
    if length <= LEAD:
        return [], 0
    n = min(max(GLIMPSES, round(unread / window)), unread // length)
    every = unread / n
    return [start + int(every * (k + 0.5) - length / 2) for k in range(n)], length


def read(model: Any, ids: Any, pairs: Any, mask: Any, keep: bool) -> tuple[Any, list[list[Any]]]:
    """Last hidden states (1, positions, width) of `ids` (1, positions) after `pairs`.

    With `keep`, keys and values of both, layer by layer. Without a mask, or with one that hides nothing, attention
    takes its causal short cuts.
    """
    given = None if mask is None or bool(mask.all()) else mask
    cache = DynamicCache([tuple(pair) for pair in pairs]) if pairs else DynamicCache() if keep else None
    options = {} if cache is None else {cache_name(model): cache}
    output = model.base_model(ids, attention_mask=given, use_cache=cache is not None, **options)
    made = [[layer.keys, layer.values] for layer in cache.layers] if cache is not None and keep else []
    return output.last_hidden_state, made


def losses_of(model: Any, states: Any, labels: Any) -> Any:
    """Cross-entropy of each label, float32 (positions,), from hidden states (positions, width)."""
    found = torch.empty(len(states), dtype=torch.float32, device=states.device)
    head = model.get_output_embeddings()
    cap = getattr(model.config, "final_logit_softcapping", None)
    rows = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    for start in range(0, len(states), rows):
        part = slice(start, start + rows)
        logits = head(states[part]).float()
        logits = torch.tanh(logits / cap) * cap if cap else logits
        found[part] = torch.nn.functional.cross_entropy(logits, labels[part], reduction="none")
    return found


def window_of(tokens: int) -> int:
    """Tokens of one segment for a text of so many: `WINDOW`, or less, so that there are two and none is left over."""
    return max(1, tokens // max(2, -(-tokens // WINDOW)))


def _length(pairs: Any) -> int:
    return int(pairs[0][0].shape[2]) if pairs else 0


class _Encoded:
    """The tokenizer, for which the text that the package joins is encoded already."""

    def __init__(self, tokenizer: Any, encoded: Any) -> None:
        self._tokenizer = tokenizer
        self._encoded = encoded

    def __call__(self, text: str, **options: Any) -> Any:
        return self._encoded if options.get("return_tensors") == "pt" else self._tokenizer(encodable(text), **options)


class _Counter:
    """Stands for the package's tiktoken encoding of `gpt-3.5-turbo`, of whose answers it only takes the length."""

    def encode(self, text: str) -> range:
        return range(count(text, "cl100k_base"))
