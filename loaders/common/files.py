"""Writes files that appear whole or not at all: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import csv
import ctypes
import hashlib
import io
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from loaders.common.errors import UserError

PARTIAL_SUFFIX = ".partial"


def check_folder(out: Path, option: str = "out", writable: bool = True) -> None:
    """Refuse a path where no folder can be created, before work is spent on its contents.

    Args:
        out: path of the folder, which need not exist.
        option: name of the option that gave the path.
        writable: whether the user must be allowed to write there.

    Raises:
        UserError: the path or a folder above it is a file, or cannot be accessed or written.
    """
    try:
        there = next(place for place in (out, *out.parents) if place.exists())
    except OSError as error:
        raise UserError(
            f"{option}: {out} cannot be a folder ({error.strerror}); give another --{option}"
        ) from None
    if not there.is_dir():
        raise UserError(
            f"{option}: expected a folder at {out}, found the file {there}; give another --{option}"
        )
    if writable and not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"{option}: {out} cannot be written ({there} is read-only for this user); give another --{option}"
        )


def check_file(path: Path, option: str = "out", writable: bool = True) -> None:
    """Refuse a path where no file can be written, before work is spent on its content.

    Args:
        path: path of the file, which may exist.
        option: name of the option that gave the path.

    Raises:
        UserError: the path is a folder, a file stands above it, or it cannot be accessed or written.
    """
    check_folder(path.parent, option, writable)
    try:
        is_folder = path.is_dir()
    except OSError as error:  # such as for a name that is too long
        raise UserError(
            f"{option}: {path} cannot be a file ({error.strerror}); give another --{option}"
        ) from None
    if is_folder:
        raise UserError(f"{option}: expected a file at {path}, found a folder; give another --{option}")


def check_exists(path: Path, option: str, what: str) -> None:
    """Refuse a path, given by an option, at which there is no file; `what` says what it should be."""
    if not path.is_file():
        raise UserError(f"{option}: expected {what} {path}, found none; check the path")


def sync_file(path: Path) -> None:
    """Wait until a file's content, or the names inside a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk; not atomic, for folders that no reader uses yet."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file by `content` atomically: a reader sees the old file or the whole new one."""
    with atomic_file(path) as file:
        file.write(content)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` atomically at the end of the block; an error keeps the old file."""
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        publish(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def partial_path(final: Path) -> Path:
    """Return a fresh temporary name for `final`, so that two writers of one file never share it."""
    return final.with_name(f"{final.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")


def publish(partial: Path, final: Path) -> None:
    """Rename `partial`, which is written and synced, to `final`."""
    partial.replace(final)
    sync_file(final.parent)


def leftovers(folder: Path) -> set[Path]:
    """Return the temporary files that killed writers left in a folder; older versions named them `.*.tmp`."""
    return {*folder.glob(f"*{PARTIAL_SUFFIX}"), *folder.glob(".*.tmp")}


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed writers left in a folder."""
    for partial in leftovers(folder):
        partial.unlink(missing_ok=True)


def start_writeback(file: BinaryIO, offset: int, num_bytes: int) -> None:
    """Ask the kernel to begin writing a range to disk now, so that `fsync` finds little left to wait for.

    Does nothing on systems without this call. Only `fsync` makes the data durable.
    """
    if _SYNC_RANGE is not None:
        _SYNC_RANGE(file.fileno(), offset, num_bytes, _SYNC_RANGE_WRITE)


def to_json(value: Any) -> bytes:
    """Encode as indented JSON, paths as strings; NaN and infinities are refused."""
    return (json.dumps(value, indent=2, default=_encode, allow_nan=False) + "\n").encode()


def _encode(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"no JSON form for {type(value).__name__}")


def csv_text(columns: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Return a table as CSV: one line of column names, and one line per row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_range() -> Callable[[int, int, int, int], int] | None:
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return function


_SYNC_RANGE_WRITE = 2
_SYNC_RANGE = _sync_range()
