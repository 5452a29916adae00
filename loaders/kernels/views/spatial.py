"""Operations in which a pixel's place or neighbours count: affine warp, sharpness, cutout, noise in a box."""

from __future__ import annotations

import numpy as np

from loaders.kernels.cache import inlined
from loaders.kernels.random import philox

_ZERO = np.float32(0.0)
_FULL = np.float32(255.0)
_FULL_OF_WORD = np.float32(255.0 / 2.0**32)  # scales a random word of 32 bits to [0, 255]


@inlined
def warp_rows(source, plane, resolution, args, top, rows, places, out, step, start):
    """Write `rows` rows of the warped view from row `top` on: nearest neighbours, `fill` outside the source.

    Args:
        source: float32 [3 * plane], the view to warp.
        args: float32 [7], matrix and fill of `AFFINE`.
        places: int32 [R], scratch.
        out: float32 [3 * step], written from `start` on.
    """
    half = np.float32(0.5 * (resolution - 1))
    a, b, c, d, e, f, fill = args[0], args[1], args[2], args[3], args[4], args[5], args[6]
    for k in range(rows):
        y = np.float32(top + k) - half
        for column in range(resolution):
            x = np.float32(column) - half
            row_at = int(np.rint(d * x + e * y + f + half))
            column_at = int(np.rint(a * x + b * y + c + half))
            inside = 0 <= row_at < resolution and 0 <= column_at < resolution
            places[column] = row_at * resolution + column_at if inside else -1
        for channel in range(3):
            pixels = source[channel * plane :]
            row = out[channel * step + start + k * resolution :][:resolution]
            for column in range(resolution):
                place = places[column]
                row[column] = pixels[place] if place >= 0 else fill


@inlined
def sharpen_rows(source, plane, resolution, factor, top, rows, out, step, start):
    """Blend inner pixels with the mean of their 3 x 3 block, where the centre counts 5 of 13; copy others."""
    rest = (np.float32(1.0) - factor) / np.float32(13.0)
    for channel in range(3):
        for k in range(rows):
            y = top + k
            here = source[channel * plane + y * resolution :][:resolution]
            row = out[channel * step + start + k * resolution :][:resolution]
            for x in range(resolution):
                row[x] = here[x]
            if y == 0 or y == resolution - 1:
                continue
            above = source[channel * plane + (y - 1) * resolution :][:resolution]
            below = source[channel * plane + (y + 1) * resolution :][:resolution]
            for x in range(1, resolution - 1):
                around = above[x - 1] + above[x] + above[x + 1] + below[x - 1] + below[x] + below[x + 1]
                total = around + here[x - 1] + here[x + 1] + np.float32(5.0) * here[x]
                row[x] = max(_ZERO, min(here[x] * factor + total * rest, _FULL))


@inlined
def cut_out_rows(args, top, rows, resolution, into, step, start):
    """Fill the part of a tile that lies in the box of `CUTOUT` with the box's colour."""
    left, right = int(args[1]), int(args[3])
    for y in range(max(top, int(args[0])), min(top + rows, int(args[2]))):
        for channel in range(3):
            at = channel * step + start + (y - top) * resolution
            for x in range(left, right):
                into[at + x] = args[4 + channel]


@inlined
def fill_noise_rows(args, top, rows, resolution, into, step, start):
    """Fill the part of a tile that lies in the box of `NOISE` with values uniform in [0, 255].

    A pixel's values depend only on the key and the pixel's position in the view, not on the tiles.
    """
    left, right = int(args[1]), int(args[3])
    nothing, key, other_key = np.uint64(0), np.uint64(args[4]), np.uint64(args[5])
    for y in range(max(top, int(args[0])), min(top + rows, int(args[2]))):
        at = start + (y - top) * resolution
        for x in range(left, right):
            place = np.uint64(y * resolution + x)
            red, green, blue, _ = philox(place, nothing, nothing, nothing, key, other_key)
            into[at + x] = np.float32(red) * _FULL_OF_WORD
            into[step + at + x] = np.float32(green) * _FULL_OF_WORD
            into[2 * step + at + x] = np.float32(blue) * _FULL_OF_WORD
