"""Sizes, cropping and shrinking of decoded images while packing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Narrower images do not fill a vector of the compiled filter.
MIN_WIDTH_PX = 6


def fit_inside(height: int, width: int, max_side: int | None) -> tuple[int, int]:
    """Return (height, width) scaled down so that no side exceeds `max_side`, if that is given."""
    longest = max(height, width)
    if max_side is None or longest <= max_side:
        return height, width
    # Integer arithmetic, rounded half up, gives the same size on every machine.
    return tuple(max(1, (2 * side * max_side + longest) // (2 * longest)) for side in (height, width))  # type: ignore[return-value]


def fit_short_side(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return (height, width) scaled down so that the shorter side is at most `short_side`."""
    shortest = min(height, width)
    if shortest <= short_side:
        return height, width
    return tuple((2 * side * short_side + shortest) // (2 * shortest) for side in (height, width))  # type: ignore[return-value]


def crop_middle(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the central square of uint8 [H, W, 3]; an odd margin loses more on the right or below."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def resize_antialiased(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize with a Hamming filter scaled to the reduction: as sharp as bicubic at the cost of bilinear.

    Args:
        pixels: uint8 [H, W, 3].

    Returns:
        uint8 [height, width, 3]; the input itself if it has this size already.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    if pixels.shape[1] < MIN_WIDTH_PX:
        from PIL import Image

        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.HAMMING)
        return np.asarray(image)
    from loaders.kernels.packing.shrink import shrink_hamming  # loads compiled code

    # Pillow's arrays are read-only, which is another type to numba; a copy is cheaper than compiling for it.
    return shrink_hamming(np.require(pixels, requirements=["C", "W"]), height, width)
