"""Render a view of an image, from resampling to normalising, in as few traverses of its pixels as possible.

The view is computed in tiles of rows that fit the first-level cache. A traverse makes each tile (by
resampling, by a spatial operation on the view of the last traverse, or from that view itself) and applies all
pointwise operations that follow. It ends with the final write, or where an operation needs the whole view:
statistics, a blur, another spatial operation. A view of Barlow Twins takes one to three traverses; one pass
for each of its operations would make ten.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loaders.kernels.cache import inlined, kernel
from loaders.kernels.memory import CACHE_LINE_BYTES, aligned_zeros
from loaders.kernels.simd import (
    LANES,
    load,
    multiply_add,
    put,
    put_pixels,
    splat,
    store_some,
    store_some_pixels,
    stream,
    stream_pixels,
)
from loaders.kernels.views.blur import blur_across_rows, blur_along_rows, fill_gaussian
from loaders.kernels.views.codes import AFFINE, BLUR, CUTOUT, MAX_ARGUMENTS, NOISE, NONE, SHARPNESS
from loaders.kernels.views.pointwise import apply_pointwise
from loaders.kernels.views.resample import LINES, SLOTS, prepare_tables, resample_rows
from loaders.kernels.views.rounded import GROUP, rows_kept
from loaders.kernels.views.spatial import cut_out_rows, fill_noise_rows, sharpen_rows, warp_rows
from loaders.kernels.views.statistics import (
    Stats,
    add_statistics,
    begin_statistics,
    end_statistics,
    make_stats,
    needs_statistics,
)
from loaders.kernels.views.streaming import streaming_pays

TILE_PIXELS = 1536  # three float32 planes of this size fill less than half of a 48 KiB first-level cache
MAX_RADIUS = 64  # blur radius of the largest sigma that a policy allows, rounded up
_FINISH = -1  # what ends a traverse: the final write (-1), or the operation with this code
# Where a traverse gets its tiles: from resampling, from the last view, or from the operation with this code.
_RESAMPLE, _AGAIN = -1, -2


class Scratch(NamedTuple):
    """Work space of one thread, with room where vectors reach past the elements in use."""

    first: NDArray[np.int32]  # [2, P] first taps of rows and columns; P as in `resample`, for T taps
    weights: NDArray[np.float32]  # [2, T * P] tap weights of rows and columns
    rounded: NDArray[np.int32]  # [2, P * T] the same by Pillow's arithmetic
    base: NDArray[np.int32]  # [2 * P / LANES] see `block_columns` and `narrow_blocks`
    order: NDArray[np.uint8]  # [P] source columns relative to the smallest of their block
    ring: NDArray[np.float32]  # [S * 3 * P] S rows after the horizontal pass
    held: NDArray[np.int32]  # [S] numbers of the rows in `ring`
    axis: NDArray[np.float64]  # [3, P]
    line: NDArray[np.float32]  # [LINES * 3 * `line_pitch`] blended rows; finite, so that weight 0 gives 0
    columns: NDArray[np.float32]  # [LINES * 3 * `line_pitch`], the same transposed
    sums: NDArray[np.float32]  # [3 * LINES * LANES]
    sums_of_bytes: NDArray[np.int32]  # [R] or more
    tile: NDArray[np.float32]  # [3 * (tile + slack)]
    views: NDArray[np.float32]  # [3, 3 * (R * R + slack)], whole views between traverses
    padded: NDArray[np.float32]  # [3 * rows of a tile * (R + 2 * MAX_RADIUS + slack)]
    gaussian: NDArray[np.float32]  # [2, MAX_RADIUS]
    places: NDArray[np.int32]  # [R]
    known: Stats  # statistics of the view before the traverse
    gathered: Stats  # statistics of the view that the traverse makes
    past_caches: bool  # whether the writing of finished views bypasses the caches


@kernel
def rows_of_tile(resolution):
    """Return the number of rows of a tile, a multiple of `LINES`."""
    return max(1, TILE_PIXELS // (resolution * LINES)) * LINES


def make_scratch(resolution: int, taps: int, width: int) -> Scratch:
    """Allocate work space for tables of up to `taps` taps (`table_taps`) and regions up to `width` wide."""
    padded = -(-resolution // LANES) * LANES
    rows, slots = rows_of_tile(resolution), max(SLOTS, rows_kept(taps))
    tile = 3 * (rows * resolution + LANES)
    view = 3 * (resolution * resolution + LANES)
    return Scratch(
        first=aligned_zeros((2, padded), np.int32),
        weights=aligned_zeros((2, taps * padded), np.float32),
        rounded=aligned_zeros((2, padded * taps), np.int32),
        base=aligned_zeros((2 * padded // LANES,), np.int32),
        order=aligned_zeros((padded,), np.uint8),
        ring=aligned_zeros((slots * 3 * padded,), np.float32),
        held=aligned_zeros((slots,), np.int32),
        axis=aligned_zeros((3, padded), np.float64),
        line=aligned_zeros((LINES * 3 * line_pitch(width, taps),), np.float32),
        columns=aligned_zeros((LINES * 3 * line_pitch(width, taps),), np.float32),
        sums=aligned_zeros((3 * LINES * LANES,), np.float32),
        sums_of_bytes=aligned_zeros((max(resolution, GROUP),), np.int32),
        tile=aligned_zeros((tile,), np.float32),
        views=aligned_zeros((3, view), np.float32),
        padded=aligned_zeros((3 * rows * (resolution + 2 * MAX_RADIUS + LANES),), np.float32),
        gaussian=aligned_zeros((2, MAX_RADIUS), np.float32),
        places=aligned_zeros((resolution,), np.int32),
        known=make_stats(),
        gathered=make_stats(),
        past_caches=streaming_pays(),
    )


def line_pitch(width: int, taps: int) -> int:
    """Return the number of floats for one channel of a blended source row, with slack for vector loads."""
    return -(-(width + taps + 3 * LANES) // LANES) * LANES


@inlined
def _write_tile(source, at, step, count, gain, bias, channels_last, past_caches, out, size, to):
    """Normalise `count` pixels of three channels and write them to the view from pixel `to` on.

    Unless all vectors are whole and aligned, all are stored by slower instructions.
    """
    r_gain, g_gain, b_gain = splat(gain[0]), splat(gain[1]), splat(gain[2])
    r_bias, g_bias, b_bias = splat(bias[0]), splat(bias[1]), splat(bias[2])
    whole = out.ctypes.data % CACHE_LINE_BYTES == 0 and (count | to | size) % LANES == 0
    for i in range(0, count, LANES):
        r = multiply_add(load(source, at + i), r_gain, r_bias)
        g = multiply_add(load(source, step + at + i), g_gain, g_bias)
        b = multiply_add(load(source, 2 * step + at + i), b_gain, b_bias)
        left = count - i
        if channels_last:
            if whole and past_caches:
                stream_pixels(out, 3 * (to + i), r, g, b)
            elif whole:
                put_pixels(out, 3 * (to + i), r, g, b)
            else:
                store_some_pixels(out, 3 * (to + i), r, g, b, left)
        elif whole and past_caches:
            stream(out, to + i, r)
            stream(out, size + to + i, g)
            stream(out, 2 * size + to + i, b)
        elif whole:
            put(out, to + i, r)
            put(out, size + to + i, g)
            put(out, 2 * size + to + i, b)
        else:
            store_some(out, to + i, r, left)
            store_some(out, size + to + i, g, left)
            store_some(out, 2 * size + to + i, b, left)


@inlined
def render_view(
    planes,
    region,
    box,
    window,
    shift,
    flip,
    cubic,
    rounded,
    codes,
    args,
    gain,
    bias,
    scratch,
    resolution,
    channels_last,
    out,
):
    """Render one view.

    Args:
        planes: uint8 [3 * height * width + slack], channels of the decoded region of the image.
        region: int64 [4], top, left, height and width of that region in the image, in pixels.
        box: float64 [4]; window: int32 [4]; shift: int32 [2]; flip: bool; codes: int32 [P];
            args: float32 [P]: see `ViewParameters`.
        cubic: bool, bicubic instead of bilinear.
        rounded: bool, resample as Pillow does, in whole bytes; only for views that are not shifted.
        gain, bias: float32 [3], the normalisation: out = value * gain + bias.
        resolution: int, R.
        channels_last: bool, write [R, R, 3] instead of [3, R, R].
        out: [3 * R * R], the finished view: float32, uint8 (truncated), or the bits of float16 (int16)
            or bfloat16 (uint16).
    """
    size = resolution * resolution
    extent = prepare_tables(region, box, window, shift, flip, cubic, rounded, resolution, scratch)
    rows_per_tile = rows_of_tile(resolution)
    view_plane, tile_plane = size + LANES, rows_per_tile * resolution + LANES
    held, work, spare = scratch.views[0], scratch.views[1], scratch.views[2]
    gaussian, next_gaussian = scratch.gaussian[0], scratch.gaussian[1]
    known, gathered = scratch.known, scratch.gathered
    source, made_by = _RESAMPLE, 0
    radius, next_radius = np.int64(0), np.int64(0)
    begin, ready = 0, -1
    while True:
        end = begin
        while end < len(codes) and (end == ready or not _ends_traverse(codes[end])):
            end += 1
        stop = codes[end] if end < len(codes) else _FINISH
        if stop == BLUR:
            next_radius = fill_gaussian(args[end], resolution, next_gaussian)
        if needs_statistics(stop):
            begin_statistics(gathered)
        # Use the buffer of a whole view only if the tiles lie there already or a later traverse needs them.
        whole = source == _AGAIN or stop not in (_FINISH, BLUR)
        into, step = (work, view_plane) if whole else (scratch.tile, tile_plane)
        for top in range(0, resolution, rows_per_tile):
            rows = min(rows_per_tile, resolution - top)
            pixels, start = rows * resolution, (top * resolution if whole else 0)
            if source == _RESAMPLE:
                resample_rows(
                    planes, region[2], region[3], extent, scratch, resolution, top, rows, into, step, start
                )
            elif source == BLUR:
                blur_across_rows(held, view_plane, resolution, radius, gaussian, top, rows, into, step, start)
            elif source == SHARPNESS:
                sharpen_rows(held, view_plane, resolution, args[made_by], top, rows, into, step, start)
            elif source == AFFINE:
                matrix = args[made_by : made_by + MAX_ARGUMENTS]
                warp_rows(held, view_plane, resolution, matrix, top, rows, scratch.places, into, step, start)
            r = into[start : start + pixels]
            g = into[step + start :][:pixels]
            b = into[2 * step + start :][:pixels]
            for k in range(begin, end):
                if codes[k] == CUTOUT:
                    cut_out_rows(args[k:], top, rows, resolution, into, step, start)
                elif codes[k] == NOISE:
                    fill_noise_rows(args[k:], top, rows, resolution, into, step, start)
                elif codes[k] != NONE:
                    apply_pointwise(codes[k], args[k], known, r, g, b)
            if stop == _FINISH:
                to = top * resolution
                _write_tile(
                    into, start, step, pixels, gain, bias, channels_last, scratch.past_caches, out, size, to
                )
            elif stop == BLUR:
                blur_along_rows(
                    into, step, start, resolution, next_radius, next_gaussian, scratch.padded, top, rows,
                    spare, view_plane,
                )  # fmt: skip
            elif needs_statistics(stop):
                add_statistics(stop, gathered, r, g, b)
        if stop == _FINISH:
            return
        if needs_statistics(stop):
            end_statistics(stop, gathered, size)
            known, gathered = gathered, known
            begin, ready, source = end, end, _AGAIN
            continue
        begin, source, made_by = end + 1, stop, end
        if stop == BLUR:
            held, spare = spare, held
            gaussian, next_gaussian = next_gaussian, gaussian
            radius = next_radius
        else:
            held, work = work, held


@inlined
def _ends_traverse(code):
    return code in (BLUR, SHARPNESS, AFFINE) or needs_statistics(np.int64(code))


@kernel
def render_chunk(
    planes,
    starts,
    regions,
    boxes,
    windows,
    shifts,
    flips,
    cubic,
    rounded,
    codes,
    args,
    gain,
    bias,
    scratch,
    resolution,
    channels_last,
    out,
):
    """Render one view of each image of a chunk in one call.

    Args:
        planes: uint8, the images' channels as `Decoder.decode` leaves them, with slack at the end.
        starts: int64 [n], where each image begins in `planes`.
        regions: int64 [n, 4], see `render_view`.
        boxes, windows, shifts, flips, codes, args: the rows of `ViewParameters` that belong to the chunk.
        out: [n, 3 * R * R], see `render_view`.
        cubic, rounded, gain, bias, scratch, resolution, channels_last: see `render_view`.
    """
    for i in range(len(starts)):
        render_view(
            planes[starts[i] :], regions[i], boxes[i], windows[i], shifts[i], flips[i], cubic, rounded,
            codes[i], args[i], gain, bias, scratch, resolution, channels_last, out[i],
        )  # fmt: skip
