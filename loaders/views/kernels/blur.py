"""Separable Gaussian blur on planar float32 pixels; taps are cut at three standard deviations."""

from __future__ import annotations

import numpy as np

from loaders.views.kernels.compile import kernel
from loaders.views.kernels.simd import LANES, add, load, multiply_add, splat, store, zeros


@kernel
def fill_gaussian(sigma, resolution, weights):
    """Write the weights of taps 0 (centre), 1, 2, ... to `weights` and return the radius.

    The two-sided kernel sums to 1. The radius is ceil(3 sigma), less where the view is too small for it.
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


@kernel
def _symmetric_sum(source, at, step, radius, weights):
    """Return sum over t of weights[|t|] * source[at + t * step : ...] for LANES neighbours."""
    total = multiply_add(splat(weights[0]), load(source, at), zeros())
    for t in range(1, radius + 1):
        pair = add(load(source, at - t * step), load(source, at + t * step))
        total = multiply_add(splat(weights[t]), pair, total)
    return total


@kernel
def blur_row(source, at, resolution, radius, weights, padded, out, to):
    """Blur one row source[at : at + R] along itself into out[to : to + R]; `padded` is scratch."""
    for x in range(0, resolution, LANES):
        store(padded, radius + x, load(source, at + x))
    for t in range(1, radius + 1):
        padded[radius - t] = source[at + t]
        padded[radius + resolution - 1 + t] = source[at + resolution - 1 - t]
    for x in range(0, resolution, LANES):
        store(out, to + x, _symmetric_sum(padded, radius + x, 1, radius, weights))


@kernel
def _reflected(y, resolution):
    y = abs(y)
    return 2 * (resolution - 1) - y if y >= resolution else y


@kernel
def blur_column(source, plane, resolution, radius, weights, y, out, to):
    """Write row y of a plane source[plane : plane + R * R], blurred across rows, to out[to : to + R]."""
    here = plane + y * resolution
    if y >= radius and y + radius < resolution:
        for x in range(0, resolution, LANES):
            store(out, to + x, _symmetric_sum(source, here + x, resolution, radius, weights))
        return
    for x in range(0, resolution, LANES):
        total = multiply_add(splat(weights[0]), load(source, here + x), zeros())
        for t in range(1, radius + 1):
            above = plane + _reflected(y - t, resolution) * resolution + x
            below = plane + _reflected(y + t, resolution) * resolution + x
            total = multiply_add(splat(weights[t]), add(load(source, above), load(source, below)), total)
        store(out, to + x, total)


@kernel
def blur_along_rows(source, step, start, resolution, radius, weights, padded, top, rows, out, plane):
    """Blur the rows of a tile along themselves into rows top .. top + rows of the view `out`."""
    for channel in range(3):
        for k in range(rows):
            at = channel * step + start + k * resolution
            to = channel * plane + (top + k) * resolution
            blur_row(source, at, resolution, radius, weights, padded, out, to)


@kernel
def blur_across_rows(source, plane, resolution, radius, weights, top, rows, out, step, start):
    """Finish a blur: rows top .. top + rows of the view `source` into a tile of `out`."""
    for channel in range(3):
        for k in range(rows):
            to = channel * step + start + k * resolution
            blur_column(source, channel * plane, resolution, radius, weights, top + k, out, to)
