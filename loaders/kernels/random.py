"""Counter-based random numbers: a value depends on the seed and a counter, never on earlier draws.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). The key is the seed; the
128-bit counter holds row, view, epoch, operation and block, so any thread, rank or resumed run computes the
same number without shared state.
"""

from __future__ import annotations

import numpy as np

from loaders.kernels.cache import exact_kernel

_M0 = np.uint64(0xD2511F53)
_M1 = np.uint64(0xCD9E8D57)
_W0 = np.uint64(0x9E3779B9)
_W1 = np.uint64(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_UNIT = 1.0 / 4294967296.0


@exact_kernel
def philox(c0, c1, c2, c3, k0, k1):
    """Return Philox4x32-10 of counter c0 .. c3 and key k0, k1, uint64 below 2^32 (but see `uniform4`)."""
    for _ in range(10):
        p0 = _M0 * c0
        p1 = _M1 * c2
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT) ^ c1 ^ k0,
            p1 & _LOW,
            (p0 >> _SHIFT) ^ c3 ^ k1,
            p0 & _LOW,
        )
        k0 = (k0 + _W0) & _LOW
        k1 = (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@exact_kernel
def uniform4(seed, epoch, row, view, operation, block):
    """Return four float64 in [0, 1) for one (seed, epoch, row, view, operation, block).

    Args:
        seed: any int64; all 64 bits count.
        epoch: int in [0, 2^32).
        row: int in [0, 2^48): a row of the pack; for operations on a whole batch, the step.
        view: int in [0, 2^16); 0xFFFF for operations on a whole batch (`loaders.views.batchwise`).
        operation: int in [0, 2^16): 0 for the geometry, then the operations of the policy from 1 on; for a
            whole batch, 0 for MixUp, 1 for CutMix.
        block: int in [0, 2^16); an operation that needs more than four numbers counts it up.

    `loaders.order.weighted` passes a view and an operation above these ranges. Their low 48 bits count, but
    c1 and c3 of `philox` then exceed 32 bits, so the results are not those of the published Philox.
    """
    row64 = np.uint64(row)
    s = np.uint64(seed)
    c1 = ((row64 >> _SHIFT) & np.uint64(0xFFFF)) | (np.uint64(view) << np.uint64(16))
    c3 = np.uint64(block) | (np.uint64(operation) << np.uint64(16))
    a, b, c, d = philox(row64 & _LOW, c1, np.uint64(epoch), c3, s & _LOW, s >> _SHIFT)
    return a * _UNIT, b * _UNIT, c * _UNIT, d * _UNIT
