"""Statistics of the whole view that some colour operations need: luma, extremes, moments, histograms."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loaders.kernels.cache import inlined
from loaders.kernels.simd import LANES, highest, larger, load, lowest, smaller, splat
from loaders.kernels.views.codes import AUTOCONTRAST, CONTRAST, EQUALIZE, HALF, STANDARDIZE

_PARTS = 4  # histograms filled in turn, since an increment waits for the last one of the same counter


class Stats(NamedTuple):
    """Statistics of one view, gathered tile by tile."""

    mean: NDArray[np.float32]  # [1] mean luma, for CONTRAST
    low: NDArray[np.float32]  # [3], for AUTOCONTRAST
    high: NDArray[np.float32]  # [3]
    moments: NDArray[np.float64]  # [3, 3] rows: count, mean, sum of squared deviations; for STANDARDIZE
    center: NDArray[np.float32]  # [3] mean, for STANDARDIZE
    spread: NDArray[np.float32]  # [3] standard deviation
    counts: NDArray[np.int64]  # [3, _PARTS, 256], for EQUALIZE; the parts are summed at the end
    table: NDArray[np.float32]  # [3, 256], equalised value of each value


def make_stats() -> Stats:
    """Allocate statistics."""
    return Stats(
        mean=np.zeros(1, np.float32),
        low=np.zeros(3, np.float32),
        high=np.zeros(3, np.float32),
        moments=np.zeros((3, 3)),
        center=np.zeros(3, np.float32),
        spread=np.zeros(3, np.float32),
        counts=np.zeros((3, _PARTS, 256), np.int64),
        table=np.zeros((3, 256), np.float32),
    )


@inlined
def needs_statistics(code):
    """Return whether an operation needs statistics of the whole view."""
    return code in (CONTRAST, AUTOCONTRAST, EQUALIZE, STANDARDIZE)


@inlined
def begin_statistics(stats):
    """Reset the statistics for a new view."""
    stats.mean[0] = 0.0
    for c in range(3):
        stats.low[c], stats.high[c] = 255.0, 0.0
        for number in range(3):
            stats.moments[number, c] = 0.0
        for part in range(_PARTS):
            for value in range(256):
                stats.counts[c, part, value] = 0


@inlined
def add_statistics(code, stats, r, g, b):
    """Add a tile to the statistics that operation `code` needs."""
    if code == CONTRAST:
        stats.mean[0] += _luma_sum(r, g, b)
    elif code == AUTOCONTRAST:
        _add_extremes(r, stats.low[0:], stats.high[0:])
        _add_extremes(g, stats.low[1:], stats.high[1:])
        _add_extremes(b, stats.low[2:], stats.high[2:])
    elif code == STANDARDIZE:
        _add_moments(r, stats.moments[:, 0])
        _add_moments(g, stats.moments[:, 1])
        _add_moments(b, stats.moments[:, 2])
    else:
        _count(r, stats.counts[0])
        _count(g, stats.counts[1])
        _count(b, stats.counts[2])


@inlined
def end_statistics(code, stats, size):
    """Finish the statistics after the last tile of a view of `size` pixels."""
    if code == CONTRAST:
        stats.mean[0] /= np.float32(size)
    elif code == EQUALIZE:
        for c in range(3):
            _fill_table(stats.counts[c], stats.table[c])
    elif code == STANDARDIZE:
        for c in range(3):
            stats.center[c] = stats.moments[1, c]
            stats.spread[c] = np.sqrt(stats.moments[2, c] / size)


@inlined
def _luma_sum(r, g, b):
    total = np.float32(0.0)
    for i in range(len(r)):
        total += np.float32(0.2989) * r[i] + np.float32(0.587) * g[i] + np.float32(0.114) * b[i]
    return total


@inlined
def _add_extremes(channel, least, most):
    lows, highs = splat(least[0]), splat(most[0])
    whole = len(channel) // LANES * LANES
    for i in range(0, whole, LANES):
        values = load(channel, i)
        lows, highs = smaller(lows, values), larger(highs, values)
    low, high = lowest(lows), highest(highs)
    for i in range(whole, len(channel)):
        low, high = min(low, channel[i]), max(high, channel[i])
    least[0], most[0] = low, high


@inlined
def _add_moments(channel, moments):
    """Add a tile by Chan, Golub and LeVeque 1983: the deviations, from the tile's own mean, stay small."""
    total, squares = np.float32(0.0), np.float32(0.0)
    for i in range(len(channel)):
        total += channel[i]
    mean = total / np.float32(len(channel))
    for i in range(len(channel)):
        squares += (channel[i] - mean) * (channel[i] - mean)
    before, further = moments[0], mean - moments[1]
    moments[0] += len(channel)
    moments[1] += further * len(channel) / moments[0]
    moments[2] += squares + further * further * before * len(channel) / moments[0]


@inlined
def _count(channel, counts):
    whole = len(channel) // _PARTS * _PARTS
    for i in range(0, whole, _PARTS):
        for part in range(_PARTS):
            counts[part, int(channel[i + part] + np.float32(HALF))] += 1
    for i in range(whole, len(channel)):
        counts[0, int(channel[i] + np.float32(HALF))] += 1


@inlined
def _fill_table(counts, table):
    """Fill the table as PIL's equalize does: the step leaves out the pixels of the highest value."""
    total, last = 0, 0
    for value in range(256):
        for part in range(1, _PARTS):
            counts[0, value] += counts[part, value]
        total += counts[0, value]
        if counts[0, value] > 0:
            last = counts[0, value]
    step = (total - last) // 255
    below = step // 2
    for value in range(256):
        table[value] = value if step == 0 else min(255, below // step)
        below += counts[0, value]
