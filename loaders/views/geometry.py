"""Geometries, as data: which box of an image becomes a view [3, R, R]; see `loaders.views.policy`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from loaders.common.checks import check_number, check_pair, check_whole
from loaders.common.errors import UserError

MAX_RESOLUTION = 4096
REMEDY = "change the policy"


def require(condition: bool, what: str, expected: str, found: object) -> None:
    """Refuse a part of a policy unless a condition holds."""
    if not condition:
        raise UserError(f"{what}: expected {expected}, found {found!r}; {REMEDY}")


require_number = partial(check_number, remedy=REMEDY)
require_whole = partial(check_whole, remedy=REMEDY)
require_range = partial(check_pair, remedy=REMEDY)


@dataclass(frozen=True)
class RandomResizedCrop:
    """A box of random area and aspect ratio (Szegedy et al. 2015), as torchvision draws it.

    Attributes:
        scale: range of the box's share of the image area.
        ratio: range of width / height, drawn uniformly in its logarithm.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        require_range("RandomResizedCrop scale", self.scale, 1e-6, 1.0)
        require_range("RandomResizedCrop ratio", self.ratio, 1e-3, 1e3)


@dataclass(frozen=True)
class CenterCrop:
    """The centred square that covers `fraction` of the shorter side.

    `fraction = 224 / 256` is "resize the short side to 256, crop 224", except for rounding to whole pixels.
    """

    fraction: float = 224 / 256

    def __post_init__(self) -> None:
        require_number("CenterCrop fraction", self.fraction, 1e-6, 1.0)


@dataclass(frozen=True)
class ResizedCenterCrop:
    """The centred square of the image resized to `short_side`; resize and crop are done in one step.

    The box is that of torchvision's Resize(short_side) and CenterCrop, and so of timm's. The resized long
    side is rounded down to whole pixels, which distorts the image a little, and the square begins at a whole
    pixel.

    Attributes:
        short_side: shorter side of the resized image, in pixels; at least the view's resolution.
        rounded: resize exactly as Pillow does: rows, then columns, each rounded to bytes. Networks of timm
            and torchvision are evaluated this way, but it is slower. (Pillow 13 begins with columns if an
            image is more than twice as high as wide.)
    """

    short_side: int = 256
    rounded: bool = True

    def __post_init__(self) -> None:
        require_whole("ResizedCenterCrop short_side", self.short_side, 1, 16 * MAX_RESOLUTION)


@dataclass(frozen=True)
class PaddedCrop:
    """Resize the centred square, pad each side by reflection, crop back at a random whole-pixel shift.

    Attributes:
        padding: padded share of the view's side; 0.125 pads 32 pixels by 4 (FixMatch, Sohn et al. 2020).
    """

    padding: float = 0.125

    def __post_init__(self) -> None:
        require_number("PaddedCrop padding", self.padding, 0.0, 0.5)


@dataclass(frozen=True)
class Tile:
    """One tile of a grid that lies over a random resized crop, at a random place in its cell.

    The pixels are those of the crop resized to `grid * cell` pixels per side, cut out at the tile. A
    horizontal flip mirrors the tile, which keeps its place in the grid. Tiles of one image share their crop
    by `ViewPolicy.shares_draws_of`.

    Attributes:
        row: row of the cell in the grid, from 0.
        column: column of the cell in the grid, from 0.
        grid: cells per side, at most 255: each cell has its own random numbers, counted by 16 bits.
        cell: side of a cell in pixels of the resized crop; the view's resolution is the tile's side.
        crop: box under the grid.
    """

    row: int
    column: int
    grid: int = 3
    cell: int = 75
    crop: RandomResizedCrop = RandomResizedCrop()

    def __post_init__(self) -> None:
        require_whole("Tile grid", self.grid, 1, 255)
        for name in ("row", "column"):
            require_whole(f"Tile {name}", getattr(self, name), 0, self.grid - 1)
        require_whole("Tile cell", self.cell, 1, MAX_RESOLUTION)
        require(isinstance(self.crop, RandomResizedCrop), "Tile crop", "a RandomResizedCrop", self.crop)


Geometry = RandomResizedCrop | CenterCrop | ResizedCenterCrop | PaddedCrop | Tile
