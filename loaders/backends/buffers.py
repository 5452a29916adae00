"""Reused memory that is safe to keep: a buffer returns to its pool once nothing refers to it any more."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from loaders.kernels.memory import aligned_zeros

# How long `take` waits for memory, and how often it looks. A training loop drops a batch as soon as it has
# the next one, so the memory of the first batch is soon free for the third.
_PATIENCE_S, _POLL_S = 0.1, 0.0002


class BufferPool:
    """Arrays of one shape and dtype, handed out again once their last user is gone.

    Fresh memory for every batch costs a page fault for each 4 KiB written; a ring of slots would overwrite
    the batches that a caller keeps. This pool is as fast as a ring, and a batch stays intact for as long as
    any tensor that shares its memory lives.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        usual: int | None = None,
        allocate: Callable[[tuple[int, ...], DTypeLike], NDArray[Any]] = aligned_zeros,
    ) -> None:
        """Begin without memory.

        Args:
            shape, dtype: those of each array.
            usual: number of arrays that suffice if users drop theirs in time; `take` waits a moment before it
                allocates more. None: it never waits.
            allocate: returns a new array of a shape and dtype.
        """
        self._shape = shape
        self._dtype = np.dtype(dtype)
        self._free: list[NDArray[Any]] = []
        self._num_made = 0
        self._usual = usual
        self._allocate = allocate

    def take(self) -> NDArray[Any]:
        """Return an array. Its memory comes back to the pool when the array and all views of it are gone."""
        if self._usual is not None and self._num_made >= self._usual and not self._free:
            self._wait()
        try:
            memory = self._free.pop()
        except IndexError:
            memory = self._allocate(self._shape, self._dtype)
            self._num_made += 1
        lent = memory.view()
        reference = weakref.ref(lent, _give_back)
        _lent[id(reference)] = (reference, memory, self._free)
        return lent

    def _wait(self) -> None:
        """Wait for memory to come back; after a wait in vain, never wait again, since users keep batches."""
        deadline = time.monotonic() + _PATIENCE_S
        while not self._free:
            if time.monotonic() > deadline:
                self._usual = None
                return
            time.sleep(_POLL_S)


def pinned_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return zeros in page-aligned, pinned memory, which a device can read by itself."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory: NDArray[Any] = torch.zeros(size, dtype=torch.uint8, pin_memory=True).numpy()
    return memory.view(dtype).reshape(shape)


# Key: the identity of a weak reference. Value: the reference, the memory lent, and the pool it returns to.
# `weakref.finalize` cannot be used here: Python walks its registry when the process exits, while threads that
# still run would change it.
_lent: dict[int, tuple[weakref.ref[NDArray[Any]], NDArray[Any], list[NDArray[Any]]]] = {}


def _give_back(reference: weakref.ref[NDArray[Any]]) -> None:
    _, memory, free = _lent.pop(id(reference))
    free.append(memory)
