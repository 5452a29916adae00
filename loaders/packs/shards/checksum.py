"""Checksums of single images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from typing_extensions import Buffer

CONTENT_HASH_BYTES = 16


def content_hash(data: Buffer) -> bytes:
    """Return the 16-byte BLAKE2b of one image's bytes; the index keeps it as two little-endian uint64."""
    return hashlib.blake2b(data, digest_size=CONTENT_HASH_BYTES).digest()


def crc32(data: Buffer) -> int:
    """Return the CRC-32 of one image's bytes: equal to zlib's, but computed several times as fast."""
    value: int = isal_zlib.crc32(data)
    return value


def crc32_all(
    addresses: NDArray[np.uint64], sizes: NDArray[np.int64], maps: Sequence[NDArray[np.uint8]]
) -> NDArray[np.uint32]:
    """Return uint32 [K], the CRC-32 of each row's bytes; the arguments are what `Pack.locate` returns."""
    maps = sorted(maps, key=lambda mapped: mapped.ctypes.data)
    begins = np.array([mapped.ctypes.data for mapped in maps], np.uint64)
    which = np.searchsorted(begins, addresses, "right") - 1
    places = zip(which.tolist(), (addresses - begins[which]).tolist(), sizes.tolist(), strict=True)
    views = [mapped.data for mapped in maps]
    return np.array([crc32(views[one][first : first + size]) for one, first, size in places], np.uint32)
