"""Relative patches: predict where a second patch lies, seen from the centre.

Source: Doersch, Gupta, Efros 2015, "Unsupervised Visual Representation Learning by Context Prediction",
section 3 and figure 2.

Shapes: B rows of this rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_POSITIONS = 8
_CENTRE = 4


def choose_pairs(tiles: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """Return the centre of each 3x3 grid and one of its eight neighbours.

    Args:
        tiles: [B, 9, ...], row by row.
        position: int64 [B], in [0, 8), the neighbour; counted row by row without the centre.

    Returns:
        Centres [B, ...] and neighbours [B, ...].

    Raises:
        ValueError: the number of tiles is not 9.
    """
    if tiles.shape[1] != NUM_POSITIONS + 1:
        raise ValueError(f"patches: expected 9 tiles, got {tiles.shape[1]}")
    cell = position + (position >= _CENTRE)
    return tiles[:, _CENTRE], tiles[torch.arange(len(tiles), device=tiles.device), cell]
