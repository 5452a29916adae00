"""Where this machine keeps what can be made again: copies of remote packs, compiled code, measurements."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from loaders.common.errors import UserError


def cache_folder() -> Path:
    """Return `sluice` in the user's cache folder; it need not exist.

    A user without a home that can be written to gets a folder of their own among the temporary files.

    Raises:
        UserError: the folder belongs to another user, whose files this process must not trust.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base).absolute() / "sluice"
    return (_cache_at_home() or _temporary()) / "sluice"


def share_cache() -> None:
    """Give the libraries a folder for their files, too, for users without a home that can be written to.

    Numba would else make a folder called "~" in the working folder, and matplotlib a new folder for each
    process.
    """
    if os.environ.get("XDG_CACHE_HOME") or _cache_at_home():
        return
    with suppress(UserError):  # whatever needs the folder reports this
        folder = _temporary()
        os.environ["XDG_CACHE_HOME"] = str(folder)
        os.environ.setdefault("MPLCONFIGDIR", str(folder / "matplotlib"))


def _cache_at_home() -> Path | None:
    """Return the cache folder at home; None where there is no home, or one that cannot be written to."""
    try:
        cache = Path.home() / ".cache"
        there = next(place for place in (cache, *cache.parents) if place.exists())
    except (RuntimeError, OSError):
        return None
    return cache if there.is_dir() and os.access(there, os.W_OK | os.X_OK) else None


def _temporary() -> Path:
    """Return a folder for this user alone; it is made at once, before another user can make it."""
    folder = Path(tempfile.gettempdir()) / f"sluice-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or folder.is_symlink() or not folder.is_dir() or found.st_mode & 0o022:
        raise UserError(
            f"cache: expected a folder of this user's own at {folder}, found one that others can write; set "
            "XDG_CACHE_HOME"
        )
    return folder
