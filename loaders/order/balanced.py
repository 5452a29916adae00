"""Class-balanced sampling as a pure function of the position: every class comes equally often.

Positions are divided into rounds of one draw per class, and each round has its own permutation of the
classes. The draws of a class go through permuted epochs of the class's rows, so every row of a class comes
once before any row of the class comes twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loaders.order import permutation

_CLASS_ORDER_STREAM = 2  # streams 0 and 1 are the labelled and the unlabelled rows
_FIRST_CLASS_STREAM = 3

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class ClassGroups:
    """Positions of labelled rows, grouped by class.

    Attributes:
        positions: int64 [M], sorted by class, then increasing.
        starts: int64 [G], where each class that occurs begins in `positions`.
        sizes: int64 [G], number of rows of each class that occurs.
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
    """Return the epochs and rows at positions of a class-balanced stream.

    Args:
        flat: int64 [B], positions counted from the start of training.

    Returns:
        epochs int64 [B], the number of complete passes over the drawn row's class so far; positions int64 [B]
        of the drawn rows in the split.
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
