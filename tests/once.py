"""Fixtures that all workers of the tests share: the first that needs one makes it, the others wait for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return the folder that `make` has filled, once for all workers; it is not to be changed.

    Args:
        factory: of temporary folders.
        name: of the folder.
        make: fills it; it gets the empty folder.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        alone = factory.mktemp(name)
        make(alone)
        return alone
    folder = factory.getbasetemp().parent / name
    done = folder.with_name(f"{name}-done")
    with FileLock(f"{folder}.lock"):
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
