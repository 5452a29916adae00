"""Class-balanced sampling as a pure function of the position: every class comes equally often.

Positions fall into rounds of one draw per class. The order of the classes is a permutation per round, and
the draws of a class go through its rows in permuted epochs of their own: every row of a class comes once
before any comes twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loaders.order import permutation

_CLASS_ORDER_STREAM = 2  # after the labelled and the unlabelled stream
_FIRST_CLASS_STREAM = 3

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class ClassGroups:
    """Positions of labelled rows, by class.

    Attributes:
        positions: int64 [M], sorted by class, then increasing.
        starts: int64 [G], where each class that occurs begins in `positions`.
        sizes: int64 [G], rows of each class that occurs.
    """

    positions: Positions
    starts: Positions
    sizes: Positions


def group_by_class(labels: NDArray[np.int64]) -> ClassGroups:
    """Group positions by label.

    Args:
        labels: int64 [M], each at least 0.
    """
    _, sizes = np.unique(labels, return_counts=True)
    positions = np.argsort(labels, kind="stable").astype(np.int64)
    return ClassGroups(positions, (np.cumsum(sizes) - sizes).astype(np.int64), sizes.astype(np.int64))


def balanced_positions(flat: Positions, groups: ClassGroups, seed: int) -> tuple[Positions, Positions]:
    """Return epochs and rows for positions of a class-balanced stream.

    Args:
        flat: int64 [B], positions since the start of training, at least 0.
        groups: labelled rows of each class.
        seed: seed of the order.

    Returns:
        epochs int64 [B], how often all rows of the drawn row's class have come before, and positions
        int64 [B] of the split.
    """
    num_groups = len(groups.sizes)
    rounds, slots = flat // num_groups, flat % num_groups
    group = permutation.permute_stream(rounds, slots, num_groups, seed, _CLASS_ORDER_STREAM)
    epochs = rounds // groups.sizes[group]
    within = rounds % groups.sizes[group]
    for g in np.unique(group):
        drawn = group == g
        within[drawn] = permutation.permute_stream(
            epochs[drawn], within[drawn], int(groups.sizes[g]), seed, _FIRST_CLASS_STREAM + int(g)
        )
    return epochs, groups.positions[groups.starts[group] + within]
