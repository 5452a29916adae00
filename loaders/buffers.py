"""Reused memory that is safe to keep: a buffer returns to its pool when nothing refers to it any more."""

from __future__ import annotations

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

    def take(self) -> NDArray[Any]:
        """Return an array whose memory comes back to the pool when the array and its views are gone."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = aligned_zeros(self._shape, self._dtype)
        lent = memory.view()
        reference = weakref.ref(lent, _give_back)
        _lent[id(reference)] = (reference, memory, self._free)
        return lent


# By the identity of a weak reference: it, what was lent and where that goes. No `weakref.finalize`, whose
# own list is walked when the process exits and must not change meanwhile; here threads may be at work still.
_lent: dict[int, tuple[weakref.ref[NDArray[Any]], NDArray[Any], list[NDArray[Any]]]] = {}


def _give_back(reference: weakref.ref[NDArray[Any]]) -> None:
    _, memory, free = _lent.pop(id(reference))
    free.append(memory)
