"""Tiles against plain slicing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.tiles import cut_tiles, normalise_tiles, tile_offsets_range


@pytest.mark.parametrize("channels_last", [False, True])
def test_tiles_are_slices(channels_last: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 17, 17, generator=generator)  # cells of 5, two pixels left over
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    offsets = torch.randint(3, (3, 9, 2), generator=generator)
    tiles = cut_tiles(x, 3, 3, offsets)
    assert tiles.shape == (3, 9, 2, 3, 3)
    for image in range(3):
        for cell in range(9):
            top, left = (cell // 3) * 5 + offsets[image, cell, 0], (cell % 3) * 5 + offsets[image, cell, 1]
            assert torch.equal(tiles[image, cell], x[image, :, top : top + 3, left : left + 3])


def test_gradient_reaches_the_pixels_of_the_tiles_only() -> None:
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    cut_tiles(x, 2, 1, torch.tensor([[[0, 0], [0, 1], [1, 0], [1, 1]]])).sum().backward()
    corners = torch.zeros(4, 4)
    corners[[0, 0, 3, 3], [0, 3, 0, 3]] = 1
    assert x.grad is not None
    assert torch.equal(x.grad[0, 0], corners)


def test_every_tile_is_normalised_by_itself() -> None:
    tiles = torch.randn(2, 4, 3, 8, 8) * torch.rand(2, 4, 3, 1, 1) * 9 + 5
    found = normalise_tiles(tiles, eps=0.0).numpy()
    plain = tiles.numpy()
    expected = (plain - plain.mean((3, 4), keepdims=True)) / plain.std((3, 4), keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert not normalise_tiles(torch.full((1, 1, 3, 4, 4), 7.0)).any()


def test_refuses_what_does_not_fit() -> None:
    assert tile_offsets_range(225, 3, 64) == 12
    with pytest.raises(ValueError, match="5 pixels do not fit into cells of 4"):
        tile_offsets_range(12, 3, 5)
    with pytest.raises(ValueError, match="1 to 4 pixels"):
        cut_tiles(torch.zeros(1, 3, 12, 12), 3, 5, torch.zeros(1, 9, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="square views"):
        cut_tiles(torch.zeros(1, 3, 12, 9), 3, 2, torch.zeros(1, 9, 2, dtype=torch.int64))
