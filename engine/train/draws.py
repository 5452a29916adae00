"""Random numbers of a training step that do not depend on the number of ranks or on a resume.

Every rank draws the numbers for the whole batch and keeps those for its own rows. Since an image needs only a
few numbers, this takes less time than one generator per row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from torch import Tensor

from engine.train.distributed import rank, world_size

_PART: ContextVar[tuple[int, int]] = ContextVar("part", default=(0, 1))


@contextmanager
def drawing_part(number: int, num_parts: int) -> Iterator[None]:
    """Make draws inside the block return one part of this rank's rows, which are cut into equal parts."""
    token = _PART.set((number, num_parts))
    try:
        yield
    finally:
        _PART.reset(token)


class StepDraws:
    """A stream of random numbers determined by seed and step; each call draws the next numbers."""

    def __init__(self, seed: int, step: int, device: torch.device) -> None:
        """Start the stream.

        Args:
            seed: seed of the run.
            step: number of the training step.
            device: device that draws the numbers; other kinds of devices draw other numbers.
        """
        mixed = int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)
        self._generator = torch.Generator(device).manual_seed(mixed)
        self._device = device

    def normal(self, num_rows: int, *shape: int) -> Tensor:
        """Return this rank's rows of standard normal numbers, float32 [num_rows, *shape]."""
        size = (_num_joined(num_rows), *shape)
        joined = torch.randn(size, generator=self._generator, device=self._device)
        return _own_rows(joined)

    def uniform(self, num_rows: int, *shape: int) -> Tensor:
        """Return this rank's rows of uniform numbers in [0, 1), float32 [num_rows, *shape]."""
        size = (_num_joined(num_rows), *shape)
        joined = torch.rand(size, generator=self._generator, device=self._device)
        return _own_rows(joined)

    def integers(self, high: int, num_rows: int, *shape: int) -> Tensor:
        """Return this rank's rows of uniform integers in [0, high), int64 [num_rows, *shape]."""
        size = (_num_joined(num_rows), *shape)
        return _own_rows(torch.randint(high, size, generator=self._generator, device=self._device))


def _num_joined(num_rows: int) -> int:
    return num_rows * _PART.get()[1] * world_size()


def _own_rows(joined: Tensor) -> Tensor:
    number, num_parts = _PART.get()
    return joined.chunk(world_size())[rank()].chunk(num_parts)[number]
