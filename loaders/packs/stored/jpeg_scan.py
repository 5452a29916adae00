"""Telling, for many JPEG files in one call, which are beyond doubt whole baseline files.

What "clean" means: `loaders.kernels.jpeg.scan`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from loaders.packs.stored.kernel import StoredKernel
from loaders.packs.stored.sizes import MAX_BLOCKS, NUM_CODES, NUM_TABLES, RAW_BYTES, SCAN_ROWS, SLACK

_scan_all = StoredKernel("jpeg.scan", "scan_all")


@dataclass
class ScanTables:
    """Huffman tables of the files seen last, so that files with the same ones do not pay for them again.

    Each thread needs its own. Four tables: DC 0, DC 1, AC 0, AC 1.
    """

    raws: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((4, RAW_BYTES), np.uint8))
    seen: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((4, RAW_BYTES), np.uint8))
    tables: NDArray[np.uint16] = field(default_factory=lambda: np.zeros(5 * SCAN_ROWS, np.uint16))
    codes: NDArray[np.int32] = field(default_factory=lambda: np.zeros((4, NUM_CODES), np.int32))
    frame: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 4), np.int64))
    blocks: NDArray[np.int64] = field(default_factory=lambda: np.zeros((MAX_BLOCKS, 3), np.int64))
    tables_at: NDArray[np.int64] = field(default_factory=lambda: np.zeros(NUM_TABLES, np.int64))


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
    _scan_all(data, starts, facts, t.raws, t.seen, t.tables, t.codes, t.frame, t.blocks, t.tables_at, scratch)
    return facts
