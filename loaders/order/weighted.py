"""Sampling by weights as a pure function of the position: a row comes as often as its weight says.

An epoch of N draws is a systematic sample (Madow 1949): N points at equal distances over the summed weights,
from one random start, in permuted order. A row of share w comes N * w times, rounded up or down; chance never
makes it much more or less.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from loaders.common.errors import UserError, brief
from loaders.kernels.random import uniform4
from loaders.order import permutation

_STREAM = 2**16  # a stream apart from those of rows and classes
_OPERATION = 2**16 + 1
_NUM_EPOCHS = 2**32  # an epoch is one word of the random numbers' counter

Positions = NDArray[np.int64]


def cumulative_shares(weights: Any, num_rows: int) -> NDArray[np.float64]:
    """Return float64 [N], the cumulative shares: they increase to 1, the last.

    Args:
        weights: numbers [N], at least 0.
        num_rows: N.

    Raises:
        UserError: another shape, negative or infinite weights, or none above 0.
    """
    array = _array(weights, num_rows)
    if array.shape != (num_rows,) or array.dtype.kind not in "iuf":
        raise UserError(
            f"sampler: expected 'balanced', or one weight for each of {num_rows} rows of the split, found "
            f"{array.dtype} {list(array.shape)}; give an array of numbers"
        )
    shares = array.astype(np.float64)
    if not np.isfinite(shares).all() or shares.min() < 0 or shares.sum() <= 0:
        raise UserError(
            f"sampler: expected finite weights of at least 0, one above it, found {shares.min()} to "
            f"{shares.max()}; correct them"
        )
    ends: NDArray[np.float64] = np.cumsum(shares / shares.sum())
    ends[shares.nonzero()[0][-1] :] = 1.0  # rounding must leave no gap behind the last row with a weight
    return ends


def _array(weights: Any, num_rows: int) -> NDArray[Any]:
    """Return weights as an array, even those of a tensor on a device, with gradients or of bfloat16."""
    try:
        if isinstance(weights, Tensor):
            weights = weights.detach().cpu()
            weights = (weights.double() if weights.is_floating_point() else weights).numpy()
        return np.asarray(weights)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"sampler: expected 'balanced', or one weight for each of {num_rows} rows of the split, found "
            f"{type(weights).__name__} that makes no array ({brief(error)}); give an array of numbers"
        ) from error


def weighted_positions(
    epoch: int, positions: Positions, ends: NDArray[np.float64], seed: int, in_turns: bool = False
) -> tuple[Positions, Positions]:
    """Return epochs and rows for places of an epoch.

    Args:
        epoch: at least 0.
        positions: int64 [B], places of the epoch in [0, N).
        ends: see `cumulative_shares`.
        seed: seed of the order.
        in_turns: let a row's epochs be even and odd in turns, for views that alternate with them.

    Returns:
        epochs int64 [B], which differs each time that a row comes, so that its views differ, and positions
        int64 [B] of the split.
    """
    num_rows = len(ends)
    start = float(uniform4(np.int64(seed), epoch, 0, _STREAM, _OPERATION, 0)[0])
    slots = permutation.permute_stream(
        np.full(len(positions), epoch, np.int64), positions, num_rows, seed, _STREAM
    )
    rows = np.minimum(np.searchsorted(ends, (slots + start) / num_rows, side="right"), num_rows - 1)
    begins = np.concatenate([[0.0], ends[:-1]])
    largest = float(np.diff(ends, prepend=0.0).max())
    most = int(num_rows * largest) + 2  # a row comes at most so often in an epoch
    if in_turns:
        # If `most` were even, a row that comes once an epoch would always have an odd number, and so one side
        # of its image. An odd `most` changes the parity from epoch to epoch. The number also seeds the draws
        # of views, so views without sides keep `most`.
        most |= 1
    turn = slots - np.floor(begins[rows] * num_rows - start).astype(np.int64)
    return (epoch * most + np.clip(turn, 0, most - 1)) % _NUM_EPOCHS, rows
