"""Files that appear whole or not at all: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import ctypes
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

PARTIAL_SUFFIX = ".partial"


def sync_folder(folder: Path) -> None:
    """Make the names inside `folder` durable, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(partial: Path, final: Path) -> None:
    """Give a file that was written and synced under `partial` its `final` name."""
    os.replace(partial, final)
    sync_folder(final.parent)


def partial_path(final: Path) -> Path:
    """Return a fresh temporary name for `final`, so that two writers of one file never share it."""
    return final.with_name(f"{final.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")


def remove_partials(folder: Path) -> None:
    """Remove what killed writers left in `folder`."""
    for partial in folder.glob(f"*{PARTIAL_SUFFIX}"):
        partial.unlink(missing_ok=True)


def start_writeback(file: BinaryIO, offset: int, num_bytes: int) -> None:
    """Ask the kernel to begin writing a range to disk now, so that `fsync` finds little left to wait for.

    Does nothing where the system has no such call; durability is `fsync`'s alone.
    """
    if _SYNC_RANGE is not None:
        _SYNC_RANGE(file.fileno(), offset, num_bytes, _SYNC_RANGE_WRITE)


def _sync_range() -> Callable[[int, int, int, int], int] | None:
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return function


_SYNC_RANGE_WRITE = 2
_SYNC_RANGE = _sync_range()


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one."""
    partial = partial_path(path)
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    publish(partial, path)
