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

# A loop drops a batch as soon as it has the next one; the memory of the one after it can wait for that.
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
            shape: of the arrays.
            dtype: of the arrays.
            usual: how many there need to be if each is dropped in time; before there are more, `take` waits a
                moment. None: it never waits.
            allocate: makes an array.
        """
        self._shape = shape
        self._dtype = np.dtype(dtype)
        self._free: list[NDArray[Any]] = []
        self._num_made = 0
        self._usual = usual
        self._allocate = allocate

    def take(self) -> NDArray[Any]:
        """Return an array whose memory comes back to the pool when the array and its views are gone."""
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
        """Wait for memory to come back; once in vain is enough, since its users want to keep it then."""
        deadline = time.monotonic() + _PATIENCE_S
        while not self._free:
            if time.monotonic() > deadline:
                self._usual = None
                return
            time.sleep(_POLL_S)


def pinned_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return zeros that a device copies from by itself; they begin on a page."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory: NDArray[Any] = torch.zeros(size, dtype=torch.uint8, pin_memory=True).numpy()
    return memory.view(dtype).reshape(shape)


# By the identity of a weak reference: it, what was lent and where that goes. No `weakref.finalize`, whose
# own list is walked when the process exits and must not change meanwhile; here threads may be at work still.
_lent: dict[int, tuple[weakref.ref[NDArray[Any]], NDArray[Any], list[NDArray[Any]]]] = {}


def _give_back(reference: weakref.ref[NDArray[Any]]) -> None:
    _, memory, free = _lent.pop(id(reference))
    free.append(memory)
