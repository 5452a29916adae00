"""Telling, for many JPEG files in one call, which are beyond doubt whole baseline files.

"Clean" means: of the usual kind (`jpeg_markers`), entropy-coded data that ends exactly with its last block,
and the end mark behind it. libjpeg-turbo then decodes it without a warning. Whatever else there is, or has
Huffman tables that change from file to file, is not clean here and left to libjpeg-turbo.

Source: ITU-T T.81, annexes B and F.
"""

from __future__ import annotations

from loaders.kernels.jpeg.huffman import build_table, unstuff, walk_scan
from loaders.kernels.jpeg.markers import (
    CODES,
    num_units,
    read_header,
    same_bytes,
    table_size,
)
from loaders.kernels.memory import entry, inner
from loaders.packs.stored.sizes import CLEAN, RAW_BYTES
from loaders.packs.stored.sizes import SCAN_ROWS as ROWS

_LARGE_BYTES = 131_072


@entry
def scan_all(data, starts, facts, raws, seen, tables, codes, frame, blocks, tables_at, scratch):
    """Look at all files; see `loaders.packs.stored.jpeg_scan`."""
    for i in range(len(facts)):
        first, stop = starts[i], starts[i + 1]
        at, _, num_blocks = read_header(data, first, stop, facts[i], frame, blocks, tables_at)
        is_clean = at != 0 and _bring_tables(
            data, stop - first >= _LARGE_BYTES, tables_at, raws, seen, tables, codes
        )
        if is_clean:
            size, at = unstuff(data, at, stop, scratch)
            is_clean = at + 2 <= stop and data[at] == 0xFF and data[at + 1] == 0xD9
        if is_clean:
            across, down = num_units(facts[i], frame)
            is_clean = walk_scan(scratch, size, across * down, blocks, num_blocks, raws, tables, codes)
        if is_clean:
            facts[i, CLEAN] = 1
        else:
            facts[i, :] = 0


@inner
def _bring_tables(data, is_large, tables_at, raws, seen, tables, codes):
    """Build the tables of a file that are not there yet; return whether all can be used.

    A small file has its tables built when they come a second time: it alone would not earn the cost.
    """
    is_known = True
    for slot in range(4):
        at = tables_at[CODES + slot]
        size = table_size(data, at) if at else 0
        # The counts come first, so tables of different lengths differ in them.
        if at == 0 or same_bytes(data, at, raws[slot], size):
            continue
        is_new = not same_bytes(data, at, seen[slot], size)
        for i in range(size):
            seen[slot, i] = data[at + i]
        if is_new and not is_large:
            is_known = False
            continue
        rows = tables[slot * ROWS : (slot + 1) * ROWS]
        is_legal = build_table(seen[slot], slot >= 2, rows, codes[slot], tables[4 * ROWS :])
        for i in range(RAW_BYTES):
            raws[slot, i] = seen[slot, i] if is_legal else 0
        if not is_legal:
            return False
    return is_known
