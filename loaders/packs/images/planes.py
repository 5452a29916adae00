"""Shrink a JPEG in its own planes: luma and two chroma planes are decoded, resized and encoded.

Chroma is neither enlarged to full size nor converted to RGB and back, which saves a sixth of the time
(measured) and costs nothing in quality (docs/performance.md).
"""

from __future__ import annotations

import threading
from ctypes import POINTER, byref, c_int, c_size_t, c_void_p
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loaders.kernels.cache import first_use
from loaders.kernels.jpeg.baseline import decode_samples, make_baseline, sample_bytes, scan_bytes
from loaders.kernels.jpeg.turbojpeg import (
    HALF_COLOURS,
    IMAGE_HEIGHT,
    IMAGE_WIDTH,
    SUBSAMPLING,
    Compressor,
    Decompressor,
    ScalingFactor,
    library,
)
from loaders.kernels.jpeg.turbojpeg import quick as _quick
from loaders.kernels.packing.shrink import MIN_ROW_BYTES, Plane, ShrinkPlan, Side, plan_shrinking
from loaders.kernels.packing.shrink import shrink_planes as resize_planes

_QUALITY = 3  # the library's number of this parameter
# Pixels per chroma value, down and across, by the library's number of a subsampling.
_SHARED = {0: (1, 1), 1: (1, 2), 2: (2, 2), 4: (2, 1)}
_KEPT_VALUES = 16 << 20
_Addresses, _Strides = c_void_p * 3, c_int * 3


_quick.tj3JPEGBufSize.argtypes, _quick.tj3JPEGBufSize.restype = [c_int, c_int, c_int], c_size_t
for _name, _taken in (
    ("tj3DecompressToYUVPlanes8", [c_void_p, c_void_p, c_size_t, _Addresses, _Strides]),
    (
        "tj3CompressFromYUVPlanes8",
        [c_void_p, _Addresses, c_int, _Strides, c_int, POINTER(c_void_p), POINTER(c_size_t)],
    ),
):
    getattr(library, _name).argtypes = _taken


class _Planes(NamedTuple):
    """Luma and two chroma planes in memory.

    Attributes:
        memory: uint8.
        places: int64 [3, 2], where each plane begins, and the bytes from one row to the next.
    """

    memory: NDArray[np.uint8]
    places: NDArray[np.int64]


