"""Finding rows that share a hash, in memory that does not depend on the number of rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_ROWS_AT_ONCE = 1 << 22


def repeated_rows(
    hashes: NDArray[np.uint64], rows_at_once: int = _ROWS_AT_ONCE
) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of every hash that occurs more than once.

    The hashes are read in about N / `rows_at_once` passes. Each pass keeps only the hashes in one range of
    values; well-mixed hashes fill the ranges evenly.

    Args:
        hashes: uint64 [N], or [N, 2] for hashes of 128 bits; may be a memory map.
        rows_at_once: approximate number of rows held in memory.

    Yields:
        int64 [K >= 2], the rows that share a hash, in increasing order.
    """
    num_parts = 1 << max(0, (-(-len(hashes) // rows_at_once) - 1).bit_length())
    shift = np.uint64(64 - (num_parts.bit_length() - 1))
    for part in range(num_parts):
        rows, values = _rows_of_part(hashes, part, num_parts, shift, rows_at_once)
        order = np.lexsort(values.T)
        values, rows = values[order], rows[order]
        new = np.ones(len(rows), bool)
        new[1:] = (values[1:] != values[:-1]).any(axis=1)
        starts = np.flatnonzero(new)
        stops = np.append(starts[1:], len(rows))
        for index in np.flatnonzero(stops - starts > 1):
            yield np.sort(rows[starts[index] : stops[index]])


def _rows_of_part(
    hashes: NDArray[np.uint64], part: int, num_parts: int, shift: np.uint64, block: int
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    rows, values = [], []
    for first in range(0, len(hashes), block):
        chunk = np.asarray(hashes[first : first + block]).reshape(min(block, len(hashes) - first), -1)
        chosen = np.arange(len(chunk)) if num_parts == 1 else np.flatnonzero(chunk[:, 0] >> shift == part)
        rows.append(chosen + first)
        values.append(chunk[chosen])
    if not rows:
        return np.zeros(0, np.int64), np.zeros((0, 1), np.uint64)
    return np.concatenate(rows), np.concatenate(values)
