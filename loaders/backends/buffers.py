"""Reused memory that is safe to keep: a buffer returns to its pool when nothing refers to it any more."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from loaders.kernels.memory import aligned_zeros

# A loop drops a batch as soon as it has the next one, so a third batch can wait for the memory of the first.
_PATIENCE_S, _POLL_S = 0.1, 0.0002


class BufferPool:
    """Arrays of one shape and dtype, handed out again once their last user is gone.

    Fresh memory for every batch costs a page fault for each 4 KiB written; a ring of slots would be
    overwritten under a caller who keeps a batch. Here a batch is as fast as a ring's and stays intact for as
    long as any tensor that shares its memory lives.
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
            shape: shape of the arrays.
            dtype: dtype of the arrays.
            usual: arrays needed if every user drops its array in time. `take` waits a moment before it makes
                more than these; None: it never waits.
            allocate: makes an array.
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
        """Wait for memory to come back; after one wait in vain never wait again, since users keep batches."""
        deadline = time.monotonic() + _PATIENCE_S
        while not self._free:
            if time.monotonic() > deadline:
                self._usual = None
                return
            time.sleep(_POLL_S)


def pinned_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return zeros in memory that begins on a page and that a device can copy from by itself."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory: NDArray[Any] = torch.zeros(size, dtype=torch.uint8, pin_memory=True).numpy()
    return memory.view(dtype).reshape(shape)


# Key: the identity of a weak reference. Value: the reference, the memory lent, and the pool it returns to.
# `weakref.finalize` does not serve here: Python walks its list when the process exits, and threads that still
# work would change the list meanwhile.
_lent: dict[int, tuple[weakref.ref[NDArray[Any]], NDArray[Any], list[NDArray[Any]]]] = {}


def _give_back(reference: weakref.ref[NDArray[Any]]) -> None:
    _, memory, free = _lent.pop(id(reference))
    free.append(memory)
