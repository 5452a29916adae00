"""FFCV's two memory managers, with numba types of their own.

FFCV 1.0.2 describes its memory by taking numba's type of a contiguous array and setting `mutable` to False on
it. Numba keeps one object per type, so from then on every contiguous array of bytes in the process counts as
read-only. Functions that were compiled for such arrays are no longer found under their types, and the next
kernel to be compiled ends in a KeyError. This module describes the same memory by separate types.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import types

_FILE = types.Array(types.uint8, 1, "C", readonly=True)  # the mapped .beton
_PLACES = _SIZES = types.uint64[::1]
_FILE_STATE = types.Tuple((_FILE, _PLACES, _SIZES))  # type: ignore[no-untyped-call]
_PAGES_STATE = types.Tuple(  # type: ignore[no-untyped-call]
    (types.uint8[:, ::1], _PLACES, _SIZES, types.uint32[::1])
)


def describe_memory_apart() -> None:
    """Give FFCV's memory managers array types of their own; call this before a Loader is made."""
    from ffcv.memory_managers.os_cache import OSCacheManager
    from ffcv.memory_managers.process_cache.manager import ProcessCacheManager

    OSCacheManager.state_type = _FILE_STATE
    OSCacheManager.compile_reader = _compile_file_reader
    ProcessCacheManager.state_type = _PAGES_STATE


def _compile_file_reader(_manager: Any) -> Any:
    """Return the function with which FFCV's decoders find the bytes at an address in a file."""
    return _file_reader()


@cache  # the compiled function is the same for every file
def _file_reader() -> Any:
    from ffcv.pipeline.compiler import Compiler

    def stored_at(place: Any, state: Any) -> Any:
        size = state[2][np.searchsorted(state[1], place)]
        return state[0][place : place + size]

    return Compiler.compile(stored_at, _FILE(types.uint64, _FILE_STATE))
