"""Fixtures that all test workers share: the first worker that needs one makes it, the others wait for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that `make` has filled, once for all workers; tests must not change it.

    Args:
        factory: makes temporary folders.
        name: name of the folder.
        make: fills the empty folder that it is given.
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
