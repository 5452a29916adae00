"""Measure whether the writing of finished views should bypass the caches on this machine."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loaders.kernels.cache import kernel
from loaders.kernels.memory import aligned_zeros
from loaders.kernels.simd import LANES, put, splat, stream

_PROBE_FLOATS = 2**23  # 32 MiB, more than a second-level cache holds
_CLEARLY = 1.5  # least speed-up: threads share the bandwidth that one measures alone, so small gains vanish


@kernel
def _stream_all(out):
    value = splat(np.float32(1.0))
    for i in range(0, len(out), LANES):
        stream(out, i, value)


@kernel
def _put_all(out):
    value = splat(np.float32(1.0))
    for i in range(0, len(out), LANES):
        put(out, i, value)


@functools.cache
def streaming_pays() -> bool:
    """Measure, once per process, whether stores that bypass the caches are clearly faster than plain ones.

    A batch is read only long after it was written, but a plain store first fetches the cache line from memory
    and then evicts something useful. Bypassing the caches is three times as fast on one processor, but slower
    on another (docs/performance.md). Both ways write the same values.
    """
    memory = aligned_zeros((_PROBE_FLOATS,), np.float32)
    return _least_seconds(_put_all, memory) > _CLEARLY * _least_seconds(_stream_all, memory)


def _least_seconds(write: Callable[[NDArray[Any]], None], memory: NDArray[np.float32]) -> float:
    best = float("inf")
    write(memory[:LANES])
    for _ in range(3):
        begin = time.perf_counter()
        write(memory)
        best = min(best, time.perf_counter() - begin)
    return best
