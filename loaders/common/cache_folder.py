"""The folder for what can be made again: copies of remote packs, compiled code, measurements."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from loaders.common.errors import UserError


def cache_folder() -> Path:
    """Return `sluice` in the user's cache folder; it need not exist.

    A user without a writable home gets a private folder among the temporary files.

    Raises:
        UserError: the private folder is not this user's alone, so its files cannot be trusted.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base).absolute() / "sluice"
    return (_cache_at_home() or _temporary()) / "sluice"


def share_cache() -> None:
    """Give libraries a cache folder too, if the user has no writable home.

    Otherwise numba would create a folder named "~" in the working folder, and matplotlib a new folder for
    each process.
    """
    if os.environ.get("XDG_CACHE_HOME") or _cache_at_home():
        return
    with suppress(UserError):  # code that needs the folder reports this
        folder = _temporary()
        os.environ["XDG_CACHE_HOME"] = str(folder)
        os.environ.setdefault("MPLCONFIGDIR", str(folder / "matplotlib"))


def _cache_at_home() -> Path | None:
    """Return the cache folder in the user's home; None if there is no home or it cannot be written."""
    try:
        cache = Path.home() / ".cache"
        there = next(place for place in (cache, *cache.parents) if place.exists())
    except (RuntimeError, OSError):
        return None
    return cache if there.is_dir() and os.access(there, os.W_OK | os.X_OK) else None


def _temporary() -> Path:
    """Return this user's private folder; it is created at once, before another user can create it."""
    folder = Path(tempfile.gettempdir()) / f"sluice-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or folder.is_symlink() or not folder.is_dir() or found.st_mode & 0o022:
        raise UserError(
            f"cache: expected a private folder at {folder}, found one that others own or can write; set "
            "XDG_CACHE_HOME"
        )
    return folder
