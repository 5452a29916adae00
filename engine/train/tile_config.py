"""The options of recipes that cut an image into 3 x 3 cells and take a tile from each."""

from __future__ import annotations

from dataclasses import dataclass

from engine.train.run_config import RunConfig
from loaders.common.checks import Count
from loaders.common.errors import UserError

GRID = 3
"""Cells along each side."""


@dataclass(frozen=True)
class TileConfig(RunConfig):
    """Options of every recipe that pre-trains a backbone on tiles."""

    resolution: int = 225
    """Side, in pixels, of the resized crop that is cut into 3x3 cells."""
    tile_size: Count = 64
    """Side, in pixels, of a tile, which lies at a random place in its cell."""

    def check_sizes(self) -> None:
        """Also refuse tiles that do not fit into their cells."""
        super().check_sizes()
        if not 1 <= self.tile_size <= self.resolution // GRID:
            raise UserError(
                f"tile_size: expected 1 to {self.resolution // GRID}, a third of the resolution, found "
                f"{self.tile_size}; change one of them"
            )
