"""Pairs of patches: which cell each position means."""

from __future__ import annotations

import pytest
import torch

from engine.objectives.patches import choose_pairs


def test_positions_are_the_neighbours_row_by_row() -> None:
    tiles = torch.arange(9).expand(8, 9).view(8, 9, 1, 1, 1)
    centre, neighbour = choose_pairs(tiles, torch.arange(8))
    assert centre.flatten().tolist() == [4] * 8
    assert neighbour.flatten().tolist() == [0, 1, 2, 3, 5, 6, 7, 8]


def test_refuses_other_grids() -> None:
    with pytest.raises(ValueError, match="got 4"):
        choose_pairs(torch.zeros(1, 4, 3, 2, 2), torch.zeros(1, dtype=torch.int64))
