"""Decoding packed images into the memory of a worker."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from loaders.packs.columns import ENCODING_JPEG, ENCODING_RAW

SLACK = 64  # bytes that vector loads may read behind an image
MAX_PIXELS_PER_BYTE = 256  # a gray JPEG of one colour: a bit each for DC and AC of a block of 64 pixels


class CorruptImageError(ValueError):
    """The bytes of a row are not the image that the index promises."""


@dataclass
class Arena:
    """Growing memory of one worker: a chunk's decoded pixels, and the same split into channel planes."""

    pixels: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    planes: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))

    def reserve(self, size_bytes: int) -> None:
        """Make room for `size_bytes` of pixels."""
        if len(self.pixels) < size_bytes + SLACK:
            self.pixels = np.empty(size_bytes + SLACK, np.uint8)
            self.planes = np.zeros(size_bytes + SLACK, np.uint8)

    def extend(self, used_bytes: int, more_bytes: int) -> None:
        """Make room for `more_bytes` behind the first `used_bytes`, which stay."""
        if len(self.pixels) < used_bytes + more_bytes + SLACK:
            kept = self.pixels[:used_bytes]
            self.reserve(used_bytes + more_bytes)
            self.pixels[:used_bytes] = kept


def read_pixels_into(
    data: NDArray[np.uint8], encoding: int, height: int, width: int, out: NDArray[np.uint8]
) -> None:
    """Bring the bytes of a row into memory as RGB: pixels are copied, a JPEG is decoded.

    Args:
        data: uint8 [size], the bytes of the row.
        encoding: of the row, a value of the column `encoding`.
        height: pixels, as the index says.
        width: pixels.
        out: uint8 [height * width * 3], written.

    Raises:
        CorruptImageError: damaged data, another size, or an encoding that nobody knows.
    """
    if encoding == ENCODING_JPEG:
        decode_jpeg_into(data, height, width, out)
    elif encoding != ENCODING_RAW:
        raise CorruptImageError(f"encoding {encoding}, expected {ENCODING_JPEG} or {ENCODING_RAW}")
    elif len(data) != height * width * 3:
        raise CorruptImageError(f"{len(data)} bytes, expected {height} x {width} pixels of 3")
    else:
        out[:] = data


def decode_jpeg_into(data: NDArray[np.uint8], height: int, width: int, out: NDArray[np.uint8]) -> None:
    """Decode a JPEG to RGB without holding the GIL.

    Args:
        data: uint8 [size], the encoded image.
        height: pixels, as the index says.
        width: pixels.
        out: uint8 [height * width * 3], written.

    Raises:
        CorruptImageError: damaged data (warnings of libjpeg count as damage) or another size.
    """
    try:
        image = simplejpeg.decode_jpeg(data, "RGB", buffer=out)
    except ValueError as error:
        raise CorruptImageError(str(error)) from None
    if image.shape != (height, width, 3):
        found = f"{image.shape[0]} x {image.shape[1]}"
        raise CorruptImageError(f"expected {height} x {width} pixels as in the index, found {found}")
