"""Checksums of rows equal zlib's."""

import zlib

import numpy as np
import pytest

from loaders.packs.shards.checksum import crc32_all


@pytest.mark.parametrize("first", [0, 1, 9])  # aligned to a machine word, and not
def test_crc32_of_rows_is_that_of_zlib(first: int) -> None:
    """The rows alternate between two memory maps."""
    sizes = np.array([*range(300), 4093, 65_536])
    maps = [
        np.frombuffer(np.random.default_rng(i).bytes(first + int(sizes.sum())), np.uint8) for i in range(2)
    ]
    starts = first + np.cumsum(sizes) - sizes
    addresses = np.stack([np.uint64(one.ctypes.data) + starts.astype(np.uint64) for one in maps], 1).reshape(
        -1
    )
    expected = [zlib.crc32(one[a : a + n].data) for a, n in zip(starts, sizes, strict=True) for one in maps]
    for order in (maps, maps[::-1]):
        assert crc32_all(addresses, np.repeat(sizes, 2), order).tolist() == expected
