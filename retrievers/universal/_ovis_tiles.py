"""Ovis' tiles of a picture as its authors cut them: rows of the grid downwards, columns across.

transformers 5.24 takes the rows of the grid that covers a picture best for its columns: a wide picture is cut like a
tall one, and squeezed. Only that is set right here. Apart from `ovis`, so that who only lists systems imports no
transformers.
"""

from __future__ import annotations

from typing import Any

from transformers.image_utils import SizeDict
from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil, get_min_tile_covering_grid


class Tiles(Ovis2ImageProcessorPil):  # type: ignore[misc]
    """transformers' processor, its grids upright."""

    def crop_image_to_patches(
        self,
        image: Any,
        min_patches: int,
        max_patches: int,
        use_covering_area_grid: bool = True,
        covering_threshold: float = 0.9,
        patch_size: Any = None,
        resample: Any = None,
    ) -> tuple[list[Any], list[int]]:
        """A small picture of the whole and its tiles, row by row, and (rows, columns); of one tile, that alone.

        Args:
            image: (channels, height, width).
        """
        if not use_covering_area_grid:
            found: tuple[list[Any], list[int]] = super().crop_image_to_patches(
                image, min_patches, max_patches, False, covering_threshold, patch_size, resample
            )
            return found
        height, width = patch_size.height, patch_size.width
        rows, columns = get_min_tile_covering_grid(image.shape[-2:], height, max_patches, covering_threshold)
        whole = self.resize(image, SizeDict(height=rows * height, width=columns * width), resample=resample)
        tiles = [
            whole[:, row * height : (row + 1) * height, column * width : (column + 1) * width]
            for row in range(rows)
            for column in range(columns)
        ]
        small = [self.resize(image, patch_size, resample=resample)] if len(tiles) > 1 else []
        return [*small, *tiles], [rows, columns]


def upright(processor: Ovis2ImageProcessorPil) -> Tiles:
    """The same settings, grids upright."""
    return Tiles(**_settings(processor))


def published(processor: Ovis2ImageProcessorPil) -> Ovis2ImageProcessorPil:
    """The same settings, transformers' own class: what is written to a file."""
    return Ovis2ImageProcessorPil(**_settings(processor))


def _settings(processor: Ovis2ImageProcessorPil) -> dict[str, Any]:
    told: dict[str, Any] = processor.to_dict()
    return {name: value for name, value in told.items() if name not in ("image_processor_type", "processor_class")}
