"""One view of one image: resample, colour chain, blur, normalise, in as few traverses as possible.

The view is worked on in tiles of rows that fit the first-level cache. A traverse makes a tile (by
resampling, or by the vertical half of a blur), applies every pointwise operation that follows, and ends
in what needs the whole view: the mean for contrast, the horizontal half of a blur, or the final write.
A Barlow view takes one to four traverses instead of the ten passes of its operations.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from loaders.views.draw import BLUR, CONTRAST, NONE
from loaders.views.kernels.blur import blur_column, blur_row, fill_gaussian
from loaders.views.kernels.pointwise import apply_pointwise, gray_sum
from loaders.views.kernels.resample import blend_rows, block_columns, fill_taps, gather_columns
from loaders.views.kernels.simd import LANES

_jit = njit(cache=True, nogil=True, fastmath=True, error_model="numpy", _nrt=False)

TILE_PIXELS = 1536  # three float32 planes of it fill less than half of a 48 KiB first-level cache
MAX_RADIUS = 64  # blur radius of the largest sigma that a policy allows, rounded up
_FINISH = -1
_RESAMPLE, _WORK, _BLURRED = 0, 1, 2  # where a traverse takes its tiles from


class Scratch(NamedTuple):
    """Work space of one thread; `LANES` elements of slack stand behind every row that vectors write."""

    first: NDArray[np.int32]  # [2, P] first taps: rows, columns
    weights: NDArray[np.float32]  # [2, T * P] tap weights: rows, columns
    base: NDArray[np.int32]  # [2 * P / LANES] blocks of columns
    axis: NDArray[np.float64]  # [3, P]
    line: NDArray[np.float32]  # [3 * (widest crop + slack)], finite everywhere
    tile: NDArray[np.float32]  # [3 * (tile + slack)]
    work: NDArray[np.float32]  # [3 * (R * R + slack)]
    blurred: NDArray[np.float32]  # likewise
    spare: NDArray[np.float32]  # likewise
    padded: NDArray[np.float32]  # [R + 2 * MAX_RADIUS + slack]
    gaussian: NDArray[np.float32]  # [2, MAX_RADIUS]


def make_scratch(resolution: int, taps: int, width: int) -> Scratch:
    """Allocate work space for views of `resolution` from crops of up to `taps` taps and `width` columns."""
    padded = -(-resolution // LANES) * LANES
    tile = 3 * (max(1, TILE_PIXELS // resolution) * resolution + LANES)
    view = 3 * (resolution * resolution + LANES)
    return Scratch(
        first=np.zeros((2, padded), np.int32),
        weights=np.zeros((2, taps * padded), np.float32),
        base=np.zeros(2 * padded // LANES, np.int32),
        axis=np.zeros((3, padded), np.float64),
        line=np.zeros(3 * line_pitch(width, taps), np.float32),
        tile=np.zeros(tile, np.float32),
        work=np.zeros(view, np.float32),
        blurred=np.zeros(view, np.float32),
        spare=np.zeros(view, np.float32),
        padded=np.zeros(resolution + 2 * MAX_RADIUS + LANES, np.float32),
        gaussian=np.zeros((2, MAX_RADIUS), np.float32),
    )


def line_pitch(width: int, taps: int) -> int:
    """Return the floats that one channel of a blended source row takes, with what vector loads reach over."""
    return width + taps + 3 * LANES


@_jit
def deinterleave(pixels, count, planes, plane):  # type: ignore[no-untyped-def]
    """Split count RGB pixels (uint8 [3 * count]) into planes at 0, `plane` and 2 * `plane`."""
    red, green, blue = planes[:count], planes[plane:][:count], planes[2 * plane :][:count]
    for i in range(count):
        red[i] = pixels[3 * i]
        green[i] = pixels[3 * i + 1]
        blue[i] = pixels[3 * i + 2]


@_jit
def _write_channel(source, at, count, gain, bias, out, to):  # type: ignore[no-untyped-def]
    pixels, target = source[at : at + count], out[to : to + count]
    for i in range(count):
        target[i] = pixels[i] * gain + bias


@_jit
def render_view(planes, plane, height, width, box, window, shift, flip, cubic, codes, args, gain, bias, scratch, resolution, out):  # type: ignore[no-untyped-def]
    """Render one view.

    Args:
        planes: uint8 [3 * plane + slack], channels of the decoded image.
        plane: int, bytes from one channel to the next.
        height: int, of the image in pixels.
        width: int.
        box: float64 [4]; window: int32 [4]; shift: int32 [2]; flip: bool; codes: int32 [P];
            args: float32 [P]: see `ViewParameters`.
        cubic: bool, bicubic instead of bilinear.
        gain: float32 [3], with `bias` the normalisation: out = value * gain + bias.
        bias: float32 [3].
        scratch: `Scratch` that is large enough.
        resolution: int, R.
        out: [3 * R * R], the finished view.
    """
    size = resolution * resolution
    padded = -(-resolution // LANES) * LANES
    rows_first, cols_first = scratch.first[0], scratch.first[1]
    rows_weights, cols_weights = scratch.weights[0], scratch.weights[1]
    row_taps = fill_taps(
        box[0], box[2], window[0], window[2], resolution, shift[0], False, cubic, rows_first, rows_weights, scratch.axis
    )
    col_taps = fill_taps(
        box[1], box[3], window[1], window[3], resolution, shift[1], flip, cubic, cols_first, cols_weights, scratch.axis
    )
    left, right = cols_first[0], cols_first[0]
    for x in range(1, resolution):
        left, right = min(left, cols_first[x]), max(right, cols_first[x])
    count = min(right + col_taps, width) - left
    block_columns(cols_first, padded, left, scratch.base)
    pitch = len(scratch.line) // 3

    rows_per_tile = max(1, TILE_PIXELS // resolution)
    view_plane, tile_plane = size + LANES, rows_per_tile * resolution + LANES
    blurred, spare = scratch.blurred, scratch.spare
    gaussian, next_gaussian = scratch.gaussian[0], scratch.gaussian[1]
    source, radius, next_radius = _RESAMPLE, 0, 0
    begin, ready, mean = 0, -1, np.float32(0.0)
    while True:
        end = begin
        while end < len(codes) and codes[end] != BLUR and (codes[end] != CONTRAST or end == ready):
            end += 1
        stop = codes[end] if end < len(codes) else _FINISH
        if stop == BLUR:
            next_radius = fill_gaussian(args[end], resolution, next_gaussian)
        # Only a tile that a later traverse needs again goes to the large buffer.
        reuse = source == _WORK or stop == CONTRAST
        into, step = (scratch.work, view_plane) if reuse else (scratch.tile, tile_plane)
        total = np.float32(0.0)
        for top in range(0, resolution, rows_per_tile):
            rows = min(rows_per_tile, resolution - top)
            start = top * resolution if reuse else 0
            if source == _RESAMPLE:
                for k in range(rows):
                    blend_rows(
                        planes, plane, width, height, left, count, rows_first, rows_weights, padded, row_taps,
                        top + k, scratch.line, pitch,
                    )  # fmt: skip
                    gather_columns(
                        scratch.line, pitch, cols_first, scratch.base, cols_weights, padded, col_taps,
                        into, step, start + k * resolution,
                    )  # fmt: skip
            elif source == _BLURRED:
                for c in range(3):
                    for k in range(rows):
                        to = c * step + start + k * resolution
                        blur_column(blurred, c * view_plane, resolution, radius, gaussian, top + k, into, to)
            pixels = rows * resolution
            r = into[start : start + pixels]
            g = into[step + start :][:pixels]
            b = into[2 * step + start :][:pixels]
            for k in range(begin, end):
                if codes[k] != NONE:
                    apply_pointwise(codes[k], args[k], mean, r, g, b)
            if stop == _FINISH:
                for c in range(3):
                    at = c * step + start
                    _write_channel(into, at, pixels, gain[c], bias[c], out, c * size + top * resolution)
            elif stop == CONTRAST:
                total += gray_sum(r, g, b)
            else:
                for c in range(3):
                    for k in range(rows):
                        at = c * step + start + k * resolution
                        to = c * view_plane + (top + k) * resolution
                        blur_row(into, at, resolution, next_radius, next_gaussian, scratch.padded, spare, to)
        if stop == _FINISH:
            return
        begin = end
        if stop == CONTRAST:
            ready, mean, source = end, total / np.float32(size), _WORK
        else:
            begin, source, radius = end + 1, _BLURRED, next_radius
            blurred, spare = spare, blurred
            gaussian, next_gaussian = next_gaussian, gaussian
