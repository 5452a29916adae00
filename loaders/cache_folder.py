"""Where this machine keeps what can be made again: copies of remote packs, measurements."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from loaders.errors import UserError


def cache_folder() -> Path:
    """Return `sluice` in the user's cache folder; it need not exist.

    Who has no home, or one where nothing can be made, gets a folder of their own among the temporary files.

    Raises:
        UserError: that folder belongs to somebody else, whose files this process must not trust.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base).absolute() / "sluice"
    try:
        cache = Path.home() / ".cache"
    except RuntimeError:
        return _temporary()
    return cache / "sluice" if _can_be_made(cache) else _temporary()


def _can_be_made(folder: Path) -> bool:
    """Tell whether something can be written into a folder, which itself need not be there."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _temporary() -> Path:
    """Return a folder for this user alone; it is made at once, before anybody else can."""
    folder = Path(tempfile.gettempdir()) / f"sluice-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or not folder.is_dir() or folder.is_symlink() or found.st_mode & 0o022:
        raise UserError(
            f"cache: expected a folder of this user's own at {folder}, found one that others can write; set "
            "XDG_CACHE_HOME"
        )
    return folder
