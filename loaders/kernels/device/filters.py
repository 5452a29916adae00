"""Resampling filters for views on a device: the taps of each pixel, and weighted means over the taps.

This is the counterpart of `loaders.kernels.views.resample`; `rounded_means` is that of `...views.rounded`.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

UNIT: tl.constexpr = tl.constexpr(2.0**22)  # rounded weights are whole multiples of 1 / UNIT

_jit: Any = triton.jit  # untyped, like numba's decorators


@_jit
def clamp_byte(value):
    """Return values clamped to [0, 255]."""
    return tl.maximum(0.0, tl.minimum(value, 255.0))


@_jit
def taps_of(place, start, length, low, high, shift, flip, R, CUBIC: tl.constexpr):
    """Return for each pixel the first tap, the number of taps, the first tap's distance, and a factor.

    The distance is that from the tap to the pixel's centre, in source pixels. The factor turns distances into
    the filter's unit. Both are float64.
    """
    scale = length / R
    wide = tl.maximum(scale, 1.0)
    support = (2.0 if CUBIC else 1.0) * wide
    moved = tl.abs(tl.where(flip != 0, R - 1 - place - shift, place + shift))
    moved = tl.where(moved >= R, 2 * (R - 1) - moved, moved)
    center = start + (moved.to(tl.float64) + 0.5) * scale
    begin = tl.minimum(tl.maximum((center - support + 0.5).to(tl.int32), low), high - 1)
    end = tl.maximum(tl.minimum((center + support + 0.5).to(tl.int32), high), begin + 1)
    return begin, end - begin, center - (begin.to(tl.float64) + 0.5), 1.0 / wide


@_jit
def _weight(distance, CUBIC: tl.constexpr):
    d = tl.abs(distance)
    if CUBIC:
        near = (1.5 * d - 2.5) * d * d + 1.0
        far = ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0
        return tl.where(d < 1.0, near, tl.where(d < 2.0, far, 0.0))
    else:
        return tl.maximum(1.0 - d, 0.0)


@_jit
def means(at, step, plane, taps, near, inverse, m, CUBIC: tl.constexpr):
    """Return weighted means of three channels over `taps` taps from `at` on, `step` elements apart.

    `near` and `inverse` are the distance and the factor of `taps_of`; `m` masks pixels.
    """
    r = tl.load(at, mask=m, other=0).to(tl.float32)  # the result where all weights are zero
    g = tl.load(at + plane, mask=m, other=0).to(tl.float32)
    b = tl.load(at + 2 * plane, mask=m, other=0).to(tl.float32)
    total = _weight(near * inverse, CUBIC)
    r_sum, g_sum, b_sum = r * total, g * total, b * total
    for t in range(1, tl.max(tl.where(m, taps, 0))):
        weight = tl.where(t < taps, _weight((t - near) * inverse, CUBIC), 0.0)
        tap = at + tl.minimum(t, taps - 1) * step
        total += weight
        r_sum += weight * tl.load(tap, mask=m, other=0).to(tl.float32)
        g_sum += weight * tl.load(tap + plane, mask=m, other=0).to(tl.float32)
        b_sum += weight * tl.load(tap + 2 * plane, mask=m, other=0).to(tl.float32)
    reached = total != 0.0
    scale = 1.0 / tl.where(reached, total, 1.0)
    r = tl.where(reached, r_sum * scale, r)
    g = tl.where(reached, g_sum * scale, g)
    return r, g, tl.where(reached, b_sum * scale, b)


@_jit
def rounded_means(at, step, plane, taps, near, inverse, m, CUBIC: tl.constexpr):
    """Return the result of `means` by Pillow's arithmetic, in whole bytes; weights are multiples of 2^-22."""
    most = tl.max(tl.where(m, taps, 0))
    total = _weight(near * inverse, CUBIC)
    for t in range(1, most):
        total += tl.where(t < taps, _weight((t - near) * inverse, CUBIC), 0.0)
    scale = UNIT / tl.where(total != 0.0, total, 1.0)
    r = tl.zeros_like(total)
    g, b = r, r
    for t in range(most):
        weight = tl.where(t < taps, _weight((t - near) * inverse, CUBIC), 0.0) * scale
        weight = tl.where(weight < 0.0, tl.ceil(weight - 0.5), tl.floor(weight + 0.5))
        weight = tl.where((total == 0.0) & (t == 0), UNIT, weight)
        tap = at + tl.minimum(t, taps - 1) * step
        r += weight * tl.load(tap, mask=m, other=0).to(tl.float64)
        g += weight * tl.load(tap + plane, mask=m, other=0).to(tl.float64)
        b += weight * tl.load(tap + 2 * plane, mask=m, other=0).to(tl.float64)
    return _byte(r), _byte(g), _byte(b)


@_jit
def _byte(total):
    return clamp_byte(tl.floor((total + 0.5 * UNIT) * (1.0 / UNIT))).to(tl.float32)
