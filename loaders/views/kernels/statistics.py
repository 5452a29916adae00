"""What some colour operations must know of the whole view: mean luma, extremes, histograms."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loaders.views.codes import AUTOCONTRAST, CONTRAST, EQUALIZE
from loaders.views.kernels.compile import kernel


class Stats(NamedTuple):
    """Statistics of one view, gathered tile by tile."""

    mean: NDArray[np.float32]  # [1] luma, for CONTRAST
    low: NDArray[np.float32]  # [3], for AUTOCONTRAST
    high: NDArray[np.float32]  # [3]
    counts: NDArray[np.int64]  # [3, 256], for EQUALIZE
    table: NDArray[np.float32]  # [3, 256], equalised value of each value


def make_stats() -> Stats:
    """Allocate statistics."""
    return Stats(
        mean=np.zeros(1, np.float32),
        low=np.zeros(3, np.float32),
        high=np.zeros(3, np.float32),
        counts=np.zeros((3, 256), np.int64),
        table=np.zeros((3, 256), np.float32),
    )


@kernel
def needs_statistics(code):
    """Return whether an operation must see the whole view before it changes a pixel."""
    return code in (CONTRAST, AUTOCONTRAST, EQUALIZE)


@kernel
def begin_statistics(stats):
    """Forget the last view."""
    stats.mean[0] = 0.0
    for c in range(3):
        stats.low[c], stats.high[c] = 255.0, 0.0
        for value in range(256):
            stats.counts[c, value] = 0


@kernel
def add_statistics(code, stats, r, g, b):
    """Add a tile to what operation `code` needs."""
    if code == CONTRAST:
        stats.mean[0] += _luma_sum(r, g, b)
    elif code == AUTOCONTRAST:
        _add_extremes(r, 0, stats)
        _add_extremes(g, 1, stats)
        _add_extremes(b, 2, stats)
    else:
        _count(r, stats.counts[0])
        _count(g, stats.counts[1])
        _count(b, stats.counts[2])


@kernel
def end_statistics(code, stats, size):
    """Finish after the last tile of a view of `size` pixels."""
    if code == CONTRAST:
        stats.mean[0] /= np.float32(size)
    elif code == EQUALIZE:
        for c in range(3):
            _fill_table(stats.counts[c], stats.table[c])


@kernel
def _luma_sum(r, g, b):
    total = np.float32(0.0)
    for i in range(len(r)):
        total += np.float32(0.2989) * r[i] + np.float32(0.587) * g[i] + np.float32(0.114) * b[i]
    return total


@kernel
def _add_extremes(channel, c, stats):
    low, high = stats.low[c], stats.high[c]
    for i in range(len(channel)):
        low = channel[i] if channel[i] < low else low
        high = channel[i] if channel[i] > high else high
    stats.low[c], stats.high[c] = low, high


@kernel
def _count(channel, counts):
    for i in range(len(channel)):
        counts[int(channel[i] + np.float32(0.5))] += 1


@kernel
def _fill_table(counts, table):
    """Equalise as PIL does: the step leaves out the last occupied value; a single value stays."""
    total, last = 0, 0
    for value in range(256):
        total += counts[value]
        if counts[value] > 0:
            last = counts[value]
    step = (total - last) // 255
    below = step // 2
    for value in range(256):
        table[value] = value if step == 0 else min(255, below // step)
        below += counts[value]
