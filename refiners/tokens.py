"""Counting tokens with vocabularies that are on disk (`bpe-openai` carries them inside its wheel)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ..errors import BadInput

DEFAULT_TOKENIZER = "o200k_base"
TOKENIZERS = ("o200k_base", "cl100k_base")


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
    return len(_vocabulary(tokenizer).encode_ordinary(text))
