"""Checksums of files and of single images."""

from __future__ import annotations

import hashlib
from pathlib import Path

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
