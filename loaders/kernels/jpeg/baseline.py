"""Decode JPEGs of the usual kind (see `markers`) into channel planes, bit for bit like libjpeg-turbo.

This is a third faster than libjpeg-turbo, since codes are looked up two at a time and reading ends with the
last wanted row. Files of other kinds, and files that may be damaged, are refused and left to libjpeg-turbo,
so a refusal costs time but never an image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from loaders.kernels.cache import inlined, kernel
from loaders.kernels.jpeg.colours import convert_row, enlarge_row
from loaders.kernels.jpeg.entropy import (
    BLOCK_AC,
    BLOCK_ACROSS,
    BLOCK_COMPONENT,
    BLOCK_DC,
    BLOCK_DOWN,
    BLOCK_FACTORS,
    BLOCK_PLACE,
    BLOCK_STRIDE,
    COEFFICIENTS,
    PLACES,
    ROWS,
    begin_scan,
    bits_left,
    build_entropy_table,
    decode_units,
)
from loaders.kernels.jpeg.huffman import SLACK, unstuff
from loaders.kernels.jpeg.markers import (
    AC_SLOT,
    CODES,
    COMPONENT,
    DC_SLOT,
    HEIGHT,
    MAX_BLOCKS,
    NUM_CODES,
    NUM_TABLES,
    QUANT,
    RAW_BYTES,
    WIDTH,
    H,
    V,
    num_units,
    read_header,
    same_bytes,
    table_size,
)
from loaders.kernels.simd import LANES

_NARROWEST = 5  # pixels; libjpeg-turbo enlarges the chroma of narrower images differently
# Columns of `places`, which has a row per plane of samples: where the image's top left sample would be, even
# if it is not decoded, and bytes from one row to the next.
_FIRST, _STRIDE = 0, 1
_MAX_ROW_PX = 65_536


# What a thread keeps from one image to the next: tables, which files often share, and scratch. One record as
# an argument halves the compile time, since numba unpacks a tuple of arrays in every function.
BASELINE = np.dtype(
    [
        ("tables", np.uint64, (4 * ROWS,)),
        ("single", np.uint64, (ROWS,)),
        ("state", np.uint64, (3,)),
        ("previous", np.int64, (3,)),
        ("facts", np.int64, (4,)),
        ("frame", np.int64, (3, 4)),
        ("units", np.int64, (MAX_BLOCKS, 3)),
        ("tables_at", np.int64, (NUM_TABLES,)),
        ("blocks", np.int64, (MAX_BLOCKS, 8)),
        ("places", np.int64, (3, 2)),  # of the planes of samples
        ("codes", np.int32, (4, NUM_CODES)),
        ("factors", np.int16, (4 * 64,)),
        ("coefficients", np.int16, (COEFFICIENTS,)),
        ("sums", np.int16, (_MAX_ROW_PX,)),
        ("raws", np.uint8, (4, RAW_BYTES)),  # the Huffman tables that were built last
        ("colours", np.uint8, (2, _MAX_ROW_PX)),
        ("narrow", np.uint8, (3 * LANES,)),
    ]
)


def make_baseline() -> NDArray[np.void]:
    """Allocate the state of one thread, BASELINE [1]."""
    return np.zeros(1, BASELINE)


def scan_bytes(size: int) -> int:
    """Return the bytes of scratch needed for the entropy-coded data of a file of `size` bytes."""
    return size + SLACK


def sample_bytes(height: Any, width: Any) -> Any:
    """Return the largest number of bytes that the samples of an image can need."""
    return 3 * (height + 15) * (width + 15) + LANES


@inlined
def decode_baseline(data, height, width, region, base, scan, samples, planes):
    """Decode a region of one image; return whether that was possible.

    Args:
        data: uint8, the file; refused unless it ends with the end-of-image marker.
        height, width: expected size; an image of another size is refused.
        region: int64 [4], top, left, height and width of the wanted part.
        base: a record of `BASELINE`.
        scan: uint8 [>= scan_bytes(len(data))], scratch.
        samples: uint8 [>= sample_bytes(height, width)], scratch.
        planes: uint8 [>= 3 * pixels of the region], out: red, green and blue, one after the other; empty if
            only the samples are wanted (`decode_samples`).
    """
    at, num_components, num_blocks = read_header(
        data, np.int64(0), len(data), base.facts, base.frame, base.units, base.tables_at
    )
    if at == 0 or base.facts[HEIGHT] != height or base.facts[WIDTH] != width or width < _NARROWEST:
        return False
    if not _bring_tables(data, base):
        return False
    size, at = unstuff(data, at, len(data), scan)
    if at + 2 != len(data) or data[at] != 0xFF or data[at + 1] != 0xD9:
        return False
    h, v = base.frame[0, H], base.frame[0, V]
    across, down = num_units(base.facts, base.frame)
    # Units that hold the region and the chroma values beside it, which enlarging the chroma needs.
    wide, high = 2 + h, 2 + v
    first, last = max(region[1] - 2, 0) >> wide, min(((region[1] + region[3] + 1) >> wide) + 1, across)
    top, bottom = max(region[0] - 2, 0) >> high, min(((region[0] + region[2] + 1) >> high) + 1, down)
    if not _lay_out(base, num_components, num_blocks, top, first, bottom - top, last - first, len(samples)):
        return False
    begin_scan(base.state, base.previous, base.coefficients)
    done, end = region[0], region[0] + (region[2] if len(planes) else 0)
    for row in range(bottom):
        wanted = (first, last) if row >= top else (0, 0)
        is_good = decode_units(
            scan, size, base.state, across, wanted[0], wanted[1], base.blocks, num_blocks, row - top,
            base.raws, base.tables, base.codes, base.previous, base.coefficients, base.factors, samples,
        )  # fmt: skip
        if not is_good or bits_left(base.state, size) < 0:
            return False
        # With v == 2, the last row of pixels of a unit needs chroma of the next unit.
        ready = end if row == bottom - 1 else min(end, ((row + 1) << high) - (v - 1))
        for y in range(done, ready):
            to, plane = (y - region[0]) * region[3], region[2] * region[3]
            _write_row(base, num_components, y, region[1], region[3], samples, planes, to, plane)
        done = max(done, ready)
    return bottom < down or bits_left(base.state, size) < 8


@kernel
def decode_samples(data, height, width, region, base, scan, samples, places):
    """Decode an image into luma and chroma planes as stored; return whether that was possible.

    Args:
        region: int64 [4], 0, 0, height, width.
        base: BASELINE [1].
        samples: uint8 [>= sample_bytes(height, width)], out.
        places: int64 [3, 2], out: where in `samples` each component begins, and bytes from row to row.
        data, height, width, scan: as in `decode_baseline`.
    """
    done = decode_baseline(data, height, width, region, base[0], scan, samples, samples[:0])
    for c in range(3):
        for i in range(2):
            places[c, i] = base[0].places[c, i]
    return done


@inlined
def _bring_tables(data, base):
    """Copy the quantisation tables, build those Huffman tables that are new; return whether all are legal."""
    for slot in range(4):
        at = base.tables_at[slot]
        if at:
            for i in range(64):
                base.factors[64 * slot + PLACES[i]] = data[at + i]
        at = base.tables_at[CODES + slot]
        size = table_size(data, at) if at else 0
        # The first 16 bytes decide the size, so a table of another size differs there.
        if at == 0 or same_bytes(data, at, base.raws[slot], size):
            continue
        base.raws[slot, :] = 0
        raw, rows = data[at : at + size], base.tables[slot * ROWS : (slot + 1) * ROWS]
        if not build_entropy_table(raw, slot >= 2, rows, base.codes[slot], base.single):
            return False
        for i in range(size):
            base.raws[slot, i] = raw[i]
    return True


@inlined
def _lay_out(base, num_components, num_blocks, top, first, down, across, room):
    """Lay out the planes of samples and the blocks of a unit; return whether the planes fit into `room`."""
    begin = 0
    for c in range(num_components):
        stride, high = 8 * base.frame[c, H] * across, 8 * base.frame[c, V]
        base.places[c, _FIRST] = begin - top * high * stride - first * 8 * base.frame[c, H]
        base.places[c, _STRIDE] = stride
        number = 0
        for b in range(num_blocks):
            if base.units[b, COMPONENT] != c:
                continue
            block = base.blocks[b]
            x, y = (number & 1, number >> 1) if base.frame[c, H] == 2 else (0, number)
            block[BLOCK_DC], block[BLOCK_AC] = base.units[b, DC_SLOT], base.units[b, AC_SLOT]
            block[BLOCK_COMPONENT] = c
            block[BLOCK_PLACE] = begin + 8 * (y * stride + x)
            block[BLOCK_ACROSS], block[BLOCK_DOWN] = 8 * base.frame[c, H], high * stride
            block[BLOCK_STRIDE] = stride
            block[BLOCK_FACTORS] = 64 * base.frame[c, QUANT]
            number += 1
        begin += stride * high * down
    return begin + LANES <= room


@inlined
def _write_row(base, num_components, y, left, count, samples, planes, to, plane):
    """Write `count` pixels of row y of the image, from column `left` on, to the three planes."""
    at = base.places[0, _FIRST] + y * base.places[0, _STRIDE] + left
    if num_components == 1:
        for c in range(3):
            for x in range(count):
                planes[to + c * plane + x] = samples[at + x]
        return
    h, v = base.frame[0, H], base.frame[0, V]
    first, stride = base.places[1:, _FIRST], base.places[1, _STRIDE]
    if h == 1 and v == 1:
        cb, cr = first[0] + y * stride + left, first[1] + y * stride + left
        convert_row(samples, at, samples, cb, samples, cr, count, planes, to, plane, base.narrow)
        return
    height, width = (base.facts[HEIGHT] + v - 1) >> (v - 1), (base.facts[WIDTH] + h - 1) >> (h - 1)
    begin = np.int64(0)
    for c in range(2):
        begin = enlarge_row(
            samples, first[c], stride, height, width, y, left, count, h, v, base.sums, base.colours[c]
        )
    blue, red = base.colours[0], base.colours[1]
    convert_row(samples, at, blue, begin, red, begin, count, planes, to, plane, base.narrow)
