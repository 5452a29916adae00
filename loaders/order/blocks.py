"""Block shuffle: the order of packs larger than memory.

Shards are shuffled, consecutive shards of the shuffled order form windows, and rows are shuffled within their
window. So only the shards of one window, or of two at a border, are read at any time. The order is a
pure function of shard sizes, window, seed, epoch, stream and position, built on `loaders.order.permutation`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loaders.order.permutation import Positions, permute

_SHARD_STREAM = 1 << 32
_WINDOW_STREAM = _SHARD_STREAM + 1
_STREAM_SHIFT = 33  # streams lie 2^33 apart, more than any number of windows
_HELD_PLANS = 8


@dataclass(frozen=True)
class BlockPlan:
    """One epoch's shards in reading order, and where each shard and each window begins.

    Attributes:
        shards: int64 [S], shard numbers in reading order.
        shard_starts: int64 [S + 1], position at which each shard in reading order would begin if rows were
            not shuffled within windows; then the number of rows.
        window_starts: int64 [windows + 1], position at which each window begins; then the number of rows.
        row_starts: int64 [S], first row of each shard, by shard number.
    """

    shards: Positions
    shard_starts: Positions
    window_starts: Positions
    row_starts: Positions
    seed: int
    epoch: int
    stream: int


def block_plan(shard_rows: Positions, window: int, seed: int, epoch: int, stream: int = 0) -> BlockPlan:
    """Shuffle the shards of one epoch and cut them into windows.

    Args:
        shard_rows: int64 [S], number of rows in each shard, at least 1, by shard number.
        window: shards per window, at least 1; S or more gives a full shuffle.

    Returns:
        The plan, O(S) in time and memory.
    """
    num_shards = len(shard_rows)
    shards = permute(
        np.arange(num_shards), num_shards, seed, epoch, (stream << _STREAM_SHIFT) + _SHARD_STREAM
    )
    shard_starts = np.concatenate([[0], np.cumsum(shard_rows[shards])])
    window_starts = np.append(shard_starts[:-1:window], shard_starts[-1])
    row_starts = np.cumsum(shard_rows) - shard_rows
    return BlockPlan(shards, shard_starts, window_starts, row_starts, seed, epoch, stream)


def block_permute(positions: Positions, plan: BlockPlan) -> Positions:
    """Return the row at each position of a block-shuffled epoch.

    Args:
        positions: int64 [K], each in [0, rows of all shards).

    Returns:
        int64 [K] rows; over all positions, a bijection of the rows.
    """
    mixed = np.empty_like(positions)
    windows = np.searchsorted(plan.window_starts, positions, side="right") - 1
    for window in np.unique(windows):
        chosen = windows == window
        start, stop = (int(edge) for edge in plan.window_starts[window : window + 2])
        stream = (plan.stream << _STREAM_SHIFT) + _WINDOW_STREAM + int(window)
        mixed[chosen] = start + permute(
            positions[chosen] - start, stop - start, plan.seed, plan.epoch, stream
        )
    slots = np.searchsorted(plan.shard_starts, mixed, side="right") - 1
    return plan.row_starts[plan.shards[slots]] + mixed - plan.shard_starts[slots]


class BlockShuffle:
    """The block shuffle of one split, called like `loaders.order.permutation.permute_stream`.

    Args:
        shard_rows: int64 [S], number of the split's rows in each of its shards, in the order of the split.
    """

    def __init__(self, shard_rows: Positions, window: int) -> None:
        self.shard_rows = shard_rows
        self.window = window
        self._plans: dict[tuple[int, int, int], BlockPlan] = {}

    def plan(self, seed: int, epoch: int, stream: int) -> BlockPlan:
        """Return the plan of an epoch; the latest few plans are kept."""
        key = (seed, epoch, stream)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = block_plan(self.shard_rows, self.window, seed, epoch, stream)
            for old in list(self._plans)[:-_HELD_PLANS]:
                del self._plans[old]
        return plan

    def __call__(
        self, epochs: Positions, positions: Positions, num_rows: int, seed: int, stream: int
    ) -> Positions:
        """Return the positions in the split, int64 [K], of the rows at `positions` of `epochs`."""
        rows = np.empty_like(positions)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            rows[chosen] = block_permute(positions[chosen], self.plan(seed, int(epoch), stream))
        return rows
