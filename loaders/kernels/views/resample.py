"""Separable antialiased resampling from a decoded image to rows of a view.

The filters follow PIL and torchvision (antialias=True): a triangle or Keys' cubic with a = -0.5, widened by
the scale when shrinking, with weights renormalised where the window cuts taps off. Flip and reflected shift
are folded into the tables, so they cost nothing.

Tables of one axis, where P is the number of output pixels rounded up to a multiple of `LANES`:
    first    int32 [P]      source index of each output's first tap
    weights  float32 [T*P]  weight of tap t for output r at t * P + r; one tap of weight zero follows the
                            last tap in use

Output pixels are computed in blocks of `LANES`, for `LINES` rows at a time except by Copy, in four ways:

- Copy: every pixel of the view is a pixel of the box, as when the image is only cropped and mirrored.
- Widen: the view is about as wide as its box, or wider, and at least about 0.4 times as high. For each tap, a
  block needs at most `LANES` neighbouring bytes of a source row, which one instruction permutes. So the
  horizontal pass is first. A ring keeps its rows for the vertical pass, which reads each several times.
- Look up: in other cases, if one instruction can permute a whole vector of floats (AVX-512). The vertical
  pass comes first, and the horizontal pass looks its taps up in the blended rows. `base` int32
  [2 * P / LANES] holds the smallest source index of each block and the number of windows of `LANES` that the
  block spans; `first` is rewritten relative to that index.
- Transpose: in other cases, without AVX-512. The blended rows are transposed, so that the values of a column
  are adjacent and a tap is a plain load; the sums are transposed back.

A fifth way, for evaluation, is Pillow's own arithmetic: `loaders.kernels.views.rounded`.
"""

from __future__ import annotations

import math

import numpy as np

from loaders.kernels.cache import inlined
from loaders.kernels.shuffles import (
    columns_to_rows,
    lookup,
    lookup_bytes,
    lookup_wide,
    pick_from,
    reverse,
    rows_to_columns,
)
from loaders.kernels.simd import (
    HAS_AVX512,
    LANES,
    clamp_byte,
    load,
    load_bytes,
    load_ints,
    multiply_add,
    splat,
    splat_pair,
    store,
    zeros,
)
from loaders.kernels.views.rounded import cubic_weight, round_rows, rounded_weights, triangle_weight

LINES = 8  # rows of the view that are computed together, as many as `rows_to_columns` transposes
SLOTS = 32  # widened rows that the ring keeps
COPY, WIDEN, SHRINK, ROUND = range(4)


def table_taps(scale: float, cubic: bool) -> int:
    """Return how many taps, with a spare one, a table must hold at `scale` source pixels per output pixel."""
    return math.ceil((2.0 if cubic else 1.0) * max(scale, 1.0)) * 2 + 2


