"""A small model of words and picture patches for `tiger`: its image tokenizer, the model itself, and how both learn.

A picture is cut into square patches, each told by the nearest of a few patches (k-means). Words and these codes share
one vocabulary of a causal transformer, which learns both directions: text then picture, picture then text; part of the
time a picture follows no text, which is the prior that TIGeR takes away.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import BadInput, UnreadableFile
from ...retrievers.loading import quiet

if TYPE_CHECKING:
    from ...retrievers.base import Item
    from ._codes import Codes

CODEBOOK, VOCABULARY = "codebook.safetensors", "vocabulary.json"
FILES = ("config.json", "model.safetensors", CODEBOOK, VOCABULARY)
END, UNKNOWN, DRAW, TELL = range(4)
"""Tokens in front of the words: the end, a word that training did not have, `a picture follows`, `a text follows`."""
LONGEST = 48
"""Words of a text; further ones are cut."""
NO_TEXT = 0.2
"""Share of pictures that are learnt without a text."""
IGNORED = -100


class PatchCodebook:
    """Square pictures as rows of patches, each by the number of the nearest known one.

    Args:
        patches: float32 (codes, patch, patch, 3), 0 to 1.
        side: of a picture, in patches.
    """

    def __init__(self, patches: np.ndarray, side: int) -> None:
        self.patches = patches
        self.side = side

    @classmethod
    def fit(cls, pictures: np.ndarray, codes: int, patch: int = 4, seed: int = 0) -> PatchCodebook:
        """k-means over the different patches of `pictures`, uint8 (n, size, size, 3).

        Each counts by the root of how often it occurs: plain ground takes not all codes, and rare edges do neither.

        Raises:
            BadInput: the size is no multiple of `patch`, or there are fewer different patches than codes.
        """
        from scipy.cluster.vq import kmeans2

        size = pictures.shape[1]
        if size % patch:
            raise BadInput(f"Pictures of {size} pixels do not divide into patches of `{patch}`.", "Choose a divisor.")
        cut = _cut(pictures, patch).reshape(-1, patch * patch * 3)
        different, often = np.unique(cut, axis=0, return_counts=True)
        if len(different) < codes:
            raise BadInput(f"`{codes}` codes for {len(different)} different patches.", "Ask for fewer codes.")
        counted = np.repeat(different / np.float32(255), np.ceil(np.sqrt(often)).astype(int), axis=0)
        found, _ = kmeans2(counted, codes, minit="++", rng=np.random.default_rng(seed))
        return cls(found.astype(np.float32).reshape(codes, patch, patch, 3), size // patch)

    @classmethod
    def from_folder(cls, folder: Path) -> PatchCodebook:
        from safetensors.numpy import load_file

        return cls(
            load_file(folder / CODEBOOK)["patches"], json.loads((folder / VOCABULARY).read_text("utf-8"))["side"]
        )

    def encode(self, items: Sequence[Item]) -> list[Codes | None]:
        """Codes of each item's picture file (`media.uri`, a path), resized to a square; None without a picture.

        Raises:
            UnreadableFile: a file that is no picture, or not there.
        """
        seen = [item for item in items if item.media is not None and item.media.mime.startswith("image/")]
        told = dict(zip(map(id, seen), self.codes([self._pixels(item) for item in seen]), strict=True))
        return [told.get(id(item)) for item in items]

    def codes(self, pictures: Sequence[np.ndarray]) -> list[Codes]:
        """Codes of pictures, uint8 (size, size, 3), row by row."""
        if not len(pictures):
            return []
        patch = self.patches.shape[1]
        known = self.patches.reshape(len(self.patches), -1)
        cut = _cut(np.stack(list(pictures)), patch).reshape(-1, known.shape[1]) / np.float32(255)
        distances = (known**2).sum(1) - 2 * cut @ known.T
        return [tuple(map(int, row)) for row in distances.argmin(1).reshape(len(pictures), -1)]

    def pixels(self, codes: Codes) -> np.ndarray:
        """The picture of `codes`, uint8 (size, size, 3)."""
        patch = self.patches.shape[1]
        rows = self.patches[list(codes)].reshape(self.side, self.side, patch, patch, 3).swapaxes(1, 2)
        made: np.ndarray = rows.reshape(self.side * patch, self.side * patch, 3).clip(0, 1) * 255
        return made.round().astype(np.uint8)

    def decode(self, codes: Codes) -> Any:
        """The picture of `codes` (PIL)."""
        from PIL import Image

        return Image.fromarray(self.pixels(codes))

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        save_file({"patches": np.ascontiguousarray(self.patches)}, folder / CODEBOOK)

    def _pixels(self, item: Item) -> np.ndarray:
        from PIL import Image

        size = self.side * self.patches.shape[1]
        try:
            with Image.open(item.media.uri if item.media else "") as picture:
                return np.asarray(picture.convert("RGB").resize((size, size)))
        except OSError as error:
            reason = f"The picture of `{item.id}` cannot be read: {type(error).__name__}."
            raise UnreadableFile(reason, "Give the path of a picture file.") from None


class HashedText:
    """For tests: the picture of an item is four codes that depend on its text."""

    def encode(self, items: Sequence[Item]) -> list[Codes | None]:
        digests = [hashlib.sha256(item.text.encode("utf-8", "surrogatepass")).digest() for item in items]
        return [tuple(byte % 8 for byte in digest[:4]) for digest in digests]

    def decode(self, codes: Codes) -> Codes:
        return codes


class PatchLM:
    """A `SequenceModel` on a causal language model whose vocabulary is END … TELL, words, codes. Safe from threads.

    Args:
        model: of the transformers library, in evaluation mode.
        words: known words, case-folded.
        codes, length: how many codes there are, and how many a picture has.
    """

    def __init__(self, model: Any, words: Sequence[str], codes: int, length: int) -> None:
        self.codes = codes
        self.length = length
        self.words = tuple(words)
        self._model = model
        self._numbers = {word: TELL + 1 + at for at, word in enumerate(words)}
        self._first_code = TELL + 1 + len(words)

    @classmethod
    def from_folder(cls, folder: Path, device: str = "cpu") -> PatchLM:
        from transformers import AutoModelForCausalLM

        known = json.loads((folder / VOCABULARY).read_text("utf-8"))
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
        return cls(model.eval().to(device), known["words"], known["codes"], known["side"] ** 2)

    @classmethod
    def tiny(cls, seed: int = 0) -> PatchLM:
        """Random, four codes of eight."""
        return cls(_network(TELL + 1 + 8, 32, 1, seed).eval(), (), codes=8, length=4)

    def next_code(self, text: str | None, prefixes: Sequence[Codes]) -> np.ndarray:
        """See `SequenceModel`."""
        scores = self._scores([self.drawn(text, prefix, ended=False) for prefix in prefixes])
        found: np.ndarray = scores[:, -1, self._first_code :].numpy()
        return found

    def picture(self, text: str | None, pictures: Sequence[Codes]) -> np.ndarray:
        return self._likely([self.drawn(text, codes, ended=False) for codes in pictures], self.length)

    def text(self, pictures: Sequence[Codes], text: str) -> np.ndarray:
        """The end of the text counts, so that no text is likelier because another begins with it."""
        return self._likely([self.told(codes, text) for codes in pictures], len(self._read(text)) + 1)

    def drawn(self, text: str | None, codes: Codes, ended: bool = True) -> list[int]:
        """Token ids of a text and its picture."""
        return [TELL, *self._read(text or ""), DRAW, *(self._first_code + code for code in codes), *([END] * ended)]

    def told(self, codes: Codes, text: str) -> list[int]:
        """Token ids of a picture and its text."""
        return [DRAW, *(self._first_code + code for code in codes), TELL, *self._read(text), END]

    def _read(self, text: str) -> list[int]:
        return [self._numbers.get(word, UNKNOWN) for word in _words(text)[:LONGEST]]

    def _likely(self, rows: Sequence[Sequence[int]], last: int) -> np.ndarray:
        """Float (rows,): the log-probability of the last tokens of each."""
        import torch

        if not rows:
            return np.empty(0, np.float32)
        wanted = torch.tensor([row[len(row) - last :] for row in rows])
        scores = self._scores(rows)[:, -last - 1 : -1]
        found: np.ndarray = scores.gather(2, wanted[..., None])[..., 0].sum(1).numpy()
        return found

    def _scores(self, rows: Sequence[Sequence[int]]) -> Any:
        """Log-probabilities (rows, tokens, vocabulary) of what follows each token; rows are equally long."""
        import torch

        with torch.inference_mode():
            ids = torch.tensor(rows, device=self._model.device)
            return self._model(input_ids=ids, use_cache=False).logits.float().log_softmax(2).cpu()


@dataclass(frozen=True)
class Training:
    """How the small model learns: its size, and `steps` of `batch` sequences, half of them in each direction."""

    codes: int = 128
    width: int = 64
    layers: int = 2
    steps: int = 400
    batch: int = 64
    rate: float = 4e-3
    seed: int = 0


def fit(pictures: np.ndarray, captions: Sequence[Sequence[str]], out: Path, how: Training | None = None) -> PatchLM:
    """Train a codebook and a model into `out`, for `TIGeR.load`. Interrupted, it goes on from its last checkpoint.

    Args:
        pictures: uint8 (n, size, size, 3).
        captions: texts that fit each picture, at least one.

    Raises:
        BadInput: not as many lists of captions as pictures, or none for one.
    """
    from transformers import PrinterCallback, Trainer, TrainingArguments

    from ...retrievers.fitting import last_checkpoint

    how = how or Training()
    if len(pictures) != len(captions) or not all(captions):
        raise BadInput(f"`{len(captions)}` lists of captions for {len(pictures)} pictures.", "Give one for each.")
    codebook = PatchCodebook.fit(pictures, how.codes, seed=how.seed)
    words = sorted({word for texts in captions for text in texts for word in _words(text)})
    network = _network(TELL + 1 + len(words) + how.codes, how.width, how.layers, how.seed)
    model = PatchLM(network, words, how.codes, codebook.side**2)
    trainer = Trainer(
        model=network,
        args=TrainingArguments(
            output_dir=str(out),
            max_steps=how.steps,
            per_device_train_batch_size=how.batch,
            learning_rate=how.rate,
            lr_scheduler_type="cosine",
            warmup_steps=how.steps // 20,
            save_steps=max(1, how.steps // 5),
            save_total_limit=1,
            logging_steps=max(1, how.steps // 5),
            seed=how.seed,
            data_seed=how.seed,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        ),
        data_collator=_padded,
        train_dataset=_Sequences(model, codebook.codes(list(pictures)), captions, how),
    )
    trainer.remove_callback(PrinterCallback)
    with quiet():
        trainer.train(resume_from_checkpoint=last_checkpoint(out))
        network.eval().save_pretrained(out)
    codebook.save(out)
    known = {"words": words, "codes": how.codes, "side": codebook.side}
    (out / VOCABULARY).write_text(json.dumps(known, ensure_ascii=False), "utf-8")
    return model


class _Sequences:
    """What is read in training: number by number the same, whenever it is asked."""

    def __init__(
        self, model: PatchLM, pictures: Sequence[Codes], captions: Sequence[Sequence[str]], how: Training
    ) -> None:
        self._model, self._pictures, self._captions, self._how = model, pictures, captions, how

    def __len__(self) -> int:
        return self._how.steps * self._how.batch

    def __getitem__(self, number: int) -> list[int]:
        rng = np.random.default_rng([self._how.seed, number])
        at = int(rng.integers(len(self._pictures)))
        text = self._captions[at][int(rng.integers(len(self._captions[at])))]
        if rng.random() < 0.5:
            return self._model.told(self._pictures[at], text)
        return self._model.drawn(None if rng.random() < NO_TEXT else text, self._pictures[at])


def _padded(rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Token ids and labels (rows, longest); padding stands right and is not learnt."""
    import torch

    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[END] * (longest - len(row))] for row in rows])
    labels = torch.tensor([[*row, *[IGNORED] * (longest - len(row))] for row in rows])
    return {"input_ids": ids, "labels": labels}


def _network(vocabulary: int, width: int, layers: int, seed: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.1,  # the usual 0.02 is for wide models: such a narrow one does not begin to learn
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def _cut(pictures: np.ndarray, patch: int) -> np.ndarray:
    """(n, size, size, 3) as (n, patches, patch, patch, 3), row by row."""
    n, size = pictures.shape[:2]
    side = size // patch
    return pictures.reshape(n, side, patch, side, patch, 3).swapaxes(2, 3).reshape(n, side * side, patch, patch, 3)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
