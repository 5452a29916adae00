"""How every kernel is compiled: once, cached on disk, without the GIL."""

from __future__ import annotations

from typing import Any

from numba import njit

from loaders.compiler import KernelCompiler, PartCompiler

# Without reference counting (`_nrt`) a slice costs nothing; kernels allocate nothing, so they need none.
# fastmath lets LLVM reorder sums and assume finite values; one machine still gives the same bytes always.
_OPTIONS: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "fastmath": True,
    "error_model": "numpy",
    "_nrt": False,
    "no_cfunc_wrapper": True,  # nothing calls a kernel from C
}
kernel = njit(**_OPTIONS, pipeline_class=KernelCompiler)

# Called by kernels alone: a call from Python would end the process. Without wrappers for C and for Python a
# new machine's first batch comes a quarter sooner. Constants that are arguments are written as np.int64(0):
# numba compiles a function anew for each that it knows.
inlined = njit(**_OPTIONS, no_cpython_wrapper=True, pipeline_class=PartCompiler)  # type: ignore[call-overload]

# For random numbers: strict arithmetic, so that every machine draws the same parameters.
exact_kernel = njit(cache=True, nogil=True, no_cfunc_wrapper=True, pipeline_class=KernelCompiler)  # type: ignore[call-overload]
