"""Read the markers before the scan of a JPEG of the usual kind.

A JPEG of the usual kind has legal markers, an 8-bit baseline frame in gray or YCbCr (chroma of full or half
size), one interleaved scan, and no restart intervals. All other files are left to libjpeg-turbo.

Source: ITU-T T.81, annex B.
"""

from __future__ import annotations

import numpy as np

from loaders.kernels.cache import inlined

HEIGHT, WIDTH, CLEAN, HAS_EXIF = 0, 1, 2, 3  # indices into the facts of a file
RAW_BYTES = 16 + 256  # largest Huffman table: the number of codes of each length, then the symbols
NUM_TABLES = 8  # number per file: four quantisation tables, four Huffman tables
MAX_BLOCKS = 10  # largest number of blocks in a minimum coded unit by the standard; 6 in the usual kind
NUM_CODES = 34  # length of the array `codes` of one Huffman table; see `huffman.LAST`
# Columns of the frame, which has a row per component: id, horizontal and vertical sampling factor,
# quantisation table.
_ID, H, V, QUANT = 0, 1, 2, 3
# Columns of the blocks of a unit: slot of the DC table, slot of the AC table, component. The slots are DC 0,
# DC 1, AC 0 and AC 1.
DC_SLOT, AC_SLOT, COMPONENT = 0, 1, 2
CODES = 4  # index of the first Huffman table in `tables_at`, after four quantisation tables
_MAX_SIDE_PX = 65_500


@inlined
def read_header(data, first, stop, facts, frame, blocks, tables_at):
    """Read the markers of one file up to its scan.

    Args:
        data: uint8 [>= stop], holds the file from index `first` to `stop`.
        facts: int64 [4], out: height, width, 0, whether there is EXIF, XMP or ICC data.
        frame: int64 [3, 4], out, a row per component.
        blocks: int64 [MAX_BLOCKS, 3], out.
        tables_at: int64 [NUM_TABLES], out: where in `data` the 64 steps of each quantisation table and the 16
            counts of each Huffman table begin, 0 for none.

    Returns:
        Index of the first entropy-coded byte, number of components, number of blocks per unit; 0, 0, 0 for an
        unusual file.
    """
    nothing = 0, 0, 0
    facts[:] = 0
    tables_at[:] = 0
    if stop - first < 4 or data[first] != 0xFF or data[first + 1] != 0xD8:
        return nothing
    at, num_components = np.int64(first + 2), np.int64(0)
    while True:
        if at + 4 > stop or data[at] != 0xFF:
            return nothing
        marker, length = data[at + 1], np.int64(data[at + 2]) << 8 | np.int64(data[at + 3])
        body, end = at + 4, at + 2 + length
        if length < 2 or end > stop:
            return nothing
        if marker == 0xDA:
            break
        if marker == 0xDB:
            is_usual = _find_quants(data, body, end, tables_at)
        elif marker == 0xC4:
            is_usual = _find_codes(data, body, end, tables_at)
        elif marker == 0xC0:
            is_usual = num_components == 0
            num_components = _read_frame(data, body, end, facts, frame)
            is_usual = is_usual and num_components != 0
        else:
            is_usual = _is_harmless(data, marker, body, end, facts)
        if not is_usual:
            return nothing
        at = end
    for i in range(num_components):
        if tables_at[frame[i, QUANT]] == 0:
            return nothing
    num_blocks = _read_scan(data, body, end, num_components, frame, blocks, tables_at)
    if num_components == 0 or num_blocks == 0:
        return nothing
    return end, num_components, num_blocks


@inlined
def same_bytes(data, at, other, size):
    """Tell whether data[at : at + size] is other[:size]."""
    for i in range(size):  # noqa: SIM110 - numba does not support generators as arguments
        if data[at + i] != other[i]:
            return False
    return True


@inlined
def table_size(data, at):
    """Return the size in bytes of the Huffman table whose counts begin at `at`."""
    size = 16
    for i in range(16):
        size += data[at + i]
    return size


