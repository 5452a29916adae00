"""Synthetic JPEG images for tests of packing, drawn and encoded in one compiled loop, many per call."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loaders.kernels.cache import kernel
from loaders.kernels.jpeg.turbojpeg import HALF_COLOURS, Compressor, library
from loaders.kernels.jpeg.turbojpeg_calls import compress_planes, set_parameter
from tools.packing.names import MAX_SIDE

NUM_TEXTURES = 64
_HALF = MAX_SIDE // 2
_QUALITY = 3  # libjpeg-turbo's number of the parameter for the quality


@dataclass(frozen=True)
class Pictures:
    """Pictures to draw; each blends a window of one texture with a window of another.

    Attributes:
        sides: int64 [N, 2], height and width in pixels.
        kinds: int64 [N, 2], numbers of the two textures.
        places: float64 [N, 4] in [0, 1), positions of the windows: y and x of the first, then of the second.
        shares: int64 [N], share of the first texture, out of 256.
        qualities: int64 [N], JPEG quality.
    """

    sides: NDArray[np.int64]
    kinds: NDArray[np.int64]
    places: NDArray[np.float64]
    shares: NDArray[np.int64]
    qualities: NDArray[np.int64]


class Textures:
    """Smooth and rough textures as JPEG planes: luma, and two colour planes of half the side.

    Attributes:
        luma: uint8 [64 * 256 * 256], luma planes of 64 textures.
        colors: uint8 [2, 64 * 128 * 128], their colour planes.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])
        luma, colors = [], []
        for number in range(NUM_TEXTURES):
            grain = 4 << (number % 5)
            small = Image.fromarray(rng.integers(0, 256, (grain, grain, 3), dtype=np.uint8))
            texture = small.resize((MAX_SIDE, MAX_SIDE), Image.Resampling.BICUBIC).convert("YCbCr")
            luma.append(np.asarray(texture)[..., 0])
            colors.append(np.asarray(texture.resize((_HALF, _HALF), Image.Resampling.BOX))[..., 1:])
        self.luma = np.stack(luma).reshape(-1)
        self.colors = np.ascontiguousarray(np.moveaxis(np.stack(colors), -1, 0)).reshape(2, -1)


class _Worker(threading.local):
    """Buffers of one thread: an encoder, the planes of a picture, and memory for the JPEGs of a call."""

    def __init__(self) -> None:
        self.encoder = Compressor()
        self.planes = np.empty(MAX_SIDE * MAX_SIDE * 3 // 2, np.uint8)
        self.jpegs = np.empty((0, 0), np.uint8)

    def room(self, count: int, size_bytes: int) -> NDArray[np.uint8]:
        """Return a uint8 array of at least [count, size_bytes], that of an earlier call if large enough."""
        if self.jpegs.shape[0] < count or self.jpegs.shape[1] < size_bytes:
            self.jpegs = np.empty((count, size_bytes), np.uint8)
        return self.jpegs


_worker = _Worker()


def draw_jpegs(textures: Textures, pictures: Pictures, chosen: NDArray[np.int64]) -> list[memoryview]:
    """Draw and encode some of the pictures.

    Args:
        chosen: int64 [B], numbers of the pictures to draw.

    Returns:
        One JPEG per chosen picture. The memory is reused by this thread's next call.

    Raises:
        RuntimeError: the encoder refuses a picture.
    """
    count, longest = len(chosen), int(pictures.sides.max())
    jpegs = _worker.room(count, library.tj3JPEGBufSize(longest, longest, HALF_COLOURS))
    sizes = np.full(count, jpegs.shape[1], np.uint64)
    drawn = _draw(
        _worker.encoder.handle, textures.luma, textures.colors, chosen, pictures.sides, pictures.kinds,
        pictures.places, pictures.shares, pictures.qualities, _worker.planes, np.empty(4, np.uint64),
        np.empty(3, np.int32), jpegs, sizes,
    )  # fmt: skip
    if drawn < count:
        raise RuntimeError(
            f"picture {chosen[drawn]}: {library.tj3GetErrorStr(_worker.encoder.handle).decode()}"
        )
    return [memoryview(jpeg)[:size] for jpeg, size in zip(jpegs, sizes.tolist(), strict=False)]


@kernel
def _draw(  # type: ignore[no-untyped-def]  # noqa: ANN202
    encoder, luma, colors, chosen, sides, kinds, places, shares, qualities,  # noqa: ANN001
    planes, addresses, strides, jpegs, sizes,  # noqa: ANN001
):  # fmt: skip
    """Write a JPEG into each row of `jpegs` and its size into `sizes`; return the number of pictures drawn.

    If the encoder refuses a picture, the loop stops there.
    """
    start, first = planes.ctypes.data, addresses.ctypes.data
    for number in range(len(chosen)):
        i = chosen[number]
        height, width = sides[i, 0], sides[i, 1]
        rows, columns = (height + 1) // 2, (width + 1) // 2  # of the colour planes; luma has twice as many
        windows = (
            kinds[i, 0] * _HALF + int(places[i, 0] * (_HALF - rows + 1)),
            int(places[i, 1] * (_HALF - columns + 1)),
            kinds[i, 1] * _HALF + int(places[i, 2] * (_HALF - rows + 1)),
            int(places[i, 3] * (_HALF - columns + 1)),
        )
        share, size = np.uint16(shares[i]), rows * columns
        _blend(luma, windows, 2, MAX_SIDE, share, planes[: 4 * size].reshape(2 * rows, 2 * columns))
        for color in range(2):
            plane = planes[(4 + color) * size : (5 + color) * size].reshape(rows, columns)
            _blend(colors[color], windows, 1, _HALF, share, plane)
        addresses[0], addresses[1], addresses[2] = start, start + 4 * size, start + 5 * size
        strides[0], strides[1], strides[2] = 2 * columns, columns, columns
        addresses[3] = jpegs[number].ctypes.data
        to, to_size = first + 24, sizes[number:].ctypes.data
        failed = set_parameter(encoder, _QUALITY, qualities[i])
        failed |= compress_planes(encoder, first, width, strides.ctypes.data, height, to, to_size)
        if failed:
            return number
    return len(chosen)


@kernel
def _blend(texture, windows, scale, stride, share, mixed):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Blend two windows into `mixed`.

    `windows` has the row and column of each in the colour planes; luma multiplies them by `scale`, 2. `share`
    is the first window's share, out of 256.
    """
    first = scale * (windows[0] * stride + windows[1])
    second = scale * (windows[2] * stride + windows[3])
    size = mixed.shape[1]
    for y in range(mixed.shape[0]):
        at, other = first + y * stride, second + y * stride
        # Index into slices: an index that might be negative would keep the loop from being vectorised.
        ones, others, row = texture[at : at + size], texture[other : other + size], mixed[y]
        for i in range(size):
            row[i] = (np.uint16(ones[i]) * share + np.uint16(others[i]) * np.uint16(256 - share)) >> 8
