"""Separable Gaussian blur of planar float32 pixels, truncated at three standard deviations."""

from __future__ import annotations

import numpy as np

from loaders.kernels.cache import inlined
from loaders.kernels.simd import LANES, add, load, multiply_add, splat, store, zeros


@inlined
def fill_gaussian(sigma, resolution, weights):
    """Write the weights of taps 0 (centre), 1, 2, ... to `weights` and return the radius.

    The two-sided kernel sums to 1. The radius is ceil(3 sigma), but at most resolution - 1.
    """
    radius = min(int(np.ceil(3.0 * sigma)), resolution - 1)
    total = 0.0
    for t in range(radius + 1):
        value = np.exp(-0.5 * (t / sigma) ** 2)
        weights[t] = value
        total += value if t == 0 else 2.0 * value
    for t in range(radius + 1):
        weights[t] /= total
    return radius


@inlined
def _blur_line(source, at, plane, step, resolution, radius, weights, out, to, out_plane):
    """Write out[to + x] = sum over t of weights[|t|] * source[at + x + t * step] for a row of three channels.

    The channels lie `plane` (source) and `out_plane` (out) apart. Three independent sums keep the arithmetic
    units busy.
    """
    for x in range(0, resolution, LANES):
        w = splat(weights[0])
        r = multiply_add(w, load(source, at + x), zeros())
        g = multiply_add(w, load(source, at + plane + x), zeros())
        b = multiply_add(w, load(source, at + 2 * plane + x), zeros())
        for t in range(1, radius + 1):
            w = splat(weights[t])
            low, high = at + x - t * step, at + x + t * step
            r = multiply_add(w, add(load(source, low), load(source, high)), r)
            g = multiply_add(w, add(load(source, low + plane), load(source, high + plane)), g)
            b = multiply_add(w, add(load(source, low + 2 * plane), load(source, high + 2 * plane)), b)
        store(out, to + x, r)
        store(out, to + out_plane + x, g)
        store(out, to + 2 * out_plane + x, b)


@inlined
def _reflected(y, resolution):
    y = abs(y)
    return 2 * (resolution - 1) - y if y >= resolution else y


@inlined
def _blur_edge_row(source, plane, resolution, radius, weights, y, out, to):
    """Blur one channel vertically for a row y whose taps cross the upper or lower border; write out[to :]."""
    for x in range(0, resolution, LANES):
        total = multiply_add(splat(weights[0]), load(source, plane + y * resolution + x), zeros())
        for t in range(1, radius + 1):
            above = plane + _reflected(y - t, resolution) * resolution + x
            below = plane + _reflected(y + t, resolution) * resolution + x
            total = multiply_add(splat(weights[t]), add(load(source, above), load(source, below)), total)
        store(out, to + x, total)


@inlined
def _pad_row(source, at, resolution, radius, padded, to):
    """Copy a row to padded[to + radius :] and reflect it on both sides."""
    for x in range(0, resolution, LANES):
        store(padded, to + radius + x, load(source, at + x))
    for t in range(1, radius + 1):
        padded[to + radius - t] = source[at + t]
        padded[to + radius + resolution - 1 + t] = source[at + resolution - 1 - t]


@inlined
def blur_along_rows(source, step, start, resolution, radius, weights, padded, top, rows, out, plane):
    """Blur the rows of a tile horizontally, into the view `out` from row `top` on.

    All rows are padded before the first is blurred, since a vector load that overlaps a recent store has to
    wait for it.
    """
    pitch = resolution + 2 * radius + LANES
    for channel in range(3):
        for k in range(rows):
            at = channel * step + start + k * resolution
            _pad_row(source, at, resolution, radius, padded, (channel * rows + k) * pitch)
    for k in range(rows):
        at, to = k * pitch + radius, (top + k) * resolution
        _blur_line(padded, at, rows * pitch, np.int64(1), resolution, radius, weights, out, to, plane)


@inlined
def blur_across_rows(source, plane, resolution, radius, weights, top, rows, out, step, start):
    """Blur the view `source` vertically; write rows top .. top + rows - 1 to a tile at out[start :]."""
    for k in range(rows):
        y, to = top + k, start + k * resolution
        if radius <= y < resolution - radius:
            _blur_line(source, y * resolution, plane, resolution, resolution, radius, weights, out, to, step)
        else:
            for channel in range(3):
                _blur_edge_row(
                    source, channel * plane, resolution, radius, weights, y, out, channel * step + to
                )
