"""Resample by Pillow's own arithmetic, bit for bit, for evaluation.

Weights are whole multiples of 2^-22, the horizontal pass comes first, and each of the two passes rounds to
whole bytes (Pillow, src/libImaging/Resample.c). Pillow 13 starts with the vertical pass if an image is more
than twice as high as wide; its results differ only there.
"""

from __future__ import annotations

import numpy as np

from loaders.kernels.cache import inlined, kernel
from loaders.kernels.simd import LANES

BITS = 22  # fractional bits of a rounded weight
UNIT = 1 << BITS
GROUP = 16  # rows of the image in one horizontal pass


def rows_kept(taps: int) -> int:
    """Return the number of rows to keep between the two passes, for tables that hold `taps` taps."""
    return -(-taps // GROUP) * GROUP + GROUP


@inlined
def triangle_weight(x):
    """Return the bilinear filter at distance x, in output pixels when shrinking, else in source pixels."""
    return max(0.0, 1.0 - abs(x))


@inlined
def cubic_weight(x):
    """Return the bicubic filter, Keys' cubic with a = -0.5, at distance x as in `triangle_weight`."""
    x = abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return near if x < 1.0 else (far if x < 2.0 else 0.0)


@kernel
def rounded_weights(start, length, origin, high, resolution, flip, cubic, first, taps, weights, pitch):
    """Fill the weights of one axis in units of 2^-22.

    Args:
        origin: int, what was subtracted from `first` after `fill_taps` had filled it.
        taps: int, returned by `fill_taps`.
        weights: int32, out: weight of tap t for output r at r * pitch + t.
        pitch: int, `taps` or more.
        start, length, high, resolution, flip, cubic: see `fill_taps`.
    """
    scale = length / resolution
    inverse = 1.0 / max(scale, 1.0)
    support = (2.0 if cubic else 1.0) * max(scale, 1.0)
    for place in range(resolution):
        center = start + ((resolution - 1 - place if flip else place) + 0.5) * scale
        begin, total = first[place] + origin, 0.0
        count = max(1, min(high, int(center + support + 0.5)) - begin)
        for t in range(count):
            distance = (begin + t - center + 0.5) * inverse
            total += cubic_weight(distance) if cubic else triangle_weight(distance)
        for t in range(taps):
            distance = (begin + t - center + 0.5) * inverse
            weight = (cubic_weight(distance) if cubic else triangle_weight(distance)) if t < count else 0.0
            weight = weight / total if total != 0.0 and taps > 1 else (1.0 if t == 0 else 0.0)
            weights[place * pitch + t] = int(weight * UNIT + (0.5 if weight >= 0.0 else -0.5))


@inlined
def _byte(total):
    return min(max((total + (UNIT >> 1)) >> BITS, 0), 255)


@inlined
def _turn_bytes(planes, start, width, rows, left, count, columns):
    """Copy `GROUP` rows of a channel transposed; if only `rows` rows are left, repeat the last of them."""
    for k in range(GROUP):
        row, column = planes[start + min(k, rows - 1) * width + left :], columns[k:]
        for x in range(count):
            column[x * GROUP] = row[x]


@kernel
def round_rows(planes, height, width, extent, scratch, resolution, top, rows, out, step, start):
    """Write `rows` rows of a view from row `top` on, by Pillow's arithmetic; see `resample_rows`."""
    left, count, row_taps, col_taps, _ = extent
    padded, slots = -(-resolution // LANES) * LANES, len(scratch.held)
    first_rows, first, ring, held, sums, columns = (
        scratch.first[0], scratch.first[1], scratch.ring, scratch.held, scratch.sums_of_bytes, scratch.columns
    )  # fmt: skip
    row_weights, weights = scratch.rounded[0], scratch.rounded[1]
    pitch = len(weights) // padded
    for k in range(rows):
        for t in range(row_taps):
            y = min(first_rows[top + k] + t, height - 1) // GROUP * GROUP
            if held[y % slots] == y:
                continue
            held[y % slots] = y
            for c in range(3):
                _turn_bytes(planes, (c * height + y) * width, width, height - y, left, count, columns)
                for place in range(resolution):
                    sums[:GROUP] = 0
                    for tap in range(min(col_taps, left + count - first[place])):
                        weight = weights[place * pitch + tap]
                        column = columns[(first[place] - left + tap) * GROUP :][:GROUP]
                        for x in range(GROUP):
                            sums[x] += weight * np.int32(column[x])
                    for x in range(GROUP):
                        ring[((y + x) % slots * 3 + c) * padded + place] = _byte(sums[x])
        for c in range(3):
            sums[:] = 0
            for t in range(row_taps):
                weight = row_weights[(top + k) * pitch + t]
                row = ring[(min(first_rows[top + k] + t, height - 1) % slots * 3 + c) * padded :][:padded]
                for place in range(resolution):
                    sums[place] += weight * np.int32(row[place])
            row = out[c * step + start + k * resolution :][:resolution]
            for place in range(resolution):
                row[place] = _byte(sums[place])
