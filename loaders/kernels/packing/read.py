"""Read many small files in one call, without returning to the interpreter for each."""

from __future__ import annotations

import numpy as np
from numba import types
from numpy.typing import NDArray

from loaders.kernels.cache import kernel
from loaders.kernels.memory import c_function

_open = c_function("open", types.int32, types.uintp, types.int32)  # without a mode, since no file is created
_read = c_function("read", types.intp, types.int32, types.uintp, types.uintp)
_close = c_function("close", types.int32, types.int32)


def read_files(
    paths: bytes, path_starts: NDArray[np.int64], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_]]:
    """Read files of known sizes into one array, one after the other.

    Args:
        paths: the paths, each terminated by a zero byte.
        path_starts: int64 [N], where each path begins.
        sizes: int64 [N], the expected size of each file in bytes.

    Returns:
        uint8 [total], the bytes; int64 [N + 1], where each file begins, and the end; bool [N], whether each
        was read and has its expected size; if not, its bytes are undefined, and the caller must find out why.
    """
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    data = np.empty(int(starts[-1]) + 1, np.uint8)  # one more byte, to notice if a file has grown
    good = np.zeros(len(sizes), np.bool_)
    _read_all(np.frombuffer(paths, np.uint8), path_starts, starts, data, good)
    return data[:-1], starts, good


@kernel
def _read_all(paths, path_starts, starts, data, good):
    for i in range(len(good)):
        file = _open(np.uintp(paths.ctypes.data) + np.uintp(path_starts[i]), np.int32(0))
        if file < 0:
            continue
        at, stop = starts[i], starts[i + 1]
        is_short = True
        while is_short:
            # Request one byte too many; it does not arrive if the file has the expected size.
            count = _read(file, np.uintp(data.ctypes.data) + np.uintp(at), np.uintp(stop + 1 - at))
            at += count
            is_short = count > 0 and at < stop
        good[i] = count >= 0 and at == stop
        _close(file)
