"""Reused memory that is safe to keep: a buffer returns to its pool when nothing refers to it any more."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

CACHE_LINE_BYTES = 64


def aligned_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return zeros that begin on a cache line: a 64-byte vector across two lines costs two accesses."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + CACHE_LINE_BYTES, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE_BYTES
    return memory[start : start + size].view(dtype).reshape(shape)


class BufferPool:
    """Arrays of one shape and dtype, handed out again once their last user is gone.

    Fresh memory for every batch costs a page fault for each 4 KiB written; a ring of slots would be
    overwritten under a caller who keeps a batch. Here a batch is as fast as a ring's and stays intact for as
    long as any tensor that shares its memory lives.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self._shape = shape
        self._dtype = np.dtype(dtype)
        self._free: list[NDArray[Any]] = []
        self._lock = threading.Lock()

    def take(self) -> NDArray[Any]:
        """Return an array whose memory comes back to the pool when the array and its views are gone."""
        with self._lock:
            memory = self._free.pop() if self._free else aligned_zeros(self._shape, self._dtype)
        lent = memory.view()
        weakref.finalize(lent, self._give_back, memory).atexit = False
        return lent

    def _give_back(self, memory: NDArray[Any]) -> None:
        with self._lock:
            self._free.append(memory)
