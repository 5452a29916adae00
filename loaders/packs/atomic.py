"""Files that appear whole or not at all: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

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
