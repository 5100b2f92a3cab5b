"""Causal language models of the transformers library, in this process: batched by length, shared beginnings once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadInput, MissingWeights, Unsupported
from ..progress import step
from .attention import use_causal_blocks
from .lm import LM, Ability, LogProbs, Prompt, cut, joined, turns
from .loading import alike, batches, dtype, encodable, quiet

if TYPE_CHECKING:
    from ..settings import Settings

BATCH_TOKENS = 2048
"""Padded tokens in one forward pass."""
BORDER_CHARACTERS = 200
"""So much of a prompt's end decides which token a text behind it begins with."""
HEAD_ROWS = 256
"""Positions whose scores over the whole vocabulary are in memory at once."""


class TransformersLM(LM):
    """A causal language model of the transformers library, in this process. Safe from many threads.

    Args:
        model: in evaluation mode; its dtype and device are used as they are.
        tokenizer: a fast tokenizer. A private copy encodes, so that padding or truncation set elsewhere change nothing.
    """

    can: frozenset[Ability] = frozenset({"generate", "logprobs", "logits"})

    def __init__(self, model: Any, tokenizer: Any) -> None:
        from tokenizers import Tokenizer

        for name in ("logits_scaling", "logit_scale"):
            if getattr(model.config, name, None) not in (None, 1, 1.0):
                raise Unsupported(f"The model scales its logits by `{name}`.", "Use a model without it.")
        self.model = model
        self.tokenizer = tokenizer
        self._encoder = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._encoder.no_truncation()
        self._encoder.no_padding()
        self._softcap: float | None = getattr(model.config, "final_logit_softcapping", None)
        self._longest: int = getattr(model.config, "max_position_embeddings", 0) or 2**31
        self._caches = _keeps_keys_and_values(model)
        self._slides = _slides(model)

    @classmethod
    def load(cls, settings: Settings, device: str = "cpu") -> TransformersLM:
        """The profile's small language model: `settings.lm`, from the pulled weights or from the path that it is.

        Raises:
            MissingWeights: they are not on this machine.
            BadInput: a path without weights.
        """
        from ..manifests.weights import folder

        if (path := settings.lm_path) is None:
            return cls.from_folder(folder(settings.lm, settings.weights), settings.precision, device)
        weight_files(path)
        return cls.from_folder(path, settings.precision, device)

    @classmethod
    def from_folder(cls, folder: Path, precision: str = "auto", device: str = "cpu") -> TransformersLM:
        """From a local folder: safetensors with a tokenizer, or one gguf file (unpacked to `precision`); or that file.

        Raises:
            MissingWeights: the folder holds neither.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        form, where = _format(folder), folder if folder.is_dir() else folder.parent
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(
                where, dtype=dtype(precision, device), attn_implementation="sdpa", **local, **form
            )
            gguf = {key: value for key, value in form.items() if key == "gguf_file"}
            tokenizer = AutoTokenizer.from_pretrained(where, **local, **gguf)
        model = model.eval().to(device)
        use_causal_blocks(model)
        return cls(model, tokenizer)

    @classmethod
    def tiny(cls, seed: int = 0) -> TransformersLM:
        """Two random layers over single bytes: for tests, in well under a second."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        tokenizer = _byte_tokenizer()
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=8192,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = LlamaForCausalLM(config)
        return cls(model.eval(), tokenizer)

    def logprobs(self, prompts: Sequence[Prompt], targets: Sequence[str]) -> list[LogProbs]:
        """log P(target | prompt) per token.

        Prompt and target are tokenised together, as the model would read them; a token that spans the border counts
        to the target. Only the target's positions go through the vocabulary.

        Raises:
            BadInput: as many targets as prompts are not given, or a pair is longer than the model's context.
        """
        if len(prompts) != len(targets):
            raise BadInput(f"`{len(targets)}` targets for `{len(prompts)}` prompts.", "Give one for each.")
        pairs = [self._pair(joined(prompt), target) for prompt, target in zip(prompts, targets, strict=True)]
        found: list[LogProbs] = [LogProbs(())] * len(pairs)
        for rows, states, start in self._passes([ids for ids, _ in pairs], [first - 1 for _, first in pairs]):
            spans = [(pairs[row][1] - 1 - start, len(pairs[row][0]) - 1 - start) for row in rows]
            kept = [states[n, first:last] for n, (first, last) in enumerate(spans)]
            values = self._scored(kept, [pairs[row][0][pairs[row][1] :] for row in rows])
            for row, value in zip(rows, values, strict=True):
                found[row] = LogProbs(tuple(value))
        return found

    def next_token_logits(self, prompts: Sequence[Prompt], candidates: Sequence[str]) -> np.ndarray:
        """Float32 (len(prompts), len(candidates)); a candidate's first token is the one that follows the prompt.

        Raises:
            BadInput: two candidates begin with the same token, so that they cannot be told apart, or one is empty.
        """
        import torch

        told = [self._told(prompt) for prompt in prompts]
        ends = [text[-BORDER_CHARACTERS:] for text, _ in told]
        first = {end: self._first_tokens(end, candidates) for end in dict.fromkeys(ends)}
        asked = [self._fitting(self._started(self._ids(*one))) for one in told]
        logits = np.empty((len(prompts), len(candidates)), np.float32)
        for rows, scores in self._next(asked):
            columns = torch.tensor([first[ends[row]] for row in rows], device=scores.device)
            logits[rows] = scores.gather(1, columns).cpu().numpy()
        return logits

    def _first_tokens(self, end: str, candidates: Sequence[str]) -> list[int]:
        """Of each candidate, the token that comes next after a text with this `end`.

        Tokenizers such as SentencePiece know a word at the beginning of a text as another token than inside of one, so
        each is read behind the prompt. Where a token spans that border, the model, which was given the prompt's own,
        can go on only with the candidate as it stands inside of a text: that is read behind a line end.
        """
        found = [self._behind(end, one) or self._behind("\n", one) or self._ids(one, False)[:1] for one in candidates]
        if not all(found) or len({ids[0] for ids in found}) < len(found):
            raise BadInput(
                f"The candidates `{list(candidates)}` share a first token.", "Use ones that begin differently."
            )
        return [ids[0] for ids in found]

    def _behind(self, text: str, candidate: str) -> list[int]:
        """The token that `candidate` adds first to those of `text`; none where its letters change these."""
        before, both = self._ids(text, special=False), self._ids(text + candidate, special=False)
        return both[len(before) : len(before) + 1] if both[: len(before)] == before else []

    def top_next(self, prompts: Sequence[Prompt], k: int) -> list[list[str]]:
        """Of each prompt as a plain text; tokens that are special, or part of a character, are passed over."""
        asked = [self._fitting(self._started(self._ids(joined(prompt)))) for prompt in prompts]
        found: list[list[str]] = [[]] * len(asked)
        for rows, scores in self._next(asked):
            for row, ranked in zip(rows, scores.argsort(descending=True, stable=True).tolist(), strict=True):
                texts = (self._after(asked[row][-1], token) for token in ranked)
                found[row] = list(islice((text for text in texts if text and "\ufffd" not in text), k))
        return found

    def _after(self, token: int, following: int) -> str:
        """What `following` adds to the text of `token`: some decoders drop the space in front of the first one."""
        before, both = self._encoder.decode([token]), self._encoder.decode([token, following])
        return both[len(before) :] if both.startswith(before) else ""

    def generate(self, prompts: Sequence[Prompt], max_tokens: int, stop: Sequence[str] = ()) -> list[str]:
        """Greedy answers, without special tokens."""
        import torch

        if max_tokens < 1:
            raise BadInput(f"max_tokens is `{max_tokens}`.", "Ask for at least 1.")
        asked = [self._fitting(self._asked(prompt)) for prompt in prompts]
        answers = [""] * len(prompts)
        # Padding stands behind what is shared, where a sliding window would count it.
        needed = [0 if self._slides else len(ids) - 1 for ids in asked]
        for rows, shared, before in self._batches(asked, needed, max_tokens):
            ids, mask = self._padded([asked[row] for row in rows], shared)
            with torch.inference_mode():
                made = self.model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    generation_config=self._greedy(max_tokens),
                    stopping_criteria=[self._stopping(ids.shape[1], stop)],
                    **({cache_name(self.model): _repeated(before, len(rows))} if before else {}),
                )
            for row, tokens in zip(rows, made[:, ids.shape[1] :].tolist(), strict=True):
                answers[row] = cut(self.tokenizer.decode(self._until_end(tokens), skip_special_tokens=True), stop)
        return answers

    def _ids(self, text: str, special: bool = True) -> list[int]:
        return list(self._encoder.encode(encodable(text), add_special_tokens=special).ids)

    def _asked(self, prompt: Prompt) -> list[int]:
        return self._started(self._ids(*self._told(prompt)))

    def _told(self, prompt: Prompt) -> tuple[str, bool]:
        """The text of a prompt as the model is asked, and whether special tokens have still to be added to it."""
        text = joined(prompt)
        if not self.tokenizer.chat_template:
            return text, True
        said = turns(prompt)
        begun = said[-1].role == "assistant"
        framed = self.tokenizer.apply_chat_template(
            [{"role": turn.role, "content": turn.text} for turn in said],
            tokenize=False,
            add_generation_prompt=not begun,
            continue_final_message=begun,
        )
        return framed, False

    def _started(self, ids: list[int]) -> list[int]:
        """`ids`, with the token that begins a text in front where there is nothing else to predict from."""
        if ids:
            return ids
        if self.tokenizer.bos_token_id is None:
            raise BadInput("The prompt is `` and the model has no token that begins a text.", "Give a prompt.")
        return [self.tokenizer.bos_token_id]

    def _pair(self, prompt: str, target: str) -> tuple[list[int], int]:
        """Ids of `prompt + target`, and the index of the target's first token (at least 1)."""
        encoding = self._encoder.encode(encodable(prompt + target))
        specials = encoding.special_tokens_mask
        end = len(specials)
        while end and specials[end - 1]:
            end -= 1
        spans = encoding.offsets[:end]
        first = next((n for n, (_, stop) in enumerate(spans) if stop > len(prompt) and not specials[n]), end)
        ids = list(encoding.ids[:end])
        if first > 0:
            return self._fitting(ids), first
        return self._fitting(self._started([]) + ids), 1

    def _fitting(self, ids: list[int]) -> list[int]:
        if len(ids) > self._longest:
            raise BadInput(f"A prompt has `{len(ids)}` tokens.", f"The model reads at most {self._longest:,}.")
        return ids

    def _next(self, asked: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Any]]:
        """In batches: numbers of prompts, and float32 logits (prompts, vocabulary) of what follows each."""
        for rows, states, start in self._passes(asked, [len(ids) - 1 for ids in asked]):
            last = states[range(len(rows)), [len(asked[row]) - 1 - start for row in rows]]
            for first in range(0, len(rows), HEAD_ROWS):
                yield rows[first : first + HEAD_ROWS], self._vocabulary(last[first : first + HEAD_ROWS])

    def _passes(
        self, sequences: Sequence[Sequence[int]], needed: Sequence[int]
    ) -> Iterator[tuple[list[int], Any, int]]:
        """Last hidden states in batches of like length: numbers of sequences, states (batch, longest, width), and the
        position that the states begin at, at most what is `needed` of each: a shared beginning is read only once."""
        for rows, shared, before in self._batches(sequences, needed):
            yield rows, self._states([sequences[row][shared:] for row in rows], before), shared

    def _batches(
        self, sequences: Sequence[Sequence[int]], needed: Sequence[int], more: int = 0
    ) -> Iterator[tuple[list[int], int, Sequence[tuple[Any, Any]]]]:
        """Batches of like length: numbers of sequences, how many ids all begin with, and the keys and values of these.

        What is shared is at most what is `needed` of each; `more` ids will be added to each.
        """
        done = 0
        for rows, shared in alike(sequences, needed) if self._caches else [(list(range(len(sequences))), 0)]:
            before = self._beginning(sequences[rows[0]][:shared]) if shared else []
            # What stands before is copied for each row: it takes memory, if little time.
            costs = [len(sequences[row]) - shared + shared // 4 + more for row in rows]
            for batch in batches(costs, BATCH_TOKENS):
                step(done, len(sequences), "prompts")
                yield [rows[n] for n in batch], shared, before
                done += len(batch)

    def _beginning(self, ids: Sequence[int]) -> list[tuple[Any, Any]]:
        """Keys and values (1, heads, positions, width) of each layer."""
        import torch
        from transformers import DynamicCache

        cache = DynamicCache()
        with torch.inference_mode():
            rows = torch.tensor([list(ids)], device=self.model.device)
            self.model.base_model(input_ids=rows, use_cache=True, **{cache_name(self.model): cache})
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _states(self, sequences: Sequence[Sequence[int]], before: Sequence[tuple[Any, Any]] = ()) -> Any:
        """Last hidden states (batch, longest, width) of what follows on the keys and values `before`.

        Padding stands right: under a causal mask nothing sees it.
        """
        import torch

        longest, n = max(map(len, sequences)), len(sequences)
        ids = torch.zeros((n, longest), dtype=torch.long)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
        given: dict[str, Any] = {"use_cache": False}
        if before:
            given = {"use_cache": True, cache_name(self.model): _repeated(before, n)}
        with torch.inference_mode():
            return self.model.base_model(input_ids=ids.to(self.model.device), **given).last_hidden_state

    def _vocabulary(self, states: Any) -> Any:
        """Float32 logits (rows, vocabulary) of states (rows, width)."""
        import torch

        with torch.inference_mode():
            logits = self.model.get_output_embeddings()(states).float()
            return torch.tanh(logits / self._softcap) * self._softcap if self._softcap else logits

    def _scored(self, states: Sequence[Any], targets: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of `targets[i][j]` at `states[i][j]`."""
        import torch

        rows, wanted = torch.cat(list(states)), torch.tensor([token for target in targets for token in target])
        scores = []
        for start in range(0, len(rows), HEAD_ROWS):
            logits = self._vocabulary(rows[start : start + HEAD_ROWS])
            column = wanted[start : start + HEAD_ROWS].to(logits.device)
            scores.append(logits.gather(1, column[:, None])[:, 0] - logits.logsumexp(1))
        flat = iter(torch.cat(scores).tolist() if scores else [])
        return [[next(flat) for _ in target] for target in targets]

    def _padded(self, sequences: Sequence[Sequence[int]], shared: int) -> tuple[Any, Any]:
        """Ids and mask, padded behind the `shared` ids in front: answers begin where all sequences end."""
        import torch

        longest = max(map(len, sequences))
        ids = torch.full((len(sequences), longest), self._pad_id(), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            own = longest - len(sequence) + shared
            ids[row, :shared], ids[row, own:] = torch.tensor(sequence[:shared]), torch.tensor(sequence[shared:])
            mask[row, :shared] = mask[row, own:] = 1
        return ids.to(self.model.device), mask.to(self.model.device)

    def _pad_id(self) -> int:
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return int(next(token for token in known if token is not None))

    def _ends(self) -> set[int]:
        configured = self.model.generation_config.eos_token_id
        ends = configured if isinstance(configured, list) else [configured]
        return {token for token in (*ends, self.tokenizer.eos_token_id) if token is not None}

    def _until_end(self, tokens: list[int]) -> list[int]:
        ends = self._ends()
        return tokens[: next((n for n, token in enumerate(tokens) if token in ends), len(tokens))]

    def _greedy(self, max_tokens: int) -> Any:
        from transformers import GenerationConfig

        return GenerationConfig(
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=sorted(self._ends()) or None,
            pad_token_id=self._pad_id(),
        )

    def _stopping(self, prompt_length: int, stop: Sequence[str]) -> Callable[..., Any]:
        """Which rows already hold one of `stop` in what they generated."""
        import torch

        def holds(ids: Any, scores: Any, **_: Any) -> Any:
            texts = [self.tokenizer.decode(row) for row in ids[:, prompt_length:].tolist()] if stop else [""] * len(ids)
            return torch.tensor([any(mark in text for mark in stop) for text in texts], device=ids.device)

        return holds


def _repeated(before: Sequence[tuple[Any, Any]], n: int) -> Any:
    """A cache of `n` rows that each hold the keys and values `before`."""
    from transformers import DynamicCache

    return DynamicCache([tuple(one.expand(n, -1, -1, -1) for one in pair) for pair in before])


def cache_name(model: Any) -> str:
    """What `model` calls the argument that takes keys and values: transformers 5.24 renamed it."""
    known = inspect.signature(model.base_model.forward).parameters
    return "cache" if "cache" in known else "past_key_values"


def _keeps_keys_and_values(model: Any) -> bool:
    """Whether all that a model remembers of what it has read are keys and values by position."""
    layers = getattr(model.config, "layer_types", None) or ["full_attention"]
    return not getattr(model, "_is_stateful", False) and set(layers) <= {"full_attention", "sliding_attention"}


def _slides(model: Any) -> bool:
    """Whether a layer looks back over a window only."""
    layers = getattr(model.config, "layer_types", None)
    return "sliding_attention" in layers if layers else bool(getattr(model.config, "sliding_window", None))


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights at a path of the user's: a gguf file, or a folder as `from_folder` reads it.

    Raises:
        BadInput: neither.
    """
    found = _weights(path)
    if found:
        return found
    raise BadInput(
        f"The language model `{path.name}` is neither a gguf file nor a folder with safetensors or gguf.",
        "Set `lm` (`TRIPTYCH_LM`) to such a path, or to weights that `triptych pull` brings.",
    )


def _weights(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == ".gguf" else []
    return sorted(path.glob("*.safetensors")) or sorted(path.glob("*.gguf"))[:1]


def _format(folder: Path) -> dict[str, Any]:
    from transformers import GgufConfig

    found = _weights(folder)
    if not found:
        raise MissingWeights(f"`{folder.name}` holds no safetensors or gguf file.", "Run `triptych pull embedded`.")
    if found[0].suffix == ".safetensors":
        return {"use_safetensors": True}
    return {"gguf_file": found[0].name, "quantization_config": GgufConfig(dequantize=True)}


def _byte_tokenizer() -> Any:
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.decoders import ByteLevel as Decoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import PreTrainedTokenizerFast

    specials = ["<|begin|>", "<|end|>"]
    names = [*specials, *sorted(ByteLevel.alphabet())]
    tokenizer = Tokenizer(BPE({name: index for index, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = Decoder()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=specials[0], eos_token=specials[1], pad_token=specials[1]
    )
