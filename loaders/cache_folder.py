"""Where this machine keeps what can be made again: copies of remote packs, measurements."""

from __future__ import annotations

import os
from pathlib import Path

from loaders.errors import UserError


def cache_folder() -> Path:
    """Return `sluice` in the user's cache folder; it need not exist.

    Raises:
        UserError: the user has no home.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "sluice"
    except RuntimeError:
        raise UserError("cache: expected a home folder, found none; set XDG_CACHE_HOME") from None
