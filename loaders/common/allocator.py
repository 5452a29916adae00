"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGEST_BLOCKS = 2**30, 2**25  # bytes; glibc before 2.35 refuses the first
_NEVER = -1


def keep_freed_memory() -> None:
    """Let memory that is freed stay with this process, up to its peak, for what is allocated next.

    glibc by itself gives large blocks back to the system, which then clears every page of the next one: a
    third of a training's processor time at 112 pixels (docs/performance.md). Nothing happens with another C
    library, or where a user has chosen by glibc's variables, MALLOC_* or GLIBC_TUNABLES.
    """
    chosen = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if chosen or any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    # Either option fixes the size from which blocks are given back, so that size has to be taken first.
    if any(mallopt(_MMAP_THRESHOLD, size) for size in _LARGEST_BLOCKS):
        mallopt(_TRIM_THRESHOLD, _NEVER)
