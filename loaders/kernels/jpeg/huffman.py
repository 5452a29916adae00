"""Walking through the Huffman codes of baseline JPEG without making a pixel.

For the next thirteen bits, a table tells how many of them are whole symbols with their magnitudes, and how
many coefficients these cover. Most blocks take a few look-ups. Anything doubtful is refused here and left to
libjpeg-turbo, which decides; so refusing costs time and never an image.
"""

from __future__ import annotations

import numpy as np

from loaders.kernels.cache import inlined
from loaders.kernels.memory import load_be64, load_le64, store_le64

PEEK_BITS = 13
ROWS = 1 << PEEK_BITS
# So far past its end a scan that is cut off may be read: a block takes at most 64 symbols of 31 bits, 248
# bytes; the rest is room for whole words.
SLACK = 288
# An entry: bits taken (4), coefficients covered (8 from bit 4), end of block (bit 15). 0: look closer.
END = 1 << 11  # of an entry shifted right by 4
# Rows of `codes`: per length 1 to 16 the last code (-1: none), then the place of its symbol.
LAST, PLACE = 0, 17


@inlined
def build_table(raw, is_ac, table, codes, scratch):
    """Build the look-up table for a table of a DHT segment; return whether that table is legal.

    Args:
        raw: uint8 [>= 16 + 256], 16 counts and the symbols.
        is_ac: symbols are run and size, else sizes alone.
        table: uint16 [ROWS], result.
        codes: int32 [34], result, for codes that are longer than the look-up.
        scratch: uint16 [ROWS].
    """
    code, place = 0, 0
    for length in range(1, 17):
        count = np.int64(raw[length - 1])
        codes[PLACE + length] = place - code
        code += count
        if code > 1 << length:
            return False
        codes[LAST + length] = code - 1 if count else -1
        place += count
        code <<= 1
    if not is_ac:
        for i in range(place):
            if raw[16 + i] > 15:
                return False
    for peek in range(ROWS):
        table[peek] = 0
    for length in range(1, PEEK_BITS + 1):
        first = np.int64(codes[LAST + length]) + 1 - raw[length - 1]
        for code in range(first, first + raw[length - 1]):
            _fill(raw, code, length, codes[PLACE + length] + code, is_ac, table)
    if is_ac:
        for peek in range(ROWS):
            scratch[peek] = table[peek]
        for peek in range(ROWS):
            table[peek] = _joined(scratch, peek)
    return True


@inlined
def _fill(raw, code, length, place, is_ac, table):
    """Write the entry of one symbol to all places that begin with its code, if its bits fit."""
    symbol = np.int64(raw[16 + place])
    run, size = (symbol >> 4, symbol & 15) if is_ac else (0, symbol)
    entry = length + size | (run + 1) << 4
    if is_ac and size == 0 and run == 0:
        entry = length | 1 << 15
    elif length + size > PEEK_BITS or (is_ac and size == 0 and run != 15):
        return
    free = PEEK_BITS - length
    for peek in range(code << free, (code + 1) << free):
        table[peek] = entry


@inlined
def _joined(single, peek):
    """Return the entry of all whole symbols that some bits begin with."""
    taken, covered = 0, 0
    while True:
        entry = np.int64(single[peek << taken & (ROWS - 1)])
        if entry == 0 or taken + (entry & 15) > PEEK_BITS:
            return taken | covered << 4
        taken, covered = taken + (entry & 15), covered + (entry >> 4 & 255)
        if entry >> 15:
            return taken | covered << 4 | 1 << 15


@inlined
def find_symbol(raw, codes, bits):
    """Return the symbol that 16 bits begin with and the length of its code; length 0 for no code."""
    for length in range(1, 17):
        code = bits >> (16 - length)
        if codes[LAST + length] >= 0 and code <= codes[LAST + length]:
            return np.int64(raw[16 + codes[PLACE + length] + code]), length
    return 0, 0


@inlined
def unstuff(data, at, stop, out):
    """Copy a scan without the zeros behind its 0xFF bytes, up to the first marker.

    Args:
        data: uint8 [>= stop].
        at: first byte of the scan.
        stop: end of the file.
        out: uint8 [>= stop - at + SLACK], result, followed by zeros.

    Returns:
        The number of bytes copied, and the position of the marker or the end.
    """
    size = 0
    while at < stop:
        if at + 8 <= stop:
            word = load_le64(data, at)
            # Some byte is 0xFF where some byte of the complement is zero.
            has_ff = (~word - np.uint64(0x0101010101010101)) & word & np.uint64(0x8080808080808080)
            if has_ff == np.uint64(0):
                store_le64(out, size, word)
                at, size = at + 8, size + 8
                continue
        for _ in range(8):
            if at >= stop:
                break
            if data[at] == 255:
                if at + 1 >= stop or data[at + 1] != 0:
                    stop = at
                    break
                at += 1
                out[size] = 255
            else:
                out[size] = data[at]
            at, size = at + 1, size + 1
    for i in range(SLACK):
        out[size + i] = 0
    return size, at


@inlined
def walk_scan(data, size, num_units, blocks, num_blocks, raws, tables, codes):
    """Walk through a scan; return whether it ends exactly behind its last block.

    Args:
        data: uint8 [size + SLACK], the scan from `unstuff`.
        size: its bytes.
        num_units: minimum coded units.
        blocks: int64 [num_blocks, 3], for each block of a unit, first the slots of its DC and AC table.
        num_blocks: blocks of a unit.
        raws: uint8 [4, 272], the tables' segments.
        tables: uint16 [4 * ROWS].
        codes: int32 [4, 34].
    """
    bits, count, at = np.uint64(0), np.uint64(0), np.int64(0)
    for _ in range(num_units):
        for block in range(num_blocks):
            # Unsigned positions spare the test for an index from the end.
            table = np.uint64(blocks[np.uint64(block), 0]) << np.uint64(PEEK_BITS)
            k = 0
            while k < 64:
                # At least 56 bits from here on; bits that are loaded twice are the same both times.
                bits |= load_be64(data, at) >> count
                at += np.int64((np.uint64(63) - count) >> np.uint64(3))
                count |= np.uint64(56)
                entry = np.int64(tables[table | bits >> np.uint64(64 - PEEK_BITS)])
                taken, after = entry & 15, k + (entry >> 4)
                if taken == 0 or after > END + 63 or 64 < after < END:
                    number = np.int64(table) >> PEEK_BITS
                    taken, after = _one_symbol(raws[number], codes[number], bits, k)
                    if taken == 0:
                        return False
                bits <<= np.uint64(taken)
                count -= np.uint64(taken)
                k = after
                table = np.uint64(blocks[np.uint64(block), 1]) << np.uint64(PEEK_BITS)
            if at > size + 8:
                return False
    # The rest of the last byte is padding; a whole byte left would mean that no block used it.
    left = 8 * (size - at) + np.int64(count)
    return 0 <= left < 8


@inlined
def _one_symbol(raw, codes, bits, k):
    """Return the bits of one symbol with its magnitude, and the next coefficient; 0 bits if it is bad."""
    symbol, length = find_symbol(raw, codes, np.int64(bits >> np.uint64(48)))
    if length == 0:
        return 0, 0
    if k == 0:  # the DC coefficient
        return length + symbol, 1
    run, size = symbol >> 4, symbol & 15
    if size == 0 and run == 0:
        return length, END + k
    after = k + run + 1
    if (size == 0 and run != 15) or after > 64:
        return 0, 0
    return length + size, after
