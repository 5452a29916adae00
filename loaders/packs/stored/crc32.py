"""CRC-32 of many images in one call of compiled code, without the interpreter's lock."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loaders.packs.stored.kernel import StoredKernel

_POLYNOMIAL = 0xEDB88320  # of zlib, PNG and Ethernet, the highest power in the lowest bit
_LANE = 16  # bytes
_crc32_all = StoredKernel("packing.crc32", "crc32_all")


def _make_tables() -> NDArray[np.uint32]:
    """Return uint32 [8, 256]: what a byte does to the checksum when 0 to 7 bytes follow it."""
    tables = np.zeros((8, 256), np.uint32)
    value = np.arange(256, dtype=np.uint32)
    for table in tables:
        for _ in range(8):
            value = (value >> np.uint32(1)) ^ (value & np.uint32(1)) * np.uint32(_POLYNOMIAL)
        table[:] = value
    return tables


_TABLES = _make_tables()


def crc32_all(addresses: NDArray[np.uint64], sizes: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return the CRC-32 of bytes in memory, as `zlib.crc32` gives it.

    Args:
        addresses: uint64 [K]; the caller keeps what lies there alive.
        sizes: int64 [K], bytes.

    Returns:
        uint32 [K].
    """
    found = np.empty(len(sizes), np.uint32)
    _crc32_all(addresses, sizes, _TABLES, np.empty(_LANE, np.uint8), found)
    return found
