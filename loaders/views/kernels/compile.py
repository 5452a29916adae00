"""How every kernel is compiled: once, cached on disk, without the GIL."""

from __future__ import annotations

from numba import njit

# Without reference counting (`_nrt`) a slice costs nothing; kernels allocate nothing, so they need none.
# fastmath lets LLVM reorder sums and assume finite values; one machine still gives the same bytes always.
kernel = njit(cache=True, nogil=True, fastmath=True, error_model="numpy", _nrt=False)  # type: ignore[call-overload]

# For random numbers: strict arithmetic, so that every machine draws the same parameters.
exact_kernel = njit(cache=True, nogil=True)
