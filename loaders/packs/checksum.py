"""Checksums of files and of single images."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

CONTENT_HASH_BYTES = 16
_BLOCK_BYTES = 1 << 20


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal text, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def content_hash(data: Buffer) -> bytes:
    """Return the 16-byte BLAKE2b of one image's bytes; the index keeps it as two little-endian uint64."""
    return hashlib.blake2b(data, digest_size=CONTENT_HASH_BYTES).digest()


class RowChecks:
    """Compares the bytes of rows with their content hashes, at a few per cent of a decode.

    BLAKE2b takes a tenth of the time of a decode, too much for every reading. So a row is compared with its
    hash once, and from then on with the CRC-32 of the very bytes that had it, which is five times as fast:
    damage that comes between two epochs is met as well.

    Args:
        hashes: the column `content_hash`, [num_rows] of 16 bytes each.
    """

    def __init__(self, hashes: NDArray[Any]) -> None:
        self._hashes = hashes
        self._known = np.zeros(len(hashes), np.bool_)  # pages of rows never read are never made
        self._crc = np.zeros(len(hashes), np.uint32)

    def are_whole(self, row: int, data: NDArray[np.uint8]) -> bool:
        """Return whether these are the bytes that were packed; any number of threads may ask.

        Args:
            row: in the pack.
            data: uint8 [size], its bytes.
        """
        if self._known[row]:
            return zlib.crc32(data.data) == int(self._crc[row])
        if content_hash(data.data) != self._hashes[row].tobytes():
            return False
        self._crc[row] = zlib.crc32(data.data)
        self._known[row] = True
        return True

    def forget(self) -> None:
        """Compare every row with its hash again."""
        self._known[:] = False
