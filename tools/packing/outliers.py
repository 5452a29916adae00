"""Brightness of a pack's images, and the limits beyond which a value is an outlier."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from loaders.kernels.encodings import ENCODING_RAW
from loaders.kernels.jpeg.turbojpeg import GRAY, decode_jpeg, factor_leaving
from loaders.packs import Pack

MOST_DECODED = 4000  # images decoded at most, evenly spaced; each takes about 0.1 ms
_SIDE = 16
_ROWS_PER_TASK = 128


def brightness(pack: Pack, workers: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Measure the brightness of at most `MOST_DECODED` evenly spaced images, in `workers` threads.

    Returns:
        The rows, int64 [K], and the mean gray value of each image (of raw pixels, the mean of all channels),
        float64 [K] in [0, 255]; NaN for a damaged image.
    """
    rows = np.unique(np.linspace(0, len(pack) - 1, min(len(pack), MOST_DECODED)).round().astype(np.int64))
    values = np.full(len(rows), np.nan)

    def work(first: int) -> None:
        for place in range(first, min(first + _ROWS_PER_TASK, len(rows))):
            values[place] = _mean(pack, int(rows[place]))

    with ThreadPoolExecutor(max(1, workers)) as pool:
        list(pool.map(work, range(0, len(rows), _ROWS_PER_TASK)))
    return rows, values


def _mean(pack: Pack, row: int) -> float:
    data, columns = pack.view(row), pack.columns
    if columns.encoding[row] == ENCODING_RAW:
        return float(data.mean())
    factor = factor_leaving(int(columns.height[row]), int(columns.width[row]), _SIDE, _SIDE)
    try:
        return float(decode_jpeg(data, factor, GRAY).mean())
    except ValueError:  # the image was damaged after packing, which tools/verify_pack.py reports
        return float("nan")


def fences(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the limits for outliers: 1.5 interquartile ranges beyond the quartiles (Tukey 1977)."""
    low, high = np.nanquantile(values, [0.25, 0.75])
    reach = 1.5 * (high - low)
    return float(low - reach), float(high + reach)
