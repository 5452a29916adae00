"""Measure how well an order mixes, compared with a full shuffle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loaders.order.permutation import Positions


@dataclass(frozen=True)
class MixingQuality:
    """Similarity of an order to a full shuffle, for which both ratios are 1.

    Attributes:
        neighbour_ratio: mean distance in the pack between consecutive rows of the order, divided by that of a
            full shuffle, (num_rows + 1) / 3.
        groups_per_batch: mean number of distinct groups (classes, shards) in a batch.
        groups_expected: expected `groups_per_batch` of a full shuffle, by the hypergeometric distribution.
    """

    neighbour_ratio: float
    groups_per_batch: float
    groups_expected: float

    @property
    def group_ratio(self) -> float:
        """The groups per batch divided by those of a full shuffle."""
        return self.groups_per_batch / self.groups_expected


def mixing_quality(order: Positions, groups: NDArray[np.integer], batch_size: int) -> MixingQuality:
    """Compare an order, or any consecutive part of one, with a full shuffle.

    Args:
        order: int64 [K] rows in the order of reading, K >= max(2, batch_size).
        groups: integer [num_rows], the class or shard of each row, from 0.
        batch_size: rows per batch.
    """
    num_rows = groups.size
    distance = float(np.abs(np.diff(order)).mean()) / ((num_rows + 1) / 3)
    found = [np.unique(batch).size for batch in _batches(groups[order], batch_size)]
    sizes = np.bincount(groups)
    expected = sum(1.0 - _chance_of_none(num_rows, int(size), batch_size) for size in sizes if size)
    return MixingQuality(distance, float(np.mean(found)), expected)


def _batches(values: NDArray[np.integer], batch_size: int) -> Iterator[NDArray[np.integer]]:
    for start in range(0, values.size - batch_size + 1, batch_size):
        yield values[start : start + batch_size]


def _chance_of_none(num_rows: int, group_size: int, batch_size: int) -> float:
    """Return the probability that a batch drawn without replacement contains no row of a group."""
    drawn = np.arange(batch_size, dtype=np.float64)
    return float(np.prod(np.clip((num_rows - group_size - drawn) / (num_rows - drawn), 0.0, 1.0)))
