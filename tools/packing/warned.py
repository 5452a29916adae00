"""What decoders said of the images of a pack, and which of them were repaired."""

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
    """What decoders said.

    Attributes:
        messages: number of images per message.
        num_warned: images that a decoder said something of.
        repaired: int64 [num_repaired], rows that a strict decoder refuses as they came.
    """

    messages: Counter[str]
    num_warned: int
    repaired: NDArray[np.int64]

    @property
    def num_repaired(self) -> int:
        """How many were repaired."""
        return len(self.repaired)


def read_warnings(pack: Pack) -> Warnings:
    """Count what was said, in one pass over the lines, and find the rows that were repaired."""
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
