"""Decodes packed images into a worker's memory, one chunk per call of compiled code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loaders.kernels.encodings import ENCODING_JPEG, ENCODING_RAW
from loaders.kernels.jpeg.baseline import make_baseline, sample_bytes, scan_bytes
from loaders.kernels.jpeg.decode import (
    FOUND_ALTERED,
    FOUND_BYTES,
    FOUND_DAMAGE,
    FOUND_ENCODING,
    FOUND_SIZE,
    decode_all,
)
from loaders.kernels.jpeg.turbojpeg import AHEAD, SMALL_BYTES, Decompressor

SLACK = 64  # bytes after the last image that vector loads may read
MAX_PIXELS_PER_BYTE = 256  # a uniform gray JPEG has 2 bits (DC and AC) for each block of 64 pixels


@dataclass
class Arena:
    """Growing memory of one worker for the channel planes of a chunk's images."""

    planes: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))

    def reserve(self, size_bytes: int) -> None:
        """Make room for `size_bytes` of pixels."""
        if len(self.planes) < size_bytes + SLACK:
            self.planes = np.zeros(size_bytes + SLACK, np.uint8)

    def extend(self, used_bytes: int, more_bytes: int) -> None:
        """Make room for `more_bytes` after the first `used_bytes`, whose contents are kept."""
        if len(self.planes) < used_bytes + more_bytes + SLACK:
            kept = self.planes[:used_bytes]
            self.reserve(used_bytes + more_bytes)
            self.planes[:used_bytes] = kept


class EncodedRows(NamedTuple):
    """Where the bytes of K rows lie in memory, and what the index says about them.

    Attributes:
        addresses: uint64 [K].
        sizes: int64 [K], bytes.
        encodings: uint8 [K], values of the column `encoding`.
        heights, widths: int64 [K], pixels.
        regions: int64 [K, 4], top, left, height and width of the wanted region; after decoding, of the
            decoded region.
        whole: bool [K], False where a checksum has failed.
        keep: keeps the memory at the addresses alive.
    """

    addresses: NDArray[np.uint64]
    sizes: NDArray[np.int64]
    encodings: NDArray[np.uint8]
    heights: NDArray[np.int64]
    widths: NDArray[np.int64]
    regions: NDArray[np.int64]
    whole: NDArray[np.bool_]
    keep: Any

    @classmethod
    def of_jpegs(
        cls, data: Sequence[NDArray[np.uint8]], heights: NDArray[np.int64], widths: NDArray[np.int64]
    ) -> EncodedRows:
        """Return rows for JPEGs in memory, with whole images as the wanted regions.

        Args:
            data: K arrays of uint8 [size in bytes].
            heights, widths: int64 [K], pixels.
        """
        return cls(
            addresses=np.array([one.ctypes.data for one in data], np.uint64),
            sizes=np.array([len(one) for one in data], np.int64),
            encodings=np.full(len(data), ENCODING_JPEG, np.uint8),
            heights=heights,
            widths=widths,
            regions=np.stack([0 * heights, 0 * heights, heights, widths], axis=1),
            whole=np.ones(len(data), np.bool_),
            keep=data,
        )

    def part(self, first: int, last: int) -> EncodedRows:
        """Return rows first .. last - 1; the arrays share memory with those of this object."""
        part = slice(first, last)
        return EncodedRows(
            self.addresses[part], self.sizes[part], self.encodings[part], self.heights[part],
            self.widths[part], self.regions[part], self.whole[part], self.keep,
        )  # fmt: skip

    @property
    def pixel_bytes(self) -> NDArray[np.int64]:
        """Bytes of each image when all of it is decoded, int64 [K]."""
        return 3 * self.heights * self.widths


