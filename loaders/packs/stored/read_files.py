"""Reading many small files in one call, without the interpreter between them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loaders.packs.stored.kernel import StoredKernel

_read_all = StoredKernel("packing.read", "read_all")


def read_files(
    paths: bytes, path_starts: NDArray[np.int64], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_]]:
    """Read files of known sizes behind each other.

    Args:
        paths: the paths, each ended by a zero byte.
        path_starts: int64 [N], where each begins.
        sizes: int64 [N], the size that each file should have.

    Returns:
        uint8 [total], the bytes; int64 [N + 1], where each file begins; bool [N], whether it could be read
        and has its size. Where it is False the bytes mean nothing, and the caller finds out why.
    """
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    data = np.empty(int(starts[-1]) + 1, np.uint8)  # one more, which shows that a file has grown
    good = np.zeros(len(sizes), np.bool_)
    _read_all(np.frombuffer(paths, np.uint8), path_starts, starts, data, good)
    return data[:-1], starts, good
