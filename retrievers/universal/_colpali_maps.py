"""Where on a page a query's words are found: for each token of the query its similarity to every patch of the page."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from ...errors import BadInput
from ..base import Query
from ._inputs import pictured
from .colpali import EDGE

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..base import Item
    from .colpali import ColPali

SHOWN_EDGE = 1024
"""Pixels of the longer side of the picture of a map."""
HEAT = (255, 96, 0)
STRONGEST = 0.75
"""How much of the page the colour covers where the similarity is highest."""


@dataclass(frozen=True)
class SimilarityMap:
    """What a query finds on one page.

    Attributes:
        tokens: of the query, as the model reads them: its prefix, its words, the augmentation tokens.
        grids: float32 (tokens, rows, columns): cosines with the page's patches, -1 to 1, row 0 at the top.
        page: as it was read.
    """

    tokens: tuple[str, ...]
    grids: np.ndarray
    page: Image

    def png(self, token: int | None = None) -> bytes:
        """The page under the similarities of one token, or of their mean: the lowest clear, the highest coloured.

        Raises:
            BadInput: no such token.
        """
        from PIL import Image as images

        if token is not None and not 0 <= token < len(self.tokens):
            raise BadInput(f"There is no token `{token}`.", f"The query has {len(self.tokens)}, from 0 on.")
        grid = self.grids.mean(axis=0) if token is None else self.grids[token]
        span = float(grid.max() - grid.min())
        strength = (grid - grid.min()) / span if span > 0 else np.zeros_like(grid)
        page = self.page.copy()
        page.thumbnail((SHOWN_EDGE, SHOWN_EDGE))
        levels = images.fromarray((255 * STRONGEST * strength).astype(np.uint8))
        mask = levels.resize(page.size, images.Resampling.BICUBIC)
        page.paste(images.new("RGB", page.size, HEAT), mask=mask)
        made = BytesIO()
        page.save(made, "PNG")
        return made.getvalue()


def similarity_map(encoder: ColPali, page: Item, query: str) -> SimilarityMap:
    """The similarities of `query` and `page`, of all patches, whatever the encoder's options keep of them.

    Args:
        page: its `media.uri` is a path on this machine.

    Raises:
        Unsupported, UnreadableFile, BadInput: as `ColPali.encode`.
    """
    reads = encoder.read(Query(query)), encoder.read(page)
    asked, shown = encoder.vectors(reads)
    patches = shown[reads[1].patches]
    grids = np.einsum("td,rcd->trc", asked, patches)
    return SimilarityMap(encoder.backbone.tokens(reads[0]), grids, pictured(page, EDGE))
