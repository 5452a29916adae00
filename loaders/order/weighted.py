"""Sampling by weights as a pure function of the position: a row comes in proportion to its weight.

An epoch of N draws is a systematic sample (Madow 1949): N points at equal distances over the summed weights,
from one random start, in permuted order. A row of share w comes N * w times; chance only decides whether this
number is rounded up or down.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from loaders.common.errors import UserError, brief
from loaders.kernels.random import uniform4
from loaders.order import permutation

_STREAM = 2**16  # of the permutation; `view` of the random start. No row or class has it
_OPERATION = 2**16 + 1
_NUM_EPOCHS = 2**32  # the counter of the random numbers has 32 bits for the epoch

Positions = NDArray[np.int64]


def cumulative_shares(weights: Any, num_rows: int) -> NDArray[np.float64]:
    """Return the cumulative shares of the rows, float64 [N]; the last one is 1.

    Args:
        weights: numbers [N], at least 0.
        num_rows: N.

    Raises:
        UserError: another shape or type, weights that are negative or not finite, or none above 0.
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
            f"sampler: expected finite weights of at least 0, and one above 0, found {shares.min()} to "
            f"{shares.max()}; correct them"
        )
    ends: NDArray[np.float64] = np.cumsum(shares / shares.sum())
    ends[shares.nonzero()[0][-1] :] = 1.0  # rounding must leave no gap after the last row with a weight
    return ends


def _array(weights: Any, num_rows: int) -> NDArray[Any]:
    """Return weights as an array, even if they are a tensor on a device, with gradients or in bfloat16."""
    try:
        if isinstance(weights, Tensor):
            weights = weights.detach().cpu()
            weights = (weights.double() if weights.is_floating_point() else weights).numpy()
        return np.asarray(weights)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"sampler: expected 'balanced', or one weight for each of {num_rows} rows of the split, found "
            f"{type(weights).__name__} that cannot be converted to an array ({brief(error)}); give an array "
            "of numbers"
        ) from error


def weighted_positions(
    epoch: int, positions: Positions, ends: NDArray[np.float64], seed: int, in_turns: bool = False
) -> tuple[Positions, Positions]:
    """Return the epochs and rows at places of an epoch.

    Args:
        epoch: at least 0.
        positions: int64 [B], places of the epoch in [0, N).
        ends: see `cumulative_shares`.
        in_turns: make the returned epochs of a row even and odd in turns, for views that alternate by epoch.

    Returns:
        epochs int64 [B], a different number for each draw of a row, so that its views differ; positions
        int64 [B] of the drawn rows in the split.
    """
    num_rows = len(ends)
    start = float(uniform4(np.int64(seed), epoch, 0, _STREAM, _OPERATION, 0)[0])
    slots = permutation.permute_stream(
        np.full(len(positions), epoch, np.int64), positions, num_rows, seed, _STREAM
    )
    rows = np.minimum(np.searchsorted(ends, (slots + start) / num_rows, side="right"), num_rows - 1)
    begins = np.concatenate([[0.0], ends[:-1]])
    largest = float(np.diff(ends, prepend=0.0).max())
    most = int(num_rows * largest) + 2  # a row occurs at most this many times in an epoch
    if in_turns:
        # If `most` were even, the returned epoch of a row drawn once per epoch would always be odd, and the
        # row always show the same side. With an odd `most`, the parity changes from epoch to epoch. Returned
        # epochs also seed the random draws of views, so without `in_turns` an even `most` is kept.
        most |= 1
    turn = slots - np.floor(begins[rows] * num_rows - start).astype(np.int64)
    return (epoch * most + np.clip(turn, 0, most - 1)) % _NUM_EPOCHS, rows
