"""Find out, for many JPEG files in one call, which are certainly complete baseline files.

A "clean" file is of the usual kind (see `markers`), and its entropy-coded data ends exactly with its last
block, followed by the end-of-image marker. libjpeg-turbo decodes a clean file without a warning. All other
files are left to libjpeg-turbo, and so are small files whose Huffman tables differ from file to file.

Source: ITU-T T.81, annexes B and F.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from loaders.kernels.cache import inlined, kernel
from loaders.kernels.jpeg.huffman import ROWS, SLACK, build_table, unstuff, walk_scan
from loaders.kernels.jpeg.markers import (
    CLEAN,
    CODES,
    MAX_BLOCKS,
    NUM_CODES,
    NUM_TABLES,
    RAW_BYTES,
    num_units,
    read_header,
    same_bytes,
    table_size,
)
from loaders.kernels.memory import read_only

_LARGE_BYTES = 131_072


@dataclass
class ScanTables:
    """The Huffman tables built last, so that the next files with the same tables need not build them again.

    Each thread needs an instance of its own. The four tables are DC 0, DC 1, AC 0 and AC 1; `tables` and
    `codes` hold them as built, `raws` as in their file. `seen` holds the last tables that were not in `raws`.
    """

    raws: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((4, RAW_BYTES), np.uint8))
    seen: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((4, RAW_BYTES), np.uint8))
    tables: NDArray[np.uint16] = field(default_factory=lambda: np.zeros(5 * ROWS, np.uint16))
    codes: NDArray[np.int32] = field(default_factory=lambda: np.zeros((4, NUM_CODES), np.int32))
    frame: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 4), np.int64))
    blocks: NDArray[np.int64] = field(default_factory=lambda: np.zeros((MAX_BLOCKS, 3), np.int64))
    tables_at: NDArray[np.int64] = field(default_factory=lambda: np.zeros(NUM_TABLES, np.int64))


def scan_jpegs(data: NDArray[np.uint8], starts: NDArray[np.int64], tables: ScanTables) -> NDArray[np.int64]:
    """Find the size of each image in pixels, and whether its file is clean.

    Args:
        data: uint8 [total], the files one after the other.
        starts: int64 [N + 1], where each file begins, and the end of the last one.
        tables: tables of earlier files; updated.

    Returns:
        int64 [N, 4]: height, width, whether the file is clean, whether it has EXIF, XMP or ICC data; zeros
        for a file that is not clean.
    """
    facts = np.zeros((len(starts) - 1, 4), np.int64)
    t, data = tables, read_only(data)
    scratch = np.empty(int(np.diff(starts).max(initial=0)) + SLACK, np.uint8)
    _scan_all(data, starts, facts, t.raws, t.seen, t.tables, t.codes, t.frame, t.blocks, t.tables_at, scratch)
    return facts


@kernel
def _scan_all(data, starts, facts, raws, seen, tables, codes, frame, blocks, tables_at, scratch):
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


@inlined
def _bring_tables(data, is_large, tables_at, raws, seen, tables, codes):
    """Build the tables of a file that differ from those built last; return whether all can be used.

    A table of a small file is built only when it comes a second time in a row, since building it costs more
    than one small file saves.
    """
    is_known = True
    for slot in range(4):
        at = tables_at[CODES + slot]
        size = table_size(data, at) if at else 0
        # The first 16 bytes decide the size, so a table of another size differs there.
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
