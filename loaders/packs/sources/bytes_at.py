"""Thread-safe reading of listed files, and of runs of bytes in open files."""

from __future__ import annotations

import os
from pathlib import Path

from loaders.common.errors import UserError
from loaders.packs.sources.item import SourceItem, UnreadableItem, check_size, printable

_LARGE_BYTES = 1 << 20  # only larger reads are checked against the size of the file first


def open_file(path: Path) -> int:
    """Open a file for reading, and return its descriptor.

    Raises:
        UserError: the file cannot be opened.
    """
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot open {path} ({error.strerror}): check the path") from None


def read_at(descriptor: int, offset: int, num_bytes: int) -> bytes:
    """Return `num_bytes` from `offset`, or fewer where the file ends.

    Raises:
        UnreadableItem: the disk fails.
    """
    try:
        if num_bytes > _LARGE_BYTES:  # may come from a damaged header, and `pread` would allocate all of it
            num_bytes = max(0, min(num_bytes, os.fstat(descriptor).st_size - offset))
        data = os.pread(descriptor, num_bytes, offset)
        while len(data) < num_bytes:
            more = os.pread(descriptor, num_bytes - len(data), offset + len(data))
            if not more:
                break
            data += more
    except OSError as error:
        raise UnreadableItem(f"cannot be read: {error.strerror}") from None
    return data


def read_listed_file(path: str, source: str, item: SourceItem) -> bytes:
    """Return the bytes of the file at `path`; `source` is for error messages.

    Raises:
        UnreadableItem: this user may not read the file, or the disk fails.
        UserError: the file can no longer be opened, or its size has changed since the listing.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError as error:
        raise UnreadableItem(f"cannot be read: {error.strerror}") from None
    except OSError as error:
        raise UserError(
            f"{printable(path)} was listed and cannot be opened now ({error.strerror}): bring the source "
            f"back and start the same command again, it resumes"
        ) from None
    try:
        data = _read_expected(descriptor, item.size_bytes)
    except OSError as error:
        raise UnreadableItem(f"cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    check_size(source, item, len(data))
    return data


def _read_expected(descriptor: int, num_bytes: int) -> bytes:
    """Read a file of a known size; one byte more is requested, to notice that the file has grown."""
    data = os.read(descriptor, num_bytes + 1)
    while len(data) < num_bytes and (more := os.read(descriptor, num_bytes + 1 - len(data))):
        data += more
    return data
