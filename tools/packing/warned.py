"""The decoders' warnings about the images of a pack, and the images that were repaired."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loaders.packs import Pack
from loaders.packs.image import Action
from loaders.packs.quarantine import warned

_ROWS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Warnings:
    """The decoders' warnings about the images of a pack.

    Attributes:
        messages: number of images per message.
        num_warned: number of images with warnings.
        repaired: int64 [num_repaired], rows whose original file a strict decoder refuses.
    """

    messages: Counter[str]
    num_warned: int
    repaired: NDArray[np.int64]

    @property
    def num_repaired(self) -> int:
        """Number of repaired images."""
        return len(self.repaired)


def read_warnings(pack: Pack) -> Warnings:
    """Count the warnings in the pack's list of them, and find the rows that were repaired."""
    messages: Counter[str] = Counter()
    num_warned = 0
    for entry in warned(pack.path):
        messages.update(entry["messages"])
        num_warned += 1
    rows = [
        first + np.flatnonzero(pack.columns.action[first : first + _ROWS_AT_ONCE] & int(Action.REPAIRED))
        for first in range(0, len(pack), _ROWS_AT_ONCE)
    ]
    return Warnings(messages, num_warned, np.concatenate([np.zeros(0, np.int64), *rows]))
