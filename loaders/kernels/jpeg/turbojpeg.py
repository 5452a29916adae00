"""libjpeg-turbo: the library, its state for one thread, and its functions for compiled loops.

The library comes with the wheel `turbojpeg`. Other wheels keep theirs to themselves or offer the interface of
libjpeg alone, whose errors must not return to their caller, which compiled Python cannot arrange.
"""

from __future__ import annotations

import importlib.metadata
import weakref
from ctypes import CDLL, c_char_p, c_int, c_void_p
from pathlib import Path

from llvmlite import binding
from numba import types

from loaders.kernels.memory import c_function

_COMPRESS, _DECOMPRESS = 0, 1
_NO_REALLOC = 2
_STOP_ON_WARNING = 0
_SCAN_LIMIT = 13
MAX_SCANS = 500  # a progressive image of a few kilobytes can ask for hours of work
IMAGE_WIDTH, IMAGE_HEIGHT = 5, 6  # parameters of an image whose header was read
SUBSAMPLING, HALF_COLOURS = 4, 2  # a parameter, and its value for half the size both ways
RGB = 0


def _find() -> Path:
    for file in importlib.metadata.files("turbojpeg") or ():
        if file.name.startswith(("libturbojpeg", "turbojpeg")) and ".libs" in file.parts[0]:
            return Path(str(file.locate()))
    raise ImportError("the wheel of turbojpeg holds no libturbojpeg; pip install --force-reinstall turbojpeg")


PATH = str(_find())
library = CDLL(PATH)
for _name, _returned, _taken in (
    ("tj3Init", c_void_p, [c_int]),
    ("tj3Set", c_int, [c_void_p, c_int, c_int]),
    ("tj3Destroy", None, [c_void_p]),
    ("tj3GetErrorStr", c_char_p, [c_void_p]),
):
    _function = getattr(library, _name)
    _function.restype, _function.argtypes = _returned, _taken


class _State:
    """State of the library for one thread, given back with this object.

    Attributes:
        handle: what its functions take first.
    """

    def __init__(self, kind: int) -> None:
        self.handle: int = library.tj3Init(kind)
        if not self.handle:
            raise MemoryError(f"libjpeg-turbo cannot start a {type(self).__name__.lower()}")
        weakref.finalize(self, library.tj3Destroy, self.handle).atexit = False


class Compressor(_State):
    """For encoding: into the caller's memory, colours of half the size."""

    def __init__(self) -> None:
        """Take memory for it."""
        super().__init__(_COMPRESS)
        library.tj3Set(self.handle, _NO_REALLOC, 1)
        library.tj3Set(self.handle, SUBSAMPLING, HALF_COLOURS)


class Decompressor(_State):
    """For decoding: warnings are errors, and so are too many scans."""

    def __init__(self) -> None:
        """Take memory for it."""
        super().__init__(_DECOMPRESS)
        library.tj3Set(self.handle, _STOP_ON_WARNING, 1)
        library.tj3Set(self.handle, _SCAN_LIMIT, MAX_SCANS)

    @property
    def error(self) -> str:
        """What the last call that failed said."""
        text: bytes = library.tj3GetErrorStr(self.handle)
        return text.decode("utf-8", "replace")


# For kernels, which call them without the interpreter and its lock.
binding.load_library_permanently(PATH)
_ADDRESS, _INT = types.uintp, types.int32
read_header = c_function("tj3DecompressHeader", _INT, _ADDRESS, _ADDRESS, _ADDRESS)
get_parameter = c_function("tj3Get", _INT, _ADDRESS, _INT)
# Its second argument is a struct of four int32: x, y, width and height, in the registers of two integers.
set_region = c_function("tj3SetCroppingRegion", _INT, _ADDRESS, types.uint64, types.uint64)
decompress = c_function("tj3Decompress8", _INT, _ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS, _INT, _INT)
set_parameter = c_function("tj3Set", _INT, _ADDRESS, _INT, _INT)
compress_planes = c_function(
    "tj3CompressFromYUVPlanes8", _INT, _ADDRESS, _ADDRESS, _INT, _ADDRESS, _INT, _ADDRESS, _ADDRESS
)
copy_bytes = c_function("memcpy", _ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS)
