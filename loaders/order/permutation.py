"""The order of rows: pure functions from (seed, epoch, position) to a row; nothing is stored or replayed.

An epoch is a keyed permutation of the rows, computed position by position with a Feistel network. So any
step of any epoch is reached in constant time and memory, for any number of rows, and resuming costs nothing.
Step k is one slice of the permuted order, cut into equal parts for the ranks, so the rows of a step do not
depend on the number of ranks. Changing the constants or rounds below would change every order drawn so far;
a test keeps them fixed.

Packs larger than memory are ordered by `loaders.order.blocks`, which builds on `permute`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

from loaders.common.checks import check_batch
from loaders.kernels.cache import exact_kernel

Positions = NDArray[np.int64]
Keys = NDArray[np.uint64]

# Measured: with 8 rounds, the permutations of 5 rows are not equally frequent; with 16 rounds they are. For
# tens of thousands of rows, 6 rounds already pass every test here. Small splits can afford more rounds.
NUM_ROUNDS = 8
NUM_ROUNDS_SMALL = 24
SMALL_ROWS = 2**16
MAX_ROWS = 2**60
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B = np.uint64(0x94D049BB133111EB)
_MIX_C = np.uint64(0xD6E8FEB86659FD93)
_SHIFT_32 = np.uint64(32)
_WORD = (1 << 64) - 1


def permute(positions: Positions, num_rows: int, seed: int, epoch: int, stream: int = 0) -> Positions:
    """Return the row at each position of an epoch's order.

    The order is a Feistel network with modular addition over a * 2^s >= num_rows cells. A result outside the
    rows goes through the network again (cycle walking), so that the order is a bijection; fewer than one
    position in sqrt(num_rows) needs this. Releases the GIL.

    Args:
        positions: int64 [K], each in [0, num_rows).
        num_rows: rows of the split, at least 1.
        seed: any integer; its low 64 bits count.
        epoch: epoch number, at least 0.
        stream: tells apart orders that share seed and epoch (labelled and unlabelled rows, shards).

    Returns:
        int64 [K] rows; over all positions, a bijection of range(num_rows).

    Raises:
        ValueError: positions, rows or epoch out of range.

    Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (2002), generalised Feistel and
        cycle walking; the mixing is splitmix64's (Steele et al. 2014).
    """
    if not 1 <= num_rows <= MAX_ROWS:
        raise ValueError(f"num_rows: expected 1 to 2**60, found {num_rows}")
    if epoch < 0:
        raise ValueError(f"epoch: expected 0 or more, found {epoch}")
    positions = np.ascontiguousarray(positions, dtype=np.int64)
    if positions.size and (int(positions.min()) < 0 or int(positions.max()) >= num_rows):
        raise ValueError(
            f"positions: expected 0 to {num_rows - 1}, found {positions.min()} to {positions.max()}"
        )
    low_bits = max(1, (num_rows.bit_length() - 1) // 2)
    high_cells = (num_rows + (1 << low_bits) - 1) >> low_bits
    rows = np.empty_like(positions)
    keys = _round_keys(seed, epoch, stream, NUM_ROUNDS if num_rows > SMALL_ROWS else NUM_ROUNDS_SMALL)
    _permute_kernel(positions, rows, keys, np.uint64(num_rows), np.uint64(high_cells), np.uint64(low_bits))
    return rows


@lru_cache(64)
def _round_keys(seed: int, epoch: int, stream: int, num_rounds: int) -> Keys:
    """Return uint64 [num_rounds] keys: splitmix64 absorbs the three integers, then counts."""
    state = 0
    for word in (seed, epoch, stream):
        state = _splitmix((state ^ word) & _WORD)
    keys = []
    for _ in range(num_rounds):
        state = (state + int(_GOLDEN)) & _WORD
        keys.append(_splitmix(state))
    return np.array(keys, dtype=np.uint64)


def _splitmix(word: int) -> int:
    word = (word + int(_GOLDEN)) & _WORD
    word = ((word ^ (word >> 30)) * int(_MIX_A)) & _WORD
    word = ((word ^ (word >> 27)) * int(_MIX_B)) & _WORD
    return word ^ (word >> 31)


@njit(nogil=True, inline="always")
def _mix(half: np.uint64, key: np.uint64) -> np.uint64:
    # Mixes a half (below 2^32) and a key into 32 bits.
    word = (half + key) * _GOLDEN
    word ^= word >> _SHIFT_32
    return (word * _MIX_C) >> _SHIFT_32


@njit(nogil=True, inline="always")
def _feistel(cell: np.uint64, keys: Keys, high_cells: np.uint64, low_bits: np.uint64) -> np.uint64:
    low_mask = (uint64(1) << low_bits) - uint64(1)
    high, low = cell >> low_bits, cell & low_mask
    for r in range(0, keys.size, 2):
        high += (_mix(low, keys[r]) * high_cells) >> _SHIFT_32
        high = min(high, high - high_cells)  # unsigned: below zero the subtraction wraps to a large number
        low = (low + _mix(high, keys[r + 1])) & low_mask
    return (high << low_bits) | low


@exact_kernel
def _permute_kernel(
    positions: Positions,
    rows: Positions,
    keys: Keys,
    num_rows: np.uint64,
    high_cells: np.uint64,
    low_bits: np.uint64,
) -> None:
    # Two passes, because the first has no data-dependent branch and is vectorised.
    for k in range(positions.size):
        rows[k] = _feistel(uint64(positions[k]), keys, high_cells, low_bits)
    for k in range(positions.size):
        cell = uint64(rows[k])
        while cell >= num_rows:
            cell = _feistel(cell, keys, high_cells, low_bits)
        rows[k] = cell


def num_steps(num_rows: int, batch_size: int, drop_last: bool = True) -> int:
    """Return the steps of one epoch, the same on every rank: rounded down with `drop_last`, else up."""
    return num_rows // batch_size if drop_last else -(-num_rows // batch_size)


def rank_slice(step: int, batch_size: int, rank: int = 0, num_ranks: int = 1) -> Positions:
    """Return the consecutive positions of one rank in a global step.

    Step k covers positions [k * batch_size, (k + 1) * batch_size) of the order. Rank r takes the r-th of
    `num_ranks` equal parts, so the parts joined in rank order are what a single rank would get.

    Args:
        step: global step within the epoch, or within the stream.
        batch_size: global batch size, a multiple of `num_ranks`.
        rank: rank of this process, in [0, num_ranks).

    Returns:
        int64 [batch_size / num_ranks]; may reach beyond the last row of an epoch.

    Raises:
        UserError: the batch is not divisible by the ranks.
        ValueError: step or rank out of range.
    """
    check_batch(batch_size, batch_size, num_ranks)
    if step < 0 or not 0 <= rank < num_ranks:
        raise ValueError(f"expected step >= 0 and 0 <= rank < {num_ranks}, found step {step}, rank {rank}")
    part = batch_size // num_ranks
    start = step * batch_size + rank * part
    return np.arange(start, start + part, dtype=np.int64)


def step_positions(
    step: int, num_rows: int, batch_size: int, rank: int = 0, num_ranks: int = 1, drop_last: bool = True
) -> tuple[Positions, NDArray[np.bool_]]:
    """Return one rank's positions in a step of one epoch, and which of them are not padding.

    In training (`drop_last`), the last partial batch is left out and every position is valid; `permute` maps
    the positions to rows. In evaluation, the positions are the rows themselves; the last batch is padded
    with the last row, marked False, so that every row counts exactly once.

    Args:
        step: step within the epoch, in [0, num_steps(num_rows, batch_size, drop_last)).
        batch_size: global batch size, a multiple of `num_ranks`.
        drop_last: True in training, False in evaluation.

    Returns:
        positions int64 [batch_size / num_ranks], each in [0, num_rows), and valid bool of the same shape.

    Raises:
        UserError: an impossible batch (see `check_batch`).
        ValueError: step or rank out of range.
    """
    check_batch(num_rows, batch_size, num_ranks, drop_last)
    steps = num_steps(num_rows, batch_size, drop_last)
    if not 0 <= step < steps:
        raise ValueError(f"step: expected 0 to {steps - 1}, found {step}")
    positions = rank_slice(step, batch_size, rank, num_ranks)
    valid = positions < num_rows
    return np.minimum(positions, num_rows - 1), valid


def stream_positions(
    global_step: int, batch_size: int, num_rows: int, rank: int = 0, num_ranks: int = 1
) -> tuple[Positions, Positions]:
    """Return epochs and positions of one rank's part of a step in a stream that cycles through its epochs.

    Epochs follow each other without a gap: a batch may hold the end of one epoch and the start of the next.
    So no row is dropped, and the global step alone gives the position in the stream.

    Args:
        global_step: step since the start of training.
        batch_size: global batch size of this stream (B, or mu * B), a multiple of `num_ranks`.
        num_rows: rows of the stream's split; may be fewer than the batch.

    Returns:
        epochs and positions, both int64 [batch_size / num_ranks], positions in [0, num_rows).

    Raises:
        UserError: an impossible batch (see `check_batch`).
        ValueError: step or rank out of range.
    """
    check_batch(num_rows, batch_size, num_ranks, drop_last=False)
    flat = rank_slice(global_step, batch_size, rank, num_ranks)
    return flat // num_rows, flat % num_rows


def permute_stream(
    epochs: Positions, positions: Positions, num_rows: int, seed: int, stream: int = 0
) -> Positions:
    """Return the row at each position, int64 [K], as `permute` does, but each position has its own epoch."""
    if epochs.size and (epochs == epochs[0]).all():
        return permute(positions, num_rows, seed, int(epochs[0]), stream)
    rows = np.empty_like(positions)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        rows[chosen] = permute(positions[chosen], num_rows, seed, int(epoch), stream)
    return rows
