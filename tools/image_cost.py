"""What a picture costs a vision model, in tokens, by the formulas that the vendors publish.

A formula tells how many tokens of a model's context a picture of a certain size takes. Where a vendor's own words leave
room, the dearer reading is taken: what is asked to fit a budget must fit. Sizes are in pixels, costs in tokens.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from fractions import Fraction

from ..errors import BadInput

Formula = Callable[[int, int], int]
"""Width and height of a picture, at least 1 each, to tokens."""

SMALLEST_EDGE = 64
"""A longer side below this shows nothing that can be recognised."""


def anthropic(width: int, height: int) -> int:
    """Claude: one token for every patch of 28 × 28 pixels, after fitting into 2,576 pixels a side and 4,784 patches.

    These are the limits of the high-resolution models (4.7 and later). The others see at most 1,568 patches, so that
    they take this or less. Source: platform.claude.com, "Vision" and "Coordinates and bounding boxes", 2026.

    >>> anthropic(1000, 1000), anthropic(1920, 1080), anthropic(3840, 2160)
    (1296, 2691, 4784)
    """
    long = max(width, height)

    def patches(edge: int) -> int:
        across, down = (_cells(side, 28) for side in scaled(width, height, edge))
        return across * down if max(across, down) * 28 <= 2576 else 4785

    return patches(max(1, bisect_left(range(1, long + 1), True, key=lambda edge: patches(edge) > 4784)))


def anthropic_area(width: int, height: int) -> int:
    """Claude as documented up to 2025: width × height / 750, after fitting into 1,568 pixels a side and 1,600 tokens.

    Source: docs.anthropic.com, "Vision".

    >>> anthropic_area(200, 200), anthropic_area(1000, 1000), anthropic_area(1092, 1092)
    (54, 1334, 1590)
    """
    shrink = min(Fraction(1), Fraction(1568, max(width, height)))
    return min(1600, math.ceil(width * height * shrink * shrink / 750))


def openai_tiles(width: int, height: int) -> int:
    """GPT-4o, GPT-4.1, GPT-4.5, at high detail: 85 tokens and 170 for every tile of 512 × 512 pixels, after fitting
    into 2,048 pixels a side and 768 on the shorter one. Small pictures are not enlarged.

    GPT-5 (70 and 140) and o1, o3 (75 and 150) take less; GPT-4o-mini is billed 33 times as much.
    Source: platform.openai.com, "Images and vision", 2025.

    >>> openai_tiles(1024, 1024), openai_tiles(2048, 4096), openai_tiles(100, 100)
    (765, 1105, 255)
    """
    shrink = min(Fraction(1), Fraction(2048, max(width, height)), Fraction(768, min(width, height)))
    return 85 + 170 * math.ceil(width * shrink / 512) * math.ceil(height * shrink / 512)


def openai_patches(width: int, height: int) -> int:
    """GPT-5.4 and later: 1.2 tokens for every patch of 32 × 32 pixels, of 10,000 at most.

    Source: developers.openai.com, "Images and vision", 2026, detail `auto` and `original`.

    >>> openai_patches(1024, 1024), openai_patches(512, 512), openai_patches(8000, 8000)
    (1229, 308, 12000)
    """
    return _patched(width, height, 10_000, 120)


def openai_mini(width: int, height: int) -> int:
    """GPT-4.1-mini and GPT-5-mini: 1.62 tokens for every patch of 32 × 32 pixels, after fitting into 1,536 patches.

    Source: platform.openai.com, "Images and vision", 2025.

    >>> openai_mini(1024, 1024), openai_mini(1800, 2400), openai_mini(320, 320)
    (1659, 2353, 162)
    """
    return _patched(width, height, 1536, 162)


def openai_nano(width: int, height: int) -> int:
    """GPT-4.1-nano and GPT-5-nano: as `openai_mini`, 2.46 tokens for every patch. o4-mini (1.72) takes less.

    >>> openai_nano(1024, 1024), openai_nano(1800, 2400), openai_nano(320, 320)
    (2520, 3572, 246)
    """
    return _patched(width, height, 1536, 246)


def gemini(width: int, height: int) -> int:
    """Gemini 2: 258 tokens up to 384 pixels a side, else 258 for every tile; a tile's side is the shorter side / 1.5.

    Today's page calls that rough and gives no limits; those of the page for Gemini 1.5 are kept: 256 to 768 pixels.
    Source: ai.google.dev, "Image understanding".

    >>> gemini(384, 384), gemini(960, 540), gemini(2048, 2048)
    (258, 1548, 2322)
    """
    if max(width, height) <= 384:
        return 258
    tile = min(768, max(256, min(width, height) * 2 // 3))
    return 258 * _cells(width, tile) * _cells(height, tile)


def gemini_3(width: int, height: int) -> int:
    """Gemini 3 at its default media resolution: 1,120 tokens, whatever the size.

    Source: ai.google.dev, "Media resolution".

    >>> gemini_3(64, 64), gemini_3(1024, 768), gemini_3(2048, 2048)
    (1120, 1120, 1120)
    """
    return 1120


FORMULAS: Mapping[str, Formula] = {
    formula.__name__: formula
    for formula in (
        anthropic,
        anthropic_area,
        openai_tiles,
        openai_patches,
        openai_mini,
        openai_nano,
        gemini,
        gemini_3,
    )
}


def formula_of(name: str) -> Formula:
    """The formula of that name, else `BadInput`."""
    if name not in FORMULAS:
        raise BadInput(f"Unknown formula for image tokens `{name}`.", f"Use one of: {', '.join(FORMULAS)}.")
    return FORMULAS[name]


def scaled(width: int, height: int, edge: int) -> tuple[int, int]:
    """The size of a picture whose longer side becomes `edge` pixels.

    >>> scaled(1600, 900, 800)
    (800, 450)
    """
    long = max(width, height)
    return max(1, round(width * edge / long)), max(1, round(height * edge / long))


def largest_edge(width: int, height: int, spent: Formula, budget: int) -> int:
    """The longest side below the present one at which the picture, scaled, spends at most `budget`.

    Tried one by one: a formula that counts tiles can ask more for a smaller picture.

    Args:
        spent: all that a picture of a size costs, the words beside it included.

    Raises:
        BadInput: none of at least `SMALLEST_EDGE` pixels does; the message names the smallest budget that would do.
    """
    edges = range(max(width, height) - 1, SMALLEST_EDGE - 1, -1)
    least = spent(width, height)
    for edge in edges:
        tokens = spent(*scaled(width, height, edge))
        if tokens <= budget:
            return edge
        least = min(least, tokens)
    raise BadInput(f"max_tokens is `{budget}`.", f"The smallest picture takes {least:,}.")


def _cells(side: int, cell: int) -> int:
    return -(-side // cell)


def _patched(width: int, height: int, most: int, hundredths: int) -> int:
    """OpenAI's patches: where more than `most` are needed, the picture shrinks until whole patches cover it."""
    across, down = width / 32, height / 32
    if _cells(width, 32) * _cells(height, 32) > most:
        shrink = math.sqrt(most / (across * down))
        across, down = across * shrink, down * shrink
        whole = min(math.floor(across) / across, math.floor(down) / down)
        across, down = round(across * whole, 6), round(down * whole, 6)
    patches = min(most, max(1, math.ceil(across)) * max(1, math.ceil(down)))
    return _cells(patches * hundredths, 100)
