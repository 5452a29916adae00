"""Tiles cut out of views on the device they lie on."""

from __future__ import annotations

import torch
from torch import Tensor


def cut_tiles(x_BCHW: Tensor, grid: int, tile_size: int, offsets: Tensor) -> Tensor:
    """Cut one tile out of every cell of a square grid.

    Args:
        x_BCHW: [B, C, H, W] with H = W; cells are H // grid pixels wide, what is left over is not used.
        grid: cells per side.
        tile_size: side of a tile, at most that of a cell.
        offsets: int64 [B, grid * grid, 2], place (y, x) of each tile in its cell, in
            [0, cell size - tile size].

    Returns:
        [B, grid * grid, C, tile_size, tile_size], cells row by row.

    Raises:
        ValueError: shapes or sizes that do not fit.
    """
    num_rows, _, height, width = x_BCHW.shape
    cell = height // grid
    if height != width or not 1 <= tile_size <= cell or offsets.shape != (num_rows, grid**2, 2):
        raise ValueError(
            f"tiles: expected square views, tiles of 1 to {cell} pixels and offsets [B, {grid**2}, 2], got "
            f"{list(x_BCHW.shape)}, {tile_size} and {list(offsets.shape)}"
        )
    device = x_BCHW.device
    cells = torch.arange(grid**2, device=device)
    corners = torch.stack([cells // grid, cells % grid], 1) * cell + offsets
    places = corners.unsqueeze(-1) + torch.arange(tile_size, device=device)  # [B, grid^2, 2, tile_size]
    y, x = places.unbind(2)
    images = torch.arange(num_rows, device=device).view(-1, 1, 1, 1)
    tiles = x_BCHW.permute(0, 2, 3, 1)[images, y.unsqueeze(-1), x.unsqueeze(-2)]
    return tiles.permute(0, 1, 4, 2, 3)


def normalise_tiles(tiles: Tensor, eps: float = 1e-3) -> Tensor:
    """Give every tile mean 0 and standard deviation 1 in each channel.

    Otherwise neighbouring tiles betray themselves by their brightness and contrast.

    Args:
        tiles: [..., C, H, W].
        eps: added to the standard deviation; a tile of one colour becomes 0.

    Source: Noroozi, Favaro 2016 (Jigsaw), section 4.2, "shortcuts".
    """
    mean = tiles.mean((-2, -1), keepdim=True)
    std = tiles.std((-2, -1), keepdim=True, correction=0)
    return (tiles - mean) / (std + eps)


def tile_offsets_range(resolution: int, grid: int, tile_size: int) -> int:
    """Return how many places a tile has along each side of its cell.

    Raises:
        ValueError: a tile that is larger than its cell.
    """
    places = resolution // grid - tile_size + 1
    if places < 1:
        raise ValueError(f"tiles: {tile_size} pixels do not fit into cells of {resolution // grid}")
    return places