class _Layout(NamedTuple):
    """Three planes, one after the other. Luma is padded to whole chroma values, as the library requires.

    Attributes:
        shared: pixels per chroma value, down and across.
        height: rows of a chroma plane.
        width: columns of a chroma plane.
    """

    shared: tuple[int, int]
    height: int
    width: int

    @classmethod
    def of(cls, height: int, width: int, shared: tuple[int, int]) -> _Layout:
        """Return the layout of an image of height x width pixels."""
        return cls(shared, -(-height // shared[0]), -(-width // shared[1]))

    @property
    def strides(self) -> tuple[int, int, int]:
        """Bytes per row of each plane."""
        return self.width * self.shared[1], self.width, self.width

    @property
    def ends(self) -> tuple[int, int, int]:
        """Where each plane ends."""
        colour = self.height * self.width
        luma = colour * self.shared[0] * self.shared[1]
        return luma, luma + colour, luma + 2 * colour

    def planes(self, memory: NDArray[np.uint8]) -> _Planes:
        """Return the planes of this layout in `memory`."""
        return _Planes(memory, np.array([[0, *self.ends[:2]], self.strides]).T.copy())


class _Worker(threading.local):
    """A decoder, an encoder and memory for one thread."""

    def __init__(self) -> None:
        self.decoder = Decompressor()
        self.encoder = Compressor()
        self.baseline = make_baseline()
        with first_use("decoding to planes"):
            file, region, places = np.zeros(1, np.uint8), np.zeros(4, np.int64), np.zeros((3, 2), np.int64)
            file.flags.writeable = False  # as with the data of files, so that numba compiles for one type
            decode_samples(file, 1, 1, region, self.baseline, file.copy(), file.copy(), places)
        self._memory: dict[str, NDArray[Any]] = {}

    def renew(self) -> None:
        """Replace the decoder, which refuses every image after a damaged header."""
        self.decoder = Decompressor()

    def memory(self, name: str, size: int, kind: type[np.generic] = np.uint8) -> NDArray[Any]:
        """Return scratch for `size` values or more, kept for the next call with `name` unless it is large."""
        if size > _KEPT_VALUES:
            return np.empty(size, kind)
        if name not in self._memory or len(self._memory[name]) < size:
            self._memory[name] = np.empty(size, kind)
        return self._memory[name]


_worker = _Worker()


def shrink_planes(data: bytes, factor: int, to_height: int, to_width: int, quality: int) -> bytes | None:
    """Decode a JPEG, resize it with a Hamming filter and encode it with 4:2:0 chroma subsampling.

    Chroma is never enlarged, which this filter would do worse than a decoder.

    Args:
        data: a JPEG in YCbCr.
        factor: 1, 2, 4 or 8, by which decoding shrinks.
        quality: JPEG quality of the result, 1 to 100.

    Returns:
        The new JPEG; None if the decoder complains, the image is very narrow or its subsampling is unusual.
    """
    decoder = _worker.decoder.handle
    if _quick.tj3DecompressHeader(decoder, data, len(data)) != 0:
        _worker.renew()
        return None
    shared = _SHARED.get(_quick.tj3Get(decoder, SUBSAMPLING))
    height, width = (-(-_quick.tj3Get(decoder, side) // factor) for side in (IMAGE_HEIGHT, IMAGE_WIDTH))
    if shared is None or width // shared[1] < MIN_ROW_BYTES:
        return None
    source = _decode_baseline(data, height, width) if factor == 1 else None
    source = source or _decode(data, factor, _Layout.of(height, width, shared))
    if source is None:
        return None
    plan = _plan(height, width, shared, to_height, to_width)
    return _encode(_resize(source, plan), to_height, to_width, quality)


def _resize(source: _Planes, plan: ShrinkPlan) -> NDArray[np.uint8]:
    """Return the planes of the result, one after the other."""
    target = _worker.memory("target", plan.ends[-1])
    floats = _worker.memory("floats", plan.num_floats, np.float32)
    sums = _worker.memory("sums", plan.num_bytes)
    resize_planes(target, source.memory, source.places, plan, floats, sums)
    return target


@lru_cache(maxsize=512)
def _plan(height: int, width: int, shared: tuple[int, int], to_height: int, to_width: int) -> ShrinkPlan:
    """Return how the three planes shrink; the resulting luma is padded to whole chroma values."""
    half = _SHARED[HALF_COLOURS]
    planes = []
    for plane in range(3):
        # Pixels per value of this plane, down and across, before and after shrinking.
        own = (shared, half) if plane else ((1, 1), (1, 1))
        rows, columns = (
            Side(
                length=-(-length // a),
                size=-(-to // b),
                scale=length / to * b / a,
                num_places=-(-to // half[axis]) * (1 if plane else half[axis]),
            )
            for axis, (length, to, a, b) in enumerate(
                zip((height, width), (to_height, to_width), *own, strict=True)
            )
        )
        planes.append(Plane(rows, columns))
    return plan_shrinking(tuple(planes))


def _decode_baseline(data: bytes, height: int, width: int) -> _Planes | None:
    """Decode by our own code; None for a file that it leaves to libjpeg-turbo."""
    scan, samples = (
        _worker.memory(name, size)
        for name, size in (("scan", scan_bytes(len(data))), ("source", sample_bytes(height, width)))
    )
    places, region = np.empty((3, 2), np.int64), np.array([0, 0, height, width])
    file = np.frombuffer(data, np.uint8)
    if not decode_samples(file, height, width, region, _worker.baseline, scan, samples, places):
        return None
    return _Planes(samples, places)


def _decode(data: bytes, factor: int, layout: _Layout) -> _Planes | None:
    """Decode by libjpeg-turbo; None where it complains."""
    planes = layout.planes(_worker.memory("source", layout.ends[2]))
    decoder = _worker.decoder.handle
    _quick.tj3SetScalingFactor(decoder, ScalingFactor(1, factor))
    arguments = _addresses(planes.memory, layout), _Strides(*layout.strides)
    if library.tj3DecompressToYUVPlanes8(decoder, data, len(data), *arguments) != 0:
        _worker.renew()
        return None
    return planes


def _addresses(memory: NDArray[np.uint8], layout: _Layout) -> _Addresses:  # type: ignore[valid-type]
    first = memory.ctypes.data
    return _Addresses(first, *(first + end for end in layout.ends[:2]))


def _encode(planes: NDArray[np.uint8], height: int, width: int, quality: int) -> bytes:
    encoder = _worker.encoder.handle
    out = _worker.memory("encoded", _quick.tj3JPEGBufSize(width, height, HALF_COLOURS))
    layout = _Layout.of(height, width, _SHARED[HALF_COLOURS])
    _quick.tj3Set(encoder, _QUALITY, quality)
    place, size = c_void_p(out.ctypes.data), c_size_t(len(out))
    arguments = _addresses(planes, layout), width, _Strides(*layout.strides), height
    if library.tj3CompressFromYUVPlanes8(encoder, *arguments, byref(place), byref(size)) != 0:
        raise MemoryError("libjpeg-turbo cannot encode")
    return out[: size.value].tobytes()