@inlined
def fill_taps(start, length, low, high, resolution, shift, flip, cubic, first, weights, axis):
    """Fill the table of one axis and return the number of taps in use.

    Args:
        start: float64, where the box begins, in source pixels.
        length: float64, length of the box, in source pixels.
        low, high: int, range of source indices that taps may touch, without `high`.
        resolution: int, output pixels R.
        shift: int, output pixels by which the view is moved, |shift| < R; borders reflect.
        flip: bool, whether to mirror the axis.
        cubic: bool, Keys' cubic instead of the triangle.
        first: int32 [P], out.
        weights: float32 [T * P], out.
        axis: float64 [3, P], scratch.
    """
    padded = -(-resolution // LANES) * LANES
    scale = length / resolution
    inverse = 1.0 / max(scale, 1.0)
    support = (2.0 if cubic else 1.0) * max(scale, 1.0)
    nearest, counts, totals = axis[0], axis[1], axis[2]
    taps = 1
    # True if every output pixel is a source pixel: its neighbours, in the filter's reach, have weight zero.
    copies = scale == 1.0 and start == int(start) and low <= start and start + length <= high
    for place in range(resolution):
        moved = abs((resolution - 1 - place if flip else place) + (-shift if flip else shift))
        moved = 2 * (resolution - 1) - moved if moved >= resolution else moved
        if copies:
            first[place] = int(start) + moved
            nearest[place], counts[place], totals[place] = 0.0, 1.0, 0.0
            continue
        center = start + (moved + 0.5) * scale
        # Rounding and the limits could leave no tap at all: keep at least one.
        begin = min(max(low, int(center - support + 0.5)), high - 1)
        end = max(begin + 1, min(high, int(center + support + 0.5)))
        first[place] = begin
        nearest[place] = center - (begin + 0.5)
        counts[place] = end - begin
        totals[place] = 0.0
        taps = max(taps, end - begin)
    for t in range(taps):
        row = weights[t * padded : t * padded + padded]
        for place in range(resolution):
            distance = (t - nearest[place]) * inverse
            weight = cubic_weight(distance) if cubic else triangle_weight(distance)
            weight = weight if t < counts[place] else 0.0
            totals[place] += weight
            row[place] = weight
    for place in range(resolution):  # if all weights are zero, the first tap gets all the weight
        counts[place] = totals[place]
        totals[place] = 1.0 / totals[place] if totals[place] != 0.0 else 0.0
    for t in range(taps):
        row = weights[t * padded : t * padded + padded]
        for place in range(resolution):
            row[place] = row[place] * totals[place] if counts[place] != 0.0 else (1.0 if t == 0 else 0.0)
        for place in range(resolution, padded):
            row[place] = 0.0
    for place in range(resolution, padded):
        first[place] = first[resolution - 1]
    for place in range(padded):  # the spare tap: `sum_columns` takes taps in pairs
        weights[taps * padded + place] = 0.0
    return taps


@inlined
def block_columns(first, padded, left, base):
    """Make `first` relative to the smallest index of each block, and describe the blocks in `base`.

    For each block, `base` gets the smallest index minus `left`, and the number of windows of `LANES` spanned.
    """
    for block in range(padded // LANES):
        lowest = first[block * LANES]
        for lane in range(1, LANES):
            lowest = min(lowest, first[block * LANES + lane])
        widest = 0
        for lane in range(LANES):
            relative = first[block * LANES + lane] - lowest
            first[block * LANES + lane] = relative
            widest = max(widest, relative)
        base[2 * block] = lowest - left
        base[2 * block + 1] = widest // LANES + 1


@inlined
def narrow_blocks(first, padded, left, base, order):
    """Return whether the first taps of every block span no more than `LANES` source columns.

    Write each block's smallest first tap, minus `left`, to `base` int32 [P / LANES], and the distances of the
    first taps from the smallest to `order` uint8 [P].
    """
    for block in range(padded // LANES):
        lowest, highest = first[block * LANES], first[block * LANES]
        for lane in range(1, LANES):
            lowest = min(lowest, first[block * LANES + lane])
            highest = max(highest, first[block * LANES + lane])
        if highest - lowest >= LANES:
            return False
        base[block] = lowest - left
        for lane in range(LANES):
            order[block * LANES + lane] = first[block * LANES + lane] - lowest
    return True


@inlined
def widen_row(planes, plane, start, base, order, weights, padded, taps, ring, to):
    """Run the horizontal pass over a source row, from planes[start :] to ring[to :]: P floats per channel."""
    for block in range(padded // LANES):
        place = block * LANES
        at = start + base[block]
        r, g, b = zeros(), zeros(), zeros()
        for t in range(taps):
            w = load(weights, t * padded + place)
            r = multiply_add(w, lookup_bytes(planes, at + t, order, place), r)
            g = multiply_add(w, lookup_bytes(planes, plane + at + t, order, place), g)
            b = multiply_add(w, lookup_bytes(planes, 2 * plane + at + t, order, place), b)
        store(ring, to + place, r)
        store(ring, to + padded + place, g)
        store(ring, to + 2 * padded + place, b)


@inlined
def blend_widened(ring, padded, height, first, weights, taps, y, resolution, out, step, to):
    """Run the vertical pass for output row y, from widened rows in the ring to `out`, clamped to [0, 255]."""
    for place in range(0, resolution, LANES):
        r, g, b = zeros(), zeros(), zeros()
        for t in range(taps):
            at = min(first[y] + t, height - 1) % SLOTS * 3 * padded + place
            w = splat(weights[t * padded + y])
            r = multiply_add(w, load(ring, at), r)
            g = multiply_add(w, load(ring, at + padded), g)
            b = multiply_add(w, load(ring, at + 2 * padded), b)
        store(out, to + place, clamp_byte(r))
        store(out, step + to + place, clamp_byte(g))
        store(out, 2 * step + to + place, clamp_byte(b))


@inlined
def blend_rows(planes, plane, width, height, left, count, first, weights, padded, taps, y, line, pitch, to):
    """Run the vertical pass for output row y, for `count` source columns from column `left` on.

    Args:
        planes: uint8 [3 * plane + LANES], channels of the decoded image and slack.
        plane: int, bytes from one channel to the next.
        line: float32, out: channel c from to + c * pitch on.
    """
    for i in range(0, count, LANES):
        r, g, b = zeros(), zeros(), zeros()
        for t in range(taps):
            at = min(first[y] + t, height - 1) * width + left + i
            w = splat(weights[t * padded + y])
            r = multiply_add(w, load_bytes(planes, at), r)
            g = multiply_add(w, load_bytes(planes, plane + at), g)
            b = multiply_add(w, load_bytes(planes, 2 * plane + at), b)
        store(line, to + i, r)
        store(line, to + pitch + i, g)
        store(line, to + 2 * pitch + i, b)


@inlined
def _tap(line, at, index, windows):
    """Return line[at + index] per lane, where `index` spans `windows` windows of `LANES`."""
    if windows == 1:
        return lookup(line, at, index)
    value = lookup_wide(line, at, index)
    for pair in range(1, (windows + 1) // 2):
        value = pick_from(pair, index, lookup_wide(line, at + pair * 2 * LANES, index), value)
    return value


@inlined
def gather_columns(line, pitch, start, first, base, weights, padded, taps, out, plane, at):
    """Run the horizontal pass over a row, line[start :]; write out[c * plane + at :], clamped to [0, 255]."""
    for block in range(padded // LANES):
        place = block * LANES
        index = load_ints(first, place)
        source, windows = start + base[2 * block], base[2 * block + 1]
        r, g, b = zeros(), zeros(), zeros()
        for t in range(taps):
            w = load(weights, t * padded + place)
            r = multiply_add(w, _tap(line, source + t, index, windows), r)
            g = multiply_add(w, _tap(line, pitch + source + t, index, windows), g)
            b = multiply_add(w, _tap(line, 2 * pitch + source + t, index, windows), b)
        store(out, at + place, clamp_byte(r))
        store(out, plane + at + place, clamp_byte(g))
        store(out, 2 * plane + at + place, clamp_byte(b))


@inlined
def turn_lines(line, pitch, count, columns):
    """Transpose `LINES` blended rows of three channels with `count` values each.

    Args:
        line: float32, value x of channel c of row k at (3 * k + c) * pitch + x.
        columns: float32, out: the same value at (c * pitch + x) * LINES + k.
    """
    for c in range(3):
        for x in range(0, count, LINES):
            rows_to_columns(line, c * pitch + x, 3 * pitch, columns, (c * pitch + x) * LINES)


@inlined
def sum_columns(
    columns, pitch, left, first, weights, padded, taps, sums, members, resolution, out, plane, at
):
    """Run the horizontal pass over `LINES` transposed rows at once, with two taps per vector.

    Args:
        columns: float32, as `turn_lines` leaves it; column 0 is source column `left`.
        sums: float32 [3 * LINES * LANES], scratch.
        members: int, number of rows to write, `resolution` apart, from out[c * plane + at] on.
    """
    channel, block_sums = pitch * LINES, LINES * LANES
    # From right to left: the last block may write past the end of a row, into the start of the next row,
    # which a later block then overwrites.
    for place in range((resolution - 1) // LINES * LINES, -1, -LINES):
        for x in range(LINES):
            source = (first[place + x] - left) * LINES
            r, g, b = zeros(), zeros(), zeros()
            for t in range(0, taps, 2):
                w = splat_pair(weights[t * padded + place + x], weights[(t + 1) * padded + place + x])
                r = multiply_add(w, load(columns, source + t * LINES), r)
                g = multiply_add(w, load(columns, source + t * LINES + channel), g)
                b = multiply_add(w, load(columns, source + t * LINES + 2 * channel), b)
            store(sums, x * LANES, r)
            store(sums, x * LANES + block_sums, g)
            store(sums, x * LANES + 2 * block_sums, b)
        for c in range(3):
            columns_to_rows(sums, c * block_sums, out, c * plane + at + place, resolution, members)


@inlined
def copy_rows(planes, plane, width, first_rows, first, resolution, top, rows, out, step, start):
    """Write `rows` rows, from row `top` on, of a view whose pixels have one tap each.

    Args:
        planes: uint8 [3 * plane + LANES], channels of the decoded image and slack.
        plane: int, bytes from one channel to the next.
        width: int, bytes from one row of a channel to the next.
        first_rows: int32 [P], source row of each output row; first: int32 [P], the same for columns.
        out: float32 [3 * step], written from `start` on.
    """
    for k in range(rows):
        row, to = first_rows[top + k] * width, start + k * resolution
        for place in range(0, resolution, LANES):
            # Source columns of neighbours differ by at most 1, so `LANES` pixels whose ends are LANES - 1
            # apart are contiguous.
            begin, end = first[place], first[min(place + LANES, resolution) - 1]
            for c in range(3):
                at = c * step + to + place
                if end - begin == LANES - 1:
                    store(out, at, load_bytes(planes, c * plane + row + begin))
                elif begin - end == LANES - 1:
                    store(out, at, reverse(load_bytes(planes, c * plane + row + end)))
                else:
                    for x in range(min(LANES, resolution - place)):
                        out[at + x] = planes[c * plane + row + first[place + x]]


@inlined
def resample_rows(planes, height, width, extent, scratch, resolution, top, rows, out, step, start):
    """Write `rows` rows of the resampled view, from row `top` on, to three channels of `out`, `step` apart.

    Args:
        planes: uint8 [3 * height * width + slack], the decoded region of the image.
        extent: (left, count, row_taps, col_taps, way) of `prepare_tables`.
        scratch: `Scratch` with the tables.
        out: float32 [3 * step], written from `start` on.
    """
    left, count, row_taps, col_taps, way = extent
    if way == ROUND:
        round_rows(planes, height, width, extent, scratch, resolution, top, rows, out, step, start)
        return
    if way == COPY:
        copy_rows(
            planes, height * width, width, scratch.first[0], scratch.first[1], resolution, top, rows, out,
            step, start,
        )  # fmt: skip
        return
    padded = -(-resolution // LANES) * LANES
    pitch = len(scratch.line) // (3 * LINES)
    # Each pass takes several rows, since a vector load that overlaps a recent store has to wait for it.
    for group in range(0, rows, LINES):
        members = min(LINES, rows - group)
        if way == WIDEN:
            rows_first, ring, held = scratch.first[0], scratch.ring, scratch.held
            for k in range(members):
                for t in range(row_taps):
                    y = min(rows_first[top + group + k] + t, height - 1)
                    if held[y % SLOTS] != y:
                        held[y % SLOTS] = y
                        widen_row(
                            planes, height * width, y * width + left, scratch.base, scratch.order,
                            scratch.weights[1], padded, col_taps, ring, y % SLOTS * 3 * padded,
                        )  # fmt: skip
            for k in range(members):
                blend_widened(
                    ring, padded, height, rows_first, scratch.weights[0], row_taps, top + group + k,
                    resolution, out, step, start + (group + k) * resolution,
                )  # fmt: skip
            continue
        for k in range(members):
            blend_rows(
                planes, height * width, width, height, left, count, scratch.first[0], scratch.weights[0],
                padded, row_taps, top + group + k, scratch.line, pitch, 3 * k * pitch,
            )  # fmt: skip
        if HAS_AVX512:  # known at compile time: only one branch is compiled
            for k in range(members):
                gather_columns(
                    scratch.line, pitch, 3 * k * pitch, scratch.first[1], scratch.base, scratch.weights[1],
                    padded, col_taps, out, step, start + (group + k) * resolution,
                )  # fmt: skip
        else:
            turn_lines(scratch.line, pitch, count, scratch.columns)
            sum_columns(
                scratch.columns, pitch, left, scratch.first[1], scratch.weights[1], padded, col_taps,
                scratch.sums, members, resolution, out, step, start + group * resolution,
            )  # fmt: skip


@inlined
def prepare_tables(region, box, window, shift, flip, cubic, rounded, resolution, scratch):
    """Fill the tables of both axes and return (left, count, row_taps, col_taps, way).

    `region` (top, left, height, width) is the decoded part of the image; the view needs `count`
    columns of the region, from column `left` on. Weights are computed in the image's coordinates, so they do
    not depend on the region.
    """
    rows_first, columns_first = scratch.first[0], scratch.first[1]
    row_taps = fill_taps(
        box[0], box[2], window[0], window[2], resolution, shift[0], np.bool_(False), cubic,
        rows_first, scratch.weights[0], scratch.axis,
    )  # fmt: skip
    col_taps = fill_taps(
        box[1], box[3], window[1], window[3], resolution, shift[1], flip, cubic,
        columns_first, scratch.weights[1], scratch.axis,
    )  # fmt: skip
    for place in range(-(-resolution // LANES) * LANES):
        rows_first[place] -= region[0]
        columns_first[place] -= region[1]
    left, right = columns_first[0], columns_first[0]
    for x in range(1, resolution):
        left, right = min(left, columns_first[x]), max(right, columns_first[x])
    padded, way = -(-resolution // LANES) * LANES, SHRINK
    rows_of_group = LINES * box[2] / resolution + row_taps + 1
    if row_taps == 1 and col_taps == 1:
        way = COPY
    elif rounded:
        way = ROUND
        scratch.held[:] = -1
        rounded_weights(
            box[0], box[2], region[0], window[2], resolution, np.bool_(False), cubic, rows_first, row_taps,
            scratch.rounded[0], scratch.rounded.shape[1] // padded,
        )  # fmt: skip
        rounded_weights(
            box[1], box[3], region[1], window[3], resolution, flip, cubic, columns_first, col_taps,
            scratch.rounded[1], scratch.rounded.shape[1] // padded,
        )  # fmt: skip
    elif rows_of_group <= SLOTS and narrow_blocks(columns_first, padded, left, scratch.base, scratch.order):
        way = WIDEN
        scratch.held[:] = -1
    elif HAS_AVX512:
        block_columns(columns_first, padded, left, scratch.base)
    return left, min(right + col_taps, region[3]) - left, row_taps, col_taps, way
