"""Makes the C library keep freed memory."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGEST_BLOCKS = 2**30, 2**25  # thresholds to try, bytes; glibc before 2.35 refuses the first
_NEVER = -1


def keep_freed_memory() -> None:
    """Make glibc keep freed memory, apart from the largest blocks, for later allocations of this process.

    By default, glibc returns large blocks to the system, which then clears every page of the next block. This
    took a quarter of a training's time at 112 pixels (docs/performance.md). Nothing changes with
    another C library, or if the user has set a MALLOC_* variable, or glibc.malloc in GLIBC_TUNABLES.
    """
    chosen = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if chosen or any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    # Setting either option stops glibc from adapting the mmap threshold, so set that threshold first.
    if any(mallopt(_MMAP_THRESHOLD, size) for size in _LARGEST_BLOCKS):
        mallopt(_TRIM_THRESHOLD, _NEVER)
