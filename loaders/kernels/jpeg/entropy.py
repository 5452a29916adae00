"""Decode the Huffman codes of a baseline JPEG's blocks into coefficients, two at a time.

The next ten bits index a table. Most often they hold two whole symbols with their magnitudes, so one look-up
gives two coefficients and the number of bits that these took.

Source: ITU-T T.81, annex F.2.2.
"""

from __future__ import annotations

import numpy as np

from loaders.kernels.cache import inlined
from loaders.kernels.jpeg.idct import transform_block
from loaders.kernels.memory import load_be64, store_le64

PEEK_BITS = 10
ROWS = 1 << PEEK_BITS
COEFFICIENTS = 72  # int16 values: the 64 of a block, and room for positions past the block's end
END = 128  # the end-of-block symbol advances by this many coefficients
# Fields of a table entry from the lowest bit up, with their numbers of bits.
# In a DC table, and in an AC table if the first magnitude does not fit into the look-up: 0 (8), bits taken
# (8), bits of the magnitude (8), advance (8).
# Otherwise in an AC table: bits taken by both symbols (8), by the first (8), advance by the first (8), by
# both (8), value of the first (16), of the second (16); if only one fits, the other fields repeat its own.
# An entry of 0 stands for a code that is longer than the look-up, or for no code.
# For code lengths 1 to 16, codes[_LAST + length] is the largest code of that length (-1: none), and
# codes[_PLACE + length] is what to add to a code of that length to get the index of the code's symbol.
_LAST, _PLACE = 0, 17
# Largest absolute value of a dequantised DC coefficient. Only damage exceeds it, and our sums would then
# overflow differently from libjpeg-turbo's.
_MOST = 8191
_BEHIND = 2 * END  # positions past the end of a block that an advance can reach
# Row-major position in a block of each coefficient of the zigzag order; coefficients past the block's end
# share one unused position.
PLACES = np.array(
    sorted(range(64), key=lambda i: (i // 8 + i % 8, (i // 8 if (i // 8 + i % 8) % 2 else i % 8)))
    + [64] * _BEHIND,
    np.int64,
)
# Columns of `blocks`: slots of the DC and the AC table, component, where the samples of the first unit go,
# offsets to those of the next unit across and down, bytes from one row of samples to the next, where the
# quantisation steps begin.
(
    BLOCK_DC,
    BLOCK_AC,
    BLOCK_COMPONENT,
    BLOCK_PLACE,
    BLOCK_ACROSS,
    BLOCK_DOWN,
    BLOCK_STRIDE,
    BLOCK_FACTORS,
) = range(8)


@inlined
def build_entropy_table(raw, is_ac, table, codes, single):
    """Build the look-up table of a Huffman table; return whether the Huffman table is legal.

    Args:
        raw: uint8, the Huffman table as in a DHT segment: 16 counts and the symbols.
        is_ac: whether a symbol holds run and size, as in AC tables, or only a size.
        table: uint64 [ROWS], out.
        codes: int32 [34], out, for codes that are longer than the look-up.
        single: uint64 [ROWS], scratch.
    """
    code, place = 0, 0
    for peek in range(ROWS):
        table[peek] = 0
    for length in range(1, 17):
        count = np.int64(raw[length - 1])
        if code + count > 1 << length or place + count > 256:
            return False
        codes[_PLACE + length] = place - code
        codes[_LAST + length] = code + count - 1 if count else -1
        for symbol in raw[16 + place : 16 + place + count]:
            entry = _entry(np.int64(symbol), length, is_ac)
            if entry == 0:
                return False
            if length <= PEEK_BITS:
                free = PEEK_BITS - length
                for peek in range(code << free, (code + 1) << free):
                    table[peek] = entry
            code += 1
        place += count
        code <<= 1
    if is_ac:
        for peek in range(ROWS):
            single[peek] = table[peek]
        for peek in range(ROWS):
            table[peek] = _pair(single, peek)
    return True


@inlined
def _entry(symbol, length, is_ac):
    """Return the entry of a symbol whose code has `length` bits; 0 if baseline JPEG has no such symbol."""
    run, size = (symbol >> 4, symbol & 15) if is_ac else (0, symbol)
    if size > (10 if is_ac else 11) or (is_ac and size == 0 and run != 0 and run != 15):
        return np.uint64(0)
    advance = END if is_ac and symbol == 0 else run + 1
    return np.uint64((length + size) << 8 | size << 16 | advance << 24)


@inlined
def _pair(single, peek):
    """Return the entry of the one or two symbols in the bits `peek`; `single` holds one symbol per entry."""
    entry = np.int64(single[peek])
    taken, size, advance = entry >> 8 & 255, entry >> 16 & 255, entry >> 24
    if entry == 0 or taken > PEEK_BITS:
        return np.uint64(entry)
    first = _magnitude(peek, taken, size)
    both, reach, second = taken, advance, first
    rest = peek << taken & (ROWS - 1)
    entry = np.int64(single[rest])
    if advance < END and entry != 0 and taken + (entry >> 8 & 255) <= PEEK_BITS:
        both, reach = taken + (entry >> 8 & 255), advance + (entry >> 24)
        second = _magnitude(rest, entry >> 8 & 255, entry >> 16 & 255)
    values = np.uint64((first & 0xFFFF) | (second & 0xFFFF) << 16)
    return np.uint64(both | taken << 8 | advance << 16 | reach << 24) | values << np.uint64(32)


@inlined
def _magnitude(peek, taken, size):
    """Return the coefficient whose magnitude is the last `size` of the first `taken` bits of a look-up."""
    bits = peek >> (PEEK_BITS - taken) & ((1 << size) - 1)
    return bits if size == 0 or bits >> (size - 1) else bits - (1 << size) + 1


@inlined
def _longer(raw, codes, bits, is_ac):
    """Return the entry of a code that is longer than the look-up; 0 if the bits begin with no code."""
    for length in range(PEEK_BITS + 1, 17):
        code = np.int64(bits >> np.uint64(64 - length))
        if code <= codes[_LAST + length]:
            return _entry(np.int64(raw[16 + codes[_PLACE + length] + code]), length, is_ac)
    return np.uint64(0)


@inlined
def begin_scan(state, previous, coefficients):
    """Clear these arguments of `decode_units` for a new scan."""
    state[:] = 0
    previous[:] = 0
    coefficients[:] = 0


@inlined
def bits_left(state, size):
    """Return how many bits of a scan of `size` bytes are still to be decoded; negative past its end."""
    return 8 * (size - np.int64(state[2])) + np.int64(state[1])


@inlined
def decode_units(
    data,
    size,
    state,
    num_units,
    first,
    last,
    blocks,
    num_blocks,
    row,
    raws,
    tables,
    codes,
    previous,
    coefficients,
    factors,
    samples,
):
    """Decode a row of minimum coded units, and write the samples of units first .. last - 1.

    Args:
        data: uint8 [size + SLACK], a scan as `unstuff` writes it.
        size: bytes of the scan.
        state: uint64 [3], bits loaded and not yet taken, their number, and bytes loaded; updated.
        num_units: units in the row.
        blocks: int64 [num_blocks, 8], the blocks of a unit; see `BLOCK_...`.
        row: index of this row of units, counted from the first row whose samples are wanted.
        raws: uint8 [4, 272], the Huffman tables; codes: int32 [4, NUM_CODES]; tables: uint64 [4 * ROWS].
        previous: int64 [3], last DC coefficient of each component; updated.
        coefficients: int16 [COEFFICIENTS], scratch, zero before each block.
        factors: int16 [4 * 64], quantisation steps of four tables, row-major.
        samples: uint8, out.

    Returns:
        False if a code does not exist, a block has too many coefficients or an impossible DC coefficient, or
        the units go on well past the end of the scan; else True. `bits_left` tells the exact end.
    """
    bits, count, at = state[0], state[1], np.int64(state[2])
    for unit in range(num_units):
        for b in range(num_blocks):
            # Unsigned indices spare numba's test for negative ones.
            block = blocks[np.uint64(b)]
            slot = np.uint64(block[BLOCK_DC])
            # Load until there are at least 56 bits. Bits loaded twice are equal, so `|=` is safe.
            bits |= load_be64(data, at) >> count
            at += np.int64((np.uint64(63) - count) >> np.uint64(3))
            count |= np.uint64(56)
            entry = tables[slot * np.uint64(ROWS) + (bits >> np.uint64(64 - PEEK_BITS))]
            if entry == 0:
                entry = _longer(raws[slot], codes[slot], bits, np.bool_(False))
                if entry == 0:
                    return False
            taken = entry >> np.uint64(8) & np.uint64(31)
            component = np.uint64(block[BLOCK_COMPONENT])
            value = previous[component] + _value(bits, taken, entry >> np.uint64(16) & np.uint64(15))
            if abs(value * np.int64(factors[block[BLOCK_FACTORS]])) > _MOST:
                return False
            previous[component] = value
            coefficients[0] = value
            bits <<= taken
            count -= taken
            slot = np.uint64(block[BLOCK_AC])
            table = slot * np.uint64(ROWS)
            k = np.uint64(1)
            while k < np.uint64(64):
                bits |= load_be64(data, at) >> count
                at += np.int64((np.uint64(63) - count) >> np.uint64(3))
                count |= np.uint64(56)
                entry = tables[table + (bits >> np.uint64(64 - PEEK_BITS))]
                if entry & np.uint64(255) == 0:
                    if entry == 0:
                        entry = _longer(raws[slot], codes[slot], bits, np.bool_(True))
                        if entry == 0:
                            return False
                    taken = entry >> np.uint64(8) & np.uint64(31)
                    k += entry >> np.uint64(24)
                    value = _value(bits, taken, entry >> np.uint64(16) & np.uint64(15))
                    coefficients[np.uint64(PLACES[k - np.uint64(1)])] = value
                    bits <<= taken
                    count -= taken
                    continue
                near = k + (entry >> np.uint64(16) & np.uint64(255))
                reach = k + (entry >> np.uint64(24) & np.uint64(255))
                coefficients[np.uint64(PLACES[near - np.uint64(1)])] = np.int16(entry >> np.uint64(32))
                coefficients[np.uint64(PLACES[reach - np.uint64(1)])] = np.int16(entry >> np.uint64(48))
                taken, k = entry & np.uint64(63), reach
                if reach < np.uint64(64):  # the loaded bits suffice for one more look-up
                    bits <<= taken
                    count -= taken
                    entry = tables[table + (bits >> np.uint64(64 - PEEK_BITS))]
                    if entry & np.uint64(255) == 0:
                        continue
                    near = k + (entry >> np.uint64(16) & np.uint64(255))
                    reach = k + (entry >> np.uint64(24) & np.uint64(255))
                    coefficients[np.uint64(PLACES[near - np.uint64(1)])] = np.int16(entry >> np.uint64(32))
                    coefficients[np.uint64(PLACES[reach - np.uint64(1)])] = np.int16(entry >> np.uint64(48))
                    taken, k = entry & np.uint64(63), reach
                if near >= np.uint64(64):  # the first symbol ended the block, so the second is not in it
                    taken = entry >> np.uint64(8) & np.uint64(31)
                    k = near
                bits <<= taken
                count -= taken
            if np.uint64(64) < k < np.uint64(END) or at > size + 8:
                return False
            if first <= unit < last:
                to = block[BLOCK_PLACE] + row * block[BLOCK_DOWN] + (unit - first) * block[BLOCK_ACROSS]
                stride = block[BLOCK_STRIDE]
                if k == np.uint64(1 + END):
                    _fill_block(coefficients[0] * factors[block[BLOCK_FACTORS]], samples, to, stride)
                else:
                    transform_block(coefficients, factors, block[BLOCK_FACTORS], samples, to, stride)
            coefficients[:64] = 0
    state[0], state[1], state[2] = bits, count, at
    return True


@inlined
def _value(bits, taken, size):
    """Return the coefficient whose magnitude is the last `size` of the first `taken` bits."""
    rest = bits << (taken - size)
    value = np.int64(rest >> (np.uint64(63) - size) >> np.uint64(1))
    # If the bits of the magnitude begin with 0, the coefficient is negative.
    return value + (~(np.int64(rest) >> 63) & (1 - (1 << np.int64(size))))


@inlined
def _fill_block(value, samples, to, stride):
    """Write the samples of a block whose only coefficient is the DC; `value` is dequantised."""
    byte = min(max((np.int64(np.int16(4 * value)) + 16) >> 5, -128), 127) + 128
    word = np.uint64(byte) * np.uint64(0x0101010101010101)
    for y in range(8):
        store_le64(samples, to + y * stride, word)
