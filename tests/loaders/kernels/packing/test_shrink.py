"""Shrinking by a Hamming filter equals the filter written out, and Pillow."""

import numpy as np
import pytest
from PIL import Image

from loaders.kernels.packing.shrink import shrink_hamming
from loaders.packs.images.resize import MIN_WIDTH_PX


def hamming_matrix(length: int, size: int) -> np.ndarray:
    """Return float64 [size, length], Pillow's Hamming filter written out."""
    scale = length / size
    matrix = np.zeros((size, length))
    for place in range(size):
        center = (place + 0.5) * scale
        for source in range(int(max(0, center - scale + 0.5)), min(length, int(center + scale + 0.5))):
            x = (source + 0.5 - center) / scale
            if abs(x) < 1:
                matrix[place, source] = np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x))
    return matrix / matrix.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("size", "to"),
    [
        ((300, 451), (100, 150)),
        ((375, 500), (256, 341)),
        ((97, MIN_WIDTH_PX), (96, 5)),
        ((1, 4000), (1, 3)),
        ((700, 7), (1, 1)),
        ((33, 48), (33, 47)),
        ((64, 64), (32, 64)),
    ],
)
def test_shrinking_is_the_filter_and_rounds_once(size: tuple[int, int], to: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    got = shrink_hamming(noise, *to)
    rows, columns = hamming_matrix(size[0], to[0]), hamming_matrix(size[1], to[1])
    exact = np.einsum("yh,hwc,xw->yxc", rows, noise.astype(float), columns, optimize=True)
    assert np.abs(got - exact).max() < 0.55  # weights are rounded to multiples of 2^-16
    pillow = np.asarray(Image.fromarray(noise).resize(to[::-1], Image.Resampling.HAMMING))
    assert np.abs(got.astype(int) - pillow).max() <= 1
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, shrink_hamming(noise, *to))


@pytest.mark.parametrize("value", [0, 1, 254, 255])
def test_shrinking_keeps_a_flat_image(value: int) -> None:
    flat = np.full((61, 83, 3), value, np.uint8)
    assert (shrink_hamming(flat, 17, 29) == value).all()
