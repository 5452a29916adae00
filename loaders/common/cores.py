"""The number of processor cores available."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cores_per_rank() -> int:
    """Return the number of cores for each rank launched on this machine; at least 1."""
    return max(1, available_cores() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1)))
