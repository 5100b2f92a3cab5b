"""Counting tokens with vocabularies that are on disk (`bpe-openai` carries them inside its wheel)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import regex

from ..errors import BadInput

DEFAULT_TOKENIZER = "o200k_base"
TOKENIZERS = ("o200k_base", "cl100k_base")
_PIECE = 100_000
"""Characters that are encoded at once: the library refuses a million, and 200,000 tokens."""
_SEAM = regex.compile(r"[\p{L}\p{N}](?= \p{L})")
"""Where no token of these vocabularies reaches across: before the space between two words."""


@lru_cache(maxsize=len(TOKENIZERS))
def _vocabulary(name: str) -> Any:
    if name not in TOKENIZERS:
        raise BadInput(f"Unknown tokenizer `{name}`.", f"Use one of: {', '.join(TOKENIZERS)}.")
    from bpe_openai import get_encoding

    return get_encoding(name)


def count(text: str, tokenizer: str = DEFAULT_TOKENIZER) -> int:
    """How many tokens `text` has; special-token spellings count as ordinary text.

    >>> count("search, rerank, compress")
    6
    """
    encode = _vocabulary(tokenizer).encode_ordinary
    return sum(len(encode(piece)) for piece in _pieces(text))


def _pieces(text: str) -> Iterator[str]:
    """`text` in pieces that count as they do together, or one token more where a piece has no seam."""
    start = 0
    while len(text) - start > _PIECE:
        seam = _SEAM.search(text, start + _PIECE // 2, start + _PIECE)
        end = seam.end() if seam else start + _PIECE
        yield text[start:end]
        start = end
    yield text[start:]
