"""Pairs of patches: the cell that each position number stands for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.objectives.cross_entropy import pretext_loss
from engine.objectives.patches import choose_pairs


def test_positions_are_the_neighbours_row_by_row() -> None:
    tiles = torch.arange(9).expand(8, 9).view(8, 9, 1, 1, 1)
    centre, neighbour = choose_pairs(tiles, torch.arange(8))
    assert centre.flatten().tolist() == [4] * 8
    assert neighbour.flatten().tolist() == [0, 1, 2, 3, 5, 6, 7, 8]


def pair_loss(tiles: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Return the loss of a plain classifier with one logit per position from both patches."""
    centre, neighbour = (patch.flatten(1) for patch in choose_pairs(tiles, position))
    return pretext_loss(centre @ WEIGHTS - 2 * neighbour @ WEIGHTS, position).loss


WEIGHTS = torch.randn(12, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TILES = torch.randn(4, 9, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
POSITION = torch.tensor([0, 7, 3, 4])


def test_equals_the_equation() -> None:
    losses = []
    for image, position in zip(TILES.numpy().reshape(4, 9, 12), POSITION.tolist(), strict=True):
        neighbours = [tile for place, tile in enumerate(image) if place != 4]
        z = image[4] @ WEIGHTS.numpy() - 2 * neighbours[position] @ WEIGHTS.numpy()
        losses.append(np.log(np.exp(z).sum()) - z[position])
    assert float(pair_loss(TILES, POSITION)) == pytest.approx(float(np.mean(losses)), rel=1e-12)


def test_gradient_reaches_the_two_patches_of_each_image_alone() -> None:
    tiles = TILES.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: pair_loss(t, POSITION), tiles)
    pair_loss(tiles, POSITION).backward()
    assert tiles.grad is not None
    reached = [set(row.nonzero().flatten().tolist()) for row in tiles.grad.flatten(2).abs().sum(2)]
    assert reached == [{0, 4}, {4, 8}, {3, 4}, {4, 5}]


def test_does_not_depend_on_the_order_of_images() -> None:
    rows = torch.tensor([2, 0, 3, 1])
    expected = float(pair_loss(TILES, POSITION))
    assert float(pair_loss(TILES[rows], POSITION[rows])) == pytest.approx(expected, rel=1e-12)


def test_refuses_other_grids() -> None:
    with pytest.raises(ValueError, match="got 4"):
        choose_pairs(torch.zeros(1, 4, 3, 2, 2), torch.zeros(1, dtype=torch.int64))
