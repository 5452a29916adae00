"""libjpeg-turbo: the library, its state for one thread, and decoding from Python.

The library comes with the wheel `turbojpeg`. Other wheels hide their copy of the library, or offer only the
interface of libjpeg, whose error handler must not return; compiled Python cannot provide such a handler.
"""

from __future__ import annotations

import importlib.metadata
import threading
import weakref
from ctypes import (
    CDLL,
    Array,
    PyDLL,
    Structure,
    addressof,
    c_char,
    c_char_p,
    c_int,
    c_size_t,
    c_void_p,
    memmove,
    memset,
)
from mmap import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_COMPRESS, _DECOMPRESS = 0, 1
_NO_REALLOC = 2
_WARNING = 0
_STOP_ON_WARNING = 0
_SCAN_LIMIT = 13
MAX_SCANS = 500  # without a limit, a progressive image of a few kilobytes can take hours
IMAGE_WIDTH, IMAGE_HEIGHT = 5, 6  # parameters that reading a header sets
SUBSAMPLING, HALF_COLOURS = 4, 2  # parameter for chroma subsampling, and its value for 4:2:0
RGB, GRAY, CMYK = 0, 6, 11  # pixel formats
_CHANNELS = {RGB: 3, GRAY: 1, CMYK: 4}
# libjpeg-turbo decodes the last bytes of its input more slowly: 512 bytes for each block of a unit, which has
# up to ten. That is much of a small image, so this many bytes, which are never decoded, are appended to it.
AHEAD = 5120
SMALL_BYTES = 64 << 10  # a JPEG of at most this size, not cut short, is copied, with `AHEAD` bytes appended
_MARK_OF_THE_END = b"\xff\xd9"


class ScalingFactor(Structure):
    """The library's struct for the fraction to which decoding shrinks the sides of an image."""

    _fields_ = (("numerator", c_int), ("denominator", c_int))


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
    ("tj3GetErrorCode", c_int, [c_void_p]),
    ("tj3Decompress8", c_int, [c_void_p, c_void_p, c_size_t, c_void_p, c_int, c_int]),
):
    _function = getattr(library, _name)
    _function.restype, _function.argtypes = _returned, _taken

# Calls of a microsecond keep the GIL (PyDLL): getting it back from another thread would cost several.
quick = PyDLL(PATH)
for _name, _arguments in (
    ("tj3DecompressHeader", [c_void_p, c_void_p, c_size_t]),
    ("tj3Get", [c_void_p, c_int]),
    ("tj3Set", [c_void_p, c_int, c_int]),
    ("tj3SetScalingFactor", [c_void_p, ScalingFactor]),
):
    getattr(quick, _name).argtypes = _arguments
_ROOM_BYTES = 8192**2  # gray, 65,535 pixels a side (the limit of JPEG), at 1/8 size


class _State:
    """State of the library for one thread, freed with this object.

    Attributes:
        handle: pointer to the state, first argument of the library's functions.
    """

    def __init__(self, kind: int) -> None:
        self.handle: int = library.tj3Init(kind)
        if not self.handle:
            raise MemoryError(f"libjpeg-turbo cannot start a {type(self).__name__.lower()}")
        weakref.finalize(self, library.tj3Destroy, self.handle).atexit = False


class Compressor(_State):
    """State for encoding into the caller's memory, with 4:2:0 chroma subsampling."""

    def __init__(self) -> None:
        """Allocate the state."""
        super().__init__(_COMPRESS)
        library.tj3Set(self.handle, _NO_REALLOC, 1)
        library.tj3Set(self.handle, SUBSAMPLING, HALF_COLOURS)


