"""Images in memory as the decoder takes them."""

from __future__ import annotations

import numpy as np

from loaders.decode import EncodedRows
from loaders.packs.columns import ENCODING_JPEG


def encoded_rows(*images: tuple[bytes, int, int], encoding: int = ENCODING_JPEG) -> EncodedRows:
    """Return rows of (bytes, height, width)."""
    data = [np.frombuffer(image, np.uint8) for image, _, _ in images]
    return EncodedRows(
        np.array([d.ctypes.data for d in data], np.uint64),
        np.array([len(d) for d in data]),
        np.full(len(data), encoding, np.uint8),
        np.array([height for _, height, _ in images]),
        np.array([width for _, _, width in images]),
        np.array([(0, 0, height, width) for _, height, width in images]),
        np.ones(len(data), np.bool_),
        data,
    )