class Decoder:
    """Decodes images for one thread."""

    def __init__(self) -> None:
        """Start a decompressor."""
        self._jpeg = Decompressor()
        self._baseline = make_baseline()
        self._scan = np.empty(0, np.uint8)
        self._copy = np.empty(SMALL_BYTES + AHEAD, np.uint8)
        self._pixels = np.empty(0, np.uint8)
        self._found = np.zeros(3, np.int64)
        self._error = ""

    def decode(
        self, rows: EncodedRows, first: int, starts: NDArray[np.int64], planes: NDArray[np.uint8]
    ) -> int:
        """Decode rows `first` .. K - 1 into channel planes, one row after the other, without the GIL.

        A warning of the JPEG library counts as damage. A region alone is decoded only from a JPEG that ends
        with the end-of-image marker and has a usual chroma sampling; other images are taken whole.

        Args:
            rows: K rows; the decoded regions are written to their `regions`.
            first: the row to begin with.
            starts: int64 [K], where each row begins in `planes`; `starts[first]` is given, later entries are
                written.
            planes: uint8, the output: red, green and blue plane of each row; it has room for whole images.

        Returns:
            The first row that failed, or K; `reason` says what is wrong with that row.
        """
        sides = rows.heights[first:], rows.widths[first:]
        largest = int(sample_bytes(*sides).max(initial=0)), scan_bytes(int(rows.sizes[first:].max(initial=0)))
        if len(self._pixels) < largest[0]:
            self._pixels = np.empty(largest[0], np.uint8)
        if len(self._scan) < largest[1]:
            self._scan = np.empty(largest[1], np.uint8)
        row = int(
            decode_all(
                self._jpeg.handle, rows.addresses, rows.sizes, rows.encodings, rows.heights, rows.widths,
                rows.regions, rows.whole, first, starts, self._baseline, self._scan, self._copy,
                self._pixels, planes, self._found,
            )
        )  # fmt: skip
        if row < len(rows.sizes) and self._found[0] == FOUND_DAMAGE:
            # A decompressor refuses every image after a damaged header.
            self._error, self._jpeg = self._jpeg.error, Decompressor()
        return row

    def reason(self, rows: EncodedRows, row: int) -> str:
        """Return what is wrong with the row at which `decode` stopped."""
        kind, a, b = self._found.tolist()
        size = f"{rows.heights[row]} x {rows.widths[row]}"
        return {
            FOUND_DAMAGE: self._error,
            FOUND_SIZE: f"expected {size} pixels as in the index, found {a} x {b}",
            FOUND_BYTES: f"{a} bytes, expected {size} pixels of 3",
            FOUND_ENCODING: f"encoding {a}, expected {ENCODING_JPEG} or {ENCODING_RAW}",
            FOUND_ALTERED: "its bytes differ from the CRC-32 in the index",
        }[kind]


_MARGIN = 4  # pixels added around a region, since chroma upsampling reads the pixels next to it
_COLUMNS = 32  # regions begin at multiples of this, which suit every chroma subsampling
_WORTHWHILE = 0.9  # share of an image up to which decoding a part of it saves time
_SMALL = 1 << 14  # images with fewer pixels are decoded whole


def regions_of(
    windows: Sequence[NDArray[np.int32]], heights: NDArray[np.int64], widths: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the region of each image that must be decoded to get all pixels of its windows right.

    Args:
        windows: per view int32 [K, 4], top, left, bottom and right; empty to decode the whole images.
        heights, widths: int64 [K], pixels of the images.

    Returns:
        int64 [K, 4], top, left, height and width.
    """
    pixels = heights * widths
    regions = np.zeros((len(pixels), 4), np.int64)
    regions[:, 2], regions[:, 3] = heights, widths
    if not windows or pixels.max(initial=0) < _SMALL:
        return regions
    low = np.minimum.reduce([window[:, :2] for window in windows]).astype(np.int64) - _MARGIN
    high = np.maximum.reduce([window[:, 2:] for window in windows]).astype(np.int64) + _MARGIN
    low = np.maximum(low, 0)
    low[:, 1] -= low[:, 1] % _COLUMNS
    parts = np.concatenate([low, np.minimum(high, regions[:, 2:]) - low], axis=1)
    saves = (pixels >= _SMALL) & (parts[:, 2] * parts[:, 3] <= _WORTHWHILE * pixels)
    regions[saves] = parts[saves]
    return regions


def decode_nothing() -> None:
    """Load the kernel from the cache, or compile it."""
    nothing = np.empty(0, np.int64)
    Decoder().decode(EncodedRows.of_jpegs([], nothing, nothing), 0, nothing, np.zeros(1, np.uint8))
