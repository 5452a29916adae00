"""Memory for decoding JPEGs of the usual kind, and decoding one into the samples it holds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from loaders.packs.stored.kernel import StoredKernel
from loaders.packs.stored.sizes import (
    COEFFICIENTS,
    DECODE_ROWS,
    LANES,
    MAX_BLOCKS,
    MAX_ROW_PX,
    NUM_CODES,
    NUM_TABLES,
    RAW_BYTES,
    SLACK,
)

decode_samples = StoredKernel("jpeg.baseline", "decode_samples")
# What a thread keeps from one image to the next: tables, which files often share, and scratch. A record is
# one argument, where numba takes a tuple of arrays apart in every function: half the time to compile.
BASELINE = np.dtype(
    [
        ("tables", np.uint64, (4 * DECODE_ROWS,)),
        ("single", np.uint64, (DECODE_ROWS,)),
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
        ("sums", np.int16, (MAX_ROW_PX,)),
        ("raws", np.uint8, (4, RAW_BYTES)),  # the tables of codes that were built last
        ("colours", np.uint8, (2, MAX_ROW_PX)),
        ("narrow", np.uint8, (3 * LANES,)),
    ]
)


def make_baseline() -> NDArray[np.void]:
    """Allocate what one thread needs: BASELINE [1]."""
    return np.zeros(1, BASELINE)


def scan_bytes(size: int) -> int:
    """Return how much scratch the codes of a file of so many bytes need."""
    return size + SLACK


def sample_bytes(height: Any, width: Any) -> Any:
    """Return how much scratch the samples of an image of so many pixels need at most."""
    return 3 * (height + 15) * (width + 15) + LANES