class Decompressor(_State):
    """State for decoding. More than `MAX_SCANS` scans are an error; so are warnings by default."""

    def __init__(self, is_strict: bool = True) -> None:
        """Allocate the state; warnings are errors if `is_strict`."""
        super().__init__(_DECOMPRESS)
        self._is_strict = is_strict
        library.tj3Set(self.handle, _STOP_ON_WARNING, int(is_strict))
        library.tj3Set(self.handle, _SCAN_LIMIT, MAX_SCANS)

    @property
    def error(self) -> str:
        """Message of the last call that failed."""
        text: bytes = library.tj3GetErrorStr(self.handle)
        return text.decode("utf-8", "replace")

    def decode(
        self, data: bytes | NDArray[np.uint8], factor: int = 1, form: int = RGB, max_pixels: int | None = None
    ) -> NDArray[np.uint8]:
        """Decode a JPEG. A decompressor with `is_strict` finds the same files damaged as the loaders do.

        Args:
            factor: 1, 2, 4 or 8, by which both sides shrink.
            form: RGB, GRAY or CMYK.
            max_pixels: limit for height x width before shrinking; None for no limit.

        Returns:
            uint8 [H, W, channels of `form`].

        Raises:
            ValueError: damage, with the library's text, or too many pixels. A decompressor that has met a
                damaged header refuses every later image: replace it.
        """
        source = np.frombuffer(data, np.uint8)
        size = len(source)
        self._check(quick.tj3DecompressHeader(self.handle, source.ctypes.data, size))
        height, width = (quick.tj3Get(self.handle, side) for side in (IMAGE_HEIGHT, IMAGE_WIDTH))
        if max_pixels is not None and height * width > max_pixels:
            raise ValueError(f"{width}x{height} pixels, over the limit of {max_pixels} in all")
        quick.tj3SetScalingFactor(self.handle, ScalingFactor(1, factor))
        if size <= SMALL_BYTES and source[-2:].tobytes() == _MARK_OF_THE_END:
            copied = np.zeros(size + AHEAD, np.uint8)
            copied[:size] = source
            source = copied
        pixels = np.empty((-(-height // factor), -(-width // factor), _CHANNELS[form]), np.uint8)
        address, to = source.ctypes.data, pixels.ctypes.data
        self._check(library.tj3Decompress8(self.handle, address, len(source), to, 0, form))
        return pixels

    def _check(self, code: int) -> None:
        if code != 0 and (self._is_strict or library.tj3GetErrorCode(self.handle) != _WARNING):
            raise ValueError(self.error)


class Checker(Decompressor):
    """State for checking JPEGs. It finds the same damage as `Decompressor.decode` does by default.

    It reads all entropy-coded data, but computes only the gray component at 1/8 size.
    """

    def __init__(self, room: Array[c_char]) -> None:
        """Allocate the state; `room` is scratch for the largest image at 1/8 size."""
        super().__init__()
        quick.tj3SetScalingFactor(self.handle, ScalingFactor(1, 8))
        self._copy = np.empty(SMALL_BYTES + AHEAD, np.uint8)
        self._room, self._to, self._copied = room, addressof(room), self._copy.ctypes.data

    def check(self, data: bytes) -> None:
        """Check a JPEG.

        Raises:
            ValueError: damage; the text is the library's. Replace the checker then.
        """
        size = len(data)
        source: bytes | int = data
        if size <= SMALL_BYTES and data.endswith(_MARK_OF_THE_END):
            source = self._copied
            memmove(source, data, size)
            memset(source + size, 0, AHEAD)
            size += AHEAD
        if library.tj3Decompress8(self.handle, source, size, self._to, 0, GRAY) != 0:
            raise ValueError(self.error)


class _Local(threading.local):
    """The decompressor and the checker of a thread."""

    def __init__(self) -> None:
        self.decompressor = Decompressor()
        # This only reserves addresses; a page takes memory once an image touches it.
        self.room = (c_char * _ROOM_BYTES).from_buffer(mmap(-1, _ROOM_BYTES))
        self.checker = Checker(self.room)


_local = _Local()


def decode_jpeg(data: bytes | NDArray[np.uint8], factor: int = 1, form: int = RGB) -> NDArray[np.uint8]:
    """Decode a JPEG with this thread's decompressor, warnings as errors; see `Decompressor.decode`.

    Packing, showing and verifying use this function, so that they agree with the loaders on what is damaged.
    """
    try:
        return _local.decompressor.decode(data, factor, form)
    except ValueError:
        _local.decompressor = Decompressor()
        raise


def check_jpeg(data: bytes) -> None:
    """Raise ValueError if a JPEG is damaged; see `Checker`."""
    try:
        _local.checker.check(data)
    except ValueError:
        _local.checker = Checker(_local.room)
        raise


def factor_leaving(height: int, width: int, to_height: int, to_width: int) -> int:
    """Return the largest `factor` of `Decompressor.decode` that leaves to_height x to_width or more, or 1."""
    factor = 8
    while factor > 1 and (height < factor * to_height or width < factor * to_width):
        factor //= 2
    return factor
