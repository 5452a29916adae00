"""Images in memory in the form of the decoder's input and output."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loaders.backends.decoding import EncodedRows
from loaders.kernels.encodings import ENCODING_JPEG


def encoded_rows(*images: tuple[bytes, int, int], encoding: int = ENCODING_JPEG) -> EncodedRows:
    """Return encoded rows from tuples (bytes, height, width)."""
    data = [np.frombuffer(image, np.uint8) for image, _, _ in images]
    sizes = np.array([size for _, *size in images])
    rows = EncodedRows.of_jpegs(data, sizes[:, 0].copy(), sizes[:, 1].copy())
    rows.encodings[:] = encoding
    return rows


def pixels_of(planes: NDArray[np.uint8], start: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return the image [height, width, 3] whose channels begin at `start`."""
    return np.moveaxis(planes[start : start + 3 * height * width].reshape(3, height, width), 0, -1)
