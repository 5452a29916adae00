"""Members of a tar for many images in one call; the bytes are those of `loaders.packs.tar_shard`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loaders.packs.stored.kernel import StoredKernel

_BLOCK = 512
_LABEL_BYTES = 20
_add_members = StoredKernel("packing.tar", "add_members")


def members_bound(num_data_bytes: int, num_name_bytes: int, num_images: int) -> int:
    """Return how many bytes the members of so many images take at most."""
    # Two headers, two long names with theirs and their ends, the label, and the filling of each part.
    return num_data_bytes + 2 * num_name_bytes + num_images * 10 * _BLOCK


def add_members(
    out: NDArray[np.uint8],
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    keys: NDArray[np.uint8],
    key_starts: NDArray[np.int64],
    labels: NDArray[np.int64],
    headers: NDArray[np.uint8],
) -> tuple[int, NDArray[np.int64]]:
    """Write `<key>.jpg` and, where there is a label, `<key>.cls` for each image.

    Args:
        out: uint8 [>= members_bound()], result.
        data: uint8 [total], the images one after the other.
        starts: int64 [N + 1], where each begins in `data`.
        keys: uint8 [total], the keys in UTF-8.
        key_starts: int64 [N + 1], where each begins in `keys`.
        labels: int64 [N], -1 for none.
        headers: uint8 [2, 512], a header without name, size and checksum for a file and for a long name.

    Returns:
        The bytes written, and int64 [N, 3]: offset of each image in `out`, of its label and the bytes of
        the label (0 for none).
    """
    places = np.zeros((len(labels), 3), np.int64)
    name = np.empty(int(np.diff(key_starts).max(initial=0)) + 4, np.uint8)
    sums = headers.astype(np.int64).sum(axis=1) + 8 * ord(" ")
    digits = np.empty(_LABEL_BYTES, np.uint8)
    size = _add_members(out, data, starts, keys, key_starts, labels, headers, sums, name, digits, places)
    return int(size), places
