"""Memory maps without file descriptors: a pack may have more shards than a process may have open files."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_FAILED = ctypes.c_void_p(-1).value
_library = ctypes.CDLL(None, use_errno=True)
_library.mmap.restype = ctypes.c_void_p
_library.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long),
)
_library.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


def map_file(path: Path) -> NDArray[np.uint8]:
    """Map a file as a read-only uint8 array; the file is unmapped when no array refers to the map any more.

    The maps of Python and numpy keep a duplicate of the file's descriptor open for as long as they live (from
    Python 3.13 on, this can be turned off). A memory map itself needs no descriptor.

    Raises:
        OSError: there is no such file, or the system refuses to map it.
        ValueError: the file is empty, so that there is nothing to map.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        if size == 0:
            raise ValueError("the file is empty")
        address = _library.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), os.fspath(path))
    finally:
        os.close(descriptor)
    memory = (ctypes.c_uint8 * size).from_address(address)
    weakref.finalize(memory, _library.munmap, address, size).atexit = False
    array: NDArray[np.uint8] = np.frombuffer(memoryview(memory), np.uint8)
    array.flags.writeable = False
    return array
