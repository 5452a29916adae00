"""Telling, for many JPEG files in one call, which are beyond doubt whole baseline files.

"Clean" means: the usual markers in a legal form, one interleaved scan of an 8-bit baseline frame in gray or
YCbCr, entropy-coded data that ends exactly with its last block, and the end mark behind it. libjpeg-turbo
then decodes it without a warning. Whatever else there is, such as restart intervals or Huffman tables that
change from file to file, is not clean here and left to libjpeg-turbo.

Source: ITU-T T.81, annexes B and F.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from loaders.packs.kernels.huffman import NUM_CODES, ROWS, SLACK, build_table, unstuff, walk_scan
from loaders.packs.kernels.memory import kernel

HEIGHT, WIDTH, CLEAN, HAS_EXIF = 0, 1, 2, 3
_RAW_BYTES = 16 + 256
_MAX_SIDE_PX = 65_500
_LARGE_BYTES = 131_072
# Rows of the frame's scratch: id, horizontal and vertical sampling, quantisation table of a component.
_ID, _H, _V, _QUANT = 0, 1, 2, 3


@dataclass
class ScanTables:
    """Huffman tables of the files seen last, so that files with the same ones do not pay for them again.

    Each thread needs its own. Four tables: DC 0, DC 1, AC 0, AC 1.
    """

    raws: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((4, _RAW_BYTES), np.uint8))
    seen: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((4, _RAW_BYTES), np.uint8))
    tables: NDArray[np.uint16] = field(default_factory=lambda: np.zeros(5 * ROWS, np.uint16))
    codes: NDArray[np.int32] = field(default_factory=lambda: np.zeros((4, NUM_CODES), np.int32))
    frame: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 4), np.int64))
    blocks: NDArray[np.int64] = field(default_factory=lambda: np.zeros((10, 2), np.int64))


def scan_jpegs(data: NDArray[np.uint8], starts: NDArray[np.int64], tables: ScanTables) -> NDArray[np.int64]:
    """Look at many files.

    Args:
        data: uint8 [total], the files one after the other.
        starts: int64 [N + 1], where each file begins, and the end of the last one.
        tables: what was learned from files before.

    Returns:
        int64 [N, 4]: height, width, whether the file is clean, whether it has EXIF data; zeros where it is
        not clean.
    """
    facts = np.zeros((len(starts) - 1, 4), np.int64)
    t = tables
    scratch = np.empty(int(np.diff(starts).max(initial=0)) + SLACK, np.uint8)
    _scan_all(data, starts, facts, t.raws, t.seen, t.tables, t.codes, t.frame, t.blocks, scratch)
    return facts


@kernel
def _scan_all(data, starts, facts, raws, seen, tables, codes, frame, blocks, scratch):
    for i in range(len(facts)):
        _scan_one(data, starts[i], starts[i + 1], facts[i], raws, seen, tables, codes, frame, blocks, scratch)
        if facts[i, CLEAN] == 0:
            facts[i, :] = 0


@kernel
def _scan_one(data, first, stop, facts, raws, seen, tables, codes, frame, blocks, scratch):
    """Read the markers of one file, then walk through its scan."""
    if stop - first < 4 or data[first] != 0xFF or data[first + 1] != 0xD8:
        return
    at, num_components, quants, huffman = first + 2, 0, 0, 0
    is_known = True
    while True:
        if at + 4 > stop or data[at] != 0xFF:
            return
        marker, length = data[at + 1], np.int64(data[at + 2]) << 8 | np.int64(data[at + 3])
        body, end = at + 4, at + 2 + length
        if length < 2 or end > stop:
            return
        if marker == 0xDA:
            break
        if marker == 0xDB:
            found = _read_quants(data, body, end)
            quants |= found
            if found == 0:
                return
        elif marker == 0xC4:
            found = _read_huffman(data, body, end, stop - first >= _LARGE_BYTES, raws, seen, tables, codes)
            huffman |= found & 15
            is_known = is_known and found >> 4 == 0
            if found == 0:
                return
        elif marker == 0xC0:
            if num_components:
                return
            num_components = _read_frame(data, body, end, facts, frame)
            if num_components == 0:
                return
        elif not _is_harmless(data, marker, body, end, facts):
            return
        at = end
    if num_components == 0 or not is_known:
        return
    for i in range(num_components):
        if not quants >> frame[i, _QUANT] & 1:
            return
    num_blocks = _read_scan(data, body, end, num_components, frame, blocks, huffman)
    if num_blocks == 0:
        return
    units = _num_units(facts, num_components, frame)
    size, at = unstuff(data, end, stop, scratch)
    if at + 2 <= stop and data[at] == 0xFF and data[at + 1] == 0xD9:
        facts[CLEAN] = walk_scan(scratch, size, units, blocks, num_blocks, raws, tables, codes)


@kernel
def _is_harmless(data, marker, body, end, facts):
    """Tell whether a segment says nothing that changes how the file is decoded."""
    size = end - body
    if marker == 0xE0 and size >= 5 and _begins(data, body, 0x4A, 0x46, 0x49, 0x46):  # JFIF
        return size >= 14 and data[body + 5] == 1
    if marker == 0xE1 and size >= 4 and _begins(data, body, 0x45, 0x78, 0x69, 0x66):  # Exif
        facts[HAS_EXIF] = 1
        return True
    if marker == 0xEE and size >= 4 and _begins(data, body, 0x41, 0x64, 0x6F, 0x62):  # Adobe
        return size >= 12 and data[body + 11] == 1
    return 0xE0 <= marker <= 0xEF or marker == 0xFE


@kernel
def _begins(data, at, a, b, c, d):
    return data[at] == a and data[at + 1] == b and data[at + 2] == c and data[at + 3] == d


@kernel
def _read_quants(data, at, end):
    """Return which of the four 8-bit quantisation tables a segment holds, as bits; 0 where it is odd."""
    found = 0
    while at < end:
        if data[at] > 3 or at + 65 > end:
            return 0
        found |= 1 << data[at]
        at += 65
    return found


@kernel
def _read_huffman(data, at, end, is_large, raws, seen, tables, codes):
    """Return which tables a segment holds, as bits 0 to 3, and in bits 4 to 7 those not yet built; 0 odd.

    A small file has its tables built when they come a second time: it alone would not earn the cost.
    """
    found = 0
    while at < end:
        kind, number = data[at] >> 4, data[at] & 15
        if kind > 1 or number > 1 or at + 17 > end:
            return 0
        num_symbols = 0
        for i in range(16):
            num_symbols += data[at + 1 + i]
        if num_symbols > 256 or num_symbols == 0 or at + 17 + num_symbols > end:
            return 0
        slot, size = 2 * kind + number, 16 + num_symbols
        found |= 1 << slot
        if not _same(data, at + 1, raws[slot], size):
            is_new = not _same(data, at + 1, seen[slot], size)
            for i in range(size):
                seen[slot, i] = data[at + 1 + i]
            if is_new and not is_large:
                found |= 16 << slot
            else:
                is_legal = build_table(
                    seen[slot],
                    kind == 1,
                    tables[slot * ROWS : (slot + 1) * ROWS],
                    codes[slot],
                    tables[4 * ROWS :],
                )
                for i in range(len(seen[slot])):
                    raws[slot, i] = seen[slot, i] if is_legal else 0
                if not is_legal:
                    return 0
        at += 1 + size
    return found


@kernel
def _same(data, at, raw, size):
    # The counts come first, so tables of different lengths differ in them.
    for i in range(size):  # noqa: SIM110 - numba knows no generators as arguments
        if data[at + i] != raw[i]:
            return False
    return True


@kernel
def _read_frame(data, at, end, facts, frame):
    """Read an 8-bit frame of usual sampling; return its number of components, 0 where it is odd."""
    if end - at < 6 or data[at] != 8:
        return 0
    num_components = np.int64(data[at + 5])
    height = np.int64(data[at + 1]) << 8 | np.int64(data[at + 2])
    width = np.int64(data[at + 3]) << 8 | np.int64(data[at + 4])
    if num_components not in (1, 3) or end - at != 6 + 3 * num_components:
        return 0
    if not (0 < height <= _MAX_SIDE_PX and 0 < width <= _MAX_SIDE_PX):
        return 0
    for i in range(num_components):
        entry = at + 6 + 3 * i
        frame[i, _ID], frame[i, _QUANT] = data[entry], data[entry + 2]
        frame[i, _H], frame[i, _V] = data[entry + 1] >> 4, data[entry + 1] & 15
        if data[entry + 2] > 3 or (i and (frame[i, _H] != 1 or frame[i, _V] != 1)):
            return 0
    h, v = frame[0, _H], frame[0, _V]
    if num_components == 1 and (h != 1 or v != 1):
        return 0
    if h not in (1, 2) or v not in (1, 2):
        return 0
    if num_components == 3:
        a, b, c = frame[0, _ID], frame[1, _ID], frame[2, _ID]
        if a in (b, c) or b == c or (a == 82 and b == 71 and c == 66):  # "RGB"
            return 0
    facts[HEIGHT], facts[WIDTH] = height, width
    return num_components


@kernel
def _read_scan(data, at, end, num_components, frame, blocks, huffman):
    """Read the heading of the one scan; return its blocks per unit, 0 where it is odd."""
    if end - at != 4 + 2 * num_components or data[at] != num_components:
        return 0
    num_blocks = 0
    for i in range(num_components):
        dc, ac = np.int64(data[at + 2 + 2 * i]) >> 4, np.int64(data[at + 2 + 2 * i]) & 15
        if data[at + 1 + 2 * i] != frame[i, _ID] or dc > 1 or ac > 1:
            return 0
        if not (huffman >> dc & 1 and huffman >> (2 + ac) & 1):
            return 0
        for _ in range(frame[i, _H] * frame[i, _V]):
            blocks[num_blocks, 0], blocks[num_blocks, 1] = dc, 2 + ac
            num_blocks += 1
    spectral = at + 1 + 2 * num_components
    if data[spectral] != 0 or data[spectral + 1] != 63 or data[spectral + 2] != 0:
        return 0
    return num_blocks


@kernel
def _num_units(facts, num_components, frame):
    wide, high = 8 * frame[0, _H], 8 * frame[0, _V]
    return (facts[WIDTH] + wide - 1) // wide * ((facts[HEIGHT] + high - 1) // high)
