"""BLAKE2b of many short messages at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loaders.packs.stored.kernel import StoredKernel

_LANES = 8
_hash_all = StoredKernel("packing.blake2b", "hash_all")


def hash_all(
    data: NDArray[np.uint8], starts: NDArray[np.int64], stops: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Hash many messages.

    Args:
        data: uint8 [total], what holds the messages.
        starts: int64 [N], where each begins.
        stops: int64 [N], where each ends, at most `total`.

    Returns:
        uint64 [N, 2], the 16 bytes of each BLAKE2b, little-endian.
    """
    digests = np.empty((len(starts), 2), np.uint64)
    lanes = np.empty((_LANES, 2), np.int64)
    state, words = np.empty(8 * _LANES, np.uint64), np.zeros(18 * _LANES, np.uint64)
    _hash_all(data, starts, stops, digests, lanes, state, words)
    return digests