@inlined
def num_units(facts, frame):
    """Return the number of minimum coded units across and down."""
    across, down = 2 + frame[0, H], 2 + frame[0, V]  # a unit of 8 or 16 pixels is a shift by 3 or 4
    return (facts[WIDTH] + (1 << across) - 1) >> across, (facts[HEIGHT] + (1 << down) - 1) >> down


@inlined
def _is_harmless(data, marker, body, end, facts):
    """Tell whether a segment has no effect on decoding; set `HAS_EXIF` if its content must be looked at."""
    size = end - body
    if marker == 0xE0 and size >= 5 and _word(data, body) == 0x4A464946:  # JFIF
        return size >= 14 and data[body + 5] == 1
    # EXIF and XMP may ask to rotate the image; decoders warn of a broken ICC profile.
    if (marker == 0xE1 and size >= 4 and _word(data, body) in (0x45786966, 0x68747470)) or (
        marker == 0xE2 and size >= 4 and _word(data, body) == 0x4943435F
    ):
        facts[HAS_EXIF] = 1
        return True
    if marker == 0xEE and size >= 4 and _word(data, body) == 0x41646F62:  # Adobe
        return size >= 12 and data[body + 11] == 1
    return 0xE0 <= marker <= 0xEF or marker == 0xFE


@inlined
def _word(data, at):
    """Return the big-endian 32-bit number at index `at`."""
    word = np.int64(0)
    for i in range(4):
        word = word << 8 | data[at + i]
    return word


@inlined
def _find_quants(data, at, end, tables_at):
    """Note where a segment's 8-bit quantisation tables begin; return whether the segment is usual."""
    if at == end:
        return False
    while at < end:
        if data[at] > 3 or at + 65 > end:
            return False
        tables_at[data[at]] = at + 1
        at += 65
    return True


@inlined
def _find_codes(data, at, end, tables_at):
    """Note where a segment's Huffman tables begin; return whether the segment is usual."""
    if at == end:
        return False
    while at < end:
        kind, number = data[at] >> 4, data[at] & 15
        if kind > 1 or number > 1 or at + 17 > end:
            return False
        size = table_size(data, at + 1)
        if size > RAW_BYTES or size == 16 or at + 1 + size > end:
            return False
        tables_at[CODES + 2 * kind + number] = at + 1
        at += 1 + size
    return True


@inlined
def _read_frame(data, at, end, facts, frame):
    """Read the frame header; return the number of components, 0 if the frame is unusual."""
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
        frame[i, _ID], frame[i, QUANT] = data[entry], data[entry + 2]
        frame[i, H], frame[i, V] = data[entry + 1] >> 4, data[entry + 1] & 15
        if data[entry + 2] > 3 or (i and (frame[i, H] != 1 or frame[i, V] != 1)):
            return 0
    h, v = frame[0, H], frame[0, V]
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


@inlined
def _read_scan(data, at, end, num_components, frame, blocks, tables_at):
    """Read the header of the only scan; return the number of blocks per unit, 0 if the scan is unusual."""
    if end - at != 4 + 2 * num_components or data[at] != num_components:
        return 0
    num_blocks = 0
    for i in range(num_components):
        dc, ac = np.int64(data[at + 2 + 2 * i]) >> 4, np.int64(data[at + 2 + 2 * i]) & 15
        if data[at + 1 + 2 * i] != frame[i, _ID] or dc > 1 or ac > 1:
            return 0
        if tables_at[CODES + dc] == 0 or tables_at[CODES + 2 + ac] == 0:
            return 0
        for _ in range(frame[i, H] * frame[i, V]):
            blocks[num_blocks, DC_SLOT], blocks[num_blocks, AC_SLOT] = dc, 2 + ac
            blocks[num_blocks, COMPONENT] = i
            num_blocks += 1
    spectral = at + 1 + 2 * num_components
    if data[spectral] != 0 or data[spectral + 1] != 63 or data[spectral + 2] != 0:
        return 0
    return num_blocks
