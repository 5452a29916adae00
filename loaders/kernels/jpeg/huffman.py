"""Check the Huffman codes of a baseline JPEG without decoding pixels.

The next thirteen bits index a table, whose entry tells how many of the bits are whole symbols with their
magnitudes, and how many coefficients the symbols cover. Most blocks take a few look-ups. A file in doubt is
refused here and then checked by libjpeg-turbo, so a refusal costs time but never an image.
"""

from __future__ import annotations

import numpy as np

from loaders.kernels.cache import inlined
from loaders.kernels.memory import load_be64, load_le64, store_le64

PEEK_BITS = 13
ROWS = 1 << PEEK_BITS
# Bytes past the end of a scan that may be read if the scan is cut off: a block takes at most 64 symbols of 31
# bits, which are 248 bytes; the rest allows reading whole words.
SLACK = 288
# A table entry: bits taken (4 bits), coefficients covered (8 bits from bit 4), end of block (bit 15). It is 0
# if the index begins with no whole symbol, or with an illegal one.
END = 1 << 11  # the end-of-block bit, in an entry shifted right by 4
# For code lengths 1 to 16, codes[LAST + length] is the largest code of that length (-1: none), and
# codes[PLACE + length] is what to add to a code of that length to get the index of the code's symbol.
LAST, PLACE = 0, 17


@inlined
def build_table(raw, is_ac, table, codes, scratch):
    """Build the look-up table of a Huffman table; return whether the Huffman table is legal.

    Args:
        raw: uint8 [>= 16 + 256], the Huffman table as in a DHT segment: 16 counts and the symbols.
        is_ac: whether a symbol holds run and size, as in AC tables, or only a size.
        table: uint16 [ROWS], out.
        codes: int32 [34], out, for `find_symbol`.
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
    """Write the entry of a legal symbol that fits to all rows whose index begins with the symbol's code."""
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
    """Return the entry of all whole symbols in the bits `peek`; `single` holds one symbol per entry."""
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
    """Return the symbol with whose code the 16 `bits` begin, and the code's length; 0, 0 for no code."""
    for length in range(1, 17):
        code = bits >> (16 - length)
        if codes[LAST + length] >= 0 and code <= codes[LAST + length]:
            return np.int64(raw[16 + codes[PLACE + length] + code]), length
    return 0, 0


@inlined
def unstuff(data, at, stop, out):
    """Copy a scan up to the first marker, leaving out the zero byte after each 0xFF byte.

    Args:
        data: uint8 [>= stop].
        at: first byte of the scan.
        stop: end of the file.
        out: uint8 [>= stop - at + SLACK], the copy, followed by SLACK zeros.

    Returns:
        The number of bytes copied, and the position where copying ended: that of the marker, if there is one.
    """
    size = 0
    while at < stop:
        if at + 8 <= stop:
            word = load_le64(data, at)
            # A byte is 0xFF if that byte of the complement is zero; this is the usual test for a zero byte.
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
    """Walk through a scan; return whether it is legal and ends exactly after its last block.

    Args:
        data: uint8 [size + SLACK], a scan as `unstuff` writes it.
        size: bytes of the scan.
        num_units: minimum coded units of the image.
        blocks: int64 [num_blocks, 3], blocks of a unit: slot of the DC table, of the AC table, and component.
        raws: uint8 [4, 272], the Huffman tables.
        tables: uint16 [4 * ROWS].
        codes: int32 [4, 34].
    """
    bits, count, at = np.uint64(0), np.uint64(0), np.int64(0)
    for _ in range(num_units):
        for block in range(num_blocks):
            # Unsigned indices spare numba's test for negative ones.
            table = np.uint64(blocks[np.uint64(block), 0]) << np.uint64(PEEK_BITS)
            k = 0
            while k < 64:
                # Load until there are at least 56 bits. Bits loaded twice are equal, so `|=` is safe.
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
    # Less than a byte may be left: the padding of the last byte.
    left = 8 * (size - at) + np.int64(count)
    return 0 <= left < 8


@inlined
def _one_symbol(raw, codes, bits, k):
    """Return the number of bits of a symbol and its magnitude, and the next k; 0, 0 if the symbol is illegal.

    `k` counts the coefficients of the block so far; the next k is END + k if the symbol ends the block.
    """
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
